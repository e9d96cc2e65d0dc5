"""Ratio against one setting: what a swept parameter does to each strategy, told and drawn.

Everything comes from ordinary reports: `along` picks those that differ in one parameter only.
Draws on `ax`, measures nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .. import parameterfile
from ..reading import tables
from ..records import Report
from ..stats import Headline
from . import words
from .format import bullets, inline, many, number, table
from .style import BAND, FAINT, INK, instead, label, names
from .style import titles as put_titles

SIGNS = {"o": "○", "s": "□", "D": "◇", "^": "△", "v": "▽", "<": "◁", ">": "▷"}
STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Point:
    """One report: its strategy, the setting's value, and the ratio that speeds alone would give."""

    strategy: str
    x: float
    headline: Headline
    ideal: float | None

    @property
    def ratio(self) -> float:
        return self.headline.overhead_ratio.median or 0.0


@dataclass(frozen=True)
class Curves:
    """Points from the most helpful value of the setting on; `what` names it, with its unit."""

    what: str
    unit: str
    points: list[Point]

    def of(self, strategy: str) -> list[Point]:
        return [one for one in self.points if one.strategy == strategy]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(one.strategy for one in self.points))

    def shown(self, x: float) -> str:
        return f"{_rounded(x)} {self.unit}".strip()


def along(
    reports: Sequence[Report], key: str, what: str, unit: str = "", more_is_better: bool = False
) -> Curves:
    """The reports in which only strategy and `key`, a dotted one, differ, as curves.

    Of several such sets the one with the most values of `key`; of two reports of one point the
    newer one. A report without a complete round has no ratio, so it is no point.
    """
    sets: dict[str, dict[tuple[str, float], Report]] = {}
    for report in sorted(reports, key=lambda one: one.created):
        values = report.parameters.model_dump() if report.parameters else {}
        x = parameterfile.get(values, key)
        if isinstance(x, int | float):
            parameterfile.put(values, key, None)
            rest = json.dumps(values | {"experiment": None, "strategy": None}, sort_keys=True)
            sets.setdefault(rest, {})[report.strategy, float(x)] = report
    most = max(sets.values(), key=lambda found: len({x for _, x in found}), default={})
    points = []
    for (strategy, x), report in most.items():
        headline = tables.headline(report)
        if headline.overhead_ratio.median is not None:
            points.append(Point(strategy, x, headline, ideal(report, headline)))
    return Curves(what, unit, sorted(points, key=lambda one: -one.x if more_is_better else one.x))


def ideal(report: Report, headline: Headline) -> float | None:
    """The ratio where every machine works to the end at the speed that it has alone.

    Where one is cut off on the way, the others do what is left.
    """
    if headline.ideal_ms is None or not headline.baseline_ms:
        return None
    ratio = headline.ideal_ms / headline.baseline_ms
    if report.parameters is None or (strike := report.parameters.strike) is None:
        return ratio
    speeds = {name: 1 / alone_ms for name, alone_ms in headline.alone_ms.items()}
    left = sum(speed for name, speed in speeds.items() if name != strike.provider)
    return ratio * (strike.after + (1 - strike.after) * sum(speeds.values()) / left)


def stops(points: Sequence[Point]) -> float | None:
    """Where one strategy's ratio reaches 1 for good, on a straight line between two points.

    None where the last point is still below 1.
    """
    if not points or points[-1].ratio < 1:
        return None
    for before, after in reversed(list(pairwise(points))):
        if before.ratio < 1:
            share = (1 - before.ratio) / (after.ratio - before.ratio)
            return before.x + share * (after.x - before.x)
    return points[0].x


def _first_stop(curves: Curves) -> tuple[str, float] | None:
    """The strategy that stops helping first, and where."""
    found = [(name, x) for name in curves.strategies if (x := stops(curves.of(name))) is not None]
    start = curves.points[0].x if curves.points else 0.0
    return min(found, key=lambda pair: abs(pair[1] - start), default=None)


def title(curves: Curves) -> str:
    """Where the first strategy stops helping, and how many never do."""
    if not curves.points:
        return "Nothing was measured"
    if (first := _first_stop(curves)) is None:
        return f"Every strategy stays below 1 at every {curves.what} measured"
    below = sum(stops(curves.of(name)) is None for name in curves.strategies)
    rest = f"; {below} of {len(curves.strategies)} strategies stay below 1" if below else ""
    return f"{first[0]} stops helping {_where(curves, first[1])}{rest}"


def _where(curves: Curves, x: float) -> str:
    return f"where the {curves.what} is {curves.shown(x)}"


def told(curves: Curves) -> str:
    """The title in bold; for each strategy where it stops helping, and what is sure. Markdown."""
    lines = []
    for name in curves.strategies:
        points = curves.of(name)
        x = stops(points)
        end = "stays below 1 at every value" if x is None else f"stops helping {_where(curves, x)}"
        effects = {one.x: words.effect(one.headline) for one in points}
        sure = [
            f"{effect} at {', '.join(map(curves.shown, where))}"
            for effect in ("faster", "slower")
            if (where := [x for x, found in effects.items() if found == effect])
        ]
        known = " and ".join(sure) or "at no value distinguishable from 1"
        unit = " per token" if any(one.headline.per_token for one in points) else ""
        lines.append(f"{name} {end}, by medians{unit}; by its intervals it is {known}.")
    return f"**{title(curves)}.**\n\n{bullets(lines)}"


def ratios(curves: Curves) -> str:
    """Every point's ratio, a column a strategy, as a Markdown table."""
    rows = []
    for x in dict.fromkeys(one.x for one in curves.points):
        here = {one.strategy: one for one in curves.points if one.x == x}
        cells = [words.ratio(here[n].headline) if n in here else "-" for n in curves.strategies]
        rows.append([curves.shown(x), _number(_ideal(curves, x)), *cells])
    return table([curves.what, "ideal", *curves.strategies], rows, markdown=True)


def _ideal(curves: Curves, x: float) -> float | None:
    known = [one.ideal for one in curves.points if one.x == x and one.ideal is not None]
    return median(known) if known else None


def _rounded(x: float) -> str:
    return f"{round(x, 2 if abs(x) < 10 else 0):,g}"


def _number(value: float | None) -> str:
    return "-" if value is None else number(value, 2)


def points_table(points: Sequence[tuple[Mapping[str, str], Report | None]]) -> str:
    """Every point of a sweep with what changed in it and its ratio; those without a report, too.

    Below it what could change the verdicts.
    """
    keys = list(dict.fromkeys(key for changed, _ in points for key in changed))
    rows, judged = [], []
    for changed, report in points:
        what = [inline(changed.get(key, "-"), 40) for key in keys]
        if report is None:
            rows.append([*what, "failed", "-", "-"])
        else:
            headline = tables.headline(report)
            judged.append((report, headline, ", ".join(changed.values())))
            speedup = _number(headline.speedup) + words.per_token(headline)
            rows.append([*what, words.ratio(headline), speedup, headline.verdict])
    listed = table([*keys, "ratio (95 % interval)", "speedup", "gate"], rows)
    pairs = [(r, h) for r, h, _ in judged]
    named = [name for *_, name in judged]
    found = words.beside([r for r, _ in pairs], [h for _, h in pairs], named)
    warned = f"\n\nWhat could change these verdicts:\n{bullets(found)}" if found else ""
    return listed + warned


def losses(reports: Sequence[Report]) -> str:
    """Whether the strategies' arms, in which machines were cut off, lost an answer."""
    arms = [arm for r in reports for one in r.rounds for arm in one.arms if arm.arm == "strategy"]
    struck = sum(bool(arm.struck_ms) for arm in arms)
    asked = sum(len(r.prompt_sha256) for r in reports for one in r.rounds)
    answered = sum(len({row.prompt for row in a.requests if row.outcome == "ok"}) for a in arms)
    again = sum(row.role == "retry" for arm in arms for row in arm.requests)
    lost = "none was lost" if answered == asked else f"{asked - answered:,} were lost"
    return (
        f"A machine was cut off in {struck:,} of {many(len(arms), 'arm')}. Of "
        f"{many(asked, 'answer')} {lost}; {many(again, 'request')} had to be sent again."
    )


def draw(ax: Axes, curves: Curves) -> None:
    """Ratio against the setting, a line a strategy with its intervals, the ideal, and 1."""
    rounds = sorted({one.headline.overhead_ratio.rounds for one in curves.points}) or [0]
    span = many(rounds[0], "round") if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]} rounds"
    where = [words.where_and_when(curves.points[-1].headline)] if curves.points else []
    put_titles(ax, title(curves), " · ".join(["median and 95 % interval", f"{span} each", *where]))
    if not curves.points:
        instead(ax, "No report has a ratio for this setting.")
        return
    band = max(one.headline.band for one in curves.points)
    ax.axhspan(1 - band, 1 + band, color=BAND, zorder=0)
    ax.axhline(1, color=INK, linewidth=1)
    ends, ys = dict[str, tuple[float, float]](), [2.2]
    for (mark, sign), name in zip(SIGNS.items(), curves.strategies, strict=False):
        points = curves.of(name)
        for one in points:
            found = one.headline.overhead_ratio
            low, high = found.low or one.ratio, found.high or one.ratio
            ax.plot([one.x, one.x], [low, high], color=FAINT)
            ys += [high, 1 / low]
        line = [one.x for one in points], [one.ratio for one in points]
        ax.plot(*line, f"{mark}-", color=INK, mfc="white", linewidth=1.2, markersize=7)
        ends[f"{name} {sign}"] = (points[-1].x, points[-1].ratio)
    order = list(dict.fromkeys(one.x for one in curves.points))
    best = {x: y for x in order if (y := _ideal(curves, x)) is not None}
    if best:
        ax.plot(list(best), list(best.values()), "--", color=INK, linewidth=1.5)
        ends["ideal - -"] = list(best.items())[-1]
    reach = max(ys) * 1.1
    ax.set_yscale("log")
    ax.set_ylim(1 / reach, reach)
    ax.set_yticks([step for step in STEPS if 1 / reach <= step <= reach])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))  # noqa: RUF001
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("total time / fastest machine's alone")
    width = order[-1] - order[0] or 1.0
    ax.set_xlim(order[0] - 0.05 * width, order[-1] + 0.45 * width)  # room for the names
    ax.set_xticks(order, [_rounded(x) for x in order])
    ax.set_xlabel(f"{curves.what} ({curves.unit})" if curves.unit else curves.what)
    if first := _first_stop(curves):
        ax.axvline(first[1], color=INK, linewidth=1.2, linestyle=":")
        label(ax, f"stops helping: {curves.shown(first[1])}", (first[1], reach), (-6, -14))
    names(ax, ends)
