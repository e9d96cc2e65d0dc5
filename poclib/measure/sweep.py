"""A sweep: runs from one file, point by point, each measured once, in a folder of its own.

The file is one of parameters with a section `sweep` of lists; every combination is a point:

    sweep:
      strategy: [shared-queue, all-parallel]    how prompts are spread
      max_tokens: [8, 32]                       any parameter of a run
      remote.link.round_trip_ms: [0, 100]       a setting of one provider
      speed: [1, 0.6]                           a setting of every provider
      engines: [1, 2]                           only the first so many providers

`sweep` may also be a list of such sections; the points are those of all of them. Knows no notebook
and no engine: it is handed an `execute`. A point's name holds a digest of all that was asked for,
so a finished one is never mistaken for another.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from .. import report, workload
from ..errors import FolderHeld, ParameterError, PocError, ReportError
from ..parameters import Parameters, put
from ..records import Report
from . import experiment

MAX_POINTS = 1000
MAX_NAME = 24
FIXED = {"experiment", "notebooks", "resume"}  # of the sweep as a whole
PRIVATE = {"url", "api_key_env", "ca_file"}  # never part of a name, a label or a page
SUMMARY = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One combination: what is different about it, and all that its run is given."""

    name: str
    changed: dict[str, Any]
    strategy: str
    values: dict[str, Any]
    parameters: Parameters

    @property
    def sweep(self) -> str:
        """The name of the sweep, which is that of its folder."""
        return self.parameters.experiment.removesuffix(f"-{self.name}")

    @property
    def shown(self) -> dict[str, str]:
        """What is different about it, as text that holds no address."""
        return {key: _shown(value) for key, value in self.changed.items()}

    @property
    def label(self) -> str:
        """shared-queue, max_tokens 8."""
        pairs = self.shown.items()
        return ", ".join(text if key == "strategy" else f"{key} {text}" for key, text in pairs)


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its report, or why there is none; `before` if it was done already."""

    point: Point
    report: Report | None = None
    problem: str = ""
    before: bool = False


Execute = Callable[[Point, Path], None]


def points(given: Mapping[str, Any], where: str = "sweep") -> list[Point]:
    """Every point of a sweep's file, in the order of its lists, checked as a whole.

    Two combinations that ask for the same are one point. Raises `ParameterError`, naming the
    key, before anything is measured.
    """
    base = {key: value for key, value in given.items() if key != "notebooks"}
    section = base.pop("sweep", None)
    grids = [_grid(one, where) for one in (section if isinstance(section, list) else [section])]
    count = sum(math.prod(map(len, grid.values())) for grid in grids)
    if not 0 < count <= MAX_POINTS:
        raise ParameterError(
            f"{where}: {count:,} points, and a sweep has 1 to {MAX_POINTS:,}; change its lists."
        )
    name = base.setdefault("experiment", Path(where).stem)
    if not isinstance(name, str) or len(name) > MAX_NAME or name in (".", ".."):
        raise ParameterError(
            f"{where}: experiment: a sweep's name is a text of at most {MAX_NAME} characters."
        )
    found: dict[str, Point] = {}
    for grid in grids:
        for combination in product(*grid.values()):
            point = _point(base, dict(zip(grid, combination, strict=True)), where)
            found.setdefault(point.name.rpartition("-")[2], point)
    return list(found.values())


def _grid(section: Any, where: str) -> dict[str, list[Any]]:
    """One section `sweep`: a list of values for each key."""
    if not isinstance(section, dict) or not section:
        raise ParameterError(
            f"{where}: a sweep needs a section `sweep` with a list of values for each key that "
            "changes (see params/sweep-links.yaml)."
        )
    for key, values in section.items():
        if not isinstance(key, str) or not isinstance(values, list) or not values:
            raise ParameterError(f"{where}: sweep.{key}: give a list of values, such as [8, 32].")
        if key in FIXED:
            raise ParameterError(
                f"{where}: sweep.{key}: this is one for all points, or the sweep's."
            )
        if key.rpartition(".")[2] in PRIVATE:
            raise ParameterError(
                f"{where}: sweep.{key}: addresses and keys are no condition to compare; give each "
                "machine a provider of its own and sweep `engines`."
            )
    return section


def _point(base: Mapping[str, Any], changed: Mapping[str, Any], where: str) -> Point:
    values = copy.deepcopy(dict(base))
    for key, value in changed.items():
        if key != "engines":
            put(values, key, copy.deepcopy(value), f"{where}: sweep.")
    if "engines" in changed:  # last, so that a setting of one that is left out is no error
        _first(values, changed["engines"], where)
    strategy = values.pop("strategy", None)
    if strategy is None:
        raise ParameterError(f"{where}: name the strategy, or several under sweep.strategy.")
    plain = Parameters.read(values | {"strategy": strategy}, where)
    asked = experiment.asked(plain, workload.texts(plain.prompts))
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"([^A-Za-z0-9.]|\.(?!\d))+", "-", "-".join(map(_shown, changed.values())))
    name = f"{slug.strip('-.')[:28].rstrip('-.') or 'point'}-{digest}"
    values["experiment"] = f"{plain.experiment}-{name}"
    parameters = Parameters.read(values | {"strategy": strategy}, where)
    return Point(name, dict(changed), parameters.strategy, values, parameters)


def _first(values: dict[str, Any], count: Any, where: str) -> None:
    providers = values.get("providers") or []
    if type(count) is not int or not 1 <= count <= len(providers):
        raise ParameterError(
            f"{where}: sweep.engines: {count!r} is not a number from 1 to {len(providers)}, the "
            "providers that the file lists."
        )
    values["providers"] = providers[:count]


def _shown(value: Any) -> str:
    """A value as a person reads it in a table and in a folder's name."""
    if isinstance(value, dict):
        return " ".join(f"{k} {_shown(v)}" for k, v in value.items() if k not in PRIVATE)
    if isinstance(value, list):
        named = (one.get("name", "") if isinstance(one, dict) else one for one in value)
        return " ".join(map(_shown, named))
    return " ".join(str(value).split())[:40]


def finished(point: Point, folder: Path) -> Report | None:
    """The report of a point that is done, in the sweep's `folder`; None where it is not."""
    try:
        saved = report.load(folder / point.name / _file(point))
    except ReportError:
        return None
    return saved if saved.complete else None


def run(points: Sequence[Point], folder: Path, execute: Execute) -> Iterator[Outcome]:
    """Measure what is not done yet, point by point; a failed one does not stop the others.

    Raises `FolderHeld` where another run measures.

    `execute` measures a point, whose report is saved in data/reports; the folder it is given is for
    whatever else it makes. Only when all of it went well does the report move into the point's
    folder: that is what makes it finished, however the sweep ends.
    """
    for point in points:
        if (done := finished(point, folder)) is not None:
            yield Outcome(point, done, before=True)
            continue
        try:
            execute(point, folder / point.name)
            yield Outcome(point, _settle(point, folder / point.name))
        except FolderHeld:
            raise  # and so would the others be refused
        except PocError as error:
            yield Outcome(point, problem=str(error))


def _file(point: Point) -> str:
    return f"{point.parameters.experiment}-{point.strategy}.jsonl"


def _settle(point: Point, folder: Path) -> Report:
    name = _file(point)
    measured = report.root() / "data" / "reports" / name
    loaded = report.load(measured)
    if not loaded.complete:
        raise ReportError(f"{name} is not complete; run the sweep again, it goes on from there.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        measured.replace(folder / name)
    except OSError as error:
        raise ReportError(
            f"{name} cannot be moved to {folder.name} ({error.strerror}); mend that and run the "
            "sweep again, which measures nothing twice."
        ) from None
    return loaded


def write_summary(points: Sequence[Point], folder: Path) -> None:
    """Leave beside the points what each stands for, so that pages can say it later."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {point.name: point.label for point in points}
    (folder / SUMMARY).write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")


def summary(folder: Path) -> dict[str, str]:
    """The points of the sweep in `folder` by name, each with its label; empty for no sweep."""
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
