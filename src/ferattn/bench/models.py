"""Whole models: what attention costs each backbone, against the plain one timed in the same group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import timm
from torch import nn

from ferattn.attention import ATTENTION
from ferattn.bench.plan import DTYPES, Case, Group, Request
from ferattn.errors import UnknownChoice, choose, closest
from ferattn.factory import create_model, list_models
from ferattn.measure import Candidate, count
from ferattn.shapes import shapes_only
from ferattn.spec import ModelSpec

__all__ = ["AGAINST", "QUICK", "groups", "missing_counterparts"]

QUICK = ("resnet50", "resnetv2_50", "vgg16")
"""Backbones of the quick run, each plain and with every block."""

EVERYTHING = ("cnn", "vgg16", "vgg19", "resnet18", "resnet34", "resnet50", "resnet101", "resnetv2_50")
"""Backbones that are measured when no names are given."""

CLASSES = 7


def quick_names() -> tuple[str, ...]:
    """The models of the quick run."""
    return tuple(_with_attention(QUICK))


def groups(request: Request) -> Iterator[Group]:
    """One group for each backbone, activation and image size; the plain backbone is the yardstick.

    Raises:
        UnknownChoice: If a name is no model, or a pattern matches none.
        InvalidOption: If an image is too small for a model.
    """
    specs = [ModelSpec.parse(name) for name in _names(request.names or tuple(_with_attention(EVERYTHING)))]
    families: dict[ModelSpec, list[ModelSpec]] = {}
    for spec in specs:
        families.setdefault(replace(spec, attention=None), []).append(spec)
    sizes = request.img_sizes or (48,)
    for size in sizes:  # a model that does not take the images is an error now, not after minutes of work
        for spec in specs:
            _meta(partial(_ours, spec, size, request.in_chans))
    for size in sizes:
        for plain, members in families.items():
            cases = [
                _case(str(plain), plain, partial(_ours, plain, size, request.in_chans), "ferattn", size, request)
            ]
            for spec in members:
                if spec != plain:
                    build = partial(_ours, spec, size, request.in_chans)
                    cases.append(_case(str(spec), spec, build, "ferattn", size, request))
            for library in request.against:
                make = choose(AGAINST, library, "library to compare with")
                for spec in dict.fromkeys((plain, *members)):
                    theirs = make(spec)
                    if theirs is not None:
                        build = partial(theirs, in_chans=request.in_chans, num_classes=CLASSES)
                        cases.append(_case(f"{library}: {spec}", spec, build, library, size, request))
            yield Group(f"{plain} at {size}", tuple(cases))


def missing_counterparts(request: Request) -> list[str]:
    """A note for each library asked for that lacks some of the models."""
    specs = [ModelSpec.parse(name) for name in _names(request.names or tuple(_with_attention(EVERYTHING)))]
    notes = []
    for library in request.against:
        missing = [str(spec) for spec in specs if choose(AGAINST, library, "library to compare with")(spec) is None]
        if missing:
            notes.append(f"{library} has no counterpart of {', '.join(missing)}")
    return notes


def _with_attention(backbones: Iterable[str]) -> Iterator[str]:
    for backbone in backbones:
        yield backbone
        for attention in ATTENTION:
            yield f"{backbone}_{attention}"


def _names(given: tuple[str, ...]) -> list[str]:
    names: dict[str, None] = {}
    for name in given:
        if any(character in name for character in "*?["):
            matches = list_models(name)
            if not matches:
                nearest = closest(name.strip("*?"), list_models())
                hint = f"; did you mean {nearest!r}?" if nearest else ""
                raise UnknownChoice(f"no model matches {name!r}{hint}")
            names |= dict.fromkeys(matches)
        else:
            names[name] = None
    return list(names)


def _ours(spec: ModelSpec, size: int, in_chans: int) -> nn.Module:
    return create_model(str(spec), num_classes=CLASSES, in_chans=in_chans, img_size=size)


def _timm(spec: ModelSpec) -> Callable[..., nn.Module] | None:
    """The model of timm's that does the same; None where timm has none."""
    residual = spec.backbone.startswith("resnet")
    if spec.attention is None and spec.activation is None:
        # timm's VGG stretches small maps to 7x7: another network, with 94 million parameters more.
        return partial(timm.create_model, spec.backbone) if residual else None
    if spec.backbone.startswith("resnetv2") or not residual:
        return None
    options: dict[str, Any] = {}
    if spec.activation:
        options["act_layer"] = "leaky_relu" if spec.activation == "leakyrelu" else spec.activation
    if spec.attention:
        options["block_args"] = {"attn_layer": spec.attention}
    return partial(timm.create_model, spec.backbone, **options)


def _tails(spec: ModelSpec, **how: Any) -> Callable[..., nn.Module] | None:
    """Our own model with its tails as one operation; None where it has no such tails."""
    if spec.attention is None or not spec.backbone.startswith("resnet"):
        return None
    return partial(create_model, str(spec), **how)


AGAINST: dict[str, Callable[[ModelSpec], Callable[..., nn.Module] | None]] = {
    "timm": _timm,
    "fused": partial(_tails, fused=True),
    "compiled-tails": partial(_tails, compile_tails=True),
}
"""What to compare with: timm's models, and ours with their tails as one operation, as it is or compiled."""


def _case(
    name: str, spec: ModelSpec, build: Callable[[], nn.Module], library: str, size: int, request: Request
) -> Case:
    batch = request.batch or 32
    step = "training" if request.training else "inference"
    mode = "compiled" if request.compiled else "eager"

    def facts() -> Mapping[str, Any]:
        counted = count(_meta(build), (request.in_chans, size, size))
        return {
            "library": library,
            "backbone": spec.backbone,
            "attention": spec.attention,
            "activation": spec.activation,
            "img_size": size,
            "batch": batch,
            "step": step,
            "mode": mode,
            "memory_format": "channels_last" if request.channels_last else "contiguous",
            "dtype": request.dtype,
            "parameters": counted.parameters,
            "flops": counted.flops,
            "elements": counted.elements,
            "activation_bytes": counted.activation_bytes,
            "saved_bytes": counted.saved_bytes,
        }

    def candidate() -> Candidate:
        return Candidate(
            build(),
            (batch, request.in_chans, size, size),
            step=step,
            mode=mode,
            channels_last=bool(request.channels_last),
            autocast=choose(DTYPES, request.dtype, "dtype"),
            device=request.device,
        )

    return Case(name, facts, candidate)


def _meta(build: Callable[[], nn.Module]) -> nn.Module:
    with shapes_only():
        return build()
