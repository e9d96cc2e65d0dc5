"""What the best order could have reached with a strategy's own times, all known beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from .. import pacing, stats
from ..contention import work_ms
from ..records import Request

if TYPE_CHECKING:
    from .reading import Reading

# Prompts times providers of a round, beyond which trying orders takes too long.
_MOST = 1_000_000
# A request takes no longer among others than alone, but for noise.
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
    causes = {cause.provider.name: cause for cause in reading.causes if cause.arm == "strategy"}
    slots: dict[str, int] = {}
    queued = set[str]()  # whose own time is taken, which waiting there does not change
    for facts in reading.report.providers:
        name, limits = facts.name, {(arm.limits or {}).get(facts.name) for arm, _ in arms}
        if facts.router_of and name in own:
            return None, f"to which machine {name} sent each is not known here"
        if facts.router_of:
            continue
        held, cause = at_once.get(name, 1), causes.get(name)
        slots[name] = held
        if name not in own or (held == 1 and (name in at_once or limits == {1})):
            continue
        if cause and cause.behaviour == "queues" and all(map(work_ms, own[name])):
            queued.add(name)
            slots[name] = facts.slots or 1
        elif not (cause and cause.found.in_flight == held and (cause.slower or _STEADY) < _STEADY):
            known = name in at_once
            what = f"with several at once at {name} the time of one depends on the others"
            return None, what if known else f"how many were at {name} at once is unknown"
    rows = {name: own.get(name) or reading.calibrations.get(name, []) for name in slots}

    def took_ms(row: Request) -> float:
        return (work_ms(row) if row.provider in queued else row.wall_ms) or 0.0

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
