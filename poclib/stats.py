"""Headline numbers from plain sequences: ratios, intervals, gate. Knows no file and no frame.

Times are milliseconds. A statistic that the numbers cannot carry is None, never a guess.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from heapq import heapreplace
from itertools import accumulate
from typing import Any

from .errors import StatisticsError

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
LEVEL = 0.95
# Student's t at 97.5 % with n - 1 degrees of freedom, for the few ratios n that need it.
_STUDENT = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764}
_MOST_ROUNDS = 1_000_000
# An interval whose ends lie further apart than this factor is of no use, so it is absent: of
# 2 rounds that scatter by 10 % one in five is. The others still hold the median with 94 %.
WIDEST = 10.0
_NOT_STREAMED = "its answers were not streamed, so no first token was seen"


@dataclass(frozen=True)
class Ratio:
    """Median of per-round ratios with its 95 % interval; None where the rounds carry none."""

    median: float | None
    low: float | None
    high: float | None
    rounds: int


@dataclass(frozen=True)
class Spread:
    """Mean and range of `n` numbers."""

    mean: float
    min: float
    max: float
    n: int


@dataclass(frozen=True)
class Answers:
    """How the answers of the two arms compare, prompt by prompt."""

    equal: int
    different: int
    compared: int


@dataclass(frozen=True)
class Stream:
    """How one provider's streamed answers came, over `n` of the strategy's requests.

    Quantiles by name (p50, p90, p95), None where n is too small for one.
    """

    n: int
    ttft_ms: dict[str, float | None]
    between_ms: dict[str, float | None]  # a request's mean time from one token or chunk to the next
    tokens_per_s: float | None  # the median of tokens by wall time
    together_per_s: float | None  # all tokens by the time with any request in flight
    counted: str  # by the server, or as pieces that arrived here
    apart: str | None  # tokens, where each was seen to arrive, or chunks; None: neither
    why: str  # the reason of that
    thought_ms: dict[str, float | None] | None  # to the first thought, if any


@dataclass(frozen=True)
class Contention:
    """What several requests at once did to one provider in the strategy's arms."""

    behaviour: str  # as `contention` names it
    in_flight: int
    rate: float | None = None  # of tokens per second, over that of one request alone
    server: float | None = None  # of the server's own time of a request, likewise


@dataclass(frozen=True)
class Headline:
    """Every number that is said of one report; `missing` has the reason of each None."""

    report: str
    strategy: str
    created: str
    roles: dict[str, str]
    prompts: int
    requests: int
    failed_requests: int
    incomplete_rounds: int
    overhead_ratio: Ratio
    round_ratios: tuple[float, ...]
    efficiency: float | None
    ideal_ms: float | None
    ideal_from: str | None
    unbatched: tuple[str, ...]  # batched several, of which the ideal counts one at a time
    best_order: float | None  # the best order's makespan over the strategy's, each length known
    order_unknown: str  # why that is None
    overfull: tuple[str, ...]  # held more at once than their servers work on: some waited there
    copies: int  # requests for a prompt that another answered first
    copies_ms: float  # how long they were under way
    makespan_ms: float | None
    baseline_ms: float | None
    alone_ms: dict[str, float]
    wall_ms: dict[str, Spread | None]
    added_latency_ms: dict[str, Spread | None]
    network_share: float | None
    round_trip_ms: dict[str, float | None]
    segments_ms: dict[str, dict[str, float]]
    answers_equal: Answers
    gate_max_ratio: float
    band: float
    verdict: str
    rounds_needed: int | None
    busy: dict[str, float]  # share of the makespan with a request in flight, under the strategy
    streams: dict[str, Stream]
    per_token: bool  # the arms' answers are of unlike length, so the ratio is of times per token
    forbidden: tuple[str, ...]  # why no verdict can stand on these times
    disbelieved: dict[str, str]  # servers whose own times cannot be, so none is used, and why
    marked: bool  # each arm's texts begin with a mark of their own; calibration's are alike
    calibration_equal: Answers
    at_once: dict[str, int]  # the most requests in flight there, under the strategy
    contention: dict[str, Contention]

    @property
    def providers(self) -> tuple[str, ...]:
        return tuple(self.roles)

    @property
    def speedup(self) -> float | None:
        return 1 / self.overhead_ratio.median if self.overhead_ratio.median else None

    @property
    def missing(self) -> dict[str, str]:
        """Why each number that is None, or not there, is missing."""

        def untimed(role: str) -> str:
            if role not in self.roles.values():
                return f"no provider is {role}"
            return f"no answered request of a {role} provider has a server time"

        no_round = "no round has an answer to every prompt in both arms"
        reasons = dict.fromkeys(("speedup", "makespan_ms", "baseline_ms"), no_round) | {
            "ideal_ms": "some provider answered nothing, so its speed is unknown",
            "efficiency": "it needs the ideal and a complete round",
            "network_share": untimed("remote"),
            "best_order": self.order_unknown,
        }
        missing = {key: why for key, why in reasons.items() if getattr(self, key) is None}
        for role, added in self.added_latency_ms.items():
            if added is None:
                missing[f"added_latency_ms.{role}"] = untimed(role)
        for name, trip in self.round_trip_ms.items():
            if trip is None:
                missing[f"round_trip_ms.{name}"] = "it was not probed"
        if self.overhead_ratio.low is None:
            wide = f"its ends would lie further apart than a factor of {WIDEST:g}"
            few = f"complete rounds: {self.overhead_ratio.rounds}; an interval needs 2"
            missing["overhead_ratio.low"] = few if self.overhead_ratio.rounds < 2 else wide
        for name, wall in self.wall_ms.items():
            if wall and self.makespan_ms and name not in self.streams:
                missing[f"streams.{name}"] = _NOT_STREAMED
        return missing

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, numbers rounded to 3 decimals."""
        derived = {key: getattr(self, key) for key in ("providers", "speedup", "missing")}
        text = json.dumps(asdict(self) | derived)
        plain: dict[str, Any] = json.loads(text, parse_float=lambda number: round(float(number), 3))
        return plain


def minimum_n(q: float) -> int:
    """The least sample whose `q` quantile can carry a claim: 6, 36, 72, 368 for p50…p99.

    From there on a two-sided 95 % interval between order statistics has a finite end on the
    tail's side: max(q, 1-q)^n <= 0.025. Source: Hahn & Meeker, Statistical Intervals, 5.2.
    """
    return math.ceil(math.log(0.025) / math.log(max(q, 1 - q)))


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p90 and p95, linear between order statistics; None of too few values."""
    cuts = statistics.quantiles(values, n=100, method="inclusive") if len(values) > 1 else []
    enough = {level: len(values) >= minimum_n(level / 100) for level in (50, 90, 95)}
    return {f"p{level}": cuts[level - 1] if known else None for level, known in enough.items()}


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, min and max; None of nothing."""
    if not values:
        return None
    return Spread(statistics.fmean(values), min(values), max(values), len(values))


def known(values: Iterable[float | None]) -> list[float]:
    """Those that are not None."""
    return [value for value in values if value is not None]


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None of none."""
    return statistics.fmean(found) if (found := known(values)) else None


def median(values: Iterable[float | None]) -> float | None:
    """The middle one of those that are known; None of none. No claim about a population."""
    return float(statistics.median(found)) if (found := known(values)) else None


def overhead_ratio(ratios: Sequence[float]) -> Ratio:
    """The median of the rounds' ratios (makespan / baseline), with its paired 95 % interval.

    That is None for one round, or wider than `WIDEST`. Raises `StatisticsError` for no ratio.
    """
    if not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise StatisticsError("the ratio of a round must be a positive number")
    if len(ratios) >= 2:
        low, high = interval(ratios)
        if high <= WIDEST * low:
            return Ratio(median(ratios), low, high, len(ratios))
    return Ratio(median(ratios), None, None, len(ratios))


def interval(ratios: Iterable[float]) -> tuple[float, float]:
    """The 95 % interval of the median of 2 or more positive ratios, on their logarithms.

    From 6 ratios on: between order statistics, which hold the median with a chance that is
    binomial whatever the ratios' law, the two nearest such intervals interpolated to 95 %
    (Hettmansperger & Sheather, Statistics & Probability Letters 4, 1986). Below 6 even their
    range holds it with less than 95 %, so there at each end the farther of two: the range's,
    and mean plus or minus Student's t times the standard error, for near normal logarithms.

    It holds the median with 94 to 97 % at 2 to 20 ratios (`benchmarks/interval_coverage.py`).
    """
    logs = sorted(map(math.log, ratios))
    n = len(logs)
    if n in _STUDENT:
        middle, far = statistics.fmean(logs), reach(n) * statistics.stdev(logs)
        return math.exp(min(logs[0], middle - far)), math.exp(max(logs[-1], middle + far))
    # How surely the interval from the d-th of both ends holds the median, for d = 1, 2, …
    below = accumulate(math.comb(n, d) for d in range(n // 2 + 1))
    holds = [1 - 2 * ways / 2**n for ways in below]
    d = sum(chance >= LEVEL for chance in holds)
    inner = (holds[d - 1] - LEVEL) / (holds[d - 1] - holds[d])
    share = (n - d) * inner / (d + (n - 2 * d) * inner)
    low = (1 - share) * logs[d - 1] + share * logs[d]
    high = (1 - share) * logs[n - d] + share * logs[n - d - 1]
    return math.exp(low), math.exp(high)


def reach(n: int) -> float:
    """How far the interval of n near normal logarithms reaches, in their standard deviations.

    From 6 on 1.96 standard errors of a median: the root of pi / 2 times those of a mean.
    """
    wide = _STUDENT[n] if n in _STUDENT else 1.96 * math.sqrt(math.pi / 2)
    return wide / math.sqrt(n)


def gate(ratios: Sequence[float], ratio: Ratio, limit: float) -> tuple[str, int | None]:
    """The verdict, and the rounds in all that would settle it: None where settled or unknown.

    PASS where the interval ends below `limit`, FAIL where it begins above, else INCONCLUSIVE. If
    the ratios keep their median m and standard deviation s, (pi / 2) (1.96 s / (m - limit))^2
    rounds settle it: the sample size for a mean (NIST/SEMATECH e-Handbook, 7.2.2.2) times the
    variance of a normal sample's median over that of its mean (Cramér, Mathematical Methods of
    Statistics, 28.5). Without an interval: the rounds that would give one.
    """
    if ratio.median is None or ratio.low is None or ratio.high is None:
        if len(ratios) < 2:
            return INCONCLUSIVE, 2
        noise, apart = statistics.stdev(map(math.log, ratios)), math.log(WIDEST)
        more = range(len(ratios) + 1, 10_000)
        return INCONCLUSIVE, next((n for n in more if 2 * reach(n) * noise <= apart), None)
    if ratio.high < limit:
        return PASS, None
    if ratio.low > limit:
        return FAIL, None
    distance = abs(ratio.median - limit)
    errors = 1.96 * statistics.stdev(ratios) / distance if distance else math.inf
    need = math.pi / 2 * errors * errors
    settled = need <= _MOST_ROUNDS
    return INCONCLUSIVE, max(math.ceil(need), ratio.rounds + 1) if settled else None


def best_list_ms(work: Sequence[float], paces: Sequence[float]) -> float:
    """The makespan of the better of two list schedules: longest first, or in the order given."""
    return min(list_ms(sorted(work, reverse=True), paces), list_ms(work, paces))


def list_ms(work: Iterable[float], paces: Sequence[float]) -> float:
    """A list schedule's makespan: each to the slot, of these `paces` per ms, that ends it first."""
    # Of slots of one pace only the one that is free first can be the best.
    free = {pace: [0.0] * count for pace, count in Counter(paces).items()}
    last = 0.0
    for amount in work:
        end, pace = min((ends[0] + amount / pace, pace) for pace, ends in free.items())
        heapreplace(free[pace], end)
        last = max(last, end)
    return last


def ratio_of_ratios(first: Ratio, second: Ratio) -> Ratio:
    """Second over first, with the interval that their own two intervals give.

    On logarithms each end of a difference lies as far off as the root of the sum of the squares
    of the two distances that lead there (MOVER: Zou & Donner, Statistics in Medicine 27, 2008).
    """
    rounds = min(first.rounds, second.rounds)
    if not first.median or not second.median:
        return Ratio(None, None, None, rounds)
    middle = second.median / first.median
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Ratio(middle, None, None, rounds)
    below = math.hypot(math.log(second.median / second.low), math.log(first.high / first.median))
    above = math.hypot(math.log(second.high / second.median), math.log(first.median / first.low))
    return Ratio(middle, middle * math.exp(-below), middle * math.exp(above), rounds)
