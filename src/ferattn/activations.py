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
    nn.RReLU,
    nn.Softplus,
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
    keep: str | Iterable[str] = (),
    init: bool = False,
) -> int:
    """Replace every activation of the backbone, in place.

    Found are ReLU, ReLU6, ELU, SELU, CELU, GELU, SiLU, Mish, LeakyReLU, PReLU and Hardswish modules, timm's own
    versions of them too, wherever they sit: also inside timm's fused norm-act layers and VGG's head. Left alone
    are sigmoids, an activation whose parent also holds a sigmoid (the inside of a gate, as in timm's ``SEModule``),
    and everything inside a block that :func:`ferattn.attach` put there.

    Args:
        model: The network to change.
        to: A name from ``ACTIVATIONS``, or a callable that makes a module, such as ``partial(nn.ELU, alpha=0.5)``.
            It is called once per place, with ``inplace=True`` where it takes that and the old activation had it.
        keep: Names of modules to leave alone, with wildcards: ``("act1",)`` keeps the stem of a ResNet as it is,
            as the published networks of Miskow & Altahhan do.
        init: Also draw the weights of the convolutions and linear layers anew to suit the activation: LeCun normal
            for SELU (Klambauer et al. 2017, arXiv 1706.02515), He normal (He et al. 2015, arXiv 1502.01852)
            for the others; biases zero. The classifier, gates, attached blocks and norms stay as they are.

    Returns:
        How many activations were replaced.

    Raises:
        UnknownChoice: If ``to`` is a name that is not in ``ACTIVATIONS``.
        InvalidOption: If the model has no activation to swap, if ``keep`` names one that it does not have, or if an
            activation carries a block or a hook that would be lost: swap before attaching.

    >>> swap_activations(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU()), "elu")
    1
    """
    make = choose(ACTIVATIONS, to, "activation") if isinstance(to, str) else to
    if not callable(make) or isinstance(make, nn.Module):
        raise InvalidOption(f"to must be a name or a callable that makes a module; got {make!r}.")
    gates = _gates(model)
    places = list(_places(model, (keep,) if isinstance(keep, str) else tuple(keep), gates))
    if not places:
        raise InvalidOption(
            f"{type(model).__name__} has no activation module to swap: none is left by keep={keep!r} "
            "and by the rule that an activation beside a sigmoid belongs to a gate."
        )
    takes_inplace = _takes_inplace(make)
    made: dict[nn.Module, nn.Module] = {}
    for _, _, old in places:
        new = make(inplace=True) if takes_inplace and getattr(old, "inplace", False) else make()
        if not isinstance(new, nn.Module):
            raise InvalidOption(f"to must make a torch.nn.Module; {make!r} made {new!r}.")
        like = next(model.parameters(), None)
        if like is not None:  # PReLU and its kind bring parameters of their own
            new.to(device=like.device, dtype=like.dtype)
        made.setdefault(old, new.train(old.training))  # one object in several places stays one object
    for parent, name, old in places:
        setattr(parent, name, made[old])
    if init:
        _reinitialise(model, gates, selu=isinstance(new, nn.SELU))
    return len(places)


def _gates(model: nn.Module) -> set[nn.Module]:
    """Every module inside a gate: beside a sigmoid, or inside an attached block."""
    beside = [parent for parent in model.modules() if any(isinstance(child, _GATES) for child in parent.children())]
    attached = [model.get_submodule(site.path) for site in getattr(model, "attention_sites", ())]
    return {module for gate in (*beside, *attached) for module in gate.modules()}


def _places(
    model: nn.Module, keep: tuple[str, ...], gates: set[nn.Module]
) -> Iterable[tuple[nn.Module, str, nn.Module]]:
    unused = set(keep)
    for prefix, parent in list(model.named_modules()):
        if parent in gates:
            continue
        for name, child in list(parent._modules.items()):  # named_children would leave out shared modules
            if not isinstance(child, _SWAPPED):
                continue
            path = f"{prefix}.{name}" if prefix else name
            matched = {pattern for pattern in keep if fnmatch.fnmatchcase(path, pattern)}
            unused -= matched
            if matched:
                continue
            if child._modules or child._forward_hooks or child._forward_pre_hooks:
                raise InvalidOption(f"the activation {path!r} carries a block or a hook; swap before attaching.")
            yield parent, name, child
    if unused:
        raise InvalidOption(f"keep names no activation of {type(model).__name__}: {', '.join(sorted(unused))}.")


def _takes_inplace(make: Callable[..., nn.Module]) -> bool:
    try:
        return "inplace" in inspect.signature(make).parameters
    except ValueError:  # a builtin without a signature
        return False


def _reinitialise(model: nn.Module, gates: set[nn.Module], *, selu: bool) -> None:
    get_classifier = getattr(model, "get_classifier", None)
    classifier = set(get_classifier().modules()) if callable(get_classifier) else set()
    for module in model.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module in classifier or module in gates:
            continue
        if selu:
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
        else:  # fan_out, as timm's backbones start
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
