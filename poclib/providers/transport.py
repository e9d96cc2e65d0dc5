"""One HTTP client per provider that marks every event of a request; knows no wire format.

httpx over aiohttp: httpx alone costs several times as much per request, and aiohttp's
tracing gives the moments of connect and send. Every request is bound in time and size, no
redirect is followed, no proxy or cookie used, and a socket is made only for an address that
is loopback or private, checked on the resolved address itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
import weakref
import zlib
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from .. import errors
from ..errors import BadAnswer, ParameterError, ProviderError, Rejected
from ..records import Exchange
from .sockets import Lookups, NotAllowed, Stamped, is_private

MAX_BODY_BYTES = 64 * 2**20
# None is asked for, yet some servers and proxies compress whatever they send.
ENCODINGS = ("identity", "gzip", "deflate")
# llama-server closes a connection idle for 5 s; a shorter life here avoids sending into that.
KEEPALIVE_S = 4.0
# How long a request that is being sent keeps others waiting: enough for what is our own work,
# not for a network's round trip.
TURN_S = 0.001
# What aiohttp's trace callbacks mark, and call once all is sent; they run in the requesting task.
_exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
_sent: ContextVar[Callable[[], None] | None] = ContextVar("sent", default=None)


class Response:
    """A status, headers, and a body that arrives in pieces; its end is marked `last_byte`.

    `here_ms` is when what is being read arrived. `limit` is what bounds the whole request.
    """

    def __init__(
        self,
        response: httpx.Response,
        provider: str,
        exchange: Exchange | None,
        limit: asyncio.Timeout | None = None,
        hint: str = "",
    ) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.here_ms = 0.0
        self._response = response
        self._provider = provider
        self._exchange = exchange
        self._limit = limit
        self._hint = hint
        self._handed_s = self._worked_s = 0.0

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives, decoded. Raises `BadAnswer` beyond `MAX_BODY_BYTES`."""
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding not in ENCODINGS:
            coding = encoding[:40]
            raise self._bad(f"its answer is encoded ({coding}), unasked; switch that off there.")
        plain = encoding == "identity"
        size = 0
        async for chunk in self._response.aiter_raw() if plain else self._response.aiter_bytes():
            self._hand()
            self._worked_s = 0.0
            if not size and self.status == 200 and chunk.lstrip().startswith(b"<"):
                what = "a web page answers there, such as one to log in, and no model server"
                raise self._bad(f"{what}; is its url right?{self._hint}")
            size += len(chunk)
            if size > MAX_BODY_BYTES:
                longest = f"{MAX_BODY_BYTES // 2**20} MiB"
                raise self._bad(f"its answer is longer than {longest}; set max_tokens lower.")
            yield chunk
            self._worked_s = time.perf_counter() - self._handed_s
        self._hand()
        if self._exchange:
            self._exchange.marks.setdefault("last_byte_ms", self.here_ms)

    def _hand(self) -> None:
        self._handed_s = time.perf_counter()
        if self._exchange:
            self.here_ms = self._exchange.arrival_ms()

    def _bad(self, what: str) -> BadAnswer:
        return BadAnswer(f"provider {self._provider}: {what}", self._provider)

    def mark_end(self, patience_s: float | None = None) -> None:
        """Mark the answer's end: when its last byte was here and the work on it was done.

        What the event loop does for others in between is no part of it. A body that goes on gets
        `patience_s` to end, to keep its connection; then the request ends with `TimedOut`.
        """
        if self._exchange:
            work_s = self._worked_s + time.perf_counter() - self._handed_s
            self._exchange.marks["last_byte_ms"] = self.here_ms
            self._exchange.marks["end_ms"] = self.here_ms + 1000 * work_s
        if self._limit and patience_s is not None:
            soon_s = asyncio.get_running_loop().time() + patience_s
            self._limit.reschedule(min(self._limit.when() or soon_s, soon_s))

    async def lines(self) -> AsyncIterator[bytes]:
        """The body's lines, each as soon as its last byte is here; CR, LF or CRLF ends one."""
        rest = bytearray()
        broken = False  # between the CR and what may be its LF
        async for chunk in self.chunks():
            fresh = chunk.removeprefix(b"\n") if broken else chunk
            broken = chunk.endswith(b"\r")
            rest += fresh
            if b"\n" not in fresh and b"\r" not in fresh:
                continue
            whole = bytes(rest).splitlines()
            rest = bytearray() if fresh.endswith((b"\n", b"\r")) else bytearray(whole.pop())
            for line in whole:
                yield line
        if rest:
            yield bytes(rest)

    async def body(self) -> bytes:
        """The whole body."""
        return b"".join([chunk async for chunk in self.chunks()])


def _trusted(provider: str, ca_file: str | None) -> ssl.SSLContext | None:
    """What checks certificates against a private authority's; None: what the system trusts."""
    if ca_file is None:
        return None
    try:
        return ssl.create_default_context(cafile=str(Path(ca_file).expanduser()))
    except (OSError, ValueError):  # ssl's own error is an OSError
        raise ParameterError(
            f"provider {provider}: its ca_file cannot be read as certificates (PEM); "
            "name the file of the authority that signed its certificate."
        ) from None


class TimedClient:
    """HTTP to one provider, over connections that are kept warm.

    As many connections as requests in flight. Certificates are checked against those the system
    trusts, or a private authority's in `ca_file`. Raises `ParameterError` for an address or key
    that HTTP cannot carry; else `request` raises what names the provider, never its address.
    """

    def __init__(
        self,
        provider: str,
        url: str,
        key: str | None = None,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 120.0,
        allow_public: bool = False,
        ca_file: str | None = None,
    ) -> None:
        self.provider = provider
        self._trusted = _trusted(provider, ca_file)
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._allow_public = allow_public
        self._secrets = _secrets(provider, url, key)
        # Told where what answers (or does not) may be another program.
        hint = " Its url names no port, such as :11434 or :8000."
        self._hint = hint if urlsplit(url).port is None else ""
        self._url = url.rstrip("/")
        self._headers = {"accept-encoding": "identity", "user-agent": "poclib"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        # `request` bounds the whole. What aiohttp is told as the wait for its pool, which is
        # never full, bounds looking up the name too.
        limits = httpx.Timeout(None, connect=connect_timeout_s, pool=connect_timeout_s)
        self._extensions = {"timeout": limits.as_dict()}
        # aiohttp's connector checks certificates: a context made for `verify` would only cost.
        self._transport = AiohttpTransport(client=self._session, verify=False)
        self._turn = asyncio.Lock()
        self._sockets: weakref.WeakValueDictionary[int, Stamped] = weakref.WeakValueDictionary()

    def _session(self) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        for event, signal in (
            ("start", trace.on_request_start),
            ("connect_start", trace.on_connection_create_start),
            ("connected", trace.on_connection_create_end),
            ("ready", trace.on_connection_create_end),
            ("ready", trace.on_connection_reuseconn),
            ("sent", trace.on_request_headers_sent),
            ("sent", trace.on_request_chunk_sent),
        ):
            signal.append(_marker(event))
        trace.on_request_chunk_sent.append(_leave)
        trace.on_request_end.append(self._answered)
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            socket_factory=self._socket,
            resolver=aiohttp.ThreadedResolver(Lookups()),  # type: ignore[arg-type]
            ssl=self._trusted or True,
        )
        jar = aiohttp.DummyCookieJar()
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=jar, trace_configs=[trace], trust_env=False
        )

    def _socket(self, info: Any) -> socket.socket:
        """Make the socket for one resolved address, unless that address is forbidden."""
        family, kind, protocol, _, address = info
        if not self._allow_public and not is_private(address[0]):
            raise NotAllowed("address not allowed")
        made = Stamped(family, kind, protocol)
        made.stamp()
        self._sockets[made.fileno()] = made
        return made

    async def _answered(self, _session: object, _context: object, params: Any) -> None:
        """Let the exchange know the socket its answer comes by; a whole short one has left it."""
        exchange, connection = _exchange.get(), params.response.connection
        if exchange is None or connection is None or connection.transport is None:
            return
        own = connection.transport.get_extra_info("socket")
        if own is not None and (stamped := self._sockets.get(own.fileno())):
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

        `keep` is whether its connection may serve another request afterwards, `url` another
        address of the same provider. `exchange` is marked from its turn to be sent on.

        Raises `Unreachable`, `TimedOut`, `Forbidden`, `BadAnswer` (no HTTP, or a web page) or
        `Rejected` (a redirect), also while the body is read; body and all, it takes no longer
        than the client's `timeout_s`.
        """
        headers = self._headers if keep else self._headers | {"connection": "close"}
        where, more = (url or self._url) + path, self._extensions
        request = httpx.Request(method, where, headers=headers, json=json, extensions=more)
        token = _exchange.set(exchange)
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                async with self._in_turn(exchange):
                    response = await self._transport.handle_async_request(request)
                if exchange:
                    exchange.mark_arrival("first_byte")
                async with contextlib.aclosing(response):
                    if response.is_redirect:
                        raise self._redirected(response)
                    yield Response(response, self.provider, exchange, limit, self._hint)
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise self._explained(error) from None
        finally:
            _exchange.reset(token)

    @contextlib.asynccontextmanager
    async def _in_turn(self, exchange: Exchange | None) -> AsyncIterator[None]:
        """Wait until no other request is being sent.

        Many that begin at once would each be timed through the sending of all.
        """
        if exchange is None:
            yield
            return
        await self._turn.acquire()
        with contextlib.ExitStack() as turn:  # closing it twice releases once
            turn.callback(self._turn.release)
            token = _sent.set(turn.close)
            timer = asyncio.get_running_loop().call_later(TURN_S, turn.close)
            try:
                yield
            finally:
                _sent.reset(token)
                timer.cancel()

    def redacted(self, text: str) -> str:
        """`text` without the provider's address and key, which a server may echo."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    def _redirected(self, response: httpx.Response) -> Rejected:
        """Where a redirect leads, in words; none is followed, since it may lead anywhere."""
        own, status = urlsplit(self._url), response.status_code
        try:
            to = urlsplit(response.headers["location"])
            elsewhere = to.hostname not in (None, own.hostname)
        except (KeyError, ValueError):
            to, elsewhere = own, True
        if elsewhere:
            what = "to another host, which is not followed; write the url of the server "
            what += "that is meant."
        elif to.scheme in ("http", "https") and to.scheme != own.scheme:
            what = f"to {to.scheme}; begin its url with {to.scheme}://"
        else:
            what = "to another page, such as one to log in; is its url that of the model server?"
        sentence = f"provider {self.provider}: HTTP {status}, a redirect {what}{self._hint}"
        return Rejected(sentence, self.provider, status)

    def _explained(self, error: Exception) -> ProviderError:
        """A transport's error as one of ours, without the address it may mention."""
        # httpx's errors are raised from aiohttp's, which say more.
        cause = error.__cause__ if isinstance(error, httpx.HTTPError) else error
        known: type[ProviderError] = errors.Unreachable
        match cause:
            case aiohttp.ClientConnectorError(os_error=NotAllowed()):
                known = errors.Forbidden
                what = "its address is neither loopback nor private; set allow_public: "
                what += f"[{self.provider}] in the parameters if that is meant."
            case aiohttp.ConnectionTimeoutError():
                what = f"no connection within {self._connect_timeout_s:g} s; is it on?{self._hint}"
            case TimeoutError() | httpx.TimeoutException():
                known = errors.TimedOut
                what = f"not finished within {self._timeout_s:g} s; raise request_timeout_s?"
            case aiohttp.ClientConnectorDNSError():
                what = "the host name in its url is not known here; check its spelling."
            case aiohttp.ClientSSLError() | ssl.SSLError():
                what = "no secure connection; is its certificate trusted, and its url https?"
            case aiohttp.ClientConnectorError(os_error=OSError(errno=int(number))):
                # The system's words for the number: the error's own text names the address.
                what = f"no connection ({os.strerror(number).lower()}); is it running?{self._hint}"
            case aiohttp.ClientConnectorError():
                what = "no connection; is it running?"
            case aiohttp.ClientResponseError():
                known = BadAnswer
                what = f"what answers there does not speak HTTP; is the port right?{self._hint}"
            case zlib.error():
                known = BadAnswer
                what = "its answer is not encoded as its content-encoding says; switch that off."
            case _:
                what = "the connection broke off; did the server stop?"
        return known(f"provider {self.provider}: {what}", self.provider)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()


def _marker(event: str) -> Any:
    async def mark(*_: object) -> None:
        exchange = _exchange.get()
        # A server may answer before it has read the whole request: sent ends there at the latest.
        if exchange is not None and "first_byte_ms" not in exchange.marks:
            exchange.mark(event)

    return mark


async def _leave(*_: object) -> None:
    if leave := _sent.get():
        leave()


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
        wrong = "its url cannot be right: it has a part after ? or #; leave that out."
    elif host.strip("0.:") == "":
        wrong = (
            f"its url cannot be right: {host} is where a server listens, on every address of its "
            "machine; write 127.0.0.1, or that machine's own address."
        )
    elif parts.username or parts.password:
        wrong = "its url holds a name or password; put the key into an environment variable and "
        wrong += "name that in api_key_env."
    elif key and not (key.isascii() and key.isprintable()):
        wrong = "its key holds a character that no HTTP header can carry; "
        wrong += "is there a line break in it?"
    else:
        # A host of one plain word may be any word of a message, so only with its port.
        named = [f"{host}:{port}", parts.netloc, host if set(host) & set(".:") else "", key or ""]
        return sorted(filter(None, named), key=len, reverse=True)
    raise ParameterError(f"provider {provider}: {wrong}")
