"""Keeps the engines of one provider: starts, pins, slows and links them, ends them with its parent.

It is a process of its own (`python -m poclib.engines.keeper`), so that the link and the slowing
keep their times whatever the coordinator does, and so that nothing is left behind: when the
standard input ends (its parent finished, crashed or was killed), it kills the engines and ends.

    stdin   one JSON line: `engines` (how many processes), `command` (a list; the engine takes any
            free port), `environment` (added variables), `key`, `cores` (a list), `speed` (0 to 1],
            `turn` (null, or which turn of how many it has), `link` (its three numbers, or null),
            `shard` (see `sharded`, or null); then commands for the link, a line each: "drop",
            "restore", "count", or its three numbers
    stdout  JSON lines: {"ready": {"pids", "ports", "split"}}, and {"done": true, "counts"} after
            each command; {"problem": sentence} where no engine starts or one has ended: then the
            keeper ends, too
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..errors import EngineError
from . import sharded
from .link import EmulatedLink
from .process import READY_S, Engine, parent_speaks

_CYCLE_S = 0.020
# One turn of an engine that shares its cores in time: shorter ones would break up, by the very
# suspending, the contention that is to be seen.
_TURN_S = 0.100
_WATCH_S = 0.200


def slow(
    processes: Sequence[subprocess.Popen[bytes]], speed: float, turn: Sequence[int] | None
) -> None:
    """Let processes run for the share `speed` of the time, in cycles of 20 ms, without an end.

    What they ran too long or too short in one cycle is made up for in the next ones, so that
    the share holds over any longer time although no single sleep is exact.

    With `turn` (which, of how many) the cycles are of 100 ms for each turn, begin at the same
    moments in every process of this machine, and they run only in their own turn: as machines
    that each have the cores to themselves, but stand still in between.
    """
    which, count = turn or (0, 1)
    length_s = _TURN_S if turn else _CYCLE_S
    cycle_s, share_s = count * length_s, speed * length_s
    begin_s = time.monotonic() // cycle_s * cycle_s + which * length_s
    too_long_s = 0.0
    _signal(processes, signal.SIGSTOP)
    while True:
        _sleep_until(begin_s)
        _signal(processes, signal.SIGCONT)
        resumed_s = time.monotonic()
        _sleep_until((begin_s if turn else resumed_s - too_long_s) + share_s)
        _signal(processes, signal.SIGSTOP)
        too_long_s += time.monotonic() - resumed_s - share_s
        begin_s += cycle_s


def _sleep_until(moment_s: float) -> None:
    time.sleep(max(0.0, moment_s - time.monotonic()))


def _signal(processes: Sequence[subprocess.Popen[bytes]], which: signal.Signals) -> None:
    for process in processes:
        process.send_signal(which)


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def _keep(config: Mapping[str, Any], engines: list[Engine]) -> None:
    """Start the engines and obey until the parent ends. Raises `EngineError`, see `Engine`."""
    if config["link"] is not None:
        with contextlib.suppress(ValueError):  # `select`, by which a link waits, has this limit
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
    until_s, ports, link, split = time.monotonic() + READY_S, [], None, None
    if config["shard"]:
        link, port, split = sharded.start(config, engines, until_s)
        link.change(**config["link"])  # the weights are loaded
        ports = [port]
    for _ in range(config["engines"]):  # one by one: warming up together they would thrash
        engines.append(Engine(config))
        ports.append(engines[-1].wait(until_s))
    if config["link"] is not None and not link:
        link = EmulatedLink(ports, **config["link"])
        ports = link.ports
    processes = [engine.process for engine in engines]
    if config["speed"] < 1 or config["turn"] is not None:
        slowing = (processes, config["speed"], config["turn"])
        threading.Thread(target=slow, args=slowing, daemon=True).start()
    _say(ready={"pids": [each.pid for each in processes], "ports": ports, "split": split})
    while True:
        for engine in engines:
            engine.check()
        if not parent_speaks(_WATCH_S):
            continue
        command = sys.stdin.readline().strip()
        if not command:
            return
        assert link is not None, "only a provider with a link is told to drop it"
        if command == "drop":
            link.drop()
        elif command == "restore":
            link.restore()
        elif command != "count":
            link.change(**json.loads(command))
        _say(done=True, counts=[asdict(count) for count in link.counts])


def main() -> None:
    """Keep the engines until the standard input or one of them ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the end of stdin ends a keeper. Not SIG_IGN, which the engine would inherit.
        signal.signal(ignored, lambda *_: None)
    engines: list[Engine] = []
    try:
        _keep(json.loads(sys.stdin.readline()), engines)
    except Exception as error:
        _say(problem=str(error) if isinstance(error, EngineError) else repr(error))
    finally:
        for engine in engines:
            engine.process.kill()
        for engine in engines:
            engine.process.wait()


if __name__ == "__main__":
    main()
