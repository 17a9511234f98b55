"""The parts of documentation pages that benchmarks write: between ``<!-- name -->`` and ``<!-- /name -->``."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"


def write_section(page: str, name: str, text: str) -> None:
    """Put a text between the marks of a section.

    Args:
        page: The page's file in ``docs``.
        name: Of the section.
        text: What is to stand there.

    Raises:
        ValueError: If the page has no such section.
    """
    path, start, end = DOCS / page, f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found_start, rest = path.read_text(encoding="utf-8").partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise ValueError(f"{path} has no place {start} ... {end}.")
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
