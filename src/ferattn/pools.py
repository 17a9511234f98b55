"""Means and maxima over a feature map, as PyTorch computes them, with gradients that take fewer passes.

What an exporter, a compiler or ``torch.func`` sees are PyTorch's own ``mean`` and ``amax``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

__all__ = ["amax", "mean", "transformed"]


def mean(x: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The mean, whose gradient is divided while it is small.

    ``Tensor.mean`` first spreads the gradient over the map and divides it there, contiguously even where the map is
    channels_last: a pass more, and all that comes after mixes two memory formats. The gradient of a sum stays spread
    out until it is added to the map's own. In bfloat16 the sum is rounded before it is divided, once more than in a
    mean; in float16 it could overflow. Where no gradient is needed it is the mean itself.

    Args:
        x: A floating-point map.
        dims: Over which axes.
        keepdim: Keep them, with one entry each.
    """
    if not _learns(x):
        return x.mean(dims, keepdim)
    # With its dtype given, autocast lets the sum alone.
    return x.sum(dims, keepdim, dtype=x.dtype) / math.prod(x.shape[dim] for dim in dims)


def amax(x: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The maximum; places that tie share its gradient, as with ``Tensor.amax``.

    On a CPU the gradient of ``Tensor.amax`` goes through a mask of booleans, whose conversions take most of its time;
    here the mask has the map's dtype. Arguments as those of :func:`mean`.
    """
    if not _learns(x) or x.device.type != "cpu" or type(x) not in (Tensor, Parameter) or transformed():
        return x.amax(dims, keepdim)
    peak: Tensor = _Amax.apply(x, dims)
    return peak if keepdim else peak.squeeze(dims)


def _learns(x: Tensor) -> bool:
    """Whether there will be a gradient, and nobody writes the operations down to read or to fuse them."""
    if not x.requires_grad or not torch.is_grad_enabled() or x.dtype == torch.float16:
        return False
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return not tracing and not torch.compiler.is_compiling()


def transformed() -> bool:
    """Whether derivatives are taken otherwise than by a backward pass: by torch.func, or forwards."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


class _Amax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Tensor:
        peak = x.amax(dims, keepdim=True)
        ctx.save_for_backward(x, peak)
        ctx.dims = dims
        return peak

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        x, peak = (saved.detach() for saved in ctx.saved_tensors)
        with torch.no_grad():
            holders = torch.eq(x, peak, out=torch.empty_like(x))
            number = holders.sum(ctx.dims, keepdim=True)
        share = gradients[0] / number
        return (holders * share if torch.is_grad_enabled() else holders.mul_(share)), None
