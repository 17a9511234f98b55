"""Folds become one test: over subjects, of one recipe, every image once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli.running import FAST, run
from data import trees
from ferattn.training import Predictions, RunFolder

SMALL = (*FAST, "--set", "epochs=1", "--set", "size=16", "--set", "validation_fraction=0.3")
TREES: dict[str, tuple[Callable[[Path], Path], str, tuple[int, ...]]] = {
    "ckplus": (lambda root: trees.ck48_tree(root, subjects=20), "subject-10-fold", (0, 1)),
    "jaffe": (trees.jaffe_tree, "leave-one-subject-out", (0, 4)),
}


@pytest.fixture(scope="module", params=TREES)
def folds(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    make, split, numbers = TREES[request.param]
    root = make(tmp_path_factory.mktemp(request.param))
    out = tmp_path_factory.mktemp("folds")
    for fold in numbers:
        said = run(
            "train", "--recipe", "luo2023", "--model", "cnn", "--data", root, "--out", out / f"fold{fold}",
            "--fold", fold, *SMALL, "--set", f"split={split}",
        )  # fmt: skip
        assert said.startswith("0"), said
    return [out / f"fold{fold}" for fold in numbers]


def test_folds_are_one_test_over_subjects(folds: list[Path], tmp_path: Path) -> None:
    report, logits = tmp_path / "report.json", tmp_path / "pooled.npz"
    said = run("pool", *folds, "--json", report, "--predictions", logits)
    assert said.startswith("0"), said
    content = json.loads(report.read_text())
    parts = [RunFolder(path).predictions("test") for path in folds]
    right = np.concatenate([part.correct for part in parts])
    assert content["accuracy"] == pytest.approx(right.mean())
    assert content["images"] == len(right)
    assert content["subjects"] == len({name for part in parts for name in part.subjects or ()})
    assert content["intervals_over"] == "subjects"
    one = RunFolder(folds[0]).results["test"]
    assert one["intervals_over"] == ("subjects" if len(set(parts[0].subjects or ())) > 1 else "images of one subject")
    assert [fold["fold"] for fold in content["folds"]] == [RunFolder(path).config["fold"] for path in folds]
    assert [fold["accuracy"] for fold in content["folds"]] == [part.correct.mean() for part in parts]
    temperatures = [RunFolder(path).results["temperature"] for path in folds]
    assert content["calibrated"]["temperatures"] == temperatures
    assert content["calibrated"]["nll"] != content["nll"]
    assert content["honest"]
    assert f"{content['subjects']} subjects" in said
    everyone = sum(RunFolder(folds[0]).config["data"]["images"].values())
    assert content["images_in_all_folds"] == everyone > len(right)
    assert f"not all folds: {len(right)} of the {everyone} images" in said
    pooled = Predictions.load(logits)
    assert len(pooled.ids) == len(set(pooled.ids)) == len(right)
    assert run("compare", logits, logits).startswith("0")


def test_what_is_no_other_fold_is_refused(folds: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folds[1], copy)
    assert "fold" in run("pool", folds[0], folds[1], copy)
    assert "twice" in run("pool", folds[0], folds[1], copy)
    config = json.loads((copy / "config.json").read_text())

    def said(changed: dict) -> str:
        (copy / "config.json").write_text(json.dumps(changed))
        found = run("pool", folds[0], copy)
        assert found.startswith("2")
        return found

    assert "recipe.lr was 0.002, now 0.1" in said(config | {"recipe": config["recipe"] | {"lr": 0.1}})
    assert "split_seed was 0, now 3" in said(config | {"split_seed": 3})
    assert "model was 'cnn', now 'cnn_se'" in said(config | {"model": "cnn_se"})
    images = config["data"]["images"]
    other = config["data"] | {"images": images | {"train": images["train"] + 1}}
    assert "data.images" in said(config | {"data": other})
    shutil.copy(folds[0] / "predictions-test.npz", copy)
    assert "an image is in the test part of two folds" in said(config)
    assert "two folds at least" in run("pool", folds[0])
    (copy / "results.json").unlink()
    assert "has not finished" in run("pool", folds[0], copy)


def test_a_fold_from_before_a_setting_was_there_is_a_fold(folds: list[Path], tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(folds[0], old)
    config = json.loads((old / "config.json").read_text())
    del config["recipe"]["placement"]
    (old / "config.json").write_text(json.dumps(config))
    assert run("pool", old, *folds[1:]).startswith("0")


def test_rounded_shares_of_folds_are_pooled(folds: list[Path]) -> None:
    """A share of the training images is rounded in every fold by itself."""
    from ferattn.cli.pool import _shared

    one = RunFolder(folds[0]).config
    other = json.loads(json.dumps(one))
    other["data"]["images"]["train"] -= 1
    assert _shared(one) != _shared(other)
    for share, limit in ((0.5, None), (1.0, 70)):
        pair = []
        for config in (one, other):
            recipe = config["recipe"] | {"train_fraction": share}
            pair.append(_shared(config | {"limit": limit, "recipe": recipe}))
        assert pair[0] == pair[1]
