"""One run: calibration, then rounds of baseline and strategy, each fact on disk at once.

What a stopped run had finished is not done again. Computes no statistic and saves no report.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from .. import pacing, recording, report, workload
from ..contention import Found
from ..errors import ParameterError, PocError, RunFailed
from ..providers import Provider
from ..recording import ReportFile
from ..records import Arm, ArmName
from . import forecast, ruler
from .adaptive import AdaptiveLimit
from .calibration import Calibration
from .machine import Monitor, undisturbed
from .strategies import STRATEGIES, THROUGH_ROUTER, sends_ahead

# How much of the longest round so far must be left of the time for one more to begin.
MARGIN = 1.2
# How long after its limit a run is ended from outside, where it did not end by itself.
LIMIT_SLACK_S = 0.3


class Run(Calibration):
    """One experiment while it runs. Rows of rounds are in the file, only their makespans here."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameters.strategy == THROUGH_ROUTER and not self.routers:
            raise ParameterError(
                f"strategy {THROUGH_ROUTER} needs a provider that is a router: give it its url and "
                "router_of, the names of the providers behind it (see params/routers.yaml)."
            )
        self._learned: dict[str, AdaptiveLimit] = {}
        rounds = self.parameters.rounds
        self._planned = None if rounds == "auto" else rounds  # in how many it is expected to end
        self._expected = self._requests(self._planned or pacing.LEAST)
        self._measured: dict[int, dict[str, pacing.Measured]] = {}  # by round and arm
        for round_ in self.report.rounds:
            for arm in round_.arms:
                self._note(round_.index, arm.arm, pacing.Span(arm.requests))

    def _note(self, index: int, arm: str, span: pacing.Span) -> None:
        if makespan_ms := span.makespan_ms(len(self.texts)):
            self._measured.setdefault(index, {})[arm] = makespan_ms, span.tokens

    @property
    def ratios(self) -> list[float]:
        """The ratio of every complete round so far."""
        rounds = [self._measured[index] for index in sorted(self._measured)]
        pairs = [(both["strategy"], both["baseline"]) for both in rounds if len(both) == 2]
        return pacing.ratios(pairs, self.parameters.band)

    def _requests(self, rounds: int) -> int:
        """How many requests a run of so many rounds sends, if none fails."""
        p = self.parameters
        machines = len(self.calibrated)
        once = len(self.senders) * p.warm_up_prompts + machines * p.calibration_prompts
        return once + rounds * (2 * len(self.texts) + machines)

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

    async def whole(self, file: ReportFile) -> None:
        """All steps, each fact in `file`. Ends by its time limit whatever the providers do."""
        self._file = file
        workload.check_size(self.parameters, self._expected)
        if self.kept is None:
            file.write(recording.header(self.report))
        else:
            self.report.resumed_ms.append(self.clock())
            file.write({"resumed_ms": self.report.resumed_ms[-1]})
        monitor = Monitor(self.real_ms)
        try:
            # Each arm ends itself by then; this holds where a provider answers no question.
            async with asyncio.timeout(self._limit_s + LIMIT_SLACK_S) as limit:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(undisturbed())
                    if all(isinstance(sender, Provider) for sender in self.senders.values()):
                        stack.enter_context(monitor.watching(asyncio.get_running_loop()))
                        with contextlib.suppress(PocError):  # a run is worth having without it
                            self.know(ruler=await ruler.check(ruler.QUICK))
                    await self._steps()
            self.know(complete=True)
        except TimeoutError:
            if not limit.expired():
                raise
            limit_s = self.parameters.run_limit_s
            raise RunFailed(f"the run reached run_limit_s ({limit_s:g} s).") from None
        finally:
            self.know(lags=monitor.lags, moments=monitor.moments)
            await self.aclose()

    async def _steps(self) -> None:
        """Who is there, warm-up and calibration, then the rounds, in alternating order."""
        await self._begin()
        done = {round_.index for round_ in self.report.rounds}
        arms: list[ArmName] = ["baseline", "strategy"]
        longest_ms = 0.0
        for index in itertools.count():
            if self._enough(index, longest_ms):
                break
            begun_ms = self.clock()
            for arm in arms[:: 1 if index % 2 == 0 else -1]:
                if index not in done:
                    await self._arm(index, arm)
            await self.each_alone("calibration", 1, f" {index}")  # machines drift
            longest_ms = max(longest_ms, self.clock() - begun_ms)
        for change in await self.changed(self.senders):
            self.report.notes.append(f"{change} after its last round.")

    async def _begin(self) -> None:
        await self.describe()
        facts = [facts.model_dump(mode="json") for facts in self.report.providers]
        self._file.write({"facts": facts})
        await self.prepare()

    def _enough(self, count: int, longest_ms: float) -> bool:
        """Whether so many rounds are all; where their number is not given, the report says why."""
        p = self.parameters
        if p.rounds != "auto":
            return count >= p.rounds
        ended: Literal["narrow", "time", "most"] | None = None
        if pacing.narrow(self.ratios, p.band):
            ended = "narrow"
        elif count >= pacing.MOST or self._file.bytes * (1 + 1 / max(1, count)) > report.MAX_BYTES:
            ended = "most"  # or the most that a report can hold
        elif count >= 2 and self.rules.deadline_ms - self.clock() < MARGIN * longest_ms:
            ended = "time"
        self.know(ended=ended)
        noise = pacing.noise(forecast.calibrated(self.report.preparation), len(self.texts))
        self._planned = pacing.foretold(self.ratios, noise, p.band)
        likely = count if ended else max(count + 1, self._planned or pacing.LEAST)
        self._expected = max(self._done, self._requests(likely))
        return ended is not None

    async def _arm(self, index: int, arm: ArmName) -> None:
        name = "sequential" if arm == "baseline" else self.parameters.strategy
        names = [self.report.fastest or ""] if arm == "baseline" else self.asked_by(name)
        limits, live = self._limits(name, names)
        begun = Arm(arm=arm, strategy=name, limits=limits)
        prompts = self.prompts(arm, str(index), len(self.texts))
        stage = f"round {index + 1} of {self._of_rounds(index)}, {arm}"
        span, _ = await self.carry_out(begun, names, prompts, index, stage, live)
        self._note(index, arm, span)

    def _of_rounds(self, index: int) -> str:
        """Their number, or what is known of it by now; at first what calibration says of it."""
        rounds = self.parameters.rounds
        if rounds == "auto":
            return f"about {self._planned}" if self._planned else "as many as it takes"
        needed = None if index else self.foretold_rounds().get(self.parameters.strategy)
        if needed is None:
            return str(rounds)
        return f"{rounds} ({needed.one or 'no number'} would tell the ratio foretold from 1)"

    def foretold_ratios(self) -> dict[str, float]:
        """Ratio to the baseline of each strategy, from calibration alone."""
        return forecast.of(self.report)

    def foretold_rounds(self) -> dict[str, pacing.Power]:
        """How many rounds each foretold ratio needs to be told from the gate, and from 1."""
        p, expected, arms = self.parameters, self.foretold_ratios(), self.report.preparation
        return forecast.powers(expected, arms, len(self.texts), p.gate_max_ratio, p.band)

    def foretold_s(self, strategies: int) -> float:
        """How long so many strategies take by calibration; one not foretold as the baseline."""
        p, ratios = self.parameters, self.foretold_ratios().values()
        alone_ms = len(self.texts) * min(self.expected_ms.values())
        once_ms = sum(self.expected_ms.values())
        rounds = pacing.LEAST if p.rounds == "auto" else p.rounds
        round_ms = alone_ms * (1 + fmean([*ratios, 1.0])) + once_ms
        before_ms = (p.warm_up_prompts + p.calibration_prompts) * once_ms
        return strategies * (before_ms + rounds * round_ms) / 1000

    def asked_by(self, strategy: str) -> list[str]:
        """Whom a strategy may name: a router only if it is there for that, and then nobody else."""
        return self.routers if strategy == THROUGH_ROUTER else self.calibrated

    def _limits(
        self, strategy: str, names: Sequence[str]
    ) -> tuple[dict[str, int] | None, dict[str, AdaptiveLimit]]:
        """How many requests each provider may hold, None: no limit; and the limits that move below.

        Without a limit those move that are forced, from 1 up; the next round begins with them.
        """
        limit, router = STRATEGIES[strategy].limit, self.parameters.router
        if strategy == THROUGH_ROUTER and router and router.in_flight:
            return {router.name: router.in_flight}, {}
        given = {one.name: one for one in self.parameters.providers if one.name in names}
        if limit == "none":
            for name in (name for name in given if given[name].adaptive == "forced"):
                old = self._learned.get(name)
                new = AdaptiveLimit(name, self.expected_ms[name], 1, len(self.texts))
                self._learned[name] = old.again(self.clock()) if old else new
            return None, self._learned
        most = {}
        for f in (facts for facts in self.report.providers if facts.name in names):
            ahead = sends_ahead(f, f.name not in given or given[f.name].queues)
            held = {"one": 1, "capacity": f.capacity, "ahead": f.capacity + ahead}
            most[f.name] = held.get(limit, f.slots or f.capacity)
        moving = [name for name in given if given[name].adaptive != "off"]
        return most, {n: AdaptiveLimit(n, self.expected_ms[n], most[n], most[n]) for n in moving}
