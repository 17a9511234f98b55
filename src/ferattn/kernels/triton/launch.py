"""Puts the kernels onto grids: how large a tile is, how many there are, and in which order they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch.library import wrap_triton
from triton.runtime.interpreter import InterpretedFunction

from ferattn.kernels.parts import ACTS
from ferattn.kernels.passes import Options, Small
from ferattn.kernels.triton import gates, maps, sample

__all__ = [
    "Forward",
    "Layout",
    "Pools",
    "by_channel",
    "by_place",
    "dense",
    "flags",
    "forward",
    "interpreted",
    "laid_out",
    "launch",
    "layout_of",
    "or_any",
    "over",
    "parts",
    "pools",
    "runs_here",
    "statistics",
    "tie_rule",
    "up",
]

_PROGRAMS = 528
"""How many programs keep a large GPU busy; fixed, so that sums have the same order on every device."""

_ELEMENTS = 4096
"""Elements of a tile: 16 for each thread of 8 warps."""


ONE_LAUNCH_BYTES = 200_000
"""Up to what size of a sample's map one program takes all of it, at inference: then it stays in a core's cache."""


class Layout(NamedTuple):
    """How maps lie in memory: b samples, c channels, p places in rows of w, channels_last or contiguous."""

    b: int
    c: int
    p: int
    w: int
    last: bool


class Pools(NamedTuple):
    """Mean and decisive extreme of x by parts of ``rows`` places, (b, splits, c), and the ties of the extreme.

    The means come less the norm's mean.
    """

    means: Tensor
    peaks: Tensor
    ties: Tensor
    splits: int
    rows: int


class Forward(NamedTuple):
    """What the forward kernels leave; empty tensors for what this tail has not."""

    out: Tensor
    gate: Tensor
    coef: Tensor
    hidden: Tensor
    pooled: Tensor
    s: Tensor
    ties: Tensor
    bits: Tensor


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on the CPU."""
    return isinstance(maps.pool_kernel, InterpretedFunction)


def runs_here(x: Tensor) -> bool:
    """Whether kernels can compute on this tensor: on CUDA, or on the CPU where they are interpreted."""
    return x.is_cuda or (interpreted() and type(x) is Tensor)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run one kernel."""
    run: Callable[..., Any] = kernel[grid] if interpreted() else wrap_triton(kernel)[grid]
    run(*arguments, **constants)


def layout_of(x: Tensor, last: bool | None = None) -> Layout:
    """The layout that the kernels will see, x's or one asked for."""
    b, c, h, w = x.shape
    return Layout(b, c, h * w, w, x.is_contiguous(memory_format=torch.channels_last) if last is None else last)


@overload
def laid_out(t: Tensor, of: Layout) -> Tensor: ...


@overload
def laid_out(t: Tensor | None, of: Layout) -> Tensor | None: ...


def laid_out(t: Tensor | None, of: Layout) -> Tensor | None:
    """A map in a layout; a copy where it lies otherwise."""
    return (
        None if t is None else t.contiguous(memory_format=torch.channels_last if of.last else torch.contiguous_format)
    )


def tie_rule(ties: str) -> int:
    """``PEAK`` and ``TIES`` of the kernels."""
    return {"shared": 2, "first": 3}[ties]


def up(n: int, least: int, most: int) -> int:
    """The power of two from n up, between two bounds."""
    size = least
    while size < n and size < most:
        size *= 2
    return size


def over(n: int, size: int) -> int:
    """How many pieces of a size cover n."""
    return (n + size - 1) // size


def by_channel(of: Layout) -> dict[str, int]:
    """A tile for sums over places."""
    if of.last:
        channels = up(of.c, 16, 64)
        return {"BLOCK_C": channels, "BLOCK_P": up(of.p, 8, _elements(of) // channels)}
    places = up(of.p, 16, 256)
    return {"BLOCK_P": places, "BLOCK_C": up(of.c, 4, min(64, _elements(of) // places))}


def by_place(of: Layout) -> dict[str, int]:
    """A tile for sums over channels, and for none."""
    if of.last:
        places = 64
        while places > 8 and (of.b * over(of.p, places) < _PROGRAMS or places >= 2 * of.p):
            places //= 2
        return {"BLOCK_P": places, "BLOCK_C": up(of.c, 16, min(256, _elements(of) // places))}
    places = up(of.p, 16, 64)
    return {"BLOCK_P": places, "BLOCK_C": up(of.c, 4, _elements(of) // places)}


def _elements(of: Layout) -> int:
    """Elements of a tile; rows that start anywhere are read value by value, and each address takes a register."""
    return _ELEMENTS if (of.c if of.last else of.p) % 8 == 0 else _ELEMENTS // 2


def parts(of: Layout, tile: dict[str, int]) -> tuple[int, int]:
    """Into how many parts of how many places a sum over places is split."""
    alone = of.b * over(of.c, tile["BLOCK_C"])
    splits = max(1, min(_PROGRAMS // alone, of.p // (4 * tile["BLOCK_P"])))
    rows = over(of.p, splits)
    return over(of.p, rows), rows


def flags(p: Small) -> dict[str, Any]:
    """What there is of a norm."""
    return {"NORM": p.mean is not None, "WEIGHT": p.weight is not None, "BIAS": p.bias is not None}


def dense(p: Small) -> Small:
    """The small tensors as the kernels index them; a filter of a channels_last model lies otherwise."""
    return Small(*(None if t is None else t.contiguous() for t in p))


def or_any(t: Tensor | None, any_: Tensor) -> Tensor:
    """A pointer must point somewhere, even where a flag says that nobody follows it."""
    return any_ if t is None else t


def pools(
    x: Tensor, of: Layout, weight: Tensor | None, mean: Tensor | None, *, batch: bool, peak: int
) -> tuple[Pools, Tensor]:
    """Pass over x: what :class:`Pools` says, and for ``batch`` sums of squared deviations. One launch."""
    tile = by_channel(of)
    splits, rows = parts(of, tile)
    means = x.new_empty((of.b, splits, of.c), dtype=torch.float32)
    square = torch.empty_like(means) if batch else means
    peaks = torch.empty_like(means) if peak else means
    ties = torch.empty_like(means, dtype=torch.int32) if peak > 1 else means
    launch(
        maps.pool_kernel, (of.b * over(of.c, tile["BLOCK_C"]) * splits,),
        x, or_any(mean, x), or_any(weight, x), means, square, peaks, ties, splits, rows, of.c, of.p,
        LAST=of.last, CENTRE=_centre(mean, batch), PEAK=peak, WEIGHT=weight is not None, **tile, num_warps=8,
    )  # fmt: skip
    return Pools(means, peaks, ties, splits, rows), square


def _centre(mean: Tensor | None, batch: bool) -> int:
    return 2 if batch else 0 if mean is None else 1


def statistics(
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    centre: Tensor | None,
    momentum: float,
    *,
    batch: bool,
    peak: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance of the batch, pools less the mean and extremes of every sample, and ties. Two launches.

    Not for a ``batch``, pools are taken less ``centre``, the norm's mean, and mean and variance are not written.
    """
    of = layout_of(x)
    x = laid_out(x, of)
    weight = None if weight is None else weight.contiguous()
    found, squares = pools(x, of, weight, centre, batch=batch, peak=peak)
    mean, var = torch.empty_like(found.means[0, 0]), torch.empty_like(found.means[0, 0])
    pool = torch.empty_like(found.means[:, 0])
    top = torch.empty_like(pool) if peak else pool.new_empty(0)
    ties = torch.empty_like(pool, dtype=torch.int32) if peak else pool.new_empty(0, dtype=torch.int32)
    track = batch and running_mean is not None and running_var is not None
    launch(
        maps.finish_kernel, (over(of.c, 16),),
        x, or_any(centre, x), or_any(weight, x),
        or_any(running_mean, mean), or_any(running_var, var),
        found.means, squares, found.peaks, found.ties, mean, var, pool, top, ties,
        momentum, of.b, found.splits, found.rows, of.c, of.p,
        LAST=of.last, CENTRE=_centre(centre, batch), TRACK=track, PEAK=peak, WEIGHT=weight is not None,
        BLOCK_B=up(of.b, 1, 128), BLOCK_C=16, num_warps=4,
    )  # fmt: skip
    return mean, var, pool, top, ties


def forward(x: Tensor, shortcut: Tensor | None, p: Small, o: Options, *, save: bool) -> Forward:
    """The output and what the backward pass needs.

    Launches: ECA 2, SE 3, CBAM 4, and one more without pools; but SE and CBAM of small maps at inference 1 in all.
    """
    of = layout_of(x)
    x, shortcut, p = laid_out(x, of), laid_out(shortcut, of), dense(p)
    small = of.c * of.p * x.element_size() <= ONE_LAUNCH_BYTES
    if small and not save and p.pool is None and o.kind != "eca":
        return _at_once(x, shortcut, of, p, o)
    cbam = o.kind == "cbam"
    if p.pool is None:
        found, _ = pools(x, of, p.weight, p.mean, batch=False, peak=int(cbam))
    else:
        found = Pools(p.pool, p.pool if p.peak is None else p.peak, p.pool, 1, of.p)
    gate, coef, hidden = _channel_gate(x, of, found, p, o)
    pooled, s = gate.new_empty(0), gate.new_empty(0)
    ties = gate.new_empty(0, dtype=torch.int32)
    tile = by_place(of)
    blocks = over(of.p, tile["BLOCK_P"])
    if cbam:
        h = of.p // of.w
        pooled = x.new_empty((of.b, 2, h, of.w), dtype=torch.float32)
        ties = x.new_empty((of.b, h, of.w) if save else 0, dtype=torch.int32)
        s = x.new_empty((of.b, 1, h, of.w) if save else 0, dtype=torch.float32)
        launch(
            maps.spatial_kernel, (of.b * blocks,), x, coef, pooled, ties, of.c, of.p,
            LAST=of.last, TIES=tie_rule(o.ties) if save else 1, **tile, num_warps=8,
        )  # fmt: skip
    out = torch.empty_like(x)
    bits = x.new_empty(0, dtype=torch.uint8)
    if save and o.act == "relu":
        width = over(of.c if of.last else of.p, 8)
        bits = bits.new_empty((of.b, of.p // of.w, of.w, width) if of.last else (of.b, of.c, width))
    # CBAM's spatial gate belongs to a place, so that one program takes all channels of it.
    span = of.c if cbam else tile["BLOCK_C"]
    k = p.conv.shape[-1] if cbam else 1
    launch(
        maps.apply_kernel, (of.b * blocks * over(of.c, span),),
        x, or_any(shortcut, x), out, bits, coef, gate, pooled, s, or_any(p.conv, x), or_any(p.conv_bias, x), o.alpha,
        span, of.c, of.p, of.w,
        LAST=of.last, SPATIAL=cbam, REFINED=o.flag or not cbam, SHORTCUT=shortcut is not None,
        BIAS=cbam and p.conv_bias is not None, SAVE=save, ACT=ACTS.index(o.act), K=k, T=up(k * k, 1, 1024),
        **tile, num_warps=8,
    )  # fmt: skip
    return Forward(out, gate, coef, hidden, pooled, s, ties, bits)


def _at_once(x: Tensor, shortcut: Tensor | None, of: Layout, p: Small, o: Options) -> Forward:
    """The whole tail in one launch."""
    cbam, r = o.kind == "cbam", p.w1.shape[0]
    out = torch.empty_like(x)
    scratch = x.new_empty(of.b * (6 * of.c + 2 * r + 2 * of.p), dtype=torch.float32)
    k = p.conv.shape[-1] if cbam else 1
    channels = up(of.c, 16, 64) if of.last else up(of.c, 4, 32)
    places = up(of.p, 8, 32) if of.last else up(of.p, 16, 64)
    launch(
        sample.sample_kernel, (of.b,),
        x, *(or_any(t, x) for t in (shortcut, out, p.weight, p.bias, p.mean, p.inv)),
        *(or_any(t, x) for t in (p.w1, p.b1, p.w2, p.b2, p.conv, p.conv_bias)), scratch, o.eps, o.alpha,
        of.b, of.c, of.p, of.w, r,
        LAST=of.last, SPATIAL=cbam, REFINED=o.flag or not cbam, SHORTCUT=shortcut is not None, **flags(p),
        BIAS1=p.b1 is not None, BIAS2=p.b2 is not None, CONV_BIAS=p.conv_bias is not None, ACT=ACTS.index(o.act),
        K=k, T=up(k * k, 1, 1024), POOL_P=up(of.p, 8, 2 * _elements(of) // channels), POOL_C=channels,
        BLOCK_P=places, BLOCK_C=up(of.c, 16, min(256, 2 * _elements(of) // places)), BLOCK_R=up(r, 4, 32),
        num_warps=16,
    )  # fmt: skip
    none = [scratch.new_empty(0) for _ in range(5)]
    ties, bits = (scratch.new_empty(0, dtype=dtype) for dtype in (torch.int32, torch.uint8))
    return Forward(out, none[0], none[1], none[2], none[3], none[4], ties, bits)


def _channel_gate(x: Tensor, of: Layout, found: Pools, p: Small, o: Options) -> tuple[Tensor, Tensor, Tensor]:
    gate = x.new_empty((of.b, of.c), dtype=torch.float32)
    coef = x.new_empty((of.b, 3, of.c), dtype=torch.float32)
    norm = (or_any(p.weight, x), or_any(p.bias, x), or_any(p.mean, x), or_any(p.inv, x))
    if o.kind == "eca":
        launch(
            gates.eca_kernel, (of.b, over(of.c, 256)),
            found.means, *norm, p.conv, or_any(p.conv_bias, x), gate, coef, o.eps,
            found.splits, found.rows, of.c, of.p,
            CIRCULAR=o.flag, **flags(p), TAP_BIAS=p.conv_bias is not None, K=p.conv.shape[-1], BLOCK_C=256,
            num_warps=4,
        )  # fmt: skip
        return gate, coef, gate.new_empty(0)
    r, of_pools = p.w1.shape[0], 2 if o.kind == "cbam" else 1
    hidden = x.new_empty((of.b, of_pools, r), dtype=torch.float32)
    size = {"BLOCK_R": up(r, 4, 16), "BLOCK_C": up(of.c, 16, 128)}
    launch(
        gates.hidden_kernel, (of.b, over(r, size["BLOCK_R"])),
        found.means, found.peaks, *norm, p.w1, or_any(p.b1, x), hidden, o.eps,
        found.splits, found.rows, of.c, of.p, r,
        PEAK=of_pools == 2, **flags(p), BIAS1=p.b1 is not None, **size, num_warps=4,
    )  # fmt: skip
    size = {"BLOCK_R": up(r, 4, 32), "BLOCK_C": up(of.c, 16, 64)}
    launch(
        gates.gate_kernel, (of.b, over(of.c, size["BLOCK_C"])),
        hidden, *norm, p.w2, or_any(p.b2, x), gate, coef, o.eps, of.c, r,
        POOLS=of_pools, **flags(p), BIAS2=p.b2 is not None, REFINED=o.flag or o.kind != "cbam", **size, num_warps=4,
    )  # fmt: skip
    return gate, coef, hidden
