"""One machine in simulated time: its slots, its queue, its way, and when it is there at all."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random
from typing import Any

import simpy

from ..measure.attempt import Ended, Job
from .scenario import Machine


def after(env: simpy.Environment, ms: float, act: Callable[[Any], None], value: Any = None) -> Any:
    """Have `act` called so much later with the event, whose value is `value`; returns the event."""
    event = simpy.Timeout(env, max(0.0, ms), value)
    event.callbacks.append(act)
    return event


class Attempt:
    """One request under way, with what the dispatcher asks of a task; `ended` is its row and error.

    In its server it has to do `work_ms`, alone; `spent_ms` is what was done of it.
    """

    __slots__ = ("begun_ms", "ended", "give_up", "job", "server", "spent_ms", "start_ms", "work_ms")

    def __init__(self, job: Job, server: Server, start_ms: float, work_ms: float) -> None:
        self.job, self.server, self.start_ms, self.work_ms = job, server, start_ms, work_ms
        self.give_up: Callable[[Attempt], None]
        self.ended: Ended | None = None
        self.begun_ms = self.spent_ms = 0.0

    def cancel(self) -> None:
        self.give_up(self)

    def done(self) -> bool:
        return self.ended is not None

    def result(self) -> Ended | None:
        return self.ended


class Server:
    """A machine: requests share it as its kind says, the rest wait their turn.

    `told(attempt, problem)` is called when an answer, or the news that there is none, is back.
    All requests on it go on at one pace, so one number says how far: `done_ms` is the work, alone,
    that a request which was there from the beginning would have had.
    """

    def __init__(
        self, name: str, kind: Machine, env: simpy.Environment, draw: Random, told: Any
    ) -> None:
        self.name, self.kind, self.env, self.draw, self.told = name, kind, env, draw, told
        self.speed = draw.lognormvariate(0, kind.speed_sigma)
        self.half_ms = kind.way_ms / 2
        self.on: list[tuple[float, float, Attempt]] = []  # by what `done_ms` is at their end
        self.waiting: list[Attempt] = []
        self.done_ms = self.since_ms = self.number = 0.0
        self.paces = [0.0, *(1 / kind.slower(n + 1) for n in range(kind.slots))]
        self.awake = self.there = True
        self.next: Any = None
        self.host: list[Server] = []  # the others beside it, where they are in each other's way
        self.pace = 0.0
        if kind.up_s is not None and draw.random() < kind.down_s / (kind.up_s + kind.down_s):
            self._go(None)
        elif kind.up_s is not None:
            after(env, 1000 * draw.expovariate(1 / kind.up_s), self._go)

    def send(self, attempt: Attempt) -> None:
        """The coordinator starts it at its `start_ms`."""
        after(self.env, attempt.start_ms - self.env.now + self.half_ms, self._come, attempt)

    def drop(self, attempt: Attempt) -> None:
        """The coordinator has given it up; half a way later the machine knows."""
        after(self.env, self.half_ms, self._drop, attempt)

    def _come(self, event: Any) -> None:
        if event.value.ended:
            return
        if self.there:
            self.waiting.append(event.value)
            if len(self.on) < self.kind.slots:
                self._fill()
        else:
            self._tell(event.value, True)

    def _advance(self) -> None:
        now_ms = self.env.now
        self.done_ms += (now_ms - self.since_ms) * self.pace
        self.since_ms = now_ms

    def _fill(self) -> None:
        """Begin what has room."""
        self._advance()
        while self.waiting and len(self.on) < self.kind.slots:
            attempt = self.waiting.pop(0)
            if not attempt.ended:
                self.number += 1
                attempt.begun_ms = self.done_ms
                heapq.heappush(self.on, (self.done_ms + attempt.work_ms, self.number, attempt))
        was = self.pace
        self._go_on()
        if self.host and (was > 0) != (self.pace > 0):
            for other in self.host:
                other._advance()
                other._go_on()

    def _go_on(self) -> None:
        """Set the pace, and expect the end of what will be done first."""
        self.pace, self.next = self.paces[len(self.on)] if self.awake else 0.0, None
        if self.pace and self.host:
            busy = sum(other.pace > 0 for other in self.host) / len(self.host)
            self.pace /= 1 + (self.kind.crowded - 1) * busy
        if self.pace:
            left_ms = (self.on[0][0] - self.done_ms) / self.pace
            self.next = after(self.env, left_ms, self._end)

    def _end(self, event: Any) -> None:
        if event is self.next:
            self._advance()
            self.done_ms, _, attempt = heapq.heappop(self.on)
            attempt.spent_ms = attempt.work_ms
            self._fill()
            self._tell(attempt, False)

    def _tell(self, attempt: Attempt, problem: bool) -> None:
        if self.half_ms:
            after(self.env, self.half_ms, lambda _: self.told(attempt, problem))
        else:
            self.told(attempt, problem)

    def _drop(self, event: Any) -> None:
        self._leave(lambda attempt: attempt is event.value)
        self.told(event.value, True)
        self._fill()

    def _leave(self, whom: Callable[[Attempt], bool]) -> list[Attempt]:
        """Who is under way here no more; what was done of each is noted."""
        self._advance()
        left = [attempt for _, _, attempt in self.on if whom(attempt)]
        for attempt in left:
            attempt.spent_ms = self.done_ms - attempt.begun_ms
        if left:
            self.on = [one for one in self.on if not whom(one[2])]
            heapq.heapify(self.on)
        return left

    def _go(self, _: Any) -> None:
        """It sleeps, or is gone with all that it held."""
        self._advance()
        self.awake = False
        if self.draw.random() >= self.kind.sleeps:
            self.there = False
            lost = [*self._leave(lambda _: True), *self.waiting]
            self.waiting.clear()
            for attempt in lost:
                self._tell(attempt, True)
        self._fill()
        after(self.env, 1000 * self.draw.expovariate(1 / self.kind.down_s), self._return)

    def _return(self, _: Any) -> None:
        self._advance()
        self.awake = self.there = True
        self._fill()
        after(self.env, 1000 * self.draw.expovariate(1 / (self.kind.up_s or 1.0)), self._go)
