"""``ferattn evaluate``: figures with intervals, and whether the model knew the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ferattn.cli.output import require_writable, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ferattn.data import BatchTransform, FaceDataset
    from ferattn.predict import Pretrained
    from ferattn.training import RunFolder

__all__ = ["evaluate", "open_run", "open_trained", "open_weights", "print_figures"]


def evaluate(
    data: Annotated[Path, typer.Option(help="A folder, a zip or a CSV file with the images.")],
    split: Annotated[str, typer.Option(help="Which part: an official one, one of the run's, or all.")],
    model: Annotated[str | None, typer.Option(help="See `ferattn models`; a run knows its own.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="The weights that ferattn ships.")] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="The folder of a run.")] = None,
    tta: Annotated[str, typer.Option(help="Test-time views: none, flip or ten-crop.")] = "none",
    dataset: Annotated[str | None, typer.Option(help="fer2013, ckplus, jaffe or folder; else guessed.")] = None,
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out images of classes that the model does not know.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="So many images, all classes in turn: a smoke run.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    predictions: Annotated[Path | None, typer.Option(help="Also write the logits to this npz file.")] = None,
) -> None:
    """Accuracy and the rest, each with its interval; test-time views are reported beside the plain figures."""
    import torch

    from ferattn.data import VIEWS, equalised_share, open_dataset
    from ferattn.data.contrast import mostly
    from ferattn.errors import InvalidOption, choose
    from ferattn.training import RunFolder, predict, store
    from ferattn.training import evaluate as figures_of
    from ferattn.training.parts import first_images
    from ferattn.training.predictions import NOT_HONEST

    choose(VIEWS, tta, "test-time views")
    require_writable("--json", json_file)
    require_writable("--predictions", predictions)
    if pretrained == (checkpoint is not None):
        raise InvalidOption("give the weights to evaluate: either --pretrained or --checkpoint RUN.")
    run = None if checkpoint is None else RunFolder(checkpoint)
    found = open_published(model) if run is None else open_run(run, model)
    network, transform, classes, size = found.model, found.transform, found.classes, found.size[0]
    source = open_dataset(data, dataset)
    left_out = _unknown_classes(source, classes, skip_unknown)
    config = _learnt_from(network) if run is None else run.config
    divisions = _divisions(config, source)
    images = _part(source.with_classes(classes, allow_missing=True), split, run, bool(divisions[0]))
    whole = len(images)
    if limit is not None:
        images = images.subset(first_images(images, limit))
    seen = _seen(divisions, images)
    own = divisions[0]
    honest = None if None in seen.values() or not own else True
    if any(seen.values()) or (own and split == config["data"]["test_on"] and not config["data"]["honest"]):
        honest = False
    unknown = own is None and run is not None  # whether the temperature was fitted on some of the images
    fitted_on = unknown or (own and not set(images.ids).isdisjoint(own["chosen"].ids))
    temperature = None if fitted_on else found.temperature
    name = f"{images.name} {split}" + (NOT_HONEST if honest is False else "")
    stored = store(images, size, found.channels)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    plain = predict(network, transform, stored, name=name, batch_size=batch_size)
    report = figures_of(plain, temperature=temperature)
    chosen = plain
    if tta != "none":
        chosen = predict(network, transform, stored, name=name, kind=tta, batch_size=batch_size)
        report = figures_of(chosen) | {"without_views": report}
    told: dict[str, Any] = {"model": str(network.spec), "weights": found.name, "split": split, "left_out": left_out}
    share = equalised_share(stored)
    told |= {"images_learnt_from": seen["trained"], "images_chosen_on": seen["chosen"], "honest": honest}
    report = told | {"limit": limit, "images_in_split": whole, "equalised_share": share} | report
    if predictions is not None:
        chosen.save(predictions)
    write_json(json_file, report)
    print_figures(report)
    if found.equalised is not None and found.equalised != mostly(share):
        crop = f"ferattn crop IN OUT --detector none --margin 0 --size {size} --illumination histogram"
        remedy = f" `{crop}` makes equalised copies." if found.equalised else ""
        Console(soft_wrap=True).print(
            f"the weights learnt from pictures that were {'' if found.equalised else 'not '}histogram-equalised; of "
            f"these {share:.0%} are.{remedy}"
        )
    if None in seen.values():
        Console(soft_wrap=True, highlight=False).print(
            "which of these images the model, or a run that it builds on, learnt from is not known: if any, the "
            "figures are too good."
        )
    if any(seen.values()):
        Console(soft_wrap=True, highlight=False).print(
            f"of these images the model, or a run that it builds on, learnt from {seen['trained']}, and an epoch was "
            f"chosen on {seen['chosen']}: the figures are too good."
        )
    if len(images) < whole:
        Console(soft_wrap=True).print(f"--limit {limit}: {len(images)} of the {whole} images, all classes in turn")


def _learnt_from(network: Any) -> Mapping[str, Any]:
    """The config of the run that published weights come from; empty where it is not beside them."""
    from ferattn.training.warm_start import origin

    file = network.pretrained_cfg.get("file")
    return {} if file is None else origin(Path(file))["config"] or {}


def _divisions(config: Mapping[str, Any], dataset: FaceDataset) -> list[dict[str, FaceDataset] | None]:
    """What a run, the first, and those that it builds on have used of a dataset.

    Nothing where the dataset is called otherwise and is not what they divided; None where nobody knows.
    """
    from ferattn.training.lineage import earlier_configs, images_known

    found: list[dict[str, FaceDataset] | None] = []
    divisions = []
    for link in [config, *earlier_configs(config)] if config else [None]:
        if link is None:  # weights of no known run
            found.append(None)
        elif link["data"].get("sha256") not in divisions:  # else divided as one before
            divisions.append(link["data"].get("sha256"))
            used = images_known(link, dataset)
            found.append(None if not used and link["data"]["dataset"] == dataset.name else used)
    return found


def _seen(divisions: list[dict[str, FaceDataset] | None], images: FaceDataset) -> dict[str, int | None]:
    """How many of the images a run, or one that it builds on, has ``"trained"`` and ``"chosen"`` its epoch on.

    None where none is known of, and not all is known.
    """
    seen: dict[str, int | None] = {}
    for role in ("trained", "chosen"):
        ids = [set(used[role].ids) for used in divisions if used]
        known = len(set(images.ids) & set().union(*ids))
        seen[role] = known or (None if None in divisions else 0)
    return seen


def open_published(name: str | None) -> Pretrained:
    """The published weights of the model that was named."""
    from ferattn.errors import InvalidOption
    from ferattn.predict import open_pretrained

    if name is None:
        raise InvalidOption("--pretrained needs --model NAME.")
    return open_pretrained(name)


def open_weights(model: str | None, checkpoint: Path | None) -> Pretrained:
    """A run's weights where there is one, else published ones: cnn_se's unless another model is named."""
    from ferattn.predict import open_pretrained

    if checkpoint is None:
        return open_pretrained(model or "cnn_se")
    from ferattn.training import RunFolder  # a run is for whoever trains: published weights need no Lightning

    return open_run(RunFolder(checkpoint), model)


def open_run(run: RunFolder, name: str | None) -> Pretrained:
    """A finished run as published weights are opened."""
    from ferattn.predict import Pretrained

    network, transform, classes = open_trained(run, name)
    recipe = run.config["recipe"]
    return Pretrained(
        model=network,
        transform=transform,
        classes=classes,
        temperature=run.results["temperature"],
        size=(recipe["size"], recipe["size"]),
        channels=recipe["channels"],
        name=str(run.path),
        equalised=run.learnt_equalised,
    )


def open_trained(run: RunFolder, name: str | None) -> tuple[Any, BatchTransform, tuple[str, ...]]:
    """The network of a finished run, how it wants its images, and its classes."""
    from ferattn.cli.jobs import build_model
    from ferattn.errors import InvalidInput, InvalidOption
    from ferattn.training import Recipe

    config = run.config
    trained = config.get("model")
    if trained is None:
        raise InvalidInput(f"{run.path}: its config does not name the model.")
    if name is not None and name != trained:
        raise InvalidOption(f"--model {name}: the run in {run.path} trained {trained}.")
    classes = tuple(config["data"]["classes"])
    network: nn.Module = build_model(
        trained, Recipe().changed(config["recipe"]), classes=len(classes), pretrained=False
    )
    run.load_weights(network)
    return network, run.load_transform(), classes


def _unknown_classes(dataset: FaceDataset, classes: tuple[str, ...], skip: bool) -> dict[str, int]:
    """The images of the whole dataset whose class the model has no output for, by class."""
    from ferattn.errors import InvalidInput

    counts = {name: count for name, count in dataset.counts().items() if count}
    unknown = {name: count for name, count in counts.items() if name not in classes}
    told = f"the model knows {', '.join(classes)}; {dataset.name} has images of {', '.join(counts)}"
    if len(unknown) == len(counts):
        raise InvalidInput(f"no class in common: {told}.")
    if unknown and not skip:
        raise InvalidInput(f"{told}. --skip-unknown leaves out {', '.join(unknown)}.")
    return unknown


def _part(dataset: FaceDataset, split: str, run: RunFolder | None, known: bool) -> FaceDataset:
    """Everything, a part as the run divided its data, or else an official one.

    A random division of the run's has parts of the same names as the official one, with other images in them.

    Args:
        dataset: All of it.
        split: The part.
        run: The run, if there is one.
        known: Whether the dataset is what the run divided.
    """
    from ferattn.errors import InvalidInput
    from ferattn.training import Recipe, make_parts

    if split == "all":
        return dataset
    config = {} if run is None else run.config
    names = (config["data"]["select_on"], config["data"]["test_on"]) if config else ()
    divided = split in names and (config["recipe"]["split"] != "official" or split not in (dataset.parts or ()))
    if run is None or not divided or not (known or dataset.name == config["data"]["dataset"]):
        return dataset.part(split)
    if not known:
        raise InvalidInput(
            f"{dataset.name} is not what {run.path} divided: images were added, removed or changed, or it is other "
            f"data of that name. Which were its {split} is not known. Options: --split all, or the data as it was."
        )
    recipe = Recipe().changed(config["recipe"])
    parts = make_parts(dataset, recipe, seed=config["split_seed"], fold=config["fold"])
    return parts.test if split == parts.test_on else parts.validation


def print_figures(report: dict[str, Any]) -> None:
    """The figures of an evaluation with their intervals, and a table by class."""
    console = Console(soft_wrap=True, highlight=False)
    for block in (report, report.get("without_views")):
        if block is None:
            continue
        console.print(
            f"{block['dataset']}: {block['images']} images, test-time views: {block['views']}", markup=False
        )
        for name in ("accuracy", "macro_f1", "ece", "nll"):
            ends = block[f"{name}_interval"]
            console.print(f"  {name} {block[name]:.4f} ({ends['low']:.4f} to {ends['high']:.4f}, {ends['method']})")
    table = Table("class", "recall", "of", "precision", "of", box=None, header_style="bold")
    for name in report["classes"]:
        cells = []
        for figure in ("recall", "precision"):
            entry = report[figure][name]
            ends = entry["interval"]
            cells.append("-" if ends is None else f"{entry['value']:.3f} ({ends['low']:.3f} to {ends['high']:.3f})")
            cells.append(str(entry["images"]))
        table.add_row(name, *cells)
    console.print(table)
