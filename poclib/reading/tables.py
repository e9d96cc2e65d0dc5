"""A report as tidy tables, and the cases that stand for it; all from one reading of it.

All times are milliseconds; absent is NaN or NA.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from .. import pacing
from ..errors import ReportError
from ..records import Arm, Report, Request, Ruler, RulerRow
from ..report import name
from . import phases
from .headline import ROLES, RoundTimes, prompts, rounds
from .reading import Reading


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """What may hold fractions is float64, all else of a type that knows NA."""
    frame = pd.DataFrame(rows, columns=list(columns))
    floats = [key for key in columns if key.endswith("_ms") or key in ("ratio", "ms_per_token")]
    others = frame.drop(columns=floats).convert_dtypes()
    return frame.astype(dict.fromkeys(floats, "float64")).assign(**others)


def frame_of_requests(reading: Reading) -> pd.DataFrame:
    """See `Reading.requests`."""
    facts = {one.name: one for one in reading.report.providers}
    rows = [
        {
            "round": round_,
            "order": order,
            "arm": arm.arm,
            "strategy": arm.strategy,
            "warm_up": arm.arm == "warm-up",
            "role": facts[request.provider].role,
            "limit": (arm.limits or {}).get(request.provider),
            "slots": facts[request.provider].slots,
            **_row(request),
        }
        for round_, order, arm in _places(reading.believed)
        for request in arm.requests
    ]
    first = ["round", "order", "arm", "strategy", "warm_up", "role", "limit", "slots"]
    return _frame(rows, [*first, *_row(Request(prompt=0, provider="none"))])


def _row(request: Request) -> dict[str, Any]:
    marks, tokens = request.marks, pacing.length(request)
    return {
        "provider": request.provider,
        "prompt": request.prompt,
        "attempt": request.attempt,
        "outcome": request.outcome,
        "error_kind": request.error_kind,
        "assigned_ms": marks.assigned_ms,
        "start_ms": marks.start_ms,
        "end_ms": marks.end_ms,
        **phases.times(request),
        "prompt_tokens": request.prompt_tokens,
        "cached_tokens": request.cached_tokens,
        "output_tokens": tokens,
        "ms_per_token": request.wall_ms / tokens if request.wall_ms and tokens else None,
        "finish_reason": request.finish_reason,
        "answer_sha256": request.answer_sha256,
    }


def _places(report: Report) -> Iterator[tuple[int | None, int, Arm]]:
    """Every arm with its round (None in the preparation) and its place there."""
    for order, arm in enumerate(report.preparation):
        yield None, order, arm
    for one in report.rounds:
        for order, arm in enumerate(one.arms):
            yield one.index, order, arm


def frame_of_rounds(reading: Reading) -> pd.DataFrame:
    """See `Reading.rounds`."""
    timed, _ = rounds(reading.report)
    rows = [one._asdict() | {"complete": one.ratio is not None} for one in timed]
    return _frame(rows, [*RoundTimes._fields, "complete"])


def breakdown(reading: Reading) -> pd.DataFrame:
    """Mean milliseconds of each part of a request, a row per role: what the chart draws."""
    means = reading.headline.segments_ms
    rows = [{"role": role} | parts for role, parts in means.items()]
    return _frame(rows, ["role", *phases.in_use(means.values())])


def overhead(reading: Reading) -> pd.DataFrame:
    """What lies outside the servers' own time, per answered request of the whole report.

    `network_ms`, `ours_ms` and `unexplained_ms` add up to `over_ms`, `server_queue_ms` stands
    beside it; see `phases.overhead`. NaN where there is no source: its time is then among the
    unexplained. `round` is NA in the preparation.
    """
    report = reading.believed
    facts = {one.name: one for one in report.providers}
    trips = {name: phases.trip(report, name) for name in facts}
    rows = [
        {
            "provider": row.provider,
            "role": facts[row.provider].role,
            "arm": arm.arm,
            "round": round_,
            "prompt": row.prompt,
            **phases.overhead(row, facts[row.provider], trips[row.provider]),
        }
        for round_, _, arm in _places(report)
        for row in arm.requests
        if row.outcome == "ok"
    ]
    columns = ["provider", "role", "arm", "round", "prompt"]
    return _frame(rows, [*columns, *(part.key for part in phases.OVERHEAD)])


def ruler(check: Ruler, quantity: str = "over_ms") -> pd.DataFrame:
    """The instrument's check on itself, a row per case and quantity; see `records.RulerRow`."""
    rows = [row.model_dump() for row in check.rows if row.quantity == quantity]
    return _frame(rows, list(RulerRow.model_fields))


def result(reading: Reading, round: int = 0) -> str | None:
    """The strategy's answers in that round, concatenated in the prompts' order.

    None where the round is not there, texts were not stored, or a prompt has no answer.
    """
    texts = {
        row.prompt: row.answer
        for round_, _, arm in _places(reading.report)
        for row in arm.requests
        if round_ == round and arm.arm == "strategy" and row.outcome == "ok"
        if row.answer is not None
    }
    if not texts or texts.keys() != prompts(reading.report):
        return None
    return "".join(texts[prompt] for prompt in sorted(texts))


def typical(reading: Reading, *roles: str) -> dict[str, Any]:
    """The answered request of median wall time in the strategy's arms, by columns of `requests`.

    Of the first of `roles` (by default remote, then local) that has one with times of day. With
    `token_ms`, the offset of each token from the request's start. What is not known is None.
    Raises `ReportError` where there is no such request.
    """
    provided = {facts.name: facts.role for facts in reading.report.providers}
    rows = [row for row in reading.answered("strategy") if row.marks.start_ms is not None]
    rows = sorted((row for row in rows if row.wall_ms is not None), key=_wall_ms)
    for role in roles or ROLES:
        own = [row for row in rows if provided[row.provider] == role]
        if own:
            row = own[(len(own) - 1) // 2]
            start_ms = row.marks.start_ms or 0.0
            return {
                "role": role,
                **_row(row),
                "token_ms": [t - start_ms for t in row.token_ms or ()],
            }
    raise ReportError(
        f"{name(reading.report)}: no answered request has times of day, so none can be drawn; "
        "choose a report that was measured with this program."
    )


def _wall_ms(row: Request) -> float:
    return row.wall_ms or 0.0


def clearest(readings: Sequence[Reading]) -> Reading:
    """The first that sends to most providers and least at once: no request hides another.

    Raises `ReportError` without readings.
    """
    if not readings:
        raise ReportError("there is no report to choose from; run the experiment first.")
    return min(readings, key=_crowd)


def _crowd(reading: Reading) -> tuple[int, float]:
    arms = reading.arms("strategy")
    used = {row.provider for arm in arms for row in arm.requests}
    limits = [max(arm.limits.values()) if arm.limits else math.inf for arm in arms]
    return -len(used), max(limits, default=math.inf)
