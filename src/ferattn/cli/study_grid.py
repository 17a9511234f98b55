"""What a study trains: every combination of a grid, which is a TOML file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ferattn.training import Recipe

__all__ = ["Cell", "Grid", "load_grid"]

_KEYS: dict[str, Any] = {
    "data": "",
    "recipe": "",
    "variant": "",
    "backbones": [],
    "attentions": ["none"],
    "activations": ["own"],
    "placements": ["own"],
    "fractions": [1.0],
    "seeds": [0],
    "limit": 0,
    "set": {},
    "train": [],
}


_AXES = {"train_fraction": "fractions", "placement": "placements"}
"""Settings of a recipe that a grid has lists of."""


@dataclass(frozen=True)
class Cell:
    """One combination of a grid.

    Attributes:
        backbone: Its name.
        attention: Its name, or ``"none"``.
        activation: Its name, or ``"own"``.
        fraction: Share of the training images.
        placement: Of the attention blocks; ``"own"``, the model's usual one, where there are none.
    """

    backbone: str
    attention: str
    activation: str
    fraction: float = 1.0
    placement: str = "own"

    @property
    def model(self) -> str:
        """The model's name."""
        parts = (self.backbone, self.attention, self.activation)
        return "_".join(part for part in parts if part not in ("none", "own"))

    @property
    def network(self) -> str:
        """The model's name, and the placement where it is not the usual one."""
        return self.model if self.placement == "own" else f"{self.model} {self.placement}"

    @property
    def name(self) -> str:
        """The network, with the share of the training images where it is not all of them."""
        return self.network if self.fraction == 1 else f"{self.network} {100 * self.fraction:g} %"

    def folder(self, seed: int) -> str:
        """What the run with this seed is called."""
        network = re.sub(r"[^\w.-]+", "-", self.network)
        return f"{network}{'' if self.fraction == 1 else f'-{self.fraction:g}'}-seed{seed}"


@dataclass(frozen=True)
class Grid:
    """What a study trains.

    Attributes:
        data: The dataset; a relative path counts from the grid's file.
        recipe: For every cell.
        cells: Every combination.
        seeds: For every cell the same, so that comparisons are paired.
        options: Further words of ``ferattn train``.
        asked: The recipe's name, variant, limit and settings, as the grid says them.
    """

    data: Path
    recipe: str
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    options: tuple[str, ...]
    asked: Mapping[str, Any]

    def changed(self, settings: Mapping[str, Any]) -> Grid:
        """The same grid with other values of the recipe."""
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={_toml(value)}")]
        asked = {**self.asked, "set": {**self.asked["set"], **settings}}
        return replace(self, options=(*self.options, *words), asked=asked)


def load_grid(path: Path) -> Grid:
    """Read a grid and check every name in it.

    Raises:
        InvalidInput: If the file cannot be read or lacks something, or a model has no such placement.
        UnknownChoice: If a key, a model or the recipe does not exist.
    """
    import tomllib

    from ferattn.errors import InvalidInput, choose
    from ferattn.spec import ModelSpec
    from ferattn.training import Recipe, load_page
    from ferattn.training.folder import recipe_label

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
    if content["recipe"].endswith(".toml"):  # a file counts from the grid's own, as the data does
        content["recipe"] = str((path.parent / content["recipe"]).resolve())
    variant = content["variant"] or None
    page = load_page(content["recipe"])
    recipe = page.recipe(None, variant).changed(content["set"])
    for key, axis in _AXES.items():
        if key in content["set"]:
            raise InvalidInput(f"{path}: set.{key}; {axis} = [...] of the grid says it.")
        for kind in (None, *page.datasets):
            if getattr(page.recipe(kind, variant), key) != getattr(Recipe(), key):
                raise InvalidInput(f"{path}: the recipe sets {key}; {axis} = [...] of the grid says it.")
    for key in ("backbones", "attentions", "activations", "placements"):
        names = content[key]
        if not names or len(set(map(str, names))) != len(names) or not all(isinstance(name, str) for name in names):
            raise InvalidInput(f"{path}: {key} = {names!r}; different names.")
    if content["limit"] < 0:
        raise InvalidInput(f"{path}: limit = {content['limit']}; 1 or more, or 0 for all images.")
    fractions = content["fractions"]
    numbers = all(isinstance(part, int | float) and part is not True and 0 < part <= 1 for part in fractions)
    if not fractions or not numbers or len(set(fractions)) != len(fractions):
        raise InvalidInput(f"{path}: fractions = {fractions!r}; different numbers above 0, up to 1.")
    every = itertools.product(*(content[key] for key in ("backbones", "attentions", "activations", "placements")))
    cells = tuple(
        dict.fromkeys(  # without attention there is nothing to place
            Cell(backbone, attention, activation, float(fraction), "own" if attention == "none" else placement)
            for backbone, attention, activation, placement in every
            for fraction in fractions
        )
    )
    for cell in cells:
        ModelSpec.parse(cell.model)
    for cell in {replace(cell, fraction=1.0) for cell in cells if cell.placement != "own"}:
        _require_placement(cell, recipe, path)
    if len({cell.folder(0) for cell in cells}) < len(cells):
        raise InvalidInput(f"{path}: placements = {content['placements']!r}; two of them are one.")
    _require_further_words(content["train"], path)
    options = [*content["train"]]
    options += ["--variant", variant] if variant else []
    options += ["--limit", str(content["limit"])] if content["limit"] else []
    for key, value in content["set"].items():
        options += ["--set", f"{key}={_toml(value)}"]
    asked = {
        "recipe_name": recipe_label(content["recipe"]),
        "variant": variant,
        "limit": content["limit"] or None,
        "set": content["set"],
    }
    data = (path.parent / content["data"]).resolve()
    return Grid(data, content["recipe"], cells, tuple(seeds), tuple(map(str, options)), asked)


def _require_placement(cell: Cell, recipe: Recipe, path: Path) -> None:
    """Refuse what is no place of the model's, and its usual one by another name."""
    from ferattn.cli.jobs import build_model
    from ferattn.errors import FerattnError, InvalidInput
    from ferattn.placements import default_placement
    from ferattn.shapes import shapes_only

    try:
        with shapes_only():
            model = build_model(
                cell.model, recipe.changed({"placement": cell.placement}), classes=7, pretrained=False
            )
    except FerattnError as error:
        raise InvalidInput(f"{path}: placements: {error}") from error
    if default_placement(model) == cell.placement:
        raise InvalidInput(f"{path}: placements: {cell.placement} is {cell.model}'s usual one; write 'own'.")


def _require_further_words(words: list[Any], path: Path) -> None:
    """Refuse words of ``ferattn train`` that do not exist, or that would overrule what the grid says of each run."""
    from ferattn.cli.workers import job_of
    from ferattn.errors import InvalidInput, InvalidOption

    own = {"data": "-", "out": "-", "recipe": "-", "model": "-", "seed": "-1"}
    try:
        job = job_of([*(word for name, value in own.items() for word in (f"--{name}", value)), *map(str, words)])
    except InvalidOption as error:
        raise InvalidInput(f"{path}: train = {words!r}; {error}") from error
    taken = [f"--{name}" for name, value in own.items() if str(getattr(job, name)) != value]
    taken += [f"--set {change}" for change in job.change or [] if change.partition("=")[0].strip() in _AXES]
    for name in ("devices", "num_nodes"):
        if getattr(job, name) > 1:
            raise InvalidInput(
                f"{path}: train = {words!r}; --{name.replace('_', '-')}: a study gives each run one device, and runs "
                "side by side."
            )
    if taken:
        raise InvalidInput(f"{path}: train = {words!r}; {', '.join(taken)}: other keys of the grid say it.")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if not isinstance(value, str) else value
