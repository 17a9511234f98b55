"""The command line: the only room that turns typed words into everything else."""

from ferattn.cli.app import app, main

__all__ = ["app", "main"]
