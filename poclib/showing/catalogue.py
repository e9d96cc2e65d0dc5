"""What is saved, as a table: reports by name, date, pool, strategy and verdict.

The one list for a terminal, a notebook and the site's index; it measures and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import report
from ..errors import PocError
from ..reading.reading import read
from ..records import Report
from ..stats import Headline
from . import words
from .format import date, safe, table

HEADER = ["report", "date", "pool", "strategy", "ratio (95 % interval)", "gate"]


@dataclass(frozen=True)
class Entry:
    """A saved report and what it found."""

    name: str
    report: Report
    headline: Headline

    @property
    def cells(self) -> list[str]:
        """One line of the table, in the order of `HEADER`."""
        found, one = self.report, self.headline
        return [
            self.name,
            date(found),
            words.pool(found),
            found.strategy,
            words.ratio(one),
            one.verdict,
        ]


def entries(
    names: Iterable[str | Path] | None = None, passed_over: Callable[[str], Any] = lambda _: None
) -> list[Entry]:
    """Every readable report, newest first; an unreadable one is told to `passed_over`.

    `names` are those in data/reports unless others, or files, are given.
    """
    found = []
    for name in report.names() if names is None else names:
        try:
            reading = read(name)
            if reading.report.strategy != "capacity":  # it has levels, no rounds to judge
                found.append(Entry(Path(name).stem, reading.report, reading.headline))
        except PocError as error:
            passed_over(safe(str(error)))
    by_name = sorted(found, key=lambda one: one.name)
    return sorted(by_name, key=lambda one: date(one.report), reverse=True)


def of_experiment(
    experiment: str, strategies: Sequence[str], passed_over: Callable[[str], Any] = lambda _: None
) -> list[Entry]:
    """The reports saved under the name of one experiment, in the order of `strategies`."""
    order = {name: number for number, name in enumerate(strategies)}
    mine = [
        one
        for one in entries(passed_over=passed_over)
        if one.name == f"{experiment}-{one.report.strategy}"
    ]
    return sorted(mine, key=lambda one: order.get(one.report.strategy, len(order)))


def text(found: Sequence[Entry], markdown: bool = False) -> str:
    """The list for a terminal or as Markdown; a sentence where nothing is saved."""
    if not found:
        return "No report is saved yet: run the experiment first (./run-poc.sh)."
    return table(HEADER, [one.cells for one in found], markdown)


def saved() -> Any:
    """The list for a notebook's cell: put an experiment's name into `experiment` to read it."""
    from IPython.display import Markdown

    problems: list[str] = []
    listed = text(entries(passed_over=problems.append), markdown=True)
    told = "\n\n".join([listed, *(f"Passed over: {one}" for one in problems)])
    return Markdown(told)  # type: ignore[no-untyped-call]
