"""How often does the capacity finder name a real engine's behaviour right, not told what it is?

    python benchmarks/capacity.py [TRIES]

Starts the four engines of params/engine-kinds.yaml, then finds every one's capacity TRIES times
(10 unless told otherwise) from what its requests show alone, each time with a calibration of its
own. Prints the behaviour and the capacity of each try and the count right of each kind; exit code
1 where one was wrong. Takes about half a minute a try on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from poclib import cli
from poclib.contention import Found
from poclib.measure.experiment import Run, open_pool
from poclib.parameters import Parameters

ROOT = Path(__file__).resolve().parent.parent
MOST = 8  # in flight: the slots that the largest has, so that a try is short
RIGHT = {
    "batching": "batches",
    "queueing": "queues",
    "bare": "thrashes",
    "refusing": "refuses",
}


def tries(parameters: Parameters, count: int) -> list[dict[str, Found]]:
    """What is found of every provider, `count` times, with the same engines."""
    with open_pool(parameters) as providers:

        async def all_of_them() -> list[dict[str, Found]]:
            found = []
            try:
                for number in range(count):
                    run = Run(parameters, providers)
                    await run.describe()
                    await run.prepare()
                    found.append(await run.capacities(MOST))
                    print(f"try {number + 1}: {_line(found[-1])}", flush=True)
            finally:
                for provider, _ in providers:
                    await provider.aclose()
            return found

        return asyncio.run(all_of_them())


def _line(found: dict[str, Found]) -> str:
    said = []
    for name, one in found.items():
        rates = " ".join(f"{x.in_flight}:{x.tokens_per_s or 0:.1f}" for x in one.levels)
        said.append(f"{name} {one.behaviour}, capacity {one.capacity} ({rates})")
    return "; ".join(said)


def main(words: Sequence[str]) -> int:
    count = int(words[0]) if words else 10
    values = cli.read_yaml(ROOT / "params" / "engine-kinds.yaml")
    found = tries(Parameters.read(values), count)
    wrong = 0
    for name, behaviour in RIGHT.items():
        right = sum(one[name].behaviour == behaviour for one in found)
        wrong += count - right
        print(f"{name}: named '{behaviour}' in {right} of {count}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
