"""Ratio against a setting: read between the points, told and drawn, from runs on a fake clock."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poclib import cli, recording, report
from poclib.errors import Unreachable
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.recording import ReportFile
from poclib.records import Exchange, Prompt, Report
from poclib.showing import charts as plots
from poclib.showing import curves
from poclib.showing import warnings as cautions
from poclib.showing.curves import Curves

ROOT = report.root()


class Cuttable(fake.Provider):
    """A provider behind a link: what is under way fails when the link is cut, and what comes."""

    cut = False
    cuts = 0

    def drop_link(self) -> None:
        self.cut, self.cuts = True, self.cuts + 1

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
) -> Report:
    """A first machine of 100 ms a request; the second one's follows its speed and distance."""
    second = {"name": "second", "speed": speed, "link": {"round_trip_ms": round_trip_ms}}
    few = {"prompts": 8, "rounds": 2, "warm_up_prompts": 0}
    pair = {"providers": [{"name": "first"}, second], "strategy": strategy}
    parameters = Parameters.read({**few, **pair, **values})
    other = Cuttable("second", 100 / speed + round_trip_ms)
    pool = [(fake.Provider("first", 100), {}), (other, {"running": other})]
    run = experiment.Run(parameters, pool)
    with tempfile.TemporaryDirectory() as folder:
        file = ReportFile(Path(folder) / "report.jsonl")
        with file.open():
            fake.run(lambda clock: run.whole(file))
            file.write({"state": recording.state(run.as_report(complete=True))})
        assert not other.cut, "mended before the next arm"
        return report.load(str(file.path))


@pytest.fixture(scope="module")
def reports() -> list[Report]:
    both = "serial-per-provider", "earliest-finish"
    found = [measured(one, speed) for one in both for speed in (1.0, 0.6, 0.4, 0.1)]
    return found + [measured(one, 1.0, trip_ms) for one in both for trip_ms in (50.0, 200.0)]


@pytest.fixture
def speeds(reports: list[Report]) -> Curves:
    return curves.along(reports, "second.speed", "second machine's speed", more_is_better=True)


@pytest.fixture
def trips(reports: list[Report]) -> Curves:
    return curves.along(reports, "second.link.round_trip_ms", "round trip", "ms")


@pytest.fixture
def ax() -> Iterator[Axes]:
    with matplotlib.rc_context():
        plots.use_style()
        yield Figure().subplots()


def test_reports_that_differ_in_one_setting_make_the_curves(speeds: Curves, trips: Curves) -> None:
    ratio = {(one.strategy, one.x): one.ratio for one in speeds.points}
    assert list(dict.fromkeys(x for _, x in ratio)) == [1.0, 0.6, 0.4, 0.1]
    for speed in (1.0, 0.6, 0.4, 0.1):  # four of eight prompts at 100 ms / speed
        assert ratio["serial-per-provider", speed] == pytest.approx(0.5 / speed, rel=0.01)
    assert ratio["earliest-finish", 0.1] == pytest.approx(1, rel=0.01)
    assert {one.x for one in trips.points} == {0, 50, 200}
    ideal = {one.x: one.ideal for one in speeds.points}
    assert ideal[0.6] == pytest.approx(1 / 1.6, rel=0.01)  # two machines worth 1.6


def test_where_it_stops_helping_is_read_between_the_points(speeds: Curves, trips: Curves) -> None:
    # Ratios 0.83 at speed 0.6 and 1.25 at 0.4: a straight line meets 1 at 0.52.
    assert curves.stops(speeds.of("serial-per-provider")) == pytest.approx(0.52, abs=0.005)
    # 0.75 at 50 ms, 1.5 at 200 ms
    assert curves.stops(trips.of("serial-per-provider")) == pytest.approx(100, rel=0.02)
    told = curves.told(trips)
    assert told.startswith(
        "**serial-per-provider stops helping where the round trip is 100 ms; 1 of 2 strategies "
        "stay below 1.**"
    )
    assert "- earliest-finish stays below 1 at every value, by medians; by its intervals" in told
    assert "faster at 0 ms, 50 ms and slower at 200 ms." in told


def test_where_it_helps_at_every_point_or_none_nothing_is_invented(reports: list[Report]) -> None:
    gains = curves.along(reports[:2], "second.speed", "speed", more_is_better=True)
    assert curves.title(gains) == "Every strategy stays below 1 at every speed measured"
    never = curves.along(reports[2:4], "second.speed", "speed", more_is_better=True)
    assert curves.stops(never.points) == 0.4
    assert curves.title(curves.along(reports, "rounds", "rounds")).endswith("rounds measured")
    assert curves.along(reports, "strike.after", "share").points == []


def test_of_one_point_the_newer_report_counts_and_one_without_a_ratio_not_at_all() -> None:
    old = measured("shared-queue", 0.5).model_copy(update={"created": "2020-01-01T00:00:00Z"})
    new = measured("shared-queue", 0.5, experiment="other")
    none = measured("sequential").model_copy(update={"rounds": []})
    (point,) = curves.along([new, old, none], "second.speed", "speed").points
    assert point.headline.created == new.created


def test_the_chart_draws_each_strategy_the_ideal_and_where_it_stops(
    ax: Axes, speeds: Curves
) -> None:
    curves.draw(ax, speeds)
    (stop,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert stop.get_xdata()[0] == pytest.approx(0.52, abs=0.005)
    drawn = "\n".join(text.get_text() for text in ax.texts)
    named = ("serial-per-provider", "earliest-finish", "ideal", "0.52")
    assert all(name in drawn for name in named)
    assert ax.get_xlim()[0] > ax.get_xlim()[1], "the most helpful value on the left"
    table = curves.ratios(speeds)
    assert table.count("\n") == 5 and "0.63" in table  # the ideal at speed 0.6
    empty = Figure().subplots()
    curves.draw(empty, curves.along([], "second.speed", "speed"))
    assert "No report has a ratio" in empty.texts[-1].get_text()


# ---- A machine that dies --------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["shared-queue", "serial-per-provider", "all-parallel"])
def test_a_machine_that_is_cut_off_costs_time_and_no_answer(strategy: str) -> None:
    """Eight prompts on two equal machines take 400 ms; the survivor alone does what is left."""
    struck = {"strike": {"provider": "second", "after": 0.5}, "retries": 2}
    found = measured(strategy, round_trip_ms=1.0, breaker_failures=1, **struck)
    arms = {arm.arm: arm for one in found.rounds for arm in one.arms}
    assert arms["baseline"].struck_ms == {} and list(arms["strategy"].struck_ms) == ["second"]
    headline = of(found).headline
    assert headline.incomplete_rounds == 0
    by_hand = 0.5 * 0.5 + 0.5 * 1  # half of the work at the speed of two, half at that of one
    (point,) = curves.along([found], "strike.after", "share").points
    assert point.ideal == pytest.approx(by_hand, rel=0.02)
    assert by_hand - 0.01 <= point.ratio <= by_hand + 0.25  # and at most two prompts done in vain
    told = curves.losses([found])
    assert "cut off in 2 of 2 arms. Of 16 answers none was lost" in told
    assert any("was cut off on purpose" in one for one in cautions.warnings(of(found)))


def test_at_the_end_of_the_prompts_nothing_is_cut() -> None:
    never = measured("shared-queue", round_trip_ms=1.0, strike={"provider": "second", "after": 1})
    assert not any(arm.struck_ms for one in never.rounds for arm in one.arms)
    at_once = measured("shared-queue", round_trip_ms=1.0, strike={"provider": "second", "after": 0})
    assert {r.provider for r in at_once.requests if r.outcome == "ok"} == {"first"}
    once = {"retries": 0, "breaker_failures": 0, "strike": {"provider": "second", "after": 0}}
    told = curves.losses([measured("all-parallel", round_trip_ms=1.0, **once)])
    assert "8 were lost" in told  # the second one's four of each of two rounds


@pytest.mark.slow
def test_a_real_engine_that_is_cut_off_costs_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    given = cli.read_yaml(ROOT / "params" / "machine-dies.yaml", ["rounds=2", "max_tokens=8"])
    given = {key: value for key, value in given.items() if key not in ("sweep", "notebooks")}
    found = experiment.measure(Parameters.read(given | {"strategy": "shared-queue"}))
    arms = [arm for one in found.rounds for arm in one.arms if arm.arm == "strategy"]
    assert all(list(arm.struck_ms) == ["second"] for arm in arms)
    assert of(found).headline.incomplete_rounds == 0 and "none was lost" in curves.losses([found])
    for arm in arms:  # the survivor does what is left, and the next arm begins with both
        late = [r for r in arm.requests if (r.marks.start_ms or 0) > arm.struck_ms["second"]]
        assert {r.provider for r in late if r.outcome == "ok"} == {"first"}
        assert {r.provider for r in arm.requests if r.outcome == "ok"} == {"first", "second"}
