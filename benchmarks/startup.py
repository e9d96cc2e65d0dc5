"""How long a person waits for a command that measures nothing.

    .venv/bin/python benchmarks/startup.py [RUNS]

Starts each command RUNS times (7), and an empty Python as often, in turn. Prints the median of
the seconds of each and its ratio to the empty Python's: seconds tell of a machine at rest only,
the ratio of a busy one, too.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTHING = "python -c pass"
COMMANDS = {
    NOTHING: ["-c", "pass"],
    "poc --help": ["-m", "poclib", "--help"],
    "poc show REPORT": ["-m", "poclib", "show", "sample-batched"],
    "poc gate REPORT": ["-m", "poclib", "gate", "sample-batched"],
    "poc show": ["-m", "poclib", "show"],
}


def seconds(words: list[str]) -> float:
    begin_s = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin_s


def main(runs: int = 7) -> None:
    took: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, words in COMMANDS.items():
            took[name].append(seconds(words))
    nothing_s = statistics.median(took[NOTHING])
    for name, all_s in took.items():
        median_s = statistics.median(all_s)
        print(f"{name:16} {median_s:6.2f} s  {median_s / nothing_s:5.1f} x {NOTHING}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
