"""The GPU studies' script: every part from end to end, small, on a CPU; and how it fits epochs to time."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from training import faces

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_training.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_training", SCRIPT)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_training"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_every_part_has_its_grids(script: Any, tmp_path: Path) -> None:
    (tmp_path / "data.zip").touch()
    plans = {}
    for name, part in script.PARTS.items():
        options = Namespace(part=name, data=tmp_path / "data.zip", minutes=9.0, smoke=False, workers=None)
        study = script.Study(options, part, list(range(len(part.grids))), 0.0, tmp_path)
        plans |= study.plans
        assert list(study.workers.values()) == list(part.workers)
    assert len(plans["grid"].cells) == 32
    assert len(plans["relu_elu"].cells) == 8
    assert len(plans["relu_elu"].seeds) >= 5
    for name in ("luo-honest", "luo-as-published"):
        assert [cell.model for cell in plans[name].cells] == ["cnn", "cnn_se"]
        assert len(plans[name].seeds) >= 5
    assert plans["luo-as-published"].asked["variant"] == "as-published"
    models = [cell.model for name in plans if name.startswith("strong") for cell in plans[name].cells]
    assert models == ["cnn_se", "resnet18_cbam", "resnetv2_50_cbam_elu"]


def _trial_run(folder: Path, seconds: float, total: float) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(f"epoch,seconds\n0,{2 * seconds}\n1,{seconds}\n")
    (folder / "results.json").write_text(json.dumps({"seconds_of_last_call": total}))


def test_epochs_are_fitted_to_the_time(script: Any, tmp_path: Path) -> None:
    part = script.PARTS["relu_elu"]
    options = Namespace(part="relu_elu", data=tmp_path, minutes=9.0, smoke=False, workers=None)
    study = script.Study(options, part, [0], 0.0, tmp_path)
    trial = study._trial(study.plans["relu_elu"])
    assert {cell.fraction for cell in trial.cells} == {0.25}
    assert trial.asked["set"]["epochs"] == 2
    for cell in trial.cells:
        _trial_run(tmp_path / "trial" / "relu_elu" / "runs" / cell.folder(0), 1.0, 13.0)
    few, many = (study._affordable("relu_elu", trial, left) for left in (200.0, 400.0))
    rounds = 40 / 16
    assert 3 <= few < many
    assert rounds * (4 * many + 18) + 25 < 400  # four seconds an epoch, ten before and eight after
    assert rounds * (4 * (many + 5) + 18) + 25 > 0.8 * 400
    assert study._affordable("relu_elu", trial, 1e9) == part.most
    assert study._affordable("relu_elu", trial, 30.0) == 3


def test_schedules_fit_any_length(script: Any) -> None:
    from ferattn.training import load_recipe

    for epochs in range(1, 201):
        changed = load_recipe("strong").changed(script.schedule(epochs))
        assert changed.warmup_epochs < epochs
        assert changed.mix_off_epochs < epochs


def test_speeds_are_kept_when_time_runs_out(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ferattn.training

    def fit(model: Any, parts: Any, recipe: Any, out: Path, **more: Any) -> Any:
        if (tmp_path / "speed.json").exists():
            raise KeyboardInterrupt
        _trial_run(out, 1.0, 2.0)
        return script.RunFolder(out)

    monkeypatch.setattr(ferattn.training, "fit", fit)
    monkeypatch.setattr(script, "make_parts", lambda *of, **more: faces.parts(train=224))
    monkeypatch.setattr(script, "open_dataset", lambda *of: None)
    with pytest.raises(KeyboardInterrupt):
        script.speed(tmp_path, tmp_path / "speed.json", math.inf, smoke=False)
    assert len(json.loads((tmp_path / "speed.json").read_text())["steps"]) == 1
    script.speed(tmp_path, tmp_path / "none.json", 0.0, smoke=False)
    assert not (tmp_path / "none.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", ["strong", "luo", "grid", "relu_elu", "sizes", "speed"])
def test_a_smoke_run_leaves_its_results(fer2013_zip: Path, tmp_path: Path, part: str) -> None:
    out = tmp_path / "out"
    words = ["--part", part, "--data", str(fer2013_zip), "--out", str(out), "--smoke", "--minutes", "14"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = sorted(out.iterdir())
    assert len(files) <= 8
    assert all(file.stat().st_size < 16_000_000 for file in files)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", file.name) for file in files)
    content = json.loads((out / f"{part}.json").read_text())
    if part == "speed":
        assert content["steps"][0]["ms_per_step"] > 0
        return
    assert not content["failed"]
    assert not content["missing"]
    assert content["runs"]
    with zipfile.ZipFile(out / f"{part}-runs.zip") as archive:
        assert len([name for name in archive.namelist() if name.endswith("results.json")]) == len(content["runs"])
    said = np.load(out / f"{part}-predictions.npz")
    for run in content["runs"]:
        labels = said[f"{run['grid']}/labels"]
        share = "" if run["fraction"] == 1 else f"-{run['fraction']:g}"
        logits = said[f"{run['grid']}/{run['model']}{share}-seed{run['seed']}"]
        assert (logits.argmax(1) == labels).mean() == pytest.approx(run["test"]["accuracy"], abs=0.02)
    report = (out / f"{part}.md").read_text()
    assert all((out / name).exists() for name in re.findall(r"\]\((.*?\.png)\)", report))
    if part == "strong":
        assert load_file(out / "strong-cnn_se.safetensors")["head.fc.weight"].dtype.itemsize == 2
        assert {row["model"] for row in content["views"]} == {run["model"] for run in content["runs"]}
        assert "ten crops" in report
