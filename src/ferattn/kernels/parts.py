"""What a block tail is made of: its norm, its gate and its activation, as plain tensors and numbers.

``Norm`` and the gates hold what :func:`ferattn.kernels.fused_tail` needs of a module; they compute nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ferattn.errors import InvalidInput, InvalidOption, choose

__all__ = ["ACTS", "Act", "CBAMGate", "ECAGate", "Gate", "Norm", "SEGate", "require", "weights_of"]

ACTS = ("identity", "relu", "elu", "selu", "silu")
"""The activations that a tail can end in."""


class Norm(NamedTuple):
    """A batch norm over the c channels of a map.

    Attributes:
        weight: gamma, (c), or None for ones.
        bias: beta, (c), or None for zeros.
        running_mean: (c), or None. Required where ``training`` is False.
        running_var: (c), or None, likewise.
        training: Normalise by the batch's own statistics, and blend them into the running ones.
        momentum: Share of the batch in the running statistics.
        eps: Added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float = 0.1
    eps: float = 1e-5


class SEGate(NamedTuple):
    """Squeeze-and-excitation: the arguments of :func:`ferattn.reference.se`."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None


class ECAGate(NamedTuple):
    """Efficient channel attention: the arguments of :func:`ferattn.reference.eca`."""

    weight: Tensor
    bias: Tensor | None
    channels: int
    circular: bool = False


class CBAMGate(NamedTuple):
    """CBAM without a norm in its spatial gate: the arguments of :func:`ferattn.reference.cbam`."""

    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    weight: Tensor
    bias: Tensor | None
    refined: bool = True


class Act(NamedTuple):
    """An activation: one of ``ACTS``, and the alpha of an ELU."""

    name: str = "identity"
    alpha: float = 1.0


Gate = SEGate | ECAGate | CBAMGate


def weights_of(gate: Gate) -> tuple[str, bool, tuple[Tensor | None, ...]]:
    """A gate's kind, its flag (circular, refined) and its weights: w1, b1, w2, b2, filter, the filter's bias."""
    if isinstance(gate, SEGate):
        return "se", False, (*gate, None, None)
    if isinstance(gate, ECAGate):
        return "eca", gate.circular, (None, None, None, None, gate.weight, gate.bias)
    return "cbam", gate.refined, (gate.w1, gate.b1, gate.w2, gate.b2, gate.weight, gate.bias)


def require(x: Tensor, shortcut: Tensor | None, gate: Gate, norm: Norm | None, act: Act) -> None:
    """Raise what a tail's arguments deserve; see :func:`ferattn.kernels.fused_tail`."""
    if x.ndim != 4 or not x.is_floating_point():
        raise InvalidInput(
            "a tail takes a floating-point feature map of shape (b, c, h, w); "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )
    if shortcut is not None and (shortcut.shape != x.shape or shortcut.dtype != x.dtype):
        raise InvalidInput(
            f"the shortcut must be like the map, {x.dtype} of shape {tuple(x.shape)}; "
            f"got {shortcut.dtype} of shape {tuple(shortcut.shape)}."
        )
    channels = gate.channels if isinstance(gate, ECAGate) else gate.w1.shape[1]
    if x.shape[1] != channels:
        raise InvalidInput(f"the gate was made for {channels} channels; got a map of shape {tuple(x.shape)}.")
    if norm is not None and not norm.training and (norm.running_mean is None or norm.running_var is None):
        raise InvalidOption("a norm with training=False needs running_mean and running_var.")
    if norm is not None and norm.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
        raise InvalidInput(
            f"Expected more than 1 value per channel when training; got a map of shape {tuple(x.shape)}."
        )
    if act.name not in ACTS:
        choose(dict.fromkeys(ACTS), act.name, "activation")
    if act.name == "elu" and not act.alpha > 0:
        raise InvalidOption(f"alpha of an ELU must be above 0 in a fused tail; got {act.alpha!r}.")
