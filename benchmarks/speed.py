"""Every target of speed, what it is today, and what others and the machine itself reach.

    python benchmarks/speed.py [--only PART] [--folder FOLDER] [--env TOOL=FOLDER]

Prints one table as Markdown and writes nothing. Each part runs in a process of its own; for figures
to be told, on a machine at rest. `--folder` and `--env` are those of `peers.py`, which is measured
where one is given; else its saved figures are read. A part that cannot be measured says why.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

# What, the figure, its unit, what it is to be at least or at most, the peer's and the limit's.
Row = tuple[str, float, str, str, str, str]
ROUND_TRIPS_MS = (20, 200)


def row(what: str, figure: float, unit: str, aim: str, peer: str = "", limit: str = "") -> Row:
    return what, figure, unit, aim, peer, limit


@contextmanager
def home() -> Iterator[Path]:
    """A project's folder of its own, so that nothing here is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("notebooks", "params", "data"):
            runs = shutil.ignore_patterns("runs")
            shutil.copytree(ROOT / name, Path(folder) / name, ignore=runs)
        os.environ["POCLIB_HOME"] = folder
        yield Path(folder)


def coordinator() -> Iterator[Row]:
    """One core, against a server that answers at once."""
    import coordinator as bench

    found = bench.measure()
    rate, raw = found["poclib"][64].per_s, found["raw"][64].per_s
    yield row("64 in flight, one core", rate, "requests/s", ">= 5000", limit=f"{raw:,.0f} raw")
    above_ms = found["poclib"][1].wall_ms - found["raw"][1].wall_ms
    yield row("alone, above a raw socket", above_ms, "ms", "<= 0.25", limit="0 raw")


def peers(told: Sequence[str] = ()) -> Iterator[Row]:
    """Beside other clients."""
    import peers as bench

    if told:
        command = [sys.executable, bench.__file__, "--json", "--repeats", "3", *told]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows, when = json.loads(ran.stdout)["rows"], ""
    else:
        saved = json.loads(bench.FILE.read_text())
        rows, when = saved["rows"], f" (saved {saved['created'][:10]})"
    many = [one for one in rows if one["in_flight"] == 64]

    def middle(tool: str, key: str) -> float:
        return median(one[key] for one in many if one["tool"] == tool)

    rates = {one["tool"]: middle(one["tool"], "requests_per_s") for one in many}
    others = ", ".join(
        f"{rate:,.0f} {tool}"
        for tool, rate in rates.items()
        if tool not in ("poclib", "raw socket")
    )
    times = rates["poclib"] / rates["vllm bench serve"]
    raw = f"{rates['raw socket']:,.0f} raw"
    yield row(f"64 in flight over `vllm bench serve`{when}", times, "times", ">= 2", others, raw)
    said = ", ".join(f"{middle(tool, 'said_ttft_ms'):.3g} {tool}" for tool in rates)
    true_ms = f"{middle('poclib', 'true_ttft_ms'):.2f} true"
    yield row(
        f"says to first token{when}", middle("poclib", "said_ttft_ms"), "ms", "", said, true_ms
    )


def schedule() -> Iterator[Row]:
    """Against the best list schedule that knows every length."""
    import schedule as bench

    unknown = {32: 0.72, 128: 0.90, 512: 0.96}
    cases: list[tuple[str, Any, float, float, dict[int, float | None]]] = [
        ("16 machines, lengths unknown", None, bench.SIGMA, 0.0, dict(unknown)),
        ("16 machines, half known", None, bench.SIGMA, 0.7, dict(unknown)),
        ("16 machines, equal lengths", None, 0.0, 0.0, dict.fromkeys(unknown, 0.99)),
        ("two machines, 1 : 0.6", [1, 0.6], bench.SIGMA, 0.0, {8: 0.94, 32: 0.98}),
        ("two machines, 1 : 0.25", [1, 0.25], bench.SIGMA, 0.0, {8: 0.94, 32: 0.98}),
    ]
    for what, speeds, sigma, known, aims in cases:
        for count, aim in aims.items():
            share, waste = bench.share_of_best("earliest-finish", count, speeds, sigma, known, 30)
            of = f"share of the best ({waste:.0%} twice)"
            yield row(f"{what}, {count} prompts", share, of, f">= {aim}", limit="1")


def decisions() -> Iterator[Row]:
    """A pool of thousands."""
    import decisions as bench

    cost = {size: bench.microseconds(_strategy("earliest-finish"), size) for size in bench.SIZES}
    least, most = min(cost), max(cost)
    what = f"a decision over {most:,} providers, over one over {least:,}"
    yield row(what, cost[most] / cost[least], f"times ({cost[most]:.1f} µs)", "<= 3")
    work = (bench.PROVIDERS, bench.SLOTS, bench.REQUESTS, 1.0)
    told = asyncio.run(bench.thousands("earliest-finish", *work))
    what = f"{bench.PROVIDERS:,} providers × {bench.SLOTS}, {bench.REQUESTS:,} requests"  # noqa: RUF001
    for pattern, unit, aim in (
        (r"at most ([\d.]+) in flight", "in flight at one", f"<= {bench.SLOTS}"),
        (r"lag p99 ([\d.]+) ms", "ms of lag, p99", "< 10"),
        (r"memory ([\d.]+) MB", "MB", "< 300"),
    ):
        found = re.search(pattern, told)
        yield row(what, float(found[1]) if found else math.nan, unit, aim)


def _strategy(name: str) -> Any:
    from poclib.measure.strategies import STRATEGIES

    return STRATEGIES[name]


def preparation() -> Iterator[Row]:
    """A thousand machines warmed up and calibrated, 100 ms a request, on a fake clock."""
    from poclib.measure import experiment
    from poclib.parameters import Parameters
    from poclib.providers import fake

    urls = [f"http://10.0.{number // 250}.{number % 250 + 1}" for number in range(1000)]
    named = [
        {"name": f"m{number}", "kind": "openai", "model": "m", "url": url}
        for number, url in enumerate(urls)
    ]
    wanted = Parameters.read({"experiment": "speed", "providers": named, "run_limit_s": 3600})
    run = experiment.Run(wanted, [(fake.Provider(each["name"]), {}) for each in named])

    async def prepared(clock: Callable[[], float]) -> float:
        await run.examine(capacity=False)
        return clock() / 1000

    asked = 1000 * (wanted.warm_up_prompts + wanted.calibration_prompts) / 10
    took_s = fake.run(prepared)
    yield row("1,000 machines prepared", took_s, "s", "< 60", limit=f"{asked:,.0f} in turn")


def reading() -> Iterator[Row]:
    """Large reports."""
    import reading as bench

    yield row("`poc show` of 20,000 requests", bench.measured(20_000)["show"], "s", "< 1.5")
    large = bench.measured(200_000)
    yield row("a report of 200,000 loads", large["load"], "s", "< 4")
    slowest = max(bench.STEPS[3:], key=lambda step: large.get(step, 0.0))
    yield row(f"its slowest chart or table ({slowest})", large[slowest], "s", "< 2")


def network() -> Iterator[Row]:
    """The default pool, its link longer or shorter."""
    for round_trip_ms in ROUND_TRIPS_MS:
        found = _measured({"strategy": "shared-queue", "rounds": 3}, round_trip_ms)
        added_ms = found.added_latency_ms["remote"].mean
        what = f"added latency at {round_trip_ms} ms round trip"
        aim = f"<= {1.1 * round_trip_ms + 2:g}"
        yield row(what, added_ms, "ms", aim, limit=f"{round_trip_ms}, one round trip")


def ahead() -> Iterator[Row]:
    """Two equal machines of one slot, 12 prompts, 5 rounds: with the next prompt there already."""
    for round_trip_ms, aim in zip(ROUND_TRIPS_MS, (0.54, 0.62), strict=True):
        ratios = {}
        for strategy in ("shared-queue", "sent-ahead"):
            equal = {"strategy": strategy, "prompts": 12, "rounds": 5, "max_tokens": 40}
            ratios[strategy] = _measured(equal, round_trip_ms, speed=1.0, slots=1).overhead_ratio
        queue = f"{ratios['shared-queue'].median:.2f} shared-queue"
        what = f"`sent-ahead` at {round_trip_ms} ms round trip"
        yield row(what, ratios["sent-ahead"].median, "ratio", f"<= {aim}", queue, "0.5")


def _measured(changes: dict[str, Any], round_trip_ms: float, **engines: Any) -> Any:
    from poclib import cli
    from poclib.measure import experiment
    from poclib.parameters import Parameters
    from poclib.reading import reading

    given = cli.read_yaml(ROOT / "params" / "embedded.yaml") | changes
    for each in given["providers"]:
        each.update(engines)
    given["providers"][1]["link"] = {"round_trip_ms": round_trip_ms}
    wanted = Parameters.read(given | {"experiment": "speed"})
    with tempfile.TemporaryDirectory() as folder:
        return reading.of(experiment.measure(wanted, folder=Path(folder))).headline


def run() -> Iterator[Row]:
    """`poc run` on the default pool, with engines started and pages made."""
    from poclib import pacing, report

    with home() as folder:
        begun_s = time.perf_counter()
        command = [sys.executable, "-m", "poclib", "run", str(ROOT / "params" / "embedded.yaml")]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if ran.returncode:
            raise SystemExit(ran.stderr.strip().rpartition("\n")[2])
        took_s = time.perf_counter() - begun_s
        saved = [report.load(p) for p in (folder / report.FOLDER).glob("embedded-*.jsonl")]
    spans = [
        pacing.Span(arm.requests).makespan_ms(len(one.prompt_sha256)) or 0.0
        for one in saved
        for round_ in one.rounds
        for arm in round_.arms
    ]
    measured_s = sum(spans) / 1000
    unit = f"times the makespans ({took_s:.0f} s of {measured_s:.0f})"
    yield row("a whole `poc run`", took_s / measured_s, unit, "<= 1.6", limit="1")


PARTS: dict[str, Callable[..., Iterator[Row]]] = {
    part.__name__: part
    for part in (
        *(network, ahead, schedule, coordinator, peers, decisions, preparation, reading, run),
    )
}


def line(part: str, found: Row) -> str:
    what, figure, unit, aim, peer, limit = found
    sign, _, bound = aim.partition(" ")
    met = ""
    if aim:
        good = figure >= float(bound) if sign == ">=" else figure <= float(bound)
        met = "yes" if good else "no"
    cells = [part, what, f"{figure:,.4g} {unit}", aim, met, peer, limit]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    told = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    told.add_argument("--only", action="append", default=[], choices=list(PARTS))
    told.add_argument("--folder")
    told.add_argument("--env", action="append", default=[], metavar="TOOL=FOLDER")
    told.add_argument("--part", help=argparse.SUPPRESS)
    given = told.parse_args()
    places = [f"--env={one}" for one in given.env]
    places += [f"--folder={given.folder}"] if given.folder else []
    if given.part:
        part = PARTS[given.part]
        for found in part(places) if part is peers else part():
            print(json.dumps(found), flush=True)
        return
    print("| part | target | figure | aim | met | peers | limit |\n|---|---|---|---|---|---|---|")
    for name in given.only or PARTS:
        command = [sys.executable, __file__, "--part", name, *places]
        ran = subprocess.run(command, capture_output=True, text=True)
        for text in ran.stdout.splitlines():
            if text.startswith("["):
                print(line(name, json.loads(text)), flush=True)
        if ran.returncode:
            why = (ran.stderr.strip().splitlines() or ["it ended without a word"])[-1][:120]
            print(f"| {name} | not measured: {why} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
