"""Weights of an earlier run as the beginning of another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ferattn import create_model
from ferattn.errors import InvalidInput, InvalidOption, WeightsMismatch
from ferattn.training import warm_start
from ferattn.training.warm_start import normalization, origin

CLASSES = ("angry", "happy", "sad")
A_RUN = {"seed": 3, "data": {"classes": list(CLASSES), "dataset": "toy"}}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The folder of a run, as far as its weights go."""
    torch.manual_seed(1)
    save_file(create_model("cnn_se", num_classes=3).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(A_RUN))
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


def _given_away(earlier: Path) -> dict[str, object]:
    digest = hashlib.sha256((earlier / "model.safetensors").read_bytes()).hexdigest()
    means = {"mean": [0.25], "std": [0.5]}
    return {"label_names": CLASSES, "sha256": digest, "pretrained_cfg": means, "ferattn": {"config": A_RUN}}


@pytest.mark.parametrize("given_away", [False, True])
def test_a_file_is_believed_what_its_config_says(earlier: Path, given_away: bool) -> None:
    if given_away:
        (earlier / "config.json").write_text(json.dumps(_given_away(earlier)))
    model, file = create_model("cnn_se", num_classes=3), earlier / "model.safetensors"
    assert warm_start(model, file, CLASSES).new == ()
    assert warm_start(model, file, ("x", "y", "z")).new == ("head.fc.weight", "head.fc.bias")
    began = origin(file)
    assert (began["config"], began["given_away"]) == (A_RUN, given_away)
    if given_away:
        assert normalization(file) == {"mean": (0.25,), "std": (0.5,)}


def test_what_stands_beside_a_file_by_chance_is_not_believed(earlier: Path) -> None:
    model, file = create_model("cnn_se", num_classes=3), earlier / "model.safetensors"
    others = _given_away(earlier) | {"sha256": "0" * 64}  # other weights than these
    foreign = ({"data": "/x"}, {"data": {"path": "/x"}}, {"ferattn": None}, [], others, {"label_names": CLASSES})
    for content in foreign:
        (earlier / "config.json").write_text(json.dumps(content))
        assert warm_start(model, file, ("x", "y", "z")).new == ()
        assert origin(file)["config"] is None
        assert normalization(file) is None
        with pytest.raises(InvalidOption, match=r"not the folder of a run\. Options"):
            warm_start(model, earlier, CLASSES)


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
    (earlier / "config.json").write_text(json.dumps(_given_away(earlier)))
    with pytest.raises(InvalidOption, match=r"not the folder of a run\. Options: the run that the weights were made"):
        warm_start(model, earlier, CLASSES)
    (earlier / "config.json").write_text(json.dumps(A_RUN))
    (earlier / "results.json").unlink()
    with pytest.raises(InvalidOption, match="has not finished"):
        warm_start(model, earlier, CLASSES)
    (earlier / "results.json").write_text("{}")
    (earlier / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(InvalidInput, match="damaged"):
        warm_start(model, earlier, CLASSES)
    assert torch.equal(_answers(model), before)
