"""One model's layers over several workers, each behind a link; a coordinator puts them together.

The workers are llama.cpp's `ggml-rpc-server`: processes of ours, or a person's own on a private
network, which have no authentication. Runs in the process of a `keeper`, which carries the bytes.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..addresses import is_private
from ..errors import EngineError
from .link import Count, EmulatedLink
from .process import Engine

if TYPE_CHECKING:  # a keeper, which imports this too, has no use for them
    from ..parameters import ProviderSettings
    from .llama import Build

_HELLO, _MEMORY = (14, bytes(24)), (11, bytes(4))  # llama.cpp's RPC: a command and its argument
_ANSWER_S, _ROUNDS = 5.0, 4
# Stages whose measured times are as near as this are as good as equal.
_NEAR = 1.15


def config(
    build: Build, model: Path, settings: ProviderSettings, cores: Sequence[int]
) -> dict[str, Any]:
    """What a keeper is told of a sharded model; the coordinator's own words are in `words`.

    Raises `EngineError` for a worker's address that is not loopback or private.
    """
    shard = settings.shard
    assert shard is not None and build.rpc is not None, "only such a build is asked"
    words = ["--n-gpu-layers", str(layers(model) + 1 - shard.local_layers)]
    words += ["--split-mode", "layer", "--fit", "off"]
    if shard.local_output:
        words += ["--override-tensor", r"^(output|token_embd)\.weight=CPU"]
    if shard.draft == "itself":
        words += ["--spec-type", "draft-simple", "--model-draft", str(model)]
        words += ["--spec-draft-device", "none"]
    elif shard.draft:
        words += ["--spec-type", shard.draft]
    if shard.draft:
        words += ["--spec-draft-n-max", str(shard.draft_tokens)]
    return {
        "words": words,
        "at": [_address(settings.name, each) for each in shard.at or ()],
        "worker": [str(build.rpc), "--threads", str(settings.threads), "--port"],
        "cores": [cores[i % len(cores)] for i in range(shard.workers)],
        "memory_bytes": shard.worker_memory_mib and shard.worker_memory_mib * 2**20,
        "split": shard.split,
        "weight_bytes": model.stat().st_size,
    }


def layers(model: Path) -> int:
    """How many a GGUF file says that it has. Raises `EngineError` where it says none."""
    with model.open("rb") as file:
        head = file.read(2**20)
    at = head.find(key := b".block_count") + len(key)
    if at < len(key):
        raise EngineError(f"{model.name} says no number of layers; is it a GGUF file of a model?")
    return int(struct.unpack_from("<II", head, at)[1])  # behind the value's type


def _address(provider: str, word: str) -> tuple[str, int]:
    """Of `host:port`. A name is looked up once, so that what was checked is what is used."""
    host, _, port = word.rpartition(":")
    try:
        found = str(socket.getaddrinfo(host.strip("[]"), int(port))[0][4][0])
    except (OSError, ValueError):
        told = "is no address of a worker, such as 192.168.1.20:50052"
        raise EngineError(f"provider {provider}: {word[:80]} {told}.") from None
    if not is_private(found):
        raise EngineError(
            f"provider {provider}: a worker's address is neither loopback nor private, and workers "
            "ask nobody who they are: put a tunnel before it (ssh -L 50052:127.0.0.1:50052 HOST)."
        )
    return found, int(port)


def hello(host: str, port: int) -> tuple[str, int]:
    """A worker's protocol and its free memory in bytes. Raises `OSError` or `ValueError`."""
    with socket.create_connection((host, port), _ANSWER_S) as asked:
        told = []
        for command, argument in (_HELLO, _MEMORY):
            asked.sendall(struct.pack("<BQ", command, len(argument)) + argument)
            (size,) = struct.unpack("<Q", _exactly(asked, 8))
            if size > 64:
                raise ValueError("no worker")
            told.append(_exactly(asked, size))
    return ".".join(map(str, told[0][:3])), int(struct.unpack_from("<Q", told[1])[0])


def probe_ms(at: Sequence[str]) -> float:
    """The mean over workers of the shortest of five connects: a round trip each."""
    shortest = []
    for word in at:
        trips = []
        for _ in range(5):
            begun_s = time.perf_counter()
            with socket.create_connection(_address("the workers", word), _ANSWER_S):
                trips.append(time.perf_counter() - begun_s)
        shortest.append(min(trips))
    return 1000 * sum(shortest) / len(shortest)


def _exactly(asked: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        if not (more := asked.recv(size - len(got))):
            raise ValueError("no worker")
        got += more
    return got


def start(
    config: dict[str, Any], engines: list[Engine], until_s: float
) -> tuple[EmulatedLink, int, list[float]]:
    """Start workers and coordinator; the link, the coordinator's port, the layers' split.

    Weights go through the link without a delay. Where no split is asked for, the stages of an
    equal one are timed, and one by the workers' speed and memory is loaded if it differs.
    Raises `EngineError`.
    """
    shard = config["shard"]
    for core in shard["cores"][: 1 if shard["at"] else None]:  # one of ours tells the protocol
        port = _free_port()
        worker = {"command": [*shard["worker"], str(port)], "cores": [core]}
        worker |= {"name": f"worker {len(engines) + 1}", "memory_bytes": shard["memory_bytes"]}
        engines.append(Engine({**config, **worker}))
        engines[-1].listening(until_s)
    ours = [("127.0.0.1", each.port() or 0) for each in engines]
    found = _asked(ours[:1]) + _asked(shard["at"]) if shard["at"] else _asked(ours)
    if other := sorted({protocol for protocol, _ in found} - {found[0][0]}):
        told = f"a worker speaks protocol {', '.join(other)} and this engine {found[0][0]}"
        raise EngineError(f"{told}: use the same build of llama.cpp on every machine")
    if shard["at"]:
        engines.pop().process.kill()
    link = EmulatedLink(shard["at"] or ours)
    count, free = len(link.ports), [each[1] for each in found[-len(link.ports) :]]
    near = [f"127.0.0.1:{port}" for port in link.ports]
    devices = ",".join(f"RPC{i}" for i in range(count))
    words = [*config["command"], *shard["words"], "--rpc", ",".join(near), "--device", devices]
    split = shard["split"] or [1.0] * count
    while True:
        command = [*words, "--tensor-split", ",".join(f"{share:g}" for share in split)]
        environment = {**config["environment"], "GGML_NO_BACKTRACE": "1"}
        own = {"command": command, "environment": environment, "name": "the coordinator"}
        engines.append(Engine({**config, **own, "cores": sorted(set(shard["cores"]))}))
        port = engines[-1].wait(until_s)
        if shard["split"] or count == 1:
            return link, port, split
        before = [each.busy_s for each in link.counts]
        for _ in range(_ROUNDS):
            engines[-1].answer(port)
        shard["split"] = by_speed(link.counts, before, free, shard["weight_bytes"])
        if max(shard["split"]) < _NEAR * min(shard["split"]):
            return link, port, split
        split = shard["split"]
        engines[-1].process.kill()
        engines.pop().process.wait()


def by_speed(
    counts: Sequence[Count], before: Sequence[float], free: Sequence[int], weight_bytes: int
) -> list[float]:
    """The share of the layers for each worker: by its speed, at most what its memory holds.

    `before` is `busy_s` as it was when equal shares began to be timed.
    """
    speeds = [1 / max(now.busy_s - was, 1e-9) for now, was in zip(counts, before, strict=True)]
    return [
        min(speed / sum(speeds), room / weight_bytes)
        for speed, room in zip(speeds, free, strict=True)
    ]


def _asked(at: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    found = []
    for which, each in enumerate(at, 1):
        try:
            found.append(hello(*each))
        except (OSError, ValueError) as error:
            why = "is busy with another coordinator, or is none"
            if isinstance(error, ConnectionRefusedError):
                why = "is not running, or listens on another address: start it with --host"
            raise EngineError(
                f"worker {which} of {len(at)} does not answer as a ggml-rpc-server does: it {why}"
            ) from None
    return found


def _free_port() -> int:
    """A worker takes none by itself."""
    with socket.create_server(("127.0.0.1", 0)) as free, suppress(OSError):
        return int(free.getsockname()[1])
    raise EngineError("no port is free")
