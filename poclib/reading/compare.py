"""Whether two measurements of one experiment agree, and in what two experiments are unlike.

Readings in, plain values out; knows no file and no sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..records import Report
from ..stats import Headline, Ratio, ratio_of_ratios
from .reading import Reading

# Where the interval of the ratio of ratios lies: inside the band around 1, outside, or across.
Place = Literal["inside", "outside", "across", "unknown"]
# All else decides what a provider is and how fast.
_NO_DIFFERENCE = {"name", "reports_time", "fixed_length", "cache_defeated"}
_NO_DIFFERENCE |= {"keeps_streams", "pinned"}
_OF_THE_PARAMETERS = ("max_tokens", "context_tokens", "seed", "stream", "retries", "hedge")


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


def between(first: Reading, second: Reading) -> Agreement:
    """How the second measurement of an experiment compares with the first."""
    before, after = first.headline, second.headline
    change = ratio_of_ratios(before.overhead_ratio, after.overhead_ratio)
    given, again = _given(first.report), _given(second.report)
    both = given.keys() & again.keys()
    equal = sum(given[prompt] == again[prompt] for prompt in both)
    alike = before.verdict == after.verdict
    return Agreement(change, place(change, before.band), alike, equal, len(both))


def over_the_first(headlines: Sequence[Headline]) -> list[Ratio | None]:
    """The ratio of each over the first one's; None for the first, and for other strategies."""
    first, *others = headlines
    ratios = [ratio_of_ratios(first.overhead_ratio, one.overhead_ratio) for one in others]
    pairs = zip(others, ratios, strict=True)
    return [None, *(ratio if one.strategy == first.strategy else None for one, ratio in pairs)]


def place(change: Ratio, band: float) -> Place:
    """Where the interval lies against 1 plus or minus the band."""
    if change.low is None or change.high is None:
        return "unknown"
    if change.high < 1 - band or change.low > 1 + band:
        return "outside"
    return "inside" if change.low >= 1 - band and change.high <= 1 + band else "across"


def _given(report: Report) -> dict[str, str]:
    """The baseline's first answer to each prompt, both as digests; none where texts are marked."""
    given: dict[str, str] = {}
    if report.prompt_sha256 and all(facts.cache_defeated for facts in report.providers):
        for arm in (arm for one in report.rounds for arm in one.arms if arm.arm == "baseline"):
            for row in arm.requests:
                if row.outcome == "ok" and row.answer_sha256:
                    given.setdefault(report.prompt_sha256[row.prompt], row.answer_sha256)
    return given


def unlike(readings: Sequence[Reading]) -> dict[str, list[str]]:
    """What is not the same in all reports, and what it is in each; empty where all is alike.

    Not among them: the strategy, the number of rounds, and when it was.
    """
    each = [_described(reading.report) for reading in readings]
    keys = dict.fromkeys(key for one in each for key in one)
    rows = {key: [_shown(one.get(key)) for one in each] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _described(report: Report) -> dict[str, Any]:
    described: dict[str, Any] = {"providers": ", ".join(sorted(p.name for p in report.providers))}
    for provider in report.providers:
        facts = provider.model_dump(exclude=_NO_DIFFERENCE)
        facts["digest"] = facts["digest"] and facts["digest"].rpartition(":")[2][:12]
        described |= {f"{provider.name}: {key}": value for key, value in facts.items()}
    digest = hashlib.sha256(" ".join(report.prompt_sha256).encode()).hexdigest()[:8]
    count = len(report.prompt_sha256)
    described["prompts"] = f"{count} ({digest})" if count else None
    described |= {key: getattr(report.parameters, key, None) for key in _OF_THE_PARAMETERS}
    described |= {"gate_max_ratio": report.gate_max_ratio, "band": report.band}
    return described | {
        f"coordinator: {key}": report.environment.get(key) for key in ("machine", "cores")
    }


def _shown(value: Any) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{key} {part:g}" for key, part in value.items() if part) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
