"""Runs: they learn, they are kept, they resume to the same weights, they stop when they should."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from ferattn.errors import Diverged, InvalidInput, InvalidOption, UnknownChoice
from ferattn.training import Machine, Predictions, RunFolder, fit, fitting
from training import faces

CPU = Machine(accelerator="cpu")


def run(out: Path, *, model: nn.Module | None = None, machine: Machine = CPU, seed: int = 0, **changes) -> RunFolder:
    model = faces.network() if model is None else model
    return fit(model, faces.parts(), faces.recipe(**changes), out, seed=seed, machine=machine)


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    model = faces.network(norm="1.running_mean" in folder._tensors("model.safetensors"))
    folder.load_weights(model)
    return model.state_dict()


def same(a: RunFolder, b: RunFolder) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_learns_and_leaves_everything_behind(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", epochs=5)
    assert folder.finished
    for name in ("config.json", "versions.json", "curves.png", "confusion-test.png", "transform.json"):
        assert (folder.path / name).stat().st_size > 20
    with (folder.path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    results = folder.results
    assert results["test"]["accuracy"] > 0.9
    assert results["temperature"] > 0
    test = folder.predictions("test")
    assert test.correct.mean() == results["test"]["accuracy"]
    model = faces.network(seed=9)
    folder.load_weights(model)
    logits = model.eval()(folder.load_transform()(faces.parts().test.images))
    torch.testing.assert_close(logits.detach(), torch.from_numpy(test.logits))
    assert not list(folder.path.rglob("*.part"))


@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_training_is_what_a_plain_loop_does(tmp_path: Path, decay: float) -> None:
    """Oracle: PyTorch's Adam in a loop over the same order of images."""
    from ferattn.data import SeededSampler

    folder = run(tmp_path / "run", epochs=1, seed=3, ema_decay=decay)
    model, train = faces.network(), faces.parts().train
    optimizer, states = torch.optim.Adam(model.parameters(), lr=0.01), []
    for rows in torch.tensor(list(SeededSampler(64, shuffle=True, seed=3))).split(16):
        loss = nn.functional.cross_entropy(model(train.images[rows] / 255), train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        states.append({key: value.clone() for key, value in model.state_dict().items()})
    expected = states[0]
    for step, state in enumerate(states[1:], 1):
        keep = min(decay, (1 + step) / (10 + step))
        expected = {key: keep * expected[key] + (1 - keep) * state[key] for key in state}
    for key, value in weights(folder).items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.02},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"weight_decay": 0.5},
        {"batch_size": 8},
        {"augmentation": "luo2023"},
        {"augmentation": "strong"},
        {"augmentation": "strong", "mix_off_epochs": 2},
        {"augmentation": "chap2021"},
        {"normalize": "train"},
        {"label_smoothing": 0.1},
        {"clip_norm": 0.01},
        {"schedule": "cosine"},
        {"schedule": "cosine", "warmup_epochs": 1},
        {"schedule": "one-cycle"},
        {"schedule": "steps", "step_epochs": [1], "step_factors": [0.1]},
        {"ema_decay": 0.9},
    ],
)
def test_every_setting_changes_the_run(tmp_path: Path, changes: dict, plain_run: RunFolder) -> None:
    folder = run(tmp_path / "run", **changes)
    assert folder.finished
    rows = [
        path.read_text().splitlines()[-1].split(",")[4:]
        for path in (folder.path / "metrics.csv", plain_run.path / "metrics.csv")
    ]
    assert rows[0] != rows[1]


def rows_of(folder: RunFolder) -> list[dict[str, float]]:
    with (folder.path / "metrics.csv").open() as stream:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]


@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_plateaus_are_pytorchs(tmp_path: Path, monitor: str) -> None:
    changes = {"plateau_monitor": monitor, "plateau_patience": 1, "plateau_factor": 0.3, "lr_min": 0.03}
    rows = rows_of(run(tmp_path / "run", schedule="plateau", lr=0.4, epochs=9, **changes))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    mode = "min" if monitor == "val_loss" else "max"
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, factor=0.3, patience=1, min_lr=0.03)
    for row in rows:
        assert row["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])
        oracle.step(row[monitor])
    assert rows[-1]["lr"] < 0.4


@pytest.mark.parametrize(("keep", "best"), [("val_loss", min), ("val_accuracy", max)])
def test_the_epoch_that_is_kept(tmp_path: Path, keep: str, best: Callable) -> None:
    folder = run(tmp_path / "run", keep=keep, lr=0.3, epochs=8)
    rows = rows_of(folder)
    values = [row[keep] for row in rows]
    kept = folder.results["best_epoch"]
    assert values[kept] == best(values)
    assert folder.results["validation_accuracy"] == pytest.approx(rows[kept]["val_accuracy"])


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run(tmp_path_factory.mktemp("plain") / "run")


def test_seeds_differ_and_repeat(tmp_path: Path, plain_run: RunFolder) -> None:
    assert same(run(tmp_path / "again"), plain_run)
    assert not same(run(tmp_path / "other", seed=1), plain_run)


def test_the_machine_changes_the_numbers_only_a_little(tmp_path: Path, plain_run: RunFolder) -> None:
    folder = run(tmp_path / "bf16", machine=Machine(accelerator="cpu", precision="bf16", channels_last=True))
    assert not same(folder, plain_run)
    assert abs(folder.results["validation_accuracy"] - plain_run.results["validation_accuracy"]) < 0.2
    again = run(tmp_path / "plain", machine=Machine(accelerator="cpu", deterministic=True, tensorboard=True))
    assert same(again, plain_run)
    assert list((again.path / "tensorboard").glob("events*"))


def test_a_run_is_tested_as_its_folder_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 and eager PyTorch, however it was trained; a compiler that adds 1 to all logits gives itself away."""
    from ferattn.training import fitting

    def backend(graph, inputs):
        compiled.append(graph)
        return lambda *given: tuple(out + 1 for out in graph(*given))

    @contextmanager
    def fast(machine):
        speed.append(True)
        yield
        speed.append(False)

    def predict(*given, **options):
        assert not speed[-1]
        return kept(*given, **options)

    compiled, speed, kept = [], [], fitting.predict
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(fitting, "_fast_arithmetic", fast)
    monkeypatch.setattr(fitting, "predict", predict)
    machine = Machine(accelerator="cpu", precision="bf16", compile=True, channels_last=True)
    folder = run(tmp_path / "run", machine=machine, epochs=2)
    torch._dynamo.reset()
    assert compiled
    model = faces.network(seed=9)
    folder.load_weights(model)
    for part in ("validation", "test"):
        again = kept(model, folder.load_transform(), getattr(faces.parts(), part), name=part)
        assert (again.logits == folder.predictions(part).logits).all()


def test_the_figures_at_the_end_repeat_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic up to the last prediction, freed memory kept on a CPU; the process is left as it was."""
    from ferattn.training import fitting

    seen, kept, keeping = [], fitting.predict, []

    def predict(*given, **options):
        seen.append((torch.are_deterministic_algorithms_enabled(), list(keeping)))
        return kept(*given, **options)

    @contextmanager
    def keep():
        keeping.append(True)
        yield
        keeping.clear()

    monkeypatch.setattr(fitting, "predict", predict)
    monkeypatch.setattr(fitting, "keep_freed_memory", keep)
    run(tmp_path / "run", machine=Machine(accelerator="cpu", deterministic=True), epochs=1)
    assert seen == [(True, [True])] * 2
    assert not keeping
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fused_optimizers_do_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, precision: str
) -> None:
    """As on a GPU, clipping included; PyTorch has them on the CPU too."""
    from ferattn.training import module

    changes = {"optimizer": optimizer, "clip_norm": 0.1}
    machine = Machine(accelerator="cpu", precision=precision)
    apart = run(tmp_path / "apart", machine=machine, **changes)
    make, made = module.make_optimizer, []

    def fused(*arguments, **options):
        made.append(make(*arguments, **{**options, "fused": True}))
        return made[-1]

    monkeypatch.setattr(module, "make_optimizer", fused)
    together = run(tmp_path / "together", machine=machine, **changes)
    assert made[0].param_groups[0]["fused"]
    first, second = weights(apart), weights(together)
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_on_a_gpu(tmp_path: Path, compiled: bool) -> None:
    changes = {"augmentation": "strong", "optimizer": "sgd", "schedule": "cosine", "clip_norm": 5.0, "ema_decay": 0.9}
    machine = Machine(accelerator="gpu", precision="bf16", channels_last=True, compile=compiled)
    folder = run(tmp_path / "run", machine=machine, normalize="train", **changes)
    assert folder.finished
    assert torch.get_float32_matmul_precision() == "highest"
    slow = run(tmp_path / "slow", machine=Machine(accelerator="cpu"), normalize="train", **changes)
    gap = abs(float(rows_of(folder)[0]["train_loss"]) - float(rows_of(slow)[0]["train_loss"]))
    assert gap < 0.05


def test_patience_ends_a_run(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", lr=1e-12, patience=2, epochs=30)
    assert folder.results["epochs"] < 30
    accuracy = run(tmp_path / "other", lr=1e-12, patience=2, epochs=30, stop_monitor="val_accuracy")
    assert accuracy.results["epochs"] == 3


class _Killed(BaseException):
    pass


def _interrupt(monkeypatch: pytest.MonkeyPatch, name: str, count: int) -> None:
    """Stop like a power cut at the ``count``-th write of a file."""
    from ferattn.training import callbacks

    write, seen = callbacks.write_atomically, []

    def cut(path: Path, content: bytes) -> None:
        seen.append(path.name == name)
        if sum(seen) == count and seen[-1]:
            raise _Killed
        write(path, content)

    monkeypatch.setattr(callbacks, "write_atomically", cut)


def _kill(*_: object, **__: object) -> None:
    raise _Killed


SETTINGS = {
    "plain": {},
    "steps": {"schedule": "steps", "step_epochs": (2,), "step_factors": (0.1,), "ema_decay": 0.8},
    "plateau": {"schedule": "plateau", "plateau_patience": 0, "lr": 0.05},
    "averaged": {"ema_decay": 0.8, "augmentation": "strong", "optimizer": "sgd", "schedule": "cosine"},
    "one-cycle": {"schedule": "one-cycle"},
    "patient": {"patience": 1, "lr": 0.1, "epochs": 8},
}


def _model() -> nn.Module:
    return faces.network(norm=True, dropout=0.3)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """A run that nothing interrupted, for each of the settings: made once, for every way of interrupting one."""
    made: dict[str, RunFolder] = {}

    def whole(settings: str) -> RunFolder:
        if settings not in made:
            out = tmp_path_factory.mktemp(settings)
            made[settings] = run(out / "whole", model=_model(), **{"epochs": 4} | SETTINGS[settings])
        return made[settings]

    return whole


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("name", "count"), [("best.ckpt", 1), ("last.ckpt", 2), ("metrics.csv", 3)])
def test_an_interrupted_run_ends_in_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_runs: Callable[[str], RunFolder],
    settings: str,
    name: str,
    count: int,
) -> None:
    changes = {"epochs": 4} | SETTINGS[settings]
    whole = whole_runs(settings)
    with monkeypatch.context() as patch:
        _interrupt(patch, name, count)
        try:
            run(tmp_path / "cut", model=_model(), **changes)
        except _Killed:
            assert not RunFolder(tmp_path / "cut").finished
    resumed = run(tmp_path / "cut", model=_model(), **changes)
    assert same(whole, resumed)
    first, second = ([row | {"seconds": 0.0} for row in rows_of(folder)] for folder in (whole, resumed))
    assert first == second


@pytest.mark.parametrize("settings", ["plain", "plateau", "steps"])
@pytest.mark.parametrize(
    ("first", "name", "count"), [(9, "last.ckpt", 2), (2, "predictions", 1), (3, "metrics.csv", 3)]
)
def test_more_epochs_or_fewer_while_it_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_runs: Callable[[str], RunFolder],
    settings: str,
    first: int,
    name: str,
    count: int,
) -> None:
    """Interrupted within its epochs, or after the last one, it ends as a run that was always to have four."""
    whole = whole_runs(settings)
    with monkeypatch.context() as patch:
        if name == "predictions":
            patch.setattr(fitting, "_predict", _kill)
        else:
            _interrupt(patch, name, count)
        with pytest.raises(_Killed):
            run(tmp_path / "cut", model=_model(), **{"epochs": 4} | SETTINGS[settings] | {"epochs": first})
    with pytest.warns(UserWarning, match=f"cut: epochs=4 in place of {first}"):
        resumed = run(tmp_path / "cut", model=_model(), **{"epochs": 4} | SETTINGS[settings])
    assert same(whole, resumed)
    assert whole.config == resumed.config
    assert resumed.versions["epochs_before"] == [first]
    assert len(rows_of(resumed)) == 4 != first


def test_epochs_that_may_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        _interrupt(patch, "last.ckpt", 3)
        with pytest.raises(_Killed):
            run(tmp_path / "run", epochs=9)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InvalidOption, match=r"recipe\.epochs was 9, now 2, and the run has 3 epochs behind it"):
        run(tmp_path / "run", epochs=2)
    with pytest.raises(
        InvalidOption, match=r"another config; recipe\.lr was 0\.01, now 0\.5; recipe\.epochs was 9, now 4"
    ):
        run(tmp_path / "run", epochs=4, lr=0.5)
    assert (tmp_path / "run" / "config.json").read_bytes() == before
    with pytest.warns(UserWarning, match="epochs=3 in place of 9"):
        run(tmp_path / "run", epochs=3)
    with pytest.raises(InvalidOption, match=r"now 5, and the run has finished and was tested.*--warm-start"):
        run(tmp_path / "run", epochs=5)
    for number, planned in enumerate(({"schedule": "cosine"}, {"schedule": "one-cycle"}, {"mix_off_epochs": 1})):
        planned = {"augmentation": "strong"} | planned
        with monkeypatch.context() as patch:
            _interrupt(patch, "last.ckpt", 1)
            with pytest.raises(_Killed):
                run(tmp_path / str(number), epochs=3, **planned)
        with pytest.raises(InvalidOption, match=r"recipe\.epochs was 3, now 4, and its recipe depends on how many"):
            run(tmp_path / str(number), epochs=4, **planned)


def test_a_run_whose_folder_was_moved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its best epoch was one of those before: the folder's name does not matter."""
    changes = {"epochs": 8, "lr": 0.3, "keep": "val_loss"}
    whole = run(tmp_path / "whole", **changes)
    best = whole.results["best_epoch"]
    assert best < 6
    with monkeypatch.context() as patch:
        _interrupt(patch, "metrics.csv", 7)
        with pytest.raises(_Killed):
            run(tmp_path / "cut", **changes)
    (tmp_path / "cut").rename(tmp_path / "moved")
    moved = run(tmp_path / "moved", **changes)
    assert moved.results["best_epoch"] == best
    assert same(whole, moved)


def test_slurm_is_asked_for_no_checkpoints_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's are written in the middle of an epoch, and what goes on from there is another run."""
    import signal

    from ferattn.training import fitting

    whole, found = run(tmp_path / "whole"), []
    for name, value in {
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "x",
        "SLURM_NODELIST": "n",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(name, "0")
    make = fitting._trainer

    def trainer(*given):
        found.append(make(*given))
        return found[-1]

    monkeypatch.setattr(fitting, "_trainer", trainer)
    before = signal.getsignal(signal.SIGUSR1)
    assert same(whole, run(tmp_path / "slurm"))
    environment = found[0]._accelerator_connector.cluster_environment
    assert (type(environment).__name__, environment.auto_requeue) == ("SLURMEnvironment", False)
    assert signal.getsignal(signal.SIGUSR1) == before


def test_the_learning_rate_in_the_table_is_the_epochs(tmp_path: Path) -> None:
    rows = rows_of(run(tmp_path / "run", schedule="steps", step_epochs=[1, 2], step_factors=[0.5, 0.1], lr=0.04))
    assert [row["lr"] for row in rows] == pytest.approx([0.04, 0.02, 0.004])


def test_a_mistake_before_the_first_step_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="no group_matcher"):
        run(tmp_path / "run", layer_decay=0.5, optimizer="adamw")
    folder = run(tmp_path / "run", optimizer="adamw")
    assert folder.finished
    assert folder.config["recipe"]["layer_decay"] == 1


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", epochs=1)
    config = json.loads((folder.path / "config.json").read_text())
    del config["recipe"]["distill_weight"]
    (folder.path / "config.json").write_text(json.dumps(config))
    assert run(tmp_path / "run", epochs=1).finished
    with pytest.raises(InvalidOption, match=r"recipe\.distill_weight was 0\.9, now 0\.5\."):
        run(tmp_path / "run", epochs=1, distill_weight=0.5)
    config["recipe"]["gone"] = 1  # a setting that there is no more may have done anything
    (folder.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidOption, match=r"recipe\.gone was 1, now None"):
        run(tmp_path / "run", epochs=1)


SCRIPT = """
import sys, pathlib, torch
torch.set_num_threads({threads})  # another number of threads rounds otherwise
sys.path[:0] = {paths!r}
from training import test_fitting
test_fitting.run(pathlib.Path(sys.argv[1]), epochs=40, lr=0.003)
"""


@pytest.mark.parametrize("times", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment(tmp_path: Path, times: int) -> None:
    """Kill the process again and again, a little later each time, until it finishes."""
    script = SCRIPT.format(paths=[str(Path(__file__).parents[1]), *sys.path], threads=torch.get_num_threads())
    whole = run(tmp_path / "whole", epochs=40, lr=0.003)
    kills = 0
    for attempt in range(30):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "cut")],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        progress = tmp_path / "cut" / "metrics.csv"
        seen = progress.stat().st_mtime_ns if progress.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if progress.exists() and progress.stat().st_mtime_ns != seen and attempt < times:
                time.sleep(0.037 * attempt)
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        if process.wait() == 0:
            break
    assert kills >= max(1, times - 1)
    assert same(whole, RunFolder(tmp_path / "cut"))


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert run(tmp_path / "run").results == folder.results
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    run(tmp_path / "run")
    with pytest.raises(InvalidOption, match=r"seed was 0, now 1; recipe\.lr was 0\.01, now 0\.02"):
        run(tmp_path / "run", lr=0.02, seed=1)
    changed = replace(faces.parts(), train=faces.faces(64, 7))
    with pytest.raises(InvalidOption, match=r"sha256\.train"):
        fit(faces.network(), changed, faces.recipe(), tmp_path / "run", machine=CPU)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidOption, match="not empty and not a run"):
        run(tmp_path / "full")


def test_one_process_at_a_time_trains_into_a_folder(tmp_path: Path) -> None:
    """Until the first checkpoint is there nothing else would tell another run."""
    said = []

    class Intruder(nn.Sequential):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if not said:
                with pytest.raises(InvalidOption, match="another process is writing there") as caught:
                    run(tmp_path / "run", seed=1, lr=0.5)
                said.append(str(caught.value))
            return super().forward(images)

    folder = run(tmp_path / "run", model=Intruder(*faces.network()))
    assert str(folder.path) in said[0]
    assert (folder.config["seed"], folder.config["recipe"]["lr"]) == (0, 0.01)
    assert not list(folder.path.glob(".*"))


def test_what_a_kill_leaves_behind_is_no_other_thing(tmp_path: Path, plain_run: RunFolder) -> None:
    """At the very first file, and at a checkpoint; in a folder that is no run nothing is touched."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / ".abc.part").write_text("half")
    assert same(run(tmp_path / "first"), plain_run)
    assert not list((tmp_path / "first").rglob("*.part"))
    (tmp_path / "mine").mkdir()
    for name in (".abc.part", "config.json", "thesis.tex"):
        (tmp_path / "mine" / name).write_text("{}")
    with pytest.raises(InvalidOption, match="another config"):
        run(tmp_path / "mine")
    assert sorted(file.name for file in (tmp_path / "mine").iterdir()) == [".abc.part", "config.json", "thesis.tex"]


def test_a_finished_run_gives_its_weights_to_the_model(tmp_path: Path) -> None:
    first, again = faces.network(), faces.network(seed=9)
    run(tmp_path / "run", model=first)
    run(tmp_path / "run", model=again)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    )


class _Poisoned(nn.Module):
    """A network whose output is no number from the given batch on."""

    def __init__(self, healthy: int) -> None:
        super().__init__()
        self.inner, self.left = faces.network(), healthy

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.left -= 1
            if self.left < 0:
                return self.inner(x) * float("nan")
        return self.inner(x)


def test_nan_stops_with_step_and_rate_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        Diverged, match=r"not finite at step 6 \(epoch 1\), learning rate 0\.01.*kept: .*last\.ckpt\.$"
    ):
        run(tmp_path / "run", model=_Poisoned(6))
    kept = torch.load(RunFolder(tmp_path / "run").last, weights_only=True)
    assert kept["epoch"] == 0
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_nan_says_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step 2 \(epoch 0\).*clip_norm\. There is no checkpoint yet\.$"):
        run(tmp_path / "first", model=_Poisoned(2))
    assert not list(tmp_path.rglob("*.ckpt"))
    seldom = Machine(accelerator="cpu", checkpoint_epochs=4)  # as with --no-checkpoints
    with pytest.raises(Diverged, match=r"The best epoch before is kept, .*best\.ckpt, and no checkpoint to go on"):
        run(tmp_path / "later", model=_Poisoned(6), machine=seldom)
    assert [path.name for path in tmp_path.rglob("*.ckpt")] == ["best.ckpt"]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    move = os.replace

    def full(source, target):
        if str(target).endswith("last.ckpt"):
            raise OSError(28, "No space left on device")
        return move(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InvalidOption, match=r"last\.ckpt: cannot be written \(No space left"):
        run(tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.part"))


def test_checkpoints_every_few_epochs_resume_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"epochs": 5, "ema_decay": 0.8, "optimizer": "sgd", "schedule": "cosine"}
    machine = Machine(accelerator="cpu", checkpoint_epochs=2)
    whole = run(tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        _interrupt(patch, "metrics.csv", 4)
        with pytest.raises(_Killed):
            run(tmp_path / "cut", machine=machine, **changes)
    assert torch.load(RunFolder(tmp_path / "cut").last, weights_only=True)["epoch"] == 1
    resumed = run(tmp_path / "cut", machine=machine, **changes)
    assert same(whole, resumed)
    assert len(rows_of(resumed)) == resumed.results["epochs"] == 5
    never = run(tmp_path / "never", machine=Machine(accelerator="cpu", checkpoint_epochs=9), **changes)
    assert same(whole, never)
    assert not never.last.exists()


def test_class_weights_are_used(tmp_path: Path) -> None:
    uneven = faces.parts()
    uneven = replace(uneven, train=uneven.train.subset([row for row in range(64) if row % 4 or row < 16]))
    made = [
        fit(faces.network(), uneven, faces.recipe(class_weights=on), tmp_path / str(on), machine=CPU)
        for on in (False, True)
    ]
    assert not same(*made)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"batch_size": 65}, InvalidOption, "only 64 training images"),
        ({"normalize": "model"}, InvalidOption, "no pretrained_cfg"),
        ({"layer_decay": 0.5, "optimizer": "adamw"}, InvalidOption, "no group_matcher"),
        ({"augmentation": "stronk"}, UnknownChoice, "did you mean 'strong'"),
        ({"augmentation": "chap2021", "normalize": "train"}, InvalidOption, "normalize='train'"),
        ({"augmentation": "chap2021", "size": 12}, InvalidOption, "size=12"),
    ],
)
def test_mistakes_are_told_before_training(tmp_path: Path, changes: dict, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        run(tmp_path / "run", **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="there are 0"):
        run(tmp_path / "run", machine=Machine(accelerator="gpu"))


def test_machines_are_checked() -> None:
    wrong = [
        ({"precision": "fp23"}, "fp32"),
        ({"devices": 0}, "devices=0"),
        ({"checkpoint_epochs": 0}, "checkpoint_epochs=0"),
        ({"accelerator": "x"}, "cpu"),
    ]
    for options, said in wrong:
        with pytest.raises((UnknownChoice, InvalidOption), match=said):
            Machine(**options)


def test_damaged_and_missing_runs_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(InvalidInput, match="Is it the folder of a run"):
        _ = folder.config
    with pytest.raises(InvalidInput, match="not finished"):
        _ = folder.results
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInput, match="damaged"):
        _ = folder.config
    (tmp_path / "model.safetensors").write_bytes(b"xx")
    with pytest.raises(InvalidInput, match="damaged"):
        folder.load_weights(faces.network())
    (tmp_path / "p.npz").write_bytes(b"PK")
    with pytest.raises(InvalidInput, match="no file of predictions"):
        Predictions.load(tmp_path / "p.npz")
    (tmp_path / "transform.json").write_text(json.dumps({"kind": "standardize"}))
    with pytest.raises(InvalidInput, match="damaged"):
        folder.load_transform()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_a_damaged_checkpoint_is_told(tmp_path: Path, content: bytes) -> None:
    folder = run(tmp_path / "run", epochs=1)
    (folder.path / "results.json").unlink()
    folder.last.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"last\.ckpt: the checkpoint cannot be read"):
        run(tmp_path / "run", epochs=1)
