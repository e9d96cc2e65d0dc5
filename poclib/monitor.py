"""Watches the coordinator and its machine while a run goes on. Knows no provider and no prompt.

A thread asks the event loop again and again to note the time: how late it does so is how late
an answer would have been noticed. Beside that it reads what else the machine did, and whether
its clock was set. One thread, 20 short questions a second; what it keeps is bounded however
long a run is.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from .records import Lags, Moment

ASK_EVERY_S = 0.05
LOOK_EVERY_S = 2.0
# More samples than these are thinned by half, the larger lag of two kept.
MOST_LAGS, MOST_MOMENTS = 10_000, 2_000
_CORES = Path("/sys/devices/system/cpu")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the garbage collector away from what is there already, while the block runs.

    A full collection walks over every object: in a process that has loaded what notebooks and
    the command line load it stops everything for over 100 ms, in the middle of a request.
    """
    if gc.get_freeze_count():
        yield  # an outer block does
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Monitor:
    """What was seen so far: `lags` of the loop, `moments` of the machine.

    `clock` gives milliseconds since the report's anchor, from any thread.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.moments: list[Moment] = []
        self._clock = clock
        self._lags: list[tuple[float, float]] = []
        self._ask_every_s, self._look_every_s = ASK_EVERY_S, LOOK_EVERY_S
        self._stop = threading.Event()
        self._answered = threading.Event()
        self._wall_ahead_s = time.time() - time.perf_counter()
        self._process = psutil.Process()
        self._seen = self._counters()

    @property
    def lags(self) -> Lags:
        return Lags(at_ms=[at for at, _ in self._lags], lag_ms=[lag for _, lag in self._lags])

    @contextlib.contextmanager
    def watching(self, loop: asyncio.AbstractEventLoop) -> Iterator[Monitor]:
        """Watch `loop` and the machine for as long as the block runs."""
        thread = threading.Thread(target=self._watch, args=(loop,), name="poclib-monitor")
        thread.daemon = True
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Note what the machine did since the last look."""
        before, now = self._seen, self._counters()
        self._seen = now
        spent_s = max(1e-9, now["all"] - before["all"])
        busy, own = now["busy"] - before["busy"], now["own"] - before["own"]
        self.moments.append(
            Moment(
                at_ms=max(0.0, self._clock()),
                others=_share((busy - own) / spent_s),
                own=_share(own / spent_s),
                steal=_share((now["steal"] - before["steal"]) / spent_s),
                load_1min=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
                throttled=_throttled(),
                wall_ahead_ms=1000 * (time.time() - time.perf_counter() - self._wall_ahead_s),
            )
        )
        if len(self.moments) > MOST_MOMENTS:
            del self.moments[1::2]
            self._look_every_s *= 2

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        look_at_s = time.perf_counter()
        while not self._stop.wait(self._ask_every_s):
            self._answered.clear()
            try:
                loop.call_soon_threadsafe(self._note, self._clock())
            except RuntimeError:  # the loop is closed
                return
            while not self._answered.wait(0.5):
                if self._stop.is_set():
                    return
            if time.perf_counter() >= look_at_s:
                self.look()
                look_at_s = time.perf_counter() + self._look_every_s

    def _note(self, asked_ms: float) -> None:
        """Called by the loop itself."""
        self._lags.append((max(0.0, asked_ms), max(0.0, self._clock() - asked_ms)))
        self._answered.set()
        if len(self._lags) > MOST_LAGS:
            pairs = zip(self._lags[::2], self._lags[1::2], strict=False)
            self._lags = [max(pair, key=lambda one: one[1]) for pair in pairs]
            self._ask_every_s *= 2

    def _counters(self) -> dict[str, float]:
        """Seconds of processor time so far: of all cores, not idle, stolen, and our own."""
        times = psutil.cpu_times()
        steal = getattr(times, "steal", 0.0)
        # Time of guests is in `user`, too; time that was stolen nobody here spent.
        counted = [
            value for name, value in times._asdict().items() if name not in ("guest", "guest_nice")
        ]
        idle = times.idle + getattr(times, "iowait", 0.0)
        own = 0.0
        with contextlib.suppress(psutil.Error):
            for process in [self._process, *self._process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    used = process.cpu_times()
                    own += used.user + used.system
        whole = sum(counted)
        return {"all": whole, "busy": whole - idle - steal, "steal": steal, "own": own}


def _share(value: float) -> float:
    """Between 0 and 1: the counters step in hundredths of a second, each at its own time."""
    return round(min(1.0, max(0.0, value)), 4)


def _throttled() -> int | None:
    """How often the cores were slowed for heat so far; None where the system does not say."""
    counts = []
    for path in _CORES.glob("cpu*/thermal_throttle/core_throttle_count"):
        with contextlib.suppress(OSError, ValueError):
            counts.append(int(path.read_text()))
    return sum(counts) if counts else None


def environment() -> dict[str, Any]:
    """What the coordinator ran on: no host name, user or path."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "own_cores": _own_cores(),
        "memory_gib": round(memory_gib, 1),
        "load_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _own_cores() -> list[int] | None:
    """The cores that the coordinator may run on, where the system says."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
