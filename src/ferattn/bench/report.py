"""A record as a table for a terminal, as Markdown, and as a plot of cost against throughput."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ferattn.errors import InvalidOption, MissingDependency

__all__ = ["as_markdown", "block_summary", "columns", "lines", "new_table", "plot", "require_plot"]

Row = Mapping[str, Any]

SPREAD = "x: speed over the first of its group, paired by rounds; ±: half the distance between the quartiles"
"""What the columns mean."""

_MODEL_COLUMNS = ("model", "M par.", "GFLOPs", "images/s", "ms", "MiB", "x plain")
_LOOKS = {None: ("o", "0.35"), "se": ("s", "tab:blue"), "eca": ("^", "tab:green"), "cbam": ("D", "tab:red")}


_FAILED = {"out_of_memory": "no memory", "not_compiled": "not compiled"}


def columns(suite: str, names: Sequence[str]) -> tuple[str, ...]:
    """Headings of a suite's table; ``names`` are those of the cases in one group."""
    if suite == "models":
        return _MODEL_COLUMNS
    return ("group", f"{names[0]} ms", *(f"{name} x" for name in names[1:]), "of copy")


def lines(suite: str, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows of one group as text: a line for each model, but one line for all ways to run a block."""
    if suite == "models":
        return [_model_line(row) for row in rows]
    first, *others = rows
    time = _time(first)
    return [(first["group"], time, *(_short_ratio(row) for row in others), _best_share(rows))]


def new_table(suite: str, title: str, names: Sequence[str]) -> Table:
    """An empty table for a terminal, 80 columns wide when full."""
    table = Table(title=title, title_justify="left", caption=SPREAD, caption_justify="left", box=SIMPLE_HEAD)
    for index, heading in enumerate(columns(suite, names)):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=index == 0)
    return table


def _model_line(row: Row) -> tuple[str, ...]:
    ok = row["status"] == "ok"
    known = ok and row["peak_bytes"] is not None
    return (
        row["name"],
        f"{row['parameters'] / 1e6:.2f}",
        f"{row['flops'] / 1e9:.3f}",
        f"{row['images_per_s']:.0f}" if ok else "-",
        _time(row),
        f"{row['peak_bytes'] / 2**20:.0f}" if known else "-",
        _ratio(row) if ok else "-",
    )


def as_markdown(record: Mapping[str, Any]) -> str:
    """The record as Markdown: what was measured, how and on what, and one table per image size or block."""
    suite, environment = record["suite"], record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment["versions"].items() if value)
    device = environment["device"]
    number = device.get("threads")
    threads = f", {number} thread{'' if number == 1 else 's'}" if number else ""
    text = [
        f"`{record['command']}`",
        "",
        f"{device['name']}{threads}; {versions}; commit {(environment['commit'] or 'unknown')[:12]}; "
        f"started {record['started']}"
        + (f" at a load of {record['load_average']:.1f}" if record["load_average"] is not None else "")
        + ".",
        "",
    ]
    if record["copy_bytes_per_s"]:
        text += [f"Copy bandwidth, measured in the same run: {record['copy_bytes_per_s'] / 1e9:.1f} GB/s.", ""]
    text += _model_tables(record["rows"]) if suite == "models" else _block_tables(record["rows"])
    text += [f"- {note}." for note in record["notes"]]
    return "\n".join(text).rstrip() + "\n"


def block_summary(record: Mapping[str, Any]) -> str:
    """For each block, direction and layout: the speeds over all maps, median and range, as Markdown."""
    names = list(dict.fromkeys(row["name"] for row in record["rows"]))
    body = []
    for attention, members in _grouped(record["rows"], "attention"):
        for step, stepped in _grouped(members, "step"):
            for layout, rows in _grouped(stepped, "memory_format"):
                speeds = {
                    name: [row["ratio"]["median"] for row in rows if row["name"] == name and row.get("ratio")]
                    for name in names[1:]
                }
                body.append(
                    (
                        attention.upper(),
                        step.replace("_", " + "),
                        "NCHW" if layout == "contiguous" else "channels_last",
                        *(_range(values) for values in speeds.values()),
                    )
                )
    headings = ("block", "step", "layout", *(f"{name} x" for name in names[1:]))
    first = f"Speed over {names[0]}, over all maps: median (lowest to highest).\n\n"
    return first + "\n".join(_table(headings, body))


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def require_plot(path: Path) -> None:
    """Complain now, and not after minutes of work, about a plot that cannot be drawn.

    Raises:
        InvalidOption: If the ending is none that is offered.
        MissingDependency: If matplotlib is not installed.
    """
    if path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise InvalidOption(f"--plot {str(path)!r}: end the name in .svg, .png or .pdf")
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependency('--plot needs matplotlib: pip install "ferattn[train]"')


def plot(record: Mapping[str, Any], path: Path) -> None:
    """Draw cost (FLOPs per image) against throughput, one mark per model.

    Args:
        record: A record of the suite "models".
        path: A file whose ending says the format: .svg, .png or .pdf.

    Raises:
        InvalidOption: If there is nothing to draw, or the ending is none that is offered.
        MissingDependency: If matplotlib is not installed.
    """
    rows = [row for row in record["rows"] if row["status"] == "ok" and "flops" in row]
    if not rows:
        raise InvalidOption("nothing to draw: only rows of whole models have a cost and a throughput")
    require_plot(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "ferattn", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for attention in dict.fromkeys(row["attention"] for row in rows):
            marker, colour = _LOOKS.get(attention, ("v", "tab:purple"))
            for library, face in (("ferattn", colour), ("timm", "none")):
                chosen = [row for row in rows if row["attention"] == attention and row["library"] == library]
                if chosen:
                    label = f"{attention.upper() if attention else 'plain'}{', timm' if library == 'timm' else ''}"
                    x, y = [r["flops"] / 1e9 for r in chosen], [r["images_per_s"] for r in chosen]
                    axes.scatter(x, y, s=36, marker=marker, facecolors=face, edgecolors=colour, label=label)
        for row in rows:
            if row["attention"] is None and row["library"] == "ferattn":
                point = row["flops"] / 1e9, row["images_per_s"]
                axes.annotate(row["backbone"], point, xytext=(5, 5), textcoords="offset points", fontsize=8)
        axes.set(xscale="log", yscale="log")
        axes.set(xlabel="GFLOPs per image", ylabel=f"images per second, {rows[0]['step']}")
        axes.set_title(record["environment"]["device"]["name"], fontsize=9)
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend(fontsize=8)
        kind = path.suffix[1:].lower()
        part = path.with_name(f".{path.name}.part")
        try:
            figure.savefig(part, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _ratio(row: Row) -> str:
    ratio = row["ratio"]
    if ratio is None:
        return "-"
    if row["name"] == row["yardstick"]:
        return "1"
    return f"{ratio['median']:.2f}±{(ratio['high'] - ratio['low']) / 2:.2f}"


def _time(row: Row) -> str:
    return _milliseconds(row) if row["status"] == "ok" else _FAILED[row["status"]]


def _milliseconds(row: Row) -> str:
    digits = max(0, 2 - math.floor(math.log10(row["median_ms"])))
    return f"{row['median_ms']:.{digits}f}±{(row['high_ms'] - row['low_ms']) / 2:.{digits}f}"


def _model_tables(rows: Sequence[Row]) -> list[str]:
    text = []
    for size, members in _grouped(rows, "img_size"):
        first = members[0]
        how = f"{first['step']}, {first['mode']}, {first['memory_format']}, {first['dtype']}, batch {first['batch']}"
        text += [f"{size} pixels, {how}:", "", *_table(_MODEL_COLUMNS, map(_model_line, members))]
    return text


def _block_tables(rows: Sequence[Row]) -> list[str]:
    """One table per block: maps down, and for every way to run it its speed over the yardstick."""
    text = []
    for attention, members in _grouped(rows, "attention"):
        names = list(dict.fromkeys(row["name"] for row in members))
        headings = ("pixels", "map", "step", "layout", *columns("blocks", names)[1:])
        body = []
        for _, group in _grouped(members, "group"):
            by_name = {row["name"]: row for row in group}
            first = group[0]
            times = [by_name.get(name) for name in names]
            body.append(
                (
                    str(first["img_size"]),
                    f"{first['channels']}x{first['height']}x{first['height']}",
                    first["step"].replace("_", " + "),
                    "NCHW" if first["memory_format"] == "contiguous" else "channels_last",
                    _time(first),
                    *(_short_ratio(row) for row in times[1:]),
                    _best_share(group),
                )
            )
        text += [f"### {attention.upper()}, batch {members[0]['batch']}, {members[0]['dtype']}", ""]
        text += _table(headings, body)
    return text


def _short_ratio(row: Row | None) -> str:
    if row is None or row["status"] != "ok" or row["ratio"] is None:
        return "-"
    return f"{row['ratio']['median']:.2f}"


def _best_share(rows: Sequence[Row]) -> str:
    """The share of the copy bandwidth that the fastest case reaches, counting only the bytes it cannot avoid."""
    alike = [row for row in rows if row["library"] != "plain"]  # that is the tail without attention
    shares = [row["share_of_copy"] for row in alike if row.get("share_of_copy") is not None]
    return f"{max(shares):.0%}" if shares else "-"


def _grouped(rows: Iterable[Row], column: str) -> list[tuple[Any, list[Row]]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[column], []).append(row)
    return list(found.items())


def _table(headings: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(headings) + " |", "|---" + "|--:" * (len(headings) - 1) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in body), ""]
