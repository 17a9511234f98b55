"""Backward kernels of the channel gates, and the gradients of all weights.

Notation as in :mod:`ferattn.kernels.passes`. ``whole`` (b, 2, c) holds the sums over a map of what reaches u, and of
that times x^; later of what reaches y.
"""

import triton
import triton.language as tl

from ferattn.kernels.triton.gates import neighbour, norm_of

__all__ = ["eca_logits_kernel", "eca_pools_kernel", "logits_kernel", "pools_kernel", "weights_kernel"]


@triton.jit
def summed(sums, b, c, inside, PARTS, C):
    """Both sums over a map from those over its parts, (b, parts, 2, c)."""
    total = tl.zeros(c.shape, tl.float32)
    moment = tl.zeros(c.shape, tl.float32)
    for part in range(PARTS):
        at = sums + ((b * PARTS + part) * 2) * C + c
        total += tl.load(at, mask=inside, other=0.0)
        moment += tl.load(at + C, mask=inside, other=0.0)
    return total, moment


@triton.jit
def logits_tile(
    sums, more, weight, bias, mean, var, gate, whole, dlogits, eps, b, c, inside, store, PARTS, MORE_PARTS, C,
    MORE: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """The gradient before the gate's sigmoid, some channels of a sample."""
    total, moment = summed(sums, b, c, inside, PARTS, C)
    if MORE:
        total_, moment_ = summed(more, b, c, inside, MORE_PARTS, C)
        total += total_
        moment += moment_
    _, _, a, beta = norm_of(weight, bias, mean, var, eps, c, inside, NORM, WEIGHT, BIAS)
    g = tl.load(gate + b * C + c, mask=inside, other=0.0)
    d = tl.where(inside, (a * moment + beta * total) * g * (1 - g), 0.0)
    to = whole + b * 2 * C + c
    tl.store(to, total, mask=store)
    tl.store(to + C, moment, mask=store)
    tl.store(dlogits + b * C + c, d, mask=store)
    return d


@triton.jit
def logits_kernel(
    sums, more, weight, bias, mean, var, gate, hidden, w2, whole, dlogits, dhidden, eps, PARTS, MORE_PARTS, C, R,
    POOLS: tl.constexpr, MORE: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """From the maps' sums to the MLP's hidden layers."""
    b = tl.program_id(0)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = r < R
    total = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for c0 in range(0, C, BLOCK_C):
        c = c0 + tl.arange(0, BLOCK_C)
        inside = c < C
        store = inside & (c * 0 + tl.program_id(1) == 0)
        d = logits_tile(
            sums, more, weight, bias, mean, var, gate, whole, dlogits, eps, b, c, inside, store, PARTS, MORE_PARTS, C,
            MORE, NORM, WEIGHT, BIAS,
        )  # fmt: skip
        mask = inside[:, None] & there[None, :]
        total += d[:, None] * tl.load(w2 + c[:, None] * R + r[None, :], mask=mask, other=0.0).to(tl.float32)
    d = tl.sum(total, 0)
    for pool in tl.static_range(POOLS):
        at = (b * POOLS + pool) * R + r
        h = tl.load(hidden + at, mask=there, other=0.0)
        tl.store(dhidden + at, tl.where(h <= 0, 0.0, d), mask=there)


@triton.jit
def eca_logits_kernel(
    sums, weight, bias, mean, var, gate, whole, dlogits, eps, PARTS, C,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """From the maps' sums to before ECA's sigmoid."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    logits_tile(
        sums, sums, weight, bias, mean, var, gate, whole, dlogits, eps, tl.program_id(0), c, c < C, c < C,
        PARTS, 0, C, False, NORM, WEIGHT, BIAS,
    )  # fmt: skip


@triton.jit
def finish_pools(
    by_mean, by_peak, more, weight, bias, mean, var, gate, pool, peak, peak_ties, whole, constants, eps,
    b, c, inside, MORE_PARTS, C, P,
    POOLS: tl.constexpr, MORE: tl.constexpr, TIES: tl.constexpr,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """From the pools of y to constants over the places, and the sums of what reaches y."""
    m, _, a, _ = norm_of(weight, bias, mean, var, eps, c, inside, NORM, WEIGHT, BIAS)
    g = tl.load(gate + b * C + c, mask=inside, other=0.0)
    to = b * 2 * C + c
    total = g * tl.load(whole + to, mask=inside, other=0.0) + by_mean
    moment = g * tl.load(whole + to + C, mask=inside, other=0.0)
    moment += by_mean * tl.load(pool + b * C + c, mask=inside, other=0.0)
    tl.store(constants + to, by_mean * a / P, mask=inside)
    if POOLS == 2:
        total += by_peak
        moment += by_peak * (tl.load(peak + b * C + c, mask=inside, other=0.0) - m)
        share = by_peak * a
        if TIES == 2:
            share = share / tl.load(peak_ties + b * C + c, mask=inside, other=1).to(tl.float32)
        # Behind a zero gamma all places tie, and nothing gets through to x.
        tl.store(constants + to + C, tl.where(a == 0, 0.0, share), mask=inside)
    if MORE:
        total_, moment_ = summed(more, b, c, inside, MORE_PARTS, C)
        total += total_
        moment += moment_
    tl.store(whole + to, total, mask=inside)
    tl.store(whole + to + C, moment, mask=inside)


@triton.jit
def pools_kernel(
    dhidden, w1, more, weight, bias, mean, var, gate, pool, peak, peak_ties, whole, constants, eps,
    MORE_PARTS, C, P, R,
    POOLS: tl.constexpr, MORE: tl.constexpr, TIES: tl.constexpr,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """From the MLP's hidden layers to the pools, and on to the maps."""
    b = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    by_mean = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    by_peak = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for r0 in range(0, R, BLOCK_R):
        r = r0 + tl.arange(0, BLOCK_R)
        there = r < R
        w = tl.load(w1 + r[:, None] * C + c[None, :], mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
        at = dhidden + b * POOLS * R + r
        by_mean += w * tl.load(at, mask=there, other=0.0)[:, None]
        if POOLS == 2:
            by_peak += w * tl.load(at + R, mask=there, other=0.0)[:, None]
    finish_pools(
        tl.sum(by_mean, 0), tl.sum(by_peak, 0), more, weight, bias, mean, var, gate, pool, peak, peak_ties,
        whole, constants, eps, b, c, inside, MORE_PARTS, C, P, POOLS, MORE, TIES, NORM, WEIGHT, BIAS,
    )  # fmt: skip


@triton.jit
def eca_pools_kernel(
    dlogits, taps, weight, bias, mean, var, gate, pool, whole, constants, partial, eps, C, P,
    CIRCULAR: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr,
    K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Back through ECA's filter; the filter's gradient and its bias's from some channels in a row of ``partial``."""
    b = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = c < C
    by_mean = tl.zeros([BLOCK_C], tl.float32)
    d = tl.load(dlogits + b * C + c, mask=inside, other=0.0)
    to = partial + (b * tl.num_programs(1) + tl.program_id(1)) * (K + 1)
    for t in tl.static_range(K):
        at, there = neighbour(c, K - 1 - t, C, K, CIRCULAR)
        by_mean += tl.load(dlogits + b * C + at, mask=there, other=0.0) * tl.load(taps + t).to(tl.float32)
        at, there = neighbour(c, t, C, K, CIRCULAR)
        _, _, a, beta = norm_of(weight, bias, mean, var, eps, at, there, NORM, WEIGHT, BIAS)
        average = tl.fma(tl.load(pool + b * C + at, mask=there, other=0.0), a, beta)
        tl.store(to + t, tl.sum(tl.where(there, average * d, 0.0), 0))
    tl.store(to + K, tl.sum(d, 0))
    finish_pools(
        by_mean, by_mean, whole, weight, bias, mean, var, gate, pool, pool, pool, whole, constants, eps,
        b, c, inside, 0, C, P, 1, False, 1, NORM, WEIGHT, BIAS,
    )  # fmt: skip


@triton.jit
def weights_kernel(
    whole, dlogits, dhidden, hidden, pool, peak, weight, bias, mean, var, partial,
    dweight, dbias, pull, dw1, db1, dw2, db2, dconv, dconv_bias, eps, B, ROWS, C, P, R,
    POOLS: tl.constexpr, NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BATCH: tl.constexpr,
    BIAS1: tl.constexpr, BIAS2: tl.constexpr, TAPS: tl.constexpr, TAP_BIAS: tl.constexpr, T: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Sums over the samples: gradients of gamma, beta and the gate's weights, and ``pull`` of ``input_kernel``.

    Without ``POOLS`` there is no MLP, without ``TAPS`` no filter, which the last program along the channels takes.
    """
    cb, rb = tl.program_id(0), tl.program_id(1)
    if cb * BLOCK_C < C:
        c = cb * BLOCK_C + tl.arange(0, BLOCK_C)
        r = rb * BLOCK_R + tl.arange(0, BLOCK_R)
        inside = c < C
        there = r < R
        m, inv, a, beta = norm_of(weight, bias, mean, var, eps, c, inside, NORM, WEIGHT, BIAS)
        by_total = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        by_moment = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        by_logits = tl.zeros([BLOCK_B, BLOCK_C], tl.float32)
        by_hidden = tl.zeros([BLOCK_B, BLOCK_R], tl.float32)
        by_w1 = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        by_w2 = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
        for b0 in range(0, B, BLOCK_B):
            b = b0 + tl.arange(0, BLOCK_B)
            mask = (b < B)[:, None] & inside[None, :]
            at = b[:, None] * C + c[None, :]
            if NORM:
                by_total += tl.load(whole + at + b[:, None] * C, mask=mask, other=0.0)
                by_moment += tl.load(whole + at + b[:, None] * C + C, mask=mask, other=0.0)
            if POOLS > 0:
                d = tl.load(dlogits + at, mask=mask, other=0.0)
                by_logits += d
                narrow = (b < B)[:, None] & there[None, :]
                h_at = b[:, None] * POOLS * R + r[None, :]
                h = tl.load(hidden + h_at, mask=narrow, other=0.0)
                dh = tl.load(dhidden + h_at, mask=narrow, other=0.0)
                z = tl.load(pool + at, mask=mask, other=0.0) * a[None, :] + beta[None, :]
                by_w1 += tl.dot(tl.trans(dh), tl.where(mask, z, 0.0), input_precision="ieee")
                by_hidden += dh
                if POOLS == 2:
                    h += tl.load(hidden + h_at + R, mask=narrow, other=0.0)
                    dh = tl.load(dhidden + h_at + R, mask=narrow, other=0.0)
                    z = (tl.load(peak + at, mask=mask, other=0.0) - m[None, :]) * a[None, :] + beta[None, :]
                    by_w1 += tl.dot(tl.trans(dh), tl.where(mask, z, 0.0), input_precision="ieee")
                    by_hidden += dh
                by_w2 += tl.dot(tl.trans(d), h, input_precision="ieee")
        alone = inside & (c * 0 + rb == 0)
        if NORM:
            total = tl.sum(by_total, 0)
            moment = tl.sum(by_moment, 0) * inv
            if WEIGHT:
                tl.store(dweight + c, moment, mask=alone)
            if BIAS:
                tl.store(dbias + c, total, mask=alone)
            if BATCH:
                values = 1.0 * B * P  # a batch of 1 is a constant to Triton, without a dtype
                tl.store(pull + c, a * total / values, mask=alone)
                tl.store(pull + C + c, a * inv * moment / values, mask=alone)
        if POOLS > 0:
            tl.store(dw1 + r[:, None] * C + c[None, :], by_w1, mask=there[:, None] & inside[None, :])
            tl.store(dw2 + c[:, None] * R + r[None, :], by_w2, mask=inside[:, None] & there[None, :])
            if BIAS1:
                tl.store(db1 + r, tl.sum(by_hidden, 0), mask=there & (r * 0 + cb == 0))
            if BIAS2:
                tl.store(db2 + c, POOLS * tl.sum(by_logits, 0), mask=alone)
    elif TAPS > 0:
        t = tl.arange(0, T)
        of_rows = tl.zeros([16, T], tl.float32)
        for row0 in range(0, ROWS, 16):
            row = row0 + tl.arange(0, 16)
            written = (row < ROWS)[:, None] & (t <= TAPS)[None, :]
            of_rows += tl.load(partial + row[:, None] * (TAPS + 1) + t[None, :], mask=written, other=0.0)
        found = tl.sum(of_rows, 0)
        tl.store(dconv + t, found, mask=(t < TAPS) & (t * 0 + rb == 0))
        if TAP_BIAS:
            tl.store(dconv_bias + t * 0, found, mask=(t == TAPS) & (t * 0 + rb == 0))
