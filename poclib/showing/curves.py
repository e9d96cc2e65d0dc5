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

from .. import parameters
from ..contention import Found, conclude, levels
from ..reading.reading import Reading
from ..records import Report
from ..stats import Headline
from . import words
from .charts import several
from .format import bullets, day, inline, many, milliseconds, number, table
from .style import FAINT, INK, even_around_one, instead, label, line_at_one, names, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNS = {"o": "○", "s": "□", "D": "◇", "^": "△", "v": "▽", "<": "◁", ">": "▷"}


# ---- The ratio along a swept parameter --------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """One report: its strategy, the setting's value, and the ratio that speeds alone would give."""

    strategy: str
    x: float
    ratio: float
    ideal: float | None
    headline: Headline


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
    def ideals(self) -> dict[float, float]:
        """The ideal at each value of the setting where one is known: the reports' median."""
        known = {point.x: list[float]() for point in self.points}
        for point in self.points:
            known[point.x] += [] if point.ideal is None else [point.ideal]
        return {x: median(values) for x, values in known.items() if values}

    @property
    def first_stop(self) -> tuple[str, float] | None:
        """The strategy that stops helping first, and where."""
        ends = [(name, x) for name in self.strategies if (x := stops(self.of(name))) is not None]
        return min(ends, key=lambda end: abs(end[1] - self.points[0].x), default=None)

    def shown(self, x: float) -> str:
        return f"{round(x, 2 if abs(x) < 10 else 0):,g} {self.unit}".strip()


def along(
    readings: Sequence[Reading], key: str, what: str, unit: str = "", more_is_better: bool = False
) -> Curves:
    """The reports in which only strategy and `key`, a dotted one, differ, as curves.

    Of several such sets the one with the most values of `key`; of two reports of one point the
    newer one. A report without a complete round has no ratio, so it is no point.
    """
    sets: dict[str, dict[tuple[str, float], Reading]] = {}
    for reading in sorted(readings, key=lambda one: one.report.created):
        report = reading.report
        values = report.parameters.model_dump() if report.parameters else {}
        x = parameters.get(values, key)
        if isinstance(x, int | float):
            parameters.put(values, key, None)
            rest = json.dumps(values | {"experiment": None, "strategy": None}, sort_keys=True)
            sets.setdefault(rest, {})[report.strategy, float(x)] = reading
    most = max(sets.values(), key=lambda alike: len({x for _, x in alike}), default={})
    points = [
        Point(strategy, x, ratio, ideal(reading), reading.headline)
        for (strategy, x), reading in most.items()
        if (ratio := reading.headline.overhead_ratio.median) is not None
    ]
    return Curves(what, unit, sorted(points, key=lambda one: one.x, reverse=more_is_better))


def ideal(reading: Reading) -> float | None:
    """The ratio where every machine works to the end at the speed that it has alone.

    Where one is cut off on the way, the others do what is left.
    """
    headline, run = reading.headline, reading.report.parameters
    if headline.ideal_ms is None or not headline.baseline_ms:
        return None
    ratio = headline.ideal_ms / headline.baseline_ms
    if run is None or run.strike is None:
        return ratio
    speeds = {name: 1 / alone_ms for name, alone_ms in headline.alone_ms.items()}
    left = sum(speed for name, speed in speeds.items() if name != run.strike.provider)
    after = run.strike.after
    return ratio * (after + (1 - after) * sum(speeds.values()) / left)


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
    if curves.first_stop is None:
        return f"Every strategy stays below 1 at every {curves.what} measured"
    name, x = curves.first_stop
    below = sum(stops(curves.of(name)) is None for name in curves.strategies)
    rest = f"; {below} of {len(curves.strategies)} strategies stay below 1" if below else ""
    return f"{name} stops helping where the {curves.what} is {curves.shown(x)}{rest}"


def told(curves: Curves) -> str:
    """The title in bold; for each strategy where it stops helping, and what is sure. Markdown."""
    lines = []
    for name in curves.strategies:
        points = curves.of(name)
        end = stops(points)
        stop = "stays below 1 at every value"
        if end is not None:
            stop = f"stops helping where the {curves.what} is {curves.shown(end)}"
        where: dict[str, list[str]] = {}
        for point in points:
            where.setdefault(words.effect(point.headline), []).append(curves.shown(point.x))
        sure = [f"{word} at {', '.join(where[word])}" for word in ("faster", "slower")
                if word in where]  # fmt: skip
        known = " and ".join(sure) or "at no value distinguishable from 1"
        unit = " per token" if any(point.headline.per_token for point in points) else ""
        lines.append(f"{name} {stop}, by medians{unit}; by its intervals it is {known}.")
    return f"**{title(curves)}.**\n\n{bullets(lines)}"


def ratios(curves: Curves) -> str:
    """Every point's ratio, a column a strategy, as a Markdown table."""
    cells = {(point.strategy, point.x): words.ratio(point.headline) for point in curves.points}
    rows = [
        [curves.shown(x), _number(curves.ideals.get(x))]
        + [cells.get((name, x), "-") for name in curves.strategies]
        for x in dict.fromkeys(point.x for point in curves.points)
    ]
    return table([curves.what, "ideal", *curves.strategies], rows, markdown=True)


def _number(value: float | None, decimals: int = 2) -> str:
    return "-" if value is None else number(value, decimals)


def points_table(points: Sequence[tuple[Mapping[str, str], Reading | None]]) -> str:
    """Every point of a sweep with what changed in it and its ratio; those without a report, too.

    Below it what could change the verdicts.
    """
    keys = list(dict.fromkeys(key for changed, _ in points for key in changed))
    rows = []
    for changed, reading in points:
        cells = ["failed", "-", "-"]
        if reading:
            headline = reading.headline
            speedup = _number(headline.speedup) + words.per_token(headline)
            cells = [words.ratio(headline), speedup, headline.verdict]
        rows.append([*(inline(changed.get(key, "-"), 40) for key in keys), *cells])
    listed = table([*keys, "ratio (95 % interval)", "speedup", "gate"], rows)
    measured = {", ".join(changed.values()): reading for changed, reading in points if reading}
    warned = words.beside(list(measured.values()), list(measured))
    return f"{listed}\n\nWhat could change these verdicts:\n{bullets(warned)}" if warned else listed


def losses(readings: Sequence[Reading]) -> str:
    """Whether the strategies' arms, in which machines were cut off, lost an answer."""
    reports = [reading.report for reading in readings]
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
    titles(ax, title(curves), f"median and 95 % interval · {several(headlines)}")
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
        x, y = [point.x for point in points], [point.ratio for point in points]
        ax.plot(x, y, f"{mark}-", color=INK, mfc="white", linewidth=1.2, markersize=7)
        ends[f"{name} {sign}"] = x[-1], y[-1]
    if best := list(curves.ideals.items()):
        ax.plot(*zip(*best, strict=True), "--", color=INK, linewidth=1.5)
        ends["ideal - -"] = best[-1]
    reach = even_around_one(ax, "y", reached)
    ax.set_ylabel("total time / fastest machine's alone")
    order = list(dict.fromkeys(point.x for point in curves.points))
    width = order[-1] - order[0] or 1.0
    ax.set_xlim(order[0] - 0.05 * width, order[-1] + 0.45 * width)  # room for the names
    ax.set_xticks(order, [curves.shown(x).removesuffix(curves.unit).strip() for x in order])
    ax.set_xlabel(f"{curves.what} ({curves.unit})" if curves.unit else curves.what)
    if curves.first_stop:
        x_stop = curves.first_stop[1]
        ax.axvline(x_stop, color=INK, linewidth=1.2, linestyle=":")
        label(ax, f"stops helping: {curves.shown(x_stop)}", (x_stop, reach), (-6, -14))
    names(ax, ends)


# ---- Throughput along requests in flight -------------------------------------------------------


def capacities(report: Report) -> dict[str, Found]:
    """What each provider did at the levels that it was driven at; empty where there are none."""
    driven = {p.name: levels(report.preparation, p.name) for p in report.providers}
    return {name: conclude(rows) for name, rows in driven.items() if rows}


def capacity_text(report: Report, markdown: bool = False) -> str:
    """Every level of every provider as a table, then what each does and should hold."""
    rows, lines = [], []
    for name, provider in capacities(report).items():
        for level in provider.levels:
            times = map(milliseconds, (level.ttft_ms, level.request_ms, level.server_ms))
            rates = _number(level.tokens_per_s, 1), _gain(provider, level.tokens_per_s)
            rows.append([name, str(level.in_flight), *rates, *times, str(level.refused)])
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
        gained = f"{_gain(provider, held.tokens_per_s)} one alone's throughput"
        lines.append(f"**{_sentence(name, provider)}**: at most {held.in_flight} at once ({gained}).")
    return bullets(lines) if lines else "**No level was measured.**"


def capacity_provenance(report: Report) -> str:
    """One line on where the levels come from."""
    models = sorted({provider.model for provider in report.providers if provider.model})
    engines = sorted({provider.engine for provider in report.providers if provider.engine})
    count = sum(level.answered for p in capacities(report).values() for level in p.levels)
    counted = [many(count, "answer"), words.pool(report), day(report.created)]
    return " · ".join([*counted, *models, *engines])


def _sentence(name: str, provider: Found) -> str:
    """`local` batches (batching: …), without its full stop."""
    kind = provider.behaviour
    if kind == "undisturbed":
        return f"{name} showed no limit with up to {provider.levels[-1].in_flight} requests at once"
    full = next((level.in_flight for level in provider.levels if level.full), None)
    waits = f", by its own word requests wait there from {full} at once on" if full else ""
    return f"{name} {kind} ({words.MEANING[kind]}){waits}"


def _gain(provider: Found, tokens_per_s: float | None) -> str:
    base = provider.levels[0].tokens_per_s
    return "-" if tokens_per_s is None or not base else f"{number(tokens_per_s / base, 2)} times"


def throughput(ax: Axes, report: Report) -> None:
    """Tokens per second against requests in flight, a line a provider; the capacity is filled."""
    found = capacities(report)
    behaviours = [f"{name} {provider.behaviour}" for name, provider in found.items()]
    titles(ax, ", ".join(behaviours) or "No level was measured", capacity_provenance(report))
    if not found:
        instead(ax, "This report has no levels: run poc doctor --capacity.")
        return
    ends, ticks = dict[str, tuple[float, float]](), set[int]()
    for mark, (name, provider) in zip(cycle(SIGNS), found.items(), strict=False):
        rates = {x.in_flight: x.tokens_per_s for x in provider.levels if x.tokens_per_s}
        ax.plot(list(rates), list(rates.values()), f"{mark}-", color=INK, mfc="white")
        if held := rates.get(provider.capacity):
            ax.plot([provider.capacity], [held], mark, color=INK, markersize=9)
        ends |= {name: point for point in rates.items()}
        ticks |= rates.keys()
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks), map(str, sorted(ticks)))
    ax.set_xticks([], minor=True)
    ax.set(xlim=(0.9, max(ticks) * 1.8), ylim=(0, None), ylabel="tokens per second")
    ax.set_xlabel("requests in flight at the provider (filled: the recommended capacity)")
    names(ax, ends)
