"""A finished run as a folder to give away: half-precision weights, a config that timm reads, a card, the curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.files import write_atomically
from ferattn.training.predictions import Predictions

__all__ = ["Rounding", "compare_rounded", "halve", "read_curves", "write_shipment"]

_TOLERANCE = 2**-7
"""Largest change of the logits, as a share of their size, that rounding or another device may make.

Half precision keeps 11 bits. A network of n layers that are rounded independently changes by about sqrt(n) / 2**12,
which is 2**-10 for 16 layers; another device's convolutions (TF32: 11 bits too) change it as much.
"""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What half precision did to a model's answers on its own test set.

    Attributes:
        images: Of the test set.
        logit_change: Root mean square of the change, as a share of the logits' own.
        largest_logit_change: The largest change of a single logit.
        answers_changed: Images to which the rounded model gives another answer.
        accuracy_before: Of the run's saved predictions.
        accuracy_after: Of the rounded weights.
    """

    images: int
    logit_change: float
    largest_logit_change: float
    answers_changed: int
    accuracy_before: float
    accuracy_after: float


def halve(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in half precision; whole numbers, such as a norm's count of batches, stay.

    Raises:
        WeightsMismatch: If a weight is not finite, or too large for half precision.
    """
    halved = {}
    for key, value in weights.items():
        halved[key] = value.detach().cpu().contiguous()
        if value.is_floating_point():
            halved[key] = halved[key].half()
            if not halved[key].isfinite().all():
                raise WeightsMismatch(f"{key}: not finite in half precision; its largest is {value.abs().max():g}.")
    return halved


def compare_rounded(saved: Predictions, after: Predictions, what: str) -> Rounding:
    """How far a model's answers are from those that its run saved.

    Args:
        saved: The run's predictions.
        after: Of the same images.
        what: Which weights gave ``after``, for the message.

    Raises:
        InvalidInput: If the two are not about the same images.
        WeightsMismatch: If they differ by more than rounding can explain.
    """
    after = after.aligned(saved)
    change = (after.logits - saved.logits).astype(np.float64)
    share = float(np.sqrt(np.mean(change**2) / np.mean(saved.logits.astype(np.float64) ** 2)))
    if not share <= _TOLERANCE:
        raise WeightsMismatch(
            f"{what} give other logits than the run saved: they differ by {share:.2%} (root mean square), and "
            f"rounding explains {_TOLERANCE:.2%}."
        )
    return Rounding(
        images=len(saved.labels),
        logit_change=share,
        largest_logit_change=float(np.abs(change).max()),
        answers_changed=int((after.logits.argmax(1) != saved.logits.argmax(1)).sum()),
        accuracy_before=float(saved.correct.mean()),
        accuracy_after=float(after.correct.mean()),
    )


def write_shipment(
    folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], card: str, curves: bytes
) -> None:
    """Write the folder; its config last, so that a folder with a config is complete.

    Raises:
        InvalidOption: If it cannot be written, or holds something else.
    """
    from safetensors.torch import save

    known = {"config.json", "model.safetensors", "README.md", "curves.png"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted({path.name for path in folder.iterdir()} - known)
    except OSError as error:
        raise InvalidOption(f"{folder}: no folder can be made there ({error.strerror or error}).") from error
    if others:
        raise InvalidOption(f"{folder}: holds something else ({', '.join(others[:3])}); give another folder.")
    (folder / "config.json").unlink(missing_ok=True)
    content = save(dict(weights), {"format": "pt"})
    config = dict(config) | {"sha256": hashlib.sha256(content).hexdigest()}
    write_atomically(folder / "model.safetensors", content)
    write_atomically(folder / "curves.png", curves)
    write_atomically(folder / "README.md", card.encode())
    write_atomically(folder / "config.json", (json.dumps(config, indent=1) + "\n").encode())


def read_curves(path: Path) -> bytes:
    """The picture of a run's curves.

    Raises:
        InvalidInput: If there is none.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error.strerror or error}).") from error
