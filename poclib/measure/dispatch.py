"""Carry a strategy out: limits per provider, failures met by a policy, cancellation.

It is handed the providers and knows neither their wire formats nor what a run is for.
One loop owns all state: it asks the strategy, starts what the limits allow, waits for the
first request to end, and repeats. A limit holds under every strategy, since it is enforced
here; a strategy whose limit is "none" sets it aside on purpose, and the arm says so. Rows
are handed on as attempts end, and kept here only if that is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import TypeVar

from ..errors import ProviderError, RunFailed
from ..records import Arm, ArmName, Prompt, Request
from .adaptive import AdaptiveLimit, pause_after
from .attempt import Ended, Job, Rules, Sender, attempted
from .lanes import Lane, best_other, fail_over, soonest
from .policy import LONGEST_S, Breaker, hedge_due_ms, most_overdue
from .strategies import PoolView, Strategy

T = TypeVar("T")
# How long a strategy that keeps prompts waiting is left alone, in seconds: a request that
# is long overdue is no event, yet may change where it wants the next prompt.
ASK_AGAIN_S = 0.1
# How long what is cancelled may take to close its connection before it is left behind.
CLOSING_S = 0.5
BEATEN = "another copy of it was answered first"

Done = Callable[[Request], None]


async def run_arm(
    arm: ArmName,
    strategy: Strategy,
    prompts: Sequence[Prompt],
    senders: Sequence[Sender],
    limits: Mapping[str, int] | None,
    expected_ms: Mapping[str, float],
    clock: Callable[[], float],
    rules: Rules,
    on_done: Done = lambda request: None,
    keep_rows: bool = True,
    live: Mapping[str, AdaptiveLimit] | None = None,
    tell: Callable[[str], None] = lambda told: None,
) -> Arm:
    """Have every prompt answered once, and return the arm with each attempt as a row.

    `limits` maps provider name to requests in flight, None sets them aside; `expected_ms`
    maps it to the time of one request alone. `on_done` gets each row before the next
    request is sent to its slot; without `keep_rows` it is the only one to get them. `live`
    maps providers to limits that move, in place of theirs in `limits`. `tell` gets a sentence
    on a provider that asks for a longer pause than any is. An arm cut by the deadline lacks
    answers: its rows tell.
    Raises `RunFailed` where a strategy stalls or names a provider that is not there, and where
    every provider has only refused for as long as the longest pause is.
    """
    lanes = {
        s.name: Lane(
            s,
            limits[s.name] if limits is not None else None,
            expected_ms[s.name],
            Breaker(rules.policy.breaker_failures, rules.policy.breaker_pause_s),
            (live or {}).get(s.name),
        )
        for s in senders
    }
    rows: list[Request] = []

    def keep(request: Request) -> None:
        if keep_rows:
            rows.append(request)
        on_done(request)

    await _Dispatch(strategy, prompts, lanes, clock, rules, keep, tell).run()
    enforced = dict(limits) if limits is not None else None
    changes = [change for lane in lanes.values() if lane.live for change in lane.live.changes]
    return Arm(
        arm=arm, strategy=strategy.name, limits=enforced, requests=rows, limit_changes=changes
    )


class _Dispatch:
    """All state of one arm while it runs."""

    def __init__(
        self,
        strategy: Strategy,
        prompts: Sequence[Prompt],
        lanes: Mapping[str, Lane],
        clock: Callable[[], float],
        rules: Rules,
        keep: Done,
        tell: Callable[[str], None],
    ) -> None:
        self.strategy, self.lanes, self.clock, self.rules = strategy, lanes, clock, rules
        self.policy, self.keep, self.tell = rules.policy, keep, tell
        self.fresh = iter(prompts)
        self.waiting = len(prompts)
        self.in_flight: dict[asyncio.Task[Ended], tuple[Lane, Job]] = {}
        # Ended requests in the order they ended: waiting for the next costs the same however
        # many are in flight.
        self.ended: asyncio.Queue[asyncio.Task[Ended]] = asyncio.Queue()
        self.hedged: set[int] = set()  # prompts that were given a second copy

    async def run(self) -> None:
        """Until every prompt has ended, or the deadline; nothing is left in flight."""
        try:
            while (self.waiting or any(lane.busy for lane in self.lanes.values())) and (
                (now_ms := self.clock()) < self.rules.deadline_ms
            ):
                fail_over(self.lanes, now_ms)
                self._give(now_ms)
                self._send(now_ms)
                for task in await _next(self.ended, self._patience_s(now_ms)):
                    if task in self.in_flight:  # else its row went with the answer that beat it
                        await self._take(task)
        finally:
            for request in await _cancelled(list(self.in_flight)):
                self.keep(request)

    def _give(self, now_ms: float) -> None:
        """Ask the strategy where the next prompts go; with none left, hedge a late one."""
        if not self.waiting:
            self._hedge(now_ms)
            return
        # With every provider in trouble, none is spared: waiting would answer nothing.
        able = [one for one in self.lanes.values() if one.admits(now_ms)]
        views = tuple(lane.view() for lane in able or self.lanes.values())
        for name in self.strategy.decide(PoolView(now_ms, self.waiting, views)):
            if name not in self.lanes or not self.waiting:
                told = f"strategy {self.strategy.name}: cannot give work to {name!r}."
                raise RunFailed(told)
            self.lanes[name].queue.append(Job(next(self.fresh), now_ms, home=name))
            self.waiting -= 1

    def _send(self, now_ms: float) -> None:
        """Start what has room."""
        for lane in self.lanes.values():
            while lane.has_room():
                job = lane.queue.popleft()
                if job.pause_s:  # it has waited in the queue already
                    waited_s = (now_ms - (job.assigned_ms or 0.0)) / 1000
                    job = replace(job, pause_s=max(0.0, job.pause_s - waited_s))
                task = asyncio.create_task(attempted(lane.sender, job, self.clock, self.rules))
                task.add_done_callback(self.ended.put_nowait)
                lane.begin(task, now_ms)
                self.in_flight[task] = (lane, job)
        if not self.in_flight:
            raise RunFailed(
                f"strategy {self.strategy.name}: {self.waiting} prompts wait, none is sent."
            )

    async def _take(self, task: asyncio.Task[Ended]) -> None:
        """An attempt has ended: keep its row, learn from it, and see to its prompt."""
        lane, job = self.in_flight.pop(task)
        del lane.running[task]
        request, error = task.result()
        self.keep(request)
        lane.learn(request)
        now_ms = self.clock()
        crowded = lane.refused(task, (request, error), now_ms)
        if error and lane.refusing_ms is not None:
            crowded &= self._patient(lane, error, now_ms)
        others = self._copies(job) if job.prompt.index in self.hedged else []
        if crowded and others:  # a copy is under way: one more would answer the prompt twice
            await self._settle(request, job, others)
            return
        if crowded:  # too much at once: no failure of its own
            wait_s = pause_after(job.attempt, error.retry_after_s if error else None)
            later = replace(job, assigned_ms=now_ms, pause_s=wait_s, role="retry")
            lane.queue.append(replace(later, attempt=job.attempt + 1))
            return
        if request.outcome != "cancelled":
            lane.breaker.record(error is None or not error.elsewhere, now_ms)
        if others:
            await self._settle(request, job, others)
        elif error:
            self._retry(job, error, lane)

    def _patient(self, lane: Lane, error: ProviderError, now_ms: float) -> bool:
        """Whether a provider that refuses is worth a wait; the arm ends where none is any more."""
        longest_ms = 1000 * LONGEST_S
        asked_s = error.retry_after_s or 0.0
        if asked_s > LONGEST_S and not lane.put_off:
            lane.put_off = True
            self.tell(
                f"{lane.sender.name} asked to be left alone for {asked_s:,.0f} s; "
                f"no pause here is longer than {LONGEST_S:g} s."
            )
        since_ms = [one.refusing_ms for one in self.lanes.values()]
        at_work = any(
            not task.done() and where.running[task] + 1000 * job.pause_s <= now_ms
            for task, (where, job) in self.in_flight.items()
        )
        if not at_work and all(s is not None and now_ms - s >= longest_ms for s in since_ms):
            raise RunFailed(
                f"strategy {self.strategy.name}: every provider has refused for {LONGEST_S:g} s, "
                f"at last so: {str(error).rstrip('.')}. Run again once they have room."
            )
        return asked_s <= LONGEST_S and now_ms - (lane.refusing_ms or 0.0) < longest_ms

    def _copies(self, job: Job) -> list[asyncio.Task[Ended]]:
        here = self.in_flight.items()
        return [task for task, (_, other) in here if other.prompt is job.prompt]

    async def _settle(
        self, request: Request, job: Job, others: Sequence[asyncio.Task[Ended]]
    ) -> None:
        """One of several copies has ended: an answer ends the others, a failure leaves them."""
        if request.outcome != "ok":
            for other in others:
                where, left = self.in_flight[other]
                last = max(job.attempt, left.attempt)
                self.in_flight[other] = (where, replace(left, attempt=last))
            return
        for late in await _cancelled(others):
            self.keep(_beaten(late))
        for other in others:
            self.in_flight.pop(other)[0].drop(other)

    def _retry(self, job: Job, error: ProviderError, lane: Lane) -> None:
        """Try a failed prompt once more, elsewhere or here after a pause, where that may help."""
        now_ms = self.clock()
        chosen = best_other(lane, self.lanes, now_ms)
        useful = error.temporary if chosen is lane else error.elsewhere
        if not useful or job.retries >= self.rules.retries:
            return
        pause_s = 0.0
        if chosen is lane:
            asked_s = min(error.retry_after_s or 0.0, LONGEST_S)
            pause_s = max(asked_s, self.policy.backoff(job.attempt))
        again = replace(
            job,
            assigned_ms=now_ms,
            attempt=job.attempt + 1,
            pause_s=pause_s,
            role="retry",
            retries=job.retries + 1,
        )
        chosen.queue.append(again)

    def _hedge(self, now_ms: float) -> None:
        """Give an idle provider a second copy of the most overdue of the last prompts."""
        idle = self._idle()
        if not idle or any(lane.queue for lane in self.lanes.values()):
            return
        job = most_overdue(self._due_ms(), now_ms)
        if job is None:
            return
        copy = replace(job, assigned_ms=now_ms, attempt=job.attempt + 1, pause_s=0.0, role="hedge")
        soonest(idle).queue.append(copy)
        self.hedged.add(job.prompt.index)

    def _idle(self) -> list[Lane]:
        """Who could take a second copy; nobody where nothing is hedged."""
        lanes = self.lanes.values() if self.policy.hedge_after else ()
        return [lane for lane in lanes if not lane.busy and lane.breaker.closed]

    def _due_ms(self) -> Iterator[tuple[float, Job]]:
        """When each request in flight that has no copy yet counts as late."""
        for task, (lane, job) in self.in_flight.items():
            if job.prompt.index not in self.hedged:
                after = self.policy.hedge_after or 0.0
                yield hedge_due_ms(lane.running[task], lane.expected_ms, after), job

    def _patience_s(self, now_ms: float) -> float | None:
        """Seconds until something is to be done although no request ended; None: never.

        Never beyond the deadline: what does not heed its cancellation then is left behind.
        """
        if self.waiting:
            return ASK_AGAIN_S
        moments = [
            lane.breaker.trial_ms
            for lane in self.lanes.values()
            if lane.breaker.trial_ms is not None and lane.lent and not lane.busy
        ]
        if self._idle():
            moments += [moment for moment, _ in self._due_ms()]
        if self.rules.deadline_ms < inf:
            moments.append(self.rules.deadline_ms + 1000 * CLOSING_S)
        later = [moment for moment in moments if moment > now_ms]
        return max(0.001, (min(later) - now_ms) / 1000) if later else None


def _beaten(late: Request) -> Request:
    """The row of a copy that another one beat: however it ended, it is no answer."""
    nothing = {"answer": None, "answer_sha256": None}
    return late.model_copy(update={"outcome": "cancelled", "error": BEATEN, **nothing})


async def _next(ended: asyncio.Queue[T], patience_s: float | None) -> list[T]:
    """All that ended by now; if nothing did, what ends next; nothing if that takes too long."""
    found: list[T] = []
    if ended.empty():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                found.append(await ended.get())
    while not ended.empty():
        found.append(ended.get_nowait())
    return found


async def _cancelled(tasks: Sequence[asyncio.Task[Ended]]) -> list[Request]:
    """Cancel what is in flight and return its rows; whoever ended meanwhile keeps its own.

    What does not end within `CLOSING_S` is left behind: no provider can hold a run up.
    """
    for task in tasks:
        task.cancel()
    if not tasks:
        return []
    done, _ = await asyncio.wait(tasks, timeout=CLOSING_S)
    results = [task for task in tasks if task in done and not task.cancelled()]
    return [task.result()[0] for task in results if task.exception() is None]
