"""The embedded pool: real llama.cpp engines on this machine, each on a core of its own.

Each is run by a `keeper`, a process of its own: whatever ends this process ends the engines too.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from ..asked import Link
from ..errors import EngineError
from ..parameters import ProviderSettings
from . import llama, sharded
from .keeper import LACKS

_DEFAULT_SLOTS = 4
_UNFIT: dict[Path | None, str] = {}  # builds that this processor cannot run are tried once
_READY_S, _LOADED_S = 60.0, 1800.0  # the latter where weights must go through a real network
_LATER_S, _DONE_S, _END_S = 40.0, 15.0, 10.0  # a keeper itself gives up before


class Ports:
    """The addresses of an engine's processes, each lent to the request that is sent there.

    A bare engine has as many as slots, another has one. Requests beyond its slots wait in the
    engine, as in any server; one that refuses takes `most` and no more.
    """

    def __init__(self, urls: Sequence[str], most: int | None = None) -> None:
        self.most, self._lent = most, dict.fromkeys(urls, 0)

    @contextmanager
    def take(self) -> Iterator[str | None]:
        """The address with the fewest requests, until the block ends; None where it refuses."""
        if self.most is not None and sum(self._lent.values()) >= self.most:
            yield None
            return
        url = min(self._lent, key=self._lent.__getitem__)
        self._lent[url] += 1
        try:
            yield url
        finally:
            self._lent[url] -= 1


class RunningEngine:
    """One provider's engine: this side of its keeper process.

    `wait` must have returned before `ports` (its link's, where it has a link), `url` (for what is
    no prompt) and `pids` are there. Methods raise `EngineError` where they cannot do their work.
    """

    ports: Ports
    url: str
    pids: tuple[int, ...]
    pinned = sys.platform == "linux"

    def __init__(
        self,
        build: llama.Build,
        model: Path,
        settings: ProviderSettings,
        cores: Sequence[int],
        context_tokens: int,
        turn: tuple[int, int] | None,
    ) -> None:
        """Start it; `turn` is which of how many it has where it never runs while others do."""
        self.name, self.build, self.engine = settings.name, build, build.label
        self.model, self.model_digest = model.stem, llama.model_digest(model)
        self.cores, self.turns = tuple(cores), turn[1] if turn else None
        self.slots = 1 if settings.engine_kind == "queueing" else settings.slots or _DEFAULT_SLOTS
        self._most = self.slots if settings.refuses else None
        self.api_key = secrets.token_urlsafe(24)
        processes, slots = (self.slots, 1) if settings.engine_kind == "bare" else (1, self.slots)
        config: dict[str, Any] = {
            "engines": processes,
            "command": llama.command(build, model, settings, slots, context_tokens),
            "environment": dict(build.environment),
            "key": self.api_key,
            "cores": self.cores,
            "speed": settings.speed,
            "turn": turn,
            "link": None if settings.link == Link() else settings.link.model_dump(),
            "ready_s": _LOADED_S if settings.shard and settings.shard.at else _READY_S,
            "shard": None,
        }
        if settings.shard:
            # Always through a link, which counts.
            config |= {"engines": 0, "link": settings.link.model_dump()}
            config["shard"] = sharded.config(build, model, settings, cores)
        # A person's own settings of llama-server would make the engines' work unlike.
        kept = {key: text for key, text in os.environ.items() if not key.startswith("LLAMA_ARG_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.keeper"],
            bufsize=0,  # `select` would not see a line that waits in a buffer
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=kept,
            cwd=Path(__file__).resolve().parents[2],
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to_keeper, self._from_keeper = self._process.stdin, self._process.stdout
        self._problem, self._ready_s = "its keeper has ended", config["ready_s"] + _LATER_S
        self._send(json.dumps(config))

    def wait(self) -> None:
        """Wait until it answers."""
        ready = self._next(self._ready_s)["ready"]
        urls = [f"http://127.0.0.1:{port}" for port in ready["ports"]]
        self.ports, self.url, self.pids = Ports(urls, self._most), urls[0], tuple(ready["pids"])
        self.split: list[float] | None = ready.get("split")
        self.probed_ms: float | None = ready.get("probed_ms")  # the round trip to workers, no link

    def drop_link(self) -> None:
        """Cut the link's connections and refuse new ones."""
        self._tell("drop")

    def restore_link(self) -> None:
        """Let the link accept connections again."""
        self._tell("restore")

    def change_link(self, link: Link) -> None:
        """Delay what passes the link from now on as `link` says."""
        self._tell(link.model_dump_json())

    def counts(self) -> list[dict[str, Any]]:
        """What has passed the link so far, for each worker: fields of `link.Count`."""
        return self._tell("count")

    def check(self) -> None:
        """Raises `EngineError`, with the engine's last words, where it has ended by itself."""
        if select.select([self._from_keeper], [], [], 0)[0]:  # unasked, it only tells a problem
            self._next(0)

    def end(self) -> None:
        """Let the keeper end its engine and itself; it is killed where it does not."""
        self._to_keeper.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from_keeper.close()

    def _tell(self, command: str) -> list[dict[str, Any]]:
        self._send(command)
        counts: list[dict[str, Any]] = self._next(_DONE_S)["done"]
        return counts

    def _send(self, line: str) -> None:
        with suppress(BrokenPipeError):  # it has ended; what it said last tells why
            self._to_keeper.write(f"{line}\n".encode())

    def _next(self, limit_s: float) -> dict[str, Any]:
        """What the keeper says next. Raises `EngineError` where that is a problem."""
        if not select.select([self._from_keeper], [], [], limit_s)[0]:
            self._problem = f"its keeper did not answer within {limit_s:.0f} s"
        elif line := self._from_keeper.readline():
            event: dict[str, Any] = json.loads(line)
            if "problem" not in event:
                return event
            self._problem = event["problem"]
        raise EngineError(f"embedded engine of provider {self.name}: {self._problem}.")


@contextmanager
def engine_pool(
    settings: Sequence[ProviderSettings], context_tokens: int, only: str | None = None
) -> Iterator[list[RunningEngine]]:
    """Start one engine for each of `settings`, all at once; stop all on leaving.

    `context_tokens` is what each slot of each engine can hold. Engines come in the order of
    `settings`; all are of the first build that answers on this machine, or of the one labelled
    `only`. Raises `EngineError` where none does within 60 s.
    """
    model, cores = llama.find_model(), _cores(settings)
    for each in settings:
        if each.model not in (None, model.stem):
            raise EngineError(
                f"provider {each.name} asks for model {each.model}, but the embedded engines have "
                f"{model.stem}; leave model out, or name its GGUF file in $POCLIB_MODEL."
            )
    takers, problems = [each.name for each in settings if each.takes_turns], ""
    sharding = any(each.shard for each in settings)
    for build in llama.builds():
        if (sharding and build.rpc is None) or only not in (None, build.label):
            continue
        if build.binary in _UNFIT:
            problems += f" {build.label}: {_UNFIT[build.binary]}"
            continue
        with ExitStack() as stack:
            engines: list[RunningEngine] = []
            try:
                for each, own in zip(settings, cores, strict=True):
                    shares = each.takes_turns and len(takers) > 1
                    turn = (takers.index(each.name), len(takers)) if shares else None
                    engines.append(RunningEngine(build, model, each, own, context_tokens, turn))
                    stack.callback(engines[-1].end)
                for engine in engines:
                    engine.wait()
            except EngineError as error:
                problems += f" {build.label}: {error}"
                _UNFIT.update({build.binary: str(error)} if LACKS in str(error) else {})
                continue
            yield engines
            return
    cure = "./run-poc.sh wire, which gets one" if sharding else "./run-poc.sh, which installs one"
    problems = problems or f" {only or 'one'} is not installed; run {cure}."
    raise EngineError(f"no embedded engine runs here:{problems}")


def _cores(settings: Sequence[ProviderSettings]) -> list[list[int]]:
    """Each engine's cores: from the one asked for on, or the available ones in turn."""
    if sys.platform == "linux":
        available = sorted(os.sched_getaffinity(0))
    else:
        available = list(range(os.cpu_count() or 1))
    cores = []
    for index, each in enumerate(settings):
        if each.core not in (None, *available) or each.cores > len(available):
            raise EngineError(
                f"provider {each.name} asks for cores that this process may not use; it may use "
                f"{', '.join(map(str, available))}: change core or cores."
            )
        first = index if each.core is None else available.index(each.core)
        count = min(each.shard.workers, len(available)) if each.shard else each.cores
        cores.append([available[(first + i) % len(available)] for i in range(count)])
    return cores
