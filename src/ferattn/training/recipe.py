"""Recipes as data: one TOML file each, with what the paper says, what it leaves open and what was chosen."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ferattn.data import AUGMENTATIONS, DATASETS
from ferattn.errors import InvalidInput, InvalidOption, UnknownChoice, choose
from ferattn.stems import STEMS

__all__ = ["OPTIMIZERS", "SCHEDULES", "Recipe", "RecipePage", "list_recipes", "load_page", "load_recipe"]

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "plateau", "steps", "cosine", "one-cycle")
NORMALIZATIONS = ("none", "train", "model")
MONITORS = ("val_loss", "val_accuracy")
NORMS = ("own", "batch")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what a training run does, machine and seed aside.

    Attributes:
        split: How the data is divided, an entry of ``ferattn.data.SPLITS``.
        select_on: The part on which the best epoch is chosen.
        test_on: The part that is tested at the end.
        validation_fraction: Share of the training images that is set aside as ``select_on``; 0 for none.
        train_fraction: Share of the training images that is learnt from, of every class alike; the subset depends on
            the training seed, and a smaller one is part of a larger one.
        size: Height and width of the picture in pixels.
        channels: 1 for grey, 3 for colour.
        pretrained: Whether to start from the model's published weights.
        stem: How a residual network begins: ``"own"``, or ``"small"``, without its first two halvings, for pictures
            of 32 to 64 pixels. Other networks have no such stem and stay as they are.
        norm: ``"batch"`` gives ``cnn`` and the VGGs, which have no norms of their own, batch norm; ``"own"`` nothing.
        placement: Where the attention blocks go, an entry of ``ferattn.placements.PLACEMENTS`` or such as
            ``"conv:11,14"``; ``"own"`` is the model's usual one.
        augmentation: An entry of ``ferattn.data.AUGMENTATIONS``.
        normalize: ``"none"`` (1/255 only), ``"train"`` (mean and standard deviation of the training images) or
            ``"model"`` (those of the model's weights).
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"`` (with Nesterov momentum).
        lr: Largest learning rate.
        momentum: Of SGD.
        weight_decay: Of the optimizer.
        layer_decay: Factor on the learning rate for each layer below the last; 1 for none.
        batch_size: Images in a step, over all processes together.
        epochs: At most.
        schedule: What the learning rate does: ``"constant"``, ``"plateau"``, ``"steps"``, ``"cosine"`` or
            ``"one-cycle"``.
        warmup_epochs: Epochs over which the learning rate rises from 0 at the start (constant, steps, cosine).
        step_epochs: Epochs at which it changes, with ``"steps"``.
        step_factors: Its share of ``lr`` from each of them on.
        plateau_monitor: What has to stop improving, with ``"plateau"``.
        plateau_factor: What the learning rate is then multiplied with.
        plateau_patience: Epochs without improvement that are let pass before.
        lr_min: No lower, with ``"plateau"``.
        stop_monitor: What has to improve for training to go on, where ``patience`` is set.
        patience: Epochs without improvement before training stops; 0 for never.
        keep: What makes an epoch the best: ``"val_accuracy"`` or ``"val_loss"``.
        label_smoothing: Share of each label that is spread over all classes.
        class_weights: Whether rare classes count more, in inverse proportion to their number.
        mix_off_epochs: Last epochs without mixup and CutMix.
        clip_norm: Longest gradient; 0 for any.
        ema_decay: Of the moving average of the weights; 0 for none.
        drop_rate: Dropout before the classifier.
        distill_weight: Share of the loss that is about the teachers' answers, in a run that has teachers.
        distill_temperature: By which its logits and the teachers' are divided for that.

    Raises:
        InvalidOption: If a value is impossible, or contradicts another.
        UnknownChoice: If a name is none of the choices.
    """

    split: str = "official"
    select_on: str = "validation"
    test_on: str = "test"
    validation_fraction: float = 0.0
    train_fraction: float = 1.0
    size: int = 48
    channels: int = 1
    pretrained: bool = False
    stem: str = "own"
    norm: str = "own"
    placement: str = "own"
    augmentation: str = "none"
    normalize: str = "none"
    optimizer: str = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    batch_size: int = 64
    epochs: int = 100
    schedule: str = "constant"
    warmup_epochs: int = 0
    step_epochs: tuple[int, ...] = ()
    step_factors: tuple[float, ...] = ()
    plateau_monitor: str = "val_loss"
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    lr_min: float = 0.0
    stop_monitor: str = "val_loss"
    patience: int = 0
    keep: str = "val_accuracy"
    label_smoothing: float = 0.0
    class_weights: bool = False
    mix_off_epochs: int = 0
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    drop_rate: float = 0.0
    distill_weight: float = 0.9
    distill_temperature: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_type(field.name, getattr(self, field.name), field.default)
        choices = {
            "optimizer": OPTIMIZERS,
            "schedule": SCHEDULES,
            "normalize": NORMALIZATIONS,
            "stem": STEMS,
            "norm": NORMS,
            "plateau_monitor": MONITORS,
            "stop_monitor": MONITORS,
            "keep": MONITORS,
        }
        for name, options in choices.items():
            choose(dict.fromkeys(options), getattr(self, name), name)
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InvalidOption(f"{name}={getattr(self, name)!r}: from {low:g} to {high:g}.")
        if self.channels not in (1, 3):
            raise InvalidOption(f"channels={self.channels!r}: 1 for grey or 3 for colour.")
        if self.warmup_epochs >= self.epochs and self.warmup_epochs:
            raise InvalidOption(f"warmup_epochs={self.warmup_epochs!r}: fewer than the epochs ({self.epochs}).")
        if self.warmup_epochs and self.schedule in ("plateau", "one-cycle"):
            raise InvalidOption(f"warmup_epochs={self.warmup_epochs!r}: the schedule {self.schedule!r} has none.")
        if len(self.step_epochs) != len(self.step_factors) or list(self.step_epochs) != sorted(set(self.step_epochs)):
            raise InvalidOption(
                f"step_epochs={self.step_epochs}, step_factors={self.step_factors}: rising epochs, a factor for each."
            )
        if bool(self.step_epochs) != (self.schedule == "steps"):
            raise InvalidOption(f"step_epochs={self.step_epochs}: needed with the schedule 'steps', and only there.")
        if not all(factor > 0 for factor in self.step_factors):
            raise InvalidOption(f"step_factors={self.step_factors}: shares of lr, more than 0.")
        if self.layer_decay != 1 and self.optimizer != "adamw":
            raise InvalidOption(f"layer_decay={self.layer_decay!r}: works with the optimizer 'adamw' only.")

    @property
    def open_ended(self) -> bool:
        """Whether no epoch depends on how many there will be, so that a run may get more or fewer."""
        return self.schedule not in ("cosine", "one-cycle") and not self.mix_off_epochs

    def never_reached(self) -> list[str]:
        """What a run that was shortened is short of, a line for each."""
        lines = []
        late = [epoch for epoch in self.step_epochs if epoch >= self.epochs]
        if late:
            told = ", ".join(map(str, late))
            lines.append(
                f"epochs={self.epochs}: the changes of the learning rate at {told} (step_epochs) never come."
            )
        mixing = self.augmentation in AUGMENTATIONS and AUGMENTATIONS[self.augmentation].mixes
        if mixing and self.mix_off_epochs >= self.epochs:
            lines.append(f"epochs={self.epochs}: no epoch is mixed (mix_off_epochs={self.mix_off_epochs}).")
        return lines

    def without_effect(self) -> dict[str, str]:
        """Settings that change nothing beside the others, by name, and why."""
        found: dict[str, str] = {}
        if self.optimizer != "sgd":
            found["momentum"] = f"it is SGD's, and the optimizer is {self.optimizer!r}"
        elif self.schedule == "one-cycle":
            found["momentum"] = "the schedule 'one-cycle' takes it from 0.95 to 0.85 and back"
        if self.schedule != "plateau":
            why = f"it is for plateaus, and the schedule is {self.schedule!r}"
            found |= dict.fromkeys(("lr_min", "plateau_factor", "plateau_monitor", "plateau_patience"), why)
        if not self.patience:
            found["stop_monitor"] = "training stops early only with a patience"
        if self.augmentation in AUGMENTATIONS and not AUGMENTATIONS[self.augmentation].mixes:
            found["mix_off_epochs"] = f"the augmentation {self.augmentation!r} does not mix"
        return found

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """The same recipe with other values.

        Raises:
            UnknownChoice: If a key does not exist.
            InvalidOption: If a value is impossible.
        """
        known = {field.name: field for field in fields(self)}
        for key in changes:
            choose(known, key, "key of a recipe")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()
        }
        for key, value in values.items():  # TOML writes 1 where 1.0 is meant
            if isinstance(known[key].default, float) and isinstance(value, int) and not isinstance(value, bool):
                values[key] = float(value)
        if values.get("schedule", "steps") != "steps":  # another schedule takes the steps with it
            values = {"step_epochs": (), "step_factors": ()} | values
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_RANGES: dict[str, tuple[float, float]] = {
    "validation_fraction": (0, 0.9),
    "train_fraction": (1e-4, 1),
    "size": (8, 4096),
    "lr": (1e-12, 100),
    "momentum": (0, 1),
    "weight_decay": (0, 10),
    "layer_decay": (1e-3, 1),
    "batch_size": (1, 1e6),
    "epochs": (1, 1e6),
    "warmup_epochs": (0, 1e6),
    "plateau_factor": (1e-6, 0.999999),
    "plateau_patience": (0, 1e6),
    "lr_min": (0, 100),
    "patience": (0, 1e6),
    "label_smoothing": (0, 0.999999),
    "mix_off_epochs": (0, 1e6),
    "clip_norm": (0, 1e9),
    "ema_decay": (0, 0.9999999),
    "drop_rate": (0, 0.999999),
    "distill_weight": (1e-6, 1),
    "distill_temperature": (0.01, 100),
}


@dataclass(frozen=True)
class RecipePage:
    """A recipe's file.

    Attributes:
        name: The file's.
        summary: One line.
        source: The paper.
        says: What the paper says, by topic.
        chose: What it leaves open and what was chosen, by topic.
        settings: For every dataset and variant.
        datasets: What differs on a dataset.
        variants: What differs in a variant.
    """

    name: str
    summary: str
    source: str
    says: Mapping[str, str]
    chose: Mapping[str, str]
    settings: Mapping[str, Any]
    datasets: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]

    def recipe(self, dataset: str | None = None, variant: str | None = None) -> Recipe:
        """The settings for one dataset and variant.

        Raises:
            UnknownChoice: If there is no such variant, or a key of the file does not exist.
            InvalidOption: If a value is impossible.
        """
        if variant is not None and not self.variants:
            raise UnknownChoice(f"unknown variant {variant!r}: the recipe {self.name} has none.")
        changes = {} if variant is None else choose(self.variants, variant, f"variant of {self.name}")
        settings = {**self.settings, **self.datasets.get(dataset or "", {}), **changes}
        return Recipe().changed(settings)


def list_recipes() -> list[str]:
    """The names of the recipes in the package.

    >>> list_recipes()
    ['chap2021', 'finetune', 'luo2023', 'miskow2022', 'strong']
    """
    folder = resources.files("ferattn.training") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_page(name: str) -> RecipePage:
    """A recipe of the package by its name, or one of your own by the path of its TOML file.

    Raises:
        UnknownChoice: If there is no such recipe, or the file has other tables, datasets or keys than a recipe.
        InvalidOption: If a value is impossible, for any dataset and variant.
        InvalidInput: If the file cannot be read or is no recipe.
    """
    if name.endswith(".toml"):
        path = Path(name)
        try:
            text, name = path.read_text(encoding="utf-8"), path.stem
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{path}: cannot be read ({error}).") from error
    else:
        choose(dict.fromkeys(list_recipes()), name, "recipe")
        text = (resources.files("ferattn.training") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{name}.toml: {error}.") from error
    tables = ("summary", "source", "says", "chose", "settings", "dataset", "variant")
    for key in content:
        choose(dict.fromkeys(tables), key, f"table of {name}.toml")
    if not isinstance(content.get("settings"), dict):
        raise InvalidInput(f"{name}.toml: there is no table [settings].")
    for key in tables[2:]:
        if not isinstance(content.get(key, {}), dict):
            raise InvalidInput(f"{name}.toml: {key} = {content[key]!r}; a table [{key}] is needed.")
    datasets, variants = content.get("dataset", {}), content.get("variant", {})
    for kind, group in (("dataset", datasets), ("variant", variants)):
        for entry, settings in group.items():
            if not isinstance(settings, dict):
                raise InvalidInput(f"{name}.toml: {kind}.{entry} = {settings!r}; a table [{kind}.{entry}] is needed.")
    for entry in datasets:
        choose(DATASETS, entry, f"dataset of {name}.toml")
    page = RecipePage(
        name,
        str(content.get("summary", "")),
        str(content.get("source", "")),
        content.get("says", {}),
        content.get("chose", {}),
        content["settings"],
        datasets,
        variants,
    )
    for entry in (None, *datasets):  # refuses unknown keys and what contradicts itself now
        for variant in (None, *variants):
            page.recipe(entry, variant)
    return page


def load_recipe(name: str, dataset: str | None = None, variant: str | None = None) -> Recipe:
    """The settings of a recipe for one dataset and variant.

    Args:
        name: See :func:`list_recipes`; or the path of a TOML file.
        dataset: The kind of dataset, an entry of ``ferattn.data.DATASETS``.
        variant: Such as ``"one-cycle"``.

    >>> load_recipe("miskow2022", "jaffe").batch_size
    4
    """
    return load_page(name).recipe(dataset, variant)


def _require_type(name: str, value: Any, default: Any) -> None:
    kind = float if isinstance(default, float) else type(default)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InvalidOption(f"{name}={value!r}: like {default!r}, please.")
    if isinstance(value, tuple) and not all(isinstance(x, (int, float)) for x in value):
        raise InvalidOption(f"{name}={value!r}: a list of numbers.")
