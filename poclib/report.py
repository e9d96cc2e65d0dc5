"""A report read back from its file, by name or path. Knows no statistic and no machine.

The file of a run that goes on and the report of a finished run have one format: a JSON object a
line, in the order of time.

    {"format": "poclib-report", "version": 2, …}        first: fields of `Report`, parameters
    {"facts": […]}                                      the providers, as they answered
    {"probe": {…}}                                      one round trip
    {"arm": …, "round": …, "turn": …, "begin": {…}}     an arm begins: its strategy and limits
    {"request": {…}}                                    one attempt of that arm has ended
    {"end": {…}}                                        the arm is whole: fields known at its end
    {"resumed_ms": …}                                   the run goes on after a stop
    {"state": {…}}                                      last: what is known when a run ends

A kill may tear the last line; what stands before it is kept. Format 1, one JSON object for the
whole report, is still read. `recording` writes the file.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import NewerReport, ReportError
from .parameters import explain
from .records import REPORT_VERSION, Arm, Probe, ProviderFacts, Report, Request, Round

FORMAT = "poclib-report"
MAX_BYTES = 256 * 2**20
# Round of an arm that belongs to none: warm-up, calibration, capacity.
NO_ROUND = -1
STATE = {"marked", "fastest", "ended", "lags", "moments", "ruler", "notes", "complete"}
SUFFIXES = (".jsonl", ".json")  # the newer format first
FOLDER = Path("data", "reports")
RESULT = "RESULT.md"  # what a run found, in words: in its folder and on the site
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
# What a line of an unforeseen shape raises; pydantic's own error is a ValueError.
SURPRISES = (
    *(AttributeError, KeyError, IndexError, TypeError, ValueError),
    *(ArithmeticError, RecursionError),
)


def name(report: Report) -> str:
    """The name a report is saved under: its experiment and its strategy."""
    return f"{report.experiment}-{report.strategy}"


def root() -> Path:
    """The project's folder, the one that holds data/reports.

    $POCLIB_HOME where it is set; else the nearest folder upwards from the current one that
    holds data/reports; else the folder the package lies in.
    """
    if home := os.environ.get("POCLIB_HOME"):
        return Path(home).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FOLDER).is_dir():
            return folder
    return Path(__file__).resolve().parent.parent


def home(question: str, experiment: str) -> Path:
    """Where reports lie that answer a question of their own.

    The committed samples of it in a folder by its name, so that they are never taken for the
    strategies' samples; a person's own beside all others.
    """
    return root() / FOLDER / question if experiment == "sample" else root() / FOLDER


def names(folder: Path | None = None) -> list[str]:
    """The names of the saved reports, sorted; empty where the folder does not exist."""
    folder = folder or root() / FOLDER
    paths = (path for suffix in SUFFIXES for path in folder.glob(f"[!.]*{suffix}"))
    return sorted({path.stem for path in paths})


def experiments(experiment: str, folder: Path | None = None) -> list[Report]:
    """Every saved report of one experiment. Raises `ReportError` where there is none."""
    here = names(folder)
    loaded = [load(name, folder) for name in here if name.startswith(f"{experiment}-")]
    reports = [report for report in loaded if report.experiment == experiment]
    if not reports:
        raise ReportError(f"no report of experiment {experiment!r} is saved; {_listing(here)}")
    return reports


def within(folder: str | Path) -> list[Report]:
    """Every report in `folder` and, of a sweep, in its points' folders, in the order of measuring.

    `folder` is relative to the project. Raises `ReportError` where it holds none.
    """
    place = root() / folder
    folders = [place, *(point for point in sorted(place.glob("*/")) if point.name != "older")]
    kept = [load(name, one) for one in folders for name in names(one) if name != "sweep"]
    if not kept:
        raise ReportError(
            f"{shown_path(place)} holds no report; measure first, or name another folder."
        )
    return sorted(kept, key=lambda one: one.created)


def load(name_or_path: str | Path, folder: Path | None = None) -> Report:
    """The report of that name in data/reports, or in the file at that path.

    Raises `ReportError` (absent, too big, not a report, damaged, the sentence naming line or
    key) or `NewerReport`.
    """
    path = find(name_or_path, folder)
    shown = shown_path(path)
    with explained(shown, "read"):
        if path.stat().st_size > MAX_BYTES:
            raise ReportError(
                f"{shown} is larger than {MAX_BYTES // 2**20} MiB, so it is not read; "
                "use fewer rounds, or do not store texts."
            )
        with path.open("rb") as file:
            if path.suffix == ".json":
                report = _from_format_1(file.read(), shown)
            else:
                report = from_lines(file, shown)
    if problem := _contradiction(report):
        raise ReportError(f"{shown}: {problem}; the file was changed or is damaged.")
    return report


def path_of(name: str, folder: Path | None = None) -> Path | None:
    """The file of the report of that name, in whichever format; None where there is none."""
    paths = ((folder or root() / FOLDER) / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def find(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """The file of the report of that name, or at that path. Raises `ReportError`: there is none."""
    folder = folder or root() / FOLDER
    wanted = str(name_or_path)
    stem = wanted.removesuffix(".json").removesuffix(".jsonl")
    if _SAFE_NAME.fullmatch(stem) and (saved := path_of(stem, folder)):
        return saved
    for path in (Path(wanted), root() / wanted):
        with contextlib.suppress(OSError, ValueError):  # too long a name, a null character
            if path.is_file():
                return path
    here = names(folder)
    asked = Path(stem).name
    near = difflib.get_close_matches(asked, here, n=3) or [n for n in here if asked and asked in n]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else _listing(here)
    raise ReportError(f"There is no report {wanted[:200]!r} in {shown_path(folder)}; {hint}")


def _listing(here: list[str]) -> str:
    if not here:
        return "no report is saved yet: run the experiment first (./run-poc.sh)."
    more = f" and {len(here) - 20} more" if len(here) > 20 else ""
    return f"there are: {', '.join(here[:20])}{more}."


def _from_format_1(raw: bytes, shown: str) -> Report:
    try:
        data = _parsed(raw)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ReportError(
            f"{shown} is not whole JSON{where}: it is truncated, damaged or no report; "
            "run the experiment again or restore the file."
        ) from None
    _check(data, shown)
    return _validated(data, shown)


def from_lines(file: Iterable[bytes], shown: str) -> Report:
    """The report in the lines of `file`; `shown` names it. Raises `ReportError`."""
    fields: dict[str, Any] = {}
    arms: list[_Begun] = []
    number = 0
    for number, raw in enumerate(file, start=1):
        if not raw.endswith(b"\n"):
            break  # torn by a kill
        try:
            line = _parsed(raw)
            if number > 1:
                _take(line, fields, arms)
            else:
                _check(line, shown)
                fields = {**line, "probes": [], "resumed_ms": [], "complete": False}
        except ReportError:
            raise
        except SURPRISES:
            if number == 1:
                _check(None, shown)
            raise ReportError(
                f"{shown}: line {number} is damaged; restore the file, or run the experiment "
                "again without --resume (what is there is kept aside)."
            ) from None
    if not fields:
        raise ReportError(f"{shown} is empty: it was stopped at once; run the experiment again.")
    fields["preparation"] = [begun.arm() for begun in arms if begun.round == NO_ROUND]
    fields["rounds"], fields["cut"] = [], []
    for (_, index, kind), group in groupby(arms, key=lambda b: (b.session, b.round, b.kind)):
        if index != NO_ROUND:
            both = list(group)
            whole = kind == "whole" or (
                kind is None and len(both) == 2 and all(begun.end is not None for begun in both)
            )
            round_ = Round(index=index, arms=[begun.arm() for begun in both])
            fields["rounds" if whole else "cut"].append(round_)
    fields["rounds"].sort(key=lambda round_: round_.index)
    return _validated(fields, shown)


@dataclass
class _Begun:
    """An arm as far as its lines go; `session` counts the stops before it."""

    first: dict[str, Any]
    round: int
    kind: str | None
    session: int
    rows: list[Request] = field(default_factory=list)
    end: dict[str, Any] | None = None

    def arm(self) -> Arm:
        return Arm.model_validate({**self.first, **(self.end or {}), "requests": self.rows})


def _take(line: dict[str, Any], fields: dict[str, Any], arms: list[_Begun]) -> None:
    """Add what one line says; raises any of `SURPRISES`."""
    if "request" in line:
        if arms[-1].end is not None:
            raise ValueError("a request of an arm that has ended")
        arms[-1].rows.append(Request.model_validate(line["request"]))
    elif "probe" in line:
        fields["probes"].append(Probe.model_validate(line["probe"]))
    elif "begin" in line:
        first = {"arm": line["arm"], "turn": line["turn"], **line["begin"]}
        Arm.model_validate(first)
        index, kind = int(line["round"]), line.get("kind")
        if index < NO_ROUND:
            raise ValueError("a round before the first")
        arms.append(_Begun(first, index, kind, len(fields["resumed_ms"])))
    elif "end" in line:
        Arm.model_validate({**arms[-1].first, **line["end"]})
        arms[-1].end = line["end"]
    elif "facts" in line:
        fields["providers"] = [ProviderFacts.model_validate(facts) for facts in line["facts"]]
    elif "resumed_ms" in line:
        fields["resumed_ms"].append(float(line["resumed_ms"]))
    else:
        fields.update({key: line["state"][key] for key in line["state"].keys() & STATE})


def _check(data: Any, shown: str) -> None:
    """Raise where this is no report, or one of a version that is not known here."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ReportError(
            f'{shown} is not a report: it lacks "format": "{FORMAT}"; '
            "name a file that poc run wrote."
        )
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise ReportError(f"{shown}: version is not a positive whole number; it is no report.")
    if version > REPORT_VERSION:
        raise NewerReport(
            f"{shown} has format version {version}, this poclib reads up to {REPORT_VERSION}: "
            "update poclib, or run the experiment again with this one."
        )


def _validated(data: dict[str, Any], shown: str) -> Report:
    try:
        return Report.model_validate({"providers": [], **data})
    except ValidationError as error:
        raise ReportError(f"{shown}: {explain(error, Report)}") from None


def _parsed(raw: bytes) -> Any:
    return json.loads(raw.decode("utf-8"), parse_constant=_whole, parse_int=_whole)


def _whole(digits: str) -> int:
    """A whole number; raises `ValueError` for Infinity and NaN, which are not JSON, too."""
    if len(digits) > 16:
        raise ValueError("no count or time of ours is that large")
    return int(digits)


def _contradiction(report: Report) -> str | None:
    """What no single field shows: names that nothing defines, indices beyond the end."""
    known = [facts.name for facts in report.providers]
    if len(set(known)) < len(known):
        return "two providers have one name"
    if len({one.index for one in report.rounds}) < len(report.rounds):
        return "two rounds have one index"
    if any(len({arm.arm for arm in one.arms}) < len(one.arms) for one in report.rounds):
        return "a round has the same arm twice"
    all_rounds = (*report.rounds, *report.cut)
    measured = [row for one in all_rounds for arm in one.arms for row in arm.requests]
    rows = [*(row for arm in report.preparation for row in arm.requests), *measured]
    used = {row.provider for row in rows} | {probe.provider for probe in report.probes}
    if strangers := sorted(used - set(known)):
        return f"providers does not list {strangers[0]}, which answered requests"
    count = len(report.prompt_sha256)
    if count and any(row.prompt >= count for row in measured):
        return f"a request has a prompt beyond the {count} listed"
    return None


def shown_path(path: Path) -> str:
    """`path` relative to the project where it lies in it: messages end up in notebooks."""
    try:
        return path.resolve().relative_to(root().resolve()).as_posix()
    except (ValueError, OSError):
        return str(path)


@contextlib.contextmanager
def explained(shown: str, done: str) -> Iterator[None]:
    """Turn an `OSError` into a `ReportError`: `shown` could not be `done`."""
    try:
        yield
    except OSError as error:
        raise ReportError(
            f"{shown} could not be {done}: {error.strerror or error}; "
            "free the disk or choose a folder that can be written."
        ) from None
