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
        self._at_work: asyncio.Task[None] | None = None

    def full(self) -> bool:
        return len(self.waiting) + len(self.active) >= self.most

    def ask(self) -> asyncio.Queue[str]:
        """Where "begun" comes, then `tokens` times "token"."""
        told: asyncio.Queue[str] = asyncio.Queue()
        self.waiting.append(told)
        if self._at_work is None or self._at_work.done():
            self._at_work = asyncio.get_running_loop().create_task(self._work())
        return told

    async def _work(self) -> None:
        while self.waiting or self.active:
            while self.waiting and len(self.active) < self.slots:
                one = self.waiting.pop(0)
                self.active[one] = self.tokens
                one.put_nowait("begun")
            await asyncio.sleep(self.step_ms(len(self.active)) / 1000)
            for one in list(self.active):
                one.put_nowait("token")
                self.active[one] -= 1
                if not self.active[one]:
                    del self.active[one]


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
        if self.engine.full():
            raise Rejected("no room", self.name, 503)
        arrived_ms = exchange.clock()
        told = self.engine.ask()
        await told.get()
        queue_ms = exchange.clock() - arrived_ms
        for _ in range(self.engine.tokens):
            await told.get()
            exchange.token_ms += [exchange.clock()] if self.streams else []
        exchange.output_tokens = self.engine.tokens
        took_ms = exchange.clock() - arrived_ms
        if self.tells:
            exchange.server = ServerTimings(queue_ms=queue_ms, total_ms=took_ms)


@contextlib.contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address of a vLLM with this engine, on a loop in a thread of its own."""
    started: list[Any] = []
    ready = threading.Event()

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: _answer(engine, r, w), "127.0.0.1", 0)
        ended = asyncio.Event()
        started.extend([server.sockets[0].getsockname()[1], asyncio.get_running_loop(), ended])
        ready.set()
        await ended.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    port, loop, ended = started
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)


async def _answer(
    engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [x for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:")]
            await reader.readexactly(int(length[0][15:]) if length else 0)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            if head.startswith(b"POST"):
                await _stream(engine, writer)
            else:
                mine = {"id": "m", "owned_by": "vllm", "max_model_len": 1024}
                _write(writer, json.dumps({"version": "0.32", "data": [mine]}))
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    writer.close()


async def _stream(engine: Engine, writer: asyncio.StreamWriter) -> None:
    now = asyncio.get_running_loop().time
    arrived_s, told = now(), engine.ask()
    await told.get()
    begun_s, first_s = now(), 0.0
    for count in range(1, engine.tokens + 1):
        await told.get()
        first_s = first_s or now()
        choice = {"text": "x ", "finish_reason": "length" if count == engine.tokens else None}
        _write(writer, f"data: {json.dumps({'choices': [choice]})}\n\n")
    metrics = {
        "queue_time_ms": 1000 * (begun_s - arrived_s),
        "time_to_first_token_ms": 1000 * (first_s - begun_s),
        "generation_time_ms": 1000 * (now() - first_s),
    }
    usage = {"prompt_tokens": 3, "completion_tokens": engine.tokens}
    end = {"choices": [], "usage": usage, "metrics": metrics}
    _write(writer, f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n")


def _write(writer: asyncio.StreamWriter, text: str) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(text.encode()), text.encode()))
