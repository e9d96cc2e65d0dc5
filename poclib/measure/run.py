"""One experiment while it runs: who is there, warm-up, calibration, rounds, each fact on disk.

Asks every provider who it is, refuses unequal work, and measures in a fixed order; what a stopped
run had finished is not done again. Computes no statistic and saves no report: `experiment` does.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import itertools
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from .. import __version__, pacing, recording, report, workload
from ..errors import PocError, ProviderError, RunFailed, UnlikeProviders
from ..parameters import Parameters
from ..progress import Progress, quiet
from ..providers import Provider
from ..recording import ReportFile
from ..records import Arm, ArmName, Probe, Prompt, ProviderFacts, Report, Request, Ruler
from ..report import NO_ROUND
from . import forecast, identity, ruler
from .adaptive import AdaptiveLimit
from .attempt import Rules, attempt
from .dispatch import run_arm
from .machine import EngineSampler, Monitor, environment, undisturbed
from .policy import Policy
from .pool import Clock, Measurable
from .strategies import STRATEGIES, Limit, Strategy

# Round trips taken of each provider before every arm.
PROBES = 5
# How much of the longest round so far must be left of the time for one more to begin.
MARGIN = 1.2
# How long after its limit a run is ended from outside, where it did not end by itself.
LIMIT_SLACK_S = 0.3


class Run:
    """One experiment while it runs: what it has found so far, and the steps in order."""

    def __init__(
        self,
        parameters: Parameters,
        providers: Sequence[tuple[Measurable, dict[str, Any]]],
        progress: Progress = quiet,
        kept: Report | None = None,
        spent_s: float = 0.0,
    ) -> None:
        """`spent_s` is what of its time limit went before it begins."""
        self.parameters = parameters
        self.kept = kept
        self._limit_s = max(0.0, parameters.run_limit_s - spent_s)
        self.name = f"{parameters.experiment}-{parameters.strategy}"
        self.senders = {provider.name: provider for provider, _ in providers}
        self.known = {provider.name: dict(facts) for provider, facts in providers}
        self._pids = {name: facts.pop("pids", ()) for name, facts in self.known.items()}
        self._engines = {name: facts.pop("running", None) for name, facts in self.known.items()}
        self.texts = workload.texts(parameters.prompts)
        self.strategy = STRATEGIES[parameters.strategy]
        self.environment = environment()
        now = datetime.datetime.now(datetime.UTC)
        self.created = now.isoformat(timespec="milliseconds")
        # Where a stopped run goes on, its clock goes on too, past the time it stood still.
        self._begun_ms = 0.0
        self.preparation: list[Arm] = []
        self.probes: list[Probe] = []
        self._measured: dict[int, dict[str, pacing.Measured]] = {}  # of answered arms, by round
        if kept is not None:
            self.environment, self.created = kept.environment, kept.created
            self.preparation, self.probes = list(kept.preparation), list(kept.probes)
            for round_ in kept.rounds:
                for arm in round_.arms:
                    self._note(round_.index, arm.arm, pacing.Span(arm.requests))
            still_ms = (
                now - datetime.datetime.fromisoformat(self.created).astimezone()
            ).total_seconds() * 1000
            self._begun_ms = max(still_ms, _last_ms(kept))
        self._anchor_s = time.perf_counter()
        self.monitor = Monitor(
            lambda: self._begun_ms + (time.perf_counter() - self._anchor_s) * 1000
        )
        self.ruler: Ruler | None = None
        self._real = all(isinstance(one, Provider) for one in self.senders.values())
        self.facts: list[ProviderFacts] = []
        self.expected_ms: dict[str, float] = {}
        self.notes: list[str] = []
        self.resumed_ms = list(kept.resumed_ms) if kept else []
        self._learned: dict[str, AdaptiveLimit] = {}
        self._file = ReportFile()
        # Of each session its own: what one before has sent may be in a server's cache.
        self._salt = secrets.token_hex(2)
        self._next_mark = secrets.randbelow(workload.MARKS)
        self._shared_marks: dict[tuple[str, str, int], int] = {}
        self._progress = progress
        self._done = sum(len(arm.requests) for arm in _arms(kept)) if kept else 0
        self._longest_ms = 0.0  # of this session's rounds
        # Why `rounds: auto` ended, and after how many rounds it is expected to.
        self.ended: Literal["narrow", "time", "most"] | None = None
        self._planned: int | None = None if parameters.rounds == "auto" else parameters.rounds
        self._expected = self._requests(self._planned or pacing.LEAST)

    def _requests(self, rounds: int) -> int:
        """How many requests a run of so many rounds sends, if none fails."""
        p = self.parameters
        once = len(self.senders) * (p.warm_up_prompts + p.calibration_prompts)
        return once + rounds * (2 * len(self.texts) + len(self.senders))

    def clock(self) -> float:
        """Milliseconds since the anchor, on the loop's own clock where it is a fake one."""
        loop = asyncio.get_running_loop()
        fake: Clock | None = getattr(loop, "clock_ms", None)
        since_ms = fake() if fake else (time.perf_counter() - self._anchor_s) * 1000
        return self._begun_ms + since_ms

    def _watched(self) -> contextlib.AbstractContextManager[object]:
        """The monitor at work; not on a fake clock, which has no machine to watch."""
        loop = asyncio.get_running_loop()
        if hasattr(loop, "clock_ms"):
            return contextlib.nullcontext()
        return self.monitor.watching(loop)

    @property
    def rules(self) -> Rules:
        p = self.parameters
        whole_s = p.request_timeout_s
        return Rules(
            retries=p.retries,
            request_timeout_s=whole_s,
            first_token_timeout_s=p.first_token_timeout_s if p.stream else whole_s,
            between_tokens_timeout_s=p.between_tokens_timeout_s if p.stream else whole_s,
            deadline_ms=self._begun_ms + self._limit_s * 1000,
            store_text=p.store_text,
            policy=Policy(
                backoff_s=p.backoff_s,
                breaker_failures=p.breaker_failures,
                breaker_pause_s=p.breaker_pause_s,
                hedge_after=p.hedge_after if p.hedge else None,
            ),
        )

    # Rows of rounds are not kept in memory: they are in the file, and only their makespans here.

    @property
    def ratios(self) -> list[float]:
        """The ratio of every complete round so far."""
        rounds = [self._measured[index] for index in sorted(self._measured)]
        pairs = [
            (r["strategy"], r["baseline"]) for r in rounds if {"strategy", "baseline"} <= r.keys()
        ]
        return pacing.ratios(pairs, self.parameters.band)

    def _note(self, index: int, arm: str, span: pacing.Span) -> None:
        if makespan_ms := span.makespan_ms(len(self.texts)):
            self._measured.setdefault(index, {})[arm] = makespan_ms, span.tokens

    async def whole(self, file: ReportFile) -> None:
        """All steps: who is there, is it equal work, warm up, calibrate, then the rounds.

        What a stopped run had finished is not done again. Ends by its time limit whatever the
        providers do.
        """
        self._file = file
        workload.check_size(self.parameters, self._expected)
        if self.kept is None:
            file.write(recording.header(self.as_report()))
        try:
            # Each arm ends itself by then; this holds where a provider answers no question.
            async with asyncio.timeout(self._limit_s + LIMIT_SLACK_S) as limit:
                with self._watched(), undisturbed():
                    await self._check_the_ruler()
                    await self._whole()
        except TimeoutError:
            if not limit.expired():
                raise
            asked_s = self.parameters.run_limit_s
            raise RunFailed(f"the run reached run_limit_s ({asked_s:g} s).") from None
        finally:
            for sender in self.senders.values():
                await sender.aclose()

    async def _whole(self) -> None:
        if self.kept is not None:
            self.resumed_ms.append(self.clock())
            self._file.write({"resumed_ms": self.resumed_ms[-1]})
        await self.describe()
        self._file.write({"facts": [one.model_dump(mode="json") for one in self.facts]})
        await self.prepare()
        done = {round_.index for round_ in self.kept.rounds} if self.kept else set()
        for index in itertools.count():
            if self._enough(index):
                break
            begun_ms = self.clock()
            if index not in done:
                await self._round(index)
            # Machines drift: one more request alone on each tells how fast it is by now.
            for sender in self.senders.values():
                await self._alone("calibration", sender, 1, f" {index}")
            self._longest_ms = max(self._longest_ms, self.clock() - begun_ms)
        await self._same_at_the_end()

    def _enough(self, count: int) -> bool:
        """Whether so many rounds are all; where their number is not given, `ended` says why."""
        p = self.parameters
        if p.rounds != "auto":
            return count >= p.rounds
        found = self.ratios
        left_ms = self.rules.deadline_ms - self.clock()
        if count and pacing.narrow(found, p.band):
            self.ended = "narrow"
        elif count >= self._most:
            self.ended = "most"
        elif count >= 2 and left_ms < MARGIN * self._longest_ms:
            self.ended = "time"
        noise = pacing.noise(forecast.calibrated(self.preparation), len(self.texts))
        self._planned = pacing.foretold(found, noise, p.band)
        likely = count if self.ended else max(count + 1, self._planned or pacing.LEAST)
        self._expected = max(self._done, self._requests(likely))
        return self.ended is not None

    @property
    def _most(self) -> int:
        """The most rounds whose report is still read."""
        room = report.MAX_BYTES / workload.row_bytes(self.parameters) - self._requests(0)
        per_round = self._requests(1) - self._requests(0)
        return max(pacing.LEAST, min(pacing.MOST, int(0.9 * room / per_round)))

    async def _check_the_ruler(self) -> None:
        """The instrument's own error on this machine, now; none on a fake clock."""
        if not hasattr(asyncio.get_running_loop(), "clock_ms") and self._real:
            with contextlib.suppress(PocError):  # a run is worth having without it
                self.ruler = await ruler.check(ruler.QUICK)

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
            identity.check_alike(self.facts)
        before = {one.name: one for one in self.kept.providers} if self.kept else {}
        for fact in self.facts:
            if (was := before.get(fact.name)) and (how := identity.differs(was, fact)):
                raise UnlikeProviders(
                    f"provider {fact.name} is not what it was before the stop "
                    f"({how}), so its times cannot be mixed; run without "
                    "--resume to start over."
                )
        return self.facts

    async def _changed(self, names: Collection[str]) -> tuple[list[str], list[str]]:
        was = [one for one in self.facts if one.name in names]
        return await identity.changed(
            was, self.senders, self.known, self.parameters.connect_timeout_s
        )

    async def _unchanged(self, stage: str, names: Collection[str]) -> None:
        """Raise `RunFailed` where answers of this arm may be another model's."""
        changed, _ = await self._changed(names)
        if changed:
            raise RunFailed(
                f"{stage}: {changed[0]}, so answers of this arm may be of two kinds; the rounds "
                "before it are kept. Run again."
            )

    async def _same_at_the_end(self) -> None:
        """Note who is no longer what it was after the last arm, or no longer there."""
        changed, silent = await self._changed(self.senders)
        self.notes += [f"{one} after its last round." for one in changed]
        self.notes += [f"at the end of the run: {one}" for one in silent]

    async def prepare(self) -> None:
        """Warm every provider up, then time each alone: `expected_ms` is the time of one request.

        What strategies decide by; the baseline's provider is chosen here, once for all rounds.
        Where a stopped run goes on, its calibration is kept, and its engines are warmed anew.
        Raises `RunFailed` where a provider answers nothing.
        """
        p = self.parameters
        session = f" s{len(self.resumed_ms)}" if self.kept else ""
        calibrated = {}
        for sender in self.senders.values():
            warm = await self._alone("warm-up", sender, p.warm_up_prompts, session)
            if warm and all(row.outcome != "ok" for row in warm):
                raise RunFailed(warm[0].error or f"provider {sender.name} does not answer.")
        for sender in self.senders.values():
            rows = await self._alone("calibration", sender, p.calibration_prompts, "")
            calibrated[sender.name] = [r for r in rows if r.outcome == "ok" and r.wall_ms]
            if not calibrated[sender.name]:
                raise RunFailed(rows[0].error or f"provider {sender.name} does not answer.")
        self.expected_ms = forecast.expected_ms(calibrated)

    async def _alone(
        self, arm: ArmName, sender: Measurable, count: int, which: str
    ) -> list[Request]:
        """`count` requests, one at a time, the same to each provider.

        Those that a stopped run has answered are kept.
        """
        turn = f"{sender.name}{which}"
        rows = [
            row
            for before in (self.kept.preparation if self.kept else ())
            for row in before.requests
            if (before.arm, before.turn) == (arm, turn) and row.outcome == "ok"
        ]
        if count == 0 or len(rows) >= count:
            return rows
        await self._probe([sender])
        limits, fresh = {sender.name: 1}, list[Request]()
        with self._written(arm, NO_ROUND, "sequential", limits, turn):
            shared = (arm, which, self._twins(sender.name))
            for prompt in self._prompts(arm, turn, count, shared)[len(rows) :]:
                fresh.append(await attempt(sender, prompt, self.clock, self.rules))
                self._count(f"{arm} of {sender.name}", fresh[-1])
        self.preparation.append(
            Arm(arm=arm, turn=turn, strategy="sequential", limits=limits, requests=fresh)
        )
        return rows + fresh

    def _twins(self, name: str) -> int:
        """How many providers listed before it have the very address: one server, one cache."""
        urls = {p.name: p.url for p in self.parameters.providers if p.kind != "embedded"}
        before = list(urls)[: list(urls).index(name)] if name in urls else []
        return sum(urls[other] == urls[name] for other in before)

    async def level(
        self, name: str, in_flight: int, count: int, limit_ms: float, which: str = ""
    ) -> Arm:
        """`count` requests to one provider, `in_flight` at once; stopped after `limit_ms`.

        None is sent again: what is refused is what is to be seen.
        """
        until_ms = self.clock() + limit_ms
        rules = replace(self.rules, retries=0, policy=Policy(breaker_failures=count + 1))
        rules = replace(rules, deadline_ms=min(self.rules.deadline_ms, until_ms))
        limits, turn = {name: in_flight}, f"{name} {in_flight} {which}".strip()
        await self._probe([self.senders[name]])
        with self._written("capacity", NO_ROUND, "shared-queue", limits, turn) as seen:
            with EngineSampler({name: self._pids[name]}) as sampler:
                arm = await run_arm(
                    "capacity",
                    STRATEGIES["shared-queue"],
                    self._prompts("capacity", turn, count),
                    [self.senders[name]],
                    limits,
                    self.expected_ms,
                    self.clock,
                    rules,
                    lambda row: self._count(f"capacity of {turn}", row),
                )
            cut_ms = self.clock() if self.clock() >= until_ms else None
            seen |= {"engines": [one.model_dump() for one in sampler.used], "cut_ms": cut_ms}
        self.preparation.append(
            arm.model_copy(update={"turn": turn, "engines": sampler.used, "cut_ms": cut_ms})
        )
        return arm

    async def _round(self, index: int) -> None:
        """Baseline and strategy once each, the order alternating from round to round."""
        baseline, strategy = ("baseline", STRATEGIES["sequential"]), ("strategy", self.strategy)
        order = [baseline, strategy] if index % 2 == 0 else [strategy, baseline]
        for arm, chosen in order:
            await self._arm(index, arm, chosen)  # type: ignore[arg-type]

    async def _arm(self, index: int, arm: ArmName, chosen: Strategy) -> None:
        senders = list(self.senders.values())
        if arm == "baseline":
            senders = [self.senders[self.fastest]]
        await self._probe(list(self.senders.values()))
        stage = f"round {index + 1} of {self._of_rounds(index)}, {arm}"
        limits = self._limits(chosen.limit, [s.name for s in senders])
        limit_ms = self.clock() + 1000 * (self.parameters.arm_limit_s or float("inf"))
        rules = replace(self.rules, deadline_ms=min(self.rules.deadline_ms, limit_ms))
        span, last_error = pacing.Span(), None

        def done(request: Request) -> None:
            nonlocal last_error
            span.add(request)
            last_error = request.error or last_error
            self._count(stage, request)
            strike(len(span.answered))

        def tell(told: str) -> None:
            self.notes.append(f"{stage}: {told}")
            self._progress(self.notes[-1], self._done, self._expected)

        with self._written(arm, index, chosen.name, limits) as seen:
            pids = {s.name: self._pids[s.name] for s in senders}
            with self._striking(arm, seen) as strike, EngineSampler(pids) as sampler:
                ran = await run_arm(
                    arm,
                    chosen,
                    self._prompts(f"{arm}", str(index), len(self.texts)),
                    senders,
                    limits,
                    self.expected_ms,
                    self.clock,
                    rules,
                    done,
                    keep_rows=False,
                    live=self._live(chosen.limit, [s.name for s in senders]),
                    tell=tell,
                )
            if self.clock() >= self.rules.deadline_ms:
                limit_s = self.parameters.run_limit_s
                raise RunFailed(f"the run reached run_limit_s ({limit_s:g} s) in {stage}.")
            cut = self.clock() >= limit_ms
            if not span.answered and not cut:
                raise RunFailed(f"{stage}: {last_error or 'no prompt was answered.'}")
            await self._unchanged(stage, [s.name for s in senders])
            seen |= ran.model_dump(mode="json", include={"limit_changes"})
            seen |= {
                "engines": [one.model_dump() for one in sampler.used],
                "cut_ms": self.clock() if cut else None,
            }
        self._note(index, arm, span)

    @contextlib.contextmanager
    def _striking(self, arm: ArmName, seen: dict[str, Any]) -> Iterator[Callable[[int], None]]:
        """Gives what to call with the number of prompts answered: it cuts the link in time.

        As `strike` in the parameters says; the link is mended when the block ends.
        """
        wanted = self.parameters.strike if arm == "strategy" else None
        struck_ms: dict[str, float] = {}

        def strike(answered: int) -> None:
            if wanted is None or struck_ms or answered == len(self.texts):
                return
            if answered >= wanted.after * len(self.texts):
                self._engines[wanted.provider].drop_link()
                struck_ms[wanted.provider] = self.clock()
                seen["struck_ms"] = struck_ms

        strike(0)
        try:
            yield strike
        finally:
            for name in struck_ms:
                self._engines[name].restore_link()

    def _of_rounds(self, index: int) -> str:
        """Their number, or what is known of it by now; at first what calibration says of it."""
        rounds = self.parameters.rounds
        if rounds == "auto":
            return f"about {self._planned}" if self._planned else "as many as it takes"
        if index or (needed := self.foretold_rounds().get(self.strategy.name)) is None:
            return str(rounds)
        if needed.one is None:
            return f"{rounds} (no number would tell the ratio foretold from 1)"
        return f"{rounds} ({needed.one} would tell the ratio foretold from 1)"

    def foretold_ratios(self) -> dict[str, float]:
        """Ratio to the baseline of each strategy, from calibration alone, before anything runs.

        Knows nothing of batching or contention: what it leaves out is what a run measures.
        """
        capacity = {facts.name: facts.capacity for facts in self.facts}
        return forecast.ratios(len(self.texts), self.expected_ms, capacity)

    def foretold_rounds(self) -> dict[str, pacing.Power]:
        """How many rounds each foretold ratio needs to be told from the gate, and from 1."""
        p, expected = self.parameters, self.foretold_ratios()
        return forecast.powers(
            expected, self.preparation, len(self.texts), p.gate_max_ratio, p.band
        )

    @contextlib.contextmanager
    def _written(
        self,
        arm: str,
        index: int,
        strategy: str,
        limits: dict[str, int] | None,
        turn: str | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Note in the file that an arm begins, and, where nothing is raised, that it ended.

        What is put into the dictionary, fields of `Arm`, is noted with its end.
        """
        place = {"arm": arm, "round": index}
        begin = {"strategy": strategy, "limits": limits}
        self._file.write({**place, "turn": turn, "begin": begin})
        seen: dict[str, Any] = {}
        yield seen
        self._file.write({"end": seen})
        self._file.sync()

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

    @property
    def _marked(self) -> bool:
        """Whether texts need marks: some server's cache cannot be switched off by a request."""
        return not all(facts.cache_defeated for facts in self.facts)

    def _prompts(
        self, arm: str, turn: str, count: int, shared: tuple[str, str, int] | None = None
    ) -> list[Prompt]:
        """The texts of an arm, under a salt and, where needed, marks that no text before had.

        Where `shared` is given, all who give it get the same marks.
        """
        first = None
        if self._marked:
            first = self._shared_marks.get(shared) if shared else None
            if first is None:
                first, self._next_mark = self._next_mark, (self._next_mark + count) % workload.MARKS
            if shared:
                self._shared_marks[shared] = first
        return workload.prompts(self.texts, count, f"{self._salt}:{arm}:{turn}", first)

    def _limits(self, limit: Limit, names: Sequence[str]) -> dict[str, int] | None:
        if limit == "none":
            return None
        facts = {f.name: f for f in self.facts}
        slots = {n: f.slots or f.capacity for n, f in facts.items()}
        capacity = {n: f.capacity for n, f in facts.items()}
        return {n: {"one": 1, "capacity": capacity[n], "slots": slots[n]}[limit] for n in names}

    def _live(self, limit: Limit, names: Sequence[str]) -> dict[str, AdaptiveLimit]:
        """The limits that move: from the strategy's down, or without one from 1 up if forced.

        What was found of the latter in one round is where the next begins.
        """
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
            learned = self._learned.get(name) if fixed is None else None
            found[name] = (
                learned.again(self.clock())
                if learned
                else AdaptiveLimit(name, self.expected_ms[name], *ends)
            )
        self._learned |= found if fixed is None else {}
        return found

    async def _probe(self, senders: Sequence[Measurable]) -> None:
        """Round trips on a warm connection; as a side effect each connection is warm."""
        for sender in senders:
            for _ in range(PROBES):
                try:
                    async with asyncio.timeout(self.parameters.connect_timeout_s):
                        trip = await sender.probe(self.clock)
                except (ProviderError, TimeoutError):
                    break  # whether it can answer prompts is for the requests to show
                if trip is not None:
                    self.probes.append(trip)
                    self._file.write({"probe": trip.model_dump()})

    def _count(self, stage: str, request: Request) -> None:
        self._file.write({"request": request.model_dump(exclude_none=True)})
        self._done += 1
        self._expected = max(self._expected, self._done)
        self._progress(stage, self._done, self._expected)

    def as_report(self, complete: bool = False) -> Report:
        """What is known by now as facts, but for the rounds: those are in the file."""
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
            prompt_sha256=[workload.sha256(text) for text in self.texts],
            prompt_characters=[len(text) for text in self.texts],
            prompts=self.texts if p.store_text else None,
            marked=bool(self.facts) and self._marked,
            fastest=self.fastest if self.expected_ms else None,
            gate_max_ratio=p.gate_max_ratio,
            band=p.band,
            preparation=self.preparation,
            probes=self.probes,
            ended=self.ended,
            resumed_ms=self.resumed_ms,
            lags=self.monitor.lags,
            moments=self.monitor.moments,
            notes=self.notes,
            ruler=self.ruler,
            complete=complete,
        )


def _arms(report: Report) -> list[Arm]:
    rounds = (*report.rounds, *report.cut)
    return [*report.preparation, *(arm for round_ in rounds for arm in round_.arms)]


def _last_ms(report: Report) -> float:
    """The last moment that a report tells of."""
    ends = [row.marks.end_ms or 0.0 for arm in _arms(report) for row in arm.requests]
    return max([*ends, *(probe.at_ms for probe in report.probes)], default=0.0)
