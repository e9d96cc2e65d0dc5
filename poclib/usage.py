"""Samples what engines' processes use of this machine while an arm runs. Judges nothing.

Knows processes by their number only; neither providers' servers nor what an arm is for. Imports
`records`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from .records import EngineUse

# Beginning and end count; in between only threads come and go, and reading them costs time.
EVERY_S = 1.0


class Sampler:
    """Watches processes for as long as its block runs; afterwards `used` has one row a provider.

    `pids` maps a provider to its processes; one without any, as a person's own server, has no row.
    """

    def __init__(self, pids: Mapping[str, Sequence[int]]) -> None:
        self.used: list[EngineUse] = []
        self._watched = {name: _Watched(own) for name, own in pids.items() if own}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="poclib-usage", daemon=True)

    def __enter__(self) -> Sampler:
        for watched in self._watched.values():
            watched.begin()
        if self._watched:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._watched:
            self._thread.join()
        self.used = [watched.end(name) for name, watched in self._watched.items()]

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            for watched in self._watched.values():
                watched.look()


class _Watched:
    """The processes of one provider."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
        self.threads = 0
        self.cpu_s: dict[int, float] = {}  # last seen, so that what ended meanwhile counts
        self.switches: dict[int, tuple[int, int]] = {}

    def begin(self) -> None:
        self.look()
        self.begun_s, self.cpu_before_s = time.monotonic(), sum(self.cpu_s.values())
        self.before = dict(self.switches)
        self.threads = 0

    def look(self) -> None:
        threads = 0
        for process in self.processes:
            with suppress(psutil.Error):
                spent: Any = process.cpu_times()
                self.cpu_s[process.pid] = spent.user + spent.system
                # Linux counts switches by thread; what it gives for a process is its first one.
                mine = [each.id for each in process.threads()]
                threads += len(mine)
                for thread in mine if sys.platform == "linux" else [process.pid]:
                    with suppress(psutil.Error):
                        counted = psutil.Process(thread).num_ctx_switches()
                        self.switches[thread] = (counted.voluntary, counted.involuntary)
        self.threads = max(self.threads, threads)

    def end(self, name: str) -> EngineUse:
        self.look()
        wall_s = time.monotonic() - self.begun_s
        new = [
            [now - then for now, then in zip(counts, self.before.get(thread, (0, 0)), strict=True)]
            for thread, counts in self.switches.items()
        ]
        return EngineUse(
            provider=name,
            wall_ms=wall_s * 1000,
            cpu_ms=max(0.0, sum(self.cpu_s.values()) - self.cpu_before_s) * 1000,
            processes=len(self.processes),
            threads=self.threads,
            cores=self._cores(),
            voluntary_switches=sum(one[0] for one in new) if new else None,
            involuntary_switches=sum(one[1] for one in new) if new else None,
        )

    def _cores(self) -> int | None:
        """On how many cores they may run; None where the system does not tell."""
        allowed: set[int] = set()
        for process in self.processes:
            with suppress(psutil.Error, AttributeError):
                allowed |= set(process.cpu_affinity())
        return len(allowed) or None
