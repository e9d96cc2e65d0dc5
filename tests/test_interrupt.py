"""The real command interrupted, or killed: it ends, what it has is saved, nobody is left behind."""

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
from poclib.showing import notebooks

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
PATIENCE_S = 180.0  # what a slow machine may take


@contextlib.contextmanager
def run(home: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process group of its own, as under a terminal; killed with the block."""
    if not (home / "data").exists():
        (home / "data" / "reports").mkdir(parents=True)
        (home / "notebooks").mkdir()
        shutil.copy(notebooks.strategy_notebook(), home / "notebooks")
        (home / "stopped.yaml").write_text(PARAMETERS)
    asked = ["run", str(home / "stopped.yaml"), "--only", "shared-queue"]
    with subprocess.Popen(
        [sys.executable, "-m", "poclib", *asked, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=report.root(),
        start_new_session=True,
        env={**os.environ, "POCLIB_HOME": str(home)},
        # Whoever started these tests may have had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)


def is_keeper(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it has just ended
        return process.cmdline()[-1:] == ["poclib.engines.keeper"]
    return False


def interrupted(
    running: subprocess.Popen[str], when: Callable[[], object], engines: int | None
) -> None:
    """Ctrl-C, to the whole group as a terminal does: it ends in time and leaves nobody behind.

    So many engines run then (None: as many as it may be), and are suspended: they cannot hear
    that they are to end.
    """
    ends_s = time.monotonic() + PATIENCE_S
    while not when() and running.poll() is None and time.monotonic() < ends_s:
        time.sleep(0.02)
    assert when()
    everyone = psutil.Process(running.pid).children(recursive=True)
    suspended = [engine for each in everyone if is_keeper(each) for engine in each.children()]
    assert engines is None or len(suspended) == engines
    for engine in suspended:
        engine.suspend()
    pressed_s = time.monotonic()
    os.killpg(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=PATIENCE_S)
    took_s = time.monotonic() - pressed_s
    assert running.returncode == 130 and "Traceback" not in output, output[-2000:]
    assert "interrupted" in output and took_s < 10
    assert not psutil.wait_procs(everyone, timeout=PATIENCE_S)[1]


def test_ctrl_c_while_the_engines_start_ends_the_command_too(tmp_path: Path) -> None:
    """With the first process that it starts, before anything is measured."""
    with run(tmp_path) as running:
        interrupted(running, psutil.Process(running.pid).children, engines=None)


def test_ctrl_c_saves_all_leaves_no_process_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    log = tmp_path / "data" / "runs" / "stopped-shared-queue.jsonl"
    path = tmp_path / "data" / "reports" / "stopped-shared-queue.jsonl"

    def measured() -> bool:
        with contextlib.suppress(ReportError, FileNotFoundError):
            return len(report.load(log).rounds) >= 2
        return False

    with run(tmp_path) as running:
        interrupted(running, measured, engines=2)
    saved, kept = report.load(path), report.load(log)
    assert not saved.complete and len(saved.rounds) >= 2
    assert [each.index for each in kept.rounds] == [each.index for each in saved.rounds]

    with run(tmp_path, "--resume") as again:
        output, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, output[-2000:]
    whole = report.load(path)
    assert whole.complete and [each.index for each in whole.rounds] == [*range(6)]
    assert whole.rounds[: len(saved.rounds)] == saved.rounds and len(whole.resumed_ms) == 1
    assert not log.exists()


@pytest.mark.parametrize("words", [["12"], ["2", "--embedded"]], ids=["stubs", "real engines"])
def test_nothing_is_lost_doubled_or_corrupt_however_often_it_is_killed(words: list[str]) -> None:
    """At random moments; benchmarks/kills.py does it 100 times."""
    command = [sys.executable, "benchmarks/kills.py", *words]
    done = subprocess.run(command, cwd=report.root(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{words[0]} kills" in done.stdout and "0 lost, 0 doubled, 0 corrupt" in done.stdout
