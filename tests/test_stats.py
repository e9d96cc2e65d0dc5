"""Each formula against an independent computation: scipy, counting by hand, arithmetic."""

import math
import random
import runpy
from itertools import product
from pathlib import Path
from statistics import median as plain_median
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from poclib import report, stats
from poclib.errors import StatisticsError
from poclib.stats import FAIL, INCONCLUSIVE, PASS, Ratio

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "interval_coverage.py"
coverage = SimpleNamespace(**runpy.run_path(str(BENCHMARK)))


def test_the_least_samples_are_those_of_the_house() -> None:
    assert [stats.minimum_n(q) for q in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]
    assert stats.minimum_n(0.1) == 36  # the tails are alike
    for q in (0.5, 0.9, 0.95, 0.99):  # below it, all n observations may lie under the quantile
        n = stats.minimum_n(q)
        assert scipy_stats.binom.pmf(n, n, q) <= 0.025 < scipy_stats.binom.pmf(n - 1, n - 1, q)


def test_quantiles_are_numpys_where_there_are_enough() -> None:
    values = np.random.default_rng(3).normal(100, 20, 80).tolist()
    for n in (6, 36, 80):
        for name, value in stats.quantiles(values[:n]).items():
            level = float(name[1:]) / 100
            known = n >= stats.minimum_n(level)
            assert value == (pytest.approx(np.quantile(values[:n], level)) if known else None)
    assert set(stats.quantiles(values[:5]).values()) == {None}


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_rounds_take_the_wider_of_range_and_students_interval(n: int) -> None:
    ratios = [0.61, 0.55, 0.58, 0.9, 0.57][:n]
    ratio = stats.overhead_ratio(ratios)
    logs = np.log(ratios)
    law = scipy_stats.t(n - 1, logs.mean(), scipy_stats.sem(logs)).interval(0.95)
    ends = (min(*ratios, math.exp(law[0])), max(*ratios, math.exp(law[1])))
    assert (ratio.low, ratio.high) == pytest.approx(ends, rel=1e-5)
    assert ratio.median == plain_median(ratios) and ratio.rounds == n


@pytest.mark.parametrize("n", [*range(6, 31), 100, 999])
def test_more_rounds_take_order_statistics_that_hold_95_percent(n: int) -> None:
    """The interval lies between two neighbouring ones of the binomial law, by scipy."""
    low, high = stats.interval(np.exp(np.arange(n, dtype=float) / n).tolist())
    holds = [1 - 2 * scipy_stats.binom.cdf(d - 1, n, 0.5) for d in range(1, n // 2 + 2)]
    d = max(d for d, chance in enumerate(holds, start=1) if chance >= 0.95)
    inner = (holds[d - 1] - 0.95) / (holds[d - 1] - holds[d])
    share = (n - d) * inner / (d + (n - 2 * d) * inner)
    assert 0 <= share < 1
    # The logarithms are 0, 1/n, 2/n ..., so a place among them can be read off.
    assert (math.log(low) * n, math.log(high) * n) == pytest.approx((d - 1 + share, n - d - share))


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
    pool = coverage.real_rounds([report.load(n) for n in report.names() if "sample-" in n])
    assert len(pool) > 20
    random = np.random.default_rng(20)
    found = (coverage.against_itself(pool, rounds, random) for _ in range(1000))
    ends = [stats.interval(ratios) for ratios in found]
    share = np.mean([low <= 1 <= high for low, high in ends])
    assert 0.916 <= share <= 0.984, share


def test_one_round_has_no_interval_none_has_nothing_and_impossible_ones_are_errors() -> None:
    assert stats.overhead_ratio([0.87]) == Ratio(0.87, None, None, 1)
    assert stats.overhead_ratio([]) == Ratio(None, None, None, 0)
    assert stats.overhead_ratio([0.5] * 4) == Ratio(0.5, *[pytest.approx(0.5)] * 2, 4)
    for impossible in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(StatisticsError, match="positive"):
            stats.overhead_ratio([impossible])


@pytest.mark.parametrize(
    ("ratios", "ratio", "verdict", "need"),
    [
        ([1.0, 1.999999], Ratio(1.5, 1.0, 1.999999, 5), PASS, None),  # exact at the limit
        ([2.000001, 3.0], Ratio(2.5, 2.000001, 3.0, 5), FAIL, None),
        ([1.0, 2.0], Ratio(1.5, 1.0, 2.0, 2), INCONCLUSIVE, 13),
        ([2.0, 3.0], Ratio(2.5, 2.0, 3.0, 2), INCONCLUSIVE, 13),
        # Squares of 1.6 to 2.3 around their mean 1.88: 0.308, so s^2 = 0.077 and
        # pi / 2 x 3.8416 x 0.077 / 0.04 = 11.6.
        ([1.6, 1.7, 1.8, 2.0, 2.3], Ratio(1.8, 1.5, 2.5, 5), INCONCLUSIVE, 12),
        ([1.9, 2.0, 2.1], Ratio(2.0, 1.9, 2.1, 3), INCONCLUSIVE, None),  # no number is known
        ([1.0, 2.0000001, 3.0], Ratio(2.0000001, 1.0, 3.0, 3), INCONCLUSIVE, None),
        ([1e-300, 1e300], Ratio(2.1, 1.0, 3.0, 2), INCONCLUSIVE, None),
        ([], Ratio(None, None, None, 0), INCONCLUSIVE, 2),
        ([1.0], Ratio(1.0, None, None, 1), INCONCLUSIVE, 2),
    ],
)
def test_the_gate_and_the_rounds_that_would_settle_it(
    ratios: list[float], ratio: Ratio, verdict: str, need: int | None
) -> None:
    assert stats.gate(ratios, ratio, 2.0) == (verdict, need)


def test_samples_of_the_stated_size_settle_it() -> None:
    """For the normal law of the formula; the half-width equals the distance to the limit."""
    n = math.ceil(math.pi / 2 * (1.96 * 0.2 / 0.1) ** 2)
    medians = np.median(np.random.default_rng(5).normal(1.9, 0.2, (4000, n)), axis=1)
    assert np.quantile(medians, 0.975) == pytest.approx(2.0, abs=0.01)


def test_spread_and_median_of_nothing_are_none() -> None:
    assert stats.spread([]) is None and stats.median([]) is None
    assert stats.spread([30.0, 10.0, 20.0]) == stats.Spread(20.0, 10.0, 30.0, 3)


# ── two ratios, one interval ────────────────────────────────────────────────────────────────


def test_the_ratio_of_ratios_by_hand() -> None:
    """On logarithms: 3 and 4 hundredths to the one side, 5 and 12 to the other."""
    first = Ratio(1.0, math.exp(-0.12), math.exp(0.03), 6)
    second = Ratio(0.5, 0.5 * math.exp(-0.04), 0.5 * math.exp(0.05), 9)
    ends = 0.5 * math.exp(-0.05), 0.5 * math.exp(0.13)
    assert stats.ratio_of_ratios(first, second) == Ratio(0.5, *map(pytest.approx, ends), 6)
    assert stats.ratio_of_ratios(first, Ratio(0.9, None, None, 1)).low is None
    assert stats.ratio_of_ratios(Ratio(None, None, None, 0), second).median is None


@pytest.mark.parametrize("rounds", [5, 8])
def test_its_interval_holds_the_true_change_as_often_as_it_says(rounds: int) -> None:
    random = np.random.default_rng(11)
    held = 0
    for _ in range(600):
        both = [np.exp(random.normal(mean, 0.05, rounds)) for mean in (0.0, math.log(0.8))]
        found = stats.ratio_of_ratios(*(stats.overhead_ratio(one.tolist()) for one in both))
        assert found.low is not None and found.high is not None
        held += found.low <= 0.8 <= found.high
    assert 0.93 < held / 600 < 0.995


def best_of_all_ms(work: list[float], paces: list[float]) -> float:
    """The shortest makespan there is: every prompt at every slot is tried."""
    ways = product(range(len(paces)), repeat=len(work))
    return min(
        max(
            sum(w for w, at in zip(work, way, strict=True) if at == i) / p
            for i, p in enumerate(paces)
        )
        for way in ways
    )


def listed_ms(order: list[float], paces: list[float]) -> float:
    """The list schedule by its definition: each to the slot that would end it first."""
    ends = [0.0] * len(paces)
    for amount in order:
        at = min(range(len(paces)), key=lambda i: ends[i] + amount / paces[i])
        ends[at] += amount / paces[at]
    return max(ends)


@pytest.mark.parametrize("seed", range(30))
def test_the_best_list_schedule_is_near_the_best_of_all(seed: int) -> None:
    """Longest first on uniform machines ends within 1.67 times the optimum (Friesen, 1987)."""
    draw = random.Random(seed)
    paces = [draw.choice([1.0, 0.5, draw.uniform(0.1, 2)]) for _ in range(draw.randint(1, 3))]
    work = [draw.lognormvariate(0, 0.8) for _ in range(draw.randint(1, 7))]
    found, best = stats.best_list_ms(work, paces), best_of_all_ms(work, paces)
    naive = min(listed_ms(sorted(work, reverse=True), paces), listed_ms(work, paces))
    assert found == pytest.approx(naive)
    assert best <= found * (1 + 1e-9) and found <= 1.67 * best


def test_equal_prompts_are_scheduled_at_the_optimum() -> None:
    assert stats.best_list_ms([1.0] * 8, [1 / 200, 1 / 300]) == pytest.approx(1000)
    assert stats.best_list_ms([1.0] * 8, [1 / 200, 1 / 200, 1 / 300]) == pytest.approx(600)
    assert stats.best_list_ms([], [1.0]) == 0
