"""Throughput and times against requests in flight: what a capacity run found, as table and chart.

It shows at a glance whether an engine batches: then tokens per second rise. Draws on `ax`,
measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter

from ..contention import Found, conclude, levels
from ..records import Report
from . import words
from .causes import MEANING
from .format import bullets, day, many, milliseconds, number, table
from .style import INK
from .style import instead as say
from .style import names as put_names
from .style import titles as put_titles

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
                    "-" if rate is None else number(rate, 1),
                    "-" if rate is None or not first else f"{number(rate / first, 2)} times",
                    milliseconds(level.ttft_ms),
                    milliseconds(level.request_ms),
                    milliseconds(level.server_ms),
                    str(level.refused),
                ]
            )
        said.append(f"{sentence(name, one)}; recommended capacity: {one.capacity}.")
    header = ["provider", "in flight", "tokens per s", "of one alone", "to first token"]
    header += ["request", "server's own", "refused"]
    listing = bullets(said) if markdown else "\n".join(said)
    return f"{table(header, rows, markdown)}\n\n{listing}"


def sentence(name: str, one: Found) -> str:
    """`local` batches (batching: …), told without its full stop."""
    if one.behaviour == "undisturbed":
        return f"{name} showed no limit with up to {one.levels[-1].in_flight} requests at once"
    full = next((level.in_flight for level in one.levels if level.full), None)
    waits = f", by its own word requests wait there from {full} at once on" if full else ""
    return f"{name} {one.behaviour} ({MEANING[one.behaviour]}){waits}"


def bottom_line(report: Report) -> str:
    """What each provider does with several requests at once, and how many it should hold."""
    said = []
    for name, one in found(report).items():
        held = next(level for level in one.levels if level.in_flight == one.capacity)
        gain = _over(held.tokens_per_s, one.levels[0].tokens_per_s)
        gains = "" if gain is None else f" ({number(gain, 2)} times one alone's throughput)"
        said.append(f"**{sentence(name, one)}**: at most {one.capacity} at once{gains}.")
    return bullets(said) if said else "**No level was measured.**"


def provenance(report: Report) -> str:
    """One line on where the levels come from."""
    models = sorted({one.model for one in report.providers if one.model})
    engines = sorted({one.engine for one in report.providers if one.engine})
    return f"*{' · '.join([_under(report, found(report)), *models, *engines])}*"


def _over(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def curve(ax: Axes, report: Report) -> None:
    """Tokens per second against requests in flight, a line a provider; the capacity is filled."""
    seen = found(report)
    names = [f"{name} {one.behaviour}" for name, one in seen.items()]
    put_titles(ax, ", ".join(names) or "No level was measured", _under(report, seen))
    if not seen:
        say(ax, "This report has no levels: run poc doctor --capacity.")
        return
    lines = {
        name: [(x.in_flight, x.tokens_per_s) for x in one.levels if x.tokens_per_s is not None]
        for name, one in seen.items()
    }
    for mark, (name, points) in zip(_MARKS, lines.items(), strict=False):
        ax.plot(*zip(*points, strict=True), f"{mark}-", color=INK, mfc="white", linewidth=1.5)
        held = [(x, y) for x, y in points if x == seen[name].capacity]
        ax.plot(*zip(*held, strict=True), mark, color=INK, markersize=9)
    ax.set_ylabel("tokens per second")
    _along(ax, [x for points in lines.values() for x, _ in points])
    ax.set_xlabel("requests in flight at the provider (filled: the recommended capacity)")
    put_names(ax, {name: points[-1] for name, points in lines.items()})


def times(ax: Axes, report: Report) -> None:
    """A request's time (solid) and its time to first token (dashed) against requests in flight."""
    seen = found(report)
    put_titles(ax, times_title(report), _under(report, seen))
    if not seen:
        say(ax, "This report has no levels: run poc doctor --capacity.")
        return
    ends, ticks = dict[str, tuple[float, float]](), list[float]()
    for mark, (name, one) in zip(_MARKS, seen.items(), strict=False):
        for values, dashes in (
            ([(x.in_flight, x.request_ms) for x in one.levels], "-"),
            ([(x.in_flight, x.ttft_ms) for x in one.levels], ":"),
        ):
            points = [(float(x), y) for x, y in values if y is not None]
            if points:
                ax.plot(*zip(*points, strict=True), f"{mark}{dashes}", color=INK, mfc="white")
                ticks += [x for x, _ in points]
                ends.setdefault(name, points[-1])
    ax.set_ylabel("mean time (ms)")
    _along(ax, ticks)
    ax.set_xlabel("requests in flight (solid: the whole request; dotted: to its first token)")
    put_names(ax, ends)


def times_title(report: Report) -> str:
    """Whose requests grew most, for the requests in flight that were tried there."""
    grown = {
        name: (ratio, one.levels[-1].in_flight)
        for name, one in found(report).items()
        if (ratio := _over(one.levels[-1].request_ms, one.levels[0].request_ms)) is not None
    }
    if not grown:
        return "No request was timed"
    worst = max(grown, key=lambda name: grown[name][0] / grown[name][1])
    ratio, count = grown[worst]
    return (
        f"With {count} in flight a request to {worst} takes {number(ratio, 1)} times as "
        "long as one alone"
    )


def _along(ax: Axes, ticks: Sequence[float]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(set(ticks)))
    ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(0.9, max(ticks, default=1) * 1.8)
    ax.set_ylim(bottom=0)


def _under(report: Report, seen: Mapping[str, Found]) -> str:
    count = sum(level.answered for one in seen.values() for level in one.levels)
    return f"{many(count, 'answer')} · {words.pool(report)} · {day(report.created)}"
