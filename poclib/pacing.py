"""How many rounds are enough: foretold from calibration, then judged by the rounds themselves.

Plain records in, plain numbers out; sends nothing and knows no sentence. Both halves ask it:
before a run, while `rounds: auto` goes on, and when its report is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import stdev

from . import stats
from .records import Arm, Request

# From six rounds on the interval supposes nothing of the ratios' law (`stats.interval`).
LEAST = 6
# Standard errors that an interval must lie beyond a limit for four experiments in five to see it.
_POWER = 0.84
# `rounds: auto` ends here, whatever the interval.
MOST = 200


@dataclass(frozen=True)
class Power:
    """Rounds that it takes to tell an expected ratio from the gate, and from 1 by the band.

    So many tell it in four experiments of five. None: more than anybody would wait for, or a
    ratio within the band, which no number of rounds tells from 1. `noise` is the spread (of the
    logarithm) of one round's ratio.
    """

    ratio: float
    gate: int | None
    one: int | None
    noise: float


class Span:
    """From the first dispatch of an arm to its last answer, row by row as they come."""

    def __init__(self) -> None:
        self.answered: set[int] = set()
        self._start_ms, self._end_ms = math.inf, -math.inf

    def add(self, row: Request) -> None:
        """Count one attempt."""
        if row.marks.start_ms is not None:
            self._start_ms = min(self._start_ms, row.marks.start_ms)
        if row.outcome == "ok":
            self.answered.add(row.prompt)
            if row.marks.end_ms is not None:
                self._end_ms = max(self._end_ms, row.marks.end_ms)

    def makespan_ms(self, prompts: int) -> float | None:
        """None unless each of so many prompts was answered, with times of day."""
        known = math.isfinite(self._end_ms - self._start_ms)
        return self._end_ms - self._start_ms if known and len(self.answered) >= prompts else None


def makespan_ms(arm: Arm, expected: AbstractSet[int]) -> float | None:
    """From the first dispatch to the last answer; None unless every prompt was answered."""
    span = Span()
    for row in arm.requests:
        span.add(row)
    if arm.makespan_ms is not None and (not arm.requests or span.answered >= expected):
        return arm.makespan_ms  # published without times of day
    return span.makespan_ms(len(expected)) if span.answered >= expected else None


def narrow(found: Sequence[float], band: float) -> bool:
    """Whether the interval is narrow enough: within the band to both sides of its middle.

    Judged by width alone and never by where it lies, so that stopping there favours no claim.
    Even so, an interval that was looked at after every round holds less than the 95 % of one
    whose rounds were fixed beforehand: about 90 % at the least (`benchmarks/interval_coverage.py`).
    """
    if len(found) < LEAST:
        return False
    low, high = stats.interval(found)
    return math.log(high / low) / 2 <= math.log1p(band)


def noise(calibrated: Mapping[str, Sequence[Request]], prompts: int) -> float | None:
    """The spread of one round's ratio, supposing that requests vary as they did in calibration.

    Both arms add up `prompts` requests, so each spreads less than one request by the root of
    their number. Drift and contention come on top: a lower bound, and a rough one.
    """
    spreads = [
        stdev(logs)
        for rows in calibrated.values()
        if len(logs := [math.log(row.wall_ms) for row in rows if row.wall_ms]) >= 3
    ]
    if not spreads or prompts < 1:
        return None
    return math.sqrt(2 / prompts) * max(spreads)


def power(ratio: float, noise: float, gate: float, band: float) -> Power:
    """The rounds that an expected `ratio` needs; see `Power`."""
    apart = max(math.log((1 - band) / ratio), math.log(ratio / (1 + band)))
    return Power(
        ratio,
        rounds_for(abs(math.log(gate / ratio)), noise, _POWER),
        rounds_for(apart, noise, _POWER) if apart > 0 else None,
        noise,
    )


def rounds_for(distance: float, noise: float, beyond: float = 0.0) -> int | None:
    """The fewest rounds, 2 or more, whose interval reaches no farther than `distance`.

    Both are logarithms; `beyond` is the standard errors of a median to spare. None where that
    takes more than `MOST`.
    """
    if distance <= 0:
        return None
    for n in range(2, MOST + 1):
        if (stats.reach(n) + beyond * math.sqrt(math.pi / 2 / n)) * noise <= distance:
            return n
    return None


def foretold(found: Sequence[float], noise: float | None, band: float) -> int | None:
    """How many rounds `rounds: auto` will take, by what is known: its own rounds, else calibration.

    None where nothing is known yet, or where it is more than `MOST`.
    """
    if len(found) >= 3:
        noise = stdev(map(math.log, found))
    if noise is None:
        return None
    need = rounds_for(math.log1p(band), noise)
    return None if need is None else max(LEAST, need, len(found))
