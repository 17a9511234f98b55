"""What is printed and drawn, and that the committed page is what the committed records make."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ferattn.bench import Request, new_record, report
from ferattn.errors import InvalidOption, MissingDependency

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, **more: Any) -> dict[str, Any]:
    return {
        "group": "g", "name": name, "yardstick": "plain", "status": "ok", "library": "ferattn",
        "backbone": "resnet50", "attention": None, "img_size": 48, "batch": 8, "step": "inference", "mode": "eager",
        "memory_format": "contiguous", "dtype": "float32", "parameters": 2_500_000, "flops": 500_000_000,
        "median_ms": 12.345, "low_ms": 12.0, "high_ms": 13.0, "images_per_s": 648.0, "peak_bytes": 3 << 20,
        "ratio": {"median": 0.8, "low": 0.7, "high": 0.9}, **more,
    }  # fmt: skip


def record(suite: str, *rows: dict[str, Any]) -> dict[str, Any]:
    made = new_record(suite, Request(), torch.device("cpu"), "ferattn bench")
    return made | {"rows": list(rows), "notes": ["a note"], "load_average": 0.5}


def test_lines_of_models() -> None:
    assert report.lines("models", [row("plain"), row("se")]) == [
        ("plain", "2.50", "0.500", "648", "12.3±0.5", "3", "1"),
        ("se", "2.50", "0.500", "648", "12.3±0.5", "3", "0.80±0.10"),
    ]


def test_a_line_where_memory_ran_out() -> None:
    lost = {k: v for k, v in row("se").items() if not k.endswith("_ms")} | {"status": "out_of_memory"}
    assert report.lines("models", [lost])[0][3:] == ("-", "no memory", "-", "-")


def test_a_line_where_nothing_compiled() -> None:
    lost = {k: v for k, v in row("se").items() if not k.endswith("_ms")} | {"status": "not_compiled"}
    assert report.lines("models", [lost])[0][3:] == ("-", "not compiled", "-", "-")
    assert report.lines("blocks", [lost])[0][1] == "not compiled"


def test_one_line_for_all_ways_to_run_a_block() -> None:
    rows = [row("plain", share_of_copy=0.2), row("compiled", share_of_copy=0.456)]
    assert report.lines("blocks", rows) == [("g", "12.3±0.5", "0.80", "46%")]
    assert report.columns("blocks", ["plain", "compiled"]) == ("group", "plain ms", "compiled x", "of copy")


def test_a_full_table_fits_into_80_columns() -> None:
    table = report.new_table("models", "title", [])
    for line in report.lines(
        "models", [row("resnetv2_101_cbam", median_ms=1234.5, high_ms=1300.0, parameters=99**4)]
    ):
        table.add_row(*line)
    console = Console(width=80, record=True)
    console.print(table)
    text = console.export_text()
    assert "…" not in text
    assert "resnetv2_101_cbam" in text


def test_markdown_says_how_and_where() -> None:
    made = record("models", row("plain"), row("se"))
    text = report.as_markdown(made)
    assert text.startswith("`ferattn bench`")
    assert f"torch {torch.__version__}" in text
    assert "at a load of 0.5" in text
    assert "48 pixels, inference, eager, contiguous, float32, batch 8:" in text
    assert "| se | 2.50 | 0.500 | 648 | 12.3±0.5 | 3 | 0.80±0.10 |" in text
    assert text.endswith("- a note.\n")


def test_the_summary_of_blocks_shows_losses() -> None:
    rows = [
        row(name, group=str(n), attention="se", ratio={"median": ratio, "low": ratio, "high": ratio})
        for n, speed in enumerate((0.5, 2.0, 4.0))
        for name, ratio in (("plain", 1.0), ("ours", speed))
    ]
    text = report.block_summary(record("blocks", *rows))
    assert "| SE | inference | NCHW | 2.00 (0.50 to 4.00) |" in text


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_plots_are_drawn_and_nothing_else_is_left(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plot.{ending}"
    rows = [row("plain"), row("se", attention="se"), row("timm: se", attention="se", library="timm")]
    report.plot(record("models", *rows), path)
    assert path.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [path]
    if ending == "svg":
        first = path.read_bytes()
        report.plot(record("models", *rows), path)
        assert path.read_bytes() == first
        assert b"resnet50" in first
        assert b"SE, timm" in first


def test_plots_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidOption, match="nothing to draw"):
        report.plot(record("models"), tmp_path / "plot.svg")
    with pytest.raises(InvalidOption, match=r"end the name in \.svg"):
        report.plot(record("models", row("plain")), tmp_path / "plot.txt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"ferattn\[train\]"):
        report.plot(record("models", row("plain")), tmp_path / "plot.svg")
    assert not list(tmp_path.iterdir())


def test_the_page_is_what_the_records_make() -> None:
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page == module.page(), "run: python benchmarks/page.py"
