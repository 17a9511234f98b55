"""Efficient channel attention: Wang et al. 2020, arXiv 1910.03151; Miskow & Altahhan 2022, eq. 3.

Differs from timm's ``EcaModule``: a fixed ``kernel_size`` is honoured (timm computes its own when it is given
channels), and the adaptive size follows the formula below 128 channels too (timm's is never below 3).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferattn import reference
from ferattn.attention.excitation import IDENTITY_LOGIT, is_plain, require_odd_kernel
from ferattn.errors import InvalidOption, require_whole
from ferattn.pools import mean

__all__ = ["ECA", "adaptive_kernel_size"]


def adaptive_kernel_size(channels: int, *, gamma: float = 2.0, b: float = 1.0) -> int:
    """The odd number nearest to abs(log2(channels) / gamma + b / gamma); of two equally near, the larger.

    Raises:
        InvalidOption: If channels is below 1 or gamma is not above 0.

    Source: Wang et al. 2020, arXiv 1910.03151, eq. 9; Miskow & Altahhan 2022, arXiv 2410.17740, eq. 3.

    >>> [adaptive_kernel_size(channels) for channels in (256, 512, 1024, 2048)]
    [5, 5, 5, 7]
    """
    for name, value in (("gamma", gamma), ("b", b)):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidOption(f"{name} must be a number; got {value!r}.")
    if not gamma > 0:
        raise InvalidOption(f"gamma must be above 0; got {gamma!r}.")
    t = abs((math.log2(require_whole(channels, "channels", least=1)) + b) / gamma)
    return 2 * math.floor(t / 2) + 1


class ECA(nn.Module):
    """Efficient channel attention: a k-tap filter slides over the pooled channels; x * sigmoid of the result.

    It has k parameters.

    Args:
        channels: Channels of the feature map, c.
        kernel_size: Taps of the filter, k, odd; by default adaptive, see :func:`adaptive_kernel_size`.
        gamma: Of the adaptive size, 2 by default.
        b: Of the adaptive size, 1 by default.
        bias: One bias on the filter. None means only where an identity start needs it; the papers have none.
        circular: Let the channel axis wrap around at its ends instead of padding it with zeros.
        identity_init: Start with a gate of 0.9975 everywhere, so that a pretrained backbone keeps its function.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidOption: If an option is impossible for this number of channels, or contradicts another.

    >>> import torch
    >>> ECA(256)(torch.randn(2, 256, 6, 6)).shape
    torch.Size([2, 256, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int | None = None,
        gamma: float | None = None,
        b: float | None = None,
        bias: bool | None = None,
        circular: bool = False,
        identity_init: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels = require_whole(channels, "channels", least=1)
        self.circular = circular
        if kernel_size is None:
            kernel_size = adaptive_kernel_size(
                channels, gamma=2.0 if gamma is None else gamma, b=1.0 if b is None else b
            )
        elif gamma is not None or b is not None:
            raise InvalidOption(
                f"gamma and b choose the adaptive kernel; with kernel_size={kernel_size!r} they would do nothing."
            )
        largest = channels if circular else 2 * channels - 1
        if require_odd_kernel(kernel_size, "kernel_size") > largest:
            raise InvalidOption(
                f"kernel_size must be at most {largest} for {channels} channels"
                f"{' on a circular axis' if circular else ''}; got {kernel_size}."
            )
        if identity_init and bias is False:
            raise InvalidOption("identity_init=True needs a bias: the bias is what holds the gate open.")
        self.conv = nn.Conv1d(1, 1, kernel_size, bias=identity_init if bias is None else bias)
        self._sides = (kernel_size // 2, kernel_size // 2)
        if identity_init and self.conv.bias is not None:
            nn.init.zeros_(self.conv.weight)
            nn.init.constant_(self.conv.bias, IDENTITY_LOGIT)

    def extra_repr(self) -> str:
        """What the block was made for, as ``print(model)`` shows it."""
        return f"channels={self.channels}, kernel_size={self.kernel_size}, circular={self.circular}"

    @property
    def kernel_size(self) -> int:
        """Taps of the filter, k."""
        return self.conv.kernel_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature map ``x``."""
        return x * self.gate(x).to(x.dtype)[:, :, None, None]

    def gate(self, x: Tensor) -> Tensor:
        """The gate that the feature map ``x`` gets. Shape: (b, c, h, w) to (b, c)."""
        if is_plain(self.conv):
            conv = self.conv
            return reference.eca_attention(x, conv.weight, conv.bias, channels=self.channels, circular=self.circular)
        z = F.pad(mean(x, (2, 3))[:, None, :], self._sides, mode="circular" if self.circular else "constant")
        return torch.sigmoid(self.conv(z))[:, 0, :]
