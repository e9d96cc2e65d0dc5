"""Checks the instrument on itself: known delays in, what a report would say of them out.

Real providers, transport and dispatch are held against `stub`, a server of known behaviour. An
error is what was measured minus what the stub's own clock says it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from ..errors import EngineError, ReportError
from ..parameters import Parameters, ProviderSettings
from ..providers import KINDS
from ..records import Arm, Probe, Prompt, Request, Ruler, RulerRow
from ..report import explained
from .attempt import Rules
from .dispatch import run_arm
from .machine import undisturbed
from .strategies import STRATEGIES

FILE = Path("data", "ruler.json")
STUB = Path(__file__).with_name("stub.py")
PROBES = 20


@dataclass(frozen=True)
class Case:
    """One behaviour of the stub, asked for `count` times with `in_flight` at once."""

    count: int
    in_flight: int = 1
    delay_ms: float = 25.0
    tokens: int = 8
    gap_ms: float = 5.0
    round_trip_ms: float = 0.0
    keep_alive: bool = True


# Delays before the first token of 5, 25 and 100 ms, one at a time; then connections opened
# anew, a link of 20 ms, and up to 64 at once.
CASES = (
    Case(80, delay_ms=5),
    Case(80, delay_ms=25),
    Case(80, delay_ms=100),
    Case(80, keep_alive=False),
    Case(80, round_trip_ms=20),
    Case(160, in_flight=8, delay_ms=100),
    Case(256, in_flight=64, delay_ms=100, gap_ms=25),
    Case(256, in_flight=64, delay_ms=100, gap_ms=25, keep_alive=False),
)
# What every run does before it measures: well under two seconds.
QUICK = (Case(40, delay_ms=5, tokens=3, gap_ms=2),)


@contextlib.contextmanager
def known_server(round_trip_ms: float) -> Iterator[str]:
    """The address of a stub that runs for as long as the block does. Raises `EngineError`."""
    command = [sys.executable, "-I", str(STUB), str(round_trip_ms)]
    pipe = subprocess.PIPE  # it serves until its input ends: never longer than we live
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        try:
            port = process.stdout.readline().decode().strip() if process.stdout else ""
            if not port:
                raise EngineError("the ruler's server did not start; is the package whole?")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


async def check(cases: Sequence[Case]) -> Ruler:
    """Bias and spread of each quantity in each case."""
    rows: list[RulerRow] = []
    for case in cases:
        with known_server(case.round_trip_ms) as url:
            rows += compared(case, *await _measured(case, url))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Ruler(created=created, cores=os.cpu_count(), rows=rows)


async def _measured(case: Case, url: str) -> tuple[Arm, list[Probe]]:
    # Only connections to a llama-server are closed after each stream.
    kind = "openai" if case.keep_alive else "llama-server"
    settings = ProviderSettings.model_validate(
        {"name": "known", "kind": kind, "model": "known", "url": url, "api": "completion"}
    )
    sender = KINDS[kind](settings, Parameters(providers=[settings]), url)
    anchor_s = time.perf_counter()
    text, queue = f"{case.delay_ms:g} {case.tokens} {case.gap_ms:g}", STRATEGIES["shared-queue"]
    limits, expected_ms = {"known": case.in_flight}, {"known": 100.0}
    rules = Rules(retries=0, request_timeout_s=30)

    def clock() -> float:
        return (time.perf_counter() - anchor_s) * 1000

    async def asked(count: int) -> Arm:
        prompts = [Prompt(index, text) for index in range(count)]
        return await run_arm(
            "strategy", queue, prompts, [sender], limits, expected_ms, clock, rules
        )

    try:
        await asked(case.in_flight)  # opens the connections and warms the code up
        probes = [await sender.probe(clock) for _ in range(PROBES)]
        return await asked(case.count), [probe for probe in probes if probe is not None]
    finally:
        await sender.aclose()


def compared(case: Case, arm: Arm, probes: Sequence[Probe]) -> list[RulerRow]:
    """Measured minus true, for each quantity that a report holds of `arm`.

    The truth of a request is in its server timings. A connection opened anew pays no round trip at
    the stub, so the link's counts once, and all of its `connect_ms` is error. Raises `EngineError`
    where a request failed or has no times.
    """
    errors: dict[str, list[float]] = defaultdict(list)
    for row in arm.requests:
        if row.outcome != "ok" or None in (row.over_ms, row.marks.first_token_ms):
            raise EngineError(f"the ruler's own request failed: {row.error or 'it has no times'}.")
        for quantity, error_ms in _errors(case, row).items():
            errors[quantity].append(error_ms)
    for probe in probes:
        if probe.wire_ms is not None:
            errors["network_ms"].append(probe.wire_ms - case.round_trip_ms)
    if case.in_flight == 1:
        starts = [row.marks.start_ms or 0 for row in arm.requests]
        ends = [row.marks.end_ms or 0 for row in arm.requests]
        true_ms = sum((r.server.total_ms or 0) + case.round_trip_ms for r in arm.requests)
        errors["makespan_ms"] = [(max(ends) - min(starts) - true_ms) / len(starts)]
    asked = asdict(case)
    same = {key: asked[key] for key in ("in_flight", "delay_ms", "round_trip_ms", "keep_alive")}
    rows = []
    for quantity, values in errors.items():
        n, bias_ms = len(values), median(values)
        # 72 values are the fewest that carry a 95th percentile.
        p95_ms = sorted(map(abs, values))[int(0.95 * n)] if n >= 72 else None
        rows.append(RulerRow(quantity=quantity, n=n, bias_ms=bias_ms, p95_ms=p95_ms, **same))
    return rows


def _errors(case: Case, row: Request) -> dict[str, float]:
    """A connect, on the way or made ahead, is a part of its own: its error is not told twice."""
    marks, prompt_ms, tokens_ms = row.marks, row.server.prompt_ms or 0, row.token_ms or []
    ttft_ms = (marks.first_token_ms or 0) - (marks.start_ms or 0)
    errors: dict[str, float] = {}
    if marks.connected_ms is not None and marks.connect_start_ms is not None:
        errors["connect_ms"] = marks.connected_ms - marks.connect_start_ms
    if marks.ahead_ms is not None:
        errors["ahead_ms"] = marks.ahead_ms
    way_ms = errors.get("connect_ms", 0.0) + case.round_trip_ms
    errors["ttft_ms"] = ttft_ms - prompt_ms - way_ms
    errors["over_ms"] = (row.over_ms or 0) - way_ms
    if len(tokens_ms) > 1:
        late_ms = tokens_ms[-1] - tokens_ms[0] - (row.server.generation_ms or 0)
        errors["inter_token_ms"] = late_ms / (len(tokens_ms) - 1)
    errors["stub"] = prompt_ms - case.delay_ms
    return errors


def run(cases: Sequence[Case] = CASES) -> Ruler:
    """`check` on a loop of its own, also where this thread has one, as in a notebook."""
    with ThreadPoolExecutor(1) as thread, undisturbed():
        return thread.submit(lambda: asyncio.run(check(cases))).result()


def obtain(measure: bool, root: Path) -> Ruler:
    """The check in data/ruler.json, if `measure` made anew. Raises `ReportError`."""
    path = root / FILE
    if measure:
        found = run()
        with explained(FILE.as_posix(), "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    try:
        return Ruler.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ReportError(f"{FILE} is absent or damaged; make it with `poc ruler`.") from None
