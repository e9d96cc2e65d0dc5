"""Run one experiment: warm-up, calibration, interleaved rounds; measure and save a report.

The measuring half's top: starts embedded engines, asks every provider who it is, refuses
unequal work, measures, and hands facts to `report`. Computes no statistic.
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import psutil

from . import __version__, report
from .adaptive import AdaptiveLimit
from .dispatch import Journal, Rules, attempt, run_arm
from .errors import ParameterError, ProviderError, RunFailed
from .pool import Clock, Measurable, check_alike, open_pool
from .progress import Progress, quiet
from .progress import bar as bar  # notebooks take it from here
from .records import (
    Arm,
    ArmName,
    Parameters,
    Probe,
    Prompt,
    ProviderFacts,
    Report,
    Request,
    Round,
)
from .strategies import STRATEGIES, Limit, Strategy, simulated_makespan_ms
from .usage import Sampler

T = TypeVar("T")
# Round trips taken of each provider before every arm.
PROBES = 5


def texts(prompts: int | list[str] | str) -> list[str]:
    """The prompts: the first n built-in ones (again and again), a list, or a file's lines.

    Raises `ParameterError` for a file that cannot be read or holds none.
    """
    if isinstance(prompts, str):
        try:
            found = Path(prompts).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise ParameterError(f"prompts: cannot read {prompts!r} as a text file.") from None
        prompts = [line.strip() for line in found if line.strip()]
    if isinstance(prompts, list):
        if not prompts:
            raise ParameterError("prompts: there is none; give a number, a list or a file.")
        return prompts
    built_in = resources.files(__package__).joinpath("prompts.txt").read_text("utf-8").splitlines()
    return [built_in[i % len(built_in)] for i in range(prompts)]


def measure(
    parameters: Parameters,
    progress: Progress = quiet,
    folder: Path | None = None,
    pool: Sequence[Measurable] | None = None,
) -> Report:
    """Measure one strategy against the baseline, save the report and return it as read back.

    `pool` replaces the providers of `parameters` (for fakes). Works inside a running event
    loop too, as in a notebook. Raises any `PocError`; whatever rounds were finished by then
    are saved in a report marked incomplete.
    """
    if parameters.strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise ParameterError(f"strategy: no {parameters.strategy!r}; there are: {known}.")
    with open_pool(parameters, pool) as providers:
        run = Run(parameters, providers, progress)
        return _saving(run, folder)


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


def _saving(run: Run, folder: Path | None) -> Report:
    path = (folder or report.root() / "data" / "runs") / f"{run.name}.jsonl"
    if path.exists():  # left by a run that was cut: keep what it measured
        path.rename(path.with_suffix(f".{int(path.stat().st_mtime)}.jsonl"))
    journal = Journal(path)
    problem: BaseException | None = None
    with journal.open({"format": "poclib-journal", "version": 1, "run": run.name}):
        try:
            on_own_loop(lambda: run.whole(journal))
        except BaseException as error:
            if not run.rounds:
                raise
            problem = error
    saved = report.save(run.as_report(complete=problem is None), folder)
    if problem is not None:
        raise problem
    path.unlink()  # every row of it is in the report now
    return report.load(str(saved))


class Run:
    """One experiment while it runs: what it has found so far, and the steps in order."""

    def __init__(
        self,
        parameters: Parameters,
        providers: Sequence[tuple[Measurable, dict[str, Any]]],
        progress: Progress = quiet,
    ) -> None:
        self.parameters = parameters
        self.name = f"{parameters.experiment}-{parameters.strategy}"
        self.senders = {provider.name: provider for provider, _ in providers}
        self.known = {provider.name: dict(facts) for provider, facts in providers}
        self._pids = {name: facts.pop("pids", ()) for name, facts in self.known.items()}
        self.texts = texts(parameters.prompts)
        self.strategy = STRATEGIES[parameters.strategy]
        self.environment = environment()
        self.created = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        self._anchor_s = time.perf_counter()
        self.facts: list[ProviderFacts] = []
        self.expected_ms: dict[str, float] = {}
        self.preparation: list[Arm] = []
        self.probes: list[Probe] = []
        self.rounds: list[Round] = []
        self._salt = secrets.token_hex(2)
        self._progress = progress
        self._done = 0
        self._expected = len(self.senders) * (
            parameters.warm_up_prompts + parameters.calibration_prompts
        ) + parameters.rounds * (2 * len(self.texts) + len(self.senders))

    def clock(self) -> float:
        """Milliseconds since the anchor, on the loop's own clock where it is a fake one."""
        loop = asyncio.get_running_loop()
        fake: Clock | None = getattr(loop, "clock_ms", None)
        return fake() if fake else (time.perf_counter() - self._anchor_s) * 1000

    @property
    def rules(self) -> Rules:
        p = self.parameters
        return Rules(p.retries, p.request_timeout_s, p.run_limit_s * 1000, p.store_text)

    async def whole(self, journal: Journal) -> None:
        """All steps: who is there, is it equal work, warm up, calibrate, then the rounds."""
        try:
            await self.describe()
            await self.prepare(journal)
            for index in range(self.parameters.rounds):
                self.rounds.append(await self._round(index, journal))
                # Machines drift: one more request alone on each tells how fast it is by now.
                for sender in self.senders.values():
                    await self._alone("calibration", sender, 1, journal, f"{sender.name} {index}")
        finally:
            for sender in self.senders.values():
                await sender.aclose()

    async def describe(self) -> list[ProviderFacts]:
        """Ask every provider who it is, and refuse unlike models.

        Raises `ProviderError` or `UnlikeProviders`.
        """
        asked = (sender.describe() for sender in self.senders.values())
        found = await asyncio.gather(*asked, return_exceptions=True)
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
            self.facts.append(answer.model_copy(update=self.known[answer.name]))
        if not self.parameters.allow_unlike_models:
            check_alike(self.facts)
        return self.facts

    async def prepare(self, journal: Journal | None = None) -> None:
        """Warm every provider up, then time each alone: `expected_ms` is its mean wall.

        What strategies decide by; the baseline's provider is chosen here, once for all rounds.
        Raises `RunFailed` where a provider answers nothing.
        """
        p = self.parameters
        for arm, count in (("warm-up", p.warm_up_prompts), ("calibration", p.calibration_prompts)):
            for sender in self.senders.values():
                rows = await self._alone(arm, sender, count, journal)  # type: ignore[arg-type]
                walls = [r.wall_ms for r in rows if r.outcome == "ok" and r.wall_ms is not None]
                if not walls and count:
                    raise RunFailed(rows[0].error or f"provider {sender.name} does not answer.")
                if arm == "calibration":
                    self.expected_ms[sender.name] = sum(walls) / len(walls)

    async def _alone(
        self,
        arm: ArmName,
        sender: Measurable,
        count: int,
        journal: Journal | None,
        turn: str = "",
    ) -> list[Request]:
        await self._probe([sender])
        rows = []
        for prompt in self._prompts(arm, turn or sender.name, count):
            rows.append(await attempt(sender, prompt, self.clock, self.rules))
            self._count(f"{arm} of {sender.name}", arm, -1, rows[-1], journal)
        self.preparation.append(
            Arm(arm=arm, strategy="sequential", limits={sender.name: 1}, requests=rows)
        )
        return rows

    async def _round(self, index: int, journal: Journal) -> Round:
        """Baseline and strategy once each, the order alternating from round to round."""
        baseline, strategy = ("baseline", STRATEGIES["sequential"]), ("strategy", self.strategy)
        order = [baseline, strategy] if index % 2 == 0 else [strategy, baseline]
        arms = []
        for arm, chosen in order:
            arms.append(await self._arm(index, arm, chosen, journal))  # type: ignore[arg-type]
        return Round(index=index, arms=arms)

    async def _arm(self, index: int, arm: ArmName, chosen: Strategy, journal: Journal) -> Arm:
        senders = list(self.senders.values())
        if arm == "baseline":
            senders = [self.senders[self.fastest]]
        await self._probe(list(self.senders.values()))
        stage = f"round {index + 1} of {self.parameters.rounds}, {arm}"
        limit_ms = self.clock() + 1000 * (self.parameters.arm_limit_s or float("inf"))
        rules = replace(self.rules, deadline_ms=min(self.rules.deadline_ms, limit_ms))
        with Sampler({s.name: self._pids[s.name] for s in senders}) as sampler:
            done = await run_arm(
                arm,
                chosen,
                self._prompts(f"{arm}", str(index), len(self.texts)),
                senders,
                self._limits(chosen.limit, [s.name for s in senders]),
                self.expected_ms,
                self.clock,
                rules,
                lambda request: self._count(stage, arm, index, request, journal),
                self._live(chosen.limit, [s.name for s in senders]),
            )
        found = {
            "engines": sampler.used,
            "cut_ms": self.clock() if self.clock() >= limit_ms else None,
        }
        done = done.model_copy(update=found)
        answered = {r.prompt for r in done.requests if r.outcome == "ok"}
        if self.clock() >= self.rules.deadline_ms:
            limit_s = self.parameters.run_limit_s
            raise RunFailed(f"the run reached run_limit_s ({limit_s:g} s) in {stage}.")
        if not answered and done.cut_ms is None:
            raise RunFailed(f"{stage}: {done.requests[-1].error or 'no prompt was answered.'}")
        return done

    @property
    def fastest(self) -> str:
        return min(self.expected_ms, key=lambda name: self.expected_ms[name])

    def tokens_per_s(self) -> dict[str, float]:
        """Output tokens over wall time of each provider's calibration, where it counts them."""
        found = {}
        for arm in self.preparation:
            rows = [r for r in arm.requests if r.outcome == "ok" and arm.arm == "calibration"]
            wall_ms = sum(r.wall_ms or 0 for r in rows)
            tokens = sum(r.output_tokens or 0 for r in rows)
            if tokens and wall_ms:
                found[rows[0].provider] = 1000 * tokens / wall_ms
        return found

    def _prompts(self, arm: str, turn: str, count: int) -> list[Prompt]:
        """The texts of an arm; both arms of a round get the same, to compare their answers.

        Where some server's cache cannot be switched off by a request, each text begins with a
        mark of its round, so that no prefix of an earlier one fits.
        """
        turn_mark = turn if arm in ("baseline", "strategy") else f"{arm} {turn}"
        cached = not all(facts.cache_defeated for facts in self.facts)
        return [
            Prompt(
                i,
                f"[{turn_mark}.{i} {self._salt}] {text}" if cached else text,
                f"{self._salt}/{arm}/{turn}",
            )
            for i, text in enumerate(self.texts[i % len(self.texts)] for i in range(count))
        ]

    def _limits(self, limit: Limit, names: Sequence[str]) -> dict[str, int] | None:
        if limit == "none":
            return None
        facts = {f.name: f for f in self.facts}
        slots = {n: f.slots or f.capacity for n, f in facts.items()}
        capacity = {n: f.capacity for n, f in facts.items()}
        return {n: {"one": 1, "capacity": capacity[n], "slots": slots[n]}[limit] for n in names}

    def _live(self, limit: Limit, names: Sequence[str]) -> dict[str, AdaptiveLimit]:
        """The limits that move: from the strategy's down, or without one from 1 up if forced."""
        fixed = self._limits(limit, names)
        wanted = {s.name: s.adaptive for s in self.parameters.providers}
        found = {}
        for name in names:
            if fixed is not None and wanted.get(name, "off") != "off":
                ends = fixed[name], fixed[name]
            elif fixed is None and wanted.get(name) == "forced":
                ends = 1, len(self.texts)
            else:
                continue
            found[name] = AdaptiveLimit(name, self.expected_ms[name], *ends)
        return found

    async def _probe(self, senders: Sequence[Measurable]) -> None:
        """Round trips on a warm connection; as a side effect each connection is warm."""
        for sender in senders:
            for _ in range(PROBES):
                try:
                    async with asyncio.timeout(self.parameters.connect_timeout_s):
                        trip_ms = await sender.probe(self.clock)
                except (ProviderError, TimeoutError):
                    break  # whether it can answer prompts is for the requests to show
                if trip_ms is not None:
                    self.probes.append(
                        Probe(provider=sender.name, at_ms=self.clock(), round_trip_ms=trip_ms)
                    )

    def _count(
        self, stage: str, arm: str, index: int, request: Request, journal: Journal | None
    ) -> None:
        if journal:
            journal.write({"arm": arm, "round": index, "request": request.model_dump()})
        self._done += 1
        self._expected = max(self._expected, self._done)
        self._progress(stage, self._done, self._expected)

    def as_report(self, complete: bool = True) -> Report:
        """What was found so far, as facts."""
        p = self.parameters
        return Report(
            experiment=p.experiment,
            strategy=p.strategy,
            created=self.created,
            poclib=__version__,
            # A number only: the texts are in `prompts` if wanted, a file's name nowhere.
            parameters=p.model_copy(update={"prompts": len(self.texts)}),
            environment=self.environment,
            providers=self.facts,
            prompt_sha256=[hashlib.sha256(text.encode()).hexdigest() for text in self.texts],
            prompts=self.texts if p.store_text else None,
            fastest=self.fastest if self.expected_ms else None,
            gate_max_ratio=p.gate_max_ratio,
            band=p.band,
            preparation=self.preparation,
            probes=self.probes,
            rounds=self.rounds,
            complete=complete,
        )


def environment() -> dict[str, Any]:
    """What the coordinator ran on: no host name, user or path."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_gib, 1),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


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


def predicted_ratios(run: Run) -> dict[str, float]:
    """Ratio to the baseline of each strategy, from calibration alone, before anything runs.

    Knows nothing of batching or contention: what it leaves out is what a run measures.
    """
    base_ms = min(run.expected_ms.values()) * len(run.texts)
    ratios = {}
    for name, strategy in STRATEGIES.items():
        limits = run._limits(strategy.limit, list(run.senders)) or {}
        if strategy.limit in ("one", "capacity"):
            ratios[name] = (
                simulated_makespan_ms(strategy, len(run.texts), run.expected_ms, limits) / base_ms
            )
    return ratios
