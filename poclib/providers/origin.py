"""One address of a provider: how it is reached, and the connections that are open to it."""

import asyncio
import concurrent.futures
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Any

from ..addresses import is_private
from ..records import Exchange
from .connection import Connection, Stamped

# llama-server closes a connection idle for 5 s; a shorter life here avoids sending into that.
KEEPALIVE_S = 4.0
# Opened ahead: as many as llama-server has threads beyond its slots, for an open connection holds
# one. Looked at so often: what is old or was closed goes, and another is opened.
MOST_AHEAD, LOOK_S = 4, 1.0
# A request that opens its connection keeps others from it: for our own work, not a round trip.
TURN_S = 0.001
NAME_S = 10.0  # how long the addresses of a name are believed
# Of `getaddrinfo`: family, type, protocol, name, address.
Info = tuple[int, int, int, str, Any]


class NotAllowed(OSError):
    """Only public addresses are there."""


class NotConnected(Exception):
    """No connection was opened; its cause says why."""


def looked_up(host: str, port: int) -> asyncio.Future[list[Info]]:
    """By the system's resolver, in a thread that a loop does not wait for when it closes."""
    answer: concurrent.futures.Future[list[Info]] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()  # who waits may go, the thread goes on

    def look() -> None:
        try:
            answer.set_result([*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except Exception as error:
            answer.set_exception(error)

    try:  # an address needs no looking up
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[ipaddress.ip_address(host).version]
        answer.set_result([(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))])
    except ValueError:
        threading.Thread(target=look, daemon=True, name="poclib-lookup").start()
    return asyncio.wrap_future(answer)


@dataclass(eq=False)
class Origin:
    """A host and a port. `trusted`: for TLS; `limit_s`: within which a connection has to open."""

    host: str
    port: int
    trusted: ssl.SSLContext | None
    limit_s: float
    allow_public: bool
    closing: int = 0  # answers under way, after which the server closes their connections

    def __post_init__(self) -> None:
        self._addresses: asyncio.Future[list[Info]] | None = None
        self._until_s, self._reached = 0.0, None  # the address that answered last
        self._turn = asyncio.Lock()
        self.idle: deque[Connection] = deque()  # kept, the youngest last
        self._ahead: deque[asyncio.Task[Connection]] = deque()  # the oldest first
        self._look: asyncio.TimerHandle | None = None

    async def connection(self, exchange: Exchange) -> Connection:
        """A connection for a request, marked: idle, opened ahead, or new. Raises `NotConnected`."""
        # From its turn on: of many at once each would be timed through the connecting of all.
        marks = exchange.marks
        while (found := self._ready(exchange)) is None:
            async with self._turn:
                if found := self._ready(exchange):  # left by what was answered meanwhile
                    break
                own, start_ms = not self._ahead, exchange.clock()
                task = self._open() if own else self._ahead.popleft()
                marks.setdefault("start_ms", start_ms)
                marks.setdefault("connect_start_ms", start_ms)
                try:
                    await asyncio.wait([task], timeout=TURN_S)
                except BaseException:
                    task.cancel()
                    raise
            try:
                found = await task
            except NotConnected:
                if own:
                    raise
                continue
            open_ms = exchange.clock() - (time.perf_counter() - found.since_s) * 1000
            marks["connected_ms"] = max(start_ms, open_ms)
            break
        exchange.mark("ready")
        return found

    def _ready(self, exchange: Exchange) -> Connection | None:
        """An idle connection, the youngest first, or one opened ahead, the oldest first."""
        start_ms, oldest_s = exchange.clock(), time.perf_counter() - KEEPALIVE_S
        while self.idle:
            if (connection := self.idle.pop()).fresh(oldest_s):
                exchange.marks.setdefault("start_ms", start_ms)
                if self.idle and self.idle[0].since_s < oldest_s:
                    self.idle.popleft().close()
                return connection
        while self._ahead and (task := self._ahead[0]).done():
            self._ahead.popleft()
            if _fresh(task, oldest_s):
                exchange.marks.setdefault("start_ms", start_ms)
                exchange.ahead_ms = task.result().opening_ms
                return task.result()
        return None

    def open_ahead(self, least: int = 0) -> None:
        """Have one connection opened for each answer under way, so that no request pays for it."""
        while len(self._ahead) < min(max(self.closing, least), MOST_AHEAD):
            self._ahead.append(self._open())
        if self._ahead and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._renew)

    def _renew(self) -> None:
        """Let go of what was closed there, or is nearly too old to be used."""
        self._look, oldest_s = None, time.perf_counter() - KEEPALIVE_S + LOOK_S
        kept = [task for task in self._ahead if not task.done() or _fresh(task, oldest_s)]
        self._ahead = deque(kept)
        self.open_ahead()

    def close(self) -> None:
        self.closing = 0
        if self._look:
            self._look.cancel()
        for task in self._ahead:
            task.cancel() or _fresh(task, inf)
        for connection in self.idle:
            connection.close()

    def _open(self) -> asyncio.Task[Connection]:
        task = asyncio.create_task(self._opened())
        task.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps unread
        return task

    async def _opened(self) -> Connection:
        begun_s, name = time.perf_counter(), self.host if self.trusted else None
        try:
            async with asyncio.timeout(self.limit_s):
                link = await self._dialled()
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(link), sock=link, ssl=self.trusted, server_hostname=name
                )
        except OSError as error:
            raise NotConnected from error
        connection.opening_ms = (connection.since_s - begun_s) * 1000
        return connection

    async def _dialled(self) -> Stamped:
        """A socket to the first address that answers. Raises `NotAllowed` where none may."""
        known, now_s = self._addresses, time.monotonic()
        if known is None or (known.done() and (now_s > self._until_s or known.exception())):
            known = self._addresses = looked_up(self.host, self.port)
            self._until_s = now_s + NAME_S
        found = await asyncio.shield(known)
        allowed = [each for each in found if self.allow_public or is_private(each[4][0])]
        problem: OSError = NotAllowed()
        for *what, _name, there in sorted(allowed, key=lambda each: each[4] != self._reached):
            link = Stamped(*what)
            try:
                link.setblocking(False)
                async with asyncio.timeout(self.limit_s / len(allowed)):
                    await asyncio.get_running_loop().sock_connect(link, there)
                self._reached = there
                return link
            except BaseException as error:
                link.close()
                if not isinstance(error, OSError):
                    raise
                problem = error
        raise problem


def _fresh(task: asyncio.Task[Connection], oldest_s: float) -> bool:
    """Whether it has opened a connection that may be used, and which else is closed."""
    return not (task.cancelled() or task.exception()) and task.result().fresh(oldest_s)
