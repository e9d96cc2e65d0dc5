"""Each formula against an independent computation: scipy, counting by hand, arithmetic."""

import math
import runpy
from pathlib import Path
from statistics import median as plain_median
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from poclib import report, stats
from poclib.errors import StatisticsError

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "interval_coverage.py"
coverage = SimpleNamespace(**runpy.run_path(str(BENCHMARK)))
SAMPLE = "sample-"


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


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_rounds_take_the_wider_of_range_and_students_interval(n: int) -> None:
    makespans = [0.61, 0.55, 0.58, 0.9, 0.57][:n]
    ratio = stats.overhead_ratio(makespans, [1.0] * n)
    logs = np.log(makespans)
    law = scipy_stats.t(n - 1, logs.mean(), scipy_stats.sem(logs)).interval(0.95)
    ends = (min(*makespans, math.exp(law[0])), max(*makespans, math.exp(law[1])))
    assert (ratio.low, ratio.high) == pytest.approx(ends, rel=1e-5)
    assert ratio.median == plain_median(makespans) and ratio.rounds == n
    assert ratio.low and ratio.high and ratio.low < ratio.median < ratio.high


@pytest.mark.parametrize("n", [*range(6, 31), 100, 999])
def test_more_rounds_take_order_statistics_that_hold_95_percent(n: int) -> None:
    """The interval lies between two neighbouring ones of the binomial law, by scipy."""
    ordered = np.exp(np.arange(n, dtype=float) / n)
    ratio = stats.overhead_ratio(ordered.tolist(), [1.0] * n)
    holds = [1 - 2 * scipy_stats.binom.cdf(d - 1, n, 0.5) for d in range(1, n // 2 + 2)]
    d = max(d for d, chance in enumerate(holds, start=1) if chance >= 0.95)
    inner = (holds[d - 1] - 0.95) / (holds[d - 1] - holds[d])
    share = (n - d) * inner / (d + (n - 2 * d) * inner)
    assert 0 <= share < 1
    # The logarithms are 0, 1/n, 2/n ..., so a place among them can be read off.
    assert math.log(ratio.low or 0) * n == pytest.approx(d - 1 + share)
    assert math.log(ratio.high or 0) * n == pytest.approx(n - d - share)


def test_many_rounds_agree_with_the_bootstrap_of_scipy() -> None:
    ratios = np.random.default_rng(1).normal(1.0, 0.1, 400)
    low, high = stats.interval(ratios)
    other = scipy_stats.bootstrap(
        (ratios,), np.median, method="percentile", n_resamples=10_000, rng=3
    ).confidence_interval
    assert (low, high) == pytest.approx((other.low, other.high), abs=0.005)


def test_the_interval_of_the_speedup_is_that_of_the_ratio_turned_over() -> None:
    ratios = np.random.default_rng(2).lognormal(0, 0.2, 9)
    low, high = stats.interval(ratios)
    assert stats.interval(1 / ratios) == pytest.approx((1 / high, 1 / low))


@pytest.mark.parametrize("law", ["normal", "skewed", "heavy-tailed", "drifting"])
@pytest.mark.parametrize("n", [5, 6, 7, 8, 12, 20])
def test_the_interval_holds_the_median_as_often_as_it_says(law: str, n: int) -> None:
    """2,000 experiments each: 95 % within what so many can show (3 standard errors: 1.5 %)."""
    experiments = coverage.ratios(law, n, 2000, np.random.default_rng(n))
    ends = [stats.interval(one) for one in experiments]
    share = np.mean([low <= 1 <= high for low, high in ends])
    assert 0.935 <= share <= 0.985, share


@pytest.mark.parametrize("rounds", [5, 6, 8])
def test_the_same_strategy_against_itself_is_told_apart_in_5_percent(rounds: int) -> None:
    """A/A: walls resampled from real rounds, with that machine's drift; 93 to 97 % hold 1.

    1,000 experiments can show that within 1.4 % (2 standard errors).
    """
    pool = coverage.real_rounds([report.load(name) for name in report.names() if SAMPLE in name])
    assert len(pool) > 20
    random = np.random.default_rng(20)
    found = (coverage.against_itself(pool, rounds, random) for _ in range(1000))
    ends = [stats.interval(ratios) for ratios in found]
    share = np.mean([low <= 1 <= high for low, high in ends])
    assert 0.916 <= share <= 0.984, share


def test_pairs_stay_together() -> None:
    # A drifting machine doubles both arms: the ratio does not move at all.
    ratio = stats.overhead_ratio([50, 100, 200, 400], [100, 200, 400, 800])
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


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


def test_a_line_is_the_one_scipy_finds_and_needs_points_that_vary() -> None:
    x, y = [32.0, 33, 33, 46, 50], [570.0, 568, 571, 790, 800]
    found, known = stats.line(x, y), scipy_stats.linregress(x, y)
    assert found is not None and found.n == 5
    assert (found.slope, found.at_zero) == pytest.approx((known.slope, known.intercept))
    assert stats.line([16.0] * 9, y[:1] * 9) is None
    assert stats.line([1.0, 2, 3], [1.0, 2, 3]) is None
