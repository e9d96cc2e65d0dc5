"""What the points of a wire test say: times and rates of each case, and the law of a token's time.

    token_ms = compute + stage x workers + slope x hops x round trip + bytes / bandwidth

Hops and bytes are as counted on the wire; compute, stage and slope are fitted by least squares. The
slope is 1 where each counted hop costs one round trip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..points import Point, Wire
from ..records import Request

FITTED_TO_MS = 100.0  # the longest round trip that the law is fitted to
_SETTINGS = ["study", "name", "workers", "split", "jitter_ms", "bandwidth_mbit_s", "in_flight"]
_SETTINGS += ["tokens", "prompt_characters", "asked_ms", "memory_mib"]


def cases(wire: Wire) -> pd.DataFrame:
    """A row a case, in the order measured: its settings, and medians over repeats and sequences.

    `token_ms`: from one token of a sequence to its next; `rate`: tokens a second of all sequences,
    first request to last answer (`low`, `high` over repeats); hops and bytes a token after the
    first; `round_trip_ms` of the link, or as probed. NaN where nothing was answered or counted.
    """
    rows = pd.DataFrame([_row(point) for point in wire.points])
    groups = rows.groupby(_SETTINGS, sort=False, dropna=False)
    found = groups.median(numeric_only=True).assign(
        low=groups["rate"].min(), high=groups["rate"].max(), problem=groups["problem"].first()
    )
    return found.reset_index()


def _row(point: Point) -> dict[str, Any]:
    case, shard, rows = point.case, point.case.shard, point.requests
    values = {name: getattr(case, name, None) for name in _SETTINGS}
    workers = int(shard.get("workers", 1))
    split = ":".join(f"{share:g}" for share in shard.get("split") or [1] * workers)
    trip_ms = case.round_trip_ms if point.probed_ms is None else point.probed_ms
    values |= {"workers": workers, "split": split, "asked_ms": case.round_trip_ms}
    values |= {"round_trip_ms": trip_ms, "memory_mib": shard.get("worker_memory_mib")}
    values["problem"] = point.problem
    if point.problem or not point.passed or not point.passed_first:
        return values
    tokens = sum(row.output_tokens or 0 for row in rows)
    span_ms = max(r.marks.end_ms or 0 for r in rows) - min(r.marks.start_ms or 0 for r in rows)
    later = np.subtract(point.passed, point.passed_first) / max(tokens - len(rows), 1)
    return values | {
        "token_ms": np.median([_token_ms(row) for row in rows]),
        "ttft_ms": np.median(
            [(r.marks.first_token_ms or 0) - (r.marks.start_ms or 0) for r in rows]
        ),
        "rate": 1000 * tokens / span_ms,
        "prompt_tokens": np.median([row.prompt_tokens or np.nan for row in rows]),
        **dict(zip(("hops", "to_worker_bytes", "to_coordinator_bytes"), later, strict=True)),
    }


def _token_ms(row: Request) -> float:
    """Several tokens may come together, as where a guess was right."""
    times, tokens = row.token_ms or [], row.output_tokens or 0
    return (times[-1] - times[0]) / (tokens - 1) if tokens > 1 and len(times) > 1 else np.nan


@dataclass(frozen=True)
class Law:
    """Fitted to `n` cases, of whose variance it explains `r2`; see the module."""

    compute_ms: float
    stage_ms: float
    slope: float
    r2: float = 0.0
    n: int = 0

    def token_ms(self, of: Mapping[str, Any] | pd.DataFrame) -> Any:
        """The time of a token in a case, or in each of a frame."""
        wire_ms = self.slope * of["hops"] * of["round_trip_ms"] + bytes_ms(of)
        return self.compute_ms + self.stage_ms * of["workers"] + wire_ms


def bytes_ms(of: Mapping[str, Any] | pd.DataFrame) -> Any:
    """What a token's bytes take, one way after the other; 0 where the bandwidth has no end."""
    mbit_s = np.asarray(of["bandwidth_mbit_s"], float)
    size = np.asarray(of["to_worker_bytes"] + of["to_coordinator_bytes"], float)
    return np.nan_to_num(8e-3 * size / mbit_s)


def lawful(cases: pd.DataFrame) -> pd.DataFrame:
    """The cases that the law is fitted to: one sequence, no longer than `FITTED_TO_MS`."""
    near = (cases["round_trip_ms"] <= FITTED_TO_MS) & (cases["in_flight"] == 1)
    found = cases[(cases["study"] == "law") & near].dropna(subset=["token_ms"])
    return found.sort_values(["workers", "split", "round_trip_ms"])


def fit(rows: pd.DataFrame) -> Law:
    """The law over these cases: least squares of residuals over times, as noise grows with them."""
    facts = np.column_stack(
        [np.ones(len(rows)), rows["workers"], rows["hops"] * rows["round_trip_ms"]]
    ).astype(float)
    times = np.asarray(rows["token_ms"] - bytes_ms(rows), float)
    found, *_ = np.linalg.lstsq(facts / times[:, None], np.ones(len(rows)), rcond=None)
    left = ((times - facts @ found) ** 2).sum() / ((times - times.mean()) ** 2).sum()
    compute_ms, stage_ms, slope = map(float, found)
    return Law(compute_ms, stage_ms, slope, float(1 - left), len(rows))


def by_split(rows: pd.DataFrame) -> pd.DataFrame:
    """For each split the hops as counted, and as the slope of its times over the round trip."""
    groups = rows.groupby(["workers", "split"], sort=False)
    fitted = [np.polyfit(own["round_trip_ms"], own["token_ms"], 1)[0] for _, own in groups]
    return groups.mean(numeric_only=True).assign(fitted=fitted).reset_index()


def left_out(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    """Each value of `by` foretold by a fit without it: how far off, in per cent of the measured.

    In the mean of its cases, and the one farthest off.
    """
    found = []
    for value, own in rows.groupby(by, sort=False):
        off = 100 * (fit(rows[rows[by] != value]).token_ms(own) / own["token_ms"] - 1)
        found.append({by: value, "mean": off.mean(), "farthest": off.loc[off.abs().idxmax()]})
    return pd.DataFrame(found)
