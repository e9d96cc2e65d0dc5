"""Whether a run that was stopped may go on, and whether one that is finished is what was asked.

Compares what was asked for; measures nothing and writes no row.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from . import journal, report
from .errors import ParameterError, PocError, ReportError
from .journal import Kept
from .records import Parameters, Report


def asked(parameters: Parameters, prompts: Sequence[str]) -> dict[str, Any]:
    """What decides whether two runs are one: the parameters and the prompts' digests.

    A run that was ended by its time limit may go on with a longer one.
    """
    counted = parameters.model_copy(update={"prompts": len(prompts)})
    wanted = counted.model_dump(mode="json", exclude={"run_limit_s"})
    return {"asked": wanted, "prompt_sha256": [sha256(text) for text in prompts]}


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def left(
    parameters: Parameters, prompts: Sequence[str], folder: Path | None, path: Path
) -> tuple[Report | None, Kept | None]:
    """The finished report of such a run, or else what an unfinished one has left in `path`.

    A run that was begun after the finished one and stopped is gone on with. The journal of the
    finished one itself, which a kill between saving and removing leaves, is removed.
    Raises as `kept` does.
    """
    done = finished(parameters, prompts, folder)
    if done is None:
        return None, kept(parameters, prompts, path)
    with contextlib.suppress(PocError, OSError):  # of whatever other run it is, this one is done
        stopped = kept(parameters, prompts, path)
        if stopped is not None and stopped.header["created"] != done.created:
            return None, stopped
        if stopped is not None:
            path.unlink()
    return done, None


def finished(parameters: Parameters, prompts: Sequence[str], folder: Path | None) -> Report | None:
    """The complete report of a run that was asked for just this; None where there is none."""
    try:
        saved = report.load(f"{parameters.experiment}-{parameters.strategy}", folder)
    except ReportError:
        return None
    if not saved.complete or saved.parameters is None:
        return None
    was = saved.parameters.model_dump(mode="json", exclude={"run_limit_s"})
    mine = {"asked": was, "prompt_sha256": saved.prompt_sha256}
    return saved if mine == asked(parameters, prompts) else None


def kept(parameters: Parameters, prompts: Sequence[str], path: Path) -> Kept | None:
    """What an unfinished run of these parameters has left; None where there is none.

    Raises `ReportError` where its journal is damaged, `ParameterError` where it was another.
    """
    if not path.exists():
        return None
    try:
        left = journal.read(path)
    except ReportError:
        with path.open("rb") as file:
            if file.readline(journal.MAX_LINE_BYTES).endswith(b"\n"):
                raise
        return None  # stopped before its first line was whole
    found, wanted = left.header, asked(parameters, prompts)
    if any(found.get(key) != wanted[key] for key in wanted):
        was, now = found.get("asked"), wanted["asked"]
        other = sorted(k for k in now if not isinstance(was, dict) or was.get(k) != now[k])
        raise ParameterError(
            f"{path.name} is of a run with other parameters ({', '.join(other) or 'prompts'}); "
            "run without --resume to start over (it is kept aside), or with those it had."
        )
    try:
        datetime.fromisoformat(found["created"]).astimezone()
        dict(found["environment"])
    except (KeyError, TypeError, ValueError):
        raise ReportError(
            f"{path.name}: line 1 is damaged, so the run cannot go on from it; run without "
            "--resume to start over (the file is kept aside)."
        ) from None
    return left
