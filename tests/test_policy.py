"""Backoff, breaker, fail-over and hedging: as pure decisions, then carried out on a fake clock."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from replay import Replay, clock, provider, recorded
from test_dispatch import DOWN, SPREADING, answered, arm, awaited, brief, constant, ran

from poclib.errors import ProviderError, Rejected
from poclib.measure.adaptive import AdaptiveLimit
from poclib.measure.attempt import LONGEST_S, Breaker, Policy
from poclib.providers import fake
from poclib.records import Arm, Exchange, Prompt

BUSY = Rejected("provider a: busy", "a", 503)


def failed(done: Arm) -> list[str]:
    return [r.provider for r in done.requests if r.outcome == "failed"]


def dead(*names: str) -> list[fake.Provider]:
    return [fake.Provider(name, 100, script=[DOWN] * 999) for name in names]


def test_the_pause_before_a_retry_has_a_ceiling_and_is_jittered() -> None:
    assert Policy(jitter=lambda: 1.0).backoff(10_000) == LONGEST_S
    draw = random.Random(1)
    drawn = [Policy(backoff_s=2, jitter=draw.random).backoff(1) for _ in range(500)]
    assert min(drawn) >= 1 and max(drawn) <= 2 and 1.4 < sum(drawn) / 500 < 1.6


def test_a_breaker_opens_tries_once_and_waits_twice_as_long_each_time() -> None:
    breaker = Breaker(failures=2, pause_s=5)
    for moment_ms, worked in enumerate((False, True, False)):
        breaker.record(worked, moment_ms)
    assert breaker.closed  # never two in a row
    breaker.record(False, 100)
    assert not breaker.closed and breaker.trial_ms == 5100
    assert not breaker.admits(5099, 0)
    assert breaker.admits(5100, 0) and not breaker.admits(5100, 1)  # one, no more
    for moment_ms, trial_ms in ((5200, 15_200), (15_300, 35_300)):
        breaker.record(False, moment_ms)
        assert breaker.trial_ms == trial_ms
    for _ in range(9):
        breaker.record(False, breaker.trial_ms or 0)
    start_ms = breaker.trial_ms or 0
    breaker.record(False, start_ms)
    assert breaker.trial_ms == start_ms + LONGEST_S * 1000
    breaker.record(True, start_ms)
    assert breaker.closed and breaker.admits(0, 99)
    # The pause begins small again, and late failures of what was under way do not lengthen it.
    for moment_ms in (0, 0, 1, 2):
        breaker.record(False, moment_ms)
    assert breaker.trial_ms == 5002


@pytest.mark.parametrize(
    ("error", "starts_ms"),
    [(DOWN, [0, 550, 1600, 3650]), (Rejected("busy", "a", 503, 4), [0, 4050, 8100, 12_150])],
)
def test_a_lone_provider_is_given_pauses(error: ProviderError, starts_ms: list[float]) -> None:
    pool = [fake.Provider("a", 100, script=[error] * 3)]
    done = ran("sequential", 1, pool, retries=3, policy={"breaker_failures": 0})
    assert [r.marks.start_ms for r in done.requests] == pytest.approx(starts_ms)
    assert [r.role for r in done.requests] == ["first", "retry", "retry", "retry"]
    assert [r.wall_ms for r in done.requests] == pytest.approx([50, 50, 50, 100])


def test_after_three_failures_a_dead_providers_share_goes_to_the_others_unasked() -> None:
    # Without a breaker each of its twelve prompts is first sent there in vain.
    for failures, expected in ((3, 3), (0, 12)):
        pool = [*dead("a"), fake.Provider("b", 100)]
        done = ran("serial-per-provider", 24, pool, policy={"breaker_failures": failures})
        assert failed(done) == ["a"] * expected and answered(done) == [*range(24)]
    pool = [*dead("a", "b"), fake.Provider("c", 100)]  # nor goes one from a dead one to another
    done = ran("serial-per-provider", 30, pool, retries=2)
    assert answered(done) == [*range(30)] and len(failed(done)) <= 7


@pytest.mark.parametrize("name", ["serial-per-provider", "shared-queue", "earliest-finish"])
def test_a_provider_that_comes_back_is_tried_with_one_request_and_used_again(name: str) -> None:
    # It is away for its first four requests: three open the breaker, the fourth is the trial.
    pool = [fake.Provider("a", 100, script=[DOWN] * 4), fake.Provider("b", 100)]
    done = ran(name, 200, pool, retries=9, policy={"breaker_pause_s": 1.0})
    assert answered(done) == [*range(200)] and failed(done) == ["a"] * 4
    third, trial = [r.marks.start_ms or 0 for r in done.requests if r.outcome == "failed"][2:]
    assert 1000 <= trial - third <= 1200
    back = [r for r in done.requests if r.provider == "a" and r.outcome == "ok"]
    assert (back[0].marks.start_ms or 0) - trial >= 2000  # the pause was doubled
    assert len(back) > 50  # and its share came back to it


def test_a_prompt_that_is_refused_for_itself_blames_no_provider() -> None:
    refused = [Rejected("too long", "a", status=400)] * 9
    pool = [fake.Provider("a", 100, script=refused), fake.Provider("b", 100)]
    done = ran("serial-per-provider", 30, pool)
    assert failed(done) == ["a"] * 9 and len(done.requests) == 30


def test_a_retry_waits_for_another_provider_rather_than_go_back_to_the_one_that_failed() -> None:
    pool = [fake.Provider("a", 10, script=[None, DOWN, DOWN]), fake.Provider("b", 9000)]
    done = ran("shared-queue", 3, pool, {"a": 10, "b": 9000}, request_timeout_s=60.0)
    assert [row[0] for row in brief(done)] == [0, 2, 1, 2]
    assert brief(done)[-1] == (2, "b", "retry", "ok")


def test_a_provider_on_trial_holds_one_prompt_and_the_others_work_on() -> None:
    """It hangs on its trial for as long as a request may take; the rest is done elsewhere."""
    pool = [fake.Provider("a", 100, script=[DOWN] * 3 + ["hang"]), fake.Provider("b", 100)]
    pause = {"breaker_pause_s": 0.5}
    done, over_ms = arm("serial-per-provider", 20, pool, request_timeout_s=30.0, policy=pause)
    late = [r for r in done.requests if (r.marks.end_ms or 0) > 5000]
    assert [(r.provider, r.outcome) for r in late] == [("a", "failed"), ("b", "ok")]
    assert answered(done) == [*range(20)] and over_ms < 31_000


def test_what_is_refused_keeps_its_time_and_others_pass_it() -> None:
    full = Rejected("full", "a", 429, 5)
    pool = [fake.Provider("a", 100, slots=4, script=[full, full]), fake.Provider("b", 1000)]
    live = {"a": AdaptiveLimit("a", 100, 4, 4)}
    done, over_ms = arm("shared-queue", 40, pool, given={"live": live}, retries=0)
    assert answered(done) == [*range(40)] and over_ms < 5000
    again = [(r.provider, r.marks.start_ms or 0) for r in done.requests if r.role == "retry"]
    assert len(again) == 2 and all(name == "b" or start >= 5050 for name, start in again)


@pytest.mark.parametrize("seed", range(25))
def test_every_prompt_is_answered_once_however_providers_come_and_go(seed: int) -> None:
    draw = random.Random(seed)
    troubles = [None, DOWN, "hang", BUSY, Rejected("full", "a", 429, 0.3)]
    pool = []
    for i in range(draw.randint(1, 5)):
        time_ms, slots = draw.uniform(20, 300), draw.randint(1, 3)
        script = [draw.choice(troubles) for _ in range(draw.randint(0, 30))]
        pool.append(fake.Provider(f"p{i}", time_ms, slots, script=script))
    live = {p.name: AdaptiveLimit(p.name, 100, 1, 1) for p in pool if draw.random() < 0.5}
    name, n = draw.choice(["sequential", *SPREADING]), draw.randint(1, 60)
    rules: dict[str, Any] = {"retries": 99, "request_timeout_s": 2.0}
    rules["policy"] = {"hedge_after": draw.choice([None, 1.5]), "breaker_pause_s": 1.0}
    done = ran(name, n, pool, given={"live": live}, **rules)
    assert answered(done) == [*range(n)]
    assert all(one.most_in_flight <= one.slots + (name == "sent-ahead") for one in pool)
    few = ran(name, n, pool, **rules | {"retries": 2, "policy": {}})
    assert len(set(answered(few))) == len(answered(few))
    for r in (*done.requests, *few.requests):
        assert r.attempt == 1 or r.role != "first"
    for each in (done, few):
        attempts = Counter(r.prompt for r in each.requests)
        numbered = {(p, i + 1) for p, most in attempts.items() for i in range(most)}
        assert {(r.prompt, r.attempt) for r in each.requests} == numbered
    assert all(r.attempt <= 3 for r in few.requests)


TIMES = {"a": 100.0, "b": 120.0}
HEDGE = {"hedge_after": 1.5}
# A copy that failed is made up for, but no more often than retries allow.
LOST = [("b", "hedge", "failed", 2), ("b", "hedge", "failed", 3)]


@pytest.mark.parametrize(
    ("a", "b", "ended_ms", "expected"),
    [
        # a is due at 100 ms; at 150 ms it is late by half; b answers the copy 120 ms later.
        (9999, [], 270, [("b", "hedge", "ok", 2), ("a", "first", "cancelled", 1)]),
        # The first copy may still win.
        (220, [], 220, [("a", "first", "ok", 1), ("b", "hedge", "cancelled", 2)]),
        # Both at the same moment are one answer.
        (270, [], 270, [("a", "first", "ok", 1), ("b", "hedge", "cancelled", 2)]),
        # One that fails leaves the other going.
        (
            9999,
            [None, DOWN],
            330,
            [("b", "hedge", "failed", 2), ("b", "hedge", "ok", 3), ("a", "first", "cancelled", 1)],
        ),
        (500, [None, DOWN, DOWN, DOWN], 500, [*LOST, ("a", "first", "ok", 1)]),
    ],
)
def test_a_late_last_prompt_has_two_copies_of_which_one_is_the_answer(
    a: float, b: list[Any], ended_ms: float, expected: list[Any]
) -> None:
    pool = [fake.Provider("a", a), fake.Provider("b", 120, script=b)]
    done, over_ms = arm("serial-per-provider", 2, pool, TIMES, policy=HEDGE)
    rows = [r for r in done.requests if r.prompt == 0]
    assert [(r.provider, r.role, r.outcome, r.attempt) for r in rows] == expected
    assert over_ms == pytest.approx(ended_ms)
    for lost in (r for r in rows if r.outcome == "cancelled"):
        assert lost.error == "another copy of it was answered first" and lost.answer_sha256 is None


def test_a_refused_prompt_whose_copy_is_under_way_is_not_sent_again() -> None:
    """a refuses it, as one too many beside another, once b has been given a copy."""
    pool = [
        fake.Provider("a", 1800, slots=2, script=[BUSY]),
        fake.Provider("b", lambda prompt: 100 if prompt.index else 2000),
    ]
    live = {"a": AdaptiveLimit("a", 100, 2, 2)}
    done = ran("shared-queue", 3, pool, given={"live": live}, policy=HEDGE)
    assert brief(done) == [
        (1, "b", "first", "ok"),
        (0, "a", "first", "failed"),
        (2, "a", "first", "ok"),
        (0, "b", "hedge", "ok"),
    ]
    assert [change.reason for change in done.limit_changes] == ["refused"]


def test_nothing_is_hedged_while_prompts_wait_or_by_default_or_in_time() -> None:
    def late() -> list[fake.Provider]:
        return [fake.Provider("a", 100, script=["hang"]), fake.Provider("b", 120)]

    default = ran("serial-per-provider", 2, late(), TIMES, request_timeout_s=5.0)
    fine = ran("shared-queue", 30, constant(a=100, b=120), TIMES, policy=HEDGE)
    assert "hedge" not in {r.role for r in (*default.requests, *fine.requests)}
    busy = ran("shared-queue", 30, late(), TIMES, policy=HEDGE)
    (copy,) = [r for r in busy.requests if r.role == "hedge"]
    assert (copy.marks.start_ms or 0) > 28 * 120


class Talking(fake.Provider):
    """Gives a token after each of these pauses, in milliseconds, then nothing more for ever."""

    pauses_ms: list[float]

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        exchange.mark("start")
        try:
            for pause_ms in self.pauses_ms:
                await asyncio.sleep(pause_ms / 1000)
                exchange.token_ms.append(exchange.clock())
            await asyncio.get_running_loop().create_future()
        finally:
            exchange.mark("end")


@pytest.mark.parametrize(
    ("pauses_ms", "wall_ms", "named"),
    [
        ([], 4000, "no token within 4 s; raise first_token_timeout_s"),
        ([3900], 4900, "no token within 1 s; raise between_tokens_timeout_s"),
        ([100, 900, 900, 900], 3800, "no token within 1 s; raise between_tokens_timeout_s"),
        ([900.0] * 99, 20_000, "not finished within 20 s; raise request_timeout"),
    ],
)
def test_silence_ends_a_request_before_its_whole_time_is_over(
    pauses_ms: list[float], wall_ms: float, named: str
) -> None:
    limits = {"first_token_timeout_s": 4.0, "between_tokens_timeout_s": 1.0}
    talking = Talking("a")
    talking.pauses_ms = pauses_ms
    (row,) = ran("sequential", 1, [talking], retries=0, request_timeout_s=20.0, **limits).requests
    assert row.wall_ms == pytest.approx(wall_ms, abs=2)
    assert row.error_kind == "TimedOut" and named in (row.error or "")


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
            done = await awaited(
                clock, "serial-per-provider", 2, pool, {"slow": 1, "well": 1}, policy=HEDGE
            )
            await asyncio.gather(*slow._tasks)  # ends once the other side has closed
            for one in pool:
                await one.aclose()
            return [(r.provider, r.role) for r in done.requests if r.outcome == "ok"]

    assert sorted(asyncio.run(story())) == [("well", "first"), ("well", "hedge")]
