"""One address of a provider: how it is reached, and the connections that are open to it.

Where a server closes its connection after an answer, the next is opened while that answer still
comes, so that no request pays for connecting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..records import Exchange
from .connection import Connection, Stamped

# llama-server closes a connection idle for 5 s; a shorter life here avoids sending into that.
KEEPALIVE_S = 4.0
# Opened ahead: as many as llama-server has threads beyond its slots, for an open connection holds
# one. Looked at so often: what is old or was closed goes, and another is opened.
MOST_AHEAD, LOOK_S = 4, 1.0
# How long a request that opens its connection keeps others from it: enough for our own work, not
# for a network's round trip.
TURN_S = 0.001
# How long an address is tried before the next one of its name is, too; how long names are known.
NEXT_S, NAME_S = 0.25, 10.0
_NETWORKS = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16 "
_NETWORKS += "::1/128 fc00::/7 fe80::/10"
PRIVATE = [ipaddress.ip_network(network) for network in _NETWORKS.split()]
# Of `getaddrinfo`: family, type, protocol, name, address.
Info = tuple[int, int, int, str, Any]


class NotAllowed(OSError):
    """Only public addresses are there."""


class NotConnected(Exception):
    """No connection was opened; its cause says why."""


@functools.lru_cache
def is_private(address: str) -> bool:
    """Whether an IP address is loopback, link-local or private (RFC 1918, 4193)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any((getattr(ip, "ipv4_mapped", None) or ip) in network for network in PRIVATE)


def looked_up(host: str, port: int) -> asyncio.Future[list[Info]]:
    """By the system's resolver, in a thread that a loop does not wait for when it closes."""
    answer: concurrent.futures.Future[list[Info]] = concurrent.futures.Future()
    answer.set_running_or_notify_cancel()  # who waits may go, the thread goes on

    def look() -> None:
        try:
            how = {"type": socket.SOCK_STREAM, "flags": socket.AI_ADDRCONFIG}
            answer.set_result(socket.getaddrinfo(host, port, **how))
        except Exception as error:
            answer.set_exception(error)

    try:  # an address needs no looking up
        family = {4: socket.AF_INET, 6: socket.AF_INET6}[ipaddress.ip_address(host).version]
        answer.set_result([(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, port))])
    except ValueError:
        threading.Thread(target=look, daemon=True, name="poclib-lookup").start()
    return asyncio.wrap_future(answer)


async def dialled(addresses: Sequence[Info]) -> Stamped:
    """A socket to the first address that answers; each is tried a moment after the one before."""
    if len(addresses) == 1:
        return await _dial(addresses[0])
    left, tries, problem = list(addresses), set[asyncio.Task[Stamped]](), OSError()
    try:
        while left or tries:
            tries |= {asyncio.create_task(_dial(left.pop(0)))} if left else set()
            patience_s = NEXT_S if left else None
            first = asyncio.FIRST_COMPLETED
            done, tries = await asyncio.wait(tries, timeout=patience_s, return_when=first)
            for task in done:
                if isinstance(error := task.exception(), OSError):
                    problem = error
                else:
                    return task.result()
        raise problem
    finally:
        for task in tries:
            task.cancel()


async def _dial(address: Info) -> Stamped:
    *what, _name, there = address
    link = Stamped(*what)
    try:
        link.setblocking(False)
        await asyncio.get_running_loop().sock_connect(link, there)
    except BaseException:
        link.close()
        raise
    return link


class Origin:
    """A host and a port. `trusted`: for TLS; `limit_s`: within which a connection has to open."""

    def __init__(
        self,
        host: str,
        port: int,
        trusted: ssl.SSLContext | None,
        limit_s: float,
        allow_public: bool,
    ) -> None:
        self._host, self._port, self._trusted = host, port, trusted
        self._limit_s, self._allow_public = limit_s, allow_public
        self._addresses: asyncio.Future[list[Info]] | None = None
        self._known_until_s = 0.0
        self._turn = asyncio.Lock()
        self._idle: deque[Connection] = deque()  # the youngest last
        self._ahead: deque[asyncio.Task[Connection]] = deque()  # the oldest first
        self._look: asyncio.TimerHandle | None = None
        self.closing = 0  # answers under way, after which the server closes their connections

    async def connection(self, exchange: Exchange) -> Connection:
        """A connection for a request, marked: idle, opened ahead, or new. Raises `NotConnected`.

        `exchange` is marked from its turn on: of many that begin at once each would be timed
        through the connecting of all.
        """
        marks, start_ms = exchange.marks, exchange.clock()
        if found := self._warm():
            marks["start_ms"] = start_ms
        else:
            found = await self._opened_ahead(exchange) or await self._new(exchange)
        marks["ready_ms"] = exchange.clock()
        return found

    def release(self, connection: Connection, keep: bool) -> None:
        """A request has ended; its connection is kept for another where it can be."""
        if connection.release() and keep:
            connection.opened_s = time.perf_counter()
            self._idle.append(connection)
        else:
            connection.close()

    def open_ahead(self) -> None:
        """Have connections opened for the requests that will follow on what is under way."""
        while len(self._ahead) < min(self.closing, MOST_AHEAD):
            self._ahead.append(task := asyncio.create_task(self._opened()))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        if self._ahead and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_S, self._renew)

    def close(self) -> None:
        self.closing = 0
        if self._look:
            self._look.cancel()
        for task in self._ahead:
            _drop(task)
        for connection in self._idle:
            connection.close()
        self._ahead.clear()
        self._idle.clear()

    def _renew(self) -> None:
        """Let go of what is nearly too old to be used, or was closed there."""
        self._look, oldest_s = None, time.perf_counter() - KEEPALIVE_S + LOOK_S
        for task in [each for each in self._ahead if each.done()]:
            if task.cancelled() or task.exception() or not task.result().fresh(oldest_s):
                self._ahead.remove(task)
                _drop(task)
        self.open_ahead()

    def _warm(self) -> Connection | None:
        oldest_s = time.perf_counter() - KEEPALIVE_S
        while self._idle:
            if (connection := self._idle.pop()).fresh(oldest_s):
                if self._idle and self._idle[0].opened_s < oldest_s:
                    self._idle.popleft().close()
                return connection
            connection.close()
        return None

    async def _opened_ahead(self, exchange: Exchange) -> Connection | None:
        """The oldest that was opened ahead; one that is being opened is waited for.

        One that was closed there is passed over: no byte of a request has gone into it.
        """
        while self._ahead:
            task, start_ms = self._ahead.popleft(), exchange.clock()
            if task.done():
                if not (task.cancelled() or task.exception()):
                    connection = task.result()
                    if connection.fresh(time.perf_counter() - KEEPALIVE_S):
                        exchange.marks["start_ms"] = start_ms
                        exchange.ahead_ms = connection.opening_ms
                        return connection
                _drop(task)
                continue
            # The wait for it is a connect like any other, if a shorter one.
            exchange.marks["start_ms"] = exchange.marks["connect_start_ms"] = start_ms
            with contextlib.suppress(NotConnected):
                connection = await task
                exchange.mark("connected")
                return connection
        return None

    async def _new(self, exchange: Exchange) -> Connection:
        await self._turn.acquire()
        with contextlib.ExitStack() as turn:  # closed twice, it releases once
            turn.callback(self._turn.release)
            timer = asyncio.get_running_loop().call_later(TURN_S, turn.close)
            turn.callback(timer.cancel)
            exchange.mark("start")
            if found := self._warm():  # left by what was answered meanwhile
                return found
            exchange.mark("connect_start")
            found = await self._opened()
            ago_s = time.perf_counter() - found.opened_s
            exchange.marks["connected_ms"] = exchange.clock() - ago_s * 1000
            return found

    async def _opened(self) -> Connection:
        begun_s, loop = time.perf_counter(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limit_s):
                link = await dialled(await self._allowed())
                name = self._host if self._trusted else None
                _, connection = await loop.create_connection(
                    lambda: Connection(link), sock=link, ssl=self._trusted, server_hostname=name
                )
        except OSError as error:
            raise NotConnected from error
        connection.opening_ms = (connection.opened_s - begun_s) * 1000
        return connection

    async def _allowed(self) -> list[Info]:
        """The addresses that may be connected to. Raises `NotAllowed` where there is none."""
        known, now_s = self._addresses, time.monotonic()
        if known is None or known.done() and (now_s > self._known_until_s or known.exception()):
            known = self._addresses = looked_up(self._host, self._port)
            self._known_until_s = now_s + NAME_S
        found = await asyncio.shield(known)
        allowed = [each for each in found if self._allow_public or is_private(each[4][0])]
        if not allowed:
            raise NotAllowed
        return allowed


def _drop(task: asyncio.Task[Connection]) -> None:
    if not task.cancel() and not task.cancelled() and not task.exception():
        task.result().close()
