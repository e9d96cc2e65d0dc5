"""Drives each provider with 1, 2, 4, … requests at once until it is clear what it does with them.

The measuring half of finding a capacity: `capacity` decides when to stop and what was seen.
"""

from __future__ import annotations

from .capacity import Found, Level, best_of, conclude, level, next_in_flight
from .experiment import Run

MOST_IN_FLIGHT = 64
LEAST_REQUESTS = 4
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
            count = max(LEAST_REQUESTS, 2 * in_flight)
            alone_ms = seen[0].request_ms if seen else None
            limit_ms = PATIENCE * count * (alone_ms or run.expected_ms[name]) + 2000
            arm = await run.level(name, in_flight, count, limit_ms)
            seen.append(level(arm.requests, in_flight))
        # What one alone gives is what all else is held against, so it is measured at both ends:
        # else a machine that was busy in the beginning would seem to batch.
        limit_ms = PATIENCE * LEAST_REQUESTS * (seen[0].request_ms or run.expected_ms[name]) + 2000
        arm = await run.level(name, 1, LEAST_REQUESTS, limit_ms, "again")
        found[name] = conclude(best_of([*seen, level(arm.requests, 1)]))
    return found
