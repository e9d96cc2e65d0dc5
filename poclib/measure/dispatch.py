"""Carry a strategy out: ask it, start what the limits allow, wait for the next end, repeat.

Limits are enforced here, below every strategy. A prompt that failed, was refused, or is queued at
a provider in trouble waits again, before those never sent, and the strategy is asked again.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ..contention import REFUSALS
from ..errors import ProviderError, RunFailed
from ..records import Arm, ArmName, Prompt, Request
from .adaptive import AdaptiveLimit, pause_after
from .attempt import LONGEST_S, Breaker, Ended, Job, Rules, Sender, attempted
from .strategies import PoolView, ProviderView, Strategy

# Weight of the newest answer in a provider's expected time.
NEWEST_WEIGHT = 0.3
# How long a strategy that keeps prompts waiting is left alone: a request that is long overdue is
# no event, yet may change where it wants the next prompt.
ASK_AGAIN_S = 0.1
# How long what is cancelled may take to close its connection before it is left behind.
CLOSING_S = 0.5
BEATEN = {"outcome": "cancelled", "error": "another copy of it was answered first"}
NO_ANSWER = {"answer": None, "answer_sha256": None}

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
) -> Arm:
    """Have every prompt answered once, and return the arm with each attempt as a row.

    By provider: `limits` is the most requests in flight (None: no limit), `live` limits that move
    in their place, `expected_ms` the time of one request alone. `on_done` gets each row before the
    next request is sent; without `keep_rows` nobody else does. `tell` gets a sentence on a provider
    that asks for a longer pause than any is. An arm cut by the deadline lacks answers.
    Raises `RunFailed` where a strategy stalls or names a provider that is not there, and where
    every provider has only refused for as long as the longest pause is.
    """
    policy, live = rules.policy, live or {}
    lanes = {
        sender.name: Lane(
            sender,
            limits[sender.name] if limits is not None else None,
            expected_ms[sender.name],
            Breaker(policy.breaker_failures, policy.breaker_pause_s),
            live.get(sender.name),
        )
        for sender in senders
    }
    rows: list[Request] = []

    def keep(request: Request) -> None:
        if keep_rows:
            rows.append(request)
        on_done(request)

    fresh = (Job(prompt) for prompt in prompts)
    await _Dispatch(strategy, fresh, len(prompts), lanes, clock, rules, keep, tell).run()
    return Arm(
        arm=arm,
        strategy=strategy.name,
        limits=dict(limits) if limits is not None else None,
        requests=rows,
        limit_changes=[change for moving in live.values() for change in moving.changes],
    )


@dataclass
class Lane:
    """One provider's part in an arm: what it was given and has not sent, and what is in flight."""

    sender: Sender
    limit: int | None
    expected_ms: float
    breaker: Breaker
    live: AdaptiveLimit | None = None
    queue: deque[Job] = field(default_factory=deque)
    running: dict[Task, float] = field(default_factory=dict)  # started at, ms
    refusing_ms: float | None = None  # since when it has only refused
    put_off: bool = False  # whether it has asked for longer than any pause is

    @property
    def busy(self) -> int:
        return len(self.queue) + len(self.running)

    @property
    def allowed(self) -> int | None:
        """What it may hold now: its limit, or what trouble has left of it."""
        return self.live.limit if self.live else self.limit

    def view(self) -> ProviderView:
        started_ms = tuple(self.running.values())
        limit = self.allowed if self.breaker.closed else 1
        return ProviderView(self.sender.name, limit, self.expected_ms, started_ms, len(self.queue))

    def ended(self, task: Task, request: Request | None, now_ms: float) -> bool:
        """Learn from how a request ended (None: beaten); True if refused as one too many."""
        del self.running[task]
        if request and request.outcome == "ok":
            self.refusing_ms = None
            if request.wall_ms is not None:
                self.expected_ms += NEWEST_WEIGHT * (request.wall_ms - self.expected_ms)
            if self.live:
                ended_ms, sent_ms = request.marks.last_byte_ms, request.marks.sent_ms
                server_ms = None if ended_ms is None or sent_ms is None else ended_ms - sent_ms
                self.live.answered(id(task), now_ms, server_ms)
        elif request and request.status in REFUSALS:
            self.refusing_ms = now_ms if self.refusing_ms is None else self.refusing_ms
            return self.live is not None and self.live.refused(id(task), now_ms)
        elif self.live:
            self.live.failed(id(task))
        return False


@dataclass
class _Dispatch:
    """All state of one arm while it runs."""

    strategy: Strategy
    fresh: Iterator[Job]
    unsent: int  # how many `fresh` has left
    lanes: Mapping[str, Lane]
    clock: Callable[[], float]
    rules: Rules
    keep: Callable[[Request], None]
    tell: Callable[[str], None]
    # What came back: for any provider, and by the provider that it is not for, at least for now.
    back: deque[Job] = field(default_factory=deque)
    elsewhere: dict[str, deque[Job]] = field(default_factory=dict)
    trials_ms: list[float] = field(default_factory=list)  # when a provider is tried again
    touched: dict[str, Lane] = field(default_factory=dict)  # which may have something to start
    in_flight: dict[Task, tuple[Lane, Job]] = field(default_factory=dict)
    # In the order they ended: waiting for the next costs the same however many are in flight.
    ended: asyncio.Queue[Task] = field(default_factory=asyncio.Queue)
    hedged: set[int] = field(default_factory=set)  # prompts that were given a second copy
    overdue_ms: float = inf  # when the next is to be given one

    async def run(self) -> None:
        """Until every prompt has ended, or the deadline; nothing is left in flight."""
        try:
            while (now_ms := self.clock()) < self.rules.deadline_ms:
                self._give(now_ms)
                self._send(now_ms)
                if not self.in_flight and self.waiting:
                    stalled = f"{self.waiting} prompts wait, none is sent."
                    raise RunFailed(f"strategy {self.strategy.name}: {stalled}")
                if not self.in_flight and not self.elsewhere:
                    return
                for task in await _next(self.ended, self._patience_s(now_ms)):
                    if task in self.in_flight:  # else its row went with the answer that beat it
                        await self._take(task)
        finally:
            for request in await _cancelled(list(self.in_flight)):
                self.keep(request)

    @property
    def waiting(self) -> int:
        return len(self.back) + self.unsent

    def _able(self, now_ms: float, without: str = "") -> dict[str, Lane]:
        """Who may be given work; with every provider in trouble none is spared.

        Without one that failed: who has failed lately too is taken only where all others have.
        """
        able = {n: lane for n, lane in self.lanes.items() if lane.breaker.admits(now_ms, lane.busy)}
        others = {n: lane for n, lane in (able or self.lanes).items() if n != without}
        well = {n: lane for n, lane in others.items() if not lane.breaker.in_a_row}
        return (well if without else None) or others

    def _give(self, now_ms: float) -> None:
        """Ask the strategy where what waits goes; with nothing left, hedge what is late."""
        while self.trials_ms and self.trials_ms[0] <= now_ms:
            heapq.heappop(self.trials_ms)
            self._recall(self.lanes.values())
        for name, jobs in list(self.elsewhere.items()):
            others = self._able(now_ms, without=name)
            if others:
                self._spread(jobs, len(jobs), others, now_ms)
            for job in list(jobs):
                if job.not_before_ms <= now_ms or (not others and job.not_before_ms == inf):
                    jobs.remove(job)
                    self.back.append(replace(job, not_before_ms=0.0))
            if not jobs:
                del self.elsewhere[name]
        if self.waiting:
            self._spread(self.back, self.waiting, self._able(now_ms), now_ms)
        self.overdue_ms = inf if self.waiting or self.elsewhere else self._hedge(now_ms)

    def _spread(
        self, jobs: deque[Job], waiting: int, able: Mapping[str, Lane], now_ms: float
    ) -> None:
        """Give prompts, `jobs` before those never sent, to whom the strategy names.

        Who is in trouble gets one, as a trial; what it was to have beyond that is for the others.
        """
        views = tuple(lane.view() for lane in able.values())
        names = self.strategy.decide(PoolView(now_ms, waiting, views))
        if len(names) > waiting or not able.keys() >= set(names):
            told = f"strategy {self.strategy.name}: cannot give work to {', '.join(set(names))}."
            raise RunFailed(told)
        tried: set[str] = set()
        for name in names:
            lane = able[name]
            if lane.busy and lane.breaker.half_open(now_ms):
                tried.add(name)
                continue
            waiting -= 1
            if jobs:
                job = jobs.popleft()
            else:
                job, self.unsent = next(self.fresh), self.unsent - 1
            given_ms = now_ms if job.assigned_ms is None else job.assigned_ms
            lane.queue.append(replace(job, assigned_ms=given_ms))
            self.touched[name] = lane
        if tried and tried < able.keys():
            others = {n: lane for n, lane in able.items() if n not in tried}
            self._spread(jobs, waiting, others, now_ms)

    def _send(self, now_ms: float) -> None:
        """Start what has room."""
        for lane in self.touched.values():
            while lane.queue and (lane.allowed is None or len(lane.running) < lane.allowed):
                job = lane.queue.popleft()
                task = asyncio.create_task(attempted(lane.sender, job, self.clock, self.rules))
                task.add_done_callback(self.ended.put_nowait)
                lane.running[task] = now_ms
                if lane.live:
                    lane.live.begun(id(task), now_ms)
                self.in_flight[task] = (lane, job)
        self.touched.clear()

    async def _take(self, task: Task) -> None:
        """An attempt has ended: keep its row, learn from it, and see to its prompt."""
        lane, job = self.in_flight.pop(task)
        self.touched[lane.sender.name] = lane
        request, error = task.result()
        self.keep(request)
        now_ms = self.clock()
        crowded = lane.ended(task, request, now_ms)
        if error and error.status in REFUSALS:
            crowded &= self._patient(lane, error, now_ms)
        if not crowded and request.outcome != "cancelled":
            self._judge(lane, error is None or not error.elsewhere, now_ms)
        in_flight = self.in_flight if job.prompt.index in self.hedged else {}
        copies = [copy for copy, (_, other) in in_flight.items() if other.prompt is job.prompt]
        if copies and request.outcome == "ok":
            for late in await _cancelled(copies):
                self.keep(late.model_copy(update=BEATEN | NO_ANSWER))
            for copy in copies:
                where, _ = self.in_flight.pop(copy)
                where.ended(copy, None, now_ms)
                self.touched[where.sender.name] = where
        elif copies:  # one may yet answer it: sent once more, the prompt would be answered twice
            for copy in copies:
                where, left = self.in_flight[copy]
                last = max(job.attempt, left.attempt)
                self.in_flight[copy] = (where, replace(left, attempt=last))
        elif error:
            self._return(job, error, lane, crowded, now_ms)

    def _judge(self, lane: Lane, worked: bool, now_ms: float) -> None:
        """Note how the provider fares; where trouble begins or ends, what is unsent waits anew."""
        was_closed = lane.breaker.closed
        lane.breaker.record(worked, now_ms)
        if lane.breaker.trial_ms is not None:
            heapq.heappush(self.trials_ms, lane.breaker.trial_ms)
            self._recall([lane])
        elif not was_closed:
            self._recall(self.lanes.values())

    def _recall(self, lanes: Iterable[Lane]) -> None:
        """Prompts that were given but not sent wait again."""
        for lane in lanes:
            while lane.queue:
                self._wait(lane.queue.popleft())

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
        retries, name = job.retries, lane.sender.name
        if crowded:
            pause_s = pause_after(job.attempt, error.retry_after_s)
        else:
            useful = error.elsewhere if len(self.lanes) > 1 else error.temporary
            if not useful or retries >= self.rules.retries:
                return
            retries += 1
            failures = min(job.attempt, lane.breaker.in_a_row)
            asked_s = min(error.retry_after_s or 0.0, LONGEST_S)
            pause_s = max(asked_s, self.rules.policy.backoff(failures))
            if self._able(now_ms, without=name):
                pause_s = inf
        until_ms, attempt = now_ms + 1000 * pause_s, job.attempt + 1
        self._wait(Job(job.prompt, None, attempt, "retry", retries, name, until_ms))

    def _patient(self, lane: Lane, error: ProviderError, now_ms: float) -> bool:
        """Whether a provider that refuses is worth a wait; the arm ends where none is any more."""
        longest_ms, asked_s = 1000 * LONGEST_S, error.retry_after_s or 0.0
        if asked_s > LONGEST_S and not lane.put_off:
            lane.put_off = True
            self.tell(
                f"{lane.sender.name} asked to be left alone for {asked_s:,.0f} s; "
                f"no pause here is longer than {LONGEST_S:g} s."
            )
        since_ms = (one.refusing_ms for one in self.lanes.values())
        too_long = all(ms is not None and now_ms - ms >= longest_ms for ms in since_ms)
        if too_long and all(task.done() for task in self.in_flight):
            raise RunFailed(
                f"strategy {self.strategy.name}: every provider has refused for {LONGEST_S:g} s, "
                f"at last so: {str(error).rstrip('.')}. Run again once they have room."
            )
        return asked_s <= LONGEST_S and now_ms - (lane.refusing_ms or 0.0) < longest_ms

    def _hedge(self, now_ms: float) -> float:
        """Give idle providers a second copy of what is overdue; return when the next will be."""
        after, lanes = self.rules.policy.hedge_after, self.lanes.values()
        if after is None or any(lane.queue for lane in lanes):
            return inf
        idle = [lane for lane in lanes if not lane.running and lane.breaker.closed]
        due = [
            (lane.running[task] + after * lane.expected_ms, job)
            for task, (lane, job) in self.in_flight.items()
            if idle and job.prompt.index not in self.hedged
        ]
        due.sort(key=lambda one: one[0])
        idle.sort(key=lambda lane: lane.expected_ms)
        for (due_ms, job), lane in zip(due, idle, strict=False):
            if due_ms > now_ms:
                return due_ms
            lane.queue.append(Job(job.prompt, now_ms, job.attempt + 1, "hedge", job.retries))
            self.touched[lane.sender.name] = lane
            self.hedged.add(job.prompt.index)
        return inf

    def _patience_s(self, now_ms: float) -> float | None:
        """Seconds until something is to be done although no request ended; None: never.

        Never beyond the deadline: what does not heed its cancellation then is left behind.
        """
        moments = [self.rules.deadline_ms + 1000 * CLOSING_S, self.overdue_ms, *self.trials_ms[:1]]
        moments += [job.not_before_ms for jobs in self.elsewhere.values() for job in jobs]
        if self.waiting or self.elsewhere:
            moments.append(now_ms + 1000 * ASK_AGAIN_S)
        return None if min(moments) == inf else max(0.001, (min(moments) - now_ms) / 1000)


async def _next(ended: asyncio.Queue[Task], patience_s: float | None) -> list[Task]:
    """All that ended by now; if nothing did, what ends next; nothing if that takes too long."""
    tasks: list[Task] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            tasks.append(await ended.get())
    while not ended.empty():
        tasks.append(ended.get_nowait())
    return tasks


async def _cancelled(tasks: Sequence[Task]) -> list[Request]:
    """Cancel what is in flight and return its rows; whoever ended meanwhile keeps its own.

    What does not end within `CLOSING_S` is left behind: no provider can hold a run up.
    """
    if not tasks:
        return []
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks, timeout=CLOSING_S)
    whole = [t for t in tasks if t in done and not t.cancelled() and t.exception() is None]
    return [task.result()[0] for task in whole]
