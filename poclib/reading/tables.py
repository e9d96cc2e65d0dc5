"""A report as tidy tables, and the cases that stand for it; all from one reading of it.

Knows no file, no sentence and no picture. All times are milliseconds; absent is NaN or NA.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from .. import pacing, stats
from ..errors import ReportError
from ..records import Arm, Report, Request, Ruler, RulerRow
from ..report import name
from . import phases
from .headline import ROLES, prompts, rounds
from .reading import Reading

_FLOATS = {"ratio", "low", "high", "speedup", "efficiency", "speed", "ms_per_token"}
_FLAGS = {"warm_up", "complete", "pinned", "batching", "refuses"}
_FLAGS |= {"keep_alive", "fixed_length", "cache_defeated", "reports_time"}
_COUNTS = {"round", "rounds", "order", "prompt", "attempt", "n", "answered", "failed"}
_COUNTS |= {"in_flight", "slots", "capacity", "core", "cores", "turns", "threads", "limit"}
_MEASURED = ["baseline", "strategy"]


def _frame(rows: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Types by the column's name, whatever the rows hold: an empty report is typed as well."""

    def kind(column: str) -> str:
        if column.endswith("_ms") or column in _FLOATS:
            return "float64"
        if column.endswith("_tokens") or column in _COUNTS:
            return "Int64"
        return "boolean" if column in _FLAGS else "string"

    columns = list(columns or (rows[0] if rows else ()))
    frame = pd.DataFrame(rows, columns=columns, dtype="object")
    return frame.astype({column: kind(column) for column in columns})


def frame_of_requests(reading: Reading) -> pd.DataFrame:
    """See `Reading.requests`."""
    facts = {one.name: one for one in reading.report.providers}
    rows = []
    for round_, order, arm in _places(reading.believed):
        for request in arm.requests:
            provider = facts.get(request.provider)
            rows.append(
                {
                    "round": round_,
                    "order": order,
                    "arm": arm.arm,
                    "strategy": arm.strategy,
                    "warm_up": arm.arm == "warm-up",
                    "role": provider and provider.role,
                    "limit": (arm.limits or {}).get(request.provider),
                    "slots": provider and provider.slots,
                    **_facts(request),
                }
            )
    first = ["round", "order", "arm", "strategy", "warm_up", "role", "limit", "slots"]
    return _frame(rows, [*first, *_facts(Request(prompt=0, provider="none"))])


def _places(report: Report) -> Iterator[tuple[int | None, int, Arm]]:
    """Every arm with its round (None in the preparation) and its place there."""
    for order, arm in enumerate(report.preparation):
        yield None, order, arm
    for one in report.rounds:
        for order, arm in enumerate(one.arms):
            yield one.index, order, arm


def _facts(request: Request) -> dict[str, Any]:
    tokens = pacing.length(request)
    same = ("provider", "prompt", "attempt", "outcome", "error_kind")
    return {
        **{key: getattr(request, key) for key in same},
        **request.marks.model_dump(include={"assigned_ms", "start_ms", "end_ms"}),
        **phases.times(request),
        "prompt_tokens": request.prompt_tokens,
        "cached_tokens": request.cached_tokens,
        "output_tokens": tokens,
        "ms_per_token": request.wall_ms / tokens if request.wall_ms and tokens else None,
        "finish_reason": request.finish_reason,
        "answer_sha256": request.answer_sha256,
    }


def frame_of_rounds(reading: Reading) -> pd.DataFrame:
    """See `Reading.rounds`."""
    rows = [
        row._asdict() | {"complete": row.ratio is not None} for row in rounds(reading.report)[0]
    ]
    return _frame(rows, ["round", "first", "baseline_ms", "strategy_ms", "ratio", "complete"])


def _answered(reading: Reading, *arms: str) -> pd.DataFrame:
    """The requests whose times count: answered, in one of these arms."""
    rows = reading.requests
    return rows[rows["arm"].isin(arms) & rows["outcome"].eq("ok")]


def providers(reading: Reading) -> pd.DataFrame:
    """One row per provider: what it is, its round trip, its time alone, what it answered."""
    numbers, rows = reading.headline, []
    for facts in reading.report.providers:
        outcomes = [r.outcome for r in reading.report.requests if r.provider == facts.name]
        rows.append(
            {
                **facts.model_dump(exclude={"link"}),
                "link_round_trip_ms": facts.link.round_trip_ms if facts.link else None,
                "round_trip_ms": numbers.round_trip_ms[facts.name],
                "alone_ms": numbers.alone_ms.get(facts.name),
                "answered": outcomes.count("ok"),
                "failed": outcomes.count("failed"),
            }
        )
    return _frame(rows)


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
    role = {facts.name: facts.role for facts in report.providers}
    hidden = phases.hidden_handshakes(report.providers)
    answered = [
        ({"arm": arm.arm, "round": index}, row)
        for index, _, arm in _places(report)
        for row in arm.requests
        if row.outcome == "ok"
    ]
    trips = phases.trips(report, [row for _, row in answered])
    rows = [
        {"provider": row.provider, "role": role.get(row.provider), **place, "prompt": row.prompt}
        | phases.overhead(row, trip, row.provider in hidden)
        for (place, row), trip in zip(answered, trips, strict=True)
    ]
    parts = ["over_ms", "network_ms", "server_queue_ms", "ours_ms", "unexplained_ms"]
    return _frame(rows, ["provider", "role", "arm", "round", "prompt", *parts])


def ruler(check: Ruler, quantity: str = "over_ms") -> pd.DataFrame:
    """The instrument's check on itself, a row per case and quantity; see `records.RulerRow`."""
    rows = [row.model_dump() for row in check.rows if row.quantity == quantity]
    return _frame(rows, list(RulerRow.model_fields))


def distribution(reading: Reading) -> pd.DataFrame:
    """Mean and quantiles of wall time per arm and provider; NaN where n is too small."""
    rows = []
    levels = (50, 90, 95, 99)
    for (arm, provider), group in _answered(reading, *_MEASURED).groupby(["arm", "provider"]):
        walls = group["wall_ms"].dropna()
        row = {"arm": arm, "provider": provider, "n": len(walls), "mean_ms": walls.mean()}
        quantiles = stats.quantiles(walls.tolist(), levels)
        rows.append(row | {f"{level}_ms": value for level, value in quantiles.items()})
    return _frame(rows, ["arm", "provider", "n", "mean_ms", *(f"p{level}_ms" for level in levels)])


def comparison(readings: Sequence[Reading]) -> pd.DataFrame:
    """One row a report: strategy, ratio with interval, and what explains it."""
    rows = []
    for one in (reading.headline for reading in readings):
        ratio = one.overhead_ratio
        added = {role: spread.mean for role, spread in one.added_latency_ms.items() if spread}
        rows.append(
            {
                "report": one.report,
                "strategy": one.strategy,
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "rounds": ratio.rounds,
                "speedup": one.speedup,
                "efficiency": one.efficiency,
                **{f"added_{role}_ms": added.get(role) for role in ROLES},
                "verdict": one.verdict,
            }
        )
    return _frame(rows)


def result(reading: Reading, round: int = 0) -> str | None:
    """The strategy's answers in that round, concatenated in the prompts' order.

    None where the round is not there, texts were not stored, or a prompt has no answer.
    """
    texts = {
        row.prompt: row.answer
        for one in reading.report.rounds
        for arm in one.arms
        for row in arm.requests
        if one.index == round and arm.arm == "strategy" and row.outcome == "ok"
        if row.answer is not None
    }
    if not texts or texts.keys() != prompts(reading.report):
        return None
    return "".join(texts[prompt] for prompt in sorted(texts))


def typical(reading: Reading, *roles: str) -> dict[str, Any]:
    """The answered request of median wall time in the strategy's arms, a row of `Reading.requests`.

    Of the first of `roles` (by default remote, then local) that has one with times of day; of
    an even number the faster of the middle two. With `token_ms`, the offset of each token from
    the request's start (empty where none was stored). What is not known is None.
    Raises `ReportError` where there is no such request.
    """
    timed = _answered(reading, "strategy").dropna(subset=["wall_ms", "start_ms"])
    for role in roles or ROLES:
        group = timed[timed["role"].eq(role)].sort_values("wall_ms")
        if len(group):
            row = group.iloc[(len(group) - 1) // 2].to_dict()
            case: dict[str, Any] = {str(k): None if pd.isna(v) else v for k, v in row.items()}
            tokens = next(
                r.token_ms
                for r in reading.report.requests
                if (r.provider, r.marks.start_ms) == (case["provider"], case["start_ms"])
            )
            return case | {"token_ms": [at - case["start_ms"] for at in tokens or []]}
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
    return min(readings, key=_crowd)


def _crowd(reading: Reading) -> tuple[int, float]:
    arms = reading.arms("strategy")
    used = {row.provider for arm in arms for row in arm.requests}
    limits = [
        float("inf") if arm.limits is None else max(arm.limits.values(), default=1) for arm in arms
    ]
    return -len(used), max(limits, default=float("inf"))
