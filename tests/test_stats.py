"""Each formula against an independent computation: scipy, counting by hand, arithmetic."""

import math
from collections import Counter
from itertools import combinations_with_replacement
from statistics import median as plain_median

import numpy as np
import pytest
from scipy import stats as scipy_stats

from poclib import stats
from poclib.errors import StatisticsError


def test_the_least_samples_are_those_of_the_house() -> None:
    assert [stats.minimum_n(q) for q in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]
    assert stats.minimum_n(0.1) == 36  # the tails are alike
    for q in (0.5, 0.9, 0.95, 0.99):  # below it, all n observations may lie under the quantile
        n = stats.minimum_n(q)
        assert scipy_stats.binom.pmf(n, n, q) <= 0.025 < scipy_stats.binom.pmf(n - 1, n - 1, q)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_an_impossible_quantile_is_an_error(q: float) -> None:
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        stats.quantile([1.0] * 400, q)


def test_a_quantile_of_too_few_is_missing_with_its_reason() -> None:
    values = [float(v) for v in range(36)]
    assert stats.quantile(values, 0.9) == pytest.approx(31.5)  # 0.9 of the way from 0 to 35
    assert stats.quantile(values[:35], 0.9) == stats.Missing("p90 needs n ≥ 36, here n = 35")
    assert stats.quantile([1, 2, 3, 4, 5, 9], 0.5) == 3.5
    assert isinstance(stats.quantile([1, 2, 3, 4, 5], 0.5), stats.Missing)


def exact_interval(ratios: list[float]) -> tuple[float, float]:
    """The same interval from multisets with multinomial weights, in whole numbers."""
    n, weights = len(ratios), Counter[float]()
    for draw in combinations_with_replacement(ratios, n):
        ways = math.factorial(n)
        for times in Counter(draw).values():
            ways //= math.factorial(times)
        weights[plain_median(draw)] += ways
    assert sum(weights.values()) == n**n

    def end(ordered: list[float]) -> float:
        seen = 0
        for value in ordered:
            seen += weights[value]
            if seen * 40 >= n**n:  # 1 / 40 is 2.5 %
                return value
        raise AssertionError

    ordered = sorted(weights)
    return end(ordered), end(ordered[::-1])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_few_rounds_are_resampled_exactly(n: int) -> None:
    makespans = [0.61, 0.55, 0.58, 0.9, 0.57, 0.6][:n]
    ratio = stats.overhead_ratio(makespans, [1.0] * n)
    assert (ratio.low, ratio.high) == exact_interval(makespans)
    assert ratio.median == plain_median(makespans) and ratio.rounds == n


def test_five_rounds_span_their_range() -> None:
    # By hand: three or more of five draws are the least with chance 0.058 > 0.025.
    ratio = stats.overhead_ratio([55, 61, 58, 57, 60], [100] * 5)
    assert ratio == stats.Ratio(0.58, 0.55, 0.61, 5)


def test_many_rounds_agree_with_the_binomial_law_and_with_scipy() -> None:
    ratios = np.random.default_rng(1).normal(1.0, 0.1, 25)
    baselines = np.random.default_rng(2).uniform(900, 1100, 25)
    ratio = stats.overhead_ratio((ratios * baselines).tolist(), baselines.tolist())
    ordered = np.sort(ratios)
    # P(resampled median <= k-th value) is the chance of 13 or more of 25 draws among k.
    law = [scipy_stats.binom.sf(12, 25, k / 25) for k in range(1, 26)]
    assert ratio.low == pytest.approx(ordered[next(k for k, p in enumerate(law) if p >= 0.025)])
    assert ratio.high == pytest.approx(ordered[next(k for k, p in enumerate(law) if p >= 0.975)])
    other = scipy_stats.bootstrap(
        (ratios,), np.median, method="percentile", n_resamples=10_000, rng=3
    ).confidence_interval
    assert ratio.low == pytest.approx(other.low, abs=0.01)
    assert ratio.high == pytest.approx(other.high, abs=0.01)


def test_the_same_rounds_always_give_the_same_interval() -> None:
    times = [float(t) for t in range(80, 120)]
    assert stats.overhead_ratio(times, times[::-1]) == stats.overhead_ratio(times, times[::-1])


def test_pairs_stay_together() -> None:
    # A drifting machine doubles both arms: the ratio does not move at all.
    ratio = stats.overhead_ratio([50, 100, 200, 400], [100, 200, 400, 800])
    assert ratio == stats.Ratio(0.5, 0.5, 0.5, 4)


def test_one_round_has_no_interval_and_none_has_nothing() -> None:
    assert stats.overhead_ratio([2515], [2903]) == stats.Ratio(2515 / 2903, None, None, 1)
    assert stats.overhead_ratio([], []) == stats.Ratio(None, None, None, 0)


@pytest.mark.parametrize(
    ("makespans", "baselines"), [([1.0], []), ([0.0], [1.0]), ([1.0], [0.0]), ([math.nan], [1.0])]
)
def test_impossible_times_are_errors(makespans: list[float], baselines: list[float]) -> None:
    with pytest.raises(StatisticsError):
        stats.overhead_ratio(makespans, baselines)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.0, 1.999999, "PASS"),
        (1.0, 2.0, "INCONCLUSIVE"),
        (2.0, 3.0, "INCONCLUSIVE"),
        (2.000001, 3.0, "FAIL"),
        (1.9, 2.1, "INCONCLUSIVE"),
    ],
)
def test_the_gate_is_exact_at_its_limit(low: float, high: float, verdict: str) -> None:
    ratio = stats.Ratio((low + high) / 2, low, high, 5)
    assert stats.gate([low, high], ratio, 2.0).verdict == verdict


def test_the_rounds_needed_follow_their_formula() -> None:
    ratios = [1.6, 1.7, 1.8, 2.0, 2.3]
    ratio = stats.overhead_ratio(ratios, [1] * 5)
    found = stats.gate(ratios, ratio, 2.0)
    # By hand: mean 1.88, squares 0.0784 + 0.0324 + 0.0064 + 0.0144 + 0.1764 = 0.308, s^2 = 0.077;
    # pi / 2 x 3.8416 x 0.077 / 0.04 = 11.6.
    assert found == stats.Gate("INCONCLUSIVE", 12)


def test_the_rounds_needed_would_settle_it() -> None:
    # 0.95 of samples of the stated size must settle it, for the normal law of the formula.
    random, limit, s = np.random.default_rng(5), 2.0, 0.2
    need = stats.gate([1.7, 2.1], stats.Ratio(1.9, 1.7, 2.1, 2), limit).rounds_needed
    assert need is not None and need >= 3
    n = math.ceil(math.pi / 2 * (1.96 * s / 0.1) ** 2)  # the half-width then equals the distance
    medians = np.median(random.normal(1.9, s, (4000, n)), axis=1)
    assert np.quantile(medians, 0.975) == pytest.approx(limit, abs=0.01)


def test_the_gate_says_when_no_number_of_rounds_is_known() -> None:
    on_it = stats.Ratio(2.0, 1.9, 2.1, 3)
    assert stats.gate([1.9, 2.0, 2.1], on_it, 2.0) == stats.Gate("INCONCLUSIVE", None)
    near = stats.Ratio(2.0000001, 1.0, 3.0, 3)
    assert stats.gate([1.0, 2.0000001, 3.0], near, 2.0).rounds_needed is None
    for rounds in (0, 1):
        ratio = stats.overhead_ratio([1.0] * rounds, [1.0] * rounds)
        assert stats.gate([1.0] * rounds, ratio, 2.0) == stats.Gate("INCONCLUSIVE", 2)


def test_the_ideal_is_what_the_rates_allow() -> None:
    # By hand: 2 + 1 requests a second together; 6 requests take 2 s.
    assert stats.ideal_makespan(6, [500, 1000]) == pytest.approx(2000)
    assert stats.ideal_makespan(8, [381.55, 624.65]) == pytest.approx(1894.9, abs=0.1)
    for impossible in ([], [0.0], [-1.0], [math.inf]):
        with pytest.raises(StatisticsError):
            stats.ideal_makespan(8, impossible)


def test_spread_median_and_share_of_nothing_are_none() -> None:
    assert stats.spread([]) is None and stats.median([]) is None
    assert stats.network_share([], []) is None
    assert stats.spread([30.0, 10.0, 20.0]) == stats.Spread(20.0, 10.0, 30.0, 3)
    assert stats.network_share([10, 30], [100, 300]) == pytest.approx(0.1)


ROW: dict[str, float | None] = {
    "wall_ms": 100,
    "server_ms": 80,
    "connect_ms": 2,
    "send_ms": 3,
    "first_byte_wait_ms": 20,
    "first_token_wait_ms": 5,
    "generating_ms": 66,
    "last_byte_ms": 4,
}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"connect_send_ms": 5, "first_token_ms": 25, "generating_ms": 66, "own_ms": 4}),
        (
            {"generating_ms": None, "first_token_wait_ms": math.nan, "connect_ms": None},
            {"connect_send_ms": 3, "answering_ms": 93, "own_ms": 4},
        ),
        ({"send_ms": None}, {"answering_ms": 80, "outside_ms": 20}),
        ({"send_ms": None, "server_ms": 120}, {"answering_ms": 100, "outside_ms": 0}),
        ({"send_ms": None, "server_ms": None}, {"answering_ms": 100}),
        ({"wall_ms": math.nan}, {}),
    ],
)
def test_segments_add_up_to_the_wall(
    changes: dict[str, float | None], parts: dict[str, float]
) -> None:
    found = stats.segments({**ROW, **changes})
    assert found == parts and set(found) <= set(stats.SEGMENTS)
    assert not found or sum(found.values()) == 100


def test_a_line_is_the_one_scipy_finds_and_needs_points_that_vary() -> None:
    x, y = [32.0, 33, 33, 46, 50], [570.0, 568, 571, 790, 800]
    found, known = stats.line(x, y), scipy_stats.linregress(x, y)
    assert found is not None and found.n == 5
    assert (found.slope, found.at_zero) == pytest.approx((known.slope, known.intercept))
    assert stats.line([16.0] * 9, y[:1] * 9) is None
    assert stats.line([1.0, 2, 3], [1.0, 2, 3]) is None
