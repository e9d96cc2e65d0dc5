"""A report written as it happens: each fact on disk before the next request goes to its slot."""

import contextlib
import fcntl
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from .errors import FolderHeld, ReportError
from .records import REPORT_VERSION, Arm, Report, Row
from .report import FOLDER, NO_ROUND, STATE, SUFFIXES, explained, load, name, root, shown_path

# Held by a command, so that no other slips in between two of its measurements.
COMMAND = ".command.lock"
_PLAIN = {str, int, bool, type(None)}  # what stands in a file as it is


@contextlib.contextmanager
def only_one(folder: Path, lock: str = ".lock") -> Iterator[None]:
    """Hold `folder` for one run, or for what `lock` is. Raises `FolderHeld` where another does."""
    path = folder / lock
    with explained(folder.name, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderHeld(
                f"another run (process {path.read_text() or 'unknown'}) is writing to the folder "
                f"{folder.name}, and two at once would measure each other; wait until it has "
                "ended, or end it."
            ) from None
        except OSError:
            pass  # this file system knows no locks
        with contextlib.suppress(OSError):  # only for the sentence above
            path.write_text(str(os.getpid()))
        yield


class ReportFile:
    """A report while it is written, line by line, if it has a path. Raises `ReportError`."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.bytes = path, 0
        self._file: io.RawIOBase | None = None

    @contextlib.contextmanager
    def open(self, again: bool = False) -> Iterator[Self]:
        """Begin the file anew, or go on with it `again`, while the block runs."""
        assert self.path is not None
        with explained(self.path.name, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("r+b" if again else "wb", buffering=0)
            # Whatever a stop tore off in the middle of its last line goes.
            self.bytes = self.path.read_bytes().rfind(b"\n") + 1
            self._cut()
        with self._file:
            yield self

    def write(self, line: Mapping[str, Any]) -> None:
        """Add one line, which other readers of the file see at once, and whole."""
        if self.path is None:
            return
        assert self._file is not None, "the file is open while a run goes on"
        rest = data = memoryview(as_bytes(line))
        with explained(self.path.name, "written"):
            try:
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError:
                self._cut()  # not half a line
                raise
        self.bytes += len(data)

    def sync(self) -> None:
        """Have the disk itself keep it, against a loss of power; slow, so between arms only."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # not every system can
                os.fsync(self._file.fileno())

    def _cut(self) -> None:
        assert self._file is not None
        self._file.truncate(self.bytes)
        self._file.seek(self.bytes)


def as_bytes(line: Mapping[str, Any]) -> bytes:
    """One line of a report's file."""
    told = _rounded(line)
    try:
        return msgspec.json.encode(told) + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can stand for
        text = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace") + b"\n"


def _rounded(value: Any, key: str = "") -> Any:
    """As `value`, with times (`*_ms`) to the microsecond; of rows what is known; of NaN None."""
    kind = type(value)
    if kind is float:
        if key[-3:] == "_ms" and -1e12 < value < 1e12:
            return round(value * 1000) / 1000  # four times as fast as round(value, 3)
        return value if math.isfinite(value) else None
    if kind is dict:
        return {k: v if type(v) in _PLAIN else _rounded(v, k) for k, v in value.items()}
    if isinstance(value, Row):
        known = msgspec.structs.asdict(value).items()
        return {k: v if type(v) in _PLAIN else _rounded(v, k) for k, v in known if v is not None}
    return [_rounded(v, key) for v in value] if isinstance(value, list | tuple) else value


def header(report: Report) -> dict[str, Any]:
    """A report's first line: what was asked for, without addresses, keys and names of files."""
    own_lines = {"providers", "preparation", "probes", "rounds", "cut", "resumed_ms"}
    fields = report.model_dump(mode="json", exclude=STATE | own_lines)
    if given := report.parameters:
        kept = int | list if given.store_text else int  # no texts that nobody asked to keep
        if not isinstance(given.prompts, kept):
            fields["parameters"]["prompts"] = max(1, len(report.prompt_sha256))
    return fields | {"version": REPORT_VERSION}


def state(report: Report) -> dict[str, Any]:
    """A report's last line: what is known only when a run ends."""
    return report.model_dump(mode="json", include=STATE)


def text(report: Report) -> bytes:
    """What a report's file holds."""
    facts = [each.model_dump(mode="json") for each in report.providers]
    lines = [header(report), {"facts": facts}]
    lines += [{"probe": probe.model_dump(mode="json")} for probe in report.probes]
    for arm in report.preparation:
        lines += _arm_lines(arm, NO_ROUND)
    for kind, rounds in (("whole", report.rounds), ("cut", report.cut)):
        for round_ in rounds:
            for arm in round_.arms:
                lines += _arm_lines(arm, round_.index, kind=kind)
    lines += [{"resumed_ms": moment_ms} for moment_ms in report.resumed_ms]
    return b"".join(map(as_bytes, [*lines, {"state": state(report)}]))


def _arm_lines(arm: Arm, index: int, **more: str) -> list[dict[str, Any]]:
    fields = arm.model_dump(mode="json", exclude={"requests", "arm", "turn"}, exclude_defaults=True)
    begin = {key: fields.pop(key, None) for key in ("strategy", "limits")}
    first = {"arm": arm.arm, "round": index, "turn": arm.turn, "begin": begin, **more}
    return [first, *({"request": row} for row in arm.requests), {"end": fields}]


def save(report: Report, folder: Path | None = None) -> Path:
    """Write `report` as <experiment>-<strategy>.jsonl and return its path; see `keep`."""
    return put(text(report), (folder or root() / FOLDER) / f"{name(report)}.jsonl")


def keep(source: Path, target: Path) -> Path:
    """Copy the finished file `source` to `target`, whole or not at all, and return `target`.

    Another run's that is there goes to older/<name>-<its creation>. Raises `ReportError`.
    """
    with explained(source.name, "read"):
        return put(source.read_bytes(), target)


def keep_only(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Save `reports` in `folder`, where others are moved to older/; return their paths."""
    saved = [save(report, folder) for report in reports]
    for path in {path for suffix in SUFFIXES for path in folder.glob(f"*{suffix}")} - {*saved}:
        _retire(path, path.name)
    return saved


def put(data: bytes, target: Path) -> Path:
    """Have a file hold `data`, whole or not at all; the report of another run there: see `keep`."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with explained(shown_path(target), "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            for suffix in SUFFIXES:
                if (existing := target.with_suffix(suffix)).exists():
                    _set_aside(existing, data)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def _set_aside(existing: Path, successor: bytes) -> None:
    """Move the report of another run to older/; an earlier state of the same run may go."""
    created = f"{existing.stat().st_mtime_ns}"
    with contextlib.suppress(ReportError):
        created = load(existing).created
    same = created == json.loads(successor.partition(b"\n")[0])["created"]
    if existing.suffix == ".json" or not same:
        moment = re.sub(r"[^0-9A-Za-z.+-]", "-", created)[:64]
        _retire(existing, f"{existing.stem}-{moment}{existing.suffix}")


def _retire(path: Path, name: str) -> None:
    older = path.parent / "older"
    older.mkdir(exist_ok=True)
    path.replace(older / name)
