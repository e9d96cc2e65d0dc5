"""Save, load and list reports: one JSON file per run. Knows no statistic and no machine."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from .errors import NewerReport, ReportError
from .records import REPORT_VERSION, Report, explain

MAX_BYTES = 64 * 1024 * 1024
_FOLDER = Path("data", "reports")
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}")
_NUMBER_LIST = re.compile(r"\[\n\s*([-+\d.eE]+(?:,\n\s*[-+\d.eE]+)*)\n\s*\]")


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
        if (folder / _FOLDER).is_dir():
            return folder
    return Path(__file__).resolve().parent.parent


def home(question: str, experiment: str) -> Path:
    """Where reports lie that answer a question of their own.

    The committed samples of it in a folder by its name, so that they are never taken for the
    strategies' samples; a person's own beside all others.
    """
    return root() / _FOLDER / question if experiment == "sample" else root() / _FOLDER


def names(folder: Path | None = None) -> list[str]:
    """The names of the saved reports, sorted; empty where the folder does not exist."""
    found = (folder or root() / _FOLDER).glob("*.json")
    return sorted(path.stem for path in found if not path.name.startswith("."))


def experiments(experiment: str, folder: Path | None = None) -> list[Report]:
    """Every saved report of one experiment. Raises `ReportError` where there is none."""
    wanted = [one for one in names(folder) if one.startswith(f"{experiment}-")]
    found = [one for one in (load(name, folder) for name in wanted) if one.experiment == experiment]
    if not found:
        raise ReportError(
            f"no report of experiment {experiment!r} is saved; {_listing(names(folder))}"
        )
    return found


def within(folder: str | Path) -> list[Report]:
    """Every report in `folder` and, of a sweep, in its points' folders, in the order of measuring.

    `folder` is relative to the project. Raises `ReportError` where it holds none.
    """
    place = root() / folder
    paths = [*place.glob("*.json"), *place.glob("*/*.json")]
    kept = [one for one in paths if one.name != "sweep.json" and one.parent.name != "older"]
    if not kept:
        raise ReportError(
            f"{_shown(place)} holds no report; measure first, or name another folder."
        )
    return sorted((load(path) for path in sorted(kept)), key=lambda one: one.created)


def keep_only(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Save `reports` in `folder`, where others are moved to older/; return their paths."""
    saved = [save(report, folder) for report in reports]
    for path in {*folder.glob("*.json")} - {*saved}:
        (folder / "older").mkdir(exist_ok=True)
        path.replace(folder / "older" / path.name)
    return saved


def save(report: Report, folder: Path | None = None) -> Path:
    """Write `report` as <experiment>-<strategy>.json and return its path.

    The file appears whole or not at all. A report already under that name is moved to
    older/<name>-<when it was created>.json first; only an unfinished state of the same run
    is replaced. Raises `ReportError` where nothing can be written.
    """
    target = (folder or root() / _FOLDER) / f"{name(report)}.json"
    partial: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f".{target.stem}-", suffix=".partial", delete=False
        ) as file:
            partial = Path(file.name)
            file.write(written := text(report).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)  # a temporary file is private; a report is meant to be read
        if target.exists() and target.read_bytes() != written:
            _keep_older(target, report)
        partial.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise ReportError(
            f"{_shown(target)} could not be written: {error.strerror or error}; "
            "mend that and save again."
        ) from None
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
    return target


def load(name_or_path: str | Path, folder: Path | None = None) -> Report:
    """The report of that name in data/reports, or in the file at that path.

    Raises `ReportError` (absent, too big, truncated, not a report, invalid, the sentence
    naming the key) or `NewerReport`.
    """
    path = _find(name_or_path, folder or root() / _FOLDER)
    shown = _shown(path)
    data = _read(path, shown)
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise ReportError(f"{shown}: version is not a positive whole number; it is no report.")
    if version > REPORT_VERSION:
        raise NewerReport(
            f"{shown} has format version {version}, this poclib reads up to {REPORT_VERSION}: "
            "update poclib, or run the experiment again with this one."
        )
    try:
        report = Report.model_validate(data)
    except ValidationError as error:
        raise ReportError(f"{shown}: {explain(error, Report)}") from None
    if problem := _contradiction(report):
        raise ReportError(f"{shown}: {problem}; the file was changed or is damaged.")
    return report


def _find(name_or_path: str | Path, folder: Path) -> Path:
    wanted = str(name_or_path)
    stem = wanted.removesuffix(".json")
    if _SAFE_NAME.fullmatch(stem) and (folder / f"{stem}.json").is_file():
        return folder / f"{stem}.json"
    for path in (Path(wanted), root() / wanted):
        with contextlib.suppress(OSError, ValueError):  # too long a name, a null character
            if path.is_file():
                return path
    here = names(folder)
    asked = Path(stem).name
    near = difflib.get_close_matches(asked, here, n=3) or [n for n in here if asked and asked in n]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else _listing(here)
    raise ReportError(f"There is no report {wanted[:200]!r} in {_shown(folder)}; {hint}")


def _listing(here: list[str]) -> str:
    if not here:
        return "no report is saved yet: run the experiment first (./run-poc.sh)."
    more = f" and {len(here) - 20} more" if len(here) > 20 else ""
    return f"there are: {', '.join(here[:20])}{more}."


def _read(path: Path, shown: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ReportError(f"{shown} could not be read: {error.strerror or error}.") from None
    if len(raw) > MAX_BYTES:
        raise ReportError(
            f"{shown} is larger than {MAX_BYTES // 2**20} MiB, so it is not read; "
            "use fewer rounds, or do not store texts."
        )
    try:
        data = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise ReportError(
            f"{shown} is not whole JSON{where}: it is truncated, damaged or no report; "
            "run the experiment again or restore the file."
        ) from None
    if not isinstance(data, dict) or data.get("format") != "poclib-report":
        raise ReportError(
            f'{shown} is JSON but not a report: it lacks "format": "poclib-report"; '
            "name a file that poc run wrote."
        )
    return data


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _whole(digits: str) -> int:
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
    arms = [*report.preparation, *(arm for one in all_rounds for arm in one.arms)]
    rows = [row for arm in arms for row in arm.requests]
    used = {row.provider for row in rows} | {probe.provider for probe in report.probes}
    if strangers := sorted(used - set(known)):
        return f"providers does not list {strangers[0]}, which answered requests"
    if report.prompt_sha256:
        measured = [row for one in all_rounds for arm in one.arms for row in arm.requests]
        if any(row.prompt >= len(report.prompt_sha256) for row in measured):
            return f"a request has a prompt beyond the {len(report.prompt_sha256)} listed"
    return None


def text(report: Report) -> str:
    """What a report's file holds: addresses and keys are not in it, nor texts unless asked for."""
    data = report.model_dump(mode="json")
    if given := report.parameters:
        # A file's name is a path on this machine, and texts are stored only if asked for.
        texts = isinstance(given.prompts, list)
        if isinstance(given.prompts, str) or (texts and not given.store_text):
            data["parameters"]["prompts"] = max(1, len(report.prompt_sha256))
    written = json.dumps(_rounded(data), indent=1, ensure_ascii=False, allow_nan=False)
    # A list of numbers reads better on one line.
    return _NUMBER_LIST.sub(lambda m: "[" + re.sub(r"\n\s*", " ", m[1]) + "]", written) + "\n"


def _rounded(value: Any, key: str = "") -> Any:
    """The same structure; floats under a *_ms key rounded to the microsecond, no infinity."""
    if isinstance(value, dict):
        return {k: _rounded(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v, key) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return round(value, 3) if isinstance(value, float) and key.endswith("_ms") else value


def _keep_older(existing: Path, successor: Report) -> None:
    try:
        old = json.loads(existing.read_bytes())
        created, complete = str(old["created"]), bool(old["complete"])
    except (OSError, ValueError, RecursionError, TypeError, KeyError):
        stamp = datetime.fromtimestamp(existing.stat().st_mtime, UTC)
        created, complete = stamp.isoformat(timespec="seconds"), True
    if created == successor.created and not complete:
        return  # an unfinished state of this very run
    folder = existing.parent / "older"
    folder.mkdir(exist_ok=True)
    stem = f"{existing.stem}-{re.sub(r'[^0-9A-Za-z.+-]', '-', created)[:64]}"
    target, count = folder / f"{stem}.json", 1
    while target.exists():
        count += 1
        target = folder / f"{stem}-{count}.json"
    existing.replace(target)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; not every system lets a folder be synced."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _shown(path: Path) -> str:
    """`path` relative to the project where it lies in it: messages end up in notebooks."""
    try:
        return path.resolve().relative_to(root().resolve()).as_posix()
    except (ValueError, OSError):
        return str(path)
