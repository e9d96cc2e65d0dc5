"""What a provider does with several requests at once, and how many it should hold: decisions only.

Knows rows and numbers; sends nothing and writes no sentence.

A level is one arm with so many requests in flight. The same work is done at every level, so that
tokens per second compare. From one level to the next a provider *batches* (throughput rises),
*queues* (it stays, and the server's own time of a request too: the rest waits), *shares* (it
stays, but each request takes the server longer), *thrashes* (it falls), or *refuses*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
# The smallest level that reaches this share of the best throughput is recommended.
ENOUGH = 0.93
REFUSALS = (429, 503)


@dataclass(frozen=True)
class Level:
    """Requests of one provider with at most `in_flight` at once; means, None where unknown.

    `tokens_per_s` counts every token that came, those of requests that were cut too.
    """

    in_flight: int
    answered: int
    refused: int
    tokens_per_s: float | None
    request_ms: float | None
    server_ms: float | None
    ttft_ms: float | None


def level(rows: Sequence[Request], in_flight: int | None = None) -> Level:
    """The level that `rows` of one provider and one arm make; `in_flight` counted if not given."""
    good = [row for row in rows if row.outcome == "ok"]
    spans = [
        (row.marks.start_ms, row.marks.end_ms)
        for row in rows
        if row.marks.start_ms is not None and row.marks.end_ms is not None
    ]
    lasted_ms = max((end for _, end in spans), default=0.0) - min((s for s, _ in spans), default=0)
    return Level(
        in_flight=_most_at_once(spans) if in_flight is None else in_flight,
        answered=len(good),
        refused=sum(row.status in REFUSALS for row in rows),
        tokens_per_s=1000 * tokens(rows) / lasted_ms if lasted_ms else None,
        request_ms=_mean([row.wall_ms for row in good]),
        server_ms=_mean([_work_ms(row) for row in good]),
        ttft_ms=_mean(
            [
                m.first_token_ms - m.start_ms
                for m in (row.marks for row in good)
                if m.first_token_ms is not None and m.start_ms is not None
            ]
        ),
    )


def alone(rows: Sequence[Request]) -> Level:
    """As `level`, of requests sent one at a time, with pauses: medians, since few are enough."""
    good = [row for row in rows if row.outcome == "ok"]
    wall_ms = _median([row.wall_ms for row in good])
    rate = 1000 * tokens(good) / len(good) / wall_ms if wall_ms else None
    server_ms = _median([_work_ms(row) for row in good])
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
    rate = _over(found.tokens_per_s, alone.tokens_per_s)
    if rate is not None and rate >= GAIN:
        return "batches"
    if rate is not None and rate <= LOSS:
        return "thrashes"
    if (_over(found.request_ms, alone.request_ms) or 1.0) < SLOWER:
        return "undisturbed"
    return "shares" if (_over(found.server_ms, alone.server_ms) or 1.0) >= SLOWER else "queues"


def next_in_flight(found: Sequence[Level], most: int) -> int | None:
    """How many to try next: twice as many, until a clear loss, a refusal, or no gain twice."""
    if not found:
        return 1
    last, before = found[-1], found[:-1]
    if last.refused or last.in_flight >= most:
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

    That is the smallest level with nearly the best throughput, among those without a refusal.
    """
    first = found[0]
    seen = [behaviour(one, first) for one in found[1:]]
    order: tuple[Behaviour, ...] = ("refuses", "batches", "thrashes", "shares", "queues")
    named: Behaviour = next((kind for kind in order if kind in seen), "undisturbed")
    held = [one for one in found if not one.refused] or [first]
    best = max(one.tokens_per_s or 0.0 for one in held)
    enough = (one.in_flight for one in held if (one.tokens_per_s or 0.0) >= ENOUGH * best)
    return Found(named, min(enough, default=1), tuple(found))


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


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _over(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base
