"""The journal of a run: every fact on disk as it happens, and what a later run can go on with.

Knows files, rows and arms; not what an experiment is for, nor how a report is saved. One JSON
object a line:

    {"format": "poclib-journal", "version": 1, …}       first: what the run was asked for
    {"facts": […]}                                      the providers, as they were found
    {"probe": {…}}                                      one round trip
    {"arm": …, "round": …, "turn": …, "begin": {…}}     an arm begins: its strategy and limits
    {"arm": …, "round": …, "request": {…}}              one attempt has ended
    {"arm": …, "round": …, "end": true, "seen": {…}}    the arm is whole
    {"resumed_ms": …}                                   the run goes on after a stop
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from .errors import FolderHeld, NewerReport, ReportError
from .records import Arm, Probe, ProviderFacts, Request, Round

FORMAT, VERSION = "poclib-journal", 1
MAX_BYTES = 256 * 2**20
MAX_LINE_BYTES = 8 * 2**20
# Round of an arm that belongs to none: warm-up and calibration.
NO_ROUND = -1


@contextlib.contextmanager
def only_one(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold `folder` for one run, or what else `lock` stands for there.

    Raises `FolderHeld` where another one holds it. The system itself lets go of the lock when
    its process ends, however that is, so that no stale one can be left behind.
    """
    with _explained(folder.name):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / lock).open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderHeld(
                f"another run (process {file.read(20).strip() or 'unknown'}) is writing to the "
                f"folder {folder.name}, and two at once would measure each other; wait until it "
                "has ended, or end it."
            ) from None
        except OSError:
            pass  # this file system knows no locks
        with contextlib.suppress(OSError):  # only for the sentence above
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def held(folder: Path) -> bool:
    """Whether a run holds `folder` now."""
    with contextlib.suppress(OSError), (folder / ".lock").open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


class Journal:
    """Every fact on disk, one JSON line each, before the next request goes to its slot.

    So a run that is killed keeps what was measured. Without a path it is kept in memory, for
    runs that save nothing. Raises `ReportError` where the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.bytes = 0
        self._file: io.RawIOBase | io.BytesIO | None = None
        if path is None:
            self._file = io.BytesIO()
            self.write({"format": FORMAT, "version": VERSION})

    @contextlib.contextmanager
    def open(self, header: Mapping[str, Any], again: bool = False) -> Iterator[Journal]:
        """Begin the file anew with `header` first, or go on `again`, while the block runs."""
        assert self.path is not None
        with _explained(self.path.name):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if again else "wb", buffering=0)
            if again:  # whatever a stop tore off in the middle of its last line goes
                self.bytes = _whole_bytes(self.path)
                self._file.truncate(self.bytes)
                self._file.seek(self.bytes)
        try:
            if not again:
                self.write({"format": FORMAT, "version": VERSION, **header})
            yield self
        finally:
            file, self._file = self._file, None
            with _explained(self.path.name):
                file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one line, which other readers of the file see at once, and whole."""
        assert self._file is not None, "the journal is open while a run goes on"
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        with _explained(self.path.name if self.path else "memory"):
            try:
                rest = memoryview(line)
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):  # not half a line
                    self._file.truncate(self.bytes)
                    self._file.seek(self.bytes)
                raise
        self.bytes += len(line)

    def sync(self) -> None:
        """Have the disk itself keep it, against a loss of power; slow, so between arms only."""
        if self.path is not None and self._file is not None:
            with contextlib.suppress(OSError):  # not every system can
                os.fsync(self._file.fileno())

    def kept(self) -> Kept:
        """All that it holds by now."""
        if self.path is not None:
            return read(self.path)
        assert isinstance(self._file, io.BytesIO)
        return _rebuilt(iter(self._file.getvalue().splitlines(keepends=True)), "memory")


@dataclass
class Kept:
    """What a journal holds: whole rounds, cut ones, and the preparation with its turns."""

    header: dict[str, Any] = field(default_factory=dict)
    facts: list[ProviderFacts] = field(default_factory=list)
    preparation: list[Arm] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    cut: list[Round] = field(default_factory=list)
    resumed_ms: list[float] = field(default_factory=list)
    # The requests of each turn of warm-up or calibration, such as ("calibration", "local 0").
    turns: dict[tuple[str, str], list[Request]] = field(default_factory=dict)
    last_ms: float = 0.0

    @property
    def requests(self) -> int:
        """How many attempts the journal holds."""
        arms = [arm for one in (*self.rounds, *self.cut) for arm in one.arms]
        return sum(len(arm.requests) for arm in (*self.preparation, *arms))


def read(path: Path) -> Kept:
    """What the journal at `path` holds; a last line that was torn is not there.

    Raises `ReportError` (absent, too big, no journal, damaged, the sentence naming the line)
    or `NewerReport`.
    """
    with _explained(path.name, "read"):
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ReportError(f"{path.name} is larger than {MAX_BYTES // 2**20} MiB: not read.")
        with path.open("rb") as file:
            return _rebuilt(iter(lambda: file.readline(MAX_LINE_BYTES), b""), path.name)


def _rebuilt(lines: Iterator[bytes], name: str) -> Kept:
    found = Kept()
    arms: list[_Begun] = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            if len(line) >= MAX_LINE_BYTES:
                raise _damaged(name, number)
            break  # torn
        try:
            row = json.loads(line)
            if number == 1:
                found.header = _header(row, name)
            else:
                _take(row, found, arms)
        except ReportError:
            raise
        except SURPRISES:
            raise _damaged(name, number) from None
    if not found.header:
        raise ReportError(f"{name} is empty or no journal; run without --resume to start over.")
    found.preparation = [one.arm() for one in arms if one.round == NO_ROUND]
    for (_, index), pair in groupby(arms, key=lambda one: (one.session, one.round)):
        if index != NO_ROUND:
            both = list(pair)
            whole = len(both) == 2 and all(one.ended for one in both)
            kept = Round(index=index, arms=[one.arm() for one in both])
            (found.rounds if whole else found.cut).append(kept)
    for one in arms:
        if one.turn is not None:
            found.turns.setdefault((one.first.arm, one.turn), []).extend(one.rows)
    return found


# What a line of an unforeseen shape raises; pydantic's own error is a ValueError.
SURPRISES = (
    *(AttributeError, KeyError, IndexError, TypeError, ValueError),
    *(ArithmeticError, RecursionError),
)


@dataclass
class _Begun:
    """An arm as far as the journal tells of it; `first` is the arm without its rows."""

    first: Arm
    round: int
    turn: str | None
    session: int
    rows: list[Request] = field(default_factory=list)
    ended: bool = False

    def arm(self) -> Arm:
        return self.first.model_copy(update={"requests": self.rows})


def _take(row: dict[str, Any], found: Kept, arms: list[_Begun]) -> None:
    """Add what one line says; raises any of `SURPRISES`."""
    if "facts" in row:
        found.facts = [ProviderFacts.model_validate(one) for one in row["facts"]]
    elif "probe" in row:
        found.probes.append(Probe.model_validate(row["probe"]))
        found.last_ms = max(found.last_ms, found.probes[-1].at_ms)
    elif "resumed_ms" in row:
        found.resumed_ms.append(float(row["resumed_ms"]))
    elif "begin" in row:
        first = Arm.model_validate({"arm": row["arm"], **row["begin"]})
        turn = None if row["turn"] is None else f"{row['turn']:s}"
        arms.append(_Begun(first, int(row["round"]), turn, len(found.resumed_ms)))
    else:
        now = arms[-1]  # one arm at a time
        if (now.first.arm, now.round, now.ended) != (row["arm"], row["round"], False):
            raise ValueError("a line of an arm that is not under way")
        if "request" in row:
            now.rows.append(Request.model_validate(row["request"]))
            found.last_ms = max(found.last_ms, now.rows[-1].marks.end_ms or 0.0)
        else:
            now.ended = bool(row["end"])
            now.first = Arm.model_validate({**now.first.model_dump(), **row.get("seen", {})})


def _header(row: Any, name: str) -> dict[str, Any]:
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise ReportError(f"{name} is no journal of a run; move it away, then run again.")
    if type(row.get("version")) is not int or row["version"] < 1:
        raise ReportError(f"{name}: version is not a positive whole number; it is no journal.")
    if row["version"] > VERSION:
        raise NewerReport(
            f"{name} has format version {row['version']}, this poclib reads up to {VERSION}: "
            "update poclib, or run without --resume."
        )
    return row


def _damaged(name: str, number: int) -> ReportError:
    return ReportError(
        f"{name}: line {number} is damaged, so the run cannot go on from it; run without "
        "--resume to start over (the file is kept aside)."
    )


def _whole_bytes(path: Path) -> int:
    """How long the file is up to its last whole line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1


@contextlib.contextmanager
def _explained(name: str, done: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ReportError(
            f"{name}: the journal cannot be {done} ({error.strerror}); "
            "free the disk or choose a folder that can be written."
        ) from None
