"""A report as tidy tables, and the cases that stand for it; all from one reading of it.

All times are milliseconds; absent is NaN or NA.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pandas as pd

from .. import pacing
from ..errors import ReportError
from ..records import Request
from ..report import name
from . import phases
from .headline import ROLES, prompts
from .reading import Place, Reading

# Of a request, as they are saved.
_SAVED: tuple[str, ...] = (
    "provider",
    "prompt",
    "attempt",
    "outcome",
    "error_kind",
    "prompt_tokens",
)
_SAVED += ("cached_tokens", "finish_reason", "answer_sha256")
_MARKS = ("assigned_ms", "start_ms", "end_ms")


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """What may hold fractions is float64, all else of a type that knows NA."""
    frame = pd.DataFrame(rows, columns=list(columns))
    floats = [key for key in columns if key.endswith("_ms") or key in ("ratio", "ms_per_token")]
    others = frame.drop(columns=floats).convert_dtypes()
    return frame.astype(dict.fromkeys(floats, "float64")).assign(**others)


def frame_of_requests(reading: Reading, places: Sequence[Place] | None = None) -> pd.DataFrame:
    """See `Reading.requests`; of those arms alone where `places` are given."""
    slots = {facts.name: facts.slots for facts in reading.report.providers}
    rows = [
        {
            "round": round_,
            "order": order,
            "arm": arm.arm,
            "strategy": arm.strategy,
            "warm_up": arm.arm == "warm-up",
            "role": reading.roles[request.provider],
            "limit": (arm.limits or {}).get(request.provider),
            "slots": slots[request.provider],
            **_row(request),
        }
        for round_, order, arm in (reading.places if places is None else places)
        for request in arm.requests
    ]
    first = ["round", "order", "arm", "strategy", "warm_up", "role", "limit", "slots"]
    return _frame(rows, [*first, *_row(Request(prompt=0, provider="none"))])


def _row(request: Request) -> dict[str, Any]:
    tokens = pacing.length(request)
    return {
        **{key: getattr(request, key) for key in _SAVED},
        **{key: getattr(request.marks, key) for key in _MARKS},
        **phases.times(request),
        "output_tokens": tokens,
        "ms_per_token": request.wall_ms / tokens if request.wall_ms and tokens else None,
    }


def overhead(reading: Reading) -> pd.DataFrame:
    """What lies outside the servers' own time, per answered request; see `phases.overhead`.

    NaN where a part has no source: its time is then among the unexplained.
    """
    report = reading.report
    known = {one.name: (one, phases.trip(report, one.name)) for one in report.providers}
    rows = [
        {"provider": r.provider, "arm": arm.arm, **phases.overhead(r, *known[r.provider])}
        for *_, arm in reading.places
        for r in arm.requests
        if r.outcome == "ok"
    ]
    return _frame(rows, ["provider", "arm", *(part.key for part in phases.OVERHEAD)])


def result(reading: Reading, round: int = 0) -> str | None:
    """The strategy's answers in that round, concatenated in the prompts' order.

    None where the round is not there, texts were not stored, or a prompt has no answer.
    """
    arms = [arm for of, _, arm in reading.places if of == round and arm.arm == "strategy"]
    rows = [row for arm in arms for row in arm.requests if row.outcome == "ok"]
    texts = {row.prompt: row.answer for row in rows if row.answer is not None}
    whole = texts and texts.keys() == prompts(reading.report)
    return "".join(texts[prompt] for prompt in sorted(texts)) if whole else None


def typical(reading: Reading, *roles: str) -> dict[str, Any]:
    """The answered request of median wall time in the strategy's arms, by columns of `requests`.

    Of the first of `roles` (by default remote, then local) that has one with times of day. With
    `token_ms`, the offset of each token from the request's start. What is not known is None.
    Raises `ReportError` where there is no such request.
    """
    rows = [(row.wall_ms, row.marks.start_ms, row) for row in reading.answered("strategy")]
    timed = [(wall, start, row) for wall, start, row in rows if None not in (wall, start)]
    timed.sort(key=itemgetter(0))
    for role in roles or ROLES:
        own = [each for each in timed if reading.roles[each[2].provider] == role]
        if own:
            _, start_ms, row = own[(len(own) - 1) // 2]
            offsets = [moment - (start_ms or 0.0) for moment in row.token_ms or ()]
            return {"role": role, **_row(row), "token_ms": offsets}
    raise ReportError(
        f"{name(reading.report)}: no answered request has times of day, so none can be drawn; "
        "choose a report that was measured with this program."
    )


def clearest(readings: Sequence[Reading]) -> Reading:
    """The first that sends to most providers and least at once: no request hides another.

    Raises `ReportError` without readings.
    """
    if not readings:
        raise ReportError("there is no report to choose from; run the experiment first.")

    def crowd(reading: Reading) -> tuple[int, float]:
        arms = reading.arms("strategy")
        used = {row.provider for arm in arms for row in arm.requests}
        limits = [max(arm.limits.values()) if arm.limits else math.inf for arm in arms]
        return -len(used), max(limits, default=math.inf)

    return min(readings, key=crowd)
