"""``ferattn crop IN OUT``: the faces of a folder or zip of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["crop"]

_PICTURES = "Pictures"
_DETECTION = "Detection"
_CROPS = "Crops"


def crop(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of pictures, or a zip of them.")],
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder, or one to go on with.")],
    detector: Annotated[
        str,
        typer.Option(help="auto, yunet, yolo5face, cascade or none.", rich_help_panel=_DETECTION),
    ] = "auto",
    weights: Annotated[
        Path | None,
        typer.Option(help="ONNX file of yunet or yolo5face.", rich_help_panel=_DETECTION),
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Leave out faces with a lower confidence.", rich_help_panel=_DETECTION),
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(help="Enlarge smaller pictures to so many pixels.", rich_help_panel=_DETECTION),
    ] = None,
    max_side: Annotated[
        int | None,
        typer.Option(help="Shrink larger pictures to so many pixels.", rich_help_panel=_DETECTION),
    ] = None,
    border: Annotated[
        float | None,
        typer.Option(help="Border around the picture, as a share of it.", rich_help_panel=_DETECTION),
    ] = None,
    several: Annotated[
        str,
        typer.Option(
            help="Several faces: take the largest, the best (by score), or drop the picture.",
            rich_help_panel=_DETECTION,
        ),
    ] = "largest",
    no_face: Annotated[
        str,
        typer.Option(help="No face: drop the picture, or take the whole.", rich_help_panel=_DETECTION),
    ] = "drop",
    size: Annotated[int, typer.Option(help="Height and width of a crop in pixels.", rich_help_panel=_CROPS)] = 80,
    margin: Annotated[
        float, typer.Option(help="Added around the face, as a share of it.", rich_help_panel=_CROPS)
    ] = 0.1,
    square: Annotated[bool, typer.Option(help="Widen the face's box to a square.", rich_help_panel=_CROPS)] = True,
    align: Annotated[bool, typer.Option(help="Level the eyes where they are known.", rich_help_panel=_CROPS)] = True,
    color: Annotated[str, typer.Option(help="gray or rgb.", rich_help_panel=_CROPS)] = "gray",
    padding: Annotated[str, typer.Option(help="Beyond the picture: edge or black.", rich_help_panel=_CROPS)] = "edge",
    illumination: Annotated[
        list[str] | None,
        typer.Option(help="gamma, emboss, lbp or histogram; may be repeated.", rich_help_panel=_CROPS),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads; one per processor if not given.", rich_help_panel=_PICTURES)
    ] = None,
) -> None:
    """Cut the faces out of all pictures of a folder or zip, keeping its folders.

    OUT gets a PNG for each picture with a face, and crop_report.csv with a line for every file: kept or
    dropped, and why. Interrupt it as you like: the same command goes on where it stopped. IN is never written
    to.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ferattn.faces.folders import crop_folder

    asked: dict[str, Any] = {
        "weights": weights,
        "min_score": min_score,
        "min_side": min_side,
        "max_side": max_side,
        "border": border,
    }
    console = Console(highlight=False, soft_wrap=True)
    progress = Progress(
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = progress.add_task("cropping")

    def start(description: str, total: int) -> None:
        console.print(f"detector: {description}", markup=False)
        progress.update(task, total=total)
        progress.start()  # not before: an option that is refused should leave one line, not a bar

    try:
        summary = crop_folder(
            source,
            destination,
            detector=detector,
            detector_options={name: value for name, value in asked.items() if value is not None},
            size=size,
            margin=margin,
            square=square,
            align=align,
            color=color,  # type: ignore[arg-type]  # checked by crop_folder, which lists the options
            padding=padding,  # type: ignore[arg-type]
            illumination=illumination or (),
            several=several,  # type: ignore[arg-type]
            no_face=no_face,  # type: ignore[arg-type]
            workers=workers,
            on_start=start,
            on_done=lambda _: progress.advance(task),
        )
    finally:
        if progress.live.is_started:
            progress.stop()
    _print_summary(console, summary)


def _print_summary(console: Any, summary: Any) -> None:
    from rich.table import Table

    table = Table("files", "number")
    table.add_row("kept", str(summary.kept))
    if summary.copied:
        table.add_row("copied: labels", str(summary.copied))
    for reason, number in sorted(summary.dropped.items()):
        table.add_row(f"dropped: {reason}", str(number))
    console.print(table)
    if summary.readable:
        console.print(
            f"{summary.detector} found a face in {summary.with_face} of {summary.readable} readable pictures "
            f"({summary.found_share:.1%})",
            markup=False,
        )
    if summary.resumed:
        console.print(f"{summary.resumed} files were done before", markup=False)
    console.print(f"{summary.seconds:.1f} s, report: {summary.report}", markup=False)
