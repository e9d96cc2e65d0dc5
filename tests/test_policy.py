"""Backoff, breaker and hedging: as pure decisions, then carried out on a fake clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from replay import Replay, clock, provider, recorded

from poclib.errors import ProviderError, Rejected, TimedOut, Unreachable
from poclib.measure.attempt import Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.attempt import LONGEST_S, Breaker, Policy
from poclib.measure.strategies import STRATEGIES
from poclib.providers import fake
from poclib.records import Arm, Exchange, Prompt, Request

Clock = Callable[[], float]
DOWN = Unreachable("provider a: no connection", "a")


def arm(
    name: str, n: int, pool: Sequence[Any], expected_ms: dict[str, float], **rules: Any
) -> tuple[Arm, float]:
    """The arm, and the moment it was over; nothing may be left running."""
    policy = Policy(jitter=lambda: 1.0, **rules.pop("policy", {}))
    strategy = STRATEGIES[name]
    limits = {p.name: 1 if strategy.limit == "one" else p.slots for p in pool}

    async def story(clock: Clock) -> tuple[Arm, float]:
        prompts = [Prompt(i, f"question {i}") for i in range(n)]
        times = expected_ms
        done = await run_arm(
            "strategy", strategy, prompts, pool, limits, times, clock, Rules(policy=policy, **rules)
        )
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return done, clock()

    return fake.run(story)


def brief(found: Arm) -> list[tuple[int, str, str, str]]:
    return [(r.prompt, r.provider, r.role, r.outcome) for r in found.requests]


# ── decisions ───────────────────────────────────────────────────────────────────────────────


def test_the_pause_before_a_retry_doubles_has_a_ceiling_and_is_jittered() -> None:
    fixed = Policy(backoff_s=0.5, jitter=lambda: 1.0)
    assert [fixed.backoff(n) for n in (1, 2, 3, 4)] == [0.5, 1, 2, 4]
    assert fixed.backoff(10_000) == LONGEST_S
    draw = random.Random(1)
    drawn = [Policy(backoff_s=2, jitter=draw.random).backoff(1) for _ in range(500)]
    assert min(drawn) >= 1 and max(drawn) <= 2 and len(set(drawn)) > 400
    assert 1.4 < sum(drawn) / 500 < 1.6


def test_a_breaker_opens_tries_once_and_waits_twice_as_long_each_time() -> None:
    breaker = Breaker(failures=2, pause_s=5)
    breaker.record(False, 0)
    breaker.record(True, 1)
    breaker.record(False, 2)
    assert breaker.closed  # never two in a row
    breaker.record(False, 100)
    assert not breaker.closed and breaker.trial_ms == 5100
    assert not breaker.admits(5099, 0)
    assert breaker.admits(5100, 0) and not breaker.admits(5100, 1)  # one, no more
    breaker.record(False, 5200)
    assert breaker.trial_ms == 15_200
    breaker.record(False, 15_300)
    assert breaker.trial_ms == 35_300
    for _ in range(9):
        breaker.record(False, breaker.trial_ms or 0)
    assert not breaker.admits(1e5, 0)
    start_ms = breaker.trial_ms or 0
    breaker.record(False, start_ms)
    assert breaker.trial_ms == start_ms + LONGEST_S * 1000
    breaker.record(True, start_ms)
    assert breaker.closed and breaker.admits(0, 99)
    breaker.record(False, 0)
    breaker.record(False, 0)
    assert breaker.trial_ms == 5000  # and the pause begins small again


def test_late_failures_of_what_was_under_way_do_not_make_a_pause_longer() -> None:
    breaker = Breaker(failures=1, pause_s=5)
    for moment_ms in (0, 1, 2, 3):
        breaker.record(False, moment_ms)
    assert breaker.trial_ms == 5003


def test_a_breaker_can_be_switched_off() -> None:
    breaker = Breaker(failures=0, pause_s=5)
    for _ in range(99):
        breaker.record(False, 0)
    assert breaker.closed


# ── failing over ────────────────────────────────────────────────────────────────────────────


def test_a_lone_provider_is_given_a_pause_before_each_retry() -> None:
    pool = [fake.Provider("a", 100, script=[DOWN] * 3)]
    found, _ = arm("sequential", 1, pool, {"a": 100}, retries=3, policy={"breaker_failures": 0})
    assert [r.marks.start_ms for r in found.requests] == pytest.approx([0, 550, 1600, 3650])
    assert [r.role for r in found.requests] == ["first", "retry", "retry", "retry"]


def test_after_three_failures_a_dead_providers_share_goes_to_the_others_unasked() -> None:
    # Without a breaker each of its twelve prompts would first be sent there in vain.
    pool = [fake.Provider("a", 100, script=[DOWN] * 99), fake.Provider("b", 100)]
    times = {"a": 100.0, "b": 100.0}
    found, _ = arm("serial-per-provider", 24, pool, times)
    assert [r.provider for r in found.requests if r.outcome == "failed"] == ["a"] * 3
    assert sorted(r.prompt for r in found.requests if r.outcome == "ok") == [*range(24)]
    off, _ = arm(
        "serial-per-provider",
        24,
        [fake.Provider("a", 100, script=[DOWN] * 99), fake.Provider("b", 100)],
        times,
        policy={"breaker_failures": 0},
    )
    assert len([r for r in off.requests if r.outcome == "failed"]) == 12


@pytest.mark.parametrize("name", ["serial-per-provider", "shared-queue", "earliest-finish"])
def test_a_provider_that_comes_back_is_tried_with_one_request_and_used_again(name: str) -> None:
    # It is away for its first four requests: three open the breaker, the fourth is the trial.
    pool = [fake.Provider("a", 100, script=[DOWN] * 4), fake.Provider("b", 100)]
    found, _ = arm(
        name, 200, pool, {"a": 100, "b": 100}, retries=9, policy={"breaker_pause_s": 1.0}
    )
    assert sorted(r.prompt for r in found.requests if r.outcome == "ok") == [*range(200)]
    failed = [r.marks.start_ms or 0 for r in found.requests if r.outcome == "failed"]
    assert len(failed) == 4
    third, trial = failed[2:]
    assert 1000 <= trial - third <= 1200
    back = [r for r in found.requests if r.provider == "a" and r.outcome == "ok"]
    assert (back[0].marks.start_ms or 0) - trial >= 2000  # the pause was doubled
    assert len(back) > 50  # and its share came back to it


def test_with_every_provider_in_trouble_none_is_spared_and_the_arm_ends() -> None:
    pool = [fake.Provider(n, 100, script=[DOWN] * 999) for n in ("a", "b")]
    found, over_ms = arm("shared-queue", 20, pool, {"a": 100, "b": 100}, retries=1)
    assert len(found.requests) == 40 and {r.outcome for r in found.requests} == {"failed"}
    assert over_ms < 10_000


def test_a_prompt_that_is_refused_for_itself_blames_no_provider() -> None:
    refused = Rejected("too long", "a", status=400)
    pool = [fake.Provider("a", 100, script=[refused] * 9), fake.Provider("b", 100)]
    found, _ = arm("serial-per-provider", 30, pool, {"a": 100, "b": 100})
    assert [r.provider for r in found.requests if r.outcome == "failed"] == ["a"] * 9
    assert len(found.requests) == 30


@pytest.mark.parametrize("seed", range(25))
def test_every_prompt_is_answered_once_however_providers_come_and_go(seed: int) -> None:
    draw = random.Random(seed)
    pool = [
        fake.Provider(
            f"p{i}",
            draw.uniform(20, 300),
            slots=draw.randint(1, 3),
            script=[draw.choice([None, DOWN, "hang"]) for _ in range(draw.randint(0, 30))],
        )
        for i in range(draw.randint(1, 5))
    ]
    name = draw.choice([n for n in STRATEGIES if n != "all-parallel"])
    n = draw.randint(1, 60)
    found, _ = arm(
        name,
        n,
        pool,
        {p.name: 100.0 for p in pool},
        retries=99,
        request_timeout_s=2.0,
        policy={"hedge_after": draw.choice([None, 1.5]), "breaker_pause_s": 1.0},
    )
    assert sorted(r.prompt for r in found.requests if r.outcome == "ok") == [*range(n)]
    attempts = [(r.prompt, r.attempt) for r in found.requests]
    assert len(set(attempts)) == len(attempts)
    assert all(one.most_in_flight <= one.slots for one in pool)


# ── hedging ─────────────────────────────────────────────────────────────────────────────────


def test_a_late_last_prompt_is_sent_to_an_idle_provider_and_the_loser_is_cancelled() -> None:
    pool = [fake.Provider("a", 100, script=["hang"]), fake.Provider("b", 120)]
    found, over_ms = arm(
        "serial-per-provider", 2, pool, {"a": 100, "b": 120}, policy={"hedge_after": 1.5}
    )
    # a is due at 100 ms; at 150 ms it is late by half; b answers the copy 120 ms later.
    assert brief(found) == [
        (1, "b", "first", "ok"),
        (0, "b", "hedge", "ok"),
        (0, "a", "first", "cancelled"),
    ]
    assert over_ms == pytest.approx(270)
    lost = found.requests[2]
    assert lost.error == "another copy of it was answered first" and lost.answer_sha256 is None
    assert [r.attempt for r in found.requests] == [1, 2, 1]


def test_the_first_copy_may_still_win() -> None:
    pool = [fake.Provider("a", lambda p: 220), fake.Provider("b", 120)]
    found, _ = arm(
        "serial-per-provider", 2, pool, {"a": 100, "b": 120}, policy={"hedge_after": 1.5}
    )
    assert brief(found)[1:] == [(0, "a", "first", "ok"), (0, "b", "hedge", "cancelled")]


def test_nothing_is_hedged_while_prompts_wait_or_by_default_or_in_time() -> None:
    def late() -> list[fake.Provider]:
        return [fake.Provider("a", 100, script=["hang"]), fake.Provider("b", 120)]

    times = {"a": 100.0, "b": 120.0}
    found, _ = arm("serial-per-provider", 2, late(), times, request_timeout_s=5.0)
    assert "hedge" not in {r.role for r in found.requests}
    busy, _ = arm("shared-queue", 30, late(), times, policy={"hedge_after": 1.5})
    hedges = [r for r in busy.requests if r.role == "hedge"]
    assert len(hedges) == 1 and (hedges[0].marks.start_ms or 0) > 28 * 120
    well = [fake.Provider("a", 100), fake.Provider("b", 120)]
    fine, _ = arm("shared-queue", 30, well, times, policy={"hedge_after": 1.5})
    assert {r.role for r in fine.requests} == {"first"}


def test_both_copies_at_the_same_moment_are_one_answer() -> None:
    pool = [fake.Provider("a", lambda p: 270), fake.Provider("b", 120)]
    found, _ = arm(
        "serial-per-provider", 2, pool, {"a": 100, "b": 120}, policy={"hedge_after": 1.5}
    )
    assert sorted(r.outcome for r in found.requests if r.prompt == 0) == ["cancelled", "ok"]


def test_a_copy_that_fails_leaves_the_other_going() -> None:
    pool = [fake.Provider("a", lambda p: 500), fake.Provider("b", 100, script=[None, DOWN])]
    found, _ = arm(
        "serial-per-provider", 2, pool, {"a": 100, "b": 100}, policy={"hedge_after": 1.5}
    )
    mine = [(r.provider, r.role, r.outcome) for r in found.requests if r.prompt == 0]
    assert mine[0] == ("b", "hedge", "failed") and ("a", "first", "ok") in mine


# ── silence ─────────────────────────────────────────────────────────────────────────────────


class Talking(fake.Provider):
    """Gives tokens at these moments, in milliseconds, then nothing more for ever."""

    def __init__(self, name: str, tokens_ms: Sequence[float]) -> None:
        super().__init__(name, 100)
        self.tokens_ms = tokens_ms

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        exchange.mark("start")
        begun_ms = exchange.clock()
        try:
            for moment_ms in self.tokens_ms:
                await asyncio.sleep((begun_ms + moment_ms - exchange.clock()) / 1000)
                exchange.token_ms.append(exchange.clock())
            await asyncio.get_running_loop().create_future()
        finally:
            exchange.mark("end")


@pytest.mark.parametrize(
    ("tokens_ms", "wall_ms", "named"),
    [
        ([], 4000, "no token within 4 s; raise first_token_timeout_s"),
        ([3900], 4900, "no token within 1 s; raise between_tokens_timeout_s"),
        ([100, 1000, 1900, 2800], 3800, "no token within 1 s; raise between_tokens_timeout_s"),
        ([900.0 * i for i in range(99)], 20_000, "not finished within 20 s"),
    ],
)
def test_silence_ends_a_request_before_its_whole_time_is_over(
    tokens_ms: list[float], wall_ms: float, named: str
) -> None:
    limits = {"first_token_timeout_s": 4.0, "between_tokens_timeout_s": 1.0}
    found, _ = arm(
        "sequential",
        1,
        [Talking("a", tokens_ms)],
        {"a": 100},
        retries=0,
        request_timeout_s=20.0,
        **limits,
    )
    (row,) = found.requests
    assert row.wall_ms == pytest.approx(wall_ms, abs=2)
    assert row.error_kind == "TimedOut" and named in (row.error or "")


@pytest.mark.parametrize("count", [50, 1])  # with the rest waiting, and with nothing left
def test_an_arm_ends_at_its_deadline_although_a_provider_will_not_let_go(count: int) -> None:
    class Stubborn(fake.Provider):
        async def send(self, prompt: Prompt, exchange: Exchange) -> None:
            for _ in range(100):
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    continue

    async def story(clock: Clock) -> float:
        pool = [Stubborn("a"), fake.Provider("b", 100)]
        await run_arm(
            "strategy",
            STRATEGIES["shared-queue"],
            [Prompt(i, "x") for i in range(count)],
            pool,
            {"a": 1, "b": 1},
            {"a": 100.0, "b": 100.0},
            clock,
            Rules(deadline_ms=1000),
        )
        over_ms = clock()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            for _ in range(100):
                task.cancel()
                await asyncio.sleep(0)
        return over_ms

    assert fake.run(story) <= 2100


def test_a_rule_of_errors_says_what_may_help_where() -> None:
    where: list[tuple[ProviderError, bool, bool]] = [
        (TimedOut("x"), True, True),
        (Rejected("x", status=503), True, True),
        (Rejected("x", status=401), False, True),
        (Rejected("x", status=400), False, False),
    ]
    for error, again, elsewhere in where:
        assert (error.temporary, error.elsewhere) == (again, elsewhere)


def test_rows_without_a_role_are_first_attempts() -> None:
    assert Request(prompt=0, provider="a").role == "first"


# ── on a real socket ────────────────────────────────────────────────────────────────────────


def test_a_copy_that_lost_is_cancelled_at_its_server_too() -> None:
    """Its connection is closed, which is how a server learns that nobody wants the answer."""
    stream = recorded("ollama/chat_stream")
    first = stream.body.split(b"\n")[0] + b"\n"

    async def story() -> list[tuple[str, str]]:
        async with (
            asyncio.timeout(30),
            Replay(replace(stream, body=first, ending="hang")) as slow,
            Replay(stream) as well,
        ):
            pool = [provider("ollama", slow.url), provider("ollama", well.url)]
            for one, name in zip(pool, ("slow", "well"), strict=True):
                one.name = name
            found = await run_arm(
                "strategy",
                STRATEGIES["serial-per-provider"],
                [Prompt(i, "x") for i in range(2)],
                pool,
                {"slow": 1, "well": 1},
                {"slow": 1.0, "well": 1.0},
                clock,
                Rules(policy=Policy(hedge_after=1.0)),
            )
            await asyncio.gather(*slow._tasks)  # ends once the other side has closed
            for one in pool:
                await one.aclose()
            return [(r.provider, r.role) for r in found.requests if r.outcome == "ok"]

    assert sorted(asyncio.run(story())) == [("well", "first"), ("well", "hedge")]


def test_a_retry_does_not_go_to_one_that_fails_too_although_it_is_idle() -> None:
    dead = {name: fake.Provider(name, 100, script=[DOWN] * 99) for name in ("a", "b")}
    pool = [*dead.values(), fake.Provider("c", 100)]
    times = {"a": 100.0, "b": 100.0, "c": 100.0}
    found, _ = arm("serial-per-provider", 30, pool, times, retries=2)
    assert sorted(r.prompt for r in found.requests if r.outcome == "ok") == [*range(30)]
    assert sum(r.outcome == "failed" for r in found.requests) <= 7
