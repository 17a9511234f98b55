"""Attention blocks: shape-preserving modules on (b, c, h, w) maps, one paper a file.

``ATTENTION`` holds the blocks that have a name. Anything callable as ``block(channels)`` that returns a module
works wherever a block is taken, so a new one needs no entry.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ferattn.attention.cbam import CBAM, ChannelGate, SpatialGate
from ferattn.attention.eca import ECA, adaptive_kernel_size
from ferattn.attention.se import SE

__all__ = ["ATTENTION", "CBAM", "ECA", "SE", "ChannelGate", "SpatialGate", "adaptive_kernel_size"]

ATTENTION: dict[str, Callable[..., nn.Module]] = {"se": SE, "eca": ECA, "cbam": CBAM}
"""The blocks that a model name can carry."""
