"""``ferattn explain``, as a user types it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ferattn.cli.explain
from cli.running import FAST, run
from ferattn.cli.explain import explanations
from ferattn.predict import EmotionRecognizer
from training.faces import pixels


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two readable pictures, the second in a folder and a zip too, and one that is not."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, image in zip(("one.png", "two.png"), pixels(np.array([0, 3]), 48, seed=0), strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "bad.png").write_bytes(b"no picture")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.write(folder / "two.png", "deep/two.png")
    return folder


def test_a_drawing_for_each_face(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = run("explain", pictures, tmp_path / "more.zip", "--out", out, "--detector", "none")
    assert told.startswith("0 "), told
    assert sorted(path.name for path in out.iterdir()) == ["one-1.png", "two-1-2.png", "two-1.png"]
    assert "pictures: 4, not readable: 1, drawn: 3; weights cnn_se.strong_fer2013, hires-cam" in told
    assert "bad.png  cannot" in told
    with Image.open(out / "one-1.png") as drawing:
        assert drawing.width > 1.5 * drawing.height, "the crop and its map, side by side; cnn_se has no spatial gates"
    assert (out / "two-1.png").read_bytes() == (out / "two-1-2.png").read_bytes()


def test_a_detector_that_fails_costs_one_picture(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ferattn.faces.detectors import WholePicture

    Image.fromarray(np.full((33, 44), 9, np.uint8)).save(pictures / "odd.png")
    usual = WholePicture.__call__

    def shaky(self, image):
        if image.shape[:2] == (33, 44):
            raise RuntimeError("odd")
        return usual(self, image)

    monkeypatch.setattr(WholePicture, "__call__", shaky)
    told = run("explain", pictures, "--out", tmp_path / "out", "--detector", "none")
    assert told.startswith("0 "), told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one-1.png", "two-1.png"]
    assert "pictures: 4, not readable: 2, drawn: 2" in told
    assert "odd.png  the detector 'none' failed: RuntimeError: odd" in told


def test_every_option_reaches_what_is_drawn(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(ferattn.cli.explain, "_draw", lambda path, face: drawn.append(face))
    ways = ((), ("--method", "grad-cam"), ("--emotion", "disgust"), ("--layer", "features.9"), ("--equalise",),
            ("--margin", "-0.2"))  # fmt: skip
    for number, options in enumerate(ways):
        told = run("explain", pictures / "one.png", "--out", tmp_path / str(number), "--detector", "none", *options)
        assert told.startswith("0 "), told
    maps = [face["map"].round(6).tobytes() for face in drawn]
    assert len(set(maps)) == len(ways) - 1, "this picture is equalised by default"
    assert maps[4] == maps[0]
    assert drawn[2]["title"].startswith("disgust ")
    assert drawn[5]["crop"].shape == (48, 48)
    plain = run("explain", pictures / "one.png", "--out", tmp_path / "6", "--detector", "none", "--no-equalise")
    assert plain.startswith("0 ")
    assert (drawn[6]["crop"] != drawn[0]["crop"]).any()


def test_faces_beyond_a_batch_are_drawn_too() -> None:
    recognizer = EmotionRecognizer.from_pretrained(detector="none", batch_size=2)
    cuts = list(pixels(np.array([0, 1, 2, 3, 0]), 48, seed=0))
    found = list(explanations(recognizer, cuts, row=None, method="hires-cam", layer=None))
    assert [face["crop"] is cut for face, cut in zip(found, cuts, strict=True)] == [True] * 5
    [alone] = explanations(recognizer, cuts[4:], row=None, method="hires-cam", layer=None)
    np.testing.assert_allclose(found[4]["map"], alone["map"], atol=1e-5)


def test_cbams_gates_are_drawn_beside(images: Path, tmp_path: Path) -> None:
    run("train", "--recipe", "luo2023", "--model", "cnn_cbam", "--data", images, "--out", tmp_path / "run", *FAST)
    picture = next(images.rglob("*.png"))
    told = run("explain", picture, "--checkpoint", tmp_path / "run", "--out", tmp_path / "out", "--detector", "none")
    assert told.startswith("0 "), told
    [drawing] = (tmp_path / "out").iterdir()
    with Image.open(drawing) as opened:
        assert opened.width > 4 * opened.height, "three stages' gates"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "gradcam"), "did you mean 'grad-cam'"),
        (("--emotion", "hapy"), "did you mean 'happy'"),
        (("--layer", "nowhere"), "unknown layer 'nowhere'"),
        (("--layer", "head.fc"), "gives no feature map"),
        (("--weights", "x.onnx", "--detector", "auto"), "name it"),
        (("--model", "cnn_sse"), "did you mean 'cnn_se'"),
    ],
)
def test_mistakes_are_told(words: tuple[str, ...], message: str, pictures: Path, tmp_path: Path) -> None:
    told = run("explain", pictures / "one.png", "--out", tmp_path / "out", "--detector", "none", *words)
    assert told.startswith("2 "), told
    assert message in " ".join(told.split())
    assert not list((tmp_path / "out").glob("*.png"))


def test_what_is_there_is_never_written_over(pictures: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in pictures.iterdir()}
    told = run("explain", pictures, "--out", pictures, "--detector", "none")
    assert told.startswith("2 ")
    assert "is there, and not an empty folder" in told
    assert {path: path.read_bytes() for path in pictures.iterdir()} == before


def test_one_bad_source_does_not_end_it(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    told = run("explain", tmp_path / "no.png", tmp_path / "bad.zip", pictures / "two.png", "--out", tmp_path / "out",
               "--detector", "none")  # fmt: skip
    assert told.startswith("0 "), told
    assert "pictures: 3, not readable: 2, drawn: 1" in told


def test_a_face_that_is_not_found_leaves_no_folder(pictures: Path, tmp_path: Path, yunet_onnx: Path) -> None:
    Image.fromarray(np.full((60, 60), 99, np.uint8)).save(tmp_path / "wall.png")
    words = ("--detector", "yunet", "--weights", yunet_onnx)
    told = run("explain", tmp_path / "wall.png", "--out", tmp_path / "out", *words)
    assert told.startswith("0 "), told
    assert "wall.png  no face" in told
    assert not (tmp_path / "out").exists()


def test_nothing_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in run("explain", tmp_path / "empty", "--out", tmp_path / "out", "--detector", "none")
    (tmp_path / "file").write_text("")
    told = run("explain", tmp_path / "empty", "--out", tmp_path / "file", "--detector", "none")
    assert "is there, and not an empty folder" in told
    (tmp_path / "picture.png").write_bytes(b"no picture")
    with pytest.raises(AssertionError):  # exit code 1: nothing could be read
        run("explain", tmp_path / "picture.png", "--out", tmp_path / "out", "--detector", "none")
