"""Two recipes: the same seeds for both, and what their differences carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ferattn.errors import InvalidInput, InvalidOption
from ferattn.statistics.checking import column, fraction, group_numbers, library, pair, table
from ferattn.statistics.images import Interval

__all__ = [
    "Equivalence",
    "Holm",
    "PairedT",
    "Summary",
    "Wilcoxon",
    "equivalence",
    "hierarchical_bootstrap",
    "holm",
    "paired_t",
    "summarize",
    "wilcoxon",
]


@dataclass(frozen=True)
class Summary:
    """A figure over seeds: every value, their mean, and t's interval of the mean.

    Attributes:
        values: One for each seed, in the order given.
        mean: Their mean.
        std: Their standard deviation (n - 1).
        interval: Of the mean; None with a single seed.
    """

    values: tuple[float, ...]
    mean: float
    std: float
    interval: Interval | None


@dataclass(frozen=True)
class PairedT:
    """Paired t test.

    Attributes:
        interval: Mean of ``b - a`` with its interval.
        t: The statistic.
        p_value: Two-sided.
    """

    interval: Interval
    t: float
    p_value: float


@dataclass(frozen=True)
class Wilcoxon:
    """Wilcoxon's signed-rank test.

    Attributes:
        p_value: Two-sided.
        smallest_p: What the test gives at best for this many pairs: 2 / 2^n.
    """

    p_value: float
    smallest_p: float

    def __str__(self) -> str:
        return f"p = {self.p_value:.4g} (with this many pairs it cannot go below {self.smallest_p:.4g})"


@dataclass(frozen=True)
class Holm:
    """One of several tests after Holm's correction.

    Attributes:
        p_value: As given.
        adjusted: After correction.
        significant: Whether ``adjusted`` is at most alpha.
    """

    p_value: float
    adjusted: float
    significant: bool


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests.

    Attributes:
        difference: Mean of ``b - a``.
        margin: Differences smaller than this do not matter.
        p_value: Of "the difference is at least the margin".
        equivalent: Whether that was rejected.
    """

    difference: float
    margin: float
    p_value: float
    equivalent: bool


def summarize(values: ArrayLike, confidence: float = 0.95) -> Summary:
    """Mean, standard deviation, all points.

    Args:
        values: One figure for each seed.
        confidence: Of the mean's t interval, which one value has not.

    >>> summarize([70.0, 71.0, 72.0]).mean
    71.0
    """
    array = column(values, "values")
    fraction(confidence, "confidence")
    mean = float(array.mean())
    if len(array) == 1:
        return Summary((mean,), mean, float("nan"), None)
    std = float(array.std(ddof=1))
    half = float(library("scipy.stats").t.ppf((1 + confidence) / 2, len(array) - 1)) * std / len(array) ** 0.5
    return Summary(tuple(array.tolist()), mean, std, Interval(mean, mean - half, mean + half, confidence, "t"))


def paired_t(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> PairedT:
    """The t test of paired differences, and the interval of their mean.

    Args:
        a: One figure for each seed.
        b: The same of the other recipe; the differences are b - a.
        confidence: Of the interval.

    Raises:
        InvalidInput: If the lengths differ, there are fewer than two, or all differences are equal.
    """
    first, second = _varying(a, b)
    fraction(confidence, "confidence")
    result = library("scipy.stats").ttest_rel(second, first)
    ends = result.confidence_interval(confidence)
    mean = float((second - first).mean())
    interval = Interval(mean, float(ends.low), float(ends.high), confidence, "paired t")
    return PairedT(interval, float(result.statistic), float(result.pvalue))


def wilcoxon(a: ArrayLike, b: ArrayLike) -> Wilcoxon:
    """Wilcoxon's signed-rank test, with the smallest p that this many pairs allow.

    Pairs without a difference are dropped, so the smallest p counts the others. Differences that are equal but for
    rounding share their rank.

    Args:
        a: One figure for each seed.
        b: The same of the other recipe; the differences are b - a.

    Raises:
        InvalidInput: If the lengths differ, there are fewer than two, or there is no difference at all.

    >>> print(wilcoxon([1, 2, 3, 4, 5], [2, 4, 6, 8, 10]))
    p = 0.0625 (with this many pairs it cannot go below 0.0625)
    """
    first, second = pair(a, b)
    difference = second - first
    if np.array_equal(first, second):
        raise InvalidInput("a and b are the same: there is no difference to rank.")
    difference = np.round(difference / np.abs(difference).max(), 9)
    difference = difference[difference != 0]
    if len(difference) == 1:
        return Wilcoxon(1.0, 1.0)
    stats = library("scipy.stats")
    # Ranks of ties are averaged, and the exact distribution then needs the permutations themselves.
    method = stats.PermutationMethod(n_resamples=2 ** len(difference)) if len(difference) <= 13 else "auto"
    result = stats.wilcoxon(difference, method=method)
    return Wilcoxon(float(result.pvalue), 2 / 2 ** len(difference))


def hierarchical_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    clusters: Sequence[Any] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Interval of the mean of ``b - a`` over seeds and images, both drawn anew.

    Every seed is tested on the same images, so seeds and images are drawn independently of each other: an interval
    over images alone claims too much. As far as the difference is the seeds', it is still too narrow: n seeds give
    1.96 sqrt((n - 1) / n) / t of a t interval, 0.63 with five, 0.82 with ten and 0.91 with twenty. See what
    ``paired_t`` says beside it.

    Args:
        a: One number for each seed and image for the first recipe, such as whether it was right.
            Shape: (seeds, n).
        b: The same for the second recipe: same seeds, same images, same order.
        clusters: The subject of each image: whole subjects are then drawn.
        confidence: Of the interval.
        resamples: How many draws.
        seed: Of the draws.

    Raises:
        InvalidInput: If the shapes differ, there are fewer than two seeds, images or subjects, or not all numbers
            are finite.
        InvalidOption: If there are fewer than 100 resamples.
    """
    first, second = table(a, "a"), table(b, "b")
    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < 2:
        raise InvalidInput(
            f"a of shape {first.shape} and b of {second.shape}: (seeds, images) of both, at least two of each."
        )
    if resamples < 100:
        raise InvalidOption(f"resamples={resamples!r}: at least 100.")
    fraction(confidence, "confidence")
    difference = second - first
    seeds, n = difference.shape
    member_of = group_numbers(clusters, n)
    groups = int(member_of.max()) + 1
    sums = np.zeros((groups, seeds))
    np.add.at(sums, member_of, difference.T)
    sizes = np.bincount(member_of, minlength=groups).astype(np.float64)
    generator = np.random.default_rng(seed)
    figures: list[NDArray[np.float64]] = []
    left = resamples
    while left:
        rows = min(left, max(1, 4_000_000 // groups))
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=rows)
        of_groups = generator.multinomial(groups, np.full(groups, 1 / groups), size=rows).astype(np.float64)
        figures.append(((of_groups @ sums) * of_seeds).sum(1) / (of_groups @ sizes) / seeds)
        left -= rows
    low, high = np.quantile(np.concatenate(figures), [(1 - confidence) / 2, (1 + confidence) / 2])
    what = "images" if clusters is None else "subjects"
    return Interval(float(difference.mean()), float(low), float(high), confidence, f"bootstrap over seeds and {what}")


def holm(p_values: Mapping[str, float], alpha: float = 0.05) -> dict[str, Holm]:
    """Holm's correction for a grid of comparisons: the chance of even one false alarm stays below ``alpha``.

    Args:
        p_values: Of every comparison that was made, by its name.
        alpha: That chance.

    Raises:
        InvalidInput: If there is none, or one is not between 0 and 1.

    Source: Holm 1979.

    >>> holm({"se": 0.01, "eca": 0.04, "cbam": 0.03})["se"].adjusted
    0.03
    """
    fraction(alpha, "alpha")
    given = column(list(p_values.values()), "p_values")
    if given.min() < 0 or given.max() > 1:
        raise InvalidInput(f"p_values={dict(p_values)}: each lies between 0 and 1.")
    reject, adjusted, *_ = library("statsmodels.stats.multitest").multipletests(given, alpha=alpha, method="holm")
    return {
        name: Holm(float(p), float(after), bool(rejected))
        for name, p, after, rejected in zip(p_values, given, adjusted, reject, strict=True)
    }


def equivalence(a: ArrayLike, b: ArrayLike, margin: float, alpha: float = 0.05) -> Equivalence:
    """Whether two recipes are the same to within ``margin``: two one-sided paired t tests (TOST).

    "No significant difference" is no evidence of equality; this is.

    Args:
        a: The first recipe's figure for each seed, shape (n,).
        b: The second recipe's, for the same seeds in the same order.
        margin: Differences smaller than this do not matter; in the units of ``a`` and ``b``.
        alpha: Of each of the two tests.

    Raises:
        InvalidInput: If the lengths differ, there are fewer than two, or all differences are equal.
        InvalidOption: If the margin is not positive.

    Source: Schuirmann 1987.
    """
    first, second = _varying(a, b)
    fraction(alpha, "alpha")
    if not margin > 0:
        raise InvalidOption(f"margin={margin!r}: must be positive.")
    p, _, _ = library("statsmodels.stats.weightstats").ttost_paired(second, first, -margin, margin)
    return Equivalence(float((second - first).mean()), margin, float(p), bool(p <= alpha))


def _varying(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = pair(a, b)
    difference = second - first
    if np.ptp(difference) <= 1e-12 * max(1.0, float(np.abs(difference).max())):
        raise InvalidInput(
            f"all differences between a and b are {difference[0]:g}: a t test needs some that vary. "
            "Are the seeds really different?"
        )
    return first, second
