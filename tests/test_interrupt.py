"""Ctrl-C on the real command with real engines: it ends, saves, and leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from poclib import report
from poclib.errors import ReportError
from poclib.showing import notebooks as publish

pytestmark = pytest.mark.slow

PARAMETERS = """
experiment: stopped
rounds: 6
prompts: 3
max_tokens: 6
context_tokens: 256
providers:
  - {name: local, kind: embedded, slots: 2}
  - {name: remote, kind: embedded, slots: 2, speed: 0.6, link: {round_trip_ms: 20}}
"""
# What a slow machine may take; the figure that was measured is printed.
PATIENCE_S = 60.0


def whole_rounds(path: Path) -> int:
    with contextlib.suppress(ReportError, FileNotFoundError):
        return len(report.load(path).rounds)
    return 0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A home with one notebook and the parameters, and what makes the command use it."""
    root, notebook = report.root(), publish.strategy_notebook()
    (tmp_path / "data" / "reports").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(notebook, tmp_path / "notebooks")
    (tmp_path / "stopped.yaml").write_text(PARAMETERS)
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "POCLIB_HOME": str(tmp_path), "PYTHONPATH": path}


def command(tmp_path: Path) -> list[str]:
    asked = [str(tmp_path / "stopped.yaml"), "--only", "shared-queue"]
    return [sys.executable, "-m", "poclib", "run", *asked]


@contextlib.contextmanager
def begun(tmp_path: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, as under a terminal; killed with the block."""
    with subprocess.Popen(
        command(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    ) as run:
        try:
            yield run
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)


def waited(run: subprocess.Popen[str], until: Callable[[], object]) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while not until() and run.poll() is None and time.monotonic() < ends_s:
        time.sleep(0.02)
    assert until()


def interrupted(run: subprocess.Popen[str], everyone: list[psutil.Process]) -> None:
    """Ctrl-C, to the whole group as a terminal does: it ends in time and leaves nobody behind."""
    pressed_s = time.monotonic()
    os.killpg(run.pid, signal.SIGINT)
    said, _ = run.communicate(timeout=PATIENCE_S)
    took_s = time.monotonic() - pressed_s
    print(f"Ctrl-C to the end: {took_s:.2f} s")
    assert run.returncode == 130 and "Traceback" not in said, said[-2000:]
    assert "interrupted" in said
    assert not psutil.wait_procs(everyone, timeout=PATIENCE_S)[1]
    assert took_s < 10


def test_ctrl_c_while_the_kernel_starts_ends_the_command_too(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """A kernel that is not there yet heeds no signal, and nobody may wait for it."""
    with begun(tmp_path, environment) as run:
        me = psutil.Process(run.pid)
        waited(run, lambda: me.children(recursive=True))
        interrupted(run, me.children(recursive=True))


def test_ctrl_c_ends_an_engine_that_is_suspended_too(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with begun(tmp_path, environment) as run:
        log = tmp_path / "data" / "runs" / "stopped-shared-queue.jsonl"
        waited(run, lambda: whole_rounds(log))
        everyone = psutil.Process(run.pid).children(recursive=True)
        keepers = [one for one in everyone if one.cmdline()[-1:] == ["poclib.engines.keeper"]]
        engines = [engine for keeper in keepers for engine in keeper.children()]
        assert len(engines) == 2
        for engine in engines:
            engine.suspend()
        interrupted(run, everyone)
    assert (
        len(report.load(tmp_path / "data" / "reports" / "stopped-shared-queue.jsonl").rounds) >= 1
    )


def test_ctrl_c_saves_all_leaves_no_process_and_the_run_can_be_resumed(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    log = tmp_path / "data" / "runs" / "stopped-shared-queue.jsonl"
    with begun(tmp_path, environment) as run:
        waited(run, lambda: whole_rounds(log) >= 2)
        everyone = psutil.Process(run.pid).children(recursive=True)
        assert len(everyone) >= 5  # the kernel, and two engines with their keepers
        interrupted(run, everyone)
    saved = report.load(tmp_path / "data" / "reports" / "stopped-shared-queue.jsonl")
    assert not saved.complete and len(saved.rounds) >= 2
    kept = report.load(log)
    assert [one.index for one in kept.rounds] == [one.index for one in saved.rounds]

    again = subprocess.run(
        [*command(tmp_path), "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        env=environment,
        check=False,
    )
    assert again.returncode == 0, again.stdout[-2000:]
    whole = report.load(tmp_path / "data" / "reports" / "stopped-shared-queue.jsonl")
    assert whole.complete and [one.index for one in whole.rounds] == [*range(6)]
    assert whole.rounds[: len(saved.rounds)] == saved.rounds and len(whole.resumed_ms) == 1
    assert not log.exists()
