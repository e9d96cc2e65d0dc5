"""Who is there, is the work equal, how fast is each provider alone, and how much it holds at once.

All that comes before the rounds, and how any arm is kept in the file while it goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import Any, Protocol

from .. import __version__, pacing, workload
from ..contention import Found, Level, best_of, conclude, level, lost, next_in_flight
from ..errors import ProviderError, RunFailed, UnlikeProviders
from ..parameters import Parameters
from ..progress import Progress, quiet
from ..recording import ReportFile
from ..records import Arm, ArmName, Probe, Prompt, ProviderFacts, Report, Request
from ..report import NO_ROUND
from . import forecast
from .adaptive import AdaptiveLimit
from .attempt import Policy, Rules, Sender
from .beside import HERE, host, side_by_side
from .dispatch import run_arm
from .machine import EngineSampler, environment
from .strategies import STRATEGIES, THROUGH_ROUTER

Clock = Callable[[], float]
# Round trips taken of each provider before every arm of a round; one warms a connection.
PROBES = 5
# What must stay the same of a provider for its times to be of one kind.
SAME = ("model", "digest", "server", "engine", "context_tokens")
MOST_IN_FLIGHT, QUESTIONS = 64, 64  # at one provider; who are asked at once, which is not timed
# Requests of a capacity level: enough that two loads are answered while a third is handed out.
LEAST_REQUESTS, LOADS = 4, 3
# A level may take so much longer than its requests would one at a time; then it has lost clearly.
PATIENCE = 5


class Measurable(Sender, Protocol):
    """What an experiment needs of a provider, real or fake."""

    async def describe(self) -> ProviderFacts: ...
    async def probe(self, clock: Clock) -> Probe | None: ...
    async def aclose(self) -> None: ...


@dataclass(eq=False)
class Calibration:
    """The providers of an experiment, and what is known of them before the first round.

    `providers` are pairs as of `experiment.open_pool`, `kept` is what a stopped run left, and
    `spent_s` what of the time limit is gone already. `report` has all facts by now, but for rounds
    of this session: those are in the file only.
    """

    parameters: Parameters
    providers: Sequence[tuple[Measurable, dict[str, Any]]]
    progress: Progress = quiet
    kept: Report | None = None
    spent_s: float = 0.0

    def __post_init__(self) -> None:
        p = self.parameters
        self.senders = {provider.name: provider for provider, _ in self.providers}
        self.routers = [p.name for p in p.providers if p.router_of]
        self.calibrated = [name for name in self.senders if name not in self.routers]
        self._known = {provider.name: facts for provider, facts in self.providers}
        self._urls = {settings.name: settings.url for settings in p.providers if settings.url}
        self._engines = {n: f["running"] for n, f in self._known.items() if "running" in f}
        hosts = {name: host(self._urls.get(name)) for name in self.senders}
        self._machines = {n: HERE if n in self._engines else hosts[n] or n for n in hosts}
        self.texts = workload.texts(p.prompts)
        now = datetime.now(UTC)
        self.report = self.kept or begun(p, self.texts, now)
        self.problems: dict[str, str] = {}  # of providers that do not say who they are
        self.expected_ms = dict.fromkeys(self.senders, 0.0)
        self._file = ReportFile()
        # Of each session its own: what one before has sent may be in a server's cache.
        self._salt = secrets.token_hex(2)
        self._next_mark = secrets.randbelow(workload.MARKS)
        self._marks: dict[str, int] = {}
        rounds = [each.arms for each in (*self.report.rounds, *self.report.cut)]
        arms = itertools.chain(self.report.preparation, *rounds)
        ends_ms = [row.marks.end_ms or 0.0 for arm in arms for row in arm.requests]
        self._done, self._expected = len(ends_ms), 0
        # Where a stopped run goes on, its clock goes on too, past the time it stood still.
        still_s = (now - datetime.fromisoformat(self.report.created)).total_seconds()
        self._begun_ms = max(still_s * 1000, 0.0, *ends_ms) if self.kept else 0.0
        self._anchor_s = time.perf_counter()
        self._limit_s = max(0.0, p.run_limit_s - self.spent_s)
        hedge_after = p.hedge_after if p.hedge else None
        silence = (p.first_token_timeout_s, p.between_tokens_timeout_s) if p.stream else (inf, inf)
        self.rules = Rules(
            p.retries,
            p.request_timeout_s,
            *silence,
            deadline_ms=self._begun_ms + self._limit_s * 1000,
            store_text=p.store_text,
            policy=Policy(p.backoff_s, p.breaker_failures, p.breaker_pause_s, hedge_after),
        )

    def know(self, **facts: Any) -> None:
        """Have fields of the report set."""
        self.report = self.report.model_copy(update=facts)

    def real_ms(self) -> float:
        """Milliseconds since the anchor, on the machine's own clock."""
        return self._begun_ms + (time.perf_counter() - self._anchor_s) * 1000

    def clock(self) -> float:
        """Milliseconds since the anchor, on the loop's own clock where it is a fake one."""
        fake = getattr(asyncio.get_running_loop(), "clock_ms", None)
        return self._begun_ms + fake() if fake else self.real_ms()

    async def aclose(self) -> None:
        """Close all connections."""
        for sender in self.senders.values():
            await sender.aclose()

    async def describe(self) -> None:
        """Ask every provider who it is. Raises `ProviderError`, or `UnlikeProviders`."""
        before = {facts.name: facts for facts in self.report.providers}
        answers = await self._ask(self.senders)
        facts = [answer for answer in answers.values() if isinstance(answer, ProviderFacts)]
        # Texts need marks where some server's cache cannot be switched off by a request.
        self.know(providers=facts, marked=not all(each.cache_defeated for each in facts))
        failed = {name: e for name, e in answers.items() if isinstance(e, BaseException)}
        self.problems = {name: str(error) for name, error in failed.items()}
        for error in failed.values():
            raise error
        if not self.parameters.allow_unlike_models:
            check_alike(facts)
        for now in facts:
            if difference := differs(before.get(now.name, now), now):
                raise UnlikeProviders(
                    f"provider {now.name} is not what it was before the stop ({difference}), so "
                    "its times cannot be mixed; run without --resume to start over."
                )

    async def changed(self, names: Collection[str]) -> list[str]:
        """A sentence for each provider that says it is another by now; silence is no change."""
        answers = await self._ask(names, self.parameters.connect_timeout_s)
        return [
            f"provider {was.name} was changed during the run ({difference})"
            for was in self.report.providers
            if isinstance(now := answers.get(was.name), ProviderFacts)
            if (difference := differs(was, now))
        ]

    async def _ask(
        self, names: Collection[str], limit_s: float | None = None
    ) -> dict[str, ProviderFacts | BaseException]:
        """Who each provider says it is, or why it does not say it; asked side by side."""
        gate = asyncio.Semaphore(QUESTIONS)

        async def asked(name: str) -> ProviderFacts:
            async with gate:
                answer = await asyncio.wait_for(self.senders[name].describe(), limit_s)
            fields = {key: value for key, value in self._known[name].items() if key != "running"}
            return answer.model_copy(update=fields)

        answers = await asyncio.gather(*map(asked, names), return_exceptions=True)
        return dict(zip(names, answers, strict=True))

    async def prepare(self) -> None:
        """Warm every provider up, then time each alone: `expected_ms` is the time of one request.

        Where a stopped run goes on, its calibration is kept, and its engines are warmed anew.
        Raises `RunFailed` where a provider answers nothing.
        """
        p, stops = self.parameters, len(self.report.resumed_ms)
        again = f" s{stops}" if stops else ""
        self._answered(await self.each_alone("warm-up", p.warm_up_prompts, again))
        rows = await self.each_alone("calibration", p.calibration_prompts, "")
        self.expected_ms = forecast.expected_ms(self._answered(rows))
        self.know(fastest=min(self.expected_ms, key=self.expected_ms.__getitem__))
        self.expected_ms |= dict.fromkeys(self.routers, min(self.expected_ms.values()))  # at best

    def _answered(self, rows: Mapping[str, list[Request]]) -> dict[str, list[Request]]:
        good = {n: [row for row in rows[n] if row.outcome == "ok" and row.wall_ms] for n in rows}
        for name in (name for name in rows if rows[name] and not good[name]):
            raise RunFailed(rows[name][0].error or f"provider {name} does not answer.")
        return good

    async def each_alone(self, arm: ArmName, count: int, which: str) -> dict[str, list[Request]]:
        """`count` requests to each, one by one, of the same texts; a stopped run's answers stay."""
        names = self.calibrated if arm == "calibration" else self.senders
        urls, kept = self._urls, self.kept.preparation if self.kept else []

        async def alone(name: str, file: ReportFile) -> list[Request]:
            turn = f"{name}{which}"
            before = [a.requests for a in kept if (a.arm, a.turn) == (arm, turn)]
            rows = [row for requests in before for row in requests if row.outcome == "ok"]
            if len(rows) < count:
                # Two names for one address share a cache: each has texts of its own.
                twins = [other for other in urls if urls[other] == urls.get(name)]
                same = f"{arm}{which} {twins.index(name) if twins else 0}"
                prompts = self.prompts(arm, turn, count, same)[len(rows) :]
                begun = Arm(arm=arm, turn=turn, strategy="sequential", limits={name: 1})
                rows += (await self.carry_out(begun, [name], prompts, file=file))[1].requests
            return rows

        return await side_by_side(names, self._machines, alone, self._file)

    async def capacities(self, most: int = MOST_IN_FLIGHT) -> dict[str, Found]:
        """What each provider, already prepared, does with 1, 2, 4, … requests at once.

        In turn, so that they cannot be in each other's way. Every level is kept as an arm.
        """
        return {name: await self._capacity(name, most) for name in self.calibrated}

    async def _capacity(self, name: str, most: int) -> Found:
        seen: list[Level] = []
        while (in_flight := next_in_flight(seen, most)) is not None:
            last = await self._level(name, in_flight)
            if lost(last, seen):  # another program may have been in the way: twice is clear
                last = best_of([last, await self._level(name, in_flight, " again")])[0]
            seen.append(last)
        # All else is held against one alone, so that is measured at both ends: else a machine
        # that was busy in the beginning would seem to batch.
        return conclude(best_of([*seen, await self._level(name, 1, " again")]))

    async def _level(self, name: str, in_flight: int, which: str = "") -> Level:
        count, turn = max(LEAST_REQUESTS, LOADS * in_flight), f"{name} {in_flight}{which}"
        limit_ms = PATIENCE * count * self.expected_ms[name] + 2000
        begun = Arm(arm="capacity", turn=turn, strategy="shared-queue", limits={name: in_flight})
        prompts = self.prompts("capacity", turn, count)
        _, arm = await self.carry_out(begun, [name], prompts, limit_ms=limit_ms)
        return level(arm.requests, in_flight)

    async def carry_out(
        self,
        begun: Arm,
        names: Sequence[str],
        prompts: Sequence[Prompt],
        index: int = NO_ROUND,
        stage: str = "",
        live: dict[str, AdaptiveLimit] | None = None,
        limit_ms: float = inf,
        file: ReportFile | None = None,
    ) -> tuple[pacing.Span, Arm]:
        """Carry an arm out, kept in the file as it goes on and, of the preparation, in the report.

        Before it each provider is probed, so that its connection is warm. Rows of a round are in
        the file only.
        Raises `RunFailed` where time is over or, in a round, its answers are none to count with.
        """
        stage = stage or f"{begun.arm} of {begun.turn}"
        span, error, file = pacing.Span(), "no prompt was answered.", file or self._file
        strike = self.parameters.strike if begun.arm == "strategy" else None
        struck_ms, alone = dict[str, float](), index == NO_ROUND

        def strike_in_time() -> None:
            if strike and not struck_ms and strike.after <= len(span.answered) / len(prompts) < 1:
                self._engines[strike.provider].drop_link()
                struck_ms[strike.provider] = self.clock()

        def done(request: Request) -> None:
            """Have it on disk before the next one is sent."""
            nonlocal error
            file.write({"request": request})
            span.add(request)
            error = request.error or error
            self._done += 1
            self._expected = max(self._expected, self._done)
            self.progress(stage, self._done, self._expected)
            strike_in_time()

        def tell(sentence: str) -> None:
            self.report.notes.append(f"{stage}: {sentence}")
            self.progress(self.report.notes[-1], self._done, self._expected)

        await self.probe(*((names, 1) if alone else (self.senders, PROBES)))
        rules = self.rules
        if alone:  # nothing is sent again, so that refusals show
            deadline_ms = min(rules.deadline_ms, self.clock() + limit_ms)
            policy = Policy(breaker_failures=0)
            rules = replace(rules, retries=0, policy=policy, deadline_ms=deadline_ms)
        begin = {"strategy": begun.strategy, "limits": begun.limits}
        file.write({"arm": begun.arm, "round": index, "turn": begun.turn, "begin": begin})
        try:
            pids = {n: self._engines[n].pids for n in names if n in self._engines}
            with EngineSampler(pids) as sampler:
                strike_in_time()
                strategy, senders = STRATEGIES[begun.strategy], [self.senders[n] for n in names]
                given = begun.arm, strategy, prompts, senders, begun.limits, self.expected_ms
                ran = await run_arm(*given, self.clock, rules, done, alone, live, tell)
        finally:
            for name in struck_ms:
                self._engines[name].restore_link()
        if self.clock() >= self.rules.deadline_ms:
            limit_s = self.parameters.run_limit_s
            raise RunFailed(f"the run reached run_limit_s ({limit_s:g} s) in {stage}.")
        if not alone:
            if not span.answered and begun.strategy != THROUGH_ROUTER:  # there it is a finding
                raise RunFailed(f"{stage}: {error}")
            second = (begun.arm == "strategy") == (index % 2 == 0)  # of its round
            if second and (changed := await self.changed(self.senders)):
                raise RunFailed(
                    f"{stage}: {changed[0]}, so answers of this round may be of two kinds; the "
                    "rounds before it are kept. Run again."
                )
        end = {"engines": sampler.used, "struck_ms": struck_ms, "limit_changes": ran.limit_changes}
        whole = begun.model_copy(update={**end, "requests": ran.requests})
        file.write({"end": whole.model_dump(mode="json", include=set(end))})
        file.sync()
        if alone:
            self.report.preparation.append(whole)
        return span, whole

    async def probe(self, names: Collection[str], times: int) -> None:
        """Take the round trip to each provider, and have its connection warm."""

        async def probed(name: str, file: ReportFile) -> None:
            for _ in range(times):
                try:
                    async with asyncio.timeout(self.parameters.connect_timeout_s):
                        trip = await self.senders[name].probe(self.clock)
                except (ProviderError, TimeoutError):
                    break  # whether it can answer prompts is for the requests to show
                if trip is not None:
                    self.report.probes.append(trip)
                    file.write({"probe": trip.model_dump()})

        await side_by_side(names, self._machines, probed, self._file)

    def prompts(self, arm: str, turn: str, count: int, same: str = "") -> list[Prompt]:
        """The texts of an arm, under a salt and, where needed, marks that no text before had.

        All who give an equal `same` get the same marks.
        """
        key = same or f"{arm} {turn}"
        if key not in self._marks:
            self._marks[key] = self._next_mark
            self._next_mark = (self._next_mark + count) % workload.MARKS
        first = self._marks[key] if self.report.marked else None
        return workload.prompts(self.texts, count, f"{self._salt}:{arm}:{turn}", first)


def begun(parameters: Parameters, texts: Sequence[str], now: datetime) -> Report:
    """What is known of a run before anything is sent."""
    return Report(
        experiment=parameters.experiment,
        strategy=parameters.strategy,
        created=now.isoformat(timespec="milliseconds"),
        poclib=__version__,
        # A number only: the texts are in `prompts` if wanted, a file's name nowhere.
        parameters=parameters.model_copy(update={"prompts": len(texts)}),
        environment=environment(),
        providers=[],
        prompt_sha256=[workload.sha256(text) for text in texts],
        prompt_characters=[len(text) for text in texts],
        prompts=list(texts) if parameters.store_text else None,
        gate_max_ratio=parameters.gate_max_ratio,
        band=parameters.band,
        complete=False,
    )


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
