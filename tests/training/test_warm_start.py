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


def _another(earlier: Path, name: str, **about: object) -> Path:
    """A run that differs from the earlier one by its weights, and as said."""
    folder = earlier / name
    folder.mkdir()
    torch.manual_seed(len(name))
    model = create_model("cnn_se", num_classes=3, norm_layer="batchnorm2d" if about.pop("norm", False) else None)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(A_RUN | about))
    (folder / "results.json").write_text("{}")
    return folder


def test_several_runs_give_the_mean_of_their_weights(earlier: Path) -> None:
    model, other = create_model("cnn_se", num_classes=3), _another(earlier, "other")
    report = warm_start(model, [earlier, other], CLASSES)
    assert f"{earlier} and {other}, the mean of 2" in str(report)
    one, two = (load_file(folder / "model.safetensors") for folder in (earlier, other))
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, (one[key] + two[key]) / 2)
    assert not torch.equal(one["features.0.weight"], two["features.0.weight"])
    three = _another(earlier, "three", data={"classes": ["a", "b", "c"], "dataset": "toy"})
    weights = {key: value + 3 for key, value in two.items()}
    save_file(weights, three / "model.safetensors")
    head = create_model("cnn_se", num_classes=3)
    fresh = head.head.fc.weight.clone()
    assert warm_start(head, [earlier, other, three], CLASSES).new == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(head.head.fc.weight, fresh)
    mean = (one["features.0.weight"] + 2 * two["features.0.weight"] + 3) / 3
    torch.testing.assert_close(head.state_dict()["features.0.weight"], mean)


def test_norms_count_their_batches_and_do_not_average_them(tmp_path: Path) -> None:
    model = create_model("cnn_se", num_classes=3, norm_layer="batchnorm2d")
    key = next(key for key in model.state_dict() if key.endswith("num_batches_tracked"))
    mean = key.replace("num_batches_tracked", "running_mean")
    folders = [_another(tmp_path, name, norm=True) for name in ("a", "bb")]
    for steps, folder in zip((7, 10), folders, strict=True):
        weights = load_file(folder / "model.safetensors")
        weights |= {key: torch.tensor(steps), mean: torch.full_like(weights[mean], steps)}
        save_file(weights, folder / "model.safetensors")
    warm_start(model, folders, CLASSES)
    assert model.state_dict()[key] == 7
    assert (model.state_dict()[mean] == 8.5).all()


def test_what_has_no_mean_is_told(earlier: Path) -> None:
    model = create_model("cnn_se", num_classes=3)
    with pytest.raises(InvalidOption, match="the same weights as"):
        warm_start(model, [earlier, earlier / "model.safetensors"], CLASSES)
    with pytest.raises(InvalidOption, match="at least one run"):
        warm_start(model, [], CLASSES)
    with pytest.raises(WeightsMismatch, match=r"norms/model\.safetensors: .*Not in the model: .*"):
        warm_start(model, [earlier, _another(earlier, "norms", norm=True)], CLASSES)


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
