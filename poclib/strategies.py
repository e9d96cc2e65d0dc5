"""Decide which provider gets the next prompts: one short pure function a strategy, no I/O.

A strategy is called at the start, after every answer, and now and then while prompts wait.
It sees how many wait and what each provider is doing, and names the provider for each of
the next prompts, in the prompts' order: `["fast", "fast", "slow"]` gives two to `fast` and
one to `slow`. Prompts beyond that list go on waiting. A provider that is named more often
than it has free slots holds the rest in a queue of its own: dispatch enforces the limit,
never a strategy. Prompts count as equal work, so their order is all that matters.

To add one: write the function, add it to `STRATEGIES`, add a test.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class ProviderView:
    """What a strategy may know of one provider at a moment.

    `limit` is the number of requests dispatch lets it hold in flight (None: no limit),
    `expected_ms` the mean wall time of one request alone there, from calibration and
    updated by every answer, `started_ms` the start of each request in flight, `queued`
    how many more were already given to it.
    """

    name: str
    limit: int | None
    expected_ms: float
    started_ms: tuple[float, ...] = ()
    queued: int = 0

    @property
    def busy(self) -> int:
        """Requests it was given and has not answered."""
        return len(self.started_ms) + self.queued

    @property
    def free(self) -> int | float:
        """Slots that would start a request at once."""
        return math.inf if self.limit is None else max(0, self.limit - self.busy)


@dataclass(frozen=True)
class PoolView:
    """The pool at `now_ms`, with `waiting` prompts that no provider has been given."""

    now_ms: float
    waiting: int
    providers: tuple[ProviderView, ...]

    @property
    def fastest_first(self) -> list[ProviderView]:
        return sorted(self.providers, key=lambda p: p.expected_ms)


def sequential(pool: PoolView) -> list[str]:
    """Every prompt to the fastest provider."""
    return [pool.fastest_first[0].name] * pool.waiting


def even_split(pool: PoolView) -> list[str]:
    """The same number to everyone, in blocks; what does not divide goes to the faster ones."""
    share, extra = divmod(pool.waiting, len(pool.providers))
    ranked = enumerate(pool.fastest_first)
    return [p.name for rank, p in ranked for _ in range(share + (rank < extra))]


def capability_split(pool: PoolView) -> list[str]:
    """Shares by calibrated speed: each prompt to whoever's whole share would end first."""
    ranked = pool.fastest_first
    share = [0] * len(ranked)
    ends_ms = [(p.expected_ms, rank) for rank, p in enumerate(ranked)]
    for _ in range(pool.waiting):
        rank = ends_ms[0][1]
        share[rank] += 1
        turns = math.ceil((share[rank] + 1) / (ranked[rank].limit or 1))
        heapq.heapreplace(ends_ms, (turns * ranked[rank].expected_ms, rank))
    return [p.name for p, count in zip(ranked, share, strict=True) for _ in range(count)]


def shared_queue(pool: PoolView) -> list[str]:
    """Whoever has a free slot pulls the next prompt; the emptiest, then the fastest, first."""
    turns = [
        (p.busy + taken, rank, p.name)
        for rank, p in enumerate(pool.fastest_first)
        for taken in range(int(min(p.free, pool.waiting)))
    ]
    return [name for _, _, name in sorted(turns)][: pool.waiting]


def earliest_finish(pool: PoolView) -> list[str]:
    """Each prompt goes where it is expected to finish first, even if that means waiting.

    So a slow provider stays idle rather than take a last prompt that a fast one, though
    busy, would finish sooner.
    """
    ranked = pool.fastest_first
    slots = [
        (free_ms + p.expected_ms, free_ms, rank)
        for rank, p in enumerate(ranked)
        for free_ms in _slots_free_ms(p, pool.now_ms, pool.waiting)
    ]
    heapq.heapify(slots)
    idle = sum(free_ms <= pool.now_ms for _, free_ms, _ in slots)
    free = {p.name: p.free for p in pool.providers}
    chosen: list[str] = []
    for _ in range(pool.waiting):
        if not idle:
            break
        finish_ms, free_ms, rank = slots[0]
        p = ranked[rank]
        heapq.heapreplace(slots, (finish_ms + p.expected_ms, finish_ms, rank))
        if free_ms <= pool.now_ms:
            idle -= 1
            if free[p.name]:  # else a request there is just about to end
                free[p.name] -= 1
                chosen.append(p.name)
    return chosen


def _slots_free_ms(p: ProviderView, now_ms: float, waiting: int) -> list[float]:
    """When each slot of `p` is expected to be free.

    An overdue request is expected to take as long again as it is overdue: a provider that
    hangs becomes less attractive the longer it does.
    """
    slots = p.limit or p.busy + waiting
    free_ms = [now_ms + abs(start + p.expected_ms - now_ms) for start in p.started_ms]
    free_ms += [now_ms] * (slots - len(free_ms))
    heapq.heapify(free_ms)
    for _ in range(p.queued):
        heapq.heapreplace(free_ms, free_ms[0] + p.expected_ms)
    return free_ms


Limit = Literal["one", "capacity", "slots", "none"]


@dataclass(frozen=True)
class Strategy:
    """A named way to spread prompts: who decides, and which limit dispatch enforces.

    `question` is what its notebook asks, `idea` says in one sentence how it works.
    """

    name: str
    decide: Callable[[PoolView], list[str]]
    limit: Limit
    question: str
    idea: str


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy(
            "sequential",
            sequential,
            "one",
            "How far apart are two runs of the very same thing?",
            "Every prompt goes to the fastest provider, one at a time: the baseline itself.",
        ),
        Strategy(
            "all-parallel",
            even_split,
            "none",
            "What if everything is sent at once?",
            "The prompts are split evenly and all sent at once; no limit is enforced.",
        ),
        Strategy(
            "serial-per-provider",
            even_split,
            "one",
            "What does an even split gain, one request in flight at each provider?",
            "The prompts are split evenly; each provider works through its share one at a time.",
        ),
        Strategy(
            "capability-split",
            capability_split,
            "capacity",
            "What does it gain to give the faster machine more?",
            "Before the start each provider is given a share that matches its calibrated speed.",
        ),
        Strategy(
            "shared-queue",
            shared_queue,
            "capacity",
            "What if each machine takes the next prompt when it is free?",
            "One queue for all; a provider with a free slot pulls the next prompt.",
        ),
        Strategy(
            "earliest-finish",
            earliest_finish,
            "capacity",
            "What if each prompt goes where it is expected to finish first?",
            "Each prompt goes to the provider expected to finish it first, from speeds that "
            "calibration measured and every answer updates.",
        ),
        Strategy(
            "batched",
            shared_queue,
            "slots",
            "What do engines with continuous batching gain from several requests at once?",
            "One queue for all; each provider takes as many prompts at once as it has slots.",
        ),
    )
}


def simulated_makespan_ms(
    strategy: Strategy, prompts: int, expected_ms: Mapping[str, float], limits: Mapping[str, int]
) -> float:
    """Makespan if every request took exactly `expected_ms[provider]`, slots independent.

    An event simulation on a clock of its own: what `poc doctor` predicts with, and how
    strategies are tested. It knows neither batching nor contention.
    """
    views = {
        name: ProviderView(name, None if strategy.limit == "none" else limits[name], time_ms)
        for name, time_ms in expected_ms.items()
    }
    ends: list[tuple[float, str]] = []
    now_ms, waiting = 0.0, prompts
    while waiting or ends or any(view.queued for view in views.values()):
        given = strategy.decide(PoolView(now_ms, waiting, tuple(views.values())))
        waiting -= len(given)
        for name in given:
            views[name] = replace(views[name], queued=views[name].queued + 1)
        for name, view in views.items():
            while view.queued and (view.limit is None or len(view.started_ms) < view.limit):
                started = (*view.started_ms, now_ms)
                view = replace(view, started_ms=started, queued=view.queued - 1)
                heapq.heappush(ends, (now_ms + view.expected_ms, name))
            views[name] = view
        now_ms = ends[0][0]
        while ends and ends[0][0] == now_ms:
            _, name = heapq.heappop(ends)
            view = views[name]  # whose oldest request ends first, since all take as long
            views[name] = replace(view, started_ms=view.started_ms[1:])
    return now_ms
