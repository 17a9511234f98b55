"""The papers' formulas in plain PyTorch: the specification, and the path that every device can take.

Axis letters, here and everywhere: b samples, c channels, h rows, w columns, r reduced channels, k kernel taps.
A function ending in ``_attention`` returns the gate, values in (0, 1); the others return the gated map, with
the shape, dtype and memory format of their input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from ferattn.errors import InvalidInput
from ferattn.pools import amax, mean

__all__ = [
    "cbam",
    "channel_attention",
    "channel_gate",
    "eca",
    "eca_attention",
    "se",
    "se_attention",
    "spatial_attention",
    "spatial_gate",
]


def se_attention(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """The gate of :func:`se`: s = sigmoid(W2 relu(W1 z + b1) + b2), z the mean of x over h, w.

    Args: As for :func:`se`.

    Shape: (b, c, h, w) to (b, c).

    Source: Hu et al. 2018, arXiv 1709.01507, eq. 2-3.
    """
    _require_map(x, w1.shape[1], "SE")
    z = mean(x, (2, 3))
    return torch.sigmoid(F.linear(F.relu(F.linear(z, w1, b1)), w2, b2))


def se(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """Squeeze-and-excitation: z = mean of x over h, w; s = sigmoid(W2 relu(W1 z + b1) + b2); x * s.

    Args:
        x: Feature map.
        w1: Weights of the reducing layer, (r, c).
        b1: Its biases, (r), or None.
        w2: Weights of the expanding layer, (c, r).
        b2: Its biases, (c), or None.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidInput: If x is not a floating-point (b, c, h, w) map with the c that w1 was made for.

    Source: Hu et al. 2018, arXiv 1709.01507, eq. 2-4; Miskow & Altahhan 2022, arXiv 2410.17740, eq. 1-2.
    """
    return x * se_attention(x, w1, b1, w2, b2).to(x.dtype)[:, :, None, None]


def eca_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, channels: int, circular: bool = False
) -> Tensor:
    """The gate of :func:`eca`: the sigmoid of the filtered channel means.

    Args: As for :func:`eca`.

    Shape: (b, c, h, w) to (b, c).

    Source: Wang et al. 2020, arXiv 1910.03151, eq. 5-6.
    """
    _require_map(x, channels, "ECA")
    padding = weight.shape[-1] // 2
    z = mean(x, (2, 3))[:, None, :]
    if circular:
        z, padding = F.pad(z, (padding, padding), mode="circular"), 0
    return torch.sigmoid(F.conv1d(z, weight, bias, padding=padding))[:, 0, :]


def eca(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, channels: int, circular: bool = False) -> Tensor:
    """Efficient channel attention: one k-tap filter slides over the channel axis of the pooled map.

    Args:
        x: Feature map.
        weight: The filter, (1, 1, k), k odd.
        bias: One number, (1), or None as in the paper.
        channels: The c that the filter was sized for.
        circular: Let the channel axis wrap around at its ends instead of padding it with zeros.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidInput: If x is not a floating-point (b, c, h, w) map with that c.

    Source: Wang et al. 2020, arXiv 1910.03151, eq. 5-6; Miskow & Altahhan 2022, arXiv 2410.17740, eq. 3.
    """
    s = eca_attention(x, weight, bias, channels=channels, circular=circular)
    return x * s.to(x.dtype)[:, :, None, None]


def channel_attention(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """CBAM's channel gate: Mc(F) = sigmoid(MLP(avgpool F) + MLP(maxpool F)), one MLP for both.

    Args: As for :func:`se`.

    Shape: (b, c, h, w) to (b, c).

    Source: Woo et al. 2018, arXiv 1807.06521, eq. 2.
    """
    _require_map(x, w1.shape[1], "CBAM's channel gate")

    def mlp(z: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(z, w1, b1)), w2, b2)

    return torch.sigmoid(mlp(mean(x, (2, 3))) + mlp(amax(x, (2, 3))))


def channel_gate(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> Tensor:
    """F' = Mc(F) * F, the first half of CBAM. Arguments, shape and source as :func:`channel_attention`."""
    return x * channel_attention(x, w1, b1, w2, b2).to(x.dtype)[:, :, None, None]


def spatial_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """CBAM's spatial gate: Ms(F) = sigmoid(f([mean of F over c; maximum of F over c])).

    Args:
        x: Feature map.
        weight: The convolution f, (1, 2, k, k), k odd.
        bias: One number, (1), or None.
        norm: Applied to the convolution's output, such as a batch norm over its one channel.

    Shape: (b, c, h, w) to (b, 1, h, w).

    Source: Woo et al. 2018, arXiv 1807.06521, eq. 3.
    """
    _require_map(x, None, "CBAM's spatial gate")
    pooled = torch.cat([mean(x, (1,), keepdim=True), amax(x, (1,), keepdim=True)], dim=1)
    logits = F.conv2d(pooled, weight, bias, padding=weight.shape[-1] // 2)
    return torch.sigmoid(logits if norm is None else norm(logits))


def spatial_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, norm: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """F'' = Ms(F') * F', the second half of CBAM. Arguments and source as :func:`spatial_attention`."""
    return x * spatial_attention(x, weight, bias, norm=norm).to(x.dtype)


def cbam(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    refined: bool = True,
) -> Tensor:
    """The convolutional block attention module: F' = Mc(F) * F; F'' = Ms(F') * F'.

    Args:
        x: The feature map F.
        w1: Weights of the channel gate's reducing layer, (r, c).
        b1: Its biases, (r), or None.
        w2: Weights of its expanding layer, (c, r).
        b2: Its biases, (c), or None.
        weight: The spatial gate's convolution, (1, 2, k, k).
        bias: Its bias, (1), or None.
        norm: Applied to that convolution's output.
        refined: Whether the spatial gate reads the channel-refined map F' (Woo et al.) or the block's input F,
            as in the experiments that Miskow & Altahhan published.

    Shape: (b, c, h, w) to (b, c, h, w).

    Source: Woo et al. 2018, arXiv 1807.06521, eq. 1-3.
    """
    gated = channel_gate(x, w1, b1, w2, b2)
    return gated * spatial_attention(gated if refined else x, weight, bias, norm=norm).to(x.dtype)


def _require_map(x: Tensor, channels: int | None, block: str) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise InvalidInput(
            f"{block} takes a floating-point feature map of shape (b, c, h, w); "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )
    c = x.shape[1]
    # A tracer turns sizes into tensors; comparing those would warn and freeze the result.
    if channels is not None and isinstance(c, int) and c != channels:
        raise InvalidInput(f"{block} was made for {channels} channels; got a map of shape {tuple(x.shape)}.")


# A symbolic trace has no shapes to look at: it keeps each of these as one call and makes it when the trace runs.
torch.fx.wrap("_require_map")
torch.fx.wrap("mean")
torch.fx.wrap("amax")
