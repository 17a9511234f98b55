"""The command line, as a user types it."""

from __future__ import annotations

from typer.testing import CliRunner

from ferattn.cli import app

FAST = ("--set", "epochs=2", "--set", "batch_size=8", "--accelerator", "cpu", "--no-progress", "--no-tensorboard")


def run(*words: object) -> str:
    """Exit code and output; anything but success and a mistake that was told is the test's failure."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exit_code not in (0, 2):
        raise AssertionError(result.output) from result.exception
    return f"{result.exit_code} {result.output}"
