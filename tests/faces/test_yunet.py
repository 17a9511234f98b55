import onnx
import pytest
from onnx import TensorProto, helper
from skimage.data import astronaut

from ferattn.errors import InvalidOption, MissingDependency, WeightsMismatch
from ferattn.faces import detect, make_detector


def test_the_astronauts_face(yunet_onnx):
    detector = make_detector("yunet", weights=yunet_onnx)
    [face] = detect(astronaut(), detector, channels="rgb")
    assert face.box == pytest.approx((178, 65, 91, 111), abs=2)
    assert face.score == pytest.approx(0.94, abs=0.01)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert left_mouth[0] < right_mouth[0]
    [flipped] = detect(astronaut()[..., ::-1], detector, channels="bgr")
    assert flipped == face


def test_channels_matter(yunet_onnx):
    detector = make_detector("yunet", weights=yunet_onnx)
    [right] = detect(astronaut(), detector, channels="rgb")
    wrong = detect(astronaut(), detector, channels="bgr")
    assert [face.score for face in wrong] != [right.score]


def test_every_option_changes_something(yunet_onnx):
    picture = astronaut()
    small = astronaut()[60:180:3, 170:280:3]
    [face] = make_detector("yunet", weights=yunet_onnx)(picture)
    assert make_detector("yunet", weights=yunet_onnx, min_score=0.95)(picture) == []
    for option in ({"max_side": 300}, {"border": 0.2}, {"min_side": 600}):
        found = make_detector("yunet", weights=yunet_onnx, **option)(picture)
        assert found != [face]
        assert found[0].box == pytest.approx(face.box, abs=16)
    assert make_detector("yunet", weights=yunet_onnx, min_side=1)(small) != make_detector(
        "yunet", weights=yunet_onnx
    )(small)
    loose = make_detector("yunet", weights=yunet_onnx, min_score=0.05, overlap=1.0)(picture)
    tight = make_detector("yunet", weights=yunet_onnx, min_score=0.05, overlap=0.1)(picture)
    assert len(loose) > len(tight)
    assert [f.score for f in loose] == sorted((f.score for f in loose), reverse=True)


def test_the_description_tells_settings_apart(yunet_onnx):
    first, second = (make_detector("yunet", weights=yunet_onnx, min_score=s) for s in (0.6, 0.7))
    assert repr(first) != repr(second)
    assert "sha256:" in repr(first)


@pytest.mark.parametrize("option", [{"min_score": 0}, {"min_score": 1.5}, {"overlap": 0}, {"min_side": 0}])
def test_impossible_options(option, yunet_onnx):
    with pytest.raises(InvalidOption, match=next(iter(option))):
        make_detector("yunet", weights=yunet_onnx, **option)


def test_files_that_are_no_yunet(tmp_path, capfd):
    path = tmp_path / "weights.onnx"
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 32, 32]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    relu = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    for content in (b"", b"junk" * 100, relu):
        path.write_bytes(content)
        with pytest.raises(WeightsMismatch, match=r"weights\.onnx"):
            make_detector("yunet", weights=path)
    assert onnx.load(path).graph.node[0].op_type == "Relu"
    assert capfd.readouterr().err == ""


def test_without_opencv_or_with_an_old_one_the_extra_is_named(monkeypatch, tmp_path):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.delattr(cv2, "FaceDetectorYN")
    with pytest.raises(MissingDependency, match=r"FaceDetectorYN.*ferattn\[faces\]"):
        make_detector("yunet", weights=tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingDependency, match=r"ferattn\[faces\]"):
        make_detector("yunet", weights=tmp_path)
