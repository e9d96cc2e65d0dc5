"""An engine that works in steps, `slots` sequences in each while the rest wait: as vLLM does.

Behind a provider on a fake clock, or behind a real socket in vLLM's wire format.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

from replay import fields_of

from poclib.errors import Rejected
from poclib.providers import fake
from poclib.records import Exchange, Prompt, ServerTimings


class Engine:
    """`step_ms` is what a step takes with so many sequences in it, one token for each.

    Refuses where it has `most` requests already.
    """

    def __init__(
        self, slots: int, step_ms: Callable[[int], float], most: int = 10**6, tokens: int = 16
    ) -> None:
        self.slots, self.step_ms, self.most, self.tokens = slots, step_ms, most, tokens
        self.waiting: list[asyncio.Queue[str]] = []
        self.active: dict[asyncio.Queue[str], int] = {}
        self._work: asyncio.Task[None] | None = None

    def ask(self) -> asyncio.Queue[str]:
        """Where "begun" comes, then `tokens` times "token"."""
        events: asyncio.Queue[str] = asyncio.Queue()
        self.waiting.append(events)
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._step())
        return events

    async def _step(self) -> None:
        while self.waiting or self.active:
            while self.waiting and len(self.active) < self.slots:
                events = self.waiting.pop(0)
                self.active[events] = self.tokens
                events.put_nowait("begun")
            await asyncio.sleep(self.step_ms(len(self.active)) / 1000)
            for events in self.active:
                events.put_nowait("token")
            self.active = {events: n - 1 for events, n in self.active.items() if n > 1}


class Provider(fake.Provider):
    """The engine on a fake clock; `tells` whether it reports its queue, `streams` its tokens.

    `overhead_ms` passes before each request: with more of them than slots, others fill that gap.
    """

    def __init__(
        self, engine: Engine, tells: bool = False, streams: bool = True, overhead_ms: float = 0
    ) -> None:
        super().__init__("p", slots=engine.slots, overhead_ms=overhead_ms)
        self.engine, self.tells, self.streams = engine, tells, streams

    async def _serve(self, prompt: Prompt, exchange: Exchange) -> None:
        if len(self.engine.waiting) + len(self.engine.active) >= self.engine.most:
            raise Rejected("no room", self.name, 503)
        arrived_ms = exchange.clock()
        events = self.engine.ask()
        await events.get()
        queue_ms = exchange.clock() - arrived_ms
        for _ in range(self.engine.tokens):
            await events.get()
            exchange.token_ms += [exchange.clock()] if self.streams else []
        exchange.output_tokens = self.engine.tokens
        if self.tells:
            took_ms = exchange.clock() - arrived_ms
            exchange.server = ServerTimings(queue_ms=queue_ms, total_ms=took_ms)


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address of a vLLM with this engine, on a loop in a thread of its own."""

    async def stream(writer: asyncio.StreamWriter) -> None:
        now = asyncio.get_running_loop().time
        events, moments_s = engine.ask(), [now()]
        for count in range(engine.tokens + 1):
            await events.get()
            moments_s.append(now())
            if count:
                choice = {"text": "x ", "finish_reason": [None, "length"][count == engine.tokens]}
                writer.write(_line({"choices": [choice]}))
        arrived_s, begun_s, first_s, *_, last_s = moments_s
        metrics = {
            "queue_time_ms": 1000 * (begun_s - arrived_s),
            "time_to_first_token_ms": 1000 * (first_s - begun_s),
            "generation_time_ms": 1000 * (last_s - first_s),
        }
        usage = {"prompt_tokens": 3, "completion_tokens": engine.tokens}
        end = _line({"choices": [], "usage": usage, "metrics": metrics})
        writer.write(end + b"data: [DONE]\n\n")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request to a connection: a body ends with it."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            fields = fields_of(head.decode().split("\r\n"))
            await reader.readexactly(int(fields.get("content-length", 0)))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            if head.startswith(b"POST"):
                await stream(writer)
            else:
                model = {"id": "m", "owned_by": "vllm", "max_model_len": 1024}
                writer.write(json.dumps({"version": "0.32", "data": [model]}).encode())
        writer.close()

    async def serve() -> int:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
        port: int = server.sockets[0].getsockname()[1]
        return port

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{asyncio.run_coroutine_threadsafe(serve(), loop).result(10)}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def _line(event: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(event)}\n\n".encode()
