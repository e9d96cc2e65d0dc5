"""How far a run is: a bar in a terminal or notebook, whole lines in a log file. Measures nothing.

A kernel that papermill started cannot see the person's terminal: the process that started it tells
through the environment (`for_a_child`).
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import Any, Protocol

from tqdm import tqdm

# "terminal COLUMNS" or "log": where the standard error of a kernel ends up.
VARIABLE = "POCLIB_PROGRESS"
QUIET_S = 10.0  # between two lines of a log
FORMAT = "{n_fmt} of {total_fmt} requests, {remaining} left"


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


class Lines(tqdm):  # type: ignore[type-arg]
    """A bar for a log: a line for each state that is shown, and none that is overwritten."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # "" would clear the line
            print(time.strftime("%H:%M:%S"), self, file=self.fp, flush=True)


def bar(title: str) -> Progress:
    """Progress on standard error, or under the cell: round, arm, requests done, time left."""
    shown: tqdm[Any] | None = None

    def update(stage: str, done: int, total: int) -> None:
        nonlocal shown
        text = f"{title}: {stage}"
        if shown is None:  # only once there is something to show
            shown = _opened(text, done, total)
        shown.total = total
        shown.set_description_str(text, refresh=False)
        shown.update(done - shown.n)
        if done >= total:
            if shown.last_print_n < done:
                shown.refresh()
            shown.close()

    return update


def _opened(text: str, done: int, total: int) -> tqdm[Any]:
    where, _, columns = os.environ.get(VARIABLE, "").partition(" ")
    # Arms differ in speed: the mean over all of them (`smoothing`) is steadier.
    given: dict[str, Any] = {"desc": text, "initial": done, "total": total, "smoothing": 0}
    given |= {"bar_format": f"{{desc}} |{{bar}}| {FORMAT}", "mininterval": 0.2, "miniters": 0}
    if not where and _in_a_notebook():
        from tqdm.notebook import tqdm as under_the_cell

        return under_the_cell(**given)
    given |= {"file": sys.stderr, "leave": False}
    if where == "terminal":
        return tqdm(**given, ncols=int(columns))
    if not where and sys.stderr.isatty():
        return tqdm(**given, dynamic_ncols=True)
    return Lines(**given | {"bar_format": f"{{desc}}: {FORMAT}", "mininterval": QUIET_S})


def _in_a_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return getattr(ipython and ipython.get_ipython(), "kernel", None) is not None
