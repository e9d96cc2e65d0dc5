"""The start page's room: what it lists, what a choice draws, and a measurement from a button."""

from __future__ import annotations

import re
import shutil
import threading
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest

from poclib import Parameters, cli, report
from poclib.errors import EngineError
from poclib.measure import experiment
from poclib.measure.strategies import STRATEGIES
from poclib.providers import fake
from poclib.showing import explorer, notebooks
from poclib.showing.explorer import Explorer

ROOT = report.root()
PATIENCE_S = 60.0  # what a slow machine may take


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two saved reports and the embedded pool's parameters."""
    reports = tmp_path / "data" / "reports"
    reports.mkdir(parents=True)
    for name in ("sample-batched", "sample-sequential"):
        shutil.copy(report.find(name), reports)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    return tmp_path


def opened(measure: Any, name: str = "sample") -> Explorer:
    return Explorer(measure, STRATEGIES, "params/embedded.yaml", name)


def finding(one: Explorer) -> str:
    (alt,) = re.findall(r'alt="([^"]*)"', one.picture.value)
    return str(alt)


def ended(one: Explorer) -> str:
    """What it says once the measurement is over; everything may be used again then."""
    one.thread.join(PATIENCE_S)
    assert not one.thread.is_alive() and one.stop.disabled and not one.now.disabled
    assert not one.strategy.disabled
    return str(one.said.value)


def test_the_notebooks_are_listed_in_order_with_what_each_holds_and_takes() -> None:
    _, _, *rows = explorer.contents().splitlines()
    start, *others = notebooks.notebooks()
    assert start.name == "00_start.ipynb" and len(rows) == len(others)
    for row, path in zip(rows, others, strict=True):
        first = nbformat.read(path, as_version=4).cells[0].source
        title, told = first.splitlines()[0].lstrip("# "), " ".join(first.split())
        _, number, about, takes, _ = (cell.strip() for cell in row.split("|"))
        link, _, holds = about.partition(".ipynb) ")
        assert (number, link) == (path.name[:2], f"[{title}]({path.stem}")
        assert len(holds) > 9 and holds[:-1] in told and holds[0] != "*"
        assert takes != "-", f"{path.name}: say in its metadata what it takes"


def test_a_choice_is_drawn_and_only_what_was_measured_is_offered(home: Path) -> None:
    one = opened(None)
    assert one.experiment.options == ("sample",)
    assert set(one.strategy.options) == {"batched", "sequential"}
    assert one.round.options == ("typical", *"12345")
    one.strategy.value = "sequential"
    one.round.value = "2"
    assert finding(one).startswith("sequential ") and "round 2: 11 of 11" in finding(one)
    one.strategy.value = "batched"
    assert "round 2" in finding(one), "the round stays where there is one"
    seen = set()
    for view in explorer.VIEWS:
        one.view.value = view
        seen.add(finding(one))
    assert len(seen) == len(explorer.VIEWS) and finding(one).startswith("2 strategies")


def test_where_nothing_is_saved_it_says_so_and_can_measure(home: Path) -> None:
    shutil.rmtree(home / "data" / "reports")
    one = opened(None)
    assert one.experiment.options == () and one.wanted.value == next(iter(STRATEGIES))
    assert "data:image/svg" in one.picture.value


def test_measure_now_saves_what_it_asked_and_shows_what_came(home: Path) -> None:
    pool = [fake.Provider("local", 4), fake.Provider("remote", 6)]
    one = opened(partial(experiment.measure, pool=pool))
    one.wanted.value, one.rounds.value, one.prompts.value = "shared-queue", 2, 3
    one.now.click()
    said = ended(one)
    assert "lab-shared-queue" in said
    assert (one.experiment.value, one.strategy.value) == ("lab", "shared-queue")
    assert finding(one).startswith("shared-queue ")
    (written,) = re.findall(r"\./run-poc\.sh (\S+)", said)
    asked = Parameters.read(cli.read_yaml(home / written))
    saved = report.load("lab-shared-queue")
    assert saved.parameters and experiment.asked(asked) == experiment.asked(saved.parameters)
    assert (saved.parameters.rounds, len(saved.prompt_sha256), len(saved.rounds)) == (2, 3, 2)


def test_a_second_click_is_refused_while_it_measures(home: Path) -> None:
    go, calls = threading.Event(), list[str]()

    def measure(parameters: Parameters, progress: object) -> None:
        calls.append(parameters.strategy)
        assert go.wait(PATIENCE_S)
        raise EngineError("no <engine> works here; install one.")

    one = opened(measure)
    one.now.click()
    held = one.now.disabled and one.strategy.disabled and not one.stop.disabled
    one.now.click()
    refused = one.said.value
    go.set()
    assert ended(one) == "no &lt;engine&gt; works here; install one.", "one sentence, escaped"
    assert held and "under way" in refused and calls == ["batched"]


def test_stop_ends_a_measurement_that_hangs_and_what_was_finished_is_kept(home: Path) -> None:
    """The first round is whole; in the second a request never ends."""
    begun = threading.Event()

    def measure(parameters: Parameters, progress: Any) -> report.Report:
        def told(stage: str, done: int, total: int) -> None:
            progress(stage, done, total)
            if stage.startswith("round 2"):
                begun.set()

        script = [*[None] * 12, *["hang"] * 9]
        pool = [fake.Provider("local", 4), fake.Provider("remote", 9, script=script)]
        return experiment.measure(parameters, told, pool=pool)

    one = opened(measure)
    one.wanted.value, one.rounds.value = "serial-per-provider", 4
    one.now.click()
    assert begun.wait(PATIENCE_S)
    one.stop.click()
    assert ended(one).startswith("Stopped")
    left = report.load(home / "data" / "runs" / "lab-serial-per-provider.jsonl")
    assert left.rounds and not left.complete


def test_what_cannot_be_read_is_one_sentence(home: Path) -> None:
    (home / "params" / "embedded.yaml").unlink()
    one = opened(None)
    one.now.click()
    assert "embedded.yaml could not be read" in ended(one)
