"""The limit that moves: up by one where all is well, halved in trouble, always with a reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from poclib import fake
from poclib.adaptive import LAST_PAUSE_S, AdaptiveLimit, pause_after
from poclib.attempts import Rules
from poclib.dispatch import run_arm
from poclib.errors import Rejected
from poclib.records import Arm, Prompt
from poclib.strategies import STRATEGIES

PROMPTS = [Prompt(i, f"p{i}") for i in range(40)]


def drive(limit: AdaptiveLimit, service_ms: Callable[[int], float], answers: int) -> list[int]:
    """Keep it full, in lockstep: every batch takes what its size takes; the limit after each."""
    now, seen, key = 0.0, [], 0
    while len(seen) < answers:
        batch = [key + i for i in range(limit.limit)]
        key += len(batch)
        for one in batch:
            limit.begun(one, now)
        now += service_ms(len(batch))
        for one in batch:
            limit.answered(one, now)
            seen.append(limit.limit)
    return seen


def test_an_engine_that_batches_is_let_hold_more_and_more() -> None:
    limit = AdaptiveLimit("p", 100, 1, 6)
    drive(limit, lambda n: 100 + 10 * n, 200)
    assert limit.limit == 6  # never beyond its ceiling
    assert {change.reason for change in limit.changes} == {"good"}
    assert [change.limit for change in limit.changes] == [2, 3, 4, 5, 6]


def test_an_engine_that_thrashes_is_brought_back_and_left_alone_ever_longer() -> None:
    limit = AdaptiveLimit("p", 100, 1, 64)
    seen = drive(limit, lambda n: 100 if n == 1 else 100 * n * n, 400)
    assert max(seen) == 2 and limit.changes[1].reason == "slower"
    tried = [c.at_ms for c in limit.changes if c.limit == 2]
    gaps = [b - a for a, b in itertools.pairwise(tried)]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(gaps))
    assert seen.count(1) > 0.9 * len(seen)


def test_the_next_arm_begins_with_what_was_found() -> None:
    limit = AdaptiveLimit("p", 100, 1, 64)
    drive(limit, lambda n: 100 if n <= 3 else 100 * n * n, 70)
    assert limit.limit == 3
    again = limit.again(5000)
    assert (again.limit, again.ceiling) == (3, 64)
    assert [(c.limit, c.reason, c.at_ms) for c in again.changes] == [(3, "learned", 5000)]
    # Four at once were too many in the last arm, so that is not tried again at once.
    assert max(drive(again, lambda n: 100 if n <= 3 else 100 * n * n, 10)) == 3


def test_from_a_limit_that_is_too_high_it_is_halved_down_to_where_it_was_good() -> None:
    limit = AdaptiveLimit("p", 100, 16, 16)
    drive(limit, lambda n: 100 if n <= 4 else 100 * n * n, 60)
    assert [change.limit for change in limit.changes][:2] == [8, 4]
    assert max(change.limit for change in limit.changes[2:]) == 5  # tried again, one by one


def test_a_queue_inside_the_server_is_no_loss_so_the_limit_stays() -> None:
    limit = AdaptiveLimit("p", 100, 4, 4)
    drive(limit, lambda n: 100 * n, 40)
    assert limit.changes == []


def run(provider: fake.Provider, start: int, strategy: str = "all-parallel") -> Arm:
    live = {provider.name: AdaptiveLimit(provider.name, 100, start, 40)}
    return fake.run(
        lambda clock: run_arm(
            "strategy",
            STRATEGIES[strategy],
            PROMPTS,
            [provider],
            None if strategy == "all-parallel" else {provider.name: 40},
            {provider.name: 100},
            clock,
            Rules(retries=0),
            live=live,
        )
    )


def test_everything_at_once_is_held_to_the_limit_where_that_is_forced() -> None:
    provider = fake.Provider("p", 100, slots=1)
    arm = run(provider, 1)
    assert provider.most_in_flight < 10
    assert arm.limits is None and len(arm.limit_changes) > 0  # what dispatch did is a fact


@pytest.mark.parametrize("asked_s", [None, 0.25])
def test_who_is_refused_comes_again_later_and_no_prompt_is_lost(asked_s: float | None) -> None:
    busy = [Rejected("busy", "p", 503, asked_s), Rejected("busy", "p", 429, asked_s)]
    provider = fake.Provider("p", 100, slots=40, script=[*busy, *busy])
    arm = run(provider, 8)
    answered = [row.prompt for row in arm.requests if row.outcome == "ok"]
    assert sorted(answered) == list(range(len(PROMPTS)))
    first = arm.limit_changes[0]
    assert (first.reason, first.limit) == ("refused", 4)
    refused = {row.prompt: row for row in arm.requests if row.outcome == "failed"}
    again = {r.prompt: r for r in arm.requests if r.outcome == "ok" and r.prompt in refused}
    assert len(again) == 4
    for prompt, row in again.items():
        before = refused[prompt].marks.end_ms
        assert row.attempt == 2 and row.marks.start_ms and before is not None
        assert row.marks.start_ms - before >= 1000 * (asked_s or 0.1) - 1e-6


def test_a_wait_is_what_was_asked_or_grows_to_a_bound() -> None:
    assert pause_after(3, 2.5) == 2.5
    waits = [pause_after(attempt, None) for attempt in range(1, 30)]
    assert waits[:3] == [0.1, 0.2, 0.4] and max(waits) == waits[-1] == LAST_PAUSE_S
