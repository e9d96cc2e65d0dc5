"""How many rounds are enough: foretold from calibration, then judged by the rounds themselves.

Plain records in, plain numbers out; sends nothing and knows no sentence. Both halves ask it:
before a run, while `rounds: auto` goes on, and when its report is read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import stdev

from . import stats
from .records import Arm, Request, Round

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


def makespan_ms(arm: Arm, expected: AbstractSet[int]) -> float | None:
    """From the first dispatch to the last answer; None unless every prompt was answered."""
    if not arm.requests:
        return arm.makespan_ms  # published without rows
    answered = {row.prompt for row in arm.requests if row.outcome == "ok" and not hollow(row)}
    if not answered or not answered >= expected:
        return None
    if arm.makespan_ms is not None:
        return arm.makespan_ms
    starts = [row.marks.start_ms for row in arm.requests if row.marks.start_ms is not None]
    ends = [
        row.marks.end_ms
        for row in arm.requests
        if row.outcome == "ok" and row.marks.end_ms is not None
    ]
    return max(ends) - min(starts) if starts and ends else None


def hollow(row: Request) -> bool:
    """Whether what counts as answered holds nothing: no text, no thought, no token."""
    return row.answer_sha256 == EMPTY_SHA256 and not (row.output_tokens or row.thought_characters)


def length(row: Request) -> int | None:
    """Tokens of an answer: as its server counts them, else the pieces that arrived."""
    return row.output_tokens or len(row.token_ms or ()) or None


def arm_tokens(arm: Arm) -> int | None:
    """Output tokens of all its answers; None where the length of one is unknown."""
    lengths = [length(row) for row in arm.requests if row.outcome == "ok"]
    return sum(one or 0 for one in lengths) if lengths and None not in lengths else None


def unlike_lengths(counts: Sequence[tuple[int | None, int | None]], band: float) -> bool:
    """Whether the two arms' tokens differ by more than the band in some round.

    Then the times per token decide, in every round, if the tokens of all are known.
    """
    known = [(a, b) for a, b in counts if a and b]
    return len(known) == len(counts) and any(max(a, b) > (1 + band) * min(a, b) for a, b in known)


def ratios(rounds: Iterable[Round], prompts: int, band: float) -> list[float]:
    """The ratio of every complete round, per token where the arms' lengths are unlike."""
    spans, counts = [], []
    for one in rounds:
        arms = {arm.arm: arm for arm in one.arms}
        if {"strategy", "baseline"} <= arms.keys():
            pair = arms["strategy"], arms["baseline"]
            strategy, baseline = (makespan_ms(arm, set(range(prompts))) for arm in pair)
            if strategy and baseline:
                spans.append(strategy / baseline)
                counts.append((arm_tokens(pair[0]), arm_tokens(pair[1])))
    if not unlike_lengths(counts, band):
        return spans
    return [span * (b or 1) / (a or 1) for span, (a, b) in zip(spans, counts, strict=True)]


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
