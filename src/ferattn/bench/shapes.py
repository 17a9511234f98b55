"""Where blocks and tails are measured: the feature maps of ResNet-50."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ferattn.bench.plan import DTYPES, Request
from ferattn.errors import choose

__all__ = ["STAGES", "MapShape", "both"]

STAGES = ((256, 4), (512, 8), (1024, 16), (2048, 32))
"""Channels of ResNet-50's stages, and how many pixels of the image one cell of the map is wide."""


def both(choice: bool | None) -> tuple[bool, ...]:
    """What is chosen, or no and yes."""
    return (False, True) if choice is None else (choice,)


@dataclass(frozen=True)
class MapShape:
    """Where and how attention is measured.

    Attributes:
        attention: A name from ``ATTENTION``.
        img_size: Height and width of the image in pixels.
        channels: Channels of the map.
        side: Height and width of the map in cells.
        training: With a backward pass or not.
        channels_last: The memory format.
    """

    attention: str
    img_size: int
    channels: int
    side: int
    training: bool
    channels_last: bool

    @property
    def step(self) -> str:
        """What is timed, as ``ferattn.measure`` calls it."""
        return "forward_backward" if self.training else "inference"

    def key(self, what: str) -> str:
        """The name of a group that measures ``what``, an attention or its tail, there."""
        step = "f+b" if self.training else "f"
        layout = "NHWC" if self.channels_last else "NCHW"
        return f"{what} {self.channels}x{self.side}x{self.side} {self.img_size}px {step} {layout}"

    def facts(
        self, library: str, mode: str, module: nn.Module, passes: tuple[int, int], batch: int, request: Request
    ) -> dict[str, Any]:
        """What a record says of a case; ``passes`` are the fewest over the map, forward alone and with backward."""
        itemsize = (choose(DTYPES, request.dtype, "dtype") or torch.float32).itemsize
        map_bytes = batch * self.channels * self.side**2 * itemsize
        return {
            "library": library,
            "attention": self.attention,
            "img_size": self.img_size,
            "channels": self.channels,
            "height": self.side,
            "batch": batch,
            "step": self.step,
            "mode": mode,
            "memory_format": "channels_last" if self.channels_last else "contiguous",
            "dtype": request.dtype,
            "parameters": sum(p.numel() for p in module.parameters()),
            "map_bytes": map_bytes,
            "floor_bytes": passes[self.training] * map_bytes,
        }
