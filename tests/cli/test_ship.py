"""A run becomes a folder of weights that says what it is, is checked, and works in timm and in `ferattn evaluate`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cli.running import FAST, run
from ferattn import create_model, shipped
from ferattn.cli.evaluate import open_trained
from ferattn.errors import WeightsMismatch
from ferattn.predict import open_pretrained
from ferattn.spec import ModelSpec
from ferattn.training import Predictions, RunFolder
from ferattn.training.shipping import compare_rounded, halve
from training import faces

TERMS = ("--terms", "Toy pictures: use them as you like.")


@pytest.fixture(scope="module")
def parcel(images: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "cnn_se"
    said = run("ship", trained, out, "--data", images, *TERMS)
    assert said.startswith("0"), said
    assert f"cnn_se.luo2023_{images.name}, 4.64 MB" in said
    return out


def test_timm_opens_it_and_it_answers_as_the_run_did(trained: Path, parcel: Path) -> None:
    assert {path.name for path in parcel.iterdir()} == {"README.md", "config.json", "curves.png", "model.safetensors"}
    assert {value.dtype for value in load_file(parcel / "model.safetensors").values()} == {torch.float16}
    model: Any = timm.create_model(f"local-dir:{parcel}", pretrained=True).eval()
    assert model.num_classes == 4
    assert model.load_report.new == ()
    assert next(model.parameters()).dtype == torch.float32
    network, _, classes = open_trained(RunFolder(trained), None)
    assert tuple(model.pretrained_cfg["label_names"]) == classes
    x = torch.rand(3, 1, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network.eval()(x), rtol=1e-2, atol=1e-3)


def test_the_card_says_what_the_run_and_its_predictions_say(trained: Path, parcel: Path) -> None:
    card, facts = (parcel / "README.md").read_text(), json.loads((parcel / "config.json").read_text())
    results, saved = RunFolder(trained).results, RunFolder(trained).predictions("test")
    figures = facts["ferattn"]["figures"]["test"]["none"]
    assert figures["accuracy"] == results["test"]["accuracy"] == facts["ferattn"]["rounding"]["accuracy_before"]
    ends = results["test"]["accuracy_interval"]
    accuracy = f"{100 * saved.correct.mean():.2f} ({100 * ends['low']:.2f} to {100 * ends['high']:.2f})"
    assert f"| test | none | {len(saved.labels)} | {accuracy} |" in card
    assert f"| test | none, calibrated | {len(saved.labels)} |" in card
    for name, entry in figures["recall"].items():
        assert f"| {name} | {entry['images']} | {100 * entry['value']:.1f} (" in card
    assert f"divide the logits by {results['temperature']:.3f}" in card
    assert f"(number {results['best_epoch'] + 1} of {results['epochs']})" in card
    assert TERMS[1] in card
    assert "ferattn train --recipe luo2023 --model cnn_se --data DATA --out RUN --seed 0 --set batch_size=8" in card
    assert "--set epochs=2 --accelerator cpu" in card
    for word in ("import ferattn  # first", "AI Act, article 5(1)(f)", "chosen on", "curves.png"):
        assert word in card


def test_shipped_weights_are_evaluated(
    images: Path, trained: Path, parcel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from the package: the same figures as the run's own, its temperature included."""
    name = (
        "cnn_se_hardswish"  # a name of its own: cnn_se is known without these weights, and relu's keys are the same
    )
    shutil.copytree(parcel, tmp_path / "pretrained" / name)
    monkeypatch.setattr(shipped, "SHIPPED", tmp_path / "pretrained")
    from test_shipped import _forget

    _forget(name)
    try:
        reports = []
        others = faces.folder_of_images(tmp_path / "others", seed=3)  # on its own the run would not be calibrated
        for words in (("--model", name, "--pretrained"), ("--checkpoint", trained)):
            out = tmp_path / f"{len(reports)}.json"
            said = run("evaluate", *words, "--data", others, "--split", "all", "--tta", "flip", "--json", out)
            assert said.startswith("0"), said
            reports.append(json.loads(out.read_text()))
        ours, runs = reports
        assert ours["weights"] == f"{name}.luo2023_{images.name}"
        assert ours["accuracy_interval"].keys() == {"low", "high", "method"}
        for report in (ours, runs):
            assert {"accuracy", "macro_f1", "ece", "nll", "recall", "precision"} <= report["without_views"].keys()
        given = ours["without_views"]["calibrated"]["temperature"]
        assert (
            given == runs["without_views"]["calibrated"]["temperature"] == RunFolder(trained).results["temperature"]
        )
        assert ours["classes"] == runs["classes"]
    finally:
        _forget(name)


def test_models_without_an_emotion_classifier_are_refused(images: Path, tmp_path: Path) -> None:
    words = ("--data", images, "--split", "all", "--pretrained")
    for name in ("cnn_eca_selu", "resnet18"):  # a backbone's weights are not looked for
        said = run("evaluate", "--model", name, *words)
        assert said.startswith("2")
        assert "no weights that classify emotions come with it. Options: cnn_se" in said


@pytest.mark.parametrize("name", ["cnn_se.strong_fer2013", "resnet18"])
def test_a_name_with_a_tag_and_a_plain_backbone_open_again(images: Path, tmp_path: Path, name: str) -> None:
    """timm's own resnet18 would open in place of ours, and a tag is none of the architecture."""
    options = (
        "--recipe",
        "luo2023",
        "--model",
        name,
        "--data",
        images,
        "--out",
        tmp_path / "run",
        "--set",
        "size=32",
    )
    said = run("train", *options, *FAST)
    assert said.startswith("0"), said
    said = run("ship", tmp_path / "run", tmp_path / "parcel", "--data", images, *TERMS)
    assert said.startswith("0"), said
    found = open_pretrained(f"local-dir:{tmp_path / 'parcel'}")
    assert type(found.model.spec) is ModelSpec
    config = json.loads((tmp_path / "parcel" / "config.json").read_text())
    assert config["architecture"] == {"c": "cnn_se", "r": "ferattn_resnet18"}[name[0]]


def test_the_card_says_what_was_planned_before(images: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    versions = json.loads((trained / "versions.json").read_text())
    (tmp_path / "run" / "versions.json").write_text(json.dumps(versions | {"epochs_before": [9, 7]}))
    said = run("ship", tmp_path / "run", tmp_path / "cnn_se", "--data", images, *TERMS)
    assert said.startswith("0"), said
    card = (tmp_path / "cnn_se" / "README.md").read_text()
    assert "; asked for before: 9, 7) was chosen on" in " ".join(card.split())


def test_weights_that_name_too_few_emotions_are_refused(images: Path, parcel: Path, tmp_path: Path) -> None:
    shutil.copytree(parcel, tmp_path / "parcel")
    config = json.loads((tmp_path / "parcel" / "config.json").read_text())
    config["label_names"].pop()
    (tmp_path / "parcel" / "config.json").write_text(json.dumps(config))
    model = f"local-dir:{tmp_path / 'parcel'}"
    said = run("evaluate", "--model", model, "--pretrained", "--data", images, "--split", "all")
    assert said.startswith("2")
    assert "come without a classifier of emotions" in said


def test_classes_the_model_does_not_know(images: Path, trained: Path, tmp_path: Path) -> None:
    """Left out only when asked, and said; another vocabulary is refused."""
    more = tmp_path / "more"
    shutil.copytree(images, more)
    (more / "fear").mkdir()
    for row in range(3):
        Image.fromarray(np.full((48, 48), row, np.uint8)).save(more / "fear" / f"{row}.png")
    said = run("evaluate", "--checkpoint", trained, "--data", more, "--split", "all")
    assert said.startswith("2")
    assert "--skip-unknown leaves out fear" in said
    out = tmp_path / "report.json"
    words = ("--checkpoint", trained, "--data", more, "--split", "all", "--skip-unknown", "--json", out)
    assert run("evaluate", *words).startswith("0")
    report = json.loads(out.read_text())
    assert report["left_out"] == {"fear": 3}
    assert report["images"] == 48
    for name in ("cats", "dogs"):
        (tmp_path / "animals" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(tmp_path / "animals" / name / "1.png")
    words = ("--checkpoint", trained, "--data", tmp_path / "animals", "--split", "all", "--skip-unknown")
    said = run("evaluate", *words)
    assert said.startswith("2")
    assert "no class in common" in said


def test_weights_that_are_not_the_runs_are_refused(images: Path, trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    weights = load_file(copy / "model.safetensors")
    save_file(weights | {"head.fc.bias": weights["head.fc.bias"] + 0.5}, copy / "model.safetensors")
    said = run("ship", copy, tmp_path / "out", "--data", images, *TERMS)
    assert said.startswith("2")
    assert "its weights give other logits than the run saved" in said
    assert not (tmp_path / "out").exists()


def test_mistakes_of_ship(images: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--terms" in run("ship", trained, out, "--data", images)
    assert "official" in run("ship", trained, out, "--data", images, "--split", "private", *TERMS)
    assert "reported anyway" in run("ship", trained, out, "--data", images, "--split", "test", *TERMS)
    (tmp_path / "began").mkdir()
    shutil.copy(trained / "config.json", tmp_path / "began")
    assert "has not finished" in run("ship", tmp_path / "began", out, "--data", images, *TERMS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    assert "holds something else (thesis.tex)" in run("ship", trained, tmp_path / "mine", "--data", images, *TERMS)
    fewer = tmp_path / "fewer"
    shutil.copytree(images, fewer)
    for path in sorted((fewer / "angry").iterdir())[:6]:
        path.unlink()
    said = run("ship", trained, out, "--data", fewer, *TERMS)
    assert said.startswith("2")
    assert "different test sets" in said
    assert not out.exists()


def test_a_part_that_was_learnt_from_is_not_reported(tmp_path: Path) -> None:
    from data import trees

    tree = trees.fer_tree(tmp_path / "fer", trees.fer_rows(3))
    words = (
        "--recipe",
        "luo2023",
        "--model",
        "cnn",
        "--data",
        tree,
        "--out",
        tmp_path / "run",
        *FAST,
        "--set",
        "epochs=1",
    )
    assert run("train", *words).startswith("0")
    said = run("ship", tmp_path / "run", tmp_path / "out", "--data", tree, "--split", "train")
    assert said.startswith("2")
    assert "was trained on" in said
    said = run("ship", tmp_path / "run", tmp_path / "out", "--data", tree, "--split", "private", "--tag", "mine")
    assert said.startswith("0"), said
    facts = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(facts["ferattn"]["figures"]) == ["test", "private"]
    assert list(facts["ferattn"]["figures"]["private"]) == ["none", "flip", "ten-crop"]
    assert facts["ferattn"]["figures"]["private"]["none"]["images"] == 21
    assert facts["pretrained_cfg"]["tag"] == "mine"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| private | ten-crop | 21 |" in card
    assert "Use these weights for research only" in card


def _as_if_begun_with(trained: Path, out: Path, **changes: Any) -> Path:
    """The same run, had it begun with the weights of one that differed from it so."""
    shutil.copytree(trained, out)
    config = json.loads((out / "config.json").read_text())
    began = config | {"data": config["data"] | {"dataset": changes.pop("dataset", config["data"]["dataset"])}}
    config["warm_start"] = {"sha256": "0" * 64, "config": began | changes}
    (out / "config.json").write_text(json.dumps(config))
    return out


def test_a_test_that_an_earlier_run_learnt_from_is_not_reported(images: Path, trained: Path, tmp_path: Path) -> None:
    run_ = _as_if_begun_with(trained, tmp_path / "run", split_seed=1)
    said = run("ship", run_, tmp_path / "out", "--data", images, *TERMS)
    assert said.startswith("2")
    assert "the run builds on weights that were trained on" in said
    assert not (tmp_path / "out").exists()


def test_the_card_says_what_the_weights_began_with(images: Path, trained: Path, tmp_path: Path) -> None:
    run_ = _as_if_begun_with(trained, tmp_path / "run", dataset="JAFFE", seed=7, split_seed=1)
    said = run("ship", run_, tmp_path / "out", "--data", images, *TERMS)
    assert said.startswith("0"), said
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It began with the weights of a run on JAFFE by the recipe `luo2023`, seed 7." in card
    assert f"{TERMS[1]} JAFFE (Lyons et al. 1998)" in card
    assert "--data DATA1 --out RUN1 --seed 7" in card
    assert "--data DATA --out RUN --seed 0 --warm-start RUN1" in card


def test_the_card_says_that_what_it_began_with_had_been_given_away(
    images: Path, trained: Path, tmp_path: Path
) -> None:
    run_ = _as_if_begun_with(trained, tmp_path / "run", dataset="JAFFE")
    config = json.loads((run_ / "config.json").read_text())
    config["warm_start"]["given_away"] = True
    (run_ / "config.json").write_text(json.dumps(config))
    assert run("ship", run_, tmp_path / "out", "--data", images, *TERMS).startswith("0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nferattn ship RUN1 WEIGHTS1 --data DATA1\n" in card
    assert "--out RUN --seed 0 --warm-start WEIGHTS1/model.safetensors" in card


def test_halves_are_checked() -> None:
    assert halve({"a": torch.ones(2), "n": torch.tensor(3)})["n"].dtype == torch.int64
    for bad in (1e6, float("nan")):
        with pytest.raises(WeightsMismatch, match="a: not finite in half precision"):
            halve({"a": torch.tensor([bad])})


def test_rounding_is_measured(trained: Path) -> None:
    saved = RunFolder(trained).predictions("test")
    from dataclasses import replace

    near = replace(saved, logits=saved.logits * np.float32(1 + 2**-9))
    found = compare_rounded(saved, near, "these")
    assert found.logit_change == pytest.approx(2**-9, rel=1e-3)
    assert found.answers_changed == 0
    assert found.accuracy_after == found.accuracy_before
    assert isinstance(near, Predictions)
    for factor in (1.01, float("nan")):
        with pytest.raises(WeightsMismatch, match="these give other logits"):
            compare_rounded(saved, replace(saved, logits=saved.logits * np.float32(factor)), "these")


def test_create_model_knows_nothing_of_it_before_it_is_shipped() -> None:
    with pytest.raises(WeightsMismatch, match="No pretrained weights"):
        create_model("cnn_eca_selu", pretrained=True)
