"""What the network adds to a streamed request, in round trips: real engines behind emulated links.

    python benchmarks/network.py [--before FOLDER]    FOLDER: another checkout, measured too

An engine (the embedded pool's llama-server, which closes its connection after each stream) answers
prompts one at a time, over links of 20 and 200 ms. What a request spent outside its server is one
round trip where its connection was opened while the answer before it still came, else two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
ROUND_TRIPS_MS = 20, 200
PROMPTS = 16


@dataclass(frozen=True)
class Added:
    """Of the requests over one link: the median outside the server, and what is aimed at."""

    link_ms: float
    round_trip_ms: float  # as probed
    over_ms: float
    connected: int  # how many opened their connection themselves
    requests: int

    @property
    def allowed_ms(self) -> float:
        return 1.1 * self.link_ms + 2


async def added(link_ms: float, sender: Any, clock: Callable[[], float]) -> Added:
    from poclib.measure.attempt import Rules
    from poclib.measure.dispatch import run_arm
    from poclib.measure.strategies import STRATEGIES
    from poclib.records import Prompt

    await sender.describe()
    prompts = [Prompt(index, f"Tell me about the number {index}.") for index in range(PROMPTS)]
    probes = [await sender.probe(clock) for _ in range(3)]
    name, strategy = sender.name, STRATEGIES["shared-queue"]
    arm = await run_arm(
        *("strategy", strategy, prompts, [sender], {name: 1}, {name: 100.0}, clock),
        Rules(retries=0),
    )
    over = [row.over_ms for row in arm.requests if row.over_ms is not None]
    assert len(over) == PROMPTS, [row.error for row in arm.requests]
    opened = sum(row.marks.connected_ms is not None for row in arm.requests)
    await sender.aclose()
    probed_ms = min(probe.wire_ms for probe in probes if probe)
    return Added(link_ms, probed_ms, median(over), opened, PROMPTS)


def work(of: str) -> list[Added]:
    """Over each link in turn, with the code in folder `of`."""
    sys.path.insert(0, of)
    from poclib.measure.experiment import open_pool
    from poclib.parameters import Parameters

    common = {"kind": "embedded", "core": 0, "slots": 1, "api": "completion"}
    links = [{"link": {"round_trip_ms": ms}} for ms in ROUND_TRIPS_MS]
    providers = [{"name": f"link-{n}", **common, **link} for n, link in enumerate(links)]
    asked = {"strategy": "shared-queue", "experiment": "x", "max_tokens": 14}
    parameters = Parameters.read({**asked, "providers": providers})
    anchor_s = time.perf_counter()

    def clock() -> float:
        return (time.perf_counter() - anchor_s) * 1000

    async def all_of_them() -> list[Added]:
        links = zip(ROUND_TRIPS_MS, pool, strict=True)
        return [await added(link_ms, sender, clock) for link_ms, (sender, _) in links]

    with open_pool(parameters) as pool:
        return asyncio.run(all_of_them())


def measure(of: Path = HERE.parents[1]) -> list[Added]:
    """By round trip, in a process of its own."""
    command = [sys.executable, str(HERE), "--work", str(of)]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Added(**each) for each in json.loads(told.stdout)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        print(json.dumps([asdict(each) for each in work(given.work)]))
        return
    folders = {"poclib": HERE.parents[1]} | ({"before": given.before} if given.before else {})
    print("code    link     as probed  outside its server   at most  opened a connection")
    for name, folder in folders.items():
        for each in measure(folder):
            print(
                f"{name:7} {each.link_ms:3.0f} ms {each.round_trip_ms:8.1f} ms "
                f"{each.over_ms:16.1f} ms "
                f"{each.allowed_ms:6.1f} ms  {each.connected} of {each.requests}"
            )


if __name__ == "__main__":
    main()
