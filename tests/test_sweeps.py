"""A grid of points from one file: what it holds, how it may be stopped, and what it keeps."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poclib import catalogue, cli, experiment, fake, publish, report, sweeps
from poclib.errors import ParameterError, RunFailed
from poclib.journal import Journal
from poclib.sweeps import Outcome, Point

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


def points(sweep: Any, **more: Any) -> list[Point]:
    return sweeps.points({**GIVEN, **more, "sweep": sweep}, "grid.yaml")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with no report in it."""
    (tmp_path / "data" / "reports").mkdir(parents=True)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    return tmp_path


def measure(point: Point, folder: Path) -> None:
    """As the notebook does: measure on fakes, save under the point's name."""
    pool = [fake.Provider("local", 100), fake.Provider("remote", 160, role="remote")]
    run = experiment.Run(point.parameters, [(one, {}) for one in pool])
    journal = Journal()
    fake.run(lambda clock: run.whole(journal))
    report.save(run.as_report())


class Measured:
    """Points in the order they were measured; `story` may happen at one of them instead."""

    def __init__(self, at: int = -1, story: Callable[[], None] = lambda: None) -> None:
        self.names: list[str] = []
        self.at, self.story = at, story

    def __call__(self, point: Point, folder: Path) -> None:
        if len(self.names) == self.at:
            self.at = -1
            self.story()
        self.names.append(point.name)
        measure(point, folder)


def stop() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise RunFailed("06_shared_queue: provider remote: connection refused.")


# ---- What a file holds ----------------------------------------------------------------------


def test_every_combination_is_a_point_in_the_order_of_the_lists() -> None:
    found = points({"strategy": ["all-parallel", "shared-queue"], "max_tokens": [4, 8, 16]})
    assert [(p.strategy, p.parameters.max_tokens) for p in found] == [
        (strategy, length) for strategy in ("all-parallel", "shared-queue") for length in (4, 8, 16)
    ]
    assert found[0].label == "all-parallel, max_tokens 4"
    assert all("strategy" not in p.values and "sweep" not in p.values for p in found)


def test_a_setting_changes_at_one_provider_or_at_every_one_and_the_file_stays_as_it_is() -> None:
    near, far = points({"remote.link.round_trip_ms": [0, 80]})
    assert [p.link.round_trip_ms for p in near.parameters.providers] == [0, 0]
    assert [p.link.round_trip_ms for p in far.parameters.providers] == [0, 80]
    assert far.parameters.providers[1].link.jitter_ms == 1, "the rest of the link is kept"
    slow, _ = points({"speed": [0.5, 1]})
    assert [p.speed for p in slow.parameters.providers] == [0.5, 0.5]
    assert POOL[1]["link"] == {"round_trip_ms": 20, "jitter_ms": 1} and "speed" not in POOL[0]


def test_a_providers_name_may_hold_a_dot() -> None:
    pool = [{"name": "gpu"}, {"name": "gpu.a"}]
    (one,) = points({"gpu.a.speed": [0.5]}, providers=pool)
    assert [p.speed for p in one.parameters.providers] == [1.0, 0.5]


def test_engines_are_the_first_so_many_and_equal_points_are_one() -> None:
    found = points({"engines": [1, 2], "remote.speed": [0.4, 0.8]})
    assert [[p.name for p in one.parameters.providers] for one in found] == [
        ["local"],  # whatever the speed of the one that is left out
        ["local", "remote"],
        ["local", "remote"],
    ]


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


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sweep": None}, "needs a section `sweep`"),
    ({"sweep": {"max_tokens": 8}}, "sweep.max_tokens: give a list"),
    ({"sweep": {"max_tokens": []}}, "sweep.max_tokens: give a list"),
    ({"sweep": {"max_token": [8]}}, "sweep.max_token is not a parameter; did you mean max_tokens"),
    ({"sweep": {"remot.speed": [1]}}, "sweep.remot.speed is not a parameter; did you mean remote"),
    ({"sweep": {"remote.sped": [1]}}, "sweep.sped is not a parameter; did you mean speed"),
    ({"sweep": {"remote.link.trip_ms": [1]}}, "link.trip_ms is not a parameter"),
    ({"sweep": {"speed": [7]}}, "providers.0.speed"),
    ({"sweep": {"engines": [3]}}, "from 1 to 2"),
    ({"sweep": {"engines": [True]}}, "from 1 to 2"),
    ({"sweep": {"local.url": ["http://10.0.0.1"]}}, "no condition to compare"),
    ({"sweep": {"experiment": ["../x"]}}, "sweep.experiment"),
    ({"sweep": {"seed": [*range(500)], "rounds": [1, 2, 3]}}, "1,500 points"),
    ({"sweep": {"seed": [1]}, "experiment": "../out"}, "experiment"),
    ({"sweep": {"seed": [1]}, "experiment": "x" * 25}, "at most 24"),
    ({"sweep": {"seed": [1]}, "experiment": ".."}, "experiment"),
    ({"sweep": {"seed": [1]}, "strategy": None}, "name the strategy"),
    ({"sweep": {"seed": [1]}, "providers": None}, "providers"),
    ({"sweep": {"speed": [1]}, "providers": "none"}, "sweep.speed is not a parameter"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_wrong_file_is_one_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(sentence)) as error:
        sweeps.points({**GIVEN, **change}, "grid.yaml")
    assert "\n" not in str(error.value) and str(error.value).startswith("grid.yaml")


def test_a_key_that_the_notebook_does_not_declare_stops_it_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("sweep: {arm_limit_s: [5]}\nstrategy: shared-queue\nproviders: [{name: a}]")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(file)])
    assert ended.value.code == 3 and "arm_limit_s is not a parameter" in capsys.readouterr().err
    assert not (ROOT / "data" / "runs" / "grid").exists()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "params").glob("sweep*.yaml")), ids=lambda p: p.stem
)
def test_the_example_is_a_sweep_and_run_says_how_to_run_it(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = sweeps.points(cli.read_yaml(path), path.name)
    assert len(found) > 1
    for one in found:
        publish.check_keys(one.values, publish.declared(publish.strategy_notebook()), path.name)
    with pytest.raises(SystemExit):
        cli.main(["run", str(path)])
    assert f"poc sweep {path.name}" in capsys.readouterr().err


# ---- How it runs ----------------------------------------------------------------------------


def outcomes(found: list[Point], home: Path, execute: sweeps.Execute) -> list[Outcome]:
    return list(sweeps.run(found, home / "data" / "runs" / "grid", execute))


def test_each_point_has_its_report_in_its_own_folder(home: Path) -> None:
    found = points({"max_tokens": [4, 8]})
    done = outcomes(found, home, measure)
    folder = home / "data" / "runs" / "grid"
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in found)
    for outcome in done:
        (saved,) = (folder / outcome.point.name).iterdir()
        assert report.load(saved) == outcome.report
    assert report.names() == [], "they do not fill the list of reports"


def test_an_interrupted_sweep_goes_on_where_it_stopped(home: Path) -> None:
    found = points({"max_tokens": [4, 8, 12]})
    first = Measured(at=1, story=stop)
    with pytest.raises(KeyboardInterrupt):
        outcomes(found, home, first)
    assert first.names == [found[0].name]
    second = Measured()
    done = outcomes(found, home, second)
    assert second.names == [p.name for p in found[1:]], "the finished one is passed over"
    assert [one.before for one in done] == [True, False, False]
    third = Measured()
    assert all(one.before for one in outcomes(found, home, third)) and third.names == []


def test_a_notebook_that_fails_after_measuring_is_not_finished(home: Path) -> None:
    """Its checks did not hold: the report stays where the next try finds it."""

    def measured_then_failed(point: Point, folder: Path) -> None:
        measure(point, folder)
        fail()

    (found,) = points({"max_tokens": [4]})
    (outcome,) = outcomes([found], home, measured_then_failed)
    assert outcome.problem and sweeps.finished(found, home / "data" / "runs" / "grid") is None
    assert report.names() == [f"{found.parameters.experiment}-shared-queue"]


def test_a_failed_point_is_told_does_not_stop_the_others_and_is_tried_again(home: Path) -> None:
    found = points({"max_tokens": [4, 8, 12]})
    done = outcomes(found, home, Measured(at=1, story=fail))
    assert [bool(one.problem) for one in done] == [False, True, False]
    told = sweeps.table(done)
    rows = [line for line in told.splitlines() if re.match(r"(4|8|12) ", line)]
    assert ["failed" in row for row in rows] == [False, True, False]
    assert "max_tokens 8: 06_shared_queue: provider remote: connection refused." in told
    again = Measured()
    assert not any(one.problem for one in outcomes(found, home, again))
    assert again.names == [found[1].name]


def test_a_point_that_saved_nothing_is_a_failed_one(home: Path) -> None:
    (outcome,) = outcomes(points({"max_tokens": [4]}), home, lambda point, folder: None)
    assert outcome.report is None and "There is no report" in outcome.problem


def test_the_table_has_ratio_and_interval_computed_by_hand(home: Path) -> None:
    """Four prompts of 100 ms; a shared queue gives the slow one (160 ms) one or two of them."""
    done = outcomes(points({"prompts": [2, 4]}), home, measure)
    rows = [line.split("  ") for line in sweeps.table(done).splitlines()[2:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [  # 160 of 200 ms, 300 or 320 of 400 ms
        ["2", "0.80 (0.80 to 0.80, 3 rounds)", "1.25", "PASS"],
        ["4", "0.80 (0.80 to 0.80, 3 rounds)", "1.25", "PASS"],
    ]


def test_labels_are_kept_beside_the_points(tmp_path: Path) -> None:
    found = points({"remote.link": [{"round_trip_ms": 5}], "max_tokens": [4]})
    sweeps.write_summary(found, tmp_path / "grid")
    label = "remote.link round_trip_ms 5, max_tokens 4"
    assert sweeps.summary(tmp_path / "grid") == {found[0].name: label}
    assert sweeps.summary(tmp_path) == {}


def test_saved_reports_are_listed_newest_first_and_a_broken_one_is_told(home: Path) -> None:
    (home / "data" / "reports" / "broken.json").write_text("{")
    shutil.copy(ROOT / "data" / "reports" / "published-phase-0.json", home / "data" / "reports")
    found = points({"max_tokens": [4]})
    measure(found[0], home)
    problems: list[str] = []
    listed = catalogue.entries(passed_over=problems.append)
    name = f"{found[0].parameters.experiment}-shared-queue"
    assert [one.name for one in listed] == [name, "published-phase-0"]
    assert len(problems) == 1 and "broken.json" in problems[0]
    last = catalogue.text(listed).splitlines()[-1]
    for word in ("published-phase-0", "2026-04-20", "(ollama)", "serial-per-provider", "0.87",
                 "INCONCLUSIVE"):  # fmt: skip
        assert word in last
    assert "published-phase-0" in catalogue.saved().data


# ---- For real -------------------------------------------------------------------------------

TINY = """
experiment: tiny
strategy: shared-queue
sweep: {max_tokens: [4, 6]}
rounds: 2
prompts: 2
calibration_prompts: 1
context_tokens: 256
providers:
  - {name: local, kind: embedded, slots: 2}
  - {name: remote, kind: embedded, slots: 2}
"""
PATIENCE_S = 120.0  # what a slow machine may take


@pytest.mark.slow
def test_a_real_sweep_is_interrupted_and_resumed(tmp_path: Path) -> None:
    (tmp_path / "data" / "reports").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(publish.strategy_notebook(), tmp_path / "notebooks")
    (tmp_path / "tiny.yaml").write_text(TINY)
    first, second = sweeps.points(cli.read_yaml(tmp_path / "tiny.yaml"), "tiny.yaml")
    folder = tmp_path / "data" / "runs" / "tiny"
    journal = folder.parent / f"{second.parameters.experiment}-shared-queue.jsonl"
    command = [sys.executable, "-m", "poclib", "sweep", str(tmp_path / "tiny.yaml")]
    environment = {
        **os.environ,
        "POCLIB_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env=environment,
    ) as run:  # fmt: skip
        try:
            ends_s = time.monotonic() + PATIENCE_S
            while not journal.exists() and run.poll() is None and time.monotonic() < ends_s:
                time.sleep(0.05)
            os.killpg(run.pid, signal.SIGINT)  # to the whole group, as a terminal does
            said, _ = run.communicate(timeout=PATIENCE_S)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, said[-2000:]
    assert "1 point left" in said and "Traceback" not in said
    kept = (folder / first.name / f"{first.parameters.experiment}-shared-queue.json").read_bytes()

    again = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False
    )
    assert again.returncode == 0, again.stderr[-2000:]
    assert "[1/2] max_tokens 4: done before" in again.stderr
    for point, length in ((first, 4), (second, 6)):
        (saved,) = (folder / point.name).glob("*.json")
        measured = report.load(saved)
        assert measured.complete and len(measured.rounds) == 2
        assert {row.output_tokens for row in measured.requests} == {length}
        assert (folder / point.name / "06_shared_queue.ipynb").exists()
    assert next((folder / first.name).glob("*.json")).read_bytes() == kept
    table = [line for line in again.stdout.splitlines() if re.match("[46] ", line)]
    assert len(table) == 2 and all("2 rounds" in line for line in table)
    pages = list((tmp_path / "site").rglob("06_shared_queue.html"))
    assert len(pages) >= 2
    assert not journal.exists() and not list((tmp_path / "data" / "reports").glob("tiny*"))
