"""One HTTP client per provider: what is sent, what comes back, and what failures mean.

Of our own: a general client costs several times as much per request, and hides its moments.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import httpx
import msgspec

from ..errors import BadAnswer, Forbidden, ParameterError, ProviderError, TimedOut, Unreachable
from ..records import Exchange
from .connection import Response, failed
from .origin import NotAllowed, NotConnected, Origin


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
        self._secrets, self._trusted = _secrets(self.provider, self.url, self.key), None
        try:
            if path := self.ca_file and Path(self.ca_file).expanduser():
                self._trusted = ssl.create_default_context(cafile=path)
        except (OSError, ValueError):  # ssl's own error is an OSError
            what = "its ca_file cannot be read as certificates (PEM); name its authority's file."
            raise ParameterError(f"provider {self.provider}: {what}") from None
        # Told where what answers (or does not) may be another program.
        no_port = " Its url names no port, such as :11434 or :8000."
        self.hint = no_port if urlsplit(self.url).port is None else ""
        self._headers = "accept: */*\r\naccept-encoding: identity\r\nuser-agent: poclib\r\n"
        if self.key:
            self._headers += f"authorization: Bearer {self.key}\r\n"
        # By url, as this provider may have several; by method, url and path: what never changes.
        self._origins: dict[str, Origin] = {}
        self._heads: dict[tuple[str, str, str, bool], bytes] = {}

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
        """Send one request, once, and yield its response as soon as the headers are here.

        `keep`: whether its connection may serve another; else the next one's is opened ahead.
        `url`: another address of this provider. Raises `Unreachable`, `TimedOut`, `Forbidden` or
        `BadAnswer` (no HTTP), also while the body is read; none tells an address.
        """
        url, exchange = url or self.url, exchange or Exchange(time.perf_counter)
        data, origin = self._head(method, url, path, keep), self.origin(url)
        if json is not None:
            body = msgspec.json.encode(json)
            data += b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        data += b"\r\n" if json is None else b"\r\n" + body
        response, connection = Response(self.provider, exchange), None
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self.timeout_s, response.fail, TimeoutError())
        origin.closing += not keep
        try:
            connection = await origin.connection(exchange)
            connection.ask(data, response)
            if not keep:
                origin.open_ahead()
            await response.head()
            yield response
        except (NotConnected, OSError, httptools.HttpParserError) as error:
            raise self._explained(error) from None
        finally:
            timer.cancel()
            origin.closing -= not keep
            if connection is not None:
                response.keep = response.keep and keep
                if connection.release():
                    origin.idle.append(connection)

    def origin(self, url: str) -> Origin:
        """The connections to one of this provider's addresses."""
        if (found := self._origins.get(url)) is None:
            at, limit_s = httpx.URL(url), min(self.connect_timeout_s, self.timeout_s)
            tls = (self._trusted or ssl.create_default_context()) if at.scheme == "https" else None
            host, port = at.raw_host.decode(), at.port or (443 if tls else 80)
            found = self._origins[url] = Origin(host, port, tls, limit_s, self.allow_public)
        return found

    def _head(self, method: str, url: str, path: str, keep: bool) -> bytes:
        key = method, url, path, keep
        if (found := self._heads.get(key)) is None:
            at = httpx.URL(url.rstrip("/") + path)
            first = f"{method} {at.raw_path.decode()} HTTP/1.1\r\nhost: {at.netloc.decode()}\r\n"
            closes = "" if keep else "connection: close\r\n"
            found = self._heads[key] = f"{first}{self._headers}{closes}".encode()
        return found

    def redacted(self, text: str) -> str:
        """`text` without the provider's address and key, which a server may echo."""
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text

    def _explained(self, error: BaseException) -> ProviderError:
        """What broke a request as one of our errors, without the address it may mention."""
        opening = isinstance(error, NotConnected)
        kind: type[ProviderError] = Unreachable
        match error.__cause__ if opening else error:
            case NotAllowed():
                kind, what = Forbidden, "its address is not private, nor of a mesh that is up; set "
                what += f"allow_public: [{self.provider}] in the parameters if that is meant."
            case TimeoutError(errno=None) if opening:
                what = f"no connection within {self.connect_timeout_s:g} s; is it on?{self.hint}"
            case TimeoutError() if not opening:
                kind = TimedOut
                what = f"not finished within {self.timeout_s:g} s; raise request_timeout_s?"
            case socket.gaierror():
                what = "the host name in its url is not known here; check its spelling."
            case ssl.SSLError():
                what = "no secure connection; is its certificate trusted, and its url https?"
            case OSError(errno=int(number)) if opening:
                # The system's words for the number: the error's own text names the address.
                what = f"no connection ({os.strerror(number).lower()}); is it running?{self.hint}"
            case httptools.HttpParserError():
                kind, what = BadAnswer, "what answers there does not speak HTTP, or its "
                what += f"content-encoding is none; is the port right?{self.hint}"
            case _:
                what = "the connection broke off; did the server stop?"
        return failed(kind, self.provider, what)

    async def aclose(self) -> None:
        for origin in self._origins.values():
            origin.close()
        await asyncio.sleep(0)  # in which the sockets are closed


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
