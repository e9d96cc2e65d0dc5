"""Charts along time: one request in its phases, one arm request by request. Computes nothing.

`plots` hands these on; a notebook knows only that module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from ..reading.phases import CLIENT, COLOURS, LABELS, OUTSIDE, SERVER, WAITING, segments
from ..stats import Headline
from . import titles, words
from .format import milliseconds
from .style import BAND, FAINT, INK, ink_on, instead, key
from .style import titles as put_titles

MOST_ROWS = 60
_LABELLED = 24  # rows that get a prompt's number each


def timeline(
    ax: Axes, requests: pd.DataFrame, headline: Headline, round: int | None = None
) -> None:
    """Gantt of the strategy in one round: a row per request, grouped by provider.

    `requests` is `tables.requests(report)`. Over each group stands how many may be in flight
    there. A grey bar is the wait for a slot, its tick the moment the request was meant to
    start. Time 0 is the arm's first dispatch; a dashed line shows the ideal. Without `round`
    it is the one whose length is nearest to the median that the title speaks of.
    """
    arms = requests[requests["arm"].eq("strategy") & requests["round"].notna()]
    timed = arms.dropna(subset=["start_ms", "wall_ms"])
    chosen = _middle_round(timed, headline.makespan_ms) if round is None else round
    mine, timed = (rows[rows["round"].eq(chosen)] for rows in (arms, timed))
    shown = timed.sort_values("start_ms").head(MOST_ROWS)
    which = f"round {chosen + 1}{', of median length' if round is None and len(shown) else ''}"
    drawn = f"{which}: {len(shown)} of {len(mine)} requests drawn"
    put_titles(ax, titles.timeline(headline), f"{drawn} · {words.where_and_when(headline)}")
    if shown.empty:
        instead(ax, "No times of day were stored for this round,\nso its order cannot be drawn.")
        return
    zero = float(timed["start_ms"].min())
    ticks, seen, end, y = dict[int, str](), set[str](), 0.0, 0
    for provider, group in shown.groupby("provider"):
        ax.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0)
        limit, slots = ((None if pd.isna(v) else int(v)) for v in group.iloc[0][["limit", "slots"]])
        ax.text(0.008, y, f"{provider}: {words.in_flight(limit, slots)}", va="center",
                fontweight="bold", fontsize=12, transform=ax.get_yaxis_transform())  # fmt: skip
        for row in group.to_dict("records"):
            y += 1
            end = max(end, _request(ax, y, {str(k): v for k, v in row.items()}, zero, seen))
            ticks[y] = f"#{row['prompt']}"
        y += 1
    if headline.ideal_ms is not None and headline.ideal_ms < 3 * end:
        ax.axvline(headline.ideal_ms, color=INK, linewidth=1, linestyle="--")
        right = headline.ideal_ms > 0.5 * end
        text = f" ideal {milliseconds(headline.ideal_ms)} "
        ax.text(headline.ideal_ms, y, text, va="center", ha="right" if right else "left")
        end, y = max(end, headline.ideal_ms), y + 1
    if len(ticks) <= _LABELLED:
        ax.set_yticks(list(ticks), list(ticks.values()), fontsize=12 if len(ticks) <= 12 else 9)
    else:
        ax.set_yticks([])
    ax.set_ylim(y - 0.5, -0.5)
    ax.set_xlim(0, end * 1.02)
    ax.set_xlabel("time since the first dispatch (ms)")
    ax.set_ylabel("prompt")
    key(ax, seen)


def _middle_round(timed: pd.DataFrame, makespan_ms: float | None) -> int:
    """The round whose requests span a time nearest to `makespan_ms`; else the first."""
    spans = timed.groupby("round").agg({"start_ms": "min", "end_ms": "max"})
    if spans.empty or makespan_ms is None:
        return 0
    away = (spans["end_ms"] - spans["start_ms"] - makespan_ms).abs()
    return int(spans.index.to_list()[int(away.argmin())])


def _request(ax: Axes, y: int, row: Mapping[str, Any], zero: float, seen: set[str]) -> float:
    """One row of the timeline; returns where it ends and adds what it shows to `seen`."""
    left = float(row["start_ms"]) - zero
    meant = max(row["assigned_ms"] - zero, 0.0)  # NaN where nobody knows
    if meant < left:
        ax.barh(y, left - meant, left=meant, height=0.3, color=WAITING)
        ax.plot([meant, meant], [y - 0.4, y + 0.4], color=INK, linewidth=1.5)
        seen.add("queued_ms")
    for part, width in segments(row).items():
        ax.barh(y, width, left=left, height=0.8, color=COLOURS[part], edgecolor="white", lw=0.4)
        seen.add(part)
        left += width
    if row["outcome"] != "ok":
        ax.text(left, y, f" {row['outcome']}", va="center")
    return left


def anatomy(ax: Axes, row: Mapping[str, Any], headline: Headline) -> None:
    """Every phase of one request, each on a line of its own with its name and its length.

    `row` is `tables.typical(report)`. First what the coordinator saw, with a tick for each
    token; then what the server says it worked, which are lengths and no moments: they are
    drawn in the middle of the time that the server can have had.
    """
    put_titles(ax, titles.anatomy(row), f"prompt #{row['prompt']} · {words.subtitle(headline)}")
    seen = {phase.key: float(row[phase.key]) for phase in CLIENT if row[phase.key] is not None}
    told = {phase.key: float(row[phase.key]) for phase in SERVER if row[phase.key] is not None}
    queued = seen.get("queued_ms", 0.0)
    if row["wall_ms"] is None or not seen:
        instead(ax, "This request has no marks, so its phases cannot be drawn.")
        return
    wall = float(row["wall_ms"])
    before = min(queued, 0.25 * wall)  # a long wait is drawn cut, or it would fill the chart
    left, y = -before, 0
    whole = wall + before
    for part, width in seen.items():
        if part == "queued_ms" and before < queued:
            _phase(ax, y, left, before, WAITING, whole, f"… {milliseconds(queued)}")
            left, y = 0.0, y + 1
            continue
        _phase(ax, y, left, width, COLOURS[part], whole)
        if part == "generating_ms":
            ticks = row.get("token_ms") or []
            ax.vlines(ticks, y - 0.55, y - 0.4, color=INK, linewidth=1.2)
        left, y = left + width, y + 1
    _phase(ax, y, 0.0, wall, FAINT, whole)
    y += 1
    names = [*seen, "wall_ms", *told]
    if told:
        ax.axhline(y - 0.5, color=INK, linewidth=0.8)
        begin = left = (wall - sum(told.values())) / 2
        for part, width in told.items():
            _phase(ax, y, left, width, COLOURS[part], whole)
            left, y = left + width, y + 1
        if row["over_ms"] is not None:
            colour = OUTSIDE
            ax.barh(y, begin, height=0.75, color=colour)
            _phase(ax, y, left, wall - left, colour, whole, milliseconds(row["over_ms"]))
            names, y = [*names, "over_ms"], y + 1
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(y), [LABELS[one] for one in names])
    ax.set_ylim(y - 0.4, -0.7)
    ax.set_xlim(-1.02 * before, wall * 1.14)
    ax.set_xlabel("time since the request was handed to the transport (ms)")


def _phase(
    ax: Axes, y: int, left: float, width: float, colour: str, whole: float, text: str = ""
) -> None:
    ax.barh(y, width, left=left, height=0.75, color=colour, edgecolor="white", lw=0.4)
    if width < 0.004 * whole:  # else it would not be seen at all
        ax.plot([left], [y], "|", color=colour, markersize=12, markeredgewidth=1.5)
    text = text or milliseconds(width)
    if width > 0.16 * whole:
        ax.text(left + width / 2, y, text, ha="center", va="center", color=ink_on(colour))
    else:
        ax.text(left + width, y, f" {text}", va="center")
