"""``ferattn train`` and ``ferattn recipes``: a model, a recipe, a dataset, a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from torch import nn

    from ferattn.data import FaceDataset
    from ferattn.training import Recipe, RunFolder

    Opener = Callable[[Path, str, Recipe], FaceDataset]

__all__ = ["Job", "asked", "build_model", "carry_out", "recipes", "settings_of", "train"]


_SAME_SCALE = 0.01
"""How far means and standard deviations of pixels, from 0 to 1, may lie apart and count as one."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What ``ferattn train`` was asked to do; its options, by their names there."""

    data: Path
    out: Path
    recipe: str
    model: str
    variant: str | None
    change: list[str] | None
    seed: int
    dataset: str | None
    split_seed: int
    fold: int
    limit: int | None
    warm_start: list[Path] | None
    teachers: list[str] | None
    accelerator: str
    devices: int
    num_nodes: int
    precision: str
    compile_model: bool
    channels_last: bool
    deterministic: bool
    checkpoint_epochs: int
    checkpoints: bool
    tensorboard: bool
    progress: bool


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, or the path of a TOML file.")] = None,
) -> None:
    """List the recipes, or show what one takes from its paper, what it chose, and its settings."""
    from ferattn.training import list_recipes, load_page

    console = Console(soft_wrap=True, highlight=False)
    if name is None:
        table = Table("recipe", "variants", "what it is", box=None, header_style="bold")
        for entry in list_recipes():
            page = load_page(entry)
            table.add_row(entry, ", ".join(page.variants) or "-", page.summary)
        console.print(table)
        return
    page = load_page(name)
    console.print(f"{page.name}: {page.summary}\n{page.source}", markup=False)
    for title, topics in (("What the paper says", page.says), ("Left open, and chosen", page.chose)):
        console.print(f"\n{title}", style="bold")
        for topic, text in topics.items():
            console.print(f"  {topic}: {text}", markup=False)
    tables = {"settings": page.settings}
    tables |= {f"on {kind}": changes for kind, changes in page.datasets.items()}
    tables |= {f"variant {variant}": changes for variant, changes in page.variants.items()}
    for title, settings in tables.items():
        console.print(f"\n{title}", style="bold")
        for key, value in settings.items():
            console.print(f"  {key} = {value!r}", markup=False)


def train(
    data: Annotated[Path, typer.Option(help="A folder, a zip or a CSV file with the images.")],
    out: Annotated[Path, typer.Option(help="The folder of the run; the same command goes on with it.")],
    recipe: Annotated[str, typer.Option(help="See `ferattn recipes`; or the path of a TOML file.")] = "strong",
    model: Annotated[str, typer.Option(help="See `ferattn models`.")] = "cnn_se",
    variant: Annotated[str | None, typer.Option(help="A variant of the recipe.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Another value: KEY=VALUE, as in TOML.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and dropout.")] = 0,
    dataset: Annotated[str | None, typer.Option(help="fer2013, ckplus, jaffe or folder; else guessed.")] = None,
    split_seed: Annotated[int, typer.Option(help="Of random splits; keep it while --seed changes.")] = 0,
    fold: Annotated[int, typer.Option(help="Which fold, where the split has several.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many images in each part: a smoke run.")] = None,
    warm_start: Annotated[
        list[Path] | None,
        typer.Option(
            help="Begin with the weights of a finished run or a .safetensors file; repeated, with their mean."
        ),
    ] = None,
    teachers: Annotated[
        list[str] | None,
        typer.Option(
            "--teacher",
            help="Learn from its answers too: a finished run, a model's published weights, local-dir:FOLDER.",
        ),
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    devices: Annotated[int, typer.Option(help="Processes on each machine.")] = 1,
    num_nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    compile_model: Annotated[bool, typer.Option("--compile", help="Compile the model.")] = False,
    channels_last: Annotated[bool, typer.Option(help="Channels-last memory format.")] = False,
    deterministic: Annotated[bool, typer.Option(help="Insist on operations that repeat bit by bit.")] = False,
    checkpoint_epochs: Annotated[int, typer.Option(help="Epochs between the checkpoints to resume from.")] = 1,
    checkpoints: Annotated[bool, typer.Option(help="Keep them, to go on with and when the run is over.")] = True,
    tensorboard: Annotated[bool, typer.Option(help="Write logs for TensorBoard.")] = True,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Train a model by a recipe; keep the best epoch; test it once."""
    job = Job(
        data=data,
        out=out,
        recipe=recipe,
        model=model,
        variant=variant,
        change=change,
        seed=seed,
        dataset=dataset,
        split_seed=split_seed,
        fold=fold,
        limit=limit,
        warm_start=warm_start,
        teachers=teachers,
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        precision=precision,
        compile_model=compile_model,
        channels_last=channels_last,
        deterministic=deterministic,
        checkpoint_epochs=checkpoint_epochs,
        checkpoints=checkpoints,
        tensorboard=tensorboard,
        progress=progress,
    )
    run = carry_out(job)
    if run.finished:
        _print_results(run.results, run.path)


def carry_out(job: Job, opener: Opener | None = None) -> RunFolder:
    """Do a job.

    Args:
        job: What to do.
        opener: From a path, a kind of dataset and a recipe to the dataset; by default it is opened anew.
    """
    import torch

    from ferattn.cli.teachers import open_teachers
    from ferattn.data import open_dataset
    from ferattn.data.opening import guess_kind
    from ferattn.errors import InvalidOption
    from ferattn.training import Machine, Teachers, fit, load_recipe, make_parts, warm_start
    from ferattn.training.lineage import earlier_configs, find_seen
    from ferattn.training.parts import own_division
    from ferattn.training.warm_start import distinct, origin

    named_weights = distinct(job.warm_start or ())  # before the data is read
    if not 0 <= job.seed < 2**31:
        raise InvalidOption(f"--seed {job.seed}: from 0 to 2147483647.")
    load_recipe(job.recipe, None, job.variant)  # misspelt names are told before the data is read
    kind = guess_kind(job.data) if job.dataset is None else job.dataset
    settings = settings_of(job, kind)
    named = asked(job, kind)
    for key in sorted({"distill_weight", "distill_temperature"} & (set() if job.teachers else named)):
        raise InvalidOption(f"{key} would change nothing: there is no --teacher.")
    for key, why in settings.without_effect().items():
        if key in _changes(job.change or []):
            raise InvalidOption(f"{key} would change nothing: {why}.")
    masters = open_teachers(job.teachers or (), settings.channels)
    machine = Machine(
        accelerator=job.accelerator,
        devices=job.devices,
        num_nodes=job.num_nodes,
        precision=job.precision,
        compile=job.compile_model,
        channels_last=job.channels_last,
        deterministic=job.deterministic,
        checkpoint_epochs=job.checkpoint_epochs if job.checkpoints else settings.epochs + 1,
        tensorboard=job.tensorboard,
        progress=job.progress,
    )
    build_model(job.model, settings, classes=7, pretrained=False)
    known: dict[str, tuple[float, ...]] = {}
    if settings.normalize == "model" and named_weights:  # as the weights know their images, not as random ones would
        known = _normalization(named_weights, settings.channels)
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    dataset = open_dataset(job.data, kind) if opener is None else opener(job.data, kind, settings)
    if kind == "folder" and "split" not in named:
        written = settings.split
        settings = own_division(settings, dataset)
        if settings.split != written:
            own = ", ".join(sorted(set(dataset.parts or ())))
            console.print(f"The folder's own parts are used: {own}. --set split={written} divides all images anew.")
        elif dataset.parts and settings.split != "official":
            own = ", ".join(sorted(set(dataset.parts)))
            console.print(
                f"The folder's own parts, {own}, are not used: training and test images are needed. All images are "
                f"divided anew: split={written}."
            )
    for line in [*settings.never_reached(), *_passed_over(job.model, settings, named)]:
        console.print(line)
    parts = make_parts(
        dataset,
        settings,
        seed=job.split_seed,
        fold=job.fold,
        limit=job.limit,
        subset_seed=job.seed,
        asked=named,
    )
    if job.limit is not None and len(parts.train) < settings.batch_size:
        settings = settings.changed({"batch_size": len(parts.train)})
    torch.manual_seed(job.seed)
    fresh = settings.pretrained and not named_weights
    network = build_model(job.model, settings, classes=len(parts.train.classes), pretrained=fresh)
    about: dict[str, Any] = {
        "model": job.model,
        "recipe_name": job.recipe,
        "variant": job.variant,
        "split_seed": job.split_seed,
        "fold": job.fold,
        "limit": job.limit,
    }
    began = [origin(path) for path in (_shipped_weights(network) if fresh else named_weights)]
    if began:
        about["warm_start"] = began if len(began) > 1 else began[0]
    seen = find_seen(parts, dataset, earlier_configs(about | {"teachers": [one.origin for one in masters]}))
    if seen is not None:
        parts = replace(parts, honest=False)
        console.print(f"Not honest: {seen}. The accuracy may be too good.")
    teachers = Teachers(masters, parts.train.classes, channels=settings.channels) if masters else None
    if named_weights:
        console.print(str(warm_start(network, named_weights, tuple(parts.train.classes))))
        described: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        described |= known
    run = fit(network, parts, settings, job.out, seed=job.seed, about=about, machine=machine, teachers=teachers)
    if run.finished and not job.checkpoints:
        shutil.rmtree(run.best.parent, ignore_errors=True)
    return run


def _normalization(began: Sequence[Path], channels: int) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation, by channel, of the images that weights know."""
    from ferattn.errors import InvalidOption
    from ferattn.training.warm_start import normalization

    first: dict[str, tuple[float, ...]] = {}
    for path in began:
        known = normalization(path)
        if known is None:
            raise InvalidOption(
                f"normalize='model': {path} does not say mean and standard deviation of its images. "
                "Options: the folder of a run that has them, or --set normalize=train."
            )
        known = {name: values * (channels // len(values)) for name, values in known.items()}
        first = first or known
        if any(abs(a - b) > _SAME_SCALE for name in first for a, b in zip(first[name], known[name], strict=True)):
            raise InvalidOption(
                f"normalize='model': {began[0]} knows images scaled by {_scale(first)}, {path} by {_scale(known)}. "
                "Options: runs whose images were scaled alike, or --set normalize=train."
            )
    return first


def _scale(known: dict[str, tuple[float, ...]]) -> str:
    return ", ".join(f"{name} {' / '.join(f'{value:g}' for value in values)}" for name, values in known.items())


def _shipped_weights(network: Any) -> list[Path]:
    """The file of the package that a model's weights were read from, if they were."""
    from ferattn.shipped import SHIPPED

    file = network.pretrained_cfg.get("file")
    return [Path(file)] if file and Path(file).parent.parent == Path(str(SHIPPED)) else []


def settings_of(job: Job, kind: str) -> Recipe:
    """The recipe of a job on a kind of dataset, an entry of ``ferattn.data.DATASETS``."""
    from ferattn.training import load_recipe

    return load_recipe(job.recipe, kind, job.variant).changed(_changes(job.change or []))


def asked(job: Job, kind: str) -> set[str]:
    """The settings that the user names, by ``--set`` or in a recipe's file of their own."""
    from ferattn.training import load_page

    named = set(_changes(job.change or []))
    if job.recipe.endswith(".toml"):
        page = load_page(job.recipe)
        named |= {*page.settings, *page.datasets.get(kind, {}), *page.variants.get(job.variant or "", {})}
    return named


def build_model(name: str, recipe: Recipe, *, classes: int, pretrained: bool) -> nn.Module:
    """The model of a name, for a recipe's pictures and with what the recipe says of stems and norms."""
    from ferattn import create_model
    from ferattn.backbones import has_norm, has_stem

    backbone = _backbone(name)
    options: dict[str, Any] = {"drop_rate": recipe.drop_rate} if recipe.drop_rate else {}
    if has_stem(backbone):
        options["stem"] = recipe.stem
    if recipe.norm == "batch" and not has_norm(backbone):
        options["norm_layer"] = "batchnorm2d"
    return create_model(
        name, pretrained, num_classes=classes, in_chans=recipe.channels, img_size=recipe.size, **options
    )


def _backbone(name: str) -> str:
    from ferattn.spec import ModelSpec, architecture_name

    return ModelSpec.parse(architecture_name(name)).backbone


def _passed_over(name: str, recipe: Recipe, named: Collection[str]) -> Iterator[str]:
    """What somebody asked for and this network has no place for; other networks of a grid may have."""
    from ferattn.backbones import has_norm, has_stem

    backbone = _backbone(name)
    if "stem" in named and recipe.stem != "own" and not has_stem(backbone):
        yield f"stem={recipe.stem!r} changes nothing: {backbone} has no stem."
    if "norm" in named and recipe.norm != "own" and has_norm(backbone):
        yield f"norm={recipe.norm!r} changes nothing: {backbone} has norms of its own."


def _changes(words: list[str]) -> dict[str, Any]:
    import tomllib

    from ferattn.errors import InvalidOption

    changes: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidOption(f"--set {word}: KEY=VALUE, such as epochs=3.")
        try:
            changes[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key.strip()] = value.strip()  # a word without its quotation marks
    return changes


def _print_results(results: dict[str, Any], path: Path) -> None:
    test = results["test"]
    low, high = test["accuracy_interval"]["low"], test["accuracy_interval"]["high"]
    Console(soft_wrap=True, highlight=False).print(
        f"{path}: epoch {results['best_epoch'] + 1} of {results['epochs']} was best; {test['dataset']}: accuracy "
        f"{test['accuracy']:.2%} ({low:.2%} to {high:.2%}), {test['images']} images; classes: "
        f"{', '.join(test['classes'])}",
        markup=False,
    )
