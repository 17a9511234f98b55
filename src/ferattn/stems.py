"""Where a residual network begins: as published for 224 pixels, or without its first two halvings, for small faces.

A ResNet's first convolution and max-pool leave a quarter of the picture's height and width: of 48 pixels 12 remain
before the first block, and the last stage sees 2. The small stem keeps all 48, so that the last stage sees 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ferattn.errors import InvalidOption, choose

__all__ = ["STEMS", "set_stem"]

STEMS = ("own", "small")
"""The backbone's own stem; a 3x3 convolution of stride 1 and no max-pool."""

_HALVED = 4  # what the stem's convolution and max-pool divide a side by


def set_stem(model: nn.Module, stem: str) -> nn.Module:
    """Give a plain residual network of timm's another stem, in place.

    ``"small"``: the 7x7 convolution of stride 2 becomes a 3x3 one of stride 1, drawn anew, and the max-pool goes.
    Of a stem of three 3x3 convolutions the first one's stride becomes 1. No key of the state dict changes, unless
    the pool was a convolution. ``feature_info`` says the new reductions.

    Args:
        model: A ResNet or ResNetV2 of timm's, before anything is attached.
        stem: An entry of ``STEMS``.

    Returns:
        The model.

    Raises:
        UnknownChoice: If there is no such stem.
        InvalidOption: If the model has none that could be made small.

    >>> import timm
    >>> [info["reduction"] for info in set_stem(timm.create_model("resnet18"), "small").feature_info]
    [1, 1, 2, 4, 8]
    """
    choose(dict.fromkeys(STEMS), stem, "stem")
    if stem == "own":
        return model
    net: Any = model
    conv1: Any = getattr(net, "conv1", None)
    if conv1 is not None and hasattr(net, "maxpool"):  # ResNet
        if isinstance(conv1, nn.Sequential):
            conv1[0].stride = (1, 1)  # type: ignore[assignment]
        else:
            net.conv1 = _convolution(conv1)
        net.maxpool = nn.Identity()
    elif hasattr(getattr(net, "stem", None), "pool"):  # ResNetV2
        if hasattr(net.stem, "conv"):
            net.stem.conv = _convolution(net.stem.conv)
        else:
            net.stem.conv1.stride = (1, 1)
        for name in ("pad", "pool"):
            if hasattr(net.stem, name):
                setattr(net.stem, name, nn.Identity())
    else:
        raise InvalidOption(
            f"stem={stem!r} is for ResNet and ResNetV2: {type(model).__name__} has no strided stem, give stem='own'."
        )
    for info in net.feature_info:
        info["reduction"] = max(1, info["reduction"] // _HALVED)
    return model


def _convolution(seven: Any) -> nn.Module:
    """A 3x3 convolution of stride 1 of the same class, device and dtype, drawn as timm draws it."""
    with torch.device(seven.weight.device):
        three = type(seven)(
            seven.in_channels, seven.out_channels, kernel_size=3, stride=1, padding=1, bias=seven.bias is not None
        )
    if hasattr(seven, "eps"):  # a weight-standardized one
        three.eps = seven.eps
    nn.init.kaiming_normal_(three.weight, mode="fan_out", nonlinearity="relu")
    if three.bias is not None:
        nn.init.zeros_(three.bias)
    made: nn.Module = three.to(dtype=seven.weight.dtype).train(seven.training)
    return made
