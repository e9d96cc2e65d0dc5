"""Progress as it is met in a terminal, under a notebook's cell and in a log file."""

from __future__ import annotations

import os
import pty
import re
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


def test_a_log_gets_a_line_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show, now_s = progress.bar("batched"), 100.0
    monkeypatch.setattr(tqdm.std, "time", lambda: now_s)
    for done in range(1, 41):
        now_s = 100.0 + 2 * done
        show(f"round {1 + (done > 20)} of 2, strategy", done, 40)
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


def test_a_terminal_gets_one_line_that_moves_and_goes() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    # What is written fits into the buffer of the terminal, so nobody need read it meanwhile.
    subprocess.run([sys.executable, "-c", RUN], stderr=theirs, check=True, timeout=60)
    written = os.read(ours, 4096).decode()
    os.close(theirs)
    os.close(ours)
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
