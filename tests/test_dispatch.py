"""Strategies carried out, on a clock that costs no time: limits, retries, ends of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from poclib.errors import (
    Forbidden,
    ModelMissing,
    ProviderError,
    Rejected,
    ReportError,
    RunFailed,
    TimedOut,
    Unreachable,
)
from poclib.measure.attempt import Policy, Rules, attempt
from poclib.measure.dispatch import run_arm
from poclib.measure.slots import Place, Pool
from poclib.measure.strategies import STRATEGIES, Strategy, fastest, simulated_makespan_ms
from poclib.providers import fake
from poclib.records import Arm, Exchange, Prompt, Request

Clock = Callable[[], float]
UNLIMITED = ["all-parallel", "through-router"]
SPREADING = [name for name in STRATEGIES if name not in ("sequential", *UNLIMITED)]
SIMULATED = [name for name in SPREADING if name != "sent-ahead"]  # it waits in servers
NAMES = sorted(STRATEGIES)
DOWN = Unreachable("provider a: no connection", "a")
ONE = Prompt(0, "question 0")


def limits_of(strategy: Strategy, pool: Sequence[Any]) -> dict[str, int] | None:
    if strategy.limit == "none":
        return None
    more = strategy.limit == "ahead"
    return {p.name: 1 if strategy.limit == "one" else p.slots + more for p in pool}


def own(decide: Callable[[Pool], Place | None]) -> Strategy:
    return Strategy("own", decide, "one", "?")


async def awaited(
    clock: Clock,
    strategy: str | Strategy,
    count: int,
    pool: Sequence[Any],
    expected_ms: dict[str, float] | None = None,
    policy: dict[str, Any] | None = None,
    given: dict[str, Any] | None = None,
    **rules: Any,
) -> Arm:
    """`given` goes to `run_arm` as it is, `policy` and the rest into its rules."""
    chosen = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    return await run_arm(
        "strategy",
        chosen,
        [Prompt(i, f"question {i}") for i in range(count)],
        pool,
        limits_of(chosen, pool),
        expected_ms or {p.name: 100.0 for p in pool},
        clock,
        Rules(policy=Policy(jitter=lambda: 1.0, **(policy or {})), **rules),
        **(given or {}),
    )


def arm(*args: Any, **more: Any) -> tuple[Arm, float]:
    """The arm, and the moment it was over; nothing may be left running."""

    async def story(clock: Clock) -> tuple[Arm, float]:
        done = await awaited(clock, *args, **more)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return done, clock()

    return fake.run(story)


def ran(*args: Any, **more: Any) -> Arm:
    return arm(*args, **more)[0]


def constant(slots: int = 1, **times_ms: float) -> list[fake.Provider]:
    return [fake.Provider(name, time_ms, slots) for name, time_ms in times_ms.items()]


def brief(done: Arm) -> list[tuple[int, str, str, str]]:
    return [(r.prompt, r.provider, r.role, r.outcome) for r in done.requests]


def answered(done: Arm) -> list[int]:
    return sorted(r.prompt for r in done.requests if r.outcome == "ok")


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_is_answered_once_within_the_limits(name: str) -> None:
    """Random pools, random times, guesses of speed that are wrong."""
    for seed in range(12):
        draw = random.Random(f"{name} {seed}")

        def time_ms(_: Prompt, draw: random.Random = draw) -> float:
            return draw.uniform(1, 500)

        slots = [draw.randint(1, 4) for _ in range(draw.randint(1, 20))]
        pool = [fake.Provider(f"p{i}", time_ms, count) for i, count in enumerate(slots)]
        n = draw.randint(0, 40)
        guesses = {p.name: draw.uniform(1, 500) for p in pool}
        done = ran(name, n, pool, guesses, request_timeout_s=1e7)
        assert answered(done) == list(range(n))
        firsts = [r for r in done.requests if r.role == "first" and r.outcome == "ok"]
        if name not in ("earliest-finish", "sent-ahead"):  # which may send one twice
            assert len(firsts) == len(done.requests) == n
        limits = limits_of(STRATEGIES[name], pool)
        assert done.limits == limits
        assert limits is None or all(p.most_in_flight <= limits[p.name] for p in pool)
        for r in firsts:
            assert r.wall_ms is not None and r.queued_ms is not None and r.attempt == 1
            assert r.marks.assigned_ms is not None and r.marks.end_ms is not None
            # Assigned, then queued, then on the wire: no time is counted twice or lost.
            assert r.marks.assigned_ms + r.queued_ms + r.wall_ms == pytest.approx(r.marks.end_ms)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", ["sequential", *SIMULATED])
def test_constant_times_take_exactly_the_simulated_makespan(name: str, slots: int) -> None:
    for seed in range(15):
        draw = random.Random(f"{name} {seed}")
        times = {f"p{i}": draw.uniform(10, 900) for i in range(draw.randint(1, 6))}
        n = draw.randint(1, 30)
        pool = constant(slots, **times)
        _, over_ms = arm(name, n, pool, times)
        limits = limits_of(STRATEGIES[name], pool) or {}
        expected = simulated_makespan_ms(STRATEGIES[name], n, times, limits)
        assert over_ms == pytest.approx(expected), (n, times)


def test_a_strategy_sees_what_goes_on_and_speeds_updated_by_answers() -> None:
    seen: list[tuple[float, int, int, int, float]] = []

    def spy(pool: Pool) -> Place | None:
        (a,) = pool.places
        took_ms = a.expected_ms * pool.lengths.mean
        seen.append((pool.now_ms, pool.waiting, len(a.running), len(a.queue), took_ms))
        return a if len(a.queue) < 2 else None

    ran(own(spy), 4, constant(a=80), {"a": 60.0})
    assert [one[:4] for one in seen] == [
        (0, 4, 0, 0), (0, 3, 0, 1), (0, 2, 0, 2),
        (80, 2, 0, 1), (80, 1, 0, 2),
        (160, 1, 0, 1),
    ]  # fmt: skip
    # 60 ms expected, four times as sure as of one answer; 80 ms each time: (4 * 60 + 80) / 5 ...
    assert [one[4] for one in seen[2:]] == pytest.approx([60, 64, 64, 400 / 6])


@pytest.mark.parametrize(
    ("error", "elsewhere", "alone"),
    [
        *((Rejected("busy", "a", status=status), 2, 2) for status in (408, 429, 503)),
        (DOWN, 2, 2),
        (TimedOut("slow", "a"), 2, 2),
        # What one provider lacks is tried elsewhere, never there again.
        (Forbidden("public", "a"), 2, 1),
        (ModelMissing("gone", "a", status=404), 2, 1),
        (Rejected("no key", "a", status=401), 2, 1),
        # What is wrong with the request itself is wrong everywhere.
        *((Rejected("bad request", "a", status=status), 1, 1) for status in (400, 413, 422)),
    ],
)
def test_a_failure_is_tried_again_where_that_may_help(
    error: ProviderError, elsewhere: int, alone: int
) -> None:
    lone = ran("sequential", 1, [fake.Provider("a", 100, script=[error])])
    assert [r.outcome for r in lone.requests] == ["failed", "ok"][:alone]
    pool = [fake.Provider("a", 100, script=[error]), fake.Provider("b", 130)]
    done = ran("serial-per-provider", 2, pool, {"a": 100, "b": 130})
    rows = [(0, "a", "first", "failed"), (1, "b", "first", "ok"), (0, "b", "retry", "ok")]
    assert brief(done) == rows[: elsewhere + 1]
    first = done.requests[0]
    told = str(error), type(error).__name__, error.status
    assert (first.error, first.error_kind, first.status) == told
    assert first.answer_sha256 is None and first.wall_ms == pytest.approx(50)
    for again in done.requests[2:]:
        assert again.attempt == 2 and again.marks.assigned_ms == pytest.approx(50)
        assert again.queued_ms == pytest.approx(80)  # b was busy until 130 ms


@pytest.mark.parametrize("retries", [0, 2])
def test_retries_come_to_an_end_and_the_arm_is_returned(retries: int) -> None:
    pool = [fake.Provider(name, 100, script=[DOWN] * 18) for name in ("a", "b")]
    done = ran("sequential", 1, pool, retries=retries)
    attempts = [("a", 1), ("b", 2), ("a", 3)]
    assert [(r.provider, r.attempt) for r in done.requests] == attempts[: retries + 1]


@pytest.mark.parametrize("n", [2, 6])  # of two, the slow one is idle: no answer can tell it
def test_earliest_finish_works_around_a_provider_that_hangs(n: int) -> None:
    pool = [fake.Provider("fast", 100, script=["hang"]), fake.Provider("slow", 250)]
    times = {"fast": 100.0, "slow": 250.0}
    done, over_ms = arm("earliest-finish", n, pool, times, request_timeout_s=60)
    assert [r.provider for r in done.requests if r.outcome == "ok"] == ["slow"] * n
    (hung,) = [r for r in done.requests if r.provider == "fast"]
    assert hung.outcome == "cancelled" and over_ms < n * 250 + 1000  # a copy of it was answered


def test_the_deadline_cancels_what_runs_and_the_rows_say_so() -> None:
    times = {"a": 100.0, "b": 400.0}
    done = ran("shared-queue", 20, constant(**times), times, deadline_ms=550)
    assert [r.outcome for r in done.requests] == ["ok"] * 6 + ["cancelled"] * 2
    for cut in done.requests[6:]:
        assert "run_limit_s" in (cut.error or "") and cut.marks.end_ms == pytest.approx(550)
    assert ran("shared-queue", 3, constant(**times), deadline_ms=0).requests == []


@pytest.mark.parametrize("count", [50, 1])  # with the rest waiting, and with nothing left
def test_an_arm_ends_at_its_deadline_although_a_provider_will_not_let_go(count: int) -> None:
    class Stubborn(fake.Provider):
        heeds = False

        async def send(self, prompt: Prompt, exchange: Exchange) -> None:
            while not self.heeds:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)

    async def story(clock: Clock) -> float:
        pool = [Stubborn("a"), fake.Provider("b", 100)]
        await awaited(clock, "shared-queue", count, pool, deadline_ms=1000)
        Stubborn.heeds = True
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return clock()

    assert fake.run(story) <= 2100


def test_a_cancelled_run_leaves_a_row_of_all_that_was_in_flight_and_no_task() -> None:
    rows: list[Request] = []

    async def story(clock: Clock) -> None:
        pool, given = constant(a=100, b=400), {"on_done": rows.append}
        going = asyncio.create_task(awaited(clock, "shared-queue", 20, pool, given=given))
        await asyncio.sleep(0.25)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert clock() == pytest.approx(250)

    fake.run(story)
    ends = [(r.prompt, r.provider, r.outcome) for r in rows]
    assert ends[:2] == [(0, "a", "ok"), (2, "a", "ok")]
    assert ends[2:] == [(1, "b", "cancelled"), (3, "a", "cancelled")]
    assert all(r.marks.end_ms == pytest.approx(250) for r in rows[2:])


def test_a_single_attempt_is_cut_by_the_deadline_and_passes_a_cancellation_on() -> None:
    hanging = fake.Provider("a", 100, script=["hang", "hang"])
    row = fake.run(lambda clock: attempt(hanging, ONE, clock, Rules(deadline_ms=3000)))
    assert row.outcome == "cancelled" and row.marks.end_ms == pytest.approx(3000)

    async def story(clock: Clock) -> None:
        lone = asyncio.create_task(attempt(hanging, ONE, clock, Rules()))
        await asyncio.sleep(0.05)
        lone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lone

    fake.run(story)


def test_a_row_is_handed_over_before_the_slot_is_used_again() -> None:
    pool = constant(a=100)
    sent: list[int] = []
    ran("shared-queue", 4, pool, given={"on_done": lambda row: sent.append(len(pool[0].seen))})
    assert sent == [1, 2, 3, 4]


class Broken(fake.Provider):
    """Has a bug: raises what is not an error of ours."""

    def __init__(self, bug: type[Exception]) -> None:
        super().__init__("broken")
        self.bug = bug

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        raise self.bug("a bug")


class SlowToCancel(fake.Provider):
    """Needs a moment to close its connection when it is cancelled."""

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        try:
            await super().send(prompt, exchange)
        finally:
            await asyncio.sleep(0.03)


def failing(
    expected: type[BaseException], pool: list[Any], strategy: Any = "shared-queue", **given: Any
) -> list[tuple[int, str]]:
    """The rows handed over until `expected` was raised; nothing may be left running."""
    rows: list[Request] = []

    async def story(clock: Clock) -> None:
        with pytest.raises(expected):
            await awaited(clock, strategy, 6, pool, given={"on_done": rows.append, **given})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    fake.run(story)
    return [(r.prompt, r.outcome) for r in rows]


# A TimeoutError of its own is no request that ran out of time: nothing may call it that.
@pytest.mark.parametrize("bug", [KeyError, TimeoutError])
def test_a_bug_in_a_provider_is_raised_and_leaves_nothing_running(bug: type[Exception]) -> None:
    assert failing(bug, [Broken(bug), SlowToCancel("a", 300)]) == [(1, "cancelled")]


def full_disk(request: Request) -> None:
    raise ReportError("no space left")


def test_a_full_disk_or_a_strategy_that_stalls_ends_in_an_error_not_in_a_wait() -> None:
    assert failing(ReportError, [*constant(a=100), SlowToCancel("b", 300)], on_done=full_disk) == []
    pool = constant(a=100, b=100)
    assert failing(RunFailed, pool, own(lambda _: None)) == []
    # It works at first, then stalls: what was answered stays.
    at_first = own(lambda pool: pool.least(fastest) if pool.waiting > 4 else None)
    assert failing(RunFailed, pool, at_first) == [(0, "ok"), (1, "ok")]


@pytest.mark.parametrize(
    ("way_ms", "queued_ms", "ahead_ms"),
    [
        # The way is as long as the work: the slot never waits. One way, then six times 100 ms.
        (100, 6 * 200, 100 + 6 * 100),
        # Twice as long: two are on their way in each 300 ms; the sixth ends 100 ms after the fifth.
        (200, 6 * 300, 3 * 300 + 100),
    ],
)
def test_what_is_sent_ahead_hides_the_way(way_ms: float, queued_ms: float, ahead_ms: float) -> None:
    for name, expected in (("shared-queue", queued_ms), ("sent-ahead", ahead_ms)):
        pool = [fake.Provider(one, 100, overhead_ms=way_ms) for one in ("a", "b")]
        given = {"a": 100.0 + way_ms, "b": 100.0 + way_ms}
        done, over_ms = arm(name, 12, pool, given)
        assert over_ms == pytest.approx(expected) and len(done.requests) == 12


def test_what_waits_at_a_slow_server_is_taken_back_when_another_is_idle() -> None:
    done, over_ms = arm("sent-ahead", 4, constant(a=100, b=1000), {"a": 100.0, "b": 1000.0})
    back, again = [r for r in done.requests if r.prompt == 3]
    assert (back.provider, back.outcome, back.attempt) == ("b", "cancelled", 1)
    assert "taken back before it began" in (back.error or "")
    assert (again.provider, again.outcome, again.attempt) == ("a", "ok", 2)
    assert again.marks.end_ms == pytest.approx(300) and over_ms == pytest.approx(1000)


def test_the_late_last_prompt_is_sent_twice_by_the_strategy_that_foresees() -> None:
    """Prompt 1 is long: b needs two seconds for it, a one; all others are equal."""
    work = {1: 20}
    pool = [
        fake.Provider("a", lambda prompt: 50 * work.get(prompt.index, 1)),
        fake.Provider("b", lambda prompt: 100 * work.get(prompt.index, 1)),
    ]
    done, over_ms = arm("earliest-finish", 8, pool, {"a": 50.0, "b": 100.0})
    assert answered(done) == [*range(8)] and over_ms < 1700
    assert [(r.provider, r.role, r.outcome) for r in done.requests if r.prompt == 1] == [
        ("a", "hedge", "ok"), ("b", "first", "cancelled"),
    ]  # fmt: skip


@pytest.mark.parametrize("speeds", [(1, 1), (1, 0.6), (1, 0.25, 0.2), (1,) * 8])
def test_prompts_of_equal_length_are_never_sent_twice(speeds: tuple[float, ...]) -> None:
    times = {f"p{i}": 100 / speed for i, speed in enumerate(speeds)}
    for count in (1, 2, 8, 20):
        assert len(ran("earliest-finish", count, constant(**times), times).requests) == count


def test_the_longest_go_first_once_longer_prompts_have_had_longer_answers() -> None:
    pool = [fake.Provider("a", lambda prompt: len(prompt.text))]
    texts = [Prompt(i, "x" * (10 + 7 * i % 60)) for i in range(12)]

    async def story(clock: Clock) -> Arm:
        chosen = STRATEGIES["earliest-finish"]
        return await run_arm("strategy", chosen, texts, pool, {"a": 1}, {"a": 40}, clock, Rules())

    sent = [len(texts[r.prompt].text) for r in fake.run(story).requests]
    assert sent == sorted(sent, reverse=True)


@pytest.mark.parametrize("name", ["shared-queue", "earliest-finish", "sent-ahead", "batched"])
def test_no_limit_is_exceeded_in_a_pool_of_hundreds(name: str) -> None:
    draw = random.Random(name)
    pool = [fake.Provider(f"p{i}", lambda _: draw.uniform(50, 900), 4) for i in range(200)]
    done = ran(name, 3000, pool)
    assert answered(done) == [*range(3000)]
    limits = limits_of(STRATEGIES[name], pool) or {}
    assert all(p.most_in_flight <= limits[p.name] for p in pool)
