"""An answer as it comes: a status, headers, and a body to read once; knows no socket."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import httpx

from ..errors import BadAnswer, ProviderError
from ..records import Exchange

Failure = TypeVar("Failure", bound=ProviderError)
MAX_BODY_BYTES = 64 * 2**20
# None is asked for, yet some servers and proxies compress whatever they send.
ENCODINGS = ("identity", "gzip", "deflate")


def failed(kind: type[Failure], provider: str, what: str, **more: Any) -> Failure:
    """An error of a provider, which is named and whose address is not."""
    return kind(f"provider {provider}: {what}", provider, **more)


class Response:
    """What a connection puts in is taken out here. `here_ms`: when what was read last arrived.

    Each part of the body has its own moment of arrival, however late it is read.
    """

    status = 0  # until the headers are here
    whole = False  # whether all of it has come
    here_ms = _taken_ms = 0.0

    def __init__(self, provider: str, exchange: Exchange) -> None:
        self.headers: dict[str, str] = {}
        self.exchange = exchange
        self.problem: BaseException | None = None
        self._provider = provider
        self._parts: deque[tuple[bytes, float]] = deque()
        self._arrived_ms = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._rest, self._broken, self._size = bytearray(), False, 0
        self._decoded: AsyncIterator[bytes] | None = None

    # ---- put in ----

    def sent(self) -> None:
        """The request has left; a server may answer before, and sent ends there at the latest."""
        if "first_byte_ms" not in self.exchange.marks:
            self._arrived_ms = self.exchange.marks["sent_ms"] = self.exchange.clock()

    def arrived(self, ago_s: float) -> float:
        """When bytes that came so long ago were here, never before what was marked last."""
        here_ms = self.exchange.clock() - ago_s * 1000
        self._arrived_ms = here_ms = max(here_ms, self._arrived_ms)
        return here_ms

    def begin(self, status: int, headers: dict[str, str], first_ms: float) -> None:
        marks = self.exchange.marks
        marks.setdefault("sent_ms", first_ms)
        marks["first_byte_ms"] = first_ms
        self.status, self.headers = status, headers

    def put(self, data: bytes, here_ms: float) -> None:
        self._parts.append((data, here_ms))

    def end(self, here_ms: float) -> None:
        self.whole = True
        self._parts.append((b"", here_ms))

    def fail(self, problem: BaseException) -> None:
        """Who reads gets what is here, and then this."""
        self.problem = self.problem or problem
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ---- taken out ----

    async def head(self) -> None:
        """Wait for the headers. Raises what broke the connection."""
        while not self.status:
            await self._more()

    async def _more(self) -> None:
        if self.problem is not None:
            raise self.problem
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def chunk(self) -> bytes:
        """The next part of the body, decoded; empty at its end.

        Raises `BadAnswer` beyond `MAX_BODY_BYTES`, or what broke the connection.
        """
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding == "identity":
            data = await self._raw()
        else:
            self._decoded = self._decoded or self._decode(encoding)
            data = await anext(self._decoded, b"")
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            size = f"over {MAX_BODY_BYTES >> 20} MiB long"
            raise self._bad(f"its answer is {size}; set max_tokens lower.")
        return data

    async def _raw(self) -> bytes:
        while not self._parts:
            await self._more()
        data, self.here_ms = self._parts[0]
        if data:  # its end stays, for who reads on
            self._parts.popleft()
        self._taken_ms = self.exchange.clock()
        return data

    async def _decode(self, encoding: str) -> AsyncIterator[bytes]:
        if encoding not in ENCODINGS:
            told = f"its answer is encoded ({encoding[:40]}), unasked; switch that off there."
            raise self._bad(told)

        async def raw() -> AsyncIterator[bytes]:
            while data := await self._raw():
                yield data

        coded = httpx.Response(200, headers={"content-encoding": encoding}, content=raw())
        async for data in coded.aiter_bytes():
            yield data

    def _bad(self, what: str) -> BadAnswer:
        return failed(BadAnswer, self._provider, what)

    def mark_end(self) -> None:
        """Mark the end: when the last byte was here, and our own work on it was done."""
        work_ms = self.exchange.clock() - self._taken_ms
        marks = self.exchange.marks
        marks["last_byte_ms"], marks["end_ms"] = self.here_ms, self.here_ms + work_ms

    async def lines(self) -> list[bytes]:
        """The next lines, as soon as their last byte is here; CR, LF or CRLF ends one.

        Empty at the body's end.
        """
        while data := await self.chunk():
            # A CR ends its line; an LF that comes in the next chunk is a part of that end.
            fresh = data.removeprefix(b"\n") if self._broken else data
            self._broken = data.endswith(b"\r")
            if b"\r" in fresh:
                fresh = fresh.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            *lines, rest = fresh.split(b"\n")
            if lines:
                lines[0] = bytes(self._rest) + lines[0]
                self._rest = bytearray(rest)
                return lines
            self._rest += rest
        last, self._rest = bytes(self._rest), bytearray()
        return [last] if last else []

    async def body(self) -> bytes:
        parts = []
        while data := await self.chunk():
            parts.append(data)
        return b"".join(parts)
