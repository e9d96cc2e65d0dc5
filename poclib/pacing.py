"""How long an arm took, and how many rounds are enough; asked before, during and after a run."""

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
# `rounds: auto` ends here, whatever the interval.
MOST = 200
# Standard errors that an interval must lie beyond a limit for four experiments in five to see it.
_POWER = 0.84
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
# An arm's makespan in ms, and its tokens where their number is known.
Measured = tuple[float, int | None]


def hollow(row: Request) -> bool:
    """Whether an answer holds nothing: no text, no thought, no token."""
    return row.answer_sha256 == EMPTY_SHA256 and not (row.output_tokens or row.thought_characters)


def length(row: Request) -> int | None:
    """Tokens of an answer: as its server counts them, else the pieces that arrived."""
    return row.output_tokens or len(row.token_ms or ()) or None


class Span:
    """From the first dispatch of an arm to its last answer, row by row as they come."""

    def __init__(self, rows: Sequence[Request] = ()) -> None:
        self.answered: set[int] = set()
        self.tokens: int | None = 0  # None once the length of one is unknown
        self._start_ms, self._end_ms = math.inf, -math.inf
        for row in rows:
            self.add(row)

    def add(self, row: Request) -> None:
        """Count one attempt."""
        if row.marks.start_ms is not None:
            self._start_ms = min(self._start_ms, row.marks.start_ms)
        if row.outcome != "ok":
            return
        tokens = length(row)
        self.tokens = None if self.tokens is None or tokens is None else self.tokens + tokens
        if not hollow(row):
            self.answered.add(row.prompt)
        if row.marks.end_ms is not None:
            self._end_ms = max(self._end_ms, row.marks.end_ms)

    def makespan_ms(self, prompts: int) -> float | None:
        """None unless so many prompts were answered, and at known times."""
        lasted_ms = self._end_ms - self._start_ms
        return lasted_ms if math.isfinite(lasted_ms) and len(self.answered) >= prompts else None


def makespan_ms(arm: Arm, expected: AbstractSet[int]) -> float | None:
    """From the first dispatch to the last answer; None unless every prompt was answered."""
    span = Span(arm.requests)
    if arm.requests and not (span.answered and expected <= span.answered):
        return None  # without rows it was published so
    return span.makespan_ms(len(expected)) if arm.makespan_ms is None else arm.makespan_ms


def arm_tokens(arm: Arm) -> int | None:
    """Output tokens of all its answers; None where the length of one is unknown."""
    return Span(arm.requests).tokens or None


def unlike_lengths(counts: Sequence[tuple[int | None, int | None]], band: float) -> bool:
    """Whether the arms' tokens, if all are known, differ in some round by more than the band."""
    known = [(a, b) for a, b in counts if a and b]
    return len(known) == len(counts) and any(max(a, b) > (1 + band) * min(a, b) for a, b in known)


def ratios(rounds: Sequence[tuple[Measured, Measured]], band: float) -> list[float]:
    """The ratio of (strategy, baseline) of every round, per token where lengths are unlike."""
    per_token = unlike_lengths([(ours, base) for (_, ours), (_, base) in rounds], band)
    return [
        ours_ms / base_ms * ((base or 1) / (ours or 1) if per_token else 1)
        for (ours_ms, ours), (base_ms, base) in rounds
    ]


def narrow(ratios: Sequence[float], band: float) -> bool:
    """Whether the interval is within the band to both sides of its middle.

    Width alone decides, so that stopping there favours no claim. Looked at after every round, an
    interval holds about 90 % at the least, not 95 % (`benchmarks/interval_coverage.py`).
    """
    if len(ratios) < LEAST:
        return False
    low, high = stats.interval(ratios)
    return math.log(high / low) / 2 <= math.log1p(band)


@dataclass(frozen=True)
class Power:
    """Rounds that tell a ratio from the gate, and from `one`, in four experiments of five.

    None: over `MOST`, or for a ratio within the band, which no number of rounds tells from 1.
    """

    gate: int | None
    one: int | None
    noise: float  # the spread of the logarithm of one round's ratio


def power(ratio: float, noise: float, gate: float, band: float) -> Power:
    """The rounds that an expected `ratio` needs; see `Power`."""
    to_gate = abs(math.log(gate / ratio))
    to_one = max(math.log((1 - band) / ratio), math.log(ratio / (1 + band)))
    return Power(rounds_for(to_gate, noise, _POWER), rounds_for(to_one, noise, _POWER), noise)


def rounds_for(distance: float, noise: float, beyond: float = 0.0) -> int | None:
    """The fewest rounds, 2 to `MOST`, whose interval reaches no farther than `distance`, if any.

    `distance` and `noise` are of logarithms; `beyond`: standard errors of a median to spare.
    """
    margins = ((n, beyond * math.sqrt(math.pi / 2 / n)) for n in range(2, MOST + 1))
    return next((n for n, more in margins if (stats.reach(n) + more) * noise <= distance), None)


def noise(calibrated: Mapping[str, Sequence[Request]], prompts: int) -> float | None:
    """The spread of one round's ratio, supposing that requests vary as they did in calibration.

    An arm's spread is a request's over the root of their number. Rough, and a lower bound: drift
    and contention come on top.
    """
    logs = [[math.log(row.wall_ms) for row in rows if row.wall_ms] for rows in calibrated.values()]
    spreads = [stdev(walls) for walls in logs if len(walls) >= 3]
    return math.sqrt(2 / prompts) * max(spreads) if spreads else None


def foretold(ratios: Sequence[float], noise: float | None, band: float) -> int | None:
    """The rounds of `rounds: auto`, by its own, else by `noise`; None if unknown or over `MOST`."""
    if len(ratios) >= 3:
        noise = stdev(map(math.log, ratios))
    need = None if noise is None else rounds_for(math.log1p(band), noise)
    return None if need is None else max(LEAST, need, len(ratios))
