"""Single cases out of reports, chosen by a rule: the typical request, the clearest report.

Knows no sentence and no picture. All times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..errors import ReportError
from ..records import Report
from ..report import name
from .tables import requests


def typical(report: Report, *roles: str) -> dict[str, Any]:
    """The answered request of median wall time in the strategy's arms, a row of `requests`.

    Of the first of `roles` (by default remote, then local) that has one with times of day; of
    an even number the faster of the middle two. With `token_ms`, the offset of each token from
    the request's start (empty where none was stored). What is not known is None.
    Raises `ReportError` where there is no such request.
    """
    frame = requests(report)
    frame = frame[frame["arm"].eq("strategy") & frame["outcome"].eq("ok")]
    frame = frame.dropna(subset=["wall_ms", "start_ms"]).sort_values("wall_ms")
    for role in roles or ("remote", "local"):
        mine = frame[frame["role"].eq(role)]
        if len(mine):
            row = mine.iloc[(len(mine) - 1) // 2].to_dict()
            found: dict[str, Any] = {str(k): None if pd.isna(v) else v for k, v in row.items()}
            tokens = next(
                r.token_ms
                for r in report.requests
                if (r.provider, r.marks.start_ms) == (row["provider"], row["start_ms"])
            )
            return found | {"token_ms": [t - row["start_ms"] for t in tokens or []]}
    raise ReportError(
        f"{name(report)}: no answered request has times of day, so none can be drawn; "
        "choose a report that was measured with this program."
    )


def clearest(reports: Sequence[Report]) -> Report:
    """The first report that sends to most providers and least at once: no request hides another.

    Raises `ReportError` without reports.
    """
    if not reports:
        raise ReportError("there is no report to choose from; run the experiment first.")

    def crowd(report: Report) -> tuple[int, float]:
        arms = [arm for one in report.rounds for arm in one.arms if arm.arm == "strategy"]
        used = {row.provider for arm in arms for row in arm.requests}
        limits = [
            float("inf") if arm.limits is None else max(arm.limits.values(), default=1)
            for arm in arms
        ]
        return -len(used), max(limits, default=float("inf"))

    return min(reports, key=crowd)
