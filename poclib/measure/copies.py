"""What is done once nothing waits: what is late is sent again, what has not begun is taken back."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator
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


def late(pool: Pool, flights: Iterable[Flight]) -> Iterator[tuple[Job, Place]]:
    """Which prompts are to have a copy where: the latest at the fastest idle provider first.

    Each pair is to be given before the next is asked for.
    """
    if pool.least(fastest, free=True) is None:
        return
    # By prompt, of all its copies: how long yet, the whole of its work, and where it is.
    found: dict[int, list[tuple[float, float, Job, Place]]] = defaultdict(list)
    for task, where, job in flights:
        usual, begun_ms = pool.lengths.expected(len(job.prompt.text)), where.running[task]
        whole = pool.lengths.whole((pool.now_ms - begun_ms) / where.expected_ms, usual)
        rest_ms = pool.rest_ms(where, begun_ms, usual)
        found[job.prompt.index].append((rest_ms, whole, job, where))
    latest = [(-min(copy[0] for copy in found[index]), index) for index in found]
    heapq.heapify(latest)
    while latest and (place := pool.least(fastest, free=True)) and place.admitted:
        weighed = [heapq.heappop(latest) for _ in range(min(WEIGHED, len(latest)))]
        for number, (rest_ms, index) in enumerate(weighed):
            whole, job = max(copy[1] for copy in found[index]), found[index][0][2]
            copy_ms = whole * place.expected_ms
            if copy_ms < -CLEARLY * rest_ms and all(place is not copy[3] for copy in found[index]):
                weighed[number] = (-copy_ms, index)
                found[index].append((copy_ms, whole, job, place))
                yield job, place
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
            due.append((due_ms, job.prompt.index, job))
    for due_ms, _, job in sorted(due, key=lambda one: one[:2]):
        if (idle := _idle(pool)) is None:
            return
        if due_ms > pool.now_ms:
            yield due_ms
            return
        yield job, idle


def unbegun(pool: Pool, flights: Iterable[Flight]) -> Iterator[Any]:
    """What was sent ahead and would end clearly sooner at a provider that is idle."""
    ahead = [(task, place) for task, place, _ in flights if place.running[task] == inf]
    idle, usual = _idle(pool), pool.lengths.mean
    if not ahead or idle is None:
        return

    def end_ms(at: Place) -> float:
        rests_ms = (pool.rest_ms(at, ms, usual) for ms in at.running.values() if ms < inf)
        return min(rests_ms, default=0.0) + at.expected_ms * usual

    task, place = max(ahead, key=lambda one: end_ms(one[1]))
    if idle.expected_ms * usual < CLEARLY * end_ms(place):
        yield task


def _idle(pool: Pool) -> Place | None:
    """The fastest provider that holds nothing and may be given work."""
    place = pool.least(emptiest)
    return place if place and place.admitted and not place.busy else None
