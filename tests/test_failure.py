"""Everything at once: the cases, what is said of them on made-up facts, and a small real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_causes import report as made_up

from poclib import causes, cli, crowding, failure, plots, progress, publish, recording, tables
from poclib import report as reports
from poclib.records import EngineUse, Parameters

ROOT = reports.root()
THRASHED = made_up([(0, 20000)] * 4, 19000)  # a request alone takes 1 s, 0.9 of it its server
QUEUED = made_up([(0, 1000), (0, 2000), (0, 3000), (0, 4000)], 900)
BOTH = [THRASHED, QUEUED]
HEADLINES = [tables.headline(one) for one in BOTH]


@pytest.fixture
def ax() -> Iterator[Axes]:
    with matplotlib.rc_context():
        plots.use_style()
        yield Figure().subplots()


def example() -> Parameters:
    return Parameters.read(cli.read_yaml(ROOT / "params" / "failure-mode.yaml"))


def test_the_cases_differ_in_engine_strategy_and_limit_only() -> None:
    given = example()
    cases = failure.cases(given)
    first = [one.providers[0] for one in cases]
    assert [(c.strategy, p.engine, p.adaptive) for c, p in zip(cases, first, strict=True)] == [
        ("all-parallel", "bare", "off"),
        ("serial-per-provider", "bare", "off"),
        ("all-parallel", "bare", "forced"),
        ("all-parallel", "queueing", "off"),
        ("all-parallel", "batched", "off"),
    ]
    same = {"experiment", "strategy", "providers"}
    assert all(one.model_dump(exclude=same) == given.model_dump(exclude=same) for one in cases)
    names = {f"{one.experiment}-{one.strategy}" for one in cases}
    assert len(names) == 5
    samples = given.model_copy(update={"experiment": "sample"})
    assert not {one.experiment for one in failure.cases(samples, live=True)} & {
        one.experiment for one in failure.cases(samples)
    }


def test_cases_with_the_same_engines_share_them() -> None:
    bare, serial, adaptive, queueing, batched = map(failure._engines, failure.cases(example()))
    assert bare == serial == adaptive and len({bare, queueing, batched}) == 3


def test_the_example_is_what_its_notebook_runs() -> None:
    values = cli.read_yaml(ROOT / "params" / "failure-mode.yaml")
    (notebook,) = publish.notebooks(pattern=values.pop("notebooks"))
    publish.check_keys(values, publish.declared(notebook), "failure-mode.yaml")
    assert values["arm_limit_s"] > 0, "a run of it has a bound"


def test_kept_samples_lie_apart_from_those_of_the_strategies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    recording.save(THRASHED.model_copy(update={"experiment": "mine-bare"}))
    recording.save(QUEUED.model_copy(update={"experiment": "mine", "strategy": "capacity"}))
    cli.main(["keep", "mine", "sample"])
    assert reports.names(reports.home("failure-mode", "sample")) == ["sample-bare-all-parallel"]
    assert reports.names(reports.home("capacity", "sample")) == ["sample-capacity"]
    assert not [name for name in reports.names() if name.startswith("sample")]


def test_thrashing_is_told_from_queueing_by_the_servers_own_time() -> None:
    thrashed, queued = crowding.crowds(BOTH, HEADLINES)
    assert thrashed.behaviours == ("thrashes",) and queued.behaviours == ("queues",)
    # 20 s instead of 1 s, and 19 of 0.9 s; in the queue 1 to 4 s, the server's time unchanged.
    assert thrashed.wall == pytest.approx(20) and thrashed.server == pytest.approx(19 / 0.9)
    assert queued.wall == pytest.approx(2.5) and queued.server == pytest.approx(1)
    table = crowding.separation(BOTH, HEADLINES)
    assert "20×" in table and "21×" in table and "queues" in table  # noqa: RUF001


def test_the_bottom_line_names_the_slowest_run_and_the_cures() -> None:
    said = crowding.bottom_line(BOTH, HEADLINES)
    # 20 s against a baseline of 4 s
    assert said.startswith("**all-parallel on bare took 5.00 times as long as one machine alone.**")
    assert "A request took 20 times as long as one alone on average, up to 20 times." in said
    assert "- all-parallel on bare: 1.00 times; a request 2.5 times one alone" in said


def test_of_a_run_that_was_stopped_a_bound_is_told() -> None:
    cut = made_up([(100, 9000), (100, 12100)], 8000, cut_ms=12100)
    assert "took at least 3.00 times" in crowding.bottom_line([cut], [tables.headline(cut)])


def test_cpu_time_is_held_against_the_baselines() -> None:
    use = {"provider": "p", "processes": 1, "threads": 2}
    calm = EngineUse(wall_ms=4000, cpu_ms=4000, **use)
    busy = EngineUse(wall_ms=20000, cpu_ms=40000, **use)
    data = made_up([(0, 20000)] * 4, 19000).model_dump()
    for arm, used in zip(data["rounds"][0]["arms"], (calm, busy), strict=True):
        arm["engines"] = [used.model_dump()]
    loaded = reports.Report.model_validate(data)
    (found,) = crowding.crowds([loaded], [tables.headline(loaded)])
    assert found.cpu == pytest.approx(10)


def test_the_chart_has_a_dot_for_every_request(ax: Axes) -> None:
    crowding.walls(ax, BOTH, HEADLINES)
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[20.0] * 4, [1.0, 2.0, 3.0, 4.0]]
    assert len([line for line in ax.lines if line.get_marker() == "D"]) == 2
    assert "20 times one alone" in ax.get_title(loc="left").replace("\n", " ")


@pytest.mark.slow
def test_on_real_engines_everything_at_once_thrashes_and_a_limit_cures_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Orders and causes only: how much slower depends on the machine."""
    (tmp_path / "data" / "reports").mkdir(parents=True)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    few = {"prompts": 8, "rounds": 1, "max_tokens": 8, "calibration_prompts": 2}
    given = example().model_copy(update={**few, "arm_limit_s": 40.0})
    smaller = [one.model_copy(update={"slots": 4}) for one in given.providers]
    cases = failure.cases(given.model_copy(update={"providers": smaller}))
    crowded, serial = failure.measure(cases[:2], lambda _: progress.quiet)
    ratio = causes.at_least(crowded) or tables.headline(crowded).overhead_ratio.median
    cured = tables.headline(serial).overhead_ratio.median
    assert ratio is not None and cured is not None and ratio > 2 * cured
    before, *ours = causes.causes(crowded)
    assert "thrashes" in {one.behaviour for one in ours}
    assert {one.wanting for one in ours} == {8}  # four contexts of two threads
    for one in ours:  # the same tokens cost more CPU time
        assert one.cpu_ms_per_token is not None and before.cpu_ms_per_token is not None
        assert one.cpu_ms_per_token > 1.5 * before.cpu_ms_per_token
