"""What the points of a wire test say: times and rates of each case, and the law of a token's time.

    t_token = compute + stage x workers + slope x hops x round trip + bytes / bandwidth

Hops and bytes are as counted on the wire; compute, stage and slope are fitted by least squares. The
slope is 1 where each counted hop costs one round trip.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from ..points import Case, Passed, Point, Wire
from ..records import Request

FITTED_TO_MS = 100.0  # the longest round trip that a fit is made of


@dataclass(frozen=True)
class Seen:
    """One case over its repeats: medians. None where it has no answer, or none was counted.

    `token_ms`: from one token of a sequence to its next; `rate`: tokens a second of all sequences
    together, from the first request to the last answer; hops and bytes a token, after the first;
    `round_trip_ms` of the link, or as probed where the workers are a person's own.
    """

    case: Case
    repeats: int
    round_trip_ms: float
    token_ms: float | None
    ttft_ms: float | None
    rate: float | None
    rates: tuple[float, ...]
    prompt_tokens: float | None
    hops: float | None
    to_worker_bytes: float | None
    to_coordinator_bytes: float | None
    problem: str | None

    @property
    def workers(self) -> int:
        return int(self.case.shard.get("workers", 1))

    @property
    def shares(self) -> str:
        """The layers' split as it is written: 1:2."""
        split = self.case.shard.get("split") or [1.0] * self.workers
        return ":".join(f"{share:g}" for share in split)

    @property
    def bytes_ms(self) -> float:
        """What a token's bytes take at the case's bandwidth, one direction after the other."""
        if self.case.bandwidth_mbit_s is None:
            return 0.0
        size = (self.to_worker_bytes or 0) + (self.to_coordinator_bytes or 0)
        return 8e-3 * size / self.case.bandwidth_mbit_s


@dataclass(frozen=True)
class Law:
    """Fitted to `n` points, of whose variance it explains `r2`; milliseconds, see the module."""

    compute_ms: float
    stage_ms: float
    slope: float
    r2: float
    n: int

    def token_ms(self, workers: int, hops: float, round_trip_ms: float, bytes_ms: float = 0) -> float:
        """The time of a token."""
        computed_ms = self.compute_ms + self.stage_ms * workers
        return computed_ms + self.slope * hops * round_trip_ms + bytes_ms

    def of(self, one: Seen) -> float:
        """The time of a token in that case."""
        return self.token_ms(one.workers, one.hops or 0, one.round_trip_ms, one.bytes_ms)


def seen(wire: Wire, study: str) -> list[Seen]:
    """The cases of a study, in the order they were first measured."""
    groups: dict[str, list[Point]] = {}
    for point in wire.points:
        if point.case.study == study:
            groups.setdefault(json.dumps(_plain(point.case)), []).append(point)
    return [_seen(group) for group in groups.values()]


def _plain(case: Case) -> list[object]:
    return [getattr(case, name) for name in case.__struct_fields__]


def _seen(group: Sequence[Point]) -> Seen:
    case = group[0].case
    good = [point for point in group if point.problem is None]
    rates = tuple(_rate(point.requests) for point in good)
    counted = [counted for point in good if (counted := _a_token(point))]
    trips = [case.round_trip_ms if p.probed_ms is None else p.probed_ms for p in group]

    def middle(value: Callable[[Request], float | None]) -> float | None:
        found = [v for point in good for row in point.requests if (v := value(row)) is not None]
        return median(found) if found else None

    return Seen(
        case=case,
        repeats=len(good),
        round_trip_ms=median(trips),
        token_ms=middle(_between_ms),
        ttft_ms=middle(_ttft_ms),
        rate=median(rates) if rates else None,
        rates=rates,
        prompt_tokens=middle(lambda row: row.prompt_tokens),
        problem=next((point.problem for point in group if point.problem), None),
        **{
            name: fmean(each[i] for each in counted) if counted else None
            for i, name in enumerate(("hops", "to_worker_bytes", "to_coordinator_bytes"))
        },
    )


def _between_ms(row: Request) -> float | None:
    """Several tokens may come together, as where a guess was right."""
    times, tokens = row.token_ms or [], row.output_tokens or 0
    return (times[-1] - times[0]) / (tokens - 1) if tokens > 1 and len(times) > 1 else None


def _ttft_ms(row: Request) -> float | None:
    first, start = row.marks.first_token_ms, row.marks.start_ms
    return None if first is None or start is None else first - start


def _rate(rows: Sequence[Request]) -> float:
    first = min(row.marks.start_ms or 0 for row in rows)
    last = max(row.marks.end_ms or 0 for row in rows)
    return 1000 * sum(row.output_tokens or 0 for row in rows) / (last - first)


def _a_token(point: Point) -> list[float] | None:
    """Hops and bytes of a token after the first: the whole less what the first tokens took."""
    tokens = sum(row.output_tokens or 0 for row in point.requests) - len(point.requests)
    if not point.passed or not point.passed_first or tokens < 1:
        return None
    names = Passed.__struct_fields__
    pairs = [(getattr(point.passed, name), getattr(point.passed_first, name)) for name in names]
    return [(both - first) / tokens for both, first in pairs]


def fit(rows: Sequence[Seen]) -> Law:
    """The law by least squares over cases that have a time; at least four, of two stage counts."""
    fitted = [one for one in rows if one.token_ms is not None and one.hops is not None]
    facts = np.array([[1.0, one.workers, (one.hops or 0) * one.round_trip_ms] for one in fitted])
    times = np.array([(one.token_ms or 0) - one.bytes_ms for one in fitted])
    found, *_ = np.linalg.lstsq(facts, times, rcond=None)
    left = float(((times - facts @ found) ** 2).sum())
    spread = float(((times - times.mean()) ** 2).sum())
    return Law(*map(float, found), r2=1 - left / spread if spread else 0.0, n=len(fitted))


def lawful(wire: Wire) -> list[Seen]:
    """The cases that a law is fitted to: one sequence, round trips up to 100 ms."""
    rows = [one for one in seen(wire, "law") if one.token_ms and one.case.in_flight == 1]
    return [one for one in rows if one.round_trip_ms <= FITTED_TO_MS]


def hops_fitted(rows: Sequence[Seen]) -> float:
    """The slope of a token's time over the round trip, of cases with one split."""
    slope, _ = np.polyfit([r.round_trip_ms for r in rows], [r.token_ms or 0 for r in rows], 1)
    return float(slope)


def left_out(rows: Sequence[Seen], by: Callable[[Seen], Hashable]) -> dict[Hashable, list[float]]:
    """For each value of `by`: predicted over measured time of its cases, by a fit without them."""
    ratios: dict[Hashable, list[float]] = {}
    for value in dict.fromkeys(map(by, rows)):
        law = fit([one for one in rows if by(one) != value])
        ratios[value] = [law.of(one) / (one.token_ms or 1) for one in rows if by(one) == value]
    return ratios
