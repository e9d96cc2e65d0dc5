"""What a provider does with several requests at once, and how many it should hold: decisions only.

Knows rows and numbers; sends nothing and writes no sentence.

A level is one arm with so many requests in flight. Its throughput is that of the time during which
so many really were: filling and draining, of short arms most of all, would favour the higher.
From one level to the next a provider *batches* (throughput rises), *queues* (it stays, and the
server's own time of a request too: the rest waits), *shares* (it stays, but each request takes the
server longer), *thrashes* (it falls), or *refuses*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from statistics import fmean, median
from typing import Literal

from .records import Arm, Request

Behaviour = Literal["batches", "queues", "shares", "thrashes", "refuses", "undisturbed"]
# Throughput against that of one request alone. Between them the difference may be noise.
GAIN, LOSS = 1.2, 0.8
# A request's time against alone, from which on others were in its way.
SLOWER = 1.5
# So many at once are tried even where fewer gained nothing: some engines first gain there.
TRIED = 8
# A level is recommended where no higher one gives clearly more than so much of it would be.
ENOUGH = 0.87
# A server is full where its own queue takes this share of the time that it works on a request:
# as many wait as that share of those it works on.
FULL = 0.2
REFUSALS = (429, 503)


@dataclass(frozen=True)
class Level:
    """Requests of one provider with at most `in_flight` at once; means, None where unknown.

    `tokens_per_s` counts every token that came, those of requests that were cut too; `spread` is
    half the range of its parts, as a share. `queue_ms` is what the server says of its own queue.
    """

    in_flight: int
    answered: int
    refused: int
    tokens_per_s: float | None
    request_ms: float | None
    server_ms: float | None
    ttft_ms: float | None
    queue_ms: float | None = None
    spread: float = 0.0

    @property
    def full(self) -> bool:
        """Whether the server itself says that it let a good part of the requests wait."""
        return (self.queue_ms or 0.0) > FULL * (self.server_ms or inf)


def level(rows: Sequence[Request], in_flight: int | None = None) -> Level:
    """The level that `rows` of one provider and one arm make; `in_flight` counted if not given.

    Where it is given, and was held for long enough, throughput is that of this time alone.
    """
    good = [row for row in rows if row.outcome == "ok"]
    spans = [
        (row.marks.start_ms, row.marks.end_ms)
        for row in rows
        if row.marks.start_ms is not None and row.marks.end_ms is not None
    ]
    lasted_ms = max((end for _, end in spans), default=0.0) - min((s for s, _ in spans), default=0)
    rate = 1000 * tokens(rows) / lasted_ms if lasted_ms else None
    steady = _steady(rows, in_flight) if in_flight else None
    return Level(
        in_flight=_most_at_once(spans) if in_flight is None else in_flight,
        answered=len(good),
        refused=sum(row.status in REFUSALS for row in rows),
        tokens_per_s=steady[0] if steady else rate,
        request_ms=_mean([row.wall_ms for row in good]),
        server_ms=_mean([_work_ms(row) for row in good]),
        ttft_ms=_mean(
            [
                m.first_token_ms - m.start_ms
                for m in (row.marks for row in good)
                if m.first_token_ms is not None and m.start_ms is not None
            ]
        ),
        queue_ms=_mean([row.server.queue_ms for row in good]),
        spread=steady[1] if steady else 0.0,
    )


def _steady(rows: Sequence[Request], in_flight: int) -> tuple[float, float] | None:
    """Throughput from the moment that `in_flight` were sent until the last was, and its spread.

    None where less than `in_flight` answers came in this time. Its parts hold as many answers each.
    """
    starts = sorted(row.marks.start_ms for row in rows if row.marks.start_ms is not None)
    if len(starts) <= in_flight:
        return None
    full_ms, last_ms = starts[in_flight - 1], starts[-1]
    came: list[tuple[float, float]] = []
    for row in rows:
        at_ms = row.token_ms or [end for end in [row.marks.end_ms] if end is not None]
        came += [(one, tokens([row]) / len(at_ms)) for one in at_ms]
    ends = sorted(row.marks.end_ms or 0.0 for row in rows if row.outcome == "ok")
    ends = [end for end in ends if full_ms < end <= last_ms]
    if len(ends) < in_flight:
        return None

    def rate(begin_ms: float, end_ms: float) -> float:
        """Tokens per second in this time."""
        return 1000 * sum(n for at, n in came if begin_ms < at <= end_ms) / (end_ms - begin_ms)

    parts = [full_ms, *ends[in_flight - 1 :: in_flight]]
    rates = [rate(a, b) for a, b in pairwise(parts) if b > a]
    most, least = max(rates), min(rates)
    return rate(full_ms, last_ms), (most - least) / (most + least) if most else 0.0


def alone(rows: Sequence[Request]) -> Level:
    """As `level`, of requests sent one at a time, with pauses: medians, since few are enough."""
    good = [row for row in rows if row.outcome == "ok"]
    wall_ms = middle([row.wall_ms for row in good])
    rate = 1000 * tokens(good) / len(good) / wall_ms if wall_ms else None
    server_ms = middle([_work_ms(row) for row in good])
    return Level(1, len(good), 0, rate, wall_ms, server_ms, level(good).ttft_ms)


def _work_ms(row: Request) -> float | None:
    """The server's own time without the queue that some servers report in it."""
    total_ms = row.server.total_ms
    return None if total_ms is None else total_ms - (row.server.queue_ms or 0.0)


def tokens(rows: Sequence[Request]) -> int:
    """Output tokens that came, whatever became of their request."""
    return sum(row.output_tokens or len(row.token_ms or ()) for row in rows)


def levels(arms: Sequence[Arm], provider: str) -> list[Level]:
    """The levels at which one provider was driven, lowest first."""
    limits = [(arm, (arm.limits or {}).get(provider)) for arm in arms if arm.arm == "capacity"]
    found = [level(arm.requests, limit) for arm, limit in limits if limit is not None]
    return best_of(found)


def best_of(found: Sequence[Level]) -> list[Level]:
    """The levels, lowest first; of those that were measured twice the better one.

    What disturbs a machine only ever makes it slower, so that one is nearer to the truth.
    """
    best: dict[int, Level] = {}
    for one in found:
        other = best.get(one.in_flight)
        if other is None or (one.tokens_per_s or 0.0) > (other.tokens_per_s or 0.0):
            best[one.in_flight] = one
    return [best[in_flight] for in_flight in sorted(best)]


def behaviour(found: Level, alone: Level) -> Behaviour:
    """What the provider did at a level, held against one request alone."""
    if found.refused:
        return "refuses"
    if found.in_flight <= 1:
        return "undisturbed"
    rate = over(found.tokens_per_s, alone.tokens_per_s)
    if rate is not None and rate >= GAIN:
        return "batches"
    if rate is not None and rate <= LOSS:
        return "thrashes"
    if (over(found.request_ms, alone.request_ms) or 1.0) < SLOWER:
        return "undisturbed"
    return "shares" if (over(found.server_ms, alone.server_ms) or 1.0) >= SLOWER else "queues"


def next_in_flight(found: Sequence[Level], most: int) -> int | None:
    """How many to try next: twice as many, until a loss, a refusal, a queue, or no gain twice."""
    if not found:
        return 1
    last, before = found[-1], found[:-1]
    if last.refused or last.full or last.in_flight >= most:
        return None
    rate = last.tokens_per_s or 0.0
    if lost(last, before):
        return None
    if len(before) > 1 and last.in_flight >= TRIED:
        earlier = max(one.tokens_per_s or 0.0 for one in before[:-1])
        if max(rate, before[-1].tokens_per_s or 0.0) < GAIN * earlier:
            return None
    return min(2 * last.in_flight, most)


def lost(last: Level, before: Sequence[Level]) -> bool:
    """Whether a level gives clearly less than fewer in flight gave; not where it was refused."""
    best = max((one.tokens_per_s or 0.0 for one in before), default=0.0)
    return not last.refused and bool(before) and (last.tokens_per_s or 0.0) <= LOSS * best


@dataclass(frozen=True)
class Found:
    """What a provider does, the requests in flight to hold there, and the levels that show it."""

    behaviour: Behaviour
    capacity: int
    levels: tuple[Level, ...]


def conclude(found: Sequence[Level]) -> Found:
    """The behaviour over all levels (the first is one request alone), and the capacity.

    That is the smallest level that none with more in flight clearly beats, among those without a
    refusal or a queue of the server's own.
    """
    first = found[0]
    seen = [behaviour(one, first) for one in found[1:]]
    order: tuple[Behaviour, ...] = ("refuses", "batches", "thrashes", "shares", "queues")
    named: Behaviour = next((kind for kind in order if kind in seen), "undisturbed")
    held = [one for one in found if not (one.refused or one.full)] or [first]
    enough = [one for i, one in enumerate(held) if not any(_beats(o, one) for o in held[i + 1 :])]
    return Found(named, enough[0].in_flight, tuple(found))


def _beats(higher: Level, lower: Level) -> bool:
    """Whether it gives clearly more: what neither their spread nor a small gain explains."""
    least = (higher.tokens_per_s or 0.0) * (1 - higher.spread)
    return ENOUGH * least > (lower.tokens_per_s or 0.0) * (1 + lower.spread)


def _most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    steps = sorted((at, change) for s, e in spans for at, change in ((s, 1), (e, -1)))
    most = now = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that are known; None of none."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def over(value: float | None, base: float | None) -> float | None:
    """A number over another; None where one is unknown, or the other is 0."""
    return None if value is None or not base else value / base
