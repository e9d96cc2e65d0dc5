"""A scripted provider, and a clock that costs no time: for trying and testing, no server.

pool = [fake.Provider("fast", 100), fake.Provider("slow", 250)]
arm = fake.run(lambda clock: run_arm(..., pool, ..., clock, Rules()))
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from ..errors import ProviderError
from ..records import Exchange, Probe, Prompt, ProviderFacts, ServerTimings

T = TypeVar("T")


@dataclass(eq=False)
class Provider:
    """Answers after `service_ms`, `slots` at a time; the rest wait inside the server."""

    name: str
    service_ms: float | Callable[[Prompt], float] = 100.0
    slots: int = 1
    overhead_ms: float = 0.0  # outside the server's own time, as in a network
    role: Literal["local", "remote"] = "local"
    digest: str | None = "fake:1"
    cache_defeated: bool = False
    tokens: int = 4
    # What happens to each request in turn: None answers, an error is raised after half the service
    # time, "hang" never answers and keeps its slot.
    script: Sequence[ProviderError | Literal["hang"] | None] = ()
    most_in_flight: int = field(default=0, init=False)
    seen: list[Prompt] = field(default_factory=list, init=False)
    _in_flight: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._steps = iter(self.script)
        self._free: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    async def describe(self) -> ProviderFacts:
        known: dict[str, Any] = {"name": self.name, "role": self.role, "digest": self.digest}
        known |= {"slots": self.slots, "cache_defeated": self.cache_defeated}
        return ProviderFacts(kind="fake", reports_time=True, fixed_length=True, **known)

    async def probe(self, clock: Callable[[], float]) -> Probe | None:
        start_ms = clock()
        await asyncio.sleep(self.overhead_ms / 1000)
        took_ms = clock() - start_ms
        return Probe(provider=self.name, at_ms=start_ms, round_trip_ms=took_ms, wire_ms=took_ms)

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        self.seen.append(prompt)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        exchange.mark("start")
        try:
            await asyncio.sleep(self.overhead_ms / 1000)
            await self._serve(prompt, exchange)
        finally:
            self._in_flight -= 1
            exchange.mark("end")

    async def _serve(self, prompt: Prompt, exchange: Exchange) -> None:
        loop, step = asyncio.get_running_loop(), next(self._steps, None)
        service_ms = self.service_ms(prompt) if callable(self.service_ms) else self.service_ms
        arrived_ms = exchange.clock()
        # A semaphore belongs to one loop, and this provider may outlive it.
        async with self._free.setdefault(loop, asyncio.Semaphore(self.slots)):
            queue_ms = exchange.clock() - arrived_ms
            if step == "hang":
                await loop.create_future()
            elif step is not None:
                await asyncio.sleep(service_ms / 2000)
                raise step
            await asyncio.sleep(service_ms / 1000)
        exchange.marks |= dict.fromkeys(("first_byte_ms", "last_byte_ms"), exchange.clock())
        exchange.pieces.append(f"answer to {prompt.text}")
        exchange.output_tokens = self.tokens
        exchange.finish_reason = "length"
        exchange.server = ServerTimings(
            queue_ms=queue_ms, generation_ms=service_ms, total_ms=queue_ms + service_ms
        )

    async def aclose(self) -> None:
        """Nothing is open."""


class _SkippingSelector(selectors.SelectSelector):
    """Where the loop would wait, its time jumps instead; real sockets are looked at once."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing will ever happen on this fake clock")
        self.skipped_s += 0 if ready else timeout or 0
        return ready


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock moves only when everybody waits: exact and instant."""

    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped_s

    def clock_ms(self) -> float:
        """Milliseconds since the loop began, to the nanosecond: sums of steps come out even."""
        return round(self.time() * 1000, 6)


def run(work: Callable[[Callable[[], float]], Coroutine[Any, Any, T]]) -> T:
    """Run `work(clock)` to its end on a fake clock that starts at 0 ms."""
    loop = Loop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work(loop.clock_ms))
