"""Keeps the engines of one provider: starts, pins, slows and links them, ends them with its parent.

It is a process of its own (`python -m poclib.engines.keeper`), so that the link and the slowing
keep their times whatever the coordinator does, and so that nothing is left behind: when the
standard input ends (its parent finished, crashed or was killed), it kills the engines and ends.

    stdin   one JSON line: `engines` (how many processes), `command` (a list; the engine takes any
            free port), `environment` (added variables), `key`, `cores` (a list), `speed` (0 to 1],
            `turn` (null, or which turn of how many it has), `link` (its three numbers, or null),
            `ready_s` (how long that may take), `shard` (see `sharded`, or null); then for the
            link, a line each: "drop", "restore", "count", or three other numbers
    stdout  JSON lines: {"ready": {"pids", "ports", …}}, {"done": counts} after each command;
            {"problem": sentence} where no engine starts or one has ended: the keeper ends, too
"""

import ctypes
import http.client
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any

import psutil

from ..errors import EngineError
from . import sharded
from .link import EmulatedLink

_CYCLE_S = 0.020
# One turn of an engine that shares its cores in time: shorter ones would break up, by the very
# suspending, the contention that is to be seen.
_TURN_S = 0.100
_POLL_S, _WATCH_S = 0.010, 0.200
_ANSWER_S = 15.0
_PROMPT = json.dumps({"prompt": "One", "n_predict": 1})
_DIE_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG
LACKS = "it uses an instruction that this processor lacks"
# What a coordinator of workers says as it ends, and what that means.
_MEANS = {
    "version mismatch": "a worker is of another build of llama.cpp; use the same everywhere",
    "RPC server crashed": "a worker was lost, or the connection to it",
    "allocate": "a worker has not enough memory for its layers; use more workers",
}


class Engine:
    """One engine process on a port that it takes itself, so that no stranger can be there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._key, self._cores = config["key"], config["cores"]
        self._name, self._most_bytes = config.get("name", "it"), config.get("memory_bytes")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - nameless, so it cannot be left over
        try:
            self.process = subprocess.Popen(
                config["command"],
                stdin=subprocess.PIPE,  # its end tells an engine of ours that the keeper is gone
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **config["environment"], "LLAMA_API_KEY": self._key},
                start_new_session=True,  # a Ctrl-C in the terminal does not reach it
                preexec_fn=self._pin_and_tie,
            )
        except OSError as error:  # a file for another kind of machine, or no file at all
            raise EngineError(f"it cannot be started ({error.strerror})") from None

    def wait(self, until_s: float) -> int:
        """Wait until it answers one token (some instructions are first needed there): its port.

        `until_s` is a moment of the monotonic clock. Raises `EngineError`.
        """
        while time.monotonic() < until_s and not _parent_speaks(_POLL_S):
            self.check()
            if (port := self.port()) is None:
                continue
            if (status := self.answer(port)) == 200:
                return port
            if status not in (None, 503):  # 503: it is still loading the model
                raise self._problem(f"{self._name} gave no answer (HTTP {status})")
        raise self._problem(f"{self._name} was not ready in time")

    def check(self) -> None:
        """Raises `EngineError` where the process has ended."""
        if (code := self.process.poll()) is None:
            return
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGILL:
            how += f" ({LACKS})"
        raise self._problem(f"{self._name} {how}")

    def _problem(self, sentence: str) -> EngineError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        words = " | ".join(line.strip() for line in lines if line.strip())[-1200:]
        if means := next((told for said, told in _MEANS.items() if said in words), None):
            return EngineError(f"{sentence}: {means}")
        return EngineError(f"{sentence}; its last words: {words or 'none'}")

    def _pin_and_tie(self) -> None:
        """Runs in the new process. Linux kills it even if its keeper is killed; others cannot."""
        if self._most_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (self._most_bytes, self._most_bytes))
        if sys.platform == "linux":
            os.sched_setaffinity(0, self._cores)
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    def port(self) -> int | None:
        """Where it listens; None as long as it does not."""
        with suppress(psutil.Error):
            for connection in psutil.Process(self.process.pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    return int(connection.laddr.port)
        return None

    def answer(self, port: int) -> int | None:
        """The status of its answer to a prompt; None where none comes."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/completion", _PROMPT, headers)
            return connection.getresponse().status
        return None


Processes = Sequence[subprocess.Popen[bytes]]


def slow(processes: Processes, speed: float, turn: Sequence[int] | None) -> None:
    """Let processes run for the share `speed` of the time, in cycles of 20 ms, without an end.

    What they ran too long or too short in one cycle is made up for in the next ones, as no single
    sleep is exact. With `turn` (which, of how many) the cycles are of 100 ms for each turn, begin
    at the same moments in every process of this machine, and they run only in their own turn: as
    machines that each have the cores to themselves, but stand still in between.
    """
    which, count = turn or (0, 1)
    length_s = _TURN_S if turn else _CYCLE_S
    cycle_s, share_s = count * length_s, speed * length_s
    begin_s = time.monotonic() // cycle_s * cycle_s + which * length_s
    too_long_s = 0.0
    _signal_at(0.0, processes, signal.SIGSTOP)
    while True:
        _signal_at(begin_s, processes, signal.SIGCONT)
        resumed_s = time.monotonic()
        end_s = (begin_s if turn else resumed_s - too_long_s) + share_s
        _signal_at(end_s, processes, signal.SIGSTOP)
        too_long_s += time.monotonic() - resumed_s - share_s
        begin_s += cycle_s


def _signal_at(moment_s: float, processes: Processes, which: signal.Signals) -> None:
    time.sleep(max(0.0, moment_s - time.monotonic()))
    for process in processes:
        process.send_signal(which)


def _parent_speaks(wait_s: float) -> bool:
    """Whether the parent sends a command, or ends, within this time."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def _keep(config: dict[str, Any], engines: list[Engine]) -> None:
    """Start the engines and obey until the parent ends. Raises `EngineError`, see `Engine`."""
    until_s, ports, link = time.monotonic() + config["ready_s"], [], None
    told: dict[str, Any] = {}
    if config["shard"]:
        link, port, told = sharded.start(Engine, config, engines, until_s)
        link.change(**config["link"])  # the weights have come
        ports.append(port)
    for _ in range(config["engines"]):  # one by one: warming up together they would thrash
        engines.append(Engine(config))
        ports.append(engines[-1].wait(until_s))
    if config["link"] is not None and link is None:
        with suppress(ValueError):  # `select`, by which the link waits, has this limit
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
        link = EmulatedLink(ports, **config["link"])
        ports = link.ports
    processes = [engine.process for engine in engines]
    if config["speed"] < 1 or config["turn"] is not None:
        slowing = (processes, config["speed"], config["turn"])
        threading.Thread(target=slow, args=slowing, daemon=True).start()
    _say(ready={"pids": [each.pid for each in processes], "ports": ports, **told})
    while True:
        asked = _parent_speaks(_WATCH_S)
        for engine in engines:  # before an answer: it would say that all are there
            engine.check()
        if not asked:
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
        _say(done=[asdict(count) for count in link.counts])


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
