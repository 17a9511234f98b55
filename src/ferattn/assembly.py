"""From a parsed name to a model: backbone, activation, attention and weights, put together in that order."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, get_arch_pretrained_cfgs
from torch import nn

from ferattn import entrypoints
from ferattn.activations import swap_activations
from ferattn.attention import ATTENTION
from ferattn.backbones import build_backbone, feature_options, image_size, is_timm_backbone
from ferattn.errors import FerattnError, InvalidOption, UnknownChoice, WeightsMismatch, closest, require_whole
from ferattn.placements import Placement
from ferattn.residual import compile_tails, fuse_tails
from ferattn.sites import Site, attach
from ferattn.spec import ModelSpec
from ferattn.weights import UNREADABLE, fit_own_weights, load_backbone_weights, report_own_weights, told

__all__ = ["build"]

_WEIGHT_SOURCE = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_ABOUT_WEIGHTS = ("mean", "std", "interpolation", "license", "origin_url", "paper_ids", "tag")
_WHERE_WEIGHTS_ARE = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")


def build(spec: ModelSpec, known: str, pretrained: bool, **options: Any) -> nn.Module:
    """Build the model ``spec``, which timm knows as ``known``; this is what timm's factory calls.

    Weights that belong to ``known`` itself, ferattn's own or a saved model's, are timm's to load. Otherwise
    ``pretrained`` means the plain backbone's weights, see :mod:`ferattn.weights`.
    """
    options = {name: value for name, value in options.items() if value is not None}
    source = {name: options.pop(name) for name in _WEIGHT_SOURCE if name in options}
    own = _own_weights(spec, known, source.get("pretrained_cfg"))
    saved = own or {}
    input_size = saved.get("input_size") or (1, 48, 48)
    options = {"num_classes": saved.get("num_classes", 7), "in_chans": input_size[0]} | options
    options["img_size"] = image_size(options.get("img_size", tuple(input_size[1:])))
    options["num_classes"] = require_whole(options["num_classes"], "num_classes", least=0)
    options["in_chans"] = require_whole(options["in_chans"], "in_chans", least=1)
    taps = options.get("out_indices")
    if taps is not None and not options.get("features_only"):
        raise InvalidOption(f"out_indices={taps!r} is for features_only=True.")
    parts: dict[str, Any] = {}
    adapted: list[str] = []
    about = source | {"pretrained_cfg": own} if own is not None else {"pretrained_cfg": _random_weights(known)}
    try:
        model: Any = build_model_with_cfg(
            partial(_construct, spec, parts, None if own is not None or not pretrained else source),
            known,
            pretrained and own is not None,
            feature_cfg=feature_options(spec.backbone),
            pretrained_filter_fn=partial(fit_own_weights, adapted=adapted),
            **about,
            **options,
        )
    except (IndexError, AssertionError) as error:
        if taps is None:
            raise
        raise InvalidOption(f"out_indices={taps!r}: {spec} has no such feature map.") from error
    except UNREADABLE as error:
        if isinstance(error, FerattnError) or own is None or not pretrained:
            raise
        raise WeightsMismatch(f"the weights for {spec} could not be loaded: {told(error)}") from error
    model.spec = spec
    model.attention_sites = _sites_in(model, parts["blocks"])
    model.load_report = report_own_weights(model, adapted) if pretrained and own is not None else parts.get("report")
    if model.pretrained_cfg.get("num_classes") not in (None, options["num_classes"]):
        model.pretrained_cfg.pop("label_names", None)  # they name another classifier's outputs
    if own is None:
        _describe(model, parts.get("description") or _tagged(spec, source.get("pretrained_cfg")), source)
    actual = {
        "input_size": (options["in_chans"], *options["img_size"]),
        "num_classes": options["num_classes"],
        "mean": _per_channel(model.pretrained_cfg["mean"], options["in_chans"]),
        "std": _per_channel(model.pretrained_cfg["std"], options["in_chans"]),
    }
    model.pretrained_cfg |= {name: value for name, value in actual.items() if name in model.pretrained_cfg}
    model.default_cfg = model.pretrained_cfg
    finished: nn.Module = model
    return finished


def _describe(model: Any, weights: Mapping[str, Any], source: Mapping[str, Any]) -> None:
    """Say of the model what is known of its backbone's weights, and then what the caller says."""
    said = source.get("pretrained_cfg_overlay") or {}
    about = {name: weights[name] for name in _ABOUT_WEIGHTS if weights.get(name) is not None}
    model.pretrained_cfg |= about | {name: value for name, value in said.items() if name not in _WHERE_WEIGHTS_ARE}


def _tagged(spec: ModelSpec, pretrained_cfg: Any) -> dict[str, Any]:
    """Timm's description of the backbone's weights that were named but not asked for."""
    if isinstance(pretrained_cfg, str):
        return _as_dict(get_arch_pretrained_cfgs(spec.backbone)[f"{spec.backbone}.{pretrained_cfg}"])
    return _as_dict(pretrained_cfg)


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
    fused: bool | str | None = None,
    compile_tails: bool = False,
    stem: str = "own",
    **options: Any,
) -> nn.Module:
    """Backbone, then activation, then attention, then the backbone's weights; ``parts`` takes what is left to say."""
    block = _block(spec, placement, attention_options)
    activation_options = _activation_options(spec, activation_options, options)
    if stem == "small" and source is not None:
        raise InvalidOption(
            f"stem='small' contradicts pretrained: the published weights of {spec.backbone} begin with its own stem. "
            "Give stem='own', or pretrained=False."
        )
    model = build_backbone(spec.backbone, img_size, stem=stem, num_classes=num_classes, in_chans=in_chans, **options)
    before = set(model.state_dict())
    if spec.activation is not None:
        swap_activations(model, spec.activation, **activation_options)
    if block is not None:
        attach(model, block, placement)
    _fuse(model, fused, compiled=compile_tails)
    sites: tuple[Site, ...] = getattr(model, "attention_sites", ())
    parts["blocks"] = [(model.get_submodule(site.path), site.channels) for site in sites]
    if source is not None:
        added = tuple(key for key in model.state_dict() if key not in before)
        parts["report"], parts["description"] = load_backbone_weights(
            model, spec.backbone, in_chans=in_chans, allowed_new=added, **source
        )
    return model


def _fuse(model: nn.Module, fused: bool | str | None, *, compiled: bool) -> None:
    if not isinstance(compiled, bool):
        raise InvalidOption(f"compile_tails must be True or False; got {compiled!r}.")
    if compiled and fused is False:
        raise InvalidOption("compile_tails=True contradicts fused=False: it compiles the fused tails.")
    fuse_tails(model, False if fused is None else fused)
    if compiled:
        compile_tails(model)


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


def _own_weights(spec: ModelSpec, known: str, pretrained_cfg: Any) -> dict[str, Any] | None:
    """The description of this very model's weights; None if those asked for are its backbone's.

    Luo's CNN has no backbone of timm's, so its description is always its own, with weights or without.
    """
    if not (pretrained_cfg is None or isinstance(pretrained_cfg, str)):
        description = _as_dict(pretrained_cfg)
        opened = description.get("source") in ("local-dir", "hf-hub")  # timm found our name in a saved config
        own = opened or description.get("architecture") == known or not is_timm_backbone(spec.backbone)
        return description if own else None
    ours = {tag: cfg for tag, cfg in entrypoints.default_cfgs[known].cfgs.items() if cfg.has_weights}
    of_timm = get_arch_pretrained_cfgs(spec.backbone) if is_timm_backbone(spec.backbone) else {}
    of_backbone = {cfg.tag or "" for cfg in of_timm.values()}
    tag = pretrained_cfg or next(iter(ours), "")
    if tag in ours:
        return _as_dict(ours[tag]) | {"architecture": known, "tag": tag}
    if tag and tag not in of_backbone:
        tags = sorted((set(ours) | of_backbone) - {""})
        raise UnknownChoice(f"unknown weights {tag!r} for {spec}. Options: {', '.join(tags) or 'none'}.")
    return None if of_timm else _random_weights(known)


def _random_weights(known: str) -> dict[str, Any]:
    """The description of a model that has no weights."""
    return _as_dict(entrypoints.default_cfgs[known].cfgs[""]) | {"architecture": known}


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
