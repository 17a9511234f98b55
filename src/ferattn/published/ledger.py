"""What a network's parameters are for, and how two networks differ, part by part.

Both sides are read off built modules. Whatever no part explains would appear as "other", so the parts always add
up to the whole difference.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ferattn.published.blocks import HeightNorm

__all__ = ["Ledger", "difference", "ledger"]

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Ledger:
    """A network's parameters by purpose.

    Attributes:
        first: Weights of the first convolution, the only one that sees the input channels.
        convolutions: How often each shape of weight (outputs, inputs, height, width) occurs after the first.
        biases: All biases of convolutions.
        biases_by_shape: Biases of one convolution of each shape.
        norms: Scales and shifts of norms; moving statistics, too, where the published count includes them.
        attention_weights: Weights in attention blocks.
        attention_biases: Biases in attention blocks.
        dense: Fully connected layers, the classifier included.
        other: Everything else.
    """

    first: int
    convolutions: Counter[Shape]
    biases: int
    biases_by_shape: dict[Shape, int]
    norms: int
    attention_weights: int
    attention_biases: int
    dense: int
    other: int


def ledger(model: nn.Module, attention_paths: Iterable[str], dense_paths: Iterable[str] = ()) -> Ledger:
    """Sort a network's parameters by purpose.

    Args:
        model: The network.
        attention_paths: Paths of its attention blocks.
        dense_paths: Paths under which convolutions do the work of fully connected layers.
    """
    attention, dense = tuple(attention_paths), tuple(dense_paths)
    sums: dict[str, int] = defaultdict(int)
    shapes: Counter[Shape] = Counter()
    biases_by_shape: dict[Shape, int] = {}
    for path, module in model.named_modules():
        own = {name: p.numel() for name, p in module.named_parameters(recurse=False)}
        if not own:
            continue
        weight, bias, everything = own.get("weight", 0), own.get("bias", 0), sum(own.values())
        if _below(path, attention):
            sums["attention_biases"] += bias
            sums["attention_weights"] += everything - bias
        elif isinstance(module, nn.Linear) or _below(path, dense):
            sums["dense"] += everything
        elif isinstance(module, nn.Conv2d):
            sums["biases"] += bias
            if "first" in sums:
                out, inputs, h, w = module.weight.shape
                shapes[out, inputs, h, w] += 1
                biases_by_shape[out, inputs, h, w] = bias
            else:
                sums["first"] = weight
        elif isinstance(module, HeightNorm):
            sums["norms"] += everything + sum(b.numel() for b in module.buffers(recurse=False))
        elif hasattr(module, "running_mean"):
            sums["norms"] += everything
        else:
            sums["other"] += everything
    return Ledger(
        convolutions=shapes,
        biases_by_shape=biases_by_shape,
        **{
            name: sums[name]
            for name in ("first", "biases", "norms", "attention_weights", "attention_biases", "dense", "other")
        },
    )


def difference(ours: Ledger, theirs: Ledger, attention: str | None) -> dict[str, int]:
    """What to add to our count, part by part, to arrive at theirs; parts that agree are left out.

    Args:
        ours: The correct network.
        theirs: The published one.
        attention: Name of the attention block, for the name of its part.
    """
    missing, added = ours.convolutions - theirs.convolutions, theirs.convolutions - ours.convolutions
    biases_gone = sum(ours.biases_by_shape[shape] * n for shape, n in missing.items())
    biases_new = sum(theirs.biases_by_shape[shape] * n for shape, n in added.items())
    parts = {
        "input channels": theirs.first - ours.first,
        "missing convolution": -_weights(missing) - biases_gone,
        "additional convolution": _weights(added) + biases_new,
        "convolution biases": (theirs.biases - biases_new) - (ours.biases - biases_gone),
        "normalisation parameters": theirs.norms - ours.norms,
        f"form of {attention.upper() if attention else 'attention'}": (
            theirs.attention_weights - ours.attention_weights
        ),
        "attention biases": theirs.attention_biases - ours.attention_biases,
        "fully connected layers": theirs.dense - ours.dense,
        "other": theirs.other - ours.other,
    }
    return {name: parameters for name, parameters in parts.items() if parameters}


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + ".") for root in roots)


def _weights(convolutions: Counter[Shape]) -> int:
    return sum(out * inputs * h * w * n for (out, inputs, h, w), n in convolutions.items())
