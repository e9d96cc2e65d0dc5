"""How many requests a second a pool can serve in time: decisions only.

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
    """What became of so many `requests` that came at `rate_per_s`; `in_time` is a share of them.

    Quantiles of the time to answer are of all that came, so None where too few were answered or
    came for a claim; `longest_ms` is of those that were answered.
    """

    rate_per_s: float
    requests: int
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
            waited_ms = row.marks.end_ms - arm.due_ms[row.prompt]
            waits_ms[row.prompt] = min(waits_ms[row.prompt], waited_ms)
    cuts = stats.quantiles(waits_ms)
    p50_ms, p95_ms = (ms if (ms := cuts[key]) and ms < 1e9 else None for key in ("p50", "p95"))
    answered = [ms for ms in waits_ms if ms < 1e9]
    in_time = sum(ms <= target_ms for ms in waits_ms) / len(waits_ms)
    counts = arm.rate_per_s, len(waits_ms), len(answered), len(arm.refused), in_time
    return Step(*counts, p50_ms, p95_ms, max(answered, default=None))


def bounds(steps: Sequence[Step], share: float) -> tuple[float | None, float | None]:
    """The knee, and the lowest rate above it that was too much; None where none was."""
    knee = max((one.rate_per_s for one in steps if one.in_time >= share), default=None)
    above = [one.rate_per_s for one in steps if one.rate_per_s > (knee or 0.0)]
    return knee, min(above, default=None)


def next_rate(steps: Sequence[Step], wanted: Serve, first_per_s: float) -> float | None:
    """The rate to try next: doubled or halved until the knee lies between two, then between them.

    None where it is known to `CLOSE`, or all steps are used up.
    """
    knee, above = bounds(steps, wanted.share)
    if len(steps) >= wanted.steps:
        return None
    if knee is None or above is None:
        return 2 * knee if knee else above / 2 if above else first_per_s
    return None if above <= CLOSE * knee else sqrt(knee * above)
