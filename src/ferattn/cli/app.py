"""The ``ferattn`` command: collects the command groups and turns our errors into one line and exit code 2."""

from __future__ import annotations

import sys

import typer
from rich.console import Console
from rich.text import Text

from ferattn.errors import FerattnError

__all__ = ["app", "main"]

app = typer.Typer(
    name="ferattn",
    help="Attention-augmented convolutional backbones for facial emotion recognition.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root() -> None:
    """Attention-augmented convolutional backbones for facial emotion recognition."""


def main() -> None:
    """Run the command line; a mistake of the user's ends in one clear line on stderr and exit code 2."""
    try:
        app()
    except FerattnError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(
            Text("error: ", "bold red") + Text(str(error))
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
