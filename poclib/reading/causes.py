"""Why an arm was slow: what several requests at once did to each provider, from saved facts.

Gathers the rows; `contention` names what they show. Knows no sentence and no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, product
from statistics import median_high
from typing import TYPE_CHECKING

from ..contention import GAIN, Behaviour, Level, alone, behaviour, level, over, tokens
from ..records import Arm, ArmName, EngineUse, ProviderFacts, Request
from ..stats import Contention, median

if TYPE_CHECKING:
    from .reading import Reading

_KINDS: tuple[ArmName, ...] = ("baseline", "strategy")


@dataclass(frozen=True)
class Cause:
    """One provider in one kind of arm, medians over all rounds, against one request alone there."""

    arm: ArmName
    provider: ProviderFacts
    found: Level
    alone: Level
    use: tuple[EngineUse, ...]
    tokens: int
    cpu_alone_ms: float | None  # of a token of the baseline

    @property
    def behaviour(self) -> Behaviour:
        """What it did; where engines take turns, work counts as lost only if it cost CPU time.

        One short request may fit into a single turn, and then looks faster alone than it is.
        """
        named, cost_ms = behaviour(self.found, self.alone), self.cpu_ms_per_token
        if named == "thrashes" and self.provider.turns and cost_ms and self.cpu_alone_ms:
            if cost_ms <= self.cpu_alone_ms / GAIN:
                return "batches"
            if cost_ms <= self.cpu_alone_ms * GAIN:
                return "shares"
        return named

    @property
    def contention(self) -> Contention:
        """As it stands in the headline; no rate where it is not by the rate that it is named."""
        by_rate = behaviour(self.found, self.alone) == self.behaviour
        rate = over(self.found.tokens_per_s, self.alone.tokens_per_s) if by_rate else None
        server = over(self.found.server_ms, self.alone.server_ms)
        return Contention(self.behaviour, self.found.in_flight, rate, server)

    @property
    def slower(self) -> float | None:
        """A request's time over one alone."""
        return over(self.found.request_ms, self.alone.request_ms)

    @property
    def wanting(self) -> int | None:
        """Threads that want a core at the same time: a bare engine has a team a request."""
        threads = self.provider.threads
        if threads is None or self.provider.engine_kind != "bare":
            return threads
        return threads * min(self.found.in_flight, self.provider.slots or 1)

    @property
    def cpu_share(self) -> float | None:
        """CPU seconds per second of wall time; at most the number of cores."""
        return over(sum(u.cpu_ms for u in self.use), sum(u.wall_ms for u in self.use))

    @property
    def cpu_ms_per_token(self) -> float | None:
        return over(sum(u.cpu_ms for u in self.use), self.tokens) if self.use else None

    @property
    def switches_per_token(self) -> float | None:
        """How often the system took a core from a thread of it, for each token."""
        known = [u.involuntary_switches for u in self.use if u.involuntary_switches is not None]
        return over(sum(known), self.tokens) if known and len(known) == len(self.use) else None


def causes(reading: Reading) -> list[Cause]:
    """The baseline and the strategy, a row for each provider that took part."""
    rows: list[Cause] = []
    calm = [*reading.arms("calibration"), *reading.arms("baseline")]
    for kind, facts in product(_KINDS, reading.report.providers):
        quiet = list(chain.from_iterable(_rows(calm, facts.name)))
        own = _rows(reading.arms(kind), facts.name)
        if quiet and own:
            engines = [use for arm in reading.arms(kind) for use in arm.engines]
            use = tuple(use for use in engines if use.provider == facts.name)
            costs_ms = (cause.cpu_ms_per_token for cause in rows if cause.arm == "baseline")
            found, calm_ms, count = _together(own), next(costs_ms, None), sum(map(tokens, own))
            rows.append(Cause(kind, facts, found, alone(quiet), use, count, calm_ms))
    return rows


def _rows(arms: Sequence[Arm], provider: str) -> list[list[Request]]:
    """The requests of that provider in each arm that has some."""
    each = ([row for row in arm.requests if row.provider == provider] for arm in arms)
    return [rows for rows in each if rows]


def _together(arms: Sequence[Sequence[Request]]) -> Level:
    levels = [level(rows) for rows in arms]
    return Level(
        in_flight=median_high(each.in_flight for each in levels),
        answered=sum(each.answered for each in levels),
        refused=sum(each.refused for each in levels),
        tokens_per_s=median(each.tokens_per_s for each in levels),
        request_ms=median(each.request_ms for each in levels),
        server_ms=median(each.server_ms for each in levels),
        ttft_ms=median(each.ttft_ms for each in levels),
    )
