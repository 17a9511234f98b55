"""Paired differences whose signs could as well be the other ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferattn.errors import InvalidOption
from ferattn.statistics.checking import group_numbers, pair

__all__ = ["SignFlip", "sign_flip", "subject_sign_flip"]

_EXACT = 20
"""Differences up to which all 2^n sign patterns are tried."""
_CELLS = 4_000_000
"""Signs held in memory at a time."""


@dataclass(frozen=True)
class SignFlip:
    """Sign-flip permutation test of paired differences.

    Attributes:
        difference: Mean of ``b - a``.
        p_value: Two-sided.
        smallest_p: No data of this size can go below it.
        exact: Whether all 2^n patterns of signs were tried.
    """

    difference: float
    p_value: float
    smallest_p: float
    exact: bool


def sign_flip(a: ArrayLike, b: ArrayLike, *, resamples: int = 100_000, seed: int = 0) -> SignFlip:
    """Whether two recipes differ: if they did not, each seed's difference could as well have the other sign.

    Up to 20 seeds all 2^n patterns of signs are tried and the test is exact; beyond, ``resamples`` of them. Totals
    that are equal but for rounding, as those of accuracies are, count as equal.

    Args:
        a: The first recipe's figure for each seed, shape (n,).
        b: The second recipe's, for the same seeds in the same order.
        resamples: Patterns to try where there are too many for all.
        seed: Of the patterns.

    Raises:
        InvalidInput: If the lengths differ, or there are fewer than two.
        InvalidOption: If there are fewer than 100 resamples.

    >>> sign_flip([70, 71, 72, 70, 71], [71, 72, 74, 71, 73]).p_value
    0.0625
    """
    first, second = pair(a, b)
    return _flipped(second - first, float((second - first).mean()), resamples, seed)


def subject_sign_flip(
    a: ArrayLike, b: ArrayLike, clusters: Sequence[Any], *, resamples: int = 100_000, seed: int = 0
) -> SignFlip:
    """Whether two models differ on images of several people: a person's images are alike, and change sign together.

    McNemar's test takes each image for a case of its own and finds too many differences there.

    Args:
        a: One number for each image for the first model, such as whether it was right. Shape: (n,).
        b: The same for the second.
        clusters: The subject of each image.
        resamples: Patterns to try where there are more than 20 subjects.
        seed: Of the patterns.

    Raises:
        InvalidInput: If the lengths differ, or there is only one subject.
        InvalidOption: If there are fewer than 100 resamples.

    >>> subject_sign_flip([0, 0, 0, 0, 1], [1, 1, 1, 1, 1], ["KA", "KA", "KL", "KL", "KM"]).p_value
    0.5
    """
    first, second = pair(a, b)
    difference = second - first
    of_subjects = np.bincount(group_numbers(clusters, len(difference)), weights=difference)
    return _flipped(of_subjects.astype(np.float64), float(difference.mean()), resamples, seed)


def _flipped(differences: NDArray[np.float64], mean: float, resamples: int, seed: int) -> SignFlip:
    if resamples < 100:
        raise InvalidOption(f"resamples={resamples!r}: at least 100.")
    n = len(differences)
    enough = abs(float(differences.sum())) - 1e-9 * float(np.abs(differences).sum())
    if n <= _EXACT:
        totals = differences[:1]  # with the first sign turned come the same totals, negative
        for difference in differences[1:]:
            totals = np.concatenate([totals + difference, totals - difference])
        return SignFlip(mean, float((np.abs(totals) >= enough).mean()), 2 / 2**n, True)
    generator = np.random.default_rng(seed)
    reached, left = 0, resamples
    while left:
        rows = min(left, max(1, _CELLS // n))
        signs = generator.choice(np.array([-1.0, 1.0]), size=(rows, n))
        reached += int((np.abs(signs @ differences) >= enough).sum())
        left -= rows
    return SignFlip(mean, (reached + 1) / (resamples + 1), 1 / (resamples + 1), False)
