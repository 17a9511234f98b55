"""Squeeze-and-excitation: Hu et al. 2018, arXiv 1709.01507, eq. 2-4; Miskow & Altahhan 2022, eq. 1-2.

Differs from timm's ``SEModule``: r = c // reduction exactly (timm rounds up to a multiple of 8), and the layers
are ``Linear``.
"""

from __future__ import annotations

from torch import Tensor

from ferattn import reference
from ferattn.attention.excitation import Excitation, is_plain
from ferattn.pools import mean

__all__ = ["SE"]


class SE(Excitation):
    """Squeeze-and-excitation block: x * sigmoid(W2 relu(W1 z)), z the mean of x over h and w.

    It has 2 c r + r + c parameters.

    Args:
        channels: Channels of the feature map, c.
        reduction: Reduction ratio, 16 by default; r = c // reduction.
        reduced_channels: r itself, instead of a ratio.
        bias: Whether both layers have biases, as in both papers.
        identity_init: Start with a gate of 0.9975 everywhere, so that a pretrained backbone keeps its function.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidOption: If an option is impossible for this number of channels.

    >>> import torch
    >>> SE(64)(torch.randn(2, 64, 12, 12)).shape
    torch.Size([2, 64, 12, 12])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature map ``x``."""
        return x * self.gate(x).to(x.dtype)[:, :, None, None]

    def gate(self, x: Tensor) -> Tensor:
        """The gate that the feature map ``x`` gets. Shape: (b, c, h, w) to (b, c)."""
        if is_plain(self.fc1, self.fc2):
            return reference.se_attention(x, *self.layers)
        return self.through_layers(mean(x, (2, 3)))
