"""``ferattn published``: the published parameter counts, explained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ferattn.cli.output import require_writable
from ferattn.files import write_atomically

__all__ = ["published"]


def published(
    json: Annotated[Path | None, typer.Option(help="Write the tables to this JSON file.", metavar="FILE")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the tables to this Markdown page.", metavar="FILE")
    ] = None,
) -> None:
    """Print Tables 2, 3, 4, 5 and 7 of Miskow & Altahhan 2022 beside this library's counts."""
    from json import dumps

    from rich.console import Console

    from ferattn.published.report import as_json, as_markdown, as_text
    from ferattn.published.tables import published_tables

    require_writable("--json", json)
    require_writable("--markdown", markdown)
    console = Console(soft_wrap=True)
    with console.status("building the networks"):
        tables = published_tables()
    for block in as_text(tables):
        console.print(block, highlight=False, markup=False)
    if json is not None:
        write_atomically(json, dumps(as_json(tables), indent=1) + "\n")
    if markdown is not None:
        write_atomically(markdown, as_markdown(tables))
