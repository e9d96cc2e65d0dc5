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
rounds: 200
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


def test_ctrl_c_saves_the_report_stops_the_engines_and_leaves_no_process(tmp_path: Path) -> None:
    root = report.root()
    for folder in ("notebooks", "data/reports"):
        shutil.copytree(root / folder, tmp_path / folder)
    (tmp_path / "stopped.yaml").write_text(PARAMETERS)
    log = tmp_path / "data" / "runs" / "stopped-shared-queue.jsonl"
    command = [sys.executable, "-m", "poclib.cli", "run", str(tmp_path / "stopped.yaml")]
    with subprocess.Popen(
        [*command, "--only", "shared-queue"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "POCLIB_HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        },
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
