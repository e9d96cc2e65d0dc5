"""One HTTP client per provider, over sockets that note when bytes came; knows no wire format.

httpx over aiohttp: httpx alone costs several times as much per request, and aiohttp's tracing
gives the moments of connect and send.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
import ssl
import struct
import sys
import threading
import time
import weakref
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from ..addresses import is_private
from ..errors import BadAnswer, Forbidden, ParameterError, ProviderError, TimedOut, Unreachable
from ..records import Exchange

Failure = TypeVar("Failure", bound=ProviderError)
MAX_BODY_BYTES = 64 * 2**20
# None is asked for, yet some servers and proxies compress whatever they send.
ENCODINGS = ("identity", "gzip", "deflate")
# llama-server closes a connection idle for 5 s; a shorter life here avoids sending into that.
KEEPALIVE_S = 4.0
# How long a request that is being sent keeps others waiting: enough for our own work, not for a
# network's round trip.
TURN_S = 0.001
# Linux's number of the option by which the kernel tells when a packet was received.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
# Nobody reads bytes that late: a clock was set in between, or the kernel's is another.
_LATEST_S = 5.0
# For aiohttp's callbacks, which run in the requesting task: what to mark, and what ends its turn.
_current: ContextVar[tuple[Exchange, Callable[[], None]]] = ContextVar("current")


class Stamped(socket.socket):
    """Notes when its last bytes came, by `time.perf_counter`; on Linux as the kernel knows it."""

    arrived_s = 0.0

    def __init__(self, *what: int) -> None:
        super().__init__(*what)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                self.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def recv(self, size: int, flags: int = 0) -> bytes:
        data, notes, *_ = self.recvmsg(size, _SPACE, flags)
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


class Lookups:
    """The system's resolver, in threads that a loop does not wait for when it closes."""

    async def getaddrinfo(self, *what: Any, **how: Any) -> Any:
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        answer.set_running_or_notify_cancel()  # who waits may go, the thread goes on

        def look() -> None:
            try:
                answer.set_result(socket.getaddrinfo(*what, **how))
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=look, daemon=True, name="poclib-lookup").start()
        return await asyncio.wrap_future(answer)

    async def getnameinfo(self, *what: Any) -> Any:
        return socket.getnameinfo(*what)  # asked for numbers only, which takes no time


class NotAllowed(OSError):
    """A socket was asked for, to a public address."""


def failed(kind: type[Failure], provider: str, what: str, **more: Any) -> Failure:
    """An error of a provider, which is named and whose address is not."""
    return kind(f"provider {provider}: {what}", provider, **more)


class Response:
    """A status, headers, and a body to read once. `here_ms`: when what was read last arrived."""

    def __init__(self, response: httpx.Response, provider: str, exchange: Exchange) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.here_ms = self._taken_ms = 0.0
        self._response = response
        self._provider = provider
        self._exchange = exchange

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, decoded. Raises `BadAnswer` beyond `MAX_BODY_BYTES`."""
        encoding = self.headers.get("content-encoding", "identity").lower()[:40]
        if encoding not in ENCODINGS:
            raise self._bad(f"its answer is encoded ({encoding}), unasked; switch that off there.")
        size = 0
        async for chunk in self._response.aiter_bytes():
            self._take()
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                raise self._bad(f"its answer is over {size >> 20} MiB long; set max_tokens lower.")
            yield chunk
        self._take()

    def _take(self) -> None:
        self.here_ms, self._taken_ms = self._exchange.arrival_ms(), self._exchange.clock()

    def _bad(self, what: str) -> BadAnswer:
        return failed(BadAnswer, self._provider, what)

    def mark_end(self) -> None:
        """Mark the end: when the last byte was here, and our own work on it was done."""
        work_ms = self._exchange.clock() - self._taken_ms
        self._exchange.marks |= {"last_byte_ms": self.here_ms, "end_ms": self.here_ms + work_ms}

    async def lines(self) -> AsyncIterator[bytes]:
        """The body's lines, each as soon as its last byte is here; CR, LF or CRLF ends one."""
        rest = bytearray()
        broken = False  # between the CR and what may be its LF
        async for chunk in self.chunks():
            fresh = chunk.removeprefix(b"\n") if broken else chunk
            broken = chunk.endswith(b"\r")
            first, *others = fresh.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            rest += first
            for line in others:
                yield bytes(rest)
                rest = bytearray(line)
        if rest:
            yield bytes(rest)

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self.chunks()])


@dataclass(eq=False, repr=False)
class TimedClient:
    """HTTP to one provider, over as many warm connections as requests in flight.

    Follows no redirect, uses no proxy or cookie. `ca_file`: a private authority's certificates.
    Raises `ParameterError` for an address, key or `ca_file` that cannot be used.
    """

    provider: str
    url: str
    key: str | None = None
    connect_timeout_s: float = 5.0
    timeout_s: float = 300.0
    allow_public: bool = False
    ca_file: str | None = None

    def __post_init__(self) -> None:
        self._secrets = _secrets(self.provider, self.url, self.key)
        self._trusted = _trusted(self.provider, self.ca_file)
        # Told where what answers (or does not) may be another program.
        no_port = " Its url names no port, such as :11434 or :8000."
        self.hint = no_port if urlsplit(self.url).port is None else ""
        self._headers = {"accept-encoding": "identity", "user-agent": "poclib"}
        if self.key:
            self._headers["authorization"] = f"Bearer {self.key}"
        # aiohttp's wait for its pool, which is never full, bounds looking up the name too.
        limits = httpx.Timeout(None, connect=self.connect_timeout_s, pool=self.connect_timeout_s)
        self._extensions = {"timeout": limits.as_dict()}
        # aiohttp's connector checks certificates: a context made for `verify` would only cost.
        self._transport = AiohttpTransport(client=self._session, verify=False)
        self._turn = asyncio.Lock()
        self._sockets: weakref.WeakValueDictionary[int, Stamped] = weakref.WeakValueDictionary()

    def _session(self) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(_marker("start"))
        trace.on_connection_create_start.append(_marker("connect_start"))
        trace.on_connection_create_end.append(_marker("connected", "ready"))
        trace.on_connection_reuseconn.append(_marker("ready"))
        trace.on_request_headers_sent.append(_marker("sent"))
        trace.on_request_chunk_sent.append(_marker("sent", ends_turn=True))
        trace.on_request_end.append(self._answered)
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=self._socket,
            resolver=aiohttp.ThreadedResolver(Lookups()),  # type: ignore[arg-type]
            ssl=self._trusted or True,
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trace_configs=[trace]
        )

    def _socket(self, info: Any) -> socket.socket:
        """Make the socket for one resolved address. Raises `NotAllowed`."""
        *what, _name, address = info
        if not self.allow_public and not is_private(address[0]):
            raise NotAllowed
        made = Stamped(*what)
        self._sockets[made.fileno()] = made
        return made

    async def _answered(self, _session: object, _context: object, params: Any) -> None:
        """Tell the exchange the socket its answer comes by; a whole short one has left it."""
        (exchange, _), connection = _current.get(), params.response.connection
        own = connection and connection.transport and connection.transport.get_extra_info("socket")
        if own and (stamped := self._sockets.get(own.fileno())):
            exchange.arrived_s = lambda: stamped.arrived_s

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        json: Any = None,
        exchange: Exchange | None = None,
        keep: bool = True,
        url: str | None = None,
    ) -> AsyncIterator[Response]:
        """Send one request and yield its response once the headers are here.

        `keep`: whether its connection may serve another; `url`: another address of this provider.
        `exchange` is marked from its turn to be sent on: of many that begin at once each would
        be timed through the sending of all. Body and all, it takes no longer than `timeout_s`.

        Raises `Unreachable`, `TimedOut`, `Forbidden` or `BadAnswer` (no HTTP), also while the
        body is read; none tells an address.
        """
        exchange = exchange or Exchange(time.perf_counter)
        headers = self._headers if keep else self._headers | {"connection": "close"}
        where, more = (url or self.url).rstrip("/") + path, self._extensions
        request = httpx.Request(method, where, headers=headers, json=json, extensions=more)
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._turn.acquire()
                with contextlib.ExitStack() as turn:  # closed twice, it releases once
                    turn.callback(self._turn.release)
                    timer = asyncio.get_running_loop().call_later(TURN_S, turn.close)
                    turn.callback(timer.cancel)
                    _current.set((exchange, turn.close))
                    response = await self._transport.handle_async_request(request)
                exchange.marks["first_byte_ms"] = exchange.arrival_ms()
                async with contextlib.aclosing(response):
                    yield Response(response, self.provider, exchange)
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise self._explained(error) from None

    def redacted(self, text: str) -> str:
        """`text` without the provider's address and key, which a server may echo."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    def _explained(self, error: Exception) -> ProviderError:
        """A transport's error as one of ours, without the address it may mention."""
        # httpx's errors are raised from aiohttp's, which say more.
        cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
        kind: type[ProviderError] = Unreachable
        match cause:
            case aiohttp.ClientConnectorError(os_error=NotAllowed()):
                kind, what = Forbidden, "its address is not private, nor of a mesh that is up; set "
                what += f"allow_public: [{self.provider}] in the parameters if that is meant."
            case aiohttp.ConnectionTimeoutError():
                what = f"no connection within {self.connect_timeout_s:g} s; is it on?{self.hint}"
            case TimeoutError() | httpx.TimeoutException():
                kind = TimedOut
                what = f"not finished within {self.timeout_s:g} s; raise request_timeout_s?"
            case aiohttp.ClientConnectorDNSError():
                what = "the host name in its url is not known here; check its spelling."
            case aiohttp.ClientSSLError() | ssl.SSLError():
                what = "no secure connection; is its certificate trusted, and its url https?"
            case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))):
                # The system's words for the number: the error's own text names the address.
                what = f"no connection ({os.strerror(number).lower()}); is it running?{self.hint}"
            case aiohttp.ClientResponseError() | zlib.error():
                kind, what = BadAnswer, "what answers there does not speak HTTP, or its "
                what += f"content-encoding is none; is the port right?{self.hint}"
            case _:
                what = "the connection broke off; did the server stop?"
        return failed(kind, self.provider, what)

    async def aclose(self) -> None:
        await self._transport.aclose()


def _marker(*events: str, ends_turn: bool = False) -> Any:
    async def mark(*_: object) -> None:
        exchange, end_turn = _current.get()
        # A server may answer before it has read the whole request: sent ends there at the latest.
        if "first_byte_ms" not in exchange.marks:
            for event in events:
                exchange.mark(event)
        if ends_turn:
            end_turn()

    return mark


def _trusted(provider: str, ca_file: str | None) -> ssl.SSLContext | None:
    try:
        path = ca_file and Path(ca_file).expanduser()
        return ssl.create_default_context(cafile=path) if path else None
    except (OSError, ValueError):  # ssl's own error is an OSError
        what = "its ca_file cannot be read as certificates (PEM); name its authority's file."
        raise ParameterError(f"provider {provider}: {what}") from None


def _secrets(provider: str, url: str, key: str | None) -> list[str]:
    """What no message may hold, longest first. Raises `ParameterError` if any is malformed."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        host, port = "", None
    if not host or parts.scheme not in ("http", "https"):
        wrong = "its url is not an http address; write it like http://192.168.1.20:11434"
    elif parts.query or parts.fragment:
        wrong = "its url has a part after ? or #; leave that out."
    elif not host.strip("0.:"):
        wrong = f"{host} is where a server listens; write 127.0.0.1, or its machine's own address."
    elif parts.username or parts.password:
        wrong = "its url holds a name or password; put the key into a variable of api_key_env."
    elif key and not (key.isascii() and key.isprintable()):
        wrong = "its key holds a character that no HTTP header can carry; is there a line break?"
    else:
        # A host of one plain word may be any word of a message, so only with its port.
        named = [f"{host}:{port}", parts.netloc, host if set(host) & set(".:") else "", key or ""]
        return sorted(filter(None, named), key=len, reverse=True)
    raise ParameterError(f"provider {provider}: {wrong}")
