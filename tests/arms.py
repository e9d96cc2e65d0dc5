"""One arm on a clock that costs no time: what tests of dispatch share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from poclib.errors import Unreachable
from poclib.measure.attempt import Policy, Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.strategies import STRATEGIES, PoolView, Strategy
from poclib.providers import fake
from poclib.records import Arm, Prompt

Clock = Callable[[], float]
SPREADING = [name for name in STRATEGIES if name not in ("sequential", "all-parallel")]
DOWN = Unreachable("provider a: no connection", "a")


def limits_of(strategy: Strategy, pool: Sequence[Any]) -> dict[str, int] | None:
    if strategy.limit == "none":
        return None
    return {p.name: 1 if strategy.limit == "one" else p.slots for p in pool}


def own(decide: Callable[[PoolView], list[str]]) -> Strategy:
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


def failed(done: Arm) -> list[str]:
    return [r.provider for r in done.requests if r.outcome == "failed"]
