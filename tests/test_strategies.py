"""Every strategy alone: what it decides, and the makespan that follows, against brute force."""

import inspect
import itertools
import math
import random
import re
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import pytest
from test_dispatch import SIMULATED

from poclib.measure import strategies
from poclib.measure.slots import Place, Pool
from poclib.measure.strategies import (
    STRATEGIES,
    by_name,
    emptiest,
    sends_ahead,
    simulated_makespan_ms,
)
from poclib.records import ProviderFacts

NAMES = sorted(STRATEGIES)
ONE = {"sequential": "one", "serial-per-provider": "one"}
LIMITS = ONE | {
    "all-parallel": "none",
    "batched": "slots",
    "sent-ahead": "ahead",
    "through-router": "none",
}  # the others: "capacity"


def place(
    name: str, expected_ms: float, limit: int | None = 1, started: int = 0, queued: int = 0
) -> Place:
    """A provider with some requests in flight since 0 ms."""
    running = {object(): 0.0 for _ in range(started)}
    return Place(name, limit, expected_ms, queue=deque(range(queued)), running=running)


def chosen(name: str, waiting: int, *places: Place, now_ms: float = 0.0) -> list[str]:
    """Where a strategy would have each prompt go, until it names nobody."""
    pool, given = Pool(places, waiting), []
    pool.now_ms = now_ms
    while pool.waiting and (at := STRATEGIES[name].decide(pool)):
        given.append(at.name)
        if at.free:
            at.running[object()] = now_ms
        else:
            at.queue.append(0)
        pool.waiting -= 1
        pool.touch(at)
    return given


def best_makespan_ms(n: int, times_ms: list[float], limits: list[int]) -> float:
    """The shortest makespan over every assignment of n equal prompts to the providers."""
    shortest = math.inf
    for assignment in itertools.product(range(len(times_ms)), repeat=n):
        given = Counter(assignment)
        ends = [math.ceil(given[p] / limits[p]) * times_ms[p] for p in given]
        shortest = min(shortest, max(ends, default=0.0))
    return shortest


def small_pools(seed: int, slots: int = 1) -> Iterator[tuple[int, list[float], list[int]]]:
    """Random small cases: prompts, times and limits; whole milliseconds, so that ties occur."""
    draw = random.Random(seed)
    for _ in range(150):
        providers = draw.randint(1, 3)
        n = draw.randint(1, 8 if providers < 3 else 6)
        times = [float(draw.randint(1, 12) * 50) for _ in range(providers)]
        yield n, times, [draw.randint(1, slots) for _ in range(providers)]


def makespan_ms(name: str, n: int, times_ms: list[float], limits: list[int] | None = None) -> float:
    names = [f"p{i}" for i in range(len(times_ms))]
    sizes = dict(zip(names, limits or [1] * len(names), strict=True))
    times = dict(zip(names, times_ms, strict=True))
    return simulated_makespan_ms(STRATEGIES[name], n, times, sizes)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", ["capability-split", "earliest-finish"])
def test_the_best_possible_makespan_is_reached_with_constant_times(name: str, slots: int) -> None:
    for n, times, limits in small_pools(seed=11, slots=slots):
        assert makespan_ms(name, n, times, limits) == best_makespan_ms(n, times, limits), (n, times)


def test_a_shared_queue_loses_less_than_one_request_of_the_slowest() -> None:
    for n, times, limits in small_pools(seed=12):
        best = best_makespan_ms(n, times, limits)
        assert best <= makespan_ms("shared-queue", n, times, limits) <= best + max(times)


@pytest.mark.parametrize(
    ("name", "n", "times", "expected"),
    [
        # Both are free at 200 ms and the faster takes the last: 300 ms, not 400.
        ("shared-queue", 4, [200, 100], 300),
        # The slow one takes the second of two prompts and needs 1000 ms; alone, the fast needs 200.
        ("shared-queue", 2, [100, 1000], 1000),
        ("earliest-finish", 2, [100, 1000], 200),
        # An even split waits for the slow half; by speed they get six and two.
        ("serial-per-provider", 8, [100, 250], 4 * 250),
        ("capability-split", 8, [100, 250], 600),
        ("sequential", 8, [100, 250], 800),
        ("all-parallel", 30, [100, 300], 300),
        *((name, 12, [70.0] * 4, 3 * 70) for name in SIMULATED),
    ],
)
def test_makespans_by_hand(name: str, n: int, times: list[float], expected: float) -> None:
    assert makespan_ms(name, n, times) == expected


def test_an_even_split_differs_by_at_most_one_and_favours_the_fast() -> None:
    for providers, n in itertools.product(range(1, 21), range(0, 63, 3)):
        places = [place(f"p{i}", 100 - i) for i in range(providers)]  # the last is the fastest
        given = Counter(chosen("serial-per-provider", n, *places))
        shares = [given[p.name] for p in places]
        assert sum(shares) == n and max(shares) - min(shares) <= 1
        assert shares == sorted(shares)


def test_one_queue_fills_the_emptiest_first() -> None:
    idle = place("a", 100, limit=4), place("b", 120, limit=4)
    assert Counter(chosen("shared-queue", 5, *idle)) == {"a": 3, "b": 2}
    half_full = place("a", 100, limit=4, started=2), place("b", 120, limit=4)
    assert Counter(chosen("shared-queue", 2, *half_full)) == {"b": 2}
    full = place("a", 100, started=1), place("b", 120, started=1)
    assert chosen("shared-queue", 3, *full) == []


@pytest.mark.parametrize(
    ("waiting", "queued", "now_ms", "given"),
    [
        (1, 0, 20, []),  # fast would end the last prompt at 200 ms, slow at 270 ms
        (3, 0, 20, ["slow"]),  # fast would end two by 300 ms: the third is slow's, at 270 ms
        (1, 2, 20, ["slow"]),  # with two queued, fast would end one more at 400 ms
        (1, 0, 120, []),  # 20 ms overdue: free in 20 ms more, so done in 120 ms
        (1, 0, 300, ["slow"]),  # 200 ms overdue, so perhaps it hangs: done in 300 ms
    ],
)
def test_earliest_finish_weighs_a_busy_fast_provider_against_a_free_slow_one(
    waiting: int, queued: int, now_ms: float, given: list[str]
) -> None:
    busy, slow = place("fast", 100, started=1, queued=queued), place("slow", 250)
    assert chosen("earliest-finish", waiting, busy, slow, now_ms=now_ms) == given


def test_shares_stay_even_when_more_is_given_later() -> None:
    def behind() -> tuple[Place, Place]:
        return place("a", 100, started=1, queued=3), place("b", 200, started=1)

    assert Counter(chosen("serial-per-provider", 5, *behind())) == {"a": 1, "b": 4}
    # One more at a would end at 500 ms, at b at 400 ms; then at 600 ms.
    assert Counter(chosen("capability-split", 2, *behind())) == {"a": 1, "b": 1}


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_a_pool_is_what_a_look_at_everyone_would_find(seed: int) -> None:
    """However providers change, are in trouble, or recover; against a plain minimum."""
    draw = random.Random(seed)
    places = [place(f"p{i}", draw.randint(1, 9), draw.randint(1, 3)) for i in range(12)]
    pool = Pool(places)
    for _ in range(400):
        one = draw.choice(places)
        if draw.random() < 0.5:
            one.running[object()] = 0.0
        elif one.running:
            one.running.popitem()
        one.admitted, one.well = draw.random() < seed / 20, draw.random() < 0.7
        one.expected_ms = draw.randint(1, 9)
        pool.touch(one)
        pool.without = draw.choice([None, *places])
        able = [p for p in places if p.admitted] or places
        others = [p for p in able if p is not pool.without]
        if pool.without:
            others = [p for p in others if p.well] or others
        assert pool.others == bool(others)
        for free in (False, True):
            held = [p for p in others if p.free or not free]
            wanted = min(held, key=lambda p: (emptiest(p), p.rank), default=None)
            assert pool.least(emptiest, free) is wanted


def test_only_who_queues_or_batches_is_sent_ahead() -> None:
    def facts(**known: Any) -> ProviderFacts:
        return ProviderFacts(name="a", kind="embedded", role="local", **known)

    assert sends_ahead(facts(engine_kind="queueing")) and sends_ahead(facts(engine_kind="batched"))
    assert not sends_ahead(facts(engine_kind="bare"))
    assert not sends_ahead(facts(engine_kind="queueing", refuses=True))
    own = ProviderFacts(name="a", kind="ollama", role="remote")
    assert sends_ahead(own) and not sends_ahead(own, queues=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_found_by_its_own_name_and_explains_itself(name: str) -> None:
    one = by_name(name)
    assert one.name == name and one.question.endswith("?")
    assert one.limit == LIMITS.get(name, "capacity")
    assert list(one.sections) == ["How it works", "What this does not show", "Try"]
    assert len(re.findall(r"\.\s", one.sections["How it works"])) >= 4, "in a few sentences"
    for heading in ("What this does not show", "Try"):
        points = one.sections[heading].strip().split("\n")
        assert len(points) >= 2 and all(point.startswith("- ") for point in points)
    prose = re.sub(r"`[^`]*`|from 1 ", "", inspect.getdoc(one.decide) or "")
    assert not re.search(r"\d", prose), "a number in prose is computed, or it will be wrong one day"


def test_the_code_that_is_shown_is_all_that_decides_and_runs_as_it_stands() -> None:
    for one in STRATEGIES.values():
        assert '"""' not in one.code and "@" not in one.code
        names = {k: v for k, v in vars(strategies).items() if not inspect.isfunction(v)}
        exec(f"from __future__ import annotations\n{one.code}", names)
        decide = names[one.decide.__name__]
        for waiting in (1, 9):
            pool = Pool([place("fast", 100, limit=2), place("slow", 250, limit=2)], waiting)
            assert decide(pool) is one.decide(pool)
