"""The tail of a residual block in few passes: batch norm -> attention -> + shortcut -> activation.

The norm's statistics and the attention's pools come from the same pass over the convolution's output, and the norm's
backward sums follow from sums that the attention takes anyway. Only the convolution's output, the tail's own output
(the shortcut instead, for SiLU; from the Triton kernels, ReLU's bits) and small tensors are saved; the rest is
computed again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ferattn import reference
from ferattn.errors import choose
from ferattn.kernels.dispatch import decide
from ferattn.kernels.parts import Act, CBAMGate, ECAGate, Gate, Norm, SEGate, require, weights_of
from ferattn.kernels.passes import (
    FROM_INPUT,
    Options,
    Small,
    backward,
    differentiable_backward,
    forward,
    no_autocast,
    statistics,
)

__all__ = ["fused_tail", "plain_tail"]

_TIES = ("shared", "first")
_PLAIN = Act()


def plain_tail(x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None = None, act: Act = _PLAIN) -> Tensor:
    """The tail module by module, as PyTorch computes it: what :func:`fused_tail` has to equal.

    Arguments, shape and errors as :func:`fused_tail`.
    """
    require(x, shortcut, gate, norm, act)
    y = x
    if norm is not None:
        buffers = (norm.running_mean, norm.running_var)
        y = F.batch_norm(x, *buffers, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
    if isinstance(gate, SEGate):
        z = reference.se(y, *gate)
    elif isinstance(gate, ECAGate):
        z = reference.eca(y, gate.weight, gate.bias, channels=gate.channels, circular=gate.circular)
    else:
        z = reference.cbam(y, *gate[:6], refined=gate.refined)
    z = z if shortcut is None else z + shortcut
    if act.name == "elu":
        return F.elu(z, act.alpha)
    return z if act.name == "identity" else getattr(F, act.name)(z)


def fused_tail(
    x: Tensor,
    shortcut: Tensor | None,
    gate: Gate,
    norm: Norm | None = None,
    act: Act = _PLAIN,
    *,
    ties: str = "shared",
    path: str = "auto",
) -> Tensor:
    """act(attention(norm(x)) + shortcut) in explicit passes, with the backward written out.

    Half-precision maps are summed, gated and normalised in float32 and rounded once, at the end. For a second
    derivative the backward goes through the formulas of :mod:`ferattn.reference`.

    Args:
        x: The last convolution's output.
        shortcut: What is added before the activation, of x's shape and dtype, or None.
        gate: The attention: ``SEGate``, ``ECAGate`` or ``CBAMGate``.
        norm: The batch norm before the attention, or None. In training its running statistics are updated in place.
        act: The activation at the end.
        ties: Where several places hold a maximum, CBAM's gradient is ``"shared"`` evenly between them, as
            ``torch.amax`` does it and the blocks of :mod:`ferattn.attention` with it, or goes to the ``"first"``.
            A second derivative always shares.
        path: ``"triton"`` for the kernels, ``"plain"`` for PyTorch's operations, or ``"auto"``: what
            :func:`ferattn.kernels.use` says, and without it the operations: the kernels are untimed yet.
            :func:`ferattn.kernels.explain` tells which it is and why.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidInput: If x is no floating-point (b, c, h, w) map, if the shortcut differs from it in shape or dtype,
            if the gate was made for other channels, or if a training norm gets one value per channel.
        InvalidOption: If a norm that is not training has no running statistics, if an ELU's alpha is not above 0, or
            if the kernels were asked for where they cannot run.
        UnknownChoice: If there is no such activation, rule for ties or path.

    >>> x, shortcut = torch.randn(2, 2, 8, 6, 6)
    >>> norm = Norm(torch.ones(8), torch.zeros(8), None, None, training=True)
    >>> fused_tail(x, shortcut, ECAGate(torch.ones(1, 1, 3), None, 8), norm, Act("relu")).shape
    torch.Size([2, 8, 6, 6])
    """
    require(x, shortcut, gate, norm, act)
    if ties not in _TIES:
        choose(dict.fromkeys(_TIES), ties, "rule for ties")
    by = decide(x, shortcut, gate, norm, path).path
    with no_autocast(x):
        if by == "triton":
            from ferattn.kernels.triton.operators import tail_through_operators  # importing Triton takes long

            return tail_through_operators(x, shortcut, gate, norm, act, ties)
        with torch.no_grad():
            mean, inv, pool, peak = statistics(x, norm, with_peak=isinstance(gate, CBAMGate), ties=ties)
        if norm is None:
            norm = Norm(None, None, None, None, training=False)
        kind, flag, weights = weights_of(gate)
        small = (norm.weight, norm.bias, mean, inv, pool, peak, *weights)
        options = (kind, flag, norm.training, norm.eps, act.name, act.alpha, ties)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, shortcut, *small)):
            return _Tail.apply(x, shortcut, *small, *options)  # type: ignore[no-any-return]
        return forward(x, shortcut, Small(*small), Options(*options))[0]


class _Tail(torch.autograd.Function):
    """The passes tied into autograd: x, the shortcut, what is in ``Small``, what is in ``Options``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shortcut: Tensor | None, *rest: Any) -> Tensor:
        small, options = Small(*rest[: len(Small._fields)]), Options(*rest[len(Small._fields) :])
        out, pooled, s = forward(x, shortcut, small, options)
        kept = None if options.act == "identity" else shortcut if options.act in FROM_INPUT else out
        ctx.save_for_backward(x, kept, pooled, s, *small)
        ctx.options = tuple(options)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        x, kept, pooled, s, *rest = ctx.saved_tensors
        small, options = Small(*rest), Options(*ctx.options)
        with no_autocast(x):
            if torch.is_grad_enabled():
                found = differentiable_backward(gradients[0], x, kept, small, options)
            else:
                found = backward(gradients[0], x, kept, pooled, s, small, options)
        dx, dshortcut, dweight, dbias, *dgate = found
        in_order = (dx, dshortcut, dweight, dbias, None, None, None, None, *dgate, *(None for _ in options))
        return tuple(
            gradient if needed else None for gradient, needed in zip(in_order, ctx.needs_input_grad, strict=True)
        )
