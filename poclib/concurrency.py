"""Throughput and times against requests in flight: what a capacity run found, as table and chart.

It shows at a glance whether an engine batches: then tokens per second rise. Draws on `ax`,
measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from . import words
from .canvas import INK, label
from .canvas import instead as say
from .canvas import titles as put_titles
from .capacity import Found, conclude, levels
from .causes import MEANING
from .records import Report

_MARKS = "osD^v<>"


def found(report: Report) -> dict[str, Found]:
    """What each provider did at the levels that `poc doctor --capacity` drove it at."""
    seen = {p.name: levels(report.preparation, p.name) for p in report.providers}
    return {name: conclude(mine) for name, mine in seen.items() if mine}


def capacity_text(report: Report, markdown: bool = False) -> str:
    """Every level of every provider as a table, then what each does and should hold."""
    rows, said = [], []
    for name, one in found(report).items():
        first = one.levels[0].tokens_per_s
        for level in one.levels:
            rate = level.tokens_per_s
            rows.append(
                [
                    name,
                    str(level.in_flight),
                    "-" if rate is None else words.number(rate, 1),
                    "-" if rate is None or not first else f"{words.number(rate / first, 2)} times",
                    words.milliseconds(level.ttft_ms),
                    words.milliseconds(level.request_ms),
                    words.milliseconds(level.server_ms),
                    str(level.refused),
                ]
            )
        said.append(f"{sentence(name, one)}; recommended capacity: {one.capacity}.")
    header = ["provider", "in flight", "tokens per s", "of one alone", "to first token"]
    header += ["request", "server's own", "refused"]
    listing = words.bullets(said) if markdown else "\n".join(said)
    return f"{words.table(header, rows, markdown)}\n\n{listing}"


def sentence(name: str, one: Found) -> str:
    """`local` batches (batching: …), told without its full stop."""
    if one.behaviour == "undisturbed":
        return f"{name} showed no limit with up to {one.levels[-1].in_flight} requests at once"
    return f"{name} {one.behaviour} ({MEANING[one.behaviour]})"


def curve(ax: Axes, report: Report) -> None:
    """Tokens per second against requests in flight, a line a provider; the capacity is filled."""
    seen = found(report)
    names = [f"{name} {one.behaviour}" for name, one in seen.items()]
    put_titles(ax, ", ".join(names) or "No level was measured", _under(report, seen))
    if not seen:
        say(ax, "This report has no levels: run poc doctor --capacity.")
        return
    ticks: set[int] = set()
    for mark, (name, one) in zip(_MARKS, seen.items(), strict=False):
        points = [(x.in_flight, x.tokens_per_s) for x in one.levels if x.tokens_per_s is not None]
        ticks |= {x for x, _ in points}
        ax.plot(*zip(*points, strict=True), f"{mark}-", color=INK, mfc="white", linewidth=1.5)
        held = [(x, y) for x, y in points if x == one.capacity]
        ax.plot(*zip(*held, strict=True), mark, color=INK, markersize=9)
        label(ax, name, points[-1], (8, 0))
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(bottom=0)
    ax.set_xlabel("requests in flight at the provider (filled: the recommended capacity)")
    ax.set_ylabel("tokens per second")


def _under(report: Report, seen: Mapping[str, Found]) -> str:
    count = sum(level.answered for one in seen.values() for level in one.levels)
    return f"{words.many(count, 'answer')} · {words.pool(report)} · {words.day(report.created)}"
