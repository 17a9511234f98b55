"""What a study found: a table, a report beside the published figures, and plots."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferattn.cli.study_plots import draw_accuracy, draw_cost, draw_fractions

if TYPE_CHECKING:
    from ferattn.cli.study_grid import Cell, Grid
    from ferattn.statistics import Interval, Summary
    from ferattn.training import RunFolder

    Finished = Mapping[tuple[Cell, int], RunFolder]

__all__ = ["costs", "summaries", "write_report"]

_COLUMNS = {"FER2013": "fer2013", "CK+": "ck_plus", "JAFFE": "jaffe"}
"""Columns of the published Table 7 by our datasets."""


def write_report(
    finished: Finished,
    plan: Grid,
    out: Path,
    *,
    failed: Sequence[str] = (),
    missing: Sequence[str] = (),
    cost: Mapping[Cell, tuple[int, int]] | None = None,
) -> None:
    """Write ``table.csv``, ``report.md`` and the plots.

    Args:
        finished: The run of each cell and seed, those that have finished.
        plan: The grid.
        out: Where to.
        failed: What went wrong, a line for each run.
        missing: Names of the runs that have not finished.
        cost: What :func:`costs` gives; by default it is asked now.
    """
    from ferattn.files import write_atomically

    found, cost = summaries(finished, plan), costs(finished, cost)
    write_atomically(out / "table.csv", _table(finished, cost).encode())
    pictures = []
    if draw_accuracy(found, out / "accuracy.png"):
        pictures.append("accuracy.png")
    if draw_cost(found, cost, out / "cost.png"):
        pictures.append("cost.png")
    if draw_fractions(found, _training_images(finished), out / "fractions.png"):
        pictures.append("fractions.png")
    lines = _introduction(finished, plan)
    lines += _accuracies(found, cost)
    lines += _published(found, cost, finished)
    lines += ["", "## Attention against none, activation and placement against the first, by seed", ""]
    lines += _comparisons(finished, plan)
    if pictures:
        lines += ["", "## Plots", "", *(f"![{name.partition('.')[0]}]({name})" for name in pictures)]
    for title, entries in (("Failed", failed), ("Missing", missing)):
        lines += ["", f"## {title}", "", *(f"- {entry}" for entry in entries)] if entries else []
    write_atomically(out / "report.md", ("\n".join(lines) + "\n").encode())


def summaries(finished: Finished, plan: Grid) -> dict[Cell, Summary]:
    """Test accuracy of each cell over its seeds, in percent."""
    from ferattn.statistics import summarize

    found = {}
    for cell in plan.cells:
        runs = [finished[cell, seed] for seed in plan.seeds if (cell, seed) in finished]
        if runs:
            found[cell] = summarize([100 * run.results["test"]["accuracy"] for run in runs])
    return found


def costs(finished: Finished, known: Mapping[Cell, tuple[int, int]] | None = None) -> dict[Cell, tuple[int, int]]:
    """Parameters, and operations for one picture, of each cell's model as its runs built it."""
    from ferattn.cli.jobs import build_model
    from ferattn.measure import count
    from ferattn.shapes import shapes_only
    from ferattn.training import Recipe

    found = dict(known or {})
    for (cell, _), run in finished.items():
        if cell in found:
            continue
        config = run.config
        recipe = Recipe().changed(config["recipe"])
        with shapes_only():
            model = build_model(cell.model, recipe, classes=len(config["data"]["classes"]), pretrained=False)
        counted = count(model, (recipe.channels, recipe.size, recipe.size))
        found[cell] = (counted.parameters, counted.flops)
    return found


def _training_images(finished: Finished) -> dict[Cell, int]:
    return {cell: run.config["data"]["images"]["train"] for (cell, _), run in finished.items()}


def _table(finished: Finished, cost: Mapping[Cell, tuple[int, int]]) -> str:
    columns = [
        "backbone",
        "attention",
        "activation",
        "placement",
        "fraction",
        "seed",
        "model",
        "accuracy",
        "macro_f1",
        "nll",
        "ece",
    ]
    columns += ["validation_accuracy", "best_epoch", "epochs", "seconds", "images", "honest", "parameters", "flops"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for (cell, seed), run in finished.items():
        results = run.results
        row: dict[str, Any] = {"backbone": cell.backbone, "attention": cell.attention, "activation": cell.activation}
        row |= {"placement": cell.placement, "fraction": cell.fraction, "seed": seed, "model": cell.model}
        row |= {name: results["test"][name] for name in ("accuracy", "macro_f1", "nll", "ece", "images")}
        row |= {name: results[name] for name in ("validation_accuracy", "best_epoch", "epochs", "seconds", "honest")}
        row |= dict(zip(("parameters", "flops"), cost[cell], strict=True))
        writer.writerow(row)
    return buffer.getvalue()


def _introduction(finished: Finished, plan: Grid) -> list[str]:
    some = next(iter(finished.values()))
    test = some.results["test"]
    counts = sorted(set(_training_images(finished).values()))
    few = f"{counts[0]} to " if len(counts) > 1 else ""
    dishonest = sum(not run.results["honest"] for run in finished.values())
    return [
        f"# {plan.recipe} on {test['dataset']}",
        "",
        f"{test['images']} test images, {few}{counts[-1]} training images, seeds "
        f"{', '.join(map(str, plan.seeds))}. Accuracy in percent; every seed is printed, none is chosen.",
        "",
        *_not_honest(dishonest, len(finished)),
        *_taught(some.config),
    ]


def _not_honest(runs: int, of: int) -> list[str]:
    if not runs:
        return []
    return [
        f"Not honest: {runs} of {of} runs have seen their test images, or may have seen the people in them, or chose "
        "their epoch on them; their accuracy may be too good.",
        "",
    ]


def _taught(config: Mapping[str, Any]) -> list[str]:
    """Whose answers every run has learnt from; the runs of a report have the same teachers."""
    if "teachers" not in config:
        return []
    told = [
        f"{'weights of no known run' if of is None else of['model']} (SHA-256 {origin['sha256'][:12]})"
        for origin in config["teachers"]
        for of in [origin["config"]]
    ]
    recipe = config["recipe"]
    return [
        f"Learnt from the answers of {', '.join(told)} too: weight {recipe['distill_weight']:g}, temperature "
        f"{recipe['distill_temperature']:g}.",
        "",
    ]


def _accuracies(found: Mapping[Cell, Summary], cost: Mapping[Cell, tuple[int, int]]) -> list[str]:
    whole, usual = all(cell.fraction == 1 for cell in found), all(cell.placement == "own" for cell in found)
    lines = [
        f"| backbone | attention |{'' if usual else ' placement |'} activation "
        f"|{'' if whole else ' training images |'} mean | standard deviation "
        "| 95 % interval of the mean | parameters, M | GFLOP | seeds |",
        f"|---|---|{'' if usual else '---|'}---|{'' if whole else '---|'}---|---|---|---|---|---|",
    ]
    for cell, summary in found.items():
        ends = "-" if summary.interval is None else f"{summary.interval.low:.2f} to {summary.interval.high:.2f}"
        std = "-" if summary.interval is None else f"{summary.std:.2f}"
        points = ", ".join(f"{value:.2f}" for value in summary.values)
        share = "" if whole else f"{100 * cell.fraction:g} % | "
        parameters, flops = cost[cell]
        place = "" if usual else f"{cell.placement} | "
        lines.append(
            f"| {cell.backbone} | {cell.attention} | {place}{cell.activation} | {share}{summary.mean:.2f} | {std} "
            f"| {ends} | {parameters / 1e6:.2f} | {flops / 1e9:.3f} | {points} |"
        )
    return lines


def _published(found: Mapping[Cell, Summary], cost: Mapping[Cell, tuple[int, int]], finished: Finished) -> list[str]:
    """Tables 1 and 7 of Miskow & Altahhan 2022 beside ours, where the grid has their rows."""
    from ferattn.published.tables import printed_figures
    from ferattn.training.folder import recipe_label

    printed = printed_figures()
    config = next(iter(finished.values())).config
    dataset = config["data"]["dataset"]
    whole = {
        (cell.backbone, cell.attention, cell.activation): cell
        for cell in found
        if cell.fraction == 1 and cell.placement == "own"
    }
    rows: dict[str, list[str]] = {"table7": [], "table1": []}
    column = _COLUMNS.get(dataset)
    for entry in printed["table7"]:
        cell = whole.get((entry["backbone"], entry["attention"] or "none", entry["activation"]))
        if cell is not None and column is not None:
            rows["table7"].append(
                f"| {cell.backbone} | {cell.attention} | {entry['params_millions']:.2f} | {cost[cell][0] / 1e6:.2f} "
                f"| {entry[column]:.2f} | {_told(found[cell])} |"
            )
    for activation, accuracy in printed["table1"].items():
        names = (activation, "own") if activation == "relu" else (activation,)  # a ResNet's own is ReLU
        cells = [whole[key] for name in names if (key := ("resnet50", "none", name)) in whole]
        rows["table1"] += [f"| {activation} | {accuracy:.2f} | {_told(found[cell])} |" for cell in cells]
    lines = []
    if rows["table7"]:
        lines += ["", "## Beside Table 7 of Miskow & Altahhan 2022", ""]
        lines += [
            f"Published on {dataset}, the highest of three runs on CK+ and JAFFE. Ours: the recipe "
            f"{recipe_label(config['recipe_name'])}, tested on {config['data']['test_on']}, mean of the seeds with "
            "its interval. "
            "Where protocol and training differ, differences between rows can be compared, levels cannot.",
            "",
            "| backbone | attention | parameters published, M | ours, M | accuracy published | ours |",
            "|---|---|---|---|---|---|",
            *rows["table7"],
        ]
    if len(rows["table1"]) > 1:
        lines += ["", "## Beside Table 1 of Miskow & Altahhan 2022", ""]
        lines += [
            f"ResNet-50 without attention; published on CK+, ours on {dataset}.",
            "",
            "| activation | accuracy published (CK+) | ours |",
            "|---|---|---|",
            *rows["table1"],
        ]
    return lines


def _told(summary: Summary) -> str:
    if summary.interval is None:
        return f"{summary.mean:.2f} (one seed)"
    return f"{summary.mean:.2f} ({summary.interval.low:.2f} to {summary.interval.high:.2f})"


def _comparisons(finished: Finished, plan: Grid) -> list[str]:
    from ferattn.errors import InvalidInput
    from ferattn.statistics import hierarchical_bootstrap, holm, paired_t, sign_flip

    tests, t_tests, rows = {}, {}, {}
    units: set[str] = set()

    def compare(pair: tuple[Cell, Cell]) -> None:
        a, b = pair
        seeds = [seed for seed in plan.seeds if (a, seed) in finished and (b, seed) in finished]
        if len(seeds) < 2:
            return
        test_on = finished[a, seeds[0]].config["data"]["test_on"]
        first = [finished[a, seed].predictions(test_on) for seed in seeds]
        second = [finished[b, seed].predictions(test_on).aligned(first[0]) for seed in seeds]
        first = [one.aligned(first[0]) for one in first]
        right = [[one.correct for one in side] for side in (first, second)]
        interval = hierarchical_bootstrap(right[0], right[1], clusters=first[0].clusters)
        name = f"{b.name} - {a.name}"
        before, after = ([float(one.mean()) for one in side] for side in right)
        tests[name] = sign_flip(before, after)
        over_seeds = "-"
        with suppress(InvalidInput):  # all differences are the same
            t_tests[name] = paired_t(before, after)
            over_seeds = _ends(t_tests[name].interval)
        rows[name] = f"{100 * interval.value:+.2f} | {over_seeds} | {_ends(interval)} | {len(seeds)}"
        units.add(first[0].unit)

    pairs = _pairs(plan.cells)
    with ThreadPoolExecutor() as pool:  # NumPy lets others work while it multiplies
        list(pool.map(compare, pairs))
    if not tests:
        return ["Needs at least two seeds of two cells that differ in one thing."]
    corrected = holm({name: test.p_value for name, test in tests.items()})
    # Where there is no t test, it counts as a comparison that found nothing.
    by_t = holm({name: t_tests[name].p_value if name in t_tests else 1.0 for name in tests})
    lines = [
        "Intervals of 95 %: paired t over the seeds, and a bootstrap over seeds and images, which is too narrow with "
        "few seeds. Each test's p after Holm's correction of all comparisons. The t test takes the differences for "
        "normal; the sign flip does not, but so many seeds allow it no p below the least possible.",
        "",
        f"| difference | points | paired t | seeds and {', '.join(sorted(units))} | seeds | p (paired t) "
        "| after Holm | p (sign flip) | after Holm | least possible |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (f"{b.name} - {a.name}" for a, b in pairs):
        if name not in tests:
            continue
        test = tests[name]
        lines.append(
            f"| {name} | {rows[name]} "
            + (f"| {t_tests[name].p_value:.4f} | {by_t[name].adjusted:.4f} " if name in t_tests else "| - | - ")
            + f"| {test.p_value:.4f} | {corrected[name].adjusted:.4f} "
            f"| {min(1.0, len(tests) * test.smallest_p):.4f} |"
        )
    return lines


def _ends(interval: Interval) -> str:
    return f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}"


def _pairs(cells: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    """Each attention with none, each activation and each placement with the first, all else alike."""
    from dataclasses import replace

    first = cells[0].activation
    place = next((cell.placement for cell in cells if cell.attention != "none"), "own")
    pairs = []
    for cell in cells:
        plain = replace(cell, attention="none", placement="own")
        if cell.attention != "none" and plain in cells:
            pairs.append((plain, cell))
        if cell.attention != "none" and cell.placement != place:
            pairs.append((replace(cell, placement=place), cell))
        if cell.activation != first:
            pairs.append((replace(cell, activation=first), cell))
    return pairs
