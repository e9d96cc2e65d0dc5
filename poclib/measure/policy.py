"""How failures are met: backoff, circuit breaker, hedging. Pure decisions; no clock, no I/O.

Every function is handed the time that it judges by, so that each is tested in microseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

Copy = TypeVar("Copy")
# No wait between attempts, and no pause of a breaker, grows beyond this.
LONGEST_S = 60.0


@dataclass(frozen=True)
class Policy:
    """What is done about failures; the defaults leave a run without any as it is.

    Before a further attempt at the same provider it waits `backoff_s`, doubled each time, with
    jitter. After `breaker_failures` in a row (0: never) a provider is
    left alone for `breaker_pause_s`, doubled each time its trial fails. `hedge_after`, times
    the expected time, is when a last prompt is sent to an idle provider too; None: never.
    """

    backoff_s: float = 0.5
    breaker_failures: int = 3
    breaker_pause_s: float = 5.0
    hedge_after: float | None = None
    jitter: Callable[[], float] = random.random

    def backoff(self, attempt: int) -> float:
        """Seconds to hold off after failed attempt `attempt` (from 1): half fixed, half drawn.

        The jitter keeps many clients from coming back at the same moment.
        """
        whole_s = min(LONGEST_S, self.backoff_s * 2.0 ** min(attempt - 1, 30))
        return whole_s * (0.5 + 0.5 * self.jitter())


class Breaker:
    """Whether a provider may be given work: closed, open for a pause, or half-open.

    Closed until `failures` attempts in a row failed; then open: nothing is sent for a pause.
    After it half-open: one request tries. Where that fails, it is open again, twice as long.
    """

    def __init__(self, failures: int, pause_s: float) -> None:
        self._failures = failures
        self._first_pause_ms = self._pause_ms = pause_s * 1000
        self.in_a_row = 0  # failures since something last worked
        self._until_ms: float | None = None

    @property
    def closed(self) -> bool:
        return self._until_ms is None

    @property
    def trial_ms(self) -> float | None:
        """The moment from which one request may try; None while closed."""
        return self._until_ms

    def admits(self, now_ms: float, in_flight: int) -> bool:
        """Whether one more request may be sent, with `in_flight` under way."""
        return self._until_ms is None or (now_ms >= self._until_ms and in_flight == 0)

    def record(self, worked: bool, now_ms: float) -> None:
        """Note how an attempt ended at `now_ms`."""
        if worked:
            self.in_a_row, self._until_ms, self._pause_ms = 0, None, self._first_pause_ms
            return
        self.in_a_row += 1
        if self._failures and self.in_a_row >= self._failures:
            if self._until_ms is not None and now_ms >= self._until_ms:  # its trial failed
                self._pause_ms = min(2 * self._pause_ms, LONGEST_S * 1000)
            self._until_ms = now_ms + self._pause_ms


def hedge_due_ms(started_ms: float, expected_ms: float, hedge_after: float) -> float:
    """The moment from which a request counts as later than expected."""
    return started_ms + hedge_after * expected_ms


def most_overdue(due_ms: Iterable[tuple[float, Copy]], now_ms: float) -> Copy | None:
    """Of requests by the moment they are due, the one that has been due the longest by now."""
    late = [one for one in due_ms if one[0] <= now_ms]
    return min(late, key=lambda one: one[0])[1] if late else None
