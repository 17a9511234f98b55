import csv

import pytest
from PIL import Image
from skimage.data import astronaut
from typer.testing import CliRunner

from ferattn.cli import app


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "in" / "happy"
    folder.mkdir(parents=True)
    Image.fromarray(astronaut()).save(folder / "astronaut.png")
    Image.new("L", (60, 60), 90).save(folder / "wall.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    return tmp_path / "in"


def run(*arguments):
    return CliRunner().invoke(app, ["crop", *map(str, arguments)])


def test_a_folder_is_cropped_and_the_summary_says_how(pictures, tmp_path):
    out = tmp_path / "out"
    result = run(pictures, out, "--detector", "cascade", "--size", 48, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "detector: LbpCascade(" in result.output or "detector: HaarCascade(" in result.output
    assert "found a face in 1 of 2 readable pictures (50.0%)" in result.output
    assert "dropped: no face" in result.output
    assert "dropped: unreadable" in result.output
    with Image.open(out / "happy/astronaut.png") as image:
        assert image.size == (48, 48)
    with (out / "crop_report.csv").open(newline="") as file:
        rows = {row["source"]: row["reason"] for row in csv.DictReader(file)}
    assert rows == {"happy/astronaut.png": "", "happy/broken.png": "unreadable", "happy/wall.png": "no face"}
    again = run(pictures, out, "--detector", "cascade", "--size", 48)
    assert "3 files were done before" in again.output


def test_every_option_is_passed_on(pictures, tmp_path):
    arguments = {
        "detector": "cascade",
        "min-side": 90,
        "max-side": 400,
        "border": 0.2,
        "several": "drop",
        "no-face": "whole",
        "size": 40,
        "margin": 0.2,
        "color": "gray",
        "padding": "black",
        "illumination": "gamma",
    }
    flags = [part for name, value in arguments.items() for part in (f"--{name}", value)]
    result = run(pictures, tmp_path / "out", *flags, "--illumination", "emboss", "--no-square", "--no-align")
    assert result.exit_code == 0, result.output
    settings = (tmp_path / "out/crop_settings.json").read_text()
    for part in (
        "min_side=90, max_side=400, border=0.2",
        '"several": "drop"',
        '"no_face": "whole"',
        '"size": 40',
        '"margin": 0.2',
        '"padding": "black"',
        '"square": false',
        '"align": false',
        '"color": "gray"',
        '"gamma",\n    "emboss"',
    ):
        assert part in settings


def test_weights_and_min_score_reach_yunet(pictures, tmp_path, yunet_onnx):
    common = ("--detector", "yunet", "--weights", yunet_onnx, "--min-score")
    assert "found a face in 1 of 2" in run(pictures, tmp_path / "a", *common, 0.9).output
    assert "found a face in 0 of 2" in run(pictures, tmp_path / "b", *common, 0.99).output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--detector", "casade"], "did you mean 'cascade'"),
        (["--detector", "none", "--weights", "x.onnx"], "takes no option 'weights'"),
        (["--detector", "yolo5face"], "needs weights"),
        (["--detector", "yunet", "--weights", "nowhere.onnx"], "no such file"),
        (["--detector", "none", "--several", "bst"], "did you mean 'best'"),
        (["--detector", "none", "--illumination", "lpb"], "did you mean 'lbp'"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(pictures, tmp_path, arguments, message):
    result = run(pictures, tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_output_may_not_lie_in_the_input(pictures):
    result = run(pictures, pictures / "out", "--detector", "none")
    assert result.exit_code == 2
    assert "lies inside the input" in result.output
