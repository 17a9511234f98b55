"""``ferattn bench``: parameters, FLOPs, throughput, latency and memory, measured here and now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferattn.cli.output import require_writable
from ferattn.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from ferattn.bench import Group

__all__ = ["bench"]

QUICK_BUDGET_S = 8.0
"""Seconds of sampling per group of the quick run, so that a busy machine is done in time, too."""


def bench(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help='Models or patterns ("resnet50_*"); or "blocks", alone or with the names of blocks, for attention '
            'blocks without a network; or "tails" likewise, for the ends of residual blocks that hold them.'
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    batch: Annotated[int | None, typer.Option(help="Images per call; 32, for blocks and tails 16.")] = None,
    img_size: Annotated[
        list[int] | None,
        typer.Option(help="Pixels; may be given again. 48; blocks 48, 80 and 224, tails the largest map of each."),
    ] = None,
    in_chans: Annotated[int, typer.Option(help="Channels of the images.")] = 1,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 or float16 under autocast.")] = "float32",
    compile: Annotated[
        bool | None,
        typer.Option(help="Under torch.compile, or eager; blocks and tails go both ways."),
    ] = None,
    channels_last: Annotated[
        bool | None, typer.Option(help="Memory format; blocks and tails are run in both by default.")
    ] = None,
    train: Annotated[
        bool | None, typer.Option(help="Training steps, or inference; blocks and tails go both ways.")
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(help="Also time timm's models (timm), or ours with their tails in one (fused, compiled-tails)."),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Three backbones, plain and with each block, in two minutes; or a few tails.")
    ] = False,
    warmup: Annotated[int, typer.Option(help="Calls before the first sample.")] = 3,
    repeats: Annotated[int, typer.Option(help="Samples.")] = 20,
    budget: Annotated[float, typer.Option(help="Seconds of sampling per group at the most.")] = 20.0,
    json: Annotated[
        Path | None, typer.Option(help="Keep the record in this file; an interrupted run goes on.", metavar="FILE")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write tables to this page.", metavar="FILE")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw cost against throughput: .svg, .png or .pdf.", metavar="FILE")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Start anew where the JSON file exists.")] = False,
) -> None:
    """Measure parameters, FLOPs, images per second, latency and peak memory, beside the plain backbone."""
    from json import dumps

    import torch
    from rich.console import Console

    from ferattn import bench as suites
    from ferattn.bench import models, report
    from ferattn.errors import InvalidOption, choose
    from ferattn.measure import copy_bandwidth, resolve_device

    for option, path in (("--json", json), ("--markdown", markdown), ("--plot", plot)):
        require_writable(option, path)
    given = tuple(dict.fromkeys(names or ()))  # what is asked for twice is measured once
    suite = given[0] if given and given[0] in suites.SUITES else "models"
    given = given[1:] if given and given[0] == suite else given
    if quick and (given or suite == "blocks"):
        raise InvalidOption("--quick chooses the models itself; leave out either it or the names")
    if quick and suite == "tails" and img_size:
        raise InvalidOption("--quick chooses the map itself; leave out either it or --img-size")
    if plot is not None and suite != "models":
        raise InvalidOption("--plot draws whole models; blocks and tails have tables")
    if plot is not None:
        report.require_plot(plot)
    where = resolve_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)  # kernels run on the current one
    request = suites.Request(
        names=models.quick_names() if quick and suite == "models" else given,
        device=str(where),
        batch=8 if quick and batch is None else batch,
        img_sizes=tuple(dict.fromkeys(img_size)) if img_size else None,
        in_chans=in_chans,
        dtype=dtype,
        compiled=compile,
        channels_last=channels_last,
        training=train,
        against=tuple(dict.fromkeys(against or ())),
        quick=quick,
        warmup=warmup,
        repeats=repeats,
        budget_s=min(budget, QUICK_BUDGET_S) if quick else budget,
    )
    choose(suites.DTYPES, dtype, "dtype")
    groups = list(suites.SUITES[suite](request))
    record = suites.new_record(suite, request, where, _command(context))
    if json is not None and json.exists() and not overwrite:
        record = suites.resume(suites.read_record(json), record, json)
    if suite == "models":
        record["notes"] = models.missing_counterparts(request)
    elif record["copy_bytes_per_s"] is None:
        record["copy_bytes_per_s"] = copy_bandwidth(where)

    def save(record: Mapping[str, Any]) -> None:
        if json is not None:
            write_atomically(json, dumps(record, indent=1) + "\n")

    console = Console()
    watcher = _Live(console, suite, str(where), groups)
    with watcher:
        suites.run(groups, request, record, save, watcher)
    for note in record["notes"]:
        console.print(note)
    save(record)
    if markdown is not None:
        write_atomically(markdown, report.as_markdown(record))
    if plot is not None:
        report.plot(record, plot)


def _command(context: typer.Context) -> str:
    """What was typed, without the files that were to be written."""
    words = ["ferattn", "bench", *(context.params["names"] or ())]
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if name in ("names", "json", "markdown", "plot", "overwrite") or value in (None, [], (), parameter.default):
            continue
        if isinstance(value, bool):
            words += parameter.opts[:1] if value else parameter.secondary_opts[:1]
        else:
            for item in value if isinstance(value, (list, tuple)) else (value,):
                words += [parameter.opts[0], str(item)]
    return shlex.join(words)


class _Live:
    """The table that grows while the run goes on, with a bar below it."""

    def __init__(self, console: Console, suite: str, device: str, groups: Sequence[Group]) -> None:
        from rich.console import Group as Stack
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        from ferattn.bench.report import new_table

        self.suite = suite
        names = [case.name for case in groups[0].cases]
        self.table = new_table(suite, f"{suite} on {device}", names)
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self.task = self.bar.add_task("starting", total=len(groups))
        self.live = Live(Stack(self.table, self.bar), console=console, refresh_per_second=4)

    def __enter__(self) -> None:
        self.live.start()

    def __exit__(self, *error: object) -> None:
        self.bar.update(self.task, description="done" if error[0] is None else "stopped")
        self.live.stop()

    def group(self, group: Group) -> None:
        """Show whose turn it is."""
        self.bar.update(self.task, description=group.key)

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add the rows of a group."""
        from ferattn.bench.report import lines

        for line in lines(self.suite, rows):
            self.table.add_row(*line)
        if self.suite == "models":
            self.table.add_section()
        self.bar.advance(self.task)
