"""Backward kernels that walk over whole maps: B1 the gradient before the activation, B2 CBAM's sums, B3 the input's.

Notation as in :mod:`ferattn.kernels.triton.maps`, and: ``spread`` (b, 2, p) is the gradient by CBAM's mean over the
channels, divided by c, and by its maximum, divided among those that hold it.
"""

import triton
import triton.language as tl

from ferattn.kernels.triton.bits import load_bits
from ferattn.kernels.triton.maps import centred, corner, grid_of, sigmoid, turn, unit, window

__all__ = ["before_kernel", "filter_kernel", "input_kernel", "spread_kernel"]


@triton.jit
def before_activation(dout, decisive, alpha, ACT: tl.constexpr):
    """From the output (its bit for ReLU, the input for SiLU) and its gradient to the input's gradient."""
    d = dout
    if ACT == 1:
        d = tl.where(decisive == 0, 0.0, dout)
    if ACT == 2:
        d = tl.where(decisive <= 0, dout * (decisive + alpha), dout)
    if ACT == 3:
        d = tl.where(decisive <= 0, dout * (decisive + 1.7580993408473766), dout * 1.0507009873554805)
    if ACT == 4:
        s = sigmoid(decisive)
        d = dout * (s * (1 + decisive * (1 - s)))
    return d


@triton.jit
def before_kernel(
    dout, x, kept, dz, coef, gate, s_in, sums, dlogits, alpha, BLOCKS, C, P,
    LAST: tl.constexpr, SPATIAL: tl.constexpr, REFINED: tl.constexpr, SHORTCUT: tl.constexpr, ACT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pass B1, upwards: reads dout, x and ``kept``, writes dz where it is not dout.

    ``kept`` is the output; its bits for ReLU, the shortcut for SiLU.
    ``sums`` (b, blocks, 2, c) gets the sums of dz s and dz s x^ over each block of places, ``dlogits`` (b, p) the
    gradient before the spatial gate's sigmoid.
    """
    at_turn = turn(False)
    b, pb = at_turn // BLOCKS, at_turn % BLOCKS
    p = pb * BLOCK_P + tl.arange(0, BLOCK_P)
    within = p < P
    base = corner(b, C, P)
    s = tl.full([BLOCK_P], 1.0, tl.float32)
    if SPATIAL:
        s = tl.load(s_in + b * P + p, mask=within, other=0.0)
    ds = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = c < C
        mask = within[:, None] & inside[None, :]
        at = base + grid_of(p, c, C, P, LAST)
        d = tl.load(dout + at, mask=mask, other=0.0).to(tl.float32)
        mean, scale, offset = centred(x, coef, b, c, inside, C)
        xc = tl.where(mask, tl.load(x + at, mask=mask, other=0.0).to(tl.float32) - mean[None, :], 0.0)
        u = unit(xc, scale, offset)
        if SPATIAL and not REFINED:
            u = u * tl.load(gate + b * C + c, mask=inside, other=0.0)[None, :]
        if ACT == 4:
            z = u * s[:, None]
            if SHORTCUT:
                z += tl.load(kept + at, mask=mask, other=0.0).to(tl.float32)
            d = before_activation(d, z, alpha, ACT)
        elif ACT == 1:
            d = before_activation(d, load_bits(kept, b, pb, c0, C, P, LAST, BLOCK_P, BLOCK_C), alpha, ACT)
        elif ACT > 0:
            d = before_activation(d, tl.load(kept + at, mask=mask, other=0.0).to(tl.float32), alpha, ACT)
        if ACT > 0:
            tl.store(dz + at, d, mask=mask)
        if SPATIAL:
            ds += tl.where(mask, d * u, 0.0)
            d = d * s[:, None]
        d = tl.where(mask, d, 0.0)
        to = sums + ((b * BLOCKS + pb) * 2) * C + c
        tl.store(to, tl.sum(d, 0), mask=inside)
        tl.store(to + C, tl.sum(d * xc, 0), mask=inside)
    if SPATIAL:
        tl.store(dlogits + b * P + p, tl.sum(ds, 1) * s * (1 - s), mask=within)


@triton.jit
def filter_kernel(
    dlogits, pooled, held, conv, spread, partial, SPANS, span, C, P, W,
    TIES: tl.constexpr, K: tl.constexpr, T: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Through CBAM's filter: ``spread``, and the filter's gradient from ``span`` places in a row of ``partial``.

    A row holds the taps on the mean, those on the maximum, and the bias.
    """
    b, part = tl.program_id(0), tl.program_id(1)
    t = tl.arange(0, T)
    real = t < K * K
    on_mean = tl.load(conv + t, mask=real, other=0.0).to(tl.float32)
    on_peak = tl.load(conv + K * K + t, mask=real, other=0.0).to(tl.float32)
    by_mean = tl.zeros([BLOCK_P, T], tl.float32)
    by_peak = tl.zeros([BLOCK_P, T], tl.float32)
    by_bias = tl.zeros([BLOCK_P], tl.float32)
    stop = tl.minimum((part + 1) * span, P)
    for p0 in range(part * span, stop, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        within = p < stop
        d = tl.load(dlogits + b * P + p, mask=within, other=0.0)
        row = (p // W)[:, None] - (t // K - K // 2)[None, :]
        column = (p % W)[:, None] - (t % K - K // 2)[None, :]
        seen = real[None, :] & (row >= 0) & (row < P // W) & (column >= 0) & (column < W) & within[:, None]
        back = tl.load(dlogits + b * P + row * W + column, mask=seen, other=0.0)
        of_mean = tl.sum(back * on_mean[None, :], 1) / C
        of_peak = tl.sum(back * on_peak[None, :], 1)
        if TIES == 2:
            of_peak = of_peak / tl.load(held + b * P + p, mask=within, other=1).to(tl.float32)
        to = spread + b * 2 * P + p
        tl.store(to, of_mean, mask=within)
        tl.store(to + P, of_peak, mask=within)
        around, _ = window(pooled, conv, p, b, W, P, T, K, 0)
        by_mean += around * d[:, None]
        around, _ = window(pooled, conv, p, b, W, P, T, K, 1)
        by_peak += around * d[:, None]
        by_bias += d
    to = partial + (b * SPANS + part) * (2 * K * K + 1)
    tl.store(to + t, tl.sum(by_mean, 0), mask=real)
    tl.store(to + K * K + t, tl.sum(by_peak, 0), mask=real)
    tl.store(to + 2 * K * K, tl.sum(by_bias, 0))


@triton.jit
def through_pools(u, p, c, mask, pooled, held, spread, b, P, within, TIES: tl.constexpr):
    """What reaches u through its mean and its maximum over the channels."""
    at = b * 2 * P + p
    of_mean = tl.load(spread + at, mask=within, other=0.0)
    of_peak = tl.load(spread + at + P, mask=within, other=0.0)
    if TIES == 2:
        holds = u == tl.load(pooled + at + P, mask=within, other=0.0)[:, None]
    else:
        holds = c[None, :] == tl.load(held + b * P + p, mask=within, other=0)[:, None]
    return tl.where(mask, of_mean[:, None] + tl.where(holds, of_peak[:, None], 0.0), 0.0)


@triton.jit
def spread_kernel(
    x, coef, pooled, held, spread, sums, SPLITS, rows, C, P,
    LAST: tl.constexpr, TIES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pass B2, downwards: reads x.

    Sums of what reaches u through its pools, and that times x^: ``sums`` (b, splits, 2, c).
    """
    at = turn(True)
    blocks = tl.cdiv(C, BLOCK_C)
    b, sp, cb = at // blocks // SPLITS, at // blocks % SPLITS, at % blocks
    c = cb * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    base = x + corner(b, C, P)
    mean, scale, offset = centred(x, coef, b, c, inside, C)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    moment = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    stop = tl.minimum((sp + 1) * rows, P)
    for p0 in range(sp * rows, stop, BLOCK_P):
        p = p0 + tl.arange(0, BLOCK_P)
        within = p < stop
        mask = within[:, None] & inside[None, :]
        value = tl.load(base + grid_of(p, c, C, P, LAST), mask=mask, other=0.0).to(tl.float32)
        xc = tl.where(mask, value - mean[None, :], 0.0)
        through = through_pools(unit(xc, scale, offset), p, c, mask, pooled, held, spread, b, P, within, TIES)
        total += through
        moment += through * xc
    to = sums + ((b * SPLITS + sp) * 2) * C + c
    tl.store(to, tl.sum(total, 0), mask=inside)
    tl.store(to + C, tl.sum(moment, 0), mask=inside)


@triton.jit
def input_kernel(
    dz, x, dx, coef, gate, s_in, pooled, held, spread, constants, peak, peak_ties, pull, C, P,
    LAST: tl.constexpr, SPATIAL: tl.constexpr, REFINED: tl.constexpr, TIES: tl.constexpr, BATCH: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pass B3: reads dz and x, writes dx; upwards for CBAM, behind B2, or downwards.

    ``constants`` (b, 2, c) come from the pools over the places: to every place, and to those that hold the maximum;
    ``pull`` (2, c) from the batch statistics: a constant and a factor of x^.
    """
    at_turn = turn(not SPATIAL)
    blocks = tl.cdiv(C, BLOCK_C)
    piece = at_turn // blocks
    b, pb = piece // tl.cdiv(P, BLOCK_P), piece % tl.cdiv(P, BLOCK_P)
    p = pb * BLOCK_P + tl.arange(0, BLOCK_P)
    c = (at_turn % blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    within = p < P
    inside = c < C
    mask = within[:, None] & inside[None, :]
    at = corner(b, C, P) + grid_of(p, c, C, P, LAST)
    d = tl.load(dz + at, mask=mask, other=0.0).to(tl.float32)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    mean, scale, offset = centred(x, coef, b, c, inside, C)
    xc = value - mean[None, :]
    to = b * 2 * C + c
    if SPATIAL:
        d = d * tl.load(s_in + b * P + p, mask=within, other=0.0)[:, None]
        if not REFINED:
            d = d * tl.load(gate + b * C + c, mask=inside, other=0.0)[None, :]
        d += through_pools(unit(xc, scale, offset), p, c, mask, pooled, held, spread, b, P, within, TIES)
    d = d * scale[None, :] + tl.load(constants + to, mask=inside, other=0.0)[None, :]
    if SPATIAL:
        if TIES == 2:
            holds = value == tl.load(peak + b * C + c, mask=inside, other=0.0)[None, :]
        else:
            holds = p[:, None] == tl.load(peak_ties + b * C + c, mask=inside, other=0)[None, :]
        d += tl.where(holds, tl.load(constants + to + C, mask=inside, other=0.0)[None, :], 0.0)
    if BATCH:
        d -= tl.load(pull + c, mask=inside, other=0.0)[None, :]
        d -= xc * tl.load(pull + C + c, mask=inside, other=0.0)[None, :]
    tl.store(dx + at, d, mask=mask)
