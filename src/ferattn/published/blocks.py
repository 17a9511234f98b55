"""The peculiar parts of the networks that Miskow & Altahhan published, as their parameter counts give them away.

None of these is a recommendation: they exist so that the published figures can be rebuilt and explained.
Source: Miskow & Altahhan 2022, arXiv 2410.17740, Tables 2 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ferattn.attention import CBAM, SE
from ferattn.errors import InvalidInput, InvalidOption

__all__ = ["ATTENTION", "HeightNorm", "PooledECA", "published_kernel_size"]


class HeightNorm(nn.Module):
    """Batch norm over the height axis: one scale, shift, mean and variance for each *row* of the feature map.

    ``BatchNormalization(axis=1)`` does this to channels-last data. A correct batch norm has them per channel.

    Args:
        height: Rows of the feature map.

    Shape: (b, c, height, w) to the same.

    Raises:
        InvalidInput: If the map has another height.

    >>> HeightNorm(6)(torch.randn(2, 16, 6, 6)).shape
    torch.Size([2, 16, 6, 6])
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, height: int) -> None:
        super().__init__()
        self.height = height
        self.weight = nn.Parameter(torch.ones(height))
        self.bias = nn.Parameter(torch.zeros(height))
        self.register_buffer("running_mean", torch.zeros(height))
        self.register_buffer("running_var", torch.ones(height))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each row of ``x``."""
        if x.shape[2] != self.height:
            raise InvalidInput(f"this norm was made for maps {self.height} high, got {x.shape[2]}")
        rows = x.transpose(1, 2)
        statistics = self.running_mean, self.running_var
        rows = F.batch_norm(rows, *statistics, self.weight, self.bias, self.training, momentum=0.01, eps=1e-3)
        return rows.transpose(1, 2)


def published_kernel_size(channels: int) -> int:
    """The published ECA's kernel size: int(log2(channels) + 0.5), made odd upwards.

    Eq. (3) of the paper, with gamma = 2 and b = 1, gives 5, 5, 5, 7 where this gives:

    >>> [published_kernel_size(channels) for channels in (256, 512, 1024, 2048)]
    [9, 9, 11, 11]
    """
    size = int(math.log2(channels) + 0.5)
    return size if size % 2 else size + 1


class PooledECA(nn.Module):
    """The published form of ECA: a convolution over an axis of length one, with all channels as its inputs.

    It has kernel_size * channels weights, of which only the middle tap ever meets data, and yields one gate per
    image. The ECA of the paper's text has kernel_size weights and yields one gate per channel.

    Args:
        channels: Channels of the feature map, c.
        kernel_size: Taps along the axis of length one, odd.

    Shape: (b, c, h, w) to the same.

    Raises:
        InvalidOption: If the kernel size is even or below 1.

    >>> sum(p.numel() for p in PooledECA(256).parameters())
    2304
    """

    def __init__(self, channels: int, *, kernel_size: int | None = None) -> None:
        super().__init__()
        k = published_kernel_size(channels) if kernel_size is None else kernel_size
        if k < 1 or k % 2 == 0:
            raise InvalidOption(f"kernel_size must be odd and at least 1; got {k}.")
        self.conv = nn.Conv1d(channels, 1, k, padding=k // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature map ``x``, every channel alike."""
        pooled = x.mean((2, 3)).unsqueeze(2)  # b c 1
        gate: Tensor = self.conv(pooled).sigmoid().unsqueeze(3)  # b 1 1 1
        return x * gate


# SE has biases on both layers; so has CBAM, with a bias on its 7x7 convolution, no norm, and a spatial gate that
# reads the block's input.
ATTENTION: dict[str, Callable[..., nn.Module]] = {
    "se": partial(SE, bias=True),
    "eca": PooledECA,
    "cbam": partial(CBAM, bias=True, spatial="bias", refined=False),
}
