"""Networks that are asked for their shapes, and have no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["shapes_only"]

_FILLS = frozenset(
    {
        *(fill for name, fill in vars(torch.nn.init).items() if name.endswith("_") and callable(fill)),
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        torch.Tensor.fill_,
        torch.Tensor.zero_,
    }
)


class _Unfilled(TorchFunctionMode):
    """Leave tensors as they are where they would be filled with numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _FILLS:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build on the meta device and initialise nothing.

    Faster than ``torch.device("meta")`` alone, where PyTorch goes through Python to draw numbers that there is no
    place for.

    >>> with shapes_only():
    ...     layer = torch.nn.Linear(2, 3)
    >>> layer.weight
    Parameter containing:
    tensor(..., device='meta', size=(3, 2), requires_grad=True)
    """
    with torch.device("meta"), _Unfilled():
        yield
