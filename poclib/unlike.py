"""What a second, unlike machine is worth to each strategy, from measured points.

Sentences, a table and two charts; where the second machine stops helping is a line in them.
Draws on `ax`, measures nothing. A point is one speed and one round trip of the second machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from .canvas import BAND, FAINT, INK, label, names
from .canvas import titles as put_titles
from .notation import bullets, day, many, milliseconds, number
from .notation import table as columns
from .records import Unlike, UnlikeArm, UnlikePoint

EVEN, ALONE = "serial-per-provider", "sequential"
_MARKS = "osD^v<>"
_STEPS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Worth:
    """One strategy at one point: its time over that of the first machine alone, per round."""

    speed: float
    round_trip_ms: float
    strategy: str
    ratio: float
    low: float
    high: float
    ideal: float
    rounds: int


def worth(found: Unlike) -> list[Worth]:
    """Every strategy at every point, in the points' order; what was not answered whole is left out.

    `ratio` is the median over rounds, `low` and `high` the least and greatest, `ideal` what the
    speeds found at this point would allow.
    """
    rows = []
    for point in found.points:
        for name in dict.fromkeys(arm.strategy for arm in point.arms if arm.strategy != ALONE):
            ratios = _ratios(point, name, found.prompts)
            if ratios:
                rows.append(
                    Worth(
                        point.speed,
                        point.round_trip_ms,
                        name,
                        median(ratios),
                        min(ratios),
                        max(ratios),
                        ideal(point),
                        len(ratios),
                    )
                )
    return rows


def ideal(point: UnlikePoint) -> float:
    """Total time over that of the first alone, where both work to the end at their own speeds."""
    first = next(iter(point.alone_ms.values()))
    return 1 / (first * sum(1 / each for each in point.alone_ms.values()))


def _ratios(point: UnlikePoint, strategy: str, prompts: int) -> list[float]:
    took = {
        (arm.strategy, arm.round): _lasted_ms(arm)
        for arm in point.arms
        if sum(map(len, arm.spans.values())) == prompts
    }
    return [
        ms / base
        for (name, index), ms in took.items()
        if name == strategy and (base := took.get((ALONE, index)))
    ]


def _lasted_ms(arm: UnlikeArm) -> float:
    spans = [span for mine in arm.spans.values() for span in mine]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def stops(rows: Sequence[Worth], strategy: str, of: Callable[[Worth], float]) -> float | None:
    """Where along `of` the ratio reaches 1 for good, on a straight line between measured points.

    `rows` go from the more helpful end on; None where the last of them is still below 1.
    """
    mine = [row for row in rows if row.strategy == strategy]
    if not mine or mine[-1].ratio < 1:
        return None
    for before, after in reversed(list(pairwise(mine))):
        if before.ratio < 1:
            share = (1 - before.ratio) / (after.ratio - before.ratio)
            return of(before) + share * (of(after) - of(before))
    return of(mine[0])


def by_speed(found: Unlike) -> list[Worth]:
    """The points without a round trip, the fastest second machine first."""
    rows = [row for row in worth(found) if row.round_trip_ms == 0]
    return sorted(rows, key=lambda row: -row.speed)


def by_distance(found: Unlike) -> list[Worth]:
    """The points at full speed, the nearest second machine first."""
    return sorted((row for row in worth(found) if row.speed == 1), key=lambda r: r.round_trip_ms)


def _names(rows: Sequence[Worth]) -> list[str]:
    return list(dict.fromkeys(row.strategy for row in rows))


def _end(last: Worth, found: Unlike) -> str:
    """Of a machine that is never worse than none: what it is at the last point."""
    return "still helps at" if last.ratio < 1 - found.band else "makes no practical difference at"


def _sentences(
    found: Unlike,
    rows: Sequence[Worth],
    key: Callable[[Worth], float],
    said: Callable[[float], str],
    farthest: str,
) -> list[str]:
    """For each strategy: where along `key` a second machine stops helping, as `said` tells it."""
    told = []
    for name in _names(rows):
        at = stops(rows, name, key)
        last = [row for row in rows if row.strategy == name][-1]
        told.append(
            f"{name}: the second machine stops helping at {said(at)}."
            if at is not None
            else f"{name}: it {_end(last, found)} {said(key(last))}, the {farthest} measured "
            f"({number(last.ratio, 2)} times)."
        )
    return told


def speed_sentences(found: Unlike) -> list[str]:
    """For each strategy: how slow a second machine still helps."""

    def said(speed: float) -> str:
        return f"{number(speed, 2)} of the first's speed"

    return _sentences(found, by_speed(found), lambda row: row.speed, said, "slowest")


def distance_sentences(found: Unlike) -> list[str]:
    """For each strategy: how far away a second machine of the same speed still helps."""

    def said(round_trip_ms: float) -> str:
        return f"a round trip of {milliseconds(round_trip_ms)}"

    return _sentences(found, by_distance(found), lambda row: row.round_trip_ms, said, "longest")


def bottom_line(found: Unlike) -> str:
    """Where equal shares stop helping, in bold; then every strategy, by speed and by distance."""
    return (
        f"**{speed_title(found)}.**\n\n{bullets(speed_sentences(found))}\n\n"
        f"**{distance_title(found)}.**\n\n{bullets(distance_sentences(found))}"
    )


def speed_title(found: Unlike) -> str:
    rows = by_speed(found)
    at = stops(rows, EVEN, lambda row: row.speed)
    if at is None:
        return "Equal shares gain at every speed measured"
    slowest = min((row.speed for row in rows), default=1.0)
    best = min((row for row in rows if row.speed == slowest), key=lambda row: row.ratio)
    return (
        f"Equal shares stop helping at {number(at, 2)} of the first machine's speed; at "
        f"{number(slowest, 2)}, {best.strategy} takes {number(best.ratio, 2)} times "
        "the first one's time"
    )


def distance_title(found: Unlike) -> str:
    rows = by_distance(found)
    at = stops(rows, EVEN, lambda row: row.round_trip_ms)
    if at is not None:
        return f"Equal shares stop helping at a round trip of {milliseconds(at)}"
    far = max((row.round_trip_ms for row in rows), default=0.0)
    last = [row for row in rows if row.round_trip_ms == far]
    low, high = min(row.ratio for row in last), max(row.ratio for row in last)
    return (
        f"At a round trip of {milliseconds(far)} two machines take "
        f"{number(low, 2)} to {number(high, 2)} times one's time"
    )


def table(rows: Sequence[Worth]) -> str:
    """The ratios of every point, a column a strategy, as a Markdown table."""
    names = _names(rows)
    points = dict.fromkeys((row.speed, row.round_trip_ms, row.ideal) for row in rows)
    lines = []
    for speed, trip, computed in points:
        here = {
            row.strategy: row for row in rows if (row.speed, row.round_trip_ms) == (speed, trip)
        }
        cells = [number(speed, 2), milliseconds(trip), number(computed, 2)]
        lines.append([*cells, *(_cell(here.get(name)) for name in names)])
    return columns(["speed", "round trip", "ideal", *names], lines, markdown=True)


def _cell(row: Worth | None) -> str:
    if row is None:
        return "-"
    low, high = number(row.low, 2), number(row.high, 2)
    return f"{number(row.ratio, 2)} ({low} to {high})"


def provenance(found: Unlike) -> str:
    """One line on where the points come from."""
    model = next((one.model for one in found.providers if one.model), "unknown model")
    engine = next((one.engine for one in found.providers if one.engine), "unknown engine")
    rounds = max((row.rounds for row in worth(found)), default=0)
    return " · ".join(
        [
            day(found.created),
            model,
            engine,
            many(len(found.points), "point"),
            f"{many(rounds, 'round')} each",
            many(found.prompts, "prompt"),
        ]
    )


def speeds(ax: Axes, found: Unlike) -> None:
    """Ratio against the second machine's speed, a line a strategy, and the computed ideal."""
    rows = by_speed(found)
    _curves(ax, found, rows, lambda row: row.speed, speed_title(found))
    ax.set_xlim(1.05, -0.35)  # slower to the right; room for the names
    ax.set_xticks(sorted({row.speed for row in rows}))
    ax.set_xlabel("speed of the second machine (share of the first one's)")
    at = stops(rows, EVEN, lambda row: row.speed)
    if at is not None:
        _stop(ax, at, f"equal shares\nstop helping: {number(at, 2)}")


def distances(ax: Axes, found: Unlike) -> None:
    """Ratio against the round trip to a second machine of the same speed."""
    rows = by_distance(found)
    _curves(ax, found, rows, lambda row: row.round_trip_ms, distance_title(found))
    far = max((row.round_trip_ms for row in rows), default=1.0)
    ax.set_xlim(0, 1.45 * far)
    ax.set_xticks(sorted({row.round_trip_ms for row in rows}))
    ax.set_xlabel("round trip to the second machine (ms)")
    at = stops(rows, EVEN, lambda row: row.round_trip_ms)
    if at is not None:
        _stop(ax, at, f"equal shares\nstop helping: {milliseconds(at)}")


def _curves(
    ax: Axes, found: Unlike, rows: Sequence[Worth], of: Callable[[Worth], float], title: str
) -> None:
    put_titles(ax, title, provenance(found))
    ax.axhspan(1 - found.band, 1 + found.band, color=BAND, zorder=0)
    ax.axhline(1, color=INK, linewidth=1)
    ends = dict[str, tuple[float, float]]()
    for mark, name in zip(_MARKS, _names(rows), strict=False):
        mine = [row for row in rows if row.strategy == name]
        x, y = [of(row) for row in mine], [row.ratio for row in mine]
        ax.vlines(x, [r.low for r in mine], [r.high for r in mine], color=FAINT, linewidth=1.5)
        ax.plot(x, y, f"{mark}-", color=INK, mfc="white", linewidth=1.2, markersize=7)
        ends[f"{name} {mark_of(mark)}"] = (x[-1], y[-1])
    points = list(dict.fromkeys((of(row), row.ideal) for row in rows))
    if points:
        ax.plot(*zip(*points, strict=True), "--", color=INK, linewidth=1.5)
        ends["ideal - -"] = points[-1]
    reach = max([2.2, *(row.high for row in rows), *(1 / row.low for row in rows)]) * 1.1
    ax.set_yscale("log")
    ax.set_ylim(1 / reach, reach)
    ax.set_yticks([step for step in _STEPS if 1 / reach <= step <= reach])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))  # noqa: RUF001
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("total time / first machine's alone")
    names(ax, ends)


def mark_of(mark: str) -> str:
    """The sign of a line's points, for the name beside it."""
    return {"o": "○", "s": "□", "D": "◇", "^": "△", "v": "▽"}.get(mark, mark)


def _stop(ax: Axes, at: float, text: str) -> None:
    ax.axvline(at, color=INK, linewidth=1.2, linestyle=":")
    _, high = ax.get_ylim()
    label(ax, text, (at, high), (-6, -14))
