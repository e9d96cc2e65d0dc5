"""A report's rows: arms, requests and rounds as typed frames, from which all else is made.

Knows no file, no sentence and no picture. All times are milliseconds; absent is NaN or NA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from .. import pacing
from ..records import Arm, ArmName, Report, Request
from . import phases

ROLES = ("remote", "local")
_FLOATS = {"ratio", "low", "high", "speedup", "efficiency", "speed", "ms_per_token"}
_FLAGS = {"warm_up", "complete", "pinned", "batching", "refuses"}
_FLAGS |= {"keep_alive", "fixed_length", "cache_defeated", "reports_time"}
_COUNTS = {"round", "rounds", "order", "prompt", "attempt", "n", "answered", "failed"}
_COUNTS |= {"in_flight", "slots", "capacity", "core", "cores", "turns", "threads", "limit"}


def frame(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Types by the column's name, whatever the rows hold: an empty report is typed as well."""

    def kind(column: str) -> str:
        if column.endswith("_ms") or column in _FLOATS:
            return "float64"
        if column.endswith("_tokens") or column in _COUNTS:
            return "Int64"
        return "boolean" if column in _FLAGS else "string"

    made = pd.DataFrame(rows, columns=list(columns), dtype="object")
    return made.astype({column: kind(column) for column in columns})


def arms(report: Report, arm: ArmName) -> list[Arm]:
    """The arms of that kind, in the order they ran."""
    everywhere = [*report.preparation, *(mine for r in report.rounds for mine in r.arms)]
    return [mine for mine in everywhere if mine.arm == arm]


def places(report: Report) -> Iterator[tuple[int | None, int, Arm]]:
    """Every arm with its round (None in the preparation) and its place there."""
    for order, arm in enumerate(report.preparation):
        yield None, order, arm
    for one in report.rounds:
        for order, arm in enumerate(one.arms):
            yield one.index, order, arm


def calibrations(report: Report) -> dict[str, list[Request]]:
    """The answered calibration requests of each provider, in the order they were sent."""
    rows: dict[str, list[Request]] = {}
    for row in (row for arm in arms(report, "calibration") for row in arm.requests):
        if row.outcome == "ok" and row.wall_ms:
            rows.setdefault(row.provider, []).append(row)
    return rows


def prompts(report: Report) -> set[int]:
    """The indices every arm of a round must answer."""
    return set(range(len(report.prompt_sha256))) or {row.prompt for row in report.requests}


def requests(report: Report) -> pd.DataFrame:
    """One row per request; see `tables.requests`. Servers' own times are taken as they are."""
    facts = {one.name: one for one in report.providers}
    rows = [
        {
            "round": index,
            "order": order,
            "arm": arm.arm,
            "strategy": arm.strategy,
            "warm_up": arm.arm == "warm-up",
            "role": facts[row.provider].role if row.provider in facts else None,
            "limit": (arm.limits or {}).get(row.provider),
            "slots": facts[row.provider].slots if row.provider in facts else None,
            **_facts(row),
        }
        for index, order, arm in places(report)
        for row in arm.requests
    ]
    first = ["round", "order", "arm", "strategy", "warm_up", "role", "limit", "slots"]
    return frame(rows, [*first, *_facts(Request(prompt=0, provider="none"))])


def _facts(request: Request) -> dict[str, Any]:
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


def rounds(report: Report) -> tuple[pd.DataFrame, bool]:
    """One row per round (see `tables.rounds`), and whether their ratios are per token."""
    expected = prompts(report)
    names = ["round", "first", "baseline_ms", "strategy_ms", "ratio", "complete"]
    rows: list[dict[str, Any]] = []
    complete: list[tuple[dict[str, Any], int | None, int | None]] = []
    for one in report.rounds:
        mine = {arm.arm: arm for arm in one.arms}
        baseline, strategy = mine.get("baseline"), mine.get("strategy")
        base_ms = pacing.makespan_ms(baseline, expected) if baseline else None
        ours_ms = pacing.makespan_ms(strategy, expected) if strategy else None
        first = one.arms[0].arm if one.arms else None
        ratio = ours_ms / base_ms if base_ms and ours_ms else None
        values = (one.index, first, base_ms, ours_ms, ratio, bool(ratio))
        row: dict[str, Any] = dict(zip(names, values, strict=True))
        rows.append(row)
        if baseline and strategy and ratio:
            complete.append((row, pacing.arm_tokens(baseline), pacing.arm_tokens(strategy)))
    per_token = pacing.unlike_lengths([(base, ours) for _, base, ours in complete], report.band)
    for row, base, ours in complete if per_token else ():
        row["ratio"] *= (base or 1) / (ours or 1)
    return frame(rows, names), per_token


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the rounds: no warm-up, no calibration."""
    return rows[rows["arm"].isin(["baseline", "strategy"])]


def answered(rows: pd.DataFrame, *arms: ArmName) -> pd.DataFrame:
    """The rows whose times count: answered, and in an arm of that kind."""
    return rows[rows["arm"].isin(arms or ("baseline", "strategy")) & rows["outcome"].eq("ok")]
