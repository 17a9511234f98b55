"""The networks behind the published counts: VGG, ResNet and ResNetV2 as Miskow & Altahhan built them.

The text leaves most of this open; the printed counts decide it. Built on the meta device they cost nothing:

>>> import torch
>>> with torch.device("meta"):
...     model = build("resnet50", "cbam")
>>> published_count(model)
26023315

Source: Miskow & Altahhan 2022, arXiv 2410.17740, Tables 2 to 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ferattn.errors import InvalidOption, choose
from ferattn.published.blocks import ATTENTION, HeightNorm

__all__ = ["BACKBONES", "VGG_PLACES", "PublishedNetwork", "build", "published_count"]

IMAGE = (1, 48, 48)
"""Channels, height and width: grey, and 48 pixels where the text says 80."""

CLASSES = 7

HIDDEN = (4096, 4096)
"""Units of VGG's two fully connected layers."""

VGG_STAGES = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions per stage; channels are 64, 128, 256, 512, 512."""

VGG19_PLAIN = (2, 2, 4, 4, 3)
"""VGG-19 without attention: its count is that of a network with one 512x512 convolution missing."""

RESIDUAL_STAGES = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}
"""Bottleneck blocks per stage; output channels are 256, 512, 1024, 2048."""

BIASED = {
    "resnet": frozenset({"stem", "conv1", "conv2", "conv3", "shortcut"}),
    "resnetv2": frozenset({"stem", "conv3", "shortcut"}),
}
"""Which convolutions have a bias."""

Attention = Callable[[int], nn.Module] | None


class PublishedNetwork(nn.Module):
    """One of the published networks.

    Args:
        features: Image to feature map.
        head: Feature map to logits.

    Shape: (b, 1, 48, 48) to (b, 7).
    """

    def __init__(self, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head

    @property
    def attention_paths(self) -> tuple[str, ...]:
        """Paths of the attention blocks."""
        return tuple(path for path, _ in self.named_modules() if path.split(".")[-1] == "attention")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the images ``x``."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


def build(
    backbone: str,
    attention: str | None = None,
    *,
    place: str = "before-fc",
    complete: bool = False,
    attention_options: Mapping[str, int] | None = None,
) -> PublishedNetwork:
    """Build a published network, on the current default device.

    Args:
        backbone: A name from ``BACKBONES``, such as ``"resnetv2_50"``.
        attention: None, ``"se"``, ``"eca"`` or ``"cbam"``.
        place: Where a VGG carries its attention, from ``VGG_PLACES``; residual networks have it in every block.
        complete: Give VGG-19 without attention the convolution that its published count lacks.
        attention_options: For the block: ``reduction`` of SE and CBAM, ``kernel_size`` of ECA.

    Raises:
        UnknownChoice: If a name is unknown.
        InvalidOption: If an option has no block to go to.
    """
    options = dict(attention_options or {})
    make = choose(BACKBONES, backbone, "backbone")
    if attention is None:
        if options:
            raise InvalidOption(f"attention_options {options!r}: there is no attention block to take them")
        return PublishedNetwork(*make(None, place, complete))
    block = choose(ATTENTION, attention, "attention")
    return PublishedNetwork(*make(lambda channels: block(channels, **options), place, complete))


def published_count(model: nn.Module) -> int:
    """What the tables count: parameters, and the moving statistics of the norms."""
    return sum(p.numel() for p in model.parameters()) + sum(b.numel() for b in model.buffers())


def _strided(height: int, stride: int) -> int:
    """Height of a map after a convolution or pool with "same" padding: sizes are rounded up."""
    return -(-height // stride)


# VGG


class _Added(nn.Module):
    """x + attention(x), the published way to hang a block into VGG."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)  # type: ignore[no-any-return]


def _vgg(name: str, attention: Attention, place: str, complete: bool) -> tuple[nn.Module, nn.Module]:
    carries_attention = choose(VGG_PLACES, place, "place")
    stages = VGG_STAGES[name]
    if name == "vgg19" and attention is None and not complete:
        stages = VGG19_PLAIN
    layers: list[nn.Module] = []
    inputs, height, number = IMAGE[0], IMAGE[1], 0
    for stage, convolutions in enumerate(stages):
        channels = min(64 * 2**stage, 512)
        for kind in ["conv"] * convolutions + ["pool"]:
            number += 1
            if kind == "conv":
                layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ELU()]
                inputs = channels
            else:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
                height = _strided(height, 2)
            if attention and carries_attention(kind, number):
                layers.append(_Added(attention(channels)))
    if attention and carries_attention("end", number):
        layers.append(_Added(attention(inputs)))
    first, second = HIDDEN
    head = nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs * height * height, first),
        nn.ELU(),
        nn.Linear(first, second),
        nn.ELU(),
        nn.Linear(second, CLASSES),
    )
    return nn.Sequential(*layers), head


VGG_PLACES: dict[str, Callable[[str, int], bool]] = {
    "every-conv": lambda kind, number: kind == "conv",
    "stages": lambda kind, number: kind == "pool",
    "before-fc": lambda kind, number: kind == "end",
    "layers-11-14": lambda kind, number: number in (11, 14) and kind != "end",
}
"""Whether attention follows a layer of VGG, from its kind and its number, pools counted as layers too."""


# ResNet and ResNetV2


class _Bottleneck(nn.Module):
    """ResNet's block: the stride sits on the first 1x1 convolution and on the shortcut."""

    def __init__(
        self, inputs: int, width: int, height: int, stride: int, project: bool, attention: Attention
    ) -> None:
        super().__init__()
        biased = BIASED["resnet"]
        after = _strided(height, stride)
        self.conv1 = nn.Conv2d(inputs, width, 1, stride, bias="conv1" in biased)
        self.norm1 = HeightNorm(after)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias="conv2" in biased)
        self.norm2 = HeightNorm(after)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias="conv3" in biased)
        self.norm3 = HeightNorm(after)
        self.attention = attention(4 * width) if attention else None
        self.shortcut = None
        if project:
            convolution = nn.Conv2d(inputs, 4 * width, 1, stride, bias="shortcut" in biased)
            self.shortcut = nn.Sequential(convolution, HeightNorm(after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.norm1(self.conv1(x)))
        y = F.elu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.attention is not None:
            y = self.attention(y)
        return F.elu(y + (x if self.shortcut is None else self.shortcut(x)))


class _PreActBottleneck(nn.Module):
    """ResNetV2's block: the stride sits on the 3x3 convolution of a stage's last block, its shortcut is a pool."""

    def __init__(
        self, inputs: int, width: int, height: int, stride: int, project: bool, attention: Attention
    ) -> None:
        super().__init__()
        biased = BIASED["resnetv2"]
        self.norm1 = HeightNorm(height)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias="conv1" in biased)
        self.norm2 = HeightNorm(height)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias="conv2" in biased)
        self.norm3 = HeightNorm(_strided(height, stride))
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias="conv3" in biased)
        self.attention = attention(4 * width) if attention else None
        self.shortcut: nn.Module = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.project = project
        if project:
            self.shortcut = nn.Conv2d(inputs, 4 * width, 1, stride, bias="shortcut" in biased)

    def forward(self, x: Tensor) -> Tensor:
        before = F.elu(self.norm1(x))
        y = F.elu(self.norm2(self.conv1(before)))
        y = self.conv3(F.elu(self.norm3(self.conv2(y))))
        if self.attention is not None:
            y = self.attention(y)
        return y + self.shortcut(before if self.project else x)  # type: ignore[no-any-return]


def _residual(
    family: str, depth: str, attention: Attention, place: str, complete: bool
) -> tuple[nn.Module, nn.Module]:
    second = family == "resnetv2"
    block: Any = _PreActBottleneck if second else _Bottleneck
    height = _strided(IMAGE[1], 2)
    layers: list[nn.Module] = [nn.Conv2d(IMAGE[0], 64, 7, 2, padding=3, bias="stem" in BIASED[family])]
    if not second:
        layers += [HeightNorm(height), nn.ReLU()]  # the stem stays ReLU where the rest is ELU
    layers.append(nn.MaxPool2d(3, 2, padding=1))
    height, inputs = _strided(height, 2), 64
    stages = RESIDUAL_STAGES[depth]
    for stage, blocks in enumerate(stages):
        width = 64 * 2**stage
        for index in range(blocks):
            strided = (index == blocks - 1 and stage < len(stages) - 1) if second else (index == 0 and stage > 0)
            stride = 2 if strided else 1
            layers.append(block(inputs, width, height, stride, index == 0, attention))
            inputs, height = 4 * width, _strided(height, stride)
    if second:
        layers += [HeightNorm(height), nn.ReLU()]  # the last activation of ResNetV2 stays ReLU
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    return nn.Sequential(*layers), head


Builder = Callable[[Attention, str, bool], tuple[nn.Module, nn.Module]]

BACKBONES: dict[str, Builder] = {
    **{name: partial(_vgg, name) for name in VGG_STAGES},
    **{f"resnet{depth}": partial(_residual, "resnet", depth) for depth in RESIDUAL_STAGES},
    **{f"resnetv2_{depth}": partial(_residual, "resnetv2", depth) for depth in RESIDUAL_STAGES},
}
"""The published backbones."""
