"""What calibration alone promises, before any prompt is spread.

Asked before a run (`poc doctor`) and after it, to hold the promise against what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from .. import pacing
from ..records import Arm, Report, Request
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
    limits = {"one": dict.fromkeys(alone_ms, 1), "capacity": capacity}
    baseline_ms = prompts * min(alone_ms.values())
    return {
        name: simulated_makespan_ms(each, prompts, alone_ms, limits[each.limit]) / baseline_ms
        for name, each in STRATEGIES.items()
        if each.limit in limits
    }


def of(report: Report) -> dict[str, float]:
    """As `ratios`, by the facts of before a report's first round; empty if some are not known."""
    alone_ms = expected_ms(calibrated(report.preparation))
    capacity = {f.name: f.capacity for f in report.providers if not f.router_of}
    known = alone_ms.keys() == capacity.keys()
    return ratios(len(report.prompt_sha256), alone_ms, capacity) if known else {}


def each(reports: Sequence[Report]) -> dict[str, float]:
    """By strategy, its ratio as its own report foretells it; not all do."""
    foretold = [(report.strategy, of(report)) for report in reports]
    return {name: ratios[name] for name, ratios in foretold if name in ratios}


def expected_ms(calibrated: Mapping[str, Sequence[Request]]) -> dict[str, float]:
    """The time of one request alone on each provider, from answers to the same prompts.

    The mean wall. Where the answers are of unlike length, so that the shortest would look like the
    fastest machine: wall per token, times the mean length over all providers.
    """
    walls = {p: fmean(row.wall_ms or 0.0 for row in rows) for p, rows in calibrated.items()}
    tokens = {p: fmean(pacing.length(row) or 0 for row in rows) for p, rows in calibrated.items()}
    if not all(tokens.values()) or len(set(tokens.values())) < 2:
        return walls
    usual = fmean(tokens.values())
    return {p: wall_ms / tokens[p] * usual for p, wall_ms in walls.items()}


def calibrated(preparation: Sequence[Arm]) -> dict[str, list[Request]]:
    """The answered requests of each provider's first calibration; later ones are of the rounds."""
    first: dict[str, list[Request]] = {}
    for arm in preparation:
        rows = [row for row in arm.requests if row.outcome == "ok" and row.wall_ms]
        if arm.arm == "calibration" and rows:
            first.setdefault(rows[0].provider, rows)
    return first


def powers(
    expected: Mapping[str, float],
    preparation: Sequence[Arm],
    prompts: int,
    gate: float,
    band: float,
) -> dict[str, pacing.Power]:
    """How many rounds each strategy's expected ratio needs; empty where nothing is known."""
    noise = pacing.noise(calibrated(preparation), prompts)
    known = {} if noise is None else expected
    return {name: pacing.power(ratio, noise or 0.0, gate, band) for name, ratio in known.items()}
