"""Networks that are asked for shapes, not for numbers."""

from __future__ import annotations

from typing import Any

from ferattn import create_model
from ferattn.shapes import shapes_only


def hollow(name: str, **options: Any) -> Any:
    """A model in evaluation mode on the CPU, whose weights are whatever was in memory.

    Nothing is initialised. A forward pass of ResNet-152 takes a quarter to a tenth of one on the meta device, where
    PyTorch goes through Python for every operation.
    """
    with shapes_only():
        model: Any = create_model(name, **options)
    return model.to_empty(device="cpu").eval()
