"""A grid: every run once, paired differences, nothing lost when one fails."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ferattn.cli import app
from ferattn.cli.study import load_grid
from ferattn.errors import FerattnError
from ferattn.statistics import holm, sign_flip
from ferattn.training import RunFolder
from training import faces

GRID = """
data = "images"
recipe = "luo2023"
backbones = ["cnn"]
attentions = ["none", "se"]
seeds = [0, 3]
train = ["--accelerator", "cpu", "--no-tensorboard"]
[set]
epochs = 1
batch_size = 8
"""


def test_a_grid_names_its_cells(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        GRID.replace('attentions = ["none", "se"]', 'attentions = ["none", "se"]\nactivations = ["own", "elu"]')
    )
    grid = load_grid(path)
    assert list(grid.models.values()) == ["cnn", "cnn_elu", "cnn_se", "cnn_se_elu"]
    assert grid.data == tmp_path / "images"
    assert grid.options[-4:] == ("--set", "epochs=1", "--set", "batch_size=8")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"se"', '"sse"', "sse"),
        ("luo2023", "luo2032", "did you mean 'luo2023'"),
        ("seeds = [0, 3]", "seeds = [0, 0]", "different whole numbers"),
        ("seeds =", "sedes =", "did you mean 'seeds'"),
        ("epochs", "epocs", "did you mean 'epochs'"),
        ('data = "images"', "", "data missing"),
        ('backbones = ["cnn"]', 'backbones = "cnn"', "a list is needed"),
        ("[set]", "[set", "no grid"),
    ],
)
def test_mistakes_in_a_grid(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace(old, new))
    with pytest.raises(FerattnError, match=said):
        load_grid(path)


@pytest.mark.slow
def test_a_study_runs_resumes_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import sys

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    faces.folder_of_images(tmp_path / "images")
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(GRID)
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out)])
    assert result.exit_code == 0, result.output
    with (out / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = [f"{row['model']} {row['seed']}" for row in rows]
    assert names == ["cnn 0", "cnn_se 0", "cnn 3", "cnn_se 3"]
    for row in rows:
        results = RunFolder(out / "runs" / f"{row['model']}-seed{row['seed']}").results
        assert float(row["accuracy"]) == results["test"]["accuracy"]
    by = {(row["model"], row["seed"]): float(row["accuracy"]) for row in rows}
    test = sign_flip([by["cnn", "0"], by["cnn", "3"]], [by["cnn_se", "0"], by["cnn_se", "3"]])
    report = (out / "report.md").read_text()
    adjusted = holm({"x": test.p_value})["x"].adjusted
    assert f"| cnn_se - cnn | {100 * test.difference:+.2f} |" in report
    assert f"| {test.p_value:.4f} | {adjusted:.4f} | 0.5000 |" in report
    (out / "runs" / "cnn-seed3" / "results.json").unlink()
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--no-train"])
    assert "3 of them done" in result.output
    assert "3 of 4 runs" in result.output
    config = out / "runs" / "cnn-seed3" / "config.json"
    config.write_text(config.read_text().replace('"batch_size": 8', '"batch_size": 9'))
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out)])
    assert result.exit_code == 1
    assert "recipe.batch_size was 9, now 8" in (out / "report.md").read_text()
    path.write_text(GRID.replace("batch_size = 8", "batch_size = 9"))
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out)])
    assert result.exit_code == 2
    assert "made by another grid; recipe.batch_size was 8, now 9" in result.output
