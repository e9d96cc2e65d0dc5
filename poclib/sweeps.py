"""A grid of runs from one file, each point measured once, in a folder of its own.

The file is one of parameters with a section `sweep` of lists; every combination is a point:

    sweep:
      strategy: [shared-queue, all-parallel]    how prompts are spread
      max_tokens: [8, 32]                       any parameter of the notebook
      remote.link.round_trip_ms: [0, 100]       a setting of one provider
      speed: [1, 0.6]                           a setting of every provider
      engines: [1, 2]                           only the first so many providers

Knows no notebook and no engine: it is handed an `execute`. A point's name holds a digest of all
that was asked for, so a finished one is never mistaken for another.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from . import experiment, notation, report, resume, tables, words
from .errors import ParameterError, PocError, ReportError
from .records import Parameters, ProviderSettings, Report

MAX_POINTS = 1000
MAX_NAME = 24
FIXED = {"experiment", "notebooks", "resume"}  # of the sweep as a whole
PRIVATE = {"url", "api_key_env", "ca_file"}  # never part of a name, a label or a page
SUMMARY = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One combination: what is different about it, and all that its notebook is given."""

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
    def label(self) -> str:
        """shared-queue, max_tokens 8."""
        shown = (
            shown if key == "strategy" else f"{key} {shown}"
            for key, shown in zip(self.changed, map(_shown, self.changed.values()), strict=True)
        )
        return ", ".join(shown)


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
    base = dict(given)
    grid = _grid(base.pop("sweep", None), where)
    name = base.setdefault("experiment", Path(where).stem)
    if not isinstance(name, str) or len(name) > MAX_NAME or name in (".", ".."):
        raise ParameterError(
            f"{where}: experiment: a sweep's name is a text of at most {MAX_NAME} characters."
        )
    found: dict[str, Point] = {}
    for combination in product(*grid.values()):
        changed = dict(zip(grid, combination, strict=True))
        one = _point(base, changed, where)
        found.setdefault(one.name.rpartition("-")[2], one)
    return list(found.values())


def _grid(section: Any, where: str) -> dict[str, list[Any]]:
    """The section `sweep`: a list of values for each key, not too many in all."""
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
    count = math.prod(len(values) for values in section.values())
    if count > MAX_POINTS:
        raise ParameterError(
            f"{where}: {count:,} points, and a sweep has at most {MAX_POINTS:,}; shorten a list."
        )
    return section


def _point(base: Mapping[str, Any], changed: Mapping[str, Any], where: str) -> Point:
    values = copy.deepcopy(dict(base))
    for key, value in changed.items():
        if key != "engines":
            _set(values, key, copy.deepcopy(value), where)
    if "engines" in changed:  # last, so that a setting of one that is left out is no error
        _first(values, changed["engines"], where)
    strategy = values.pop("strategy", None)
    if strategy is None:
        raise ParameterError(f"{where}: name the strategy, or several under sweep.strategy.")
    plain = Parameters.read(values | {"strategy": strategy}, where)
    asked = resume.asked(plain, experiment.texts(plain.prompts))
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
    slug = re.sub(r"([^A-Za-z0-9.]|\.(?!\d))+", "-", "-".join(map(_shown, changed.values())))
    name = f"{slug.strip('-.')[:28].rstrip('-.') or 'point'}-{digest}"
    values["experiment"] = f"{plain.experiment}-{name}"
    parameters = Parameters.read(values | {"strategy": strategy}, where)
    return Point(name, dict(changed), parameters.strategy, values, parameters)


def _set(values: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Put `value` where `key` points: a parameter, one provider's setting, or every one's."""
    providers = values.get("providers")
    mine = [p for p in providers if isinstance(p, dict)] if isinstance(providers, list) else []
    names = [str(p.get("name")) for p in mine]
    if owner := max((n for n in names if key.startswith(f"{n}.")), key=len, default=None):
        mine, key = [p for p in mine if p.get("name") == owner], key[len(owner) + 1 :]
    elif key in Parameters.model_fields:
        values[key] = value
        return
    head, *rest = key.split(".")
    known = [*ProviderSettings.model_fields, *Parameters.model_fields, "engines", *names]
    if head not in ProviderSettings.model_fields or not mine:
        near = difflib.get_close_matches(head, known, n=1)
        hint = (
            f"; did you mean {notation.safe(near[0], 60)}?"
            if near
            else " nor a provider or its setting."
        )
        raise ParameterError(f"{where}: sweep.{key} is not a parameter{hint}")
    for settings in mine:
        place, step = settings, head
        for deeper in rest:
            inner = place.get(step)
            place[step] = dict(inner) if isinstance(inner, dict) else {}
            place, step = place[step], deeper
        place[step] = value


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
        named = (v.get("name", v) if isinstance(v, dict) else v for v in value)
        return " ".join(notation.inline(v, 40) for v in named)
    return notation.inline(value, 40)


def finished(point: Point, folder: Path) -> Report | None:
    """The report of a point that is done, in the sweep's `folder`; None where it is not."""
    try:
        found = report.load(folder / point.name / _file(point))
    except ReportError:
        return None
    return found if found.complete else None


def run(found: Sequence[Point], folder: Path, execute: Execute) -> Iterator[Outcome]:
    """Measure what is not done yet, point by point; a failed one does not stop the others.

    `execute` runs a point's notebook into the folder it is given, and its report is saved in
    data/reports. Only when all of it went well does the report move into the point's folder:
    that is what makes it finished, however the sweep ends.
    """
    for point in found:
        if (done := finished(point, folder)) is not None:
            yield Outcome(point, done, before=True)
            continue
        try:
            execute(point, folder / point.name)
            yield Outcome(point, _settle(point, folder / point.name))
        except PocError as error:
            yield Outcome(point, problem=notation.safe(str(error)))


def _file(point: Point) -> str:
    return f"{point.parameters.experiment}-{point.strategy}.json"


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


def table(outcomes: Sequence[Outcome], markdown: bool = False) -> str:
    """Every point with what changed in it and its ratio with interval; why some have none."""
    keys = list(dict.fromkeys(key for one in outcomes for key in one.point.changed))
    rows = []
    for one in outcomes:
        what = [_shown(one.point.changed.get(key, "-")) for key in keys]
        if one.report is None:
            rows.append([*what, "failed", "-", "-"])
            continue
        headline = tables.headline(one.report)
        speedup = "-" if headline.speedup is None else notation.number(headline.speedup, 2)
        rows.append([*what, words.ratio(headline), speedup, headline.verdict])
    header = [*keys, "ratio (95 % interval)", "speedup", "gate"]
    failed = [f"{one.point.label}: {one.problem}" for one in outcomes if one.report is None]
    told = f"\n\nFailed:\n{notation.bullets(failed)}" if failed else ""
    return notation.table(header, rows, markdown) + told


def write_summary(found: Sequence[Point], folder: Path) -> None:
    """Leave beside the points what each stands for, so that pages can say it later."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = {one.name: one.label for one in found}
    (folder / SUMMARY).write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")


def summary(folder: Path) -> dict[str, str]:
    """The points of the sweep in `folder` by name, each with its label; empty for no sweep."""
    try:
        found = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
