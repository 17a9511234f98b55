"""A grid: every run once, paired differences, nothing lost when one fails or time runs out."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ferattn.cli import app, workers
from ferattn.cli.study import _require_same_grid, _words, carry_out_study
from ferattn.cli.study_grid import Cell, Grid, load_grid
from ferattn.cli.study_report import _pairs, write_report
from ferattn.cli.teachers import teacher_origin
from ferattn.cli.workers import Plan, carry_out_all, gpus, threads
from ferattn.errors import FerattnError, InvalidInput, InvalidOption
from ferattn.statistics import holm, paired_t, sign_flip, summarize
from ferattn.training import Predictions, Recipe, RunFolder, load_recipe
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
        GRID.replace(
            'attentions = ["none", "se"]',
            'attentions = ["none", "se"]\nactivations = ["own", "elu"]\nfractions = [0.25, 1]',
        )
    )
    grid = load_grid(path)
    names = ["cnn", "cnn_elu", "cnn_se", "cnn_se_elu"]
    assert [cell.model for cell in grid.cells] == [name for name in names for _ in range(2)]
    assert [cell.folder(7) for cell in grid.cells][:2] == ["cnn-0.25-seed7", "cnn-seed7"]
    assert [cell.name for cell in grid.cells][:2] == ["cnn 25 %", "cnn"]
    assert grid.data == tmp_path / "images"
    assert grid.options[-4:] == ("--set", "epochs=1", "--set", "batch_size=8")


@pytest.mark.parametrize(
    "own", ['placement = "pool"', "train_fraction = 0.5", 'lr = 0.1\n[dataset.jaffe]\nplacement = "pool"']
)
def test_a_recipe_does_not_say_what_the_grid_says(tmp_path: Path, own: str) -> None:
    (tmp_path / "own.toml").write_text(f"[settings]\n{own}\n")
    (tmp_path / "grid.toml").write_text(GRID.replace("luo2023", "own.toml"))
    with pytest.raises(
        InvalidInput, match=r"the recipe sets (placement|train_fraction); .* = \[\.\.\.\] of the grid"
    ):
        load_grid(tmp_path / "grid.toml")


def test_a_grid_of_placements(tmp_path: Path) -> None:
    """Each with the first and with no attention, of which there is one cell."""
    path, list_of = tmp_path / "grid.toml", 'placements = ["own", "pool", "conv:1,2"]'
    path.write_text(GRID.replace('attentions = ["none", "se"]', f'attentions = ["none", "se"]\n{list_of}'))
    plain, *placed = load_grid(path).cells
    assert [cell.name for cell in placed] == ["cnn_se", "cnn_se pool", "cnn_se conv:1,2"]
    assert [cell.folder(0) for cell in placed] == ["cnn_se-seed0", "cnn_se-pool-seed0", "cnn_se-conv-1-2-seed0"]
    assert [_words(load_grid(path), cell, 0, tmp_path)[-2:] for cell in placed][1:] == [
        ["--set", "placement=pool"],
        ["--set", "placement=conv:1,2"],
    ]
    assert _pairs([plain, *placed]) == [
        (plain, placed[0]),
        (plain, placed[1]),
        (placed[0], placed[1]),
        (plain, placed[2]),
        (placed[0], placed[2]),
    ]
    report, accuracy = _report(tmp_path, [plain, *placed])
    mean = np.mean([accuracy[placed[2], seed] for seed in (0, 1, 2)])
    assert f"| cnn | se | conv:1,2 | own | {mean:.2f} |" in report
    assert "| cnn_se pool - cnn_se |" in report
    with (tmp_path / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["placement"] for row in rows if row["attention"] == "none"} == {"own"}
    assert {row["placement"] for row in rows} == {"own", "pool", "conv:1,2"}
    assert len({row["parameters"] for row in rows}) == 3  # none; on three maps; on two


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[set]", 'placements = ["pol"]\n[set]', "did you mean 'pool'"),
        ("[set]", 'placements = ["residual"]\n[set]', "grid.toml: placements: .*residual"),
        ("[set]", 'placements = ["stage"]\n[set]', "stage is cnn_se's usual one; write 'own'"),
        ("[set]", 'placements = ["conv:1,2", "conv:1, 2"]\n[set]', "two of them are one"),
        ("epochs = 1", 'placement = "pool"', r"set.placement; placements = .* of the grid"),
        ('["--accelerator"', '["--set", "placement=pool", "--accelerator"', "placement=pool: other keys"),
        ('"se"', '"sse"', "sse"),
        ("luo2023", "luo2032", "did you mean 'luo2023'"),
        ("seeds = [0, 3]", "seeds = [0, 0]", "different whole numbers"),
        ("seeds =", "sedes =", "did you mean 'seeds'"),
        ('["--accelerator"', '["--seed", "7", "--accelerator"', "--seed: other keys of the grid"),
        ('["--accelerator"', '["--model=cnn", "--accelerator"', "--model: other keys of the grid"),
        ('["--accelerator"', '["--set", "train_fraction=0.5", "--accelerator"', "train_fraction=0.5: other keys"),
        ('["--accelerator"', '["--acelerator"', "--acelerator"),
        ('["--accelerator"', '["--devices", "2", "--accelerator"', "--devices: a study gives each run one device"),
        (
            '["--accelerator"',
            '["--num-nodes", "2", "--accelerator"',
            "--num-nodes: a study gives each run one device",
        ),
        ("epochs", "epocs", "did you mean 'epochs'"),
        ('data = "images"', "", "data missing"),
        ('backbones = ["cnn"]', 'backbones = "cnn"', "a list is needed"),
        ("[set]", "[set", "no grid"),
        ("seeds = [0, 3]", "fractions = [0.5, 0.5]", "different numbers above 0"),
        ("seeds = [0, 3]", "fractions = [1.5]", "up to 1"),
        ("seeds = [0, 3]", "fractions = [true]", "up to 1"),
        ('["none", "se"]', '["se", "se"]', "attentions = .*; different names"),
        ('["none", "se"]', "[1]", "attentions = .*; different names"),
        ('["none", "se"]', "[]", "attentions = .*; different names"),
        ("seeds = [0, 3]", "limit = -5", "1 or more"),
        ("epochs = 1", "train_fraction = 0.5", "fractions = .* of the grid"),
    ],
)
def test_mistakes_in_a_grid(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(GRID.replace(old, new))
    with pytest.raises(FerattnError, match=said):
        load_grid(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--minutes", "0"], "--minutes 0"),
        (["--data", "nowhere"], "--data 'nowhere'"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    result = CliRunner().invoke(app, ["study", str(tmp_path / "grid.toml"), "--out", str(tmp_path / "o"), *words])
    assert result.exit_code == 2
    assert said in result.output


# Runs by hand, so that reports need no training


def _run(
    folder: Path, cell: Cell, hits: np.ndarray[Any, Any], images: int, people: int = 0, honest: bool = True
) -> RunFolder:
    folder.mkdir(parents=True)
    labels = np.arange(len(hits)) % 4
    logits = np.eye(4, dtype=np.float32)[np.where(hits, labels, (labels + 1) % 4)]
    ids = tuple(f"{row}" for row in range(len(hits)))
    subjects = tuple(f"P{row % people}" for row in range(len(hits))) if people else None
    given = Predictions(logits, labels, ids, faces.CLASSES, "none", "FER2013 test", "x", subjects)
    given.save(folder / "predictions-test.npz")
    recipe = Recipe(size=48, train_fraction=cell.fraction, placement=cell.placement).to_dict()
    data = {"dataset": "FER2013", "classes": list(faces.CLASSES), "test_on": "test", "images": {"train": images}}
    run = RunFolder(folder)
    run.write_json("config.json", {"recipe": recipe, "data": data, "recipe_name": "luo2023"})
    test = {"accuracy": hits.mean(), "macro_f1": 0.5, "nll": 1, "ece": 0.1, "images": len(hits), "dataset": "FER2013"}
    rest = {"validation_accuracy": 0.5, "best_epoch": 1, "epochs": 2, "seconds": 3.0, "honest": honest}
    run.write_json("results.json", {"test": test, **rest})
    return run


def _report(
    tmp_path: Path, cells: list[Cell], seeds: tuple[int, ...] = (0, 1, 2), **about: Any
) -> tuple[str, dict[Any, float]]:
    plan = Grid(tmp_path, "luo2023", tuple(cells), seeds, (), {})
    random = np.random.default_rng(0)
    finished, accuracy = {}, {}
    for number, cell in enumerate(cells):
        for seed in seeds:
            hits = random.random(80) < 0.5 + 0.03 * number
            images = round(1000 * cell.fraction)
            finished[cell, seed] = _run(tmp_path / "runs" / cell.folder(seed), cell, hits, images, **about)
            accuracy[cell, seed] = 100 * hits.mean()
    write_report(finished, plan, tmp_path, failed=["a: b"], missing=["cnn-seed9"])
    return (tmp_path / "report.md").read_text(), accuracy


def test_the_published_tables_stand_beside_ours(tmp_path: Path) -> None:
    names = [("none", "own"), ("none", "elu"), ("none", "selu"), ("cbam", "elu")]
    cells = [Cell("resnet50", attention, activation) for attention, activation in names]
    report, accuracy = _report(tmp_path, cells)
    for cell, published, millions in ((cells[1], 58.61, 23.49), (cells[3], 59.90, 26.02)):
        ours = summarize([accuracy[cell, seed] for seed in (0, 1, 2)])
        line = next(
            line for line in report.splitlines() if line.startswith(f"| resnet50 | {cell.attention} | {millions}")
        )
        assert f"| {published:.2f} | {ours.mean:.2f} ({ours.interval.low:.2f} to {ours.interval.high:.2f}) |" in line
    for activation, published, cell in (
        ("relu", 85.16, cells[0]),
        ("elu", 88.21, cells[1]),
        ("selu", 87.91, cells[2]),
    ):
        mean = np.mean([accuracy[cell, seed] for seed in (0, 1, 2)])
        assert f"| {activation} | {published:.2f} | {mean:.2f} (" in report
    assert "- a: b" in report
    assert "- cnn-seed9" in report
    for name in ("accuracy.png", "cost.png"):
        assert (tmp_path / name).stat().st_size > 5000
        assert f"]({name})" in report
    assert not (tmp_path / "fractions.png").exists()
    with (tmp_path / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len({row["flops"] for row in rows}) == 2


def test_training_set_sizes_have_a_plot_and_a_column(tmp_path: Path) -> None:
    cells = [Cell("cnn", attention, "own", share) for attention in ("none", "se") for share in (0.1, 0.5, 1.0)]
    report, _ = _report(tmp_path, cells)
    assert (tmp_path / "fractions.png").stat().st_size > 5000
    assert "| cnn | se | own | 10 % |" in report
    assert "| cnn_se 10 % - cnn 10 % |" in report
    assert "cnn_se - cnn 10 %" not in report
    assert "Table 7" not in report  # Luo's network is not in it


@pytest.mark.parametrize(("people", "unit"), [(0, "images"), (1, "images of one subject"), (8, "subjects")])
def test_a_report_says_what_its_intervals_are_over(tmp_path: Path, people: int, unit: str) -> None:
    """A fold of leave-one-subject-out has one person in its test, and gets its report too."""
    cells = [Cell("cnn", attention, "own", share) for attention in ("none", "se", "eca") for share in (0.1, 1.0)]
    report, accuracy = _report(tmp_path, cells, people=people, honest=people != 1)
    assert f"| seeds and {unit} |" in report
    assert ("Not honest: 18 of 18 runs" in report) == (people == 1)
    assert "80 test images, 100 to 1000 training images" in report
    pairs = {
        f"cnn_{cell.attention} - cnn{f' {share}' if share else ''}": (cells[row], cell)
        for cell in cells[2:]
        for row, share in [(0, "10 %") if cell.fraction < 1 else (1, "")]
    }
    by_t = {
        name: paired_t(*([accuracy[cell, seed] for seed in (0, 1, 2)] for cell in pair))
        for name, pair in pairs.items()
    }
    corrected = holm({name: test.p_value for name, test in by_t.items()})
    ends = by_t["cnn_se - cnn"].interval
    line = next(line for line in report.splitlines() if line.startswith("| cnn_se - cnn |"))
    assert f"| {ends.low:+.2f} to {ends.high:+.2f} |" in line
    assert f"| 3 | {by_t['cnn_se - cnn'].p_value:.4f} | {corrected['cnn_se - cnn'].adjusted:.4f} |" in line
    assert line.endswith(f"| {min(1, 4 * 0.25):.4f} |")  # four comparisons of three seeds


def test_no_run_is_begun_that_would_not_be_over() -> None:
    now = time.monotonic()
    kinds = {"a1": "a", "b1": "b", "c1": "c"}
    plan = Plan({name: [] for name in kinds}, kinds, {"a": [100.0, 60.0], "b": [5.0]}, now + 50)
    assert plan.next() == "b1"  # c is unknown and may take as long as a
    plan.jobs.pop("b1")
    assert plan.next() is None
    assert Plan({"c1": []}, kinds, {}, now + 50).next() == "c1"
    assert Plan({"a1": []}, kinds, {"a": [100.0]}, None).next() == "a1"
    assert Plan({"c1": []}, kinds, {}, now - 1).next() is None


def test_gpus_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
    assert gpus() == ["5", "3"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus() == []


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert [threads(count) for count in (1, 5, 16, 99)] == [16, 3, 1, 1]


class _Puppet:
    """A worker that dies, fails or works as its words say."""

    made: list[tuple[str | None, int]]

    def __init__(self, device: str | None, cpu_threads: int) -> None:
        self.made.append((device, cpu_threads))
        self.alive = True

    def carry_out(self, words: list[str], seconds: float | None) -> str | None:
        self.alive = words[0] != "die"
        time.sleep(0.05)
        return {"work": None, "fail": "a mistake", "die": "out of memory"}[words[0]]

    def end(self) -> None:
        self.alive = False


def test_a_dead_process_is_replaced_and_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    _Puppet.made = []
    monkeypatch.setattr(workers, "_Worker", _Puppet)
    monkeypatch.setattr(workers, "gpus", lambda: ["4", "6"])
    monkeypatch.setattr(workers, "threads", lambda count: 100 + count)
    words = {"a": "work", "b": "die", "c": "fail", "d": "work", "e": "work", "f": "work"}
    told: dict[str, str | None] = {}
    plan = Plan({name: [word] for name, word in words.items()}, dict.fromkeys(words, "x"))
    carry_out_all(plan, 3, lambda name, error: told.update({name: error}))
    assert told == dict.fromkeys("adef") | {"b": "out of memory", "c": "a mistake"}
    assert not plan.jobs
    assert len(plan.seconds["x"]) == 4
    assert {count for _, count in _Puppet.made} == {103}
    assert sorted(device or "" for device, _ in _Puppet.made[:3]) == ["4", "4", "6"]
    assert len(_Puppet.made) == 4


@pytest.mark.slow
def test_a_study_runs_resumes_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import sys

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    faces.folder_of_images(tmp_path / "images")
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(GRID)
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--workers", "2"])
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
    assert "seeds and images |" in report
    assert "Not honest: 4 of 4 runs" in report  # pictures of unknown people
    # One process does several runs; a run of its own ends in the same weights.
    alone = ["--recipe", "luo2023", "--model", "cnn_se", "--data", str(tmp_path / "images"), "--seed", "3"]
    alone += ["--out", str(tmp_path / "alone"), "--accelerator", "cpu", "--no-tensorboard", "--no-progress"]
    result = CliRunner().invoke(app, ["train", *alone, "--set", "epochs=1", "--set", "batch_size=8"])
    assert result.exit_code == 0, result.output
    twins = [
        RunFolder(folder).predictions("test").logits for folder in (tmp_path / "alone", out / "runs/cnn_se-seed3")
    ]
    np.testing.assert_allclose(twins[0], twins[1], atol=1e-5)
    # Taught and untaught runs are not one study's.
    path.write_text(GRID.replace('"--no-tensorboard"', '"--no-tensorboard", "--teacher", "cnn_se"'))
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--no-train"])
    assert result.exit_code == 2
    teacher = teacher_origin("cnn_se")
    assert f"teachers was [], now ['{teacher['sha256']}']" in result.output.replace("\n", "")
    before = {file: file.read_text() for file in out.glob("runs/*/config.json")}
    for file, text in before.items():
        file.write_text(json.dumps(json.loads(text) | {"teachers": [teacher]}))
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--no-train"])
    assert result.exit_code == 0, result.output
    told = f"Learnt from the answers of cnn_se (SHA-256 {teacher['sha256'][:12]}) too: weight 0.9, temperature 2."
    assert told in (out / "report.md").read_text()
    for file, text in before.items():
        file.write_text(text)
    path.write_text(GRID)
    (out / "runs" / "cnn-seed3" / "results.json").unlink()
    faces.folder_of_images(tmp_path / "others", seed=5)
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--data", str(tmp_path / "others")])
    assert result.exit_code == 2
    assert "tested on other images than" in result.output.replace("\n", " ")
    assert not (out / "runs" / "cnn-seed3" / "results.json").exists()
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--no-train"])
    assert "3 of them done" in result.output
    assert "3 of 4 runs" in result.output
    assert "## Missing\n\n- cnn-seed3" in (out / "report.md").read_text()
    config = out / "runs" / "cnn-seed3" / "config.json"
    config.write_text(config.read_text().replace('"batch_size": 8', '"batch_size": 9'))
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out)])
    assert result.exit_code == 1
    assert "recipe.batch_size was 9, now 8" in (out / "report.md").read_text()
    path.write_text(GRID.replace("batch_size = 8", "batch_size = 9"))
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out)])
    assert result.exit_code == 2
    assert "made by another grid; recipe.batch_size was 8, now 9" in result.output


def _finished_run(folder: Path, grid: Grid, *, test: str = "1", recipe: str = "luo2023", **changes: Any) -> None:
    """What :func:`carry_out_study` looks at before it trains."""
    settings = load_recipe(recipe, "folder").changed(grid.asked["set"]).changed(changes)
    folder.mkdir(parents=True)
    config = {"model": "cnn", "recipe_name": recipe, "variant": None, "limit": None, "split_seed": 0, "fold": 0}
    config |= {"seed": 0, "recipe": settings.to_dict(), "machine": {"precision": "fp32"}}
    config["data"] = {"dataset": "images", "images": {"train": 30}, "sha256": {"test": test}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "results.json").write_text('{"seconds": 1}')


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("batch_size = 8", "", "recipe.batch_size was 8, now 64"),
        ('"--accelerator"', '"--precision", "bf16", "--accelerator"', "precision was 'fp32', now 'bf16'"),
        ('"--accelerator"', '"--set", "lr=1.0", "--accelerator"', "recipe.lr was 0.002, now 1.0"),
        ('"--accelerator"', '"--split-seed", "3", "--accelerator"', "split_seed was 0, now 3"),
        ('"--accelerator"', '"--limit", "40", "--accelerator"', "limit was None, now 40"),
    ],
)
def test_runs_of_another_grid_are_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(GRID)
    _finished_run(out / "runs" / "cnn-seed0", load_grid(path))
    path.write_text(GRID.replace(old, new))
    with pytest.raises(InvalidOption, match=re.escape(said)):
        carry_out_study(load_grid(path), out, train=False)


def test_a_recipe_of_ones_own_lies_beside_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the command is given, and wherever both are moved to."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, tmp_path / "elsewhere"):
        folder.mkdir()
    (here / "own.toml").write_text('summary = "mine"\nsource = "me"\n[settings]\nlr = 0.25\n')
    (here / "grid.toml").write_text(GRID.replace('"luo2023"', '"own.toml"'))
    monkeypatch.chdir(tmp_path / "elsewhere")
    grid = load_grid(here / "grid.toml")
    assert load_recipe(grid.recipe).lr == 0.25
    _finished_run(here / "runs" / "cnn-seed0", grid, recipe=grid.recipe)
    here.rename(there)
    moved = load_grid(there / "grid.toml")
    assert moved.recipe != grid.recipe
    _require_same_grid(RunFolder(there / "runs" / "cnn-seed0"), moved, moved.cells[0], 0)


def test_what_runs_began_with_belongs_to_the_grid(tmp_path: Path) -> None:
    path, out, weights = tmp_path / "grid.toml", tmp_path / "out", tmp_path / "weights.safetensors"
    weights.write_bytes(b"of some run")
    path.write_text(GRID.replace('["none", "se"]', '["none"]'))
    _finished_run(out / "runs" / "cnn-seed0", load_grid(path))
    path.write_text(path.read_text().replace('"--accelerator"', f'"--warm-start", "{weights}", "--accelerator"'))
    with pytest.raises(InvalidOption, match=r"warm_start was \[\], now \['"):
        carry_out_study(load_grid(path), out, train=False)


@pytest.mark.parametrize("recipe", ["luo2023", "finetune"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_grid_knows_what_its_runs_began_with(tmp_path: Path, recipe: str, gone: bool) -> None:
    path, out = tmp_path / "grid.toml", tmp_path / "run"
    names = [tmp_path / f"{name}.safetensors" for name in "ab"]
    text = GRID.replace("luo2023", recipe).replace("epochs = 1\n", "epochs = 1\nwarmup_epochs = 0\n")
    words = "".join(f'"--warm-start", "{name}", ' for name in names)
    path.write_text(text.replace('"--accelerator"', f'{words}"--accelerator"'))
    grid = load_grid(path)
    _finished_run(out, grid, recipe=recipe)
    for name in names:
        name.write_bytes(name.name.encode())
    origins = [{"sha256": hashlib.sha256(name.read_bytes()).hexdigest(), "config": None} for name in names]
    config = json.loads((out / "config.json").read_text())
    if gone:
        names[0].unlink()

    def began_with(*links: Any) -> RunFolder:
        (out / "config.json").write_text(json.dumps(config | {"warm_start": list(links)}))
        return RunFolder(out)

    for order in (origins, origins[::-1]):
        _require_same_grid(began_with(*order), grid, grid.cells[0], 0)
    for others in ([], origins[:1], [*origins, {"sha256": "0"}], [origins[0], {"sha256": "0"}]):
        with pytest.raises(InvalidOption, match="warm_start"):
            _require_same_grid(began_with(*others), grid, grid.cells[0], 0)
    path.write_text(text)
    with pytest.raises(InvalidOption, match="warm_start"):
        _require_same_grid(began_with(*origins), load_grid(path), grid.cells[0], 0)


def test_further_words_belong_to_the_grid(tmp_path: Path) -> None:
    path, out = tmp_path / "grid.toml", tmp_path / "run"
    path.write_text(GRID.replace('"--accelerator"', '"--set", "lr=1.0", "--limit", "40", "--accelerator"'))
    grid = load_grid(path)
    _finished_run(out, grid, lr=1.0)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"limit": 40}))
    _require_same_grid(RunFolder(out), grid, grid.cells[0], 0)


def test_runs_on_other_images_are_refused(tmp_path: Path) -> None:
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(GRID.replace('["none", "se"]', '["none"]'))
    grid = load_grid(path)
    _finished_run(out / "runs" / "cnn-seed0", grid)
    _finished_run(out / "runs" / "cnn-seed3", grid, test="2")
    config = out / "runs" / "cnn-seed3" / "config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 3'))
    with pytest.raises(InvalidOption, match="tested on other images"):
        carry_out_study(grid, out, train=False)


@pytest.mark.slow
def test_time_runs_out_and_the_rest_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import sys

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    faces.folder_of_images(tmp_path / "images")
    path, out = tmp_path / "grid.toml", tmp_path / "out"
    path.write_text(
        GRID.replace("epochs = 1", "epochs = 100000\npatience = 0").replace("[0, 3]", "[0, 1, 2, 3, 4, 5, 6, 7]")
    )
    start = time.monotonic()
    result = CliRunner().invoke(app, ["study", str(path), "--out", str(out), "--minutes", "0.5"])
    assert 25 < time.monotonic() - start < 90
    assert result.exit_code == 2
    assert "no run has finished" in result.output
    assert {path.name for path in out.glob("runs/*")} <= {"cnn-seed0"}


def test_cells_differ_in_one_thing() -> None:
    cells = [Cell("cnn", attention, activation) for attention in ("none", "se") for activation in ("relu", "elu")]
    cells += [replace(cell, fraction=0.5) for cell in cells]
    pairs = _pairs(cells)
    assert len(pairs) == 8
    for a, b in pairs:
        assert sum(x != y for x, y in zip(vars(a).values(), vars(b).values(), strict=True)) == 1
