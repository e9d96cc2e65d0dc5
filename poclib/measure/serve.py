"""Find the rate at which a pool answers in time what comes whatever the pool does: an open loop.

The moments at which requests are due are drawn before a step begins, and a slow
answer delays none of them. `serving` says what a step is worth and which rate comes next.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

from .. import arrivals, serving
from ..errors import RunFailed
from ..parameters import Serve
from ..records import Prompt, Request
from ..report import NO_ROUND
from .dispatch import run_arm
from .lengths import Fresh, Lengths
from .run import Run
from .strategies import by_name

# So many times as long as its requests take to come must be left for one more step.
MARGIN = 1.5


class Coming(Fresh):
    """Prompts that come at `due`, each in its turn; one that finds `limit` waiting is `refused`."""

    def __init__(
        self,
        due: Sequence[float],
        limit: int,
        refused: list[int],
        prompts: Sequence[Prompt],
        lengths: Lengths,
        _: bool,
    ) -> None:
        super().__init__(prompts, lengths, longest_first=False)
        self._left = deque()
        self._due, self._limit, self._refused = deque(enumerate(due)), limit, refused

    @property
    def due_ms(self) -> float:  # type: ignore[override]
        """When the next one comes; infinity once all have."""
        return self._due[0][1] if self._due else Fresh.due_ms

    def come(self, held: int) -> None:
        """Take in the one that is due, or refuse it."""
        index, _ = self._due.popleft()
        (self._left if held + len(self) < self._limit else self._refused).append(index)


class Served(Run):
    """Prepared as a run is; then steps, each an arm of the preparation that a stop leaves whole."""

    @property
    def wanted(self) -> Serve:
        """What is looked for."""
        return self.parameters.serve or Serve()

    def _requests(self, rounds: int) -> int:
        return super()._requests(0) + self.wanted.steps * self.wanted.requests

    async def _steps(self) -> None:
        await self._begin()
        first_per_s = sum(1000 / self.expected_ms[name] for name in self.calibrated)
        while True:
            done = [serving.step(arm, self.wanted.target_ms) for arm in self.report.preparation]
            steps = [step for step in done if step]
            rate_per_s = serving.next_rate(steps, self.wanted, first_per_s)
            if rate_per_s is None:
                break
            left_s = (self.rules.deadline_ms - self.clock()) / 1000
            if steps and left_s < MARGIN * self.wanted.requests / rate_per_s:
                self.report.notes.append("the time (run_limit_s) ended it after this many steps.")
                break
            await self._step(rate_per_s)
        self.report.notes.extend(await self.changed(self.senders))
        self.progress("done", self._done, self._done)

    async def _step(self, rate_per_s: float) -> None:
        """Offer one rate. Raises `RunFailed` where the time ends in it."""
        p, count, refused = self.parameters, self.wanted.requests, list[int]()
        names, turn = self.asked_by(p.strategy), f"{rate_per_s:.4g} per s"
        limits, live = self._limits(p.strategy, names)
        prompts = self.prompts("served", turn, count)
        await self.probe(names, 1)
        begin = {"strategy": p.strategy, "limits": limits}
        self._file.write({"arm": "served", "round": NO_ROUND, "turn": turn, "begin": begin})
        begun_ms = self.clock()
        due_ms = [begun_ms + one.at_ms for one in arrivals.filling(rate_per_s, count, p.seed)]

        def done(request: Request) -> None:
            self._file.write({"request": request})
            self._done += 1
            self._expected = max(self._expected, self._done)
            self.progress(turn, self._done, self._expected)

        ran = await run_arm(
            "served",
            by_name(p.strategy),
            prompts,
            [self.senders[name] for name in names],
            limits,
            self.expected_ms,
            self.clock,
            self.rules,
            done,
            live=live,
            tell=self.report.notes.append,
            feed=partial(Coming, due_ms, self.wanted.queue_limit, refused),
        )
        if self.clock() >= self.rules.deadline_ms:
            raise RunFailed(
                f"the test reached run_limit_s ({p.run_limit_s:g} s) at {turn}; with --resume and "
                "a longer one it goes on from the steps that are done."
            )
        end = {"rate_per_s": rate_per_s, "due_ms": due_ms, "refused": refused}
        end["limit_changes"] = [change.model_dump() for change in ran.limit_changes]
        self._file.write({"end": end})
        self._file.sync()
        whole = ran.model_copy(update=end | {"turn": turn, "limit_changes": ran.limit_changes})
        self.report.preparation.append(whole)
