"""Training studies for one GPU and a few minutes each; see docs/studies.md.

    PYTHONPATH=src python benchmarks/gpu_training.py --part strong --minutes 9 --data fer2013.zip --out results

A part trains its grids (``benchmarks/studies``) in many processes on the one GPU, fits the number of epochs to the
time there is where the protocol leaves them open, stops before the limit, and leaves a few small files in ``--out``:
figures as JSON, a report with plots, every prediction, every run's config and history, the weights of ``strong``.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shutil
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ferattn.cli.jobs import build_model
from ferattn.cli.study import carry_out_study
from ferattn.cli.study_grid import Cell, Grid, load_grid
from ferattn.cli.workers import gpus
from ferattn.data import open_dataset
from ferattn.errors import FerattnError, InvalidOption
from ferattn.training import Recipe, RunFolder, evaluate, load_recipe, make_parts, predict

STUDIES = Path(__file__).parent / "studies"
LARGEST = 15_500_000  # bytes of one file in --out
TESTED = ("dataset", "images", "accuracy", "accuracy_interval", "macro_f1", "nll", "ece", "confusion_matrix")
OF_A_RUN = ("validation_accuracy", "best_epoch", "epochs", "seconds", "honest")
AFTER = 8.0  # seconds that a run takes for its test, intervals and pictures
SHARE = 0.25  # of the training images, in trials
ENOUGH = 32 * 2**30  # bytes of free memory that make it the place for the runs' checkpoints
MOST = 8  # files in --out
READY = 25.0  # seconds to start Python and read the images
RESERVE = 50.0  # seconds for the report, and for the runs' own last figures


@dataclass(frozen=True)
class Part:
    """What one call trains.

    Attributes:
        grids: Names of files in ``benchmarks/studies``; they run side by side.
        workers: Processes for each of them.
        fit: Whether the epochs are fitted to the time, and not the recipe's.
        seeds: Seeds for which there must be time, where epochs are fitted.
        most: Epochs at most.
        views: Whether the test is repeated with ten crops.
    """

    grids: tuple[str, ...]
    workers: tuple[int, ...]
    fit: bool = True
    seeds: int = 1
    most: int = 200
    views: bool = False


PARTS = {
    "strong": Part(("strong-cnn", "strong-resnet18", "strong-resnetv2_50"), (3, 1, 1), views=True),
    "luo": Part(("luo-honest", "luo-as-published"), (10, 10), fit=False),
    "grid": Part(("grid",), (16,), seeds=3, most=30),
    "relu_elu": Part(("relu_elu",), (16,), seeds=5, most=60),
    "sizes": Part(("sizes",), (16,), seeds=3, most=60),
}


def main() -> None:
    """Carry out one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", required=True, choices=[*PARTS, "speed"])
    parser.add_argument("--data", required=True, type=Path, help="FER2013 as a zip, CSV or folder")
    parser.add_argument("--out", required=True, type=Path, help="where the results go")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything, from start to end")
    parser.add_argument("--epochs", type=int, help="so many, instead of fitting them to the time")
    parser.add_argument("--workers", type=int, help="processes for each grid")
    parser.add_argument("--only", help="one grid of the part")
    parser.add_argument("--teacher", action="append", default=[], help="see `ferattn train --help`; for every run")
    parser.add_argument("--work", type=Path, help="folder of the runs, to go on with; by default a temporary one")
    parser.add_argument("--smoke", action="store_true", help="140 images, one epoch, two models, on the CPU")
    options = parser.parse_args()
    begun = time.monotonic()
    if not options.data.exists():
        parser.error(f"--data {options.data}: not there.")
    if options.minutes * 60 <= RESERVE and not options.smoke:
        parser.error(f"--minutes {options.minutes:g}: more than {RESERVE / 60:.1f} are needed.")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == "speed":
        end = begun + 60 * options.minutes - RESERVE
        speed(options.data, options.out / "speed.json", math.inf if options.smoke else end, smoke=options.smoke)
        return
    part = PARTS[options.part]
    chosen = [number for number, name in enumerate(part.grids) if options.only in (None, name)]
    if options.epochs and not part.fit:
        parser.error(f"--epochs {options.epochs}: the part {options.part} keeps its recipe's.")
    if not chosen:
        parser.error(f"--only {options.only}: the part {options.part} has {', '.join(part.grids)}.")
    with tempfile.TemporaryDirectory(dir=in_memory()) as temporary:
        try:
            study = Study(options, part, chosen, begun, options.work or Path(temporary))
        except InvalidOption as error:
            parser.error(str(error))
        try:
            study.carry_out()
        finally:  # what has finished is kept, whatever happened
            study.collect()


def absolute(teacher: str) -> str:
    """Where a run is, for processes that start elsewhere; the name of a model as it is."""
    return str(Path(teacher).resolve()) if Path(teacher).is_dir() else teacher


class Study:
    """The grids of one part, from plans to results."""

    def __init__(self, options: argparse.Namespace, part: Part, chosen: list[int], begun: float, work: Path) -> None:
        self.options, self.part, self.work = options, part, work
        reserve = 0.0 if options.smoke else RESERVE * (1.5 if part.views else 1.0)
        self.end = begun + 60 * options.minutes - reserve
        self.begun, self.said, self.late = begun, list[str](), list[str]()
        self.plans: dict[str, Grid] = {}
        self.workers: dict[str, int] = {}
        self.epochs: dict[str, dict[str, Any]] = {}
        for number in chosen:
            name = part.grids[number]
            plan = replace(load_grid(STUDIES / f"{name}.toml"), data=options.data.resolve())
            for teacher in options.teacher:
                plan = replace(plan, options=(*plan.options, "--teacher", absolute(teacher)))
            if options.smoke:
                plan = tiny(plan)
            self.plans[name] = plan
            self.workers[name] = options.workers or (1 if options.smoke else part.workers[number])
            self._recall(name)

    def carry_out(self) -> None:
        """See how long everything takes, fit the epochs to the time or say what is too long for it, then train."""
        self._fit_epochs()
        plans = {name: plan for name, plan in self.plans.items() if name in self.epochs}
        left = self.end - time.monotonic()
        for name in plans:
            self._say_what_is_late(name, left)
        failed = self._side_by_side(plans, self.end, "studies")
        self.said += [f"{name}: {line}" for name, lines in failed.items() for line in lines]

    def _recall(self, name: str) -> None:
        """Take the epochs that an earlier call with the same --work found: with others its runs would be others."""
        path = self.work / f"plan-{name}.json"
        if not path.exists():
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        asked = {"smoke": self.options.smoke, "epochs": self.options.epochs or found["epochs"]}
        if asked != {key: found[key] for key in asked}:
            raise InvalidOption(
                f"--work {self.work}: its runs of {name} have {found['epochs']} epochs, smoke: {found['smoke']}; "
                "the same, please, or another --work."
            )
        self.epochs[name] = found

    def _side_by_side(self, plans: Mapping[str, Grid], end: float, folder: str) -> dict[str, list[str]]:
        failed: dict[str, list[str]] = {name: [] for name in plans}

        def one(name: str) -> None:
            minutes = max(0.01, (end - time.monotonic()) / 60)
            try:
                failed[name] = carry_out_study(
                    plans[name], self.work / folder / name, workers=self.workers[name], minutes=minutes
                )
            except FerattnError as error:
                failed[name] = [str(error)]

        threads = [threading.Thread(target=one, args=(name,)) for name in plans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failed

    def _fit_epochs(self) -> None:
        """Train two epochs of everything, all at once as later, and see how many there is time for."""
        new = [name for name in self.plans if name not in self.epochs]
        if self.options.epochs:
            self.epochs |= {name: {"epochs": self.options.epochs} for name in new}
        elif new:
            trial = {name: self._trial(self.plans[name]) for name in new}
            share = 1.0 if self.options.smoke else 0.4  # of the time
            failed = self._side_by_side(trial, self.begun + 60 * self.options.minutes * share, "trial")
            self.said += [f"trial of {name}: {line}" for name, lines in failed.items() for line in lines]
            left = self.end - time.monotonic()
            for name in new:
                self._fit_one(name, trial[name], left)
        for name in new:
            if name in self.epochs:
                self.epochs[name] |= {"smoke": self.options.smoke} | ({"epochs": 1} if self.options.smoke else {})
                self.work.mkdir(parents=True, exist_ok=True)
                write_json(self.work / f"plan-{name}.json", self.epochs[name])
        for name, found in self.epochs.items():
            if self.part.fit:
                self.plans[name] = self.plans[name].changed(schedule(found["epochs"]))

    def _trial(self, plan: Grid) -> Grid:
        """Two short epochs of everything, as many runs at once as later."""
        cells = tuple(replace(cell, fraction=SHARE * cell.fraction) for cell in plan.cells)
        one_seed = len(cells) > 1 and (self.part.fit or self.options.smoke)
        return replace(plan.changed(schedule(2)), cells=cells, seeds=plan.seeds[: 1 if one_seed else None])

    def _fit_one(self, name: str, trial: Grid, left: float) -> None:
        """Epochs for which there is time, from the second epoch of each trial run and what came before the first.

        Without a trial run that has finished the grid is left out, and the others go on.
        """
        seconds, before = [], []
        for cell in trial.cells:
            for seed in trial.seeds:
                run = RunFolder(self.work / "trial" / name / "runs" / cell.folder(seed))
                if run.finished:
                    rows = history(run)
                    seconds.append(float(rows[-1]["seconds"]) / SHARE)
                    before.append(run.results["seconds_of_last_call"] - sum(float(row["seconds"]) for row in rows))
        if not seconds:
            self._say(self.said, f"{name}: left out, no trial run has finished in time")
            return
        plan = self.plans[name]
        runs = len(plan.cells) * (len(plan.seeds) if len(plan.cells) == 1 else self.part.seeds)
        rounds = max(1.0, runs / self.workers[name])
        epoch, rest = float(np.mean(seconds)), float(np.mean(before)) + AFTER
        longest = max(seconds) / epoch if rounds > 1 else 1.0
        # A run that is not over in time is lost; with several rounds it is one of many.
        share = 0.75 if rounds == 1 else 0.85
        found = (share * (left - READY) / rounds - rest) / epoch / (1 + 0.3 * (longest - 1) / rounds)
        epochs = int(min(self.part.most, max(3, found))) if self.part.fit else recipe_of(plan).epochs
        self.epochs[name] = {"epochs": epochs, "seconds_each": epoch, "seconds_beside": rest, "runs": runs}
        self.epochs[name] |= {"fitted": found} if self.part.fit else {}

    def _say_what_is_late(self, name: str, left: float) -> None:
        """Before anything starts: how many of the runs can hardly be over in time."""
        found, plan = self.epochs[name], self.plans[name]
        if "seconds_each" not in found:  # --epochs: nothing was tried
            return
        todo = len(plan.seeds) * len(plan.cells) - len(finished(plan, self.work / "studies" / name))
        one = found["epochs"] * found["seconds_each"] + found["seconds_beside"]
        rounds = (left - READY) / one
        over = todo - (int(self.workers[name] * rounds) if rounds >= 1 else 0)
        if over > 0:
            self._say(
                self.late,
                f"{name}: {todo} runs of up to {found['epochs']} epochs, {one / 60:.1f} minutes each and "
                f"{self.workers[name]} at a time, and {left / 60:.1f} minutes left: about {over} will not be over in "
                "time. What has finished is kept, and the same call with --work does the others.",
            )

    @staticmethod
    def _say(where: list[str], line: str) -> None:
        where.append(line)
        print(line, flush=True)

    def collect(self) -> None:
        """Write what there is into --out: the most important first."""
        out, part = self.options.out, self.options.part
        runs = {name: finished(plan, self.work / "studies" / name) for name, plan in self.plans.items()}
        content: dict[str, Any] = {
            "part": part,
            **machine(),
            "minutes": self.options.minutes,
            "seconds": time.monotonic() - self.begun,
            "workers": self.workers,
            "teachers": self.options.teacher,
            "epochs": {name: plan.asked["set"].get("epochs") for name, plan in self.plans.items()},
            "trial": self.epochs,
            "runs": [entry for name, found in runs.items() for entry in figures(name, found)],
            "missing": [
                f"{name}: {cell.folder(seed)}"
                for name, plan in self.plans.items()
                for seed in plan.seeds
                for cell in plan.cells
                if (cell, seed) not in runs[name]
            ],
            "expected_late": self.late,
            "failed": self.said,
        }
        write_json(out / f"{part}.json", content)
        write_predictions(runs, out / f"{part}-predictions.npz")
        write_runs(runs, out / f"{part}-runs.zip")
        if part == "strong":
            keep_best(runs.get("strong-cnn", {}), out / "strong-cnn_se.safetensors")
        if self.part.views:
            content["views"] = self._views(runs)
            content["seconds"] = time.monotonic() - self.begun
            write_json(out / f"{part}.json", content)
        pictures = []
        for name in self.plans:
            for kind in ("accuracy", "cost", "fractions"):
                source = self.work / "studies" / name / f"{kind}.png"
                if source.exists() and len(list(out.iterdir())) < MOST - 1:
                    shutil.copy(source, out / f"{name}-{kind}.png")
                    pictures.append(source)
        (out / f"{part}.md").write_text(self._report(content), encoding="utf-8")
        print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")

    def _views(self, runs: Mapping[str, Mapping[tuple[Cell, int], RunFolder]]) -> list[dict[str, Any]]:
        """The official test again with ten crops; stops when time is up."""
        rows: list[dict[str, Any]] = []
        images: dict[str, Any] = {}
        for found in runs.values():
            for (cell, seed), run in found.items():
                if time.monotonic() > self.end + RESERVE / 2 and not self.options.smoke:
                    self.said.append(f"no time for the ten crops of {cell.folder(seed)}")
                    continue
                config = run.config
                recipe = Recipe().changed(config["recipe"])
                if not images:
                    dataset = open_dataset(self.options.data, None)
                    parts = make_parts(dataset, recipe, limit=config["limit"])
                    images = {"test": parts.test, "label": parts.label}
                model = build_model(cell.model, recipe, classes=len(config["data"]["classes"]), pretrained=False)
                run.load_weights(model)
                model.to("cuda" if torch.cuda.is_available() else "cpu")
                test = images["test"]
                said = predict(model, run.load_transform(), test, name=images["label"], kind="ten-crop")
                crops = evaluate(said)
                rows.append(
                    {
                        "model": cell.model,
                        "seed": seed,
                        "plain": run.results["test"]["accuracy"],
                        "ten_crop": crops["accuracy"],
                        "ten_crop_interval": crops["accuracy_interval"],
                    }
                )
        return rows

    def _report(self, content: Mapping[str, Any]) -> str:
        lines = [
            f"# {self.options.part}",
            "",
            f"{content['device']}, torch {content['torch']}, {content['seconds']:.0f} s in all, "
            f"{len(content['runs'])} runs, {len(content['missing'])} missing.",
        ]
        for name, plan in self.plans.items():
            report = self.work / "studies" / name / "report.md"
            lines += ["", f"Grid {name}: {self.workers[name]} processes, settings {dict(plan.asked['set'])}."]
            if report.exists():
                text = report.read_text(encoding="utf-8")
                for kind in ("accuracy", "cost", "fractions"):
                    text = text.replace(f"({kind}.png)", f"({name}-{kind}.png)")
                lines += ["", text.replace("\n#", "\n##").replace("# ", "## ", 1).strip()]
        if content.get("views"):
            lines += ["", "## Ten crops, beside the plain figures", "", "| model | seed | plain | ten crops |"]
            lines += ["|---|---|---|---|"]
            for row in content["views"]:
                plain, crops = 100 * row["plain"], 100 * row["ten_crop"]
                lines.append(f"| {row['model']} | {row['seed']} | {plain:.2f} | {crops:.2f} |")
        for title in ("expected_late", "missing", "failed"):
            if content[title]:
                lines += [
                    "",
                    f"## All that is {title.replace('_', ' ')}",
                    "",
                    *(f"- {entry}" for entry in content[title]),
                ]
        return "\n".join(lines) + "\n"


def in_memory() -> Path | None:
    """Where checkpoints need not reach a disk, if there is room."""
    memory = Path("/dev/shm")
    return memory if gpus() and memory.is_dir() and shutil.disk_usage(memory).free > ENOUGH else None


def tiny(plan: Grid) -> Grid:
    """The same kind of grid, small enough for a CPU."""
    smallest = {"vgg16": "cnn", "resnet50": "resnet18", "resnetv2_50": "resnetv2_18"}
    cells = [replace(cell, backbone=smallest.get(cell.backbone, cell.backbone)) for cell in plan.cells]
    fractions = sorted({cell.fraction for cell in cells})
    kept = [cell for cell in cells if cell.fraction in (fractions[-1], fractions[len(fractions) // 2])]
    kept = [
        cell for cell in kept if cell.backbone == kept[0].backbone and cell.attention in (kept[0].attention, "se")
    ]
    words = ("--accelerator", "cpu", "--no-tensorboard", "--limit", "140")
    options = [word for word in plan.options if word not in ("--precision", "bf16", "--channels-last")]
    plan = replace(plan, cells=tuple(kept[:2]), seeds=plan.seeds[: min(2, len(kept))], options=(*options, *words))
    small = replace(plan, asked={**plan.asked, "limit": 140})
    return small.changed({"epochs": 1, "batch_size": 64, "ema_decay": 0.0, "stem": "own"})


def schedule(epochs: int) -> dict[str, Any]:
    """The settings that depend on the number of epochs."""
    return {"epochs": epochs, "warmup_epochs": min(5, epochs // 6), "mix_off_epochs": min(20, epochs // 8)}


def recipe_of(plan: Grid) -> Recipe:
    """What a grid trains by on FER2013."""
    return load_recipe(plan.recipe, "fer2013", plan.asked["variant"]).changed(plan.asked["set"])


def finished(plan: Grid, folder: Path) -> dict[tuple[Cell, int], RunFolder]:
    """The runs that have finished."""
    found = {
        (cell, seed): RunFolder(folder / "runs" / cell.folder(seed)) for seed in plan.seeds for cell in plan.cells
    }
    return {key: run for key, run in found.items() if run.finished}


def history(run: RunFolder) -> list[dict[str, str]]:
    """The rows of a run's metrics."""
    with (run.path / "metrics.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def figures(grid: str, runs: Mapping[tuple[Cell, int], RunFolder]) -> list[dict[str, Any]]:
    """What is said of each run in the JSON."""
    entries = []
    for (cell, seed), run in runs.items():
        results, config = run.results, run.config
        images = config["data"]["images"]["train"]
        fastest = min(float(row["seconds"]) for row in history(run))
        entries.append(
            {
                "grid": grid,
                "model": cell.model,
                "fraction": cell.fraction,
                "seed": seed,
                "test": {name: results["test"][name] for name in TESTED},
                "training_images_per_s": images / fastest,
                **{name: results[name] for name in OF_A_RUN},
            }
        )
    return entries


def write_predictions(runs: Mapping[str, Mapping[tuple[Cell, int], RunFolder]], path: Path) -> None:
    """Logits of every run on its test images, in half precision; classes alone where that would be too large."""
    content: dict[str, Any] = {}
    for name, found in runs.items():
        for (cell, seed), run in found.items():
            said = run.predictions(run.config["data"]["test_on"])
            content.setdefault(f"{name}/ids", np.array(said.ids, dtype=str))
            content.setdefault(f"{name}/labels", said.labels.astype(np.uint8))
            content[f"{name}/{cell.folder(seed)}"] = said.logits.astype(np.float16)
    for attempt in range(2):
        if attempt:
            content = {key: value.argmax(1).astype(np.uint8) if value.ndim == 2 else value
                       for key, value in content.items()}  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        if buffer.tell() <= LARGEST:
            break
    path.write_bytes(buffer.getvalue())


def write_runs(runs: Mapping[str, Mapping[tuple[Cell, int], RunFolder]], path: Path) -> None:
    """Config, versions, results, history and transform of every run."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, found in runs.items():
            for run in found.values():
                for file in ("config.json", "versions.json", "results.json", "metrics.csv", "transform.json"):
                    archive.write(run.path / file, f"{name}/{run.path.name}/{file}")


def keep_best(runs: Mapping[tuple[Cell, int], RunFolder], path: Path) -> None:
    """The weights of the run that was best on the images that chose its epoch, never on the test."""
    from safetensors.torch import load_file, save_file

    if not runs:
        return
    (cell, seed), best = max(runs.items(), key=lambda item: item[1].results["validation_accuracy"])
    tensors = load_file(best.path / "model.safetensors")
    half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    about = {"model": cell.model, "seed": str(seed), "transform": (best.path / "transform.json").read_text()}
    about |= {"recipe": json.dumps(best.config["recipe"]), "classes": json.dumps(best.config["data"]["classes"])}
    save_file(half, path, metadata=about)


def machine() -> dict[str, Any]:
    """Where this ran."""
    device = torch.cuda.get_device_name() if gpus() else "cpu"
    return {"device": device, "torch": torch.__version__, "python": sys.version.split()[0]}


def speed(data: Path, out: Path, end: float, *, smoke: bool) -> None:
    """Milliseconds a step of single processes alone, and where a step waits for the GPU.

    Written after every model: compiling takes minutes, and the whole may be stopped. None is begun that would not
    be over by ``end`` if it took as long as the longest so far.
    """
    from ferattn.training import Machine, fit

    models = ("cnn_se",) if smoke else ("cnn_se", "resnet18_cbam", "resnet50_cbam_elu", "resnetv2_50_cbam_elu")
    changes = {"epochs": 2, "warmup_epochs": 0, "mix_off_epochs": 0, "stem": "own"}
    changes |= {"batch_size": 32} if smoke else {}
    recipe = load_recipe("strong", "fer2013").changed(changes)
    parts = make_parts(open_dataset(data, None), recipe, limit=140 if smoke else None)
    rows, waits, longest = list[dict[str, Any]](), Counter[str](), 0.0
    for compiled in (False,) if smoke else (False, True):
        for name in models:
            start = time.monotonic()
            if start + longest > end:
                print(f"no time for {name}, compiled: {compiled}")
                continue
            how = Machine(
                accelerator="cpu" if smoke else "auto",
                precision="fp32" if smoke else "bf16",
                channels_last=not smoke,
                compile=compiled,
                checkpoint_epochs=10,
            )
            torch.manual_seed(0)
            model = build_model(name, recipe, classes=len(parts.train.classes), pretrained=False)
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if gpus() and not compiled:
                    torch.cuda.set_sync_debug_mode("warn")
                try:
                    run = fit(model, parts, recipe, Path(folder) / "run", machine=how)
                finally:
                    if gpus():
                        torch.cuda.set_sync_debug_mode("default")
                seconds = float(history(run)[-1]["seconds"])
            waits.update(f"{w.filename}:{w.lineno}" for w in caught if "synchroniz" in str(w.message))
            steps = len(parts.train) // recipe.batch_size
            rows.append({"model": name, "compiled": compiled, "ms_per_step": 1e3 * seconds / steps})
            print(rows[-1])
            longest = max(longest, time.monotonic() - start)
            found = {"steps": rows, "waits_for_the_gpu": dict(waits.most_common(20))}
            write_json(out, {**machine(), **found, "batch_size": recipe.batch_size})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
