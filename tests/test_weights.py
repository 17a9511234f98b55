"""ImageNet weights into attention models: from files that timm itself wrote, key by key and in function."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ferattn import create_model
from ferattn.errors import InvalidOption, UnknownChoice, WeightsMismatch

SMALL = {"resnet18": 512, "resnetv2_18": 512}


def _busy(model: nn.Module) -> nn.Module:
    """Give every norm weights that matter: timm starts the last ones of a block at zero."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain backbones of timm's, 1000 classes and three channels, saved the ways people save."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for name in ("resnet18", "resnetv2_18"):
        torch.manual_seed(0)
        model = _busy(timm.create_model(name))
        files[name] = folder / f"{name}.safetensors"
        save_file(model.state_dict(), files[name])
    torch.save(timm.create_model("resnet18").state_dict(), folder / "resnet18.pth")
    files["resnet18.pth"] = folder / "resnet18.pth"
    return files


@pytest.mark.parametrize("attention", ["", "_se", "_eca", "_cbam"])
@pytest.mark.parametrize("backbone", SMALL)
def test_only_attention_and_classifier_are_new(saved: dict[str, Path], backbone: str, attention: str) -> None:
    model: Any = create_model(
        f"{backbone}{attention}_relu",
        pretrained=True,
        in_chans=3,
        pretrained_cfg_overlay={"file": str(saved[backbone])},
    )
    plain = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay={"file": str(saved[backbone])})
    report = model.load_report
    classifier = model.pretrained_cfg["classifier"]
    state = model.state_dict()
    assert set(report.loaded) | set(report.new) == set(state)
    assert not set(report.loaded) & set(report.new)
    assert report.adapted == ()
    allowed = (f"{classifier}.", *(f"{site.path}." for site in model.attention_sites))
    assert all(key.startswith(allowed) for key in report.new)
    for key, value in plain.state_dict().items():
        if not key.startswith(f"{classifier}."):
            assert torch.equal(state[key], value), key
    assert str(saved[backbone]) in str(report)
    assert f"{len(report.loaded)} tensors loaded" in str(report)


@pytest.mark.parametrize("backbone", SMALL)
def test_an_identity_start_keeps_the_backbones_function(saved: dict[str, Path], backbone: str) -> None:
    """How near: within 5 % of the features' size with CBAM in every block, whose gates are 0.995 together."""
    options = {"in_chans": 3, "pretrained": True, "pretrained_cfg_overlay": {"file": str(saved[backbone])}}
    plain = create_model(backbone, **options).eval()
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = plain.forward_features(x)
        distances = {}
        for block in ("se", "eca", "cbam"):
            for identity in (True, False):
                model = create_model(
                    f"{backbone}_{block}", attention_options={"identity_init": identity}, **options
                ).eval()
                features = model.forward_features(x)
                distances[block, identity] = ((features - expected).norm() / expected.norm()).item()
    for block in ("se", "eca", "cbam"):
        assert distances[block, True] < 0.05, distances
        assert distances[block, False] > 0.1, distances


def test_gray_pictures_get_the_sum_of_the_colour_filters(saved: dict[str, Path]) -> None:
    overlay = {"file": str(saved["resnet18"])}
    model: Any = create_model("resnet18_cbam_elu", pretrained=True, pretrained_cfg_overlay=overlay)
    colour = timm.create_model("resnet18", pretrained=True, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(model.conv1.weight, colour.conv1.weight.sum(1, keepdim=True))
    assert model.load_report.adapted == ("conv1.weight",)
    assert model.fc.out_features == 7
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (1, 48, 48)
    assert config["mean"] == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
    assert config["std"] == pytest.approx((sum((0.229, 0.224, 0.225)) / 3,))
    of_timm = timm.get_pretrained_cfg("resnet18")
    assert (config["interpolation"], model.pretrained_cfg["license"], model.pretrained_cfg["tag"]) == (
        of_timm.interpolation, of_timm.license, of_timm.tag,
    )  # fmt: skip
    assert model.pretrained_cfg["num_classes"] == 7


def test_vgg_at_48_pixels_computes_what_timms_stretched_one_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("vgg11").eval()
    torch.save(theirs.state_dict(), tmp_path / "vgg11.pth")
    overlay = {"file": str(tmp_path / "vgg11.pth")}
    for size, cells in ((48, 2), (224, 7)):
        ours: Any = create_model("vgg11_se", True, in_chans=3, img_size=size, pretrained_cfg_overlay=overlay).eval()
        assert ours.pre_logits.fc1.kernel_size == (cells, cells)
        assert ours.load_report.adapted == (() if size == 224 else ("pre_logits.fc1.weight",))
        features = torch.rand(2, 512, cells, cells)
        with torch.no_grad():
            torch.testing.assert_close(
                ours.forward_head(features, pre_logits=True),
                theirs.forward_head(features, pre_logits=True),
                rtol=1e-3,
                atol=1e-5,
            )


def test_features_only_and_plain_backbones_load_too(saved: dict[str, Path]) -> None:
    overlay = {"file": str(saved["resnet18"])}
    features = create_model("resnet18_se", True, in_chans=3, features_only=True, pretrained_cfg_overlay=overlay)
    plain: Any = create_model("resnet18", True, in_chans=3, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(features.layer4[1].conv2.weight, plain.layer4[1].conv2.weight)
    assert features.load_report.source == plain.load_report.source == str(saved["resnet18"])
    assert set(plain.load_report.new) == {"fc.weight", "fc.bias"}
    via_timm: Any = timm.create_model("resnet18_se", pretrained=True, in_chans=3, pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(via_timm.conv1.weight, plain.conv1.weight)


@pytest.mark.parametrize("attention", ["", "_se"])
@pytest.mark.parametrize("backbone", SMALL)
def test_weights_come_without_a_classifier_too(saved: dict[str, Path], backbone: str, attention: str) -> None:
    overlay = {"file": str(saved[backbone])}
    options = {"in_chans": 3, "img_size": 64, "pretrained_cfg_overlay": overlay}
    bare: Any = create_model(f"{backbone}{attention}", True, num_classes=0, **options).eval()
    whole: Any = create_model(f"{backbone}{attention}", True, num_classes=5, **options).eval()
    whole.load_state_dict(bare.state_dict(), strict=False)
    assert not any("fc." in key and key.startswith(("fc", "head.fc")) for key in bare.load_report.new)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(bare(x), whole.forward_head(whole.forward_features(x), pre_logits=True))


def test_prelu_slopes_are_new_and_said_so(saved: dict[str, Path]) -> None:
    model: Any = create_model("resnet18_prelu", True, pretrained_cfg_overlay={"file": str(saved["resnet18.pth"])})
    assert {key for key in model.load_report.new if not key.startswith("fc.")} == {
        key for key, value in model.state_dict().items() if value.shape == (1,) and "act" in key
    }


def test_what_was_loaded_is_logged(saved: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ferattn"):
        create_model("resnet18_se", True, pretrained_cfg_overlay={"file": str(saved["resnet18"])})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "ferattn.weights"]
    assert "resnet18: 120 tensors loaded" in line
    assert "conv1.weight adapted" in line
    assert "34 tensors new" in line  # four of each of eight SE blocks, and the classifier's two
    assert create_model("resnet18_se").load_report is None


def test_weights_that_do_not_fit_are_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(WeightsMismatch, match=r"no weights for resnet34 could be loaded.*Missing key.*\.\.\.$"):
        create_model("resnet34_se", True, pretrained_cfg_overlay={"file": str(saved["resnet18"])})
    with pytest.raises(WeightsMismatch, match=r"do not fit this model. Not in the model: conv1.weight. Not in the"):
        create_model("resnet18_se", True, stem_type="deep", pretrained_cfg_overlay={"file": str(saved["resnet18"])})
    with pytest.raises(WeightsMismatch, match="no weights for resnetv2_152"):
        create_model("resnetv2_152_se", pretrained=True)
    with pytest.raises(WeightsMismatch, match="weights for cnn_eca_selu could not be loaded"):
        create_model("cnn_eca_selu", pretrained=True)


def test_tags_choose_the_weights() -> None:
    with pytest.raises(UnknownChoice, match=r"unknown weights 'nope' for resnet50_se. Options: a1_in1k, "):
        create_model("resnet50_se", pretrained="nope")
    with pytest.raises(UnknownChoice, match="unknown weights 'nope' for resnet18_se"):
        create_model("resnet18_se.nope")
    with pytest.raises(InvalidOption, match="given twice"):
        create_model("resnet50_se.a1_in1k", pretrained="a2_in1k")


def test_a_tag_in_the_name_or_beside_it_means_the_same(saved: dict[str, Path]) -> None:
    overlay = {"file": str(saved["resnet18"])}
    for name, pretrained in (("resnet18_se.a1_in1k", True), ("resnet18_se", "a1_in1k")):
        model: Any = create_model(name, pretrained, pretrained_cfg_overlay=overlay)
        assert model.pretrained_cfg["tag"] == "a1_in1k"
        assert model.pretrained_cfg["architecture"] == "resnet18_se"
        assert len(model.load_report.loaded) == 120


def test_what_the_caller_says_of_the_data_is_kept_with_and_without_weights(saved: dict[str, Path]) -> None:
    for pretrained, file in ((False, {}), (True, {"file": str(saved["resnet18"])})):
        overlay = {"mean": (0.5,), "std": (0.25,), "crop_pct": 0.9, **file}
        config = create_model("resnet18_cbam", pretrained, pretrained_cfg_overlay=overlay).pretrained_cfg
        assert (config["mean"], config["std"], config["crop_pct"]) == ((0.5,), (0.25,), 0.9)
        assert config["architecture"] == "resnet18_cbam"
    named = create_model("resnet18_cbam.a1_in1k").pretrained_cfg
    assert named["tag"] == "a1_in1k"
    assert named["mean"] == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))


def test_a_classifier_that_fits_is_kept(saved: dict[str, Path]) -> None:
    overlay = {"file": str(saved["resnet18"])}
    model: Any = create_model("resnet18_se", True, num_classes=1000, in_chans=3, pretrained_cfg_overlay=overlay)
    assert "fc.weight" in model.load_report.loaded
    assert not any(key.startswith("fc.") for key in model.load_report.new)


def test_keys_and_shapes_that_do_not_fit_are_listed(saved: dict[str, Path]) -> None:
    overlay = {"file": str(saved["resnet18"])}
    with pytest.raises(WeightsMismatch, match=r"Other shapes: layer1.0.conv1.weight: \(64, 64, 3, 3\) against"):
        create_model("resnet18_se", True, channels=(48, 128, 256, 512), pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", "a list", "directory"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_that_are_no_weights_are_one_error(content: object, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "a list":
        torch.save([1, 2], path)
    elif content == "directory":
        path.mkdir()
    with pytest.raises(WeightsMismatch, match=r"no weights for resnet18 could be loaded: ."):
        create_model("resnet18_se", True, pretrained_cfg_overlay={"file": str(path)})
    with pytest.raises(WeightsMismatch, match=r"checkpoint_path .* could not be loaded: ."):
        create_model("resnet18_se", checkpoint_path=str(path))


def test_a_models_own_weights_are_reported(tmp_path: Path) -> None:
    torch.save(create_model("cnn_se").state_dict(), tmp_path / "cnn_se.pth")
    overlay = {"file": str(tmp_path / "cnn_se.pth")}
    model: Any = create_model("cnn_se", pretrained=True, pretrained_cfg_overlay=overlay)
    assert set(model.load_report.loaded) == set(model.state_dict())
    assert model.load_report.new == ()
    three: Any = create_model("cnn_se", pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    assert set(three.load_report.new) == {"head.fc.weight", "head.fc.bias"}
