"""The whole tail of one sample in one program, for inference on maps so small that launches are all that counts.

The same tiles as in the other kernels, one after another. What one of them leaves for the next goes through a little
memory of the sample's own, and a barrier.
"""

import triton
import triton.language as tl

from ferattn.kernels.triton.gates import gate_tile, hidden_tile
from ferattn.kernels.triton.maps import apply_tile, pool_tile, spatial_tile

__all__ = ["sample_kernel"]


@triton.jit
def sample_kernel(
    x, shortcut, out, weight, bias, mean, var, w1, b1, w2, b2, conv, conv_bias, scratch, eps, alpha, B, C, P, W, R,
    LAST: tl.constexpr, SPATIAL: tl.constexpr, REFINED: tl.constexpr, SHORTCUT: tl.constexpr,
    NORM: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BIAS1: tl.constexpr, BIAS2: tl.constexpr,
    CONV_BIAS: tl.constexpr, ACT: tl.constexpr, K: tl.constexpr, T: tl.constexpr,
    POOL_P: tl.constexpr, POOL_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Reads x twice or thrice, from the caches after the first time, and the shortcut; writes the output."""
    POOLS: tl.constexpr = 2 if SPATIAL else 1
    b = tl.program_id(0)
    means = scratch
    peaks = means + B * C
    gate = peaks + B * C
    coef = gate + B * C
    hidden = coef + B * 3 * C
    pooled = hidden + B * 2 * R
    for cb in range(tl.cdiv(C, POOL_C)):
        pool_tile(
            x, mean, weight, means, means, peaks, peaks, b, cb, 0, 1, P, C, P,
            LAST, 1 if NORM else 0, 1 if SPATIAL else 0, WEIGHT, POOL_P, POOL_C,
        )  # fmt: skip
    tl.debug_barrier()
    for rb in range(tl.cdiv(R, BLOCK_R)):
        hidden_tile(
            means, peaks, weight, bias, mean, var, w1, b1, hidden, eps, b, rb, 1, P, C, P, R,
            SPATIAL, NORM, WEIGHT, BIAS, BIAS1, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    tl.debug_barrier()
    for cb in range(tl.cdiv(C, BLOCK_C)):
        gate_tile(
            hidden, weight, bias, mean, var, w2, b2, gate, coef, eps, b, cb, C, R,
            POOLS, NORM, WEIGHT, BIAS, BIAS2, REFINED, BLOCK_R, BLOCK_C,
        )  # fmt: skip
    tl.debug_barrier()
    if SPATIAL:
        for pb in range(tl.cdiv(P, BLOCK_P)):
            spatial_tile(x, coef, pooled, pooled, b, pb, C, P, LAST, 1, BLOCK_P, BLOCK_C)
        tl.debug_barrier()
    for pb in range(tl.cdiv(P, BLOCK_P)):
        apply_tile(
            x, shortcut, out, out, coef, gate, pooled, pooled, conv, conv_bias, alpha, b, pb, 0, C, C, P, W,
            LAST, SPATIAL, REFINED, SHORTCUT, CONV_BIAS, False, ACT, K, T, BLOCK_P, BLOCK_C,
        )  # fmt: skip
