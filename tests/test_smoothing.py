"""The weighted mean over a track, against its formula."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferattn.errors import InvalidInput, InvalidOption
from ferattn.smoothing import Smoother

FRAMES = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 1)), min_size=1, max_size=9)


@given(FRAMES, st.floats(0.01, 10))
def test_it_is_the_weighted_mean_of_all_frames_until_now(frames: list[tuple[float, float]], half_life: float) -> None:
    smoother, now, seen = Smoother(half_life), 0.0, []
    for pause, share in frames:
        now += pause
        seen.append((now, share))
        found = smoother(0, {"happy": share, "sad": 1 - share}, now)
        weights = [2 ** -((now - when) / half_life) for when, _ in seen]
        wanted = sum(w * one for w, (_, one) in zip(weights, seen, strict=True)) / sum(weights)
        assert found == pytest.approx({"happy": wanted, "sad": 1 - wanted})


def test_no_half_life_is_each_frame_by_itself_and_tracks_are_apart() -> None:
    still, calm = Smoother(0), Smoother(1e9)
    for smoother, wanted in ((still, 0.0), (calm, 0.5)):
        assert smoother(3, {"happy": 1.0}, 0.0) == {"happy": 1.0}
        assert smoother(4, {"happy": 0.2}, 0.5) == {"happy": 0.2}
        assert smoother(3, {"happy": 0.0}, 1.0)["happy"] == pytest.approx(wanted)


def test_a_camera_may_run_for_ever() -> None:
    """Tracks that ended are forgotten, and nobody can tell: one that comes back is as it would have been."""
    smoother = Smoother(1.0)
    for track in range(1000):
        smoother(track, {"happy": 1.0}, float(track))
    assert len(smoother._seen) == 81  # 80 half-lives of a second, and the newest
    assert smoother(0, {"happy": 0.25}, 1000.0) == {"happy": 0.25}
    assert smoother(999, {"happy": 0.25}, 1000.0)["happy"] == pytest.approx((0.25 + 0.5 * 1) / 1.5)
    steady = Smoother(0.5)
    for frame in range(3000):
        steady(7, {"happy": 1.0}, frame / 25)
        steady(8, {"happy": 0.0}, frame / 25)
    assert set(steady._seen) == {7, 8}
    for frame in range(9):  # two cameras, each with a clock of its own
        steady(9, {"happy": 1.0}, 1e6 + frame)
        found = steady(10, {"happy": float(frame > 0)}, frame)
        assert frame == 0 or 0 < found["happy"] < 1
    assert steady(7, {"happy": 0.0}, 120.0)["happy"] < 1


def test_names_and_times_are_kept() -> None:
    smoother = Smoother(1.0)
    smoother(0, {"happy": 1.0, "sad": 0.0}, 1.0)
    assert smoother(0, {"sad": 1.0, "happy": 0.0}, 1.0) == {"sad": 0.5, "happy": 0.5}
    with pytest.raises(InvalidInput, match=r"at 0\.5 s came after one at 1\.0 s"):
        smoother(0, {"happy": 1.0, "sad": 0.0}, 0.5)
    with pytest.raises(InvalidInput, match="of happy; they were of"):
        smoother(0, {"happy": 1.0}, 2.0)


@pytest.mark.parametrize("half_life", [-1, float("nan"), float("inf")])
def test_a_half_life_is_seconds(half_life: float) -> None:
    with pytest.raises(InvalidOption, match="seconds, 0 or more"):
        Smoother(half_life)
