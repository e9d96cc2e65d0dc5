"""One reading of a report: what follows from it is computed once, whoever asks and how often.

A file is parsed again only where it has changed; a report is read once while it is in use.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property, lru_cache
from pathlib import Path

import pandas as pd

from .. import report as files
from ..records import Report
from ..stats import Headline
from . import belief, causes, frames, headline

# So many reports are kept at a time: those of one experiment, and one to compare with.
KEPT = 32


class Reading:
    """A report and all that follows from it; `report` is as it was saved."""

    def __init__(self, report: Report) -> None:
        self.report = report

    @cached_property
    def believed(self) -> tuple[Report, dict[str, str]]:
        """The report without servers' own times that cannot be, and why of each server."""
        return belief.believed(self.report)

    @cached_property
    def requests(self) -> pd.DataFrame:
        """See `tables.requests`; shared, so copy it before you change it."""
        return frames.requests(self.believed[0])

    @cached_property
    def causes(self) -> list[causes.Cause]:
        """What several requests at once did to each provider; see `causes.causes`."""
        return causes.causes(self.believed[0])

    @cached_property
    def headline(self) -> Headline:
        """Every number that is said of the report, each None with its reason in `missing`."""
        return headline.headline(*self.believed, self.requests, self.causes)


_readings: OrderedDict[int, Reading] = OrderedDict()


def read(name_or_path: str | Path, folder: Path | None = None) -> Reading:
    """The reading of the report of that name in data/reports, or of the file at that path.

    Parsed again only where the file has changed. Raises what `report.load` raises.
    """
    path = files.find(name_or_path, folder)
    there = path.stat()
    return _of_file(path, (there.st_dev, there.st_ino, there.st_mtime_ns, there.st_size))


@lru_cache(KEPT)
def _of_file(path: Path, state: tuple[int, ...]) -> Reading:
    """`state` tells one content of a file from another."""
    return of(files.load(path))


def of(report: Report) -> Reading:
    """The reading of a report that is at hand; the same one each time."""
    key = id(report)  # no other report can have it: a reading that is kept holds its own
    reading = _readings.setdefault(key, Reading(report))
    _readings.move_to_end(key)
    while len(_readings) > KEPT:
        _readings.popitem(last=False)
    return reading
