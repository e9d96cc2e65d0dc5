"""How many rounds are enough: foretold from calibration, then judged by the rounds themselves.

Plain records in, plain numbers out; sends nothing and knows no sentence. Both halves ask it:
before a run, while `rounds: auto` goes on, and when its report is read.
"""

from __future__ import annotations

import hashlib
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
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


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
    """From the first dispatch of an arm to its last answer, row by row as they come.

    `tokens` counts the tokens of its answers; None once the length of one is unknown.
    """

    def __init__(self) -> None:
        self.answered: set[int] = set()
        self.tokens: int | None = 0
        self._start_ms, self._end_ms = math.inf, -math.inf

    def add(self, row: Request) -> None:
        """Count one attempt."""
        if row.marks.start_ms is not None:
            self._start_ms = min(self._start_ms, row.marks.start_ms)
        if row.outcome != "ok":
            return
        count = length(row)
        self.tokens = None if self.tokens is None or count is None else self.tokens + count
        if not hollow(row):
            self.answered.add(row.prompt)
        if row.marks.end_ms is not None:
            self._end_ms = max(self._end_ms, row.marks.end_ms)

    def makespan_ms(self, prompts: int) -> float | None:
        """None unless each of so many prompts was answered, with times of day."""
        known = math.isfinite(self._end_ms - self._start_ms)
        return self._end_ms - self._start_ms if known and len(self.answered) >= prompts else None


def span(arm: Arm) -> Span:
    """The span of all rows of an arm."""
    found = Span()
    for row in arm.requests:
        found.add(row)
    return found


def makespan_ms(arm: Arm, expected: AbstractSet[int]) -> float | None:
    """From the first dispatch to the last answer; None unless every prompt was answered."""
    if not arm.requests:
        return arm.makespan_ms  # published without rows
    found = span(arm)
    if not found.answered or not found.answered >= expected:
        return None
    return found.makespan_ms(len(expected)) if arm.makespan_ms is None else arm.makespan_ms


def hollow(row: Request) -> bool:
    """Whether what counts as answered holds nothing: no text, no thought, no token."""
    return row.answer_sha256 == EMPTY_SHA256 and not (row.output_tokens or row.thought_characters)


def length(row: Request) -> int | None:
    """Tokens of an answer: as its server counts them, else the pieces that arrived."""
    return row.output_tokens or len(row.token_ms or ()) or None


def arm_tokens(arm: Arm) -> int | None:
    """Output tokens of all its answers; None where the length of one is unknown."""
    return span(arm).tokens or None


def unlike_lengths(counts: Sequence[tuple[int | None, int | None]], band: float) -> bool:
    """Whether the two arms' tokens differ by more than the band in some round.

    Then the times per token decide, in every round, if the tokens of all are known.
    """
    known = [(a, b) for a, b in counts if a and b]
    return len(known) == len(counts) and any(max(a, b) > (1 + band) * min(a, b) for a, b in known)


# An arm's makespan in ms, and its tokens where their number is known.
Measured = tuple[float, int | None]


def ratios(rounds: Sequence[tuple[Measured, Measured]], band: float) -> list[float]:
    """The ratio of (strategy, baseline) of every round, per token where lengths are unlike."""
    spans = [strategy[0] / baseline[0] for strategy, baseline in rounds]
    counts = [(strategy[1], baseline[1]) for strategy, baseline in rounds]
    if not unlike_lengths(counts, band):
        return spans
    return [ratio * (b or 1) / (a or 1) for ratio, (a, b) in zip(spans, counts, strict=True)]


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
