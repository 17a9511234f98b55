"""Paired seeds: oracles are full enumeration, scipy, statsmodels and textbook values."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

from ferattn.errors import InvalidInput, InvalidOption
from ferattn.statistics import (
    detectable_by_mcnemar,
    detectable_by_seeds,
    equivalence,
    hierarchical_bootstrap,
    holm,
    mcnemar,
    mcnemar_power,
    paired_t,
    sign_flip,
    subject_sign_flip,
    summarize,
    wilcoxon,
)

A = [70.1, 71.0, 70.4, 69.8, 70.6]
B = [70.9, 71.2, 71.3, 70.1, 71.4]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8))
def test_sign_flip_tries_every_pattern(values: list[int]) -> None:
    patterns = [np.dot(signs, values) for signs in itertools.product((-1, 1), repeat=len(values))]
    by_hand = np.mean([abs(total) >= abs(sum(values)) - 1e-9 for total in patterns])
    found = sign_flip([0] * len(values), values)
    assert found.exact
    assert found.p_value == pytest.approx(by_hand)
    assert found.p_value >= found.smallest_p
    assert sign_flip(values, [0] * len(values)).p_value == pytest.approx(found.p_value)


def test_sign_flip_samples_patterns_beyond_twenty_seeds() -> None:
    d = np.random.default_rng(0).normal(0.4, 1, 25)
    found = sign_flip(np.zeros(25), d, resamples=20_000)
    assert not found.exact
    assert found.p_value == pytest.approx(scipy.stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert found.p_value != sign_flip(np.zeros(25), d, resamples=500).p_value
    assert sign_flip(np.zeros(25), d, resamples=2000, seed=1) == sign_flip(np.zeros(25), d, resamples=2000, seed=1)
    assert sign_flip(np.zeros(25), d, resamples=2000, seed=1) != sign_flip(np.zeros(25), d, resamples=2000, seed=2)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=9), st.sampled_from([213, 3589, 7178]))
def test_rounding_breaks_no_ties(images: list[int], tested: int) -> None:
    """Accuracies are whole images over their number: the tests say what they say of the whole images."""
    right = np.cumsum(np.abs(images)) + tested // 2
    a, b = right / tested, (right + images) / tested
    assert sign_flip(a, b).p_value == sign_flip(np.zeros(len(images)), images).p_value
    if any(images):
        assert wilcoxon(a, b).p_value == pytest.approx(wilcoxon(np.zeros(len(images)), images).p_value)


def test_images_of_a_person_change_sign_together() -> None:
    generator = np.random.default_rng(0)
    people = [f"P{row}" for row in range(8) for _ in range(5)]
    a, b = generator.integers(0, 2, (2, 40))
    found = subject_sign_flip(a, b, people)
    of_people = [(b - a)[5 * row : 5 * row + 5].sum() for row in range(8)]
    assert found.p_value == sign_flip(np.zeros(8), of_people).p_value
    assert found.difference == pytest.approx((b - a).mean())
    assert (found.smallest_p, found.exact) == (2 / 2**8, True)
    b[:20] = 1
    many = subject_sign_flip(a, b, range(40), resamples=500)
    assert (many.smallest_p, many.exact) == (1 / 501, False)
    assert many != subject_sign_flip(a, b, range(40), resamples=500, seed=1)
    with pytest.raises(InvalidInput, match="belong to 'KA'"):
        subject_sign_flip(a, b, ["KA"] * 40)


def test_equal_models_differ_no_more_often_than_five_times_in_a_hundred() -> None:
    """Of ten people with 21 images each, whose images are alike: where McNemar's test is wrong too often."""
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(10), 21)
    small = {"subjects": 0, "images": 0}
    for _ in range(300):
        shares = generator.uniform(0.2, 0.95, (2, 10))
        a, b = (generator.random(210) < shares[side, people] for side in (0, 1))
        small["subjects"] += subject_sign_flip(a, b, people).p_value <= 0.05
        small["images"] += mcnemar(a, b).p_value <= 0.05
    assert small["subjects"] <= 27
    assert small["images"] > 60


def test_fishers_analysis_of_darwins_maize() -> None:
    """Fisher 1935, The Design of Experiments: 863 x 2 of 32,768 sign patterns, and t = 2.148."""
    eighths = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48])
    assert sign_flip(np.zeros(15), eighths).p_value == pytest.approx(1726 / 32768)
    found = paired_t(np.zeros(15), eighths)
    assert found.t == pytest.approx(2.148, abs=5e-4)
    assert found.p_value == pytest.approx(0.0497, abs=5e-5)
    assert found.interval.low > 0
    assert paired_t(np.zeros(15), eighths, 0.99).interval.low < 0


def test_summary_lists_all_points() -> None:
    found = summarize(A)
    assert found.values == tuple(A)
    assert found.std == pytest.approx(np.std(A, ddof=1))
    low, high = DescrStatsW(A).tconfint_mean()
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high))
    assert summarize([3.0]).interval is None
    assert summarize(A, 0.5).interval.high < found.interval.high


def test_five_pairs_cannot_convince_wilcoxon() -> None:
    found = wilcoxon(A, B)
    assert found.p_value == pytest.approx(scipy.stats.wilcoxon(np.subtract(B, A), method="exact").pvalue)
    assert found.smallest_p == 0.0625
    assert "0.0625" in str(found)
    assert wilcoxon([0, 0, 0], [1, 1, 0]).smallest_p == 0.5  # the pair without a difference is dropped
    assert wilcoxon([1, 2], [1, 3]).p_value == 1
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.3, 0.4, 0.5, 0.4]).p_value == 0.375  # all of one rank
    with pytest.raises(InvalidInput, match="same"):
        wilcoxon(A, A)


def test_hierarchical_bootstrap_knows_of_seeds_and_images() -> None:
    generator = np.random.default_rng(0)
    effect = generator.normal(0.05, 0.05, (6, 1))  # of the seed
    d = effect + generator.normal(0, 0.2, (6, 400))
    a = np.zeros((6, 400))
    found = hierarchical_bootstrap(a, d)
    assert found.value == pytest.approx(d.mean())
    # Var of the crossed resampling: between seeds (n - 1) / n^2 of the spread, images likewise.
    expected = np.sqrt(d.mean(1).var() / 6 + d.mean(0).var() / 400)
    assert (found.high - found.low) / 3.92 == pytest.approx(expected, rel=0.15)
    assert hierarchical_bootstrap(a, d, confidence=0.5).high < found.high
    assert hierarchical_bootstrap(a, d, seed=1) != hierarchical_bootstrap(a, d, seed=2)
    assert hierarchical_bootstrap(a, d, resamples=200) != found


def test_hierarchical_bootstrap_by_brute_force() -> None:
    d = np.array([[0.0, 1.0, 3.0], [2.0, -1.0, 4.0]])
    draws = [
        d[np.ix_(seeds, images)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for images in itertools.product(range(3), repeat=3)
    ]
    found = hierarchical_bootstrap(np.zeros((2, 3)), d, confidence=0.5, resamples=200_000)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.25, 0.75])), abs=0.01)
    one_each = hierarchical_bootstrap(np.zeros((2, 3)), d, clusters=["x", "y", "z"], confidence=0.5)
    assert one_each.value == found.value
    assert "subjects" in one_each.method


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_step_by_step(values: list[float]) -> None:
    names = [f"test {i}" for i in range(len(values))]
    found = holm(dict(zip(names, values, strict=True)))
    running = 0.0
    for rank, index in enumerate(np.argsort(values, kind="stable")):
        running = max(running, min(1.0, (len(values) - rank) * values[index]))
        assert found[names[index]].adjusted == pytest.approx(running)
        assert found[names[index]].p_value == values[index]
    assert list(found) == names


def test_holm_uses_its_alpha() -> None:
    assert holm({"a": 0.02}, alpha=0.05)["a"].significant
    assert not holm({"a": 0.02}, alpha=0.01)["a"].significant


def test_equivalence_is_two_one_sided_tests() -> None:
    d = np.subtract(B, A)
    margin = 1.0
    upper = scipy.stats.ttest_1samp(d, margin, alternative="less").pvalue
    lower = scipy.stats.ttest_1samp(d, -margin, alternative="greater").pvalue
    found = equivalence(A, B, margin)
    assert found.p_value == pytest.approx(max(upper, lower))
    assert found.equivalent == (max(upper, lower) <= 0.05)
    assert equivalence(A, B, 5.0).equivalent
    assert not equivalence(A, B, 5.0, alpha=1e-9).equivalent
    assert not equivalence(A, B, 0.1).equivalent


def test_detectable_by_seeds_is_what_statsmodels_solves() -> None:
    generator = np.random.default_rng(0)
    for seeds in (3, 5, 10, 20):
        found = detectable_by_seeds(0.5, seeds)
        # The usual approximation by a central t; its error shrinks with the number of seeds.
        quick = 0.5 / seeds**0.5 * sum(scipy.stats.t.ppf([0.975, 0.8], seeds - 1))
        assert found == pytest.approx(quick, rel=0.2 / seeds)
        runs = generator.normal(found, 0.5, (20_000, seeds))
        assert np.mean(scipy.stats.ttest_1samp(runs, 0, axis=1).pvalue <= 0.05) == pytest.approx(0.8, abs=0.012)
        if seeds >= 10:
            assert found == pytest.approx(0.5 * TTestPower().solve_power(nobs=seeds, alpha=0.05, power=0.8), rel=1e-4)
    assert detectable_by_seeds(1.0, 5) == pytest.approx(2 * detectable_by_seeds(0.5, 5))
    assert detectable_by_seeds(0.5, 5, power=0.9) > detectable_by_seeds(0.5, 5)
    assert detectable_by_seeds(0.5, 5, alpha=0.01) > detectable_by_seeds(0.5, 5)
    assert detectable_by_seeds(0.5, 2) > detectable_by_seeds(0.5, 3)


def test_mcnemar_power_by_simulation() -> None:
    generator = np.random.default_rng(0)
    n, discordant, difference = 200, 0.2, 0.1
    counts = generator.multinomial(n, [0.05, 0.15, 0.8], size=2000)
    found = [mcnemar(np.repeat([1, 0, 1], row), np.repeat([0, 1, 1], row)).p_value <= 0.05 for row in counts[:400]]
    assert mcnemar_power(n, discordant, difference) == pytest.approx(np.mean(found), abs=0.05)
    assert mcnemar_power(n, discordant, 0.0) <= 0.05  # an exact test never exceeds its level
    assert mcnemar_power(n, discordant, difference, alpha=0.001) < mcnemar_power(n, discordant, difference)


def test_detectable_by_mcnemar_inverts_the_power() -> None:
    found = detectable_by_mcnemar(3589, 0.12)
    assert 0.015 < found < 0.018
    assert mcnemar_power(3589, 0.12, found) == pytest.approx(0.8, abs=1e-4)
    assert detectable_by_mcnemar(3589, 0.12, power=0.9) > found
    assert detectable_by_mcnemar(3589, 0.12, alpha=0.01) > found


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: sign_flip([1], [2]), InvalidInput, "at least 2"),
        (lambda: paired_t([1, 2], [2, 3]), InvalidInput, "seeds really different"),
        (lambda: equivalence([1, 2], [2, 3], 1), InvalidInput, "vary"),
        (lambda: equivalence(A, B, 0), InvalidOption, "margin=0"),
        (lambda: hierarchical_bootstrap(A, B), InvalidInput, r"\(seeds, images\)"),
        (lambda: hierarchical_bootstrap([[0, 1], [1, 0]], [[0, 1], [1, 0]], resamples=1), InvalidOption, "resamples"),
        (lambda: sign_flip(A, B, resamples=1), InvalidOption, "resamples=1"),
        (lambda: hierarchical_bootstrap([[0, 1], [1]], [[0, 1], [1, 0]]), InvalidInput, "list of numbers"),
        (lambda: hierarchical_bootstrap([[0, np.nan]] * 2, [[0, 1]] * 2), InvalidInput, "not all finite"),
        (lambda: detectable_by_seeds(0.5, 5, power=0.05), InvalidOption, "more than alpha"),
        (lambda: detectable_by_mcnemar(3589, 0.12, power=0.01), InvalidOption, "more than alpha"),
        (lambda: holm({}), InvalidInput, "at least 1"),
        (lambda: holm({"a": 1.2}), InvalidInput, "between 0 and 1"),
        (lambda: detectable_by_seeds(0, 5), InvalidOption, "std=0"),
        (lambda: detectable_by_seeds(1, 1), InvalidOption, "seeds=1"),
        (lambda: mcnemar_power(10, 0.2, 0.3), InvalidOption, "difference=0.3"),
        (lambda: detectable_by_mcnemar(5, 0.2), InvalidOption, "so few images"),
        (lambda: summarize([]), InvalidInput, "values"),
    ],
)
def test_mistakes(call, error, said) -> None:
    with pytest.raises(error, match=said):
        call()
