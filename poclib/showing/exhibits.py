"""What the two opening notebooks show in words: one request's phases, the pool, the forecast.

Tables and sentences in Markdown, every number from a report; single sentences are in `words`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..reading.phases import CLIENT, LABELS, PHASES
from ..reading.reading import of
from ..records import Report
from ..stats import Headline
from . import titles
from .format import inline, milliseconds, number, percent, table
from .words import ratio


def anatomy(row: Mapping[str, Any]) -> str:
    """Every phase of one request (`tables.typical`): its length here, and what it is."""
    rows = [
        [phase.label, milliseconds(row[phase.key]), phase.meaning]
        for phase in PHASES
        if row[phase.key] is not None
    ]
    silent = [phase.label for phase in PHASES if row[phase.key] is None]
    note = f"\n\nNot told by this server: {', '.join(silent)}." if silent else ""
    return table(["phase", "here", "what it is"], rows, markdown=True) + note


def anatomy_finding(row: Mapping[str, Any]) -> str:
    """The bottom line of one request: where most of it went, and what the distance can cost."""
    known = {part.key: row[part.key] for part in CLIENT[1:] if row[part.key] is not None}
    said = f"**{titles.anatomy(row)}.**"
    if known and row["wall_ms"]:
        most = max(known, key=lambda key: known[key])
        share = percent(known[most] / row["wall_ms"])
        said += f" Its longest phase was {LABELS[most]}, {share} of the wall time."
    if row["queued_ms"]:
        said += (
            f" Before it began it waited {milliseconds(row['queued_ms'])} in the coordinator for "
            "its turn, which is no part of it."
        )
    if row["ttft_ms"] is not None and row["output_tokens"]:
        said += (
            f" The first of its {row['output_tokens']} tokens was there after "
            f"{milliseconds(row['ttft_ms'])}."
        )
    return said


def pool(report: Report, headline: Headline) -> str:
    """Who is in the pool, how fast each is alone, and how far away; a table and a sentence."""
    calibrated = of(report).calibrations
    rows = []
    for one in report.providers:
        mine = calibrated.get(one.name, [])
        wall_ms = sum(row.wall_ms or 0.0 for row in mine)
        tokens = sum(row.output_tokens or 0 for row in mine)
        rows.append(
            [
                one.name,
                one.role or "-",
                inline(one.engine or one.server or one.kind, 40),
                inline(one.model or "-", 40),
                milliseconds(headline.alone_ms.get(one.name)),
                f"{number(1000 * tokens / wall_ms, 0)} tokens/s" if tokens and wall_ms else "-",
                milliseconds(headline.round_trip_ms.get(one.name)),
                str(one.capacity),
                "-" if one.slots is None else str(one.slots),
            ]
        )
    header = ["provider", "role", "server", "model", "one request alone", "speed"]
    header += ["round trip", "capacity", "slots"]
    return f"{table(header, rows, markdown=True)}\n\n{_pool_finding(headline)}"


def _pool_finding(headline: Headline) -> str:
    alone = headline.alone_ms
    if set(alone) != set(headline.providers) or len(alone) < 2:
        return "Some provider's speed alone is unknown, so they cannot be compared."
    fastest = min(alone, key=lambda p: alone[p])
    slower = [
        f"{number(t / alone[fastest], 2)} times as long on {p}"
        for p, t in alone.items()
        if p != fastest
    ]
    gain = alone[fastest] * sum(1 / t for t in alone.values())
    return (
        f"{fastest} is the fastest; a request takes {', '.join(slower)}. With one request at a "
        f"time on each, all together can be at most {number(gain, 2)} times as fast as "
        f"{fastest} alone."
    )


def forecast(predicted: Mapping[str, float], headlines: Sequence[Headline]) -> str:
    """Each strategy's ratio as calibration foretold it beside what was measured."""
    rows = []
    for one in sorted(headlines, key=lambda h: h.overhead_ratio.median or float("inf")):
        foretold = predicted.get(one.strategy)
        inside = _inside(foretold, one)
        rows.append(
            [
                one.strategy,
                "-" if foretold is None else number(foretold, 2),
                ratio(one),
                "-" if inside is None else "inside" if inside else "outside",
            ]
        )
    header = ["strategy", "predicted ratio", "measured ratio (95 % interval)", "prediction"]
    return table(header, rows, markdown=True)


def forecast_finding(predicted: Mapping[str, float], headlines: Sequence[Headline]) -> str:
    """How well calibration foretold the gain, as a paragraph; what was left out and why."""
    judged = {one.strategy: i for one in headlines
              if (i := _inside(predicted.get(one.strategy), one)) is not None}  # fmt: skip
    if not judged:
        return "**Nothing was foretold that was also measured with an interval.**"
    held = sum(judged.values())
    off = {
        one.strategy: predicted[one.strategy] / one.overhead_ratio.median - 1
        for one in headlines
        if one.strategy in judged and one.overhead_ratio.median
    }
    far = max(off, key=lambda name: abs(off[name]))
    least = min(predicted, key=lambda name: predicted[name])
    typical = percent(median(map(abs, off.values())), 1)
    said = (
        f"**Calibration alone foretold {number(predicted[least], 2)} times the baseline's time "
        f"at best ({least}); of {len(judged)} predictions {held} lie inside the measured "
        f"interval.** Half of them are off by {typical} or less; farthest off is {far}, foretold "
        f"{percent(abs(off[far]), 1)} too {'high' if off[far] > 0 else 'low'}."
    )
    left = sorted(one.strategy for one in headlines if one.strategy not in predicted)
    if left:
        said += (
            f" For {', '.join(left)} nothing is foretold: several requests at once in a server "
            "may gain or lose, which only a run can show."
        )
    return said


def _inside(foretold: float | None, headline: Headline) -> bool | None:
    low, high = headline.overhead_ratio.low, headline.overhead_ratio.high
    if foretold is None or low is None or high is None:
        return None
    return low <= foretold <= high
