"""One provider's queue and what it has in flight, and moving work from one in trouble to others.

Knows times and jobs; sends nothing and waits for nothing. `dispatch` decides when.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..records import Request
from .adaptive import AdaptiveLimit
from .attempt import Ended, Job, Sender
from .policy import Breaker
from .strategies import ProviderView

# The statuses of a provider that has no room.
REFUSALS = (429, 503)
# Weight of the newest answer in a provider's expected time.
NEWEST_WEIGHT = 0.3


@dataclass
class Lane:
    """One provider's part in an arm."""

    sender: Sender
    limit: int | None
    expected_ms: float
    breaker: Breaker
    live: AdaptiveLimit | None = None
    queue: deque[Job] = field(default_factory=deque)
    running: dict[asyncio.Task[Ended], float] = field(default_factory=dict)  # started at, ms
    lent: bool = False  # whether prompts of its own are queued elsewhere
    refusing_ms: float | None = None  # since when it has only refused
    put_off: bool = False  # whether it has asked for longer than any pause is

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

    def begin(self, task: asyncio.Task[Ended], now_ms: float) -> None:
        self.running[task] = now_ms
        if self.live:
            self.live.begun(id(task), now_ms)

    def drop(self, task: asyncio.Task[Ended]) -> None:
        """Forget a request that was cancelled: it tells nothing of load."""
        del self.running[task]
        if self.live:
            self.live.failed(id(task))

    def refused(self, task: asyncio.Task[Ended], ended: Ended, now_ms: float) -> bool:
        """Tell the live limit how a request ended; True where it was one too many at once."""
        request, error = ended
        turned_away = error is not None and error.status in REFUSALS
        if request.outcome == "ok":
            self.refusing_ms = None
        elif turned_away and self.refusing_ms is None:
            self.refusing_ms = now_ms
        if self.live is None:
            return False
        if turned_away:
            return self.live.refused(id(task), now_ms)
        if request.outcome == "ok":
            self.live.answered(id(task), now_ms, _server_ms(request))
        else:
            self.live.failed(id(task))
        return False

    @property
    def next_free_ms(self) -> float:
        """How soon one more request here would end, roughly."""
        return (self.busy + 1) * self.expected_ms

    def learn(self, request: Request) -> None:
        if request.outcome == "ok" and request.wall_ms is not None:
            self.expected_ms += NEWEST_WEIGHT * (request.wall_ms - self.expected_ms)


def _server_ms(request: Request) -> float | None:
    """From its last byte sent to the last byte of its answer: the server's time, not ours."""
    marks = request.marks
    ended_ms, sent_ms = marks.last_byte_ms, marks.sent_ms
    return None if ended_ms is None or sent_ms is None else max(0.0, ended_ms - sent_ms)


def fail_over(lanes: Mapping[str, Lane], now_ms: float) -> None:
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
            soonest(well).queue.append(lane.queue.popleft())
            lane.lent = True
        if lane.lent and lane.admits(now_ms):  # one of its own prompts, as a trial
            own = (job for other in well for job in _taken(other, name, 1))
            lane.queue.extend(itertools.islice(own, 1))


def _taken(lane: Lane, home: str, most: int | None = None) -> list[Job]:
    """Take out of a queue what another provider lent to it, at most so many."""
    mine = [job for job in lane.queue if job.home == home and job.role == "first"][:most]
    for job in mine:
        lane.queue.remove(job)
    return mine


def soonest(lanes: Iterable[Lane]) -> Lane:
    """The lane in which one more request would end first."""
    return min(lanes, key=lambda lane: lane.next_free_ms)


def best_other(failed: Lane, lanes: Mapping[str, Lane], now_ms: float) -> Lane:
    """The least busy lane other than the one that just failed, if there is another.

    One that has failed lately is taken only where all others have: what is dead is idle too.
    """
    others = [lane for lane in lanes.values() if lane is not failed] or [failed]
    well = [lane for lane in others if lane.admits(now_ms)] or others
    return min(well, key=lambda lane: (lane.breaker.in_a_row, lane.next_free_ms))
