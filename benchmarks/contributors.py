"""Simulate the pools of params/simulate/contributors.yaml: what notebook 41 reads.

    python benchmarks/contributors.py               all points (about five minutes on one core)
    python benchmarks/contributors.py churn cost    only those questions; the others stay as saved

Saves data/simulated.json: for each point what was asked, what came of it, and `cpu_s`, the time
of this processor that it took. All but that is the same every time.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from math import exp
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from poclib import cli
from poclib.simulate import Scenario, simulate

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "data" / "simulated.json"
OF_MACHINES = ("count", "up_s", "down_s", "sleeps")


def scenario(base: dict[str, Any], point: dict[str, Any]) -> Scenario:
    """The point as a scenario; its `load` as a rate."""
    kind = {**base["machines"][0], **{k: v for k, v in point.items() if k in OF_MACHINES}}
    own = {k: v for k, v in point.items() if k not in (*OF_MACHINES, "load")}
    asked = Scenario.of({**base, **own, "machines": [kind]}, "contributors.yaml")
    if "load" not in point:
        return asked
    machine = asked.machines[0]
    there = machine.up_s / (machine.up_s + machine.down_s) if machine.up_s else 1.0
    speed = exp(machine.speed_sigma**2 / 2)  # their mean
    alone_ms = machine.alone_ms(asked.output_tokens) / speed + machine.way_ms
    rate = point["load"] * there * machine.count * 1000 / alone_ms
    return msgspec.structs.replace(asked, rate_per_s=rate)


def main() -> None:
    given = cli.read_yaml(ROOT / "params" / "simulate" / "contributors.yaml")
    wanted = sys.argv[1:] or list(given["points"])
    if unknown := set(wanted) - set(given["points"]):
        raise SystemExit(
            f"no question {', '.join(unknown)}; there are {', '.join(given['points'])}"
        )
    saved = json.loads(FILE.read_text("utf-8")) if FILE.exists() else []
    rows = [row for row in saved if row["question"] not in wanted]
    for question in wanted:
        lists = given["points"][question]
        for values in itertools.product(*lists.values()):
            point = dict(zip(lists, values, strict=True))
            asked, begun_s = scenario(given["base"], point), time.process_time()
            found = msgspec.to_builtins(simulate(asked))
            cpu_s = time.process_time() - begun_s
            rate = {"rate_per_s": asked.rate_per_s, "cpu_s": round(cpu_s, 2)}
            rows.append({"question": question, **point, **found, **rate})
            print(json.dumps(rows[-1]), flush=True)
    text = ",\n".join(json.dumps(row) for row in rows)
    FILE.write_text(f"[\n{text}\n]\n", "utf-8")


if __name__ == "__main__":
    main()
