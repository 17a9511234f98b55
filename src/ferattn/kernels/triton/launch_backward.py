"""Puts the backward kernels onto grids, in their order."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ferattn.kernels.parts import ACTS
from ferattn.kernels.passes import Options, Small
from ferattn.kernels.triton import gates_backward, launch, maps_backward
from ferattn.kernels.triton.launch import (
    Forward,
    Layout,
    by_channel,
    by_place,
    dense,
    flags,
    laid_out,
    layout_of,
    or_any,
    over,
    parts,
    tie_rule,
    up,
)

__all__ = ["Backward", "backward"]


class Backward(NamedTuple):
    """Gradients; empty tensors for what this tail has not."""

    dx: Tensor
    dz: Tensor
    dweight: Tensor
    dbias: Tensor
    dw1: Tensor
    db1: Tensor
    dw2: Tensor
    db2: Tensor
    dconv: Tensor
    dconv_bias: Tensor


class _Sums(NamedTuple):
    """Sums over parts of the maps, (b, parts, 2, c)."""

    values: Tensor
    parts: int


def backward(
    dout: Tensor, x: Tensor, kept: Tensor | None, f: Forward, peak_ties: Tensor | None, p: Small, o: Options
) -> Backward:
    """Every gradient; ``dz`` is empty where it is ``dout``. Launches: SE and ECA 5, CBAM 7.

    Args:
        dout: The output's gradient.
        x: The map, as in the forward pass.
        kept: The output; its bits for ReLU, the shortcut for SiLU.
        f: What the forward pass left; its ``out`` and ``bits`` are not looked at.
        peak_ties: How many places of each map hold its maximum, or which is the first.
        p: The small tensors; the variance in the place of ``inv``.
        o: What kind of tail it is.
    """
    bits = kept.contiguous() if kept is not None and o.act == "relu" else None
    # The bits have the layout that x had in the forward pass; hooks on saved tensors may have changed x's since.
    last = None if bits is None else bits.ndim == 4
    of = layout_of(x, last)
    x, dout, p = laid_out(x, of), laid_out(dout, of), dense(p)
    kept = laid_out(kept, of) if bits is None else None
    cbam, refined = o.kind == "cbam", o.flag or o.kind != "cbam"
    dz, sums, dlogits_s = _before(dout, x, kept if bits is None else bits, of, f, o)
    spread, partial, rows = dlogits_s, sums.values, 0
    more = None
    if cbam:
        spread, partial, rows = _filter(x, of, dlogits_s, f, p, o)
        more = _spread(x, of, f, spread, o)
    # Two storages: a compiler that copies what is written to could read beyond the half of a shared one.
    whole, constants = (x.new_empty((of.b, 2, of.c), dtype=torch.float32) for _ in range(2))
    dlogits = torch.empty_like(f.gate)
    dhidden = torch.empty_like(f.hidden)
    if o.kind == "eca":
        partial, rows = _through_eca(x, of, f, p, o, sums, whole, constants, dlogits)
    else:
        _through_mlp(x, of, f, p, o, peak_ties, sums, more, whole, constants, dlogits, dhidden)
    found, pull = _weights(x, of, f, p, o, whole, dlogits, dhidden, partial, rows)
    dx = torch.empty_like(x)
    tile = by_place(of)
    launch.launch(
        maps_backward.input_kernel, (of.b * over(of.p, tile["BLOCK_P"]) * over(of.c, tile["BLOCK_C"]),),
        dout if dz is None else dz, x, dx, f.coef, f.gate, f.s, f.pooled, f.ties, spread, constants,
        or_any(p.peak, x), or_any(peak_ties, x), pull, of.c, of.p,
        LAST=of.last, SPATIAL=cbam, REFINED=refined, TIES=tie_rule(o.ties), BATCH=o.training, **tile, num_warps=8,
    )  # fmt: skip
    return Backward(dx, dx.new_empty(0) if dz is None else dz, *found)


def _before(
    dout: Tensor, x: Tensor, kept: Tensor | None, of: Layout, f: Forward, o: Options
) -> tuple[Tensor | None, _Sums, Tensor]:
    """B1."""
    tile = by_place(of)
    blocks = over(of.p, tile["BLOCK_P"])
    dz = None if o.act == "identity" else torch.empty_like(x)
    sums = x.new_empty((of.b, blocks, 2, of.c), dtype=torch.float32)
    cbam = o.kind == "cbam"
    dlogits = torch.empty_like(f.s) if cbam else sums
    launch.launch(
        maps_backward.before_kernel, (of.b * blocks,),
        dout, x, or_any(kept, x), or_any(dz, x), f.coef, f.gate, f.s, sums, dlogits, o.alpha, blocks, of.c, of.p,
        LAST=of.last, SPATIAL=cbam, REFINED=o.flag or not cbam, SHORTCUT=kept is not None, ACT=ACTS.index(o.act),
        **tile, num_warps=8,
    )  # fmt: skip
    return dz, _Sums(sums, blocks), dlogits


def _filter(x: Tensor, of: Layout, dlogits: Tensor, f: Forward, p: Small, o: Options) -> tuple[Tensor, Tensor, int]:
    """Through the spatial gate's filter: (b, 2, p), and a row of filter gradients for every 256 places."""
    k = p.conv.shape[-1]
    spans = over(of.p, 256)
    spread = torch.empty_like(f.pooled)
    partial = x.new_empty((of.b * spans, 2 * k * k + 1), dtype=torch.float32)
    launch.launch(
        maps_backward.filter_kernel, (of.b, spans),
        dlogits, f.pooled, f.ties, p.conv, spread, partial, spans, 256, of.c, of.p, of.w,
        TIES=tie_rule(o.ties), K=k, T=up(k * k, 1, 1024), BLOCK_P=up(of.p, 1, 32), num_warps=8,
    )  # fmt: skip
    return spread, partial, of.b * spans


def _spread(x: Tensor, of: Layout, f: Forward, spread: Tensor, o: Options) -> _Sums:
    """B2."""
    tile = by_channel(of)
    splits, rows = parts(of, tile)
    sums = x.new_empty((of.b, splits, 2, of.c), dtype=torch.float32)
    launch.launch(
        maps_backward.spread_kernel, (of.b * over(of.c, tile["BLOCK_C"]) * splits,),
        x, f.coef, f.pooled, f.ties, spread, sums, splits, rows, of.c, of.p,
        LAST=of.last, TIES=tie_rule(o.ties), **tile, num_warps=8,
    )  # fmt: skip
    return _Sums(sums, splits)


def _through_mlp(
    x: Tensor, of: Layout, f: Forward, p: Small, o: Options, peak_ties: Tensor | None,
    sums: _Sums, more: _Sums | None, whole: Tensor, constants: Tensor, dlogits: Tensor, dhidden: Tensor,
) -> None:  # fmt: skip
    """From the sums over the maps back to the pools and on to the maps."""
    r, of_pools = f.hidden.shape[2], f.hidden.shape[1]
    norm = (or_any(p.weight, x), or_any(p.bias, x), or_any(p.mean, x), or_any(p.inv, x))
    also = more or sums
    size = {"BLOCK_R": up(r, 4, 64), "BLOCK_C": up(of.c, 16, 64)}
    launch.launch(
        gates_backward.logits_kernel, (of.b, over(r, size["BLOCK_R"])),
        sums.values, also.values, *norm, f.gate, f.hidden, p.w2, whole, dlogits, dhidden, o.eps,
        sums.parts, also.parts, of.c, r,
        POOLS=of_pools, MORE=more is not None and o.flag, **flags(p), **size, num_warps=4,
    )  # fmt: skip
    size = {"BLOCK_R": up(r, 4, 32), "BLOCK_C": up(of.c, 16, 64)}
    launch.launch(
        gates_backward.pools_kernel, (of.b, over(of.c, size["BLOCK_C"])),
        dhidden, p.w1, also.values, *norm, f.gate, p.pool, or_any(p.peak, x), or_any(peak_ties, x), whole, constants,
        o.eps, also.parts, of.c, of.p, r,
        POOLS=of_pools, MORE=more is not None and not o.flag, TIES=tie_rule(o.ties), **flags(p), **size, num_warps=4,
    )  # fmt: skip


def _through_eca(
    x: Tensor, of: Layout, f: Forward, p: Small, o: Options, sums: _Sums,
    whole: Tensor, constants: Tensor, dlogits: Tensor,
) -> tuple[Tensor, int]:  # fmt: skip
    """As :func:`_through_mlp`, and rows of filter gradients."""
    norm = (or_any(p.weight, x), or_any(p.bias, x), or_any(p.mean, x), or_any(p.inv, x))
    k, blocks = p.conv.shape[-1], over(of.c, 256)
    partial = x.new_empty((of.b * blocks, k + 1), dtype=torch.float32)
    launch.launch(
        gates_backward.eca_logits_kernel, (of.b, blocks),
        sums.values, *norm, f.gate, whole, dlogits, o.eps, sums.parts, of.c, **flags(p), BLOCK_C=256, num_warps=4,
    )  # fmt: skip
    launch.launch(
        gates_backward.eca_pools_kernel, (of.b, blocks),
        dlogits, p.conv, *norm, f.gate, p.pool, whole, constants, partial, o.eps, of.c, of.p,
        CIRCULAR=o.flag, **flags(p), K=k, BLOCK_C=256, num_warps=4,
    )  # fmt: skip
    return partial, of.b * blocks


def _weights(
    x: Tensor, of: Layout, f: Forward, p: Small, o: Options, whole: Tensor, dlogits: Tensor, dhidden: Tensor,
    partial: Tensor, rows: int,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """Gradients of the parameters, and what the batch statistics pull by, (2, c)."""
    none = x.new_empty(0)
    parameters = (p.weight, p.bias, p.w1, p.b1, p.w2, p.b2, p.conv, p.conv_bias)
    # Empty ones have storages of their own: an operator must not return one tensor twice.
    found = [torch.empty_like(none if t is None else t, memory_format=torch.contiguous_format) for t in parameters]
    pull = x.new_empty((2, of.c), dtype=torch.float32)
    mlp = o.kind != "eca"
    r = f.hidden.shape[2] if mlp else 1
    size = {"BLOCK_B": 16, "BLOCK_C": 64, "BLOCK_R": 16}
    taps = 0 if p.conv is None else p.conv.numel()
    constants: dict[str, Any] = {"BIAS1": p.b1 is not None, "BIAS2": p.b2 is not None}
    launch.launch(
        gates_backward.weights_kernel, (over(of.c, 64) + (taps > 0), over(r, 16)),
        whole, dlogits, dhidden, f.hidden, p.pool, or_any(p.peak, x),
        or_any(p.weight, x), or_any(p.bias, x), or_any(p.mean, x), or_any(p.inv, x), partial,
        *found[:2], pull, *found[2:], o.eps, of.b, rows, of.c, of.p, r,
        POOLS=f.hidden.shape[1] if mlp else 0, **flags(p), BATCH=o.training, **constants,
        TAPS=taps, TAP_BIAS=p.conv_bias is not None, T=up(taps + 1, 1, 4096), **size, num_warps=4,
    )  # fmt: skip
    return found, pull
