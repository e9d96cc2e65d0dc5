"""A report read back from its file, by name or path. `recording` writes the file.

It holds a JSON object a line, in the order of time, while the run goes on and after:

    {"format": "poclib-report", "version": 3, …}        first: fields of `Report`, parameters
    {"facts": […]}                                      the providers, as they answered
    {"probe": {…}}                                      one round trip
    {"arm": …, "round": …, "turn": …, "begin": {…}}     an arm begins: its strategy and limits
    {"request": {…}}                                    one attempt of that arm has ended
    {"end": {…}}                                        the arm is whole: fields known at its end
    {"resumed_ms": …}                                   the run goes on after a stop
    {"state": {…}}                                      last: what is known when a run ends

A kill may tear the last line. Format 1, one JSON object for the whole report, is still read.
"""

import contextlib
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
from pydantic import ValidationError

from .errors import NewerReport, ReportError
from .parameters import explain
from .records import REPORT_VERSION, Probe, Report, Request

FORMAT, SIMULATED = "poclib-report", "poclib-simulated"
MAX_BYTES = 512 * 2**20
NO_ROUND = -1  # of an arm of preparation
STATE = {"marked", "fastest", "ended", "lags", "moments", "ruler", "notes", "complete"}
SUFFIXES = (".jsonl", ".json")  # the newer format first
# Keys of older reports that nothing reads any more; they are dropped.
LEGACY = {"arm_limit_s", "cut_ms", "load_1min", "own_cores", "voluntary_switches", "wall_ahead_ms"}
FOLDER = Path("data", "reports")
RESULT = "RESULT.md"  # what a run found, in words: in its folder and on the site
# What a line of an unforeseen shape raises; pydantic's own error is a ValueError.
_SURPRISES = (AttributeError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError)


def name(report: Report) -> str:
    """The name a report is saved under: its experiment and its strategy."""
    return f"{report.experiment}-{report.strategy}"


def root() -> Path:
    """$POCLIB_HOME, else the nearest folder upwards with data/reports, else the package's."""
    if home := os.environ.get("POCLIB_HOME"):
        return Path(home).expanduser()
    here = Path.cwd()
    upwards = (folder for folder in (here, *here.parents) if (folder / FOLDER).is_dir())
    return next(upwards, Path(__file__).resolve().parent.parent)


@cache
def code() -> str:
    """A digest of poclib itself: what another one computes may be another number."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.rglob("*.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()


def home(question: str, experiment: str) -> Path:
    """Where reports of a question of its own lie: the committed samples apart from others."""
    return root() / FOLDER / question if experiment == "sample" else root() / FOLDER


def names(folder: Path | None = None) -> list[str]:
    """The names of the saved reports, sorted; empty where the folder does not exist."""
    paths = (folder or root() / FOLDER).glob("[!.]*")
    return sorted({path.stem for path in paths if path.suffix in SUFFIXES})


def path_of(name: str, folder: Path | None = None) -> Path | None:
    """The file of the report of that name, in whichever format; None where there is none."""
    paths = ((folder or root() / FOLDER) / f"{name}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def load(name_or_path: str | Path, folder: Path | None = None) -> Report:
    """The report of that name in `folder` (data/reports), or at that path. Raises `ReportError`."""
    return load_file(find(name_or_path, folder))


def load_file(path: Path) -> Report:
    """The report in that file. Raises `ReportError`, naming line or key; or `NewerReport`."""
    shown = shown_path(path)
    with explained(shown, "read"), path.open("rb") as file:
        if path.stat().st_size > MAX_BYTES:
            larger = f"{shown} is larger than {MAX_BYTES >> 20} MiB, so it is not read"
            raise ReportError(f"{larger}; use fewer rounds, or do not store texts.")
        fields = _head(file.read(), shown) if path.suffix == ".json" else _fields(file, shown)
    try:
        report = Report.model_validate({"providers": [], **fields})
    except ValidationError as error:
        raise ReportError(f"{shown}: {explain(error, Report)}") from None
    if problem := _contradiction(report):
        raise ReportError(f"{shown}: {problem}; the file was changed or is damaged.")
    return report


def simulated(path: Path) -> dict[str, Any]:
    """What the file of a simulated point holds: its scenario and result; empty for any other."""
    with contextlib.suppress(OSError, ValueError):
        held = json.loads(path.read_bytes())
        if isinstance(held, dict) and held.get("format") == SIMULATED:
            return {key: held[key] for key in ("scenario", "result")}
    return {}


def find(name_or_path: str | Path, folder: Path | None = None) -> Path:
    """The file of the report of that name, or at that path. Raises `ReportError`: there is none."""
    wanted, folder = str(name_or_path), folder or root() / FOLDER
    stem, here = wanted.removesuffix(".jsonl").removesuffix(".json"), names(folder)
    saved = path_of(stem, folder) if stem in here else None
    for path in filter(None, (saved, Path(wanted), root() / wanted)):
        with contextlib.suppress(OSError, ValueError):  # too long a name, a null character
            if path.is_file():
                return path
    asked = Path(stem).name
    near = difflib.get_close_matches(asked, here) or [n for n in here if asked and asked in n]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else listing(here)
    raise ReportError(f"There is no report {wanted[:200]!r} in {shown_path(folder)}; {hint}")


def listing(here: list[str]) -> str:
    """Which reports there are, or what to do where there is none."""
    more = f" and {len(here) - 20} more" if len(here) > 20 else ""
    there = f"there are: {', '.join(here[:20])}{more}."
    return there if here else "no report is saved yet: run the experiment first (./run-poc.sh)."


def _head(raw: bytes, shown: str) -> dict[str, Any]:
    """The object that says of itself that it is a report, of a version that is known here."""
    try:
        data: dict[str, Any] = _parsed(raw)
        if data["format"] != FORMAT:
            raise ValueError(FORMAT)
    except _SURPRISES:
        raise ReportError(
            f'{shown} is not a report, or is truncated: it is no JSON with "format": "{FORMAT}"; '
            "restore it, or name a file that poc run wrote."
        ) from None
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise ReportError(f"{shown}: version is not a positive whole number; it is no report.")
    if version > REPORT_VERSION:
        newer = f"has format version {version}, this poclib reads up to {REPORT_VERSION}"
        cure = "update poclib, or run the experiment again with this one"
        raise NewerReport(f"{shown} {newer}: {cure}.")
    return data


@dataclass
class _Begun:
    """An arm as far as its lines go."""

    place: tuple[int, int, str | None]  # stops before it, its round, and the round's kind
    arm: dict[str, Any]
    ended: bool = False


_REQUEST = msgspec.json.Decoder(dict[str, Request])  # the line of one, most lines by far


def _fields(file: Iterable[bytes], shown: str) -> dict[str, Any]:
    """The fields of the report in the lines of `file`."""
    fields: dict[str, Any] = {}
    arms: list[_Begun] = []
    for number, raw in enumerate(file, start=1):
        if not raw.endswith(b"\n"):
            break  # torn by a kill
        if number == 1:
            fields = {**_head(raw, shown), "probes": [], "resumed_ms": [], "complete": False}
            continue
        try:
            _take(_line(raw), fields, arms)
        except _SURPRISES:
            raise ReportError(
                f"{shown}: line {number} is damaged; restore the file, or run the experiment "
                "again without --resume (what is there is kept aside)."
            ) from None
    if not fields:
        raise ReportError(f"{shown} is empty: it was stopped at once; run the experiment again.")
    fields |= {"preparation": [], "rounds": [], "cut": []}
    for (_, index, kind), group in groupby(arms, key=lambda begun: begun.place):
        both = list(group)
        found = [begun.arm for begun in both]
        whole = kind == "whole" or (kind is None and [b.ended for b in both] == [True, True])
        if index == NO_ROUND:
            fields["preparation"] += found
        else:
            fields["rounds" if whole else "cut"].append({"index": index, "arms": found})
    fields["rounds"].sort(key=itemgetter("index"))
    return fields


def _take(line: dict[str, Any], fields: dict[str, Any], arms: list[_Begun]) -> None:
    """Add what one line says; raises any of `_SURPRISES`."""
    if "request" in line:
        if arms[-1].ended:
            raise ValueError("a request of an arm that has ended")
        arms[-1].arm["requests"].append(Request.of(line["request"]))
    elif "probe" in line:
        fields["probes"].append(Probe.model_validate(line["probe"]))
    elif "begin" in line:
        place = (len(fields["resumed_ms"]), int(line["round"]), line.get("kind"))
        arm = {"arm": line["arm"], "turn": line["turn"], **line["begin"], "requests": []}
        arms.append(_Begun(place, arm))
    elif "end" in line:
        arms[-1].arm |= line["end"]
        arms[-1].ended = True
    elif "facts" in line:
        fields["providers"] = line["facts"]
    elif "resumed_ms" in line:
        fields["resumed_ms"].append(line["resumed_ms"])
    else:
        fields |= {key: value for key, value in line["state"].items() if key in STATE}


def _line(raw: bytes) -> Any:
    """What one line says, by key; a request where it can be as a row at once."""
    if raw.startswith(b'{"request":'):
        with contextlib.suppress(ValueError):  # an escape for half a surrogate pair, an older key
            return _REQUEST.decode(raw)
    return _parsed(raw)


def _parsed(raw: bytes) -> Any:
    """JSON of today's keys. Raises `ValueError` for Infinity, NaN and what no count can be, too."""

    def whole(digits: str) -> int:
        if len(digits) > 16:
            raise ValueError("no count or time of ours is that large")
        return int(digits)

    def current(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in fields.items() if key not in LEGACY}

    text = raw.decode("utf-8")
    return json.loads(text, parse_constant=whole, parse_int=whole, object_hook=current)


def _contradiction(report: Report) -> str | None:
    """What no single field shows: names that nothing defines, indices beyond the end."""
    known = [facts.name for facts in report.providers]
    if len(set(known)) < len(known):
        return "two providers have one name"
    if len({round_.index for round_ in report.rounds}) < len(report.rounds):
        return "two rounds have one index"
    if any(len({arm.arm for arm in round_.arms}) < len(round_.arms) for round_ in report.rounds):
        return "a round has the same arm twice"
    arms = [arm for round_ in (*report.rounds, *report.cut) for arm in round_.arms]
    rows = [row for arm in (*report.preparation, *arms) for row in arm.requests]
    used = {row.provider for row in rows} | {probe.provider for probe in report.probes}
    if strangers := sorted(used - set(known)):
        return f"providers does not list {strangers[0]}, which answered requests"
    count = len(report.prompt_sha256)
    if count and any(row.prompt >= count for arm in arms for row in arm.requests):
        return f"a request has a prompt beyond the {count} listed"
    return None


def shown_path(path: Path) -> str:
    """`path` relative to the project where it lies in it: messages end up in notebooks."""
    with contextlib.suppress(ValueError, OSError):
        return path.resolve().relative_to(root().resolve()).as_posix()
    return str(path)


@contextlib.contextmanager
def explained(shown: str, done: str) -> Iterator[None]:
    """Turn an `OSError` into a `ReportError`: `shown` could not be `done`."""
    try:
        yield
    except OSError as error:
        cure = "free the disk or choose a folder that can be written"
        why = error.strerror or error
        raise ReportError(f"{shown} could not be {done}: {why}; {cure}.") from None
