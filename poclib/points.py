"""Points of a wire test: cases of one sharded model, what was measured of each, and their file.

The file holds a JSON object a line: first what all points share, then one point a line, as they
were measured. A kill may tear the last line; what is measured later goes on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .errors import ReportError
from .records import Request, Row
from .report import explained, shown_path

FORMAT = {"format": "poclib-wire", "version": 1}


class Case(Row, frozen=True, kw_only=True):
    """What is measured: `study` is the question, `name` the case's, where there are several.

    `shard` has fields of `parameters.Shard`; `prompt_characters` 0: the built-in prompts.
    """

    study: str
    name: str = ""
    shard: Mapping[str, Any] = msgspec.field(default_factory=dict)
    round_trip_ms: float = 0.0
    jitter_ms: float = 0.0
    bandwidth_mbit_s: float | None = None
    in_flight: int = 1
    tokens: int = 24
    prompt_characters: int = 0


class Point(Row, frozen=True, kw_only=True):
    """One measurement of a case; its `requests` were in flight together.

    On the wire they took `passed`: hops, bytes to the workers, bytes back; `passed_first` took the
    same requests for one token each, so that the difference is of the tokens after the first.
    `problem` says why there is nothing. `probed_ms`: the round trip to workers of a person's own.
    """

    case: Case
    repeat: int = 0
    split: list[float] | None = None
    probed_ms: float | None = None
    requests: Sequence[Request] = ()
    passed: tuple[int, int, int] | None = None
    passed_first: tuple[int, int, int] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Wire:
    """A wire test as read: `about` is what all points share."""

    about: dict[str, Any]
    points: Sequence[Point]


def load(path: Path) -> Wire:
    """The wire test in that file. Raises `ReportError`: absent, of a newer poclib, or damaged."""
    shown = shown_path(path)
    with explained(shown, "read"):
        lines = [line for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]
    try:
        about = json.loads(lines[0])
        if any(about.pop(key) != value for key, value in FORMAT.items()):
            raise ValueError(FORMAT)
        return Wire(about, [msgspec.json.decode(line, type=Point) for line in lines[1:]])
    except (LookupError, ValueError, TypeError, AttributeError):
        told = "is no wire test that this poclib reads, or is damaged; restore it, or measure anew"
        raise ReportError(f"{shown} {told} with ./run-poc.sh wire.") from None


def append(path: Path, line: Any) -> None:
    """Put a line behind the others, in place of a torn one. Raises `ReportError`."""
    with explained(shown_path(path), "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(msgspec.json.encode(line) + b"\n")
