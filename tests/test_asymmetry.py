"""Unlike machines: measured on a fake clock, told and drawn from points made up by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poclib import asymmetry, experiment, fake, plots, unlike
from poclib.errors import ParameterError, ReportError
from poclib.records import Parameters, ProviderFacts, Unlike, UnlikeArm, UnlikePoint


def parameters(**values: Any) -> Parameters:
    return Parameters.read(
        {
            "providers": [{"name": "first"}, {"name": "second"}],
            "prompts": 8,
            "rounds": 2,
            "warm_up_prompts": 0,
            **values,
        }
    )


@pytest.fixture(scope="module")
def swept() -> Unlike:
    """A first machine of 100 ms a request; the second one's time follows its speed."""
    speed = [1.0]
    pool = [fake.Provider("first", 100), fake.Provider("second", lambda _: 100 / speed[0])]
    run = experiment.Run(parameters(), [(one, {}) for one in pool])

    def turn(wanted: float, round_trip_ms: float) -> None:
        speed[0] = wanted / (1 + round_trip_ms / 100)

    points = [(1.0, 0.0), (0.6, 0.0), (0.4, 0.0), (0.1, 0.0), (1.0, 50.0), (1.0, 200.0)]
    found: Unlike = fake.run(lambda clock: asymmetry.sweep(run, points, turn))
    return found


@pytest.fixture
def ax() -> Iterator[Axes]:
    with matplotlib.rc_context():
        plots.use_style()
        yield Figure().subplots()


def test_every_point_is_measured_with_every_strategy(swept: Unlike) -> None:
    rows = unlike.worth(swept)
    assert len(rows) == 6 * len(asymmetry.COMPARED) and {row.rounds for row in rows} == {2}
    ratio = {(r.speed, r.round_trip_ms, r.strategy): r.ratio for r in rows}
    # Four of eight prompts at 100 ms / speed, over eight at 100 ms.
    for speed in (1.0, 0.6, 0.4, 0.1):
        assert ratio[speed, 0, unlike.EVEN] == pytest.approx(0.5 / speed, rel=0.01)
    assert ratio[1, 200, unlike.EVEN] == pytest.approx(1.5, rel=0.01)
    assert ratio[0.1, 0, "earliest-finish"] == pytest.approx(1, rel=0.01)
    ideal = {(r.speed, r.round_trip_ms): r.ideal for r in rows}
    assert ideal[0.6, 0] == pytest.approx(1 / 1.6, rel=0.01)  # two machines worth 1.6
    assert all(row.ratio > 0.99 * row.ideal for row in rows)


def test_where_it_stops_helping_is_read_between_the_points(swept: Unlike) -> None:
    at = unlike.stops(unlike.by_speed(swept), unlike.EVEN, lambda row: row.speed)
    # Ratios 0.83 at speed 0.6 and 1.25 at 0.4: a straight line meets 1 at 0.52.
    assert at == pytest.approx(0.52, abs=0.005)
    far = unlike.stops(unlike.by_distance(swept), unlike.EVEN, lambda row: row.round_trip_ms)
    assert far == pytest.approx(100, rel=0.02)  # 0.75 at 50 ms, 1.5 at 200 ms
    said = unlike.bottom_line(swept)
    assert "Equal shares stop helping at 0.52 of the first machine's speed" in said
    assert "stops helping at a round trip of 100 ms" in said


def made(*ratios: float) -> Unlike:
    points = [
        UnlikePoint(
            speed=speed,
            round_trip_ms=0,
            alone_ms={"first": 100, "second": 100 / speed},
            arms=[
                UnlikeArm(strategy=unlike.ALONE, round=0, spans={"first": [(0, 1000)]}),
                UnlikeArm(strategy=unlike.EVEN, round=0, spans={"second": [(50, 50 + 1000 * r)]}),
            ],
        )
        for speed, r in zip((1.0, 0.5, 0.1), ratios, strict=True)
    ]
    facts = [ProviderFacts(name=n, kind="embedded", role="local") for n in ("first", "second")]
    return Unlike(
        created="2026-11-25T00:00:00+00:00", providers=facts, prompts=1, max_tokens=8, points=points
    )


def test_where_it_helps_at_every_point_nothing_is_invented() -> None:
    found = made(0.5, 0.7, 0.9)
    assert unlike.stops(unlike.by_speed(found), unlike.EVEN, lambda row: row.speed) is None
    assert unlike.speed_title(found) == "Equal shares gain at every speed measured"
    assert "it still helps at 0.10" in unlike.speed_sentences(found)[0]


def test_an_arm_that_was_not_answered_whole_is_left_out() -> None:
    found = made(0.5, 1.5, 3).model_copy(update={"prompts": 2})
    assert unlike.worth(found) == []


def test_the_charts_draw_each_strategy_and_where_equal_shares_stop(ax: Axes, swept: Unlike) -> None:
    unlike.speeds(ax, swept)
    (stop,) = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert stop.get_xdata()[0] == pytest.approx(0.52, abs=0.005)
    said = "\n".join(text.get_text() for text in ax.texts)
    assert all(name in said for name in (*asymmetry.COMPARED, "ideal", "0.52"))
    other = Figure().subplots()
    unlike.distances(other, swept)
    assert other.get_xlim()[0] == 0
    table = unlike.table(unlike.by_speed(swept))
    assert table.count("\n") == 5 and "0.63" in table  # the ideal at speed 0.6


def test_points_are_saved_an_arm_a_line_and_read_back(
    swept: Unlike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    written = asymmetry.save(swept, "mine")
    assert asymmetry.load("mine") == swept
    assert len(written.read_text().splitlines()) < 200
    with pytest.raises(ReportError, match="there are: mine"):
        asymmetry.load("other")
    written.write_text("{}")
    with pytest.raises(ReportError, match="measure them again"):
        asymmetry.load("mine")


def test_only_two_embedded_engines_can_be_made_unlike() -> None:
    with pytest.raises(ParameterError, match="two embedded"):
        asymmetry.measure(parameters(providers=[{"name": "alone"}]), [1.0], [])


@pytest.mark.slow
def test_a_slower_real_engine_makes_equal_shares_worth_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    wanted = parameters(
        prompts=4, rounds=1, max_tokens=8, context_tokens=256, calibration_prompts=2
    )
    found = asymmetry.measure(wanted, [1.0, 0.2], [])
    ratio = {r.speed: r.ratio for r in unlike.by_speed(found) if r.strategy == unlike.EVEN}
    assert ratio[0.2] > 1.5 * ratio[1.0]
