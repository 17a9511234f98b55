"""``ferattn evaluate`` and ``ferattn compare``: figures with intervals, and whether two models differ."""

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
    from ferattn.training import Predictions, RunFolder

__all__ = ["compare", "evaluate", "open_run", "open_trained", "open_weights", "print_figures"]


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
    images = _part(source.with_classes(classes, allow_missing=True), split, run)
    whole = len(images)
    if limit is not None:
        images = images.subset(first_images(images, limit))
    seen = _seen(_learnt_from(network) if run is None else run.config, source, images)
    temperature = None if seen["chosen"] else found.temperature  # which was fitted there
    name = f"{images.name} {split}"
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
    told |= {"images_learnt_from": seen["trained"], "images_chosen_on": seen["chosen"]}
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


def _seen(config: Mapping[str, Any], dataset: FaceDataset, images: FaceDataset) -> dict[str, int]:
    """How many of the images a run, or one that it builds on, has ``"trained"`` and ``"chosen"`` its epoch on.

    As far as its config tells.
    """
    from ferattn.training.lineage import earlier_configs, images_known

    seen: dict[str, set[str]] = {"trained": set(), "chosen": set()}
    divisions = []
    for link in [config, *earlier_configs(config)] if config else []:
        if link is None or link["data"].get("sha256") in divisions:  # divided as one before
            continue
        divisions.append(link["data"].get("sha256"))
        for role, used in images_known(link, dataset).items():
            seen[role] |= set(images.ids) & set(used.ids)
    return {role: len(ids) for role, ids in seen.items()}


def compare(
    run_a: Annotated[Path, typer.Argument(help="The folder of a run, or an npz file of predictions.")],
    run_b: Annotated[Path, typer.Argument(help="Another, on the same test images.")],
    part: Annotated[str | None, typer.Option(help="Which predictions of the runs; by default the test.")] = None,
    confidence: Annotated[float, typer.Option(help="Of the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")] = None,
) -> None:
    """Whether two models differ on the same images: exact McNemar test and paired bootstrap.

    Probabilities are compared by their negative log-likelihood, and for two runs calibrated, too: each divided by the
    temperature that was fitted where its epoch was chosen.

    Where it is known who is in the images, whole people are drawn, and the test turns the signs of their differences:
    McNemar's would take every image for a case of its own.
    """
    from ferattn.errors import InvalidInput
    from ferattn.statistics import mcnemar, paired_bootstrap, subject_sign_flip

    require_writable("--json", json_file)
    b = _predictions(run_b, part)
    a = _predictions(run_a, part).aligned(b)
    if a.views != b.views:
        raise InvalidInput(f"other test-time views: {a.views} against {b.views}; compare like with like.")
    test = mcnemar(a.correct, b.correct)
    interval = paired_bootstrap(a.correct, b.correct, clusters=a.clusters, confidence=confidence, seed=seed)
    method = f"bootstrap over {a.unit}"
    if a.clusters is None:
        name, p, visible = "exact McNemar", test.p_value, _visible(len(a.labels), test.only_a + test.only_b)
    else:
        name, visible = "sign flip over subjects", None
        p = subject_sign_flip(a.correct, b.correct, a.clusters, seed=seed).p_value
    result: dict[str, Any] = {
        "a": str(run_a),
        "b": str(run_b),
        "dataset": a.dataset,
        "views": a.views,
        "images": len(a.labels),
        "accuracy_a": float(a.correct.mean()),
        "accuracy_b": float(b.correct.mean()),
        "difference": test.difference,
        "interval": {"low": interval.low, "high": interval.high, "method": method, "confidence": confidence},
        "mcnemar": {"both": test.both, "only_a": test.only_a, "only_b": test.only_b, "neither": test.neither},
        "test": name,
        "p_value": p,
        "detectable": visible,
    }
    losses = {"nll": (a.nll(), b.nll())}
    temperatures = _temperature(run_a, part), _temperature(run_b, part)
    if temperatures[0] is not None and temperatures[1] is not None:
        losses["calibrated_nll"] = a.nll(temperatures[0]), b.nll(temperatures[1])
    for name_of, (of_a, of_b) in losses.items():
        ends = paired_bootstrap(of_a, of_b, clusters=a.clusters, confidence=confidence, seed=seed)
        result[name_of] = {"a": float(of_a.mean()), "b": float(of_b.mean()), "difference": ends.value}
        result[name_of] |= {
            "interval": {"low": ends.low, "high": ends.high, "method": method, "confidence": confidence}
        }
    write_json(json_file, result)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{a.dataset}, {len(a.labels)} images, views: {a.views}")
    console.print(f"A {run_a}: {result['accuracy_a']:.2%}\nB {run_b}: {result['accuracy_b']:.2%}")
    console.print(
        f"B - A: {100 * test.difference:+.2f} points, {100 * confidence:g} % interval {100 * interval.low:+.2f} to "
        f"{100 * interval.high:+.2f} ({method})"
    )
    console.print(
        f"{name}: only A right {test.only_a}, only B right {test.only_b}, p = {p:.4g}"
        + ("" if visible is None else f"; 80 % power from {100 * visible:.2f} points on")
    )
    for kind, told in (("nll", "negative log-likelihood"), ("calibrated_nll", "the same, calibrated")):
        if kind in result:
            found = result[kind]
            console.print(
                f"{told}: A {found['a']:.4f}, B {found['b']:.4f}, B - A {found['difference']:+.4f}, interval "
                f"{found['interval']['low']:+.4f} to {found['interval']['high']:+.4f}"
            )
    console.print("This compares two trained models. Two recipes need several seeds of each.")


def _temperature(path: Path, part: str | None) -> float | None:
    """The temperature of a run, for a part on which it was not fitted."""
    from ferattn.training import RunFolder

    run = RunFolder(path)
    if path.suffix == ".npz" or not run.finished or part == run.config["data"]["select_on"]:
        return None
    temperature: float | None = run.results["temperature"]
    return temperature


def _visible(images: int, discordant: int) -> float | None:
    """The smallest difference that McNemar's test sees with so many images on which one model is right."""
    from ferattn.statistics import detectable_by_mcnemar

    try:
        return detectable_by_mcnemar(images, discordant / images) if 0 < discordant < images else None
    except ValueError:  # so few images that nothing could be found
        return None


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
    from ferattn.training import RunFolder

    return open_pretrained(model or "cnn_se") if checkpoint is None else open_run(RunFolder(checkpoint), model)


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
    from ferattn.cli.train import build_model
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


def _part(dataset: FaceDataset, split: str, run: RunFolder | None) -> FaceDataset:
    """Everything, a part as the run divided its data, or else an official one.

    A random division of the run's has parts of the same names as the official one, with other images in them.
    """
    from ferattn.training import Recipe, make_parts

    if split == "all":
        return dataset
    config = {} if run is None else run.config
    names = (config["data"]["select_on"], config["data"]["test_on"]) if config else ()
    divided = split in names and config["recipe"]["split"] != "official" and dataset.name == config["data"]["dataset"]
    if split not in names or (split in (dataset.parts or ()) and not divided):
        return dataset.part(split)
    recipe = Recipe().changed(config["recipe"])
    parts = make_parts(dataset, recipe, seed=config["split_seed"], fold=config["fold"])
    return parts.test if split == parts.test_on else parts.validation


def _predictions(path: Path, part: str | None) -> Predictions:
    import numpy as np

    from ferattn.errors import InvalidInput, InvalidOption, choose
    from ferattn.training import Predictions, RunFolder

    if path.suffix == ".npz":
        if part is not None:
            raise InvalidOption(f"--part {part}: a run has parts; {path} is a file of predictions.")
        found = Predictions.load(path)
    else:
        run = RunFolder(path)
        files = {file.stem.partition("-")[2]: file for file in sorted(path.glob("predictions-*.npz"))}
        part = run.config["data"]["test_on"] if part is None else part
        choose(files or {part: path}, part, f"part of {path}")
        found = run.predictions(part)
    if not np.isfinite(found.logits).all():
        raise InvalidInput(f"{path}: some logits are not finite.")
    return found


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
