"""Measure one strategy against the baseline and save a report; or go on with a stopped run.

The measuring half's top: holds the folder, opens the pool, has `run` do the work with its journal
on disk, and saves what came of it, whatever ended it. Computes no statistic.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from . import journal as journals
from . import report
from . import resume as going_on
from .engines import RunningEngine
from .journal import Journal
from .pool import Measurable, open_pool
from .progress import Progress, quiet
from .progress import bar as bar  # notebooks take it from here
from .records import (
    Parameters,
    Report,
)
from .run import Run as Run
from .strategies import by_name
from .workload import texts as texts


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
    finished by then are saved in a report marked incomplete, and every request in the run's
    journal.
    """
    by_name(parameters.strategy)
    path = journal_path(parameters, folder)
    begun_s = time.monotonic()
    with journals.only_one(path.parent):
        kept = None
        if resume or parameters.resume:
            prompts = texts(parameters.prompts)
            done, kept = going_on.left(parameters, prompts, folder, path)
            if done is not None:
                return done
        with open_pool(parameters, pool, running) as providers:
            # Engines take their time to start; a fake pool has none on its own clock.
            spent_s = time.monotonic() - begun_s if pool is None else 0.0
            return _saving(Run(parameters, providers, progress, kept, spent_s), path, folder)


def journal_path(parameters: Parameters, folder: Path | None = None) -> Path:
    """Where the journal of such a run is, while it goes on and after it was stopped."""
    name = f"{parameters.experiment}-{parameters.strategy}"
    return (folder or report.root() / "data" / "runs") / f"{name}.jsonl"


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
    journal = Journal(path)
    problem: BaseException | None = None
    with journal.open(
        going_on.asked(run.parameters, run.texts) | run.header, again=run.kept is not None
    ):
        try:
            on_own_loop(lambda: run.whole(journal))
        except BaseException as error:
            problem = error
    if problem is not None and not run.rounds:
        raise problem
    saved = report.save(run.as_report(complete=problem is None), folder)
    if problem is not None:
        raise problem
    loaded = report.load(str(saved))
    path.unlink()  # every row of it is in the report now
    return loaded


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
