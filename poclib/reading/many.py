"""The headline rows of many reports, kept beside them so that each is read only once.

`.headlines.json` holds each row with its report's time and size, and a digest of poclib: anew is
computed what was changed, and everything by another poclib. Where it is damaged, it is made anew.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from .. import report as files
from ..errors import PocError
from ..stats import Ratio
from .reading import Reading, of

if TYPE_CHECKING:
    import pandas as pd

KEPT = ".headlines.json"


class Named(msgspec.Struct, frozen=True):
    """A provider of a report."""

    name: str
    kind: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a list says of a report; `question` is empty where it is of rounds.

    Of a simulated point `more` has each plain value that it holds, by dotted keys.
    """

    name: str
    created: str = ""
    experiment: str = ""
    strategy: str = ""
    question: str = ""
    providers: list[Named] = []
    prompts: int | None = None
    requests: int | None = None
    failed_requests: int | None = None
    overhead_ratio: Ratio = Ratio(None, None, None, 0)
    per_token: bool = False
    efficiency: float | None = None
    makespan_ms: float | None = None
    baseline_ms: float | None = None
    verdict: str = ""
    more: dict[str, str | float | bool | None] = {}


Rows = dict[str, tuple[int, int, Summary]]  # by file: when it was changed, its size, its row


def summary(name: str, reading: Reading) -> Summary:
    """The row of a report under its file's name."""
    report, head = reading.report, reading.headline
    same = {key: getattr(head, key) for key in Summary.__struct_fields__ if hasattr(head, key)}
    same |= {"name": name, "experiment": report.experiment, "question": report.question}
    same["providers"] = [Named(facts.name, facts.kind) for facts in report.providers]
    return Summary(**same)


def summaries(
    paths: Iterable[Path], home: Path, passed_over: Callable[[str], Any]
) -> dict[Path, Summary]:
    """The row of each readable file, kept in `home`; an unreadable one is told to `passed_over`."""
    by, before, found = "", Rows(), dict[Path, Summary]()
    with contextlib.suppress(OSError, ValueError, RecursionError):  # none, or damaged
        by, before = msgspec.json.decode((home / KEPT).read_bytes(), type=tuple[str, Rows])
    now = dict(before) if by == files.code() else {}
    try:
        for path in paths:
            with contextlib.suppress(OSError):  # it went meanwhile
                state, key = path.stat(), os.path.relpath(path, home)
                if now.get(key, ())[:2] != (state.st_mtime_ns, state.st_size):
                    try:
                        now[key] = state.st_mtime_ns, state.st_size, _read(path)
                    except PocError as error:
                        passed_over(str(error))
                        continue
                found[path] = now[key][2]
    finally:
        if now != before:
            there = {key: row for key, row in now.items() if (home / key).exists()}
            partial = home / f"{KEPT}.{os.getpid()}.partial"
            with contextlib.suppress(OSError):  # where nothing can be written, nothing is kept
                partial.write_bytes(msgspec.json.encode((files.code(), there)))
                partial.replace(home / KEPT)
    return found


def _read(path: Path) -> Summary:
    if path.suffix == ".json" and (point := files.simulated(path)):
        return Summary(name=path.stem, question="simulated", more=dict(_plain(point)))
    return summary(path.stem, of(files.load_file(path)))


def _plain(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _plain(value, f"{before}{key}.")
        elif value is None or isinstance(value, str | int | float):
            yield f"{before}{key}", value


def read_many(
    pattern: str = "data/reports/*.json*", passed_over: Callable[[str], Any] = print
) -> pd.DataFrame:
    """A row for each report whose file fits the glob `pattern`, by name; NA for what is unknown.

    A pattern that is not absolute begins at the project's folder; `**` stands for any folders.
    """
    import pandas as pd

    *fixed, last = (files.root() / pattern).parts
    wild = next((number for number, part in enumerate(fixed) if glob.has_magic(part)), len(fixed))
    home, rest = Path(*fixed[:wild]), Path(*fixed[wild:], last)
    paths = sorted(path for path in home.glob(str(rest)) if path.suffix in files.SUFFIXES)
    chosen = (path for path in paths if path.name not in ("sweep.json", KEPT))
    rows, shown = [], files.shown_path(home)
    for path, row in summaries(chosen, home, passed_over).items():
        fields = msgspec.structs.asdict(row)
        ratio, more = fields.pop("overhead_ratio"), fields.pop("more")
        fields["providers"] = ", ".join(one.name for one in row.providers)
        fields |= {"ratio": ratio.median, "ratio_low": ratio.low, "ratio_high": ratio.high}
        file = f"{shown}/{path.relative_to(home).as_posix()}"
        rows.append({"file": file, **fields, "rounds": ratio.rounds, **more})
    return pd.DataFrame(rows).convert_dtypes()
