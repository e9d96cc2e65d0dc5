"""What this machine does while a run goes on: the coordinator's own, and the engines' processes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from ..records import EngineUse, Lags, Moment

ASK_EVERY_S, LOOK_EVERY_S = 0.05, 2.0
# More samples than these are thinned by half, the larger lag of two kept.
MOST_LAGS, MOST_MOMENTS = 10_000, 2_000
_CORES = Path("/sys/devices/system/cpu")


def environment() -> dict[str, object]:
    """What the coordinator ran on: no host name, user or path."""
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep the garbage collector away from what is there already, while the block runs.

    A full collection walks over every object: in a notebook's process it stops everything for
    over 100 ms, in the middle of a request. One block within another ends both.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Monitor:
    """What was seen so far: lags of the event loop, `moments` of the machine.

    A thread asks the loop 20 times a second to note the time: how late it does so is how late an
    answer would have been noticed. `clock` gives milliseconds since the report's anchor.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.moments: list[Moment] = []
        self._clock = clock
        self._lags: list[tuple[float, float]] = []
        self._ask_every_s, self._look_every_s = ASK_EVERY_S, LOOK_EVERY_S
        self._stop, self._answered = threading.Event(), threading.Event()
        self._process = psutil.Process()
        self._before = self._counters()

    @property
    def lags(self) -> Lags:
        return Lags(at_ms=[at for at, _ in self._lags], lag_ms=[lag for _, lag in self._lags])

    @contextlib.contextmanager
    def watching(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Watch `loop` and the machine for as long as the block runs."""
        thread = threading.Thread(target=self._watch, args=(loop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.look()

    def look(self) -> None:
        """Note what the machine did since the last look."""
        before, self._before = self._before, self._counters()
        spent = {key: now_s - before[key] for key, now_s in self._before.items()}
        spent["others"] = spent["busy"] - spent["own"]
        # Between 0 and 1: the counters step in hundredths of a second, each by itself.
        shares = {
            key: round(min(1.0, max(0.0, spent[key] / max(1e-9, spent["all"]))), 4)
            for key in ("others", "own", "steal")
        }
        at_ms = max(0.0, self._clock())
        self.moments.append(Moment(at_ms=at_ms, throttled=_throttled(), **shares))
        if len(self.moments) > MOST_MOMENTS:
            del self.moments[1::2]
            self._look_every_s *= 2

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        look_at_s = time.perf_counter()
        while not self._stop.wait(self._ask_every_s):
            self._answered.clear()
            with suppress(RuntimeError):  # the loop is closed: the block is about to end
                loop.call_soon_threadsafe(self._note, self._clock())
            while not self._answered.wait(0.5) and not self._stop.is_set():
                pass
            if time.perf_counter() >= look_at_s:
                self.look()
                look_at_s = time.perf_counter() + self._look_every_s

    def _note(self, asked_ms: float) -> None:
        """Called by the loop itself."""
        self._lags.append((max(0.0, asked_ms), max(0.0, self._clock() - asked_ms)))
        self._answered.set()
        if len(self._lags) > MOST_LAGS:
            pairs = zip(self._lags[::2], self._lags[1::2], strict=False)
            self._lags = [max(pair, key=lambda sample: sample[1]) for pair in pairs]
            self._ask_every_s *= 2

    def _counters(self) -> dict[str, float]:
        """Seconds of processor time so far: of all cores, not idle, stolen, and our own."""
        times = psutil.cpu_times()._asdict()
        # Time of guests is in `user`, too; time that was stolen nobody here spent.
        every_s = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
        steal_s = times.get("steal", 0.0)
        busy_s = every_s - times["idle"] - times.get("iowait", 0.0) - steal_s
        own_s = 0.0
        for process in [self._process, *self._process.children(recursive=True)]:
            with suppress(psutil.Error):
                own_s += sum(process.cpu_times()[:2])
        return {"all": every_s, "busy": busy_s, "steal": steal_s, "own": own_s}


class EngineSampler:
    """What engines' processes use while its block runs; then `used` has a row for each provider.

    `pids` maps a provider to its processes; one without any, as a person's own server, has no row.
    """

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self.used: list[EngineUse] = []
        self._engines = {
            name: [psutil.Process(pid) for pid in own if psutil.pid_exists(pid)]
            for name, own in pids.items()
            if own
        }

    def __enter__(self) -> EngineSampler:
        self._before = {name: _used(engine) for name, engine in self._engines.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for name, before in self._before.items():
            used = _used(self._engines[name])
            for key in ("wall_ms", "cpu_ms", "involuntary_switches"):
                if used[key] is not None:
                    used[key] = max(0, used[key] - (before[key] or 0))
            self.used.append(EngineUse(provider=name, **used))


def _used(processes: Sequence[psutil.Process]) -> dict[str, Any]:
    """What these processes have used until now, by a clock that began some time ago."""
    cpu_s, switches, cores = 0.0, list[int](), set[int]()
    for process in processes:
        with suppress(psutil.Error, AttributeError):  # not every system tells all of it
            cpu_s += sum(process.cpu_times()[:2])
            # Linux counts switches by thread; what it gives for a process is its first one.
            for thread in process.threads():
                switches.append(psutil.Process(thread.id).num_ctx_switches().involuntary)
            cores |= set(process.cpu_affinity())
    counts = {"processes": len(processes), "threads": len(switches), "cores": len(cores) or None}
    times_ms = {"wall_ms": 1000 * time.monotonic(), "cpu_ms": 1000 * cpu_s}
    return counts | times_ms | {"involuntary_switches": sum(switches) if switches else None}


def _throttled() -> int | None:
    """How often the cores were slowed for heat so far; None where the system does not say."""
    counts = []
    for path in _CORES.glob("cpu*/thermal_throttle/core_throttle_count"):
        with suppress(OSError, ValueError):
            counts.append(int(path.read_text()))
    return sum(counts) if counts else None
