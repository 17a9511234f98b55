"""``ferattn data``: what is in a dataset, how to split it, and what its parts share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ferattn.cli.output import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ferattn.data import FaceDataset, LeakReport, Splits

__all__ = ["data_app"]

data_app = typer.Typer(help="Look into datasets, split them, check them for leaks.", no_args_is_help=True)

Root = Annotated[Path, typer.Argument(help="A folder, a zip or a CSV file.")]
Kind = Annotated[
    str | None, typer.Option("--dataset", help="fer2013, ckplus, jaffe or folder; found out if left out.")
]
Skip = Annotated[bool, typer.Option("--skip-bad/--stop-at-bad", help="Report bad files and go on, or stop.")]
Seed = Annotated[int, typer.Option(help="Seed of random splits and samples.")]
Scheme = Annotated[
    str,
    typer.Option(
        help="official, merged-test, random-80-20, random-80-10-10, subject-10-fold or leave-one-subject-out."
    ),
]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result to this file.")]


def _open(root: Path, kind: str | None, skip_bad: bool) -> FaceDataset:
    from ferattn.data import open_dataset

    return open_dataset(root, kind, on_error="skip" if skip_bad else "raise")


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _report_skipped(dataset: FaceDataset, console: Console, limit: int = 20) -> None:
    for entry in dataset.skipped[:limit]:
        console.print(f"skipped {entry.name}: {entry.reason}", style="yellow", markup=False)
    if len(dataset.skipped) > limit:
        console.print(f"... and {len(dataset.skipped) - limit} more skipped", style="yellow")


def _require_apart(root: Path, *targets: Path | None) -> None:
    """Refuse to write over the data."""
    from ferattn.errors import InvalidOption

    for target in targets:
        if target is None or not target.exists():
            continue
        if target.resolve() == root.resolve() or target.resolve().is_relative_to(root.resolve()):
            raise InvalidOption(f"{str(target)!r} belongs to the data in {str(root)!r}; write to another file.")


@data_app.command()
def info(
    root: Root,
    dataset: Kind = None,
    skip_bad: Skip = True,
    sheet: Annotated[Path | None, typer.Option(help="Write a PNG with samples of each class.")] = None,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Count images by class and split; mean and standard deviation; samples of each class on request."""
    from rich.table import Table

    from ferattn.data import contact_sheet, summarize

    _require_apart(root, sheet, json_file)
    console = _console()
    data = _open(root, dataset, skip_bad)
    summary = summarize(data)
    if sheet is not None:
        contact_sheet(data, sheet, seed=seed)
    write_json(json_file, summary)
    counts: dict[str, dict[str, int]] = summary["counts"]
    table = Table(title=f"{summary['dataset']}: {summary['images']} images")
    table.add_column("class")
    for part in counts:
        table.add_column(part, justify="right")
    names = dict.fromkeys(name for part in counts.values() for name in part)
    for name in names:
        table.add_row(name, *(str(part.get(name, 0)) for part in counts.values()))
    table.add_section()
    table.add_row("all", *(str(sum(part.values())) for part in counts.values()))
    console.print(table)
    if summary["subjects"] is not None:
        console.print(f"subjects: {summary['subjects']}")
    sizes = [f"{count} of {size}" for size, count in summary["sizes"].items()]
    console.print(f"width x height x channels: {', '.join(sizes[:5])}{', ...' if len(sizes) > 5 else ''}")
    for part, numbers in summary["statistics"].items():
        console.print(f"pixels of {part}: mean {numbers['mean']:.4f}, standard deviation {numbers['std']:.4f}")
    console.print(f"histogram-equalised: {summary['equalised_share']:.1%} of the images")
    _report_skipped(data, console)


@data_app.command()
def split(
    root: Root,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    scheme: Scheme = "official",
    dataset: Kind = None,
    skip_bad: Skip = False,
    seed: Seed = 0,
) -> None:
    """Divide a dataset and save who is where, with a checksum of the data."""
    from ferattn.data import make_splits, save_splits

    _require_apart(root, out)
    console = _console()
    data = _open(root, dataset, skip_bad)
    splits = make_splits(scheme, data, seed)
    save_splits(splits, data, out)
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.folds[0].items())
    folds = f"{len(splits)} folds, the first: " if len(splits) > 1 else ""
    console.print(f"{out}: {folds}{sizes} ({'honest' if splits.honest else 'as published, not honest'})")
    _report_skipped(data, console)


@data_app.command()
def check(
    root: Root,
    scheme: Scheme = "official",
    split_file: Annotated[Path | None, typer.Option("--split", help="A file of `ferattn data split`.")] = None,
    fold: Annotated[int, typer.Option(help="Which fold to check.")] = 0,
    dataset: Kind = None,
    threshold: Annotated[
        float, typer.Option(help="Correlation from which two images are the same photograph.")
    ] = 0.92,
    skip_bad: Skip = True,
    seed: Seed = 0,
    json_file: JsonFile = None,
) -> None:
    """Find images, near-identical images and people that two parts share; exit code 1 if there are any."""
    from ferattn.data import check_leaks, load_splits, make_splits
    from ferattn.errors import InvalidOption

    _require_apart(root, json_file)
    if split_file is not None and (scheme != "official" or seed != 0):
        raise InvalidOption("--scheme and --seed make a split; with --split FILE they would do nothing.")
    console = _console()
    data = _open(root, dataset, skip_bad)
    splits: Splits = make_splits(scheme, data, seed) if split_file is None else load_splits(split_file, data)
    if not 0 <= fold < len(splits):
        raise InvalidOption(f"--fold {fold}: {splits.scheme} has folds 0 to {len(splits) - 1}.")
    report = check_leaks(data, splits.folds[fold], threshold=threshold)
    write_json(json_file, report.to_dict())
    _print_report(report, console)
    _report_skipped(data, console)
    if report.leaks:
        raise typer.Exit(1)


def _print_report(report: LeakReport, console: Console) -> None:
    from rich.table import Table

    table = Table(title="Images of one part that have a copy in another")
    for column in ("of", "in", "identical", "near", "mirrored", "share"):
        table.add_column(column, justify="left" if column in ("of", "in") else "right")
    for (part, other), kinds in report.counts().items():
        share = sum(kinds.values()) / max(report.sizes[part], 1)
        table.add_row(part, other, *(str(kinds[kind]) for kind in ("identical", "near", "mirrored")), f"{share:.2%}")
    console.print(table)
    for part, count in report.repeated.items():
        if count:
            console.print(f"{part}: {count} of {report.sizes[part]} images repeat an earlier one of the same part")
    if report.label_conflicts:
        console.print(f"{report.label_conflicts} images occur again, pixel for pixel, under another class")
    if report.shared_subjects is None:
        console.print("who is in the images is not known")
    else:
        for pair, people in report.shared_subjects.items():
            shown = ", ".join(people[:10]) + (", ..." if len(people) > 10 else "")
            console.print(f"{pair}: {len(people)} people in both ({shown})")
    console.print("leaks found" if report.leaks else "no leaks found")
