"""Attention blocks alone, at the feature maps of ResNet-50, against timm's blocks with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from timm.layers import EcaModule, SEModule
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from ferattn.attention import ATTENTION, CBAM, ECA, SE
from ferattn.bench.plan import DTYPES, Case, Group, Request
from ferattn.bench.shapes import STAGES, MapShape, both
from ferattn.errors import InvalidInput, InvalidOption, choose
from ferattn.measure import Candidate

__all__ = ["groups", "twins"]

REDUCTION = 16
FLOOR_PASSES = {"se": (3, 7), "eca": (3, 7), "cbam": (4, 9)}
"""How often the map must be read or written at the least: forward, and forward with backward.

SE and ECA read the map for their pool, read it again and write it; backward they read it and the gradient for the
gate's gradient, then read the gradient and write the map's. CBAM reads once more each way for its spatial gate.
"""


def groups(request: Request) -> Iterator[Group]:
    """One group for each block, image size, stage, direction and memory format; timm's eager block is the yardstick.

    Raises:
        UnknownChoice: If a name is no block.
        InvalidOption: If an option of whole models is given.
    """
    if request.in_chans != 1:
        raise InvalidOption("--in-chans is for whole models: blocks see feature maps")
    if set(request.against) - {"timm"}:
        raise InvalidOption(f"blocks are compared with timm only, got {', '.join(request.against)}")
    autocast = choose(DTYPES, request.dtype, "dtype")
    names = request.names or tuple(ATTENTION)
    for name in names:
        choose(ATTENTION, name, "block")
    for size in request.img_sizes or (48, 80, 224):
        for channels, cell in STAGES:
            for name in names:
                for training in both(request.training):
                    for last in both(request.channels_last):
                        shape = MapShape(name, size, channels, -(-size // cell), training, last)
                        yield _group(shape, request, autocast)


def twins(attention: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """A block of ours and timm's with the same weights.

    Raises:
        InvalidInput: If they do not compute the same, to rounding.
    """
    r = channels // REDUCTION
    ours: Any
    theirs: Any
    if attention == "se":
        ours, theirs = SE(channels, reduced_channels=r), SEModule(channels, rd_channels=r)
        pairs = [(theirs.fc1, ours.fc1), (theirs.fc2, ours.fc2)]
    elif attention == "eca":
        ours = ECA(channels)
        theirs = EcaModule(kernel_size=ours.kernel_size)  # given channels, timm would choose its own size
        pairs = [(theirs.conv, ours.conv)]
    elif attention == "cbam":
        ours = CBAM(channels, reduced_channels=r, bias=False, spatial="norm")
        theirs = CbamModule(channels, rd_channels=r)
        pairs = [
            (theirs.channel.fc1, ours.channel.fc1),
            (theirs.channel.fc2, ours.channel.fc2),
            (theirs.spatial.conv.conv, ours.spatial.conv),
            (theirs.spatial.conv.bn, ours.spatial.norm),
        ]
    else:
        raise InvalidOption(f"timm has no block to compare {attention!r} with")
    with torch.no_grad():
        for target, source in pairs:
            for name, tensor in source.state_dict().items():
                own = target.state_dict()[name]
                own.copy_(tensor.reshape(own.shape))
    x = torch.randn(2, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    apart = _largest_difference(ours, theirs, x)
    if apart > 1e-5:
        raise InvalidInput(f"{attention} on {channels} channels: ours and timm's are {apart:.1e} apart")
    return ours, theirs


def _largest_difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((one.eval()(x) - other.eval()(x)).abs().max())


def _group(shape: MapShape, request: Request, autocast: torch.dtype | None) -> Group:
    batch = request.batch or 16
    modes = ["compiled" if compiled else "eager" for compiled in both(request.compiled)]
    if torch.device(request.device).type == "cuda":
        modes.append("cuda_graph")
    pair = cache(lambda: twins(shape.attention, shape.channels))
    generator = torch.Generator().manual_seed(0)

    def module(library: str) -> nn.Module:
        return pair()[0 if library == "ferattn" else 1]

    def case(library: str, mode: str) -> Case:
        def facts() -> Mapping[str, Any]:
            return shape.facts(library, mode, module(library), FLOOR_PASSES[shape.attention], batch, request)

        def build() -> Candidate:
            images = torch.randn(batch, shape.channels, shape.side, shape.side, generator=generator)
            return Candidate(
                module(library),
                images.to(autocast) if autocast else images,
                step=shape.step,
                mode=mode,
                channels_last=shape.channels_last,
                autocast=autocast,
                device=request.device,
            )

        return Case(f"{library} {mode}", facts, build)

    return Group(
        shape.key(shape.attention), tuple(case(library, mode) for mode in modes for library in ("timm", "ferattn"))
    )
