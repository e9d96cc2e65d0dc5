"""How many requests a provider may hold, found while it works: additive up, halved in trouble.

The scheme of TCP (Jacobson 1988; Chiu and Jain 1989): where all went well, one request more;
where the provider refused, or several requests waited so much longer for its server that so many
at once give less than fewer had given, half as many, and that level is left alone for a while,
longer each time. Only the server's time is held against it, never our own work or queue.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import inf
from statistics import fmean, stdev
from typing import Literal

from ..records import LimitChange
from .attempt import LONGEST_S

Reason = Literal["good", "slower", "refused", "learned"]
# Throughput against the best at fewer requests in flight, under which a level is given up.
LOSS = 0.8
# So many requests must tell of a loss, and so many answers make a level worth comparing with.
SEVERAL = 3
# A request's wait for its server is known no better than this, and by so much more for each
# request in flight, since the coordinator may share a machine with the server.
SEEN_MS, OWN_MS = 5.0, 0.7
# A machine may stand still for so long, which all in flight then tell of at once: below that, a
# request must tell of a loss that began after another had told of one.
STALL_MS = 500.0
# Weight of the newest answer in a level's mean time, once there are many.
NEWEST_WEIGHT = 0.1
# Good answers for each request in flight before one more is tried, and before a level that was
# given up is tried again (twice as many every time).
GOOD, PATIENCE = 3, 12
# The first wait after a refusal that names none, doubled with each attempt up to the last.
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 10.0


@dataclass
class _Running:
    begun_ms: float
    most: int  # in flight at once while it ran, itself among them


class AdaptiveLimit:
    """The limit of one provider in one arm; `limit` is what it may hold now.

    It begins at `start` and never exceeds `ceiling` (None: no bound); `alone_ms` is the wall time
    of one request alone. `changes` has every change with its reason.
    """

    def __init__(self, provider: str, alone_ms: float, start: int, ceiling: int | None) -> None:
        self.provider, self.limit, self.ceiling = provider, start, ceiling
        self.changes: list[LimitChange] = []
        # By requests in flight: answers that told, and the mean time each was held here.
        self._held = {1: (SEVERAL, alone_ms)} if alone_ms > 0 else {}
        self._running: dict[int, _Running] = {}
        self._good = 0
        self._waits: list[float] = []  # since the last change, against what would lose nothing
        self._told_ms = inf  # when the first since then told of a loss
        self._changed_ms = -inf
        self._bad = inf  # the fewest in flight that were too many
        self._patience = PATIENCE

    def again(self, now_ms: float) -> AdaptiveLimit:
        """A limit for the next arm that begins with what this one has found."""
        new = AdaptiveLimit(self.provider, 0, 1, self.ceiling)
        new._held, new._bad, new._patience = dict(self._held), self._bad, self._patience
        new._change(self.limit, now_ms, "learned", self.limit)
        new._changed_ms = -inf
        return new

    def begun(self, key: int, now_ms: float) -> None:
        """A request was sent; `key` names it until it ends."""
        self._running[key] = _Running(now_ms, 0)
        for one in self._running.values():
            one.most = max(one.most, len(self._running))

    def answered(self, key: int, now_ms: float, server_ms: float | None = None) -> None:
        """Learn from an answer's time, and move the limit.

        `server_ms` is how long it waited for the server; None: all the while.
        """
        one = self._running.pop(key)
        held_ms = now_ms - one.begun_ms
        known = (ms / n for n, (k, ms) in self._held.items() if n < one.most and k >= SEVERAL)
        fair_ms = max(1e-6, one.most * min(known, default=inf))  # long enough to lose nothing
        count, mean_ms = self._held.get(one.most, (0, 0.0))
        mean_ms += max(NEWEST_WEIGHT, 1 / (count + 1)) * (held_ms - mean_ms)
        self._held[one.most] = count + 1, mean_ms
        waited_ms = held_ms if server_ms is None else max(0.0, server_ms)
        tells = one.begun_ms >= self._changed_ms  # else it tells of the time before
        if tells and fair_ms < inf:
            self._waits = [*self._waits, waited_ms / fair_ms][-max(SEVERAL, self.limit) :]
        lost_ms = waited_ms - fair_ms
        if LOSS * waited_ms > fair_ms and lost_ms > SEEN_MS + OWN_MS * one.most:
            if tells:
                self._told_ms = min(self._told_ms, now_ms)
                again = lost_ms > STALL_MS or one.begun_ms >= self._told_ms
                if again and self._lost():
                    self._fall(one.most, now_ms, "slower")
            return
        if one.begun_ms >= self._told_ms:  # it was for a moment only
            self._told_ms = inf
        self._good, more = self._good + 1, self.limit + 1
        needed = max(GOOD * self.limit, self._patience if more == self._bad else 0)
        if self._good >= needed and more <= (self.ceiling or inf):
            if more >= self._bad:  # it is tried again
                self._bad, self._patience = inf, 2 * self._patience
            self._change(more, now_ms, "good", one.most)

    def refused(self, key: int, now_ms: float) -> bool:
        """The request was turned away; False where it was alone, so not one too many."""
        one = self._running.pop(key)
        if one.most > 1 and one.begun_ms >= self._changed_ms:
            self._fall(one.most, now_ms, "refused")
        return one.most > 1

    def failed(self, key: int) -> None:
        """The request ended without an answer that would tell anything of load."""
        self._running.pop(key, None)

    def _lost(self) -> bool:
        """Whether the waits are longer than any spread among them explains."""
        if len(self._waits) < SEVERAL:
            return False
        error = stdev(self._waits) / math.sqrt(len(self._waits))
        return fmean(self._waits) - 2 * error > 1 / LOSS

    def _fall(self, at: int, now_ms: float, reason: Reason) -> None:
        self._bad = min(self._bad, at)
        self._change(max(1, min(self.limit, at) // 2), now_ms, reason, at)

    def _change(self, limit: int, now_ms: float, reason: Reason, at: int) -> None:
        self._good, self._changed_ms, self._waits, self._told_ms = 0, now_ms, [], inf
        if limit != self.limit:
            self.limit = limit
            told = {"provider": self.provider, "limit": limit, "reason": reason, "in_flight": at}
            self.changes.append(LimitChange(at_ms=now_ms, **told))


def pause_after(attempt: int, asked_s: float | None) -> float:
    """Seconds to wait after the refusal of the n-th attempt: as asked, else ever longer.

    Never beyond `LONGEST_S`.
    """
    grown_s = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt - 1, 16))
    return grown_s if asked_s is None else min(LONGEST_S, max(0.0, asked_s))
