"""What calibration alone promises, before any prompt is spread. Knows no result and no sentence.

Asked before a run (`poc doctor`) and after it, to hold the promise against what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from .records import Report
from .strategies import STRATEGIES, simulated_makespan_ms


def ratios(
    prompts: int, alone_ms: Mapping[str, float], capacity: Mapping[str, int]
) -> dict[str, float]:
    """Expected total time over the baseline's, per strategy that the simulation can tell.

    `alone_ms` is the mean wall time of one request alone on each provider. Strategies that put
    more into a server than its capacity are left out: what batching or contention does with
    them only a run can show.
    """
    if not prompts or not alone_ms:
        return {}
    baseline_ms = prompts * min(alone_ms.values())
    limits = {"one": dict.fromkeys(alone_ms, 1), "capacity": dict(capacity)}
    return {
        name: simulated_makespan_ms(strategy, prompts, alone_ms, limits[strategy.limit])
        / baseline_ms
        for name, strategy in STRATEGIES.items()
        if strategy.limit in limits
    }


def alone_ms(report: Report) -> dict[str, float]:
    """Mean wall of one request per provider in the first calibration: what was known before.

    The later ones, after each round, are left out. Empty unless every provider answered then.
    """
    found: dict[str, float] = {}
    for arm in report.preparation:
        walls = [r.wall_ms for r in arm.requests if r.outcome == "ok" and r.wall_ms is not None]
        if arm.arm == "calibration" and walls:
            found.setdefault(arm.requests[0].provider, fmean(walls))
    return found if set(found) == {facts.name for facts in report.providers} else {}


def each(reports: Sequence[Report]) -> dict[str, float]:
    """By strategy, its ratio as foretold by the facts of before its own report's first round."""
    found = {}
    for report in reports:
        capacity = {facts.name: facts.capacity for facts in report.providers}
        foretold = ratios(len(report.prompt_sha256), alone_ms(report), capacity)
        if report.strategy in foretold:
            found[report.strategy] = foretold[report.strategy]
    return found
