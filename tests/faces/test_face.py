import math

import pytest

from ferattn.errors import InvalidInput
from ferattn.faces import Detector, Face, make_detector

POINTS = ((2, 2), (6, 2), (4, 4), (2, 6), (6, 6))


def test_numbers_become_floats_and_faces_compare():
    face = Face([1, 2, 3, 4], 1, [list(p) for p in POINTS])
    assert face == Face((1.0, 2.0, 3.0, 4.0), 1.0, tuple((float(x), float(y)) for x, y in POINTS))
    assert hash(face) == hash(Face((1, 2, 3, 4), 1, POINTS))
    assert face.area == 12


@pytest.mark.parametrize(
    "arguments",
    [
        {"box": (0, 0, 0, 5)},
        {"box": (0, 0, 5, -1)},
        {"box": (0, 0, 5)},
        {"box": (0, 0, 5, math.nan)},
        {"box": "abcd"},
        {"box": (0, 0, 5, 5), "score": 1.1},
        {"box": (0, 0, 5, 5), "score": math.nan},
        {"box": (0, 0, 5, 5), "landmarks": POINTS[:4]},
        {"box": (0, 0, 5, 5), "landmarks": (*POINTS[:4], (1, math.inf))},
    ],
)
def test_impossible_faces_are_refused(arguments):
    with pytest.raises(InvalidInput, match=r"a face('s| has)"):
        Face(**arguments)


def test_eye_angle_follows_the_eyes():
    assert Face((0, 0, 9, 9)).eye_angle == 0
    lowered = ((2, 2), (2 + math.cos(0.3), 2 + math.sin(0.3)), *POINTS[2:])
    assert Face((0, 0, 9, 9), None, lowered).eye_angle == pytest.approx(0.3)


def test_the_protocol_is_a_name_and_a_call():
    assert isinstance(make_detector("none"), Detector)
    assert not isinstance(lambda image: [], Detector)
