"""What a decision costs, from ten providers to ten thousand, and a pool of thousands at work.

    python benchmarks/decisions.py              every strategy, then 1,000 providers of 4 slots
    python benchmarks/decisions.py decisions    only the first
    python benchmarks/decisions.py 20000        fewer requests

First: microseconds a decision (the strategy's and the pool's bookkeeping of one answer), on a clock
that costs no time. Then 200,000 requests through one coordinator, on a real loop with providers
that only wait: requests a second, the loop's lag, the most in flight at one provider, memory.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poclib.measure.attempt import Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.machine import undisturbed
from poclib.measure.slots import Place, Pool
from poclib.measure.strategies import STRATEGIES, Strategy
from poclib.records import Exchange, Prompt

SIZES = 10, 100, 1000, 10_000
PROVIDERS, SLOTS, REQUESTS = 1000, 4, 200_000


def microseconds(strategy: Strategy, providers: int, answers: int = 3000) -> float:
    """The mean cost of seeing one answer and deciding, in a pool that is at work."""
    draw = random.Random(providers)
    limit = None if strategy.limit == "none" else 1
    places = [Place(f"p{i}", limit, 100 * 20 ** draw.random()) for i in range(providers)]
    pool = Pool(places, answers + providers)
    counter = itertools.count()
    ends: list[tuple[float, int, Place]] = []

    def start(place: Place, key: int) -> None:
        place.running[key] = pool.now_ms
        took_ms = place.expected_ms * draw.lognormvariate(-0.32, 0.8)
        heapq.heappush(ends, (pool.now_ms + took_ms, key, place))

    def decided() -> int:
        count = 0
        while pool.waiting and (place := strategy.decide(pool)):
            pool.waiting -= 1
            count += 1
            if place.free:
                start(place, next(counter))
            else:
                place.queue.append(None)
            pool.touch(place)
        return count

    begun_s = time.perf_counter()
    given = decided()
    first_s = time.perf_counter() - begun_s
    begun_s, seen = time.perf_counter(), 0
    while ends and seen < answers:
        pool.now_ms, key, place = heapq.heappop(ends)
        del place.running[key]
        if place.queue:
            place.queue.popleft()
            start(place, next(counter))
        pool.touch(place)
        decided()
        seen += 1
    later_s = time.perf_counter() - begun_s
    return 1e6 * max(later_s / max(1, seen), first_s / max(1, given))


class AtOnce:
    """Answers when it is told to; `most` is how many it ever held at once."""

    def __init__(self, name: str, took_s: Callable[[], float]) -> None:
        self.name, self.took_s = name, took_s
        self.now = self.most = 0

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        exchange.mark("start")
        try:
            await asyncio.sleep(self.took_s())
        finally:
            self.now -= 1
            exchange.mark("end")


async def thousands(name: str, providers: int, slots: int, requests: int, mean_s: float) -> str:
    draw = random.Random(1)

    def took_s() -> float:
        return mean_s * draw.uniform(0.5, 1.5)

    pool = [AtOnce(f"p{i}", took_s) for i in range(providers)]
    lags: list[float] = []

    async def watch() -> None:
        while True:
            begun_s = time.perf_counter()
            await asyncio.sleep(0.01)
            lags.append(1000 * (time.perf_counter() - begun_s - 0.01))

    def clock() -> float:
        return 1000 * time.perf_counter()

    watching = asyncio.create_task(watch())
    begun_s, cpu_s, done = time.perf_counter(), time.process_time(), 0

    def count(_: object) -> None:
        nonlocal done
        done += 1

    limits = None if STRATEGIES[name].limit == "none" else {p.name: slots for p in pool}
    prompts = [Prompt(i, "x") for i in range(requests)]
    expected = {p.name: 1000 * mean_s for p in pool}
    with undisturbed():
        await run_arm(
            "strategy", STRATEGIES[name], prompts, pool, limits, expected, clock,
            Rules(request_timeout_s=1e6), count, keep_rows=False,
        )  # fmt: skip
    took_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    watching.cancel()
    most = max(p.most for p in pool)
    p99 = statistics.quantiles(lags, n=100)[98] if len(lags) > 1 else 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{name}: {providers:,} providers of {slots}, {requests:,} requests, {done:,} rows: "
        f"{requests / took_s:,.0f}/s, {1e6 * cpu_s / requests:.0f} µs of CPU a request; lag p99 "
        f"{p99:.1f} ms, most {max(lags, default=0):.0f} ms; at most {most} in flight at one; "
        f"peak memory {peak:.0f} MB"
    )


def main(words: list[str]) -> None:
    print(f"{'µs a decision over':20}", *(f"{size:>8,}" for size in SIZES), "   most / least")
    for strategy in STRATEGIES.values():
        cost = [min(microseconds(strategy, size) for _ in range(2)) for size in SIZES]
        told = " ".join(f"{one:8.1f}" for one in cost)
        print(f"{strategy.name:20} {told}   {max(cost) / min(cost):.1f}", flush=True)
    if "decisions" in words:
        return
    requests = next((int(word) for word in words if word.isdecimal()), REQUESTS)
    print(asyncio.run(thousands("shared-queue", 1, 64, 20_000, 0.0)))
    for name in ("shared-queue", "earliest-finish"):
        print(asyncio.run(thousands(name, PROVIDERS, SLOTS, requests, 2.0)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
