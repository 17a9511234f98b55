"""Curves of a run and its confusion matrix as PNG files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ferattn.errors import MissingDependency
from ferattn.files import write_atomically

__all__ = ["draw_confusion", "draw_curves", "figure_of", "save_figure"]


def draw_curves(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Loss, accuracy and learning rate by epoch."""
    figure = figure_of(12, 3.6)
    panels = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    for panel, title, names in (
        (panels[0], "loss", ("train_loss", "val_loss")),
        (panels[1], "accuracy", ("train_accuracy", "val_accuracy")),
        (panels[2], "learning rate", ("lr",)),
    ):
        for name in names:
            panel.plot(
                epochs, [row.get(name, float("nan")) for row in rows], label=name.partition("_")[0], marker="."
            )
        panel.set(title=title, xlabel="epoch")
        if len(names) > 1:
            panel.legend()
    save_figure(figure, path)


def draw_confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str, path: Path) -> None:
    """Share of each true class (row) that was called each class (column), with the number of images."""
    figure = figure_of(6.4, 5.6)
    panel = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    image = panel.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    for row, line in enumerate(matrix):
        for column, count in enumerate(line):
            share = shares[row][column]
            color = "white" if share > 0.5 else "black"
            panel.text(column, row, f"{share:.0%}\n{count}", ha="center", va="center", fontsize=7, color=color)
    panel.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    panel.set_yticks(range(len(classes)), classes)
    panel.set(xlabel="said", ylabel="true", title=title)
    figure.colorbar(image, ax=panel, label="share of the true class")
    save_figure(figure, path)


def figure_of(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency('pictures need matplotlib: pip install "ferattn[train]"') from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, completely or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
