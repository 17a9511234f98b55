"""``ferattn explain``, as a user types it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.running import FAST, run
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


def test_the_method_the_emotion_and_the_layer_change_the_drawing(pictures: Path, tmp_path: Path) -> None:
    drawings = set()
    ways = (("--method", "grad-cam"), ("--emotion", "disgust"), ("--emotion", "happy"), ("--layer", "features.9"))
    for number, options in enumerate(ways):
        told = run("explain", pictures / "one.png", "--out", tmp_path / str(number), "--detector", "none", *options)
        assert told.startswith("0 "), told
        if "disgust" in options:
            assert "one.png  disgust " in told
        drawings.add((tmp_path / str(number) / "one-1.png").read_bytes())
    assert len(drawings) == len(ways)


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


def test_nothing_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no pictures in" in run("explain", tmp_path / "empty", "--out", tmp_path / "out", "--detector", "none")
    (tmp_path / "file").write_text("")
    told = run("explain", tmp_path / "empty", "--out", tmp_path / "file", "--detector", "none")
    assert "cannot be a folder" in told or "no folder can be made" in told
