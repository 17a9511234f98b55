"""``ferattn study``: backbone x attention x activation x training images x seed, resumable, one table, one report."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ferattn.cli.study_grid import Cell, Grid, load_grid

if TYPE_CHECKING:
    from ferattn.training import RunFolder

__all__ = ["carry_out_study", "study"]


def study(
    grid: Annotated[Path, typer.Argument(help="A TOML file: data, recipe, backbones, attentions, ...")],
    out: Annotated[Path, typer.Option(help="The folder of the study; the same command goes on with it.")],
    workers: Annotated[int | None, typer.Option(help="Runs at a time; else one for each GPU.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so long; what is missing is reported.")] = None,
    data: Annotated[Path | None, typer.Option(help="Another dataset than the grid's.")] = None,
    train: Annotated[bool, typer.Option(help="Train what is missing, or only report what is there.")] = True,
) -> None:
    """Train a grid of models with the same seeds, and report every paired difference."""
    from ferattn.errors import InvalidOption

    plan = load_grid(grid)
    if data is not None and not data.exists():
        raise InvalidOption(f"--data {str(data)!r}: there is nothing.")
    plan = plan if data is None else replace(plan, data=data.resolve())
    if carry_out_study(plan, out, workers=workers, minutes=minutes, train=train):
        raise typer.Exit(1)


def carry_out_study(
    plan: Grid, out: Path, *, workers: int | None = None, minutes: float | None = None, train: bool = True
) -> list[str]:
    """Train what is missing of a grid, and report.

    Args:
        plan: What to train.
        out: The folder of the study.
        workers: Runs at a time; by default one for each GPU.
        minutes: No run is begun that probably would not be over by then, and what is not over is stopped; the same
            call takes it up again.
        train: Whether to train at all.

    Returns:
        What went wrong, a line for each run that failed.

    Raises:
        InvalidOption: If a number is impossible, or the folder holds runs of another grid.
        InvalidInput: If no run has finished.
    """
    from ferattn.cli.study_report import costs, write_report
    from ferattn.cli.workers import Plan, carry_out_all, gpus
    from ferattn.errors import InvalidInput, InvalidOption
    from ferattn.training import RunFolder

    begun = time.monotonic()
    if workers is not None and workers < 1:
        raise InvalidOption(f"--workers {workers}: at least 1.")
    if minutes is not None and not minutes > 0:
        raise InvalidOption(f"--minutes {minutes:g}: more than 0.")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    keys = [(cell, seed) for seed in plan.seeds for cell in plan.cells]
    folders = {(cell, seed): out / "runs" / cell.folder(seed) for cell, seed in keys}
    todo = {key: folder for key, folder in folders.items() if not RunFolder(folder).finished}
    seconds: dict[str, list[float]] = {}
    for (cell, seed), folder in folders.items():
        if (cell, seed) not in todo:
            _require_same_grid(RunFolder(folder), plan, cell, seed)
            seconds.setdefault(cell.name, []).append(RunFolder(folder).results["seconds"])
    _require_same_images(RunFolder(folder) for key, folder in folders.items() if key not in todo)
    console.print(f"{len(keys)} runs, {len(keys) - len(todo)} of them done")
    failed: list[str] = []
    cost: dict[Cell, tuple[int, int]] = {}
    news: queue.SimpleQueue[tuple[Cell, int] | None] = queue.SimpleQueue()
    by_name = {folder.name: key for key, folder in folders.items()}

    def count() -> None:  # while others train
        while (key := news.get()) is not None:
            cost.update(costs({key: RunFolder(folders[key])}, cost))

    def done(name: str, error: str | None) -> None:
        if error is None:
            news.put(by_name[name])
        else:
            failed.append(f"{name}: {error}")
        console.print(f"{'done' if error is None else 'failed'}: {name}")

    stopped: list[str] = []
    if train and todo:
        for (cell, seed), folder in folders.items():
            if (cell, seed) not in todo:  # the others have the same test images
                _require_this_data(RunFolder(folder), plan, cell, seed)
                break
        out.mkdir(parents=True, exist_ok=True)
        jobs = {folder.name: _words(plan, cell, seed, folder) for (cell, seed), folder in todo.items()}
        kinds = {folder.name: cell.name for (cell, _), folder in todo.items()}
        deadline = None if minutes is None else begun + 60 * minutes
        at_a_time = min(workers or max(1, len(gpus())), len(todo))
        counting = threading.Thread(target=count, daemon=True)
        counting.start()
        stopped = carry_out_all(Plan(jobs, kinds, seconds, deadline), at_a_time, done)
        news.put(None)
        counting.join()
    finished = {key: RunFolder(folder) for key, folder in folders.items() if RunFolder(folder).finished}
    missing = [
        folders[key].name + (" (stopped)" if folders[key].name in stopped else "")
        for key in keys
        if key not in finished
    ]
    if not finished:
        raise InvalidInput(f"{out}: no run has finished. {' '.join(failed)}".strip())
    _require_same_images(finished.values())
    write_report(finished, plan, out, failed=failed, missing=missing, cost=costs(finished, cost))
    console.print(f"{out / 'report.md'}: {len(finished)} of {len(keys)} runs")
    return failed


def _words(plan: Grid, cell: Cell, seed: int, folder: Path) -> list[str]:
    """What a worker is to carry out, as ``ferattn train`` takes it."""
    words = ["--recipe", plan.recipe, "--model", cell.model, "--data", str(plan.data)]
    words += ["--seed", str(seed), "--out", str(folder), "--no-progress", *plan.options]
    words += ["--set", f"placement={cell.placement}"] if cell.placement != "own" else []
    return words if cell.fraction == 1 else [*words, "--set", f"train_fraction={cell.fraction}"]


def _require_same_grid(run: RunFolder, plan: Grid, cell: Cell, seed: int) -> None:
    """Refuse to mix the runs of two grids in one report: everything a worker would be told now, said then."""
    from ferattn.cli.jobs import asked, settings_of
    from ferattn.cli.ship import KINDS
    from ferattn.cli.teachers import teacher_origin
    from ferattn.cli.workers import job_of
    from ferattn.errors import InvalidOption
    from ferattn.shipped import describe
    from ferattn.spec import architecture_name
    from ferattn.training.folder import differences, recipe_label, with_defaults
    from ferattn.training.lineage import began_with

    config = with_defaults(run.config)
    job = job_of(_words(plan, cell, seed, run.path))
    kind = job.dataset or KINDS.get(config["data"]["dataset"], "folder")
    wanted = settings_of(job, kind).to_dict()
    if kind == "folder" and config["recipe"]["split"] == "official" and "split" not in asked(job, kind):
        wanted |= {key: config["recipe"][key] for key in ("split", "validation_fraction")}  # the folder's own parts
    if job.limit is not None:
        wanted["batch_size"] = min(wanted["batch_size"], config["data"]["images"]["train"])  # a smoke run shrinks it
    now: dict[str, Any] = {"model": job.model, "variant": job.variant, "limit": job.limit}
    now |= {"recipe_name": recipe_label(job.recipe)}
    now |= {"split_seed": job.split_seed, "fold": job.fold, "seed": job.seed, "precision": job.precision}
    was = {key: config.get(key) for key in now} | {"precision": config["machine"]["precision"]}
    now |= {"teachers": [teacher_origin(word)["sha256"] for word in job.teachers or ()]}
    was |= {"teachers": [origin["sha256"] for origin in config.get("teachers", ())]}
    began = sorted(str(link["sha256"]) for link in began_with(config))
    shipped = describe(architecture_name(job.model)) if wanted["pretrained"] else None
    files = job.warm_start or ([] if shipped is None else [Path(shipped["file"])])
    was |= {"warm_start": began}
    now |= {"warm_start": sorted(_digests(files, began))}
    changed = differences(was, now) + differences(config["recipe"], wanted, "recipe")
    if changed:
        raise InvalidOption(f"{run.path}: made by another grid; {'; '.join(changed)}. Give another --out.")


def _digests(paths: Sequence[Path], then: Sequence[str]) -> list[str]:
    """The checksums of weights; of files that are gone, those that nothing else explains of what runs began with."""
    from ferattn.errors import InvalidOption
    from ferattn.training.warm_start import origin

    found, gone = [], []
    for path in paths:
        try:
            found.append(str(origin(path)["sha256"]))
        except InvalidOption:
            gone.append(str(path))
    left = [digest for digest in then if digest not in found]
    return found + left[: len(gone)] + gone[len(left) :]


def _require_same_images(runs: Iterable[RunFolder]) -> None:
    """Refuse to mix the runs of two datasets in one report."""
    from ferattn.errors import InvalidOption

    first: RunFolder | None = None
    for run in runs:
        first = first or run
        if run.config["data"]["sha256"]["test"] != first.config["data"]["sha256"]["test"]:
            raise InvalidOption(f"{run.path}: tested on other images than {first.path}. Give another --out.")


def _require_this_data(run: RunFolder, plan: Grid, cell: Cell, seed: int) -> None:
    """Refuse to train on other data than a finished run, before and not after it."""
    from ferattn.cli.workers import job_of
    from ferattn.data import open_dataset
    from ferattn.errors import InvalidOption
    from ferattn.training.lineage import parts_of

    dataset = open_dataset(plan.data, job_of(_words(plan, cell, seed, run.path)).dataset)
    if parts_of(run.config, dataset)[2].checksum() != run.config["data"]["sha256"]["test"]:
        raise InvalidOption(f"{run.path}: tested on other images than {plan.data} has. Give another --out.")
