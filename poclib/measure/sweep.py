"""A sweep: runs from one file, point by point, each measured once, in a folder of its own.

The file is one of parameters with a section `sweep` of lists, or several; every combination is a
point (see params/sweep-links.yaml). Its name holds a digest of all that was asked for, so that a
finished one is never mistaken for another.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
FIXED = {"experiment", "notebooks", "resume"}  # of the sweep as a whole
SUMMARY = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One combination: `label` says what is different about it, as "shared-queue, max_tokens 8".

    `sweep` is the name of the sweep and its folder, `file` that of the point's report.
    """

    sweep: str
    name: str
    label: str
    parameters: Parameters

    @property
    def strategy(self) -> str:
        return self.parameters.strategy

    @property
    def file(self) -> str:
        return f"{self.parameters.experiment}-{self.strategy}.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of a point: its report (True: it is simulated), or why there is none.

    `before` if it was done already.
    """

    point: AnyPoint
    report: Report | bool | None = None
    problem: str = ""
    before: bool = False


@dataclass(frozen=True)
class Simulated:
    """One combination of a sweep that measures nothing: `scenario` is what is simulated."""

    sweep: str
    name: str
    label: str
    scenario: dict[str, Any]

    @property
    def strategy(self) -> str:
        return str(self.scenario.get("strategy", ""))

    @property
    def file(self) -> str:
        return f"{self.name}.json"


AnyPoint = Point | Simulated
Execute = Callable[[AnyPoint, Path], None]


def points(given: Mapping[str, Any], where: str = "sweep") -> list[AnyPoint]:
    """Every point of a sweep's file, in the order of its lists, checked as a whole.

    Two combinations that ask for the same are one point. Raises `ParameterError`, naming the
    key, before anything is measured.
    """
    base = {key: value for key, value in given.items() if key not in ("notebooks", "sweep")}
    base.setdefault("experiment", Path(where).stem)
    section: Any = given.get("sweep")
    grids: list[dict[str, list[Any]]] = section if isinstance(section, list) else [section]
    for grid in grids:
        _check(grid, where)
    count = sum(math.prod(map(len, grid.values())) for grid in grids)
    if not 0 < count <= MAX_POINTS:
        raise ParameterError(
            f"{where}: {count:,} points, and a sweep has 1 to {MAX_POINTS:,}; change its lists."
        )
    by_digest: dict[str, AnyPoint] = {}
    for grid in grids:
        for combination in product(*grid.values()):
            made = _simulated if "simulate" in given else _point
            point = made(base, dict(zip(grid, combination, strict=True)), where)
            by_digest.setdefault(point.name.rpartition("-")[2], point)
    return list(by_digest.values())


def _check(grid: Any, where: str) -> None:
    """Raise `ParameterError` unless a section `sweep` has a list of values for each of its keys."""
    if not isinstance(grid, dict) or not grid:
        raise ParameterError(
            f"{where}: a sweep needs a section `sweep` with a list of values for each key that "
            "changes (see params/sweep-links.yaml)."
        )
    for key, values in grid.items():
        problem = ""
        if not isinstance(key, str) or not isinstance(values, list) or not values:
            problem = "give a list of values, such as [8, 32]."
        elif key in FIXED:
            problem = "this is the same for all points; write it outside the section."
        elif key.rpartition(".")[2] in experiment.PRIVATE:
            problem = (
                "addresses and keys are no condition to compare; give each machine a provider of "
                "its own and sweep `engines`."
            )
        if problem:
            raise ParameterError(f"{where}: sweep.{key}: {problem}")


def _point(base: Mapping[str, Any], changed: dict[str, Any], where: str) -> Point:
    values = copy.deepcopy(dict(base))
    for key, value in changed.items():
        if key != "engines":
            put(values, key, copy.deepcopy(value), f"{where}: sweep.")
    if "engines" in changed:  # last, so that a setting of one that is left out is no error
        providers, count = values.get("providers") or [], changed["engines"]
        if type(count) is not int or not 1 <= count <= len(providers):
            raise ParameterError(
                f"{where}: sweep.engines: {count!r} is not a number from 1 to {len(providers)}, "
                "the providers that the file lists."
            )
        values["providers"] = providers[:count]
    if values.get("strategy") is None:
        raise ParameterError(f"{where}: name the strategy, or several under sweep.strategy.")
    plain = Parameters.read(values, where)
    asked = json.dumps(experiment.asked(plain), sort_keys=True)
    name, label = _named(changed, asked)
    values["experiment"] = f"{plain.experiment}-{name}"
    return Point(plain.experiment, name, label, Parameters.read(values, where))


def _simulated(base: Mapping[str, Any], changed: dict[str, Any], where: str) -> Simulated:
    scenario = copy.deepcopy(base["simulate"])
    for key, value in changed.items():
        *path, last = key.split(".")
        place = scenario
        for step in path:  # a machine by its name
            named = {one.get("name"): one for one in place} if isinstance(place, list) else place
            place = named.get(step) if isinstance(named, dict) else None
        if not isinstance(place, dict):
            raise ParameterError(f"{where}: sweep.{key}: the section simulate has no such place.")
        place[last] = value
    sweep = Parameters.read({"experiment": base["experiment"], "providers": [{"name": "x"}]}, where)
    name, label = _named(changed, json.dumps(scenario, sort_keys=True))
    return Simulated(sweep.experiment, name, label, scenario)


def _named(changed: Mapping[str, Any], asked: str) -> tuple[str, str]:
    """The name and the label of a point: what is different about it; a digest of all `asked`."""
    shown = {key: _shown(value) for key, value in changed.items()}
    slug = re.sub(r"([^A-Za-z0-9.]|\.(?!\d))+", "-", "-".join(shown.values()))
    slug = slug.strip("-.")[:28].rstrip("-.") or "point"
    label = ", ".join(text if key == "strategy" else f"{key} {text}" for key, text in shown.items())
    return f"{slug}-{workload.sha256(asked)[:8]}", label


def _shown(value: Any) -> str:
    """A value as a person reads it in a table and in a folder's name."""
    if isinstance(value, dict):
        pairs = value.items()
        return " ".join(f"{k} {_shown(v)}" for k, v in pairs if k not in experiment.PRIVATE)
    if isinstance(value, list):
        return " ".join(_shown(v.get("name", "") if isinstance(v, dict) else v) for v in value)
    return " ".join(str(value).split())[:40]


def run(points: Iterable[AnyPoint], folder: Path, execute: Execute) -> Iterator[Outcome]:
    """Measure what is not done yet, point by point; a failed one does not stop the others.

    `execute` measures a point, whose report is saved in data/reports; the folder it is given is for
    whatever else it makes. Only when all of it went well does the report move into the point's
    folder: that is what makes it finished, however the sweep ends.
    Raises `FolderHeld` where another run measures.
    """
    for point in points:
        home = folder / point.name
        if done := complete(point, home):
            yield Outcome(point, done or None, before=True)
            continue
        measured = report.root() / report.FOLDER / point.file
        try:
            execute(point, home)
            if done := complete(point, measured.parent):
                with report.explained(point.file, f"moved to {point.name}"):
                    home.mkdir(parents=True, exist_ok=True)
                    measured.replace(home / point.file)
            problem = f"There is no complete report {point.file}; run the sweep again, it goes on."
            yield Outcome(point, done or None, "" if done else problem)
        except FolderHeld:
            raise  # and so would the others be refused
        except PocError as error:
            yield Outcome(point, problem=str(error))


def complete(point: AnyPoint, folder: Path) -> Report | bool:
    """The complete report of a point in `folder`; True for a simulated one, False for none."""
    path = folder / point.file
    if isinstance(point, Simulated):
        return bool(report.simulated(path))
    try:
        saved = report.load(path)
    except ReportError:
        return False
    return saved if saved.complete else False


def write_summary(points: Sequence[AnyPoint], folder: Path) -> None:
    """Leave beside the points what each stands for, so that pages can say it later."""
    labels = {point.name: point.label for point in points}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SUMMARY).write_text(json.dumps(labels, indent=1) + "\n", "utf-8")


def summary(folder: Path) -> dict[str, str]:
    """The points of the sweep in `folder` by name, each with its label; empty for no sweep."""
    try:
        return dict(json.loads((folder / SUMMARY).read_text("utf-8")))
    except (OSError, TypeError, ValueError):
        return {}
