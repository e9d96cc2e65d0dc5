"""Deaths in the middle of an arm: what is lost is counted, on fakes and on real engines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poclib import documents, experiment, fake, outage, tables
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
    yield list(mortals.values()), lambda name: mortals[name].died.set()


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
        deaths=2,
        strategies=["shared-queue", "serial-per-provider"],
        folder=tmp_path,
        opened=lambda: pool(*names),
    )
    headlines = [tables.headline(one) for one in found]
    for one, headline in zip(found, headlines, strict=True):
        assert [len(arm.struck_ms) for rnd in one.rounds for arm in rnd.arms] == [0, 2] * 4
        # 12 prompts on three take 400 ms; on one alone they would take 1200.
        assert headline.baseline_ms == pytest.approx(400)
        assert all(1 <= ratio <= 3.6 for ratio in headline.round_ratios)
        assert documents.casualties(one)["unanswered"] == 0
        assert documents.casualties(one)["retries"] >= 4
    said = documents.outage(found, headlines)
    assert "In 8 of 8 arms a provider was killed" in said and "96 answers none was lost" in said


def test_somebody_must_survive() -> None:
    with pytest.raises(ParameterError, match="leave no survivor"):
        outage.measure(parameters("a", "b"), deaths=2)


@pytest.mark.slow
def test_a_real_engine_killed_in_mid_arm_costs_no_answer(tmp_path: Path) -> None:
    wanted = parameters("a", "b", prompts=6, rounds=1, max_tokens=12, context_tokens=256)
    (found,) = outage.measure(wanted, strategies=["shared-queue"], folder=tmp_path)
    (arm,) = [arm for one in found.rounds for arm in one.arms if arm.struck_ms]
    assert {row.prompt for row in arm.requests if row.outcome == "ok"} == set(range(6))
    assert documents.casualties(found)["unanswered"] == 0
