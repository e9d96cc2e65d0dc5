"""Ctrl-C on the real command with real engines: it ends, saves, and leaves nobody behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from poclib import journal, report
from poclib.errors import ReportError

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
        return len(journal.read(path).rounds)
    return 0


def test_ctrl_c_while_the_kernel_starts_ends_the_command_too(tmp_path: Path) -> None:
    """A kernel that is not there yet heeds no signal, and nobody may wait for it."""
    root = report.root()
    (tmp_path / "data" / "reports").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(root / "notebooks" / "06_shared_queue.ipynb", tmp_path / "notebooks")
    (tmp_path / "stopped.yaml").write_text(PARAMETERS)
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-m", "poclib.cli", "run", str(tmp_path / "stopped.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "POCLIB_HOME": str(tmp_path), "PYTHONPATH": path},
    ) as run:
        try:
            ends_s = time.monotonic() + PATIENCE_S
            kernels: list[psutil.Process] = []
            while not kernels and run.poll() is None and time.monotonic() < ends_s:
                kernels = psutil.Process(run.pid).children(recursive=True)
                time.sleep(0.02)
            assert kernels
            os.killpg(run.pid, signal.SIGINT)
            said, _ = run.communicate(timeout=PATIENCE_S)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130 and "Traceback" not in said, said[-2000:]
    assert not psutil.wait_procs(kernels, timeout=PATIENCE_S)[1]


def test_ctrl_c_saves_all_leaves_no_process_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    root = report.root()
    (tmp_path / "data" / "reports").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(root / "notebooks" / "06_shared_queue.ipynb", tmp_path / "notebooks")
    (tmp_path / "stopped.yaml").write_text(PARAMETERS)
    log = tmp_path / "data" / "runs" / "stopped-shared-queue.jsonl"
    environment = {
        **os.environ,
        "POCLIB_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "poclib.cli", "run", str(tmp_path / "stopped.yaml")]
    with subprocess.Popen(
        [*command, "--only", "shared-queue"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    ) as run:
        try:
            ends_s = time.monotonic() + PATIENCE_S
            while whole_rounds(log) < 2 and run.poll() is None and time.monotonic() < ends_s:
                time.sleep(0.1)
            assert whole_rounds(log) >= 2
            everyone = psutil.Process(run.pid).children(recursive=True)
            assert len(everyone) >= 5  # the kernel, and two engines with their keepers
            pressed_s = time.monotonic()
            os.killpg(run.pid, signal.SIGINT)  # to the whole group, as a terminal does
            run.wait(PATIENCE_S)
            took_s = time.monotonic() - pressed_s
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
        assert run.stdout is not None
        said = run.stdout.read()
    print(f"Ctrl-C to the end: {took_s:.2f} s")
    assert run.returncode == 130, said[-2000:]
    assert "interrupted" in said and "Traceback" not in said
    assert not psutil.wait_procs(everyone, timeout=PATIENCE_S)[1]
    assert took_s < 10
    saved = report.load(tmp_path / "data" / "reports" / "stopped-shared-queue.json")
    assert not saved.complete and len(saved.rounds) >= 2
    kept = journal.read(log)
    assert [one.index for one in kept.rounds] == [one.index for one in saved.rounds]

    again = subprocess.run(
        [*command, "--only", "shared-queue", "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
        env=environment,
        check=False,
    )
    assert again.returncode == 0, again.stdout[-2000:]
    whole = report.load(tmp_path / "data" / "reports" / "stopped-shared-queue.json")
    assert whole.complete and [one.index for one in whole.rounds] == [*range(6)]
    assert whole.rounds[: len(saved.rounds)] == saved.rounds and len(whole.resumed_ms) == 1
    assert not log.exists()
