"""What is done once nothing waits: what is late is sent again, what has not begun is taken back."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

from .attempt import Job
from .slots import Place, Pool
from .strategies import emptiest, fastest

# A copy, or a prompt taken back, has to end in so much of the time that is left where it is.
CLEARLY = 0.9
# So many of the latest prompts are weighed for each idle provider.
WEIGHED = 8

# A request in flight, where, and of what.
Flight = tuple[Any, Place, Job]


@dataclass
class _Late:
    """A prompt under way: how long yet, and how much of a usual prompt it will have been."""

    rest_ms: float
    whole: float
    job: Job
    places: list[Place]


def late(pool: Pool, flights: Iterable[Flight]) -> Iterator[tuple[Job, Place]]:
    """Which prompts are to have a copy where: the latest at the fastest idle provider first.

    Each pair is to be given before the next is asked for.
    """
    found: dict[int, _Late] = {}
    if pool.least(fastest, free=True) is None:
        return
    for task, where, job in flights:
        usual, begun_ms = pool.lengths.expected(len(job.prompt.text)), where.running[task]
        rest_ms = pool.rest_ms(where, begun_ms, usual)
        whole = pool.lengths.whole((pool.now_ms - begun_ms) / where.expected_ms, usual)
        one = found.setdefault(job.prompt.index, _Late(inf, 0.0, job, []))
        one.rest_ms, one.whole = min(one.rest_ms, rest_ms), max(one.whole, whole)
        one.job = max(one.job, job, key=lambda each: each.attempt)
        one.places.append(where)
    latest = [(-one.rest_ms, index) for index, one in found.items()]
    heapq.heapify(latest)
    while latest and (place := pool.least(fastest, free=True)) and place.admitted:
        weighed = [heapq.heappop(latest) for _ in range(min(WEIGHED, len(latest)))]
        for number, (rest_ms, index) in enumerate(weighed):
            one, copy_ms = found[index], found[index].whole * place.expected_ms
            if copy_ms < -CLEARLY * rest_ms and place not in one.places:
                weighed[number] = (-copy_ms, index)
                one.places.append(place)
                yield one.job, place
                break
        else:
            return
        for each in weighed:
            heapq.heappush(latest, each)


def overdue(
    pool: Pool, flights: Iterable[Flight], after: float, hedged: set[int]
) -> Iterator[tuple[Job, Place] | float]:
    """A copy of what has taken `after` times as long as expected, for each idle provider.

    At last the moment at which the next will be due, where one is idle then.
    """
    due = []
    for task, place, job in flights:
        if job.prompt.index not in hedged:
            usual = pool.lengths.expected(len(job.prompt.text))
            due_ms = place.running[task] + after * usual * place.expected_ms
            due.append((due_ms, job.prompt.index, place, job))
    for due_ms, _, _, job in sorted(due, key=lambda one: one[:2]):
        idle = pool.least(emptiest)
        if idle is None or idle.busy or not idle.admitted:
            return
        if due_ms > pool.now_ms:
            yield due_ms
            return
        yield job, idle


def unbegun(pool: Pool, flights: Iterable[Flight]) -> Iterator[Any]:
    """What was sent ahead and would end clearly sooner at a provider that is idle."""
    ahead = [(task, place) for task, place, _ in flights if place.running[task] == inf]
    idle = pool.least(emptiest)
    if not ahead or idle is None or idle.busy or not idle.admitted:
        return

    def end_ms(one: tuple[Any, Place]) -> float:
        rest = [pool.rest_ms(one[1], ms, pool.lengths.mean) for ms in one[1].running.values()
                if ms < inf]  # fmt: skip
        return min(rest, default=0.0) + one[1].expected_ms * pool.lengths.mean

    task, place = max(ahead, key=end_ms)
    if idle.expected_ms * pool.lengths.mean < CLEARLY * end_ms((task, place)):
        yield task
