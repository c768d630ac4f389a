"""Paired statistics against scipy, closed forms and data with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ld3_dist import InputError
from ld3_dist.metrics.paired import (
    average_ranks,
    compare,
    critical_difference,
    friedman,
    holm,
    improvement,
    interval_over_sets,
    over_seeds,
    ratios,
    summary,
)
from ld3_dist.metrics.resampling import STATISTICS, Statistic, counts, resampled, statistic_of, sums


def losses(seed: int, n: int = 200, scale: float = 1.0) -> np.ndarray:
    """Heavy-tailed losses; those of one seed share their noise."""
    rng = np.random.default_rng(seed)
    return scale * np.exp(1.5 * rng.normal(size=n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 33, 400])
def test_statistics_of_resamples_are_those_of_the_samples_drawn(n: int) -> None:
    x = losses(n, n)
    (drawn,) = counts(n, 20, 3)
    assert (drawn.sum(0) == n).all()
    for column in range(20):
        sample = np.repeat(x, drawn[:, column].astype(int))
        assert resampled(x, "mean", 20, 3)[column] == pytest.approx(sample.mean())
        assert resampled(x, "median", 20, 3)[column] == pytest.approx(np.median(sample))
        if n % 4 == 0:
            trimmed = stats.trim_mean(sample, 0.25)
            assert resampled(x, "iqm", 20, 3)[column] == pytest.approx(trimmed)


def test_interquartile_mean_counts_fractions() -> None:
    assert statistic_of(np.array([1.0, 2.0, 4.0, 8.0, 100.0]), "iqm") == pytest.approx(
        (0.75 * 2 + 4 + 0.75 * 8) / 2.5
    )


def test_large_samples_are_drawn_in_blocks() -> None:
    x = losses(0, 40_000)
    many = sums(np.stack([np.ones(40_000), x], 1), 200, 1)
    assert sum(block.shape[1] for block in counts(40_000, 200, 1)) == 200
    np.testing.assert_allclose(many[:, 0], 1)
    assert many[:, 1].std() == pytest.approx(x.std() / 200, rel=0.2)


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("paired", [True, False])
def test_the_ratio_turns_round_with_its_arguments(statistic: Statistic, paired: bool) -> None:
    a, b = losses(1), losses(1) * np.random.default_rng(9).uniform(0.9, 1.2, 200)
    there, back = compare(a, b, statistic, paired=paired), compare(b, a, statistic, paired=paired)
    value, low, high = there.ratio
    assert back.ratio.value == pytest.approx(1 / value)
    if paired:  # unpaired, the two draw other resamples
        assert back.ratio[1:] == pytest.approx((1 / high, 1 / low), rel=5e-3)
        assert back.difference[1:] == pytest.approx(
            (-there.difference.high, -there.difference.low), rel=2e-2, abs=1e-4
        )
    assert there.p_improvement + back.p_improvement == pytest.approx(1)
    assert low < value < high


def test_pairs_make_the_interval_of_similar_schedules_narrow() -> None:
    a = losses(2, 1000)
    b = a * np.random.default_rng(3).uniform(1.0, 1.1, 1000)
    paired, unpaired = compare(a, b), compare(a, b, paired=False)
    assert paired.ratio.high < 1
    assert unpaired.ratio.low < 1 < unpaired.ratio.high
    assert paired.p_value < 0.01 < 0.2 < unpaired.p_value
    width = [math.log(found.ratio.high / found.ratio.low) for found in (paired, unpaired)]
    assert width[0] < width[1] / 3


def test_p_value_and_interval_agree() -> None:
    rng = np.random.default_rng(4)
    for shift in np.linspace(0.9, 1.1, 21):
        a, b = losses(5) * rng.uniform(0.5, 1.5, 200), shift * losses(5)
        found = compare(a, b)
        inside = found.ratio.low <= 1 <= found.ratio.high
        assert inside == (found.p_value > 0.05) or abs(found.p_value - 0.05) < 2e-3


def test_light_tails_give_the_t_interval() -> None:
    x = np.random.default_rng(6).normal(-1, 2, 2000)
    low, high = stats.t.interval(0.95, 1999, x.mean(), stats.sem(x))
    assert summary(x).mean == pytest.approx((x.mean(), low, high), abs=0.01)
    found = compare(x, np.zeros(2000))
    assert found.difference == pytest.approx((x.mean(), low, high), abs=0.01)
    assert math.isnan(found.ratio.value)


def test_intervals_cover_a_known_ratio() -> None:
    """In 200 repetitions; 0.88 is 4.5 standard deviations below 95 %.

    Coverage with 500 repetitions is measured by experiments/benchmarks/intervals.py.
    """
    rng, held = np.random.default_rng(7), np.zeros(2)
    truth = math.exp((0.5**2 - 0.4**2) / 2)
    for _ in range(200):
        z, e = rng.normal(size=400), rng.normal(size=400)
        a, b = np.exp(0.5 * z), np.exp(0.4 * (0.95 * z + math.sqrt(1 - 0.95**2) * e))
        other = np.exp(0.4 * rng.normal(size=400))
        found = compare(a, b, repeats=400), compare(a, other, repeats=400, paired=False)
        held += [one.ratio.low <= truth <= one.ratio.high for one in found]
    assert (held / 200 > 0.88).all()
    assert (held / 200 < 0.995).all()


def test_ratios_are_those_of_compare() -> None:
    b = losses(8)
    a = np.stack([b * np.random.default_rng(i).uniform(0.5, 1, 200) for i in range(4)])
    value, low, high = ratios(a, b)
    for k in range(4):
        assert (value[k], low[k], high[k]) == pytest.approx(compare(a[k], b).ratio)


def test_equal_and_zero_losses_have_no_width() -> None:
    a = losses(1)
    same = compare(a, a)
    assert same.ratio == (1, 1, 1)
    assert same.difference == (0, 0, 0)
    assert (same.p_improvement, same.p_value) == (0.5, 1)
    twice = compare(2 * a, a)
    assert twice.ratio == pytest.approx((2, 2, 2))
    assert twice.p_value == 0
    assert math.isnan(compare(a, np.zeros(200)).ratio.value)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(1e-30, 1e3), min_size=1, max_size=5), st.integers(0, 99), st.booleans())
def test_few_losses_of_any_size_have_an_interval(x: list[float], seed: int, paired: bool) -> None:
    """Resamples that draw one sample again and again have no spread, whatever rounding leaves."""
    a, b = np.array(x), np.exp(np.random.default_rng(seed).normal(0, 9, len(x)))
    value, low, high = compare(a, b, paired=paired, repeats=200).ratio
    assert 0 <= low <= value * (1 + 1e-9)
    assert value <= high * (1 + 1e-9)
    mean = summary(a, repeats=200).mean
    assert 0 <= mean.low <= mean.high
    found, _ = over_seeds([np.stack([a, b])], [np.stack([b, a])], repeats=200)
    assert not math.isnan(found.low + found.high)


def test_two_samples_say_nothing_of_their_mean_ratio() -> None:
    """Half of the resamples draw one of them twice and have no spread: t is infinite."""
    for seed in range(40):
        a, b = np.exp(np.random.default_rng(seed).normal(0, 4, (2, 2)))
        for paired in (True, False):
            found = compare(a, b, paired=paired)
            assert found.ratio[1:] == (0, math.inf)
        assert [float(end[0]) for end in ratios(a[None], b)[1:]] == [0, math.inf]
        assert summary(a).mean[1:] == (0, math.inf)


def test_one_sample_of_several_seeds_has_the_spread_of_its_seeds() -> None:
    level, base = np.array([[1.0], [2.0], [4.0]]), np.ones((3, 1))
    found, _ = over_seeds([level], [base])
    t = stats.ttest_1samp(np.log(level[:, 0]), 0).confidence_interval()
    assert found == pytest.approx((2, math.exp(t.low), math.exp(t.high)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_that_of_its_definition(p: list[float]) -> None:
    found = holm(p)
    order = np.argsort(p, kind="stable")
    running = 0.0
    for rank, place in enumerate(order):
        running = max(running, min(1.0, (len(p) - rank) * p[place]))
        assert found[place] == pytest.approx(running)
    with_nan = holm([*p, math.nan])
    np.testing.assert_array_equal(with_nan[:-1], found)
    assert math.isnan(with_nan[-1])


def test_interval_over_sets_is_students() -> None:
    x = [1.0, 2.0, 4.0, 5.5]
    low, high = stats.t.interval(0.95, 3, np.mean(x), stats.sem(x))
    assert interval_over_sets(x) == pytest.approx((np.mean(x), low, high))
    assert interval_over_sets([3.0])[0] == 3
    assert math.isnan(interval_over_sets([3.0]).low)
    assert math.isnan(interval_over_sets([]).value)


def test_the_chance_to_be_better_is_counted() -> None:
    a, b = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 1.0, 5.0])
    assert improvement(a, b) == pytest.approx((2 + 0.5) / 4)
    unpaired = compare(a, b, paired=False).p_improvement
    pairs = [(x < y) + (x == y) / 2 for x in a for y in b]
    assert unpaired == pytest.approx(np.mean(pairs))


def test_over_seeds_holds_the_spread_of_seeds() -> None:
    """With many samples and no spread over samples it is the t interval over seeds."""
    rng = np.random.default_rng(10)
    effect = rng.normal(0.1, 0.2, 5)
    g = losses(11, 500)
    base = np.repeat(g[None], 5, 0)
    level = base * np.exp(effect)[:, None]
    found, p = over_seeds([level, level], [base, base])
    low, high = stats.t.interval(0.95, 4, effect.mean(), stats.sem(effect))
    assert np.log(found) == pytest.approx((effect.mean(), low, high), rel=1e-6)
    t = abs(effect.mean()) / stats.sem(effect)
    assert p == pytest.approx(2 * stats.t.sf(t, 4), rel=1e-6)


def test_over_one_seed_it_is_the_paired_interval() -> None:
    a = losses(12, 1000)
    b = a * np.random.default_rng(13).uniform(0.8, 1.3, 1000)
    found, p = over_seeds([a], [b])
    other = compare(a, b)
    assert found == pytest.approx(other.ratio, rel=5e-3)
    assert p == pytest.approx(other.p_value, abs=0.05)


def test_ranks_and_critical_difference() -> None:
    scores = np.random.default_rng(14).normal(size=(12, 4)) + [0, 0.5, 1, 1.5]
    np.testing.assert_allclose(average_ranks(scores).sum(), 10)
    assert average_ranks([[1, 1, 3]]) == pytest.approx([1.5, 1.5, 3])
    assert friedman(scores) == pytest.approx(stats.friedmanchisquare(*scores.T).pvalue)
    assert math.isnan(friedman(scores[:, :2]))
    # Demsar 2006, table 5a: q_0.05 = 2.569 for four classifiers
    assert critical_difference(4, 14) == pytest.approx(
        2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3
    )


def test_bad_losses_are_named() -> None:
    with pytest.raises(InputError, match="sample 1 of row 0 is nan"):
        compare([1.0, math.nan], [1.0, 2.0])
    with pytest.raises(InputError, match="2 and 3 samples"):
        compare([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="statistic"):
        compare([1.0, 2.0], [1.0, 2.0], "mode")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="same seeds and samples"):
        over_seeds([np.ones((2, 5))], [np.ones((3, 5))])
