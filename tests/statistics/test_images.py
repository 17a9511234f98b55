"""One test set: oracles are brute force, statsmodels, scipy and textbook values."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from ferattn.errors import InvalidInput, InvalidOption, MissingDependency
from ferattn.statistics import bootstrap, mcnemar, paired_bootstrap, wilson


def test_wilson_is_the_closed_form() -> None:
    for k, n in ((0, 10), (1, 10), (27, 55), (2512, 3589), (7, 7)):
        z = scipy.stats.norm.ppf(0.975)
        centre = (k + z * z / 2) / (n + z * z)
        half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
        found = wilson(k, n)
        assert found.low == pytest.approx(max(centre - half, 0), abs=1e-12)
        assert found.high == pytest.approx(min(centre + half, 1), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_contains_the_share_and_mirrors(case: tuple[int, int]) -> None:
    k, n = case
    found, mirrored = wilson(k, n), wilson(n - k, n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low == pytest.approx(1 - mirrored.high, abs=1e-9)
    assert wilson(k, n, 0.99).high >= found.high - 1e-12


def _mcnemar_by_hand(b: int, c: int) -> float:
    n = b + c
    tail = sum(math.comb(n, i) for i in range(min(b, c) + 1)) / 2**n
    return min(1.0, 2 * tail)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_the_sum_of_binomials(pairs: list[tuple[bool, bool]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = mcnemar(a, b)
    assert found.p_value == pytest.approx(_mcnemar_by_hand(found.only_a, found.only_b), rel=1e-9)
    assert mcnemar(b, a).p_value == pytest.approx(found.p_value)
    assert found.difference == pytest.approx(np.mean(b) - np.mean(a))
    assert found.both + found.only_a + found.only_b + found.neither == len(pairs)


def test_mcnemar_agrees_with_scipy_on_a_large_table() -> None:
    a = np.repeat([1, 1, 0, 0], [2400, 180, 230, 779])
    b = np.repeat([1, 0, 1, 0], [2400, 180, 230, 779])
    assert mcnemar(a, b).p_value == pytest.approx(scipy.stats.binomtest(180, 410).pvalue, rel=1e-9)


def test_bootstrap_of_a_mean_is_what_scipy_gets() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.random(300) < 0.6, generator.random(300) < 0.7
    ours = paired_bootstrap(a, b, resamples=20_000)
    d = b.astype(float) - a
    theirs = scipy.stats.bootstrap((d,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(d.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.005)
    assert ours.high == pytest.approx(theirs.high, abs=0.005)
    assert paired_bootstrap(a, b, resamples=20_000, confidence=0.5).high < ours.high
    assert paired_bootstrap(a, b, seed=1) != paired_bootstrap(a, b, seed=2)


def test_small_bootstrap_is_the_full_enumeration() -> None:
    d = np.array([0.0, 1.0, 5.0])
    means = sorted(d[list(draw)].mean() for draw in np.ndindex(3, 3, 3))
    ours = paired_bootstrap(np.zeros(3), d, resamples=200_000, confidence=0.6)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(means, [0.2, 0.8])))


def test_subjects_widen_the_interval_when_their_images_are_alike() -> None:
    people = np.repeat(np.arange(20), 30)
    a = np.zeros(600)
    b = np.repeat(np.random.default_rng(0).random(20) < 0.5, 30)
    alone, together = paired_bootstrap(a, b), paired_bootstrap(a, b, clusters=list(people))
    assert together.high - together.low > 3 * (alone.high - alone.low)
    further_out = 1 - 2 * scipy.stats.norm.cdf(-scipy.stats.t.ppf(0.975, 19) * (20 / 19) ** 0.5)
    oracle = scipy.stats.bootstrap(
        (b[::30],), np.mean, n_resamples=20_000, method="percentile", rng=1, confidence_level=further_out
    )
    assert together.low == pytest.approx(oracle.confidence_interval.low, abs=0.051)
    assert together.value == alone.value


@pytest.mark.parametrize(("people", "least"), [(5, 0.90), (10, 0.93), (30, 0.93)])
def test_an_interval_over_subjects_holds_the_truth_as_often_as_it_says(people: int, least: float) -> None:
    """Differences with an effect of each person's own; plain percentiles held it in 82, 89 and 93 of 100."""
    generator, held, often = np.random.default_rng(0), 0, 600
    clusters = list(np.repeat(np.arange(people), 6))
    for _ in range(often):
        d = np.repeat(generator.normal(0, 1, people), 6) + generator.normal(0, 1, people * 6)
        found = paired_bootstrap(np.zeros(len(d)), d, clusters=clusters, resamples=400)
        held += found.low <= 0 <= found.high
    assert least <= held / often <= 0.985


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-3, 3))
def test_a_constant_added_moves_the_interval(values: list[float], constant: float) -> None:
    plain = paired_bootstrap(np.zeros(len(values)), values, resamples=200)
    moved = paired_bootstrap(np.zeros(len(values)), np.array(values) + constant, resamples=200)
    assert moved.low == pytest.approx(plain.low + constant, abs=1e-9)
    assert moved.high == pytest.approx(plain.high + constant, abs=1e-9)


def test_undefined_draws_are_left_out() -> None:
    found = bootstrap(lambda w: np.where(w[:, 0] > 0, w[:, 0], np.nan), 3, resamples=500)
    assert found.low >= 1
    with pytest.raises(InvalidInput, match="undefined"):
        bootstrap(lambda w: np.full(len(w), np.nan), 3, resamples=500)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: wilson(3, 2), InvalidOption, "from 0 to trials"),
        (lambda: wilson(0, 0), InvalidOption, "at least one trial"),
        (lambda: wilson(1, 2, 95), InvalidOption, "confidence=95"),
        (lambda: mcnemar([1, 0], [1]), InvalidInput, "paired"),
        (lambda: mcnemar([1, 2], [1, 0]), InvalidInput, "0 and 1 only"),
        (lambda: mcnemar([], []), InvalidInput, "at least 1"),
        (lambda: paired_bootstrap([1], [0]), InvalidInput, "at least 2"),
        (lambda: paired_bootstrap([1, float("nan")], [0, 1]), InvalidInput, "not all finite"),
        (lambda: paired_bootstrap([1, 0], [0, 1], clusters=["a", "a"]), InvalidInput, "two groups"),
        (lambda: paired_bootstrap([1, 0], [0, 1], clusters=["a"]), InvalidInput, "1 entries for 2"),
        (lambda: paired_bootstrap([1, 0], [0, 1], resamples=3), InvalidOption, "resamples=3"),
        (lambda: paired_bootstrap(["x", "y"], [0, 1]), InvalidInput, "list of numbers"),
    ],
)
def test_mistakes(call, error, said) -> None:
    with pytest.raises(error, match=said):
        call()


def test_without_the_libraries_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.stats.proportion", None)
    with pytest.raises(MissingDependency, match=r"ferattn\[train\]"):
        wilson(1, 2)
