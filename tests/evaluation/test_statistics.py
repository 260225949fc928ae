"""Intervals and paired comparisons: known answers, coverage on simulated data, and what must not happen."""

import math

import numpy as np
import pytest
from scipy import stats

from llasa.evaluation.statistics import bootstrap_interval, paired_difference, proportion_interval


def error_counts(generator, utterances):
    """Errors and words of utterances that are not equally hard; one word in ten is wrong."""
    words = generator.integers(3, 16, utterances)
    return generator.binomial(words, generator.beta(1, 9, utterances)), words


def test_the_interval_of_a_mean_is_the_normal_one_where_that_holds():
    """Fails when the confidence is not handed on."""
    values = np.random.default_rng(0).normal(3.0, 1.0, 2000)
    for confidence, quantile in ((0.95, 1.96), (0.5, 0.674)):
        low, high = bootstrap_interval(values, confidence=confidence)
        half = quantile * values.std() / math.sqrt(len(values))
        assert low == pytest.approx(values.mean() - half, abs=half / 10)
        assert high == pytest.approx(values.mean() + half, abs=half / 10)


def test_a_ratio_is_of_sums_and_not_a_mean_of_ratios():
    """One word wrong of one and none of 99 is 1 %, not 50 %. Fails when the denominators are dropped."""
    errors, words = [1, 0] * 30, [1, 99] * 30
    low, high = bootstrap_interval(errors, words)
    assert low < 0.01 < high < 0.02
    assert bootstrap_interval(errors, words) == (low, high)
    assert bootstrap_interval(errors, words, seed=1) != (low, high)


def test_the_true_rate_lies_in_most_intervals():
    """200 test sets of 80 utterances. Fails when utterances are drawn without putting them back."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(*error_counts(generator, 80), resamples=500)
        inside += low <= 0.1 <= high
    assert 0.9 <= inside / 200 <= 0.99


def test_too_little_to_tell():
    nan = float("nan")
    assert all(map(math.isnan, bootstrap_interval([])))
    assert all(map(math.isnan, bootstrap_interval([1.0])))
    assert all(map(math.isnan, bootstrap_interval([1.0, nan])))
    assert bootstrap_interval([0, 0, 0], [4, 5, 6]) == (0, 0)
    assert bootstrap_interval([1.0, 1.0, nan, 1.0]) == (1, 1)
    low, high = bootstrap_interval([0, 0, 1], [0, 4, 5])  # an empty text; a draw of it alone has no rate
    assert 0 <= low < high <= 1


def test_identical_systems_do_not_differ():
    errors, words = error_counts(np.random.default_rng(0), 50)
    found = paired_difference(errors, errors, words)
    assert (found.difference, found.low, found.high, found.p, found.count) == (0, 0, 0, 1, 50)


def test_a_paired_comparison_sees_what_two_intervals_hide():
    """A system a little worse on the same utterances. Fails when the utterances of a and b are drawn apart."""
    generator = np.random.default_rng(0)
    better = generator.normal(0.7, 0.1, 80)
    worse = better - generator.normal(0.02, 0.02, 80)
    found = paired_difference(better, worse)
    assert found.difference == pytest.approx(better.mean() - worse.mean())
    assert 0 < found.low < found.difference < found.high
    assert found.p < 0.01
    apart = np.diff(bootstrap_interval(better)) + np.diff(bootstrap_interval(worse))
    assert found.high - found.low < apart / 4
    opposite = paired_difference(worse, better)
    assert opposite.difference == -found.difference
    assert opposite.p == pytest.approx(found.p, abs=0.01)


def test_the_p_value_of_few_utterances_is_exact():
    """Five differences of one sign: 2 of the 32 ways to swap are as far apart. Fails when one side counts."""
    assert paired_difference([2, 3, 4, 5, 6], [1, 1, 1, 1, 1]).p == pytest.approx(2 / 32)
    expected = stats.permutation_test(
        (np.array([2.0, 0, 4, 1, 6]) - 1,), np.mean, permutation_type="samples", vectorized=False
    )
    assert paired_difference([2, 0, 4, 1, 6], [1, 1, 1, 1, 1]).p == pytest.approx(expected.pvalue)


def test_p_values_of_equal_systems_are_even():
    """150 comparisons of two systems of one kind: about 5 % of them below 0.05."""
    generator = np.random.default_rng(0)
    below = 0
    for _ in range(150):
        words = generator.integers(3, 16, 25)
        hardness = generator.beta(1, 9, 25)
        a, b = generator.binomial(words, hardness), generator.binomial(words, hardness)
        below += paired_difference(a, b, words, resamples=400).p < 0.05
    assert 0 < below <= 15


def test_each_system_may_have_its_own_denominators():
    """Seconds of computing by seconds of audio: 10/20 against 10/40. Fails when b is divided by a's."""
    found = paired_difference([5, 5], [5, 5], [10, 10], b_denominators=[20, 20])
    assert found.difference == 0.25
    assert (found.low, found.high) == (0.25, 0.25)


def test_what_one_system_lacks_is_left_out_of_both():
    nan = float("nan")
    found = paired_difference([1, 2, nan, 9], [0, 1, 5, nan])
    assert (found.difference, found.count) == (1, 2)
    nothing = paired_difference([nan], [1])
    assert nothing.count == 0
    assert math.isnan(nothing.difference)


def test_a_share_of_none_has_an_upper_end():
    """Wilson (1927): 0 of 50 up to z²/(n + z²). A bootstrap says (0, 0)."""
    low, high = proportion_interval(0, 50)
    assert low == 0
    assert high == pytest.approx(1.95996**2 / (50 + 1.95996**2), rel=1e-4)
    assert proportion_interval(50, 50)[1] == 1
    assert all(map(math.isnan, proportion_interval(0, 0)))
