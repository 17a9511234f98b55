"""The small stem: what it changes in every residual backbone, what it leaves, and who has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ferattn import SE, attach, create_model
from ferattn.backbones import BACKBONES, has_norm, has_stem, timm_backbones
from ferattn.errors import InvalidOption, UnknownChoice
from ferattn.shapes import shapes_only
from ferattn.stems import set_stem
from hollow import hollow

RESIDUAL = [name for name in BACKBONES if has_stem(name)]


def _meta(name: str, **options: Any) -> Any:
    with shapes_only():
        return create_model(name, **options)


@pytest.mark.parametrize("backbone", RESIDUAL)
@torch.no_grad()
def test_a_small_stem_keeps_the_picture_and_every_key(backbone: str) -> None:
    own, small = hollow(f"{backbone}_cbam"), hollow(f"{backbone}_cbam", stem="small")
    shapes, small_shapes = ({key: value.shape for key, value in m.state_dict().items()} for m in (own, small))
    first = f"{small.pretrained_cfg['first_conv']}.weight"
    assert list(shapes) == list(small_shapes)
    assert {key for key in shapes if shapes[key] != small_shapes[key]} == {first}
    assert tuple(small_shapes[first]) == (64, 1, 3, 3)
    assert [info["reduction"] for info in own.feature_info] == [2, 4, 8, 16, 32]
    assert [info["reduction"] for info in small.feature_info] == [1, 1, 2, 4, 8]
    x = torch.zeros(1, 1, 32, 32)
    assert [own.forward_features(x).shape[-1], small.forward_features(x).shape[-1]] == [1, 4]
    assert not any(isinstance(module, nn.MaxPool2d) for module in small.modules())
    assert small.attention_sites == own.attention_sites


@pytest.mark.parametrize(
    ("name", "strides"),
    [("resnet26t", {(1, 1)}), ("resnetv2_50d", {(1, 1)}), ("resnetaa50", {(1, 1)}), ("resnetv2_50x1_bit", {(1, 1)})],
)
def test_other_stems_of_timms_lose_their_strides_too(name: str, strides: set[tuple[int, int]]) -> None:
    model = _meta(name, stem="small", in_chans=3)
    begin = model.stem if hasattr(model, "stem") else nn.Sequential(model.conv1, model.maxpool)
    assert {module.stride for module in begin.modules() if isinstance(module, nn.Conv2d)} == strides
    assert model.forward_features(torch.empty(1, 3, 64, 64, device="meta")).shape[-1] == 8


@pytest.mark.slow
def test_every_resnet_of_timms_can_have_one() -> None:
    for name in filter(has_stem, timm_backbones()):
        model = _meta(name, stem="small", img_size=64)
        assert model.forward_features(torch.empty(2, 1, 64, 64, device="meta")).shape[-1] == 8, name


def test_the_new_convolution_is_drawn_as_timm_draws() -> None:
    torch.manual_seed(0)
    model = create_model("resnet18", stem="small", in_chans=3)
    assert model.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert model.conv1.bias is None
    bit = create_model("resnetv2_50x1_bit", stem="small")
    assert type(bit.stem.conv) is type(timm.create_model("resnetv2_50x1_bit").stem.conv)
    assert bit.stem.conv.eps == timm.create_model("resnetv2_50x1_bit").stem.conv.eps
    with shapes_only():
        half = timm.create_model("resnet18", dtype=torch.float16)
    assert set_stem(half, "small").conv1.weight.dtype == torch.float16
    assert half.conv1.weight.is_meta


def test_smaller_pictures_fit() -> None:
    assert _meta("resnet18_se", stem="small", img_size=8)(torch.empty(2, 1, 8, 8, device="meta")).shape == (2, 7)
    with pytest.raises(InvalidOption, match=r"at least 8 pixels on a side for resnet18, which halves it 3 times"):
        _meta("resnet18_se", stem="small", img_size=7)


def test_attention_after_the_stem_still_has_its_place() -> None:
    for name, path in (("resnet18", "maxpool.attention"), ("resnetv2_50", "stem.pool.attention")):
        model = set_stem(timm.create_model(name, in_chans=1), "small")
        assert attach(model, SE, "stem-and-last")[0].path == path
        assert model(torch.randn(1, 1, 48, 48)).shape == (1, 1000)


@pytest.mark.parametrize("name", ["resnet18_cbam", "resnetv2_50_se_elu"])
def test_saving_and_opening_keeps_the_stem(name: str, tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model: Any = create_model(name, stem="small").eval()
    save_for_hf(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["stem"] == "small"
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert [info["reduction"] for info in again.feature_info] == [1, 1, 2, 4, 8]


def test_saving_and_opening_keeps_the_norm(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model: Any = create_model("cnn_se", norm_layer="batchnorm2d").eval()
    save_for_hf(model, tmp_path)
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in again.modules()) == 7


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        (
            "vgg16_se",
            {"stem": "small"},
            InvalidOption,
            r"stem='small' is for ResNet and ResNetV2: VGG has",
        ),
        ("cnn", {"stem": "small"}, InvalidOption, r"ResNet and ResNetV2: CNN has no strided stem, give stem='own'"),
        (
            "resnet18",
            {"stem": "smal"},
            UnknownChoice,
            r"did you mean 'small'\? Options: own, small",
        ),
        ("resnet18", {"stem": "small", "pretrained": True}, InvalidOption, r"stem='small' contradicts pretrained"),
        ("resnet18", {"stemm": "small"}, UnknownChoice, r"option 'stemm' of resnet18; did you mean 'stem'"),
        (
            "vgg16_bn",
            {"norm_layer": "batchnorm2d"},
            InvalidOption,
            r"norm_layer contradicts the batch norm",
        ),
        (
            "vgg16",
            {"norm_layer": "batchnom"},
            UnknownChoice,
            r"unknown norm_layer 'batchnom'. .*batchnorm2d",
        ),
        ("cnn_se", {"norm_layer": "batchnom"}, UnknownChoice, r"unknown norm_layer 'batchnom'"),
    ],
)
def test_asking_wrongly(name: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        _meta(name, **options)


def test_who_has_norms() -> None:
    assert not any(has_norm(name) for name in ("cnn", "vgg16", "vgg19"))
    assert all(has_norm(name) for name in (*RESIDUAL, "vgg11_bn"))
    normed = _meta("vgg16_se", norm_layer=nn.BatchNorm2d)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in normed.features.modules()) == 13
    with pytest.raises(InvalidOption, match="VGG has no strided stem"):
        set_stem(timm.create_model("vgg11"), "small")
