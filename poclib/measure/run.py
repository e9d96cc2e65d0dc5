"""One run: calibration, then rounds of baseline and strategy, each fact on disk at once.

What a stopped run had finished is not done again. Computes no statistic and saves no report.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from .. import __version__, pacing, recording, report, workload
from ..errors import PocError, RunFailed
from ..parameters import Parameters
from ..progress import Progress, quiet
from ..providers import Provider
from ..recording import ReportFile
from ..records import Arm, ArmName, Report, Request, Ruler
from . import forecast, ruler
from .adaptive import AdaptiveLimit
from .calibration import Calibration, Measurable, fake_clock
from .dispatch import run_arm
from .machine import Monitor, environment, undisturbed
from .strategies import STRATEGIES, Limit, Strategy

# How much of the longest round so far must be left of the time for one more to begin.
MARGIN = 1.2
# How long after its limit a run is ended from outside, where it did not end by itself.
LIMIT_SLACK_S = 0.3


class Run(Calibration):
    """One experiment while it runs. Rows of rounds are in the file, only their makespans here."""

    def __init__(
        self,
        parameters: Parameters,
        providers: Sequence[tuple[Measurable, dict[str, Any]]],
        progress: Progress = quiet,
        kept: Report | None = None,
        spent_s: float = 0.0,
    ) -> None:
        super().__init__(parameters, providers, progress, kept, spent_s)
        self.strategy = STRATEGIES[parameters.strategy]
        self.environment = kept.environment if kept else environment()
        self.monitor = Monitor(self.real_ms)
        self.ruler: Ruler | None = None
        self.notes: list[str] = []
        self._learned: dict[str, AdaptiveLimit] = {}
        # Why `rounds: auto` ended, and after how many rounds it is expected to.
        self.ended: Literal["narrow", "time", "most"] | None = None
        self._planned = None if parameters.rounds == "auto" else parameters.rounds
        self._expected = self._requests(self._planned or pacing.LEAST)
        self._measured: dict[int, dict[str, pacing.Measured]] = {}  # by round and arm
        for round_ in kept.rounds if kept else ():
            for arm in round_.arms:
                self._note(round_.index, arm.arm, pacing.Span(arm.requests))

    def _requests(self, rounds: int) -> int:
        """How many requests a run of so many rounds sends, if none fails."""
        p = self.parameters
        once = len(self.senders) * (p.warm_up_prompts + p.calibration_prompts)
        return once + rounds * (2 * len(self.texts) + len(self.senders))

    @property
    def ratios(self) -> list[float]:
        """The ratio of every complete round so far."""
        rounds = [self._measured[index] for index in sorted(self._measured)]
        pairs = [(both["strategy"], both["baseline"]) for both in rounds if len(both) == 2]
        return pacing.ratios(pairs, self.parameters.band)

    def _note(self, index: int, arm: str, span: pacing.Span) -> None:
        if makespan_ms := span.makespan_ms(len(self.texts)):
            self._measured.setdefault(index, {})[arm] = makespan_ms, span.tokens

    async def whole(self, file: ReportFile) -> None:
        """All steps, each fact in `file`. Ends by its time limit whatever the providers do."""
        self._file = file
        workload.check_size(self.parameters, self._expected)
        if self.kept is None:
            file.write(recording.header(self.as_report()))
        try:
            # Each arm ends itself by then; this holds where a provider answers no question.
            async with asyncio.timeout(self._limit_s + LIMIT_SLACK_S) as limit:
                with contextlib.ExitStack() as stack:
                    stack.enter_context(undisturbed())
                    if fake_clock() is None:  # a fake clock has no machine to watch
                        stack.enter_context(self.monitor.watching(asyncio.get_running_loop()))
                        if all(isinstance(sender, Provider) for sender in self.senders.values()):
                            with contextlib.suppress(PocError):  # a run is worth having without it
                                self.ruler = await ruler.check(ruler.QUICK)
                    await self._steps()
        except TimeoutError:
            if not limit.expired():
                raise
            limit_s = self.parameters.run_limit_s
            raise RunFailed(f"the run reached run_limit_s ({limit_s:g} s).") from None
        finally:
            await self.aclose()

    async def _steps(self) -> None:
        """Who is there, warm-up and calibration, then the rounds, in alternating order."""
        if self.kept is not None:
            self.resumed_ms.append(self.clock())
            self._file.write({"resumed_ms": self.resumed_ms[-1]})
        await self.describe()
        self._file.write({"facts": [facts.model_dump(mode="json") for facts in self.facts]})
        await self.prepare()
        arms: list[tuple[ArmName, Strategy, list[str]]] = [
            ("baseline", STRATEGIES["sequential"], [self.fastest]),
            ("strategy", self.strategy, list(self.senders)),
        ]
        done = {round_.index for round_ in self.kept.rounds} if self.kept else set()
        longest_ms = 0.0
        for index in itertools.count():
            if self._enough(index, longest_ms):
                break
            begun_ms = self.clock()
            for arm, strategy, names in arms if index % 2 == 0 else arms[::-1]:
                if index not in done:
                    await self._arm(index, arm, strategy, names)
            for name in self.senders:  # machines drift
                await self.alone("calibration", name, 1, f" {index}")
            longest_ms = max(longest_ms, self.clock() - begun_ms)
        for change in await self.changed(self.senders):
            self.notes.append(f"{change} after its last round.")

    def _enough(self, count: int, longest_ms: float) -> bool:
        """Whether so many rounds are all; where their number is not given, `ended` says why."""
        p = self.parameters
        if p.rounds != "auto":
            return count >= p.rounds
        left_ms = self.rules.deadline_ms - self.clock()
        if pacing.narrow(self.ratios, p.band):
            self.ended = "narrow"
        elif count >= pacing.MOST or self._file.bytes * (1 + 1 / max(1, count)) > report.MAX_BYTES:
            self.ended = "most"  # or the most that a report can hold
        elif count >= 2 and left_ms < MARGIN * longest_ms:
            self.ended = "time"
        noise = pacing.noise(forecast.calibrated(self.preparation), len(self.texts))
        self._planned = pacing.foretold(self.ratios, noise, p.band)
        likely = count if self.ended else max(count + 1, self._planned or pacing.LEAST)
        self._expected = max(self._done, self._requests(likely))
        return self.ended is not None

    async def _arm(self, index: int, arm: ArmName, strategy: Strategy, names: list[str]) -> None:
        stage = f"round {index + 1} of {self._of_rounds(index)}, {arm}"
        limits, live = self._limits(strategy.limit, names)

        def done(request: Request) -> None:
            self._count(request)
            strike(len(self._span.answered))

        def tell(sentence: str) -> None:
            self.notes.append(f"{stage}: {sentence}")
            self._progress(self.notes[-1], self._done, self._expected)

        begun = Arm(arm=arm, strategy=strategy.name, limits=limits)
        async with self._kept(begun, names, index, stage) as end:
            with self._striking(arm, end) as strike:
                ran = await run_arm(
                    arm,
                    strategy,
                    self._prompts(arm, str(index), len(self.texts)),
                    [self.senders[name] for name in names],
                    limits,
                    self.expected_ms,
                    self.clock,
                    self.rules,
                    done,
                    keep_rows=False,
                    live=live,
                    tell=tell,
                )
            end |= ran.model_dump(mode="json", include={"limit_changes"})
        self._note(index, arm, self._span)

    @contextlib.contextmanager
    def _striking(self, arm: ArmName, end: dict[str, Any]) -> Iterator[Callable[[int], None]]:
        """What to call with the number of prompts answered, so that the link is cut in time.

        It is mended when the block ends.
        """
        wanted = self.parameters.strike if arm == "strategy" else None

        def strike(answered: int) -> None:
            if wanted is None or "struck_ms" in end:
                return
            if wanted.after * len(self.texts) <= answered < len(self.texts):
                self._engines[wanted.provider].drop_link()
                end["struck_ms"] = {wanted.provider: self.clock()}

        strike(0)
        try:
            yield strike
        finally:
            for name in end.get("struck_ms", ()):
                self._engines[name].restore_link()

    def _of_rounds(self, index: int) -> str:
        """Their number, or what is known of it by now; at first what calibration says of it."""
        rounds = self.parameters.rounds
        if rounds == "auto":
            return f"about {self._planned}" if self._planned else "as many as it takes"
        needed = None if index else self.foretold_rounds().get(self.strategy.name)
        if needed is None:
            return str(rounds)
        return f"{rounds} ({needed.one or 'no number'} would tell the ratio foretold from 1)"

    def foretold_ratios(self) -> dict[str, float]:
        """Ratio to the baseline of each strategy, from calibration alone."""
        capacity = {facts.name: facts.capacity for facts in self.facts}
        return forecast.ratios(len(self.texts), self.expected_ms, capacity)

    def foretold_rounds(self) -> dict[str, pacing.Power]:
        """How many rounds each foretold ratio needs to be told from the gate, and from 1."""
        p, ratios = self.parameters, self.foretold_ratios()
        return forecast.powers(ratios, self.preparation, len(self.texts), p.gate_max_ratio, p.band)

    @property
    def fastest(self) -> str:
        return min(self.expected_ms, key=lambda name: self.expected_ms[name])

    def _limits(
        self, limit: Limit, names: Sequence[str]
    ) -> tuple[dict[str, int] | None, dict[str, AdaptiveLimit]]:
        """How many requests each provider may hold, None: no limit; and the limits that move below.

        Without a limit those move that are forced, from 1 up; the next round begins with them.
        """
        adaptive = {settings.name: settings.adaptive for settings in self.parameters.providers}
        if limit == "none":
            for name in names:
                if adaptive.get(name) == "forced":
                    old = self._learned.get(name)
                    new = AdaptiveLimit(name, self.expected_ms[name], 1, len(self.texts))
                    self._learned[name] = old.again(self.clock()) if old else new
            return None, self._learned
        slots = {f.name: f.slots or f.capacity for f in self.facts}
        capacity = {f.name: f.capacity for f in self.facts}
        most = {"one": dict.fromkeys(capacity, 1), "capacity": capacity, "slots": slots}[limit]
        moving = [name for name in names if adaptive.get(name, "off") != "off"]
        return {name: most[name] for name in names}, {
            name: AdaptiveLimit(name, self.expected_ms[name], most[name], most[name])
            for name in moving
        }

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
            marked=bool(self.facts) and self.marked,
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
