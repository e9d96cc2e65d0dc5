"""How far a run is, for whoever looks: a terminal, a notebook or a log file. Measures nothing.

A terminal and a notebook get one line that moves; a file gets whole lines, so that a log can
be read afterwards. A kernel that papermill started cannot see the person's terminal: the
process that started it tells through the environment (`for_a_child`).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from html import escape
from typing import Any, Protocol, TextIO

from tqdm import tqdm

# "terminal COLUMNS" or "log": where the standard error of a kernel ends up.
VARIABLE = "POCLIB_PROGRESS"
QUIET_S, STAGE_S = 10.0, 1.0
BAR = "{desc} |{bar}| {n_fmt} of {total_fmt} requests, {remaining} left"
Clock = Callable[[], float]


class Progress(Protocol):
    """Told what is done; `total` requests are expected, `stage` says what is going on."""

    def __call__(self, stage: str, done: int, total: int) -> None: ...


def quiet(stage: str, done: int, total: int) -> None:
    """Show nothing."""


def for_a_child() -> dict[str, str]:
    """The environment by which a kernel learns where its standard error is read."""
    if sys.stderr.isatty():
        return {VARIABLE: f"terminal {shutil.get_terminal_size().columns}"}
    return {VARIABLE: "log"}


def bar(title: str) -> Progress:
    """Progress on standard error, or under the cell: round, arm, requests done, time left."""
    where, _, columns = os.environ.get(VARIABLE, "").partition(" ")
    if where == "terminal":
        return _in_terminal(title, int(columns) if columns.isdigit() else None)
    if where != "log":
        if shown := _displays():
            return _in_notebook(title, shown, time.monotonic)
        if sys.stderr.isatty():
            return _in_terminal(title, None)
    return _in_log(title, sys.stderr, time.monotonic)


def _in_terminal(title: str, columns: int | None) -> Progress:
    bars: list[tqdm[Any]] = []

    def update(stage: str, done: int, total: int) -> None:
        text = f"{title}: {stage}"
        if not bars:  # only once there is something to show
            bars.append(
                tqdm(
                    desc=text,
                    initial=done,
                    total=total,
                    file=sys.stderr,
                    leave=False,
                    mininterval=0.2,
                    smoothing=0,  # arms differ in speed: the mean over all of them is steadier
                    ncols=columns,
                    dynamic_ncols=columns is None,
                    bar_format=BAR,
                )
            )
        bars[0].total = total
        bars[0].set_description_str(text, refresh=False)
        bars[0].update(done - bars[0].n)
        if done >= total:
            bars[0].close()

    return update


def _in_notebook(title: str, display: Any, clock: Clock) -> Progress:
    """One line under the cell, with a bar where HTML is shown; at the end what was done."""
    left = _time_left(clock)
    handles: list[Any] = []
    last_s = float("-inf")

    def update(stage: str, done: int, total: int) -> None:
        nonlocal last_s
        now_s = clock()
        remaining = left(done, total)
        finished = done >= total
        if not finished and now_s - last_s < 0.2:
            return
        last_s = now_s
        text = f"{title}: measured {total:,} requests." if finished else ""
        text = text or _sentence(title, stage, done, total, remaining)
        shown = f"<progress value='{done}' max='{total}'></progress> {escape(text)}"
        data = {"text/plain": text, "text/html": escape(text) if finished else shown}
        if handles:
            handles[0].update(data, raw=True)
        else:
            handles.append(display(data, raw=True, display_id=True))

    return update


def _in_log(title: str, file: TextIO, clock: Clock) -> Progress:
    """Whole lines: one where a stage begins, but not many a second, else one in ten seconds."""
    left = _time_left(clock)
    last_s, last_stage = float("-inf"), ""

    def update(stage: str, done: int, total: int) -> None:
        nonlocal last_s, last_stage
        now_s = clock()
        remaining = left(done, total)
        waited_s = now_s - last_s
        due = waited_s >= (STAGE_S if stage != last_stage else QUIET_S)
        if due or done >= total:
            last_s, last_stage = now_s, stage
            time_of_day = time.strftime("%H:%M:%S")
            said = _sentence(title, stage, done, total, remaining)
            print(f"{time_of_day} {said}", file=file, flush=True)

    return update


def _sentence(title: str, stage: str, done: int, total: int, remaining_s: float | None) -> str:
    said = f"{title}: {stage}: {done:,} of {total:,} requests"
    if remaining_s is None:
        return said
    minutes, seconds = divmod(round(remaining_s), 60)
    return f"{said}, about {f'{minutes} min ' if minutes else ''}{seconds} s left"


def _time_left(clock: Clock) -> Callable[[int, int], float | None]:
    """Seconds that the rest takes at the mean pace since the first call; None until known."""
    first: list[tuple[float, int]] = []

    def left(done: int, total: int) -> float | None:
        if not first:
            first.append((clock(), done))
        since_s, before = first[0]
        return (clock() - since_s) * (total - done) / (done - before) if done > before else None

    return left


def _displays() -> Any:
    """IPython's `display` where this process is a notebook's kernel, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not getattr(shell, "kernel", None):
        return None
    from IPython.display import display

    return display
