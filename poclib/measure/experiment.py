"""Measure one strategy against the baseline and save a report; or go on with a stopped run.

The measuring half's top: holds the folder, opens the pool, has `run` do the work with its file
on disk, and saves what came of it, whatever ended it. Computes no statistic.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import recording, report
from ..engines.pool import RunningEngine
from ..errors import ParameterError, PocError, ReportError
from ..parameters import Parameters
from ..progress import Progress, quiet
from ..progress import bar as bar
from ..recording import ReportFile
from ..records import Report
from ..workload import sha256
from ..workload import texts as texts
from .pool import Measurable, open_pool
from .run import Run as Run
from .strategies import by_name


def measure(
    parameters: Parameters,
    progress: Progress = quiet,
    folder: Path | None = None,
    pool: Sequence[Measurable] | None = None,
    resume: bool = False,
    running: Mapping[str, RunningEngine] | None = None,
) -> Report:
    """Measure one strategy against the baseline, save the report and return it as read back.

    `pool` replaces the providers of `parameters` (for fakes), `running` are engines that several
    runs share. With `resume` (or that parameter) a run of the same parameters that was stopped at
    any moment goes on with what is missing, and one that is complete is not run again. Works
    inside a running event loop too, as in a notebook. Raises any `PocError`; whatever rounds were
    finished by then are saved in a report marked incomplete, and every request in the run's file.
    """
    by_name(parameters.strategy)
    path = run_path(parameters, folder)
    begun_s = time.monotonic()
    with recording.only_one(path.parent):
        kept = None
        if resume or parameters.resume:
            done, kept = _left(parameters, texts(parameters.prompts), folder, path)
            if done is not None:
                return done
        with open_pool(parameters, pool, running) as providers:
            # Engines take their time to start; a fake pool has none on its own clock.
            spent_s = time.monotonic() - begun_s if pool is None else 0.0
            return _saving(Run(parameters, providers, progress, kept, spent_s), path, folder)


def run_path(parameters: Parameters, folder: Path | None = None) -> Path:
    """Where the file of such a run is, while it goes on and after it was stopped."""
    name = f"{parameters.experiment}-{parameters.strategy}"
    return (folder or report.root() / "data") / "runs" / f"{name}.jsonl"


def obtain(parameters: Parameters, live: bool, progress: Progress = quiet) -> Report:
    """A notebook's report: measured now if `live`, else the saved one of that experiment.

    A live run never replaces the samples that notebooks are published with: left at the
    name "sample", it is saved as "live".
    """
    if not live:
        return report.load(f"{parameters.experiment}-{parameters.strategy}")
    if parameters.experiment == "sample":
        parameters = parameters.model_copy(update={"experiment": "live"})
    return measure(parameters, progress)


def _saving(run: Run, path: Path, folder: Path | None) -> Report:
    if run.kept is None and path.exists():  # left by a run that was cut: keep what it measured
        moment_s = int(path.stat().st_mtime)
        while (aside := path.with_suffix(f".{moment_s}.jsonl")).exists():
            moment_s += 1
        path.rename(aside)
    file = ReportFile(path)
    problem: BaseException | None = None
    with file.open(again=run.kept is not None):
        try:
            on_own_loop(lambda: run.whole(file))
        except BaseException as error:
            problem = error
        file.write({"state": recording.state(run.as_report(complete=problem is None))})
        file.sync()
    if problem is not None and not run.ratios:
        raise problem
    saved = recording.keep(path, _saved_path(path, folder))
    if problem is not None:
        raise problem
    path.unlink()  # its copy is the report now
    return report.load(saved)


def _saved_path(path: Path, folder: Path | None) -> Path:
    return (folder or report.root() / report.FOLDER) / path.name


def asked(parameters: Parameters, prompts: Sequence[str]) -> dict[str, Any]:
    """What decides whether two runs are one: the parameters and the prompts' digests.

    A run that was ended by its time limit may go on with a longer one.
    """
    counted = parameters.model_copy(update={"prompts": len(prompts)})
    wanted = counted.model_dump(mode="json", exclude={"run_limit_s"})
    return {**wanted, "prompts": [sha256(text) for text in prompts]}


def _asked_of(saved: Report) -> dict[str, Any]:
    if saved.parameters is None:
        return {}
    wanted = saved.parameters.model_dump(mode="json", exclude={"run_limit_s"})
    return {**wanted, "prompts": saved.prompt_sha256}


def finished(parameters: Parameters, prompts: Sequence[str], folder: Path | None) -> Report | None:
    """The complete report of a run that was asked for just this; None where there is none."""
    try:
        saved = report.load(f"{parameters.experiment}-{parameters.strategy}", folder)
    except ReportError:
        return None
    if not saved.complete or saved.parameters is None:
        return None
    return saved if _asked_of(saved) == asked(parameters, prompts) else None


def _left(
    parameters: Parameters, prompts: Sequence[str], folder: Path | None, path: Path
) -> tuple[Report | None, Report | None]:
    """The finished report of such a run, or else what an unfinished one has left in `path`.

    A run that was begun after the finished one and stopped is gone on with. The file of the
    finished one itself, which a kill between saving and removing leaves, is removed.
    Raises `ReportError` where the file is damaged, `ParameterError` where it was another run.
    """
    done = finished(parameters, prompts, folder)
    try:
        stopped = _stopped(parameters, prompts, path)
    except PocError:
        if done is None:
            raise
        return done, None  # of whatever other run it is, this one is done
    if stopped is None or (done is not None and stopped.created != done.created):
        return (None, stopped) if stopped is not None else (done, None)
    if done is None and stopped.complete:  # killed before it was put in its place
        recording.keep(path, _saved_path(path, folder))
        done = stopped
    if done is not None:
        path.unlink()
        return done, None
    return None, stopped


def _stopped(parameters: Parameters, prompts: Sequence[str], path: Path) -> Report | None:
    """What an unfinished run of these parameters has left; None where there is none."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        if not file.readline().endswith(b"\n"):
            return None  # stopped before its first line was whole
    left = report.load(path)
    was, now = _asked_of(left), asked(parameters, prompts)
    if other := sorted(key for key in now if was.get(key) != now[key]):
        other = other if was else ["it names none"]
        raise ParameterError(
            f"{path.name} is of a run with other parameters ({', '.join(other)}); "
            "run without --resume to start over (it is kept aside), or with those it had."
        )
    return left


def on_own_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own where this one has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    outcome: list[tuple[bool, Any]] = []
    task: asyncio.Task[Any] | None = None
    begun = threading.Event()

    async def watched() -> Any:
        nonlocal task
        task = asyncio.current_task()
        begun.set()
        return await work()

    def body() -> None:
        try:
            outcome.append((True, asyncio.run(watched())))
        except BaseException as error:
            outcome.append((False, error))

    thread = threading.Thread(target=body, name="poclib-run")
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        begun.wait()
        assert task is not None
        task.get_loop().call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    worked, value = outcome[0]
    if not worked:
        raise value
    return value
