"""The weights that come with the package: one folder for each model, in the form of timm's hub and of local-dir.

A folder holds ``config.json``, ``model.safetensors`` (half precision), ``README.md`` (the model card) and
``curves.png``. ``ferattn ship`` makes it from a finished run; whatever it says of the weights is read from there.
"""

from __future__ import annotations

import json
import os
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from ferattn.errors import WeightsMismatch

__all__ = ["SHIPPED", "describe", "read_config", "read_folder", "shipped_names"]

SHIPPED: Traversable = resources.files("ferattn") / "pretrained"
"""Where the folders lie."""


def shipped_names() -> list[str]:
    """The models whose weights come with the package."""
    if not SHIPPED.is_dir():
        return []
    return sorted(folder.name for folder in SHIPPED.iterdir() if (folder / "config.json").is_file())


def read_config(name: str) -> dict[str, Any] | None:
    """The config of a model's shipped weights; None if there are none.

    Raises:
        WeightsMismatch: If the file is damaged.
    """
    return read_folder(SHIPPED / name)


def read_folder(folder: Traversable) -> dict[str, Any] | None:
    """The config in a folder of weights; None if there is none.

    Raises:
        WeightsMismatch: If the file is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsMismatch(f"the shipped weights of {folder.name} are damaged: {file} ({error}).") from error
    return config


def describe(name: str) -> dict[str, Any] | None:
    """The shipped weights of a model as timm's ``pretrained_cfg``, its ``file`` included; None if there are none.

    Raises:
        WeightsMismatch: If the config is damaged.
    """
    config = read_config(name)
    if config is None:
        return None
    try:
        description = {key: tuple(value) if isinstance(value, list) else value
                       for key, value in config["pretrained_cfg"].items()}  # fmt: skip
        label_names = tuple(config["label_names"])
        num_classes = config["num_classes"]
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsMismatch(f"the shipped weights of {name} are damaged: config.json ({error!r}).") from error
    weights = SHIPPED / name / "model.safetensors"
    # timm opens a path. Packages are installed as folders; from a zip there would be none to open.
    file = os.fspath(weights) if isinstance(weights, os.PathLike) else None
    return description | {"file": file, "label_names": label_names, "num_classes": num_classes}
