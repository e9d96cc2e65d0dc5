"""Runs that differ only in how many requests a machine holds at once, side by side.

What the failure was, what cured it, and what tells waiting from thrashing: sentences, a table and
a chart, from reports alone. Draws on `ax`, measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from . import words
from .canvas import FAINT, INK, label
from .canvas import instead as say
from .canvas import titles as put_titles
from .causes import Cause, at_least, causes, labelled
from .notation import bullets, day, many, number, table
from .phases import WAITING
from .records import Report
from .stats import Headline

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@dataclass(frozen=True)
class Crowd:
    """What became of the requests of one run; times in multiples of one request alone.

    `cpu` is the CPU time of a token in multiples of the baseline's; None where unknown.
    """

    name: str
    walls: tuple[float, ...]
    wall: float | None
    server: float | None
    cpu: float | None
    ratio: float | None
    bound: bool
    behaviours: tuple[str, ...]
    per_token: str = ""


def crowds(reports: Sequence[Report], headlines: Sequence[Headline]) -> list[Crowd]:
    """One for each report, in their order, its strategy's arms over all providers and rounds."""
    return [_crowd(one, headline) for one, headline in zip(reports, headlines, strict=True)]


def _crowd(report: Report, headline: Headline) -> Crowd:
    both = causes(report)
    ours = [one for one in both if one.arm == "strategy"]
    alone = {one.provider.name: one.alone.request_ms for one in ours}
    arms = [arm for r in report.rounds for arm in r.arms if arm.arm == "strategy"]
    walls = [
        row.wall_ms / base
        for arm in arms
        for row in arm.requests
        if row.outcome == "ok" and row.wall_ms is not None and (base := alone.get(row.provider))
    ]
    bound = at_least(report)
    return Crowd(
        name=labelled(report, headline).strategy,
        walls=tuple(walls),
        wall=fmean(walls) if walls else None,
        server=_mean([_over(one.found.server_ms, one.alone.server_ms) for one in ours]),
        cpu=_over(_cpu(ours), _cpu([one for one in both if one.arm == "baseline"])),
        ratio=headline.overhead_ratio.median if bound is None else bound,
        bound=bound is not None,
        behaviours=tuple(sorted({one.behaviour for one in ours})),
        per_token="" if bound is not None else words.per_token(headline),
    )


def _cpu(found: Sequence[Cause]) -> float | None:
    spent = sum(use.cpu_ms for one in found for use in one.use)
    tokens = sum(one.tokens for one in found)
    return spent / tokens if spent and tokens else None


def _over(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def bottom_line(reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """The slowest run in bold, what a request became in it, and what the others took."""
    found = crowds(reports, headlines)
    known = [one for one in found if one.ratio is not None]
    if not known:
        return "**No run came to an end, so no ratio is known.**"
    worst = max(known, key=lambda one: one.ratio or 0.0)
    said = (
        f"**{worst.name} took {_ratio(worst)} times as long{worst.per_token} as one machine "
        "alone.**"
    )
    if worst.wall is not None:
        said += (
            f" A request took {_times(worst.wall)} times as long as one alone on average,"
            f" up to {_times(max(worst.walls))} times."
        )
    rest = [
        f"{one.name}: {_ratio(one)} times{one.per_token}; "
        f"a request {_times(one.wall)} times one alone"
        for one in known
        if one is not worst
    ]
    return f"{said}\n\nThe same prompts otherwise:\n\n{bullets(rest)}" if rest else said


def separation(reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """A short Markdown table: where the server's own time grew, and where only the wall did."""
    rows = [
        [
            one.name,
            f"{_times(one.wall)}×",  # noqa: RUF001
            f"{_times(one.server)}×",  # noqa: RUF001
            f"{_times(one.cpu)}×",  # noqa: RUF001
            ", ".join(one.behaviours) or "-",
        ]
        for one in crowds(reports, headlines)
    ]
    header = ["run", "wall of a request", "its server's own time", "CPU time of a token"]
    return table([*header, "what it is"], rows, markdown=True)


def walls(ax: Axes, reports: Sequence[Report], headlines: Sequence[Headline]) -> None:
    """Every request's wall in multiples of one alone, a row a run; diamonds: the server's own.

    Where the diamond stands among the dots the server itself was slower; where it stays at 1 the
    requests waited. A log axis that begins at 1: hardly a request is faster than one alone.
    """
    found = crowds(reports, headlines)
    put_titles(ax, title(found), _under(reports, found))
    if not any(one.walls for one in found):
        say(ax, "No request was answered.")
        return
    longest = max(max(one.walls, default=1.0) for one in found)
    for y, one in enumerate(found):
        ax.plot(one.walls, [y] * len(one.walls), "o", color=FAINT, alpha=0.45, ms=7, mew=0)
        if one.server is not None:
            ax.plot([one.server], [y], "D", color=INK, markersize=8, mfc="white", mew=2)
        right = max([*one.walls, one.server or 0.0])
        label(ax, f"{_times(one.wall)}×", (right, y), (10, 0))  # noqa: RUF001
    ax.axvline(1, color=WAITING, linewidth=1, zorder=0)
    ax.set_xscale("log")
    ax.set_xlim(0.6, longest * 2.2)
    ax.set_xticks([step for step in STEPS if step <= longest * 1.5])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))  # noqa: RUF001
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(found)), [one.name.replace(", ", ",\n") for one in found])
    ax.set_ylim(len(found) - 0.5, -0.6)
    ax.set_xlabel(
        "time of a request / of one alone there (dot: its wall; diamond: the server's own, mean)"
    )


def title(found: Sequence[Crowd]) -> str:
    """The most crowded run's requests against the least crowded one's."""
    known = [one for one in found if one.wall is not None]
    if not known:
        return "No request was answered"
    slow, fast = (pick(known, key=lambda one: one.wall or 0.0) for pick in (max, min))
    if slow is fast:
        return f"{slow.name}: a request took {_times(slow.wall)} times one alone"
    return (
        f"A request took {_times(slow.wall)} times one alone with {slow.name}, "
        f"{_times(fast.wall)} times with {fast.name}"
    )


def _under(reports: Sequence[Report], found: Sequence[Crowd]) -> str:
    count = many(sum(len(one.walls) for one in found), "request")
    days = sorted({day(one.created) for one in reports})
    pools = sorted({words.pool(one) for one in reports})
    return " · ".join([count, *pools, *days])


def _ratio(one: Crowd) -> str:
    text = number(one.ratio or 0.0, 2)
    return f"at least {text}" if one.bound else text


def _times(value: float | None) -> str:
    """Two digits that count: 1.3, 12, 130."""
    return "-" if value is None else number(value, 1 if value < 10 else 0)
