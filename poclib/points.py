"""Points of a wire test: cases of one sharded model, and what was measured of each; their file.

The file holds a JSON object a line: first what all points share, then one point a line, in the
order of time. A kill may tear the last line; the same points measured again go on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from .errors import ReportError
from .records import Request, Row
from .report import explained, shown_path

FORMAT, VERSION = "poclib-wire", 1
How = Literal["shard", "alone", "pool"]


class Case(Row, frozen=True, kw_only=True):
    """What is asked of an engine: `study` is the question, `name` what the case is called.

    `how`: as one sharded model, by a whole model `alone`, or by a `pool` of two whole models.
    `prompt_characters` 0: the built-in prompts as they are.
    """

    study: str
    name: str = ""
    how: How = "shard"
    shard: dict[str, Any] = {}  # fields of `parameters.Shard` that are not at their defaults
    round_trip_ms: float = 0.0
    jitter_ms: float = 0.0
    bandwidth_mbit_s: float | None = None
    in_flight: int = 1
    tokens: int = 24
    prompt_characters: int = 0


class Passed(Row, frozen=True, kw_only=True):
    """What the link counted over a number of requests."""

    hops: int
    to_worker_bytes: int
    to_coordinator_bytes: int


class Point(Row, frozen=True, kw_only=True):
    """One measurement of a case: `requests` were in flight together.

    `passed` is what they took on the wire, `passed_first` what the same requests took that ask for
    one token only: the difference is of the tokens after the first. `problem`: why there is nothing.
    """

    case: Case
    repeat: int = 0
    split: list[float] | None = None
    probed_ms: float | None = None  # the round trip to a person's own workers, beside the link's
    requests: list[Request] = []
    passed: Passed | None = None
    passed_first: Passed | None = None
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
        head, *lines = [line for line in path.read_bytes().splitlines(True) if line[-1:] == b"\n"]
    try:
        about = json.loads(head)
        if (about.pop("format"), about.pop("version")) != (FORMAT, VERSION):
            raise ValueError(FORMAT)
        return Wire(about, [msgspec.json.decode(line, type=Point) for line in lines])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ReportError(
            f"{shown} is no wire test that this poclib reads, or is damaged; restore it, or measure "
            "again with ./run-poc.sh wire."
        ) from None


def append(path: Path, line: Any) -> None:
    """Put a line behind the others, and a torn one away. Raises `ReportError`."""
    with explained(shown_path(path), "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(msgspec.json.encode(line) + b"\n")
