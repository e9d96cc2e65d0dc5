"""How many requests a second a pool can serve in time: decisions only, no report and no clock.

A step offers one rate to the pool. The knee is the highest rate of which the wanted share was
answered within the target, counted from the moment each request was due, not from when it was sent:
a pool that falls behind cannot hide it. What is refused, fails or is cut was not in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from . import stats
from .parameters import Serve
from .records import Arm

# The knee is known once the lowest rate that was too much is at most so many times the best one.
CLOSE = 1.05
_NEVER_MS = 1e15


class Step(NamedTuple):
    """What became of `count` requests that came at `rate_per_s`; `in_time` is a share of them.

    Quantiles of the time to answer are of all that came: None where too few did for a claim, or
    too few were answered. `longest_ms` is of those that were.
    """

    rate_per_s: float
    count: int
    answered: int
    refused: int
    in_time: float
    p50_ms: float | None
    p95_ms: float | None
    longest_ms: float | None

    @property
    def goodput_per_s(self) -> float:
        """Answers in time, a second."""
        return self.in_time * self.rate_per_s


def step(arm: Arm, target_ms: float) -> Step | None:
    """The step that an arm was; None where it was stopped before its end."""
    if arm.rate_per_s is None:
        return None
    waits_ms = [_NEVER_MS] * len(arm.due_ms)
    for row in arm.requests:
        if row.outcome == "ok" and row.marks.end_ms is not None:
            waits_ms[row.prompt] = min(
                waits_ms[row.prompt], row.marks.end_ms - arm.due_ms[row.prompt]
            )
    known = {
        key: ms if ms and ms < _NEVER_MS / 1e3 else None
        for key, ms in stats.quantiles(waits_ms).items()
    }
    answered = [ms for ms in waits_ms if ms < _NEVER_MS]
    in_time = sum(ms <= target_ms for ms in waits_ms) / len(waits_ms)
    counts = arm.rate_per_s, len(waits_ms), len(answered), len(arm.refused), in_time
    return Step(*counts, known["p50"], known["p95"], max(answered, default=None))


def bounds(steps: Sequence[Step], share: float) -> tuple[float | None, float | None]:
    """The knee, and the lowest rate above it that was too much; None where none was."""
    knee = max((one.rate_per_s for one in steps if one.in_time >= share), default=None)
    above = [one.rate_per_s for one in steps if one.in_time < share]
    return knee, min((rate for rate in above if rate > (knee or 0.0)), default=None)


def next_rate(steps: Sequence[Step], wanted: Serve, first_per_s: float) -> float | None:
    """The rate to try next: doubled or halved until the knee lies between two, then between them.

    None where it is known to `CLOSE`, or all steps are used up.
    """
    knee, above = bounds(steps, wanted.share)
    if len(steps) >= wanted.steps:
        return None
    if knee is None or above is None:
        return first_per_s if not steps else 2 * knee if knee else (above or first_per_s) / 2
    return None if above <= CLOSE * knee else sqrt(knee * above)
