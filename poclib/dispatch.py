"""Carry a strategy out: limits per provider, retries, cancellation, the journal.

It is handed the providers and knows neither their wire formats nor what a run is for.
One loop owns all state: it asks the strategy, starts what the limits allow, waits for the
first request to end, and repeats. A limit holds under every strategy, since it is enforced
here; a strategy whose limit is "none" sets it aside on purpose, and the arm says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from .adaptive import MOST_REFUSALS, AdaptiveLimit, pause_after
from .errors import ProviderError, ReportError, RunFailed, TimedOut
from .records import Arm, ArmName, Exchange, Outcome, Prompt, Request, RequestMarks
from .strategies import PoolView, ProviderView, Strategy

T = TypeVar("T")
# Weight of the newest answer in a provider's expected time.
NEWEST_WEIGHT = 0.3
# How long a strategy that keeps prompts waiting is left alone, in seconds: a request that
# is long overdue is no event, yet may change where it wants the next prompt.
ASK_AGAIN_S = 0.1


class Sender(Protocol):
    """What dispatch needs of a provider."""

    @property
    def name(self) -> str: ...

    async def send(self, prompt: Prompt, exchange: Exchange) -> None: ...


@dataclass(frozen=True)
class Rules:
    """What holds for every request: `retries` after the first attempt, and time limits.

    `deadline_ms` is the moment on the report's clock at which everything is cancelled.
    `store_text` keeps the answers in the rows, which otherwise hold only their hash.
    """

    retries: int = 1
    request_timeout_s: float = 120.0
    deadline_ms: float = float("inf")
    store_text: bool = False


Done = Callable[[Request], None]


@dataclass(frozen=True)
class _Job:
    """A prompt given to a provider; `pause_s` is how long its server asked us to hold off."""

    prompt: Prompt
    assigned_ms: float | None = None
    attempt: int = 1
    pause_s: float = 0.0


# A row, and the error where there was one.
_Ended = tuple[Request, ProviderError | None]


@dataclass
class _Lane:
    """One provider's queue and what it has in flight."""

    sender: Sender
    limit: int | None
    expected_ms: float
    live: AdaptiveLimit | None = None
    queue: deque[_Job] = field(default_factory=deque)
    running: dict[asyncio.Task[_Ended], float] = field(default_factory=dict)  # started at, ms

    @property
    def busy(self) -> int:
        return len(self.queue) + len(self.running)

    def has_room(self) -> bool:
        return bool(self.queue) and (self.allowed is None or len(self.running) < self.allowed)

    @property
    def allowed(self) -> int | None:
        """What it may hold now: its limit, or what trouble has left of it."""
        return self.live.limit if self.live else self.limit

    def view(self) -> ProviderView:
        started_ms = tuple(self.running.values())
        return ProviderView(
            self.sender.name, self.allowed, self.expected_ms, started_ms, len(self.queue)
        )

    def ended(self, task: asyncio.Task[_Ended], error: ProviderError | None, now_ms: float) -> bool:
        """Tell the live limit how a request ended; True where the provider turned it away."""
        if self.live is None:
            return False
        refused = error is not None and error.status in (429, 503)
        if error is None:
            self.live.answered(id(task), now_ms)
        elif refused:
            self.live.refused(id(task), now_ms)
        else:
            self.live.failed(id(task))
        return refused

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
    live: Mapping[str, AdaptiveLimit] | None = None,
) -> Arm:
    """Have every prompt answered once, and return the arm with each attempt as a row.

    `limits` maps provider name to requests in flight, None sets them aside; `expected_ms`
    maps it to the time of one request alone. `on_done` gets each row before the next
    request is sent to its slot. `live` maps providers to limits that move, in place of
    theirs in `limits`. An arm cut by the deadline lacks answers: its rows tell.
    Raises `RunFailed` where a strategy stalls or names a provider that is not there.
    """
    lanes = {
        s.name: _Lane(
            s,
            limits[s.name] if limits is not None else None,
            expected_ms[s.name],
            (live or {}).get(s.name),
        )
        for s in senders
    }
    rows: list[Request] = []
    # Ended requests in the order they ended: waiting for the next costs the same however
    # many are in flight.
    ended: asyncio.Queue[asyncio.Task[_Ended]] = asyncio.Queue()
    in_flight: dict[asyncio.Task[_Ended], tuple[_Lane, _Job]] = {}
    fresh = iter(prompts)
    waiting = len(prompts)

    def keep(request: Request) -> None:
        rows.append(request)
        on_done(request)

    try:
        while (waiting or any(lane.busy for lane in lanes.values())) and (
            (now_ms := clock()) < rules.deadline_ms
        ):
            if waiting:
                views = tuple(lane.view() for lane in lanes.values())
                for name in strategy.decide(PoolView(now_ms, waiting, views)):
                    if name not in lanes or not waiting:
                        raise RunFailed(f"strategy {strategy.name}: cannot give work to {name!r}.")
                    lanes[name].queue.append(_Job(next(fresh), now_ms))
                    waiting -= 1
            for lane in lanes.values():
                while lane.has_room():
                    job = lane.queue.popleft()
                    task = asyncio.create_task(_attempt(lane.sender, job, clock, rules))
                    task.add_done_callback(ended.put_nowait)
                    lane.running[task] = now_ms
                    if lane.live:
                        lane.live.begun(id(task), now_ms)
                    in_flight[task] = (lane, job)
            if not in_flight:
                raise RunFailed(f"strategy {strategy.name}: {waiting} prompts wait, none is sent.")
            for task in await _next(ended, ASK_AGAIN_S if waiting else None):
                lane, job = in_flight.pop(task)
                del lane.running[task]
                request, error = task.result()
                keep(request)
                lane.learn(request)
                if lane.ended(task, error, clock()) and job.attempt < MOST_REFUSALS:
                    wait_s = pause_after(job.attempt, error.retry_after_s if error else None)
                    lane.queue.append(_Job(job.prompt, clock(), job.attempt + 1, wait_s))
                elif error and error.temporary and job.attempt <= rules.retries:
                    chosen = _best_other(lane, lanes)
                    pause_s = (error.retry_after_s or 0.0) if chosen is lane else 0.0
                    chosen.queue.append(_Job(job.prompt, clock(), job.attempt + 1, pause_s))
    finally:
        for request in await _cancelled(list(in_flight)):
            keep(request)
    enforced = dict(limits) if limits is not None else None
    changes = [change for lane in lanes.values() if lane.live for change in lane.live.changes]
    return Arm(
        arm=arm, strategy=strategy.name, limits=enforced, requests=rows, limit_changes=changes
    )


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


async def attempt(
    sender: Sender, prompt: Prompt, clock: Callable[[], float], rules: Rules
) -> Request:
    """One attempt outside any arm, as a row: a failure is a row too, and so is the deadline.

    A cancellation from outside is passed on.
    """
    request, _ = await _attempt(sender, _Job(prompt), clock, rules)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return request


async def _attempt(sender: Sender, job: _Job, clock: Callable[[], float], rules: Rules) -> _Ended:
    """One attempt as a row, whatever came of it: cancellations end as rows too."""
    exchange = Exchange(clock)
    outcome: Outcome = "ok"
    error: ProviderError | None = None
    problem: str | None = None
    left_s = (rules.deadline_ms - clock()) / 1000
    allowed_s = job.pause_s + rules.request_timeout_s
    limit = asyncio.timeout(min(left_s, allowed_s))
    try:
        async with limit:
            if job.pause_s:
                await asyncio.sleep(job.pause_s)
            await sender.send(job.prompt, exchange)
    except TimeoutError:
        if not limit.expired():
            raise
        if left_s <= allowed_s:
            outcome, problem = "cancelled", "cut by a time limit (run_limit_s or arm_limit_s)"
        else:
            error = TimedOut(
                f"provider {sender.name}: not finished within {rules.request_timeout_s:g} s; "
                "raise request_timeout_s if it is only slow.",
                sender.name,
            )
    except ProviderError as raised:
        error = raised
    except asyncio.CancelledError:
        outcome = "cancelled"
    if error:
        outcome, problem = "failed", str(error)
    text = "".join(exchange.pieces)
    start_ms, end_ms = exchange.marks.get("start_ms"), exchange.marks.get("end_ms")
    queued_ms = None
    if start_ms is not None and job.assigned_ms is not None:
        queued_ms = max(0.0, start_ms - job.assigned_ms)
    row = Request(
        prompt=job.prompt.index,
        provider=sender.name,
        attempt=job.attempt,
        outcome=outcome,
        error=problem,
        error_kind=type(error).__name__ if error else None,
        status=error.status if error else None,
        wall_ms=None if start_ms is None or end_ms is None else end_ms - start_ms,
        queued_ms=queued_ms,
        marks=RequestMarks(assigned_ms=job.assigned_ms, **exchange.marks),
        server=exchange.server,
        prompt_tokens=exchange.prompt_tokens,
        cached_tokens=exchange.cached_tokens,
        output_tokens=exchange.output_tokens,
        finish_reason=exchange.finish_reason,
        answer_sha256=hashlib.sha256(text.encode()).hexdigest() if outcome == "ok" else None,
        answer=text if rules.store_text and outcome == "ok" else None,
        token_ms=exchange.token_ms or None,
    )
    return row, error


def _best_other(failed: _Lane, lanes: Mapping[str, _Lane]) -> _Lane:
    """The least busy lane other than the one that just failed, if there is another."""
    others = [lane for lane in lanes.values() if lane is not failed] or [failed]
    return min(others, key=lambda lane: (lane.busy + 1) * lane.expected_ms)


async def _cancelled(tasks: Sequence[asyncio.Task[_Ended]]) -> list[Request]:
    """Cancel what is in flight and return its rows; whoever ended meanwhile keeps its own."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [result[0] for result in results if not isinstance(result, BaseException)]


class Journal:
    """Every row on disk, one JSON line each, before the next request goes to its slot.

    So a run that is killed keeps what was measured. Raises `ReportError` where the file
    cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    @contextlib.contextmanager
    def open(self, header: Mapping[str, Any]) -> Iterator[Journal]:
        """Begin the file anew with `header` as its first line, for as long as the block runs."""
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8")
        try:
            self.write(header)
            yield self
        finally:
            with self._explained():
                self._file.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Add one line, which other readers of the file see at once."""
        assert self._file is not None, "the journal is open while a run goes on"
        with self._explained():
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ReportError(
                f"{self.path.name}: the journal cannot be written ({error.strerror}); "
                "free the disk or choose a folder that can be written."
            ) from None
