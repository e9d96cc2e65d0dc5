"""One reading of a report: what follows from it is computed once, when it is first asked for.

The headline needs no frame, so pandas is loaded only where `requests`, `rounds` or a table is.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .. import report as files
from ..records import Arm, ArmName, Report, Request
from ..stats import Headline
from . import belief, causes, headline

if TYPE_CHECKING:
    import pandas as pd


class Reading:
    """A report as it was saved, and all that follows from it.

    `believed` is the report without the servers' own times that cannot be; `disbelieved` has the
    servers that told them, with the reason.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.believed, self.disbelieved = belief.believed(report)

    def arms(self, kind: ArmName) -> list[Arm]:
        """The arms of that kind, in the order they ran, without times that cannot be."""
        rounds = [arm for round_ in self.believed.rounds for arm in round_.arms]
        return [arm for arm in (*self.believed.preparation, *rounds) if arm.arm == kind]

    def answered(self, kind: ArmName) -> list[Request]:
        """The requests whose times count: answered, in an arm of that kind."""
        return [row for arm in self.arms(kind) for row in arm.requests if row.outcome == "ok"]

    @cached_property
    def calibrations(self) -> dict[str, list[Request]]:
        """The answered calibration requests of each provider, in the order they were sent."""
        rows: dict[str, list[Request]] = {}
        for row in self.answered("calibration"):
            if row.wall_ms:
                rows.setdefault(row.provider, []).append(row)
        return rows

    @cached_property
    def causes(self) -> list[causes.Cause]:
        """What several requests at once did to each provider, baseline and strategy."""
        return causes.causes(self)

    @cached_property
    def headline(self) -> Headline:
        """Every number that is said of the report, each None with its reason in `missing`."""
        return headline.headline(self)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request of the whole report, in the order the arms ran. Copy it to change it.

        `round` is NA for warm-up and calibration, `order` the arm's place in its round or in the
        preparation. The parts from `connect_ms` to `last_byte_ms` add up to `wall_ms` where all
        are known. `limit` is how many dispatch lets be in flight there (NA: no limit), `slots`
        the server's. Own times of a server that cannot be are left out.
        """
        from . import tables

        return tables.frame_of_requests(self)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per round: `headline.RoundTimes`, and `complete`, whether the round counts."""
        from . import tables

        return tables.frame_of_rounds(self)


def read(name_or_path: str | Path, folder: Path | None = None) -> Reading:
    """The reading of the report of that name in data/reports, or of the file at that path.

    Raises what `report.load` raises.
    """
    return of(files.load(name_or_path, folder))


def of(report: Report) -> Reading:
    """The reading of a report that is at hand."""
    return Reading(report)


def experiment(name: str, folder: Path | None = None) -> list[Reading]:
    """Every saved report of one experiment. Raises `ReportError` where there is none."""
    return [of(report) for report in files.experiments(name, folder)]


def within(folder: str | Path) -> list[Reading]:
    """Every report in `folder`, see `report.within`. Raises `ReportError` where it holds none."""
    return [of(report) for report in files.within(folder)]
