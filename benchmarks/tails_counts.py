"""What the tail of a residual block reads, writes and keeps, counted exactly, in maps.

For every operator that eager PyTorch calls, the tensors that go in and come out, divided by the size of one map. An
operator that walks over its input several times inside, as batch norm does, counts once. Nothing is timed.

    python benchmarks/tails_counts.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ferattn.bench.tails import FLOOR_PASSES, tails

SHAPE = (8, 256, 12, 12)


class Counting(TorchDispatchMode):
    """Adds up the bytes of the tensors that operators take and give, and the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count it, views aside."""
        out = func(*args, **(kwargs or {}))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not view and func._schema.name != "aten::detach":
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.nbytes for t in tensors)
            self.calls += any(t.numel() >= torch.Size(SHAPE).numel() for t in tensors)
        return out


def counted(run: Callable[[], Any]) -> tuple[float, int]:
    """Maps moved, and calls of operators that see a map."""
    with Counting() as counting:
        run()
    return counting.bytes / (torch.Size(SHAPE).numel() * 4), counting.calls


def kept(run: Callable[[], Any]) -> float:
    """Maps that are kept for the backward pass, parameters aside; what shares memory counts once."""
    found: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        if not isinstance(t, nn.Parameter):
            found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = run()
        size = sum(found.values()) / (torch.Size(SHAPE).numel() * 4)
    del out
    return size


def counts(tail: nn.Module) -> tuple[tuple[float, int], tuple[float, int], float]:
    """Forward in evaluation, forward and backward in training, and what is kept between the two."""
    x, shortcut, dout = (torch.randn(SHAPE).contiguous(memory_format=torch.channels_last) for _ in range(3))
    with torch.no_grad():
        infer = counted(lambda: tail.eval()(x, shortcut))
    tail.train()
    x.requires_grad_(), shortcut.requires_grad_()
    leaves = [x, shortcut, *tail.parameters()]
    train = counted(lambda: torch.autograd.grad(tail(x, shortcut), leaves, dout))
    return infer, train, kept(lambda: tail(x, shortcut))


def main() -> None:
    """Count every tail and print a table."""
    print("| tail | infer: maps moved / calls | train: maps moved / calls | floor, infer / train | kept, maps |")
    print("|---|--:|--:|--:|--:|")
    for attention in ("se", "eca", "cbam"):
        for name, tail in tails(attention, SHAPE[1]).items():
            if name == "plain" and attention != "se":
                continue
            infer, train, maps = counts(tail)
            floor = FLOOR_PASSES[None if name == "plain" else attention]
            block = attention.upper()
            who = {"plain": "no attention", "timm": f"timm {block}", "ferattn": f"fused {block}"}[name]
            moved = f"{infer[0]:.1f} / {infer[1]} | {train[0]:.1f} / {train[1]}"
            print(f"| {who} | {moved} | {floor[0]} / {floor[1]} | {maps:.2f} |")


if __name__ == "__main__":
    main()
