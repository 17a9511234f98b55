"""The small tensors of a tail, (b, c) and (b, 2, h, w): gates from pooled values, and back.

Every function comes with its derivative, written out, so that neither needs a tape. The gates' formulas are those
of :mod:`ferattn.reference`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["eca_backward", "eca_forward", "mlp_backward", "mlp_forward", "spatial_backward", "spatial_forward"]

MLPGradients = tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor, Tensor]


def mlp_forward(
    pools: tuple[Tensor, ...], w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The gate sigmoid(sum over pools of W2 relu(W1 z + b1) + b2), (b, c), and the hidden layers, (b, r)."""
    hidden = tuple(F.relu(F.linear(z, w1, b1)) for z in pools)
    logits = F.linear(hidden[0], w2, b2)
    for h in hidden[1:]:
        logits = logits + F.linear(h, w2, b2)
    return torch.sigmoid(logits), hidden


def mlp_backward(
    dgate: Tensor, gate: Tensor, hidden: tuple[Tensor, ...], pools: tuple[Tensor, ...], w1: Tensor, w2: Tensor
) -> MLPGradients:
    """Gradients of :func:`mlp_forward`: by each pool, W1, b1, W2, b2."""
    dlogits = dgate * gate * (1 - gate)
    dsum = dlogits @ w2
    dhidden = [torch.ops.aten.threshold_backward(dsum, h, 0) for h in hidden]
    dpools = tuple(dh @ w1 for dh in dhidden)
    dw1, db1 = dhidden[0].t() @ pools[0], dhidden[0].sum(0)
    dw2, db2 = dlogits.t() @ hidden[0], dlogits.sum(0)
    for dh, h, z in zip(dhidden[1:], hidden[1:], pools[1:], strict=True):
        dw1, db1, dw2, db2 = dw1 + dh.t() @ z, db1 + dh.sum(0), dw2 + dlogits.t() @ h, db2 + dlogits.sum(0)
    return dpools, dw1, db1, dw2, db2


def eca_forward(pool: Tensor, weight: Tensor, bias: Tensor | None, circular: bool) -> Tensor:
    """The gate sigmoid(conv1d(z)), (b, c)."""
    logits = _windows(pool, weight.shape[-1], circular) @ weight.flatten()
    return torch.sigmoid(logits if bias is None else logits + bias)


def eca_backward(
    dgate: Tensor, gate: Tensor, pool: Tensor, weight: Tensor, circular: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`eca_forward`: by the pool, the filter and its bias."""
    k = weight.shape[-1]
    dlogits = dgate * gate * (1 - gate)
    dpool = _windows(dlogits, k, circular) @ weight.flatten().flip(0)
    dweight = (_windows(pool, k, circular) * dlogits[:, :, None]).sum((0, 1)).view_as(weight)
    return dpool, dweight, dlogits.sum().reshape(1)


def _windows(z: Tensor, k: int, circular: bool) -> Tensor:
    """The k neighbours of every channel, (b, c) to (b, c, k)."""
    p = k // 2
    padded = F.pad(z[:, None], (p, p), mode="circular")[:, 0] if circular and p else F.pad(z, (p, p))
    return padded.unfold(1, k, 1)


def spatial_forward(pooled: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The gate sigmoid(conv2d([mean; max])), (b, 2, h, w) to (b, 1, h, w)."""
    return torch.sigmoid(F.conv2d(pooled, weight, bias, padding=weight.shape[-1] // 2))


def spatial_backward(dgate: Tensor, gate: Tensor, pooled: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`spatial_forward`: by the pooled map, the filter and its bias."""
    dlogits = dgate * gate * (1 - gate)
    p = weight.shape[-1] // 2
    dpooled, dweight, dbias = torch.ops.aten.convolution_backward(
        dlogits, pooled, weight, [1], [1, 1], [p, p], [1, 1], False, [0, 0], 1, [True, True, True]
    )
    return dpooled, dweight, dbias
