"""Progress as it is met in a terminal, under a notebook's cell and in a log file."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
from types import SimpleNamespace

import pytest
import tqdm.notebook
import tqdm.std

from poclib import progress

RUN = """
from poclib.progress import bar
show = bar("shared-queue")
for done in range(1, 11):
    show(f"round {1 + done // 6} of 2, strategy", done, 10)
"""


class Clock:
    """Seconds that pass only when told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that bars go by, where standard error is read as a log."""
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


def test_a_log_gets_a_whole_line_in_ten_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    show = progress.bar("batched")
    for done in range(1, 41):
        show(f"round {1 + (done > 20)} of 2, strategy", done, 40)
        clock.now_s += 2
    text = capsys.readouterr().err
    assert "\r" not in text and text.endswith("\n")
    lines = [re.sub(r"^\d\d:\d\d:\d\d batched: ", "", line) for line in text.splitlines()]
    # A pace of 2 s a request: the time left is twice the requests left.
    done = (1, 6, 11, 16, 21, 26, 31, 36, 40)
    left = ("?", "01:08", "00:58", "00:48", "00:38", "00:28", "00:18", "00:08", "00:00")
    assert lines == [
        f"round {1 + (count > 20)} of 2, strategy: {count} of 40 requests, {time} left"
        for count, time in zip(done, left, strict=True)
    ]


def test_a_notebook_gets_a_bar_under_its_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    shell = SimpleNamespace(kernel=True)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr("tqdm.notebook.display", shown.append)
    show = progress.bar("<batched>")
    for done in range(1, 11):
        show("round 1 of 1, baseline", done, 10)
    (box,) = shown
    text, _, numbers = (part.value for part in box.children)  # type: ignore[attr-defined]
    assert text.split() == ["&lt;batched&gt;:", "round", "1", "of", "1,", "baseline"]
    assert " ".join(numbers.split()) == "10 of 10 requests, 00:00 left"


def _on_a_terminal() -> bytes:
    """All that a run writes to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    written = b""
    command = [sys.executable, "-c", RUN]
    with subprocess.Popen(command, stderr=theirs) as child:
        os.close(theirs)
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 4096)
            except OSError:  # Linux says so at the end
                break
            if not part:
                break
            written += part
        os.close(ours)
        assert child.wait(60) == 0
    return written


def test_a_terminal_gets_one_line_that_moves_and_goes() -> None:
    written = _on_a_terminal().decode()
    assert "\n" not in written.rstrip("\r\n ") and written.count("\r") >= 2
    assert "shared-queue: round 1 of 2, strategy |" in written and "10 requests" in written
    assert written.rpartition("\r")[0].rpartition("\r")[2].strip() == "", "cleared at the end"
    assert max(map(len, written.split("\r"))) <= 90


def test_without_a_terminal_lines_are_written() -> None:
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "" and "\r" not in done.stderr
    last = "round 2 of 2, strategy: 10 of 10 requests, 00:00 left"
    assert done.stderr.splitlines()[-1].endswith(last)
