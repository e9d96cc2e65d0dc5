"""The limit that moves: up by one where all is well, halved in trouble, always with a reason."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from statistics import fmean

import pytest
from arms import arm, awaited, ran
from replay import Answer, Replay, clock, provider, replay

from poclib.errors import Rejected, RunFailed
from poclib.measure import adaptive, dispatch, ruler
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


def run(provider: fake.Provider, start: int) -> Arm:
    given = {"live": {provider.name: AdaptiveLimit(provider.name, 100, start, 40)}}
    return ran("all-parallel", COUNT, [provider], given=given, retries=0)


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
    assert sorted(answered) == list(range(COUNT))
    first = arm.limit_changes[0]
    assert (first.reason, first.limit) == ("refused", 4)
    refused = {row.prompt: row for row in arm.requests if row.outcome == "failed"}
    again = {r.prompt: r for r in arm.requests if r.outcome == "ok" and r.prompt in refused}
    assert len(again) == 4
    for prompt, row in again.items():
        before = refused[prompt].marks.end_ms
        assert row.attempt == 2 and row.marks.start_ms and before is not None
        assert row.marks.start_ms - before >= 1000 * (asked_s or 0.1) - 1e-6


def full(limit: AdaptiveLimit, held_ms: float, server_ms: float, slow: int = 99) -> int:
    """A full load: `slow` of it wait `server_ms` for the server, the rest a tenth; its limit."""
    held = limit.limit
    for key in range(held):
        limit.begun(key, 0)
    for key in range(held):
        limit.answered(key, held_ms, server_ms if key < slow else server_ms / 10)
    return limit.limit


@pytest.mark.parametrize(
    ("held_ms", "server_ms", "slow", "left"),
    [
        (9000, 9000, 99, 8),  # a real loss, by every request: 16 in 9 s, where one takes 0.1 s
        (9000, 100, 99, 16),  # all but a hundredth of it is the coordinator's own queue
        (9000, 9000, 1, 16),  # one slow request is no evidence
        (9000, 9000, 2, 16),
    ],
)
def test_only_the_servers_time_by_several_requests_lowers_a_limit(
    held_ms: float, server_ms: float, slow: int, left: int
) -> None:
    assert full(AdaptiveLimit("p", 100, 16, 16), held_ms, server_ms, slow) == left


def test_what_the_instrument_cannot_see_is_no_evidence() -> None:
    # Both take twice what an honest queue would; the first by 3 ms, the second by 1.6 s.
    assert full(AdaptiveLimit("p", 0.2, 16, 16), 6.4, 6.4) == 16
    assert full(AdaptiveLimit("p", 100, 16, 16), 3200, 3200) == 8


def test_a_moment_in_which_all_stood_still_is_no_evidence_but_two_are() -> None:
    limit = AdaptiveLimit("p", 10, 16, 16)
    for begin_ms, expected in ((0, 16), (400, 8)):
        for key in range(16):
            limit.begun(key, begin_ms)
        for key in range(16):
            limit.answered(key, begin_ms + 400)
        assert limit.limit == expected


@pytest.mark.parametrize("kind", ["openai", "llama-server"])  # connections kept, and made anew
def test_a_server_that_answers_at_once_keeps_its_limit(kind: str) -> None:
    """A real one, in a process of its own: what takes time is the coordinator's work alone."""

    async def story(url: str) -> Arm:
        sender = provider(kind, url, api="completion", name="p")
        anchor_s = time.perf_counter()

        def now_ms() -> float:
            return (time.perf_counter() - anchor_s) * 1000

        prompts = [Prompt(i, "0.1 8 0") for i in range(600)]
        try:
            alone = [await attempt(sender, one, now_ms, Rules()) for one in prompts[:20]]
            alone_ms = fmean(row.wall_ms or 0 for row in alone)
            return await run_arm(
                "strategy", STRATEGIES["shared-queue"], prompts, [sender], {"p": 64},
                {"p": alone_ms}, now_ms, Rules(), live={"p": AdaptiveLimit("p", alone_ms, 64, 64)},
            )  # fmt: skip
        finally:
            await sender.aclose()

    # Once in three: another program may take the known server's core, which is trouble indeed.
    for _ in range(3):
        with ruler.known_server(0) as url:
            arm = asyncio.run(story(url))
        assert {row.outcome for row in arm.requests} == {"ok"}
        if not arm.limit_changes:
            return
    pytest.fail(f"it fell every time: {arm.limit_changes}")


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
    answered = [row.prompt for row in done.requests if row.outcome == "ok"]
    assert sorted(answered) == list(range(COUNT))
    assert 60_000 <= ended_ms < 65_000
    assert told == ["p asked to be left alone for 3,600 s; no pause here is longer than 60 s."]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("asked_s", [3600, 30])
def test_where_the_only_provider_only_refuses_the_arm_ends_in_words(
    live: bool, asked_s: float
) -> None:
    no = Rejected("provider p: HTTP 429: no room.", "p", 429, asked_s)
    with pytest.raises(RunFailed, match="refused for 60 s, at last so: provider p: HTTP 429"):
        pausing([fake.Provider("p", 100, slots=4, script=[no] * 9999)], [], live)


@pytest.mark.parametrize("live", [True, False])
def test_where_all_providers_put_everything_off_no_prompt_is_waited_for(live: bool) -> None:
    told: list[str] = []
    pool = [fake.Provider(name, 100, slots=4, script=[BUSY] * 9999) for name in ("p", "q")]
    done, ended_ms = pausing(pool, told, live)
    assert {row.outcome for row in done.requests} == {"failed"} and len(told) == 2
    assert ended_ms < 60_000


def test_what_one_puts_off_for_an_hour_another_answers_at_once() -> None:
    told: list[str] = []
    pool = [fake.Provider("p", 100, slots=4, script=[BUSY] * 9999), fake.Provider("q", 100)]
    done, ended_ms = pausing(pool, told)
    assert sorted(r.prompt for r in done.requests if r.outcome == "ok") == [*range(COUNT)]
    assert ended_ms < 10_000 and len(told) == 1


def test_a_real_server_that_asks_for_an_hour_ends_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (adaptive, dispatch):
        monkeypatch.setattr(module, "LONGEST_S", 0.05)
    told: list[str] = []

    async def story(server: Replay) -> Arm:
        sender = provider("openai", server.url, name="p")
        given = {"live": {"p": AdaptiveLimit("p", 100, 4, 4)}, "tell": told.append}
        try:
            return await awaited(clock, "all-parallel", COUNT, [sender], given=given)
        finally:
            await sender.aclose()

    full_up = Answer(b'{"error": "full"}', 429, {"retry-after": "3600"})
    with pytest.raises(RunFailed, match="every provider has refused for"):
        replay(full_up, story)
    assert len(told) == 1 and "3,600 s" in told[0]


def test_a_wait_is_what_was_asked_or_grows_to_a_bound() -> None:
    assert pause_after(3, 2.5) == 2.5
    assert pause_after(1, 3600) == LONGEST_S
    waits = [pause_after(attempt, None) for attempt in range(1, 30)]
    assert waits[:3] == [0.1, 0.2, 0.4] and max(waits) == waits[-1] == LAST_PAUSE_S
