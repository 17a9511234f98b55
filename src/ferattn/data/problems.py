"""What to do with a file or row that cannot be used: stop at once, or skip it, say so, and go on."""

from __future__ import annotations

from typing import NamedTuple

from ferattn.errors import InvalidInput, choose

__all__ = ["ON_ERROR", "Problems", "Skipped"]

ON_ERROR = {"raise": True, "skip": False}
"""``on_error`` of every reader: stop at the first problem, or collect it and go on."""


class Skipped(NamedTuple):
    """Something that was left out, and why."""

    name: str
    reason: str


class Problems:
    """Collects what a reader could not use.

    Args:
        on_error: ``"raise"`` turns the first problem into an ``InvalidInput``, ``"skip"`` keeps a list.

    >>> problems = Problems("skip")
    >>> problems.add("a.png", "truncated")
    >>> problems.skipped
    [Skipped(name='a.png', reason='truncated')]
    """

    def __init__(self, on_error: str) -> None:
        self.on_error = on_error
        self._raise = choose(ON_ERROR, on_error, "on_error")
        self.skipped: list[Skipped] = []

    def add(self, name: str, reason: str) -> None:
        """Report one problem.

        Raises:
            InvalidInput: If the policy is to raise; names the file or row and the reason.
        """
        if self._raise:
            raise InvalidInput(f"{name}: {reason}")
        self.skipped.append(Skipped(name, reason))
