"""Before a study: which differences it can see."""

from __future__ import annotations

import numpy as np

from ferattn.errors import InvalidOption
from ferattn.statistics.checking import fraction, library

__all__ = ["detectable_by_mcnemar", "detectable_by_seeds", "mcnemar_power"]


def detectable_by_seeds(std: float, seeds: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest mean difference that a paired t test over this many seeds finds with the given power.

    Args:
        std: Standard deviation of the differences between the two recipes, in any unit.
        seeds: How many for each recipe.
        power: Probability of finding it.
        alpha: Of the two-sided test.

    Returns:
        The difference, in the unit of ``std``.

    Raises:
        InvalidOption: If a number is out of range.

    >>> round(detectable_by_seeds(0.5, 5), 2)
    0.84
    """
    if not std > 0 or seeds < 2:
        raise InvalidOption(f"std={std!r}, seeds={seeds!r}: positive, and at least two.")
    fraction(alpha, "alpha")
    _more_than_chance(power, alpha)
    stats = library("scipy.stats")
    critical = stats.t.ppf(1 - alpha / 2, seeds - 1)

    def lacking(effect: float) -> float:
        shift = effect * seeds**0.5
        below = stats.nct.cdf(-critical, seeds - 1, shift)  # NaN where it is too small to matter
        return float(stats.nct.sf(critical, seeds - 1, shift) + np.nan_to_num(below)) - power

    high = 1e-3
    while lacking(high) < 0:
        high *= 2
    return std * float(library("scipy.optimize").brentq(lacking, 0, high))


def mcnemar_power(n: int, discordant: float, difference: float, alpha: float = 0.05) -> float:
    """Probability with which the exact McNemar test finds a difference in accuracy.

    Args:
        n: Number of test images.
        discordant: Share of the images on which exactly one of the two models is right.
        difference: Difference in accuracy, from 0 to ``discordant``.
        alpha: Of the two-sided test.

    Raises:
        InvalidOption: If a number is out of range.
    """
    fraction(discordant, "discordant")
    fraction(alpha, "alpha")
    if n < 1 or not 0 <= difference <= discordant:
        raise InvalidOption(f"n={n!r}, difference={difference!r}: at least 1, and from 0 to {discordant!r}.")
    binom = library("scipy.stats").binom
    counts = np.arange(int(binom.ppf(1e-9, n, discordant)), int(binom.ppf(1 - 1e-9, n, discordant)) + 1)
    # Reject when the smaller count c has P(X <= c) <= alpha / 2 under X ~ Binomial(count, 1/2).
    critical = binom.ppf(alpha / 2, counts, 0.5)
    critical = np.where(binom.cdf(critical, counts, 0.5) <= alpha / 2, critical, critical - 1)
    share = (discordant + difference) / (2 * discordant)
    found = binom.cdf(critical, counts, share) + binom.cdf(critical, counts, 1 - share)
    return float((binom.pmf(counts, n, discordant) * np.where(critical >= 0, found, 0)).sum())


def detectable_by_mcnemar(n: int, discordant: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest difference in accuracy that the exact McNemar test finds with the given power.

    Args:
        n: Number of test images.
        discordant: Share of the images on which exactly one of the two models is right.
        power: Probability of finding it.
        alpha: Of the two-sided test.

    Raises:
        InvalidOption: If a number is out of range, or so few images allow no such power.

    >>> round(100 * detectable_by_mcnemar(3589, 0.12), 1)
    1.6
    """
    fraction(alpha, "alpha")
    _more_than_chance(power, alpha)
    if mcnemar_power(n, discordant, discordant, alpha) < power:
        raise InvalidOption(
            f"n={n!r}, discordant={discordant!r}: so few images find no difference with power={power!r}."
        )
    optimize = library("scipy.optimize")
    return float(
        optimize.brentq(lambda size: mcnemar_power(n, discordant, size, alpha) - power, 0, discordant, xtol=1e-9)
    )


def _more_than_chance(power: float, alpha: float) -> None:
    if not fraction(power, "power") > alpha:
        raise InvalidOption(f"power={power!r}: more than alpha={alpha!r}, with which a test finds what is not there.")
