"""A study's plots: accuracy by model, against cost, and against the number of training images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ferattn.cli.study_grid import Cell
    from ferattn.statistics import Summary

__all__ = ["draw_accuracy", "draw_cost", "draw_fractions"]

_MARKERS = {"none": "o", "se": "s", "eca": "^", "cbam": "D"}


def draw_accuracy(found: Mapping[Cell, Summary], path: Path) -> bool:
    """Mean, interval and every seed of each cell; True where there was something to draw."""
    from ferattn.training.pictures import figure_of, save_figure

    figure = figure_of(8, 1.2 + 0.28 * len(found))
    panel = figure.subplots()
    for row, summary in enumerate(found.values()):
        panel.plot(summary.values, [row] * len(summary.values), ".", color="0.6")
        panel.errorbar(summary.mean, row, xerr=_ends(summary), fmt="o", color="C0", capsize=3)
    panel.set_yticks(range(len(found)), [cell.name for cell in found])
    panel.invert_yaxis()
    panel.grid(axis="x", alpha=0.3)
    panel.set(xlabel="test accuracy, percent; mean with 95 % interval, and every seed")
    save_figure(figure, path)
    return True


def draw_cost(found: Mapping[Cell, Summary], cost: Mapping[Cell, tuple[int, int]], path: Path) -> bool:
    """Accuracy against parameters and operations, for models trained on all images."""
    from ferattn.training.pictures import figure_of, save_figure

    whole = {cell: summary for cell, summary in found.items() if cell.fraction == 1}
    if len({cost[cell] for cell in whole}) < 2:
        return False
    figure = figure_of(11, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    groups = list(dict.fromkeys((cell.backbone, cell.placement) for cell in whole))
    for panel, number, unit, label in (
        (panels[0], 0, 1e6, "parameters, millions"),
        (panels[1], 1, 1e9, "operations for one picture, GFLOP"),
    ):
        seen: set[str] = set()
        for cell, summary in whole.items():
            name = f"{cell.backbone} {cell.attention}{'' if cell.placement == 'own' else f' {cell.placement}'}"
            panel.errorbar(
                cost[cell][number] / unit,
                summary.mean,
                yerr=_ends(summary),
                fmt=_MARKERS.get(cell.attention, "o"),
                color=f"C{groups.index((cell.backbone, cell.placement)) % 10}",
                label=None if name in seen else name,
                capsize=2,
                markersize=5,
            )
            seen.add(name)
        panel.set(xlabel=label, xscale="log")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="test accuracy, percent")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right", fontsize=7)
    save_figure(figure, path)
    return True


def draw_fractions(found: Mapping[Cell, Summary], images: Mapping[Cell, int], path: Path) -> bool:
    """Accuracy against the number of training images, for models trained on several."""
    from ferattn.training.pictures import figure_of, save_figure

    lines: dict[str, list[tuple[int, Summary]]] = {}
    for cell, summary in found.items():
        lines.setdefault(cell.network, []).append((images[cell], summary))
    lines = {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items() if len(points) > 1}
    if not lines:
        return False
    figure = figure_of(7, 4.4)
    panel = figure.subplots()
    for name, points in lines.items():
        ends: Any = list(zip(*(_pair(summary) for _, summary in points), strict=True))
        numbers, means = [point[0] for point in points], [summary.mean for _, summary in points]
        panel.errorbar(numbers, means, yerr=ends, marker="o", capsize=3, label=name)
    panel.set(xlabel="training images", ylabel="test accuracy, percent", xscale="log")
    panel.grid(alpha=0.3)
    panel.legend()
    save_figure(figure, path)
    return True


def _pair(summary: Summary) -> tuple[float, float]:
    """How far the interval reaches below and above the mean; nothing with one seed."""
    if summary.interval is None:
        return 0.0, 0.0
    return summary.mean - summary.interval.low, summary.interval.high - summary.mean


def _ends(summary: Summary) -> Any:
    return None if summary.interval is None else [[end] for end in _pair(summary)]
