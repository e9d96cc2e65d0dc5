"""What the coordinator costs: requests a second, and what one alone takes above a raw socket.

    python benchmarks/coordinator.py [--before FOLDER]    FOLDER: another checkout, measured too

The real path (dispatch, attempt, provider, transport, a row on disk before the next request) on one
core, against `stub_server.py` on another, which answers at once with a short stream. Beside it, in
turn, raw sockets that post the same bytes and parse the same answer: what no client can beat.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve()
TOKENS = 4
IN_FLIGHT = 1, 64
COUNTS = {1: 1500, 64: 6000}


@contextlib.contextmanager
def stub(core: int | None) -> Iterator[int]:
    """The port of a server in a process of its own, on a core of its own."""
    where = [] if core is None else [str(core)]
    with subprocess.Popen(
        [sys.executable, str(HERE.with_name("stub_server.py")), *where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _pinned(core: int | None) -> list[str]:
    return [] if core is None else ["taskset", "-c", str(core)]


# ---- A client, in a process of its own --------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Of one client at so many in flight; `said_ms` is what its rows say a request took."""

    per_s: float
    cpu_ms: float  # of a request
    wall_ms: float  # of a request, or of `in_flight` at a time
    said_ms: float | None = None


BODY = b'{"model":"known","max_tokens":4,"temperature":0,"seed":1,"stream":true,"prompt":"Why? %d"}'
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def raw(port: int, in_flight: int, count: int) -> Cost:
    """Sockets and nothing else: each posts, and parses every event of what comes."""
    poll = selectors.DefaultSelector()
    for _ in range(in_flight):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poll.register(client, selectors.EVENT_READ, bytearray())

    def post(client: Any, number: int) -> None:
        body = BODY % number
        client.sendall(POST + b"content-length: %d\r\n\r\n%b" % (len(body), body))

    def parsed(data: bytearray) -> None:
        for line in data.partition(b"\r\n\r\n")[2].split(b"\n"):
            if line.startswith(b"data: {"):
                json.loads(line[6:])

    def loop(total: int) -> None:
        sent = done = 0
        for key in list(poll.get_map().values())[:total]:
            post(key.fileobj, sent)
            sent += 1
        while done < total:
            for key, _ in poll.select():
                key.data.extend(key.fileobj.recv(65536))  # type: ignore[union-attr]
                if key.data.endswith(b"0\r\n\r\n"):
                    parsed(key.data)
                    key.data.clear()
                    done += 1
                    if sent < total:
                        post(key.fileobj, sent)
                        sent += 1

    loop(min(count, 500))
    cost = _timed(lambda: loop(count), in_flight, count)
    for key in list(poll.get_map().values()):
        key.fileobj.close()  # type: ignore[union-attr]
    return cost


def _timed(work: Callable[[], Any], in_flight: int, count: int) -> Cost:
    begun_s, cpu_s = time.perf_counter(), time.process_time()
    work()
    wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    return Cost(count / wall_s, cpu_s / count * 1000, wall_s / count * in_flight * 1000)


async def ours(port: int, in_flight: int, count: int, folder: Path) -> Cost:
    """The real path: an arm as a run carries it out, each row on disk."""
    from poclib.measure.attempt import Rules
    from poclib.measure.dispatch import run_arm
    from poclib.measure.strategies import STRATEGIES
    from poclib.parameters import Parameters, ProviderSettings
    from poclib.providers import KINDS
    from poclib.recording import ReportFile
    from poclib.records import Prompt, Request

    url = f"http://127.0.0.1:{port}"
    settings = ProviderSettings.model_validate(
        {"name": "known", "kind": "openai", "model": "known", "url": url, "api": "completion"}
    )
    sender = KINDS["openai"](settings, Parameters(providers=[settings], max_tokens=TOKENS), url)
    anchor_s, file = time.perf_counter(), ReportFile(folder / "coordinator.jsonl")
    walls: list[float] = []

    def clock() -> float:
        return (time.perf_counter() - anchor_s) * 1000

    def done(row: Request) -> None:
        kept: Any = row.model_dump(exclude_none=True) if hasattr(row, "model_dump") else row
        file.write({"request": kept})
        assert row.outcome == "ok" and row.output_tokens == TOKENS, row.error
        walls.append(row.wall_ms or 0.0)

    async def arm(total: int) -> None:
        prompts = [Prompt(index, f"Why? {index}") for index in range(total)]
        rules, strategy = Rules(retries=0), STRATEGIES["shared-queue"]
        limits, expected_ms = {"known": in_flight}, {"known": 1.0}
        await run_arm(
            *("strategy", strategy, prompts, [sender], limits, expected_ms, clock, rules, done),
            keep_rows=False,
        )

    with file.open():
        await arm(500)
        walls.clear()
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        await arm(count)
        wall_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
    await sender.aclose()
    wall_ms = wall_s / count * in_flight * 1000
    return Cost(count / wall_s, cpu_s / count * 1000, wall_ms, median(walls))


def work(of: str, port: int, in_flight: int, count: int) -> Cost:
    if of == "raw":
        return raw(port, in_flight, count)
    sys.path.insert(0, of)
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(ours(port, in_flight, count, Path(folder)))


# ---- All of them, in turn ------------------------------------------------------------------------


def measure(before: Path | None = None, turns: int = 5) -> dict[str, dict[int, Cost]]:
    """By client ("raw", "poclib", "before") and requests in flight: the medians of all turns."""
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    own, other = (available[0], available[1]) if len(available) > 1 else (None, None)
    clients = {"raw": "raw", "poclib": str(HERE.parents[1])}
    clients |= {"before": str(before)} if before else {}
    found: dict[tuple[str, int], list[Cost]] = {}
    with stub(other) as port:
        for _ in range(turns):
            for in_flight in IN_FLIGHT:
                for name, of in clients.items():
                    words = [of, str(port), str(in_flight), str(COUNTS[in_flight])]
                    command = [*_pinned(own), sys.executable, str(HERE), "--work", *words]
                    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    found.setdefault((name, in_flight), []).append(Cost(**json.loads(told.stdout)))
    return {
        name: {in_flight: _middle(found[name, in_flight]) for in_flight in IN_FLIGHT}
        for name in clients
    }


def _middle(costs: list[Cost]) -> Cost:
    fields = [asdict(cost) for cost in costs]
    said = [cost.said_ms for cost in costs if cost.said_ms is not None]
    middle = {key: median(each[key] for each in fields) for key in ("per_s", "cpu_ms", "wall_ms")}
    return Cost(**middle, said_ms=median(said) if said else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        of, *numbers = given.work
        print(json.dumps(asdict(work(of, *map(int, numbers)))))
        return None
    found = measure(given.before, given.turns)
    floor_ms = found["raw"][1].wall_ms
    print("client   in flight  requests/s  CPU ms  wall ms  says ms  above raw, alone")
    for name, by in found.items():
        for in_flight, cost in by.items():
            said = "" if cost.said_ms is None else f"{cost.said_ms:.3f}"
            above = f"{cost.wall_ms - floor_ms:.3f}" if in_flight == 1 and name != "raw" else ""
            print(
                f"{name:8} {in_flight:9}  {cost.per_s:10.0f}  {cost.cpu_ms:6.3f}  "
                f"{cost.wall_ms:7.3f}  {said:>7}  {above:>16}"
            )
    return None


if __name__ == "__main__":
    main()
