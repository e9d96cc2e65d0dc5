"""What is asked of the simulator and what it answers: plain data, from YAML, cheap to send away."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from math import exp
from random import Random
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .. import arrivals
from ..errors import ParameterError
from ..measure.strategies import by_name
from ..report import root

Count = Annotated[int, Meta(ge=1)]
Least0 = Annotated[float, Meta(ge=0)]
More0 = Annotated[float, Meta(gt=0)]


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`count` machines of one kind.

    One request alone takes `(fixed_ms + token_ms * tokens) / speed` in the server and `way_ms`
    outside it, half of that before it begins. `speed` is spread log-normally by `speed_sigma` over
    the `count`, each request's time by `noise`. `together` says how long each of 1, 2, … requests
    takes over alone (between two a line); beyond `slots` they wait there. Those that are `crowded`
    share one host: while all of them work, each is so many times as slow. A machine is there for
    `up_s`, then gone for `down_s` (means, exponential): all it holds and is sent fails, but in the
    share `sleeps` of its absences, in which requests stand still and nobody is told.
    """

    name: str = "machine"
    count: Count = 1
    fixed_ms: Least0 = 0.0
    token_ms: More0 = 10.0
    speed: More0 = 1.0
    speed_sigma: Least0 = 0.0
    noise: Least0 = 0.0
    slots: Count = 1
    capacity: Count = 1
    together: dict[Count, More0] = {}
    crowded: Annotated[float, Meta(ge=1)] = 1.0
    way_ms: Least0 = 0.0
    queues: bool = True  # whether it may be sent more than it works on
    up_s: More0 | None = None
    down_s: More0 = 600.0
    sleeps: Annotated[float, Meta(ge=0, le=1)] = 0.0

    def alone_ms(self, tokens: float) -> float:
        """In the server, of a machine whose speed is not spread."""
        return (self.fixed_ms + self.token_ms * tokens) / self.speed

    def slower(self, requests: int) -> float:
        """How long each of so many takes over one alone; beyond what is known in proportion."""
        known = sorted({1: 1.0, **self.together}.items())
        at = bisect_left(known, (requests, 0.0))
        high, after = known[min(at, len(known) - 1)]
        if requests >= high:
            return after * requests / high
        low, before = known[at - 1]
        return before + (after - before) * (requests - low) / (high - low)


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pool, what it is asked, and how; the policy's words are those of a run's parameters.

    Requests come all at once, at `rate_per_s` on average (Poisson), or as the project's CSV file
    `trace` has them. Answers have `output_tokens`, log-normally spread by `output_sigma`, unless
    the trace tells. The coordinator works `coordinator_ms` on each attempt, one after the other; it
    turns away what finds `queue_limit` waiting. `target_ms` is what an answer should take at most.
    """

    machines: Annotated[list[Machine], Meta(min_length=1)]
    strategy: str = "shared-queue"
    requests: Count = 1000
    seed: int = 7
    rate_per_s: More0 | None = None
    trace: str | None = None
    output_tokens: Count = 100
    output_sigma: Least0 = 0.0
    coordinator_ms: Least0 = 0.11
    queue_limit: Count | None = None
    target_ms: More0 | None = None
    retries: Annotated[int, Meta(ge=0)] = 1
    request_timeout_s: More0 = 120.0
    backoff_s: Least0 = 0.5
    breaker_failures: Annotated[int, Meta(ge=0)] = 3
    breaker_pause_s: More0 = 5.0
    hedge_after: Least0 | None = None  # 0: each at once to a second machine, where one is idle

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "simulate") -> Scenario:
        """Raises `ParameterError` that names `where` and the key."""
        try:
            scenario = msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ParameterError(f"{where}: {error}.") from None
        by_name(scenario.strategy)
        return scenario

    def arriving(self) -> list[arrivals.Arrival]:
        """Each request in order, with its lengths. Raises `ParameterError`, as `arrivals` does."""
        if self.trace is not None:
            came = arrivals.trace(root() / self.trace)[: self.requests]
        elif self.rate_per_s is not None:
            came = arrivals.filling(self.rate_per_s, self.requests, self.seed)
        else:
            came = arrivals.batch(self.requests)
        draw, sigma = Random(self.seed), self.output_sigma
        middle = self.output_tokens * exp(-(sigma**2) / 2)  # so that the mean is as asked
        lengths = (max(1, round(middle * draw.lognormvariate(0, sigma))) for _ in came)
        return [
            one._replace(output_tokens=drawn if one.output_tokens is None else one.output_tokens)
            for one, drawn in zip(came, lengths, strict=True)
        ]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `p50_ms` and so on are from arrival to answer; None of too few.

    `wasted` is the share of the machines' working time whose answer nobody used, `busy` that of
    the coordinator's time, `within` the share of all that came that was answered in `target_ms`.
    """

    requests: int
    answered: int
    refused: int
    attempts: int
    copies: int
    makespan_ms: float
    per_s: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    wasted: float
    busy: float
    within: float | None
