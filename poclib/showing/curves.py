"""What a setting does: the ratio along a swept parameter, throughput along requests in flight.

Told and drawn, from ordinary reports: `along` picks those that differ in one parameter only,
`capacities` reads the levels that `poc doctor --capacity` drove each provider at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from statistics import median
from typing import TYPE_CHECKING

from ..contention import Found, conclude, levels
from ..parameters import get, put
from ..reading.reading import of
from ..records import Report
from ..stats import Headline
from . import words
from .charts import several
from .format import bullets, day, inline, many, milliseconds, number, table
from .style import FAINT, INK, even_around_one, instead, label, line_at_one, names
from .style import titles as put_titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNS = {"o": "○", "s": "□", "D": "◇", "^": "△", "v": "▽", "<": "◁", ">": "▷"}


# ---- The ratio along a swept parameter --------------------------------------------------------


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
        return [point for point in self.points if point.strategy == strategy]

    @property
    def strategies(self) -> list[str]:
        return list(dict.fromkeys(point.strategy for point in self.points))

    @property
    def ideals(self) -> dict[float, float | None]:
        """The ideal at each value of the setting: the median of the strategies' reports."""
        known = {point.x: list[float]() for point in self.points}
        for point in self.points:
            known[point.x] += [] if point.ideal is None else [point.ideal]
        return {x: median(values) if values else None for x, values in known.items()}

    @property
    def first_stop(self) -> tuple[str, float] | None:
        """The strategy that stops helping first, and where."""
        ends = [(name, x) for name in self.strategies if (x := stops(self.of(name))) is not None]
        return min(ends, key=lambda end: abs(end[1] - self.points[0].x), default=None)

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
    for report in sorted(reports, key=lambda report: report.created):
        values = report.parameters.model_dump() if report.parameters else {}
        x = get(values, key)
        if isinstance(x, int | float):
            put(values, key, None)
            rest = json.dumps(values | {"experiment": None, "strategy": None}, sort_keys=True)
            sets.setdefault(rest, {})[report.strategy, float(x)] = report
    most = max(sets.values(), key=lambda alike: len({x for _, x in alike}), default={})
    points = []
    for (strategy, x), report in most.items():
        headline = of(report).headline
        if headline.overhead_ratio.median is not None:
            points.append(Point(strategy, x, headline, ideal(report, headline)))
    points.sort(key=lambda point: point.x, reverse=more_is_better)
    return Curves(what, unit, points)


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


def title(curves: Curves) -> str:
    """Where the first strategy stops helping, and how many never do."""
    if not curves.points:
        return "Nothing was measured"
    if (first := curves.first_stop) is None:
        return f"Every strategy stays below 1 at every {curves.what} measured"
    below = sum(stops(curves.of(name)) is None for name in curves.strategies)
    rest = f"; {below} of {len(curves.strategies)} strategies stay below 1" if below else ""
    return f"{first[0]} {_stopping(curves, first[1])}{rest}"


def _stopping(curves: Curves, x: float) -> str:
    return f"stops helping where the {curves.what} is {curves.shown(x)}"


def told(curves: Curves) -> str:
    """The title in bold; for each strategy where it stops helping, and what is sure. Markdown."""
    lines = []
    for name in curves.strategies:
        points = curves.of(name)
        x = stops(points)
        end = "stays below 1 at every value" if x is None else _stopping(curves, x)
        effects = {point.x: words.effect(point.headline) for point in points}
        sure = [
            f"{effect} at {', '.join(map(curves.shown, where))}"
            for effect in ("faster", "slower")
            if (where := [x for x, known in effects.items() if known == effect])
        ]
        known = " and ".join(sure) or "at no value distinguishable from 1"
        unit = " per token" if any(point.headline.per_token for point in points) else ""
        lines.append(f"{name} {end}, by medians{unit}; by its intervals it is {known}.")
    return f"**{title(curves)}.**\n\n{bullets(lines)}"


def ratios(curves: Curves) -> str:
    """Every point's ratio, a column a strategy, as a Markdown table."""
    cells = {(point.strategy, point.x): words.ratio(point.headline) for point in curves.points}
    rows = [
        [curves.shown(x), _number(best), *(cells.get((name, x), "-") for name in curves.strategies)]
        for x, best in curves.ideals.items()
    ]
    return table([curves.what, "ideal", *curves.strategies], rows, markdown=True)


def _rounded(x: float) -> str:
    return f"{round(x, 2 if abs(x) < 10 else 0):,g}"


def _number(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else number(value, decimals)


def points_table(points: Sequence[tuple[Mapping[str, str], Report | None]]) -> str:
    """Every point of a sweep with what changed in it and its ratio; those without a report, too.

    Below it what could change the verdicts.
    """
    keys = list(dict.fromkeys(key for changed, _ in points for key in changed))
    headlines = [of(report).headline if report else None for _, report in points]
    rows = []
    for (changed, _), headline in zip(points, headlines, strict=True):
        cells = ["failed", "-", "-"]
        if headline:
            speedup = _number(headline.speedup) + words.per_token(headline)
            cells = [words.ratio(headline), speedup, headline.verdict]
        rows.append([*(inline(changed.get(key, "-"), 40) for key in keys), *cells])
    listed = table([*keys, "ratio (95 % interval)", "speedup", "gate"], rows)
    warned = words.beside(
        [of(report) for _, report in points if report],
        [", ".join(changed.values()) for changed, report in points if report],
    )
    return f"{listed}\n\nWhat could change these verdicts:\n{bullets(warned)}" if warned else listed


def losses(reports: Sequence[Report]) -> str:
    """Whether the strategies' arms, in which machines were cut off, lost an answer."""
    rounds = [round_ for report in reports for round_ in report.rounds]
    arms = [arm for round_ in rounds for arm in round_.arms if arm.arm == "strategy"]
    struck = sum(bool(arm.struck_ms) for arm in arms)
    asked = sum(len(report.prompt_sha256) * len(report.rounds) for report in reports)
    answered = sum(len({row.prompt for row in a.requests if row.outcome == "ok"}) for a in arms)
    again = sum(row.role == "retry" for arm in arms for row in arm.requests)
    lost = "none was lost" if answered == asked else f"{asked - answered:,} were lost"
    return (
        f"A machine was cut off in {struck:,} of {many(len(arms), 'arm')}. Of "
        f"{many(asked, 'answer')} {lost}; {many(again, 'request')} had to be sent again."
    )


def draw(ax: Axes, curves: Curves) -> None:
    """Ratio against the setting, a line a strategy with its intervals, the ideal, and 1."""
    headlines = [point.headline for point in curves.points]
    put_titles(ax, title(curves), f"median and 95 % interval · {several(headlines)}")
    if not curves.points:
        instead(ax, "No report has a ratio for this setting.")
        return
    line_at_one(ax, "y", max(headline.band for headline in headlines))
    ends, reached = dict[str, tuple[float, float]](), [1.9]
    for (mark, sign), name in zip(cycle(SIGNS.items()), curves.strategies, strict=False):
        points = curves.of(name)
        for point in points:
            interval = point.headline.overhead_ratio
            low, high = interval.low or point.ratio, interval.high or point.ratio
            ax.plot([point.x, point.x], [low, high], color=FAINT)
            reached += [low, high]
        line = [point.x for point in points], [point.ratio for point in points]
        ax.plot(*line, f"{mark}-", color=INK, mfc="white", linewidth=1.2, markersize=7)
        ends[f"{name} {sign}"] = (points[-1].x, points[-1].ratio)
    order = list(curves.ideals)
    if best := {x: y for x, y in curves.ideals.items() if y is not None}:
        ax.plot(list(best), list(best.values()), "--", color=INK, linewidth=1.5)
        ends["ideal - -"] = list(best.items())[-1]
    reach = even_around_one(ax, "y", reached)
    ax.set_ylabel("total time / fastest machine's alone")
    width = order[-1] - order[0] or 1.0
    ax.set_xlim(order[0] - 0.05 * width, order[-1] + 0.45 * width)  # room for the names
    ax.set_xticks(order, [_rounded(x) for x in order])
    ax.set_xlabel(f"{curves.what} ({curves.unit})" if curves.unit else curves.what)
    if first := curves.first_stop:
        ax.axvline(first[1], color=INK, linewidth=1.2, linestyle=":")
        label(ax, f"stops helping: {curves.shown(first[1])}", (first[1], reach), (-6, -14))
    names(ax, ends)


# ---- Throughput along requests in flight -------------------------------------------------------


def capacities(report: Report) -> dict[str, Found]:
    """What each provider did at the levels that it was driven at; empty where there are none."""
    driven = {p.name: levels(report.preparation, p.name) for p in report.providers}
    return {name: conclude(mine) for name, mine in driven.items() if mine}


def capacity_text(report: Report, markdown: bool = False) -> str:
    """Every level of every provider as a table, then what each does and should hold."""
    rows, lines = [], []
    for name, provider in capacities(report).items():
        for level in provider.levels:
            gain = _over(level.tokens_per_s, provider.levels[0].tokens_per_s)
            times = map(milliseconds, (level.ttft_ms, level.request_ms, level.server_ms))
            rate, gained = _number(level.tokens_per_s, 1), "-" if gain is None else _times(gain)
            rows.append([name, str(level.in_flight), rate, gained, *times, str(level.refused)])
        lines.append(f"{_sentence(name, provider)}; recommended capacity: {provider.capacity}.")
    header = ["provider", "in flight", "tokens per s", "of one alone", "to first token"]
    header += ["request", "server's own", "refused"]
    listing = bullets(lines) if markdown else "\n".join(lines)
    return f"{table(header, rows, markdown)}\n\n{listing}"


def capacity_finding(report: Report) -> str:
    """What each provider does with several requests at once, and how many it should hold."""
    lines = []
    for name, provider in capacities(report).items():
        held = next(x for x in provider.levels if x.in_flight == provider.capacity)
        gain = _over(held.tokens_per_s, provider.levels[0].tokens_per_s)
        gained = "" if gain is None else f" ({_times(gain)} one alone's throughput)"
        lines.append(f"**{_sentence(name, provider)}**: at most {held.in_flight} at once{gained}.")
    return bullets(lines) if lines else "**No level was measured.**"


def capacity_provenance(report: Report) -> str:
    """One line on where the levels come from."""
    models = sorted({provider.model for provider in report.providers if provider.model})
    engines = sorted({provider.engine for provider in report.providers if provider.engine})
    return f"*{' · '.join([_levels_of(report), *models, *engines])}*"


def _sentence(name: str, provider: Found) -> str:
    """`local` batches (batching: …), without its full stop."""
    kind = provider.behaviour
    if kind == "undisturbed":
        return f"{name} showed no limit with up to {provider.levels[-1].in_flight} requests at once"
    full = next((level.in_flight for level in provider.levels if level.full), None)
    waits = f", by its own word requests wait there from {full} at once on" if full else ""
    return f"{name} {kind} ({words.MEANING[kind]}){waits}"


def _over(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _times(gain: float) -> str:
    return f"{number(gain, 2)} times"


def _levels_of(report: Report) -> str:
    count = sum(level.answered for p in capacities(report).values() for level in p.levels)
    return f"{many(count, 'answer')} · {words.pool(report)} · {day(report.created)}"


def throughput(ax: Axes, report: Report) -> None:
    """Tokens per second against requests in flight, a line a provider; the capacity is filled."""
    found = capacities(report)
    behaviours = [f"{name} {provider.behaviour}" for name, provider in found.items()]
    finding = ", ".join(behaviours) or "No level was measured"
    _draw_levels(ax, report, finding, {"tokens_per_s": "-"})
    ax.set_ylabel("tokens per second")
    ax.set_xlabel("requests in flight at the provider (filled: the recommended capacity)")
    for mark, provider in zip(cycle(SIGNS), found.values(), strict=False):
        for level in provider.levels:
            if level.in_flight == provider.capacity and level.tokens_per_s is not None:
                ax.plot([level.in_flight], [level.tokens_per_s], mark, color=INK, markersize=9)


def times(ax: Axes, report: Report) -> None:
    """A request's time (solid) and its time to first token (dotted) against requests in flight."""
    _draw_levels(ax, report, times_title(report), {"request_ms": "-", "ttft_ms": ":"})
    ax.set_ylabel("mean time (ms)")
    ax.set_xlabel("requests in flight (solid: the whole request; dotted: to its first token)")


def times_title(report: Report) -> str:
    """Whose requests grew most, for the requests in flight that were tried there."""
    grown = [
        (ratio, provider.levels[-1].in_flight, name)
        for name, provider in capacities(report).items()
        if (ratio := _over(provider.levels[-1].request_ms, provider.levels[0].request_ms))
    ]
    if not grown:
        return "No request was timed"
    ratio, count, worst = max(grown, key=lambda growth: growth[0] / growth[1])
    took = f"{number(ratio, 1)} times as long as one alone"
    return f"With {count} in flight a request to {worst} takes {took}"


def _draw_levels(ax: Axes, report: Report, finding: str, fields: Mapping[str, str]) -> None:
    """Fields of the levels, each with its dashes, against requests in flight."""
    found = capacities(report)
    put_titles(ax, finding, _levels_of(report))
    if not found:
        instead(ax, "This report has no levels: run poc doctor --capacity.")
        return
    ends = dict[str, tuple[float, float]]()
    for mark, (name, provider) in zip(cycle(SIGNS), found.items(), strict=False):
        for field, dashes in fields.items():
            known = [(x.in_flight, getattr(x, field)) for x in provider.levels]
            if points := [(x, y) for x, y in known if y is not None]:
                ax.plot(*zip(*points, strict=True), f"{mark}{dashes}", color=INK, mfc="white")
                ends.setdefault(name, points[-1])
    ticks = sorted({level.in_flight for p in found.values() for level in p.levels})
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set_xlim(0.9, max(ticks) * 1.8)
    ax.set_ylim(bottom=0)
    names(ax, ends)
