"""Swapping a network's activation: ReLU -> ELU or SELU in Miskow & Altahhan 2022 (arXiv 2410.17740, Table 1).

Only the given model is changed, in place; nothing of timm's or torch's is patched.
"""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable

from timm.layers import activations as timm_activations
from timm.layers import activations_me as timm_activations_me
from torch import nn

from ferattn.errors import InvalidOption, choose

__all__ = ["ACTIVATIONS", "swap_activations"]

ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "leakyrelu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "hardswish": nn.Hardswish,
}
"""The activations that a model name can carry. Tokens hold no underscore, so that names parse."""

_SWAPPED = (
    *ACTIVATIONS.values(),
    nn.ReLU6,
    *(
        getattr(timm_activations, name)
        for name in ("Swish", "Mish", "HardSwish", "HardMish", "PReLU", "GELU", "GELUTanh", "QuickGELU")
    ),
    *(getattr(timm_activations_me, name) for name in ("SwishMe", "MishMe", "HardSwishMe", "HardMishMe")),
)
_GATES = (
    nn.Sigmoid,
    nn.Hardsigmoid,
    timm_activations.Sigmoid,
    timm_activations.HardSigmoid,
    timm_activations_me.HardSigmoidMe,
)


def swap_activations(
    model: nn.Module,
    to: str | Callable[..., nn.Module],
    *,
    keep: Iterable[str] = (),
    init: bool = False,
) -> int:
    """Replace every activation of the backbone, in place.

    Found are ReLU, ReLU6, ELU, SELU, CELU, GELU, SiLU, Mish, LeakyReLU, PReLU and Hardswish modules, timm's own
    versions of them too, wherever they sit: also inside timm's fused norm-act layers and VGG's head. Left alone
    are sigmoids, and an activation whose parent also holds a sigmoid: that is the inside of a gate, as in timm's
    ``SEModule``. The blocks of :mod:`ferattn.attention` hold no activation modules at all.

    Args:
        model: The network to change.
        to: A name from ``ACTIVATIONS``, or a callable that makes a module, such as ``partial(nn.ELU, alpha=0.5)``.
            It is called once per place, with ``inplace=True`` where it takes that and the old activation had it.
        keep: Names of modules to leave alone, with wildcards: ``("act1",)`` keeps the stem of a ResNet as it is,
            as the published networks of Miskow & Altahhan do.
        init: Also draw the weights of the convolutions and linear layers anew to suit the activation: LeCun normal
            for SELU (Klambauer et al. 2017, arXiv 1706.02515), He normal (He et al. 2015, arXiv 1502.01852)
            for the others; biases zero. The classifier, gates and norms stay as they are.

    Returns:
        How many activations were replaced.

    Raises:
        UnknownChoice: If ``to`` is a name that is not in ``ACTIVATIONS``.
        InvalidOption: If the model has no activation to swap, or ``keep`` names one that it does not have.

    >>> swap_activations(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), "elu")
    1
    """
    make = choose(ACTIVATIONS, to, "activation") if isinstance(to, str) else to
    if not callable(make):
        raise InvalidOption(f"to must be a name or a callable that makes a module; got {make!r}.")
    places = list(_places(model, tuple(keep)))
    if not places:
        raise InvalidOption(f"{type(model).__name__} has no activation module to swap.")
    takes_inplace = _takes_inplace(make)
    for parent, name, old in places:
        new = make(inplace=True) if takes_inplace and getattr(old, "inplace", False) else make()
        if not isinstance(new, nn.Module):
            raise InvalidOption(f"to must make a torch.nn.Module; {make!r} made {new!r}.")
        reference = next(model.parameters(), None)
        if reference is not None:  # PReLU and its kind bring parameters of their own
            new.to(device=reference.device, dtype=reference.dtype)
        setattr(parent, name, new.train(old.training))
    if init:
        _reinitialise(model, selu=isinstance(new, nn.SELU))
    return len(places)


def _places(model: nn.Module, keep: tuple[str, ...]) -> Iterable[tuple[nn.Module, str, nn.Module]]:
    unused = set(keep)
    for prefix, parent in list(model.named_modules()):
        children = list(parent.named_children())
        if any(isinstance(child, _GATES) for _, child in children):
            continue
        for name, child in children:
            if not isinstance(child, _SWAPPED):
                continue
            path = f"{prefix}.{name}" if prefix else name
            matched = {pattern for pattern in keep if fnmatch.fnmatchcase(path, pattern)}
            unused -= matched
            if not matched:
                yield parent, name, child
    if unused:
        raise InvalidOption(f"keep names no activation of {type(model).__name__}: {', '.join(sorted(unused))}.")


def _takes_inplace(make: Callable[..., nn.Module]) -> bool:
    try:
        return "inplace" in inspect.signature(make).parameters
    except ValueError:  # a builtin without a signature
        return False


def _reinitialise(model: nn.Module, *, selu: bool) -> None:
    get_classifier = getattr(model, "get_classifier", None)
    classifier = set(get_classifier().modules()) if callable(get_classifier) else set()
    gates = {
        inside
        for parent in model.modules()
        if any(isinstance(child, _GATES) for child in parent.children())
        for inside in parent.modules()
    }
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module in classifier or module in gates:
            continue
        if selu:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
        else:  # fan_out, as timm's backbones start
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
