import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data.trees import ck48_tree, fer_rows, fer_tree, jaffe_tree
from ferattn.cli import app


def run(*words):
    return CliRunner().invoke(app, ["data", *map(str, words)])


def test_info_prints_counts_and_writes_json_and_a_sheet(tmp_path):
    root = fer_tree(tmp_path / "fer")
    result = run("info", root, "--json", tmp_path / "info.json", "--sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    assert "FER2013: 49 images" in result.output
    assert "surprise" in result.output
    assert json.loads((tmp_path / "info.json").read_text())["counts"]["public"]["fear"] == 2
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 12 * 64


def test_info_reports_bad_files_or_stops_at_them(tmp_path):
    root = jaffe_tree(tmp_path)
    (root / "KA.AN1.1.tiff").write_bytes(b"nothing")
    result = run("info", root)
    assert result.exit_code == 0
    assert "JAFFE: 69 images" in result.output
    assert "KA.AN1.1" in result.output
    assert "subjects: 10" in result.output
    result = run("info", root, "--stop-at-bad")
    assert result.exit_code == 2
    assert "error:" in result.output
    assert "KA.AN1.1.tiff" in result.output


def test_split_then_check(tmp_path):
    root = ck48_tree(tmp_path / "ck")
    out = tmp_path / "folds.json"
    result = run("split", root, out, "--scheme", "subject-10-fold", "--seed", 1)
    assert result.exit_code == 0, result.output
    assert "10 folds" in result.output
    assert json.loads(out.read_text())["seed"] == 1
    result = run("check", root, "--split", out, "--fold", 3, "--json", tmp_path / "report.json")
    assert result.exit_code == 0, result.output
    assert "no leaks found" in result.output
    assert json.loads((tmp_path / "report.json").read_text())["leaks"] is False
    result = run("check", root, "--scheme", "random-80-20")
    assert result.exit_code == 1
    assert "people in both" in result.output
    (next(root.rglob("*.png"))).unlink()
    result = run("check", root, "--split", out)
    assert result.exit_code == 2
    assert "made for other data" in result.output


def test_check_finds_a_copied_image(tmp_path):
    rows = fer_rows()
    rows[-1] = (rows[-1][0], rows[-1][1], rows[0][2])
    result = run("check", fer_tree(tmp_path, rows))
    assert result.exit_code == 1
    assert "leaks found" in result.output
    assert np.array_equal(rows[0][2], rows[-1][2])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["info", "nowhere"], "there is no such folder or file"),
        (["info", ".", "--dataset", "fer2031"], "did you mean 'fer2013'"),
        (["check", "{ck}", "--scheme", "offical"], "did you mean 'official'"),
        (["check", "{ck}", "--scheme", "random-80-20", "--threshold", "2"], "threshold=2"),
        (["check", "{ck}", "--scheme", "random-80-20", "--fold", "1"], "folds 0 to 0"),
        (["split", "{ck}", "out.json"], "no official split"),
    ],
)
def test_mistakes_end_in_one_line_and_code_2(tmp_path, words, said):
    root = ck48_tree(tmp_path)
    result = run(*(word.format(ck=root) for word in words))
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1
