"""How far a run is: a bar in a terminal or notebook, whole lines in a log file."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

QUIET_S = 10.0  # between two lines of a log
FORMAT = "{n_fmt} of {total_fmt} requests, {remaining} left"


# Told the stage, how many requests are done, and how many are expected.
Progress = Callable[[str, int, int], None]


def quiet(stage: str, done: int, total: int) -> None:
    """Show nothing."""


class Lines(tqdm):  # type: ignore[type-arg]
    """A bar for a log: a line for each state that is shown, and none that is overwritten."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # "" would clear the line
            print(time.strftime("%H:%M:%S"), self, file=self.fp, flush=True)


def bar(title: str) -> Progress:
    """Progress on standard error, or under the cell: round, arm, requests done, time left."""
    shown: Any = None

    def update(stage: str, done: int, total: int) -> None:
        nonlocal shown
        text = f"{title}: {stage}"
        shown = _opened(text, done, total) if shown is None else shown
        shown.total = total
        shown.set_description_str(text, refresh=False)
        shown.update(done - shown.n)
        if done >= total:
            if shown.last_print_n < done:
                shown.refresh()
            shown.close()

    return update


def _opened(text: str, done: int, total: int) -> Any:
    # Arms differ in speed: the mean over all of them (`smoothing`) is steadier.
    given: dict[str, Any] = {"desc": text, "initial": done, "total": total, "smoothing": 0}
    given |= {"bar_format": f"{{desc}} |{{bar}}| {FORMAT}", "mininterval": 0.2, "miniters": 0}
    ipython = sys.modules.get("IPython")
    if getattr(ipython and ipython.get_ipython(), "kernel", None) is not None:
        from tqdm.notebook import tqdm as under_the_cell

        return under_the_cell(**given)
    given |= {"file": sys.stderr, "leave": False}
    log = {"bar_format": f"{{desc}}: {FORMAT}", "mininterval": QUIET_S}
    return tqdm(**given, dynamic_ncols=True) if sys.stderr.isatty() else Lines(**given | log)
