"""From a folder of images to a trained, evaluated and compared model, as a user types it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cli.running import FAST, run
from data import trees
from ferattn import create_model
from ferattn.cli.jobs import _normalization, build_model
from ferattn.data import FaceDataset, open_dataset
from ferattn.predict import open_pretrained
from ferattn.statistics import mcnemar, subject_sign_flip
from ferattn.training import PRECISIONS, Predictions, Recipe, RunFolder, list_recipes, load_recipe, make_parts
from ferattn.training.lineage import find_seen
from ferattn.training.parts import divide
from training import faces


def test_three_commands(images: Path, trained: Path, tmp_path: Path) -> None:
    config = RunFolder(trained).config
    assert (config["model"], config["recipe_name"], config["seed"]) == ("cnn_se", "luo2023", 0)
    assert config["recipe"]["epochs"] == 2
    report, logits = tmp_path / "report.json", tmp_path / "p.npz"
    said = run(
        "evaluate", "--checkpoint", trained, "--data", images, "--split", "test", "--json", report,
        "--predictions", logits,
    )  # fmt: skip
    assert said.startswith("0"), said
    content = json.loads(report.read_text())
    results = RunFolder(trained).results
    assert content["accuracy"] == results["test"]["accuracy"]
    assert content["nll"] == pytest.approx(results["test"]["nll"], rel=1e-4)
    assert content["calibrated"]["temperature"] == results["temperature"]
    assert Predictions.load(logits).checksum == RunFolder(trained).predictions("test").checksum
    other = tmp_path / "other"
    options = ("--recipe", "luo2023", "--model", "cnn", "--data", images, "--out", other, "--seed", 1, *FAST)
    assert run("train", *options).startswith("0")
    said = run("compare", trained, other, "--json", tmp_path / "c.json")
    assert said.startswith("0"), said
    content = json.loads((tmp_path / "c.json").read_text())
    a, b = (RunFolder(path).predictions("test").correct for path in (trained, other))
    assert content["difference"] == pytest.approx(b.mean() - a.mean())
    assert content["mcnemar"]["only_a"] == (a & ~b).sum()
    assert "McNemar" in said
    for kind, plain in (("nll", content["nll"]), ("calibrated_nll", content["calibrated_nll"])):
        figures = [RunFolder(path).results["test"] for path in (trained, other)]
        figures = figures if kind == "nll" else [entry["calibrated"] for entry in figures]
        assert [plain["a"], plain["b"]] == pytest.approx([entry["nll"] for entry in figures])
        assert plain["difference"] == pytest.approx(plain["b"] - plain["a"])
        assert plain["interval"]["low"] <= plain["difference"] <= plain["interval"]["high"]
    assert "the same, calibrated: A" in said
    said = run("compare", trained, other, "--part", "validation", "--json", tmp_path / "c.json")
    assert "negative log-likelihood: A" in said
    assert "calibrated_nll" not in json.loads((tmp_path / "c.json").read_text())  # fitted there
    assert "several seeds" in said


def test_a_run_is_tested_on_its_own_division(images: Path, tmp_path: Path) -> None:
    """A folder with parts, divided at random by the recipe: the folder's own test has images that were learnt."""
    for part, wanted in (("train", range(8)), ("test", range(8, 12))):
        for folder in images.iterdir():
            (tmp_path / "faces" / part / folder.name).mkdir(parents=True)
            for number, picture in enumerate(sorted(folder.iterdir())):
                if number in wanted:
                    shutil.copy(picture, tmp_path / "faces" / part / folder.name)
    data, out, logits = tmp_path / "faces", tmp_path / "run", tmp_path / "p.npz"
    options = ("--recipe", "luo2023", "--model", "cnn", "--data", data, *FAST)
    said = run("train", *options, "--out", out, "--set", "split=random-80-20")
    assert said.startswith("0"), said
    assert "own parts" not in said
    said = run("evaluate", "--checkpoint", out, "--data", data, "--split", "test", "--predictions", logits)
    assert said.startswith("0"), said
    assert Predictions.load(logits).ids == RunFolder(out).predictions("test").ids
    said = run("evaluate", "--checkpoint", out, "--data", data, "--split", "train", "--predictions", logits)
    assert all(name.startswith("train/") for name in Predictions.load(logits).ids)
    shutil.copytree(data / "train", tmp_path / "lacking" / "train")
    shutil.copytree(data / "test", tmp_path / "lacking" / "val")
    words = ("--data", tmp_path / "lacking", "--out", tmp_path / "divided", "--set", "stem=small", *FAST)
    said = run("train", "--recipe", "luo2023", "--model", "cnn", *words)
    assert said.startswith("0"), said
    assert "own parts, train, validation, are not used" in said
    assert "stem='small' changes nothing: cnn has no stem" in said
    # Unless the recipe is told otherwise, the folder's own parts are used.
    said = run("train", *options, "--out", tmp_path / "own")
    assert said.startswith("0"), said
    assert "own parts are used: test, train. --set split=random-80-20" in said
    own = RunFolder(tmp_path / "own")
    assert (own.config["recipe"]["split"], own.config["data"]["honest"]) == ("official", True)
    assert len(own.predictions("test").ids) == 16
    assert all(name.startswith("test/") for name in own.predictions("test").ids)
    assert all(name.startswith("train/") for name in own.predictions("validation").ids)


def test_views_are_reported_beside_the_plain_figures(images: Path, trained: Path, tmp_path: Path) -> None:
    plain, flipped = tmp_path / "plain.json", tmp_path / "flip.json"
    common = ("evaluate", "--model", "cnn_se", "--checkpoint", trained, "--data", images, "--split", "all")
    assert run(*common, "--json", plain).startswith("0")
    said = run(*common, "--tta", "flip", "--json", flipped)
    assert "views: flip" in said
    assert "views: none" in said
    first, second = (json.loads(path.read_text()) for path in (plain, flipped))
    assert second["views"] == "flip"
    assert second["nll"] != first["nll"]
    assert second["without_views"]["nll"] == first["nll"]
    assert "calibrated" not in second  # the temperature was fitted without views
    said = run(*common, "--tta", "ten-crop", "--limit", 20)
    assert "20 images, test-time views: ten-crop" in said


def test_a_limited_evaluation_sees_every_class_and_says_so(images: Path, trained: Path, tmp_path: Path) -> None:
    report, logits = tmp_path / "r.json", tmp_path / "p.npz"
    common = ("evaluate", "--checkpoint", trained, "--data", images, "--split", "all", "--json", report)
    said = run(*common, "--limit", 20, "--predictions", logits)
    assert "--limit 20: 20 of the 48 images" in said
    content = json.loads(report.read_text())
    assert (content["limit"], content["images"], content["images_in_split"]) == (20, 20, 48)
    assert [content["recall"][name]["images"] for name in content["classes"]] == [5, 5, 5, 5]
    assert len(Predictions.load(logits).ids) == 20
    for words in ((), ("--limit", 60)):
        assert "of the 48" not in run(*common, *words)
        content = json.loads(report.read_text())
        assert (content["limit"], content["images"]) == (60 if words else None, 48)


def test_the_validation_part_is_not_calibrated_with_itself(images: Path, trained: Path, tmp_path: Path) -> None:
    options = ("--data", images, "--split", "validation", "--json", tmp_path / "v.json")
    assert run("evaluate", "--checkpoint", trained, *options).startswith("0")
    content = json.loads((tmp_path / "v.json").read_text())
    assert "calibrated" not in content
    assert content["accuracy"] == RunFolder(trained).results["validation_accuracy"]


@pytest.mark.parametrize("name", ["cnn_se", "vgg16", "vgg16_bn", "resnet18_cbam", "resnetv2_18"])
def test_recipes_choose_stems_and_norms(name: str) -> None:
    recipes = load_recipe("strong"), load_recipe("luo2023", variant="without-norm")
    strong, luo = (build_model(name, recipe, classes=7, pretrained=False) for recipe in recipes)
    residual = name.startswith("resnet")
    assert strong.feature_info[-1]["reduction"] == (8 if residual else luo.feature_info[-1]["reduction"])
    assert luo.feature_info[-1]["reduction"] == {"c": 8, "v": 32, "r": 32}[name[0]]
    norms = [sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules()) for model in (strong, luo)]
    assert norms[0] > 0
    assert norms[1] == (0 if name in ("cnn_se", "vgg16") else norms[0])


def test_a_run_with_a_small_stem_and_norms_is_rebuilt(images: Path, tmp_path: Path) -> None:
    for name in ("resnet18", "cnn"):
        out, report = tmp_path / name, tmp_path / f"{name}.json"
        options = ("--recipe", "luo2023", "--model", name, "--data", images, "--out", out, "--set", "size=16")
        said = run("train", *options, "--set", "stem=small", "--set", "norm=batch", *FAST)
        assert said.startswith("0"), said
        weights = load_file(out / "model.safetensors")
        assert weights["conv1.weight" if name == "resnet18" else "features.0.weight"].shape[-1] == 3
        assert any(key.endswith("running_mean") for key in weights)
        said = run("evaluate", "--checkpoint", out, "--data", images, "--split", "test", "--json", report)
        assert said.startswith("0"), said
        assert json.loads(report.read_text())["accuracy"] == RunFolder(out).results["test"]["accuracy"]


def test_a_run_with_another_placement_is_rebuilt_and_given_away(images: Path, tmp_path: Path) -> None:
    out, parcel, report = tmp_path / "run", tmp_path / "parcel", tmp_path / "x.json"
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, "--out", out, "--set", "size=16")
    assert run("train", *options, "--set", "placement=conv:1,2", *FAST).startswith("0")
    attention = {key.rpartition(".fc1")[0] for key in load_file(out / "model.safetensors") if "attention.fc1" in key}
    assert attention == {"features.2.attention", "features.5.attention"}  # the first two convolutions, behind ReLU
    said = run("evaluate", "--checkpoint", out, "--data", images, "--split", "test", "--json", report)
    assert said.startswith("0"), said
    figures = RunFolder(out).results["test"]
    assert json.loads(report.read_text())["accuracy"] == figures["accuracy"]
    said = run("ship", out, parcel, "--data", images, "--terms", "made up")
    assert said.startswith("0"), said
    found = open_pretrained(f"local-dir:{parcel}")
    assert [site.channels for site in found.model.attention_sites] == [32, 64]
    said = run(
        "train", *options[:3], "cnn", *options[4:6], "--out", tmp_path / "plain", "--set", "placement=pool", *FAST
    )
    assert said.startswith("0"), said
    assert "placement='pool' changes nothing: cnn has no attention." in said
    said = run("train", *options[:6], "--out", tmp_path / "typo", "--set", "placement=pol", *FAST)
    assert said.startswith("2")
    assert "did you mean 'pool'" in said


def test_checkpoints_can_be_left_out(images: Path, tmp_path: Path) -> None:
    options = ("--recipe", "luo2023", "--model", "cnn", "--data", images, "--out", tmp_path / "run")
    assert run("train", *options, "--no-checkpoints", *FAST).startswith("0")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert run("train", *options, "--no-checkpoints", *FAST).startswith("0")  # finished: only prints


def test_a_warning_is_a_line(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ferattn.training.machine.is_slow_in_bfloat16", lambda: True)
    monkeypatch.setitem(PRECISIONS, "bf16", PRECISIONS["fp32"])  # nobody waits for it
    options = ("--recipe", "luo2023", "--model", "cnn", "--data", images, "--out", tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = run("train", *options, "--precision", "bf16", *FAST, "--set", "epochs=1")
    assert said.startswith("0")
    lines = [line for line in said.splitlines() if "precision=" in line]
    assert len(lines) == 1
    assert "warning: precision='bf16' on this processor" in lines[0]


def test_going_on_with_another_config_is_refused(images: Path, trained: Path) -> None:
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, "--out", trained)
    said = run("train", *options, "--set", "lr=0.5", *FAST)
    assert said.startswith("2")
    assert "recipe.lr was 0.002, now 0.5" in said
    assert run("train", *options, *FAST).startswith("0")  # finished: only prints


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--recipe", "lou2023"], "did you mean 'luo2023'"),
        (["--model", "cnn_see"], "cnn_se"),
        (["--set", "epocs=3"], "did you mean 'epochs'"),
        (["--set", "epochs"], "KEY=VALUE"),
        (["--set", "stem=smal"], "did you mean 'small'"),
        (["--set", "norm=layer"], "Options: own, batch"),
        (["--set", "split=official"], "no official split"),
        (["--set", "split=random-80-10-10", "--set", "validation_fraction=0.2"], "Set select_on='held-out'"),
        (["--set", "batch_size=100"], "only"),
        (["--precision", "fp64"], "bf16"),
        (["--dataset", "fer2031"], "did you mean 'fer2013'"),
        (["--variant", "x"], "as-published"),
        (["--seed", "-1"], "--seed -1"),
        (["--limit", "2"], "limit=2"),
        (["--fold", "3"], "fold"),
    ],
)
def test_mistakes_end_in_one_line(images: Path, tmp_path: Path, words: list[str], said: str) -> None:
    options = {"--recipe": "luo2023", "--model": "cnn_se", "--accelerator": "cpu"}
    options |= {} if words[0] == "--set" else {words[0]: words[1]}
    extra = words if words[0] == "--set" else []
    found = run(
        "train", *(word for pair in options.items() for word in pair), *extra, "--data", images,
        "--out", tmp_path / "out", "--no-progress", "--no-tensorboard",
    )  # fmt: skip
    assert found.startswith("2")
    assert said in found
    assert len(found.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.ckpt"))


def test_a_recipe_of_ones_own_may_not_set_aside_in_vain(images: Path, tmp_path: Path) -> None:
    """The package's recipes may: their share is for those splits that have no part to choose on."""
    for name, where in (("own", "settings"), ("folders", "dataset.folder")):
        path = tmp_path / f"{name}.toml"
        settings = '[settings]\nsplit = "random-80-10-10"\nepochs = 1\n'
        path.write_text(f"{settings}{'' if where == 'settings' else f'[{where}]'}\nvalidation_fraction = 0.2\n")
        options = ("--recipe", path, "--model", "cnn", "--data", images, "--out", tmp_path / "out", *FAST)
        said = run("train", *options)
        assert said.startswith("2")
        assert "validation_fraction=0.2 would change nothing" in said
    assert not (tmp_path / "out").exists()
    assert run("train", *options, "--set", "validation_fraction=0").startswith("0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--split", "test"], "either --pretrained or --checkpoint"),
        (["--split", "test", "--checkpoint", "{run}", "--pretrained"], "either"),
        (["--split", "tset", "--checkpoint", "{run}"], "no official splits"),
        (["--split", "test", "--checkpoint", "{run}", "--model", "cnn"], "trained cnn_se"),
        (["--split", "test", "--checkpoint", "nowhere"], "Is it the folder of a run"),
        (["--split", "test", "--checkpoint", "{run}", "--tta", "tencrop"], "did you mean 'ten-crop'"),
        (["--split", "test", "--pretrained"], "--model NAME"),
        (["--split", "test", "--checkpoint", "{run}", "--limit", "1"], "limit=1: at least 4"),
    ],
)
def test_mistakes_of_evaluate(images: Path, trained: Path, words: list[str], said: str) -> None:
    found = run("evaluate", "--data", images, *(word.format(run=trained) for word in words))
    assert found.startswith("2")
    assert said in found


def test_compare_refuses_what_cannot_be_compared(trained: Path, tmp_path: Path) -> None:
    given = RunFolder(trained).predictions("test")
    from dataclasses import replace

    replace(given, views="flip").save(tmp_path / "flip.npz")
    assert "like with like" in run("compare", trained, tmp_path / "flip.npz")
    said = run("compare", trained / "predictions-validation.npz", trained)
    assert said.startswith("2")
    assert "different test sets" in said
    assert "test, validation" in run("compare", trained, trained, "--part", "private")
    assert "a file of predictions" in run("compare", tmp_path / "flip.npz", trained, "--part", "test")
    replace(given, logits=given.logits * np.nan).save(tmp_path / "nan.npz")
    assert "not finite" in run("compare", tmp_path / "nan.npz", trained)
    assert "there is no folder" in run("compare", trained, trained, "--json", tmp_path / "no" / "c.json")
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    assert "no file of predictions" in run("compare", tmp_path / "bad.npz", trained)


@pytest.mark.parametrize("people", [8, 1])
def test_compare_knows_of_people(trained: Path, tmp_path: Path, people: int) -> None:
    """Several are drawn whole, and change sign together; of one nothing follows for others, and it is said."""
    generator = np.random.default_rng(0)
    subjects = tuple(f"P{row % people}" for row in range(80))
    ids, classes = tuple(f"i{row}" for row in range(80)), ("a", "b")
    right = []
    for name in ("a", "b"):
        logits = generator.normal(0, 1, (80, 2)).astype(np.float32)
        given = Predictions(logits, np.arange(80) % 2, ids, classes, "none", "made", "abc", subjects)
        given.save(tmp_path / f"{name}.npz")
        right.append(given.correct)
    said = run(
        "compare", tmp_path / "a.npz", tmp_path / "b.npz", "--json", tmp_path / "c.json", "--confidence", 0.999
    )
    assert "99.9 % interval" in said
    found = json.loads((tmp_path / "c.json").read_text())
    if people > 1:
        assert found["test"] == "sign flip over subjects"
        assert found["p_value"] == subject_sign_flip(*right, subjects).p_value
        assert found["interval"]["method"] == "bootstrap over subjects"
        assert found["detectable"] is None
    else:
        assert found["test"] == "exact McNemar"
        assert found["p_value"] == mcnemar(*right).p_value
        assert found["interval"]["method"] == "bootstrap over images of one subject"


def test_images_that_a_model_knows_are_told(images: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "copies")
    shutil.copytree(images, tmp_path / "others")
    for picture in (tmp_path / "others").rglob("*.png"):
        Image.open(picture).rotate(90).save(picture)
    counts = RunFolder(trained).config["data"]["images"]
    for data, split, learnt, chosen in (
        (images, "all", counts["train"], counts["validation"]),
        (tmp_path / "copies", "all", counts["train"], counts["validation"]),
        (images, "validation", 0, counts["validation"]),
        (images, "test", 0, 0),
        (tmp_path / "others", "all", 0, 0),
    ):
        words = ("--data", data, "--split", split, "--json", tmp_path / "e.json")
        said = run("evaluate", "--checkpoint", trained, *words)
        found = json.loads((tmp_path / "e.json").read_text())
        assert (found["images_learnt_from"], found["images_chosen_on"]) == (learnt, chosen), said
        assert ("figures are too good" in said) == bool(learnt or chosen)
        assert ("calibrated" in found) == (not chosen)


def test_a_folder_that_has_changed_is_no_test_any_more(images: Path, trained: Path, tmp_path: Path) -> None:
    """The run's parts cannot be found again; what it learnt from is then not known, which is not none."""
    changed = shutil.copytree(images, tmp_path / images.name)
    next(changed.rglob("*.png")).unlink()
    words = ("--checkpoint", trained, "--data", changed, "--json", tmp_path / "e.json")
    said = run("evaluate", *words, "--split", "test")
    assert said.startswith("2")
    assert "is not what" in said
    assert "--split all" in said
    said = run("evaluate", *words, "--split", "all")
    assert "is not known" in said
    found = json.loads((tmp_path / "e.json").read_text())
    assert [found[key] for key in ("images_learnt_from", "images_chosen_on", "honest")] == [None] * 3
    assert "calibrated" not in found  # the temperature was fitted on some of them
    elsewhere = shutil.copytree(changed, tmp_path / "other-name")
    assert run("evaluate", *words[:2], "--data", elsewhere, "--split", "all", *words[4:]).startswith("0")
    assert json.loads((tmp_path / "e.json").read_text())["honest"] is None  # nobody knows
    assert "calibrated" in json.loads((tmp_path / "e.json").read_text())
    other = shutil.copytree(changed, tmp_path / "train-only" / "train").parent
    shutil.copytree(changed, other / "val")
    said = run("evaluate", "--checkpoint", trained, "--data", other, "--split", "test")
    assert said.startswith("2")  # the run's random division is none of this data's
    assert "train, validation" in said


def test_what_is_known_is_told_beside_what_is_not(images: Path, trained: Path, tmp_path: Path) -> None:
    """A run that began with weights of no known run has itself learnt from images that it knows."""
    bare, out, report = tmp_path / "bare.safetensors", tmp_path / "run", tmp_path / "e.json"
    shutil.copyfile(trained / "model.safetensors", bare)
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, "--warm-start", bare)
    assert run("train", *options, "--out", out, *FAST, "--set", "epochs=1").startswith("0")
    counts = RunFolder(out).config["data"]["images"]
    learnt, chosen = counts["train"], counts["validation"]
    known = {"all": (learnt, chosen), "validation": (None, chosen), "test": (None, None)}
    for split, seen in known.items():
        assert run("evaluate", "--checkpoint", out, "--data", images, "--split", split, "--json", report)[0] == "0"
        found = json.loads(report.read_text())
        assert (found["images_learnt_from"], found["images_chosen_on"]) == seen
        assert found["honest"] is False
        assert ("calibrated" in found) == (split == "test")


def test_what_is_not_honest_stays_so(images: Path, trained: Path, tmp_path: Path) -> None:
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, "--out", tmp_path / "chosen")
    said = run("train", *options, "--set", "split=random-80-10-10", "--set", "select_on=test", *FAST)
    assert "test (not honest): accuracy" in said
    words = ("--checkpoint", tmp_path / "chosen", "--data", images, "--split", "test", "--json", tmp_path / "e.json")
    assert "(not honest)" in run("evaluate", *words)
    assert json.loads((tmp_path / "e.json").read_text())["honest"] is False
    said = run("compare", tmp_path / "chosen", tmp_path / "chosen", "--json", tmp_path / "c.json")
    assert said.count("(not honest)") == 2
    found = json.loads((tmp_path / "c.json").read_text())
    assert (found["honest_a"], found["honest_b"]) == (False, False)
    said = run("compare", tmp_path / "chosen", tmp_path / "chosen", "--seed", -1)
    assert said.startswith("2")
    assert "seed=-1" in said


def test_recipes_are_shown() -> None:
    said = run("recipes")
    assert "miskow2022" in said
    assert "super-convergence" in said
    said = run("recipes", "luo2023")
    assert "What the paper says" in said
    assert "lr = 0.002" in said
    said = run("recipes", "strong")
    assert "What was chosen" in said
    assert "What the paper says" not in said
    assert "did you mean" in run("recipes", "luo203")


def test_recipes_work_on_other_sizes(images: Path, tmp_path: Path) -> None:
    """Enlarged, in colour, with the averaged weights, ZCA: the ways a run's transform is kept."""
    cases = {
        "zca": ("chap2021", ("--set", "augmentation=chap2021", "--set", "size=16")),
        "strong": ("strong", ("--set", "warmup_epochs=1", "--set", "mix_off_epochs=1", "--set", "channels=3",
                              "--set", "size=24", "--set", "drop_rate=0.2", "--channels-last")),
    }  # fmt: skip
    for name, (recipe, extra) in cases.items():
        out = tmp_path / name
        changes = ("--set", "step_epochs=[1]", "--set", "step_factors=[0.1]") if recipe == "chap2021" else ()
        options = ("--recipe", recipe, "--model", "cnn_eca", "--data", images, "--out", out, *extra, *changes)
        said = run("train", *options, *FAST)
        assert said.startswith("0"), said
        report = tmp_path / f"{name}.json"
        said = run("evaluate", "--checkpoint", out, "--data", images, "--split", "test", "--json", report)
        assert said.startswith("0"), said
        assert json.loads(report.read_text())["accuracy"] == RunFolder(out).results["test"]["accuracy"]


@pytest.mark.parametrize("recipe", list_recipes())
@pytest.mark.parametrize("split", ["its own", "leave-one-subject-out", "subject-10-fold"])
def test_ten_people_are_enough_for_every_recipe(tmp_path: Path, recipe: str, split: str) -> None:
    dataset = open_dataset(trees.jaffe_tree(tmp_path), "jaffe")
    settings = load_recipe(recipe, "jaffe")
    if split != "its own":
        settings = settings.changed({"split": split})
        if not settings.validation_fraction:
            settings = settings.changed({"validation_fraction": 0.1})
    train, validation, test, honest = divide(dataset, settings, seed=0, fold=0, limit=None, subset_seed=0)
    people = [set(part.subjects or ()) for part in (train, validation, test)]
    assert min(len(part) for part in (train, validation, test)) > 0
    assert honest == (settings.split in ("leave-one-subject-out", "subject-10-fold"))
    if honest:
        assert len(set.union(*people)) == sum(map(len, people)) == 10


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("momentum=0.5",), "momentum would change nothing: it is SGD's"),
        (("schedule=cosine", "lr_min=0.1"), "lr_min would change nothing: it is for plateaus"),
        (("mix_off_epochs=1",), "mix_off_epochs would change nothing: the augmentation 'luo2023' does not mix"),
        (("patience=0", "stop_monitor=val_loss"), "stop_monitor would change nothing"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(
    images: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    changes = [part for word in words for part in ("--set", word)]
    found = run("train", "--recipe", "luo2023", "--data", images, "--out", tmp_path / "run", *FAST, *changes)
    assert found.startswith("2")
    assert said in found


def test_a_shortened_run_says_what_it_is_short_of(images: Path, tmp_path: Path) -> None:
    options = ("--model", "cnn", "--data", images, "--out", tmp_path / "run", "--set", "warmup_epochs=0", *FAST)
    assert "epochs=2: no epoch is mixed (mix_off_epochs=20)." in run("train", "--recipe", "strong", *options)


def test_the_same_data_under_another_name_is_known(tmp_path: Path) -> None:
    for name in ("faces", "copies", "others"):
        faces.folder_of_images(tmp_path / name, seed=name == "others")
    first = tmp_path / "first"
    options = ("--recipe", "luo2023", "--model", "cnn", *FAST)
    assert run("train", *options, "--data", tmp_path / "faces", "--out", first).startswith("0")
    for name, seed, told in (("copies", 5, True), ("copies", 0, False), ("others", 5, False)):
        dataset = open_dataset(tmp_path / name, "folder")
        parts = make_parts(dataset, Recipe().changed(RunFolder(first).config["recipe"]), seed=seed)
        seen = find_seen(parts, dataset, [RunFolder(first).config])
        assert (seen is not None and "weights that were trained on" in seen) == told, (name, seed)


@pytest.mark.slow
def test_fer2013_smoke(fer2013_zip: Path, tmp_path: Path) -> None:
    options = ("--recipe", "strong", "--model", "cnn_se", "--data", fer2013_zip, "--out", tmp_path / "run")
    said = run("train", *options, "--limit", 70, "--set", "epochs=2", "--set", "warmup_epochs=1", *FAST[4:])
    assert said.startswith("0"), said
    assert RunFolder(tmp_path / "run").config["data"]["honest"]
    options = ("--data", fer2013_zip, "--split", "private", "--limit", 50, "--json", tmp_path / "r.json")
    said = run("evaluate", "--checkpoint", tmp_path / "run", *options, "--tta", "ten-crop")
    assert said.startswith("0"), said
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 50


def _train(images: Path, out: Path, *extra: str) -> RunFolder:
    environment = dict(os.environ) | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "ferattn", "train", "--recipe", "luo2023", "--model", "cnn_se"]
    command += ["--data", str(images), "--out", str(out), *FAST, *extra]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunFolder(out)


def test_two_processes_do_what_one_does(images: Path, tmp_path: Path) -> None:
    # SGD: Adam divides by the size of the gradient and so enlarges rounding where there is hardly any.
    # Without batch norm, whose statistics are those of each process's own images.
    options = ("--set", "optimizer=sgd", "--set", "lr=0.05", "--set", "norm=own")
    said = run("train", "--recipe", "luo2023", "--data", images, "--out", tmp_path / "one", *FAST, *options)
    assert said.startswith("0"), said
    one = RunFolder(tmp_path / "one")
    two = _train(images, tmp_path / "two", *options, "--devices", "2")
    assert two.config["machine"]["devices"] == 2
    first, second = (load_file(run.path / "model.safetensors") for run in (one, two))
    start = create_model("cnn_se", num_classes=4).state_dict()
    assert all((first[key] - start[key]).abs().max() > 1e-3 for key in first if key.endswith("weight"))
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=5e-5)
    rows = [np.genfromtxt(run.path / "metrics.csv", delimiter=",", names=True) for run in (one, two)]
    for column in ("step", "train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        np.testing.assert_allclose(rows[0][column], rows[1][column], rtol=1e-3, atol=1e-3)
    assert two.results["test"]["accuracy"] == pytest.approx(one.results["test"]["accuracy"], abs=0.11)


def test_weights_that_begin_a_run_see_images_as_they_know_them(images: Path, trained: Path, tmp_path: Path) -> None:
    """Where the recipe says that the weights decide it, as `finetune` does."""
    earlier = tmp_path / "earlier"
    shutil.copytree(trained, earlier)
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, *FAST, "--set", "normalize=model")
    for about, mean in (({"kind": "standardize", "mean": [0.25], "std": [0.5]}, [0.25]), ({"kind": "none"}, [0.0])):
        (earlier / "transform.json").write_text(json.dumps(about | {"size": None}))
        out = tmp_path / about["kind"]
        assert run("train", *options, "--set", "epochs=1", "--out", out, "--warm-start", earlier).startswith("0")
        assert json.loads((out / "transform.json").read_text())["mean"] == mean
    file = shutil.copy(earlier / "model.safetensors", tmp_path / "alone.safetensors")
    said = run("train", *options, "--out", tmp_path / "file", "--warm-start", file)
    assert said.startswith("2")
    assert "does not say mean and standard deviation" in said


def test_a_run_begins_with_the_weights_of_another(images: Path, trained: Path, tmp_path: Path) -> None:
    first, out = load_file(trained / "model.safetensors"), tmp_path / "second"
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, *FAST, "--set", "lr=1e-9")
    said = run("train", *options, "--set", "lr_min=1e-10", "--out", out, "--warm-start", trained)
    assert said.startswith("0"), said
    assert "tensors loaded from" in said
    assert f"epoch {RunFolder(out).results['best_epoch'] + 1} of 2 was best" in said
    second = load_file(out / "model.safetensors")
    torch.testing.assert_close(second["features.0.weight"], first["features.0.weight"], rtol=0, atol=1e-6)
    began = RunFolder(out).config["warm_start"]
    assert began["config"] == RunFolder(trained).config
    said = run("train", *options, "--set", "lr_min=1e-10", "--out", out)
    assert said.startswith("2")
    assert "warm_start" in said
    said = run("train", *options, "--out", tmp_path / "third", "--warm-start", tmp_path / "nowhere")
    assert "no weights there" in said
    said = run("ship", out, tmp_path / "cnn_se", "--data", images, "--terms", "Toys.")
    assert said.startswith("0"), said
    commands = json.loads((tmp_path / "cnn_se" / "config.json").read_text())["ferattn"]["commands"]
    assert ["--out RUN1 " in commands[0], "--warm-start RUN1" in commands[1], "ship RUN" in commands[2]] == [True] * 3


def test_a_run_begins_with_the_mean_of_several(images: Path, trained: Path, tmp_path: Path) -> None:
    first, other, out = load_file(trained / "model.safetensors"), tmp_path / "other", tmp_path / "soup"
    shutil.copytree(trained, other)
    save_file({key: value + 0.25 for key, value in first.items()}, other / "model.safetensors")
    digest = hashlib.sha256((trained / "model.safetensors").read_bytes()).hexdigest()
    began = {"sha256": digest, "config": RunFolder(trained).config}
    config = RunFolder(other).config | {"seed": 7, "warm_start": began}
    config["recipe"] |= {"lr": 0.125}
    (other / "config.json").write_text(json.dumps(config))
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, *FAST, "--set", "lr=1e-9")
    options += ("--set", "lr_min=1e-10", "--out", out)
    said = run("train", *options, "--warm-start", trained, "--warm-start", other)
    assert said.startswith("0"), said
    assert "the mean of 2" in " ".join(said.split())
    key = "features.0.weight"
    torch.testing.assert_close(load_file(out / "model.safetensors")[key], first[key] + 0.125, rtol=0, atol=1e-6)
    assert sorted(began["config"]["seed"] for began in RunFolder(out).config["warm_start"]) == [0, 7]
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert run("train", *options, "--warm-start", other, "--warm-start", trained).startswith("0")  # it has finished
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    said = run("train", *options, "--warm-start", trained)
    assert said.startswith("2")
    assert "warm_start was [" in said
    assert "the same weights as" in run("train", *options, "--warm-start", trained, "--warm-start", trained)
    said = run("ship", out, tmp_path / "cnn_se", "--data", images, "--terms", "Toys.")
    assert said.startswith("0"), said
    commands = json.loads((tmp_path / "cnn_se" / "config.json").read_text())["ferattn"]["commands"]
    assert ["--out RUN1 " in commands[0], "--seed 7 --warm-start RUN1" in commands[1]] == [True] * 2
    assert any(
        f"--out RUN --seed 0 {words} " in commands[2]
        for words in ("--warm-start RUN1 --warm-start RUN2", "--warm-start RUN2 --warm-start RUN1")
    )
    card = (tmp_path / "cnn_se" / "README.md").read_text()
    named = f"a run on {config['data']['dataset']} by the recipe `luo2023`, seed"
    own, others = f"{named} 0, lr 0.002", f"{named} 7, lr 0.125, which began with those of {named} 0"
    assert any(
        f"the mean of the weights of 2 runs ({told})." in card for told in (f"{own}; {others}", f"{others}; {own}")
    )


def test_weights_on_other_scales_have_no_common_one(images: Path, trained: Path, tmp_path: Path) -> None:
    runs = [tmp_path / "a", tmp_path / "b"]
    for shift, folder in enumerate(runs):
        shutil.copytree(trained, folder)
        weights = load_file(trained / "model.safetensors")
        save_file({key: value + shift for key, value in weights.items()}, folder / "model.safetensors")
        about = {"kind": "standardize", "mean": [0.25 + shift], "std": [0.5], "size": None}
        (folder / "transform.json").write_text(json.dumps(about))
    close = shutil.copytree(runs[0], tmp_path / "close")
    (close / "transform.json").write_text(json.dumps(about | {"mean": [0.251] * 3, "std": [0.5] * 3}))
    assert _normalization([runs[0], close], 3) == {"mean": (0.25,) * 3, "std": (0.5,) * 3}
    words = ("--warm-start", runs[0], "--warm-start", runs[1], "--set", "normalize=model", "--out", tmp_path / "run")
    said = run("train", "--recipe", "luo2023", "--model", "cnn_se", "--data", images, *FAST, *words)
    assert said.startswith("2")
    assert "mean 1.25, std 0.5" in said
    assert "Options: runs whose images were scaled alike" in said


def test_a_run_learns_from_the_answers_of_others(images: Path, trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "student"
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", images, *FAST, "--set", "epochs=1")
    words = (*options, "--out", out, "--warm-start", trained, "--teacher", trained, "--teacher", "cnn_se")
    words += ("--set", "distill_temperature=3", "--precision", "bf16", "--channels-last")
    said = run("train", *words)
    assert said.startswith("0"), said
    taught = RunFolder(out).config["teachers"]
    assert [one["given_away"] for one in taught] == [False, True]
    assert taught[0]["config"] == RunFolder(trained).config
    assert taught[1]["config"]["recipe_name"] == "strong"
    said = run("train", *options, "--out", out, "--warm-start", trained)
    assert said.startswith("2")
    assert "teachers was [" in said
    assert len(said) < 600
    said = run("ship", out, tmp_path / "cnn_se", "--data", images, "--terms", "Toys.")
    assert said.startswith("0"), said
    facts = json.loads((tmp_path / "cnn_se" / "config.json").read_text())
    first, *of_cnn_se, shipped, own, last = facts["ferattn"]["commands"]  # what it was built on, once; then itself
    assert "--out RUN1 " in first
    number = 1 + len(of_cnn_se)
    assert all(f"--data DATA2 --out RUN{row} " in line for row, line in enumerate(of_cnn_se, 2))
    assert shipped == f"ferattn ship RUN{number} WEIGHTS{number} --data DATA2"
    assert f"--warm-start RUN1 --teacher RUN1 --teacher local-dir:WEIGHTS{number} " in own
    assert "--set distill_temperature=3.0" in own
    assert "ship RUN" in last
    card = (tmp_path / "cnn_se" / "README.md").read_text()
    name = RunFolder(trained).config["data"]["dataset"]
    assert f"It began with the weights of a run on {name} by the recipe `luo2023`, seed 0. It learnt from" in card
    assert (
        f"the answers of `cnn_se`, a run on {name} by the recipe `luo2023`, seed 0 and of `cnn_se`, a run on FER2013"
        in card
    )
    assert "Toys. FER2013 (Goodfellow et al. 2013" in card
    assert "(knowledge distillation, weight 0.9, temperature 3)" in card
    for more, error in (
        (
            ("--teacher", tmp_path / "nowhere"),
            "the folder of a finished run, the name of a model, or local-dir:FOLDER",
        ),
        (("--teacher", images), "config.json: cannot be read"),
        (("--teacher", tmp_path / "cnn_se"), f"Weights to give away: local-dir:{tmp_path / 'cnn_se'}"),
        (("--teacher", f"local-dir:{tmp_path}"), "not a folder of weights"),
        (("--teacher", "cnn_sse"), "did you mean"),
        (("--teacher", trained, "--teacher", trained), "has the same weights as another"),
        (("--set", "distill_weight=0.5"), "distill_weight would change nothing: there is no --teacher"),
        (("--teacher", trained, "--set", "distill_weight=0"), "distill_weight=0"),
        (("--teacher", trained, "--set", "channels=3"), "set channels=1"),
    ):
        said = run("train", *options, "--out", tmp_path / "bad", *more)
        assert said.startswith("2"), said
        assert error in said.replace("\n", " ")
        assert not (tmp_path / "bad").exists()


def test_a_test_that_the_weights_have_seen_is_not_honest(tmp_path: Path) -> None:
    data = trees.jaffe_tree(tmp_path / "jaffe")
    options = ("--recipe", "luo2023", "--model", "cnn", "--data", data, *FAST, "--set", "epochs=1")
    options += ("--set", "size=16", "--set", "validation_fraction=0.3", "--set", "split=leave-one-subject-out")

    def train(out: str, *more: object) -> str:
        said = run("train", *options, "--out", tmp_path / out, *more)
        assert said.startswith("0"), said
        return said

    def honest(out: str) -> set[bool]:
        folder = RunFolder(tmp_path / out)
        return {folder.config["data"]["honest"], folder.results["honest"]}

    train("first")
    assert "Not honest" not in train("same", "--warm-start", tmp_path / "first")
    assert honest("same") == {True}
    other = ("other", "--fold", 4, "--warm-start", tmp_path / "first")
    said = train(*other)
    assert "Not honest: the run builds on weights that were" in said
    assert "on 7 of its 7 test images" in said
    assert honest("other") == {False}
    assert "Not honest" in train(*other)  # finished: the same command leaves it as it is
    said = run("pool", tmp_path / "same", tmp_path / "other", "--json", tmp_path / "folds.json")
    assert "2 subjects, not honest" in said
    assert not json.loads((tmp_path / "folds.json").read_text())["honest"]
    assert "Not honest: the run builds on weights that were" in train(
        "taught", "--fold", 4, "--teacher", tmp_path / "first"
    )
    assert honest("taught") == {False}
    shutil.copy(tmp_path / "same" / "model.safetensors", tmp_path / "weights.safetensors")
    said = train("unknown", "--warm-start", tmp_path / "weights.safetensors")
    assert "Not honest: the run builds on weights of no known run" in said
    assert honest("unknown") == {False}


def test_people_that_the_weights_have_seen_are_no_test(tmp_path: Path) -> None:
    """Whoever learnt from other images of the people in the test knows them too."""
    dataset = open_dataset(trees.ck48_tree(tmp_path / "ck", subjects=20), "ckplus")
    even, odd = (dataset.subset(list(range(start, len(dataset), 2))) for start in (0, 1))
    recipe = Recipe(split="leave-one-subject-out", validation_fraction=0.5)
    parts = make_parts(odd, recipe)

    def config_of(data: FaceDataset, fold: int, seed: int = 0) -> dict[str, Any]:
        given = {"split_seed": seed, "fold": fold, "limit": None, "seed": 0}
        train, validation, _, _ = divide(data, recipe, seed=seed, fold=fold, limit=None, subset_seed=0)
        images = {"train": len(train), "validation": len(validation)}
        about = {"dataset": data.name, "classes": list(data.classes), "images": images}
        return {"recipe": recipe.to_dict(), "data": about, **given}

    first = config_of(odd, 0)
    assert find_seen(parts, odd, [first]) is None
    seen = find_seen(parts, odd, [config_of(odd, 1)])
    assert seen is not None
    assert seen.endswith(f"of its {len(parts.test)} test images")
    assert "chosen on" in str([find_seen(parts, odd, [config_of(odd, fold)]) for fold in range(10)])
    elsewhere = config_of(odd, 1)
    elsewhere["data"]["dataset"] = "FER2013"
    assert find_seen(parts, odd, [elsewhere]) is None
    # The dataset has grown: the earlier run has seen some of it, this run's part is among the rest.
    people = set(parts.test.subjects or ())
    folds = [find_seen(parts, even, [config_of(even, fold)]) for fold in range(10)]
    assert f"of the {len(people)} people in its test" in str(folds)
    by_image = make_parts(odd, recipe.changed({"split": "random-80-20", "select_on": "held-out"}))
    assert set(by_image.test.subjects or ()) & set(by_image.train.subjects or ())
    told = [find_seen(by_image, even, [config_of(even, fold)]) for fold in range(10)]
    assert told == [None] * 10  # it learns from the people in its test itself

    without = {key: value for key, value in first.items() if key != "split_seed"}  # as ferattn.training.fit writes it
    renamed = first | {"recipe": first["recipe"] | {"split": "old-name"}}
    for lost in (first | {"fold": 99}, without, renamed, first | {"recipe": {"gone": 1}}):
        assert "is unknown (" in str(find_seen(parts, odd, [lost]))
    assert "as it was then" in str(find_seen(parts, even, [first]))
    assert "no known run" in str(find_seen(parts, odd, [None]))


def test_weights_of_the_package_count_as_a_warm_start(tmp_path: Path) -> None:
    data = trees.fer_tree(tmp_path / "fer", trees.fer_rows(3))
    options = ("--recipe", "luo2023", "--model", "cnn_se", "--data", data, *FAST, "--set", "epochs=1")
    said = run("train", *options, "--set", "pretrained=true", "--set", "norm=own", "--out", tmp_path / "run")
    assert "Not honest: the run builds on weights of FER2013 as it was then: 28709 and 3589 images" in said
    began = RunFolder(tmp_path / "run").config["warm_start"]
    assert (began["config"]["model"], began["given_away"]) == ("cnn_se", True)
    said = run("ship", tmp_path / "run", tmp_path / "out", "--data", data)
    assert said.startswith("2")
    assert "as it was then" in said
