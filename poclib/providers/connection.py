"""One connection to a server: the socket that notes when bytes came, and HTTP/1.1 over it.

A request is written at once, and what comes is parsed as it comes: connect, sent, first byte and
last byte are simply known.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

import httptools

from .response import Response

# Linux's number of the option by which the kernel tells when a packet was received.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
# Nobody reads bytes that late: a clock was set in between, or the kernel's is another.
_LATEST_S = 5.0
_READ_BYTES = 2**16  # asyncio asks for four times that, which costs more than the reading
_HEAD_BYTES = 2**17  # no headers are longer


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

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:  # by TLS
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

    def quiet(self) -> bool:
        """Whether nothing is there to be read, such as that the other end has closed."""
        try:
            super().recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False


class Connection(asyncio.Protocol):
    """Carries one request at a time: its answer goes into the request's `Response`.

    It can carry another where `reusable`. `opened_s`: since when it is open, or was idle last;
    `opening_ms`: how long opening it took.
    """

    transport: asyncio.Transport
    reusable = True
    opened_s = opening_ms = 0.0

    def __init__(self, link: Stamped) -> None:
        self._link = link
        self._response: Response | None = None
        self._paused = self._told = False  # `_told`: its headers said where the body ends
        self._headers: dict[str, str] = {}
        self._here_ms = self._first_ms = 0.0
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)
        # What other clients take, too, of servers that end lines with a bare LF.
        self._parser.set_dangerous_leniencies(
            lenient_headers=True,
            lenient_optional_cr_before_lf=True,
            lenient_spaces_after_chunk_size=True,
        )

    def fresh(self, oldest_s: float) -> bool:
        """Whether it may be used: nobody has closed it, and it was opened since `oldest_s`."""
        return self.reusable and self.opened_s >= oldest_s and self._link.quiet()

    def ask(self, request: bytes, response: Response) -> None:
        self._response, self._head_bytes = response, 0
        self.transport.write(request)
        if not self._paused:
            response.sent()

    def release(self) -> bool:
        """End the request; whether another may follow on this connection, which else is closed."""
        response, self._response = self._response, None
        if response is not None and not response.whole or not self.reusable:
            self.close()
        return self.reusable

    def close(self) -> None:
        self.reusable = False
        self.transport.abort()  # there is nothing left that should still be sent

    # ---- by asyncio ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.opened_s = time.perf_counter()
        self.transport = transport
        transport.set_write_buffer_limits(high=1, low=0)  # to hear when all has left

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._response is not None:
            self._response.sent()

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or response.whole:  # nobody has asked for that
            self.close()
            return
        self._here_ms = response.arrived(time.perf_counter() - self._link.arrived_s)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
        if not response.status:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                self._fail(httptools.HttpParserError("no end of headers"))
        response.wake()

    def eof_received(self) -> None:
        self.connection_lost(None)  # which comes late where something is still being sent

    def connection_lost(self, error: Exception | None) -> None:
        response = self._response
        if error is None and response is not None and response.status and not self._told:
            response.end(response.arrived(time.perf_counter() - self._link.arrived_s))
        self._fail(error or ConnectionResetError())

    def _fail(self, error: Exception) -> None:
        self.reusable = False
        if self._response is not None and not self._response.whole:
            self._response.fail(error)
        elif self._response is not None:
            self._response.wake()

    # ---- by the parser, while data is fed to it ----

    def on_message_begin(self) -> None:
        self._headers, self._first_ms = {}, self._here_ms
        if self._response is None or self._response.whole:
            self.reusable = False  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        status, response = self._parser.get_status_code(), self._response
        if status < 200 or response is None or response.whole:  # 1xx: the answer itself follows
            return
        coding = self._headers.get("transfer-encoding", "")
        self._told = "content-length" in self._headers or "chunked" in coding.lower()
        response.begin(status, self._headers, self._first_ms)
        self._headers = {}  # trailers may follow

    def on_body(self, data: bytes) -> None:
        if self._response is not None and not self._response.whole:
            self._response.put(data, self._here_ms)

    def on_message_complete(self) -> None:
        response = self._response
        if response is not None and response.status and not response.whole:
            self.reusable = self.reusable and self._parser.should_keep_alive()
            response.end(self._here_ms)
