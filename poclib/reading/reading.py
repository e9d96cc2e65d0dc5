"""One reading of a report: what follows from it is computed once, when it is first asked for.

The headline needs no frame, so pandas is loaded only where `requests` or a table is.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .. import report as files
from ..errors import ReportError
from ..records import Arm, ArmName, Report, Request
from ..stats import Headline
from . import belief, causes, headline

if TYPE_CHECKING:
    import pandas as pd

    from .headline import RoundTimes


# The round of an arm (None in the preparation), its place in it, and the arm.
Place = tuple[int | None, int, Arm]


class Reading:
    """A report as it was saved, and all that follows from it.

    `believed` is the report without the servers' own times that cannot be; `disbelieved` has the
    servers that told them, with the reason. `places` has every arm.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.believed, self.disbelieved = belief.believed(report)
        self.roles: dict[str, str] = {facts.name: facts.role for facts in report.providers}
        groups: list[tuple[int | None, list[Arm]]] = [(None, self.believed.preparation)]
        groups += [(one.index, one.arms) for one in self.believed.rounds]
        self.places: list[Place] = [
            (of, order, arm) for of, arms in groups for order, arm in enumerate(arms)
        ]

    def arms(self, kind: ArmName) -> list[Arm]:
        """The arms of that kind, in the order they ran, without times that cannot be."""
        return [arm for _, _, arm in self.places if arm.arm == kind]

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
    def timed(self) -> tuple[list[RoundTimes], bool]:
        """The times of each round, and whether their ratios are per token."""
        return headline.rounds(self.believed)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request of the whole report, in the order the arms ran. Copy it to change it.

        `round` (NA in the preparation) and `order` as in `places`. The parts from `connect_ms` to
        `last_byte_ms` add up to `wall_ms` where all are known. `limit` is how many dispatch lets
        be in flight there (NA: no limit), `slots` the server's.
        """
        from .tables import frame_of_requests

        return frame_of_requests(self)


def of(report: Report) -> Reading:
    """The reading of a report that is at hand."""
    return Reading(report)


def read(name_or_path: str | Path, folder: Path | None = None) -> Reading:
    """The reading of the report of that name in data/reports, or of the file at that path.

    The same one as before where the file has not changed. Raises what `report.load` raises.
    """
    path = files.find(name_or_path, folder)
    state = path.stat()
    return _read(path, state.st_ino, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=64)
def _read(path: Path, *_: int) -> Reading:
    return of(files.load_file(path))


def experiment(name: str, folder: Path | None = None) -> list[Reading]:
    """Every saved report of one experiment. Raises `ReportError` where there is none."""
    here = files.names(folder)
    readings = [read(each, folder) for each in here if each.startswith(f"{name}-")]
    readings = [reading for reading in readings if reading.report.experiment == name]
    if not readings:
        raise ReportError(f"no report of experiment {name!r} is saved; {files.listing(here)}")
    return readings


def within(folder: str | Path) -> list[Reading]:
    """Every report in `folder` of the project and in its points' folders, in order of measuring.

    Raises `ReportError` where it holds none.
    """
    place = files.root() / folder
    folders = [place, *(point for point in sorted(place.glob("*/")) if point.name != "older")]
    saved = [(name, one) for one in folders for name in files.names(one) if name != "sweep"]
    if not saved:
        raise ReportError(
            f"{files.shown_path(place)} holds no report; measure first, or name another folder."
        )
    return sorted((read(*each) for each in saved), key=lambda reading: reading.report.created)
