"""A report as tidy tables, and the cases that stand for it; all from one reading of it.

Knows no file, no sentence and no picture. All times are milliseconds; absent is NaN or NA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from .. import stats
from ..errors import ReportError
from ..records import Ruler, RulerRow
from ..report import name
from . import frames, phases
from .frames import ROLES, arms, frame
from .reading import Reading


def providers(reading: Reading) -> pd.DataFrame:
    """One row per provider: what it is, its round trip, its time alone, what it answered."""
    numbers = reading.headline
    sent = frames.measured(reading.requests)
    rows = []
    for facts in reading.report.providers:
        outcomes = sent.loc[sent["provider"] == facts.name, "outcome"]
        rows.append(
            {
                **facts.model_dump(exclude={"link"}),
                "link_round_trip_ms": facts.link.round_trip_ms if facts.link else None,
                "round_trip_ms": numbers.round_trip_ms[facts.name],
                "alone_ms": numbers.alone_ms.get(facts.name),
                "answered": int((outcomes == "ok").sum()),
                "failed": int((outcomes == "failed").sum()),
            }
        )
    return frame(rows, list(rows[0]) if rows else ["name"])


def breakdown(reading: Reading) -> pd.DataFrame:
    """Mean milliseconds of each part of a request, a row per role: what the chart draws."""
    means = reading.headline.segments_ms
    parts = phases.in_use(means.values())
    return frame([{"role": role} | mine for role, mine in means.items()], ["role", *parts])


def overhead(reading: Reading) -> pd.DataFrame:
    """What lies outside the servers' own time, per answered request of the whole report.

    `network_ms` (a round trip as probes found it, a connect where one was opened, the transfer
    of an answer that was not streamed), `ours_ms` and `unexplained_ms` add up to `over_ms`.
    `server_queue_ms` is inside the server's own time, so beside `over_ms`. NaN where there is
    no source: its time is then among the unexplained. `round` is NA in the preparation.
    """
    report = reading.believed
    role = {facts.name: facts.role for facts in report.providers}
    hidden = phases.hidden_handshakes(report.providers)
    answered = [
        (index, arm.arm, row)
        for index, _, arm in frames.places(report)
        for row in arm.requests
        if row.outcome == "ok"
    ]
    trips = phases.trips(report, [row for _, _, row in answered])
    rows = [
        {
            "provider": row.provider,
            "role": role.get(row.provider),
            "arm": arm,
            "round": index,
            "prompt": row.prompt,
            **phases.overhead(row, trip, row.provider in hidden),
        }
        for (index, arm, row), trip in zip(answered, trips, strict=True)
    ]
    parts = ["over_ms", "network_ms", "server_queue_ms", "ours_ms", "unexplained_ms"]
    return frame(rows, ["provider", "role", "arm", "round", "prompt", *parts])


def lengths(reading: Reading) -> pd.DataFrame:
    """How wall time follows the answer's length in the strategy's arms, a row per provider.

    provider, role, n, shortest_tokens, longest_tokens, and the straight line through them:
    each_ms per token and besides_ms per request, NaN where the lengths cannot carry one.
    """
    sent = frames.answered(reading.requests, "strategy")
    sent = sent.dropna(subset=["output_tokens", "wall_ms"])
    rows = []
    for (provider, role), group in sent.groupby(["provider", "role"], dropna=False):
        tokens = group["output_tokens"].astype(int).tolist()
        fitted = stats.line(tokens, group["wall_ms"].tolist())
        rows.append(
            {
                "provider": provider,
                "role": role,
                "n": len(tokens),
                "shortest_tokens": min(tokens),
                "longest_tokens": max(tokens),
                "each_ms": fitted.slope if fitted else None,
                "besides_ms": fitted.at_zero if fitted else None,
            }
        )
    names = ["provider", "role", "n", "shortest_tokens", "longest_tokens", "each_ms", "besides_ms"]
    return frame(rows, names)


def ruler(check: Ruler, quantity: str = "over_ms") -> pd.DataFrame:
    """The instrument's check on itself, a row per case and quantity; see `records.RulerRow`."""
    rows = [row.model_dump() for row in check.rows if row.quantity == quantity]
    return frame(rows, list(RulerRow.model_fields))


def distribution(reading: Reading) -> pd.DataFrame:
    """Mean and quantiles of wall time per arm and provider; NaN where n is too small."""
    rows = []
    levels = (50, 90, 95, 99)
    timed = frames.answered(reading.requests)
    for (arm, provider), group in timed.groupby(["arm", "provider"]):
        walls = group["wall_ms"].dropna().tolist()
        mean = sum(walls) / len(walls) if walls else None
        row = {"arm": arm, "provider": provider, "n": len(walls), "mean_ms": mean}
        rows.append(row | {f"{q}_ms": v for q, v in stats.quantiles(walls, levels).items()})
    return frame(rows, ["arm", "provider", "n", "mean_ms", *(f"p{level}_ms" for level in levels)])


def comparison(readings: Sequence[Reading]) -> pd.DataFrame:
    """One row a report: strategy, ratio with interval, and what explains it."""
    rows = []
    for one in (reading.headline for reading in readings):
        remote, local = (one.added_latency_ms[role] for role in ROLES)
        rows.append(
            {
                "report": one.report,
                "strategy": one.strategy,
                "ratio": one.overhead_ratio.median,
                "low": one.overhead_ratio.low,
                "high": one.overhead_ratio.high,
                "rounds": one.overhead_ratio.rounds,
                "speedup": one.speedup,
                "efficiency": one.efficiency,
                "added_remote_ms": remote.mean if remote else None,
                "added_local_ms": local.mean if local else None,
                "verdict": one.verdict,
            }
        )
    return frame(rows, list(rows[0]) if rows else ["report"])


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
    if not texts or texts.keys() != frames.prompts(reading.report):
        return None
    return "".join(texts[prompt] for prompt in sorted(texts))


def typical(reading: Reading, *roles: str) -> dict[str, Any]:
    """The answered request of median wall time in the strategy's arms, a row of `Reading.requests`.

    Of the first of `roles` (by default remote, then local) that has one with times of day; of
    an even number the faster of the middle two. With `token_ms`, the offset of each token from
    the request's start (empty where none was stored). What is not known is None.
    Raises `ReportError` where there is no such request.
    """
    timed = frames.answered(reading.requests, "strategy")
    timed = timed.dropna(subset=["wall_ms", "start_ms"]).sort_values("wall_ms")
    for role in roles or ROLES:
        mine = timed[timed["role"].eq(role)]
        if len(mine):
            row = mine.iloc[(len(mine) - 1) // 2].to_dict()
            known: dict[str, Any] = {str(k): None if pd.isna(v) else v for k, v in row.items()}
            tokens = next(
                r.token_ms
                for r in reading.report.requests
                if (r.provider, r.marks.start_ms) == (row["provider"], row["start_ms"])
            )
            return known | {"token_ms": [t - row["start_ms"] for t in tokens or []]}
    raise ReportError(
        f"{name(reading.report)}: no answered request has times of day, so none can be drawn; "
        "choose a report that was measured with this program."
    )


def clearest(readings: Sequence[Reading]) -> Reading:
    """The first that sends to most providers and least at once: no request hides another.

    Raises `ReportError` without reports.
    """
    if not readings:
        raise ReportError("there is no report to choose from; run the experiment first.")

    def crowd(reading: Reading) -> tuple[int, float]:
        ours = arms(reading.report, "strategy")
        used = {row.provider for arm in ours for row in arm.requests}
        limits = [
            float("inf") if arm.limits is None else max(arm.limits.values(), default=1)
            for arm in ours
        ]
        return -len(used), max(limits, default=float("inf"))

    return min(readings, key=crowd)
