"""``ferattn study``: backbone x attention x activation x seed, resumable, one table, one report."""

from __future__ import annotations

import csv
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ferattn.training import RunFolder

__all__ = ["Grid", "load_grid", "study"]

_KEYS: dict[str, Any] = {
    "data": "",
    "recipe": "",
    "variant": "",
    "backbones": [],
    "attentions": ["none"],
    "activations": ["own"],
    "seeds": [0],
    "limit": 0,
    "set": {},
    "train": [],
}


@dataclass(frozen=True)
class Grid:
    """What a study trains.

    Attributes:
        data: The dataset; a relative path counts from the grid's file.
        recipe: For every cell.
        models: Model name of each cell by (backbone, attention, activation).
        seeds: For every cell the same, so that comparisons are paired.
        options: Further words of ``ferattn train``.
        asked: What a finished run's config must say to belong to this grid.
    """

    data: Path
    recipe: str
    models: Mapping[tuple[str, str, str], str]
    seeds: tuple[int, ...]
    options: tuple[str, ...]
    asked: Mapping[str, Any]


def load_grid(path: Path) -> Grid:
    """Read a grid and check every name in it.

    Raises:
        InvalidInput: If the file cannot be read or lacks something.
        UnknownChoice: If a key, a model or the recipe does not exist.
    """
    import tomllib

    from ferattn.errors import InvalidInput, choose
    from ferattn.spec import ModelSpec
    from ferattn.training import load_recipe

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path}: no grid ({error}).") from error
    for key, value in content.items():
        like = choose(_KEYS, key, f"key of {path.name}")
        if type(value) is not type(like):
            raise InvalidInput(f"{path}: {key} = {value!r}; a {type(like).__name__} is needed.")
    missing = [key for key in ("data", "recipe", "backbones") if not content.get(key)]
    if missing:
        raise InvalidInput(f"{path}: {', '.join(missing)} missing.")
    content = {**_KEYS, **content}
    seeds = content["seeds"]
    if not seeds or len(set(seeds)) != len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise InvalidInput(f"{path}: seeds = {seeds!r}; different whole numbers, 0 or larger.")
    load_recipe(content["recipe"], None, content["variant"] or None).changed(content["set"])
    cells = itertools.product(content["backbones"], content["attentions"], content["activations"])
    models = {
        (backbone, attention, activation): "_".join(
            [backbone, *([] if attention == "none" else [attention]), *([] if activation == "own" else [activation])]
        )
        for backbone, attention, activation in cells
    }
    for name in models.values():
        ModelSpec.parse(name)
    options = [*content["train"]]
    options += ["--variant", content["variant"]] if content["variant"] else []
    options += ["--limit", str(content["limit"])] if content["limit"] else []
    for key, value in content["set"].items():
        options += ["--set", f"{key}={_toml(value)}"]
    asked = {
        "recipe_name": content["recipe"],
        "variant": content["variant"] or None,
        "limit": content["limit"] or None,
        "set": content["set"],
    }
    data = (path.parent / content["data"]).resolve()
    return Grid(data, content["recipe"], models, tuple(seeds), tuple(map(str, options)), asked)


def study(
    grid: Annotated[Path, typer.Argument(help="A TOML file: data, recipe, backbones, attentions, ...")],
    out: Annotated[Path, typer.Option(help="The folder of the study; the same command goes on with it.")],
    workers: Annotated[int | None, typer.Option(help="Runs at a time; else one for each GPU.")] = None,
    train: Annotated[bool, typer.Option(help="Train what is missing, or only report what is there.")] = True,
) -> None:
    """Train a grid of models with the same seeds, and report every paired difference."""
    import torch

    from ferattn.data.atomic import write_atomically
    from ferattn.errors import InvalidInput, InvalidOption
    from ferattn.training import RunFolder

    if workers is not None and workers < 1:
        raise InvalidOption(f"--workers {workers}: at least 1.")
    plan = load_grid(grid)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    gpus = torch.cuda.device_count()
    at_a_time = workers or max(1, gpus)
    cells = [(cell, seed) for seed in plan.seeds for cell in plan.models]
    folders = {(cell, seed): out / "runs" / f"{plan.models[cell]}-seed{seed}" for cell, seed in cells}
    todo = [key for key in cells if not RunFolder(folders[key]).finished]
    for cell, seed in cells:
        if (cell, seed) not in todo:
            _require_same_grid(RunFolder(folders[cell, seed]), plan)
    console.print(f"{len(cells)} runs, {len(cells) - len(todo)} of them done")
    failed: list[str] = []

    def carry_out(job: tuple[int, tuple[tuple[str, str, str], int]]) -> None:
        number, key = job
        words = ["--recipe", plan.recipe, "--model", plan.models[key[0]], "--data", str(plan.data)]
        words += ["--seed", str(key[1]), "--out", str(folders[key]), "--no-progress", *plan.options]
        environment = dict(os.environ)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        done = subprocess.run(
            [sys.executable, "-m", "ferattn", "train", *words],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()
            failed.append(f"{folders[key].name}: {last[-1] if last else f'ended with code {done.returncode}'}")
        console.print(f"{'failed' if done.returncode else 'done'}: {folders[key].name}")

    if train:
        out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(at_a_time) as pool:
            list(pool.map(carry_out, enumerate(todo)))
    finished = {key: RunFolder(folder) for key, folder in folders.items() if RunFolder(folder).finished}
    if not finished:
        raise InvalidInput(f"{out}: no run has finished. {' '.join(failed)}".strip())
    _write_table(finished, plan, out / "table.csv")
    write_atomically(out / "report.md", _report(finished, plan, failed).encode())
    console.print(f"{out / 'report.md'}: {len(finished)} of {len(cells)} runs")
    if failed:
        raise typer.Exit(1)


def _require_same_grid(run: RunFolder, plan: Grid) -> None:
    """Refuse to mix the runs of two grids in one report."""
    from ferattn.errors import InvalidOption
    from ferattn.training import Recipe
    from ferattn.training.folder import differences

    config = run.config
    was = {key: config.get(key) for key in ("recipe_name", "variant", "limit")}
    now = {key: plan.asked[key] for key in was}
    wanted = Recipe().changed(config["recipe"]).changed(plan.asked["set"]).to_dict()
    if plan.asked["limit"]:
        wanted["batch_size"] = config["recipe"]["batch_size"]  # a smoke run shrinks it
    changed = differences(was, now) + differences(config["recipe"], wanted, "recipe")
    if changed:
        raise InvalidOption(f"{run.path}: made by another grid; {'; '.join(changed)}. Give another --out.")


def _write_table(finished: Mapping[Any, Any], plan: Grid, path: Path) -> None:
    from ferattn.data.atomic import write_atomically

    columns = ["backbone", "attention", "activation", "seed", "model", "accuracy", "macro_f1", "nll", "ece"]
    columns += ["validation_accuracy", "best_epoch", "epochs", "seconds", "images", "honest"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for (cell, seed), run in finished.items():
        results = run.results
        row = dict(zip(columns, (*cell, seed, plan.models[cell]), strict=False))
        row |= {name: results["test"][name] for name in ("accuracy", "macro_f1", "nll", "ece", "images")}
        row |= {name: results[name] for name in ("validation_accuracy", "best_epoch", "epochs", "seconds", "honest")}
        writer.writerow(row)
    write_atomically(path, buffer.getvalue().encode())


def _report(finished: Mapping[Any, Any], plan: Grid, failed: Sequence[str]) -> str:
    from ferattn.statistics import summarize

    accuracy = {key: 100 * run.results["test"]["accuracy"] for key, run in finished.items()}
    some = next(iter(finished.values())).results
    lines = [
        f"# {plan.recipe} on {some['test']['dataset']}",
        "",
        f"{some['test']['images']} test images, seeds {', '.join(map(str, plan.seeds))}. Accuracy in percent; every "
        "seed is printed, none is chosen.",
        "",
        "| backbone | attention | activation | mean | standard deviation | 95 % interval of the mean | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in plan.models:
        values = [accuracy[cell, seed] for seed in plan.seeds if (cell, seed) in accuracy]
        if not values:
            continue
        found = summarize(values)
        ends = "-" if found.interval is None else f"{found.interval.low:.2f} to {found.interval.high:.2f}"
        std = "-" if found.interval is None else f"{found.std:.2f}"
        points = ", ".join(f"{value:.2f}" for value in values)
        lines.append(f"| {' | '.join(cell)} | {found.mean:.2f} | {std} | {ends} | {points} |")
    lines += ["", "## Attention against none, activation against the first, by seed", ""]
    lines += _comparisons(finished, plan)
    if failed:
        lines += ["", "## Failed", "", *(f"- {line}" for line in failed)]
    return "\n".join(lines) + "\n"


def _comparisons(finished: Mapping[Any, Any], plan: Grid) -> list[str]:
    from ferattn.statistics import hierarchical_bootstrap, holm, sign_flip

    pairs = []
    activations = list(dict.fromkeys(cell[2] for cell in plan.models))
    for backbone, attention, activation in plan.models:
        if attention != "none" and (backbone, "none", activation) in plan.models:
            pairs.append(((backbone, "none", activation), (backbone, attention, activation)))
        if activation != activations[0]:
            pairs.append(((backbone, attention, activations[0]), (backbone, attention, activation)))
    tests, rows = {}, {}
    for a, b in pairs:
        seeds = [seed for seed in plan.seeds if (a, seed) in finished and (b, seed) in finished]
        if len(seeds) < 2:
            continue
        test_on = finished[a, seeds[0]].config["data"]["test_on"]
        first = [finished[a, seed].predictions(test_on) for seed in seeds]
        second = [finished[b, seed].predictions(test_on).aligned(first[0]) for seed in seeds]
        first = [one.aligned(first[0]) for one in first]
        right = [[one.correct for one in side] for side in (first, second)]
        interval = hierarchical_bootstrap(right[0], right[1], clusters=first[0].subjects)
        test = sign_flip([one.mean() for one in right[0]], [one.mean() for one in right[1]])
        name = f"{plan.models[b]} - {plan.models[a]}"
        tests[name] = test
        rows[name] = f"{100 * interval.value:+.2f} | {100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
    if not tests:
        return ["Needs at least two seeds of two cells that differ in one thing."]
    corrected = holm({name: test.p_value for name, test in tests.items()})
    lines = [
        "| difference | points | 95 % interval, seeds and images | p (sign flip) | after Holm | least p possible |",
        "|---|---|---|---|---|---|",
    ]
    for name, test in tests.items():
        lines.append(
            f"| {name} | {rows[name]} | {test.p_value:.4f} | {corrected[name].adjusted:.4f} | {test.smallest_p:.4f} |"
        )
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if not isinstance(value, str) else value
