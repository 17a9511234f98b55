"""``ferattn predict``, as a user types it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
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
    counted = "pictures and frames: 6, faces: 3, without a face: 1, not readable: 2"
    assert f"{counted}; weights cnn_se.strong_fer2013, detector yunet" in told
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


def test_a_video_has_times_and_tracks(tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 48))
    smiling = cv2.resize(cv2.cvtColor(astronaut()[65:176, 178:269], cv2.COLOR_RGB2BGR), (48, 48))
    for number in range(20):
        writer.write(smiling if number < 10 else np.full((48, 48, 3), 90, np.uint8))
    writer.release()
    happy = []
    for seconds in ("0", "2"):
        files = ("--csv", tmp_path / "film.csv", "--json", tmp_path / "film.json")
        assert run("predict", film, "--detector", "none", "--every", "0.5", "--smooth", seconds, *files)[0] == "0"
        lines = rows(tmp_path / "film.csv")
        assert [line["seconds"] for line in lines] == ["0.000", "0.500", "1.000", "1.500"]
        assert [line["track"] for line in lines] == ["0"] * 4
        report = json.loads((tmp_path / "film.json").read_text())
        assert (report["smooth"], report["pictures"][3]["faces"][0]["track"]) == (float(seconds), 0)
        happy.append([float(line["happy"]) for line in lines])
    assert "frames: 20," in run("predict", film, "--detector", "none", "--smooth", "0.1")
    assert "frames: 2," in run("predict", film, "--detector", "none")
    each, smoothed = happy
    assert each[1] > 0.5 > each[2]
    assert each[2] < smoothed[2] < each[1]


def test_options_reach_the_recogniser(smile: Path, tmp_path: Path) -> None:
    file = tmp_path / "faces.json"
    found = []
    for words in ((), ("--no-equalise",), ("--equalise",), ("--margin", "0.5"), ("--tta", "flip")):
        run("predict", smile, "--detector", "none", "--json", file, *words)
        found.append(json.loads(file.read_text()))
    probabilities = [tuple(one["pictures"][0]["faces"][0]["probabilities"].values()) for one in found]
    assert len(set(probabilities)) == 4
    assert probabilities[0] == probabilities[2]  # the weights learnt from equalised pictures
    assert [one["equalise"] for one in found] == [True, False, True, True, True]
    assert [one["views"] for one in found] == ["none"] * 4 + ["flip"]


@pytest.mark.parametrize("equalised", [True, False, None])
def test_a_run_of_ones_own(equalised: bool | None, tmp_path: Path) -> None:
    data, out = folder_of_images(tmp_path / "faces"), tmp_path / "run"
    other = folder_of_images(tmp_path / "other")
    for path in (data if equalised else other).rglob("*.png"):
        Image.fromarray(cv2.equalizeHist(np.asarray(Image.open(path)))).save(path)
    run("train", "--recipe", "luo2023", "--model", "cnn_se", "--data", data, "--out", out, *FAST)
    if equalised is None:  # a run from before it was recorded
        results = json.loads((out / "results.json").read_text())
        del results["equalised_share"]
        (out / "results.json").write_text(json.dumps(results))
    told = run("predict", data / "happy", "--checkpoint", out, "--detector", "none", "--json", tmp_path / "x.json")
    assert told.startswith("0 ")
    assert ("not recorded whether" in told) == (equalised is None)
    report = json.loads((tmp_path / "x.json").read_text())
    assert report["classes"] == ["angry", "happy", "sad", "surprise"]
    assert (report["weights"], report["equalise"], len(report["pictures"])) == (str(out), bool(equalised), 12)
    told = run("evaluate", "--checkpoint", out, "--data", other, "--split", "all")
    warning = "the weights learnt from pictures that were histogram-equalised; of these 0% are"
    assert (warning in told) == bool(equalised)
    assert ("that were not histogram-equalised; of these 100% are" in told) == (equalised is False)
    assert ("makes equalised copies" in told) == bool(equalised)


def test_many_pictures_and_odd_names(tmp_path: Path) -> None:
    names = [f"{number:03d}.png" for number in range(70)]
    for name in [*names, "ok [final].png", "x[b]/[/b].png"]:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20), 99, np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "030.png").write_bytes(b"no picture")
    (tmp_path / "in" / "031.png").write_bytes(b"no picture")
    told = run("predict", tmp_path / "in", "--detector", "none", "--csv", tmp_path / "x.csv")
    assert "in/ok [final].png  20x20+0+0" in told
    assert "in/x[b]/[/b].png  20x20+0+0" in told
    found = rows(tmp_path / "x.csv")
    assert [Path(line["picture"]).name for line in found[:70]] == names
    assert [Path(line["picture"]).name for line in found if line["problem"]] == ["030.png", "031.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_names_in_other_encodings(tmp_path: Path) -> None:
    """Where the terminal is strict about UTF-8, too."""
    Image.fromarray(np.full((20, 20), 99, np.uint8)).save(tmp_path / "a.png")
    name = os.fsdecode(b"caf\xe9.png")
    shutil.copyfile(tmp_path / "a.png", tmp_path / name)
    words = ["predict", tmp_path, "--detector", "none", "--csv", tmp_path / "x.csv", "--json", tmp_path / "x.json"]
    done = subprocess.run(
        [sys.executable, "-m", "ferattn", *map(str, words)],
        env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r"caf\udce9.png  20x20" in done.stdout
    with (tmp_path / "x.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        assert [Path(line["picture"]).name for line in csv.DictReader(stream)] == ["a.png", name]
    assert len(json.loads((tmp_path / "x.json").read_text())["pictures"]) == 2


def test_a_bad_source_costs_itself_alone(smile: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    for name in ("bad.mp4", "bad.zip"):
        (tmp_path / name).write_bytes(b"neither")
    (tmp_path / "mixed" / "bad.mp4").write_bytes(b"no film")
    (tmp_path / "mixed" / "a.png").write_bytes(smile.read_bytes())
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as content:
        content.write(tmp_path / "bad.mp4", "bad.mp4")
    sources = [tmp_path / name for name in ("bad.mp4", "bad.zip", "mixed", "films.zip")]
    told = run("predict", smile, *sources, "--detector", "none", "--csv", tmp_path / "x.csv")
    assert told.startswith("0 ")
    problems = [line["problem"] for line in rows(tmp_path / "x.csv")]
    assert [bool(problem) for problem in problems] == [False, True, True, False, True, True]
    assert "unpack it first" in problems[-1]


def test_nothing_readable_is_a_failure(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from ferattn.cli import app

    done = CliRunner().invoke(app, ["predict", str(tmp_path / "typo.png"), "--detector", "none"])
    assert done.exit_code == 1
    assert "not readable: 1" in done.output


def test_what_was_seen_before_an_interruption_is_kept(
    smile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from ferattn.cli import app
    from ferattn.predict import EmotionRecognizer

    usual, calls = EmotionRecognizer.stream, []

    def stream(self, pictures, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(self, pictures, **options)

    monkeypatch.setattr(EmotionRecognizer, "stream", stream)
    CliRunner().invoke(app, ["predict", *[str(smile)] * 4, "--detector", "none", "--csv", str(tmp_path / "x.csv")])
    assert len(rows(tmp_path / "x.csv")) == 2


def test_a_detector_that_fails_costs_one_picture(
    smile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ferattn.faces.detectors import WholePicture

    folder = tmp_path / "folder"
    for name in ("a.png", "c.png", "d.png"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(smile.read_bytes())
    (folder / "b.png").write_bytes(b"no picture")
    Image.fromarray(np.full((33, 44, 3), 9, np.uint8)).save(folder / "cc.png")
    usual = WholePicture.__call__

    def shaky(self, image):
        if image.shape[:2] == (33, 44):
            raise cv2.error("(-215:Assertion failed)")
        return usual(self, image)

    monkeypatch.setattr(WholePicture, "__call__", shaky)
    files = ("--csv", tmp_path / "x.csv")
    told = run("predict", folder, folder / "cc.png", "--detector", "none", *files)
    assert told.startswith("0 ")
    assert "pictures and frames: 6, faces: 3, without a face: 0, not readable: 3" in told
    lines = [(Path(line["picture"]).name, line["problem"]) for line in rows(tmp_path / "x.csv")]
    failed = "the detector 'none' failed: error: (-215:Assertion failed)"
    assert [name for name, _ in lines] == ["a.png", "b.png", "c.png", "cc.png", "d.png", "cc.png"]
    assert [problem for _, problem in lines[2:]] == ["", failed, "", failed]
    assert lines[0][1] == ""
    assert lines[1][1]


def test_faces_below_the_least_score_are_left_out(smile: Path, yunet_onnx: Path, tmp_path: Path) -> None:
    for score, faces in (("0.9", 1), ("0.99", 0)):
        told = run("predict", smile, "--detector", "yunet", "--weights", yunet_onnx, "--min-score", score)
        assert f"faces: {faces}," in told


def test_mistakes_are_told(smile: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, said in (
        ((smile, "--model", "cnn_sse"), "did you mean 'cnn_se'"),
        ((smile, "--detector", "yunett"), "did you mean 'yunet'"),
        ((smile, "--detector", "none", "--min-score", "0.5"), "takes no option 'min_score'"),
        ((smile, "--min-score", "0.5"), "name it, such as --detector yunet"),
        ((smile, "--tta", "five"), "ten-crop"),
        ((smile, "--every", "-1"), "--every -1"),
        ((smile, "--smooth", "-1"), "--smooth -1"),
        ((smile, "--smooth", "0.2"), "there is no video among"),
        ((tmp_path / "empty", "--smooth", "0.2", "--every", "1"), "look more often"),
        ((smile, "--csv", tmp_path / "no" / "faces.csv"), "there is no folder"),
        ((smile, "--csv", tmp_path / "x", "--json", tmp_path / "x"), "is one file"),
        ((smile, "--checkpoint", tmp_path), "config.json"),
        ((tmp_path / "empty", "--detector", "none"), "no pictures"),
    ):
        told = run("predict", *words)
        assert told.startswith("2 ")
        assert said in told.replace("\n", " ")
