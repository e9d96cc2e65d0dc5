"""Keeps the engines of one provider: starts, pins, slows and links them, ends them with its parent.

Knows an engine's command and how to be told what to do; nothing of providers, prompts or reports,
and not which engine was chosen or why: `pool` decides that. Imports `link`, `errors`.

Runs as a process of its own (`python -m poclib.engines.keeper`), so that the link and the slowing
keep their times whatever the coordinator does, and so that nothing is left behind: when the
standard input ends (its parent finished, crashed or was killed), it ends the engines and itself.

    stdin   one JSON line of configuration, see `Keeper`; then one JSON line a command:
            "drop" or "restore" for its link, each answered by {"done": …}; the end of stdin
            ends everything
    stdout  {"ready": {"pids", "ports", "pinned"}}, or {"failed": sentence, "log": …};
            {"ended": sentence, "log": …} when an engine ends by itself
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

from ..errors import EngineError
from .link import EmulatedLink

_CYCLE_S = 0.020
# One turn of an engine that shares its cores in time: shorter ones would break up, by the very
# suspending, the contention that is to be seen.
_TURN_S = 0.100
_POLL_S = 0.010
_HEALTH_S, _ANSWER_S = 2.0, 15.0
_END_S = 0.5  # what an engine may take to end by itself: it has nothing to save
_TRIES = 3
_HOST = "127.0.0.1"
_DIE_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


class Engine:
    """One engine process on a port of its own; `config` as for `Keeper`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - nameless, so it cannot be left over
        self.launch()

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
            line = json.dumps({**first_line, "port": self.port})
            with contextlib.suppress(BrokenPipeError):  # it died; its last words say why
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()

    def wait(self, until_s: float, called_off: Callable[[], bool]) -> None:
        """Wait until it answers one token; launch it anew where a stranger took its port.

        Raises `EngineError`; `until_s` is a moment of the monotonic clock.
        """
        for _ in range(_TRIES):
            while self.process.poll() is None:
                if called_off():
                    raise EngineError("its start was called off")
                if self._asked("GET", "/health") == 200 and self._listens():
                    self._try()
                    return
                if time.monotonic() > until_s:
                    raise EngineError(f"it was not ready after {self.config['ready_s']:.0f} s")
                time.sleep(_POLL_S)
            if _is_free(self.port):  # else the port was taken meanwhile: try another
                break
            self.launch()
        raise EngineError(self.how_it_ended())

    def end(self, until_s: float) -> None:
        """Reap the process; kill it where it is still there at `until_s`."""
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

    def how_it_ended(self) -> str:
        """Why a process that has ended did."""
        code = self.process.returncode
        if code == -signal.SIGILL:
            return "it was ended by SIGILL (it uses an instruction that this processor lacks)"
        if code < 0:
            return f"it was ended by {signal.Signals(-code).name}"
        return f"it ended by itself with code {code}"

    def _try(self) -> None:
        """Have it answer one token: some instructions are first needed there."""
        status = self._asked("POST", "/completion", {"prompt": "One", "n_predict": 1})
        if status == 200:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)  # where it died of it, that is the reason
            raise EngineError(self.how_it_ended())
        raise EngineError(f"it gave no answer ({f'HTTP {status}' if status else 'none came'})")

    def _asked(self, method: str, path: str, body: dict[str, Any] | None = None) -> int | None:
        """The status of its answer; None where none came."""
        connection = http.client.HTTPConnection(
            _HOST, self.port, timeout=_ANSWER_S if body else _HEALTH_S
        )
        headers = {"Authorization": f"Bearer {self.config['key']}"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            with connection.getresponse() as answer:
                answer.read()
                return answer.status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _listens(self) -> bool:
        """Whether it is our engine that answers on the port, and not a stranger."""
        with contextlib.suppress(psutil.Error):
            return any(
                c.status == psutil.CONN_LISTEN and c.laddr.port == self.port
                for c in psutil.Process(self.process.pid).net_connections("tcp")
            )
        return False


class Keeper:
    """The processes of one provider, from start to end.

    `config`: `engines` (how many processes), `command` (list; "{port}" stands for the port),
    `environment` (added variables), `first_line` (a line for the engine's stdin, or null), `key`,
    `cores` (list of int, or null), `speed` (0 to 1], `turn` (null, or which turn of how many it
    has), `link` (its three numbers, or null), `ready_s` (seconds until all must be ready).
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.engines: list[Engine] = []
        self.link: EmulatedLink | None = None
        self.slower: Slower | None = None

    def start(self, called_off: Callable[[], bool]) -> dict[str, Any]:
        """Start all and wait until each is ready. Raises `EngineError`; returns what is ready."""
        until_s = time.monotonic() + self.config["ready_s"]
        for _ in range(self.config["engines"]):  # one by one: warming up together they would thrash
            self.engines.append(Engine(self.config))
            self.engines[-1].wait(until_s, called_off)
        ports = [engine.port for engine in self.engines]
        if self.config["link"] is not None:
            self.link = EmulatedLink(ports, **self.config["link"])
            ports = self.link.ports
        if self.config["speed"] < 1 or self.config["turn"] is not None:
            processes = [engine.process for engine in self.engines]
            self.slower = Slower(processes, self.config["speed"], self.config["turn"])
            self.slower.start()
        return {
            "pids": [engine.process.pid for engine in self.engines],
            "ports": ports,
            "pinned": all(engine.pinned for engine in self.engines),
        }

    def end(self) -> None:
        """Resume, terminate, kill and reap the engines; close the link."""
        if self.slower is not None:
            self.slower.end()
        for engine in self.engines:  # all at once: one after the other would take too long
            engine.process.terminate()
            engine.process.send_signal(signal.SIGCONT)  # suspended, it would not hear of it
        until_s = time.monotonic() + _END_S
        for engine in self.engines:
            engine.end(until_s)
        if self.link is not None:
            self.link.close()

    def obey(self, command: str) -> None:
        """Drop or restore the link. Raises `EngineError`."""
        if self.link is None:
            raise EngineError("it has no link; give this provider one in the parameters")
        if command == "drop":
            self.link.drop()
        else:
            self.link.restore()

    def ended(self) -> Engine | None:
        """An engine that ended by itself, if there is one."""
        return next((one for one in self.engines if one.process.poll() is not None), None)

    def last_words(self) -> str:
        """What the engine that was started last, or ended by itself, wrote last."""
        engine = self.ended() or (self.engines[-1] if self.engines else None)
        return engine.last_words() if engine else "none"


class Slower(threading.Thread):
    """Lets processes run for the share `speed` of the time, in cycles of 20 ms.

    What they ran too long or too short in one cycle is made up for in the next ones, so that
    the share holds over any longer time although no single sleep is exact.

    With `turn` (which, of how many) the cycles are of 100 ms for each turn, begin at the same
    moments in every process of this machine, and they run only in their own turn: engines that
    share their cores in time, as machines that each have the cores to themselves but stand still
    in between.
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
        which, count = self.turn or (0, 1)
        length_s = _TURN_S if self.turn else _CYCLE_S
        cycle_s, share_s = count * length_s, self.speed * length_s
        begin_s = (time.monotonic() // cycle_s) * cycle_s + which * length_s
        too_long_s = 0.0
        self._signal(signal.SIGSTOP)
        while not self._ended_by(begin_s):
            self._signal(signal.SIGCONT)
            resumed_s = time.monotonic()
            until_s = begin_s if self.turn else resumed_s - too_long_s
            if self._ended_by(until_s + share_s):
                return
            self._signal(signal.SIGSTOP)
            too_long_s += time.monotonic() - resumed_s - share_s
            begin_s += cycle_s
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """Stop slowing; returns when the processes run again."""
        self.ended.set()
        self.join()

    def _ended_by(self, moment_s: float) -> bool:
        return self.ended.wait(max(0.0, moment_s - time.monotonic()))

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


def main() -> None:
    """Keep the engines until the standard input or one of them ends."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the end of stdin ends a keeper. Not SIG_IGN, which the engine would inherit.
        signal.signal(ignored, lambda *_: None)
    events: queue.Queue[str | None] = queue.Queue()
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


def _next(events: queue.Queue[str | None], keeper: Keeper) -> str | None:
    """The next command; None where stdin or the engine ended."""
    while True:
        with contextlib.suppress(queue.Empty):
            return events.get(timeout=0.2)
        if (gone := keeper.ended()) is not None:
            _say(ended=gone.how_it_ended(), log=gone.last_words())
            return None


def _say(**event: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the parent is gone: the end of stdin follows
        print(json.dumps(event), flush=True)


if __name__ == "__main__":
    main()
