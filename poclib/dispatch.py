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
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TypeVar

from .adaptive import AdaptiveLimit, pause_after
from .attempts import Ended, Job, Rules, Sender, attempted
from .errors import ProviderError, RunFailed
from .policy import LONGEST_S, Breaker, Policy, hedge_due_ms, most_overdue
from .records import Arm, ArmName, Prompt, Request
from .strategies import PoolView, ProviderView, Strategy

T = TypeVar("T")
# Weight of the newest answer in a provider's expected time.
NEWEST_WEIGHT = 0.3
# How long a strategy that keeps prompts waiting is left alone, in seconds: a request that
# is long overdue is no event, yet may change where it wants the next prompt.
ASK_AGAIN_S = 0.1
# How long what is cancelled may take to close its connection before it is left behind.
CLOSING_S = 0.5
BEATEN = "another copy of it was answered first"


Done = Callable[[Request], None]


@dataclass
class _Lane:
    """One provider's queue and what it has in flight."""

    sender: Sender
    limit: int | None
    expected_ms: float
    breaker: Breaker
    live: AdaptiveLimit | None = None
    queue: deque[Job] = field(default_factory=deque)
    running: dict[asyncio.Task[Ended], float] = field(default_factory=dict)  # started at, ms
    lent: bool = False  # whether prompts of its own are queued elsewhere

    @property
    def busy(self) -> int:
        return len(self.queue) + len(self.running)

    def has_room(self) -> bool:
        return bool(self.queue) and (self.allowed is None or len(self.running) < self.allowed)

    @property
    def allowed(self) -> int | None:
        """What it may hold now: its limit, or what trouble has left of it."""
        return self.live.limit if self.live else self.limit

    def admits(self, now_ms: float) -> bool:
        return self.breaker.admits(now_ms, self.busy)

    def view(self) -> ProviderView:
        started_ms = tuple(self.running.values())
        limit = self.allowed if self.breaker.closed else 1
        return ProviderView(self.sender.name, limit, self.expected_ms, started_ms, len(self.queue))

    def refused(
        self, task: asyncio.Task[Ended], error: ProviderError | None, now_ms: float
    ) -> bool:
        """Tell the live limit how a request ended; True where it was one too many at once."""
        if self.live is None:
            return False
        if error is not None and error.status in (429, 503):
            return self.live.refused(id(task), now_ms)
        if error is None:
            self.live.answered(id(task), now_ms)
        else:
            self.live.failed(id(task))
        return False

    def learn(self, request: Request) -> None:
        if request.outcome == "ok" and request.wall_ms is not None:
            self.expected_ms += NEWEST_WEIGHT * (request.wall_ms - self.expected_ms)


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
) -> Arm:
    """Have every prompt answered once, and return the arm with each attempt as a row.

    `limits` maps provider name to requests in flight, None sets them aside; `expected_ms`
    maps it to the time of one request alone. `on_done` gets each row before the next
    request is sent to its slot; without `keep_rows` it is the only one to get them. `live`
    maps providers to limits that move, in place of theirs in `limits`. An arm cut by the
    deadline lacks answers: its rows tell.
    Raises `RunFailed` where a strategy stalls or names a provider that is not there.
    """
    policy = rules.policy
    lanes = {
        s.name: _Lane(
            s,
            limits[s.name] if limits is not None else None,
            expected_ms[s.name],
            Breaker(policy.breaker_failures, policy.breaker_pause_s),
            (live or {}).get(s.name),
        )
        for s in senders
    }
    rows: list[Request] = []
    # Ended requests in the order they ended: waiting for the next costs the same however
    # many are in flight.
    ended: asyncio.Queue[asyncio.Task[Ended]] = asyncio.Queue()
    in_flight: dict[asyncio.Task[Ended], tuple[_Lane, Job]] = {}
    hedged: set[int] = set()  # prompts that were given a second copy
    fresh = iter(prompts)
    waiting = len(prompts)

    def keep(request: Request) -> None:
        if keep_rows:
            rows.append(request)
        on_done(request)

    def copies(job: Job) -> list[asyncio.Task[Ended]]:
        return [task for task, (_, other) in in_flight.items() if other.prompt is job.prompt]

    try:
        while (waiting or any(lane.busy for lane in lanes.values())) and (
            (now_ms := clock()) < rules.deadline_ms
        ):
            _fail_over(lanes, now_ms)
            if waiting:
                # With every provider in trouble, none is spared: waiting would answer nothing.
                able = [one for one in lanes.values() if one.admits(now_ms)]
                views = tuple(lane.view() for lane in able or lanes.values())
                for name in strategy.decide(PoolView(now_ms, waiting, views)):
                    if name not in lanes or not waiting:
                        raise RunFailed(f"strategy {strategy.name}: cannot give work to {name!r}.")
                    lanes[name].queue.append(Job(next(fresh), now_ms, home=name))
                    waiting -= 1
            elif policy.hedge_after and (hedge := _hedge(lanes, in_flight, hedged, policy, now_ms)):
                idle, job = hedge
                idle.queue.append(job)
                hedged.add(job.prompt.index)
            for lane in lanes.values():
                while lane.has_room():
                    job = lane.queue.popleft()
                    task = asyncio.create_task(attempted(lane.sender, job, clock, rules))
                    task.add_done_callback(ended.put_nowait)
                    lane.running[task] = now_ms
                    if lane.live:
                        lane.live.begun(id(task), now_ms)
                    in_flight[task] = (lane, job)
            if not in_flight:
                raise RunFailed(f"strategy {strategy.name}: {waiting} prompts wait, none is sent.")
            patience_s: float | None = ASK_AGAIN_S
            if not waiting:
                patience_s = _patience_s(lanes, in_flight, hedged, policy, now_ms)
            for task in await _next(ended, patience_s):
                if task not in in_flight:
                    continue  # a copy whose row went with the answer that beat it
                lane, job = in_flight.pop(task)
                del lane.running[task]
                request, error = task.result()
                keep(request)
                lane.learn(request)
                if lane.refused(task, error, clock()):  # too much at once: no failure of its own
                    wait_s = pause_after(job.attempt, error.retry_after_s if error else None)
                    later = replace(job, assigned_ms=clock(), pause_s=wait_s, role="retry")
                    lane.queue.append(replace(later, attempt=job.attempt + 1))
                    continue
                if request.outcome != "cancelled":
                    lane.breaker.record(error is None or not error.elsewhere, clock())
                if job.prompt.index in hedged and (beaten := copies(job)):
                    if request.outcome != "ok":  # its other copy goes on alone
                        for other in beaten:
                            where, left = in_flight[other]
                            last = max(job.attempt, left.attempt)
                            in_flight[other] = (where, replace(left, attempt=last))
                        continue
                    for late in await _cancelled(beaten):
                        keep(_beaten(late))
                    for task in beaten:
                        where = in_flight.pop(task)[0]
                        where.running.pop(task)
                        if where.live:
                            where.live.failed(id(task))
                elif error and (again := _again(job, error, lane, lanes, rules, clock())):
                    again[0].queue.append(again[1])
    finally:
        for request in await _cancelled(list(in_flight)):
            keep(request)
    enforced = dict(limits) if limits is not None else None
    changes = [change for lane in lanes.values() if lane.live for change in lane.live.changes]
    return Arm(
        arm=arm, strategy=strategy.name, limits=enforced, requests=rows, limit_changes=changes
    )


def _again(
    job: Job,
    error: ProviderError,
    lane: _Lane,
    lanes: Mapping[str, _Lane],
    rules: Rules,
    now_ms: float,
) -> tuple[_Lane, Job] | None:
    """Where a failed prompt is tried once more, and after what pause; None: nowhere."""
    chosen = _best_other(lane, lanes, now_ms)
    useful = error.temporary if chosen is lane else error.elsewhere
    if not useful or job.retries >= rules.retries:
        return None
    pause_s = 0.0
    if chosen is lane:
        asked_s = min(error.retry_after_s or 0.0, LONGEST_S)
        pause_s = max(asked_s, rules.policy.backoff(job.attempt))
    again = replace(
        job,
        assigned_ms=now_ms,
        attempt=job.attempt + 1,
        pause_s=pause_s,
        role="retry",
        retries=job.retries + 1,
    )
    return chosen, again


def _fail_over(lanes: Mapping[str, _Lane], now_ms: float) -> None:
    """Move what is queued at a provider in trouble to others, and back once it works again."""
    for name, lane in lanes.items():
        if lane.breaker.closed and not lane.lent:
            continue
        others = [other for other in lanes.values() if other is not lane]
        if lane.breaker.closed:
            lane.queue.extend(job for other in others for job in _taken(other, name))
            lane.lent = False
            continue
        if not (well := [other for other in others if other.breaker.closed]):
            continue
        while lane.queue:
            min(well, key=_next_free_ms).queue.append(lane.queue.popleft())
            lane.lent = True
        if lane.lent and lane.admits(now_ms):  # one of its own prompts, as a trial
            own = (job for other in well for job in _taken(other, name, 1))
            lane.queue.extend(itertools.islice(own, 1))


def _taken(lane: _Lane, home: str, most: int | None = None) -> list[Job]:
    """Take out of a queue what another provider lent to it, at most so many."""
    mine = [job for job in lane.queue if job.home == home and job.role == "first"][:most]
    for job in mine:
        lane.queue.remove(job)
    return mine


def _hedge(
    lanes: Mapping[str, _Lane],
    in_flight: Mapping[asyncio.Task[Ended], tuple[_Lane, Job]],
    hedged: Set[int],
    policy: Policy,
    now_ms: float,
) -> tuple[_Lane, Job] | None:
    """An idle provider and the most overdue of the last prompts, as a second copy for it."""
    idle = [one for one in lanes.values() if not one.busy and one.breaker.closed]
    if not idle or any(lane.queue for lane in lanes.values()):
        return None
    job = most_overdue(_due_ms(in_flight, hedged, policy), now_ms)
    if job is None:
        return None
    copy = replace(job, assigned_ms=now_ms, attempt=job.attempt + 1, pause_s=0.0, role="hedge")
    return min(idle, key=_next_free_ms), copy


def _due_ms(
    in_flight: Mapping[asyncio.Task[Ended], tuple[_Lane, Job]],
    hedged: Set[int],
    policy: Policy,
) -> Iterator[tuple[float, Job]]:
    for task, (lane, job) in in_flight.items():
        if job.prompt.index not in hedged:
            started_ms = lane.running[task]
            yield hedge_due_ms(started_ms, lane.expected_ms, policy.hedge_after or 0.0), job


def _patience_s(
    lanes: Mapping[str, _Lane],
    in_flight: Mapping[asyncio.Task[Ended], tuple[_Lane, Job]],
    hedged: Set[int],
    policy: Policy,
    now_ms: float,
) -> float | None:
    """Seconds until something is to be done although no request ended; None: never."""
    moments = [
        lane.breaker.trial_ms
        for lane in lanes.values()
        if lane.breaker.trial_ms is not None and lane.lent and not lane.busy
    ]
    if policy.hedge_after and any(not lane.busy and lane.breaker.closed for lane in lanes.values()):
        moments += [moment for moment, _ in _due_ms(in_flight, hedged, policy)]
    later = [moment for moment in moments if moment > now_ms]
    return max(0.001, (min(later) - now_ms) / 1000) if later else None


def _next_free_ms(lane: _Lane) -> float:
    """How soon one more request there would end, roughly."""
    return (lane.busy + 1) * lane.expected_ms


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


def _best_other(failed: _Lane, lanes: Mapping[str, _Lane], now_ms: float) -> _Lane:
    """The least busy lane other than the one that just failed, if there is another.

    One that has failed lately is taken only where all others have: what is dead is idle too.
    """
    others = [lane for lane in lanes.values() if lane is not failed] or [failed]
    well = [lane for lane in others if lane.admits(now_ms)] or others
    return min(well, key=lambda lane: (lane.breaker.in_a_row, _next_free_ms(lane)))


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
