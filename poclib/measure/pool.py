"""The providers of an experiment: engines started, keys read.

Joins what the parameters say with the embedded engines that it starts; measures nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from ..engines.pool import RunningEngine, engine_pool
from ..errors import EngineError, ParameterError
from ..parameters import Parameters, ProviderSettings
from ..providers import KINDS, Embedded
from ..records import Exchange, Probe, Prompt, ProviderFacts

Clock = Callable[[], float]


class Measurable(Protocol):
    """What an experiment needs of a provider, real or fake."""

    @property
    def name(self) -> str: ...
    async def send(self, prompt: Prompt, exchange: Exchange) -> None: ...
    async def describe(self) -> ProviderFacts: ...
    async def probe(self, clock: Clock) -> Probe | None: ...
    async def aclose(self) -> None: ...


@contextlib.contextmanager
def open_pool(
    parameters: Parameters,
    pool: Sequence[Measurable] | None = None,
    running: Mapping[str, RunningEngine] | None = None,
) -> Iterator[list[tuple[Measurable, dict[str, Any]]]]:
    """The providers, ready to be asked, each with what is known of its embedded engine.

    That are fields of `ProviderFacts`, and two that no report holds: `pids`, its processes, and
    `running`, the engine itself. Engines that are `running` already are used and left running;
    none is started then.

    Raises `EngineError` or `ParameterError` (a key's variable that is not set).
    """
    if pool is not None:
        yield [(provider, {}) for provider in pool]
        return
    embedded = [s for s in parameters.providers if s.kind == "embedded"]
    with contextlib.ExitStack() as stack:
        if embedded and running is None:
            started = stack.enter_context(engine_pool(embedded, parameters.context_tokens))
            running = {engine.name: engine for engine in started}
        opened: list[tuple[Measurable, dict[str, Any]]] = []
        for settings in parameters.providers:
            engine = (running or {}).get(settings.name)
            if engine is None:
                make, key = KINDS[settings.kind], _key(settings.name, settings.api_key_env)
                opened.append((make(settings, parameters, settings.url or "", key), {}))
                continue
            placed = settings.model_copy(update={"role": _role(settings)})
            provider = Embedded(placed, parameters, engine.url, engine.api_key)
            provider.ports = engine.ports
            opened.append((provider, engine_facts(settings, engine)))
        yield opened


class Shared:
    """Embedded engines for several runs in turn, started anew only where others are asked for."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._asked: tuple[str, ...] = ()
        self._running: dict[str, RunningEngine] = {}

    def of(self, parameters: Parameters) -> Mapping[str, RunningEngine]:
        """The engines by name; hand them to the run as `running`. Raises `EngineError`."""
        embedded = [one for one in parameters.providers if one.kind == "embedded"]
        same = {"adaptive": "off", "capacity": 1, "role": None}  # what no engine is started with
        asked = [one.model_copy(update=same).model_dump_json() for one in embedded]
        wanted = (*asked, str(parameters.context_tokens))
        if wanted != self._asked or not all(map(_lives, self._running.values())):
            self.close()
            started = self._stack.enter_context(engine_pool(embedded, parameters.context_tokens))
            self._running = {engine.name: engine for engine in started}
            self._asked = wanted
        return self._running

    def close(self) -> None:
        self._asked, self._running = (), {}
        self._stack.close()


def _lives(engine: RunningEngine) -> bool:
    try:
        engine.check()
    except EngineError:
        return False
    return True


def _role(settings: ProviderSettings) -> Literal["local", "remote"]:
    """An embedded engine behind a link plays the remote machine, unless it is told its role."""
    return settings.role or ("remote" if settings.link.round_trip_ms else "local")


def engine_facts(settings: ProviderSettings, engine: RunningEngine) -> dict[str, Any]:
    """Fields of `ProviderFacts` that need no question to an embedded engine, and two more."""
    return {
        "engine": engine.engine,
        "model": engine.model,
        "digest": f"gguf:{engine.model_digest}",
        "engine_kind": settings.engine_kind,
        "refuses": settings.refuses,
        "slots": engine.slots,
        "core": engine.cores[0],
        "cores": len(engine.cores),
        "turns": engine.turns,
        "threads": settings.threads,
        "pinned": engine.pinned,
        "pids": engine.pids,
        "running": engine,
        "batching": settings.engine_kind == "batched",
        "speed": settings.speed,
        "link": settings.link,
    }


def _key(name: str, variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable)):
        raise ParameterError(
            f"provider {name}: the environment variable {variable} is not set; "
            f"export {variable}=… with its key."
        )
    return key
