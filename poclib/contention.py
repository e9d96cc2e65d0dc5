"""What a provider does with several requests at once, and how many it should hold: decisions only.

A level is one arm with so many requests in flight. From one level to the next a provider *batches*
(throughput rises), *queues* (it stays, and the server's own time of a request too: the rest waits),
*shares* (it stays, but each request takes the server longer), *thrashes* (it falls), or *refuses*.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf
from typing import Literal

from .records import Arm, Request
from .stats import known, mean, median

Behaviour = Literal["batches", "queues", "shares", "thrashes", "refuses", "undisturbed"]
# Throughput against that of one request alone; between them the difference may be noise.
GAIN, LOSS = 1.2, 0.8
# A request's time against alone, from which on other requests were in its way.
SLOWER = 1.5
# So many at once are tried even where fewer gained nothing: some engines first gain there.
TRIED = 8
# A level is recommended where no higher one gives clearly more than so much of it would be.
ENOUGH = 0.87
# A server is full where its own queue takes this share of the time that it works on a request.
FULL = 0.2
# The statuses of a provider that has no room.
REFUSALS = (429, 503)


@dataclass(frozen=True)
class Level:
    """Requests of one provider with at most `in_flight` at once; means, None where unknown."""

    in_flight: int
    answered: int
    refused: int
    tokens_per_s: float | None  # of every token that came, also of requests that were cut
    request_ms: float | None
    server_ms: float | None
    ttft_ms: float | None
    queue_ms: float | None = None  # as the server says of its own queue
    spread: float = 0.0  # half the range of the parts of `tokens_per_s`, as a share

    @property
    def full(self) -> bool:
        """Whether the server itself says that it let a good part of the requests wait."""
        return (self.queue_ms or 0.0) > FULL * (self.server_ms or inf)


@dataclass(frozen=True)
class Found:
    """What a provider does, the requests in flight to hold there, and the levels that show it."""

    behaviour: Behaviour
    capacity: int
    levels: tuple[Level, ...]


def level(rows: Sequence[Request], in_flight: int | None = None) -> Level:
    """The level that `rows` of one provider and one arm make; `in_flight` counted if not given.

    Where it is given, and was held for long enough, throughput is of this time alone: filling and
    draining would favour the higher level.
    """
    good = [row for row in rows if row.outcome == "ok"]
    steps: list[tuple[float, int]] = []
    for marks in (row.marks for row in rows):
        if marks.start_ms is not None and marks.end_ms is not None:
            steps += [(marks.start_ms, 1), (marks.end_ms, -1)]
    steps.sort()
    lasted_ms = steps[-1][0] - steps[0][0] if steps else 0.0
    steady = _steady(rows, in_flight) if in_flight else None
    rate, spread = steady or (over(1000 * tokens(rows), lasted_ms), 0.0)
    return Level(
        in_flight=in_flight or max(accumulate(change for _, change in steps), default=0),
        answered=len(good),
        refused=sum(row.status in REFUSALS for row in rows),
        tokens_per_s=rate,
        request_ms=mean(row.wall_ms for row in good),
        server_ms=mean(work_ms(row) for row in good),
        ttft_ms=_ttft_ms(good),
        queue_ms=mean(row.server.queue_ms for row in good),
        spread=spread,
    )


def alone(rows: Sequence[Request]) -> Level:
    """As `level`, of requests sent one at a time, with pauses: medians, since few are enough."""
    good = [row for row in rows if row.outcome == "ok"]
    wall_ms = median(row.wall_ms for row in good)
    rate = over(1000 * tokens(good), len(good) * (wall_ms or 0.0))
    return Level(1, len(good), 0, rate, wall_ms, median(map(work_ms, good)), _ttft_ms(good))


def _ttft_ms(rows: Sequence[Request]) -> float | None:
    both = [(row.marks.start_ms, row.marks.first_token_ms) for row in rows]
    return mean(end - start for start, end in both if start is not None and end is not None)


def _steady(rows: Sequence[Request], in_flight: int) -> tuple[float, float] | None:
    """Throughput from the moment that `in_flight` were sent until the last was, and its spread.

    None where less than `in_flight` answers came in this time. Its parts hold as many answers each.
    """
    starts = sorted(known(row.marks.start_ms for row in rows))
    if len(starts) <= in_flight:
        return None
    full_ms, last_ms = starts[in_flight - 1], starts[-1]
    good_ends = sorted(row.marks.end_ms or 0.0 for row in rows if row.outcome == "ok")
    ends = [end for end in good_ends if full_ms < end <= last_ms]
    if len(ends) < in_flight:
        return None
    came: list[tuple[float, float]] = []  # moments, and how many tokens came then
    for row in rows:
        moments = row.token_ms or [row.marks.end_ms or -inf]
        came += [(moment, tokens([row]) / len(moments)) for moment in moments]

    def rate(begin_ms: float, end_ms: float) -> float:
        """Tokens per second in this time."""
        return 1000 * sum(n for at, n in came if begin_ms < at <= end_ms) / (end_ms - begin_ms)

    parts = [full_ms, *ends[in_flight - 1 :: in_flight]]
    rates = [rate(begin, end) for begin, end in pairwise(parts) if end > begin]
    most, least = max(rates), min(rates)
    return rate(full_ms, last_ms), (most - least) / (most + least) if most else 0.0


def work_ms(row: Request) -> float | None:
    """The server's own time without the queue that some servers report in it."""
    total_ms = row.server.total_ms
    return None if total_ms is None else total_ms - (row.server.queue_ms or 0.0)


def tokens(rows: Sequence[Request]) -> int:
    """Output tokens that came, whatever became of their request."""
    return sum(row.output_tokens or len(row.token_ms or ()) for row in rows)


def levels(arms: Sequence[Arm], provider: str) -> list[Level]:
    """The levels at which one provider was driven, lowest first."""
    limits = [(arm, (arm.limits or {}).get(provider)) for arm in arms if arm.arm == "capacity"]
    return best_of([level(arm.requests, limit) for arm, limit in limits if limit is not None])


def best_of(levels: Sequence[Level]) -> list[Level]:
    """The levels, lowest first; of those measured twice the better, as disturbance only slows."""
    best = {level.in_flight: level for level in sorted(levels, key=_rate)}
    return [best[in_flight] for in_flight in sorted(best)]


def behaviour(level: Level, alone: Level) -> Behaviour:
    """What the provider did at a level, held against one request alone."""
    if level.refused:
        return "refuses"
    if level.in_flight <= 1:
        return "undisturbed"
    rate = over(level.tokens_per_s, alone.tokens_per_s)
    if rate is not None and rate >= GAIN:
        return "batches"
    if rate is not None and rate <= LOSS:
        return "thrashes"
    if (over(level.request_ms, alone.request_ms) or 1.0) < SLOWER:
        return "undisturbed"
    return "shares" if (over(level.server_ms, alone.server_ms) or 1.0) >= SLOWER else "queues"


def next_in_flight(levels: Sequence[Level], most: int) -> int | None:
    """How many to try next: twice as many, until a loss, a refusal, a queue, or no gain twice."""
    if not levels:
        return 1
    last, before = levels[-1], levels[:-1]
    if last.refused or last.full or last.in_flight >= most or lost(last, before):
        return None
    enough = len(before) > 1 and last.in_flight >= TRIED
    if enough and max(map(_rate, levels[-2:])) < GAIN * max(map(_rate, before[:-1])):
        return None
    return min(2 * last.in_flight, most)


def lost(last: Level, before: Sequence[Level]) -> bool:
    """Whether a level gives clearly less than fewer in flight gave; not where it was refused."""
    return not last.refused and _rate(last) <= LOSS * max(map(_rate, before), default=-inf)


def conclude(levels: Sequence[Level]) -> Found:
    """The behaviour over all levels (the first is one request alone), and the capacity.

    That is the smallest level that none with more in flight clearly beats, among those without a
    refusal or a queue of the server's own.
    """

    def beats(higher: Level, lower: Level) -> bool:  # by more than spread or a small gain explain
        least = _rate(higher) * (1 - higher.spread)
        return ENOUGH * least > _rate(lower) * (1 + lower.spread)

    seen = [behaviour(level, levels[0]) for level in levels[1:]]
    order: tuple[Behaviour, ...] = ("refuses", "batches", "thrashes", "shares", "queues")
    named: Behaviour = next((kind for kind in order if kind in seen), "undisturbed")
    held = [level for level in levels if not (level.refused or level.full)] or [levels[0]]
    while any(beats(higher, held[0]) for higher in held[1:]):
        del held[0]
    return Found(named, held[0].in_flight, tuple(levels))


def _rate(level: Level) -> float:
    return level.tokens_per_s or 0.0


def over(value: float | None, base: float | None) -> float | None:
    """A number over another; None where one is unknown, or the other is 0."""
    return None if value is None or not base else value / base
