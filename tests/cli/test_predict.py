"""``ferattn predict``, as a user types it."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from cli.running import FAST, run
from training.faces import folder_of_images


@pytest.fixture
def smile(tmp_path: Path) -> Path:
    Image.fromarray(astronaut()).save(tmp_path / "smile.png")
    return tmp_path / "smile.png"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_pictures_folders_and_zips(smile: Path, yunet_onnx: Path, tmp_path: Path) -> None:
    folder, archive = tmp_path / "folder", tmp_path / "more.zip"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "smile.png").write_bytes(smile.read_bytes())
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("no picture at all")
    Image.fromarray(np.full((60, 60), 99, np.uint8)).save(folder / "wall.png")
    with zipfile.ZipFile(archive, "w") as content:
        content.write(smile, "smile.png")
    files = ("--csv", tmp_path / "faces.csv", "--json", tmp_path / "faces.json")
    told = run("predict", smile, folder, archive, tmp_path / "no.png", "--detector", "yunet", "--weights", yunet_onnx,
               *files)  # fmt: skip
    assert told.startswith("0 ")
    assert "3 faces in 6 pictures, 3 without one; weights cnn_se.strong_fer2013, detector yunet" in told
    lines = rows(tmp_path / "faces.csv")
    names = [
        "smile.png",
        "folder/bad.png",
        "folder/deep/smile.png",
        "folder/wall.png",
        "more.zip/smile.png",
        "no.png",
    ]
    assert [line["picture"] for line in lines] == [str(tmp_path / name) for name in names]
    assert [line["emotion"] for line in lines] == ["happy", "", "happy", "", "happy", ""]
    assert [line["problem"].partition(" ")[0] for line in lines] == ["", "cannot", "", "no", "", "there"]
    report = json.loads((tmp_path / "faces.json").read_text())
    face = report["pictures"][0]["faces"][0]
    assert report["classes"] == list(face["probabilities"])
    assert sum(face["probabilities"].values()) == pytest.approx(1)
    assert float(lines[0]["happy"]) == pytest.approx(face["probabilities"]["happy"], abs=1e-6)
    assert report["pictures"][5] | {"problem": None} == {
        "picture": str(tmp_path / "no.png"), "seconds": None, "problem": None, "faces": [],
    }  # fmt: skip


def test_a_video_has_times(tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 48))
    for _ in range(20):
        writer.write(np.full((48, 48, 3), 90, np.uint8))
    writer.release()
    run("predict", film, "--detector", "none", "--every", "0.5", "--csv", tmp_path / "film.csv")
    assert [line["seconds"] for line in rows(tmp_path / "film.csv")] == ["0.000", "0.500", "1.000", "1.500"]


def test_options_reach_the_recogniser(smile: Path, tmp_path: Path) -> None:
    file = tmp_path / "faces.json"
    found = []
    for words in ((), ("--no-equalize",), ("--equalize",), ("--margin", "0.5"), ("--tta", "flip")):
        run("predict", smile, "--detector", "none", "--json", file, *words)
        found.append(json.loads(file.read_text()))
    probabilities = [tuple(one["pictures"][0]["faces"][0]["probabilities"].values()) for one in found]
    assert len(set(probabilities)) == 4
    assert probabilities[0] == probabilities[2]  # the weights learnt from equalised pictures
    assert [one["equalized"] for one in found] == [True, False, True, True, True]
    assert [one["views"] for one in found] == ["none"] * 4 + ["flip"]


def test_a_run_of_ones_own(tmp_path: Path) -> None:
    data, out = folder_of_images(tmp_path / "faces"), tmp_path / "run"
    run("train", "--recipe", "luo2023", "--model", "cnn_se", "--data", data, "--out", out, *FAST)
    told = run("predict", data / "happy", "--checkpoint", out, "--detector", "none", "--json", tmp_path / "x.json")
    assert told.startswith("0 ")
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["classes"] == ["angry", "happy", "sad", "surprise"]
    assert (report["weights"], report["equalized"], len(report["pictures"])) == (str(out), False, 12)


def test_mistakes_are_told(smile: Path, tmp_path: Path) -> None:
    for words, said in (
        ((smile, "--model", "cnn_sse"), "did you mean 'cnn_se'"),
        ((smile, "--detector", "yunett"), "did you mean 'yunet'"),
        ((smile, "--detector", "none", "--min-score", "0.5"), "takes no option 'min_score'"),
        ((smile, "--tta", "five"), "ten-crop"),
        ((smile, "--csv", tmp_path / "no" / "faces.csv"), "there is no folder"),
        ((smile, "--checkpoint", tmp_path), "config.json"),
        ((tmp_path / "empty", "--detector", "none"), "no pictures"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        told = run("predict", *words)
        assert told.startswith("2 ")
        assert said in told.replace("\n", " ")
