"""From a name to a model: ``create_model``, ``list_models``, and the same models under timm's own factory."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import timm
from timm.models import generate_default_cfgs, get_pretrained_cfg, load_checkpoint, register_model
from torch import nn

from ferattn import entrypoints
from ferattn.assembly import build
from ferattn.backbones import has_norm, is_timm_backbone
from ferattn.errors import InvalidOption, UnknownChoice, WeightsMismatch
from ferattn.placements import Placement
from ferattn.shipped import describe
from ferattn.spec import PLAIN_PREFIX, ModelSpec, first_class_names
from ferattn.weights import UNREADABLE, told

__all__ = ["create_model", "list_models", "register"]


def create_model(
    name: str,
    pretrained: bool | str = False,
    *,
    num_classes: int = 7,
    in_chans: int = 1,
    img_size: int | tuple[int, int] = 48,
    placement: Placement | None = None,
    attention_options: Mapping[str, Any] | None = None,
    activation_options: Mapping[str, Any] | None = None,
    fused: bool | str | None = None,
    compile_tails: bool = False,
    stem: str = "own",
    **timm_options: Any,
) -> nn.Module:
    """Build a model from its name, ``<backbone>[_<attention>][_<activation>]``.

    Args:
        name: Such as ``"resnetv2_50_cbam_elu"``; see :func:`list_models`. Any VGG, ResNet or ResNetV2 of timm's
            can be the backbone. As in timm, ``".tag"`` may follow and choose the weights.
        pretrained: Load weights: ferattn's own where a model has some, else timm's ImageNet weights for the plain
            backbone. A string is the tag of the weights, such as ``"a1_in1k"``.
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the picture.
        img_size: Height and width of the picture in pixels, or one number for both. VGG and ``cnn`` fit their
            fully connected layers to it; for residual networks it is what ``timm.data`` is told.
        placement: Where the blocks go; see :func:`ferattn.attach`. By default the model's usual one.
        attention_options: Keyword arguments of the block, such as ``{"reduction": 8}``.
        activation_options: Keyword arguments ``keep`` and ``init`` of :func:`ferattn.swap_activations`.
        fused: Compute norm, attention, addition and activation at a residual block's end as one operation: True,
            False, or ``"auto"``, under ``torch.compile`` only. Young, so off unless asked for; see
            :func:`ferattn.residual.fuse_tails`.
        compile_tails: Compile these operations and leave the rest of the model eager; see
            :func:`ferattn.residual.compile_tails`.
        stem: How a ResNet or ResNetV2 begins: ``"own"``, or ``"small"``, a 3x3 convolution of stride 1 and no
            max-pool, for pictures of 32 to 64 pixels; ImageNet weights need their own.
        **timm_options: timm's own: ``drop_rate``, ``drop_path_rate``, ``global_pool``, ``features_only``,
            ``out_indices``, ``pretrained_cfg_overlay``, ``cache_dir``, ``checkpoint_path``, ...

    Returns:
        A model under timm's contract. ``model.spec`` is the parsed name, ``model.attention_sites`` says where the
        blocks are, ``model.load_report`` what ``pretrained`` loaded and what is new (None without).

    Raises:
        UnknownChoice: If a part of the name, a placement or an option does not exist.
        InvalidOption: If an option is impossible or contradicts the name.
        NoSite: If the placement finds no site.
        WeightsMismatch: If there are no such weights, or if they do not fit.

    >>> import torch
    >>> model = create_model("resnet18_eca_elu")
    >>> model(torch.randn(2, 1, 48, 48)).shape
    torch.Size([2, 7])
    >>> len(model.attention_sites)
    8
    """
    if isinstance(name, str) and (":" in name or "/" in name):
        raise UnknownChoice(f"{name!r} is no model name; timm.create_model opens saved models, and knows ours.")
    architecture, _, tag = name.partition(".") if isinstance(name, str) else (name, "", "")
    if isinstance(pretrained, str):
        if tag:
            raise InvalidOption(f"the weights' tag is given twice: in the name {name!r} and as {pretrained!r}.")
        tag = pretrained
    known = register(architecture.removeprefix(PLAIN_PREFIX) if isinstance(architecture, str) else architecture)
    checkpoint = timm_options.pop("checkpoint_path", None)
    if timm_options.get("norm_layer") is nn.BatchNorm2d and not has_norm(ModelSpec.parse(architecture).backbone):
        timm_options["norm_layer"] = "batchnorm2d"  # which timm can write to a model's config
    model: nn.Module = timm.create_model(
        f"{known}.{tag}" if tag else known,
        pretrained=bool(pretrained),
        num_classes=num_classes,
        in_chans=in_chans,
        img_size=img_size,
        placement=placement,
        attention_options=_as_dict("attention_options", attention_options),
        activation_options=_as_dict("activation_options", activation_options),
        fused=fused,
        compile_tails=compile_tails,
        stem=stem,
        **timm_options,
    )
    if checkpoint is not None:
        try:
            load_checkpoint(model, checkpoint)
        except UNREADABLE as error:
            raise WeightsMismatch(
                f"checkpoint_path {str(checkpoint)!r} could not be loaded: {told(error)}"
            ) from error
    return model


def _as_dict(name: str, options: Any) -> dict[str, Any] | None:
    """The options as a dict, which timm can write to a model's config."""
    if options is not None and not isinstance(options, Mapping):
        raise InvalidOption(f"{name} must map names to values, such as {{'reduction': 8}}; got {options!r}.")
    return None if options is None else dict(options)


def list_models(filter: str | Sequence[str] | None = "*") -> list[str]:
    """The names of the first-class models, those that match a wildcard pattern or one of several.

    Every other VGG, ResNet and ResNetV2 of timm's, and every other activation in ``ACTIVATIONS``, works in
    :func:`create_model` too.

    >>> list_models("resnetv2_50_cbam*")
    ['resnetv2_50_cbam', 'resnetv2_50_cbam_relu', 'resnetv2_50_cbam_elu', 'resnetv2_50_cbam_selu']
    """
    patterns = [filter] if isinstance(filter, str) else filter or ["*"]
    return [name for name in first_class_names() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def register(name: str) -> str:
    """Make a model known to timm; done already for all of :func:`list_models`.

    Args:
        name: A model name, ``<backbone>[_<attention>][_<activation>]``.

    Returns:
        The name under which timm knows it: the same, but for a plain backbone of timm's. timm's own stays as it
        is, and ours, with its fitted head and its defaults for faces, is ``"ferattn_<backbone>"``.

    Raises:
        UnknownChoice: If it is no model name.
    """
    spec = ModelSpec.parse(name)
    plain = spec.attention is None and spec.activation is None and is_timm_backbone(spec.backbone)
    known = f"{PLAIN_PREFIX}{spec}" if plain else str(spec)
    if known not in entrypoints.__all__:

        def entrypoint(pretrained: bool = False, **options: Any) -> nn.Module:
            return build(spec, known, pretrained, **options)

        entrypoint.__name__ = entrypoint.__qualname__ = known
        entrypoint.__module__ = entrypoints.__name__
        entrypoint.__doc__ = f"{spec}: see :func:`ferattn.create_model`."
        described = {known: _description(spec.backbone)}
        shipped = describe(known)
        if shipped is not None:  # first, so that timm takes it where no tag is given
            described = {f"{known}.{shipped['tag']}": shipped} | described
        entrypoints.default_cfgs.update(generate_default_cfgs(described))
        setattr(entrypoints, known, entrypoint)
        register_model(entrypoint)
    return known


def _description(backbone: str) -> dict[str, Any]:
    """What timm calls a pretrained_cfg, for a model with random weights on FER2013's pictures."""
    of_timm = get_pretrained_cfg(backbone, allow_unregistered=True) if backbone != "cnn" else None
    return {
        "url": "",
        "num_classes": 7,
        "input_size": (1, 48, 48),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.0,),  # all three papers scale by 1/255 and no more
        "std": (1.0,),
        "first_conv": "features.0" if of_timm is None else of_timm.first_conv,
        "classifier": "head.fc" if of_timm is None else of_timm.classifier,
        "license": "apache-2.0",
    }
