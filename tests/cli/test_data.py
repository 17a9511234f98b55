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
    assert "histogram-equalised: 100.0% of the images" in result.output  # noise: every level as often as any other
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


def test_the_data_is_never_written_over(tmp_path):
    root = fer_tree(tmp_path / "fer")
    inside = next(path for path in root.rglob("*") if path.is_file())
    before = inside.read_bytes()
    for words in (("split", root, inside), ("info", root, "--json", inside), ("info", root, "--sheet", inside),
                  ("check", root, "--json", inside)):  # fmt: skip
        result = run(*words)
        assert result.exit_code == 2
        assert "belongs to the data" in result.output
    assert inside.read_bytes() == before


def test_check_refuses_a_scheme_beside_a_split_file(tmp_path):
    root = ck48_tree(tmp_path / "ck")
    out = tmp_path / "folds.json"
    assert run("split", root, out, "--scheme", "subject-10-fold").exit_code == 0
    result = run("check", root, "--split", out, "--seed", 9)
    assert result.exit_code == 2
    assert "they would do nothing" in result.output


def test_a_merged_test_is_not_the_official_split(tmp_path):
    for index, part in enumerate(("train", "test")):
        for name in ("angry", "happy"):
            folder = tmp_path / "fer" / part / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = np.random.default_rng([index, number]).integers(0, 256, (48, 48), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    result = run("split", tmp_path / "fer", tmp_path / "s.json", "--dataset", "fer2013")
    assert result.exit_code == 2
    assert "merged-test" in result.output
    result = run("split", tmp_path / "fer", tmp_path / "s.json", "--dataset", "fer2013", "--scheme", "merged-test")
    assert "not honest" in result.output


def test_crops_of_jaffe_are_jaffe_still(tmp_path):
    root = jaffe_tree(tmp_path / "jaffe")
    for path in root.rglob("*.tiff"):
        with Image.open(path) as picture:
            picture.save(path.with_suffix(".png"))
        path.unlink()
    result = run("info", root)
    assert "JAFFE: 70 images" in result.output
    assert "subjects: 10" in result.output
