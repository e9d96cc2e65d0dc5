"""Every strategy alone: what it decides, and the makespan that follows, against brute force."""

import inspect
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest
from test_dispatch import SPREADING

from poclib.measure import strategies
from poclib.measure.strategies import (
    STRATEGIES,
    PoolView,
    ProviderView,
    by_name,
    capability_split,
    earliest_finish,
    even_split,
    shared_queue,
    simulated_makespan_ms,
)

NAMES = sorted(STRATEGIES)
ONE = {"sequential": "one", "serial-per-provider": "one"}
LIMITS = ONE | {
    "batched": "slots",
    "all-parallel": "none",
    "through-router": "none",
}  # the others: "capacity"


def view(
    name: str, expected_ms: float, limit: int | None = 1, started: int = 0, queued: int = 0
) -> ProviderView:
    """A provider with some requests in flight since 0 ms."""
    return ProviderView(name, limit, expected_ms, (0.0,) * started, queued)


def pool(waiting: int, *providers: ProviderView, now_ms: float = 0.0) -> PoolView:
    return PoolView(now_ms, waiting, providers)


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
        *((name, 12, [70.0] * 4, 3 * 70) for name in SPREADING),
    ],
)
def test_makespans_by_hand(name: str, n: int, times: list[float], expected: float) -> None:
    assert makespan_ms(name, n, times) == expected


def test_an_even_split_differs_by_at_most_one_and_favours_the_fast() -> None:
    for providers, n in itertools.product(range(1, 21), range(0, 63, 3)):
        views = [view(f"p{i}", 100 - i) for i in range(providers)]  # the last is the fastest
        given = Counter(even_split(pool(n, *views)))
        shares = [given[v.name] for v in views]
        assert sum(shares) == n and max(shares) - min(shares) <= 1
        assert shares == sorted(shares)


def test_one_queue_fills_the_emptiest_first() -> None:
    idle = view("a", 100, limit=4), view("b", 120, limit=4)
    assert Counter(shared_queue(pool(5, *idle))) == {"a": 3, "b": 2}
    half_full = view("a", 100, limit=4, started=2), view("b", 120, limit=4)
    assert Counter(shared_queue(pool(2, *half_full))) == {"b": 2}
    full = view("a", 100, started=1), view("b", 120, started=1)
    assert shared_queue(pool(3, *full)) == []


@pytest.mark.parametrize(
    ("waiting", "queued", "now_ms", "chosen"),
    [
        (1, 0, 20, []),  # fast would end the last prompt at 200 ms, slow at 270 ms
        (3, 0, 20, ["slow"]),  # fast would end two by 300 ms: the third is slow's, at 270 ms
        (1, 2, 20, ["slow"]),  # with two queued, fast would end one more at 400 ms
        (1, 0, 120, []),  # 20 ms overdue: free in 20 ms more, so done in 120 ms
        (1, 0, 300, ["slow"]),  # 200 ms overdue, so perhaps it hangs: done in 300 ms
    ],
)
def test_earliest_finish_weighs_a_busy_fast_provider_against_a_free_slow_one(
    waiting: int, queued: int, now_ms: float, chosen: list[str]
) -> None:
    busy = view("fast", 100, started=1, queued=queued)
    assert earliest_finish(pool(waiting, busy, view("slow", 250), now_ms=now_ms)) == chosen


def test_shares_stay_even_when_more_is_given_later() -> None:
    behind = view("a", 100, started=1, queued=3), view("b", 200, started=1)
    assert Counter(even_split(pool(5, *behind))) == {"a": 1, "b": 4}
    # One more at a would end at 500 ms, at b at 400 ms; then at 600 ms.
    assert Counter(capability_split(pool(2, *behind))) == {"a": 1, "b": 1}


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
        views = view("fast", 100, limit=2), view("slow", 250, limit=2)
        chosen = names[one.decide.__name__](pool(9, *views))
        assert chosen == one.decide(pool(9, *views))
