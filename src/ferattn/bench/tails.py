"""Tails of residual blocks alone: batch norm -> attention -> + shortcut -> ReLU, at the feature maps of ResNet-50.

Side by side: the tail without attention, timm's own attention in it, and ours as one operation, each eager and
compiled, on CUDA ours also replayed as a graph. Weights are the same; timm's CBAM has a batch norm more, over the one
channel of its spatial gate, which changes nothing before it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from timm.layers.cbam import CbamModule
from torch import Tensor, nn

from ferattn import kernels
from ferattn.attention import ATTENTION, CBAM
from ferattn.bench.blocks import REDUCTION, twins
from ferattn.bench.plan import DTYPES, Case, Group, Request
from ferattn.bench.shapes import STAGES, MapShape, both
from ferattn.errors import InvalidInput, InvalidOption, choose
from ferattn.kernels.dispatch import obstacle
from ferattn.measure import Candidate
from ferattn.residual import gate_of

__all__ = ["FLOOR_PASSES", "QUICK", "groups", "tails"]

QUICK = ("se", "cbam")
"""Blocks of the quick run, at the first stage's map for 48 pixels."""

FLOOR_PASSES = {None: (3, 11), "se": (4, 11), "eca": (4, 11), "cbam": (5, 13)}
"""How often the map must be read or written at the least: forward, and forward with backward.

Forward in evaluation: the plain tail reads the map and the shortcut and writes; attention reads the map once more for
its pool, CBAM twice. In training statistics and pool are one pass; ``kernels/passes.py`` marks each.
"""


def groups(request: Request) -> Iterator[Group]:
    """One group for each block, map, direction and memory format; timm's eager tail is the yardstick.

    Without ``img_sizes`` there is the first stage's map for 48, 80 and 224 pixels, the largest of each; with them,
    all four stages' maps; a quick request is SE and CBAM at 48 pixels' largest map.

    Raises:
        UnknownChoice: If a name is no block.
        InvalidOption: If an option of whole models is given.
    """
    if request.in_chans != 1:
        raise InvalidOption("--in-chans is for whole models: tails see feature maps")
    if set(request.against) - {"timm"}:
        raise InvalidOption(f"tails are compared with timm only, got {', '.join(request.against)}")
    choose(DTYPES, request.dtype, "dtype")
    names = request.names or (QUICK if request.quick else tuple(ATTENTION))
    for name in names:
        choose(ATTENTION, name, "block")
    if request.quick:
        maps = [(48, *STAGES[0])]
    else:
        stages = STAGES if request.img_sizes else STAGES[:1]
        maps = [(size, *stage) for size in request.img_sizes or (48, 80, 224) for stage in stages]
    last = True if request.quick and request.channels_last is None else request.channels_last
    for size, channels, cell in maps:
        for name in names:
            for training in both(request.training):
                for channels_last in both(last):
                    shape = MapShape(name, size, channels, -(-size // cell), training, channels_last)
                    yield _group(shape, request)


class _Modules(nn.Module):
    """A tail as timm writes it."""

    def __init__(self, channels: int, attention: nn.Module | None) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.attention = attention
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """From the convolution's output to the block's."""
        x = self.bn(x)
        if self.attention is not None:
            x = self.attention(x)
        x += shortcut
        return self.act(x)  # type: ignore[no-any-return]


class _Fused(_Modules):
    """The same modules as one operation, computed the way ``path`` says."""

    def __init__(self, channels: int, attention: nn.Module, path: str = "auto") -> None:
        super().__init__(channels, attention)
        self.path = path

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """From the convolution's output to the block's."""
        gate = gate_of(self.attention)
        return kernels.fused_tail(x, shortcut, gate, self.norm(), kernels.Act("relu"), path=self.path)

    def norm(self) -> kernels.Norm:
        """The norm of one call."""
        bn, momentum = self.bn, self.bn.momentum or 0.0
        return kernels.Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, self.training, momentum, bn.eps)


def tails(attention: str, channels: int) -> dict[str, nn.Module]:
    """The tail without attention, with timm's, with ours in PyTorch's operations and in kernels.

    All have the same weights.

    Raises:
        InvalidInput: If these two do not compute the same, to rounding.
    """
    ours, theirs = twins(attention, channels)
    if isinstance(theirs, CbamModule):
        plain = CBAM(channels, reduced_channels=channels // REDUCTION, bias=False)
        with torch.no_grad():
            for name, parameter in plain.named_parameters():
                parameter.copy_(ours.get_parameter(name))
        ours = plain
    made: dict[str, nn.Module] = {
        "timm": _Modules(channels, theirs),
        "plain": _Modules(channels, None),
        "ferattn": _Fused(channels, ours),
        "triton": _Fused(channels, ours, "triton"),
    }
    x, shortcut = torch.randn(2, 2, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = float((made["timm"].eval()(x, shortcut) - made["ferattn"].eval()(x, shortcut)).abs().max())
    if apart > 1e-4:
        raise InvalidInput(f"{attention} tails on {channels} channels: ours and timm's are {apart:.1e} apart")
    return made


def _group(shape: MapShape, request: Request) -> Group:
    batch = request.batch or 16
    autocast = choose(DTYPES, request.dtype, "dtype")
    modes = ["compiled" if compiled else "eager" for compiled in both(request.compiled)]
    cuda = torch.device(request.device).type == "cuda"
    made = cache(lambda: tails(shape.attention, shape.channels))
    size = (batch, shape.channels, shape.side, shape.side)

    def maps(device: str | torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(device).manual_seed(0)
        dtype = autocast or torch.float32
        x, shortcut = (torch.randn(size, generator=generator, device=device).to(dtype) for _ in range(2))
        layout = torch.channels_last if shape.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=layout), shortcut.contiguous(memory_format=layout)

    def case(library: str, mode: str) -> Case:
        attention = None if library == "plain" else shape.attention

        def facts() -> Mapping[str, Any]:
            tail = made()[library]
            path = _path(tail, maps(request.device)) if library in ("ferattn", "triton") else None
            return shape.facts(library, mode, tail, FLOOR_PASSES[attention], batch, request) | {"path": path}

        def build() -> Candidate:
            return Candidate(
                made()[library],
                maps(request.device),
                step=shape.step,
                mode=mode,
                channels_last=shape.channels_last,
                autocast=autocast,
                device=request.device,
            )

        return Case(f"{library} {mode}", facts, build)

    ours = ("ferattn", *(("triton",) if cuda and obstacle(request.device) is None else ()))
    cases = [case(library, mode) for mode in modes for library in ("timm", "plain", *ours)]
    graphs = [case(library, "cuda_graph") for library in ours] if cuda else []
    return Group(shape.key(f"{shape.attention} tail"), (*cases, *graphs))


def _path(tail: Any, maps: tuple[Tensor, Tensor]) -> str:
    """Which way the tail is computed on this device."""
    tail.to(maps[0].device)
    with kernels.use(tail.path):
        return kernels.explain(*maps, gate_of(tail.attention), tail.norm()).path
