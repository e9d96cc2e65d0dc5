"""One million requests on a fake clock: does the coordinator's memory stay flat?

    python benchmarks/memory.py [REQUESTS] [--trace]

Two fake providers, four requests in flight at each, every row written to a file on disk and
none kept. A tenth of the requests fails and is tried again. Prints resident memory after each
tenth, with --trace (four times slower) also what Python's own objects take; exit code 1 where
memory grows after the first.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from poclib.errors import Unreachable
from poclib.measure.attempt import Policy, Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.strategies import STRATEGIES
from poclib.providers import fake
from poclib.recording import ReportFile
from poclib.records import Exchange, Prompt, Request

# What the allocators may move by, of which a list of rows would be gone after a tenth.
FLAT_MIB = 8.0


class Prompts(Sequence[Prompt]):
    """So many prompts, each made when it is wanted."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return Prompt(index, f"question {index}")


class Forgetful(fake.Provider):
    """Keeps no list of what it was sent; every tenth request fails."""

    sent = 0

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        self.sent += 1
        if self.sent % 10 == 0:
            raise Unreachable("down", self.name)
        await super().send(prompt, exchange)
        self.seen.clear()


def measured(requests: int, strategy: str = "shared-queue") -> list[tuple[int, float, float]]:
    """(requests done, resident MiB, traced MiB) after each tenth."""
    found: list[tuple[int, float, float]] = []
    done = answered = 0
    process = psutil.Process()

    with tempfile.TemporaryDirectory() as folder:
        file = ReportFile(Path(folder) / "memory.jsonl")

        def on_done(request: Request) -> None:
            nonlocal done, answered
            file.write({"request": request})
            answered += request.outcome == "ok"
            done += 1
            if answered % (requests // 10) == 0 and request.outcome == "ok":
                gc.collect()
                traced = tracemalloc.get_traced_memory()[0] / 2**20
                found.append((done, process.memory_info().rss / 2**20, traced))

        async def story(clock: Callable[[], float]) -> None:
            await run_arm(
                "strategy",
                STRATEGIES[strategy],
                Prompts(requests),
                [Forgetful("fast", 100, slots=4), Forgetful("slow", 250, slots=4)],
                {"fast": 4, "slow": 4},
                {"fast": 100.0, "slow": 250.0},
                clock,
                # No breaker: where it is open, prompts would wait for its pause.
                Rules(retries=5, policy=Policy(breaker_failures=0, backoff_s=0.0)),
                on_done,
                keep_rows=False,
            )

        with file.open():
            fake.run(story)
    assert answered == requests, f"{answered} of {requests} answered"
    return found


def growth(found: list[tuple[int, float, float]]) -> tuple[float, float]:
    """MiB between the first tenth, after which all caches are warm, and the most later."""
    return tuple(max(row[i] for row in found[1:]) - found[0][i] for i in (1, 2))  # type: ignore[return-value]


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    begun_s = time.perf_counter()
    tracemalloc.start() if "--trace" in sys.argv else None
    rows = measured(count)
    took_s = time.perf_counter() - begun_s
    told = ", {:.2f} MiB of it Python objects" if "--trace" in sys.argv else ""
    for done, resident, traced in rows:
        print(f"{done:>10,} requests: {resident:7.1f} MiB resident{told.format(traced)}")
    resident, traced = growth(rows)
    print(
        f"{count:,} prompts, {rows[-1][0]:,} requests in {took_s:.0f} s; after the first tenth "
        f"memory grew by {resident:+.1f} MiB{told.format(traced)}."
    )
    sys.exit(resident > FLAT_MIB or traced > FLAT_MIB)
