"""Attaching attention blocks to a network, without renaming one key of the backbone's state dict."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ferattn.errors import InvalidOption
from ferattn.placements import ATTACHED, Beside, Placement, Spot, find_spots

__all__ = ["Site", "attach"]


@dataclass(frozen=True)
class Site:
    """A place where an attention block sits.

    Attributes:
        path: The block's own path: ``model.get_submodule(site.path)`` is the block.
        channels: Channels of the map it gates.
    """

    path: str
    channels: int


class _Added(nn.Module):
    """A block whose output is added to its input: x + block(x)."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)  # type: ignore[no-any-return]


_PRUNE = "prune_intermediate_layers"


class _Pruning:
    """A model's own ``prune_intermediate_layers``, after which its ``attention_sites`` are those that are left.

    Belongs to one model and must not keep it alive: the model's memory would wait for the garbage collector.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """With the arguments and the defaults of the model's class: they are not the same in all networks."""
        model: Any = self._model()
        taken = getattr(type(model), _PRUNE)(model, *arguments, **named)
        left = dict(model.named_modules())
        model.attention_sites = tuple(site for site in model.attention_sites if site.path in left)
        return taken

    def __reduce__(self) -> tuple[type[_Pruning], tuple[Any]]:
        return _Pruning, (self._model(),)  # a copy of the model takes a copy of this, which belongs to that model


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
        The sites used, in the model's order. They are also added to ``model.attention_sites``, from which
        ``model.prune_intermediate_layers`` takes those that it cuts off.

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
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"model must be a torch.nn.Module; got {model!r}.")
    if not callable(block) or isinstance(block, nn.Module):
        raise InvalidOption(
            f"block must make a new block from a number of channels, as the class ferattn.CBAM does; got {block!r}."
        )
    spots = find_spots(model, placement)
    modules = dict(model.named_modules())
    for spot in spots:
        _require_free(spot, modules)
    made = [_make(block, spot.channels, model) for spot in spots]
    if len(set(made)) < len(made):
        raise InvalidOption(f"block must make a new block for each site; {block!r} made the same one twice.")
    sites = tuple(Site(_insert(model, spot, new), spot.channels) for spot, new in zip(spots, made, strict=True))
    model.attention_sites = (*getattr(model, "attention_sites", ()), *sites)  # type: ignore[assignment]
    if hasattr(type(model), _PRUNE) and _PRUNE not in vars(model):
        setattr(model, _PRUNE, _Pruning(model))
    return sites


def _require_free(spot: Spot, modules: Mapping[str, nn.Module]) -> None:
    parent, _, slot = spot.path.rpartition(".")
    if (parent if spot.side == "slot" else spot.path) not in modules:
        raise InvalidOption(f"there is no module {spot.path!r} to attach to; attach before compiling or wrapping.")
    in_slot = spot.side == "slot"
    if getattr(modules[parent], slot) is not None if in_slot else hasattr(modules[spot.path], ATTACHED):
        raise InvalidOption(f"there is an attention block at {spot.path!r} already.")


def _make(block: Callable[[int], nn.Module], channels: int, model: nn.Module) -> nn.Module:
    like = next(model.parameters(), torch.empty(0))
    with torch.device(like.device):
        made = block(channels)
    if not isinstance(made, nn.Module):
        raise InvalidOption(f"block must make a torch.nn.Module; {block!r} made {made!r}.")
    return made.to(dtype=like.dtype).train(model.training)


def _insert(model: nn.Module, spot: Spot, block: nn.Module) -> str:
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
        children[ATTACHED] = attention
        if spot.side == "before":
            children.move_to_end(ATTACHED, last=False)
        module._modules = children
    elif not module.state_dict():
        operation = [] if isinstance(module, nn.Identity) else [(type(module).__name__.lower(), module)]
        beside = [*operation, (ATTACHED, attention)] if spot.side == "after" else [(ATTACHED, attention), *operation]
        setattr(parent, leaf, Beside(OrderedDict(beside)))
    else:
        # Wrapping a module that has a state would rename its keys; a hook leaves them as they are.
        module.add_module(ATTACHED, attention)
        module.register_forward_hook(_gate_output)
    return f"{spot.path}.{ATTACHED}.block" if spot.add else f"{spot.path}.{ATTACHED}"


def _gate_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return getattr(module, ATTACHED)(output)  # type: ignore[no-any-return]
