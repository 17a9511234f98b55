import logging
import subprocess
import sys

import numpy as np
import pytest

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency, UnknownChoice, WeightsMismatch
from ferattn.faces import DETECTORS, Detector, Face, detect, make_detector, pick
from ferattn.faces import detectors as module

PICTURE = np.zeros((20, 10, 3), np.uint8)


def test_none_is_the_whole_picture():
    assert detect(PICTURE, "none", channels="rgb") == [Face((0, 0, 10, 20))]


def test_a_typo_is_answered_with_the_closest_name():
    with pytest.raises(UnknownChoice, match=r"did you mean 'yunet'.*auto, yunet, yolo5face, cascade, none"):
        make_detector("yunett")
    with pytest.raises(InvalidInput, match="callable"):
        make_detector(5)


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_unknown_options_are_refused(name):
    with pytest.raises(InvalidOption, match=f"{name}.*takes no option 'weight'"):
        make_detector(name, weight="x")


def test_a_built_detector_takes_no_options():
    built = make_detector("none")
    assert make_detector(built) is built
    with pytest.raises(InvalidOption, match="built already"):
        make_detector(built, min_score=0.5)


def test_any_callable():
    seen = []

    def mine(image):
        seen.append(image)
        return [Face((1, 1, 2, 2)), (3, 3, 2, 2), np.array([4, 4, 2, 2, 0.5])]

    found = detect(PICTURE[..., 0], mine)
    assert found == [Face((1, 1, 2, 2)), Face((3, 3, 2, 2)), Face((4, 4, 2, 2), 0.5)]
    assert seen[0].shape == (20, 10, 3)
    assert make_detector(mine).name.endswith("mine")
    assert isinstance(make_detector(mine), Detector)
    assert "test_any_callable" in repr(make_detector(mine))


@pytest.mark.parametrize("answer", [None, 5, [5], [(1, 2, 3)], [(1, 2, 3, 4, 5, 6)], [(0, 0, 0, 0)], ["abcd"]])
def test_a_callable_that_returns_nonsense(answer):
    with pytest.raises(InvalidInput, match=r"returned|a face's"):
        detect(PICTURE, lambda image: answer, channels="rgb")


def unreachable(file):
    raise WeightsMismatch("no network")


def test_auto_takes_yunet_where_it_can(monkeypatch, yunet_onnx, caplog):
    monkeypatch.setattr(module, "fetch", lambda file: yunet_onnx)
    monkeypatch.setattr(module, "verify", lambda path, file: path)
    monkeypatch.setitem(DETECTORS, "yunet", lambda: module.YuNet(yunet_onnx))
    with caplog.at_level(logging.INFO, "ferattn.faces"):
        assert make_detector("auto").name == "yunet"
    assert "face detector: yunet" in caplog.text


def test_auto_falls_back_to_the_cascade_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(module, "fetch", unreachable)
    assert make_detector().name.startswith("cascade-")
    assert "face detector: cascade, because YuNet is not available: no network" in caplog.text


def test_auto_without_anything_names_the_extra(monkeypatch):
    for name in ("cv2", "skimage", "skimage.feature"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"ferattn\[faces\]"):
        make_detector("auto")


SMALL, LARGE = Face((0, 0, 2, 2), 0.9), Face((0, 0, 4, 4), 0.8)


def test_pick():
    assert pick([]) is None
    assert pick([SMALL, LARGE]) == LARGE
    assert pick([SMALL, LARGE], "best") == SMALL
    assert pick([SMALL, LARGE], "drop") is None
    assert pick([SMALL], "drop") == SMALL
    with pytest.raises(InvalidOption, match="scores"):
        pick([SMALL, Face((0, 0, 1, 1))], "best")
    with pytest.raises(UnknownChoice, match="did you mean 'largest'"):
        pick([], "larges")


def test_importing_faces_loads_no_optional_library():
    code = (
        "import sys, ferattn; before = set(sys.modules); import ferattn.faces, ferattn.faces.folders; "
        "heavy = 'cv2', 'skimage', 'PIL', 'torchvision', 'huggingface_hub', 'onnx'; "
        "print([m for m in heavy if m in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
