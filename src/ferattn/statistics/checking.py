"""What may go into a test, and the libraries that do the arithmetic."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency

__all__ = ["column", "fraction", "group_numbers", "library", "pair", "table"]


def library(name: str) -> Any:
    """A module of scipy or statsmodels.

    Raises:
        MissingDependency: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingDependency(f'statistics need {package}: pip install "ferattn[train]"') from error


def fraction(value: float, name: str) -> float:
    """A number strictly between 0 and 1.

    Raises:
        InvalidOption: If it is not.
    """
    if not 0 < value < 1:
        raise InvalidOption(f"{name}={value!r}: between 0 and 1.")
    return float(value)


def column(values: ArrayLike, name: str, least: int = 1) -> NDArray[np.float64]:
    """Finite numbers in one dimension.

    Raises:
        InvalidInput: If there are fewer than ``least``, or they are no finite numbers.
    """
    array = _numbers(values, name)
    if array.ndim != 1 or len(array) < least or not np.isfinite(array).all():
        what = "not all finite" if array.ndim == 1 and len(array) >= least else f"of shape {array.shape}"
        raise InvalidInput(f"{name} is {what}: at least {least} finite numbers in a list are needed.")
    return array


def table(values: ArrayLike, name: str) -> NDArray[np.float64]:
    """Finite numbers in any number of dimensions.

    Raises:
        InvalidInput: If they are no finite numbers.
    """
    array = _numbers(values, name)
    if not np.isfinite(array).all():
        raise InvalidInput(f"{name} is not all finite.")
    return array


def _numbers(values: ArrayLike, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{name}: a list of numbers is needed ({error}).") from error


def pair(
    a: ArrayLike, b: ArrayLike, names: tuple[str, str] = ("a", "b"), least: int = 2
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two columns whose entries belong together.

    Raises:
        InvalidInput: If they are not of the same length.
    """
    first, second = column(a, names[0], least), column(b, names[1], least)
    if len(first) != len(second):
        raise InvalidInput(f"{names[0]} has {len(first)} values and {names[1]} {len(second)}: they must be paired.")
    return first, second


def group_numbers(clusters: Sequence[Any] | None, n: int) -> NDArray[np.int64]:
    """The number of the group of each of ``n`` images; each image is its own group if there are none.

    Raises:
        InvalidInput: If there are not ``n``, or there is only one group.
    """
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise InvalidInput(f"clusters has {len(clusters)} entries for {n} images.")
    names, numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < 2:
        raise InvalidInput(f"clusters: all images belong to {str(names[0])!r}; at least two groups are needed.")
    return numbers.astype(np.int64)
