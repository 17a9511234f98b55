import sys
import types

import numpy as np
import pytest
from skimage.data import astronaut, brick

from ferattn.errors import InvalidOption, MissingDependency
from ferattn.faces import detect, make_detector
from ferattn.faces.cascade import HaarCascade, LbpCascade, _largest_first, haar_file


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def test_the_astronauts_face():
    faces = detect(astronaut(), "cascade", channels="rgb")
    assert overlap(faces[0].box, (178, 65, 91, 111)) > 0.6
    assert faces[0].score is None
    assert faces[0].landmarks is None
    assert detect(brick(), "cascade") == []


def test_pictures_too_small_for_the_window():
    for shape in ((1, 1), (1, 500), (5, 5)):
        assert detect(np.zeros(shape, np.uint8), "cascade") == []


def test_every_option_changes_something():
    picture = astronaut()
    usual = LbpCascade()(picture)
    assert LbpCascade(min_face=0.9)(picture) == []
    assert LbpCascade(min_neighbors=500)(picture) == []
    for option in ({"max_side": 300}, {"border": 0.0}):
        assert LbpCascade(**option)(picture) != usual
    small = picture[40:200:4, 150:300:4]
    assert LbpCascade()(small) != LbpCascade(min_side=30)(small)


@pytest.mark.parametrize("option", [{"min_face": 0}, {"min_neighbors": 0}, {"border": -1}, {"max_side": 0}])
def test_impossible_options(option):
    with pytest.raises(InvalidOption, match=next(iter(option))):
        make_detector("cascade", **option)


def test_boxes_within_a_larger_one_are_left_out():
    nested = [(0.0, 0.0, 9.0, 9.0), (1.0, 1.0, 20.0, 20.0), (18.0, 18.0, 8.0, 8.0)]
    assert _largest_first(nested) == [nested[1], nested[2]]


def fake_opencv_4(monkeypatch, tmp_path):
    """OpenCV 4 as far as this code uses it; OpenCV 5 is what is installed where this was written."""
    asked = {}

    class CascadeClassifier:
        def __init__(self, path):
            asked["path"] = path

        def detectMultiScale(self, image, **options):
            asked.update(options, shape=image.shape)
            return np.array([[10, 20, 30, 30]])

    (tmp_path / "haarcascade_frontalface_default.xml").write_text("<xml/>")
    cv2 = types.ModuleType("cv2")
    cv2.CascadeClassifier = CascadeClassifier
    cv2.data = types.SimpleNamespace(haarcascades=f"{tmp_path}/")
    monkeypatch.setitem(sys.modules, "cv2", cv2)
    return asked


def test_opencv_4_is_preferred(monkeypatch, tmp_path):
    asked = fake_opencv_4(monkeypatch, tmp_path)
    detector = make_detector("cascade", border=0.0, min_neighbors=7)
    assert isinstance(detector, HaarCascade)
    assert detector.name == "cascade-haar"
    [face] = detector(np.zeros((200, 100, 3), np.uint8))
    assert face.box == (10, 20, 30, 30)
    assert asked["minNeighbors"] == 7
    assert asked["shape"] == (200, 100)
    assert asked["minSize"] == (24, 24)
    assert asked["path"].endswith("haarcascade_frontalface_default.xml")


def test_opencv_without_its_cascades_is_passed_over(monkeypatch, tmp_path):
    fake_opencv_4(monkeypatch, tmp_path)
    (tmp_path / "haarcascade_frontalface_default.xml").unlink()
    assert haar_file() is None
    assert make_detector("cascade").name == "cascade-lbp"
    with pytest.raises(MissingDependency, match="OpenCV 4"):
        HaarCascade()


def test_with_neither_library_the_extra_is_named(monkeypatch):
    for name in ("cv2", "skimage", "skimage.feature"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"ferattn\[faces\]"):
        make_detector("cascade")
