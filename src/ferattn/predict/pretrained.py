"""Networks that classify emotions, with what belongs to their weights: classes, scaling, temperature."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm

from ferattn.data import AUGMENTATIONS, BatchTransform, Standardize
from ferattn.data.contrast import mostly
from ferattn.errors import InvalidOption
from ferattn.factory import create_model, register
from ferattn.shipped import read_config, read_folder, shipped_names
from ferattn.spec import ModelSpec, architecture_name

__all__ = ["Pretrained", "open_pretrained", "read_shipment"]


@dataclass(frozen=True)
class Pretrained:
    """A network with weights that classify emotions, and what belongs to them.

    Attributes:
        model: From images to logits, on the CPU, in evaluation mode.
        transform: From 8-bit images to what the model sees.
        classes: Names of the outputs.
        temperature: By which logits are divided for calibrated probabilities; None where it was not fitted.
        size: Height and width of the images in pixels.
        channels: 1 for gray, 3 for colour.
        name: Of the weights.
        equalised: Whether the pictures that the weights learnt from were histogram-equalised; None if nobody knows.
    """

    model: Any
    transform: BatchTransform
    classes: tuple[str, ...]
    temperature: float | None
    size: tuple[int, int]
    channels: int
    name: str
    equalised: bool | None


def open_pretrained(name: str) -> Pretrained:
    """A model with its published weights.

    Args:
        name: Of a model whose weights classify emotions, such as ``"cnn_se"``; or, as timm has it, ``"local-dir:"``
            and the path of a folder that ``ferattn ship`` wrote.

    Raises:
        InvalidOption: If its weights have no classifier of emotions.
        UnknownChoice: If there is no such model.
        WeightsMismatch: If the files are damaged.
    """
    kind, _, path = name.partition(":")
    local = kind == "local-dir"
    if not local and str(ModelSpec.parse(architecture_name(name))) not in shipped_names():
        raise InvalidOption(
            f"{name}: no weights that classify emotions come with it. Options: {', '.join(shipped_names())}, or "
            "local-dir:FOLDER with what `ferattn ship` wrote."
        )
    shipped = read_shipment(Path(path)) if local else read_config(name.partition(".")[0]) or {}
    of_shipped = shipped.get("pretrained_cfg", {})
    channels, height, width = of_shipped.get("input_size") or (1, 48, 48)
    model: Any
    if local:
        register(
            architecture_name(shipped["architecture"])
        )  # timm opens what it knows, and it may be none of list_models()
        model = timm.create_model(name, pretrained=True)
    else:
        outputs = shipped.get("num_classes", 7)
        model = create_model(name, True, num_classes=outputs, in_chans=channels, img_size=(height, width))
    about, report = model.pretrained_cfg, model.load_report
    classes = tuple(about.get("label_names") or ())
    if len(classes) != model.num_classes or any(key.startswith(f"{about['classifier']}.") for key in report.new):
        raise InvalidOption(f"{name}: its weights ({report.source}) come without a classifier of emotions.")
    normalize = Standardize(tuple(about["mean"]), tuple(about["std"]))
    transform = BatchTransform(AUGMENTATIONS["none"], normalize, size=(height, width))
    ours = shipped.get("ferattn", {}) if of_shipped.get("tag") == about.get("tag") else {}
    return Pretrained(
        model=model.eval(),
        transform=transform.eval(),
        classes=classes,
        temperature=ours.get("temperature"),
        size=(height, width),
        channels=channels,
        name=f"{about['architecture']}.{about['tag']}" if about.get("tag") else report.source,
        equalised=mostly(ours.get("equalised_share")),
    )


def read_shipment(folder: Path) -> dict[str, Any]:
    """The config of a folder of weights that ``ferattn ship`` wrote.

    Raises:
        InvalidOption: If it is none.
        WeightsMismatch: If the file is damaged.
    """
    config = read_folder(folder) or {}
    if not {"architecture", "label_names", "pretrained_cfg", "ferattn"} <= config.keys():
        raise InvalidOption(f"local-dir:{folder}: not a folder of weights that `ferattn ship` wrote.")
    return config
