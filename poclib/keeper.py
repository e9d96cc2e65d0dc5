"""Keeps one engine: starts it, pins it, slows it, links it, and ends it with its parent.

An engine is one process, or several with a front that makes them one. It knows an engine's
command and how to be told what to do; nothing of providers, prompts or reports, and not which
engine was chosen or why: `engines` decides that. Imports `front`, `link`, `errors`.

Runs as a process of its own (`python -m poclib.keeper`), so that the link and the slowing keep
their times whatever the coordinator does, and so that nothing is left behind: when the standard
input ends (its parent finished, crashed or was killed), it ends the engine and then itself.

    stdin   one JSON line of configuration, see `Keeper`; then one JSON line a command:
            {"set": {"round_trip_ms": …, "jitter_ms": …, "bandwidth_mbit_s": …}}, {"drop": true},
            {"restore": true}, {"speed": …}, each answered by {"done": …}; the end of stdin ends
            everything
    stdout  {"ready": {"pids", "port", "link_port", "pinned"}}, or {"failed": sentence, "log": …};
            {"ended": sentence, "log": …} when the engine ends by itself
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import psutil

from .errors import EngineError
from .front import Front
from .link import Link

_CYCLE_S = 0.020
# One turn of an engine that shares its cores in time: shorter ones would break up, by the very
# suspending, the contention that is to be seen.
_TURN_S = 0.100
_POLL_S = 0.010
_END_S = 0.5  # what an engine may take to end by itself: it has nothing to save
_TRIES = 3
_HOST = "127.0.0.1"
_DIE_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


class Engine:
    """One engine process on a port of its own; `config` as for `Keeper`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.port = 0
        self.pinned = False
        self.process: subprocess.Popen[bytes] | None = None
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - nameless, so it cannot be left over

    def launch(self) -> None:
        """Start the process; it is not ready yet. Raises `EngineError`."""
        self.port = _free_port()
        first_line = self.config["first_line"]
        try:
            with _pinned_to(self.config["cores"]) as self.pinned:  # a child inherits it
                self.process = subprocess.Popen(
                    [part.replace("{port}", str(self.port)) for part in self.config["command"]],
                    stdin=subprocess.DEVNULL if first_line is None else subprocess.PIPE,
                    stdout=self.log,
                    stderr=self.log,
                    env={**_without_settings(os.environ), **self.config["environment"]},
                    start_new_session=True,  # a Ctrl-C in the terminal does not reach it
                    preexec_fn=_die_with_parent,
                )
        except OSError as error:  # a file for another kind of machine, or no file at all
            raise EngineError(f"it cannot be started ({error.strerror})") from None
        if self.process.stdin is not None:
            told = {**first_line, "port": self.port}
            with contextlib.suppress(BrokenPipeError):  # it died; its last words say why
                self.process.stdin.write(json.dumps(told).encode() + b"\n")
                self.process.stdin.flush()

    def wait(self, limit_s: float, interrupted: Callable[[], bool]) -> subprocess.Popen[bytes]:
        """Wait until /health is 200, launching anew where a stranger took the port.

        Raises `EngineError`; `limit_s` is a moment of the monotonic clock.
        """
        for _ in range(_TRIES):
            assert self.process is not None
            while self.process.poll() is None:
                if interrupted():
                    raise EngineError("its start was called off")
                if self._healthy() and self._listens(self.process.pid):
                    return self.process
                if time.monotonic() > limit_s:
                    raise EngineError(f"it was not ready after {self.config['ready_s']:.0f} s")
                time.sleep(_POLL_S)
            if _is_free(self.port):  # else the port was taken meanwhile: try another
                break
            self.launch()
        assert self.process is not None
        raise EngineError(_how_it_ended(self.process))

    def end(self, until_s: float = 0.0) -> None:
        """Terminate and reap the process; kill it where it is there at `until_s` still."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    def last_words(self) -> str:
        """The end of the engine's log, on one line."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - 4000))
        lines = self.log.read().decode(errors="replace").split("\n")
        return " | ".join(line.strip() for line in lines if line.strip())[-1200:] or "none"

    def _listens(self, pid: int) -> bool:
        """Whether it is our engine that answers on the port, and not a stranger."""
        with contextlib.suppress(psutil.Error):
            return any(
                c.status == psutil.CONN_LISTEN and c.laddr.port == self.port
                for c in psutil.Process(pid).net_connections("tcp")
            )
        return False

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection(_HOST, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


class Keeper:
    """The processes of one provider, from start to end.

    `config`: `command` (list; "{port}" stands for the port), `environment` (added variables),
    `first_line` (a line for the engine's stdin, or null), `cores` (list of int, or null), `speed`
    (0 to 1], `link` (its three numbers, or null), `ready_s` (seconds to wait for /health);
    `engines` (how many processes), `front` (null, or its `each` and `refuses`), `turn` (null, or
    which turn of how many it has).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = {"engines": 1, "front": None, "turn": None, **config}
        self.engines = [Engine(self.config) for _ in range(self.config["engines"])]
        self.front: Front | None = None
        self.link: Link | None = None
        self.slower: Slower | None = None

    def start(self, interrupted: Callable[[], bool]) -> dict[str, Any]:
        """Start all and wait until each is ready. Raises `EngineError`; returns what is ready."""
        limit_s = time.monotonic() + self.config["ready_s"]
        running = []
        for engine in self.engines:  # one by one: warming up together they would thrash
            engine.launch()
            running.append(engine.wait(limit_s, interrupted))
        port = self.engines[0].port
        if self.config["front"] is not None:
            self.front = Front([engine.port for engine in self.engines], **self.config["front"])
            port = self.front.port
        if self.config["link"] is not None:
            self.link = Link(port, **self.config["link"])
        self._slow(self.config["speed"])
        return {
            "pids": [process.pid for process in running],
            "port": port,
            "link_port": self.link.port if self.link else None,
            "pinned": all(engine.pinned for engine in self.engines),
        }

    def end(self) -> None:
        """Resume, terminate, kill and reap the engines; close front and link."""
        if self.slower is not None:
            self.slower.end()
        for engine in self.engines:  # all at once: one after the other would take too long
            if engine.process is not None and engine.process.poll() is None:
                engine.process.terminate()
                engine.process.send_signal(signal.SIGCONT)  # suspended, it would not hear of it
        until_s = time.monotonic() + _END_S
        for engine in self.engines:
            engine.end(until_s)
        for door in (self.front, self.link):
            if door is not None:
                door.close()

    def obey(self, command: dict[str, Any]) -> None:
        """Carry out one command on the link or the speed. Raises `EngineError`."""
        if "speed" in command:
            self._slow(command["speed"])
        elif self.link is None:
            raise EngineError("it has no link; give this provider one in the parameters")
        elif "set" in command:
            self.link.set(**command["set"])
        elif "drop" in command:
            self.link.drop()
        elif "restore" in command:
            self.link.restore()

    def ended(self) -> Engine | None:
        """An engine that ended by itself, if there is one."""
        processes = ((engine, engine.process) for engine in self.engines)
        return next((e for e, p in processes if p is not None and p.poll() is not None), None)

    def last_words(self) -> str:
        """What the engine that ended by itself said last; else the first one."""
        return (self.ended() or self.engines[0]).last_words()

    def _slow(self, speed: float) -> None:
        if self.slower is not None:
            self.slower.end()
            self.slower = None
        if speed < 1 or self.config["turn"] is not None:
            processes = [engine.process for engine in self.engines if engine.process is not None]
            self.slower = Slower(processes, speed, self.config["turn"])
            self.slower.start()


class Slower(threading.Thread):
    """Lets processes run for the share `speed` of the time, in cycles of 20 ms.

    What was suspended too long or too short in one cycle is made up for in the next ones, so
    that the share holds over any longer time although no single sleep is exact.

    With `turn` (which, of how many) the cycles are of 100 ms for each turn, begin at the same
    moments in every process of this machine, and it runs only in its own turn: engines that share
    their cores in time, as machines that each have the cores to themselves but stand still between.
    """

    def __init__(
        self,
        processes: Sequence[subprocess.Popen[bytes]],
        speed: float,
        turn: Sequence[int] | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self.processes, self.speed, self.turn = processes, speed, turn
        self.ended = threading.Event()

    def run(self) -> None:
        """Cycle until the end; the processes are left running."""
        if self.turn is None:
            self._by_share()
        else:
            self._by_turns(*self.turn)

    def end(self) -> None:
        """Stop slowing; returns when the processes run again."""
        self.ended.set()
        self.join()

    def _by_share(self) -> None:
        begun_s = resumed_s = time.monotonic()
        suspended_s = 0.0
        while not self.ended.wait(resumed_s + self.speed * _CYCLE_S - time.monotonic()):
            self._signal(signal.SIGSTOP)
            stopped_s = time.monotonic()
            # Solves suspended + (resume - stopped) = (1 - speed) (resume - begun).
            until_s = (stopped_s - suspended_s - (1 - self.speed) * begun_s) / self.speed
            self.ended.wait(max(0.0, until_s - time.monotonic()))
            self._signal(signal.SIGCONT)
            resumed_s = time.monotonic()
            suspended_s += resumed_s - stopped_s

    def _by_turns(self, which: int, count: int) -> None:
        cycle_s = count * _TURN_S
        begin_s = (time.monotonic() // cycle_s) * cycle_s + which * _TURN_S
        self._signal(signal.SIGSTOP)
        while not self.ended.wait(max(0.0, begin_s - time.monotonic())):
            self._signal(signal.SIGCONT)
            if self.ended.wait(max(0.0, begin_s + self.speed * _TURN_S - time.monotonic())):
                return
            self._signal(signal.SIGSTOP)
            begin_s += cycle_s
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        for process in self.processes:
            process.send_signal(which)


@contextlib.contextmanager
def _pinned_to(cores: Sequence[int] | None) -> Iterator[bool]:
    """This thread on these cores meanwhile; yields whether the system could do it."""
    me = psutil.Process()
    if not cores or not hasattr(me, "cpu_affinity"):
        yield False
        return
    before = me.cpu_affinity()
    try:
        me.cpu_affinity(list(cores))
        yield True
    finally:
        me.cpu_affinity(before)


def _die_with_parent() -> None:
    """Linux kills the engine even if its keeper is killed; elsewhere nothing can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """A person's own llama-server settings would make the engines' work unlike."""
    return {k: v for k, v in environment.items() if not k.startswith("LLAMA_ARG_")}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((_HOST, port)) != 0


def _how_it_ended(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    if code == -signal.SIGILL:
        return "it was ended by SIGILL (it uses an instruction that this processor lacks)"
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it ended by itself with code {code}"


def main() -> None:
    """Keep one engine until the standard input ends or the engine does."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the end of stdin ends a keeper. Not SIG_IGN, which the engine would inherit.
        signal.signal(ignored, lambda *_: None)
    events: queue.Queue[dict[str, Any] | None] = queue.Queue()
    keeper = Keeper(json.loads(sys.stdin.readline()))

    def listen() -> None:
        for line in sys.stdin:
            events.put(json.loads(line))
        events.put(None)

    threading.Thread(target=listen, daemon=True).start()
    try:
        _say(ready=keeper.start(lambda: not events.empty()))
        while (command := _next(events, keeper)) is not None:
            try:
                keeper.obey(command)
                _say(done=True)
            except EngineError as error:
                _say(done=str(error))
    except EngineError as error:
        _say(failed=str(error), log=keeper.last_words())
    finally:
        keeper.end()


def _next(events: queue.Queue[dict[str, Any] | None], keeper: Keeper) -> dict[str, Any] | None:
    """The next command; None where stdin or the engine ended."""
    while True:
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=0.2)
        if (gone := keeper.ended()) is not None and gone.process is not None:
            _say(ended=_how_it_ended(gone.process), log=gone.last_words())
            return None


def _say(**event: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: the end of stdin follows
        print(json.dumps(event), flush=True)


def _serve_xllamacpp() -> None:
    """The engine process for xllamacpp: llama.cpp's own server, until stdin ends."""
    import xllamacpp

    told = json.loads(sys.stdin.readline())
    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.model_alias = told["model"], {told["alias"]}
    wanted.hostnames, wanted.port, wanted.api_keys = [_HOST], told["port"], [told["key"]]
    wanted.n_ctx, wanted.n_parallel = told["context_tokens"], told["slots"]
    wanted.cont_batching, wanted.endpoint_metrics = told["batching"], True
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = told["threads"]
    if told["single"]:
        wanted.n_threads_http = 3
    wanted.cache_ram_mib, wanted.n_gpu_layers, wanted.ui = 0, 0, False
    server = xllamacpp.Server(wanted)
    sys.stdin.read()  # blocks without a thread that runs, until the keeper is gone
    del server
    os._exit(0)


if __name__ == "__main__":
    _serve_xllamacpp() if sys.argv[1:] == ["xllamacpp"] else main()
