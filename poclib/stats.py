"""Headline numbers from plain sequences: ratios, intervals, gate. Knows no file and no frame.

Times are milliseconds. A statistic that the numbers cannot carry is None or `Missing`,
with its reason, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import StatisticsError

PASS, FAIL, INCONCLUSIVE = "PASS", "FAIL", "INCONCLUSIVE"
LEVEL = 0.95
# Student's t at 97.5 % with n - 1 degrees of freedom, for the few ratios n that need it.
_STUDENT = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764}
_MOST_ROUNDS = 1_000_000
# An interval whose ends lie further apart than this factor is of no use to anyone, so it is
# absent: of 2 rounds that scatter by 10 % one in five is, by 20 % half are. What is left holds the
# median with 94 and 90 % there, and with 95 % where rounds scatter by 5 %, or are 3 and more.
WIDEST = 10.0


@dataclass(frozen=True)
class Missing:
    """A statistic that is not there, and why."""

    reason: str


@dataclass(frozen=True)
class Ratio:
    """Median of per-round ratios with its 95 % interval; None where the rounds carry none."""

    median: float | None
    low: float | None
    high: float | None
    rounds: int


@dataclass(frozen=True)
class Gate:
    """PASS, FAIL or INCONCLUSIVE; `rounds_needed` in all to settle it, None if unknown."""

    verdict: str
    rounds_needed: int | None = None


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

    Quantiles by name (p50, p90, p95), None where n is too small for one. `between_ms` is a
    request's mean time from one token to the next where they were seen to arrive one by one,
    else from one chunk to the next (`apart` says which; None where there is no such time), and
    `why` is the reason. `tokens_per_s` is the median over requests of tokens by wall time,
    `together_per_s` all tokens by the time with any request in flight. `counted` tells by whom
    tokens were counted: the server, or as pieces that arrived here. `thought_ms`: to the first
    thought, of those that think.
    """

    n: int
    ttft_ms: dict[str, float | None]
    between_ms: dict[str, float | None]
    tokens_per_s: float | None
    together_per_s: float | None
    counted: str
    apart: str | None = "tokens"
    why: str = ""
    thought_ms: dict[str, float | None] | None = None


@dataclass(frozen=True)
class Contention:
    """What several requests at once did to one provider in the strategy's arms.

    `behaviour` as `contention` names it. Over one request alone: `rate` of tokens per second, and
    `server` of the server's own time of a request; None where unknown.
    """

    behaviour: str
    in_flight: int
    rate: float | None = None
    server: float | None = None


@dataclass(frozen=True)
class Headline:
    """Every number that is said of one report. `missing` has the reason of each None."""

    report: str
    strategy: str
    created: str
    providers: tuple[str, ...]
    prompts: int
    requests: int
    failed_requests: int
    incomplete_rounds: int
    overhead_ratio: Ratio
    round_ratios: tuple[float, ...]
    speedup: float | None
    efficiency: float | None
    ideal_ms: float | None
    ideal_from: str | None
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
    missing: dict[str, str] = field(default_factory=dict)
    # Share of the makespan with a request in flight, in the strategy's arms.
    busy: dict[str, float] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    # Whether the ratio is of times per output token, since the arms' answers are of unlike length.
    per_token: bool = False
    # Why no verdict can stand on these times.
    forbidden: tuple[str, ...] = ()
    # Servers whose own times cannot be, so that none of them is used, and why.
    disbelieved: dict[str, str] = field(default_factory=dict)
    # Whether each arm's texts begin with a mark of their own; calibration's are alike everywhere.
    marked: bool = False
    calibration_equal: Answers = Answers(0, 0, 0)
    roles: dict[str, str] = field(default_factory=dict)
    # The most requests that were in flight at once there, in the strategy's arms.
    at_once: dict[str, int] = field(default_factory=dict)
    contention: dict[str, Contention] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, numbers rounded to 3 decimals."""
        found: dict[str, Any] = _plain(asdict(self))
        return found


@dataclass(frozen=True)
class Share:
    """One provider's part in the pool: of its speed, of the prompts done, and time busy.

    Each is a share from 0 to 1; None where the report does not tell.
    """

    provider: str
    speed: float | None
    done: float
    busy: float | None


def shares(headline: Headline) -> list[Share]:
    """What each provider could do and what it did; empty where nothing was answered.

    The speed is 1 / (mean time of one request alone) over the sum of the providers'.
    """
    done = {p: found.n if (found := headline.wall_ms.get(p)) else 0 for p in headline.providers}
    total = sum(done.values())
    if not total:
        return []
    speeds = {p: 1 / headline.alone_ms[p] for p in done if headline.alone_ms.get(p)}
    whole = math.fsum(speeds.values()) if len(speeds) == len(done) else None
    return [
        Share(p, speeds[p] / whole if whole else None, count / total, headline.busy.get(p))
        for p, count in done.items()
    ]


@dataclass(frozen=True)
class Line:
    """A straight line through points: `slope` per unit of x, `at_zero` the rest."""

    slope: float
    at_zero: float
    n: int


def line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """Least squares of y on x; None under 4 points or where x does not vary.

    A description of these points, no claim about others. Source: Legendre 1805.
    """
    if len(x) < 4 or min(x) == max(x):
        return None
    slope, at_zero = np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)
    return Line(float(slope), float(at_zero), len(x))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def minimum_n(q: float) -> int:
    """The least sample whose `q` quantile can carry a claim: 6, 36, 72, 368 for p50…p99.

    From there on a two-sided 95 % interval between order statistics has a finite end on the
    tail's side: max(q, 1-q)^n <= 0.025. Source: Hahn & Meeker, Statistical Intervals, 5.2.
    Raises `StatisticsError` unless 0 < q < 1.
    """
    if not 0 < q < 1:
        raise StatisticsError(f"a quantile lies between 0 and 1, not at {q}")
    return math.ceil(math.log(0.025) / math.log(max(q, 1 - q)))


def quantile(values: Sequence[float], q: float) -> float | Missing:
    """The `q` quantile (linear between order statistics), or why n is too small for it."""
    need = minimum_n(q)
    if len(values) < need:
        return Missing(f"p{100 * q:g} needs n ≥ {need}, here n = {len(values)}")
    return float(np.quantile(np.asarray(values, dtype=float), q))


def quantiles(
    values: Sequence[float], levels: Sequence[int] = (50, 90, 95)
) -> dict[str, float | None]:
    """The quantiles that so many values can carry, by name; None for the others."""
    found = {f"p{level}": quantile(values, level / 100) for level in levels}
    return {key: None if isinstance(one, Missing) else one for key, one in found.items()}


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, min and max; None of nothing."""
    if not values:
        return None
    return Spread(math.fsum(values) / len(values), min(values), max(values), len(values))


def median(values: Sequence[float]) -> float | None:
    """The middle value; None of nothing. A point, no claim about a population."""
    return float(np.median(np.asarray(values, dtype=float))) if values else None


def overhead_ratio(makespans_ms: Sequence[float], baselines_ms: Sequence[float]) -> Ratio:
    """Median over rounds of makespan / baseline, with its paired 95 % interval.

    A round's two arms stay together: only their ratio counts. One round gives no interval, nor
    do rounds so unlike that its ends would lie further apart than the factor `WIDEST`.
    Raises `StatisticsError` where the sequences do not pair or a time is not positive.
    """
    if len(makespans_ms) != len(baselines_ms):
        raise StatisticsError(
            f"{len(makespans_ms)} makespans do not pair with {len(baselines_ms)} baselines"
        )
    if any(not (math.isfinite(t) and t > 0) for t in (*makespans_ms, *baselines_ms)):
        raise StatisticsError("a makespan must be a positive number of milliseconds")
    ratios = np.divide(makespans_ms, baselines_ms)
    if len(ratios) < 2:
        return Ratio(median(ratios.tolist()), None, None, len(ratios))
    low, high = interval(ratios)
    if high > WIDEST * low:
        return Ratio(median(ratios.tolist()), None, None, len(ratios))
    return Ratio(median(ratios.tolist()), low, high, len(ratios))


def interval(ratios: npt.ArrayLike) -> tuple[float, float]:
    """The 95 % interval of the median of 2 or more positive ratios, on their logarithms.

    From 6 ratios on: between order statistics, which hold the median with a chance that is
    binomial whatever the ratios' law, the two nearest such intervals interpolated to 95 %
    (Hettmansperger & Sheather, Statistics & Probability Letters 4, 1986). Below 6 even their
    range holds it with less than 95 %, so there at each end the farther of two: the range's,
    and mean plus or minus Student's t times the standard error, for near normal logarithms.

    Not the percentile bootstrap of the median: it is an interval between order statistics,
    too, but holds the median with 93.8 % at 5 ratios, 87.5 % at 7 and 92 % at 8. This one
    keeps 94 to 97 % at 2 to 20, normal, skewed, heavy-tailed or drifting
    (`benchmarks/interval_coverage.py`), and is a tenth wider than the range at 5.
    """
    logs = np.sort(np.log(np.asarray(ratios, dtype=float)))
    n = len(logs)
    if n in _STUDENT:
        middle, reach = logs.mean(), _STUDENT[n] * logs.std(ddof=1) / math.sqrt(n)
        low, high = min(logs[0], middle - reach), max(logs[-1], middle + reach)
    else:
        d, share = _depth(n)
        low = (1 - share) * logs[d - 1] + share * logs[d]
        high = (1 - share) * logs[n - d] + share * logs[n - d - 1]
    return float(np.exp(low)), float(np.exp(high))


def reach(n: int) -> float:
    """How far the interval of n near normal logarithms reaches, in their standard deviations.

    Student's t times the standard error below 6; from there on 1.96 standard errors of a
    median, the root of pi / 2 times those of a mean (see `gate`).
    """
    wide = _STUDENT[n] if n in _STUDENT else 1.96 * math.sqrt(math.pi / 2)
    return wide / math.sqrt(n)


def _depth(n: int) -> tuple[int, float]:
    """How many of n sorted values from each end a 95 % interval of the median begins.

    The d-th from each end still hold it with at least 95 %, and the next inner ones have
    this share in the interpolation.
    """
    k = np.arange(1, n // 2 + 1)
    chances = np.cumsum(np.log((n - k + 1) / k)) - n * math.log(2)
    below = np.cumsum(np.exp(np.concatenate([[-n * math.log(2)], chances])))
    holds = 1 - 2 * below  # holds[d - 1]: chance that the d-th from each end hold the median
    d = int(np.sum(holds >= LEVEL))
    inner = (holds[d - 1] - LEVEL) / (holds[d - 1] - holds[d])
    return d, float((n - d) * inner / (d + (n - 2 * d) * inner))


def gate(ratios: Sequence[float], ratio: Ratio, limit: float) -> Gate:
    """PASS where the interval ends below `limit`, FAIL where it begins above.

    Otherwise INCONCLUSIVE with the rounds that would settle it, if the ratios keep their
    median m and standard deviation s: (pi / 2) (1.96 s / (m - limit))^2. That is the sample
    size for a mean (NIST/SEMATECH e-Handbook, 7.2.2.2) times pi / 2, the variance of a
    normal sample's median over that of its mean (Cramér, Mathematical Methods of
    Statistics, 28.5). Under 2 rounds: 2, the fewest that give an interval at all; where there is
    none because the rounds are too unlike, the rounds that would give one, if they stay so.
    """
    if ratio.median is None or ratio.low is None or ratio.high is None:
        return Gate(INCONCLUSIVE, _rounds_for_an_interval(ratios))
    if ratio.high < limit:
        return Gate(PASS)
    if ratio.low > limit:
        return Gate(FAIL)
    distance = abs(ratio.median - limit)
    if distance == 0:
        return Gate(INCONCLUSIVE)  # no number of rounds settles a median on the limit
    with np.errstate(over="ignore", invalid="ignore"):  # absurd times give no estimate
        s = np.std(np.asarray(ratios, dtype=float), ddof=1)
        need = float(math.pi / 2 * (1.96 * s / distance) ** 2)
    if not need <= _MOST_ROUNDS:
        return Gate(INCONCLUSIVE)
    return Gate(INCONCLUSIVE, max(math.ceil(need), ratio.rounds + 1))


def _rounds_for_an_interval(ratios: Sequence[float]) -> int | None:
    if len(ratios) < 2:
        return 2
    s = float(np.std(np.log(np.asarray(ratios, dtype=float)), ddof=1))
    more = range(len(ratios) + 1, 10_000)
    return next((n for n in more if 2 * reach(n) * s <= math.log(WIDEST)), None)


def ideal_makespan(prompts: int, alone_ms: Sequence[float]) -> float:
    """n / Σ 1/t_p: all providers busy to the end, each with t_p ms a request.

    Raises `StatisticsError` without providers or with a time that is not positive.
    """
    if not alone_ms or any(not (math.isfinite(t) and t > 0) for t in alone_ms):
        raise StatisticsError("the ideal needs a positive mean wall time of every provider")
    return prompts / math.fsum(1 / t for t in alone_ms)


def network_share(over_ms: Sequence[float], wall_ms: Sequence[float]) -> float | None:
    """Σ over / Σ wall over the remote requests; None where none of them reports."""
    wall = math.fsum(wall_ms)
    return math.fsum(over_ms) / wall if over_ms and wall > 0 else None
