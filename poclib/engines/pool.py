"""The embedded pool: real llama.cpp engines on this machine, each on a core of its own.

Knows what each provider was asked to be and how an engine is started and ended; nothing of
prompts, strategies or wire formats. Imports `errors`, `records`, and `llama`, which finds engines
and model. Each engine is run by `keeper`, a process that outlives nothing: whatever ends this
process ends the engines too.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from ..errors import EngineError
from ..parameters import Link, ProviderSettings
from . import llama

DEFAULT_SLOTS = 4
READY_S = 60.0
_ANSWER_S = 15.0
_END_S = 10.0
_HOST = "127.0.0.1"


class Ports:
    """The addresses of an engine's processes, each lent to the request that is sent there.

    A bare engine has as many as slots, another engine has one. What is more than `slots` waits
    in the engine, as in any server, or finds none where the engine `refuses`.
    """

    def __init__(self, urls: Sequence[str], slots: int, refuses: bool = False) -> None:
        self.urls, self._most = tuple(urls), slots if refuses else None
        self._lent = dict.fromkeys(self.urls, 0)

    @contextmanager
    def take(self) -> Iterator[str | None]:
        """The address with the fewest requests, until the block ends; None where it refuses."""
        if self._most is not None and sum(self._lent.values()) >= self._most:
            yield None
            return
        url = min(self.urls, key=lambda url: self._lent[url])
        self._lent[url] += 1
        try:
            yield url
        finally:
            self._lent[url] -= 1


class RunningEngine:
    """One provider's engine: this side of its keeper process, told by lines and heard by lines.

    `wait` must have returned before `ports` (its link's, where it has a link), `pids` and
    `pinned` are there. What it is told raises `EngineError` where it is not done.
    """

    ports: Ports
    pids: tuple[int, ...]
    pinned: bool

    def __init__(
        self,
        build: llama.Build,
        model: Path,
        settings: ProviderSettings,
        cores: Sequence[int],
        context_tokens: int,
        turn: tuple[int, int] | None,
    ) -> None:
        self.name, self.settings, self.build, self.engine = (
            settings.name,
            settings,
            build,
            build.label,
        )
        self.model, self.model_digest = model.stem, llama.model_digest(model)
        self.cores, self.turns = tuple(cores), turn[1] if turn else None
        bare = settings.engine_kind == "bare"
        self.slots = settings.slots or DEFAULT_SLOTS
        if settings.engine_kind == "queueing":
            self.slots = 1
        self.api_key = secrets.token_urlsafe(24)
        self._heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self._ended: dict[str, Any] | None = None
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        each = 1 if bare else self.slots
        self._say(
            {
                **llama.starting(build, model, settings, each, context_tokens, self.api_key),
                "engines": self.slots if bare else 1,
                "key": self.api_key,
                "cores": self.cores,
                "speed": settings.speed,
                "turn": turn,
                "link": None if settings.link == Link() else settings.link.model_dump(),
                "ready_s": READY_S,
            }
        )

    @property
    def url(self) -> str:
        """The address where it answers what is no prompt."""
        return self.ports.urls[0]

    def wait(self, until_s: float) -> None:
        """Wait until it answers. Raises `EngineError` where it does not."""
        event = self._next(max(0.0, until_s - time.monotonic()) + _END_S)
        if "ready" not in event:
            raise self._error(event)
        urls = [f"http://{_HOST}:{port}" for port in event["ready"]["ports"]]
        self.ports = Ports(urls, self.slots, self.settings.refuses)
        self.pids, self.pinned = tuple(event["ready"]["pids"]), event["ready"]["pinned"]

    def drop_link(self) -> None:
        """Cut the link's connections and refuse new ones."""
        self._tell("drop")

    def restore_link(self) -> None:
        """Let the link accept connections again."""
        self._tell("restore")

    def check(self) -> None:
        """Raises `EngineError`, with the engine's last words, where it has ended by itself."""
        if self._ended is not None:
            raise self._error(self._ended)

    def release(self) -> None:
        """Let the keeper end its engine and itself; returns at once."""
        with suppress(OSError, ValueError):
            assert self._keeper.stdin is not None
            self._keeper.stdin.close()

    def join(self) -> None:
        """Wait until both are gone; kill what stays."""
        try:
            self._keeper.wait(_END_S)
        except subprocess.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                for engine in psutil.Process(self._keeper.pid).children():
                    engine.kill()
            self._keeper.kill()
            self._keeper.wait()
        self._hearing.join(_END_S)
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()

    def _tell(self, command: str) -> None:
        self.check()
        self._say(command)
        event = self._next(_ANSWER_S)
        if event.get("done") is not True:
            raise self._error(event)

    def _hear(self) -> None:
        assert self._keeper.stdout is not None
        stray: list[str] = []  # a traceback: kept, to be told where nothing better comes
        for line in self._keeper.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                stray.append(line.strip())
                continue
            if "ended" in event:
                self._ended = event
            self._heard.put(event)
        last = {"ended": "its keeper has ended", "log": " | ".join(stray[-5:])}
        self._ended = self._ended or last
        self._heard.put(self._ended)

    def _say(self, line: str | dict[str, Any]) -> None:
        assert self._keeper.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; what it said last tells why
            self._keeper.stdin.write(json.dumps(line) + "\n")
            self._keeper.stdin.flush()

    def _next(self, limit_s: float) -> dict[str, Any]:
        try:
            return self._heard.get(timeout=limit_s)
        except queue.Empty:
            return {"failed": f"its keeper did not answer within {limit_s:.0f} s"}

    def _error(self, event: dict[str, Any]) -> EngineError:
        reasons = (event.get(key) for key in ("failed", "ended", "done"))
        reason = next((text for text in reasons if text), "its keeper said nothing of use")
        log = f"; its last words: {event['log']}" if event.get("log") else "."
        return EngineError(f"embedded engine of provider {self.name}: {reason}{log}")


@contextmanager
def engine_pool(
    settings: Sequence[ProviderSettings], context_tokens: int
) -> Iterator[list[RunningEngine]]:
    """Start one engine for each of `settings` (kind embedded), all at once; stop all on leaving.

    `context_tokens` is what each slot of each engine can hold. Engines come in the order of
    `settings`; all are of the first build that answers on this machine. Raises `EngineError`
    where none does within 60 s.
    """
    engines = _start(settings, context_tokens)
    try:
        yield engines
    finally:
        _end(engines)


def _start(settings: Sequence[ProviderSettings], context_tokens: int) -> list[RunningEngine]:
    """Engines of the first build that answers here; those of a build that does not are ended."""
    model, cores = llama.find_model(), _cores(settings)
    for each in settings:
        if each.model not in (None, model.stem):
            raise EngineError(
                f"provider {each.name} asks for model {each.model}, but the embedded engines have "
                f"{model.stem}; leave model out, or name its GGUF file in $POCLIB_MODEL."
            )
    problems, until_s = "", time.monotonic() + READY_S
    for build in llama.builds():
        engines: list[RunningEngine] = []
        try:
            for each, own_cores in zip(settings, cores, strict=True):
                turn = _turn(each, settings)
                engines.append(RunningEngine(build, model, each, own_cores, context_tokens, turn))
            for engine in engines:
                engine.wait(until_s)
            return engines
        except EngineError as error:
            _end(engines)
            problems += f" {build.label}: {error}"
        except BaseException:
            _end(engines)
            raise
    raise EngineError(
        f"no embedded engine runs here.{problems}"
        if problems
        else "no embedded engine is installed here: run ./run-poc.sh, which installs one."
    )


def _end(engines: Sequence[RunningEngine]) -> None:
    for engine in engines:
        engine.release()
    for engine in engines:
        engine.join()


def _turn(one: ProviderSettings, settings: Sequence[ProviderSettings]) -> tuple[int, int] | None:
    """Which turn of how many an engine has that never runs while others of these do."""
    names = [each.name for each in settings if each.takes_turns]
    return (names.index(one.name), len(names)) if one.takes_turns and len(names) > 1 else None


def _cores(settings: Sequence[ProviderSettings]) -> list[list[int]]:
    """Each engine's cores: from the one asked for on, or the available ones in turn."""
    me = psutil.Process()
    can_pin = hasattr(me, "cpu_affinity")
    available = me.cpu_affinity() if can_pin else list(range(os.cpu_count() or 1))
    cores = []
    for index, one in enumerate(settings):
        if one.core is not None and one.core not in available:
            raise EngineError(
                f"provider {one.name} asks for core {one.core}, but this process may use only "
                f"{', '.join(map(str, available))}; choose one of these or leave core out."
            )
        if one.cores > len(available):
            raise EngineError(
                f"provider {one.name} asks for more cores than the {len(available)} that this "
                "process may use; set cores lower."
            )
        first = index if one.core is None else available.index(one.core)
        cores.append([available[(first + i) % len(available)] for i in range(one.cores)])
    return cores
