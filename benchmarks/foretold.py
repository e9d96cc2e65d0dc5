"""Measure the pools that the simulation has to foretell: what notebook 40 reads.

    python benchmarks/foretold.py                    all that is not there yet (about 15 minutes)
    python benchmarks/foretold.py two-far unequal    only those pools
    python benchmarks/foretold.py two --strategy batched

A report for each pool and strategy in data/reports/foretold (sequential is every one's baseline);
first what the simulator may know beside calibration: one of a single engine with 1, 2, 4, …
requests at once, and for each kind of pool how its engines slow each other on one host. It may be
stopped at any time: what is there is not measured again. Needs two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from poclib import recording, report
from poclib.measure import experiment
from poclib.measure.strategies import STRATEGIES, THROUGH_ROUTER
from poclib.parameters import Parameters
from poclib.simulate.calibrate import CROWD

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "reports" / "foretold"
FAR = {"round_trip_ms": 100}
# Of each pool its engines, beside what all have. More engines than cores take turns, so that none
# is ever in the way of another; each is then as fast as its share of the time.
POOLS: dict[str, list[dict[str, Any]]] = {
    "one": [{}],
    "one-far": [{"link": FAR}],
    "two": [{}, {}],
    "two-far": [{}, {"link": FAR}],
    "unequal": [{}, {"speed": 0.5}],
    "unequal-far": [{}, {"speed": 0.5, "link": FAR}],
    "three": [{"takes_turns": True}] * 3,
    "four-far": [{"takes_turns": True}] * 3 + [{"takes_turns": True, "link": FAR}],
}
ASKED = {"prompts": 8, "max_tokens": 8, "context_tokens": 512, "rounds": 3}
CROWDS = {"two": 16, "unequal": 16}  # with so many prompts
MOST, CAPACITIES = 8, 3  # in flight; of each level the best of so many counts


def asked(pool: str, strategy: str) -> Parameters:
    names = ("first", "second", "third", "fourth")
    turns = len(POOLS[pool]) > 2
    providers = [
        {"name": name, "kind": "embedded", "slots": 4, "api": "completion", "core": i % 2, **own}
        for i, (name, own) in enumerate(zip(names, POOLS[pool], strict=False))
    ]
    known = {"experiment": pool, "strategy": strategy, "providers": providers}
    return Parameters.read({**ASKED, **known, **({"rounds": 2} if turns else {})})


def capacity() -> None:
    wanted = asked("one", "sequential").model_copy(update={"experiment": "curve"})
    with experiment.open_pool(wanted) as providers:
        run = experiment.Run(wanted, providers)
        experiment.on_own_loop(lambda: levels(run))
    recording.save(run.report.model_copy(update={"strategy": "capacity"}), FOLDER)


async def levels(run: experiment.Run) -> None:
    await run.describe()
    await run.prepare()
    for _ in range(CAPACITIES):
        await run.capacities(MOST)
    await run.aclose()


def main() -> None:
    told = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    told.add_argument("pools", nargs="*", metavar="POOL", help=", ".join(POOLS))
    told.add_argument("--strategy", action="append", choices=list(STRATEGIES))
    given = told.parse_args()
    if unknown := set(given.pools) - set(POOLS):
        told.error(f"no pool {', '.join(unknown)}; there are {', '.join(POOLS)}")
    if "curve-capacity" not in report.names(FOLDER):
        capacity()
    others = (THROUGH_ROUTER, "sequential")
    strategies = given.strategy or [name for name in STRATEGIES if name not in others]
    with experiment.SharedEngines() as shared:
        for pool, prompts in CROWDS.items():
            changed = {"experiment": f"{CROWD}{pool}", "prompts": prompts, "rounds": 2}
            wanted = asked(pool, "serial-per-provider").model_copy(update=changed)
            if f"{CROWD}{pool}-serial-per-provider" not in report.names(FOLDER):
                experiment.measure(wanted, folder=FOLDER, running=shared.of(wanted))
        for pool in given.pools or POOLS:
            for strategy in strategies:
                wanted, begun_s = asked(pool, strategy), time.monotonic()
                if f"{pool}-{strategy}" not in report.names(FOLDER):
                    running = shared.of(wanted)
                    experiment.measure(wanted, folder=FOLDER, resume=True, running=running)
                    print(f"{pool} {strategy}: {time.monotonic() - begun_s:.0f} s", flush=True)


if __name__ == "__main__":
    main()
