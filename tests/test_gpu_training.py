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
        options = Namespace(part=name, data=tmp_path / "data.zip", minutes=9.0, smoke=False, workers=None, teacher=[])
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


def test_teachers_teach_every_run(script: Any, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    study = _study(script, "strong", tmp_path, {}, teacher=[f"{tmp_path}/first/../first", "cnn_se"])
    for plan in study.plans.values():
        assert plan.options[-4:] == ("--teacher", str(tmp_path / "first"), "--teacher", "cnn_se")


def _trial_run(folder: Path, seconds: float, total: float) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(f"epoch,seconds\n0,{2 * seconds}\n1,{seconds}\n")
    (folder / "results.json").write_text(json.dumps({"seconds_of_last_call": total}))


def test_epochs_are_fitted_to_the_time(script: Any, tmp_path: Path) -> None:
    part = script.PARTS["relu_elu"]
    options = Namespace(part="relu_elu", data=tmp_path, minutes=9.0, smoke=False, workers=None, teacher=[])
    study = script.Study(options, part, [0], 0.0, tmp_path)
    trial = study._trial(study.plans["relu_elu"])
    assert {cell.fraction for cell in trial.cells} == {0.25}
    assert trial.asked["set"]["epochs"] == 2
    for cell in trial.cells:
        _trial_run(tmp_path / "trial" / "relu_elu" / "runs" / cell.folder(0), 1.0, 13.0)

    def fitted(left: float) -> int:
        study._fit_one("relu_elu", trial, left)
        return int(study.epochs["relu_elu"]["epochs"])

    few, many = fitted(200.0), fitted(400.0)
    rounds = 40 / 16
    assert 3 <= few < many
    assert rounds * (4 * many + 18) + 25 < 400  # four seconds an epoch, ten before and eight after
    assert rounds * (4 * (many + 5) + 18) + 25 > 0.8 * 400
    assert fitted(1e9) == part.most
    assert fitted(30.0) == 3


def _study(script: Any, part: str, work: Path, slow: dict[str, float], **more: Any) -> Any:
    """A study whose runs only seem to run; trials take so many seconds for an epoch, or never finish."""
    chosen = script.PARTS[part]
    asked = {
        "part": part,
        "data": work,
        "minutes": 9.0,
        "smoke": False,
        "workers": None,
        "epochs": None,
        "teacher": [],
    } | more
    study = script.Study(
        Namespace(**asked), chosen, list(range(len(chosen.grids))), script.time.monotonic(), work / "runs"
    )
    study.calls = []

    def side_by_side(plans: Any, end: float, folder: str) -> dict[str, list[str]]:
        study.calls.append((folder, list(plans)))
        for name, plan in plans.items():
            if folder == "trial" and name in slow:
                for cell, seed in ((cell, seed) for cell in plan.cells for seed in plan.seeds):
                    _trial_run(study.work / folder / name / "runs" / cell.folder(seed), slow[name], 13.0)
        return {name: [] for name in plans}

    study._side_by_side = side_by_side
    return study


def test_a_grid_whose_trial_does_not_finish_is_left_out_alone(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = _study(script, "strong", tmp_path, {"strong-cnn": 0.5, "strong-resnet18": 0.5})
    study.carry_out()
    assert study.calls[1] == ("studies", ["strong-cnn", "strong-resnet18"])
    assert study.said == ["strong-resnetv2_50: left out, no trial run has finished in time"]
    assert study.said[0] in capsys.readouterr().out
    assert [plan.asked["set"].get("epochs", 0) > 3 for plan in study.plans.values()] == [True, True, False]
    study.options.out = tmp_path / "out"
    study.options.out.mkdir()
    study.part = script.replace(study.part, views=False)
    study.collect()
    content = json.loads((tmp_path / "out" / "strong.json").read_text())
    assert content["failed"] == study.said
    assert any(line.startswith("strong-resnetv2_50: ") for line in content["missing"])


def test_a_second_call_goes_on_with_the_epochs_of_the_first(script: Any, tmp_path: Path) -> None:
    slow = {"strong-cnn": 0.5, "strong-resnet18": 2.0}
    first = _study(script, "strong", tmp_path, slow)
    first.carry_out()
    second = _study(script, "strong", tmp_path, {"strong-cnn": 5.0, "strong-resnetv2_50": 4.0}, minutes=20.0)
    second.carry_out()
    assert second.calls == [("trial", ["strong-resnetv2_50"]), ("studies", list(second.plans))]
    for name in slow:
        assert second.plans[name] == first.plans[name]
    with pytest.raises(script.InvalidOption, match=r"its runs of strong-cnn have .* epochs, smoke: False; the same"):
        _study(script, "strong", tmp_path, {}, epochs=2)
    with pytest.raises(script.InvalidOption, match="another --work"):
        _study(script, "strong", tmp_path, {}, smoke=True)
    same = Namespace(**{**vars(first.options), "epochs": first.epochs["strong-cnn"]["epochs"]})
    assert script.Study(same, first.part, [0], 0.0, first.work).epochs == {"strong-cnn": first.epochs["strong-cnn"]}


def test_what_the_recipes_length_has_no_time_for_is_said_first(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = _study(script, "luo", tmp_path, {"luo-honest": 10.0, "luo-as-published": 0.1})
    study._say_what_is_late = lambda *given: (
        study.calls.append("said"),
        type(study)._say_what_is_late(study, *given),
    )
    study.carry_out()
    assert [call if call == "said" else call[0] for call in study.calls] == ["trial", "said", "said", "studies"]
    assert len(study.calls[3][1]) == 2  # begun all the same: runs may end before their last epoch
    (line,) = study.late
    # 100 times 10 seconds for a quarter of the images, 13 - 30 before the first epoch and 8 after the last
    assert line.startswith("luo-honest: 10 runs of up to 100 epochs, 66.5 minutes each and 10 at a time, and 8.")
    assert "about 10 will not be over in time" in line
    assert line in capsys.readouterr().out
    assert "epochs" not in study.plans["luo-honest"].asked["set"]
    cell = study.plans["luo-honest"].cells[0]
    _trial_run(study.work / "studies" / "luo-honest" / "runs" / cell.folder(0), 1.0, 13.0)
    again = _study(script, "luo", tmp_path, {})
    again.carry_out()
    assert [call[0] for call in again.calls] == ["studies"]
    assert again.late[0].startswith("luo-honest: 9 runs")


def test_what_has_finished_is_kept_when_something_breaks(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carry_out(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(script.Study, "carry_out", carry_out)
    words = ["gpu_training.py", "--part", "luo", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        script.main()
    assert json.loads((tmp_path / "out" / "luo.json").read_text())["runs"] == []
    monkeypatch.setattr(sys, "argv", [*words, "--epochs", "3"])
    with pytest.raises(SystemExit):
        script.main()


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
