"""From what was measured of each machine alone to a scenario, and how far that may be believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, stdev
from typing import Any, NamedTuple

from msgspec.structs import replace

from ..contention import levels
from ..errors import ReportError
from ..measure.strategies import sends_ahead
from ..pacing import Span, length
from ..records import Report, Request
from ..stats import known
from .run import knee, simulate
from .scenario import Machine, Scenario

CROWD = "crowd-"  # begins the name of a run that only tells how engines of one host slow each other
SEEDS = range(7)  # a foretold makespan is the median of so many


class Case(NamedTuple):
    """One arm of a pool: its makespans as measured, round by round, and as foretold."""

    pool: str
    strategy: str
    measured_ms: list[float]
    foretold_ms: float

    @property
    def error(self) -> float:
        """As a share of the median measured; above 0 where more was foretold."""
        return self.foretold_ms / median(self.measured_ms) - 1


def curve(report: Report) -> dict[int, float]:
    """How long each of 1, 2, 4, … requests takes together over alone, up to the server's slots.

    From the levels of the first provider of a capacity report, of which more in flight than slots
    tell of as many as slots. Raises `ReportError` without them.
    """
    facts = report.providers[0]
    rates: dict[int, float] = {}
    for level in levels(report.preparation, facts.name):
        at = min(level.in_flight, facts.slots or 1)
        rates[at] = max(rates.get(at, 0.0), level.tokens_per_s or 0.0)
    if not rates.get(1):
        raise ReportError(f"{report.experiment}: no level of one request; see doctor --capacity.")
    return {n: n * rates[1] / rate for n, rate in rates.items() if rate}


def crowd(report: Report) -> dict[str, float]:
    """How much slower each provider's server is while all of them work, over alone."""
    busy, alone = _by_provider(report.requests), _by_provider(_calibrated(report))
    names = [facts.name for facts in report.providers if facts.name in busy]
    return {name: max(1.0, _work_ms(busy[name]) / _work_ms(alone[name])) for name in names}


def scenario(
    report: Report,
    together: Mapping[int, float] | None = None,
    crowded: Mapping[str, float] | None = None,
) -> Scenario:
    """The pool of a report as its calibrations found it, and what it was asked.

    `together` is how its engines batch, `crowded` as of `crowd`. Raises `ReportError` where a
    server told no time.
    """
    p, rows = report.parameters, _by_provider(_calibrated(report))
    if p is None or any(facts.name not in rows for facts in report.providers):
        raise ReportError(
            f"{report.experiment}: no calibration in which each server told its time."
        )
    queues = {each.name: each.queues for each in p.providers}
    machines = [
        Machine(
            name=facts.name, slots=facts.slots or 1, capacity=facts.capacity,
            together=dict(together or {}), crowded=(crowded or {}).get(facts.name, 1.0),
            queues=sends_ahead(facts, queues[facts.name]), **_alone(rows[facts.name]),
        )
        for facts in report.providers
    ]  # fmt: skip
    return Scenario(
        machines=machines, strategy=report.strategy, requests=len(report.prompt_sha256),
        output_tokens=p.max_tokens, retries=p.retries, request_timeout_s=p.request_timeout_s,
        hedge_after=p.hedge_after if p.hedge else None,
    )  # fmt: skip


def foretold(reports: Sequence[Report]) -> list[Case]:
    """Every arm of every pool that was measured, and what each report's calibration foretells."""
    together = next((curve(one) for one in reports if one.strategy == "capacity"), None)
    slower = {one.experiment: crowd(one) for one in reports if one.experiment.startswith(CROWD)}
    told: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
    for report in reports:
        pool = report.experiment
        if report.strategy == "capacity" or pool in slower:
            continue
        asked = scenario(report, together, slower.get(f"{CROWD}{pool.removesuffix('-far')}"))
        for name in ("sequential", report.strategy):
            arms = [arm for each in report.rounds for arm in each.arms if arm.strategy == name]
            spans = [Span(arm.requests).makespan_ms(asked.requests) for arm in arms]
            measured_ms, foretold_ms = told.setdefault((pool, name), ([], []))
            measured_ms += known(spans)
            seeds = [replace(asked, strategy=name, seed=seed) for seed in SEEDS]
            foretold_ms += [simulate(one).makespan_ms for one in seeds]
    return [Case(*key, both[0], median(both[1])) for key, both in told.items() if both[0]]


def foretold_knee(
    report: Report, together: Mapping[int, float], crowded: Mapping[str, float]
) -> float | None:
    """The knee of a pool that was served, in requests a second: for the same arrivals.

    Raises `ReportError` where no pool was served, or as `scenario` does.
    """
    p = report.parameters
    if p is None or p.serve is None:
        raise ReportError(f"{report.experiment}: was not made by `poc serve-test`.")
    wanted = p.serve
    own = {"requests": wanted.requests, "queue_limit": wanted.queue_limit, "seed": p.seed}
    asked = replace(scenario(report, together, crowded), **own)
    return knee(asked, wanted.target_ms, wanted.share)


def _calibrated(report: Report) -> list[Request]:
    """Also what was calibrated between rounds: machines drift."""
    return [row for arm in report.preparation if arm.arm == "calibration" for row in arm.requests]


def _by_provider(rows: Sequence[Request]) -> dict[str, list[Request]]:
    told = [row for row in rows if row.server.total_ms and row.outcome == "ok"]
    return {
        name: [r for r in told if r.provider == name]
        for name in dict.fromkeys(r.provider for r in told)
    }


def _work_ms(rows: Sequence[Request]) -> float:
    return median(row.server.total_ms or 0.0 for row in rows)


def _alone(rows: Sequence[Request]) -> dict[str, Any]:
    """A machine's own numbers, from requests that it had alone."""
    answer_ms = median(row.server.generation_ms or 0.0 for row in rows)
    works_ms = [row.server.total_ms or 0.0 for row in rows]
    return {
        "fixed_ms": max(0.0, median(works_ms) - answer_ms),
        "token_ms": max(1e-6, answer_ms / median(length(row) or 1 for row in rows)),
        "noise": stdev(works_ms) / median(works_ms) if len(works_ms) > 2 else 0.0,
        "way_ms": median(row.over_ms or 0.0 for row in rows),
    }
