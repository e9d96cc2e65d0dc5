"""Ratio against a setting: read between the points, told and drawn, from runs on a fake clock."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from poclib import recording, report
from poclib.errors import Unreachable
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading.reading import Reading, of, read
from poclib.recording import ReportFile
from poclib.records import Exchange, Prompt
from poclib.showing import curves
from poclib.showing.curves import Curves
from poclib.showing.warnings import warnings

ROOT = report.root()
KEY = "second.link.round_trip_ms"


class Cuttable(fake.Provider):
    """A provider behind a link: what is under way fails when the link is cut, and what comes."""

    cut = False
    pids: tuple[int, ...] = ()

    def drop_link(self) -> None:
        self.cut = True

    def restore_link(self) -> None:
        self.cut = False

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        if not self.cut:
            await super().send(prompt, exchange)
        if self.cut:
            exchange.mark("end")
            raise Unreachable("the connection broke off", self.name)


def measured(
    strategy: str, speed: float = 1.0, round_trip_ms: float = 0.0, **values: Any
) -> Reading:
    """A first machine of 100 ms a request; the second one's follows its speed and distance."""
    second = {"name": "second", "speed": speed, "link": {"round_trip_ms": round_trip_ms}}
    given = {"providers": [{"name": "first"}, second], "strategy": strategy, "prompts": 8}
    parameters = Parameters.read({**given, "rounds": 2, "warm_up_prompts": 0, **values})
    other = Cuttable("second", 100 / speed + round_trip_ms)
    pool = [(fake.Provider("first", 100), {}), (other, {"running": other})]
    run = experiment.Run(parameters, pool)
    with tempfile.TemporaryDirectory() as folder:
        file = ReportFile(Path(folder) / "report.jsonl")
        with file.open():
            fake.run(lambda clock: run.whole(file))
            file.write({"state": recording.state(run.report)})
        assert not other.cut, "mended before the next arm"
        return read(file.path)


@pytest.fixture(scope="module")
def readings() -> list[Reading]:
    both = "serial-per-provider", "earliest-finish"
    made = [measured(one, speed) for one in both for speed in (1.0, 0.6, 0.4, 0.1)]
    return made + [measured(one, 1.0, trip_ms) for one in both for trip_ms in (50.0, 200.0)]


@pytest.fixture(scope="module")
def speeds(readings: list[Reading]) -> Curves:
    return curves.along(readings, "second.speed", "speed", more_is_better=True)


def test_where_it_stops_helping_is_read_between_points(
    readings: list[Reading], speeds: Curves
) -> None:
    serial, earliest = speeds.points["serial-per-provider"], speeds.points["earliest-finish"]
    assert [point.x for point in serial] == [1.0, 0.6, 0.4, 0.1]
    for point in serial:  # four of eight prompts at 100 ms / speed
        assert point.ratio == pytest.approx(0.5 / point.x, rel=0.01)
    assert earliest[-1].ratio == pytest.approx(1, rel=0.01)
    assert speeds.ideals[0.6] == pytest.approx(1 / 1.6, rel=0.01)  # two machines worth 1.6
    # Ratios 0.83 at speed 0.6 and 1.25 at 0.4: a straight line meets 1 at 0.52.
    assert curves.stops(serial) == pytest.approx(0.52, abs=0.005)
    # 0.75 at 50 ms, 1.5 at 200 ms: 100 ms.
    trips = curves.along(readings, "second.link.round_trip_ms", "round trip", "ms")
    assert list(trips.ideals) == [0, 50, 200]
    told = curves.told(trips)
    stop = "**serial-per-provider stops helping where the round trip is 100 ms; 1 of 2 strategies"
    assert told.startswith(stop)
    assert "faster at 0 ms, 50 ms and slower at 200 ms." in told

    # Where it helps at every point or at none nothing is invented.
    gains = curves.along(readings[:2], "second.speed", "speed", more_is_better=True)
    assert curves.title(gains) == "Every strategy stays below 1 at every speed measured"
    never = curves.along(readings[2:4], "second.speed", "speed", more_is_better=True)
    assert curves.stops(never.points["serial-per-provider"]) == 0.4
    assert curves.along(readings, "strike.after", "share").points == {}


def test_what_one_strategy_takes_over_another_is_told_at_each_value_that_both_have() -> None:
    """Alone 100 ms; at 100 ms of link equal shares take 800 ms, earliest finish less."""
    runs = [measured("serial-per-provider", 1, 100), measured("serial-per-provider", 1, 300)]
    found = curves.along([*runs, measured("shared-queue", 1, 100)], KEY, "round trip", "ms")
    ours, theirs = (found.points[name][0].ratio for name in ("shared-queue", "serial-per-provider"))
    told = curves.over(found, "shared-queue", "serial-per-provider")
    assert f"shared-queue took {ours / theirs:.2f} (" in told and "times at 100 ms (" in told
    assert "300 ms" not in told and "not measured" in curves.over(found, "batched", "shared-queue")


def test_of_one_point_the_newer_report_counts_and_one_without_a_ratio_not_at_all() -> None:
    new = measured("shared-queue", 0.5, experiment="other")
    old = of(new.report.model_copy(update={"created": "2020-01-01T00:00:00Z"}))
    none = of(measured("sequential").report.model_copy(update={"rounds": []}))
    (points,) = curves.along([new, old, none], "second.speed", "speed").points.values()
    assert [point.headline for point in points] == [new.headline]


def test_the_chart_draws_each_strategy_the_ideal_and_where_it_stops(speeds: Curves) -> None:
    ax = Figure().subplots()
    curves.draw(ax, speeds)
    (stop,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert stop.get_xdata()[0] == pytest.approx(0.52, abs=0.005)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["ideal", "serial-per-provider", "earliest-finish"]
    assert ax.get_xlim()[0] > ax.get_xlim()[1], "the most helpful value on the left"
    table = curves.ratios(speeds)
    assert table.count("\n") == 5 and "0.63" in table  # the ideal at speed 0.6
    empty = Figure().subplots()
    curves.draw(empty, curves.along([], "second.speed", "speed"))
    assert "No report has a ratio" in empty.texts[-1].get_text()


@pytest.mark.parametrize("strategy", ["shared-queue", "serial-per-provider", "all-parallel"])
def test_a_machine_that_is_cut_off_costs_time_and_no_answer(strategy: str) -> None:
    """Eight prompts on two equal machines take 400 ms; the survivor alone does what is left."""
    struck = {"strike": {"provider": "second", "after": 0.5}, "retries": 2}
    reading = measured(strategy, round_trip_ms=1.0, breaker_failures=1, **struck)
    arms = {arm.arm: arm for one in reading.report.rounds for arm in one.arms}
    assert arms["baseline"].struck_ms == {} and list(arms["strategy"].struck_ms) == ["second"]
    assert reading.headline.incomplete_rounds == 0
    by_hand = 0.5 * 0.5 + 0.5 * 1  # half of the work at the speed of two, half at that of one
    ((point,),) = curves.along([reading], "strike.after", "share").points.values()
    assert point.ideal == pytest.approx(by_hand, rel=0.02)
    assert by_hand - 0.01 <= point.ratio <= by_hand + 0.25  # and at most two prompts done in vain
    assert "cut off in 2 of 2 arms. Of 16 answers none was lost" in curves.losses([reading])
    assert any("was cut off on purpose" in warning for warning in warnings(reading))


def test_at_the_end_of_the_prompts_nothing_is_cut() -> None:
    never = measured("shared-queue", round_trip_ms=1.0, strike={"provider": "second", "after": 1})
    assert not any(arm.struck_ms for one in never.report.rounds for arm in one.arms)
    strike = {"provider": "second", "after": 0}
    at_once = measured("shared-queue", round_trip_ms=1.0, strike=strike).report
    assert {r.provider for r in at_once.requests if r.outcome == "ok"} == {"first"}
    once = {"retries": 0, "breaker_failures": 0, "strike": strike}
    told = curves.losses([measured("all-parallel", round_trip_ms=1.0, **once)])
    assert "8 were lost" in told  # the second one's four of each of two rounds
