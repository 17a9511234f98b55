"""The ``ferattn`` command: collects the command groups and turns our errors into one line and exit code 2.

Command modules import heavy libraries inside their functions, so that ``ferattn --help`` stays quick.
"""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from ferattn.cli.bench import bench
from ferattn.cli.compare import compare
from ferattn.cli.crop import crop
from ferattn.cli.data import data_app
from ferattn.cli.evaluate import evaluate
from ferattn.cli.explain import explain
from ferattn.cli.export import export
from ferattn.cli.models import models, show
from ferattn.cli.pool import pool
from ferattn.cli.predict import predict
from ferattn.cli.published import published
from ferattn.cli.ship import ship
from ferattn.cli.study import study
from ferattn.cli.train import recipes, train
from ferattn.errors import FerattnError

__all__ = ["app", "main"]


class _FriendlyGroup(TyperGroup):
    """A group in which a mistake of the user's ends in one line on stderr and exit code 2; a warning is a line."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except FerattnError as error:
                _say("error: ", "bold red", str(error))
                raise typer.Exit(2) from error


def _say(kind: str, style: str, message: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(kind, style) + Text(message))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say("warning: ", "bold yellow", str(message))


app = typer.Typer(
    name="ferattn",
    cls=_FriendlyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Attention-augmented convolutional backbones for facial emotion recognition."""


app.command()(models)
app.command()(show)
app.command()(published)
app.command()(bench)
app.add_typer(data_app, name="data")
app.command()(crop)
app.command()(train)
app.command()(recipes)
app.command()(evaluate)
app.command()(predict)
app.command()(explain)
app.command()(export)
app.command()(compare)
app.command()(pool)
app.command()(study)
app.command()(ship)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):  # names of files may be in any encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
