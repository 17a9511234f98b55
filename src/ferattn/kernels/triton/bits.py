"""One bit for each value of a ReLU's output: whether the gradient passes. The backward pass reads it for the output.

Eight neighbours in memory are a byte, the first of them its lowest bit; a row of places or channels ends in a byte of
its own: (b, h, w, ceil(c / 8)) for channels_last maps, (b, c, ceil(h w / 8)) for contiguous ones. As in PyTorch, NaN
passes the gradient on, and what is rounded to zero does not.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["load_bits", "packed", "store_bits", "unpacked"]


def packed(out: Tensor, *, last: bool) -> Tensor:
    """The bits of an output in PyTorch's operations: what the kernels write."""
    rows = out.permute(0, 2, 3, 1) if last else out.flatten(2)
    up = F.pad((~(rows <= 0)).to(torch.uint8), (0, -rows.shape[-1] % 8)).unflatten(-1, (-1, 8))
    bits: Tensor = (up << torch.arange(8, dtype=torch.uint8, device=out.device)).sum(-1, dtype=torch.uint8)
    return bits


def unpacked(bits: Tensor, x: Tensor) -> Tensor:
    """1 where the gradient passes and 0 elsewhere, as a map like x."""
    _, c, h, w = x.shape
    ones: Tensor = ((bits[..., None] >> torch.arange(8, dtype=torch.uint8, device=bits.device)) & 1).flatten(-2)
    ones = ones[..., :c].permute(0, 3, 1, 2) if bits.ndim == 4 else ones[..., : h * w].unflatten(-1, (h, w))
    return ones.to(x.dtype)


@triton.jit
def bytes_of(b, pb, c0, C, P, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Where a tile's bytes lie, and which of them there are."""
    if LAST:
        width = tl.cdiv(C, 8)
        row = (pb * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
        byte = (c0 // 8 + tl.arange(0, BLOCK_C // 8))[None, :]
        rows = P
    else:
        width = tl.cdiv(P, 8)
        row = (c0 + tl.arange(0, BLOCK_C))[None, :]
        byte = (pb * (BLOCK_P // 8) + tl.arange(0, BLOCK_P // 8))[:, None]
        rows = C
    return b.to(tl.int64) * rows * width + row * width + byte, (row < rows) & (byte < width)


@triton.jit
def store_bits(bits, up, b, pb, c0, C, P, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Write the bits of a tile of zeros and ones."""
    if LAST:
        up = tl.reshape(up, [BLOCK_P, BLOCK_C // 8, 8])
        found = tl.sum(up << tl.arange(0, 8)[None, None, :], 2)
    else:
        up = tl.reshape(up, [BLOCK_P // 8, 8, BLOCK_C])
        found = tl.sum(up << tl.arange(0, 8)[None, :, None], 1)
    at, mask = bytes_of(b, pb, c0, C, P, LAST, BLOCK_P, BLOCK_C)
    tl.store(bits + at, found.to(tl.uint8), mask=mask)


@triton.jit
def load_bits(bits, b, pb, c0, C, P, LAST: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The zeros and ones of a tile; zeros outside of the map."""
    at, mask = bytes_of(b, pb, c0, C, P, LAST, BLOCK_P, BLOCK_C)
    found = tl.load(bits + at, mask=mask, other=0).to(tl.int32)
    if LAST:
        up = (found[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    else:
        up = (found[:, None, :] >> tl.arange(0, 8)[None, :, None]) & 1
    return tl.reshape(up, [BLOCK_P, BLOCK_C])
