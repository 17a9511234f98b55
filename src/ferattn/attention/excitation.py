"""What SE and CBAM's channel gate share: the pair of layers c -> r -> c, and how an identity start is made."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ferattn.errors import InvalidOption, require_whole

__all__ = ["HOOKS", "IDENTITY_LOGIT", "Excitation", "has_hooks", "is_plain", "require_odd_kernel"]

IDENTITY_LOGIT = 6.0
"""Where an identity start puts a gate's logit: sigmoid(6) = 0.9975, and its slope is still 0.0025, not zero."""

DEFAULT_REDUCTION = 16


class Excitation(nn.Module):
    """The layers c -> r -> c of a channel gate, ``Linear`` on (b, c) so that compilers keep the map's layout.

    Args:
        channels: Channels of the feature map, c.
        reduction: Reduction ratio, 16 by default; r = c // reduction.
        reduced_channels: r itself, instead of a ratio.
        bias: Whether both layers have biases.
        identity_init: Start with a gate of 0.9975 everywhere: the second layer's weights zero, its biases set.

    Raises:
        InvalidOption: If r would be below 1 or above c, if both ways of giving r are used, or if an
            identity start has no bias to sit in.
    """

    pools: ClassVar[int] = 1
    """How many pooled maps go through the layers and are summed: the second layer's bias counts that often."""

    def __init__(
        self,
        channels: int,
        *,
        reduction: int | None = None,
        reduced_channels: int | None = None,
        bias: bool = True,
        identity_init: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels = require_whole(channels, "channels", least=1)
        self.reduced_channels = _reduced(channels, reduction, reduced_channels)
        self.fc1 = nn.Linear(channels, self.reduced_channels, bias=bias)
        self.fc2 = nn.Linear(self.reduced_channels, channels, bias=bias)
        if identity_init:
            if not bias:
                raise InvalidOption("identity_init=True needs bias=True: the bias is what holds the gate open.")
            nn.init.zeros_(self.fc2.weight)
            nn.init.constant_(self.fc2.bias, IDENTITY_LOGIT / self.pools)

    def extra_repr(self) -> str:
        """What the block was made for, as ``print(model)`` shows it."""
        return f"channels={self.channels}, reduced_channels={self.reduced_channels}"

    def through_layers(self, *pooled: torch.Tensor) -> torch.Tensor:
        """The gate by calling the layers, whatever they have become: adapters, quantised or hooked layers.

        Args:
            pooled: Each (b, c).

        Shape: (b, c).
        """
        logits: torch.Tensor = sum(self.fc2(F.relu(self.fc1(z))) for z in pooled)
        return torch.sigmoid(logits)

    @property
    def layers(self) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
        """Weights and biases in the order in which :mod:`ferattn.reference` takes them."""
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias


def is_plain(*modules: nn.Module) -> bool:
    """Whether modules are what this package made, so that their formulas say all: no other class, hook or forward."""
    return all(type(module) in _PLAIN and not has_hooks(module) for module in modules)


def has_hooks(module: nn.Module) -> bool:
    """Whether something runs beside a module's forward and backward pass, or in place of it."""
    return "forward" in module.__dict__ or any(getattr(module, name) for name in HOOKS)


_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d)

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Where a module keeps what runs beside its forward and backward pass."""


def require_odd_kernel(kernel_size: int, name: str) -> int:
    """Return ``kernel_size`` if a kernel of that size has a middle.

    Raises:
        InvalidOption: If it is even or below 1.
    """
    if require_whole(kernel_size, name, least=1) % 2 == 0:
        raise InvalidOption(f"{name} must be an odd whole number (1, 3, 5, ...); got {kernel_size!r}.")
    return int(kernel_size)


def _reduced(channels: int, reduction: int | None, reduced_channels: int | None) -> int:
    if reduced_channels is not None:
        if reduction is not None:
            raise InvalidOption(
                f"give reduction or reduced_channels, not both; got reduction={reduction!r} and "
                f"reduced_channels={reduced_channels!r}."
            )
        if require_whole(reduced_channels, "reduced_channels", least=1) > channels:
            raise InvalidOption(
                f"reduced_channels must lie between 1 and the block's {channels} channels; got {reduced_channels}."
            )
        return int(reduced_channels)
    ratio = require_whole(DEFAULT_REDUCTION if reduction is None else reduction, "reduction", least=1)
    if ratio > channels:
        raise InvalidOption(
            f"reduction must be a whole number between 1 and the block's {channels} channels; got {ratio!r}. "
            "Use reduced_channels to set the width itself."
        )
    return channels // ratio
