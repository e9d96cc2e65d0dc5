"""One model's layers over several workers, each behind a link; a coordinator asks them in turn.

Workers are llama.cpp's `ggml-rpc-server`, which asks nobody who they are: processes of ours, or a
person's own on private addresses. `start` runs in a keeper's process, which carries the bytes.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..addresses import is_private
from ..errors import EngineError, ParameterError
from .link import EmulatedLink

if TYPE_CHECKING:  # a keeper has no use for them
    from ..parameters import ProviderSettings
    from .llama import Build

_HELLO, _MEMORY = (14, bytes(24)), (11, bytes(4))  # commands of llama.cpp's RPC: number, argument
_ANSWER_S, _ROUNDS = 5.0, 4
_NEAR = 1.15  # stages whose times are within this factor are left as they are


def config(
    build: Build, model: Path, settings: ProviderSettings, cores: Sequence[int]
) -> dict[str, Any]:
    """What a keeper is told of a sharded model. Raises `ParameterError` for an address."""
    shard = settings.shard
    assert shard is not None and build.rpc is not None, "only such a build is asked"
    words = ["--n-gpu-layers", str(layers(model) + 1 - shard.local_layers), "--fit", "off"]
    if shard.local_output:
        words += ["--override-tensor", r"^(output|token_embd)\.weight=CPU"]
    if shard.draft:
        words += ["--spec-draft-n-max", str(shard.draft_tokens), "--spec-type"]
    if shard.draft == "itself":
        words += ["draft-simple", "--model-draft", str(model), "--spec-draft-device", "none"]
    elif shard.draft:
        words.append(shard.draft)
    first = int(shard.local_layers > 0)  # then the coordinator's core is in use, too
    return {
        "words": words,
        "at": [address(f"provider {settings.name}", each) for each in shard.at or ()],
        "worker": [str(build.rpc), "--threads", str(settings.threads), "--port"],
        "cores": [cores[(first + i) % len(cores)] for i in range(shard.workers)],
        "memory_bytes": shard.worker_memory_mib and shard.worker_memory_mib * 2**20,
        "split": shard.split,
        "weight_bytes": model.stat().st_size,
    }


def layers(model: Path) -> int:
    """How many a GGUF file says that it has. Raises `EngineError` where it says none."""
    with model.open("rb") as file:
        _, key, value = file.read(2**20).partition(b".block_count")
    if not key:
        raise EngineError(f"{model.name} says no number of layers; is it a GGUF file of a model?")
    return int(struct.unpack_from("<II", value)[1])  # behind its type


def address(whose: str, word: str) -> tuple[str, int]:
    """Of `host:port`; a name is looked up once, so that what was checked is what is used.

    Raises `ParameterError` for what is none, or not private.
    """
    host, _, port = word.rpartition(":")
    problem = "is no address of a worker, such as 192.168.1.20:50052"
    try:
        found = str(socket.getaddrinfo(host.strip("[]"), int(port))[0][4][0])
        if is_private(found):
            return found, int(port)
        problem = (
            "is neither loopback nor private; put a tunnel there: ssh -L 50052:127.0.0.1:50052"
        )
    except (OSError, ValueError):
        pass
    raise ParameterError(f"{whose}: {word[:80]} {problem}.")


def hello(host: str, port: int) -> tuple[str, int, float]:
    """A worker's protocol, its free memory in bytes, and the round trip to it in ms.

    Raises `OSError` or `ValueError`.
    """
    told, trips_ms = [], []
    with socket.create_connection((host, port), _ANSWER_S) as asked, asked.makefile("rb") as answer:
        for command, argument in (_HELLO, _MEMORY, _MEMORY, _MEMORY):
            begun_s = time.perf_counter()
            asked.sendall(struct.pack("<BQ", command, len(argument)) + argument)
            size = int.from_bytes(answer.read(8), "little")
            if not 3 <= size <= 64:
                raise ValueError("no worker")
            told.append(answer.read(size))
            trips_ms.append(1000 * (time.perf_counter() - begun_s))
    protocol, free = ".".join(map(str, told[0][:3])), int.from_bytes(told[1][:8], "little")
    return protocol, free, min(trips_ms[1:])


def start(
    engine: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    engines: list[Any],
    until_s: float,
) -> tuple[EmulatedLink, int, dict[str, Any]]:
    """Start workers and coordinator: the link, the coordinator's port, and what a keeper tells.

    Weights pass a link without delay. Where no split is asked for, equal shares are timed and, if
    that differs, what is left is loaded by the workers' speed. Raises `EngineError`.
    """
    shard = config["shard"]
    ours = []
    # Beside workers of a person's own, one of ours tells which protocol is the coordinator's.
    for core in shard["cores"][: 1 if shard["at"] else None]:
        with socket.create_server(("127.0.0.1", 0)) as free:  # a worker does not choose by itself
            ours.append(free.getsockname())
        own: dict[str, Any] = {"command": [*shard["worker"], str(ours[-1][1])], "cores": [core]}
        own |= {"name": f"worker {len(ours)}", "memory_bytes": shard["memory_bytes"]}
        engines.append(engine(config | own))
        while engines[-1].port() is None:
            engines[-1].check()
    found = [_asked(f"worker {i} of ours", at) for i, at in enumerate(ours, 1)]
    if shard["at"]:
        theirs = [_asked(f"worker {i}", at) for i, at in enumerate(shard["at"], 1)]
        if other := sorted({each[0] for each in theirs} - {found[0][0]}):
            raise EngineError(
                f"a worker speaks protocol {', '.join(other)} and this engine {found[0][0]}: use "
                "the same build of llama.cpp on every machine"
            )
        found = theirs
        engines.pop().process.kill()
    link = EmulatedLink(shard["at"] or [port for _, port in ours])
    words = [*shard["words"], "--rpc", ",".join(f"127.0.0.1:{port}" for port in link.ports)]
    words += ["--device", ",".join(f"RPC{i}" for i in range(len(found)))]
    told = {"probed_ms": sum(each[2] for each in found) / len(found)}
    own = {"name": "the coordinator"}
    own["environment"] = config["environment"] | {"GGML_NO_BACKTRACE": "1"}  # of a debugger's
    split = shard["split"] or [1.0] * len(found)
    while True:
        shares = ["--tensor-split", ",".join(map(str, split))]
        engines.append(engine(config | own | {"command": [*config["command"], *words, *shares]}))
        try:
            port = engines[-1].wait(until_s)
        except EngineError:
            for worker in engines[:-1]:  # whose end is what ends a coordinator
                worker.check()
            raise
        if shard["split"] or len(found) == 1:
            return link, port, told | {"split": split}
        before = [count.busy_s for count in link.counts]
        for _ in range(_ROUNDS):
            engines[-1].answer(port)
        busy_s = [now.busy_s - was for now, was in zip(link.counts, before, strict=True)]
        shard["split"] = by_speed(busy_s, [each[1] / shard["weight_bytes"] for each in found])
        if max(busy_s) < _NEAR * min(busy_s):
            return link, port, told | {"split": split}
        split = shard["split"]
        ended = engines.pop().process
        ended.kill()
        ended.wait()


def by_speed(busy_s: Sequence[float], room: Sequence[float]) -> list[float]:
    """Shares for stages that took so long with equal ones; at most the share that has `room`."""
    speeds = [1 / max(each, 1e-9) for each in busy_s]
    return [min(one / sum(speeds), most) for one, most in zip(speeds, room, strict=True)]


def _asked(name: str, at: tuple[str, int]) -> tuple[str, int, float]:
    try:
        return hello(*at)
    except ConnectionRefusedError:
        why = "does not run there, or listens to its own machine only (start it with --host)"
    except (OSError, ValueError):
        why = "is no ggml-rpc-server, or works for another coordinator"
    raise EngineError(f"{name} {why}")
