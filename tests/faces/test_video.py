"""Faces followed through frames."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency
from ferattn.faces import Face, FaceTracker

BOXES = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12))


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union, by counting unit squares."""
    one, other = (
        {(x, y) for x in range(int(u), int(u + w)) for y in range(int(v), int(v + h))} for u, v, w, h in (a, b)
    )
    return len(one & other) / len(one | other)


def best_joins(before: list[tuple[float, ...]], now: list[tuple[float, ...]], least: float) -> float:
    """The largest sum of overlaps over all ways to join the boxes, by trying them all."""
    short, long = sorted((before, now), key=len)
    return max(
        sum(value for value in map(overlap, short, chosen) if value >= least)
        for chosen in permutations(long, len(short))
    )


@settings(deadline=None)
@given(st.lists(BOXES, max_size=4), st.lists(BOXES, max_size=4), st.sampled_from([0.1, 0.3, 0.8]))
def test_boxes_are_joined_by_the_largest_sum_of_overlaps(
    before: list[tuple[float, ...]], now: list[tuple[float, ...]], least: float
) -> None:
    tracker = FaceTracker(min_overlap=least)
    assert tracker([Face(box) for box in before], 0.0) == list(range(len(before)))  # type: ignore[arg-type]
    numbers = tracker([Face(box) for box in now], 0.1)  # type: ignore[arg-type]
    assert len(set(numbers)) == len(now)
    old = [(overlap(before[number], box), number) for number, box in zip(numbers, now, strict=True)
           if number < len(before)]  # fmt: skip
    assert all(value >= least for value, _ in old)
    assert sum(value for value, _ in old) == pytest.approx(best_joins(before, now, least))
    new = [number for number in numbers if number >= len(before)]
    assert new == list(range(len(before), len(before) + len(new)))


def test_two_faces_that_pass_each_other_keep_their_numbers() -> None:
    tracker = FaceTracker()
    for step in range(11):
        left, right = Face((10 * step, 0, 40, 40)), Face((100 - 10 * step, 30, 40, 40))
        faces, numbers = ([right, left], [1, 0]) if step % 2 else ([left, right], [0, 1])
        assert tracker(faces, step / 25) == numbers


@pytest.mark.parametrize(("gap", "number"), [(0.2, 0), (0.6, 1)])
def test_a_face_may_be_missed_for_a_while(gap: float, number: int) -> None:
    tracker, face = FaceTracker(max_gap=0.5), Face((0, 0, 9, 9))
    assert tracker([face], 0.0) == [0]
    assert tracker([], 0.1) == []
    assert tracker([face], 0.1 + gap) == [number]


def test_frames_far_apart_are_joined_with_the_one_before() -> None:
    tracker, face = FaceTracker(max_gap=0.5), Face((0, 0, 9, 9))
    assert [tracker([face], seconds) for seconds in (0.0, 3.0, 9.0)] == [[0], [0], [0]]


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"min_overlap": 0}, {"min_overlap": 1.1}, {"min_overlap": np.nan}, {"max_gap": -1}):
        with pytest.raises(InvalidOption, match=next(iter(options))):
            FaceTracker(**options)
    tracker = FaceTracker()
    tracker([], 1.0)
    with pytest.raises(InvalidInput, match=r"0\.5 s came after one at 1\.0 s"):
        tracker([], 0.5)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependency, match=r"SciPy: pip install \"ferattn\[faces\]\""):
        FaceTracker()
