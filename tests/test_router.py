"""A router in front of machines: who asks it, what it is measured against, and when it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from poclib import report, suite
from poclib.errors import ParameterError, Rejected, RunFailed, Unreachable
from poclib.measure import experiment
from poclib.measure.strategies import STRATEGIES
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.records import Exchange, Prompt, ProviderFacts, Report
from poclib.showing import documents, words

MACHINE = {"kind": "openai", "url": "http://127.0.0.1:1", "model": "m"}
TWO = [{"name": "fast", **MACHINE}, {"name": "slow", **MACHINE}]
ROUTER = {"name": "router", **MACHINE, "router_of": ["fast", "slow"]}


class Router(fake.Provider):
    """Sends on in turns; takes `most` and no more, and 2 ms for itself."""

    def __init__(self, behind: Sequence[fake.Provider], most: int = 99) -> None:
        super().__init__("router", 0.0)
        self.behind, self.most = itertools.cycle(behind), most

    async def describe(self) -> ProviderFacts:
        known = await super().describe()
        return known.model_copy(update={"router_of": ["fast", "slow"], "digest": None})

    async def _serve(self, prompt: Prompt, exchange: Exchange) -> None:
        if self._in_flight > self.most:
            raise Rejected("provider router: HTTP 429: no room", "router", status=429)
        await next(self.behind)._serve(prompt, exchange)


@pytest.fixture(autouse=True)
def on_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))


def measured(folder: Path, pool: list[fake.Provider] | None = None, **more: Any) -> Report:
    router = ROUTER | more.pop("router", {})
    values = {"strategy": "through-router", "prompts": 8, "rounds": 2, "calibration_prompts": 2}
    given = {"experiment": "trial", "providers": [*TWO, router], **values, **more}
    return experiment.measure(Parameters.read(given), folder=folder, pool=pool or three())


def three(most: int = 99) -> list[fake.Provider]:
    machines = [fake.Provider("fast", 100), fake.Provider("slow", 250)]
    return [*machines, Router(machines, most)]


def asked(report: Report, *arms: str) -> set[str]:
    """Whom the arms of these kinds sent something."""
    every = [*report.preparation, *(arm for one in report.rounds for arm in one.arms)]
    return {row.provider for arm in every if arm.arm in arms for row in arm.requests}


def test_the_router_gets_everything_at_once_and_the_baseline_goes_past_it(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert asked(found, "strategy") == {"router"} and asked(found, "baseline") == {"fast"}
    assert asked(found, "calibration") == {"fast", "slow"}
    assert asked(found, "warm-up") == {"fast", "slow", "router"}
    assert {probe.provider for probe in found.probes} == {"fast", "slow", "router"}
    assert found.fastest == "fast" and [p.router_of for p in found.providers][:2] == [None, None]
    headline = of(found).headline
    # In turns: four on the slow one, one at a time, 1000 ms; the fast one alone takes 800.
    assert headline.overhead_ratio.median == pytest.approx(1000 / 800)
    # The router is no machine: the two could take 8 / (1/100 + 1/250) ms.
    assert headline.ideal_ms == pytest.approx(8 / (1 / 100 + 1 / 250))
    assert headline.at_once == {"router": 8}


def test_in_flight_holds_back_what_the_router_is_given(tmp_path: Path) -> None:
    found = measured(tmp_path, router={"in_flight": 2})
    assert of(found).headline.at_once == {"router": 2}
    (limits,) = {str(arm.limits) for one in found.rounds for arm in one.arms if arm.arm[0] == "s"}
    assert limits == "{'router': 2}"


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "through-router"])
def test_no_other_strategy_asks_the_router(strategy: str, tmp_path: Path) -> None:
    found = measured(tmp_path, strategy=strategy)
    assert asked(found, "baseline", "strategy", "calibration") <= {"fast", "slow"}
    assert len(found.rounds) == 2 and found.complete


def test_a_router_that_refuses_is_a_finding(tmp_path: Path) -> None:
    """Two at once, and refused again while it is full: six of eight at first."""
    found = measured(tmp_path, three(most=2), retries=0)
    assert found.complete and len(found.rounds) == 2
    reading = of(found)
    assert reading.headline.overhead_ratio.rounds == 0 and reading.headline.incomplete_rounds == 2
    (told,) = documents.unanswered([reading])
    assert told == (
        "router: Rejected (HTTP 429) 12 times; router 12 of 16; "
        "12 of 16 prompts had no answer at last."
    )
    assert documents.routers_finding([reading]) == ""
    assert "router has no complete round" in words.finding(documents.routed(reading))
    # A strategy of ours that has no answer at all ends the run, a router without room does not.
    assert measured(tmp_path / "none", three(most=0), retries=0, warm_up_prompts=0).complete


def test_a_router_that_is_away_at_its_warm_up_ends_the_run(tmp_path: Path) -> None:
    away = fake.Provider("router", script=[Unreachable("provider router: no connection")] * 9)
    with pytest.raises(RunFailed, match="no connection"):
        measured(tmp_path, [*three()[:2], away])


def test_routers_and_strategies_stand_side_by_side(tmp_path: Path) -> None:
    ours = of(measured(tmp_path / "ours", strategy="shared-queue"))
    theirs = of(measured(tmp_path / "theirs", router={"note": "Some 1.0: in turns"}))
    readings = [ours, theirs]
    named = [documents.routed(one) for one in readings]
    assert [one.strategy for one in named] == ["shared-queue", "router"]
    assert {one.providers for one in named} == {("fast", "slow")}
    settings = documents.router(theirs)
    assert settings and settings.note == "Some 1.0: in turns" and documents.router(ours) is None
    # 8 over the queue: 600 ms, six and two; in turns 1000 ms.
    told = documents.routers_finding(readings)
    assert told == "router took 1.67 times as long as shared-queue"
    assert documents.unanswered(readings) == []
    assert words.effect(named[0]) == "faster"


REFUSED = [
    ({"router_of": ["fast", "nobody"]}, "no machine of the file: nobody"),
    ({"router_of": []}, "router_of"),
    ({"router_of": ["router"]}, "no machine of the file: router"),
    ({"kind": "embedded", "url": None, "model": None}, "a router has a url"),
    ({"router_of": None, "in_flight": 2}, "in_flight is of a router"),
    ({"in_flight": 0}, "in_flight"),
]


@pytest.mark.parametrize(("change", "told"), REFUSED)
def test_what_is_no_router_is_refused_in_words(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        Parameters.read({"providers": [*TWO, ROUTER | change]})


def test_a_run_measures_one_router_and_needs_one(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="a run measures one router, found router, other"):
        Parameters.read({"providers": [*TWO, ROUTER, ROUTER | {"name": "other"}]})
    alone = Parameters.read({"providers": TWO, "strategy": "through-router"})
    with pytest.raises(ParameterError, match="needs a provider that is a router"):
        experiment.measure(alone, folder=tmp_path, pool=three()[:2])


def test_a_run_that_cannot_begin_leaves_the_last_ones_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    result = tmp_path / "data" / "runs" / "mine" / report.RESULT
    for path in (result, tmp_path / "notebooks" / "01_one.ipynb"):
        path.parent.mkdir(parents=True)
        path.write_text("what was found")
    one = {"name": "a", "kind": "ollama", "model": "m", "url": "http://127.0.0.1:9"}
    given = {"experiment": "mine", "providers": [one]}
    with pytest.raises(ParameterError, match="needs a provider that is a router"):
        suite.run(given, "mine.yaml", ["through-router"])
    assert result.read_text() == "what was found"
