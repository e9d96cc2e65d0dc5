"""Strategies carried out, on a clock that costs no time: limits, retries, ends of every kind."""

import asyncio
import random
from collections import Counter
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
    Unreachable,
)
from poclib.measure.attempt import Rules, attempt
from poclib.measure.dispatch import run_arm
from poclib.measure.strategies import STRATEGIES, PoolView, Strategy, simulated_makespan_ms
from poclib.providers import fake
from poclib.records import Arm, Exchange, Prompt, Request

Clock = Callable[[], float]
NAMES = sorted(STRATEGIES)
LONG = Rules(request_timeout_s=1e7)


def prompts(n: int) -> list[Prompt]:
    return [Prompt(i, f"question {i}") for i in range(n)]


def limits_of(strategy: Strategy, pool: Sequence[fake.Provider]) -> dict[str, int] | None:
    if strategy.limit == "none":
        return None
    return {p.name: 1 if strategy.limit == "one" else p.slots for p in pool}


async def arm_of(
    clock: Clock,
    name: str,
    n: int,
    pool: Sequence[Any],
    expected_ms: dict[str, float],
    rules: Rules = LONG,
    on_done: Callable[[Request], None] = lambda request: None,
) -> Arm:
    strategy = STRATEGIES[name]
    limits = limits_of(strategy, pool)
    return await run_arm(
        "strategy", strategy, prompts(n), pool, limits, expected_ms, clock, rules, on_done
    )


def run(name: str, n: int, pool: Sequence[Any], expected_ms: dict[str, float], **more: Any) -> Arm:
    """One arm on a fake clock, after which no task may be left."""

    async def story(clock: Clock) -> Arm:
        arm = await arm_of(clock, name, n, pool, expected_ms, **more)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return arm

    return fake.run(story)


def random_time(draw: random.Random) -> Callable[[Prompt], float]:
    return lambda prompt: draw.uniform(1, 500)


def constant(times_ms: dict[str, float], slots: int = 1) -> list[fake.Provider]:
    return [fake.Provider(name, time_ms, slots) for name, time_ms in times_ms.items()]


def brief(arm: Arm) -> list[tuple[int, str, int, str]]:
    return [(r.prompt, r.provider, r.attempt, r.outcome) for r in arm.requests]


def ends_ms(arm: Arm) -> list[float]:
    return [r.marks.end_ms for r in arm.requests if r.marks.end_ms is not None]


# ── every prompt once, within the limits, as long as predicted ──────────────────────────────


@pytest.mark.parametrize("name", NAMES)
def test_every_prompt_is_answered_once_within_the_limits(name: str) -> None:
    """Random pools, random times, guesses of speed that are wrong."""
    for seed in range(12):
        draw = random.Random(f"{name} {seed}")
        pool = [
            fake.Provider(f"p{i}", random_time(draw), slots=draw.randint(1, 4))
            for i in range(draw.randint(1, 20))
        ]
        n = draw.randint(0, 40)
        arm = run(name, n, pool, {p.name: draw.uniform(1, 500) for p in pool})
        assert sorted(r.prompt for r in arm.requests) == list(range(n))
        assert all(r.outcome == "ok" and r.attempt == 1 for r in arm.requests)
        limits = limits_of(STRATEGIES[name], pool)
        assert arm.limits == limits
        if limits is not None:
            assert all(p.most_in_flight <= limits[p.name] for p in pool)
        for r in arm.requests:
            assert r.wall_ms is not None and r.queued_ms is not None
            marks = r.marks
            assert marks.assigned_ms is not None and marks.end_ms is not None
            # Assigned, then queued, then on the wire: no time is counted twice or lost.
            assert marks.assigned_ms + r.queued_ms + r.wall_ms == pytest.approx(marks.end_ms)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "all-parallel"])
def test_constant_times_take_exactly_the_simulated_makespan(name: str, slots: int) -> None:
    for seed in range(15):
        draw = random.Random(f"{name} {seed}")
        times = {f"p{i}": draw.uniform(10, 900) for i in range(draw.randint(1, 6))}
        n = draw.randint(1, 30)
        pool = constant(times, slots)
        arm = run(name, n, pool, times)
        limits = limits_of(STRATEGIES[name], pool) or {}
        expected = simulated_makespan_ms(STRATEGIES[name], n, times, limits)
        assert max(ends_ms(arm)) == pytest.approx(expected), (n, times)


def test_all_parallel_sends_everything_at_once_and_says_that_it_set_limits_aside() -> None:
    pool = constant({"a": 100, "b": 300})
    arm = run("all-parallel", 9, pool, {"a": 100, "b": 300})
    assert arm.limits is None
    assert [p.most_in_flight for p in pool] == [5, 4]
    assert {(r.marks.start_ms, r.queued_ms) for r in arm.requests} == {(0, 0)}
    # The servers queue instead: b answers its k-th after 300 k ms.
    walls = sorted(r.wall_ms or 0 for r in arm.requests if r.provider == "b")
    assert walls == pytest.approx([300, 600, 900, 1200])


def test_waiting_for_a_slot_is_queued_time_and_never_wall_time() -> None:
    arm = run("serial-per-provider", 3, constant({"a": 100}), {"a": 100})
    assert [r.queued_ms for r in arm.requests] == pytest.approx([0, 100, 200])
    assert [r.wall_ms for r in arm.requests] == pytest.approx([100, 100, 100])


@pytest.mark.parametrize("seed", range(10))
def test_no_last_prompt_goes_to_one_that_another_would_have_finished_sooner(seed: int) -> None:
    draw = random.Random(seed)
    times = {f"p{i}": float(draw.randint(20, 900)) for i in range(draw.randint(2, 6))}
    arm = run("earliest-finish", draw.randint(1, 25), constant(times), times)
    last = dict.fromkeys(times, 0.0)
    for r in arm.requests:
        last[r.provider] = max(last[r.provider], r.marks.end_ms or 0)
    for name in times:
        for other in times:
            assert last[name] <= last[other] + times[other] + 1e-6


def test_a_tie_is_broken_as_in_the_simulation() -> None:
    arm = run("shared-queue", 4, constant({"a": 200, "b": 100}), {"a": 200, "b": 100})
    assert max(ends_ms(arm)) == 300


def test_a_strategy_sees_what_goes_on_and_speeds_updated_by_answers() -> None:
    seen: list[PoolView] = []

    def spy(view: PoolView) -> list[str]:
        seen.append(view)
        return ["a"] * (2 if view.waiting == 5 else 1)

    async def story(clock: Clock) -> Arm:
        pool, limits, times = [fake.Provider("a", 80)], {"a": 1}, {"a": 60.0}
        return await run_arm(
            "strategy", stubborn(spy), prompts(5), pool, limits, times, clock, LONG
        )

    fake.run(story)
    assert [(v.now_ms, v.waiting) for v in seen] == [(0, 5), (80, 3), (160, 2), (240, 1)]
    assert [v.providers[0].queued for v in seen] == [0, 1, 1, 1]
    # 60 ms expected, 80 ms measured, the newest weighs 0.3: 60 + 0.3 * 20 = 66, and so on.
    expected_ms = [v.providers[0].expected_ms for v in seen]
    assert expected_ms == pytest.approx([60, 66, 70.2, 73.14])


def test_wrong_guesses_of_speed_are_corrected_by_answers() -> None:
    # Calibration took a for the faster by far; it is the slower by far.
    pool = constant({"a": 1000, "b": 100})
    arm = run("earliest-finish", 30, pool, {"a": 100, "b": 1000})
    shares = Counter(r.provider for r in arm.requests)
    assert shares["b"] > 3 * shares["a"]


# ── failures ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("down", "a"),
        Rejected("busy", "a", status=503),
        Rejected("too many", "a", status=429),
        Rejected("timeout", "a", status=408),
    ],
)
def test_a_temporary_failure_is_tried_elsewhere_as_a_new_row(error: ProviderError) -> None:
    pool = [fake.Provider("a", 100, script=[error]), fake.Provider("b", 130)]
    arm = run("serial-per-provider", 2, pool, {"a": 100, "b": 130})
    assert brief(arm) == [(0, "a", 1, "failed"), (1, "b", 1, "ok"), (0, "b", 2, "ok")]
    failed, _, again = arm.requests
    assert (failed.error, failed.error_kind, failed.status) == (
        str(error),
        type(error).__name__,
        error.status,
    )
    assert failed.answer_sha256 is None and failed.wall_ms == pytest.approx(50)
    assert again.marks.assigned_ms == pytest.approx(50)
    assert again.queued_ms == pytest.approx(80)  # b was busy until 130 ms


@pytest.mark.parametrize(
    "error",
    [
        Forbidden("public", "a"),
        ModelMissing("gone", "a", status=404),
        Rejected("no key", "a", status=401),
    ],
)
def test_what_one_provider_lacks_is_tried_elsewhere_never_there_again(error: ProviderError) -> None:
    pool = [fake.Provider("a", 100, script=[error]), fake.Provider("b", 130)]
    arm = run("serial-per-provider", 2, pool, {"a": 100, "b": 130})
    assert brief(arm) == [(0, "a", 1, "failed"), (1, "b", 1, "ok"), (0, "b", 2, "ok")]
    lone = run("sequential", 1, [fake.Provider("a", 100, script=[error])], {"a": 100})
    assert brief(lone) == [(0, "a", 1, "failed")]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_is_wrong_with_the_request_itself_is_not_tried_again(status: int) -> None:
    error = Rejected("bad request", "a", status=status)
    pool = [fake.Provider("a", 100, script=[error]), fake.Provider("b", 130)]
    arm = run("serial-per-provider", 2, pool, {"a": 100, "b": 130})
    assert brief(arm) == [(0, "a", 1, "failed"), (1, "b", 1, "ok")]


def test_retries_come_to_an_end_and_the_arm_is_returned() -> None:
    down = Unreachable("down")
    pool = [fake.Provider("a", 100, script=[down] * 9), fake.Provider("b", 100, script=[down] * 9)]
    rules = Rules(retries=2)
    arm = run("sequential", 1, pool, {"a": 100, "b": 100}, rules=rules)
    assert brief(arm) == [(0, "a", 1, "failed"), (0, "b", 2, "failed"), (0, "a", 3, "failed")]
    none = run("sequential", 1, pool, {"a": 100, "b": 100}, rules=Rules(retries=0))
    assert brief(none) == [(0, "a", 1, "failed")]


def test_a_lone_provider_is_tried_again_after_the_pause_it_asks_for() -> None:
    busy = Rejected("busy", "a", status=503, retry_after_s=4)
    arm = run("sequential", 1, [fake.Provider("a", 100, script=[busy])], {"a": 100})
    assert [r.outcome for r in arm.requests] == ["failed", "ok"]
    assert [r.marks.start_ms for r in arm.requests] == pytest.approx([0, 50 + 4000])
    assert [r.wall_ms for r in arm.requests] == pytest.approx([50, 100])


@pytest.mark.parametrize("name", NAMES)
def test_each_prompt_has_at_most_one_answer_whatever_fails(name: str) -> None:
    for seed in range(10):
        draw = random.Random(f"{name} {seed}")
        pool = [
            fake.Provider(
                f"p{i}",
                draw.uniform(10, 300),
                script=[draw.choice([None, Unreachable("down"), "hang"]) for _ in range(6)],
            )
            for i in range(draw.randint(1, 5))
        ]
        n = draw.randint(1, 20)
        rules = Rules(retries=2, request_timeout_s=2)
        arm = run(name, n, pool, {p.name: 100.0 for p in pool}, rules=rules)
        rows: dict[int, list[Request]] = {i: [] for i in range(n)}
        for r in arm.requests:
            rows[r.prompt].append(r)
        for mine in rows.values():
            assert [r.attempt for r in mine] == list(range(1, len(mine) + 1))
            assert all(r.outcome == "failed" for r in mine[:-1])
            assert mine[-1].outcome == "ok" or len(mine) == 3
        if limits := limits_of(STRATEGIES[name], pool):
            assert all(p.most_in_flight <= limits[p.name] for p in pool)


# ── ends ────────────────────────────────────────────────────────────────────────────────────


def test_a_hang_ends_at_the_request_timeout() -> None:
    pool = [fake.Provider("a", 100, script=["hang"])]
    arm = run("sequential", 1, pool, {"a": 100}, rules=Rules(retries=1, request_timeout_s=7))
    hung, answered = arm.requests
    assert (hung.outcome, hung.error_kind) == ("failed", "TimedOut")
    assert hung.wall_ms == pytest.approx(7000)
    assert "7 s" in (hung.error or "") and "request_timeout_s" in (hung.error or "")
    assert (answered.outcome, answered.attempt) == ("ok", 2)


@pytest.mark.parametrize("n", [2, 6])
def test_earliest_finish_works_around_a_provider_that_hangs(n: int) -> None:
    # The fast one hangs on its first prompt for 60 s; the slow one can do the rest meanwhile,
    # though with two prompts it is idle when it is found out, so no answer can tell.
    pool = [fake.Provider("fast", 100, script=["hang"]), fake.Provider("slow", 250)]
    times = {"fast": 100.0, "slow": 250.0}
    arm = run("earliest-finish", n, pool, times, rules=Rules(request_timeout_s=60))
    early = [r for r in arm.requests if (r.marks.end_ms or 0) < 5000]
    assert [(r.provider, r.outcome) for r in early] == [("slow", "ok")] * (n - 1)
    assert max(ends_ms(arm)) == pytest.approx(60_000 + 250)  # tried again, on the other


def test_the_deadline_cancels_what_runs_and_the_rows_say_so() -> None:
    pool = constant({"a": 100, "b": 400})
    arm = run("shared-queue", 20, pool, {"a": 100, "b": 400}, rules=Rules(deadline_ms=550))
    done, cut = arm.requests[:6], arm.requests[6:]
    assert [r.outcome for r in done] == ["ok"] * 6
    assert sorted((r.provider, r.outcome) for r in cut) == [("a", "cancelled"), ("b", "cancelled")]
    assert all("run_limit_s" in (r.error or "") for r in cut)
    assert [r.marks.end_ms for r in cut] == pytest.approx([550, 550])
    assert run("shared-queue", 3, pool, {"a": 1, "b": 1}, rules=Rules(deadline_ms=0)).requests == []


def test_a_cancelled_run_leaves_a_row_of_all_that_was_in_flight_and_no_task() -> None:
    pool = constant({"a": 100, "b": 400})
    rows: list[Request] = []

    async def story(clock: Clock) -> None:
        times = {"a": 100.0, "b": 400.0}
        arm = asyncio.create_task(arm_of(clock, "shared-queue", 20, pool, times, LONG, rows.append))
        await asyncio.sleep(0.25)
        arm.cancel()
        with pytest.raises(asyncio.CancelledError):
            await arm
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert clock() == pytest.approx(250)

    fake.run(story)
    assert [(r.prompt, r.provider, r.outcome) for r in rows] == [
        (0, "a", "ok"),
        (2, "a", "ok"),
        (1, "b", "cancelled"),
        (3, "a", "cancelled"),
    ]
    assert all(r.marks.end_ms == pytest.approx(250) for r in rows[2:])


def test_a_single_attempt_passes_a_cancellation_on() -> None:
    async def story(clock: Clock) -> None:
        lone = asyncio.create_task(attempt(fake.Provider("a", 100), prompts(1)[0], clock, LONG))
        await asyncio.sleep(0.05)
        lone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lone

    fake.run(story)


def test_a_single_attempt_is_cut_by_the_deadline_too() -> None:
    provider = fake.Provider("a", 100, script=["hang"])
    row = fake.run(lambda clock: attempt(provider, prompts(1)[0], clock, Rules(deadline_ms=3000)))
    assert row.outcome == "cancelled" and row.marks.end_ms == pytest.approx(3000)
    assert "run_limit_s" in (row.error or "")


def test_a_row_is_handed_over_before_the_slot_is_used_again() -> None:
    pool = constant({"a": 100})
    sent_by_then: list[int] = []

    def on_done(request: Request) -> None:
        sent_by_then.append(len(pool[0].seen))

    run("shared-queue", 4, pool, {"a": 100}, on_done=on_done)
    assert sent_by_then == [1, 2, 3, 4]


class Broken(fake.Provider):
    """Has a bug: raises what is not an error of ours."""

    bug: type[Exception] = KeyError

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
    expected: type[BaseException], pool: Sequence[Any], strategy: Strategy, n: int = 6, **more: Any
) -> list[Request]:
    """The rows handed over until `expected` was raised; nothing may be left running."""
    rows: list[Request] = []
    more.setdefault("on_done", rows.append)

    async def story(clock: Clock) -> None:
        times, limits = {p.name: 100.0 for p in pool}, {p.name: 1 for p in pool}
        with pytest.raises(expected):
            await run_arm(
                "strategy", strategy, prompts(n), pool, limits, times, clock, LONG, **more
            )
        assert asyncio.all_tasks() == {asyncio.current_task()}

    fake.run(story)
    return rows


# A TimeoutError of its own is no request that ran out of time: nothing may call it that.
@pytest.mark.parametrize("bug", [KeyError, TimeoutError])
def test_a_bug_in_a_provider_is_raised_and_leaves_nothing_running(bug: type[Exception]) -> None:
    broken = Broken("broken")
    broken.bug = bug
    pool = [broken, SlowToCancel("a", 300)]
    rows = failing(bug, pool, STRATEGIES["serial-per-provider"])
    assert [(r.provider, r.outcome) for r in rows] == [("a", "cancelled")]


def test_rows_that_cannot_be_written_end_the_arm_and_leave_nothing_running() -> None:
    def full_disk(request: Request) -> None:
        raise ReportError("no space left")

    pool = [fake.Provider("a", 100), SlowToCancel("b", 300)]
    failing(ReportError, pool, STRATEGIES["serial-per-provider"], on_done=full_disk)


def stubborn(decide: Callable[[PoolView], list[str]]) -> Strategy:
    return Strategy("stubborn", decide, "one", "?")


def test_a_strategy_that_stalls_or_invents_ends_in_an_error_not_in_a_wait() -> None:
    pool = [fake.Provider("a", 100), fake.Provider("b", 100)]
    assert failing(RunFailed, pool, stubborn(lambda view: [])) == []
    failing(RunFailed, pool, stubborn(lambda view: ["nobody"]))
    failing(RunFailed, pool, stubborn(lambda view: ["a"] * (view.waiting + 1)))
    # It works at first, then stalls: what was answered stays.
    rows = failing(RunFailed, pool, stubborn(lambda view: ["a"] if view.waiting > 4 else []))
    assert [(r.prompt, r.outcome) for r in rows] == [(0, "ok"), (1, "ok")]


def test_answers_are_kept_as_text_only_where_that_is_asked_for() -> None:
    pool = constant({"a": 100})
    (kept,) = run("sequential", 1, pool, {"a": 100}, rules=Rules(store_text=True)).requests
    (hashed,) = run("sequential", 1, pool, {"a": 100}).requests
    assert kept.answer == "answer to question 0" and hashed.answer is None
    assert kept.answer_sha256 == hashed.answer_sha256 is not None
