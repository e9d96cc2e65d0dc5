"""Every strategy alone: what it decides, and the makespan that follows, against brute force."""

import inspect
import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from poclib.measure import strategies
from poclib.measure.strategies import (
    STRATEGIES,
    PoolView,
    ProviderView,
    by_name,
    capability_split,
    earliest_finish,
    even_split,
    sequential,
    shared_queue,
    simulated_makespan_ms,
    strategy,
)

NAMES = sorted(STRATEGIES)
LIMITS = {
    "sequential": "one",
    "all-parallel": "none",
    "serial-per-provider": "one",
    "capability-split": "capacity",
    "shared-queue": "capacity",
    "earliest-finish": "capacity",
    "batched": "slots",
}
SPREADING = [n for n in NAMES if n not in ("sequential", "all-parallel")]


def view(name: str, expected_ms: float, limit: int | None = 1, **more: object) -> ProviderView:
    return ProviderView(name, limit, expected_ms, **more)  # type: ignore[arg-type]


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
    return simulated_makespan_ms(
        STRATEGIES[name], n, dict(zip(names, times_ms, strict=True)), sizes
    )


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
def test_what_a_strategy_gains_and_loses(
    name: str, n: int, times: list[float], expected: float
) -> None:
    assert makespan_ms(name, n, times) == expected


def test_sequential_uses_only_the_fastest() -> None:
    assert sequential(pool(5, view("slow", 200), view("fast", 80))) == ["fast"] * 5


@pytest.mark.parametrize("providers", range(1, 21))
def test_an_even_split_differs_by_at_most_one_and_favours_the_fast(providers: int) -> None:
    views = [view(f"p{i}", 100 - i) for i in range(providers)]  # the last is the fastest
    for n in (0, 1, providers - 1, providers, 3 * providers + 2):
        given = Counter(even_split(pool(n, *views)))
        shares = [given[v.name] for v in views]
        assert sum(shares) == n
        assert max(shares) - min(shares) <= 1
        assert shares == sorted(shares)


def test_capability_split_gives_shares_by_speed_and_slots() -> None:
    views = view("fast", 100), view("slow", 300)
    assert Counter(capability_split(pool(8, *views))) == {"fast": 6, "slow": 2}
    wide = view("fast", 100), view("slow", 300, limit=3)
    assert Counter(capability_split(pool(8, *wide))) == {"fast": 5, "slow": 3}


def test_one_queue_fills_the_emptiest_first() -> None:
    idle = view("a", 100, limit=4), view("b", 120, limit=4)
    assert Counter(shared_queue(pool(5, *idle))) == {"a": 3, "b": 2}
    half_full = view("a", 100, limit=4, started_ms=(0.0, 0.0)), view("b", 120, limit=4)
    assert Counter(shared_queue(pool(2, *half_full))) == {"b": 2}
    full = view("a", 100, started_ms=(0.0,)), view("b", 120, started_ms=(0.0,))
    assert shared_queue(pool(3, *full)) == []


@pytest.mark.parametrize("name", SPREADING)
def test_fewer_prompts_than_providers_leave_the_slowest_idle(name: str) -> None:
    views = [view(f"p{i}", 100 + i) for i in range(20)]
    chosen = STRATEGIES[name].decide(pool(3, *views))
    assert sorted(chosen) == ["p0", "p1", "p2"]


def test_earliest_finish_waits_for_a_busy_fast_provider() -> None:
    slow = view("slow", 250)
    busy = view("fast", 100, started_ms=(0.0,))
    # At 20 ms fast would end the last prompt at 200 ms, slow at 270 ms.
    assert earliest_finish(pool(1, busy, slow, now_ms=20)) == []
    # Of three prompts fast would end two by 300 ms: the third is slow's, at 270 ms.
    assert earliest_finish(pool(3, busy, slow, now_ms=20)) == ["slow"]


def test_earliest_finish_counts_what_is_queued() -> None:
    behind = view("fast", 100, started_ms=(0.0,), queued=2)  # would end one more at 400 ms
    assert earliest_finish(pool(1, behind, view("slow", 250), now_ms=20)) == ["slow"]


def test_earliest_finish_gives_up_on_a_provider_that_hangs() -> None:
    slow, hanging = view("slow", 250), view("fast", 100, started_ms=(0.0,))
    # 20 ms overdue: free in 20 ms more, so done in 120 ms. 200 ms overdue: done in 300 ms.
    assert earliest_finish(pool(1, hanging, slow, now_ms=120)) == []
    assert earliest_finish(pool(1, hanging, slow, now_ms=300)) == ["slow"]


def test_without_a_limit_nothing_waits() -> None:
    views = view("a", 100, limit=None), view("b", 300, limit=None)
    for decide in (sequential, even_split, capability_split, shared_queue, earliest_finish):
        assert len(decide(pool(30, *views))) == 30, decide


def test_shares_stay_even_when_more_is_given_later() -> None:
    behind = view("a", 100, started_ms=(0.0,), queued=3), view("b", 200, started_ms=(0.0,))
    assert Counter(even_split(pool(5, *behind))) == {"a": 1, "b": 4}
    # One more at a would end at 500 ms, at b at 400 ms; then at 600 ms.
    assert Counter(capability_split(pool(2, *behind))) == {"a": 1, "b": 1}


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_found_by_its_own_name_and_explains_itself(name: str) -> None:
    one = by_name(name)
    assert one.limit == LIMITS[name] and one.name == name and one.question.endswith("?")
    assert list(one.sections) == ["How it works", "What this does not show", "Try"]
    assert len(re.findall(r"\.\s", one.sections["How it works"])) >= 4, "in a few sentences"
    for heading in ("What this does not show", "Try"):
        points = one.sections[heading].strip().split("\n")
        assert len(points) >= 2 and all(point.startswith("- ") for point in points)
    prose = re.sub(r"`[^`]*`|from 1 ", "", inspect.getdoc(one.decide) or "")
    assert not re.search(r"\d", prose), "a number in prose is computed, or it will be wrong one day"


def test_a_new_strategy_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "STRATEGIES", {})

    @strategy("one", "Why?")
    def to_the_last(pool: PoolView) -> list[str]:
        """Everything goes
        to the last.

        So it does.

        Try:

        - something else
        """
        return _last(pool)

    one = by_name("to-the-last")
    assert (one.limit, one.question) == ("one", "Why?")
    assert one.sections == {
        "How it works": "Everything goes\nto the last.\n\nSo it does.\n\n",
        "Try": "\n- something else",
    }
    assert one.decide(pool(2, view("a", 1), view("b", 2))) == ["b", "b"]


def _last(pool: PoolView) -> list[str]:
    return [pool.providers[-1].name] * pool.waiting


def test_the_code_that_is_shown_is_all_that_decides_and_runs_as_it_stands() -> None:
    for one in STRATEGIES.values():
        assert '"""' not in one.code and "@" not in one.code
        names: dict[str, Any] = vars(strategies).copy()
        for function in re.findall(r"^def (\w+)", one.code, re.M):
            del names[function]
        exec(f"from __future__ import annotations\n{one.code}", names)
        views = view("fast", 100, limit=2), view("slow", 250, limit=2)
        chosen = names[one.decide.__name__](pool(9, *views))
        assert chosen == one.decide(pool(9, *views))
