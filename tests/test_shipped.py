"""Weights that come with the package: found by name, adapted as timm does, and refused where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models import _registry

from ferattn import create_model, entrypoints, shipped
from ferattn.errors import UnknownChoice, WeightsMismatch

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
OURS = "cnn_cbam_hardswish"
BOTH = "resnet18_se_hardswish"  # has weights of its own here, and its backbone has timm's


def _forget(name: str) -> None:
    """Let timm and us not know a name: another test may have asked for it when it had no weights."""
    if name in entrypoints.__all__:
        entrypoints.__all__.remove(name)
        delattr(entrypoints, name)
        del entrypoints.default_cfgs[name]
        del _registry._model_entrypoints[name]
        _registry._clear_model_entries(name)


def _ship(folder: Path, name: str) -> None:
    """A folder as `ferattn ship` writes it, with random weights."""
    torch.manual_seed(0)
    model: Any = create_model(name)
    weights = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    about = {
        "tag": "test_fer2013", "custom_load": False, "input_size": [1, 48, 48], "interpolation": "bilinear",
        "crop_pct": 1.0, "mean": [0.25], "std": [0.5], "num_classes": 7, "pool_size": None,
        "first_conv": model.pretrained_cfg["first_conv"], "classifier": model.pretrained_cfg["classifier"],
        "license": "research-only",
    }  # fmt: skip
    config = {"architecture": name, "num_classes": 7, "label_names": LABELS, "pretrained_cfg": about}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A package's folder with weights for two models, which are known by them."""
    root = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "SHIPPED", root)
        for name in (OURS, BOTH):
            _ship(root / name, name)
            _forget(name)
        yield root
    for name in (OURS, BOTH):
        _forget(name)


@pytest.fixture
def weights(folders: Path) -> dict[str, torch.Tensor]:
    return load_file(folders / OURS / "model.safetensors")


def test_a_name_is_enough(folders: Path, weights: dict[str, torch.Tensor]) -> None:
    model: Any = create_model(OURS, pretrained=True)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights[key].float(), rtol=0, atol=0)
    report = model.load_report
    assert set(report.loaded) == set(weights)
    assert report.new == report.adapted == ()
    assert report.source == str(folders / OURS / "model.safetensors")
    about = model.pretrained_cfg
    assert (about["tag"], about["mean"], about["std"], about["license"]) == (
        "test_fer2013", (0.25,), (0.5,), "research-only",
    )  # fmt: skip
    assert about["label_names"] == LABELS
    assert timm.data.resolve_model_data_config(model)["mean"] == (0.25,)
    assert shipped.shipped_names() == sorted((OURS, BOTH))


def test_timm_finds_them_too(folders: Path, weights: dict[str, torch.Tensor]) -> None:
    create_model(OURS)  # no first-class name: known to timm from here on
    for name in (OURS, f"{OURS}.test_fer2013"):
        model: Any = timm.create_model(name, pretrained=True)
        torch.testing.assert_close(model.head.fc.weight, weights["head.fc.weight"].float(), rtol=0, atol=0)
        assert model.load_report.new == ()
    assert f"{OURS}.test_fer2013" in timm.list_models(f"{OURS}*", pretrained=True)
    model = timm.create_model(OURS)
    assert model.load_report is None
    assert not torch.equal(model.head.fc.weight, weights["head.fc.weight"].float())


def test_tags_choose_them(folders: Path) -> None:
    assert create_model(OURS, pretrained="test_fer2013").load_report.new == ()
    with pytest.raises(UnknownChoice, match=r"unknown weights 'x' for cnn_cbam_hardswish. Options: test_fer2013"):
        create_model(OURS, pretrained="x")


@pytest.mark.parametrize("classes", [0, 3])
def test_another_classifier_starts_anew(folders: Path, weights: dict[str, torch.Tensor], classes: int) -> None:
    model: Any = create_model(OURS, pretrained=True, num_classes=classes)
    new = {"head.fc.weight", "head.fc.bias"}
    assert set(model.load_report.new) == (new if classes else set())
    assert set(model.load_report.loaded) == set(weights) - new
    for key in model.load_report.loaded:
        torch.testing.assert_close(model.state_dict()[key], weights[key].float(), rtol=0, atol=0)
    assert "label_names" not in model.pretrained_cfg
    assert model.pretrained_cfg["num_classes"] == classes


def test_colour_pictures_that_are_grey_get_the_same_answer(folders: Path) -> None:
    grey, colour = (create_model(OURS, pretrained=True, in_chans=channels).eval() for channels in (1, 3))
    assert colour.load_report.adapted == ("features.0.weight",)
    assert colour.load_report.new == ()
    assert len(colour.pretrained_cfg["mean"]) == 3
    x = torch.rand(2, 1, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(colour(x.expand(-1, 3, -1, -1)), grey(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [32, 40, 96])
def test_another_picture_is_read_as_if_its_map_were_stretched(folders: Path, size: int) -> None:
    usual, other = (create_model(OURS, pretrained=True, img_size=side).eval() for side in (48, size))
    assert other.pre_logits.kernel == (size // 8, size // 8)
    assert other.load_report.adapted == ("pre_logits.fc1.weight",)
    assert other.pretrained_cfg["input_size"] == (1, size, size)
    features = torch.rand(2, 256, size // 8, size // 8)
    with torch.no_grad():
        expected = usual.forward_head(F.adaptive_avg_pool2d(features, (6, 6)))
        torch.testing.assert_close(other.forward_head(features), expected, rtol=1e-3, atol=1e-4)


def test_features_only(folders: Path, weights: dict[str, torch.Tensor]) -> None:
    features: Any = create_model(OURS, pretrained=True, features_only=True)
    loaded = next(value for key, value in features.state_dict().items() if value.shape == (32, 1, 3, 3))
    torch.testing.assert_close(loaded, weights["features.0.weight"].float(), rtol=0, atol=0)
    assert features.load_report.new == ()


@pytest.mark.parametrize("classes", [7, 3])  # with 3 timm drops the classifier and minds nothing else any more
@pytest.mark.parametrize(
    "options",
    [{"attention_options": {"reduction": 8}}, {"placement": "pool"}, {"norm_layer": torch.nn.BatchNorm2d}],
    ids=["reduction", "placement", "norm"],
)
def test_what_does_not_fit_is_refused(folders: Path, classes: int, options: dict[str, Any]) -> None:
    with pytest.raises(WeightsMismatch, match=r"cnn_cbam_hardswish.*do not fit this model"):
        create_model(OURS, pretrained=True, num_classes=classes, **options)


def test_own_weights_come_before_the_backbones(folders: Path, tmp_path: Path) -> None:
    own: Any = create_model(BOTH, pretrained=True)
    saved = load_file(folders / BOTH / "model.safetensors")
    for key, value in own.state_dict().items():
        torch.testing.assert_close(value, saved[key].to(value.dtype), rtol=0, atol=0)
    assert own.load_report.new == ()
    assert own.pretrained_cfg["label_names"] == LABELS
    torch.manual_seed(1)
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.safetensors")
    overlay = {"file": str(tmp_path / "resnet18.safetensors")}
    backbones: Any = create_model(BOTH, pretrained="a1_in1k", pretrained_cfg_overlay=overlay)
    assert backbones.load_report.source == overlay["file"]
    assert "fc.weight" in backbones.load_report.new
    about = backbones.pretrained_cfg
    assert about["tag"] == "a1_in1k"
    assert not {"label_names", "file"} & set(about)
    assert about["mean"] != (0.25,)


def test_damage_is_told(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cnn_eca_hardswish"
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path)
    _forget(name)
    _ship(tmp_path / name, "cnn_eca")
    (tmp_path / name / "model.safetensors").write_bytes(b"half a file")
    try:
        with pytest.raises(WeightsMismatch, match="cnn_eca_hardswish could not be loaded"):
            create_model(name, pretrained=True)
        (tmp_path / name / "model.safetensors").unlink()
        with pytest.raises(WeightsMismatch, match="cnn_eca_hardswish could not be loaded"):
            create_model(name, pretrained=True)
        for content in ("{", "[]", '{"pretrained_cfg": {}}'):
            _forget(name)
            (tmp_path / name / "config.json").write_text(content)
            with pytest.raises(WeightsMismatch, match="cnn_eca_hardswish are damaged"):
                create_model(name)
    finally:
        _forget(name)
