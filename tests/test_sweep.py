"""A grid of points from one file: what it holds, how it may be stopped, and what it keeps."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_experiment import on_a_fake_clock as on_a_fake_clock

from poclib import cli, recording, report, suite
from poclib.errors import ParameterError, RunFailed
from poclib.measure import experiment, sweep
from poclib.measure.experiment import measure
from poclib.measure.sweep import Outcome, Point
from poclib.parameters import Parameters, get
from poclib.providers import fake
from poclib.reading.reading import of, within
from poclib.showing import curves, documents
from poclib.showing import notebooks as publish

ROOT = report.root()
POOL: list[dict[str, Any]] = [
    {"name": "local"},
    {"name": "remote", "link": {"round_trip_ms": 20, "jitter_ms": 1}},
]
GIVEN: dict[str, Any] = {
    "experiment": "grid",
    "strategy": "shared-queue",
    "prompts": 4,
    "rounds": 3,
    "providers": POOL,
}


def points(section: Any, **more: Any) -> list[Point]:
    return sweep.points({**GIVEN, **more, "sweep": section}, "grid.yaml")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with no report in it."""
    (tmp_path / "data" / "reports").mkdir(parents=True)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    return tmp_path


def measure_on_fakes(parameters: Parameters, *_: Any, **__: Any) -> None:
    measure(parameters, pool=[fake.Provider("local", 100), fake.Provider("remote", 160)])


class Measured:
    """Points in the order they were measured; `story` happens at one of them instead."""

    def __init__(self, at: int = -1, story: BaseException | None = None) -> None:
        self.names: list[str] = []
        self.at, self.story = at, story

    def __call__(self, point: Point, folder: Path) -> None:
        if len(self.names) == self.at and self.story:
            self.at = -1
            raise self.story
        self.names.append(point.name)
        measure_on_fakes(point.parameters)


ENGINES = {name: SimpleNamespace(name=name, check=lambda: None) for name in ("local", "remote")}


FAILURE = RunFailed("03e_shared_queue: provider remote: connection refused.")


# ---- What a file holds ----------------------------------------------------------------------


def test_every_combination_is_a_point_in_the_order_of_the_lists(tmp_path: Path) -> None:
    found = points({"strategy": ["all-parallel", "shared-queue"], "max_tokens": [4, 8, 16]})
    assert [(p.strategy, p.parameters.max_tokens) for p in found] == [
        (strategy, length) for strategy in ("all-parallel", "shared-queue") for length in (4, 8, 16)
    ]
    assert found[0].label == "all-parallel, max_tokens 4"
    (one,) = points({"remote.link": [{"round_trip_ms": 5}], "max_tokens": [4]})
    sweep.write_summary([one], tmp_path / "grid")
    label = "remote.link round_trip_ms 5, max_tokens 4"
    assert sweep.summary(tmp_path / "grid") == {one.name: label} and sweep.summary(tmp_path) == {}


def test_a_setting_changes_at_one_provider_or_at_every_one_and_the_file_stays_as_it_is() -> None:
    near, far = points({"remote.link.round_trip_ms": [0, 80]})
    assert [p.link.round_trip_ms for p in near.parameters.providers] == [0, 0]
    assert [p.link.round_trip_ms for p in far.parameters.providers] == [0, 80]
    assert far.parameters.providers[1].link.jitter_ms == 1, "the rest of the link is kept"
    slow, _ = points({"speed": [0.5, 1]})
    assert [p.speed for p in slow.parameters.providers] == [0.5, 0.5]
    assert POOL[1]["link"] == {"round_trip_ms": 20, "jitter_ms": 1} and "speed" not in POOL[0]


def test_a_point_that_several_lists_or_fewer_engines_make_equal_is_one() -> None:
    lines = [{"remote.speed": [1, 0.5]}, {"speed": [1], "remote.link.round_trip_ms": [20, 90]}]
    remote = [one.parameters.providers[1] for one in points(lines)]
    assert [(p.speed, p.link.round_trip_ms) for p in remote] == [(1, 20), (0.5, 20), (1, 90)]
    found = points({"engines": [1, 2], "remote.speed": [0.4, 0.8]})
    assert [[p.name for p in one.parameters.providers] for one in found] == [
        ["local"],  # whatever the speed of the one that is left out
        ["local", "remote"],
        ["local", "remote"],
    ]


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("strike.after", 0.3, ["strike", "after"]),
        ("remote.link.round_trip_ms", 40, ["providers", 1, "link", "round_trip_ms"]),
        ("gpu.a.speed", 0.5, ["providers", 2, "speed"]),  # a name may hold a dot
        ("speed", 0.7, ["providers", 0, "speed"]),  # of every provider
    ],
)
def test_a_dotted_key_means_the_same_in_every_command(
    key: str, value: Any, place: list[Any], tmp_path: Path
) -> None:
    given = {"strategy": "x", "providers": [*POOL, {"name": "gpu.a"}], "strike": {"after": 0.5}}
    assert get(given, key) != value
    (tmp_path / "my.yaml").write_text(json.dumps(given))
    changed = cli.read_yaml(tmp_path / "my.yaml", [f"{key}={value}"])
    assert get(changed, key) == value
    for step in place:
        changed = changed[step]
    assert changed == value


def test_a_points_name_stays_what_it_is_when_the_grid_grows_and_not_when_the_run_changes() -> None:
    (one,) = points({"max_tokens": [8]})
    assert one.name in [p.name for p in points({"max_tokens": [4, 8]})]
    assert one.name != points({"max_tokens": [8]}, rounds=4)[0].name
    assert one.name != points({"max_tokens": [8]}, prompts=["a", "b"])[0].name


@pytest.mark.parametrize(
    "name", ["../../x", "..", "/tmp/x", "a/../b", "~", "x\n", "C:\\x", "", "\0"]
)
def test_no_value_takes_a_point_out_of_the_folder(name: str, tmp_path: Path) -> None:
    (one,) = points({"model": [name]})
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", one.name) and ".." not in one.name
    assert (tmp_path / one.name).resolve().parent == tmp_path.resolve()
    assert len(one.parameters.experiment) <= 64


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "needs a section `sweep`"),
    ([{"seed": [1]}, 7], {}, "needs a section `sweep`"),
    ([], {}, "0 points"),
    ({"seed": [*range(500)], "rounds": [1, 2, 3]}, {}, "1,500 points"),
    ({"max_tokens": 8}, {}, "sweep.max_tokens: give a list"),
    ({"max_token": [8]}, {}, "sweep.max_token is not a parameter; did you mean max_tokens"),
    ({"remot.speed": [1]}, {}, "sweep.remot.speed is not a parameter; did you mean remote"),
    ({"remote.link.trip_ms": [1]}, {}, "link.trip_ms is not a parameter"),
    ({"engines": [3]}, {}, "from 1 to 2"),
    ({"local.url": ["http://10.0.0.1"]}, {}, "no condition to compare"),
    ({"experiment": ["../x"]}, {}, "sweep.experiment"),
    ({"strike.after": [0.5]}, {"strike": {"provider": "local"}}, "with a link there are: remote"),
    ({"seed": [1]}, {"experiment": "../out"}, "experiment"),
    ({"seed": [1]}, {"strategy": None}, "name the strategy"),
    ({"speed": [1]}, {"providers": "none"}, "sweep.speed is not a parameter"),
]


@pytest.mark.parametrize(("section", "more", "sentence"), BAD, ids=range(len(BAD)))
def test_a_wrong_file_is_one_sentence(section: Any, more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(sentence)) as error:
        points(section, **more)
    assert "\n" not in str(error.value) and str(error.value).startswith("grid.yaml")


EXAMPLES = [path for path in (ROOT / "params").glob("*.yaml") if "sweep" in cli.read_yaml(path)]


@pytest.mark.parametrize("path", sorted(EXAMPLES), ids=lambda p: p.stem)
def test_an_example_is_a_sweep_that_its_notebooks_can_read(path: Path) -> None:
    given = cli.read_yaml(path)
    found = sweep.points(given, path.name)
    assert len(found) > 1
    if "notebooks" in given:
        (notebook,) = publish.notebooks(pattern=given["notebooks"])
        assert f"data/reports/{path.stem}" in publish.declared(notebook)["folder"]["default"]
    if path.stem == "failure-mode":
        first = [(one.strategy, one.parameters.providers[0]) for one in found]
        assert [(strategy, p.engine, p.adaptive) for strategy, p in first] == [
            ("all-parallel", "bare", "off"),
            ("serial-per-provider", "bare", "off"),
            ("all-parallel", "bare", "forced"),
            ("all-parallel", "queueing", "off"),
            ("all-parallel", "batched", "off"),
        ]
        same = {"experiment", "strategy", "providers"}
        assert len({one.parameters.model_dump_json(exclude=same) for one in found}) == 1


# ---- How it runs ----------------------------------------------------------------------------


def outcomes(found: list[Point], home: Path, execute: sweep.Execute) -> list[Outcome]:
    return list(sweep.run(found, home / "data" / "runs" / "grid", execute))


def test_an_interrupted_sweep_goes_on_where_it_stopped(home: Path) -> None:
    found, folder = points({"max_tokens": [4, 8, 12]}), home / "data" / "runs" / "grid"
    first, second, third = Measured(at=1, story=KeyboardInterrupt()), Measured(), Measured()
    with pytest.raises(KeyboardInterrupt):
        outcomes(found, home, first)
    assert first.names == [found[0].name]
    done = outcomes(found, home, second)
    assert second.names == [p.name for p in found[1:]], "the finished one is passed over"
    assert [one.before for one in done] == [True, False, False]
    assert all(one.before for one in outcomes(found, home, third)) and third.names == []
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in found)
    for outcome in done:
        (saved,) = (folder / outcome.point.name).iterdir()
        assert report.load(saved) == outcome.report
    assert report.names() == [], "they do not fill the list of reports"


def test_a_failed_point_is_told_does_not_stop_the_others_and_is_tried_again(home: Path) -> None:
    found = points({"max_tokens": [4, 8, 12]})
    done = outcomes(found, home, Measured(at=1, story=FAILURE))
    assert [one.problem for one in done] == ["", str(FAILURE), ""]
    readings = {one.point.label: one.report and of(one.report) for one in done}
    told = curves.points_table(readings)
    rows = [line for line in told.splitlines() if line.startswith("max_tokens ")]
    assert ["failed" in row for row in rows] == [False, True, False]
    again = Measured()
    assert not any(one.problem for one in outcomes(found, home, again))
    assert again.names == [found[1].name]


def test_a_point_whose_notebook_fails_or_saves_nothing_is_not_finished(home: Path) -> None:
    """Where its checks did not hold, the report stays where the next try finds it."""
    (found,) = points({"max_tokens": [4]})
    (outcome,) = outcomes([found], home, lambda point, folder: None)
    assert outcome.report is None and "There is no complete report" in outcome.problem

    def measured_then_failed(point: Point, folder: Path) -> None:
        measure_on_fakes(point.parameters)
        raise FAILURE

    (outcome,) = outcomes([found], home, measured_then_failed)
    assert outcome.problem and not (home / "data" / "runs" / "grid" / found.name).exists()
    assert report.names() == [f"{found.parameters.experiment}-shared-queue"]


def test_the_notebook_that_reads_a_sweep_is_given_its_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Points are measured without a notebook each; where one fails, the rest is still shown."""
    trouble = [KeyboardInterrupt(), FAILURE]
    read: list[dict[str, Any]] = []
    starts: list[list[str]] = []

    @contextlib.contextmanager
    def started(settings: Any, context_tokens: int) -> Iterator[list[Any]]:
        starts.append([one.name for one in settings])
        yield list(ENGINES.values())

    def measured(parameters: Parameters, *_: Any, resume: bool, running: Any) -> None:
        assert resume and running == ENGINES
        if parameters.max_tokens == 8:
            raise trouble.pop(0)
        measure_on_fakes(parameters)

    monkeypatch.setattr(experiment, "measure", measured)
    monkeypatch.setattr(experiment, "engine_pool", started)
    monkeypatch.setattr(publish.Kernel, "execute", lambda *given: read.append(given[-1]))
    monkeypatch.setattr(suite, "write_site", lambda kernel: Path("site", "index.html"))
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    file = home / "grid.yaml"
    given = {**GIVEN, "notebooks": "21*", "sweep": {"max_tokens": [4, 8, 16]}}
    file.write_text(json.dumps(given))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(file)])
    assert ended.value.code == 130 and "2 points left" in capsys.readouterr().err
    starts.clear()
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(file)])
    told = capsys.readouterr()
    assert "[1/3] max_tokens 4: done before" in told.err
    assert ended.value.code == 3 and "1 of 3 points failed: 03e_shared_queue" in told.err
    assert starts == [["local", "remote"]], "points that are alike share their engines"
    assert told.out.count("PASS") == 2 and read == [{"folder": "data/runs/grid"}]
    ran = [one.report.parameters for one in within(**read[0])]
    assert [given and given.max_tokens for given in ran] == [4, 16]
    assert report.load(next((home / "data" / "runs" / "grid").glob("*/*.jsonl"))).complete

    cli.main(["keep", "grid", "kept"])
    folder = home / "data" / "reports" / "kept"
    shutil.rmtree(next((home / "data" / "runs" / "grid").glob("4-*")))
    cli.main(["keep", "grid", "kept"])  # what the sweep has no more is set aside
    assert len(report.names(folder)) == 1 and len(report.names(folder / "older")) == 1
    assert len(within("data/reports/kept")) == 1


def test_reports_are_kept_under_another_name_and_listed_newest_first(home: Path) -> None:
    folder = home / "data" / "reports"
    (point,) = points({"max_tokens": [4]})
    measure_on_fakes(point.parameters)
    name = point.parameters.experiment
    cli.main(["keep", name, "sample"])
    levels = report.load(f"{name}-shared-queue").model_copy(update={"strategy": "capacity"})
    recording.save(levels.model_copy(update={"experiment": "levels"}))
    cli.main(["keep", "levels", "sample"])  # apart: it is no strategy
    assert report.names(folder / "capacity") == ["sample-capacity"]
    (folder / "levels-capacity.jsonl").unlink()
    for bad in ("../x", "a/b", "", "a b", ".x", "x" * 65):
        with pytest.raises(SystemExit):
            cli.main(["keep", name, bad])
    (folder / "broken.json").write_text("{")
    shutil.copy(ROOT / "data" / "reports" / "published-phase-0.json", folder)
    problems: list[str] = []
    listed = documents.entries(passed_over=problems.append)
    names = [f"{name}-shared-queue", "sample-shared-queue", "published-phase-0"]
    assert [one.name for one in listed] == names
    assert len(problems) == 1 and "broken.json" in problems[0]
    last = documents.listing(listed).splitlines()[-1]
    for word in ("published-phase-0", "2026-04-20", "(ollama)", "0.87", "INCONCLUSIVE"):
        assert word in last
