"""Forward kernels of the channel gates: from pools, (b, c), to the gate and to what the maps are scaled by.

Notation as in :mod:`ferattn.kernels.passes`. Pools may come in parts: the mean and the extreme of ``rows`` places
each, (b, splits, c), as :mod:`ferattn.kernels.triton.maps` leaves them.
"""

import triton
import triton.language as tl

from ferattn.kernels.triton.maps import sigmoid, sign_of

__all__ = ["eca_kernel", "gate_kernel", "hidden_kernel", "norm_of", "pools_of"]


@triton.jit
def norm_of(weight, bias, mean, var, eps, c, inside, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr):
    """Mean, 1 / std, a and beta of some channels; 0, 1, 1 and 0 without a norm."""
    m = tl.zeros(c.shape, tl.float32)
    inv = tl.full(c.shape, 1.0, tl.float32)
    beta = tl.zeros(c.shape, tl.float32)
    if NORM:
        m = tl.load(mean + c, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(var + c, mask=inside, other=1.0).to(tl.float32)
        inv = tl.div_rn(tl.full(c.shape, 1.0, tl.float32), tl.sqrt_rn(v + eps))
    a = inv
    if WEIGHT:
        a = inv * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        beta = tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    return m, inv, a, beta


@triton.jit
def pools_of(
    means, peaks, weight, m, a, beta, b, c, inside, SPLITS, rows, C, P, PEAK: tl.constexpr, WEIGHT: tl.constexpr
):
    """The mean and, for ``PEAK``, the maximum of y over the places; the parts' means come less the norm's."""
    pool = tl.zeros(c.shape, tl.float32)
    top = tl.full(c.shape, -float("inf"), tl.float32)
    sign = sign_of(weight, c, inside, WEIGHT)
    for sp in range(SPLITS):
        at = (b * SPLITS + sp) * C + c
        share = tl.minimum(rows, P - sp * rows).to(tl.float32) / P
        pool += tl.load(means + at, mask=inside, other=0.0) * share
        if PEAK:
            top = tl.maximum(
                top, tl.load(peaks + at, mask=inside, other=0.0) * sign, propagate_nan=tl.PropagateNan.ALL
            )
    average = tl.fma(pool, a, beta)
    if PEAK:
        peak = tl.fma(top * sign - m, a, beta)
    else:
        peak = average
    return average, peak


@triton.jit
def hidden_tile(
    means, peaks, weight, bias, mean, var, w1, b1, hidden, eps, b, rb, SPLITS, rows, C, P, R,
    PEAK: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BIAS1: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """relu(W1 z + b1) of a sample's pools z, some of it; one layer (b, r) for each pool."""
    r = rb * BLOCK_R + tl.arange(0, BLOCK_R)
    there = r < R
    one = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    two = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = c < C
        m, _, a, beta = norm_of(weight, bias, mean, var, eps, c, inside, NORM, WEIGHT, BIAS)
        average, peak = pools_of(means, peaks, weight, m, a, beta, b, c, inside, SPLITS, rows, C, P, PEAK, WEIGHT)
        mask = there[:, None] & inside[None, :]
        w = tl.load(w1 + r[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
        one += tl.where(mask, w * average[None, :], 0.0)
        if PEAK:
            two += tl.where(mask, w * peak[None, :], 0.0)
    shift = tl.zeros([BLOCK_R], tl.float32)
    if BIAS1:
        shift = tl.load(b1 + r, mask=there, other=0.0).to(tl.float32)
    z = tl.sum(one, 1) + shift
    to = hidden + b * (2 if PEAK else 1) * R + r
    tl.store(to, tl.where(z <= 0, 0.0, z), mask=there)
    if PEAK:
        z = tl.sum(two, 1) + shift
        tl.store(to + R, tl.where(z <= 0, 0.0, z), mask=there)


@triton.jit
def hidden_kernel(
    means, peaks, weight, bias, mean, var, w1, b1, hidden, eps, SPLITS, rows, C, P, R,
    PEAK: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BIAS1: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The hidden layers of the MLP gate."""
    hidden_tile(
        means, peaks, weight, bias, mean, var, w1, b1, hidden, eps, tl.program_id(0), tl.program_id(1),
        SPLITS, rows, C, P, R, PEAK, NORM, WEIGHT, BIAS, BIAS1, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def store_gate(gate, coef, g, m, a, beta, b, c, inside, C, REFINED: tl.constexpr):
    """The gate, and mean, scale and offset of u."""
    tl.store(gate + b * C + c, g, mask=inside)
    if REFINED:
        a = a * g
        beta = beta * g
    to = coef + b * 3 * C + c
    tl.store(to, m, mask=inside)
    tl.store(to + C, a, mask=inside)
    tl.store(to + 2 * C, beta, mask=inside)


@triton.jit
def gate_tile(
    hidden, weight, bias, mean, var, w2, b2, gate, coef, eps, b, cb, C, R,
    POOLS: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BIAS2: tl.constexpr,
    REFINED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """sigmoid(sum over pools of W2 h + b2), some channels of a sample."""
    c = cb * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    total = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for r0 in range(0, R, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        there = r < R
        h = tl.load(hidden + b * POOLS * R + r, mask=there, other=0.0)
        if POOLS == 2:
            h += tl.load(hidden + b * 2 * R + R + r, mask=there, other=0.0)
        mask = inside[:, None] & there[None, :]
        w = tl.load(w2 + c[:, None] * R + r[None, :], mask=mask, other=0.0).to(tl.float32)
        total += w * h[None, :]
    logits = tl.sum(total, 1)
    if BIAS2:
        logits += POOLS * tl.load(b2 + c, mask=inside, other=0.0).to(tl.float32)
    m, _, a, beta = norm_of(weight, bias, mean, var, eps, c, inside, NORM, WEIGHT, BIAS)
    store_gate(gate, coef, sigmoid(logits), m, a, beta, b, c, inside, C, REFINED)


@triton.jit
def gate_kernel(
    hidden, weight, bias, mean, var, w2, b2, gate, coef, eps, C, R,
    POOLS: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BIAS2: tl.constexpr,
    REFINED: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The MLP gate from its hidden layers."""
    gate_tile(
        hidden, weight, bias, mean, var, w2, b2, gate, coef, eps, tl.program_id(0), tl.program_id(1), C, R,
        POOLS, NORM, WEIGHT, BIAS, BIAS2, REFINED, BLOCK_R, BLOCK_C,
    )  # fmt: skip


@triton.jit
def neighbour(c, t, C, K: tl.constexpr, CIRCULAR: tl.constexpr):
    """The channel t taps into an ECA filter's window over c, and whether there is one."""
    at = c + t - K // 2
    if CIRCULAR:
        at = (at + C * K) % C
    return at, (at >= 0) & (at < C) & (c < C)


@triton.jit
def eca_kernel(
    means, weight, bias, mean, var, taps, tap_bias, gate, coef, eps, SPLITS, rows, C, P,
    CIRCULAR: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TAP_BIAS: tl.constexpr,
    K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """ECA's gate: sigmoid(conv1d(z)) over the channels."""
    b = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    logits = tl.zeros([BLOCK_C], tl.float32)
    for t in tl.static_range(K):
        at, there = neighbour(c, t, C, K, CIRCULAR)
        m, _, a, beta = norm_of(weight, bias, mean, var, eps, at, there, NORM, WEIGHT, BIAS)
        average, _ = pools_of(means, means, weight, m, a, beta, b, at, there, SPLITS, rows, C, P, False, WEIGHT)
        logits += tl.where(there, average * tl.load(taps + t).to(tl.float32), 0.0)
    if TAP_BIAS:
        logits += tl.load(tap_bias).to(tl.float32)
    m, _, a, beta = norm_of(weight, bias, mean, var, eps, c, inside, NORM, WEIGHT, BIAS)
    store_gate(gate, coef, sigmoid(logits), m, a, beta, b, c, inside, C, True)
