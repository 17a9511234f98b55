"""Where attention blocks may sit, and how they get there without renaming one key of the backbone's state dict.

A *placement* finds sites in a model: by name (``PLACEMENTS``), by module paths, or by a function of one's own.
:func:`attach` then puts a block at each site. What this file and :mod:`ferattn.backbones` know of timm's insides
is all that ferattn knows of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.resnetv2 import Bottleneck as PostActBottleneck
from timm.models.resnetv2 import PreActBasic, PreActBottleneck
from torch import Tensor, nn

from ferattn.errors import InvalidOption, NoSite, UnknownChoice, choose, closest

__all__ = ["PLACEMENTS", "Site", "attach", "default_placement"]

_NAME = "attention"
_RESIDUAL = (BasicBlock, Bottleneck, PreActBasic, PreActBottleneck, PostActBottleneck)


@dataclass(frozen=True)
class Site:
    """A place where an attention block sits.

    Attributes:
        path: The block's own path: ``model.get_submodule(site.path)`` is the block.
        channels: Channels of the map it gates.
    """

    path: str
    channels: int


@dataclass(frozen=True)
class _Spot:
    """A place before anything is put there: next to which module, on which side, on how many channels."""

    path: str
    channels: int
    side: str = "after"  # "after" or "before" the module, or "slot": the module's own empty slot for attention
    add: bool = False  # add the block's output to its input


Placement = str | Mapping[str, int] | Sequence[str] | Callable[[nn.Module], Sequence[str] | Mapping[str, int]]


class _Beside(nn.Sequential):
    """A parameter-free module of the backbone and the attention block next to it."""


class _Added(nn.Module):
    """A block whose output is added to its input: x + block(x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


def attach(
    model: nn.Module, block: Callable[[int], nn.Module], placement: Placement | None = None
) -> tuple[Site, ...]:
    """Put an attention block at every site of a placement, in place.

    No key of the backbone's state dict changes. Blocks follow the model's device, dtype and training mode. Either
    all blocks are attached or, on an error, none is.

    Args:
        model: A VGG, ResNet or ResNetV2 of timm's, or, with module paths, any network.
        block: Makes a block from a number of channels: ``CBAM``, ``partial(SE, reduction=8)``, a class of yours.
        placement: A name from ``PLACEMENTS``; ``"conv:11,14"`` for the given convolutions of a VGG, counted from
            1; ``"layer:11,14"`` for its convolutions and max-pools counted together, as Keras lists them; the
            paths of modules after whose output the blocks go, ``["layer1.0.conv2", ...]``; paths with their
            channels, ``{"layer1.0.conv2": 64}``; or a function of the model that returns such paths. By default
            the usual one for the model: see :func:`default_placement`.

    Returns:
        The sites used, in the model's order. They are also added to ``model.attention_sites``.

    Raises:
        UnknownChoice: If there is no such placement, or no module of that path.
        NoSite: If the placement finds no site in this model.
        InvalidOption: If a site is already taken, if a block cannot be made, or if the channels at a path cannot
            be told and were not given.

    >>> import timm
    >>> from ferattn.attention import SE
    >>> attach(timm.create_model("resnet18"), SE, "residual-last")
    (Site(path='layer4.1.se', channels=512),)
    """
    if not callable(block):
        raise InvalidOption(f"block must be callable with a number of channels, such as ferattn.CBAM; got {block!r}.")
    spots = _find(model, placement)
    modules = dict(model.named_modules())
    for spot in spots:
        _require_free(spot, modules)
    made = [_make(block, spot.channels, model) for spot in spots]
    sites = tuple(Site(_insert(model, spot, new), spot.channels) for spot, new in zip(spots, made, strict=True))
    model.attention_sites = (*getattr(model, "attention_sites", ()), *sites)  # type: ignore[assignment]
    return sites


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


def _residual(model: nn.Module) -> list[_Spot]:
    """On the residual branch just before the addition, in every block (Woo 2018, Miskow 2022, Chap 2021)."""
    spots = []
    for path, block in _residual_blocks(model):
        channels = (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
        if hasattr(block, "se"):
            spots.append(_Spot(f"{path}.se", channels, "slot"))
        else:
            spots.append(_Spot(f"{path}.drop_path", channels, "before"))
    return spots


def _residual_last(model: nn.Module) -> list[_Spot]:
    """As ``residual``, in the last block only (Sun 2021)."""
    return _residual(model)[-1:]


def _residual_first_conv(model: nn.Module) -> list[_Spot]:
    """In every residual block, after its first convolution with norm and activation (Wen 2020)."""
    return [
        _Spot(
            f"{path}.{'norm2' if isinstance(block, PreActBasic | PreActBottleneck) else _first_act(block)}",
            block.conv1.out_channels,
        )
        for path, block in _residual_blocks(model)
    ]


def _first_act(block: nn.Module) -> str:
    return "norm1" if isinstance(block, PostActBottleneck) else "act1"


def _stem_and_last(model: nn.Module) -> list[_Spot]:
    """After the stem's activation, before its pool, and after the last stage (Zhang 2021)."""
    stages = _residual_stages(model)
    if not stages:
        return []
    info = getattr(model, "feature_info", [])
    names = {path for path, _ in model.named_modules()}
    pool = next(name for name in ("maxpool", "stem.pad", "stem.pool") if name in names)
    return [_Spot(pool, info[0]["num_chs"], "before"), stages[-1]]


def _residual_stages(model: nn.Module) -> list[_Spot]:
    last_of_stage: dict[str, _Spot] = {}
    for path, block in _residual_blocks(model):
        channels = (block.conv3 if hasattr(block, "conv3") else block.conv2).out_channels
        last_of_stage[path.rpartition(".")[0]] = _Spot(path, channels)
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
        operation = module[0] if isinstance(module, _Beside) else module
        path = f"features.{name}"
        if isinstance(operation, nn.Conv2d):
            channels = operation.out_channels
            layers.append(_Layer(path, channels, pool=False))
        elif isinstance(operation, nn.MaxPool2d):
            layers.append(_Layer(path, channels, pool=True))
        elif layers and not layers[-1].pool:
            layers[-1] = _Layer(path, channels, pool=False)
    return layers if any(not layer.pool for layer in layers) else None


def _layers(model: nn.Module) -> list[_Layer]:
    return _stack(model) or []


def _before_fc(model: nn.Module) -> list[_Spot]:
    """Once, on the map that the fully connected layers read (Miskow 2022, method 2)."""
    return [_Spot(layer.path, layer.channels) for layer in _layers(model)[-1:]]


def _before_fc_add(model: nn.Module) -> list[_Spot]:
    """As ``before-fc``, the block's output added to its input: x + attention(x) (Miskow 2022, as published)."""
    return [_Spot(layer.path, layer.channels, add=True) for layer in _layers(model)[-1:]]


def _conv(model: nn.Module) -> list[_Spot]:
    """After the activation of every convolution (Miskow 2022, method 1 in its text)."""
    return [_Spot(layer.path, layer.channels) for layer in _layers(model) if not layer.pool]


def _stage(model: nn.Module) -> list[_Spot]:
    """After every stage: after the activation before each max-pool, or after a residual stage's last block."""
    layers = _layers(model)
    ends = [layer for layer, following in pairwise(layers) if following.pool]
    return [_Spot(end.path, end.channels) for end in ends] or _residual_stages(model)


def _pool(model: nn.Module) -> list[_Spot]:
    """After every max-pool of a plain stack (Cao 2020)."""
    return [_Spot(layer.path, layer.channels) for layer in _layers(model) if layer.pool]


PLACEMENTS: dict[str, Callable[[nn.Module], list[_Spot]]] = {
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


def _find(model: nn.Module, placement: Placement | None) -> list[_Spot]:
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
    if len(set(paths)) < len(paths):
        raise InvalidOption(f"placement names a module more than once: {list(paths)!r}.")
    modules = dict(model.named_modules())
    given = paths if isinstance(paths, Mapping) else {}
    return [_Spot(path, given.get(path) or _channels_after(modules, path)) for path in paths]


def _find_named(model: nn.Module, placement: str) -> list[_Spot]:
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
    return [_Spot(layers[number - 1].path, layers[number - 1].channels) for number in dict.fromkeys(wanted)]


def _channels_after(modules: Mapping[str, nn.Module], path: str) -> int:
    """Channels of the map that leaves a module: its own last convolution's or norm's, else the nearest one before."""
    if not path or path not in modules:
        match = closest(path, modules)
        raise UnknownChoice(
            f"placement names no module of this model: {path!r}" + (f"; did you mean {match!r}?" if match else ".")
        )
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


# Putting a block there


def _require_free(spot: _Spot, modules: Mapping[str, nn.Module]) -> None:
    parent, _, slot = spot.path.rpartition(".")
    if spot.side == "slot":
        taken = getattr(modules[parent], slot) is not None
    else:
        taken = spot.path not in modules or _NAME in dict(modules[spot.path].named_children())
    if taken:
        raise InvalidOption(f"there is an attention block at {spot.path!r} already.")


def _make(block: Callable[[int], nn.Module], channels: int, model: nn.Module) -> nn.Module:
    like = next(model.parameters(), torch.empty(0))
    with torch.device(like.device):
        made = block(channels)
    if not isinstance(made, nn.Module):
        raise InvalidOption(f"block must make a torch.nn.Module; {block!r} made {made!r}.")
    return made.to(dtype=like.dtype).train(model.training)


def _insert(model: nn.Module, spot: _Spot, block: nn.Module) -> str:
    """Put the block at the spot; returns the block's path."""
    parent_path, _, leaf = spot.path.rpartition(".")
    parent = model.get_submodule(parent_path)
    if spot.side == "slot":
        setattr(parent, leaf, block)
        return spot.path
    module = model.get_submodule(spot.path)
    attention = _Added(block) if spot.add else block
    if type(module) is nn.Sequential:
        children = OrderedDict(module.named_children())
        children[_NAME] = attention
        if spot.side == "before":
            children.move_to_end(_NAME, last=False)
        module._modules = children
    elif not module.state_dict():
        operation = [] if isinstance(module, nn.Identity) else [(type(module).__name__.lower(), module)]
        beside = [*operation, (_NAME, attention)] if spot.side == "after" else [(_NAME, attention), *operation]
        setattr(parent, leaf, _Beside(OrderedDict(beside)))
    else:
        # Wrapping a module that has a state would rename its keys; a hook leaves them as they are.
        module.add_module(_NAME, attention)
        module.register_forward_hook(_gate_output)
    return f"{spot.path}.{_NAME}.block" if spot.add else f"{spot.path}.{_NAME}"


def _gate_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return getattr(module, _NAME)(output)  # type: ignore[no-any-return]
