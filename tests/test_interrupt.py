"""Ctrl-C on the real command with real engines: it ends, saves, and leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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
# What a slow machine may take; the figure that was measured is printed.
PATIENCE_S = 60.0


def run(home: Path, *words: str) -> subprocess.Popen[str]:
    """The command in a process group of its own, as under a terminal, with a home of its own."""
    if not (home / "data").exists():
        (home / "data" / "reports").mkdir(parents=True)
        (home / "notebooks").mkdir()
        shutil.copy(notebooks.strategy_notebook(), home / "notebooks")
        (home / "stopped.yaml").write_text(PARAMETERS)
    asked = ["run", str(home / "stopped.yaml"), "--only", "shared-queue"]
    return subprocess.Popen(
        [sys.executable, "-m", "poclib", *asked, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=report.root(),
        start_new_session=True,
        env={**os.environ, "POCLIB_HOME": str(home)},
        # Whoever started these tests may have had it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupted(
    running: subprocess.Popen[str],
    when: Callable[[], object],
    before: Callable[[list[psutil.Process]], None] = len,
) -> None:
    """Ctrl-C, to the whole group as a terminal does: it ends in time and leaves nobody behind.

    `before` gets every process that the command has started, just before that.
    """
    try:
        ends_s = time.monotonic() + PATIENCE_S
        while not when() and running.poll() is None and time.monotonic() < ends_s:
            time.sleep(0.02)
        assert when()
        everyone = psutil.Process(running.pid).children(recursive=True)
        before(everyone)
        pressed_s = time.monotonic()
        os.killpg(running.pid, signal.SIGINT)
        output, _ = running.communicate(timeout=PATIENCE_S)
        took_s = time.monotonic() - pressed_s
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    print(f"Ctrl-C to the end: {took_s:.2f} s")
    assert running.returncode == 130 and "Traceback" not in output, output[-2000:]
    assert "interrupted" in output and took_s < 10
    assert not psutil.wait_procs(everyone, timeout=PATIENCE_S)[1]


def test_ctrl_c_while_the_kernel_starts_ends_the_command_too(tmp_path: Path) -> None:
    """A kernel that is not there yet heeds no signal, and nobody may wait for it."""
    running = run(tmp_path)
    interrupted(running, psutil.Process(running.pid).children)


def test_ctrl_c_saves_all_leaves_no_process_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    log = tmp_path / "data" / "runs" / "stopped-shared-queue.jsonl"
    path = tmp_path / "data" / "reports" / "stopped-shared-queue.jsonl"

    def measured() -> bool:
        with contextlib.suppress(ReportError, FileNotFoundError):
            return len(report.load(log).rounds) >= 2
        return False

    def suspend_engines(everyone: list[psutil.Process]) -> None:
        keepers = [p for p in everyone if p.cmdline()[-1:] == ["poclib.engines.keeper"]]
        engines = [engine for keeper in keepers for engine in keeper.children()]
        assert len(engines) == 2
        for engine in engines:
            engine.suspend()

    interrupted(run(tmp_path), measured, suspend_engines)
    saved, kept = report.load(path), report.load(log)
    assert not saved.complete and len(saved.rounds) >= 2
    assert [each.index for each in kept.rounds] == [each.index for each in saved.rounds]

    again = run(tmp_path, "--resume")
    output, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, output[-2000:]
    whole = report.load(path)
    assert whole.complete and [each.index for each in whole.rounds] == [*range(6)]
    assert whole.rounds[: len(saved.rounds)] == saved.rounds and len(whole.resumed_ms) == 1
    assert not log.exists()
