"""What a pool serves of requests that come when they come: the knee, told and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..parameters import Serve
from ..records import Report
from ..serving import Step, bounds, step
from . import words
from .format import day, many, milliseconds, number, percent, table
from .style import FAINT, INK, instead, label, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def steps(report: Report) -> list[Step]:
    """The whole steps of a report, by their rates."""
    found = (step(arm, _wanted(report).target_ms) for arm in report.preparation)
    return sorted(filter(None, found))


def _wanted(report: Report) -> Serve:
    return (report.parameters and report.parameters.serve) or Serve()


def finding(report: Report) -> str:
    """The knee, and what is known above it, as one sentence without its full stop."""
    wanted, found = _wanted(report), steps(report)
    knee, above = bounds(found, wanted.share)
    within = f"{percent(wanted.share)} within {milliseconds(wanted.target_ms)}"
    if not found:
        return "No step was measured to its end"
    if knee is None:
        best = max(found, key=lambda one: one.in_time)
        return (
            f"{report.strategy} answered {within} at no rate tried: "
            f"{percent(best.in_time)} at {number(best.rate_per_s)} requests a second"
        )
    told = f"{report.strategy} answered {within} up to {number(knee)} requests a second"
    return f"{told}, not at {number(above)}" if above else f"{told}, the most that was tried"


def against(report: Report, foretold_per_s: float | None) -> str:
    """The knee as measured beside the one foretold, as a sentence."""
    knee, above = bounds(steps(report), _wanted(report).share)
    if knee is None or foretold_per_s is None:
        return "One of the two knees is not known, so nothing can be said."
    middle = (knee + (above or knee)) / 2
    off = foretold_per_s / middle - 1
    told = f"Foretold: {number(foretold_per_s)} requests a second; measured: {number(knee)} to"
    return f"{told} {number(above)}, so that what was foretold is off by {percent(off)}."


def provenance(report: Report) -> str:
    """Of how many requests, where and when."""
    found = steps(report)
    counted = f"{many(len(found), 'step')}, {many(sum(one.requests for one in found), 'request')}"
    return f"{counted} · {words.pool(report)} · {day(report.created)}"


def text(report: Report, markdown: bool = False) -> str:
    """Every step as a table, then the finding."""
    header = ["requests a second", "in time", "goodput a second", "median", "95th percentile"]
    header += ["longest", "refused", "not answered"]
    rows = [
        [
            *(number(one.rate_per_s), percent(one.in_time), number(one.goodput_per_s)),
            *map(milliseconds, (one.p50_ms, one.p95_ms, one.longest_ms)),
            *(str(one.refused), str(one.requests - one.answered - one.refused)),
        ]
        for one in steps(report)
    ]
    return f"{table(header, rows, markdown)}\n\n{finding(report)}."


def draw(goodput: Axes, waits: Axes, report: Report) -> None:
    """Goodput above, the 95th percentile of the time to answer below, both against the rate."""
    found = steps(report)
    titles(goodput, finding(report), provenance(report))
    if not found:
        instead(goodput, "No step was measured to its end.")
        return
    wanted = _wanted(report)
    knee, _ = bounds(found, wanted.share)
    rates = [one.rate_per_s for one in found]
    goodput.plot([0, rates[-1]], [0, rates[-1]], "--", color=FAINT, label="all in time")
    goodput.plot(rates, [one.goodput_per_s for one in found], "o-", color=INK, mfc="white")
    known = [(one.rate_per_s, one.p95_ms / 1000) for one in found if one.p95_ms]
    waits.plot(*zip(*known, strict=True) if known else ([], []), "o-", color=INK, mfc="white")
    waits.axhline(wanted.target_ms / 1000, color=INK, linestyle="--", linewidth=1)
    label(waits, f"target {milliseconds(wanted.target_ms)}", (0, wanted.target_ms / 1000), (4, 6))
    for ax in (goodput, waits):
        if knee:
            ax.axvline(knee, color=INK, linewidth=1.2, linestyle=":")
        ax.set(xlim=(0, rates[-1] * 1.05), ylim=(0, None))
    if knee:
        label(goodput, f"knee: {number(knee)} a second", (knee, 0), (-6, 8))
    goodput.set_ylabel("answers in time\na second")
    waits.set(xlabel="requests a second that came", ylabel="95th percentile\nof time to answer (s)")
