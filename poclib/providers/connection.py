"""HTTP/1.1 on one connection, whose moments are known: connected, sent, first byte, last byte."""

import asyncio
import contextlib
import socket
import struct
import sys
import time
import zlib
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

import httptools

from ..errors import BadAnswer, ProviderError
from ..records import Exchange

Failure = TypeVar("Failure", bound=ProviderError)
MAX_BODY_BYTES = 64 * 2**20
_HEAD_BYTES = 2**17  # no headers are longer
_READ_BYTES = 2**16  # asyncio asks for four times that, which costs more than reading it
# What is not quite HTTP, yet other clients take it, too: lines that end with a bare LF, say.
_UNDERSTOOD = {"lenient_headers": True, "lenient_optional_cr_before_lf": True}
_UNDERSTOOD |= {"lenient_spaces_after_chunk_size": True}
# Linux's number of the option by which the kernel tells when a packet was received.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
# Nobody reads bytes that late: a clock was set in between, or the kernel's is another.
_LATEST_S = 5.0


def failed(kind: type[Failure], provider: str, what: str, **more: Any) -> Failure:
    """An error of a provider, which is named and whose address is not."""
    return kind(f"provider {provider}: {what}", provider, **more)


class Stamped(socket.socket):
    """Notes when its last bytes came, by `time.perf_counter`; on Linux as the kernel knows it."""

    arrived_s = 0.0

    def __init__(self, *what: int) -> None:
        super().__init__(*what)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def recv(self, size: int, flags: int = 0) -> bytes:
        data, notes, *_ = self.recvmsg(min(size, _READ_BYTES), _SPACE, flags)
        self._arrived(notes)
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        count, notes, *_ = self.recvmsg_into([memoryview(buffer)[: size or None]], _SPACE, flags)
        self._arrived(notes)
        return count

    def _arrived(self, notes: Sequence[tuple[int, int, bytes]]) -> None:
        self.arrived_s = time.perf_counter()
        for level, kind, value in notes:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                late_s = time.time() - seconds - nanoseconds / 1e9
                if 0 < late_s < _LATEST_S:
                    self.arrived_s -= late_s


class Response:
    """An answer as it comes: a status, headers, and a body to read once."""

    status = _size = 0  # none yet
    whole = keep = _cut = _sized = False  # all has come; its connection may serve another request
    here_ms = _came_ms = _first_ms = _taken_ms = 0.0  # when what was read last had arrived

    def __init__(self, provider: str, exchange: Exchange) -> None:
        self.headers: dict[str, str] = {}
        self._provider, self._exchange = provider, exchange
        self._parts: deque[tuple[bytes, float]] = deque()
        self._pieces: list[bytes] = []  # of what is being fed
        self._rest = bytearray()
        self._problem: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._decoder: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(**_UNDERSTOOD)

    def sent(self) -> None:
        """The last of the request leaves; where an answer came before, sent ended there."""
        if not self._first_ms:
            self._came_ms = self._exchange.marks["sent_ms"] = self._exchange.clock()

    def feed(self, data: bytes, arrived_s: float) -> None:
        """Bytes that came at `arrived_s`: never before what was marked last."""
        ago_ms = (time.perf_counter() - arrived_s) * 1000
        self._came_ms = max(self._exchange.clock() - ago_ms, self._came_ms)
        was_whole = self.whole
        try:
            if data:
                self._parser.feed_data(data)
            elif self.status and not self._sized:  # a body that ends with its connection
                self.on_message_complete()
            self._size += 0 if self.status else len(data)
            if not self.status and self._size > _HEAD_BYTES:
                raise httptools.HttpParserError
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.fail(httptools.HttpParserError(*error.args))
        if self._pieces:  # of one arrival, however many chunks it has
            self._parts.append((b"".join(self._pieces), self._came_ms))
            self._pieces.clear()
        if self.whole and not was_whole:
            self._parts.append((b"", self._came_ms))
            del self._parser  # which knows this object: no cycle is left for the collector
        self._wake()

    def fail(self, problem: BaseException) -> None:
        """Who reads gets what is here, and then this."""
        self._problem, self.keep = self._problem or problem, False
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def on_message_begin(self) -> None:
        self._fields: dict[str, str] = {}
        self._first_ms, self.keep = self._came_ms, False

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._fields[key] = f"{self._fields[key]}, {text}" if key in self._fields else text

    def on_headers_complete(self) -> None:
        status = 0 if self.status else self._parser.get_status_code()
        if status < 200:  # 1xx: the answer itself follows
            return
        fields = self._fields
        self._exchange.marks["first_byte_ms"] = self._first_ms
        self.status, self.headers, self._fields, self._size = status, fields, {}, 0
        chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        self._sized = chunked or "content-length" in fields
        # None is asked for, yet some servers and proxies compress whatever they send.
        self._encoding = fields.get("content-encoding", "identity").lower()
        if self._encoding not in ("identity", "gzip", "deflate"):
            self._bad(f"encoded ({self._encoding[:40]}), unasked; switch that off there.")

    def on_body(self, data: bytes) -> None:
        if self.whole or self._problem is not None:
            return
        if self._encoding != "identity":
            bare = self._encoding == "deflate" and data[0] & 15 != 8  # without zlib's header
            self._decoder = self._decoder or zlib.decompressobj(-15 if bare else 47)
            data = self._decoder.decompress(data)
        self._size += len(data)
        if self._size > MAX_BODY_BYTES:
            self._bad(f"over {MAX_BODY_BYTES >> 20} MiB long; set max_tokens lower.")
        elif data:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self.status and not self.whole and self._problem is None:
            self.whole, self.keep = True, self._sized and self._parser.should_keep_alive()

    def _bad(self, what: str) -> None:
        self.fail(failed(BadAnswer, self._provider, f"its answer is {what}"))

    async def head(self) -> None:
        """Wait for the headers. Raises what broke the connection."""
        while not self.status:
            await self._more()

    async def _more(self) -> None:
        if self._problem is not None:
            raise self._problem
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    async def chunk(self) -> bytes:
        """The next part of the body, decoded; empty at its end. Raises `BadAnswer` if too long."""
        while not self._parts:
            await self._more()
        data, self.here_ms = self._parts[0]
        if data:  # the end stays, for who reads on
            self._parts.popleft()
        self._taken_ms = self._exchange.clock()
        return data

    async def lines(self) -> list[bytes]:
        """The next lines (CR, LF or CRLF ends one), as soon as they are here; none at the end."""
        while data := await self.chunk():
            fresh = data.removeprefix(b"\n") if self._cut else data
            self._cut = data.endswith(b"\r")  # perhaps between it and its LF
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

    def mark_end(self) -> None:
        """Mark the end: when the last byte was here, and our own work on it was done."""
        work_ms, marks = self._exchange.clock() - self._taken_ms, self._exchange.marks
        marks["last_byte_ms"], marks["end_ms"] = self.here_ms, self.here_ms + work_ms


class Connection(asyncio.Protocol):
    """Carries one request at a time. `since_s`: since when it is open, or idle."""

    transport: asyncio.Transport
    since_s = opening_ms = 0.0
    open = True

    def __init__(self, link: Stamped) -> None:
        self._link = link
        self._response: Response | None = None

    def fresh(self, oldest_s: float) -> bool:
        """Whether it may be used: it is open, is so since `oldest_s`, and nothing has come."""
        if self.open and self.since_s >= oldest_s:
            try:
                socket.socket.recv(self._link, 1, socket.MSG_PEEK)
            except BlockingIOError:
                return True
            except OSError:
                pass
        self.close()
        return False

    def ask(self, request: bytes, response: Response) -> None:
        self._response = response
        response.sent()  # what does not leave at once is marked anew when it does
        self.transport.write(request)

    def release(self) -> bool:
        """End the request; whether the connection may serve another, or else is closed."""
        response, self._response = self._response, None
        if response is None or not response.keep or self.transport.get_write_buffer_size():
            self.close()
        self.since_s = time.perf_counter()
        return self.open

    def close(self) -> None:
        self.open = False
        self.transport.abort()  # nothing is left that should still be sent

    def connection_made(self, transport: Any) -> None:
        self.since_s = time.perf_counter()
        self.transport = transport
        transport.set_write_buffer_limits(high=1, low=0)  # to hear when all has left

    def resume_writing(self) -> None:
        if self._response is not None:
            self._response.sent()

    def data_received(self, data: bytes) -> None:
        if self._response is None or self._response.whole:  # nobody has asked for that
            self.connection_lost(None)
            self.close()
        else:
            self._response.feed(data, self._link.arrived_s)

    def eof_received(self) -> None:
        if self._response is not None:
            self._response.feed(b"", self._link.arrived_s)
        self.connection_lost(None)  # which itself comes late where something is still being sent

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        if self._response is not None:
            self._response.fail(error or ConnectionResetError())
