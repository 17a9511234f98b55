"""Luo's CNN with and without SE, from two finished runs: the record, the pictures and the section of docs/found.md.

python benchmarks/luo.py runs/cnn runs/cnn_se
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ferattn import create_model
from ferattn.statistics import mcnemar, paired_bootstrap
from ferattn.training import RunFolder

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "luo2023"
PICTURES = ROOT / "docs" / "_static" / "luo2023"
PAGE = ROOT / "docs" / "found.md"
START, END = "<!-- luo2023 -->", "<!-- /luo2023 -->"
PUBLISHED = {"cnn": 68.01, "cnn_se": 69.04}
"""Test accuracy in percent, Luo 2023."""


def record(run: RunFolder) -> dict[str, Any]:
    """Copy what a reader may want to check into the repository, and return the results."""
    name = run.config["model"]
    (RECORDS / name).mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "versions.json", "metrics.csv", "results.json"):
        shutil.copyfile(run.path / file, RECORDS / name / file)
    shutil.copyfile(run.path / "curves.png", PICTURES / f"{name}-curves.png")
    shutil.copyfile(run.path / "confusion-test.png", PICTURES / f"{name}-confusion.png")
    return run.results


def main() -> None:
    """Write records, pictures and the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs=2, help="of cnn and of cnn_se")
    runs = {run.config["model"]: run for run in map(RunFolder, parser.parse_args().runs)}
    found = {name: record(runs[name]) for name in PUBLISHED}
    tests = {name: found[name]["test"] for name in PUBLISHED}
    first = runs["cnn"].predictions("test")
    right = [first.correct, runs["cnn_se"].predictions("test").aligned(first).correct]
    test, interval = mcnemar(*right), paired_bootstrap(*right)
    config = runs["cnn"].config
    commands = [
        f"`ferattn train --recipe luo2023 --set epochs={runs[name].config['recipe']['epochs']} --model {name} --data "
        f"fer2013.zip --out runs/{name} --precision {config['machine']['precision']} --channels-last`"
        for name in PUBLISHED
    ]
    lines = [
        f"{' and '.join(commands)}, then `python benchmarks/luo.py runs/cnn runs/cnn_se`; torch "
        f"{torch.__version__}, one CPU core for each. One seed.",
        "",
        f"{config['data']['images']['train']:,} images to learn from, {config['data']['images']['validation']:,} of "
        f"the training set to choose the epoch on, {tests['cnn']['images']:,} to test on (public and private).",
        "",
        "| model | M par. | epochs | best | training accuracy, % | test accuracy, % | published, % | difference |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, results in found.items():
        rows = [line.split(",") for line in (RECORDS / name / "metrics.csv").read_text().splitlines()]
        at_best = dict(zip(rows[0], rows[1 + results["best_epoch"]], strict=True))
        ends, accuracy = tests[name]["accuracy_interval"], 100 * tests[name]["accuracy"]
        parameters = sum(p.numel() for p in create_model(name).parameters()) / 1e6
        lines.append(
            f"| `{name}` | {parameters:.2f} | {results['epochs']} | {results['best_epoch'] + 1} | "
            f"{100 * float(at_best['train_accuracy']):.2f} | {accuracy:.2f} ({100 * ends['low']:.2f} to "
            f"{100 * ends['high']:.2f}) | {PUBLISHED[name]:.2f} | {accuracy - PUBLISHED[name]:+.2f} |"
        )
    lines += [
        "",
        f"SE over none: {100 * test.difference:+.2f} points, 95 % interval {100 * interval.low:+.2f} to "
        f"{100 * interval.high:+.2f} over images; exact McNemar test, p = {test.p_value:.3f} "
        f"({test.only_b} images that only `cnn_se` gets right, {test.only_a} that only `cnn` does). This compares "
        "two trained networks. It says nothing yet about SE: another seed gives other networks.",
        "",
        "| recall, % | " + " | ".join(tests["cnn"]["classes"]) + " |",
        "|---|" + "--:|" * len(tests["cnn"]["classes"]),
    ]
    for name in PUBLISHED:
        recall = tests[name]["recall"]
        lines.append(f"| `{name}` | " + " | ".join(f"{100 * recall[c]['value']:.1f}" for c in recall) + " |")
    lines += [
        "",
        "![Loss, accuracy and learning rate by epoch](_static/luo2023/cnn_se-curves.png)",
        "",
        "![Confusion matrix](_static/luo2023/cnn_se-confusion.png)",
    ]
    comparison = {"difference": test.difference, "low": interval.low, "high": interval.high, "p_value": test.p_value,
                  "only_a": test.only_a, "only_b": test.only_b, "images": len(right[0])}  # fmt: skip
    (RECORDS / "comparison.json").write_text(json.dumps(comparison, indent=1) + "\n")
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
