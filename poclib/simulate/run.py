"""The dispatcher that runs for real, on SimPy's clock: only attempts and waiting are made up.

What it decides, holds back, sends again, sends twice and gives up is `measure.dispatch`, imported.
"""

from __future__ import annotations

import gc
import heapq
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import simpy
from msgspec.structs import asdict, replace

from ..errors import ProviderError, TimedOut, Unreachable
from ..measure.adaptive import AdaptiveLimit
from ..measure.attempt import Job, Policy, Rules
from ..measure.dispatch import Dispatch
from ..measure.lanes import Lane
from ..measure.lengths import Fresh
from ..measure.slots import Pool
from ..measure.strategies import by_name
from ..records import Outcome, Prompt, Request, RequestMarks
from ..stats import minimum_n
from .scenario import Result, Scenario
from .server import Attempt, Server, after

# Steps of a bisection: a ratio of 128 comes down to half a percent.
STEPS, REACH = 10, 128.0
OnRow = Callable[[Request], None]


class Coordinator(Dispatch):
    """A dispatcher whose tasks are `Attempt`s at `Server`s, and whose prompts may come in time."""

    def __init__(self, asked: Scenario, on_row: OnRow = lambda row: None) -> None:
        self.env, self.asked, self.on_row = simpy.Environment(), asked, on_row
        self.came, self.all_ended = asked.arriving(), self.env.event()
        self.draw = draw = Random(asked.seed)
        policy = Policy(
            asked.backoff_s, asked.breaker_failures, asked.breaker_pause_s, asked.hedge_after,
            draw.random,
        )  # fmt: skip
        usual = sum(one.output_tokens or 0 for one in self.came) / len(self.came)
        strategy, lanes = by_name(asked.strategy), list[Lane]()
        ahead = strategy.limit == "ahead"
        for kind in asked.machines:
            held = {"one": 1, "capacity": kind.capacity, "slots": kind.slots}  # as `measure.run`
            most = (held | {"ahead": kind.capacity + kind.queues}).get(strategy.limit)
            for number in range(kind.count):
                name = f"{kind.name}-{number}" if kind.count > 1 else kind.name
                server: Any = Server(name, kind, self.env, draw, self.told)
                alone_ms = kind.alone_ms(usual) / server.speed + kind.way_ms
                # One of 1 cannot move.
                live = AdaptiveLimit(name, alone_ms, most, most) if most and most > 1 else None
                lanes.append(Lane(server, most, alone_ms, policy, live, ahead))
        servers: list[Any] = [lane.sender for lane in lanes]
        crowd = [one for one in servers if one.kind.crowded > 1]
        for one in crowd:
            one.host = [other for other in crowd if other is not one]
        texts = ("word" * (one.prompt_tokens or 0) for one in self.came)  # a token is a word
        pool, self.prompts = Pool(lanes), [Prompt(*each) for each in enumerate(texts)]
        pool.fed = self.came[-1].at_ms > 0
        self.coming = 0 if pool.fed else len(self.came)  # the first that has not come yet
        fresh = Fresh([] if pool.fed else self.prompts, pool.lengths, strategy.foresees)
        rules = Rules(asked.retries, asked.request_timeout_s, policy=policy)
        clock: Any = lambda: self.env.now  # noqa: E731
        super().__init__(strategy, pool, fresh, lanes, clock, rules, self._note, lambda _: None)
        self.woken, self.alarm_ms, self.free_ms = False, math.inf, 0.0
        self.timeouts: list[tuple[float, int, Attempt]] = []
        self.attempts = self.copied = self.refused = 0
        self.used_ms = self.wasted_ms = 0.0
        self.answered_ms: dict[int, float] = {}  # by prompt, from its arrival

    def simulated(self) -> Result:
        """Until all that came has ended."""
        after(self.env, self.came[0].at_ms, self._arrive if self.pool.fed else self._turn)
        collects = gc.isenabled()
        gc.disable()  # a million requests leave no cycle behind; to look for one takes a fifth
        try:
            self.env.run(self.all_ended)
        finally:
            if collects:
                gc.enable()
        waits_ms, asked, lasted_ms = sorted(self.answered_ms.values()), self.asked, self.env.now
        n, came = len(waits_ms), len(self.came)
        p50, p95, p99 = (
            waits_ms[int(q * n)] if n >= minimum_n(q) else None for q in (0.5, 0.95, 0.99)
        )
        worked_ms, seconds = self.used_ms + self.wasted_ms, max(1e-9, lasted_ms / 1000)
        in_time = asked.target_ms and bisect_right(waits_ms, asked.target_ms) / came
        return Result(
            requests=came, answered=n, refused=self.refused, attempts=self.attempts,
            copies=self.copied, makespan_ms=lasted_ms, per_s=n / seconds, p50_ms=p50, p95_ms=p95,
            p99_ms=p99, wasted=self.wasted_ms / max(1e-9, worked_ms), within=in_time,
            busy=self.attempts * asked.coordinator_ms / 1000 / seconds,
        )  # fmt: skip

    def _arrive(self, _: Any) -> None:
        most = self.asked.queue_limit
        if most is not None and self.waiting >= most:
            self.refused += 1
        else:
            self.back.append(Job(self.prompts[self.coming]))
        self.coming += 1
        if self.coming < len(self.came):
            after(self.env, self.came[self.coming].at_ms - self.env.now, self._arrive)
        self._wake()

    def _wake(self, task: Any = None) -> None:
        """Have all that ends at this moment looked at together."""
        if task:
            self.ended.append(task)
        if not self.woken:
            self.woken = True
            after(self.env, 0.0, self._turn)

    def _turn(self, _: Any) -> None:
        now_ms, tasks = self.env.now, self.ended
        self.woken, self.ended = False, []
        if self.all_ended.triggered:
            return
        if tasks or now_ms >= self.overdue_ms:
            self.taken(tasks)
        if not self.started(now_ms) and self.coming == len(self.came):
            self.all_ended.succeed()
            return
        patience_s = self.patience_s(now_ms)
        at_ms = math.inf if patience_s is None else now_ms + 1000 * patience_s
        at_ms = min(at_ms, self.timeouts[0][0] if self.timeouts else math.inf)
        if at_ms < self.alarm_ms:
            self.alarm_ms = at_ms
            after(self.env, at_ms - now_ms, self._alarm)

    def _alarm(self, _: Any) -> None:
        self.alarm_ms = math.inf
        while self.timeouts and self.timeouts[0][0] <= self.env.now:
            attempt = heapq.heappop(self.timeouts)[2]
            if not attempt.ended:
                self._end(attempt, TimedOut("no answer in time", attempt.server.name))
                attempt.server.drop(attempt)
        self._wake()

    def begin(self, lane: Lane, job: Job) -> Any:
        server: Any = lane.sender
        kind, each_ms = server.kind, self.asked.coordinator_ms
        self.free_ms = max(self.free_ms, self.env.now) + each_ms
        start_ms = max(self.free_ms, job.not_before_ms if job.avoid == lane.name else 0.0)
        tokens = self.came[job.prompt.index].output_tokens or 0
        work_ms = kind.alone_ms(tokens) / server.speed
        if kind.noise:
            work_ms *= self.draw.lognormvariate(0, kind.noise)
        attempt = Attempt(job, server, start_ms, work_ms)
        attempt.give_up = self._drop
        self.attempts += 1
        self.copied += job.role == "hedge"
        due_ms = start_ms + 1000 * self.rules.request_timeout_s
        heapq.heappush(self.timeouts, (due_ms, self.attempts, attempt))
        if len(self.timeouts) > 2 * len(self.in_flight) + 1000:
            self.timeouts = [one for one in self.timeouts if not one[2].ended]
            heapq.heapify(self.timeouts)
        server.send(attempt)
        return attempt

    def told(self, attempt: Attempt, problem: bool) -> None:
        """An answer, or the news that there is none, is back; or of how much was done in vain."""
        if problem or attempt.ended:
            self.wasted_ms += attempt.spent_ms
        else:
            self.used_ms += attempt.spent_ms
        attempt.spent_ms = 0.0
        if not attempt.ended:
            name = attempt.server.name
            self._end(attempt, Unreachable("it is gone", name) if problem else None)

    def _drop(self, attempt: Attempt) -> None:
        if not attempt.ended:
            self._end(attempt, None, "cancelled")
            attempt.server.drop(attempt)

    def _end(self, attempt: Attempt, error: ProviderError | None, outcome: Outcome = "ok") -> None:
        job, now_ms, start_ms = attempt.job, self.env.now, min(attempt.start_ms, self.env.now)
        whole = error is None and outcome == "ok"
        row = Request(
            prompt=job.prompt.index, provider=attempt.server.name, attempt=job.attempt,
            role=job.role, outcome="failed" if error else outcome, wall_ms=now_ms - start_ms,
            error=str(error) if error else None,
            marks=RequestMarks(
                start_ms=start_ms, sent_ms=start_ms, last_byte_ms=now_ms, end_ms=now_ms
            ),
            output_tokens=self.came[job.prompt.index].output_tokens if whole else None,
        )  # fmt: skip
        attempt.ended = row, error
        self._wake(attempt)

    def _note(self, row: Request) -> None:
        if row.outcome == "ok":
            at_ms = self.came[row.prompt].at_ms
            self.answered_ms[row.prompt] = (row.marks.end_ms or 0.0) - at_ms
        self.on_row(row)


def simulate(asked: Scenario, on_row: OnRow = lambda row: None) -> Result:
    """What comes of a scenario: the same for the same one. `on_row` gets each attempt.

    Raises `RunFailed` where a real run would, and `ParameterError` for a trace that cannot be read.
    """
    return Coordinator(asked, on_row).simulated()


def point(scenario: Mapping[str, Any]) -> dict[str, Any]:
    """One simulation as plain data, in and out: a task of a sweep. Raises as `simulate` does."""
    return asdict(simulate(Scenario.of(scenario)))


def knee(asked: Scenario, target_ms: float, share: float = 0.95) -> float | None:
    """The most requests a second of which that share is answered within `target_ms` of arrival.

    By bisection, to half a percent, up to twice what a batch of as many reaches; None where not
    even a 128th of that is.
    """
    asked = replace(asked, rate_per_s=None, trace=None, target_ms=target_ms)
    high = 2 * simulate(asked).per_s
    low = high / REACH

    def kept(rate_per_s: float) -> bool:
        return (simulate(replace(asked, rate_per_s=rate_per_s)).within or 0.0) >= share

    if not kept(low):
        return None
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low
