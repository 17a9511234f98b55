"""The fused tail under ``torch.compile``, without the model around it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from ferattn.kernels import Act, Gate, Norm, fused_tail

__all__ = ["TailGraphs"]


class TailGraphs:
    """``fused_tail``, compiled for one kind and size of map after the other; a model's blocks share one."""

    def __init__(self) -> None:
        self.made: dict[Hashable, Callable[..., Tensor]] = {}

    def __call__(self, x: Tensor, shortcut: Tensor, gate: Gate, norm: Norm | None, act: Act) -> Tensor:
        """The tail of one block, arguments as those of ``fused_tail``."""
        device = x.device.type
        key = (
            type(gate).__name__,
            act.name,
            act.alpha,
            *x.shape[1:],
            str(x.dtype),
            str(x.device),
            x.is_contiguous(memory_format=torch.channels_last),
            "plain" if norm is None else (norm.training, norm.momentum, norm.eps),
            torch.is_grad_enabled() and (x.requires_grad, shortcut.requires_grad),
            torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device)),
        )
        if key not in self.made:
            self.made[key] = _compiled("_".join(map(str, ("tail", *key))))
        return self.made[key](x, shortcut, gate, norm, act)

    def __deepcopy__(self, memo: Any) -> TailGraphs:
        return self

    def __reduce__(self) -> tuple[type[TailGraphs], tuple[()]]:
        return TailGraphs, ()


def _compiled(name: str) -> Callable[..., Tensor]:
    """``fused_tail`` under a compiler, in a function of its own.

    The compiler falls back to eager after eight recompilations of one function, and takes a size for dynamic once a
    function of that name has seen two: each kind of tail gets its own copy, in which only the batch can vary. So it
    does with numbers: at the ninth momentum of one function it gives up.
    """

    def tail(x: Tensor, shortcut: Tensor, gate: Gate, norm: Norm | None, act: Act) -> Tensor:
        return fused_tail(x, shortcut, gate, norm, act)

    own = FunctionType(tail.__code__.replace(co_name=name), tail.__globals__, name)
    return torch.compile(own, fullgraph=True)
