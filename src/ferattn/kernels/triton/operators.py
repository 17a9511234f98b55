"""PyTorch operators of the kernels: implementation, fake, backward, FLOP formula.

``ferattn::tail_statistics`` is the pass that a training batch norm needs and the only one that changes an argument,
the running statistics; ``ferattn::tail`` is the rest of the forward pass, all of it at inference, and
``ferattn::tail_backward`` its derivative. Off CUDA they compute by :mod:`ferattn.kernels.passes`.
"""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.library import triton_op
from torch.utils.flop_counter import register_flop_formula

from ferattn.kernels import passes
from ferattn.kernels.parts import Act, Gate, Norm, weights_of
from ferattn.kernels.passes import FROM_INPUT, Options, Small
from ferattn.kernels.triton import launch, launch_backward
from ferattn.kernels.triton.bits import packed, unpacked

__all__ = ["tail", "tail_backward", "tail_statistics", "tail_through_operators"]

# PyTorch reads the schemas off the annotations, and only these spellings.
Maybe = Optional[Tensor]  # noqa: UP045
Forward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def tail_through_operators(
    x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None, act: Act, ties: str
) -> Tensor:
    """:func:`ferattn.kernels.fused_tail` without its checks."""
    kind, flag, weights = weights_of(gate)
    options = Options(kind, flag, norm is not None and norm.training, 1e-5 if norm is None else norm.eps, *act, ties)
    norm = norm or Norm(None, None, None, None, training=False)
    mean, var = norm.running_mean, norm.running_var
    pool = peak = found = None
    small = (norm.weight, norm.bias, mean, var, *weights)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, shortcut, *small))
    if options.training or save:
        with torch.no_grad():
            wanted = launch.tie_rule(ties) if kind == "cbam" else 0
            centre, *tracked = (None, mean, var) if options.training else (mean, None, None)
            batch_mean, batch_var, pool, peak, found = tail_statistics(
                x.detach(), norm.weight, *tracked, centre, norm.momentum, options.training, wanted
            )
        if options.training:
            mean, var = batch_mean, batch_var
        if kind != "cbam":
            peak = found = None
    out, *_ = tail(x, shortcut, norm.weight, norm.bias, mean, var, pool, peak, *weights, found, *options, save)
    return out  # type: ignore[no-any-return]


@triton_op("ferattn::tail_statistics", mutates_args={"running_mean", "running_var"})
def tail_statistics(
    x: Tensor, weight: Maybe, running_mean: Maybe, running_var: Maybe, centre: Maybe,
    momentum: float, batch: bool, peak: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Mean and variance, (c), of a batch, and mean, decisive extreme and its ties, (b, c), of each map.

    Not for a ``batch``, ``centre`` is the norm's mean. The running statistics are arguments for a batch only: PyTorch
    takes them for changed by every call, and what an earlier call saved of them would be lost to its backward pass.
    """
    if launch.runs_here(x):
        return launch.statistics(x, weight, running_mean, running_var, centre, momentum, batch=batch, peak=peak)
    norm = Norm(weight, None, running_mean, running_var, training=True, momentum=momentum)
    ties = "first" if peak == 3 else "shared"
    mean, var, pool, top = passes.moments(x, norm, with_peak=peak > 0, ties=ties)
    assert mean is not None
    assert var is not None
    return mean, var, pool, pool.new_empty(0) if top is None else top, pool.new_empty(0, dtype=torch.int32)


@triton_op("ferattn::tail", mutates_args=())
def tail(
    x: Tensor, shortcut: Maybe,
    weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, pool: Maybe, peak: Maybe,
    w1: Maybe, b1: Maybe, w2: Maybe, b2: Maybe, conv: Maybe, conv_bias: Maybe, peak_ties: Maybe,
    kind: str, flag: bool, training: bool, eps: float, act: str, alpha: float, ties: str, save: bool,
) -> Forward:  # fmt: skip
    """The output, and for ``save`` what the backward pass needs beside it: ``launch.Forward``."""
    p = Small(weight, bias, mean, var, pool, peak, w1, b1, w2, b2, conv, conv_bias)
    o = Options(kind, flag, training, eps, act, alpha, ties)
    if launch.runs_here(x):
        return launch.forward(x, shortcut, p, o, save=save)
    out, pooled, s = passes.forward(x, shortcut, _plain(x, p, o), o)
    none = x.new_empty(0, dtype=passes.accumulator(x))
    pooled, s = (none.clone() if t is None else t for t in (pooled, s))
    bits = none.to(torch.uint8)
    if save and act == "relu":
        bits = packed(out, last=x.is_contiguous(memory_format=torch.channels_last))
    return out, none, none.clone(), none.clone(), pooled, s, none.to(torch.int32), bits


@triton_op("ferattn::tail_backward", mutates_args=())
def tail_backward(
    dout: Tensor, x: Tensor, kept: Maybe,
    weight: Maybe, bias: Maybe, mean: Maybe, var: Maybe, pool: Tensor, peak: Maybe,
    w1: Maybe, b1: Maybe, w2: Maybe, b2: Maybe, conv: Maybe, conv_bias: Maybe, peak_ties: Maybe,
    gate: Tensor, coef: Tensor, hidden: Tensor, pooled: Tensor, s: Tensor, held: Tensor,
    kind: str, flag: bool, training: bool, eps: float, act: str, alpha: float, ties: str,
) -> Backward:  # fmt: skip
    """Gradients by x, shortcut, gamma, beta, w1, b1, w2, b2, filter and its bias; empty where there is none.

    The shortcut's is empty too where it is ``dout`` itself, behind the activation "identity".
    """
    p = Small(weight, bias, mean, var, pool, peak, w1, b1, w2, b2, conv, conv_bias)
    o = Options(kind, flag, training, eps, act, alpha, ties)
    if launch.runs_here(x):
        left = launch.Forward(x, gate, coef, hidden, pooled, s, held, x)
        return launch_backward.backward(dout, x, kept, left, peak_ties, p, o)
    kept = unpacked(kept, x) if kept is not None and act == "relu" else kept
    cbam = kind == "cbam"
    found = list(passes.backward(dout, x, kept, pooled if cbam else None, s if cbam else None, _plain(x, p, o), o))
    if act == "identity":
        found[1] = None
    return tuple(x.new_empty(0) if t is None else t for t in found)  # type: ignore[return-value]


def _plain(x: Tensor, p: Small, o: Options) -> Small:
    """What :mod:`ferattn.kernels.passes` calls small: 1 / std in the variance's place, and pools."""
    acc = passes.accumulator(x)
    if p.pool is None:
        norm = None if p.mean is None else Norm(p.weight, p.bias, p.mean, p.inv, training=False)
        _, _, pool, peak = passes.moments(x, norm, with_peak=o.kind == "cbam", ties=o.ties)
        p = p._replace(pool=pool, peak=peak)
    if p.inv is None or p.mean is None:
        return p
    return p._replace(mean=p.mean.to(acc), inv=(p.inv.to(acc) + o.eps).rsqrt())


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, shortcut, *small = inputs[:15]
    options = Options(*inputs[15:22])
    out, *rest, bits = output
    kept = {"identity": None, "relu": bits}.get(options.act, shortcut if options.act in FROM_INPUT else out)
    ctx.save_for_backward(x, kept, *small, *rest)
    ctx.mark_non_differentiable(*rest, bits)
    ctx.set_materialize_grads(False)
    ctx.options = tuple(options)


def _go_back(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Any, ...]:
    nothing = (None,) * 23
    if dout is None:
        return nothing
    x, kept, *rest = ctx.saved_tensors
    options = Options(*ctx.options)
    found: tuple[Tensor | None, ...]
    with passes.no_autocast(x):
        if torch.is_grad_enabled():
            small = _plain(x, Small(*rest[:12]), options)
            kept = unpacked(kept, x) if options.act == "relu" else kept
            found = passes.differentiable_backward(dout, x, kept, small, options)
        else:
            found = tail_backward(dout, x, kept, *rest, *options)
    if not torch.is_grad_enabled() and options.act == "identity":
        found = (found[0], dout, *found[2:])
    dx, dshortcut, dweight, dbias, *dgate = found
    in_order = (dx, dshortcut, dweight, dbias, None, None, None, None, *dgate, *nothing[14:])
    return tuple(
        gradient if needed else None for gradient, needed in zip(in_order, ctx.needs_input_grad, strict=True)
    )


tail.register_autograd(_go_back, setup_context=_remember)


def _gate_flops(shape: Any, kind: str, w1: Any, conv: Any) -> int:
    """Of matrix products and convolutions, as torch counts them: a multiply and an add are two."""
    b, c, h, w = shape
    if kind == "eca":
        return int(2 * b * c * conv[-1])
    pools = 2 if kind == "cbam" else 1
    flops = 4 * b * c * w1[0] * pools
    return int(flops + (4 * b * h * w * conv[-1] * conv[-2] if kind == "cbam" else 0))


@register_flop_formula(torch.ops.ferattn.tail)
def _tail_flops(x: Any, shortcut: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    return _gate_flops(x, rest[13], rest[6], rest[10])


@register_flop_formula(torch.ops.ferattn.tail_backward)
def _tail_backward_flops(dout: Any, x: Any, kept: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * _gate_flops(x, rest[19], rest[6], rest[10])


@register_flop_formula(torch.ops.ferattn.tail_statistics)
def _tail_statistics_flops(*_: Any, **__: Any) -> int:
    return 0
