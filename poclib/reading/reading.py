"""One reading of a report: what follows from it is computed once, when it is first asked for.

The headline needs no frame, so pandas is loaded only where `requests`, `rounds` or a table is.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd

from .. import report as files
from ..records import Report, Request
from ..stats import Headline
from . import belief, causes, frames, headline


class Reading:
    """A report and all that follows from it; `report` is as it was saved."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @cached_property
    def _belief(self) -> tuple[Report, dict[str, str]]:
        return belief.believed(self.report)

    @property
    def believed(self) -> Report:
        """The report without servers' own times that cannot be."""
        return self._belief[0]

    @property
    def disbelieved(self) -> dict[str, str]:
        """The servers whose own times cannot be, and why."""
        return self._belief[1]

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request of the whole report, in the order the arms ran.

        `round` is NA and `order` the place in the preparation for warm-up and calibration, which
        goes on after every round; `order` is 0 for the arm that ran first in its round. `warm_up`
        rows never count. The parts from `connect_ms` to `last_byte_ms` add up to `wall_ms` where
        all are known: `send_ms` holds all before the request's last byte that is no connecting,
        `last_byte_ms` is from the answer's last byte to its end parsed. `ms_per_token` is wall
        per output token. `limit` is how many dispatch lets be in flight there (NA: no limit),
        `slots` the server's. Own times of a server that cannot be are left out. Copy the frame
        before you change it.
        """
        return frames.requests(self.believed)

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row per round: round, first (arm that ran first), baseline_ms, strategy_ms, ratio.

        A makespan is from the first dispatch to the last answer, NaN where the arm lacks an
        answer to some prompt; `complete` says whether the round counts. The ratio is of times per
        token where the headline's `per_token` says so.
        """
        return frames.rounds(self.report)[0]

    @cached_property
    def causes(self) -> list[causes.Cause]:
        """What several requests at once did to each provider; see `causes.causes`."""
        return causes.causes(self.believed)

    @cached_property
    def calibrations(self) -> dict[str, list[Request]]:
        """The answered calibration requests of each provider, in the order they were sent."""
        return frames.calibrations(self.report)

    @cached_property
    def headline(self) -> Headline:
        """Every number that is said of the report, each None with its reason in `missing`."""
        return headline.headline(self.believed, self.disbelieved, self.requests, self.causes)


def read(name_or_path: str | Path, folder: Path | None = None) -> Reading:
    """The reading of the report of that name in data/reports, or of the file at that path.

    Parsed again only where the file has changed. Raises what `report.load` raises.
    """
    path = files.find(name_or_path, folder)
    there = path.stat()
    return _of_file(path, (there.st_dev, there.st_ino, there.st_mtime_ns, there.st_size))


@lru_cache(32)
def _of_file(path: Path, state: tuple[int, ...]) -> Reading:
    """`state` tells one content of a file from another."""
    return of(files.load(path))


def of(report: Report) -> Reading:
    """The reading of a report that is at hand."""
    return Reading(report)


def experiment(name: str, folder: Path | None = None) -> list[Reading]:
    """Every saved report of one experiment. Raises `ReportError` where there is none."""
    return [of(report) for report in files.experiments(name, folder)]


def within(folder: str | Path) -> list[Reading]:
    """Every report in `folder`, see `report.within`. Raises `ReportError` where it holds none."""
    return [of(report) for report in files.within(folder)]
