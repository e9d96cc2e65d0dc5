"""How long is a large report in reading: its load, headline, words and every chart?

    python benchmarks/reading.py [REQUESTS …]

Makes a report of so many requests (20,000 and 200,000 unless told) with the real writer in a
folder of its own, and reads each in a fresh process. Prints seconds by step and the peak of memory.
"""

from __future__ import annotations

import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from poclib import recording
from poclib.parameters import Parameters, ProviderSettings
from poclib.reading import reading
from poclib.records import (
    Arm,
    Probe,
    ProviderFacts,
    Report,
    Request,
    RequestMarks,
    Round,
    ServerTimings,
)

NAMES = ("desk", "attic", "cellar", "shed")
ROUNDS, TOKENS = 5, 24
STEPS = ("load", "headline", "words", "timeline", "breakdown", "ratios", "ecdf", "round_ratios")
STEPS += ("anatomy", "causes", "overhead")


def _row(draw: random.Random, prompt: int, lane: int, start_ms: float) -> Request:
    """One answered request as a batching server on a link of 5 ms gives it."""
    tokens = TOKENS
    service_ms = (100 + 40 * lane) * draw.lognormvariate(0, 0.2)
    sent_ms, first_ms = start_ms + 0.4, start_ms + 6 + 0.3 * service_ms
    last_ms = start_ms + 6 + service_ms
    step = (last_ms - first_ms) / (tokens - 1)
    return Request(
        prompt=prompt,
        provider=NAMES[lane],
        wall_ms=last_ms + 0.2 - start_ms,
        queued_ms=0.05,
        marks=RequestMarks(
            assigned_ms=start_ms - 0.05,
            start_ms=start_ms,
            ready_ms=start_ms + 0.2,
            sent_ms=sent_ms,
            first_byte_ms=first_ms - 0.1,
            first_token_ms=first_ms,
            last_byte_ms=last_ms,
            end_ms=last_ms + 0.2,
        ),
        server=ServerTimings(prompt_ms=0.3 * service_ms, generation_ms=0.7 * service_ms,
                             total_ms=service_ms),
        prompt_tokens=40,
        output_tokens=tokens,
        finish_reason="length",
        answer_sha256=f"{prompt:064x}",
        token_ms=[first_ms + i * step for i in range(tokens)],
    )  # fmt: skip


def _arm(draw: random.Random, kind: Any, prompts: int, start_ms: float) -> tuple[Arm, float]:
    """The prompts one at a time on the first machine, or each to the slot that is free first."""
    free = {0: start_ms} if kind == "baseline" else dict.fromkeys(range(4 * len(NAMES)), start_ms)
    rows = []
    for prompt in range(prompts):
        slot = min(free, key=free.__getitem__)
        row = _row(draw, prompt, slot % len(NAMES), free[slot])
        free[slot] = (row.marks.end_ms or 0.0) + 0.1
        rows.append(row)
    name, limit = ("sequential", 1) if kind == "baseline" else ("shared-queue", 4)
    limits = dict.fromkeys(NAMES, limit)
    return Arm(arm=kind, strategy=name, limits=limits, requests=rows), max(free.values())


def made(requests: int) -> Report:
    """A report of about so many requests in rounds."""
    draw, prompts, now_ms = random.Random(7), requests // (2 * ROUNDS), 1000.0
    preparation, rounds = [], []
    for lane, name in enumerate(NAMES):
        rows = [_row(draw, i, lane, now_ms + 400.0 * i) for i in range(4)]
        preparation.append(Arm(arm="calibration", turn=name, strategy="sequential", requests=rows))
        now_ms += 2000
    for index in range(ROUNDS):
        arms = []
        for kind in ("baseline", "strategy"):
            arm, now_ms = _arm(draw, kind, prompts, now_ms)
            arms.append(arm)
        rounds.append(Round(index=index, arms=arms))
    facts: list[Any] = [
        {"name": name, "kind": "embedded", "role": "remote" if lane else "local", "slots": 4,
         "capacity": 4, "batching": True, "digest": "gguf:1", "reports_time": True}
        for lane, name in enumerate(NAMES)
    ]  # fmt: skip
    return Report(
        experiment="large",
        strategy="shared-queue",
        created="2026-11-26T12:00:00Z",
        poclib="0",
        parameters=Parameters(
            providers=[ProviderSettings(name=name) for name in NAMES], prompts=prompts
        ),
        providers=[ProviderFacts(**fact) for fact in facts],
        prompt_sha256=[f"{i:064x}" for i in range(prompts)],
        prompt_characters=[160] * prompts,
        fastest=NAMES[0],
        preparation=preparation,
        probes=[Probe(provider=n, at_ms=1.0, round_trip_ms=5.2, wire_ms=5.0) for n in NAMES],
        rounds=rounds,
    )


def timed(path: Path) -> dict[str, float]:
    """Seconds of each step of reading that report, in this process; and its peak in MiB."""
    found: dict[str, float] = {}

    def step(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        found[name] = time.perf_counter() - begun
        return result

    one = step("load", lambda: reading.read(path))
    headline = step("headline", lambda: one.headline)
    from poclib.showing import words

    step("words", lambda: words.report_text(one))
    found["show"] = sum(found.values())

    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    from poclib.reading import tables
    from poclib.showing import charts, documents

    charts.use_style()
    plt.subplots()[0].canvas.draw()  # fonts are found once

    def drawn(chart: Callable[[Any], None]) -> None:
        figure, ax = plt.subplots(figsize=(8, 5))
        chart(ax)
        figure.canvas.draw()
        plt.close(figure)

    step("timeline", lambda: drawn(lambda ax: charts.timeline(ax, one)))
    step("breakdown", lambda: drawn(lambda ax: charts.breakdown(ax, headline)))
    step("ratios", lambda: drawn(lambda ax: charts.ratios(ax, [headline])))
    step("ecdf", lambda: drawn(lambda ax: charts.ecdf(ax, one)))
    step("round_ratios", lambda: drawn(lambda ax: charts.round_ratios(ax, one)))
    step("anatomy", lambda: drawn(lambda ax: charts.anatomy(ax, tables.typical(one), headline)))
    step("causes", lambda: documents.causes_text(one))
    step("overhead", lambda: words.overhead_text(one))
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def measured(requests: int) -> dict[str, float]:
    """`timed` of a report of so many requests, made and read in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large-shared-queue.jsonl"
        each = [sys.executable, __file__]
        subprocess.run([*each, "--make", str(requests), str(path)], check=True)
        told = subprocess.run([*each, "--time", str(path)], check=True, stdout=subprocess.PIPE)
        begun = time.perf_counter()
        show = [sys.executable, "-m", "poclib", "show", str(path)]
        subprocess.run(show, check=True, stdout=subprocess.DEVNULL)
        size_mib, command_s = path.stat().st_size / 2**20, time.perf_counter() - begun
    return {**json.loads(told.stdout), "poc show": command_s, "file_mib": size_mib}


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [20_000, 200_000]
    columns = {size: measured(size) for size in sizes}
    print("seconds".ljust(14), *(f"{size:>10,}" for size in sizes))
    for key in (*STEPS[:3], "show", "poc show", *STEPS[3:], "peak_mib", "file_mib"):
        print(key.ljust(14), *(f"{columns[size].get(key, math.nan):10.2f}" for size in sizes))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        path = Path(sys.argv[3])
        recording.save(made(int(sys.argv[2])), path.parent)
    elif sys.argv[1:2] == ["--time"]:
        print(json.dumps(timed(Path(sys.argv[2]))))
    else:
        main()
