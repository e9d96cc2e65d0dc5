"""Kill the coordinator at random moments, resume it each time, and look for what was lost.

    python benchmarks/kills.py [KILLS] [SEED] [--embedded]

KILLS (100) times a run is ended by SIGKILL, which nothing can catch, at a moment drawn at
random, then resumed, until it is whole; then the next one begins. Another SEED draws other
moments, so that the kills may be made in pieces. The providers are real servers on loopback
sockets: stubs that answer at once, or with --embedded the real engines. Every row that was in
the journal after a kill must be in the final report exactly once, and each prompt of each round
must have exactly one answer. Prints what was found; exit code 1 where anything is lost, doubled
or corrupt.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import psutil

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from poclib import recording, report  # noqa: E402
from poclib.errors import PocError  # noqa: E402
from poclib.measure import experiment  # noqa: E402
from poclib.parameters import Parameters  # noqa: E402
from poclib.records import Report  # noqa: E402

STUB = """
import asyncio, sys
from replay import Replay, recorded
answers = {
    "/v1/models": recorded("vllm/models"), "/version": recorded("vllm/version"),
    "/health": recorded("vllm/health"),
    "/v1/chat/completions": recorded("vllm/chat_stream_usage"),
}
async def main():
    async with Replay(answers) as one, Replay(answers) as other:
        print(one.url, other.url, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""


def parameters(urls: list[str]) -> Parameters:
    """Five rounds over two providers; `urls` of stubs, or none for the real engines."""
    names = ("local", "remote")
    if urls:
        common = {"kind": "openai", "model": "smollm2-135m", "capacity": 2}
        providers = [{"name": n, "url": u, **common} for n, u in zip(names, urls, strict=True)]
        size: dict[str, Any] = {"prompts": 40, "rounds": 5}
    else:
        providers = [{"name": n, "kind": "embedded", "slots": 2} for n in names]
        size = {"prompts": 4, "rounds": 3, "max_tokens": 8, "context_tokens": 256}
    return Parameters.read(
        {"experiment": "kills", "strategy": "shared-queue", "providers": providers, **size}
    )


def started(wanted: Parameters, folder: Path) -> int:
    """A coordinator of its own process, without the second that loading its modules takes."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        experiment.measure(wanted, folder=folder, resume=True)
        os._exit(0)
    except PocError as error:
        print(f"  {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(3)
    except BaseException as error:
        print(f"  {error!r}", file=sys.stderr, flush=True)
        os._exit(4)


def key(row: Any) -> str:
    """A row with its times to the microsecond, as a report holds them, and nothing absent."""
    return json.dumps(_present(recording._rounded(row)), sort_keys=True)


def _present(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: _present(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in (None, {})}
    return value


def on_disk(folder: Path) -> list[str]:
    """The rows in its file now, as whole lines hold them."""
    path = folder / "runs" / "kills-shared-queue.jsonl"
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [key(row["request"]) for row in map(json.loads, lines) if "request" in row]


def problems(found: Report, seen: set[str], prompts: int) -> Counter[str]:
    """How many rows are lost, doubled, or in a place where they cannot be right."""
    arms = [arm for one in (*found.rounds, *found.cut) for arm in one.arms]
    rows = Counter(
        key(msgspec.to_builtins(row)) for a in (*found.preparation, *arms) for row in a.requests
    )
    count = Counter({"lost": len(seen - rows.keys()), "doubled": sum(rows.values()) - len(rows)})
    for one in found.rounds:
        for arm in one.arms:
            answered = Counter(row.prompt for row in arm.requests if row.outcome == "ok")
            count["lost"] += sum(prompt not in answered for prompt in range(prompts))
            count["doubled"] += sum(n - 1 for n in answered.values())
    wanted = found.parameters.rounds if found.parameters else 0
    count["corrupt"] += [one.index for one in found.rounds] != [*range(wanted)]
    count["corrupt"] += not found.complete
    return count


def main(kills: int, seed: int, embedded: bool) -> int:
    draw = random.Random(seed)
    stub = subprocess.Popen(
        [sys.executable, "-c", STUB],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])},
    )
    assert stub.stdout is not None
    wanted = parameters([] if embedded else stub.stdout.readline().split())
    longest_s = 8.0 if embedded else 0.7
    total: Counter[str] = Counter()
    try:
        while total["kills"] < kills:
            with tempfile.TemporaryDirectory() as name:
                folder, seen = Path(name), set[str]()
                while True:
                    pid, engines = started(wanted, folder), []
                    # Once enough have been made, the last run may end in peace.
                    ends_s = time.monotonic() + draw.uniform(0, longest_s)
                    while (status := os.waitpid(pid, os.WNOHANG)) == (0, 0):
                        if total["kills"] < kills and time.monotonic() >= ends_s:
                            engines = psutil.Process(pid).children(recursive=True)
                            os.kill(pid, signal.SIGKILL)
                            total["kills"] += 1
                            status = os.waitpid(pid, 0)
                            break
                        time.sleep(0.005)
                    total["orphans"] += len(psutil.wait_procs(engines, timeout=20)[1])
                    rows = on_disk(folder)
                    total["mid-run"] += bool(rows) and os.WIFSIGNALED(status[1])
                    total["lost"] += len(seen - set(rows)) if rows else 0
                    seen |= set(rows)
                    if os.WIFEXITED(status[1]):
                        if os.WEXITSTATUS(status[1]):
                            total["corrupt"] += 1
                        break
                if (folder / "kills-shared-queue.jsonl").exists():
                    found = report.load("kills-shared-queue", folder)
                    total += problems(found, seen, len(found.prompt_sha256))
                    total["runs"] += 1
                    total["rows"] += len(seen)
                    total["cut rounds"] += len(found.cut)
    finally:
        assert stub.stdin is not None
        stub.stdin.close()
        stub.wait()
    print(
        f"{total['kills']} kills ({total['mid-run']} with requests on disk) in {total['runs']} "
        f"runs on {'the embedded engines' if embedded else 'stub servers'}, each resumed until "
        "whole; "
        f"{total['rows']:,} rows seen on disk, {total['cut rounds']} rounds repeated: "
        f"{total['lost']} lost, {total['doubled']} doubled, {total['corrupt']} corrupt, "
        f"{total['orphans']} processes left."
    )
    return 1 if total["lost"] or total["doubled"] or total["corrupt"] or total["orphans"] else 0


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    kills, seed = [*numbers, *(100, 7)[len(numbers) :]]
    sys.exit(main(kills, seed, "--embedded" in sys.argv))
