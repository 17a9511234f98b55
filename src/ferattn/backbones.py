"""The plain backbones: which there are, and how one is built for a picture's size.

What this file and :mod:`ferattn.sites` know of timm's insides is all that ferattn knows of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.layers import get_act_layer
from timm.models import VGG, ResNet, ResNetV2, is_model_in_modules, model_entrypoint
from torch import nn

from ferattn.cnn import CNN, find_norm
from ferattn.errors import InvalidOption, UnknownChoice, choose, closest, require_whole
from ferattn.heads import FittedHead
from ferattn.stems import set_stem

__all__ = [
    "BACKBONES",
    "build_backbone",
    "feature_options",
    "has_norm",
    "has_stem",
    "image_size",
    "is_timm_backbone",
    "timm_backbones",
]

BACKBONES = (
    "cnn",
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnetv2_18",
    "resnetv2_34",
    "resnetv2_50",
    "resnetv2_101",
    "resnetv2_152",
)
"""The first-class backbones: listed, registered with timm, and held to timm's whole contract by the tests."""

_POOLS = ("fast", "avg", "max", "avgmax", "catavgmax", "fastavg", "fastmax", "fastavgmax", "fastcatavgmax")
_FAMILIES = ("vgg", "resnet", "resnetv2")
_OTHER_OPTIONS = (
    "img_size",
    "stem",
    "placement",
    "attention_options",
    "activation_options",
    "features_only",
    "out_indices",
    "feature_cls",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
)
_VGG_REDUCTION = 32
_VGG_KERNEL = 7  # of the head's first layer for 224-pixel pictures; larger maps keep it


def timm_backbones() -> list[str]:
    """Every VGG, ResNet and ResNetV2 of timm's, by name."""
    return timm.list_models(module=_FAMILIES)  # type: ignore[no-any-return]


def is_timm_backbone(name: str) -> bool:
    """Whether ``name`` is a VGG, ResNet or ResNetV2 of timm's."""
    return is_model_in_modules(name, _FAMILIES)  # type: ignore[no-any-return]


def image_size(img_size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one number or two.

    Raises:
        InvalidOption: If they are not whole numbers of at least 1.
    """
    sides = tuple(img_size) if isinstance(img_size, Sequence) and not isinstance(img_size, str) else (img_size,) * 2
    if len(sides) != 2:
        raise InvalidOption(f"img_size must be a number of pixels, or (height, width); got {img_size!r}.")
    return require_whole(sides[0], "img_size", least=1), require_whole(sides[1], "img_size", least=1)


def has_stem(name: str) -> bool:
    """Whether a backbone begins with a stem that halves the picture, as every ResNet and ResNetV2 does."""
    return is_model_in_modules(name, ["resnet", "resnetv2"])  # type: ignore[no-any-return]


def has_norm(name: str) -> bool:
    """Whether a backbone has norms of its own: all but ``cnn`` and the VGGs without ``_bn``."""
    return has_stem(name) or name.endswith("_bn")


def build_backbone(name: str, img_size: tuple[int, int], *, stem: str = "own", **options: Any) -> nn.Module:
    """A plain backbone with random weights, fitted to a picture's size.

    Residual networks are timm's own, untouched but for the stem where another is asked for. A VGG of timm's gets a
    head that fits its feature map; see :class:`ferattn.heads.FittedHead`. Its max-pools round sizes down, as timm's
    do, but for the last, which rounds up where rounding down would leave a single cell: 48 pixels go 24, 12, 6, 3
    and then 2, so the head reads 2x2 cells at 48 and at 80 pixels, as in the published networks.

    Args:
        name: ``"cnn"``, or a VGG, ResNet or ResNetV2 of timm's.
        img_size: Height and width of the picture in pixels.
        stem: An entry of ``STEMS``; see :func:`ferattn.stems.set_stem`.
        **options: Passed to the backbone's constructor.

    Raises:
        InvalidOption: If the picture is too small for the backbone, or the backbone has no stem to change.
        UnknownChoice: If the backbone does not take an option, or there is no such stem.
    """
    _require_choices(name, options)
    try:
        if name == "cnn":
            return set_stem(_placed_cnn(img_size, **options), stem)
        if is_model_in_modules(name, ["vgg"]):
            return set_stem(_fitted_vgg(name, img_size, **options), stem)
        model: Any = model_entrypoint(name)(**options)
    except TypeError as error:
        known = [*_constructor_options(name), *_OTHER_OPTIONS]
        unknown = [option for option in options if option not in known]
        if not unknown:
            raise
        match = closest(unknown[0], known)
        raise UnknownChoice(
            f"unknown option {unknown[0]!r} of {name}{f'; did you mean {match!r}?' if match else '.'} "
            f"Options: {', '.join(known)}."
        ) from error
    set_stem(model, stem)
    _require_size(name, img_size, max(info["reduction"] for info in model.feature_info))
    if any(isinstance(module, nn.AvgPool2d) and path.endswith(".aa") for path, module in model.named_modules()):
        _require_multiple(name, img_size, max(info["reduction"] for info in model.feature_info))
    plain: nn.Module = model
    return plain


def feature_options(name: str) -> dict[str, Any]:
    """How timm's ``features_only`` wrapper has to take this backbone apart."""
    if name == "cnn":
        return {"flatten_sequential": True, "out_indices": (0, 1, 2, 3)}
    if is_model_in_modules(name, ["vgg"]):
        return {"flatten_sequential": True, "out_indices": (0, 1, 2, 3, 4, 5)}
    return {"flatten_sequential": True} if is_model_in_modules(name, ["resnetv2"]) else {}


def _constructor_options(name: str) -> list[str]:
    families = {"vgg": VGG, "resnet": ResNet, "resnetv2": ResNetV2}
    of_name = next((made for module, made in families.items() if is_model_in_modules(name, [module])), CNN)
    return [option for option in inspect.signature(of_name).parameters if option not in ("cfg", "block", "layers")]


def _placed_cnn(img_size: tuple[int, int], device: Any = None, dtype: Any = None, **options: Any) -> CNN:
    """Luo's CNN on a device and in a dtype, as every constructor of timm's takes them."""
    with nullcontext() if device is None else torch.device(device):
        return CNN(img_size=img_size, **options).to(dtype=dtype)


def _fitted_vgg(name: str, img_size: tuple[int, int], **options: Any) -> nn.Module:
    _require_size(name, img_size, _VGG_REDUCTION)
    if "norm_layer" in options:
        if has_norm(name):
            raise InvalidOption(f"norm_layer contradicts the batch norm in the name {name!r}; give one of the two.")
        options["norm_layer"] = find_norm(options["norm_layer"])
    conv_layer: Callable[..., nn.Module] = options.pop("conv_layer", nn.Conv2d)

    def conv(in_channels: int, out_channels: int, kernel_size: int, **arguments: Any) -> nn.Module:
        if kernel_size == 3:
            return conv_layer(in_channels, out_channels, kernel_size=kernel_size, **arguments)
        # The head's layers: replaced below, and 120 M parameters need not be drawn for that.
        return nn.Conv2d(in_channels, out_channels, kernel_size, **(arguments | {"device": "meta"}))

    act = get_act_layer(options.pop("act_layer", nn.ReLU))
    model: Any = model_entrypoint(name)(
        conv_layer=conv,
        act_layer=lambda *trap, **arguments: act(**arguments),  # timm's head calls act_layer(True)
        **options,
    )
    last_pool = next(module for module in reversed(model.features) if isinstance(module, nn.MaxPool2d))
    before = [side // (_VGG_REDUCTION // 2) for side in img_size]
    last_pool.ceil_mode = 3 in before
    cells = [-(-side // 2) if last_pool.ceil_mode else side // 2 for side in before]
    stretched = model.pre_logits
    head = FittedHead(
        stretched.fc1.in_channels,
        stretched.fc1.out_channels,
        stretched.fc2.out_channels,
        kernel=(min(cells[0], _VGG_KERNEL), min(cells[1], _VGG_KERNEL)),
        drop_rate=stretched.drop.p,
        act=act,
    )
    like = next(model.parameters())
    model.pre_logits = head.to(device=like.device, dtype=like.dtype)
    fitted: nn.Module = model
    return fitted


def _require_choices(name: str, options: dict[str, Any]) -> None:
    """Refuse values that timm would refuse with an error of its own, or with none that says anything."""
    if isinstance(options.get("act_layer"), str):
        try:
            get_act_layer(options["act_layer"])
        except KeyError:
            raise UnknownChoice(
                f"unknown act_layer {options['act_layer']!r}. Options: timm's names, such as 'relu', 'elu' or "
                "'silu', or a class such as nn.ReLU."
            ) from None
    find_norm(options.get("norm_layer"))
    if options.get("global_pool"):  # "" is for none
        choose(dict.fromkeys(_POOLS), str(options["global_pool"]).lower(), "global_pool")
    strides = (32,) if name == "cnn" or is_model_in_modules(name, ["vgg"]) else (8, 16, 32)
    if options.get("output_stride", 32) not in strides:
        raise InvalidOption(
            f"output_stride={options['output_stride']!r} of {name}: one of {', '.join(map(str, strides))}."
        )
    drop_rate = options.get("drop_rate", 0.0)
    if isinstance(drop_rate, bool) or not isinstance(drop_rate, int | float) or not 0 <= drop_rate < 1:
        raise InvalidOption(f"drop_rate={drop_rate!r}: from 0 to less than 1.")
    if "hidden" in options:
        require_whole(options["hidden"], "hidden", least=1)


def _require_multiple(name: str, img_size: tuple[int, int], step: int) -> None:
    odd = [side for side in img_size if side % step]
    if odd:
        near = [max(step, odd[0] // step * step), (odd[0] // step + 1) * step]
        told = " or ".join(map(str, sorted(set(near))))
        raise InvalidOption(
            f"img_size must be a multiple of {step} on a side for {name}, whose pools and convolutions round odd "
            f"sizes differently; got {img_size[0]}x{img_size[1]}. Near it: {told}."
        )


def _require_size(name: str, img_size: tuple[int, int], smallest: int) -> None:
    if min(img_size) < smallest:
        raise InvalidOption(
            f"img_size must be at least {smallest} pixels on a side for {name}, which halves it "
            f"{smallest.bit_length() - 1} times; got {img_size[0]}x{img_size[1]}."
        )
