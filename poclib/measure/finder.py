"""Drives each provider with 1, 2, 4, … requests at once until it is clear what it does with them.

The measuring half of finding a capacity: `capacity` decides when to stop and what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..contention import Found, Level, best_of, conclude, level, lost, next_in_flight
from .experiment import Run

MOST_IN_FLIGHT = 64
# Of a level: enough that two loads of it are answered while a third is handed out.
LEAST_REQUESTS, LOADS = 4, 3
# A level may take so much longer than its requests would one at a time; then it has lost clearly.
PATIENCE = 5


async def find(run: Run, most: int = MOST_IN_FLIGHT) -> dict[str, Found]:
    """What each provider of `run`, already prepared, does with several requests at once.

    One provider after the other, so that they cannot be in each other's way. Every level is kept
    as an arm of the run's preparation.
    """
    found = {}
    for name in run.senders:
        seen: list[Level] = []
        while (in_flight := next_in_flight(seen, most)) is not None:
            one = await _level(run, name, in_flight, seen)
            if lost(one, seen):  # another program may have been in the way: only twice is clear
                one = best_of([one, await _level(run, name, in_flight, seen, "again")])[0]
            seen.append(one)
        # What one alone gives is what all else is held against, so it is measured at both ends:
        # else a machine that was busy in the beginning would seem to batch.
        found[name] = conclude(best_of([*seen, await _level(run, name, 1, seen, "again")]))
    return found


async def _level(
    run: Run, name: str, in_flight: int, seen: Sequence[Level], which: str = ""
) -> Level:
    count = max(LEAST_REQUESTS, LOADS * in_flight)
    alone_ms = (seen[0].request_ms if seen else None) or run.expected_ms[name]
    arm = await run.level(name, in_flight, count, PATIENCE * count * alone_ms + 2000, which)
    return level(arm.requests, in_flight)
