"""The benchmark suites behind ``ferattn bench``: whole models, attention blocks, and tails of residual blocks."""

from collections.abc import Callable, Iterator

from ferattn.bench import blocks, models, tails
from ferattn.bench.plan import DTYPES, Case, Group, Request
from ferattn.bench.record import environment, new_record, read_record, resume, schema
from ferattn.bench.run import Watcher, run

__all__ = [
    "DTYPES",
    "SUITES",
    "Case",
    "Group",
    "Request",
    "Watcher",
    "environment",
    "new_record",
    "read_record",
    "resume",
    "run",
    "schema",
]

SUITES: dict[str, Callable[[Request], Iterator[Group]]] = {
    "models": models.groups,
    "blocks": blocks.groups,
    "tails": tails.groups,
}
"""The suites by name; each turns a request into groups of cases."""
