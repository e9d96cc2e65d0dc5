"""Whether two measurements of one experiment agree, and in what two experiments are unlike.

Saved facts and their headline numbers in, plain values out; knows no file and no sentence.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..records import Report
from ..stats import Headline, Ratio
from .frames import arms

# Where the interval of the ratio of ratios lies: inside the band around 1, outside, or across.
Place = Literal["inside", "outside", "across", "unknown"]
# Of a provider: what it is, and what decides how fast. Where the coordinator is, is not in it.
_OF_A_PROVIDER = (
    *("kind", "role", "model", "digest", "server", "engine", "engine_kind", "slots", "capacity"),
    *("context_tokens", "core", "cores", "turns", "threads", "batching", "refuses", "speed"),
    "link",
)
_OF_THE_PARAMETERS = ("max_tokens", "context_tokens", "seed", "stream", "retries", "hedge")
_OF_THE_MACHINE = ("machine", "cores")


@dataclass(frozen=True)
class Agreement:
    """A second measurement against the first: `change` is its ratio over the other's.

    Answers are compared prompt by prompt as the baseline gave them; `compared` is 0 where each
    run marked its prompts as its own, to defeat a cache.
    """

    change: Ratio
    place: Place
    same_verdict: bool
    equal: int
    compared: int

    @property
    def agrees(self) -> bool:
        """The same verdict, and no difference beyond the band."""
        return self.same_verdict and self.place != "outside"


def between(first: tuple[Report, Headline], second: tuple[Report, Headline]) -> Agreement:
    """How the second measurement of an experiment compares with the first."""
    mine, other = first[1], second[1]
    change = ratio_of_ratios(mine.overhead_ratio, other.overhead_ratio)
    alike = mine.verdict == other.verdict
    return Agreement(change, place(change, mine.band), alike, *_answers(first[0], second[0]))


def ratio_of_ratios(first: Ratio, second: Ratio) -> Ratio:
    """Second over first, with the interval that their own two intervals give.

    On logarithms each end of a difference lies as far off as the root of the sum of the squares
    of the two distances that lead there (MOVER: Zou & Donner, Statistics in Medicine 27, 2008).
    """
    rounds = min(first.rounds, second.rounds)
    if not first.median or not second.median:
        return Ratio(None, None, None, rounds)
    middle = second.median / first.median
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return Ratio(middle, None, None, rounds)
    below = math.hypot(math.log(second.median / second.low), math.log(first.high / first.median))
    above = math.hypot(math.log(second.high / second.median), math.log(first.median / first.low))
    return Ratio(middle, middle * math.exp(-below), middle * math.exp(above), rounds)


def over_the_first(headlines: Sequence[Headline]) -> list[Ratio | None]:
    """The ratio of each over the first one's; None for the first, and for other strategies."""
    first, *others = headlines
    return [
        None,
        *(
            ratio_of_ratios(first.overhead_ratio, one.overhead_ratio)
            if one.strategy == first.strategy
            else None
            for one in others
        ),
    ]


def place(change: Ratio, band: float) -> Place:
    """Where the interval lies against 1 plus or minus the band."""
    if change.low is None or change.high is None:
        return "unknown"
    if change.high < 1 - band or change.low > 1 + band:
        return "outside"
    return "inside" if change.low >= 1 - band and change.high <= 1 + band else "across"


def _answers(first: Report, second: Report) -> tuple[int, int]:
    """Of the prompts that both baselines answered: how many alike, and how many in all."""
    if not all(one.cache_defeated for report in (first, second) for one in report.providers):
        return 0, 0
    mine, other = _given(first), _given(second)
    both = mine.keys() & other.keys()
    return sum(mine[prompt] == other[prompt] for prompt in both), len(both)


def _given(report: Report) -> dict[str, str]:
    """The baseline's first answer to each prompt, both as digests."""
    given: dict[str, str] = {}
    for row in (row for arm in arms(report, "baseline") for row in arm.requests):
        if row.outcome == "ok" and row.answer_sha256 and report.prompt_sha256:
            given.setdefault(report.prompt_sha256[row.prompt], row.answer_sha256)
    return given


def unlike(reports: Sequence[Report]) -> dict[str, list[str]]:
    """What is not the same in all reports, and what it is in each; empty where all is alike.

    Not among them: the strategy, the number of rounds, and when it was.
    """
    each = [_described(report) for report in reports]
    keys = dict.fromkeys(key for one in each for key in one)
    rows = {key: [_shown(one.get(key)) for one in each] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _described(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {"providers": ", ".join(sorted(p.name for p in report.providers))}
    for provider in report.providers:
        facts = provider.model_dump()
        facts["digest"] = facts["digest"] and facts["digest"].rpartition(":")[2][:12]
        found |= {f"{provider.name}: {key}": facts[key] for key in _OF_A_PROVIDER}
    found["prompts"] = _prompts(report)
    given: Mapping[str, Any] = report.parameters.model_dump() if report.parameters else {}
    found |= {key: given.get(key) for key in _OF_THE_PARAMETERS}
    found |= {"gate_max_ratio": report.gate_max_ratio, "band": report.band}
    return found | {f"coordinator: {k}": report.environment.get(k) for k in _OF_THE_MACHINE}


def _prompts(report: Report) -> str | None:
    """Their number, and a digest of their digests, in order."""
    if not report.prompt_sha256:
        return None
    digest = hashlib.sha256(" ".join(report.prompt_sha256).encode()).hexdigest()
    return f"{len(report.prompt_sha256)} ({digest[:8]})"


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{key} {one:g}" for key, one in value.items() if one) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
