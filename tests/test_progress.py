"""Progress as it is met in a terminal, under a notebook's cell and in a log file."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
from typing import Any

import pytest

from poclib import progress
from poclib.measure import experiment

RUN = """
from poclib.measure.experiment import bar
show = bar("shared-queue")
for done in range(1, 11):
    show(f"round {1 + done // 6} of 2, strategy", done, 10)
"""


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_whole_lines_a_stage_each_or_one_in_ten_seconds() -> None:
    clock, file = Clock(), io.StringIO()
    show = progress._in_log("batched", file, clock)
    for done in range(1, 41):
        show(f"round {1 + (done > 20)} of 2, strategy", done, 40)
        clock.now_s += 2
    text = file.getvalue()
    assert "\r" not in text and text.endswith("\n")
    shown = [re.sub(r"^\d\d:\d\d:\d\d batched: ", "", line) for line in text.splitlines()]
    # A pace of 2 s a request: the time left is twice the requests left.
    assert shown == [
        "round 1 of 2, strategy: 1 of 40 requests",
        "round 1 of 2, strategy: 6 of 40 requests, about 1 min 8 s left",
        "round 1 of 2, strategy: 11 of 40 requests, about 58 s left",
        "round 1 of 2, strategy: 16 of 40 requests, about 48 s left",
        "round 2 of 2, strategy: 21 of 40 requests, about 38 s left",
        "round 2 of 2, strategy: 26 of 40 requests, about 28 s left",
        "round 2 of 2, strategy: 31 of 40 requests, about 18 s left",
        "round 2 of 2, strategy: 36 of 40 requests, about 8 s left",
        "round 2 of 2, strategy: 40 of 40 requests, about 0 s left",
    ]


def test_stages_that_fly_past_do_not_flood_a_log() -> None:
    clock, file = Clock(), io.StringIO()
    show = progress._in_log("batched", file, clock)
    for done in range(1, 1001):
        show(f"stage {done}", done, 1000)
        clock.now_s += 0.01
    assert 10 <= len(file.getvalue().splitlines()) <= 12  # ten seconds in all


def test_a_notebook_gets_one_line_that_is_updated_and_stays_short() -> None:
    clock, shown = Clock(), []

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            shown.append(data)

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert raw and display_id and not shown, "one display, then updates of it"
        shown.append(data)
        return Handle()

    show = progress._in_notebook("<batched>", display, clock)
    for done in range(1, 11):
        show("round 1 of 1, baseline", done, 10)
        clock.now_s += 1
    assert len(shown) == 10
    assert shown[4]["text/plain"] == (
        "<batched>: round 1 of 1, baseline: 5 of 10 requests, about 5 s left"
    )
    assert "<progress value='5' max='10'></progress> &lt;batched&gt;" in shown[4]["text/html"]
    assert shown[-1]["text/plain"] == "<batched>: measured 10 requests."


def _on_a_terminal(environment: dict[str, str]) -> bytes:
    """All that a run writes to a pseudo-terminal."""
    import pty
    import termios

    mine, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 90))
    with subprocess.Popen(
        [sys.executable, "-c", RUN], stderr=theirs, env={**os.environ, **environment}
    ) as child:
        os.close(theirs)
        written = b""
        while select.select([mine], [], [], 60)[0]:
            try:
                part = os.read(mine, 4096)
            except OSError:  # Linux says so at the end
                break
            if not part:
                break
            written += part
        os.close(mine)
        assert child.wait(60) == 0
    return written


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_a_terminal_gets_one_line_that_moves_and_goes() -> None:
    written = _on_a_terminal({}).decode()
    assert "\n" not in written.rstrip("\r\n ") and written.count("\r") >= 2
    assert "shared-queue: round 1 of 2, strategy |" in written and "10 requests" in written
    assert written.rpartition("\r")[0].rpartition("\r")[2].strip() == "", "cleared at the end"


def test_without_a_terminal_lines_are_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "" and "\r" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith(
        "round 2 of 2, strategy: 10 of 10 requests, about 0 s left"
    )


def test_a_kernel_believes_what_its_parent_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    def asked() -> Any:
        monkeypatch.setattr(sys, "stderr", io.StringIO())  # a kernel's own is no terminal
        return progress.bar("x").__qualname__.partition(".")[0]

    monkeypatch.setenv("COLUMNS", "77")
    monkeypatch.setattr(sys, "stderr", Screen())
    told = progress.for_a_child()
    assert told == {progress.VARIABLE: "terminal 77"}
    monkeypatch.setenv(progress.VARIABLE, told[progress.VARIABLE])
    assert asked() == "_in_terminal"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    told = progress.for_a_child()
    monkeypatch.setenv(progress.VARIABLE, told[progress.VARIABLE])
    assert asked() == "_in_log"
    assert experiment.bar is progress.bar
