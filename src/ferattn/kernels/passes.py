"""The passes of the fused tail, forward and backward; :mod:`ferattn.kernels.tail` says what they add up to.

A pass is a walk over a whole (b, c, h, w) map. Each is marked where it happens; a compiler fuses what stands between
two marks, and eager PyTorch walks once per operation.

Notation: x the convolution's output, x^ = x - mean, a = gamma / std, y = a x^ + beta the norm's output, g the channel
gate (b, c), s the spatial gate (b, 1, h, w), z what the activation reads; a d before a name is the loss's gradient.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from ferattn import reference
from ferattn.kernels.gates import (
    eca_backward,
    eca_forward,
    mlp_backward,
    mlp_forward,
    spatial_backward,
    spatial_forward,
)
from ferattn.kernels.parts import Norm

__all__ = [
    "FROM_INPUT",
    "Options",
    "Small",
    "accumulator",
    "backward",
    "differentiable_backward",
    "forward",
    "moments",
    "no_autocast",
    "statistics",
]

FROM_INPUT = ("silu",)
"""Activations whose derivative cannot be told from their output."""

_SELU = (1.6732632423543772, 1.0507009873554805)


class Small(NamedTuple):
    """All that a tail needs beside its maps: the norm's tensors, (c); the pools of x, (b, c); the gate's weights."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor | None
    inv: Tensor | None
    pool: Any
    peak: Any
    w1: Any
    b1: Tensor | None
    w2: Any
    b2: Tensor | None
    conv: Any
    conv_bias: Tensor | None


class Options(NamedTuple):
    """What kind of tail it is."""

    kind: str  # "se", "eca" or "cbam"
    flag: bool  # circular of ECA, refined of CBAM
    training: bool  # of the norm
    eps: float
    act: str
    alpha: float
    ties: str


def no_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """The passes choose their dtypes themselves."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype of sums, statistics and gates."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def statistics(
    x: Tensor, norm: Norm | None, *, with_peak: bool, ties: str
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """Mean and 1 / std of the channels, (c), and mean and decisive extreme of every map, (b, c): a pass over x."""
    mean, var, pool, peak = moments(x, norm, with_peak=with_peak, ties=ties)
    return mean, None if norm is None or var is None else (var + norm.eps).rsqrt(), pool, peak


def moments(
    x: Tensor, norm: Norm | None, *, with_peak: bool, ties: str
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor | None]:
    """As :func:`statistics`, with the variance for 1 / std."""
    xf = x.to(accumulator(x))
    mean, var, pool = _moments(xf, norm)
    if norm is not None and norm.training and mean is not None and var is not None:
        count = x.numel() // x.shape[1]
        if norm.running_mean is not None:
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
        if norm.running_var is not None:
            norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), norm.momentum)
    if not with_peak:
        return mean, var, pool, None
    peak = xf.amax((2, 3))
    weight = None if norm is None else norm.weight
    if weight is not None and not _all_positive(weight):
        # Behind a negative gamma the largest y is the smallest x; behind a zero all are equally large.
        level = xf[:, :, 0, 0] if ties == "first" else pool
        peak = torch.where(weight > 0, peak, torch.where(weight < 0, xf.amin((2, 3)), level))
    return mean, var, pool, peak


def _all_positive(weight: Tensor) -> bool:
    """Asking the data costs nothing on a CPU; a GPU would have to stop for it, and a traced tensor has none."""
    known = type(weight) in (Tensor, Parameter) and weight.is_cpu and not torch.compiler.is_compiling()
    return known and bool((weight > 0).all())


def _moments(xf: Tensor, norm: Norm | None) -> tuple[Tensor | None, Tensor | None, Tensor]:
    if norm is None:
        return None, None, xf.mean((2, 3))
    if not norm.training and norm.running_mean is not None and norm.running_var is not None:
        return norm.running_mean.to(xf.dtype), norm.running_var.to(xf.dtype), xf.mean((2, 3))
    if torch.compiler.is_compiling():
        # Welford by map, then the maps put together: one pass for a compiler, without cancellation.
        spread, pool = torch.var_mean(xf, (2, 3), correction=0)
        mean = pool.mean(0)
        return mean, (spread + (pool - mean).square()).mean(0), pool
    pool = xf.mean((2, 3))
    mean = pool.mean(0)
    deviation = xf - _map(mean)  # eager var is up to ten times slower on a CPU than a walk more
    return mean, deviation.mul_(deviation).mean((2, 3)).mean(0), pool


def forward(x: Tensor, shortcut: Tensor | None, p: Small, o: Options) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The output, and for CBAM the pooled map and the spatial gate."""
    p, a = _prepared(x, p)
    g, _ = _channel_gate(p, o, _pools(p, a))
    pooled = s = None
    xc = _centred(x, p.mean)
    if o.kind == "cbam":
        y = _scaled(xc, a, p.bias, g if o.flag else None, own=xc is not x)
        pooled = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)  # pass: reads x
        s = spatial_forward(pooled, p.conv, p.conv_bias)
        gates = s if o.flag else _map(g) * s
        z = y * gates if y is x else y.mul_(gates)
    else:
        z = _scaled(xc, a, p.bias, g, own=xc is not x)
    if shortcut is not None:
        z = z.add_(shortcut)
    return _activate_(z, o).to(x.dtype), pooled, s  # pass: reads x and the shortcut, writes the output


def backward(
    dout: Tensor, x: Tensor, kept: Tensor | None, pooled: Tensor | None, s: Tensor | None, p: Small, o: Options
) -> tuple[Tensor | None, ...]:
    """Gradients by x, shortcut, gamma, beta, w1, b1, w2, b2, convolution and its bias."""
    parameters = (p.weight, p.bias, p.w1, p.b1, p.w2, p.b2, p.conv, p.conv_bias)
    p, a = _prepared(x, p)
    pools = _pools(p, a)
    g, hidden = _channel_gate(p, o, pools)
    xc = _centred(x, p.mean)
    count = x.shape[2] * x.shape[3]
    dmlp: tuple[Tensor | None, ...] = (None, None, None, None)
    dconv = dconv_bias = None

    dz = _before_activation(dout, x, kept, s, xc, g, p, a, o)  # pass: reads dout, out and x, writes dz
    du = dz  # what reaches u = y g but for the spatial pools
    through_pools = None  # what reaches u or y through them
    if s is not None and pooled is not None:
        y = _scaled(xc, a, p.bias, g if o.flag else None, own=False)
        ds = (dz * y if o.flag else dz * y * _map(g)).sum(1, keepdim=True)
        dpooled, dconv, dconv_bias = spatial_backward(ds, s, pooled, p.conv)
        through_pools = _spread_over_channels(dpooled, y, pooled, o.ties)  # pass: reads x
        du = dz * s
        if o.flag:
            du.add_(through_pools)
    total, moment = du.sum((2, 3)), (du * xc).sum((2, 3))
    dg = moment if a is None or p.bias is None else a * moment + p.bias * total
    if o.kind == "eca":
        dpool, dconv, dconv_bias = eca_backward(dg, g, pools[0], p.conv, o.flag)
        dpools: tuple[Tensor, ...] = (dpool,)
    else:
        dpools, *found = mlp_backward(dg, g, hidden, pools, p.w1, p.w2)
        dmlp = tuple(found)

    # Sums of dy and of dy x^ over each map, from the sums taken already.
    total, moment = g * total + dpools[0], g * moment + dpools[0] * _centred(p.pool, p.mean)
    scale, constant = (g, dpools[0] / count) if a is None else (g * a, dpools[0] * a / count)
    dx = du * _map(scale)  # pass: reads dz and x, writes dx
    if through_pools is not None:
        if not o.flag:
            total, moment = total + through_pools.sum((2, 3)), moment + (through_pools * xc).sum((2, 3))
            dx.add_(through_pools if a is None else through_pools * _map(a))
        total, moment = total + dpools[1], moment + dpools[1] * _centred(p.peak, p.mean)
        dx.add_(_spread_over_positions(dpools[1], x, p.peak, a, o.ties))
    dweight = dbias = None
    if a is not None and p.inv is not None:
        dbias, dweight = total.sum(0), moment.sum(0) * p.inv
        if o.training:
            values = x.shape[0] * count
            constant = constant - a * dbias / values
            dx.add_(xc * _map(-a * p.inv * dweight / values))
    dx.add_(_map(constant))
    gradients = (dweight, dbias, *dmlp, dconv, dconv_bias)
    cast = (None if d is None or q is None else d.to(q.dtype) for d, q in zip(gradients, parameters, strict=True))
    return dx.to(x.dtype), dz.to(x.dtype), *cast


def differentiable_backward(
    dout: Tensor, x: Tensor, kept: Tensor | None, p: Small, o: Options
) -> tuple[Tensor | None, ...]:
    """The gradients of :func:`backward` by the reference's formulas, which autograd can go through once more."""
    inputs = (x, p.weight, p.bias, p.w1, p.b1, p.w2, p.b2, p.conv, p.conv_bias)
    acc = accumulator(x)
    p = Small(*(t if t is None else t.to(acc) for t in p))
    y = x.to(acc)
    if o.training:
        y = F.batch_norm(y, None, None, p.weight, p.bias, True, 0.0, o.eps)
    elif p.inv is not None:
        y = _centred(y, p.mean) * _map(p.inv if p.weight is None else p.inv * p.weight)
        y = y if p.bias is None else y + _map(p.bias)
    if o.kind == "se":
        z = reference.se(y, p.w1, p.b1, p.w2, p.b2)
    elif o.kind == "eca":
        z = reference.eca(y, p.conv, p.conv_bias, channels=x.shape[1], circular=o.flag)
    else:
        z = reference.cbam(y, p.w1, p.b1, p.w2, p.b2, p.conv, p.conv_bias, refined=o.flag)
    decisive = kept if o.act not in FROM_INPUT else z if kept is None else z + kept
    if decisive is not None and o.act == "silu":  # PyTorch has no second derivative of its own for it
        sigmoid = torch.sigmoid(decisive)
        dz = dout.to(acc) * sigmoid * (1 + decisive * (1 - sigmoid))
    else:
        dz = _act_backward(dout.to(acc), decisive, o)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(z, wanted, dz, create_graph=True) if wanted else ())
    dx, *rest = (next(found) if t is not None and t.requires_grad else None for t in inputs)
    return dx, dz.to(x.dtype), *rest


def _prepared(x: Tensor, p: Small) -> tuple[Small, Tensor | None]:
    """All small tensors in the dtype of sums, beta as a tensor, and a = gamma / std; None without a norm."""
    acc = accumulator(x)
    p = Small(*(t if t is None else t.to(acc) for t in p))
    if p.inv is None:
        return p, None
    bias = torch.zeros_like(p.inv) if p.bias is None else p.bias
    return p._replace(bias=bias), p.inv if p.weight is None else p.inv * p.weight


def _pools(p: Small, a: Tensor | None) -> tuple[Tensor, ...]:
    """The pools of y from those of x."""
    pools = (_centred(pool, p.mean) for pool in (p.pool, p.peak) if pool is not None)
    return tuple(pool if a is None or p.bias is None else pool * a + p.bias for pool in pools)


def _channel_gate(p: Small, o: Options, pools: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    if o.kind == "eca":
        return eca_forward(pools[0], p.conv, p.conv_bias, o.flag), ()
    return mlp_forward(pools, p.w1, p.b1, p.w2, p.b2)


def _map(t: Tensor) -> Tensor:
    """(c) or (b, c) beside a map."""
    return t[..., None, None]


def _centred(t: Tensor, mean: Tensor | None) -> Tensor:
    """Subtract the mean from a map or its pools; without a norm there is none."""
    if t.ndim != 4:
        return t if mean is None else t - mean
    t = t.to(accumulator(t))
    return t if mean is None else t - _map(mean)


def _scaled(xc: Tensor, a: Tensor | None, bias: Tensor | None, g: Tensor | None, *, own: bool) -> Tensor:
    """(a x^ + beta) g, in place where x^ is ours to overwrite."""
    factor = a if g is None else g if a is None else a * g
    if factor is None:
        return xc if own else xc.clone()
    scaled = xc.mul_(_map(factor)) if own else xc * _map(factor)
    if bias is None or a is None:
        return scaled
    return scaled.add_(_map(bias if g is None else bias * g))


def _before_activation(
    dout: Tensor,
    x: Tensor,
    kept: Tensor | None,
    s: Tensor | None,
    xc: Tensor,
    g: Tensor,
    p: Small,
    a: Tensor | None,
    o: Options,
) -> Tensor:
    """The gradient by z."""
    acc = xc.dtype
    if o.act not in FROM_INPUT:
        return _act_backward(dout.to(acc), None if kept is None else kept.to(acc), o)
    z = _scaled(xc, a, p.bias, g, own=False)
    if s is not None:
        z = z.mul_(s)
    return _act_backward(dout.to(acc), z if kept is None else z.add_(kept), o)


def _activate_(z: Tensor, o: Options) -> Tensor:
    if o.act == "relu":
        return torch.relu_(z)
    if o.act == "elu":
        return F.elu_(z, o.alpha)
    if o.act == "selu":
        return torch.selu_(z)
    return F.silu(z, inplace=True) if o.act == "silu" else z


def _act_backward(dout: Tensor, decisive: Tensor | None, o: Options) -> Tensor:
    """From the output (the input for SiLU) and its gradient to the input's gradient."""
    if decisive is None:
        return dout
    if o.act == "silu":
        return torch.ops.aten.silu_backward(dout, decisive)  # type: ignore[no-any-return]
    alpha, scale = {"relu": (0.0, 1.0), "elu": (o.alpha, 1.0), "selu": _SELU}[o.act]
    if not torch.compiler.is_compiling():
        if o.act == "relu":  # a mask of booleans would cost ten walks and more on a CPU
            return torch.ops.aten.threshold_backward(dout, decisive, 0)  # type: ignore[no-any-return]
        return torch.ops.aten.elu_backward(dout, alpha, scale, 1.0, True, decisive)  # type: ignore[no-any-return]
    # Always 0, but only known once dout is: a compiler would otherwise save the mask from the forward pass, and the
    # store of booleans alone makes a compiled step three times slower on a CPU.
    zero = dout.abs().clamp(max=0)
    below = 0.0 if o.act == "relu" else dout * (decisive + alpha * scale)
    return torch.where(decisive <= zero, below, dout if scale == 1 else dout * scale)


def _spread_over_channels(dpooled: Tensor, y: Tensor, pooled: Tensor, ties: str) -> Tensor:
    """From the mean and the maximum over c back to what was pooled; takes y's memory."""
    # A compiler may round y differently here than in the forward pass, and then no place would hold the maximum.
    peak = y.amax(1, keepdim=True) if torch.compiler.is_compiling() else pooled[:, 1:]
    holders = y.eq_(peak)
    if ties == "first":
        holders = torch.zeros_like(holders).scatter_(1, holders.argmax(1, keepdim=True), 1.0)
    share = dpooled[:, 1:] / holders.sum(1, keepdim=True)
    return holders.mul_(share).add_(dpooled[:, :1] / y.shape[1])


def _spread_over_positions(dpeak: Tensor, x: Tensor, peak: Tensor, a: Tensor | None, ties: str) -> Tensor:
    """From the maximum over h, w back to x."""
    xf = x.to(peak.dtype)
    holders = (xf.clone() if xf is x else xf).eq_(_map(peak))
    if ties == "first":
        flat = holders.flatten(2)
        holders = torch.zeros_like(flat).scatter_(2, flat.argmax(2, keepdim=True), 1.0).view_as(x)
    share = dpeak / holders.sum((2, 3))
    if a is not None:
        # Behind a zero gamma all places tie and none need equal the level; nothing gets through to x anyway.
        share = torch.where(a == 0, 0.0, share * a)
    return holders.mul_(_map(share))
