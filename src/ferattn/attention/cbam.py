"""The convolutional block attention module and its two halves: Woo et al. 2018, arXiv 1807.06521, eq. 1-3.

Differs from timm's ``CbamModule``, which has no biases in its MLP and always a batch norm in its spatial gate:
here both are options. Differs, by default, from the networks that Miskow & Altahhan published, whose spatial gate
has a bias and reads the block's input: ``CBAM(c, spatial="bias", refined=False)`` is theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ferattn import reference
from ferattn.attention.excitation import IDENTITY_LOGIT, Excitation, is_plain, require_odd_kernel
from ferattn.errors import choose
from ferattn.pools import amax, mean

__all__ = ["CBAM", "ChannelGate", "SpatialGate"]

_SPATIAL = {"plain": (False, False), "bias": (True, False), "norm": (False, True)}


class ChannelGate(Excitation):
    """CBAM's first half: Mc(F) * F with Mc(F) = sigmoid(MLP(avgpool F) + MLP(maxpool F)).

    It has 2 c r + r + c parameters; the MLP serves both pools.

    Args:
        channels: Channels of the feature map, c.
        reduction: Reduction ratio, 16 by default; r = c // reduction.
        reduced_channels: r itself, instead of a ratio.
        bias: Whether both layers have biases.
        identity_init: Start with a gate of 0.9975 everywhere, so that a pretrained backbone keeps its function.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidOption: If an option is impossible for this number of channels.

    >>> import torch
    >>> ChannelGate(64)(torch.randn(2, 64, 12, 12)).shape
    torch.Size([2, 64, 12, 12])
    """

    pools = 2

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature map ``x``."""
        return x * self.gate(x).to(x.dtype)[:, :, None, None]

    def gate(self, x: Tensor) -> Tensor:
        """The gate that the feature map ``x`` gets. Shape: (b, c, h, w) to (b, c)."""
        if is_plain(self.fc1, self.fc2):
            return reference.channel_attention(x, *self.layers)
        return self.through_layers(mean(x, (2, 3)), amax(x, (2, 3)))


class SpatialGate(nn.Module):
    """CBAM's second half: Ms(F) * F with Ms(F) = sigmoid(f([mean over c; maximum over c])).

    It has 2 k^2 parameters, one more with a bias, two more with a batch norm. It works for any number of channels.

    Args:
        kernel_size: Size k of the k x k convolution f, odd; 7 in the paper.
        spatial: What follows the convolution's weights: ``"plain"`` nothing, as in eq. 3; ``"bias"`` one bias, as
            in the published experiments; ``"norm"`` a batch norm, as in Woo et al.'s own code and in timm.
        identity_init: Start with a gate of 0.9975 everywhere. A plain gate gets a bias for it.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidOption: If the kernel is even.
        UnknownChoice: If ``spatial`` is none of the three.

    >>> import torch
    >>> SpatialGate()(torch.randn(2, 64, 12, 12)).shape
    torch.Size([2, 64, 12, 12])
    """

    def __init__(self, *, kernel_size: int = 7, spatial: str = "plain", identity_init: bool = False) -> None:
        super().__init__()
        bias, norm = choose(_SPATIAL, spatial, "spatial")
        bias = bias or (identity_init and not norm)
        k = require_odd_kernel(kernel_size, "spatial kernel_size")
        self.conv = nn.Conv2d(2, 1, k, padding=k // 2, bias=bias)
        self.norm = nn.BatchNorm2d(1) if norm else None
        if identity_init:
            # Behind a norm the convolution keeps its start: the norm's own weight of zero silences it.
            open_ = self.conv if self.norm is None else self.norm
            nn.init.zeros_(open_.weight)
            if open_.bias is not None:
                nn.init.constant_(open_.bias, IDENTITY_LOGIT)

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature map ``x``."""
        return x * self.gate(x).to(x.dtype)

    def gate(self, x: Tensor) -> Tensor:
        """The gate that the feature map ``x`` gets. Shape: (b, c, h, w) to (b, 1, h, w)."""
        if is_plain(self.conv):
            return reference.spatial_attention(x, self.conv.weight, self.conv.bias, norm=self.norm)
        logits = self.conv(torch.cat([mean(x, (1,), keepdim=True), amax(x, (1,), keepdim=True)], dim=1))
        return torch.sigmoid(logits if self.norm is None else self.norm(logits))


class CBAM(nn.Module):
    """The convolutional block attention module: F' = Mc(F) * F, then F'' = Ms(F') * F'.

    It has 2 c r + r + c + 98 parameters, one more with a spatial bias, two more with a spatial norm.

    Args:
        channels: Channels of the feature map, c.
        reduction: Reduction ratio, 16 by default; r = c // reduction.
        reduced_channels: r itself, instead of a ratio.
        bias: Whether both layers of the channel gate's MLP have biases.
        kernel_size: Size of the spatial gate's square convolution, odd.
        spatial: ``"plain"``, ``"bias"`` or ``"norm"``; see :class:`SpatialGate`.
        refined: Whether the spatial gate reads the channel-refined map F', or the block's input F as in the
            published experiments of Miskow & Altahhan; hooks on ``spatial`` itself do not fire then, those on its
            layers do.
        identity_init: Start with gates of 0.9975 everywhere, so that a pretrained backbone keeps its function.

    Shape: (b, c, h, w) to (b, c, h, w).

    Raises:
        InvalidOption: If an option is impossible for this number of channels.
        UnknownChoice: If ``spatial`` is none of the three.

    >>> import torch
    >>> CBAM(256)(torch.randn(2, 256, 6, 6)).shape
    torch.Size([2, 256, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        *,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        kernel_size: int = 7,
        spatial: str = "plain",
        refined: bool = True,
        identity_init: bool = False,
    ) -> None:
        super().__init__()
        self.refined = refined
        self.channel = ChannelGate(
            channels,
            reduction=reduction,
            reduced_channels=reduced_channels,
            bias=bias,
            identity_init=identity_init,
        )
        self.spatial = SpatialGate(kernel_size=kernel_size, spatial=spatial, identity_init=identity_init)

    def extra_repr(self) -> str:
        """What the block was made for, as ``print(model)`` shows it."""
        return f"refined={self.refined}"

    def forward(self, x: Tensor) -> Tensor:
        """Gate the feature map ``x``."""
        gated: Tensor = self.channel(x)
        if self.refined:
            return self.spatial(gated)  # type: ignore[no-any-return]
        return gated * self.spatial.gate(x).to(x.dtype)
