"""Weights of an earlier run as the beginning of another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ferattn import create_model
from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.training import warm_start
from ferattn.training.warm_start import origin

CLASSES = ("angry", "happy", "sad")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of a run, as far as its weights go."""
    torch.manual_seed(1)
    save_file(create_model("cnn_se", num_classes=3).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"data": {"classes": CLASSES}}))
    (tmp_path / "results.json").write_text("{}")
    return tmp_path


def _answers(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(torch.rand(2, 1, 48, 48, generator=torch.Generator().manual_seed(0)))


def test_the_same_classes_keep_the_classifier(earlier: Path) -> None:
    model, same = create_model("cnn_se", num_classes=3), create_model("cnn_se", num_classes=3)
    same.load_state_dict(load_file(earlier / "model.safetensors"))
    assert not torch.equal(_answers(model), _answers(same))
    report = warm_start(model, earlier, CLASSES)
    assert torch.equal(_answers(model), _answers(same))
    assert (report.new, report.adapted) == ((), ())
    other = create_model("cnn_se", num_classes=3)
    alone = (earlier / "model.safetensors").rename(earlier / "alone.safetensors")
    warm_start(other, alone, ("x", "y", "z"))  # it does not say what its classes are
    assert torch.equal(_answers(other), _answers(same))
    assert origin(alone)["config"] is None


@pytest.mark.parametrize("classes", [("happy", "angry", "sad"), ("angry", "happy"), ("a", "b", "c", "d")])
def test_other_classes_begin_with_a_new_classifier(earlier: Path, classes: tuple[str, ...]) -> None:
    model = create_model("cnn_se", num_classes=len(classes))
    before = model.head.fc.weight.clone()
    report = warm_start(model, earlier, classes)
    assert report.new == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(model.head.fc.weight, before)
    learnt = load_file(earlier / "model.safetensors")
    assert torch.equal(model.state_dict()["features.0.weight"], learnt["features.0.weight"])


@pytest.mark.parametrize("config", [{"data": {"classes": CLASSES}}, {"label_names": CLASSES}])
def test_a_file_is_believed_what_its_config_says(earlier: Path, config: dict[str, object]) -> None:
    made_from = {"ferattn": {"config": {"seed": 3}}} if "label_names" in config else {}
    (earlier / "config.json").write_text(json.dumps(config | made_from))
    model = create_model("cnn_se", num_classes=3)
    assert warm_start(model, earlier / "model.safetensors", CLASSES).new == ()
    assert warm_start(model, earlier / "model.safetensors", ("x", "y", "z")).new == ("head.fc.weight", "head.fc.bias")
    known = json.loads(json.dumps({"seed": 3} if made_from else config))
    assert origin(earlier / "model.safetensors")["config"] == known


def test_a_head_is_fitted_to_larger_pictures(earlier: Path) -> None:
    model = create_model("cnn_se", num_classes=3, img_size=96)
    assert warm_start(model, earlier, CLASSES).adapted == ("pre_logits.fc1.weight",)


def test_what_cannot_begin_a_run_is_told(earlier: Path, tmp_path: Path) -> None:
    model = create_model("cnn_se", num_classes=3)
    before = _answers(model)
    with pytest.raises(InvalidOption, match="no weights there"):
        warm_start(model, tmp_path / "nowhere", CLASSES)
    with pytest.raises(WeightsMismatch, match=r"Not in the model: .*"):
        warm_start(create_model("cnn", num_classes=3), earlier, CLASSES)
    with pytest.raises(InvalidOption, match="1 channels, the model 3"):
        warm_start(create_model("cnn_se", num_classes=3, in_chans=3), earlier, CLASSES)
    (earlier / "config.json").write_text(json.dumps({"architecture": "cnn_se", "label_names": CLASSES}))
    with pytest.raises(InvalidOption, match=r"no run\. Options: the run that they were made from"):
        warm_start(model, earlier, CLASSES)
    (earlier / "config.json").write_text(json.dumps({"data": {"classes": CLASSES}}))
    (earlier / "results.json").unlink()
    with pytest.raises(InvalidOption, match="has not finished"):
        warm_start(model, earlier, CLASSES)
    (earlier / "results.json").write_text("{}")
    (earlier / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(InvalidInput, match="damaged"):
        warm_start(model, earlier, CLASSES)
    assert torch.equal(_answers(model), before)
