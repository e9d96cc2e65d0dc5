"""What this machine does while a run goes on: the coordinator's own, and the engines' processes.

Knows processes by their number; no provider's server and no prompt. Judges nothing. Imports
`records`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from ..records import EngineUse, Lags, Moment

ASK_EVERY_S = 0.05
LOOK_EVERY_S = 2.0
# More samples than these are thinned by half, the larger lag of two kept.
MOST_LAGS, MOST_MOMENTS = 10_000, 2_000
# Beginning and end count; in between only threads come and go, and reading them costs time.
SAMPLE_EVERY_S = 1.0
_CORES = Path("/sys/devices/system/cpu")


def environment() -> dict[str, object]:
    """What the coordinator ran on: no host name, user or path."""
    return {
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "own_cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_1min": _load_1min(),
    }


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
    """What was seen so far: `lags` of the event loop, `moments` of the machine.

    A thread asks the loop again and again to note the time: how late it does so is how late an
    answer would have been noticed. Beside that it reads what else the machine did, and whether
    its clock was set. 20 short questions a second; what is kept is bounded however long a run
    is. `clock` gives milliseconds since the report's anchor, from any thread.
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
        self._before = self._counters()

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
        before, now = self._before, self._counters()
        self._before = now
        spent = {key: now[key] - before[key] for key in now}

        def share(seconds: float) -> float:
            """Between 0 and 1: the counters step in hundredths of a second, each by itself."""
            return round(min(1.0, max(0.0, seconds / max(1e-9, spent["all"]))), 4)

        self.moments.append(
            Moment(
                at_ms=max(0.0, self._clock()),
                others=share(spent["busy"] - spent["own"]),
                own=share(spent["own"]),
                steal=share(spent["steal"]),
                load_1min=_load_1min(),
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
        with suppress(psutil.Error):
            for process in [self._process, *self._process.children(recursive=True)]:
                with suppress(psutil.Error):
                    own_s += sum(process.cpu_times()[:2])
        return {"all": every_s, "busy": busy_s, "steal": steal_s, "own": own_s}


class EngineSampler:
    """Watches engines' processes while its block runs; then `used` has a row for each provider.

    `pids` maps a provider to its processes; one without any, as a person's own server, has no row.
    """

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self.used: list[EngineUse] = []
        self._engines = {name: _Engine(own) for name, own in pids.items() if own}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="poclib-usage", daemon=True)

    def __enter__(self) -> EngineSampler:
        for engine in self._engines.values():
            engine.begin()
        if self._engines:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._engines:
            self._thread.join()
        self.used = [engine.end(name) for name, engine in self._engines.items()]

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_EVERY_S):
            for engine in self._engines.values():
                engine.look()


class _Engine:
    """The processes of one provider. What was last seen of a thread that ended counts."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        self.threads = 0
        self.cpu_s: dict[int, float] = {}
        self.switches: dict[int, tuple[int, int]] = {}

    def begin(self) -> None:
        self.look()
        self.begun_s, self.before = time.monotonic(), self._sums()
        self.threads = 0

    def look(self) -> None:
        threads = 0
        for process in self.processes:
            with suppress(psutil.Error):
                self.cpu_s[process.pid] = sum(process.cpu_times()[:2])
                # Linux counts switches by thread; what it gives for a process is its first one.
                own = [each.id for each in process.threads()]
                threads += len(own)
                for thread in own if sys.platform == "linux" else [process.pid]:
                    with suppress(psutil.Error):
                        counted = psutil.Process(thread).num_ctx_switches()
                        self.switches[thread] = (counted.voluntary, counted.involuntary)
        self.threads = max(self.threads, threads)

    def end(self, name: str) -> EngineUse:
        self.look()
        wall_s = time.monotonic() - self.begun_s
        cpu_s, *switches = (now - old for now, old in zip(self._sums(), self.before, strict=True))
        voluntary, involuntary = map(int, switches) if self.switches else (None, None)
        return EngineUse(
            provider=name,
            wall_ms=wall_s * 1000,
            cpu_ms=max(0.0, cpu_s) * 1000,
            processes=len(self.processes),
            threads=self.threads,
            cores=self._cores(),
            voluntary_switches=voluntary,
            involuntary_switches=involuntary,
        )

    def _sums(self) -> tuple[float, float, float]:
        """Processor seconds, and switches that were voluntary and that were not, so far."""
        counts = self.switches.values()
        return sum(self.cpu_s.values()), sum(v for v, _ in counts), sum(i for _, i in counts)

    def _cores(self) -> int | None:
        """On how many cores they may run; None where the system does not tell."""
        allowed: set[int] = set()
        for process in self.processes:
            with suppress(psutil.Error, AttributeError):
                allowed |= set(process.cpu_affinity())
        return len(allowed) or None


def _load_1min() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _throttled() -> int | None:
    """How often the cores were slowed for heat so far; None where the system does not say."""
    counts = []
    for path in _CORES.glob("cpu*/thermal_throttle/core_throttle_count"):
        with suppress(OSError, ValueError):
            counts.append(int(path.read_text()))
    return sum(counts) if counts else None
