"""Forward kernels that walk over whole maps: statistics and pools, spatial pools, and the output.

Notation as in :mod:`ferattn.kernels.passes`. A map is (b, c, p), p = h w places, in memory either channels_last
(``LAST``) or contiguous; a tile is ``BLOCK_P`` places by ``BLOCK_C`` channels of one sample, held in float32.
Pools are kept less the norm's mean, which a channel far from zero would otherwise cost their last digits.
Every sum has one fixed order, and nothing is atomic, so results repeat to the bit.

Passes take turns: one walks up the samples, the next one down. It begins where the one before it ended, with what the
L2 cache still holds of maps that are larger than it. What a program computes does not depend on when its turn comes.

Between the passes, ``coef`` (b, 3, c) holds mean, scale and offset: u = (x - mean) scale + offset is what CBAM's
spatial gate pools, y g, or y where it is not refined. It is one subtraction and one fused multiply-add wherever it is
computed, so the backward pass finds the places that held the maximum again, to the bit.

``PEAK`` and ``TIES`` say what is wanted of a maximum: 0 none, 1 its value, 2 and how many places hold it, 3 and which
is the first.
"""

import triton
import triton.language as tl

from ferattn.kernels.triton.bits import store_bits

__all__ = [
    "activated",
    "apply_kernel",
    "centred",
    "finish_kernel",
    "pool_kernel",
    "sigmoid",
    "spatial_kernel",
    "turn",
]

NONE = tl.constexpr(2147483647)  # no place


@triton.jit
def turn(DOWN: tl.constexpr):
    """Which piece of the maps this program takes: all of one sample, then of the next; ``DOWN`` from the last."""
    at = tl.program_id(0)
    if DOWN:
        at = tl.num_programs(0) - 1 - at
    return at


@triton.jit
def corner(b, C, P):
    """Where sample b starts."""
    return b.to(tl.int64) * C * P


@triton.jit
def grid_of(p, c, C, P, LAST: tl.constexpr):
    """Offsets of a tile inside its sample."""
    if LAST:
        offsets = p[:, None] * C + c[None, :]
    else:
        offsets = c[None, :] * P + p[:, None]
    return offsets


@triton.jit
def highest(t, AXIS: tl.constexpr):
    """The maximum, NaN where there is a NaN, which ``tl.max`` alone would pass over."""
    bad = tl.max((t != t).to(tl.int32), AXIS)
    return tl.where(bad > 0, float("nan"), tl.max(t, AXIS))


@triton.jit
def centre_of(x, centre, c, inside, P, LAST: tl.constexpr, CENTRE: tl.constexpr):
    """What sums are shifted by, so that they are not cancelled away.

    0 is nothing, 1 the norm's mean, and 2, where the mean is only being found, the first value of each channel.
    """
    pivot = tl.zeros(c.shape, tl.float32)
    if CENTRE == 1:
        pivot = tl.load(centre + c, mask=inside, other=0.0).to(tl.float32)
    if CENTRE == 2:
        first = tl.load(x + (c if LAST else c * P), mask=inside, other=0.0).to(tl.float32)
        pivot = tl.where(tl.abs(first) < float("inf"), first, 0.0)
    return pivot


@triton.jit
def sigmoid(z):
    """1 / (1 + exp(-z))."""
    return 1 / (1 + tl.exp(-z))


@triton.jit
def sign_of(weight, c, inside, WEIGHT: tl.constexpr):
    """-1 behind a negative gamma, where the largest y is the smallest x."""
    if WEIGHT:
        sign = tl.where(tl.load(weight + c, mask=inside, other=1.0).to(tl.float32) < 0, -1.0, 1.0)
    else:
        sign = tl.full(c.shape, 1.0, tl.float32)
    return sign


@triton.jit
def centred(x, coef, b, c, inside, C):
    """Mean, scale and offset of some channels of a sample."""
    at = coef + b * 3 * C + c
    mean = tl.load(at, mask=inside, other=0.0)
    scale = tl.load(at + C, mask=inside, other=0.0)
    offset = tl.load(at + 2 * C, mask=inside, other=0.0)
    return mean, scale, offset


@triton.jit
def unit(xc, scale, offset):
    """U from x - mean."""
    return tl.fma(xc, tl.broadcast_to(scale[None, :], xc.shape), tl.broadcast_to(offset[None, :], xc.shape))


@triton.jit
def pool_tile(
    x, centre, weight, means, squares, peaks, ties, b, cb, sp, SPLITS, rows, C, P,
    LAST: tl.constexpr, CENTRE: tl.constexpr, PEAK: tl.constexpr, WEIGHT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, sum of squared deviations and decisive extreme of ``rows`` places of some channels of a sample."""
    c = cb * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    start = sp * rows
    stop = tl.minimum(start + rows, P)
    lanes = tl.arange(0, BLOCK_P)
    base = x + corner(b, C, P)
    pivot = centre_of(x, centre, c, inside, P, LAST, CENTRE)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    top = tl.full([BLOCK_P, BLOCK_C], -float("inf"), tl.float32)
    held = tl.full([BLOCK_P, BLOCK_C], NONE if PEAK == 3 else 0, tl.int32)
    sign = sign_of(weight, c, inside, WEIGHT)
    for p0 in range(start, stop, BLOCK_P):
        p = p0 + lanes
        mask = (p < stop)[:, None] & inside[None, :]
        value = tl.load(base + grid_of(p, c, C, P, LAST), mask=mask, other=0.0).to(tl.float32)
        shifted = tl.where(mask, value - pivot[None, :], 0.0)
        total += shifted
        if CENTRE == 2:
            square += shifted * shifted
        if PEAK > 0:
            value = tl.where(mask, value * sign[None, :], -float("inf"))
            if PEAK == 2:
                held = tl.where(value > top, 1, held + (mask & (value == top)).to(tl.int32))
            if PEAK == 3:
                held = tl.where((value > top) | (mask & (held == NONE)), p[:, None], held)
            top = tl.maximum(top, value, propagate_nan=tl.PropagateNan.ALL)
    at = (b * SPLITS + sp) * C + c
    count = (stop - start).to(tl.float32)
    summed = tl.sum(total, 0)
    tl.store(means + at, summed / count, mask=inside)
    if CENTRE == 2:
        tl.store(squares + at, tl.sum(square, 0) - summed * summed / count, mask=inside)
    if PEAK > 0:
        best = highest(top, 0)
        tl.store(peaks + at, best * sign, mask=inside)
        if PEAK == 2:
            tl.store(ties + at, tl.sum(tl.where(top == best[None, :], held, 0), 0), mask=inside)
        if PEAK == 3:
            tl.store(ties + at, tl.min(tl.where(top == best[None, :], held, NONE), 0), mask=inside)


@triton.jit
def pool_kernel(
    x, centre, weight, means, squares, peaks, ties, SPLITS, rows, C, P,
    LAST: tl.constexpr, CENTRE: tl.constexpr, PEAK: tl.constexpr, WEIGHT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pass: reads x, upwards."""
    at = turn(False)
    blocks = tl.cdiv(C, BLOCK_C)
    piece = at // blocks
    pool_tile(
        x, centre, weight, means, squares, peaks, ties, piece // SPLITS, at % blocks, piece % SPLITS,
        SPLITS, rows, C, P,
        LAST, CENTRE, PEAK, WEIGHT, BLOCK_P, BLOCK_C,
    )  # fmt: skip


@triton.jit
def finish_kernel(
    x, centre, weight, running_mean, running_var, means, squares, peaks, ties,
    mean_out, var_out, pool_out, peak_out, ties_out, momentum, B, SPLITS, rows, C, P,
    LAST: tl.constexpr, CENTRE: tl.constexpr, TRACK: tl.constexpr, PEAK: tl.constexpr, WEIGHT: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pools of every sample less the mean, extremes, and the batch's mean and variance where ``CENTRE`` is 2."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    sign = sign_of(weight, c, inside, WEIGHT)
    mean = centre_of(x, centre, c, inside, P, LAST, CENTRE)
    apart = tl.zeros([BLOCK_C], tl.float32)  # the mean from what the sums were shifted by
    values = 1.0 * B * P  # a batch of 1 is a constant to Triton, without a dtype
    if CENTRE == 2:
        total = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        for b0 in range(0, B, BLOCK_B):
            b = b0 + tl.arange(0, BLOCK_B)
            mask = (b < B)[:, None] & inside[None, :]
            for sp in range(SPLITS):
                at = (b[:, None] * SPLITS + sp) * C + c[None, :]
                total += tl.load(means + at, mask=mask, other=0.0) * tl.minimum(rows, P - sp * rows).to(tl.float32)
        pivot = mean
        mean = pivot + tl.sum(total, 0) / values
        apart = mean - pivot
    spread = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
    for b0 in range(0, B, BLOCK_B):
        b = b0 + tl.arange(0, BLOCK_B)
        mask = (b < B)[:, None] & inside[None, :]
        summed = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        top = tl.full([BLOCK_B, BLOCK_C], -float("inf"), tl.float32)
        held = tl.full([BLOCK_B, BLOCK_C], NONE if PEAK == 3 else 0, tl.int32)
        for sp in range(SPLITS):
            at = (b[:, None] * SPLITS + sp) * C + c[None, :]
            count = tl.minimum(rows, P - sp * rows).to(tl.float32)
            part = tl.load(means + at, mask=mask, other=0.0) - apart[None, :]
            summed += part * count
            if CENTRE == 2:
                more = tl.load(squares + at, mask=mask, other=0.0) + part * part * count
                spread += tl.where(mask, more, 0.0)
            if PEAK > 0:
                value = tl.load(peaks + at, mask=mask, other=0.0) * sign[None, :]
                some = tl.load(ties + at, mask=mask, other=0)
                if PEAK == 2:
                    held = tl.where(value > top, some, tl.where(value == top, held + some, held))
                if PEAK == 3:
                    held = tl.where((value > top) | (held == NONE), some, held)
                top = tl.maximum(top, value, propagate_nan=tl.PropagateNan.ALL)
        pool = summed / P
        to = b[:, None] * C + c[None, :]
        tl.store(pool_out + to, pool, mask=mask)
        if PEAK > 0:
            peak = top * sign[None, :]
            if WEIGHT:  # behind a zero gamma all places are equally high
                flat = (tl.load(weight + c, mask=inside, other=1.0).to(tl.float32) == 0)[None, :]
                if PEAK == 2:
                    peak = tl.where(flat, pool + mean[None, :], peak)
                if PEAK == 3:
                    first = b[:, None].to(tl.int64) * C * P + (c[None, :] if LAST else c[None, :] * P)
                    peak = tl.where(flat, tl.load(x + first, mask=mask, other=0.0).to(tl.float32), peak)
            tl.store(peak_out + to, peak, mask=mask)
            tl.store(ties_out + to, held, mask=mask)
    if CENTRE == 2:
        var = tl.sum(spread, 0) / values
        tl.store(mean_out + c, mean, mask=inside)
        tl.store(var_out + c, var, mask=inside)
        if TRACK:
            old = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(running_mean + c, old + momentum * (mean - old), mask=inside)
            old = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(running_var + c, old + momentum * (var * (values / (values - 1)) - old), mask=inside)


@triton.jit
def spatial_tile(
    x, coef, pooled, ties, b, pb, C, P,
    LAST: tl.constexpr, TIES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean and maximum of u over the channels, at some places of a sample; u is not written."""
    p = pb * BLOCK_P + tl.arange(0, BLOCK_P)
    within = p < P
    base = x + corner(b, C, P)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    top = tl.full([BLOCK_P, BLOCK_C], -float("inf"), tl.float32)
    held = tl.full([BLOCK_P, BLOCK_C], NONE if TIES == 3 else 0, tl.int32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = c < C
        mask = within[:, None] & inside[None, :]
        value = tl.load(base + grid_of(p, c, C, P, LAST), mask=mask, other=0.0).to(tl.float32)
        mean, scale, offset = centred(x, coef, b, c, inside, C)
        u = unit(value - mean[None, :], scale, offset)
        total += tl.where(mask, u, 0.0)
        u = tl.where(mask, u, -float("inf"))
        if TIES == 2:
            held = tl.where(u > top, 1, held + (mask & (u == top)).to(tl.int32))
        if TIES == 3:
            held = tl.where((u > top) | (mask & (held == NONE)), c[None, :], held)
        top = tl.maximum(top, u, propagate_nan=tl.PropagateNan.ALL)
    best = highest(top, 1)
    to = pooled + b * 2 * P + p
    tl.store(to, tl.sum(total, 1) / C, mask=within)
    tl.store(to + P, best, mask=within)
    if TIES == 2:
        tl.store(ties + b * P + p, tl.sum(tl.where(top == best[:, None], held, 0), 1), mask=within)
    if TIES == 3:
        tl.store(ties + b * P + p, tl.min(tl.where(top == best[:, None], held, NONE), 1), mask=within)


@triton.jit
def spatial_kernel(
    x, coef, pooled, ties, C, P,
    LAST: tl.constexpr, TIES: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pass: reads x, downwards."""
    at = turn(True)
    blocks = tl.cdiv(P, BLOCK_P)
    spatial_tile(x, coef, pooled, ties, at // blocks, at % blocks, C, P, LAST, TIES, BLOCK_P, BLOCK_C)


@triton.jit
def less_one(z):
    """exp(z) - 1 for z <= 0, without cancellation near 0."""
    near = 1 + z / 6 * (1 + z / 7 * (1 + z / 8))
    near = z * (1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5 * near))))
    return tl.where(z > -0.5, near, tl.exp(z) - 1)


@triton.jit
def activated(z, alpha, ACT: tl.constexpr):
    """One of ``ferattn.kernels.ACTS`` by its place there; what is no number stays none."""
    if ACT == 1:
        z = tl.where(z <= 0, 0.0, z)
    if ACT == 2:
        z = tl.where(z > 0, z, alpha * less_one(z))
    if ACT == 3:
        z = 1.0507009873554805 * tl.where(z > 0, z, 1.6732632423543772 * less_one(z))
    if ACT == 4:
        z = z / (1 + tl.exp(-z))
    return z


@triton.jit
def window(pooled, conv, p, b, W, P, T: tl.constexpr, K: tl.constexpr, CHANNEL: tl.constexpr):
    """The places around p that a k x k filter sees, (places, taps), and the filter's taps."""
    t = tl.arange(0, T)
    row = (p // W)[:, None] + (t // K - K // 2)[None, :]
    column = (p % W)[:, None] + (t % K - K // 2)[None, :]
    seen = (t < K * K)[None, :] & (row >= 0) & (row < P // W) & (column >= 0) & (column < W) & (p < P)[:, None]
    value = tl.load(pooled + (b * 2 + CHANNEL) * P + row * W + column, mask=seen, other=0.0)
    tap = tl.load(conv + CHANNEL * K * K + t, mask=t < K * K, other=0.0).to(tl.float32)
    return value, tap


@triton.jit
def apply_tile(
    x, shortcut, out, bits, coef, gate, pooled, s_out, conv, conv_bias, alpha, b, pb, c_start, c_stop, C, P, W,
    LAST: tl.constexpr, SPATIAL: tl.constexpr, REFINED: tl.constexpr, SHORTCUT: tl.constexpr, BIAS: tl.constexpr,
    SAVE: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The output at some places and channels of a sample, CBAM's spatial gate included; to ``SAVE``, ReLU's bits."""
    p = pb * BLOCK_P + tl.arange(0, BLOCK_P)
    within = p < P
    base = corner(b, C, P)
    s = tl.full([BLOCK_P], 1.0, tl.float32)
    if SPATIAL:
        around, tap = window(pooled, conv, p, b, W, P, T, K, 0)
        logits = tl.sum(around * tap[None, :], 1)
        around, tap = window(pooled, conv, p, b, W, P, T, K, 1)
        logits += tl.sum(around * tap[None, :], 1)
        if BIAS:
            logits += tl.load(conv_bias).to(tl.float32)
        s = sigmoid(logits)
        if SAVE:
            tl.store(s_out + b * P + p, s, mask=within)
    for c0 in range(c_start, c_stop, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = c < C
        mask = within[:, None] & inside[None, :]
        at = base + grid_of(p, c, C, P, LAST)
        value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
        mean, scale, offset = centred(x, coef, b, c, inside, C)
        z = unit(value - mean[None, :], scale, offset)
        if SPATIAL:
            z = z * s[:, None]
            if not REFINED:
                z = z * tl.load(gate + b * C + c, mask=inside, other=0.0)[None, :]
        if SHORTCUT:
            z += tl.load(shortcut + at, mask=mask, other=0.0).to(tl.float32)
        z = activated(z, alpha, ACT).to(out.dtype.element_ty)
        tl.store(out + at, z, mask=mask)
        if SAVE and ACT == 1:
            z = z.to(tl.float32)
            up = (mask & ((z > 0) | (z != z))).to(tl.int32)
            store_bits(bits, up, b, pb, c0, C, P, LAST, BLOCK_P, BLOCK_C)


@triton.jit
def apply_kernel(
    x, shortcut, out, bits, coef, gate, pooled, s_out, conv, conv_bias, alpha, span, C, P, W,
    LAST: tl.constexpr, SPATIAL: tl.constexpr, REFINED: tl.constexpr, SHORTCUT: tl.constexpr, BIAS: tl.constexpr,
    SAVE: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Pass: reads x and the shortcut, writes the output; upwards after the spatial pools of CBAM, or downwards."""
    at = turn(not SPATIAL)
    blocks, spans = tl.cdiv(P, BLOCK_P), tl.cdiv(C, span)
    piece = at // spans
    c_start = (at % spans) * span
    apply_tile(
        x, shortcut, out, bits, coef, gate, pooled, s_out, conv, conv_bias, alpha, piece // blocks, piece % blocks,
        c_start, tl.minimum(c_start + span, C), C, P, W,
        LAST, SPATIAL, REFINED, SHORTCUT, BIAS, SAVE, ACT, K, T, BLOCK_P, BLOCK_C,
    )  # fmt: skip
