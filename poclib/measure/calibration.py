"""Who is there, is the work equal, how fast is each provider alone, and how much it holds at once.

All that comes before the rounds, and how any arm is kept in the file while it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Protocol

from .. import contention, pacing, workload
from ..contention import Found, Level, best_of, conclude, level, lost, next_in_flight
from ..errors import PocError, ProviderError, RunFailed, UnlikeProviders
from ..parameters import Parameters
from ..progress import Progress, quiet
from ..recording import ReportFile
from ..records import Arm, ArmName, Probe, Prompt, ProviderFacts, Report, Request
from ..report import NO_ROUND
from . import forecast
from .attempt import Policy, Rules, Sender, attempt
from .dispatch import run_arm
from .machine import EngineSampler
from .strategies import STRATEGIES

Clock = Callable[[], float]
# Round trips taken of each provider before every arm.
PROBES = 5
# What must stay the same of a provider for its times to be of one kind.
SAME = ("model", "digest", "server", "engine", "context_tokens")
MOST_IN_FLIGHT = 64
# Requests of a capacity level: enough that two loads are answered while a third is handed out.
LEAST_REQUESTS, LOADS = 4, 3
# A level may take so much longer than its requests would one at a time; then it has lost clearly.
PATIENCE = 5


class Measurable(Sender, Protocol):
    """What an experiment needs of a provider, real or fake."""

    async def describe(self) -> ProviderFacts: ...
    async def probe(self, clock: Clock) -> Probe | None: ...
    async def aclose(self) -> None: ...


class Calibration:
    """The providers of an experiment, and what is known of them before the first round."""

    def __init__(
        self,
        parameters: Parameters,
        providers: Sequence[tuple[Measurable, dict[str, Any]]],
        progress: Progress = quiet,
        kept: Report | None = None,
        spent_s: float = 0.0,
    ) -> None:
        """`kept` is what a stopped run left, `spent_s` what of the time limit is gone already."""
        self.parameters, self.kept = parameters, kept
        self.senders = {provider.name: provider for provider, _ in providers}
        self._known = {provider.name: dict(facts) for provider, facts in providers}
        self._engines = {name: facts.pop("running", None) for name, facts in self._known.items()}
        self.texts = workload.texts(parameters.prompts)
        self.facts: list[ProviderFacts] = []
        self.problems: dict[str, str] = {}  # of the providers that do not say who they are
        self.expected_ms: dict[str, float] = {}
        self.preparation = list(kept.preparation) if kept else []
        self.probes = list(kept.probes) if kept else []
        self.resumed_ms = list(kept.resumed_ms) if kept else []
        self._file = ReportFile()
        # Of each session its own: what one before has sent may be in a server's cache.
        self._salt = secrets.token_hex(2)
        self._next_mark = secrets.randbelow(workload.MARKS)
        self._marks: dict[tuple[str, ...], int] = {}
        rounds = (*kept.rounds, *kept.cut) if kept else ()
        arms = [*self.preparation, *(arm for round_ in rounds for arm in round_.arms)]
        ends_ms = [row.marks.end_ms or 0.0 for arm in arms for row in arm.requests]
        self._progress, self._done, self._expected = progress, len(ends_ms), 0
        self._limit_s = max(0.0, parameters.run_limit_s - spent_s)
        now = datetime.datetime.now(datetime.UTC)
        self.created = kept.created if kept else now.isoformat(timespec="milliseconds")
        # Where a stopped run goes on, its clock goes on too, past the time it stood still.
        still = now - datetime.datetime.fromisoformat(self.created)
        probed_ms = [probe.at_ms for probe in self.probes]
        past_ms = max([still.total_seconds() * 1000, *ends_ms, *probed_ms])
        self._begun_ms = past_ms if kept else 0.0
        self._anchor_s = time.perf_counter()

    def real_ms(self) -> float:
        """Milliseconds since the anchor, on the machine's own clock."""
        return self._begun_ms + (time.perf_counter() - self._anchor_s) * 1000

    def clock(self) -> float:
        """Milliseconds since the anchor, on the loop's own clock where it is a fake one."""
        fake = fake_clock()
        return self._begun_ms + fake() if fake else self.real_ms()

    @property
    def rules(self) -> Rules:
        p = self.parameters
        return Rules(
            retries=p.retries,
            request_timeout_s=p.request_timeout_s,
            first_token_timeout_s=p.first_token_timeout_s if p.stream else inf,
            between_tokens_timeout_s=p.between_tokens_timeout_s if p.stream else inf,
            deadline_ms=self._begun_ms + self._limit_s * 1000,
            store_text=p.store_text,
            policy=Policy(
                backoff_s=p.backoff_s,
                breaker_failures=p.breaker_failures,
                breaker_pause_s=p.breaker_pause_s,
                hedge_after=p.hedge_after if p.hedge else None,
            ),
        )

    async def aclose(self) -> None:
        """Close all connections."""
        for sender in self.senders.values():
            await sender.aclose()

    async def examine(self, capacity: bool) -> tuple[dict[str, str], dict[str, Found]]:
        """The problem of each provider that cannot be used; with `capacity`, capacities found.

        Where no provider has a problem, all are calibrated. Connections are closed at the end.
        """
        try:
            await self.describe()
            await self.prepare()
            return {}, await self.capacities() if capacity else {}
        except PocError:
            if not self.problems:
                raise
            return self.problems, {}
        finally:
            await self.aclose()

    async def describe(self) -> None:
        """Ask every provider who it is. Raises `ProviderError`, or `UnlikeProviders`."""
        answers = await self._ask(self.senders)
        self.facts = [facts for facts in answers.values() if isinstance(facts, ProviderFacts)]
        failed = {name: e for name, e in answers.items() if isinstance(e, BaseException)}
        self.problems = {name: str(error) for name, error in failed.items()}
        for error in failed.values():
            raise error
        if not self.parameters.allow_unlike_models:
            check_alike(self.facts)
        before = {facts.name: facts for facts in self.kept.providers} if self.kept else {}
        for fact in self.facts:
            if difference := differs(before.get(fact.name, fact), fact):
                raise UnlikeProviders(
                    f"provider {fact.name} is not what it was before the stop ({difference}), so "
                    "its times cannot be mixed; run without --resume to start over."
                )

    async def changed(self, names: Collection[str]) -> list[str]:
        """A sentence for each provider that says it is another by now; silence is no change."""
        answers = await self._ask(names, self.parameters.connect_timeout_s)
        return [
            f"provider {was.name} was changed during the run ({difference})"
            for was in self.facts
            if isinstance(now := answers.get(was.name), ProviderFacts)
            if (difference := differs(was, now))
        ]

    async def _ask(
        self, names: Collection[str], limit_s: float | None = None
    ) -> dict[str, ProviderFacts | BaseException]:
        """Who each provider says it is, or why it does not say it; all are asked at once."""
        calls = [asyncio.wait_for(self.senders[name].describe(), limit_s) for name in names]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        by_name = dict(zip(names, answers, strict=True))
        for name, answer in by_name.items():
            if isinstance(answer, ProviderFacts):
                by_name[name] = answer.model_copy(update=self._known[name])
        return by_name

    async def prepare(self) -> None:
        """Warm every provider up, then time each alone: `expected_ms` is the time of one request.

        Where a stopped run goes on, its calibration is kept, and its engines are warmed anew.
        Raises `RunFailed` where a provider answers nothing.
        """
        p = self.parameters
        session = f" s{len(self.resumed_ms)}" if self.kept else ""
        steps: list[tuple[ArmName, int, str]] = [
            ("warm-up", p.warm_up_prompts, session),
            ("calibration", p.calibration_prompts, ""),
        ]
        answered = {}
        for arm, count, which in steps:
            for name in self.senders:
                rows = await self.alone(arm, name, count, which)
                answered[name] = [row for row in rows if row.outcome == "ok" and row.wall_ms]
                if rows and not answered[name]:
                    raise RunFailed(rows[0].error or f"provider {name} does not answer.")
        self.expected_ms = forecast.expected_ms(answered)

    async def alone(self, arm: ArmName, name: str, count: int, which: str) -> list[Request]:
        """`count` requests, one at a time, with the same texts to each provider.

        Those that a stopped run has answered are kept.
        """
        turn = f"{name}{which}"
        kept = [a.requests for a in self.preparation if (a.arm, a.turn) == (arm, turn)]
        rows = [row for requests in kept for row in requests if row.outcome == "ok"]
        if len(rows) < count:
            # Two names for one address share a cache: each has texts of its own.
            urls = {p.name: p.url for p in self.parameters.providers if p.url}
            twins = [other for other in urls if urls[other] == urls.get(name)]
            same = (arm, which, str(twins.index(name) if twins else 0))
            prompts = self._prompts(arm, turn, count, same)[len(rows) :]
            begun = Arm(arm=arm, turn=turn, strategy="sequential", limits={name: 1})
            async with self._kept(begun, [name]):
                for prompt in prompts:
                    self._count(await attempt(self.senders[name], prompt, self.clock, self.rules))
            rows += self.preparation[-1].requests
        return rows

    def tokens_per_s(self) -> dict[str, float]:
        """Output tokens over wall time of each provider's calibration, where they are known."""
        calibrated = forecast.calibrated(self.preparation)
        rates = {name: contention.alone(rows).tokens_per_s for name, rows in calibrated.items()}
        return {name: rate for name, rate in rates.items() if rate}

    async def capacities(self, most: int = MOST_IN_FLIGHT) -> dict[str, Found]:
        """What each provider, already prepared, does with 1, 2, 4, … requests at once.

        One provider after the other, so that they cannot be in each other's way. Every level is
        kept as an arm of the preparation.
        """
        capacities = {}
        for name in self.senders:
            seen: list[Level] = []
            while (in_flight := next_in_flight(seen, most)) is not None:
                last = await self._level(name, in_flight)
                if lost(last, seen):  # another program may have been in the way: twice is clear
                    last = best_of([last, await self._level(name, in_flight, " again")])[0]
                seen.append(last)
            # All else is held against one alone, so that is measured at both ends: else a machine
            # that was busy in the beginning would seem to batch.
            seen.append(await self._level(name, 1, " again"))
            capacities[name] = conclude(best_of(seen))
        return capacities

    async def _level(self, name: str, in_flight: int, which: str = "") -> Level:
        """Requests to one provider, `in_flight` at once; none is sent again, to see refusals."""
        count, turn = max(LEAST_REQUESTS, LOADS * in_flight), f"{name} {in_flight}{which}"
        limits, policy = {name: in_flight}, Policy(breaker_failures=count + 1)
        begun = Arm(arm="capacity", turn=turn, strategy="shared-queue", limits=limits)
        async with self._kept(begun, [name]):
            until_ms = self.clock() + PATIENCE * count * self.expected_ms[name] + 2000
            until_ms = min(until_ms, self.rules.deadline_ms)
            await run_arm(
                "capacity",
                STRATEGIES["shared-queue"],
                self._prompts("capacity", turn, count),
                [self.senders[name]],
                limits,
                self.expected_ms,
                self.clock,
                replace(self.rules, retries=0, policy=policy, deadline_ms=until_ms),
                self._count,
                keep_rows=False,
            )
        return level(self.preparation[-1].requests, in_flight)

    @contextlib.asynccontextmanager
    async def _kept(
        self, begun: Arm, names: Collection[str], index: int = NO_ROUND, stage: str = ""
    ) -> AsyncIterator[dict[str, Any]]:
        """Probe, then keep what happens to an arm in the file; whole where nothing is raised.

        What is put into the dictionary, fields of `Arm`, is noted with its end. Raises `RunFailed`
        where time is over or, in a round, where its answers are none to count with.
        """
        await self._probe(names if index == NO_ROUND else self.senders)
        self._stage = stage or f"{begun.arm} of {begun.turn}"
        self._span, self._error = pacing.Span(), ""
        self._rows: list[Request] | None = [] if index == NO_ROUND else None
        begin = {"strategy": begun.strategy, "limits": begun.limits}
        self._file.write({"arm": begun.arm, "round": index, "turn": begun.turn, "begin": begin})
        end: dict[str, Any] = {}
        pids = {name: getattr(self._engines[name], "pids", ()) for name in names}
        with EngineSampler(pids) as sampler:
            yield end
        if self.clock() >= self.rules.deadline_ms:
            limit_s = self.parameters.run_limit_s
            raise RunFailed(f"the run reached run_limit_s ({limit_s:g} s) in {self._stage}.")
        if self._rows is None:
            if not self._span.answered:
                raise RunFailed(f"{stage}: {self._error or 'no prompt was answered.'}")
            if changed := await self.changed(names):
                raise RunFailed(
                    f"{stage}: {changed[0]}, so answers of this arm may be of two kinds; the "
                    "rounds before it are kept. Run again."
                )
        end["engines"] = [use.model_dump() for use in sampler.used]
        self._file.write({"end": end})
        self._file.sync()
        if self._rows is not None:
            update = {"engines": sampler.used, "requests": self._rows}
            self.preparation.append(begun.model_copy(update=update))

    def _count(self, request: Request) -> None:
        """Have a request on disk before the next one is sent, and tell the progress."""
        self._file.write({"request": request.model_dump(exclude_none=True)})
        self._span.add(request)
        self._error = request.error or self._error
        if self._rows is not None:
            self._rows.append(request)
        self._done += 1
        self._expected = max(self._expected, self._done)
        self._progress(self._stage, self._done, self._expected)

    async def _probe(self, names: Iterable[str]) -> None:
        """Round trips on a warm connection; as a side effect each connection is warm."""
        for name in names:
            for _ in range(PROBES):
                try:
                    async with asyncio.timeout(self.parameters.connect_timeout_s):
                        trip = await self.senders[name].probe(self.clock)
                except (ProviderError, TimeoutError):
                    break  # whether it can answer prompts is for the requests to show
                if trip is not None:
                    self.probes.append(trip)
                    self._file.write({"probe": trip.model_dump()})

    @property
    def marked(self) -> bool:
        """Whether texts need marks: some server's cache cannot be switched off by a request."""
        return not all(facts.cache_defeated for facts in self.facts)

    def _prompts(
        self, arm: str, turn: str, count: int, same: tuple[str, ...] | None = None
    ) -> list[Prompt]:
        """The texts of an arm, under a salt and, where needed, marks that no text before had.

        All who give an equal `same` get the same marks.
        """
        key = same or (arm, turn)
        if key not in self._marks:
            self._marks[key] = self._next_mark
            self._next_mark = (self._next_mark + count) % workload.MARKS
        first = self._marks[key] if self.marked else None
        return workload.prompts(self.texts, count, f"{self._salt}:{arm}:{turn}", first)


def fake_clock() -> Clock | None:
    """The running loop's own clock where it is a fake one, in milliseconds."""
    return getattr(asyncio.get_running_loop(), "clock_ms", None)


def check_alike(facts: Sequence[ProviderFacts]) -> None:
    """Raise `UnlikeProviders` where two digests of the same scheme differ: unequal work."""
    first: dict[str, ProviderFacts] = {}
    for fact in facts:
        digest = fact.digest or ""
        other = first.setdefault(digest.partition(":")[0], fact)
        if digest and digest != other.digest:
            raise UnlikeProviders(
                f"providers {other.name} and {fact.name} hold different models "
                f"({other.digest:.19} and {digest:.19}): their work would not be equal; load the "
                "same model on both, or set allow_unlike_models: true if that is meant."
            )


def differs(was: ProviderFacts, now: ProviderFacts) -> str:
    """What is another, and how: digest x, now y. Empty where its times are of one kind."""
    pairs = [(key, getattr(was, key), getattr(now, key)) for key in SAME]
    return ", ".join(f"{key} {old}, now {new}" for key, old, new in pairs if old != new)
