"""A report written as it happens: each fact on disk before the next request goes to its slot.

Knows files and records; not what an experiment is for. `report` describes the format, and reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import FolderHeld
from .records import REPORT_VERSION, Arm, Report
from .report import (
    FOLDER,
    FORMAT,
    NO_ROUND,
    STATE,
    SUFFIXES,
    SURPRISES,
    explained,
    name,
    root,
    shown_path,
)

# Held in data/runs by a command for as long as it takes: each measurement of it holds that folder
# for itself, and another command must not slip in between two of them.
COMMAND = ".command.lock"


@contextlib.contextmanager
def only_one(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold `folder` for one run, or what else `lock` stands for there.

    Raises `FolderHeld` where another run holds it. The system itself lets go of the lock when its
    process ends, however that is, so that no stale lock can be left behind.
    """
    with explained(folder.name, "written"):
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


class ReportFile:
    """A report while it is written: each line is whole and on its way to disk when `write` returns.

    So a run that is killed keeps what was measured. Without a path the lines stay in memory, for
    runs that save nothing. Raises `ReportError` where the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.bytes = 0
        self._file: io.RawIOBase | io.BytesIO | None = io.BytesIO() if path is None else None

    @contextlib.contextmanager
    def open(self, again: bool = False) -> Iterator[ReportFile]:
        """Begin the file anew, or go on with it `again`, while the block runs."""
        assert self.path is not None
        with explained(self.path.name, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if again else "wb", buffering=0)
            if again:  # whatever a stop tore off in the middle of its last line goes
                self.bytes = self.path.read_bytes().rfind(b"\n") + 1
                self._file.truncate(self.bytes)
                self._file.seek(self.bytes)
        try:
            yield self
        finally:
            file, self._file = self._file, None
            with explained(self.path.name, "written"):
                file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line, which other readers of the file see at once, and whole."""
        assert self._file is not None, "the file is open while a run goes on"
        data = as_bytes(line)
        with explained(self.path.name if self.path else "memory", "written"):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError:
                with contextlib.suppress(OSError):  # not half a line
                    self._file.truncate(self.bytes)
                    self._file.seek(self.bytes)
                raise
        self.bytes += len(data)

    def sync(self) -> None:
        """Have the disk itself keep it, against a loss of power; slow, so between arms only."""
        if self.path is not None and self._file is not None:
            with contextlib.suppress(OSError):  # not every system can
                os.fsync(self._file.fileno())


def as_bytes(line: Mapping[str, Any]) -> bytes:
    """One line of a report's file: times to the microsecond, no infinity."""
    text = json.dumps(_rounded(line), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def header(report: Report) -> dict[str, Any]:
    """A report's first line: what was asked for. No address or key is in it, nor any prompt's
    text unless the parameters ask for that."""
    fields = report.model_dump(mode="json", include=_HEADER)
    if given := report.parameters:
        # A file's name is a path on this machine.
        texts = isinstance(given.prompts, list)
        if isinstance(given.prompts, str) or (texts and not given.store_text):
            fields["parameters"]["prompts"] = max(1, len(report.prompt_sha256))
    return {"format": FORMAT, "version": REPORT_VERSION, **fields}


_HEADER = {
    *("experiment", "strategy", "created", "poclib", "source", "parameters", "environment"),
    *("prompt_sha256", "prompt_characters", "prompts", "gate_max_ratio", "band"),
}


def lines(report: Report) -> Iterator[dict[str, Any]]:
    """A whole report as the lines of its file."""
    yield header(report)
    yield {"facts": [facts.model_dump(mode="json") for facts in report.providers]}
    yield from ({"probe": probe.model_dump(mode="json")} for probe in report.probes)
    for arm in report.preparation:
        yield from _arm_lines(arm, NO_ROUND)
    for kind, rounds in (("whole", report.rounds), ("cut", report.cut)):
        for round_ in rounds:
            for arm in round_.arms:
                yield from _arm_lines(arm, round_.index, kind=kind)
    yield from ({"resumed_ms": moment_ms} for moment_ms in report.resumed_ms)
    yield {"state": state(report)}


def state(report: Report) -> dict[str, Any]:
    """A report's last line: what is known only when a run ends."""
    return report.model_dump(mode="json", include=STATE)


def _arm_lines(arm: Arm, index: int, **more: str) -> Iterator[dict[str, Any]]:
    fields = arm.model_dump(mode="json", exclude={"requests", "arm", "turn"}, exclude_defaults=True)
    begin = {key: fields.pop(key, None) for key in ("strategy", "limits")}
    yield {"arm": arm.arm, "round": index, "turn": arm.turn, "begin": begin, **more}
    for row in arm.requests:
        yield {"request": row.model_dump(mode="json", exclude_none=True)}
    yield {"end": fields}


def text(report: Report) -> bytes:
    """What a report's file holds."""
    return b"".join(map(as_bytes, lines(report)))


def save(report: Report, folder: Path | None = None) -> Path:
    """Write `report` as <experiment>-<strategy>.jsonl and return its path; see `keep`."""
    target = (folder or root() / FOLDER) / f"{name(report)}.jsonl"
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with explained(shown_path(target), "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(text(report))
                file.flush()
                os.fsync(file.fileno())
            return keep(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def keep(source: Path, target: Path) -> Path:
    """Put the file `source` in the place `target`: whole or not at all. Returns `target`.

    A report already there is moved to older/<name>-<when it was created> first; only an
    unfinished state of the same run is replaced. Raises `ReportError`.
    """
    with explained(shown_path(target), "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for other in (target.with_suffix(suffix) for suffix in SUFFIXES):
            if other.exists() and not other.samefile(source):
                _keep_older(other, source)
        if source.parent == target.parent:
            source.replace(target)
        else:
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
        with contextlib.suppress(OSError):  # not every system lets a folder be synced
            handle = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    return target


def keep_only(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Save `reports` in `folder`, where others are moved to older/; return their paths."""
    saved = [save(report, folder) for report in reports]
    others = {path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")} - {*saved}
    for path in others:
        (folder / "older").mkdir(exist_ok=True)
        path.replace(folder / "older" / path.name)
    return saved


def _keep_older(existing: Path, successor: Path) -> None:
    if existing.read_bytes() == successor.read_bytes():
        return
    created, complete = _age(existing)
    if created == _age(successor)[0] and not complete:
        return  # an unfinished state of this very run
    folder = existing.parent / "older"
    folder.mkdir(exist_ok=True)
    stem = f"{existing.stem}-{re.sub(r'[^0-9A-Za-z.+-]', '-', created)[:64]}"
    target, count = folder / f"{stem}{existing.suffix}", 1
    while target.exists():
        count += 1
        target = folder / f"{stem}-{count}{existing.suffix}"
    existing.replace(target)


def _age(path: Path) -> tuple[str, bool]:
    """When a report was created, and whether it is complete, from its first and last line."""
    with contextlib.suppress(OSError, *SURPRISES):
        data = path.read_bytes()
        if path.suffix == ".json":
            old = json.loads(data)
            return str(old["created"]), bool(old["complete"])
        first, last = data.split(b"\n", 1)[0], data.rstrip(b"\n").rpartition(b"\n")[2]
        return str(json.loads(first)["created"]), bool(json.loads(last)["state"]["complete"])
    return datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"), True


def _rounded(value: Any, key: str = "") -> Any:
    """The same structure; floats under a *_ms key rounded to the microsecond, no infinity."""
    if isinstance(value, dict):
        return {k: _rounded(v, k) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(v, key) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return round(value, 3) if isinstance(value, float) and key.endswith("_ms") else value
