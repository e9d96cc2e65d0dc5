"""Measure one strategy against the baseline and save a report; or go on with a stopped run.

Holds the folder, opens the providers, has `run` do the work with its file on disk, and saves what
came of it, whatever ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import recording, report
from ..engines.pool import RunningEngine, engine_pool
from ..errors import EngineError, ParameterError, ReportError
from ..parameters import Parameters, ProviderSettings, put
from ..progress import Progress, quiet
from ..progress import bar as bar
from ..providers import KINDS, Embedded, discover
from ..recording import ReportFile
from ..records import Report
from ..workload import sha256, texts
from .calibration import Measurable
from .run import Run as Run
from .strategies import STRATEGIES, by_name

# A rerun is saved beside the first, under its name behind this.
PREFIX = "rerun-"
# What of a provider a report leaves out.
PRIVATE = ("url", "api_key_env", "ca_file")
Pool = list[tuple[Measurable, dict[str, Any]]]


def measure(
    parameters: Parameters,
    progress: Progress = quiet,
    folder: Path | None = None,
    pool: Sequence[Measurable] | None = None,
    resume: bool = False,
    running: Mapping[str, RunningEngine] | None = None,
    kind: type[Run] = Run,
) -> Report:
    """Measure one strategy against the baseline, save the report and return it as read back.

    `pool` replaces the providers of `parameters` (for fakes), `running` are engines that several
    runs share; `kind` does the work. With `resume` (or that parameter) a run of the same parameters
    that was stopped at any moment goes on with what is missing, and one that is complete is not run
    again. Works inside a running event loop too, as in a notebook. Raises any `PocError`; whatever
    rounds were finished by then are saved in a report marked incomplete, and every request in the
    run's file.
    """
    by_name(parameters.strategy)
    path = run_path(parameters, folder)
    begun_s = time.monotonic()
    with recording.only_one(path.parent):
        left = _left(parameters, path, folder) if resume or parameters.resume else None
        if left is not None and left.complete:
            return left
        with open_pool(parameters, pool, running) as providers:
            # Engines take their time to start; a fake pool has none on its own clock.
            spent_s = time.monotonic() - begun_s if pool is None else 0.0
            run = kind(parameters, providers, progress, left, spent_s)
            if left is None and path.exists():  # of a run that was cut: keep what it measured
                path.rename(path.with_suffix(f".{time.time_ns()}.jsonl"))
            with ReportFile(path).open(again=left is not None) as file:
                try:
                    on_own_loop(lambda: run.whole(file))
                finally:
                    file.write({"state": recording.state(run.report)})
                    file.sync()
                    if run.report.complete or run.ratios:
                        _keep(path, folder, run.report.complete)
    return report.load(path.stem, folder)


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


def _keep(path: Path, folder: Path | None, complete: bool) -> None:
    """Copy a run's file to the reports; one that is complete is needed no more."""
    recording.keep(path, (folder or report.root() / report.FOLDER) / path.name)
    if complete:
        path.unlink()


def _left(parameters: Parameters, path: Path, folder: Path | None) -> Report | None:
    """What a run of these parameters has left in `path`, or else the finished report.

    Raises `ReportError` where the file is damaged, `ParameterError` where it was another run.
    """
    wanted = asked(parameters)
    if path.exists() and b"\n" in path.read_bytes():  # else it was stopped in its first line
        left = report.load(path)
        if other := _differences(left, wanted):
            raise ParameterError(
                f"{path.name} is of a run with other parameters ({', '.join(other)}); "
                "run without --resume to start over (it is kept aside), or with those it had."
            )
        if left.complete:  # killed before it was put in its place, or before its file was removed
            _keep(path, folder, complete=True)
        return left
    with contextlib.suppress(ReportError):
        saved = report.load(path.stem, folder)
        if saved.complete and not _differences(saved, wanted):
            return saved
    return None


def asked(parameters: Parameters, digests: Sequence[str] | None = None) -> dict[str, Any]:
    """What decides whether two runs are one: the parameters, and `digests` of the prompts.

    A run that was ended by its time limit may go on with a longer one.
    """
    if digests is None:
        digests = [sha256(text) for text in texts(parameters.prompts)]
    fields = parameters.model_dump(mode="json", exclude={"run_limit_s", "prompts"})
    return fields | {"prompts": list(digests)}


def _differences(saved: Report, wanted: Mapping[str, Any]) -> list[str]:
    """The parameters in which a saved run is another than the wanted one."""
    if saved.parameters is None:
        return ["it names none"]
    was = asked(saved.parameters, saved.prompt_sha256)
    return sorted(key for key in wanted if was[key] != wanted[key])


def on_own_loop(work: Callable[[], Any]) -> Any:
    """Run a coroutine to its end, in a thread of its own where this one has a loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    begun: Future[asyncio.Task[Any] | None] = Future()

    async def watched() -> Any:
        begun.set_result(asyncio.current_task())
        return await work()

    with ThreadPoolExecutor(1, "poclib-run") as thread:
        ended = thread.submit(lambda: asyncio.run(watched()))
        try:
            return ended.result()
        except KeyboardInterrupt:
            if task := begun.result():
                task.get_loop().call_soon_threadsafe(task.cancel)
            raise  # once the thread has ended


@contextlib.contextmanager
def open_pool(
    parameters: Parameters,
    pool: Sequence[Measurable] | None = None,
    running: Mapping[str, RunningEngine] | None = None,
) -> Iterator[Pool]:
    """The providers, ready to be asked, each with what is known of its embedded engine.

    That are fields of `ProviderFacts`, and `running`, the engine itself. Engines that are `running`
    already are used and left running; none is started then.
    Raises `EngineError` or `ParameterError` (a key's variable that is not set).
    """
    if pool is not None:
        yield [(provider, {}) for provider in pool]
        return
    with SharedEngines() as shared:
        engines = shared.of(parameters) if running is None else running
        yield [_opened(settings, parameters, engines) for settings in parameters.providers]


def _opened(
    settings: ProviderSettings, parameters: Parameters, running: Mapping[str, RunningEngine]
) -> tuple[Measurable, dict[str, Any]]:
    if not settings.ours:
        key, variable = None, settings.api_key_env
        if variable and not (key := os.environ.get(variable)):
            raise ParameterError(
                f"provider {settings.name}: the environment variable {variable} is not set; "
                f"export {variable}=… with its key."
            )
        if settings.kind == "auto":
            asked = settings
            settings = on_own_loop(lambda: discover.known(asked, parameters, key))
        return KINDS[settings.kind](settings, parameters, settings.url or "", key), {}
    engine = running[settings.name]
    # An engine behind a link plays the remote machine, unless it is told its role.
    role = settings.role or ("remote" if settings.link.round_trip_ms else "local")
    placed = settings.model_copy(update={"role": role})
    provider = Embedded(placed, parameters, engine.url, engine.api_key)
    provider.ports = engine.ports
    asked_for = ("engine_kind", "refuses", "threads", "speed", "link")
    got = ("engine", "model", "slots", "turns", "pinned")
    return provider, {
        **{key: getattr(settings, key) for key in asked_for},
        **{key: getattr(engine, key) for key in got},
        "shard": settings.shard and settings.shard.model_copy(update={"split": engine.split}),
        "digest": f"gguf:{engine.model_digest}",
        "core": engine.cores[0],
        "cores": len(engine.cores),
        "batching": settings.engine_kind == "batched",
        "running": engine,
    }


class SharedEngines(contextlib.ExitStack):
    """Embedded engines for several runs in turn, started anew only where others are asked for."""

    _asked: list[str] | None = None
    _running: Mapping[str, RunningEngine] = {}

    def of(self, parameters: Parameters) -> Mapping[str, RunningEngine]:
        """The engines by name; hand them to the run as `running`. Raises `EngineError`."""
        embedded = [p for p in parameters.providers if p.ours]
        same = {"adaptive": "off", "capacity": 1, "role": None}  # what no engine is started with
        wanted = [p.model_copy(update=same).model_dump_json() for p in embedded]
        wanted += [str(p.shard.at) for p in embedded if p.shard]  # which is never in a dump
        wanted.append(str(parameters.context_tokens))
        try:
            for engine in self._running.values():
                engine.check()
        except EngineError:
            self._asked = None
        if wanted != self._asked:
            self._asked, self._running = None, {}
            self.close()
            if embedded:
                started = self.enter_context(engine_pool(embedded, parameters.context_tokens))
                self._running = {engine.name: engine for engine in started}
            self._asked = wanted
        return self._running


def again(saved: Report, given: Mapping[str, Any], changes: Mapping[str, Any]) -> Parameters:
    """What `saved` was measured with. Addresses come from `given`, a file of parameters.

    `changes` by dotted key are on top. Raises `ReportError` where the report cannot be measured
    again, `ParameterError` where an address or the prompts are missing.
    """
    name, was = report.name(saved), saved.parameters
    if was is None or saved.strategy not in STRATEGIES:
        raise ReportError(f"{name} holds no parameters of a run, so it cannot be rerun.")
    known = {p.get("name"): p for p in given.get("providers") or () if isinstance(p, dict)}
    values = was.model_dump() | {
        "experiment": f"{PREFIX}{saved.experiment.removeprefix(PREFIX)}"[:64],
        "strategy": saved.strategy,
        "prompts": saved.prompts or len(saved.prompt_sha256),
    }
    for provider in values["providers"]:
        provider.update({key: known.get(provider["name"], {}).get(key) for key in PRIVATE})
    for key, value in changes.items():
        put(values, key, value)
    where = f"rerun of {name} (addresses: --params FILE, or --set NAME.url=…)"
    parameters = Parameters.read(values, where)
    # Where texts were not stored, the built-in ones stand in if their digests fit.
    now = [sha256(text) for text in texts(parameters.prompts)]
    if "prompts" not in changes and now != saved.prompt_sha256:
        raise ParameterError(
            f"{name}: its prompts were not stored, and they are not the built-in ones; "
            "give them with --set prompts=FILE."
        )
    return parameters
