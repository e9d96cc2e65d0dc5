"""Carry a strategy out: ask it, start what the limits allow, wait for the next end, repeat.

Limits are enforced here, below every strategy. A prompt that failed, was refused, or is queued at
a provider in trouble waits again, before those never sent, and the strategy is asked again.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf

from ..contention import REFUSALS
from ..errors import ProviderError, RunFailed
from ..records import Arm, ArmName, Prompt, Request
from .adaptive import AdaptiveLimit, pause_after
from .attempt import LONGEST_S, Ended, Job, Rules, Sender, attempted
from .copies import Flight, late, overdue, unbegun
from .lanes import Lane
from .lengths import Fresh, Lengths
from .slots import Place, Pool
from .strategies import Strategy

# How long a strategy that keeps prompts waiting is left alone: a request that is long overdue is
# no event, yet may change where it wants the next prompt.
ASK_AGAIN_S = 0.1
# Once nothing waits, all that is in flight is looked through: at every event where that is little,
# after some, the more the larger the pool, where it is much.
FEW, MANY = 32, 256
# How long what is cancelled may take to close its connection before it is left behind.
CLOSING_S = 0.5
Why = Mapping[str, str | None]
NO_ANSWER: Why = {"outcome": "cancelled", "answer": None, "answer_sha256": None}
BEATEN: Why = {**NO_ANSWER, "error": "another copy of it was answered first"}
TAKEN_BACK: Why = {"error": "taken back before it began: another provider was idle"}

Task = asyncio.Task[Ended]


async def run_arm(
    arm: ArmName,
    strategy: Strategy,
    prompts: Sequence[Prompt],
    senders: Sequence[Sender],
    limits: Mapping[str, int] | None,
    expected_ms: Mapping[str, float],
    clock: Callable[[], float],
    rules: Rules,
    on_done: Callable[[Request], None] = lambda request: None,
    keep_rows: bool = True,
    live: Mapping[str, AdaptiveLimit] | None = None,
    tell: Callable[[str], None] = lambda told: None,
    feed: Callable[[Sequence[Prompt], Lengths, bool], Fresh] = Fresh,
) -> Arm:
    """Have every prompt answered once, and return the arm with each attempt as a row.

    By provider: `limits` is the most requests in flight (None: no limit), `live` limits that move
    in their place, `expected_ms` the time of one request alone. `on_done` gets each row before the
    next request is sent; without `keep_rows` nobody else does. `tell` gets a sentence on a provider
    that asks for a longer pause than any is. An arm cut by the deadline lacks answers.
    `feed` makes the line of prompts, to which more may come (`Fresh.due_ms`).
    Raises `RunFailed` where a strategy stalls or names a provider that is not there, and where
    every provider has only refused for as long as the longest pause is.
    """
    live, ahead, rows = live or {}, strategy.limit == "ahead", list[Request]()
    lanes = []
    for one in senders:
        limit, moving = None if limits is None else limits[one.name], live.get(one.name)
        lanes.append(Lane(one, limit, expected_ms[one.name], rules.policy, moving, ahead))

    def keep(request: Request) -> None:
        if keep_rows:
            rows.append(request)
        on_done(request)

    pool = Pool(lanes)
    fresh = feed(prompts, pool.lengths, strategy.foresees)
    pool.fed = fresh.due_ms < inf
    await Dispatch(strategy, pool, fresh, lanes, clock, rules, keep, tell).run()
    return Arm(
        arm=arm,
        strategy=strategy.name,
        limits=dict(limits) if limits is not None else None,
        requests=rows,
        limit_changes=[change for moving in live.values() for change in moving.changes],
    )


@dataclass
class Dispatch:
    """All state of one arm while it runs; `simulate` replaces `run` and `begin`, nothing else."""

    strategy: Strategy
    pool: Pool
    fresh: Fresh
    lanes: Sequence[Lane]
    clock: Callable[[], float]
    rules: Rules
    keep: Callable[[Request], None]
    tell: Callable[[str], None]
    # What came back: for any provider, and by the provider that it is not for, at least for now.
    back: deque[Job] = field(default_factory=deque)
    elsewhere: dict[str, deque[Job]] = field(default_factory=dict)
    trials_ms: list[tuple[float, int]] = field(default_factory=list)  # who is tried again when
    loaded: dict[int, Lane] = field(default_factory=dict)  # by rank, who has work not sent yet
    in_flight: dict[Task, tuple[Lane, Job]] = field(default_factory=dict)
    # In the order they ended: waiting for the next costs the same however many are in flight.
    ended: list[Task] = field(default_factory=list)
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    copies: dict[int, set[Task]] = field(default_factory=dict)  # of prompts that were sent twice
    given_up: dict[Task, Why] = field(default_factory=dict)  # and what that says
    look_again: int = 0  # events until what is late is looked for again
    overdue_ms: float = inf  # when the next is to be sent again

    def __post_init__(self) -> None:
        self.named = {lane.name: lane for lane in self.lanes}

    async def run(self) -> None:
        """Until every prompt has ended, or the deadline; nothing is left in flight."""
        try:
            while (now_ms := self.clock()) < self.rules.deadline_ms and self.started(now_ms):
                self.taken(await self._next(self.patience_s(now_ms)))
        finally:
            await self._cancel()

    def started(self, now_ms: float) -> bool:
        """Give and send what can be by now; False where nothing is left to wait for."""
        self.pool.now_ms = now_ms
        self._give(now_ms)
        self._send(now_ms)
        while self.fresh.due_ms <= now_ms:
            queues = self.back, *self.elsewhere.values(), *(lane.queue for lane in self.lanes)
            self.fresh.come(sum(map(len, queues)))
            self._give(now_ms)
            self._send(now_ms)
        if not self.in_flight and (left := self.waiting):
            raise RunFailed(f"strategy {self.strategy.name}: {left} prompts wait, none is sent.")
        beaten = sum(why is BEATEN for why in self.given_up.values())
        coming = bool(self.elsewhere) or self.fresh.due_ms < inf
        return len(self.in_flight) > beaten or coming

    def taken(self, tasks: Sequence[Task]) -> None:
        """See to what has ended."""
        self.look_again = self.look_again - len(tasks) if tasks else 0
        for task in tasks:
            self._take(task)

    @property
    def waiting(self) -> int:
        return len(self.back) + len(self.fresh)

    def _touch(self, lane: Lane) -> None:
        lane.changed(self.pool.now_ms)
        self.pool.touch(lane)

    def _give(self, now_ms: float) -> None:
        """Ask the strategy where what waits goes; with nothing left, see to what is late."""
        while self.trials_ms and self.trials_ms[0][0] <= now_ms:
            self._touch(self.lanes[heapq.heappop(self.trials_ms)[1]])
            self._recall(list(self.loaded.values()))
        for name, jobs in list(self.elsewhere.items()):
            self.pool.without, self.pool.waiting = self.named[name], len(jobs)
            others = self.pool.others
            while jobs and others and (place := self.strategy.decide(self.pool)):
                self._queue(place, jobs.popleft())
            self.pool.without = None
            for job in list(jobs):
                if job.not_before_ms <= now_ms or (not others and job.not_before_ms == inf):
                    jobs.remove(job)
                    self.back.append(replace(job, not_before_ms=0.0))
            if not jobs:
                del self.elsewhere[name]
        self.pool.waiting = self.waiting
        while self.pool.waiting and (place := self.strategy.decide(self.pool)):
            job = self.back.popleft() if self.back else Job(self.fresh.taken(), now_ms)
            self._queue(place, job)
            self.pool.waiting -= 1
        if self.waiting or self.elsewhere or self.loaded or self.fresh.due_ms < inf:
            self.overdue_ms = inf
        elif self.look_again <= 0:
            self._see_to_the_late(now_ms)
            size = len(self.in_flight)
            self.look_again = min(size, MANY) * size // FEW**2

    def _queue(self, place: Place, job: Job) -> None:
        lane = self.lanes[place.rank]
        if job.assigned_ms is None:
            job = replace(job, assigned_ms=self.pool.now_ms)
        lane.queue.append(job)
        self.loaded[lane.rank] = lane
        self._touch(lane)

    def _send(self, now_ms: float) -> None:
        for lane in list(self.loaded.values()):
            while lane.queue and (lane.allowed is None or len(lane.running) < lane.allowed):
                job = lane.queue.popleft()
                task = self.begin(lane, job)
                lane.begun(task, now_ms)
                self.in_flight[task] = (lane, job)
                if job.prompt.index in self.copies:
                    self.copies[job.prompt.index].add(task)
            if not lane.queue:
                del self.loaded[lane.rank]

    def begin(self, lane: Lane, job: Job) -> Task:
        """Have one attempt under way."""
        task = asyncio.create_task(attempted(lane.sender, job, self.clock, self.rules))
        task.add_done_callback(self._wake)
        return task

    def _wake(self, task: Task) -> None:
        self.ended.append(task)
        self.awake.set()

    async def _next(self, patience_s: float | None) -> list[Task]:
        """All that ended by now; if nothing did, what ends next; nothing if that takes too long."""
        if not self.ended:
            self.awake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.awake.wait()
        tasks, self.ended = self.ended, []
        return tasks

    def _take(self, task: Task) -> None:
        """An attempt has ended: keep its row, learn from it, and see to its prompt."""
        lane, job = self.in_flight.pop(task)
        request, error = task.result()
        why = self.given_up.pop(task, None)
        beaten = why is BEATEN
        if why and (beaten or request.outcome == "cancelled"):
            request, error = request.model_copy(update=why), None
        self.keep(request)
        now_ms = self.pool.now_ms = self.clock()
        begun_ms = lane.running[task]
        crowded = lane.ended(task, None if beaten else request, now_ms)
        if not beaten:
            if request.outcome == "ok":
                lane.learn(self.pool.lengths, job, request, now_ms - begun_ms)
            if error and error.status in REFUSALS:
                crowded &= self._patient(lane, error, now_ms)
            if not crowded and request.outcome != "cancelled":
                self._judge(lane, error is None or not error.elsewhere, now_ms)
        self._touch(lane)
        copies = self.copies.get(job.prompt.index, set())
        copies.discard(task)
        if beaten:
            return
        if copies and request.outcome == "ok":
            for copy in copies:
                self._give_up(copy, BEATEN)
            copies.clear()
        elif copies:  # one may yet answer it: sent once more, the prompt would be answered twice
            for copy in copies:
                where, left = self.in_flight[copy]
                last = max(job.attempt, left.attempt)
                self.in_flight[copy] = (where, replace(left, attempt=last))
            if len(copies) == 1 and not crowded and last <= 1 + self.rules.retries:
                del self.copies[job.prompt.index]  # it stands alone: it may be late once more
        elif error:
            self._return(job, error, lane, crowded, now_ms)
        elif why and request.outcome == "cancelled":
            self._wait(Job(job.prompt, None, job.attempt + 1, "retry", job.retries))

    def _give_up(self, task: Task, why: Why) -> None:
        self.given_up[task] = why
        task.cancel()

    def _judge(self, lane: Lane, worked: bool, now_ms: float) -> None:
        """Note how the provider fares; where trouble begins or ends, what is unsent waits anew."""
        was_closed = lane.breaker.closed
        lane.breaker.record(worked, now_ms)
        if lane.breaker.trial_ms is not None:
            heapq.heappush(self.trials_ms, (lane.breaker.trial_ms, lane.rank))
            self._recall([lane])
        elif not was_closed:
            self._recall(list(self.loaded.values()))

    def _recall(self, lanes: Iterable[Lane]) -> None:
        """Prompts that were given but not sent wait again."""
        for lane in lanes:
            while lane.queue:
                self._wait(lane.queue.popleft())
            self.loaded.pop(lane.rank, None)
            self._touch(lane)

    def _wait(self, job: Job) -> None:
        apart = job.avoid and len(self.lanes) > 1
        line = self.elsewhere.setdefault(job.avoid, deque()) if apart else self.back
        line.append(job)

    def _return(
        self, job: Job, error: ProviderError, lane: Lane, crowded: bool, now_ms: float
    ) -> None:
        """A prompt that failed or was refused waits again, where that may help: for others.

        For this provider too, after a pause, if only refused as one too many, or no other is able.
        """
        retries = job.retries
        if crowded:
            pause_s = pause_after(job.attempt, error.retry_after_s)
        else:
            useful = error.elsewhere if len(self.lanes) > 1 else error.temporary
            if not useful or retries >= self.rules.retries:
                return
            retries += 1
            asked_s = min(error.retry_after_s or 0.0, LONGEST_S)
            backoff_s = self.rules.policy.backoff(min(job.attempt, lane.breaker.in_a_row))
            pause_s = inf if self.pool.other_than(lane) else max(asked_s, backoff_s)
        until_ms, attempt = now_ms + 1000 * pause_s, job.attempt + 1
        self._wait(Job(job.prompt, None, attempt, "retry", retries, lane.name, until_ms))

    def _patient(self, lane: Lane, error: ProviderError, now_ms: float) -> bool:
        """Whether a provider that refuses is worth a wait; the arm ends where none is any more."""
        longest_ms, asked_s = 1000 * LONGEST_S, error.retry_after_s or 0.0
        if asked_s > LONGEST_S and not lane.put_off:
            lane.put_off = True
            self.tell(
                f"{lane.name} asked to be left alone for {asked_s:,.0f} s; "
                f"no pause here is longer than {LONGEST_S:g} s."
            )
        since_ms = (now_ms if one.refusing_ms is None else one.refusing_ms for one in self.lanes)
        if now_ms - max(since_ms) >= longest_ms and all(task.done() for task in self.in_flight):
            raise RunFailed(
                f"strategy {self.strategy.name}: every provider has refused for {LONGEST_S:g} s, "
                f"at last so: {str(error).rstrip('.')}. Run again once they have room."
            )
        return asked_s <= LONGEST_S and now_ms - (lane.refusing_ms or 0.0) < longest_ms

    def _see_to_the_late(self, now_ms: float) -> None:
        """Nothing waits: send what is late again, or take back what has not begun elsewhere."""
        ahead, after = self.strategy.limit == "ahead", self.rules.policy.hedge_after
        flights: list[Flight] = []
        if ahead or self.strategy.foresees or after is not None:
            under_way = self.in_flight.items()
            flights = [(t, *where) for t, where in under_way if t not in self.given_up]
        self.overdue_ms = inf
        if self.strategy.foresees:
            for job, place in late(self.pool, flights):
                self._copy(job, place)
            self.overdue_ms = now_ms + 1000 * ASK_AGAIN_S * max(1, len(flights) / MANY)
        elif after is not None:
            for one in overdue(self.pool, flights, after, set(self.copies)):
                if isinstance(one, float):
                    self.overdue_ms = one
                else:
                    self._copy(*one)
        if ahead:
            for task in unbegun(self.pool, flights):
                self._give_up(task, TAKEN_BACK)

    def _copy(self, job: Job, place: Place) -> None:
        """Have a prompt sent once more, beside what is in flight of it."""
        index = job.prompt.index
        if index not in self.copies:
            same = {t for t, (_, one) in self.in_flight.items() if one.prompt is job.prompt}
            self.copies[index] = same
        attempt = 1 + max(self.in_flight[task][1].attempt for task in self.copies[index])
        self._queue(place, Job(job.prompt, None, attempt, "hedge", job.retries))

    def patience_s(self, now_ms: float) -> float | None:
        """Seconds until something is to be done although no request ended; None: never.

        Never beyond the deadline: what does not heed its cancellation then is left behind.
        """
        moments = [self.rules.deadline_ms + 1000 * CLOSING_S, self.overdue_ms, self.fresh.due_ms]
        moments += [ms for ms, _ in self.trials_ms[:1]]
        moments += [job.not_before_ms for jobs in self.elsewhere.values() for job in jobs]
        if self.waiting or self.elsewhere:
            moments.append(now_ms + 1000 * ASK_AGAIN_S)
        next_ms = min(moments)
        return None if next_ms == inf else max(0.001, (next_ms - now_ms) / 1000)

    async def _cancel(self) -> None:
        """Cancel what is in flight and keep its rows; whoever ended meanwhile keeps its own.

        What does not end within `CLOSING_S` is left behind: no provider can hold a run up.
        """
        for task in self.in_flight:
            if task not in self.given_up:  # else it has been told
                task.cancel()
        done = (await asyncio.wait(self.in_flight, timeout=CLOSING_S))[0] if self.in_flight else ()
        for task in self.in_flight:
            if task in done and not task.cancelled() and task.exception() is None:
                row = task.result()[0]
                self.keep(row.model_copy(update=self.given_up.get(task, {})))
