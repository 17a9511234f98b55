"""Luo's CNN with and without SE, from finished runs: the record, the pictures and the section of docs/found.md.

    python benchmarks/luo.py runs/cnn runs/cnn_se
    python benchmarks/luo.py runs/cnn_se --called longer

Runs of the recipe and runs of its variant as-published have a section each, and so have either with averaged weights,
and other runs of the same under a name of their own.
In place of a run its folder below ``benchmarks/results`` will do; with one run alone there is no comparison.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from sections import write_section

from ferattn import create_model
from ferattn.statistics import mcnemar, paired_bootstrap
from ferattn.training import RunFolder, load_recipe

ROOT = Path(__file__).parent.parent
PUBLISHED = {"cnn": 68.01, "cnn_se": 69.04}
"""Test accuracy in percent, Luo 2023."""


def record(run: RunFolder, records: Path, pictures: Path) -> dict[str, Any]:
    """Copy what a reader may want to check or to compare with into the repository, and return the results."""
    name = run.config["model"]
    if run.path.resolve() == (records / name).resolve():
        return run.results
    (records / name).mkdir(parents=True, exist_ok=True)
    pictures.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "versions.json", "metrics.csv", "results.json", "predictions-test.npz"):
        shutil.copyfile(run.path / file, records / name / file)
    shutil.copyfile(run.path / "curves.png", pictures / f"{name}-curves.png")
    shutil.copyfile(run.path / "confusion-test.png", pictures / f"{name}-confusion.png")
    return run.results


def protocol_of(run: RunFolder) -> str:
    """The name of the section: the recipe, its variant, and whether weights were averaged."""
    averaged = "averaged" if run.config["recipe"]["ema_decay"] > 0 else None
    return "-".join(filter(None, ["luo2023", run.config["variant"], averaged]))


def command(run: RunFolder) -> str:
    """What was typed, up to paths: the recipe, its variant, and every setting that differs from theirs."""
    config = run.config
    variant = config["variant"]
    usual = load_recipe(config["recipe_name"], "fer2013", variant).to_dict()
    words = [f"--variant {variant}"] if variant else []
    words += [f"--set {key}={value}" for key, value in config["recipe"].items() if value != usual[key]]
    machine, name = config["machine"], config["model"]
    words += ["--model", name, "--data fer2013.zip", f"--out runs/{name}"]
    words += [f"--precision {machine['precision']}"] if machine["precision"] != "fp32" else []
    words += ["--channels-last"] if machine["channels_last"] else []
    return f"`ferattn train --recipe {config['recipe_name']} {' '.join(words)}`"


def compare(runs: dict[str, RunFolder], path: Path) -> str:
    """The run with SE beside the one without: a file, and what to say of it."""
    first = runs["cnn"].predictions("test")
    right = [first.correct, runs["cnn_se"].predictions("test").aligned(first).correct]
    test, interval = mcnemar(*right), paired_bootstrap(*right)
    comparison = {"difference": test.difference, "low": interval.low, "high": interval.high, "p_value": test.p_value,
                  "only_a": test.only_a, "only_b": test.only_b, "images": len(right[0])}  # fmt: skip
    path.write_text(json.dumps(comparison, indent=1) + "\n")
    return (
        f"SE over none: {100 * test.difference:+.2f} points, 95 % interval {100 * interval.low:+.2f} to "
        f"{100 * interval.high:+.2f} over images; exact McNemar test, p = {test.p_value:.3f} "
        f"({test.only_b} images that only `cnn_se` gets right, {test.only_a} that only `cnn` does). This compares "
        "two trained networks. It says nothing yet about SE: another seed gives other networks."
    )


def main() -> None:
    """Write records, pictures and the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="of cnn and of cnn_se, or of one of them")
    parser.add_argument("--called", help="the end of the section's name, for runs beside those that it has")
    words = parser.parse_args()
    runs = {run.config["model"]: run for run in map(RunFolder, words.runs)}
    if not set(runs) <= set(PUBLISHED):
        parser.error(f"one run of each of {', '.join(PUBLISHED)}, please: these are of {', '.join(sorted(runs))}.")
    names = [name for name in PUBLISHED if name in runs]
    protocols = {protocol_of(run) for run in runs.values()}
    if len(protocols) > 1:
        parser.error(f"runs of one protocol, please: these are of {', '.join(sorted(protocols))}.")
    protocol = "-".join(filter(None, [protocols.pop(), words.called]))
    records, pictures = ROOT / "benchmarks" / "results" / protocol, ROOT / "docs" / "_static" / protocol
    found = {name: record(runs[name], records, pictures) for name in names}
    tests = {name: found[name]["test"] for name in names}
    first, any_test = runs[names[0]], tests[names[0]]
    data, cores = first.config["data"], first.versions["threads"]
    chooses = (
        f"the {any_test['images']:,} that are tested on (public and private) choose the epoch too, as far as the "
        "paper says: a figure to put beside the published one, and no honest one"
        if data["select_on"] == data["test_on"]
        else f"{data['images']['validation']:,} of the training set to choose the epoch on, "
        f"{any_test['images']:,} to test on (public and private)"
    )
    called = f" --called {words.called}" if words.called else ""
    lines = [
        f"{' and '.join(command(runs[name]) for name in names)}, then `python benchmarks/luo.py "
        f"{' '.join(f'runs/{name}' for name in names)}{called}`; torch {first.versions['torch']}, "
        f"{'one CPU core' if cores == 1 else f'{cores} CPU cores'}{' for each' if len(names) > 1 else ''}. One seed.",
        "",
        f"{data['images']['train']:,} images to learn from; {chooses}.",
        "",
        "| model | M par. | epochs | best | training accuracy, % | test accuracy, % | published, % | difference |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, results in found.items():
        rows = [line.split(",") for line in (records / name / "metrics.csv").read_text().splitlines()]
        at_best = dict(zip(rows[0], rows[1 + results["best_epoch"]], strict=True))
        ends, accuracy = tests[name]["accuracy_interval"], 100 * tests[name]["accuracy"]
        parameters = sum(p.numel() for p in create_model(name).parameters()) / 1e6
        lines.append(
            f"| `{name}` | {parameters:.2f} | {results['epochs']} | {results['best_epoch'] + 1} | "
            f"{100 * float(at_best['train_accuracy']):.2f} | {accuracy:.2f} ({100 * ends['low']:.2f} to "
            f"{100 * ends['high']:.2f}) | {PUBLISHED[name]:.2f} | {accuracy - PUBLISHED[name]:+.2f} |"
        )
    if len(names) == len(PUBLISHED):
        lines += ["", compare(runs, records / "comparison.json")]
    lines += [
        "",
        "| recall, % | " + " | ".join(any_test["classes"]) + " |",
        "|---|" + "--:|" * len(any_test["classes"]),
    ]
    for name in names:
        recall = tests[name]["recall"]
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * recall[c]['value']:.1f}" for c in recall) + " |")
    lines += [
        "",
        f"![Loss, accuracy and learning rate by epoch](_static/{protocol}/{names[-1]}-curves.png)",
        "",
        f"![Confusion matrix](_static/{protocol}/{names[-1]}-confusion.png)",
    ]
    try:
        write_section("found.md", protocol, "\n".join(lines))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
