"""Placements: where in a network attention may sit, by name, by module paths, or by a function of one's own.

What this file, :mod:`ferattn.sites` and :mod:`ferattn.backbones` know of timm's insides is all that ferattn knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import Bottleneck as PostActBottleneck
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from torch import nn

from ferattn.errors import InvalidOption, NoSite, UnknownChoice, choose, closest

__all__ = ["ATTACHED", "PLACEMENTS", "Beside", "Placement", "Spot", "default_placement", "find_spots"]

ATTACHED = "attention"
"""Name of a block as the child of the module beside which, or after which, it sits."""

_RESIDUAL = (BasicBlock, Bottleneck, PreActBasic, PreActBottleneck, PostActBottleneck)


@dataclass(frozen=True)
class Spot:
    """A place before anything is put there: next to which module, on which side, on how many channels."""

    path: str
    channels: int
    side: str = "after"  # "after" or "before" the module, or "slot": the module's own empty slot for attention
    add: bool = False  # add the block's output to its input


Placement = str | Mapping[str, int] | Sequence[str] | Callable[[nn.Module], Sequence[str] | Mapping[str, int]]


class Beside(nn.Sequential):
    """A parameter-free module of the backbone and the attention block next to it."""


def default_placement(model: nn.Module) -> str:
    """The placement that :func:`attach` uses where none is given.

    Residual networks: ``"residual"``. Networks with a plain stack of convolutions, such as VGG: ``"before-fc"``.
    A model may name its own in an attribute ``default_placement``.

    Raises:
        NoSite: If the model is none of these.
    """
    own = getattr(model, "default_placement", None)
    if isinstance(own, str):
        return own
    if any(isinstance(module, _RESIDUAL) for module in model.modules()):
        return "residual"
    if _stack(model) is not None:
        return "before-fc"
    raise NoSite(
        f"{type(model).__name__} is no VGG, ResNet or ResNetV2 of timm's, so no placement is known for it; "
        "give the paths of modules as placement."
    )


# Placements of residual networks


def _residual(model: nn.Module) -> list[Spot]:
    """On the residual branch just before the addition, in every block (Woo 2018, Miskow 2022, Chap 2021)."""
    spots = []
    for path, block in _residual_blocks(model):
        channels = (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
        if hasattr(block, "se"):
            spots.append(Spot(f"{path}.se", channels, "slot"))
        else:
            spots.append(Spot(f"{path}.drop_path", channels, "before"))
    return spots


def _residual_last(model: nn.Module) -> list[Spot]:
    """As ``residual``, in the last block only (Sun 2021)."""
    return _residual(model)[-1:]


def _residual_first_conv(model: nn.Module) -> list[Spot]:
    """In every residual block, after its first convolution with norm and activation (Wen 2020)."""
    return [Spot(f"{path}.{_first_act(block)}", block.conv1.out_channels) for path, block in _residual_blocks(model)]


def _first_act(block: nn.Module) -> str:
    """The first activation after conv1: inside the norm in a ResNetV2, where it survives the norm's conversion."""
    if isinstance(block, PreActBasic | PreActBottleneck):
        return "norm2.act"
    return "norm1.act" if isinstance(block, PostActBottleneck) else "act1"


def _stem_and_last(model: nn.Module) -> list[Spot]:
    """After the stem's activation, before its pool, and after the last stage (Zhang 2021)."""
    stages = _residual_stages(model)
    if not stages:
        return []
    info = getattr(model, "feature_info", [])
    names = {path for path, _ in model.named_modules()}
    pool = next((name for name in ("maxpool", "stem.pad", "stem.pool") if name in names), None)
    if pool is None or not info:
        return []
    return [Spot(pool, info[0]["num_chs"], "before"), stages[-1]]


def _residual_stages(model: nn.Module) -> list[Spot]:
    last_of_stage: dict[str, Spot] = {}
    for path, block in _residual_blocks(model):
        channels = (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
        last_of_stage[path.rpartition(".")[0]] = Spot(path, channels)
    return list(last_of_stage.values())


def _residual_blocks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules():
        if isinstance(module, _RESIDUAL):
            yield path, module


# Placements of plain stacks of convolutions, such as VGG


@dataclass(frozen=True)
class _Layer:
    """A convolution with its norm and activation, or a max-pool: where it ends, and on how many channels."""

    path: str
    channels: int
    pool: bool


def _stack(model: nn.Module) -> list[_Layer] | None:
    features = getattr(model, "features", None)
    if not isinstance(features, nn.Sequential):
        return None
    layers: list[_Layer] = []
    channels = 0
    for name, module in features.named_children():
        if not isinstance(module, nn.Conv2d) and any(isinstance(inside, nn.Conv2d) for inside in _backbone(module)):
            return None  # stages of their own, as in a DenseNet: no plain stack
        operation = module[0] if isinstance(module, Beside) else module
        path = f"features.{name}"
        if isinstance(operation, nn.Conv2d):
            channels = operation.out_channels
            layers.append(_Layer(path, channels, pool=False))
        elif isinstance(operation, nn.MaxPool2d):
            layers.append(_Layer(path, channels, pool=True))
        elif layers and not layers[-1].pool:
            layers[-1] = _Layer(path, channels, pool=False)
    return layers if any(not layer.pool for layer in layers) else None


def _backbone(module: nn.Module) -> Iterator[nn.Module]:
    """The module and what is in it, attention blocks aside."""
    yield module
    for name, child in module.named_children():
        if name != ATTACHED:
            yield from _backbone(child)


def _layers(model: nn.Module) -> list[_Layer]:
    return _stack(model) or []


def _before_fc(model: nn.Module) -> list[Spot]:
    """Once, on the map that the fully connected layers read (Miskow 2022, method 2)."""
    return [Spot(layer.path, layer.channels) for layer in _layers(model)[-1:]]


def _before_fc_add(model: nn.Module) -> list[Spot]:
    """As ``before-fc``, the block's output added to its input: x + attention(x) (Miskow 2022, as published)."""
    return [Spot(layer.path, layer.channels, add=True) for layer in _layers(model)[-1:]]


def _conv(model: nn.Module) -> list[Spot]:
    """After the activation of every convolution (Miskow 2022, method 1 in its text)."""
    return [Spot(layer.path, layer.channels) for layer in _layers(model) if not layer.pool]


def _stage(model: nn.Module) -> list[Spot]:
    """After every stage: after the activation before each max-pool, or after a residual stage's last block."""
    layers = _layers(model)
    ends = [layer for layer, following in pairwise(layers) if following.pool]
    return [Spot(end.path, end.channels) for end in ends] or _residual_stages(model)


def _pool(model: nn.Module) -> list[Spot]:
    """After every max-pool of a plain stack (Cao 2020)."""
    return [Spot(layer.path, layer.channels) for layer in _layers(model) if layer.pool]


PLACEMENTS: dict[str, Callable[[nn.Module], list[Spot]]] = {
    "residual": _residual,
    "residual-last": _residual_last,
    "residual-first-conv": _residual_first_conv,
    "stem-and-last": _stem_and_last,
    "before-fc": _before_fc,
    "before-fc-add": _before_fc_add,
    "conv": _conv,
    "stage": _stage,
    "pool": _pool,
}
"""The placements with a name; each one's docstring says where it is and which paper has it."""


# From a placement to spots


def find_spots(model: nn.Module, placement: Placement | None) -> list[Spot]:
    """The places that a placement means in a model; see :func:`ferattn.attach` for what a placement can be.

    Raises:
        UnknownChoice: If there is no such placement, or no module of that path.
        NoSite: If it finds no place.
        InvalidOption: If it is no placement at all, or the channels at a path cannot be told.
    """
    if placement is None:
        placement = default_placement(model)
    if isinstance(placement, str):
        spots = _find_named(model, placement)
        if not spots:
            here = [name for name, find in PLACEMENTS.items() if find(model)]
            raise NoSite(
                f"placement {placement!r} finds no site in {type(model).__name__}. "
                + (f"Placements with sites here: {', '.join(here)}." if here else "Give the paths of modules.")
            )
        return spots
    paths = placement(model) if callable(placement) else placement
    if not isinstance(paths, Mapping | Sequence) or isinstance(paths, str):
        raise InvalidOption(
            f"placement must be a name, the paths of modules, paths with channels, or a function; got {placement!r}."
        )
    if not paths:
        raise NoSite(f"placement {placement!r} names no module of {type(model).__name__}.")
    if not all(isinstance(path, str) for path in paths):
        raise InvalidOption(f"placement must name modules by their paths; got {list(paths)!r}.")
    if len(set(paths)) < len(paths):
        raise InvalidOption(f"placement names a module more than once: {list(paths)!r}.")
    modules = dict(model.named_modules())
    for path in paths:
        _require_module(modules, path)
    given = paths if isinstance(paths, Mapping) else {}
    return [Spot(path, given[path] if path in given else _channels_after(modules, path)) for path in paths]


def _find_named(model: nn.Module, placement: str) -> list[Spot]:
    kind, colon, numbers = placement.partition(":")
    if not colon:
        return choose(PLACEMENTS, placement, "placement")(model)
    if kind not in ("conv", "layer"):
        raise UnknownChoice(
            f"unknown placement {placement!r}; before a colon go 'conv' or 'layer', as in 'conv:11,14'. "
            f"Options without one: {', '.join(PLACEMENTS)}."
        )
    layers = [layer for layer in _layers(model) if kind == "layer" or not layer.pool]
    if not layers:
        return []
    try:
        wanted = [int(number) for number in numbers.split(",")]
    except ValueError:
        raise InvalidOption(f"placement {placement!r} needs numbers after the colon, as in 'conv:11,14'.") from None
    missing = [number for number in wanted if not 1 <= number <= len(layers)]
    if missing:
        what = "convolutions" if kind == "conv" else "convolutions and max-pools"
        raise NoSite(
            f"placement {placement!r} asks for number {missing[0]}; "
            f"{type(model).__name__} has {what} 1 to {len(layers)}."
        )
    if len(set(wanted)) < len(wanted):
        raise InvalidOption(f"placement {placement!r} names a layer more than once.")
    return [Spot(layers[number - 1].path, layers[number - 1].channels) for number in wanted]


def _require_module(modules: Mapping[str, nn.Module], path: str) -> None:
    if not path or path not in modules:
        match = closest(path, modules)
        raise UnknownChoice(
            f"placement names no module of this model: {path!r}" + (f"; did you mean {match!r}?" if match else ".")
        )
    if isinstance(modules[path], nn.modules.batchnorm._BatchNorm):
        raise InvalidOption(
            f"placement names a batch norm, {path!r}: converting norms (SyncBatchNorm, frozen norms) replaces them, "
            "and a block there would be lost. Name the convolution before it or the activation after it."
        )


def _channels_after(modules: Mapping[str, nn.Module], path: str) -> int:
    """Channels of the map that leaves a module: its own last convolution's or norm's, else the nearest one before."""
    names = list(modules)
    siblings = path.rpartition(".")[0]
    inside = [name for name in names if name == path or name.startswith(f"{path}.")]
    before = [name for name in names[: names.index(path)] if not siblings or name.startswith(f"{siblings}.")]
    for name in (*reversed(inside), *reversed(before)):
        for attribute in ("out_channels", "num_features", "num_channels"):
            channels = getattr(modules[name], attribute, None)
            if isinstance(channels, int):
                return channels
    raise InvalidOption(f"the channels after {path!r} cannot be told; give them, as in placement={{{path!r}: 64}}.")
