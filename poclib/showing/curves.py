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
from typing import TYPE_CHECKING, NamedTuple

from .. import parameters
from ..contention import Found, conclude, levels
from ..reading.reading import Reading
from ..records import Report
from ..stats import Headline, ratio_of_ratios
from . import words
from .charts import several
from .documents import change
from .format import bullets, day, many, milliseconds, number, table
from .style import FAINT, INK, around_one, instead, label, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = "osD^v<>*P"


# ---- The ratio along a swept parameter --------------------------------------------------------


class Point(NamedTuple):
    """One report: the setting's value, the ratio, and the ratio that speeds alone would give."""

    x: float
    ratio: float
    ideal: float
    headline: Headline


@dataclass(frozen=True)
class Curves:
    """Each strategy's points, from the most helpful value of the setting on; `what` names it."""

    what: str
    unit: str
    points: dict[str, list[Point]]

    @property
    def ideals(self) -> dict[float, float]:
        """The ideal at each value of the setting: the median of the strategies' reports."""
        known: dict[float, list[float]] = {}
        for point in (point for points in self.points.values() for point in points):
            known.setdefault(point.x, []).append(point.ideal)
        return {x: median(ideals) for x, ideals in known.items()}

    @property
    def first_stop(self) -> tuple[str, float] | None:
        """The strategy that stops helping first, and where."""
        ends = {name: x for name in self.points if (x := stops(self.points[name])) is not None}
        begin = next(iter(self.ideals), 0.0)
        return min(ends.items(), key=lambda end: abs(end[1] - begin), default=None)

    def shown(self, x: float) -> str:
        return f"{round(x, 2 if abs(x) < 10 else 0):,g} {self.unit}".strip()

    def end(self, strategy: str) -> str:
        """Where the strategy stops helping, in words."""
        x = stops(self.points[strategy])
        if x is None:
            return f"{strategy} stays below 1 at every value"
        return f"{strategy} stops helping where the {self.what} is {self.shown(x)}"


def along(
    readings: Sequence[Reading], key: str, what: str, unit: str = "", more_is_better: bool = False
) -> Curves:
    """The reports in which only strategy and `key`, a dotted one, differ, as curves.

    Of several such sets the one with the most values of `key`; of two reports of one point the
    newer one. A report without a complete round has no ratio, so it is no point.
    """
    sets: dict[str, dict[tuple[float, str], Reading]] = {}
    for reading in sorted(readings, key=lambda one: one.report.created):
        report = reading.report
        values = report.parameters.model_dump() if report.parameters else {}
        x = parameters.get(values, key)
        if isinstance(x, int | float):
            parameters.put(values, key, None)
            rest = json.dumps(values | {"experiment": None, "strategy": None}, sort_keys=True)
            sets.setdefault(rest, {})[float(x), report.strategy] = reading
    most = max(sets.values(), key=lambda alike: len({x for x, _ in alike}), default={})
    points: dict[str, list[Point]] = {}
    for x, strategy in sorted(most, key=lambda one: one[0], reverse=more_is_better):
        headline = most[x, strategy].headline
        ratio, best = headline.overhead_ratio.median, ideal(most[x, strategy])
        if ratio is not None and best is not None:
            points.setdefault(strategy, []).append(Point(x, ratio, best, headline))
    return Curves(what, unit, points)


def ideal(reading: Reading) -> float | None:
    """The ratio where every machine works to the end at the speed that it has alone.

    Where one is cut off on the way, the others do what is left.
    """
    headline, given = reading.headline, reading.report.parameters
    if headline.ideal_ms is None or not headline.baseline_ms:
        return None
    ratio = headline.ideal_ms / headline.baseline_ms
    if given is None or given.strike is None:
        return ratio
    speeds = {name: 1 / alone_ms for name, alone_ms in headline.alone_ms.items()}
    left = sum(speed for name, speed in speeds.items() if name != given.strike.provider)
    after = given.strike.after
    return ratio * (after + (1 - after) * sum(speeds.values()) / left)


def stops(points: Sequence[Point]) -> float | None:
    """Where one strategy's ratio reaches 1 for good, on a straight line between two points.

    None where the last point is still below 1.
    """
    if points[-1].ratio < 1:
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
    if curves.first_stop is None:
        return f"Every strategy stays below 1 at every {curves.what} measured"
    below = sum(stops(points) is None for points in curves.points.values())
    rest = f"; {below} of {len(curves.points)} strategies stay below 1" if below else ""
    return curves.end(curves.first_stop[0]) + rest


def told(curves: Curves) -> str:
    """The title in bold; for each strategy where it stops helping, and what is sure. Markdown."""
    lines = []
    for name, points in curves.points.items():
        sure = []
        for effect in ("faster", "slower"):
            where = [curves.shown(p.x) for p in points if words.effect(p.headline) == effect]
            sure += [f"{effect} at {', '.join(where)}"] if where else []
        known = " and ".join(sure) or "at no value distinguishable from 1"
        unit = " per token" if any(point.headline.per_token for point in points) else ""
        lines.append(f"{curves.end(name)}, by medians{unit}; by its intervals it is {known}.")
    return f"**{title(curves)}.**\n\n{bullets(lines)}"


def over(curves: Curves, strategy: str, other: str) -> str:
    """What a strategy takes over what another does, at each value of the setting. Markdown."""
    known = {point.x: point.headline for point in curves.points.get(other, [])}
    ratios = {
        curves.shown(x): ratio_of_ratios(known[x].overhead_ratio, one.overhead_ratio)
        for x, *_, one in curves.points.get(strategy, [])
        if x in known
    }
    told = ", ".join(f"{change(ratio)} times at {x}" for x, ratio in ratios.items())
    if not told:
        return f"**{strategy} and {other} were not measured at one {curves.what}.**"
    return f"**Against {other}, {strategy} took {told} (medians, with what is sure).**"


def ratios(curves: Curves) -> str:
    """Every point's ratio, a column a strategy, as a Markdown table."""
    rows = []
    for x, best in curves.ideals.items():
        row = [curves.shown(x), number(best, 2)]
        for points in curves.points.values():
            row.append(next((words.ratio(point.headline) for point in points if point.x == x), "-"))
        rows.append(row)
    return table([curves.what, "ideal", *curves.points], rows, markdown=True)


def points_table(points: Mapping[str, Reading | None], every: bool = False) -> str:
    """Every point of a sweep by its label, with its ratio; those without a report, too.

    Below it what could change the verdicts: three warnings, or `every` one.
    """
    measured = {name: reading for name, reading in points.items() if reading}
    rows = []
    for name in points:
        row = [name, "failed", "-", "-"]
        if name in measured:
            one = measured[name].headline
            speedup = "-" if one.speedup is None else number(one.speedup, 2) + words.per_token(one)
            row[1:] = [words.ratio(one), speedup, one.verdict]
        rows.append(row)
    listed = table(["point", "ratio (95 % interval)", "speedup", "gate"], rows)
    warned = words.few(words.beside(list(measured.values()), list(measured)), every)
    return f"{listed}\n\nWhat could change these verdicts:\n{bullets(warned)}" if warned else listed


def losses(readings: Sequence[Reading]) -> str:
    """Whether the strategies' arms, in which machines were cut off, lost an answer."""
    rounds = [round_ for reading in readings for round_ in reading.report.rounds]
    arms = [arm for round_ in rounds for arm in round_.arms if arm.arm == "strategy"]
    struck = sum(bool(arm.struck_ms) for arm in arms)
    asked = sum(len(one.report.prompt_sha256) * len(one.report.rounds) for one in readings)
    answered = sum(len({row.prompt for row in a.requests if row.outcome == "ok"}) for a in arms)
    again = sum(row.role == "retry" for arm in arms for row in arm.requests)
    lost = "none was lost" if answered == asked else f"{asked - answered:,} were lost"
    return (
        f"A machine was cut off in {struck:,} of {many(len(arms), 'arm')}. Of "
        f"{many(asked, 'answer')} {lost}; {many(again, 'request')} had to be sent again."
    )


def draw(ax: Axes, curves: Curves) -> None:
    """Ratio against the setting, a line a strategy with its intervals, the ideal, and 1."""
    headlines = [point.headline for points in curves.points.values() for point in points]
    titles(ax, title(curves), f"median and 95 % interval · {several(headlines)}")
    if not headlines:
        instead(ax, "No report has a ratio for this setting.")
        return
    order = list(curves.ideals)
    ax.plot(order, list(curves.ideals.values()), "--", color=INK, linewidth=1.5, label="ideal")
    reached = [1.9]
    for mark, (name, points) in zip(cycle(MARKS), curves.points.items(), strict=False):
        for point in points:
            ratio = point.headline.overhead_ratio
            interval = [ratio.low or point.ratio, ratio.high or point.ratio]
            ax.plot([point.x, point.x], interval, color=FAINT)
            reached += interval
        line = [point.x for point in points], [point.ratio for point in points]
        ax.plot(*line, f"{mark}-", color=INK, mfc="white", lw=1.2, markersize=7, label=name)
    reach = around_one(ax, "y", reached, max(headline.band for headline in headlines))
    edge = 0.05 * (order[-1] - order[0] or 1.0)
    ax.set_xlim(order[0] - edge, order[-1] + edge)
    ax.set_xticks(order, [curves.shown(x).removesuffix(curves.unit) for x in order])
    ax.set_xlabel(f"{curves.what} ({curves.unit})" if curves.unit else curves.what)
    ax.set_ylabel("total time / fastest machine's alone")
    if curves.first_stop:
        x = curves.first_stop[1]
        ax.axvline(x, color=INK, linewidth=1.2, linestyle=":")
        label(ax, f"stops helping: {curves.shown(x)}", (x, reach), (-6, -14))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


# ---- Throughput along requests in flight -------------------------------------------------------


def capacities(report: Report) -> dict[str, Found]:
    """What each provider did at the levels that it was driven at; empty where there are none."""
    driven = {p.name: levels(report.preparation, p.name) for p in report.providers}
    return {name: conclude(rows) for name, rows in driven.items() if rows}


def capacity_text(report: Report, markdown: bool = False) -> str:
    """Every level of every provider as a table, then what each does and should hold."""
    rows = []
    for name, provider in capacities(report).items():
        alone = provider.levels[0].tokens_per_s
        for level in provider.levels:
            rate, times = level.tokens_per_s, (level.ttft_ms, level.request_ms, level.server_ms)
            gain = f"{number(rate / alone, 2)} times" if rate and alone else "-"
            shown = "-" if rate is None else number(rate, 1)
            row = [name, str(level.in_flight), shown, gain, *map(milliseconds, times)]
            rows.append([*row, str(level.refused)])
    header = ["provider", "in flight", "tokens per s", "of one alone", "to first token"]
    header += ["request", "server's own", "refused"]
    return f"{table(header, rows, markdown)}\n\n{capacity_finding(report)}"


def capacity_finding(report: Report) -> str:
    """What each provider does with several requests at once, and how many it should hold."""
    lines = []
    for name, provider in capacities(report).items():
        does = f"{provider.behaviour} ({words.MEANING[provider.behaviour]})"
        if provider.behaviour == "undisturbed":
            does = f"showed no limit with up to {provider.levels[-1].in_flight} requests at once"
        if full := next((level.in_flight for level in provider.levels if level.full), None):
            does += f", by its own word requests wait there from {full} at once on"
        lines.append(f"{name} {does}; recommended capacity: {provider.capacity}.")
    return bullets(lines) or "No level was measured."


def capacity_provenance(report: Report) -> str:
    """One line on where the levels come from."""
    told = {name for p in report.providers for name in (p.model, p.engine) if name}
    count = sum(level.answered for p in capacities(report).values() for level in p.levels)
    counted = [many(count, "answer"), words.pool(report), day(report.created)]
    return " · ".join([*counted, *sorted(told)])


def throughput(ax: Axes, report: Report) -> None:
    """Tokens per second against requests in flight, a line a provider; the capacity is filled."""
    driven = capacities(report)
    behaviours = [f"{name} {provider.behaviour}" for name, provider in driven.items()]
    titles(ax, ", ".join(behaviours) or "No level was measured", capacity_provenance(report))
    if not driven:
        instead(ax, "This report has no levels: run poc doctor --capacity.")
        return
    ticks = set[int]()
    for mark, (name, provider) in zip(cycle(MARKS), driven.items(), strict=False):
        rates = {one.in_flight: one.tokens_per_s or 0.0 for one in provider.levels}
        line = list(rates), list(rates.values())
        ax.plot(*line, f"{mark}-", color=INK, mfc="white", label=name)
        ax.plot([provider.capacity], [rates[provider.capacity]], mark, color=INK, markersize=9)
        ticks |= rates.keys()
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    ax.set_xticks([], minor=True)
    ax.set(ylim=(0, None), ylabel="tokens per second")
    ax.set_xlabel("requests in flight at the provider (filled: the recommended capacity)")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
