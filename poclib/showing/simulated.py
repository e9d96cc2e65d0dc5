"""What was foretold beside what was measured, and what pools of thousands would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import ReportError
from .format import bullets, listed, milliseconds, number, percent, table
from .style import BAND, FAINT, INK, label, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = Path("data", "simulated.json")


def title(cases: Sequence[Any]) -> str:
    """How far the makespans foretold are from those measured, as medians over rounds."""
    errors = [abs(case.error) for case in cases]
    told = f"{percent(median(errors), 1)} at the median, {percent(max(errors), 1)} at worst"
    return f"Of {len(cases)} makespans what was foretold is off by {told}"


def failing(cases: Sequence[Any], most: float) -> str:
    """How many are off by more than that share, and to which side."""
    bad = [case for case in cases if abs(case.error) > most]
    late = sum(case.error > 0 for case in bad)
    told = f"{len(bad)} of {len(cases)} are off by more than {percent(most)}"
    return f"{told}, {late} of them foretold too long." if bad else f"{told}."


def worst(cases: Sequence[Any], most: float) -> str:
    """Which ones those are, as a sentence."""
    bad = [case for case in cases if abs(case.error) > most]
    which = listed(f"{one.strategy} on {one.pool} ({percent(one.error)})" for one in bad)
    return f"Off by more than {percent(most)}: {which or 'none'}."


def frame(cases: Sequence[Any]) -> Any:
    """Every arm, with the range of its rounds; times in ms."""
    rows = [
        (c.pool, c.strategy, median(c.measured_ms), min(c.measured_ms), max(c.measured_ms),
         c.foretold_ms, 100 * c.error)
        for c in cases
    ]  # fmt: skip
    names = ["pool", "strategy", "measured", "least", "most", "foretold", "error (%)"]
    return pd.DataFrame(rows, columns=names).set_index(["pool", "strategy"]).round(1)


def times(found: Mapping[str, Mapping[Any, float]]) -> str:
    """What each run that is not foretold showed: of `calibrate.curve` and `calibrate.crowd`."""
    lines = {
        run: [f"{key}: {number(value)}" for key, value in of.items()] for run, of in found.items()
    }
    return bullets([f"{run}: {', '.join(told)} times" for run, told in lines.items()])


def points_table(points: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each simulated point of a sweep that is done, by its label, for a terminal."""
    header = ["point", "requests a second", "median", "p95", "p99", "wasted", "in time"]
    rows = [
        [
            point,
            number(of["per_s"]),
            *(milliseconds(of[key]) for key in ("p50_ms", "p95_ms", "p99_ms")),
            *(percent(of[key]) for key in ("wasted", "within")),
        ]
        for point, held in points.items()
        if (of := held.get("result"))
    ]
    return table(header, rows)


def draw_cases(ax: Axes, cases: Sequence[Any], most: float, under: str) -> None:
    """A row for each pool, in it a dot for each arm: how far off; the farthest has its name."""
    titles(ax, title(cases), under)
    pools = list(dict.fromkeys(case.pool for case in cases))
    off = [(100 * case.error, pools.index(case.pool)) for case in cases]
    ax.axvspan(-100 * most, 100 * most, color=BAND)
    ax.axvline(0, color=FAINT, linewidth=1)
    ax.plot(*zip(*off, strict=True), "o", color=INK, alpha=0.6)
    farthest = max(range(len(cases)), key=lambda at: abs(cases[at].error))
    label(ax, cases[farthest].strategy, off[farthest], (-20, 10))
    ax.set_yticks(range(len(pools)), pools)
    ax.invert_yaxis()
    ax.set_xlabel(f"foretold over measured, less one (%); grey: within {percent(most)}")


def read(root: Path) -> dict[str, Any]:
    """The simulated points that are saved, a frame for each question. Raises `ReportError`.

    `carried_per_s` is the rate until 95 of 100 are answered: one straggler may double a makespan.
    """
    try:
        points = pd.read_json(root / FILE)
        points["carried_per_s"] = 950 * points["requests"] / points["p95_ms"]
    except (OSError, ValueError, KeyError):
        told = f"{FILE} is absent or damaged; make it with `python benchmarks/contributors.py`."
        raise ReportError(told) from None
    return {
        str(name): rows.dropna(axis="columns", how="all").reset_index(drop=True)
        for name, rows in points.groupby("question")
    }


def title_reach(rows: Any) -> str:
    """How far throughput keeps up with the number of machines, and where it ends."""
    each = rows["carried_per_s"] / rows["count"]
    good = int(rows.loc[each >= 0.8 * each.max(), "count"].max())
    return (
        f"Up to {good:,} contributors one coordinator gives each its share of work; with "
        f"{int(rows['count'].max()):,} it carries {number(rows['carried_per_s'].max(), 0)} a second"
    )


def title_wait(rows: Any) -> str:
    """What the largest pool's slow answers take, at the least and the most load."""
    last = rows[rows["count"] == rows["count"].max()].sort_values("load")
    least, most = (
        f"{milliseconds(one['p95_ms'])} at {percent(one['load'])} load"
        for one in (last.iloc[0], last.iloc[-1])
    )
    count = int(last["count"].iloc[0])
    return f"With {count:,} contributors, 95 of 100 answers take at most {least}, {most}"


def title_churn(rows: Any) -> str:
    """What second copies give, at the middle one of how long machines stay."""
    stays_s = sorted(rows["up_s"].unique())
    usual = rows[rows["up_s"] == stays_s[len(stays_s) // 2]]
    told = []
    for _, one in usual.iterrows():
        after = one["hedge_after"]
        kind = "no second copy" if pd.isna(after) else "a late one" if after else "one at once"
        told.append(f"{milliseconds(one['p99_ms'])} with {kind} ({percent(one['wasted'])} wasted)")
    stay = number(usual["up_s"].iloc[0] / 60, 0)
    return f"Where machines stay {stay} minutes, 99 of 100 answers take at most {', '.join(told)}"


def title_cost(rows: Any) -> str:
    """What the largest simulation takes, and each of its requests."""
    last = rows.loc[rows["requests"].idxmax()]
    each_us = 1e6 * last["cpu_s"] / last["requests"]
    pool = f"{int(last['requests']):,} requests over {int(last['count']):,} contributors"
    return f"{pool} take {number(last['cpu_s'], 0)} s of one core, {number(each_us, 0)} µs each"


def draw(ax: Axes, rows: Any, axes: Sequence[str], told: Sequence[str], by: str = "") -> None:
    """A line of `axes`' second column along its first for each value of `by`, on log axes.

    `told` is the title, the line under it, and the labels of both axes.
    """
    from matplotlib.ticker import LogLocator

    titles(ax, told[0], told[1])
    x, y = axes
    lines = rows.groupby(by, dropna=False) if by else [("", rows)]
    for mark, (value, line) in zip("osD^v", lines, strict=False):
        known, name = line.dropna(subset=[y]), ""
        if by:
            name = "none" if pd.isna(value) else f"{value:g}"
        ax.plot(known[x], known[y], f"{mark}-", color=INK, linewidth=1.2, alpha=0.7, label=name)
    if by:
        ax.legend(title=by.replace("_", " "))
    ax.set(xscale="log", yscale="log", xlabel=told[2], ylabel=told[3])
    ax.set_xticks(sorted(rows[x].unique()))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axis.set_minor_formatter(lambda value, _: "")


def tree(per_s: float, kilobytes: float, mbit_s: float, bundle: int, each_s: float) -> str:
    """What one coordinator carries, and trees that hand prompts on in bundles, as a table.

    A bundle is one piece of work of those above the leaves; its bytes pass the root's line all the
    same. `each_s` is how long a contributor works on one request.
    """
    line, rows = 125 * mbit_s / kilobytes, []
    for levels in (1, 2, 3):
        by_work = per_s * bundle ** (levels - 1)
        carried = min(by_work, line)
        bound = "work" if by_work < line else "line"
        figures = (carried, max(1, -(-carried // per_s)), carried * each_s)
        rows.append([f"{levels}", bound, *(number(figure, 0) for figure in figures)])
    header = ["levels", "bound by the root's", "requests a second", "leaves", "contributors fed"]
    return table(header, rows, markdown=True)
