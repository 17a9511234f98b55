"""What can go wrong through a user's hand: one class for each kind of mistake, all of them ``FerattnError``.

Every message names the argument, the value that was given and what would be valid. Each class is also the
built-in exception a caller would expect (``ValueError``, ``ImportError``, ``RuntimeError``), so existing
``except`` clauses keep working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import TypeVar

__all__ = [
    "Diverged",
    "FerattnError",
    "InvalidInput",
    "InvalidOption",
    "MissingDependency",
    "NoSite",
    "UnknownChoice",
    "WeightsMismatch",
    "choose",
    "closest",
    "is_number",
    "require_whole",
]

T = TypeVar("T")


class FerattnError(Exception):
    """Base of every error that ferattn raises on purpose."""


class UnknownChoice(FerattnError, ValueError):
    """A name that is in none of the tables: a misspelt model, block, activation, placement, detector, ..."""


class InvalidOption(FerattnError, ValueError):
    """An option whose value is impossible or contradicts another one."""


class InvalidInput(FerattnError, ValueError):
    """Data of the wrong kind: the shape or dtype of a tensor, an unreadable picture, a malformed file."""


class DetectorFailed(InvalidInput):
    """A picture at which a face detector failed with an error of its own; that is its cause."""


class NotCompiled(InvalidOption):
    """A module that ``torch.compile`` does not take."""


class NoSite(FerattnError, ValueError):
    """A placement that finds no place for an attention block in the given model."""


class WeightsMismatch(FerattnError, RuntimeError):
    """Weights that do not fit the model, or that do not exist."""


class Diverged(FerattnError, ArithmeticError):
    """A training run whose loss is no longer a finite number."""


class MissingDependency(FerattnError, ImportError):
    """An optional dependency that is not installed; the message says which extra brings it."""


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option most like ``name``, or None where nothing is alike.

    >>> closest("cbma", ["se", "eca", "cbam"])
    'cbam'
    """
    by_folded = {option.casefold(): option for option in options}
    matches = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry ``name`` of ``table``.

    Args:
        table: The options by name.
        name: What the user asked for.
        what: What the table holds, for the message, such as ``"attention"``.

    Raises:
        UnknownChoice: If there is no such entry; lists the closest match and all options.

    >>> choose({"se": 1, "eca": 2}, "eca", "attention")
    2
    >>> choose({"se": 1, "eca": 2}, "ecca", "attention")
    Traceback (most recent call last):
    ...
    ferattn.errors.UnknownChoice: unknown attention 'ecca'; did you mean 'eca'? Options: se, eca.
    """
    try:
        return table[name]
    except (KeyError, TypeError):
        match = closest(name, table) if isinstance(name, str) else None
        hint = f"; did you mean {match!r}?" if match else "."
        raise UnknownChoice(f"unknown {what} {name!r}{hint} Options: {', '.join(table)}.") from None


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number; NumPy's are, True is not.

    >>> is_number(0.5), is_number(True), is_number("1")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def require_whole(value: object, what: str, *, least: int) -> int:
    """``value`` as an int, if it is a whole number of at least ``least``; NumPy's integers are, True is not.

    Raises:
        InvalidOption: If it is not.

    >>> require_whole(0, "channels", least=1)
    Traceback (most recent call last):
    ...
    ferattn.errors.InvalidOption: channels must be a whole number of at least 1; got 0.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InvalidOption(f"{what} must be a whole number of at least {least}; got {value!r}.")
    return int(value)
