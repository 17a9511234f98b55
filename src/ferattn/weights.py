"""Weights that go into a model: ImageNet's of its plain backbone, or the model's own for another picture.

timm loads the plain backbone, strictly, with its own code for every source (hub, URL, file, BiT's npz). What it holds
then goes over key by key, and only parts that the plain backbone does not have may be missing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from ferattn.errors import WeightsMismatch
from ferattn.heads import FittedHead, fold_stretch

__all__ = [
    "UNREADABLE",
    "LoadReport",
    "fit_own_weights",
    "load_backbone_weights",
    "report_own_weights",
    "source_name",
    "told",
]

_LONGEST = 300  # characters
UNREADABLE = (
    RuntimeError,  # keys or shapes that do not fit; no weights
    OSError,  # no such file; the hub is out of reach
    SafetensorError,
    UnpicklingError,
    EOFError,
    KeyError,  # torch's reader on a file that is no checkpoint
    ValueError,
    TypeError,
    AttributeError,  # a checkpoint that holds something else than tensors by name
)
"""What reading a file of weights can raise, from timm, torch, safetensors and the hub client."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What ``pretrained`` did.

    Attributes:
        source: Where the weights came from.
        loaded: State-dict keys that were loaded.
        adapted: Those of them whose shape was made to fit: the first convolution when the picture has other
            channels, and the first fully connected layer of a VGG or ``cnn`` for pictures of another size.
        new: Keys that start from random weights: attention, classifier, and a PReLU's slopes.
    """

    source: str
    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        def count(keys: tuple[str, ...]) -> str:
            return f"{len(keys)} tensor{'' if len(keys) == 1 else 's'}"

        adapted = f" ({', '.join(self.adapted)} adapted)" if self.adapted else ""
        new = f", {count(self.new)} new ({', '.join(_stems(self.new))})" if self.new else ""
        return f"{count(self.loaded)} loaded from {self.source}{adapted}{new}"


def load_backbone_weights(
    model: nn.Module,
    backbone: str,
    *,
    in_chans: int,
    allowed_new: tuple[str, ...],
    **source: Any,
) -> tuple[LoadReport, dict[str, Any]]:
    """Load timm's weights for ``backbone`` into ``model``.

    Args:
        model: The backbone with attention, activation and head already in place.
        backbone: The plain backbone's name in timm.
        in_chans: Channels of the picture; timm folds the first convolution's three into that many.
        allowed_new: Prefixes of the keys that may be missing from the weights.
        **source: timm's arguments that choose the weights: ``pretrained_cfg``, ``pretrained_cfg_overlay``,
            ``cache_dir``.

    Returns:
        The report, and timm's description of the weights.

    Raises:
        WeightsMismatch: If there are no such weights or if they do not fit.
    """
    plain = _plain_model(backbone, in_chans, source)
    description: dict[str, Any] = plain.pretrained_cfg  # type: ignore[assignment]
    classifier = str(description.get("classifier"))
    own = model.state_dict()
    weights = plain.state_dict()
    if any(
        key not in own or value.shape != own[key].shape
        for key, value in weights.items()
        if key.startswith(f"{classifier}.")
    ):
        weights = {key: value for key, value in weights.items() if not key.startswith(f"{classifier}.")}
    adapted = _first_convolutions(description) if in_chans != 3 else []
    head = getattr(model, "pre_logits", None)
    if isinstance(head, FittedHead) and weights["pre_logits.fc1.weight"].shape != head.fc1.weight.shape:
        weights["pre_logits.fc1.weight"] = fold_stretch(weights["pre_logits.fc1.weight"], head.kernel)
        adapted.append("pre_logits.fc1.weight")
    missing = [key for key in own if key not in weights]
    _require_fit(weights, own, f"the weights of {backbone}", may_miss=(f"{classifier}.", *allowed_new))
    model.load_state_dict(weights, strict=False)
    report = LoadReport(source_name(description), tuple(weights), tuple(adapted), tuple(missing))
    _logger.info("%s: %s", backbone, report)
    return report, description


def fit_own_weights(weights: Mapping[str, Any], model: Any, *, adapted: list[str]) -> dict[str, Any]:
    """A model's own weights, in float32 and fitted to its picture: timm's ``pretrained_filter_fn``.

    timm itself drops the classifier where the numbers of classes differ, and folds the first convolution to other
    channels. Having dropped something it no longer minds what else is missing, so that is minded here.

    Args:
        weights: What was read.
        model: What they are for, with timm's description of them.
        adapted: Takes the keys whose shape is made to fit, here or by timm.

    Raises:
        WeightsMismatch: If they are not such a model's weights.
    """
    description, own = model.pretrained_cfg, model.state_dict()
    fitted = {
        key: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        for key, value in weights.items()
    }
    first_convolutions = tuple(key for key in _first_convolutions(description) if key in fitted and key in own)
    adapted += [key for key in first_convolutions if fitted[key].shape != own[key].shape]
    head, first = getattr(model, "pre_logits", None), "pre_logits.fc1.weight"
    if isinstance(head, FittedHead) and first in fitted and fitted[first].shape[2:] != head.fc1.weight.shape[2:]:
        fitted[first] = fold_stretch(fitted[first], head.kernel)
        adapted.append(first)
    of_timm = (f"{description.get('classifier')}.", *first_convolutions)
    _require_fit(
        {key: value for key, value in fitted.items() if not key.startswith(of_timm)},
        {key: value for key, value in own.items() if not key.startswith(of_timm)},
        f"the weights of {description.get('architecture')}",
    )
    return fitted


def report_own_weights(model: Any, adapted: list[str]) -> LoadReport:
    """What timm loaded of a model's own weights; asked before its description is brought up to date."""
    description = model.pretrained_cfg  # for features alone, it has no classes
    dropped = "num_classes" in description and description["num_classes"] != model.num_classes
    keys = list(model.state_dict())
    new = tuple(key for key in keys if dropped and key.startswith(f"{description.get('classifier')}."))
    return LoadReport(source_name(description), tuple(key for key in keys if key not in new), tuple(adapted), new)


def _plain_model(backbone: str, in_chans: int, source: Mapping[str, Any]) -> nn.Module:
    try:
        # With the weights' own number of classes timm loads strictly.
        with torch.device("cpu"):
            return timm.create_model(  # type: ignore[no-any-return]
                backbone, pretrained=True, in_chans=in_chans, **source
            )
    except UNREADABLE as error:
        raise WeightsMismatch(f"no weights for {backbone} could be loaded: {told(error)}") from error


def told(error: Exception) -> str:
    """What an error says, in one line of bearable length; torch's can name hundreds of keys."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return text if isinstance(error, RuntimeError) and text else f"{type(error).__name__}: {text or 'no such file'}"


def _first_convolutions(description: Mapping[str, Any]) -> list[str]:
    names = description.get("first_conv") or ()
    return [f"{name}.weight" for name in ((names,) if isinstance(names, str) else names)]


def source_name(description: Mapping[str, Any]) -> str:
    """Where weights that timm describes so come from."""
    return str(description.get("file") or description.get("hf_hub_id") or description.get("url") or "given weights")


def _require_fit(
    weights: Mapping[str, Any], own: Mapping[str, Any], what: str, may_miss: tuple[str, ...] = ()
) -> None:
    unexpected = sorted(weights.keys() - own.keys())
    missing = [key for key in own if key not in weights and not key.startswith(may_miss)]
    shapes = [
        f"{key}: {tuple(weights[key].shape)} against {tuple(own[key].shape)}"
        for key in weights
        if key in own and weights[key].shape != own[key].shape
    ]
    if unexpected or missing or shapes:
        raise WeightsMismatch(
            f"{what} do not fit this model. "
            + _listed("Not in the model", unexpected)
            + _listed("Not in the weights", missing)
            + _listed("Other shapes", shapes)
        )


def _stems(keys: tuple[str, ...]) -> list[str]:
    """The first few modules that the keys belong to."""
    modules = list(dict.fromkeys(key.rpartition(".")[0] for key in keys))
    return [*modules[:3], *(["..."] if len(modules) > 3 else [])]


def _listed(what: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    return f"{what}: {shown}. " if keys else ""
