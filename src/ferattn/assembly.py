"""From a parsed name to a model: backbone, activation, attention and weights, put together in that order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, get_arch_pretrained_cfgs
from torch import nn

from ferattn.activations import swap_activations
from ferattn.attention import ATTENTION
from ferattn.backbones import build_backbone, feature_options, image_size, is_timm_backbone
from ferattn.errors import InvalidOption, UnknownChoice, WeightsMismatch, closest
from ferattn.residual import fuse_tails
from ferattn.sites import Placement, Site, attach
from ferattn.spec import ModelSpec
from ferattn.weights import load_backbone_weights

__all__ = ["build"]

_WEIGHT_SOURCE = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_ABOUT_WEIGHTS = ("license", "origin_url", "paper_ids", "tag", "interpolation")


def build(spec: ModelSpec, known: str, pretrained: bool, **options: Any) -> nn.Module:
    """Build the model ``spec``, which timm knows as ``known``; this is what timm's factory calls.

    Weights that belong to ``known`` itself, ferattn's own or a saved model's, are timm's to load. Otherwise
    ``pretrained`` means the plain backbone's weights, see :mod:`ferattn.weights`.
    """
    options = {name: value for name, value in options.items() if value is not None}
    source = {name: options.pop(name) for name in _WEIGHT_SOURCE if name in options}
    own = _has_own_weights(spec, known, source.get("pretrained_cfg"))
    saved = _as_dict(source.get("pretrained_cfg")) if own else {}
    input_size = saved.get("input_size") or (1, 48, 48)
    options = {"num_classes": saved.get("num_classes", 7), "in_chans": input_size[0]} | options
    options["img_size"] = image_size(options.get("img_size", tuple(input_size[1:])))
    _require_count("num_classes", options["num_classes"], least=0)
    _require_count("in_chans", options["in_chans"], least=1)
    parts: dict[str, Any] = {}
    try:
        model: Any = build_model_with_cfg(
            partial(_construct, spec, parts, None if own or not pretrained else source),
            known,
            pretrained and own,
            feature_cfg=feature_options(spec.backbone),
            **(source if own else {}),
            **options,
        )
    except RuntimeError as error:
        if isinstance(error, WeightsMismatch) or not (pretrained and own):
            raise
        raise WeightsMismatch(f"the weights for {spec} could not be loaded: {error}") from error
    model.spec = spec
    model.load_report = parts.get("report")
    model.attention_sites = _sites_in(model, parts["blocks"])
    description = model.pretrained_cfg
    about = {name: value for name, value in parts.get("description", {}).items() if name in _ABOUT_WEIGHTS}
    actual = {
        "input_size": (options["in_chans"], *options["img_size"]),
        "num_classes": options["num_classes"],
        "mean": _per_channel(parts.get("description", description)["mean"], options["in_chans"]),
        "std": _per_channel(parts.get("description", description)["std"], options["in_chans"]),
    }
    model.pretrained_cfg = description | about | {k: v for k, v in actual.items() if k in description}
    model.default_cfg = model.pretrained_cfg
    finished: nn.Module = model
    return finished


def _construct(
    spec: ModelSpec,
    parts: dict[str, Any],
    source: Mapping[str, Any] | None,
    *,
    num_classes: int,
    in_chans: int,
    img_size: tuple[int, int],
    placement: Placement | None = None,
    attention_options: Mapping[str, Any] | None = None,
    activation_options: Mapping[str, Any] | None = None,
    fused: bool | str = "auto",
    **options: Any,
) -> nn.Module:
    """Backbone, then activation, then attention, then the backbone's weights; ``parts`` takes what is left to say."""
    block = _block(spec, placement, attention_options)
    activation_options = _activation_options(spec, activation_options, options)
    model = build_backbone(spec.backbone, img_size, num_classes=num_classes, in_chans=in_chans, **options)
    before = set(model.state_dict())
    if spec.activation is not None:
        swap_activations(model, spec.activation, **activation_options)
    if block is not None:
        attach(model, block, placement)
    fuse_tails(model, fused)
    sites: tuple[Site, ...] = getattr(model, "attention_sites", ())
    parts["blocks"] = [(model.get_submodule(site.path), site.channels) for site in sites]
    if source is not None:
        added = tuple(key for key in model.state_dict() if key not in before)
        parts["report"], parts["description"] = load_backbone_weights(
            model, spec.backbone, in_chans=in_chans, allowed_new=added, **source
        )
    return model


def _block(
    spec: ModelSpec, placement: Placement | None, options: Mapping[str, Any] | None
) -> Callable[[int], nn.Module] | None:
    if spec.attention is None:
        for name, value in (("placement", placement), ("attention_options", options)):
            if value:
                raise InvalidOption(
                    f"{name}={value!r} needs an attention in the name {str(spec)!r}: one of {', '.join(ATTENTION)}."
                )
        return None
    _require_options(ATTENTION[spec.attention], options or {}, f"option of {spec.attention}", skip=1)
    return partial(ATTENTION[spec.attention], **(options or {}))


def _activation_options(
    spec: ModelSpec, options: Mapping[str, Any] | None, timm_options: Mapping[str, Any]
) -> Mapping[str, Any]:
    if spec.activation is None:
        if options:
            raise InvalidOption(f"activation_options={options!r} needs an activation in the name {str(spec)!r}.")
        return {}
    if "act_layer" in timm_options:
        raise InvalidOption(f"act_layer contradicts the activation in the name {str(spec)!r}; give one of the two.")
    _require_options(swap_activations, options or {}, "activation option", skip=2)
    return options or {}


def _require_options(function: Callable[..., Any], options: Mapping[str, Any], what: str, *, skip: int) -> None:
    """Every option must be a parameter of the function, the first ``skip`` of them aside."""
    known = list(inspect.signature(function).parameters)[skip:]
    for name in options:
        if name not in known:
            match = closest(name, known)
            hint = f"; did you mean {match!r}?" if match else "."
            raise UnknownChoice(f"unknown {what} {name!r}{hint} Options: {', '.join(known)}.")


def _require_count(name: str, value: Any, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidOption(f"{name} must be a whole number of at least {least}; got {value!r}.")


def _has_own_weights(spec: ModelSpec, known: str, pretrained_cfg: Any) -> bool:
    """Whether the weights that timm was asked for are this very model's, and not its backbone's."""
    if not (pretrained_cfg is None or isinstance(pretrained_cfg, str)):
        description = _as_dict(pretrained_cfg)
        opened = description.get("source") in ("local-dir", "hf-hub")  # timm found our name in a saved config
        return opened or description.get("architecture") == known or not is_timm_backbone(spec.backbone)
    own = {cfg.tag or "": cfg for cfg in get_arch_pretrained_cfgs(known).values()}
    of_timm = get_arch_pretrained_cfgs(spec.backbone) if is_timm_backbone(spec.backbone) else {}
    of_backbone = {cfg.tag or "" for cfg in of_timm.values()}
    tag = pretrained_cfg or ""
    if tag and tag not in own and tag not in of_backbone:
        tags = sorted((set(own) | of_backbone) - {""})
        raise UnknownChoice(f"unknown weights {tag!r} for {spec}. Options: {', '.join(tags) or 'none'}.")
    return not of_backbone or (tag in own and bool(own[tag].has_weights))


def _as_dict(pretrained_cfg: Any) -> dict[str, Any]:
    if pretrained_cfg is None or isinstance(pretrained_cfg, str):
        return {}
    return dict(pretrained_cfg) if isinstance(pretrained_cfg, Mapping) else dict(vars(pretrained_cfg))


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A statistic of the picture for another number of channels: their mean, where the number differs."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _sites_in(model: nn.Module, blocks: list[tuple[nn.Module, int]]) -> tuple[Site, ...]:
    """The blocks' paths in the finished model: timm's feature extractors take a backbone apart and rename it."""
    paths = {id(module): path for path, module in model.named_modules()}
    return tuple(Site(paths[id(block)], channels) for block, channels in blocks if id(block) in paths)
