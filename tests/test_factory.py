"""Names into models, under our factory and timm's; and every way of asking wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import ferattn
from ferattn import create_model, list_models, register
from ferattn.activations import ACTIVATIONS
from ferattn.attention import ATTENTION
from ferattn.backbones import BACKBONES, timm_backbones
from ferattn.errors import FerattnError, InvalidOption, NoSite, UnknownChoice
from hollow import hollow


def _meta(name: str, **options: Any) -> Any:
    with torch.device("meta"):
        return create_model(name, **options)


DEEP = ("resnet101", "resnet152", "resnetv2_101", "resnetv2_152")  # of ResNet-50's blocks, and slow to build


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=pytest.mark.slow if name in DEEP else ()) for name in BACKBONES]
)
@torch.no_grad()
def test_every_first_class_name_builds(backbone: str) -> None:
    names = [name for name in list_models() if ferattn.ModelSpec.parse(name).backbone == backbone]
    assert len(names) == 16
    for name in names:
        model = hollow(name)
        assert str(model.spec) == name
        assert model(torch.zeros(1, 1, 48, 48)).shape == (1, 7)
        blocks = [model.get_submodule(site.path) for site in model.attention_sites]
        expected = ATTENTION.get(model.spec.attention)
        assert all(type(block) is expected for block in blocks)
        assert bool(blocks) == (expected is not None)
        wanted = ACTIVATIONS[model.spec.activation or "relu"]
        assert {type(m) for m in model.modules() if isinstance(m, tuple(ACTIVATIONS.values()))} == {wanted}


@pytest.mark.parametrize("token", ACTIVATIONS)
def test_every_activation_works_in_a_name(token: str) -> None:
    assert any(isinstance(module, ACTIVATIONS[token]) for module in _meta(f"resnet18_se_{token}").modules())


@pytest.mark.slow
def test_every_vgg_resnet_and_resnetv2_of_timms_works_in_a_name() -> None:
    for backbone in timm_backbones():
        if "_frn" in backbone or "_evos" in backbone:  # their norms are their activations
            with pytest.raises(InvalidOption, match="no activation module to swap"):
                _meta(f"{backbone}_elu", img_size=224)
        else:
            assert str(_meta(f"{backbone}_elu", img_size=224).spec) == f"{backbone}_elu"
        if backbone.startswith(("se", "eca", "resnetrs")):
            with pytest.raises(InvalidOption, match="already"):
                _meta(f"{backbone}_cbam", img_size=224)
        else:
            assert _meta(f"{backbone}_cbam", img_size=224).attention_sites


@pytest.mark.parametrize(
    "name", ["vgg11_bn_eca", "resnet26t_cbam_gelu", "resnetv2_50d_gn_se", "resnext50_32x4d_se_mish"]
)
def test_other_backbones_of_timms_run(name: str) -> None:
    model = create_model(name, img_size=64, in_chans=3)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)
    assert name in timm.list_models(name)


def test_listing() -> None:
    assert len(list_models()) == 13 * 4 * 4
    assert all(isinstance(name, str) for name in list_models())
    assert set(list_models("*cbam*")) == {name for name in list_models() if "cbam" in name}
    assert list_models(["cnn", "vgg16_s*"]) == ["cnn", "vgg16_selu", "vgg16_se", "vgg16_se_relu", "vgg16_se_elu",
                                               "vgg16_se_selu"]  # fmt: skip
    assert list_models("nothing") == []
    assert list_models(None) == list_models()


# Options


def test_block_options_and_placements_arrive() -> None:
    model = _meta("resnet18_se", attention_options={"reduction": 4}, placement="residual-last")
    (site,) = model.attention_sites
    assert model.get_submodule(site.path).reduced_channels == 128
    assert len(_meta("vgg16_cbam", placement=["features.5"]).attention_sites) == 1
    assert _meta("vgg16_cbam", placement="before-fc-add").attention_sites[0].path == "features.30.attention.block"


def test_activation_options_arrive() -> None:
    model = _meta("resnet18_elu", activation_options={"keep": ("act1",)})
    assert isinstance(model.act1, nn.ReLU)
    assert isinstance(model.layer1[0].act1, nn.ELU)
    torch.manual_seed(0)
    drawn = create_model("cnn_selu", activation_options={"init": True})
    assert drawn.features[12].weight.std().item() == pytest.approx((256 * 9) ** -0.5, rel=0.02)


def test_timms_options_arrive() -> None:
    model = _meta("resnetv2_50_se", drop_rate=0.3, drop_path_rate=0.2)
    assert model.head.drop.p == 0.3
    assert model.stages[3].blocks[2].drop_path.droppath.drop_prob == pytest.approx(0.2)
    assert _meta("vgg16_se", drop_rate=0.4).pre_logits.drop.p == 0.4
    assert _meta("resnet50", act_layer="silu").act1.__class__ is nn.SiLU


def test_checkpoints_load(tmp_path: Path) -> None:
    model = create_model("cnn_se", num_classes=3)
    torch.save(model.state_dict(), tmp_path / "cnn.pth")
    again = create_model("cnn_se", num_classes=3, checkpoint_path=str(tmp_path / "cnn.pth"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


BAD = [
    ("resnet50_cbm", {}, UnknownChoice, r"unknown model 'resnet50_cbm'; did you mean 'resnet50_cbam'\?"),
    ("local-dir:somewhere", {}, UnknownChoice, r"timm.create_model opens saved models"),
    (None, {}, UnknownChoice, r"unknown model None"),
    ("resnet50", {"placement": "residual"}, InvalidOption, r"placement='residual' needs an attention in the name"),
    ("resnet50", {"attention_options": {"reduction": 4}}, InvalidOption, r"attention_options=.* needs an attention"),
    ("resnet50", {"activation_options": {"init": True}}, InvalidOption, r"needs an activation in the name"),
    ("resnet50_elu", {"act_layer": "relu"}, InvalidOption, r"act_layer contradicts the activation"),
    ("resnet50_se", {"attention_options": {"reducton": 4}}, UnknownChoice, r"option of se 'reducton'; .*'reduction'"),
    ("resnet50_eca", {"attention_options": {"reduction": 4}}, UnknownChoice, r"unknown option of eca 'reduction'"),
    (
        "resnet50_elu",
        {"activation_options": {"kep": ()}},
        UnknownChoice,
        r"activation option 'kep'; did you mean 'keep'",
    ),
    ("resnet50_se", {"attention_options": {"reduction": 512}}, InvalidOption, r"the block's 256 channels; got 512"),
    ("resnet50_cbam", {"placement": "pool"}, NoSite, r"placement 'pool' finds no site in ResNet"),
    ("vgg16_cbam", {"placement": "residual"}, NoSite, r"Placements with sites here: before-fc, "),
    ("seresnet50_cbam", {}, InvalidOption, r"an attention block at 'layer1.0.se' already"),
    ("vgg16", {"img_size": 16}, InvalidOption, r"img_size must be at least 32 pixels"),
    ("vgg16", {"img_size": (48, 48, 3)}, InvalidOption, r"img_size must be a number of pixels, or \(height"),
    ("vgg16", {"img_size": 48.0}, InvalidOption, r"img_size must be a whole number"),
    ("vgg16", {"num_classes": -1}, InvalidOption, r"num_classes must be a whole number of at least 0; got -1"),
    ("vgg16", {"in_chans": 0}, InvalidOption, r"in_chans must be a whole number of at least 1; got 0"),
    ("resnet50_se", {"drop_rat": 0.1}, UnknownChoice, r"option 'drop_rat' of resnet50; did you mean 'drop_rate'"),
    ("resnet50", {"foo": 1}, UnknownChoice, r"unknown option 'foo' of resnet50. Options: .*drop_path_rate"),
    ("vgg16_se", {"drop_path_rate": 0.1}, UnknownChoice, r"unknown option 'drop_path_rate' of vgg16; .*Options: "),
    ("resnet18_se", {"placment": "stage"}, UnknownChoice, r"option 'placment' of resnet18; did you mean 'placement'"),
    ("vgg16_se", {"image_size": 64}, UnknownChoice, r"unknown option 'image_size' of vgg16; did you mean 'img_size'"),
    ("resnet18_se", {"attention_options": "reduction"}, InvalidOption, r"attention_options must map names to values"),
    ("vgg16", {"img_size": "48"}, InvalidOption, r"img_size must be a whole number of at least 1; got '48'"),
    ("cnn_se", {"act_layer": "foo"}, UnknownChoice, r"unknown act_layer 'foo'"),
    ("resnet18_se", {"act_layer": "foo"}, UnknownChoice, r"unknown act_layer 'foo'"),
    ("resnet18_se", {"norm_layer": "foo"}, UnknownChoice, r"unknown norm_layer 'foo'"),
    ("cnn_se", {"global_pool": "avgg"}, UnknownChoice, r"unknown global_pool 'avgg'; did you mean 'avg'"),
    ("resnet18", {"output_stride": 7}, InvalidOption, r"output_stride=7 of resnet18: one of 8, 16, 32"),
    ("vgg11", {"output_stride": 16}, InvalidOption, r"output_stride=16 of vgg11: one of 32"),
    ("resnet18", {"out_indices": (1,)}, InvalidOption, r"is for features_only=True"),
    ("cnn_se", {"features_only": True, "out_indices": (9,)}, InvalidOption, r"cnn_se has no such feature map"),
    ("resnet18_se", {"features_only": True, "out_indices": (9,)}, InvalidOption, r"has no such feature map"),
    ("cnn", {"drop_rate": "a"}, InvalidOption, r"drop_rate='a'"),
    ("cnn", {"hidden": 0}, InvalidOption, r"hidden must be a whole number of at least 1"),
    ("resnetaa50", {}, InvalidOption, r"multiple of 32 on a side for resnetaa50, .* got 48x48. Near it: 32 or 64"),
    ("resnetaa50", {"img_size": 20}, InvalidOption, r"at least 32 pixels"),
    ("cnn", {"width": 1}, UnknownChoice, r"unknown option 'width' of cnn. Options: .*hidden"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), BAD)
def test_asking_wrongly_is_answered_clearly(
    name: Any, options: dict[str, Any], error: type[FerattnError], message: str
) -> None:
    with pytest.raises(error, match=message):
        _meta(name, **options)


# timm's side


def test_timm_knows_the_first_class_names() -> None:
    ours = [name for name in list_models() if name not in timm_backbones()]
    assert set(ours) <= set(timm.list_models())
    model: Any = timm.create_model("resnetv2_50_cbam_elu", num_classes=7, in_chans=1)
    assert model(torch.randn(1, 1, 48, 48)).shape == (1, 7)
    assert str(model.spec) == "resnetv2_50_cbam_elu"
    assert timm.create_model("cnn_se").get_classifier().out_features == 7
    assert timm.data.resolve_model_data_config(model)["input_size"] == (1, 48, 48)
    with torch.device("meta"):
        assert len(timm.create_model("resnet18_se", features_only=True)(torch.empty(1, 1, 48, 48))) == 5


def test_nothing_of_timms_is_overwritten_or_shadowed() -> None:
    script = (
        "import warnings; warnings.simplefilter('error')\n"
        "import timm\n"
        "before = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}\n"
        "import ferattn\n"
        "after = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}\n"
        "assert all(after[name] is entrypoint for name, entrypoint in before.items())\n"
        "ours = ferattn.list_models('*cbam_elu')\n"
        "assert timm.list_models('*cbam_elu') == sorted(ours, key=list(after).index)\n"
        "print(len(after) - len(before))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(list_models())
    assert "Overwriting" not in done.stderr


def test_plain_backbones_are_ours_under_a_name_of_their_own() -> None:
    assert register("vgg16") == "ferattn_vgg16"
    assert register("vgg16_se") == "vgg16_se"
    assert register("cnn") == "cnn"
    with torch.device("meta"):
        theirs, ours = timm.create_model("vgg16"), timm.create_model("ferattn_vgg16")
    assert theirs.pre_logits.fc1.kernel_size == (7, 7)
    assert ours.pre_logits.fc1.kernel_size == (2, 2)
    residual: Any = create_model("resnet18", num_classes=1000, in_chans=3)
    assert set(residual.state_dict()) == set(timm.create_model("resnet18").state_dict())


def test_registering_twice_is_registering_once() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register("vgg13_bn_eca_gelu") == register("vgg13_bn_eca_gelu") == "vgg13_bn_eca_gelu"
    assert timm.is_model("vgg13_bn_eca_gelu")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnetv2_50_cbam_elu", {}),
        ("resnet18_se", {"attention_options": {"reduction": 8}, "placement": "stage", "num_classes": 5}),
        ("vgg11_bn_eca_gelu", {"img_size": 96, "in_chans": 3}),
        ("cnn_cbam", {"img_size": 64, "attention_options": {"spatial": "bias", "refined": False}}),
        ("vgg11", {"num_classes": 8}),
        ("resnet18", {}),
        ("cnn_se", {"norm_layer": torch.nn.BatchNorm2d}),
        ("vgg11_se", {"norm_layer": torch.nn.BatchNorm2d}),
    ],
)
def test_saving_and_opening_through_timms_hub_code(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    from timm.models import save_for_hf

    model: Any = create_model(name, **options).eval()
    save_for_hf(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == register(name)
    again: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert str(again.spec) == name
    assert again.attention_sites == model.attention_sites
    size = options.get("img_size", 48)
    x = torch.randn(2, options.get("in_chans", 1), size, size)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_a_saved_imagenet_start_opens_again(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    model: Any = create_model(
        "resnet18_cbam_elu", True, pretrained_cfg_overlay={"file": str(tmp_path / "resnet18.pth")}
    ).eval()
    save_for_hf(model, tmp_path / "saved")
    again: Any = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    x = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert timm.data.resolve_model_data_config(again) == timm.data.resolve_model_data_config(model)
    without: Any = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=False)
    assert without.num_classes == 7


# Ways to run whole models


@pytest.mark.parametrize("name", ["cnn_cbam_elu", "resnet18_eca", "resnetv2_18_se_selu"])
def test_whole_models_compile_export_and_take_any_batch(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name).eval()
    x = torch.randn(3, 1, 48, 48)
    with torch.no_grad():
        expected = model(x)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
        program = torch.export.export(model, (x,), strict=True, dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(program.module()(x[:2]), expected[:2], rtol=1e-4, atol=1e-4)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


def test_seeds_repeat() -> None:
    def drawn() -> torch.Tensor:
        torch.manual_seed(5)
        return torch.cat([parameter.flatten() for parameter in create_model("resnet18_cbam").parameters()])

    assert torch.equal(drawn(), drawn())


def test_blocks_of_ones_own_need_no_entry() -> None:
    model: Any = create_model("resnet18")
    ferattn.attach(model, partial(ferattn.SE, reduction=8))
    assert len(model.attention_sites) == 8
    assert model(torch.randn(1, 1, 48, 48)).shape == (1, 7)


def test_numpys_integers_are_integers() -> None:
    import numpy as np

    model = _meta("vgg16_se", num_classes=np.int64(5), in_chans=np.int32(3), img_size=np.int64(80))
    assert model(torch.empty(2, 3, 80, 80, device="meta")).shape == (2, 5)


@pytest.mark.parametrize("name", ["cnn_se", "resnet18_se", "vgg11_se"])
def test_devices_and_dtypes_are_taken(name: str) -> None:
    model = create_model(name, device="cpu", dtype=torch.float64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert {parameter.device.type for parameter in create_model(name, device="meta").parameters()} == {"meta"}


def test_the_name_that_timm_knows_a_plain_backbone_by_works_too() -> None:
    assert str(_meta("ferattn_vgg16").spec) == "vgg16"


def test_activations_are_swapped_before_attention_comes() -> None:
    model: Any = create_model(
        "cnn_se_selu", attention_options={"identity_init": True}, activation_options={"init": True}
    )
    block = model.get_submodule(model.attention_sites[0].path)
    assert block.fc2.weight.abs().max() == 0


@pytest.mark.parametrize("name", ["resnet18_cbam", "vgg11_se", "cnn_se"])
def test_feature_extraction_by_symbolic_trace(name: str) -> None:
    model = create_model(name, features_only=True, feature_cls="fx").eval()
    other = create_model(name, features_only=True).eval()
    other.load_state_dict(model.state_dict(), strict=False)
    maps = model(torch.randn(1, 1, 48, 48))
    assert [tuple(m.shape[1:]) for m in maps] == [tuple(m.shape[1:]) for m in other(torch.randn(1, 1, 48, 48))]
