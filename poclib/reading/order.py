"""What the best order could have reached with a strategy's own times, all known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean
from typing import TYPE_CHECKING

from .. import pacing, stats
from ..contention import over, work_ms
from ..records import Request

if TYPE_CHECKING:
    from .reading import Reading

# Prompts times providers of a round, beyond which trying orders takes too long.
_MOST = 1_000_000
_STEADY = 1.1


def best_order(
    reading: Reading, own: Mapping[str, Sequence[Request]], at_once: Mapping[str, int]
) -> tuple[float | None, str]:
    """The best list schedule's time over the makespan, median over rounds; or why it is unknown.

    The work of a prompt is what its answer took times the pace of the provider that gave it, in
    tokens where lengths differ. `own`: the strategy's answers by provider. Never above 1, since
    what the strategy did is an order too.
    """
    whole = {one.round: one.strategy_ms for one in reading.timed[0] if one.ratio}
    places = [(arm, whole[of] or 0.0) for of, _, arm in reading.places if of in whole]
    arms = [(arm, took_ms) for arm, took_ms in places if arm.arm == "strategy" and arm.requests]
    if not arms:
        return None, "no round has an answer to every prompt in both arms"
    if len(reading.roles) * len(arms[0][0].requests) > _MOST:
        return None, "so many prompts on so many providers are not tried in other orders"
    named = {cause.provider.name: cause.behaviour for cause in reading.causes}
    steady = {
        cause.provider.name  # which takes no longer with as many at once as were held there
        for cause in reading.causes
        if cause.found.in_flight == at_once.get(cause.provider.name)
        and (over(cause.found.request_ms, cause.alone.request_ms) or inf) < _STEADY
    }
    slots: dict[str, int] = {}
    for facts in reading.report.providers:
        name, limits = facts.name, {(arm.limits or {}).get(facts.name) for arm, _ in arms}
        slots[name] = at_once.get(name, 1)
        if name not in own or (slots[name] == 1 and (name in at_once or limits == {1})):
            continue
        if named.get(name) == "queues" and all(map(work_ms, own[name])):
            slots[name] = (
                facts.slots or 1
            )  # by the server's own time, which waiting does not change
        elif name in steady:
            continue
        elif name not in at_once:
            return None, f"how many requests were at {name} at once is unknown"
        else:
            return None, f"with several at once at {name} the time of one depends on the others"
    rows = {name: own.get(name) or reading.calibrations.get(name, []) for name in slots}

    def took_ms(row: Request) -> float:
        waits = named.get(row.provider) == "queues" and at_once.get(row.provider, 1) > 1
        return (work_ms(row) if waits else row.wall_ms) or 0.0

    lengths = {pacing.length(row) for each in rows.values() for row in each}
    paces: dict[str, float] = {}
    for name, each in rows.items():
        if not each or not all(map(took_ms, each)):
            return None, f"an answer of {name} has no time, or there is none"
        rates = [(pacing.length(row) or 0) / took_ms(row) for row in each]
        unlike = len(lengths) > 1 and None not in lengths
        paces[name] = stats.median(rates) or 0.0 if unlike else 1 / fmean(map(took_ms, each))
    shares = []
    for arm, makespan_ms in arms:
        good = {row.prompt: row for row in arm.requests if row.outcome == "ok"}
        work = [took_ms(good[prompt]) * paces[good[prompt].provider] for prompt in sorted(good)]
        every = [paces[name] for name, count in slots.items() for _ in range(count)]
        shares.append(min(1.0, stats.best_list_ms(work, every) / makespan_ms))
    return stats.median(shares), ""
