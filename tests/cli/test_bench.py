"""``ferattn bench`` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from ferattn.bench import blocks, models, schema
from ferattn.cli import app

RUN = ["--batch", "2", "--repeats", "3", "--warmup", "1", "--budget", "0.5"]


def bench(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_what_is_asked_for_twice_is_measured_once(tmp_path: Path) -> None:
    record = tmp_path / "run.json"
    words = ("resnet18", "resnet18", "--img-size", 32, "--img-size", 32, "--against", "timm", "--against", "timm")
    assert bench(*words, *RUN, "--json", record)[0] == 0
    rows = [(row["name"], row["library"], row["img_size"]) for row in json.loads(record.read_text())["rows"]]
    assert rows == [("resnet18", "ferattn", 32), ("timm: resnet18", "timm", 32)]


def test_a_run_writes_record_page_and_plot_and_goes_on(tmp_path: Path) -> None:
    record, page, plot = tmp_path / "run.json", tmp_path / "run.md", tmp_path / "run.svg"
    code, shown, _ = bench("resnet18_se", *RUN, "--json", record, "--markdown", page, "--plot", plot)
    assert code == 0
    assert "resnet18_se" in shown
    data = json.loads(record.read_text())
    jsonschema.validate(data, schema())
    assert data["command"] == "ferattn bench resnet18_se --batch 2 --warmup 1 --repeats 3 --budget 0.5"
    assert [row["name"] for row in data["rows"]] == ["resnet18", "resnet18_se"]
    assert f"| resnet18_se | {data['rows'][1]['parameters'] / 1e6:.2f} |" in page.read_text()
    assert "GFLOPs per image" in plot.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json", "run.md", "run.svg"]
    code, shown, _ = bench("resnet18_se", *RUN, "--json", record)
    assert code == 0
    assert "resnet18_se" in shown
    assert json.loads(record.read_text()) == data  # nothing was measured again
    code, _, errors = bench("resnet18_se", *RUN, "--json", record, "--train")
    assert code == 2
    assert "settings training: None, not True" in errors
    code, _, _ = bench("resnet18_se", *RUN, "--json", record, "--train", "--overwrite")
    assert code == 0
    assert {row["step"] for row in json.loads(record.read_text())["rows"]} == {"training"}


def test_blocks(tmp_path: Path) -> None:
    record, page = tmp_path / "blocks.json", tmp_path / "blocks.md"
    options = ["--img-size", 48, "--no-compile", "--no-channels-last", "--no-train"]
    code, shown, _ = bench("blocks", "eca", *options, *RUN, "--json", record, "--markdown", page)
    assert code == 0
    assert "eca 256x12x12" in shown
    data = json.loads(record.read_text())
    jsonschema.validate(data, schema())
    assert len(data["rows"]) == 4 * 2
    assert "blocks eca" in data["command"]
    assert "--img-size 48 --no-compile --no-channels-last --no-train" in data["command"]
    assert data["copy_bytes_per_s"] > 0
    assert all(row["share_of_copy"] > 0 for row in data["rows"])
    assert "### ECA, batch 2, float32" in page.read_text()
    assert "| 48 | 256x12x12 | inference | NCHW |" in page.read_text()


def test_tails(tmp_path: Path) -> None:
    record, page = tmp_path / "tails.json", tmp_path / "tails.md"
    code, shown, _ = bench("tails", "--quick", "--no-compile", *RUN, "--json", record, "--markdown", page)
    assert code == 0
    assert "cbam tail 256x12x12" in shown
    data = json.loads(record.read_text())
    jsonschema.validate(data, schema())
    assert len(data["rows"]) == 4 * 3
    assert data["settings"]["quick"] is True
    assert {row["path"] for row in data["rows"] if row["library"] == "ferattn"} == {"plain"}
    assert "| 48 | 256x12x12 | inference | channels_last |" in page.read_text()


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, _ = bench("cnn", *RUN)
    assert code == 0
    assert "cnn" in shown
    assert not list(tmp_path.iterdir())


def test_quick_chooses_three_backbones_with_every_block() -> None:
    names = models.quick_names()
    assert len(names) == 3 * 4
    assert {"resnet50", "resnet50_cbam", "resnetv2_50_eca", "vgg16_se"} <= set(names)


@pytest.mark.slow
def test_quick(tmp_path: Path) -> None:
    record = tmp_path / "quick.json"
    code, _, _ = bench("--quick", "--json", record)
    assert code == 0
    assert len(json.loads(record.read_text())["rows"]) == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet5"], "unknown model 'resnet5'"),
        (["vgg16", "--img-size", 8], "8"),
        (["cnn", "--device", "cuda:99"], "device 'cuda:99' is not on this machine"),
        (["cnn", "--device", "gpu"], "none that torch knows"),
        (["cnn", "--dtype", "float8"], "unknown dtype 'float8'"),
        (["cnn", "--against", "tim"], "did you mean 'timm'"),
        (["cnn", "--batch", 0], "--batch must be 1 or more"),
        (["cnn", "--quick"], "--quick chooses the models itself"),
        (["blocks", "--quick"], "--quick chooses the models itself"),
        (["tails", "se", "--quick"], "--quick chooses the models itself"),
        (["tails", "--quick", "--img-size", 48], "--quick chooses the map itself"),
        (["tails", "--plot", "x.svg"], "--plot draws whole models"),
        (["blocks", "cbma"], "did you mean 'cbam'"),
        (["blocks", "--plot", "x.svg"], "--plot draws whole models"),
        (["cnn", "--plot", "x.docx"], "end the name in .svg"),
        (["cnn", "--json", "nowhere/x.json"], "no folder 'nowhere'"),
        (["cnn", "--json", "."], "is a folder"),
    ],
)
def test_mistakes_get_one_line_and_cost_no_time(
    arguments: list[object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, shown, errors = bench(*arguments)
    assert code == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert "images/s" not in shown
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_record_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"mine": 1}')
    code, _, errors = bench("cnn", *RUN, "--json", path)
    assert code == 2
    assert "is no benchmark record" in errors
    assert path.read_text() == '{"mine": 1}'


def test_every_block_has_a_floor() -> None:
    assert set(blocks.FLOOR_PASSES) == {"se", "eca", "cbam"}
