"""The limit that moves: up by one where all is well, halved in trouble, always with a reason."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from statistics import fmean

import pytest
from replay import clock, provider
from test_dispatch import answered, arm, ran

from poclib.errors import Rejected, RunFailed
from poclib.measure import ruler
from poclib.measure.adaptive import LAST_PAUSE_S, AdaptiveLimit, pause_after
from poclib.measure.attempt import LONGEST_S, Rules, attempt
from poclib.measure.dispatch import run_arm
from poclib.measure.strategies import STRATEGIES
from poclib.providers import fake
from poclib.records import Arm, Prompt

COUNT = 40


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


def thrashing(most: int) -> Callable[[int], float]:
    """An engine that does up to so many at once in the time of one, and no more than that."""
    return lambda n: 100 if n <= most else 100 * n * n


@pytest.mark.parametrize(
    ("start", "ceiling", "service_ms", "answers", "limits"),
    [
        # One that batches is let hold more and more, never beyond its ceiling.
        (1, 6, lambda n: 100 + 10 * n, 200, [2, 3, 4, 5, 6]),
        # From too many at once it is halved down to where it was good, then tried one by one.
        (16, 16, thrashing(4), 36, [8, 4, 5]),
        # A queue inside the server is no loss, so the limit stays.
        (4, 4, lambda n: 100 * n, 40, []),
    ],
)
def test_the_limit_rises_by_one_and_falls_by_half(
    start: int, ceiling: int, service_ms: Callable[[int], float], answers: int, limits: list[int]
) -> None:
    limit = AdaptiveLimit("p", 100, start, ceiling)
    drive(limit, service_ms, answers)
    assert [change.limit for change in limit.changes] == limits
    rose = [after > before for before, after in itertools.pairwise([start, *limits])]
    assert [change.reason == "good" for change in limit.changes] == rose


def test_an_engine_that_thrashes_is_brought_back_and_left_alone_ever_longer() -> None:
    limit = AdaptiveLimit("p", 100, 1, 64)
    seen = drive(limit, thrashing(1), 400)
    assert max(seen) == 2 and limit.changes[1].reason == "slower"
    tried = [c.at_ms for c in limit.changes if c.limit == 2]
    gaps = [b - a for a, b in itertools.pairwise(tried)]
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(gaps))
    assert seen.count(1) > 0.9 * len(seen)


def test_the_next_arm_begins_with_what_was_found() -> None:
    limit = AdaptiveLimit("p", 100, 1, 64)
    drive(limit, thrashing(3), 70)
    assert limit.limit == 3
    again = limit.again(5000)
    assert (again.limit, again.ceiling) == (3, 64)
    assert [(c.limit, c.reason, c.at_ms) for c in again.changes] == [(3, "learned", 5000)]
    # Four at once were too many in the last arm, so that is not tried again at once.
    assert max(drive(again, thrashing(3), 10)) == 3


@pytest.mark.parametrize("asked_s", [None, 0.25])
def test_who_is_refused_comes_again_later_and_no_prompt_is_lost(asked_s: float | None) -> None:
    """Everything at once is held to a limit that moves; that is no limit of the strategy's."""
    busy = [Rejected("busy", "p", 503, asked_s), Rejected("busy", "p", 429, asked_s)]
    provider = fake.Provider("p", 100, slots=40, script=[*busy, *busy])
    live = {"p": AdaptiveLimit("p", 100, 8, 40)}
    done = ran("all-parallel", COUNT, [provider], given={"live": live}, retries=0)
    assert answered(done) == [*range(COUNT)] and done.limits is None
    assert provider.most_in_flight <= 40 // 3
    first = done.limit_changes[0]
    assert (first.reason, first.limit) == ("refused", 4)
    refused = {row.prompt: row for row in done.requests if row.outcome == "failed"}
    again = {r.prompt: r for r in done.requests if r.outcome == "ok" and r.prompt in refused}
    assert len(again) == 4
    for prompt, row in again.items():
        before = refused[prompt].marks.end_ms
        assert row.attempt == 2 and row.marks.start_ms and before is not None
        assert row.marks.start_ms - before >= 1000 * (asked_s or 0.1) - 1e-6


@pytest.mark.parametrize(
    ("alone_ms", "held_ms", "server_ms", "slow", "left"),
    [
        (100, 9000, 9000, 16, [8]),  # a real loss, by every request: 16 in 9 s, one in 0.1 s
        (100, 9000, 100, 16, [16]),  # all but a hundredth of it is the coordinator's own queue
        (100, 9000, 9000, 1, [16]),  # one slow request is no evidence, nor are two
        (100, 9000, 9000, 2, [16]),
        # Both take twice what an honest queue would; what the instrument cannot see tells nothing.
        (0.2, 6.4, 6.4, 16, [16]),
        (100, 3200, 3200, 16, [8]),
        # A moment in which all stood still is no evidence, but two are.
        (10, 400, 400, 16, [16, 8]),
    ],
)
def test_only_the_servers_time_by_several_requests_lowers_a_limit(
    alone_ms: float, held_ms: float, server_ms: float, slow: int, left: list[int]
) -> None:
    """Full loads of 16, one after the other; all but the `slow` wait a tenth for the server."""
    limit = AdaptiveLimit("p", alone_ms, 16, 16)
    for turn, expected in enumerate(left):
        for key in range(16):
            limit.begun(key, turn * held_ms)
        for key in range(16):
            limit.answered(key, (turn + 1) * held_ms, server_ms if key < slow else server_ms / 10)
        assert limit.limit == expected


@pytest.mark.parametrize("kind", ["openai", "llama-server"])  # connections kept, and made anew
def test_a_server_that_answers_at_once_keeps_its_limit(kind: str) -> None:
    """A real one, in a process of its own: what takes time is the coordinator's work alone."""

    async def story(url: str) -> Arm:
        sender = provider(kind, url, api="completion", name="p")
        prompts = [Prompt(i, "0.1 8 0") for i in range(600)]
        try:
            alone = [await attempt(sender, one, clock, Rules()) for one in prompts[:20]]
            alone_ms = fmean(row.wall_ms or 0 for row in alone)
            chosen, live = STRATEGIES["shared-queue"], {"p": AdaptiveLimit("p", alone_ms, 64, 64)}
            known = {"p": 64}, {"p": alone_ms}
            return await run_arm(
                "strategy", chosen, prompts, [sender], *known, clock, Rules(), live=live
            )
        finally:
            await sender.aclose()

    # Once in three: another program may take the known server's core, which is trouble indeed.
    fell = []
    while not fell or (fell[-1] and len(fell) < 3):
        with ruler.known_server(0) as url:
            done = asyncio.run(story(url))
        assert {row.outcome for row in done.requests} == {"ok"}
        fell.append(done.limit_changes)
    assert fell[-1] == [], "it fell every time"


BUSY = Rejected("provider p: HTTP 429: come back in an hour.", "p", 429, 3600)


def pausing(pool: list[fake.Provider], told: list[str], live: bool = True) -> tuple[Arm, float]:
    moving = {one.name: AdaptiveLimit(one.name, 100, one.slots, one.slots) for one in pool}
    return arm(
        "shared-queue", COUNT, pool, given={"live": moving if live else None, "tell": told.append}
    )


@pytest.mark.parametrize("live", [True, False])
def test_who_asks_for_an_hour_is_asked_again_after_a_minute_and_that_is_told(live: bool) -> None:
    told: list[str] = []
    done, ended_ms = pausing([fake.Provider("p", 100, slots=4, script=[BUSY] * 4)], told, live)
    assert answered(done) == [*range(COUNT)]
    assert 60_000 <= ended_ms < 65_000
    assert told == ["p asked to be left alone for 3,600 s; no pause here is longer than 60 s."]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("asked_s", [3600, 30])
def test_a_lone_provider_that_only_refuses_ends_the_arm(live: bool, asked_s: float) -> None:
    no = Rejected("provider p: HTTP 429: no room.", "p", 429, asked_s)
    with pytest.raises(RunFailed, match="refused for 60 s, at last so: provider p: HTTP 429"):
        pausing([fake.Provider("p", 100, slots=4, script=[no] * 9999)], [], live)


@pytest.mark.parametrize("live", [True, False])
def test_what_all_put_off_is_not_waited_for(live: bool) -> None:
    told: list[str] = []
    pool = [fake.Provider(name, 100, slots=4, script=[BUSY] * 9999) for name in ("p", "q")]
    done, ended_ms = pausing(pool, told, live)
    assert {row.outcome for row in done.requests} == {"failed"} and len(told) == 2
    assert ended_ms < 60_000
    told.clear()
    done, ended_ms = pausing([pool[0], fake.Provider("q", 100)], told, live)
    assert answered(done) == [*range(COUNT)]
    assert ended_ms < 10_000 and len(told) == 1


def test_a_wait_is_what_was_asked_or_grows_to_a_bound() -> None:
    assert pause_after(3, 2.5) == 2.5
    assert pause_after(1, 3600) == LONGEST_S
    waits = [pause_after(attempt, None) for attempt in range(1, 30)]
    assert waits[:3] == [0.1, 0.2, 0.4] and max(waits) == waits[-1] == LAST_PAUSE_S
