"""One test set: how sure a figure is, and whether two models differ on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferattn.errors import InvalidInput, InvalidOption
from ferattn.statistics.checking import fraction, group_numbers, library, pair

__all__ = ["Interval", "McNemar", "bootstrap", "mcnemar", "paired_bootstrap", "wilson"]

_CELLS = 4_000_000
"""Weights (resamples x groups) held in memory at a time: 32 MB."""


@dataclass(frozen=True)
class Interval:
    """A figure and the range in which it lies with the given confidence.

    Attributes:
        value: The figure.
        low: Lower end.
        high: Upper end.
        confidence: Such as 0.95.
        method: How the ends were found.
    """

    value: float
    low: float
    high: float
    confidence: float
    method: str

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f}, {100 * self.confidence:g}%, {self.method})"


@dataclass(frozen=True)
class McNemar:
    """Exact McNemar test of two models on the same images.

    Attributes:
        both: Images that both got right.
        only_a: Images that only the first got right.
        only_b: Images that only the second got right.
        neither: Images that neither got right.
        p_value: Two-sided.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    p_value: float

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first."""
        return (self.only_b - self.only_a) / (self.both + self.only_a + self.only_b + self.neither)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share.

    Args:
        successes: Such as the images that were recognised.
        trials: Such as all images.
        confidence: Of the interval.

    Raises:
        InvalidOption: If ``successes`` do not lie between 0 and ``trials``, or there are no trials.

    Source: Wilson 1927; as ``statsmodels.stats.proportion.proportion_confint(method="wilson")``.

    >>> print(wilson(50, 100))
    0.5000 (0.4038 to 0.5962, 95%, wilson)
    """
    fraction(confidence, "confidence")
    if not 0 <= successes <= trials or trials < 1:
        raise InvalidOption(
            f"successes={successes!r} of trials={trials!r}: from 0 to trials, and at least one trial."
        )
    proportion = library("statsmodels.stats.proportion")
    low, high = proportion.proportion_confint(successes, trials, alpha=1 - confidence, method="wilson")
    share = successes / trials
    # At no and at all successes an end is the share itself, but for rounding.
    low, high = (share if successes == 0 else float(low)), (share if successes == trials else float(high))
    return Interval(share, low, high, confidence, "wilson")


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> McNemar:
    """Whether two models differ in accuracy on the same images: the binomial test on those where one is right.

    Args:
        correct_a: Whether the first model got each image right, shape (n,).
        correct_b: The same for the second.

    Raises:
        InvalidInput: If the lengths differ, or there is anything but 0 and 1.

    It takes images as independent: where several show the same person, see ``subject_sign_flip``.

    Source: McNemar 1947, in its exact form; Dietterich 1998 for its use on classifiers.

    >>> mcnemar([1] * 10 + [0] * 2, [0] * 8 + [1] * 4).p_value
    0.109375
    """
    a, b = (_as_bool(values) for values in pair(correct_a, correct_b, ("correct_a", "correct_b"), least=1))
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    result = library("statsmodels.stats.contingency_tables").mcnemar(table, exact=True)
    p = 1.0 if table[0][1] == table[1][0] else min(float(result.pvalue), 1.0)
    return McNemar(table[0][0], table[0][1], table[1][0], table[1][1], p)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``b - a`` over images that both models saw.

    Args:
        a: One number for each image for the first model, such as whether it was right. Shape: (n,).
        b: The same for the second.
        clusters: The subject of each image: whole subjects are then drawn, since their images are alike.
        confidence: Of the interval.
        resamples: How often images (or subjects) are drawn anew.
        seed: Of the draws.

    Raises:
        InvalidInput: If the lengths differ, or there is only one subject.
    """
    first, second = pair(a, b)
    difference = second - first

    def mean(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = weights @ difference / weights.sum(1)
        return means

    return bootstrap(mean, len(difference), clusters=clusters, confidence=confidence, resamples=resamples, seed=seed)


def bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    n: int,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of any figure that can be computed from how often each image was drawn.

    Over subjects the percentiles lie further out, as for a t interval: resamples of n subjects vary less than other
    people would, by a factor of (n - 1) / n, and nobody knows how much those vary. Below five subjects or so no
    percentile of theirs is far enough out.

    Args:
        statistic: From weights, shape (r, n), to the figure under each, shape (r,). Draws under which it is not
            defined are NaN and are left out.
        n: Number of images.
        clusters: The subject of each image: whole subjects are then drawn.
        confidence: Of the interval.
        resamples: How many draws.
        seed: Of the draws.

    Raises:
        InvalidOption: If a number is out of range.
        InvalidInput: If there is only one image or one subject.

    Source: Efron 1979; Hesterberg 2015, the expanded percentile interval, over subjects.
    """
    fraction(confidence, "confidence")
    if resamples < 100:
        raise InvalidOption(f"resamples={resamples!r}: at least 100.")
    if n < 2:
        raise InvalidInput(f"{n} images: a bootstrap needs at least two.")
    member_of = group_numbers(clusters, n)
    groups = int(member_of.max()) + 1
    generator = np.random.default_rng(seed)
    figures = []
    left = resamples
    while left:
        rows = min(left, max(1, _CELLS // max(n, groups)))
        drawn = generator.multinomial(groups, np.full(groups, 1 / groups), size=rows).astype(np.float64)
        figures.append(statistic(drawn[:, member_of]))
        left -= rows
    values = np.concatenate(figures)
    values = values[~np.isnan(values)]
    if not len(values):
        raise InvalidInput("the figure is undefined under every draw.")
    tail = (1 - confidence) / 2 if clusters is None else _tail_for_few(confidence, groups)
    low, high = np.quantile(values, [tail, 1 - tail])
    value = float(statistic(np.ones((1, n)))[0])
    method = "bootstrap over images" if clusters is None else "bootstrap over subjects"
    return Interval(value, float(low), float(high), confidence, method)


def _tail_for_few(confidence: float, groups: int) -> float:
    """Share of the resamples to leave out at either end, for so many groups."""
    stats = library("scipy.stats")
    ends = stats.t.ppf((1 + confidence) / 2, groups - 1) * np.sqrt(groups / (groups - 1))
    return float(stats.norm.cdf(-ends))


def _as_bool(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not np.isin(values, (0, 1)).all():
        raise InvalidInput("correct_a and correct_b say for each image whether it was right: 0 and 1 only.")
    right: NDArray[np.bool_] = values.astype(bool)
    return right
