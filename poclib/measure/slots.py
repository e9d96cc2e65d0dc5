"""The pool while an arm runs, as a strategy sees it: brought up to date event by event.

What is asked of it costs the same for ten providers and ten thousand: whoever changes is touched,
and each order that a strategy asks for is a heap in which old entries are left and skipped.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import exp, inf
from typing import Any

from .lengths import Lengths

Key = Callable[["Place"], Any]
# A machine takes a waiting prompt where one so many spreads shorter than usual would end in time.
SHORTER = 1.5
# The horizon is computed anew after some events, the more the larger the pool, and after so long
# for each so many providers; of a large pool so many providers stand for all.
STALE_MS, SAMPLE = 50.0, 256
NEAR = 1 + 1e-9  # what rounding may do to equal sums


@dataclass(eq=False)
class Place:
    """What a strategy may know of one provider.

    `limit` is how many requests it may be given at once (None: no limit), `expected_ms` how long
    it takes to answer a usual prompt, `running` when each request there began, `queue` what it
    was given and has no room for yet.
    """

    name: str
    limit: int | None
    expected_ms: float
    rank: int = 0
    queue: deque[Any] = field(default_factory=deque)
    running: dict[Any, float] = field(default_factory=dict)
    admitted: bool = True  # may be given work
    well: bool = True  # has not failed lately

    @property
    def busy(self) -> int:
        """Requests it was given and has not answered."""
        return len(self.queue) + len(self.running)

    @property
    def free(self) -> bool:
        """Whether it would start one more at once."""
        return self.limit is None or len(self.queue) + len(self.running) < self.limit


class _Order:
    """The places of one kind in the order of a key: a heap with entries that no longer hold."""

    def __init__(self, key: Key, fits: Callable[[Place], bool], places: list[Place]) -> None:
        self._key, self._fits, self._places = key, fits, places
        self._now: list[Any] = [None] * len(places)  # each one's key; None: not of this kind
        self._heap: list[tuple[Any, int]] = []
        for place in places:
            self.touch(place)

    def touch(self, place: Place) -> None:
        now = self._key(place) if self._fits(place) else None
        if now == self._now[place.rank]:
            return
        self._now[place.rank] = now
        if now is not None:
            heapq.heappush(self._heap, (now, place.rank))
        if len(self._heap) > 2 * len(self._places) + 64:
            self._heap = [(key, rank) for rank, key in enumerate(self._now) if key is not None]
            heapq.heapify(self._heap)

    def first(self, without: Place | None) -> Place | None:
        heap, aside = self._heap, None
        while heap:
            key, rank = heap[0]
            if self._now[rank] != key:
                heapq.heappop(heap)
            elif without is not None and rank == without.rank:
                aside = heapq.heappop(heap)
            else:
                break
        found = self._places[heap[0][1]] if heap else None
        if aside:
            heapq.heappush(heap, aside)
        return found


class Pool:
    """The pool at `now_ms`, with `waiting` prompts that no provider has been given.

    `without` is a provider that may not have the prompt at hand.
    """

    def __init__(self, places: Iterable[Place], waiting: int = 0) -> None:
        self.places = list(places)
        self.now_ms, self.waiting = 0.0, waiting
        self.fed = False  # whether prompts come while it works: then what waits says little
        self.without: Place | None = None
        self.lengths = Lengths()
        self._orders: dict[tuple[Any, ...], _Order] = {}
        self._kept = [((p.admitted, p.well), 0.0) for p in self.places]  # each one's kind and pace
        self._kinds = Counter(kind for kind, _ in self._kept)
        # How many may be given work; where nobody may, all are in trouble, and none is spared.
        self._admitted = sum(place.admitted for place in self.places)
        self._pace = 0.0  # usual prompts a millisecond, of all slots
        self._horizon_ms, self._horizon_left, self._computed_ms = inf, 0, -inf
        for rank, place in enumerate(self.places):
            place.rank = rank
            self.touch(place)

    def touch(self, place: Place) -> None:
        """Have what is known of a place that has changed brought up to date."""
        kind, pace = (place.admitted, place.well), (place.limit or 1) / place.expected_ms
        before, pace_before = self._kept[place.rank]
        if kind != before:
            self._admitted += kind[0] - before[0]
            self._kinds[before] -= 1
            self._kinds[kind] += 1
        self._pace += pace - pace_before
        self._kept[place.rank] = kind, pace
        self._horizon_left -= 1
        for order in self._orders.values():
            order.touch(place)

    def least(self, key: Key, free: bool = False) -> Place | None:
        """Of the providers that may be given work the one with the least `key`.

        The first of equals; with `free` of those with a free slot; None where there is none. `key`
        is a function of a module, not one made anew for each call.
        """
        admitted = self._admitted > 0
        well = self.without is not None and self.other_than(self.without, well=True)
        kind = key, admitted, well, free
        order = self._orders.get(kind)
        if order is None:

            def fits(p: Place) -> bool:
                return p.admitted >= admitted and p.well >= well and (p.free or not free)

            order = self._orders[kind] = _Order(key, fits, self.places)
        return order.first(self.without)

    @property
    def others(self) -> bool:
        """Whether there is anyone but `without` to be given work."""
        return self.other_than(self.without)

    def other_than(self, out: Place | None, well: bool = False) -> bool:
        """Whether anyone but `out` may be given work, one that is `well` if that is asked."""
        kinds = [(a, w) for a, w in self._kinds if a >= (self._admitted > 0) and w >= well]
        spared = out is not None and (out.admitted, out.well) in kinds
        return sum(self._kinds[kind] for kind in kinds) > spared

    def ends_in_time(self, place: Place) -> bool:
        """Whether a prompt begun there now would end before the others could do without it.

        Where answers differ in length: whether a short one would.
        """
        usual = self.lengths.mean
        took_ms = place.expected_ms * usual * exp(-SHORTER * self.lengths.spread)
        if self.without or took_ms <= self.waiting * usual / self._pace:
            return True  # even with every slot free at once, all would take longer
        size = len(self.places)
        stale_ms = 0.0 if self.fed else STALE_MS * max(1.0, size / SAMPLE)
        late = self.now_ms - self._computed_ms > stale_ms
        if self._horizon_left < 0 or late:
            self._horizon_ms = horizon_ms(self)
            self._horizon_left = min(size, SAMPLE) * size // 512
            self._computed_ms = self.now_ms
        return self.now_ms + took_ms <= self._horizon_ms * NEAR

    def rest_ms(self, place: Place, begun_ms: float, length: float) -> float:
        """How much longer a request is expected to take there."""
        done = (self.now_ms - begun_ms) / place.expected_ms
        return place.expected_ms * self.lengths.rest(done, length)


def horizon_ms(pool: Pool) -> float:
    """When the pool would have ended all that waits, each slot taking one after the other."""
    sample = pool.places[:: max(1, len(pool.places) // SAMPLE)]
    waiting = pool.waiting * len(sample) / len(pool.places)
    able = [(p, p.expected_ms * pool.lengths.mean) for p in sample if p.admitted]
    slots = [(free_ms, took_ms) for p, took_ms in able for free_ms in _free_ms(p, pool)]
    low_ms = pool.now_ms
    high_ms = min((f + math.ceil(waiting) * e for f, e in slots), default=inf)
    exact = 1e-8 if len(sample) == len(pool.places) else 1e-3
    while high_ms < inf and high_ms - low_ms > exact * (high_ms - pool.now_ms):
        middle_ms = (low_ms + high_ms) / 2
        if sum((middle_ms - f) // e for f, e in slots if f + e <= middle_ms) >= waiting:
            high_ms = middle_ms
        else:
            low_ms = middle_ms
    return high_ms


def _free_ms(p: Place, pool: Pool) -> list[float]:
    """When each slot of `p` is expected to be free."""
    usual, now_ms = pool.lengths.mean, pool.now_ms
    free_ms = [now_ms + pool.rest_ms(p, begun_ms, usual) for begun_ms in p.running.values()]
    slots = max(1, p.limit or p.busy + pool.waiting)
    free_ms += [now_ms] * (slots - len(free_ms))
    heapq.heapify(free_ms)
    for _ in p.queue:
        heapq.heapreplace(free_ms, free_ms[0] + p.expected_ms * usual)
    return free_ms
