"""Deaths in the middle of an arm: what is lost is counted, on fakes and on real engines."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from test_tables import pool_report

from poclib import casualties, experiment, fake, outage
from poclib.errors import ParameterError, Unreachable
from poclib.records import Exchange, Parameters, Prompt


class Mortal(fake.Provider):
    """Breaks every connection from the moment it is killed."""

    def __init__(self, name: str, service_ms: float) -> None:
        super().__init__(name, service_ms)
        self.died = asyncio.Event()

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        work = asyncio.create_task(super().send(prompt, exchange))
        death = asyncio.create_task(self.died.wait())
        try:
            await asyncio.wait([work, death], return_when=asyncio.FIRST_COMPLETED)
            if self.died.is_set():
                raise Unreachable("the connection broke off", self.name)
            await work
        finally:
            for task in (work, death):
                task.cancel()
            await asyncio.gather(work, death, return_exceptions=True)


@contextlib.contextmanager
def pool(*names: str) -> Iterator[tuple[Any, Callable[[str], None]]]:
    mortals = {name: Mortal(name, 100) for name in names}
    yield [(one, {}) for one in mortals.values()], lambda name: mortals[name].died.set()


def parameters(*names: str, **values: Any) -> Parameters:
    few = {"experiment": "deaths", "prompts": 12, "rounds": 4, **values}
    return Parameters.read({"providers": [{"name": name} for name in names], **few})


def test_a_death_costs_the_survivors_time_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))
    monkeypatch.setattr(outage, "on_own_loop", lambda work: fake.run(lambda clock: work()))
    names = ("a", "b", "c")
    found = outage.measure(
        parameters(*names, retries=2),  # a prompt may meet both of the dead
        deaths=[1, 2],
        strategies=["shared-queue", "serial-per-provider"],
        folder=tmp_path,
        opened=lambda: pool(*names),
    )
    for one in found:
        assert [len(arm.struck_ms) for rnd in one.rounds for arm in rnd.arms] == [0, 1, 0, 2] * 4
    losses = casualties.losses(found)
    assert [(one.died, one.prompts, one.answered) for one in losses] == [
        *[(1, 48, 48)] * 2,
        *[(2, 48, 48)] * 2,
    ]
    for one in losses:
        # 12 prompts on three take 400 ms, and a death at the share s of that leaves fewer.
        moments = [share(index) for index in range(8) if index % 2 == one.died - 1]
        by_speed = [s + (1 - s) * 3 / (3 - one.died) for s in moments]
        assert one.headline.baseline_ms == pytest.approx(400)
        assert one.by_speed == pytest.approx(median(by_speed), abs=0.01)
        # Beyond that, each of the dead takes at most one prompt's time with it; and a last
        # prompt may be left over for one provider alone.
        for ratio, floor in zip(one.headline.round_ratios, by_speed, strict=True):
            assert floor - 0.01 <= ratio <= floor + 0.25 * (one.died + 1)
        assert one.retries >= 4
    assert casualties.spared(found) == 0
    said = casualties.told(losses)
    assert said.startswith("**One of three dead: ") and "Of 192 answers none was lost.**" in said
    points = casualties.points(losses)
    assert sorted({(one["strategy"], one["died"]) for one in points}) == [
        *(("serial-per-provider", died) for died in (1, 2)),
        *(("shared-queue", died) for died in (1, 2)),
    ]
    assert casualties.under(losses).startswith("4 rounds for each strategy and number of deaths")


def share(index: int, seed: int = 7) -> float:
    """The share of the undisturbed time after which a round's deaths come, as drawn by `outage`."""
    draw = random.Random(f"{seed} {index}")
    draw.sample(["a", "b", "c"], 1 + index % 2)
    return draw.uniform(outage.EARLIEST, outage.LATEST)


def test_an_arm_that_ended_before_anybody_died_counts_nowhere() -> None:
    whole = pool_report()
    assert casualties.losses([whole]) == [] and casualties.spared([whole]) == len(whole.rounds)
    said = casualties.told([], casualties.spared([whole]))
    assert said.startswith("**Nobody died.") and "ended before anybody died" in said


def test_somebody_must_survive() -> None:
    with pytest.raises(ParameterError, match="one survive"):
        outage.measure(parameters("a", "b"), deaths=[2])


@pytest.mark.slow
def test_a_real_engine_killed_in_mid_arm_costs_no_answer(tmp_path: Path) -> None:
    wanted = parameters("a", "b", prompts=6, rounds=1, max_tokens=12, context_tokens=256)
    (found,) = outage.measure(wanted, strategies=["shared-queue"], folder=tmp_path)
    (arm,) = [arm for one in found.rounds for arm in one.arms if arm.struck_ms]
    assert {row.prompt for row in arm.requests if row.outcome == "ok"} == set(range(6))
    (loss,) = casualties.losses([found])
    assert (loss.died, loss.pool, loss.answered) == (1, 2, 6)
    assert loss.by_speed is not None and loss.by_speed >= 1
