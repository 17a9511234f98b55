"""A run as ``ferattn train`` and ``ferattn study`` order it: from what was asked for to a finished folder.

Importing this brings PyTorch and Lightning; the commands import it when they are called.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ferattn import create_model, shipped
from ferattn.backbones import has_norm, has_stem
from ferattn.cli.teachers import open_teachers
from ferattn.data import FaceDataset, open_dataset
from ferattn.data.opening import guess_kind
from ferattn.errors import InvalidOption
from ferattn.spec import ModelSpec, architecture_name
from ferattn.training import Machine, Recipe, RunFolder, Teachers, fit, load_page, load_recipe, make_parts, warm_start
from ferattn.training.lineage import earlier_configs, find_seen
from ferattn.training.parts import own_division
from ferattn.training.warm_start import distinct, normalization, origin

__all__ = ["Job", "asked", "build_model", "carry_out", "settings_of"]

Opener = Callable[[Path, str, Recipe], FaceDataset]

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


def carry_out(job: Job, opener: Opener | None = None) -> RunFolder:
    """Do a job.

    Args:
        job: What to do.
        opener: From a path, a kind of dataset and a recipe to the dataset; by default it is opened anew.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    began = distinct(job.warm_start or ())
    if not 0 <= job.seed < 2**31:
        raise InvalidOption(f"--seed {job.seed}: from 0 to 2147483647.")
    load_recipe(job.recipe, None, job.variant)  # misspelt names are told before the data is read
    kind = guess_kind(job.data) if job.dataset is None else job.dataset
    settings, named = settings_of(job, kind), asked(job, kind)
    _require_effect(job, settings, named)
    masters = open_teachers(job.teachers or (), settings.channels)
    machine = _machine(job, settings)
    build_model(job.model, settings, classes=7, pretrained=False)
    scale: Mapping[str, tuple[float, ...]] = {}
    if settings.normalize == "model" and began:  # as the weights know their images, not as random ones would
        scale = _normalization(began, settings.channels)

    dataset = open_dataset(job.data, kind) if opener is None else opener(job.data, kind, settings)
    if kind == "folder" and "split" not in named:
        settings = _own_parts(settings, dataset, console)
    for line in [*settings.never_reached(), *_passed_over(job.model, settings, named)]:
        console.print(line)
    parts = make_parts(
        dataset, settings, seed=job.split_seed, fold=job.fold, limit=job.limit, subset_seed=job.seed, asked=named
    )
    if job.limit is not None and len(parts.train) < settings.batch_size:
        settings = settings.changed({"batch_size": len(parts.train)})

    torch.manual_seed(job.seed)
    fresh = settings.pretrained and not began
    network = build_model(job.model, settings, classes=len(parts.train.classes), pretrained=fresh)
    about = _about(job, _shipped_weights(network) if fresh else began)
    seen = find_seen(parts, dataset, earlier_configs(about | {"teachers": [one.origin for one in masters]}))
    if seen is not None:
        parts = replace(parts, honest=False)
        console.print(f"Not honest: {seen}. The accuracy may be too good.")
    teachers = Teachers(masters, parts.train.classes, channels=settings.channels) if masters else None
    if began:
        console.print(str(warm_start(network, began, tuple(parts.train.classes))))
        described: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment]
        described |= scale
    run = fit(network, parts, settings, job.out, seed=job.seed, about=about, machine=machine, teachers=teachers)
    if run.finished and not job.checkpoints:
        shutil.rmtree(run.best.parent, ignore_errors=True)
    return run


def _require_effect(job: Job, settings: Recipe, named: Collection[str]) -> None:
    """Refuse what would change nothing."""
    for key in sorted({"distill_weight", "distill_temperature"} & (set() if job.teachers else set(named))):
        raise InvalidOption(f"{key} would change nothing: there is no --teacher.")
    for key, why in settings.without_effect().items():
        if key in _changes(job.change or []):
            raise InvalidOption(f"{key} would change nothing: {why}.")


def _machine(job: Job, settings: Recipe) -> Machine:
    return Machine(
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


def _own_parts(settings: Recipe, dataset: FaceDataset, console: Console) -> Recipe:
    """Keep a folder's own division where it has one; says so, and what becomes of parts that are none."""
    divided, own = own_division(settings, dataset), ", ".join(sorted(set(dataset.parts or ())))
    if divided.split != settings.split:
        console.print(
            f"The folder's own parts are used: {own}. --set split={settings.split} divides all images anew."
        )
    elif own and divided.split != "official":
        console.print(
            f"The folder's own parts, {own}, are not used: training and test images are needed. All images are "
            f"divided anew: split={divided.split}."
        )
    return divided


def _about(job: Job, began: Sequence[Path]) -> dict[str, Any]:
    """What a run's config says beside the recipe, the machine and the data."""
    about: dict[str, Any] = {
        "model": job.model,
        "recipe_name": job.recipe,
        "variant": job.variant,
        "split_seed": job.split_seed,
        "fold": job.fold,
        "limit": job.limit,
    }
    origins = [origin(path) for path in began]
    if origins:
        about["warm_start"] = origins if len(origins) > 1 else origins[0]
    return about


def _normalization(began: Sequence[Path], channels: int) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation, by channel, of the images that weights know."""
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
    file = network.pretrained_cfg.get("file")
    return [Path(file)] if file and Path(file).parent.parent == Path(str(shipped.SHIPPED)) else []


def settings_of(job: Job, kind: str) -> Recipe:
    """The recipe of a job on a kind of dataset, an entry of ``ferattn.data.DATASETS``."""
    return load_recipe(job.recipe, kind, job.variant).changed(_changes(job.change or []))


def asked(job: Job, kind: str) -> set[str]:
    """The settings that the user names, by ``--set`` or in a recipe's file of their own."""
    named = set(_changes(job.change or []))
    if job.recipe.endswith(".toml"):
        page = load_page(job.recipe)
        named |= {*page.settings, *page.datasets.get(kind, {}), *page.variants.get(job.variant or "", {})}
    return named


def build_model(name: str, recipe: Recipe, *, classes: int, pretrained: bool) -> nn.Module:
    """The model of a name, for a recipe's pictures and with what the recipe says of stems, norms and placements."""
    backbone = _spec(name).backbone
    options: dict[str, Any] = {"drop_rate": recipe.drop_rate} if recipe.drop_rate else {}
    if has_stem(backbone):
        options["stem"] = recipe.stem
    if recipe.norm == "batch" and not has_norm(backbone):
        options["norm_layer"] = "batchnorm2d"
    if recipe.placement != "own" and _spec(name).attention is not None:
        options["placement"] = recipe.placement
    return create_model(
        name, pretrained, num_classes=classes, in_chans=recipe.channels, img_size=recipe.size, **options
    )


def _spec(name: str) -> ModelSpec:
    return ModelSpec.parse(architecture_name(name))


def _passed_over(name: str, recipe: Recipe, named: Collection[str]) -> Iterator[str]:
    """What somebody asked for and this network has no place for; other networks of a grid may have."""
    backbone = _spec(name).backbone
    if "stem" in named and recipe.stem != "own" and not has_stem(backbone):
        yield f"stem={recipe.stem!r} changes nothing: {backbone} has no stem."
    if "norm" in named and recipe.norm != "own" and has_norm(backbone):
        yield f"norm={recipe.norm!r} changes nothing: {backbone} has norms of its own."
    if "placement" in named and recipe.placement != "own" and _spec(name).attention is None:
        yield f"placement={recipe.placement!r} changes nothing: {name} has no attention."


def _changes(words: list[str]) -> dict[str, Any]:
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
