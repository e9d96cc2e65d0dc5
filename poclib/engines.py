"""The embedded pool: real llama.cpp engines on this machine, one process each, on its own core.

It knows what each provider was asked to be and how an engine is started, tried and ended; nothing
of prompts, strategies or wire formats. Imports `errors`, `records`, and `llama`, which finds the
engine and the model. Each engine is run by `keeper`, a process that outlives nothing: whatever
ends this process ends the engines too.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from . import llama
from .errors import EngineError
from .llama import EngineChoice, find_model, model_digest
from .records import Link, ProviderSettings

__all__ = ["EngineChoice", "RunningEngine", "choose_engine", "find_model", "model_digest", "pool"]

DEFAULT_SLOTS = 4
READY_S = 60.0
_ANSWER_S = 15.0
_END_S = 10.0
_HOST = "127.0.0.1"
_SEEN_S = 1.0  # a keeper sees the end of its engine within 0.2 s


@dataclass(frozen=True)
class RunningEngine:
    """One engine that answers. `url` is its link's address where it has a link."""

    name: str
    url: str
    api_key: str = field(repr=False)
    engine: str
    pids: tuple[int, ...]
    cores: tuple[int, ...]
    turns: int | None
    threads: int
    pinned: bool
    slots: int
    context_tokens: int
    model: str
    model_digest: str
    _keeper: _Keeper = field(repr=False, compare=False)

    @property
    def pid(self) -> int:
        """Its process, the first where it has several (bare)."""
        return self.pids[0]

    @property
    def core(self) -> int | None:
        """The first of its cores."""
        return self.cores[0] if self.cores else None

    def set_speed(self, speed: float) -> None:
        """Change the share of the time that it may run, above 0 to 1. Raises `EngineError`."""
        self._keeper.tell({"speed": speed})

    def set_link(self, link: Link) -> None:
        """Change the link for bytes that enter it from now on. Raises `EngineError`."""
        self._keeper.tell({"set": link.model_dump()})

    def drop_link(self) -> None:
        """Cut the link's connections and refuse new ones. Raises `EngineError`."""
        self._keeper.tell({"drop": True})

    def restore_link(self) -> None:
        """Let the link accept connections again. Raises `EngineError`."""
        self._keeper.tell({"restore": True})

    def check(self) -> None:
        """Raises `EngineError`, with the engine's last words, where it has ended by itself."""
        self._keeper.check()


@contextmanager
def pool(
    settings: Sequence[ProviderSettings], context_tokens: int
) -> Iterator[list[RunningEngine]]:
    """Start one engine for each of `settings` (kind embedded), all at once; stop all on leaving.

    `context_tokens` is what each slot of each engine can hold. Engines come in the order of
    `settings`. Raises `EngineError` where one cannot be started within 60 s.
    """
    model, cores = find_model(), _cores(settings)
    for one in settings:
        if one.model not in (None, model.stem):
            raise EngineError(
                f"provider {one.name} asks for model {one.model}, but the embedded engines have "
                f"{model.stem}; leave model out, or name its GGUF file in $POCLIB_MODEL."
            )
    choice = choose_engine()
    keepers: list[_Keeper] = []
    try:
        turn_takers = [one.name for one in settings if one.takes_turns]
        for one, mine in zip(settings, cores, strict=True):
            turn = None
            if one.takes_turns and len(turn_takers) > 1:
                turn = turn_takers.index(one.name), len(turn_takers)
            keepers.append(_Keeper(choice, model, one, mine, context_tokens, turn))
        yield [_running(k, choice, model, context_tokens) for k in keepers]
    finally:
        for keeper in keepers:
            keeper.release()
        for keeper in keepers:
            keeper.join()


def choose_engine() -> EngineChoice:
    """The first engine that answers one token here; `llama.choose` has the order and the errors."""
    return llama.choose(_trial)


def _trial(choice: EngineChoice, model: Path) -> str:
    """Why an engine does not answer one token on this machine; "" where it does."""
    keeper = _Keeper(choice, model, ProviderSettings(name="trial", slots=1), (), 64)
    try:
        request = urllib.request.Request(
            f"http://{_HOST}:{keeper.ready()['port']}/completion",
            data=json.dumps({"prompt": "One", "n_predict": 1}).encode(),
            headers={"Authorization": f"Bearer {keeper.key}", "Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=_ANSWER_S) as answer:
            json.load(answer)["content"]
    except EngineError:
        return keeper.problem
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        keeper.hearing.join(_SEEN_S)  # where the engine died of it, this ends with the reason
        return str(keeper.ended["ended"]) if keeper.ended else f"it gave no answer ({error})"
    finally:
        keeper.release()
        keeper.join()
    return ""


class _Keeper:
    """This side of one keeper process: told by lines, heard by lines."""

    def __init__(
        self,
        choice: EngineChoice,
        model: Path,
        settings: ProviderSettings,
        cores: Sequence[int],
        context_tokens: int,
        turn: tuple[int, int] | None = None,
    ) -> None:
        self.settings, self.cores, self.turn = settings, tuple(cores), turn
        kind = settings.engine_kind
        self.slots = 1 if kind == "queueing" else settings.slots or DEFAULT_SLOTS
        bare = kind == "bare"
        self.key = secrets.token_urlsafe(24)
        self.until_s = time.monotonic() + READY_S
        self.heard: queue.Queue[dict[str, Any]] = queue.Queue()
        self.ended: dict[str, Any] | None = None
        self.problem = ""
        package = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.keeper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
            text=True,
        )
        self.hearing = threading.Thread(target=self._hear, daemon=True)
        self.hearing.start()
        each = 1 if bare else self.slots
        config = llama.starting(choice, model, settings, each, context_tokens, self.key)
        config |= {"cores": self.cores, "speed": settings.speed, "ready_s": READY_S, "turn": turn}
        config["engines"] = self.slots if bare else 1
        in_front = {"each": each, "refuses": settings.refuses}
        config["front"] = in_front if bare or settings.refuses else None
        config["link"] = None if settings.link == Link() else settings.link.model_dump()
        self._say(config)

    def ready(self) -> dict[str, Any]:
        """What the keeper says once the engine answers. Raises `EngineError`."""
        event = self._wait(max(0.0, self.until_s - time.monotonic()) + _END_S)
        if "ready" not in event:
            raise self._error(event)
        return dict(event["ready"])

    def tell(self, command: dict[str, Any]) -> None:
        """Have the keeper do something and wait until it is done. Raises `EngineError`."""
        self.check()
        self._say(command)
        event = self._wait(_ANSWER_S)
        if event.get("done") is not True:
            raise self._error(event)

    def check(self) -> None:
        """Raises `EngineError` where the engine or its keeper has ended."""
        if self.ended is not None:
            raise self._error(self.ended)

    def release(self) -> None:
        """Let the keeper end its engine and itself; returns at once."""
        with suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.close()

    def join(self) -> None:
        """Wait until both are gone; kill what stays."""
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            with suppress(psutil.NoSuchProcess):
                for engine in psutil.Process(self.process.pid).children():
                    engine.kill()
            self.process.kill()
            self.process.wait()
        self.hearing.join(_END_S)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        stray: list[str] = []  # a traceback: kept, to be told where nothing better comes
        for line in self.process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                stray.append(line.strip())
                continue
            if "ended" in event:
                self.ended = event
            self.heard.put(event)
        self.ended = self.ended or {"ended": "its keeper has ended", "log": " | ".join(stray[-5:])}
        self.heard.put(self.ended)

    def _say(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; what it said last tells why
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()

    def _wait(self, limit_s: float) -> dict[str, Any]:
        try:
            return self.heard.get(timeout=limit_s)
        except queue.Empty:
            return {"failed": f"its keeper did not answer within {limit_s:.0f} s"}

    def _error(self, event: dict[str, Any]) -> EngineError:
        said = (event.get(key) for key in ("failed", "ended", "done"))
        self.problem = next((text for text in said if text), "its keeper said nothing of use")
        log = f"; its last words: {event['log']}" if event.get("log") else "."
        return EngineError(f"embedded engine of provider {self.settings.name}: {self.problem}{log}")


def _running(
    keeper: _Keeper, choice: EngineChoice, model: Path, context_tokens: int
) -> RunningEngine:
    ready = keeper.ready()
    return RunningEngine(
        name=keeper.settings.name,
        url=f"http://{_HOST}:{ready['link_port'] or ready['port']}",
        api_key=keeper.key,
        engine=choice.label,
        pids=tuple(ready["pids"]),
        cores=keeper.cores,
        turns=keeper.turn[1] if keeper.turn else None,
        threads=keeper.settings.threads,
        pinned=ready["pinned"],
        slots=keeper.slots,
        context_tokens=context_tokens,
        model=model.stem,
        model_digest=model_digest(model),
        _keeper=keeper,
    )


def _cores(settings: Sequence[ProviderSettings]) -> list[list[int]]:
    """Each engine's cores: from the one asked for on, or the available ones in turn."""
    me = psutil.Process()
    can_pin = hasattr(me, "cpu_affinity")
    available = me.cpu_affinity() if can_pin else list(range(os.cpu_count() or 1))
    for one in settings:
        if one.core is not None and one.core not in available:
            raise EngineError(
                f"provider {one.name} asks for core {one.core}, but this process may use only "
                f"{', '.join(map(str, available))}; choose one of these or leave core out."
            )
    first = [
        i % len(available) if one.core is None else available.index(one.core)
        for i, one in enumerate(settings)
    ]
    if short := [one.name for one in settings if one.cores > len(available)]:
        raise EngineError(
            f"provider {short[0]} asks for more cores than the {len(available)} that this "
            "process may use; set cores lower."
        )
    return [
        [available[(start + i) % len(available)] for i in range(one.cores)]
        for start, one in zip(first, settings, strict=True)
    ]
