"""``ferattn pool``: the folds of a cross-validation as one test in which every image occurs once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from ferattn.training import Predictions, RunFolder

__all__ = ["pool"]

_OF_THE_FOLD = ("fold", "seed", "machine")
_OF_THE_DATA = ("dataset", "classes", "select_on", "test_on")


def pool(
    runs: Annotated[list[Path], typer.Argument(help="The folders of the runs, one for each fold.")],
    confidence: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Also write the pooled logits to this npz file, for `ferattn compare`.")
    ] = None,
) -> None:
    """Figures of all folds together, with intervals over subjects where they are known; and each fold's accuracy."""
    from ferattn.cli.evaluate import print_figures
    from ferattn.cli.output import write_json
    from ferattn.errors import InvalidInput
    from ferattn.training import RunFolder, evaluate
    from ferattn.training import pool as pooled_from

    folders = [RunFolder(run) for run in runs]
    if len(folders) < 2:
        raise InvalidInput(f"{len(folders)} run: pooling needs the runs of two folds at least.")
    results = [folder.results for folder in folders]
    _require_one_recipe(folders)
    parts = [folder.predictions(folder.config["data"]["test_on"]) for folder in folders]
    together = pooled_from(parts)
    figures = evaluate(together, confidence=confidence, seed=seed)
    temperatures = [result["temperature"] for result in results]
    if all(temperature is not None for temperature in temperatures):
        figures["calibrated"] = _calibrated(parts, temperatures, confidence, seed)
    folds = [
        {"run": str(folder.path), "fold": folder.config["fold"], "images": len(part.labels),
         "accuracy": float(part.correct.mean())}
        for folder, part in zip(folders, parts, strict=True)
    ]  # fmt: skip
    config = folders[0].config
    whole, there = _whole(config), len(together.labels)
    report: dict[str, Any] = {
        "model": config["model"],
        "recipe_name": config["recipe_name"],
        "split": config["recipe"]["split"],
        "honest": all(folder.config["data"]["honest"] for folder in folders),
        "subjects": None if together.subjects is None else len(set(together.subjects)),
        "folds": folds,
        "images_in_all_folds": whole,
    } | figures
    if predictions is not None:
        together.save(predictions)
    write_json(json_file, report)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for fold in folds:
        console.print(f"fold {fold['fold']} {fold['run']}: {fold['accuracy']:.2%} of {fold['images']} images")
    people = "subjects unknown" if report["subjects"] is None else f"{report['subjects']} subjects"
    honest = "" if report["honest"] else ", not honest"
    console.print(f"{config['model']}, {config['recipe_name']}, {report['split']}, {people}{honest}")
    if whole is not None and there < whole:
        console.print(f"not all folds: {there} of the {whole} images are tested here.")
    print_figures(report)


def _require_one_recipe(folders: list[RunFolder]) -> None:
    """Every fold of the same model, recipe and division of the same data; no fold twice."""
    from ferattn.errors import InvalidInput
    from ferattn.training.folder import differences

    seen: dict[int, Path] = {}
    first = folders[0].config
    for folder in folders:
        config = folder.config
        lacking = [key for key in ("model", "recipe_name", "fold", "limit") if key not in config]
        if lacking:
            raise InvalidInput(f"{folder.path}: its config lacks {', '.join(lacking)}, which `ferattn train` writes.")
        found = differences(_shared(first), _shared(config))
        if found:
            raise InvalidInput(f"{folder.path} is no other fold of what {folders[0].path} is: {'; '.join(found)}.")
        if config["fold"] in seen:
            raise InvalidInput(f"fold {config['fold']} twice: {seen[config['fold']]} and {folder.path}.")
        seen[config["fold"]] = folder.path


def _shared(config: dict[str, Any]) -> dict[str, Any]:
    """What all folds of one cross-validation have in common."""
    from ferattn.training.folder import with_defaults

    data = config["data"]
    kept = {key: value for key, value in with_defaults(config).items() if key not in (*_OF_THE_FOLD, "data")}
    return kept | {
        "data": {key: data[key] for key in _OF_THE_DATA} | {"images": _whole(config)},
    }


def _whole(config: dict[str, Any]) -> int | None:
    """How many images there are in all folds; None where each fold rounds its share of them."""
    if config["recipe"]["train_fraction"] != 1 or config["limit"] is not None:
        return None
    images: dict[str, int] = config["data"]["images"]
    same = config["data"]["select_on"] == config["data"]["test_on"]
    return sum(images.values()) - (images["test"] if same else 0)


def _calibrated(parts: list[Predictions], temperatures: list[float], confidence: float, seed: int) -> dict[str, Any]:
    """Calibration with each fold's own temperature, which its own validation images gave."""
    from dataclasses import replace

    from ferattn.training import evaluate
    from ferattn.training import pool as pooled_from

    scaled = [replace(part, logits=part.logits / t) for part, t in zip(parts, temperatures, strict=True)]
    figures = evaluate(pooled_from(scaled), confidence=confidence, seed=seed)
    return {"temperatures": temperatures} | {
        name: figures[name] for name in ("ece", "ece_interval", "nll", "nll_interval")
    }
