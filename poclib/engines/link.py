"""A network link on one machine: delay, jitter, bandwidth and loss of connection, in user space.

Knows bytes and times only. A TCP proxy on 127.0.0.1 stands in front of each target port, notes for
each chunk of bytes the moment it is due at the other end, and sends it then. There is no congestion
window, and no packet is lost or sent again. A local `connect` returns at once, where a real one
costs a round trip: the client's bytes leave no earlier than a round trip after the connection was
accepted, so the cost is there, but the client sees it as waiting for the answer.

What passes is counted. A hop is a question and its answer: bytes from a target after bytes to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import selectors
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

_HOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
_HELD_CHUNKS = 1024  # what one direction may hold back
_TO_TARGET, _TO_CLIENT = 0, 1
_RESET = None  # among chunks; b"" is the end of the stream
_EARLY_S = 0.0002  # the system wakes a thread late: it asks to be woken this much early
_STOP_S = 5.0

_Held = asyncio.Queue[tuple[float, bytes | None]]  # chunks, with the moment at which each is due


@dataclass
class Count:
    """What has passed to a target (bytes[0]) and back (bytes[1]) while one connection was in use.

    `busy_s` is from the end of each question to its answer: the target's own time, and the delay.
    """

    hops: int = 0
    bytes: tuple[int, int] = (0, 0)
    busy_s: float = 0.0
    asked_s: float | None = None  # since when a question waits for its answer

    def add(self, way: int, size: int, now_s: float) -> None:
        there, back = self.bytes
        self.bytes = (there, back + size) if way == _TO_CLIENT else (there + size, back)
        if way == _TO_TARGET:
            self.asked_s = now_s
        elif self.asked_s is not None:
            self.hops += 1
            self.busy_s += now_s - self.asked_s
            self.asked_s = None


class EmulatedLink:
    """A link to each of the `targets`, ports of this machine or (host, port); connect to `ports`.

    `round_trip_ms` is halved into each direction. `jitter_ms` moves each direction's delay
    evenly by up to half of it, earlier or later (never below 0, never out of order), so that a
    round trip varies by at most `jitter_ms`. `bandwidth_mbit_s` is shared by all connections,
    for each direction separately; None is unlimited. It lives as long as its process.
    """

    def __init__(
        self,
        targets: Sequence[int | tuple[str, int]],
        *,
        round_trip_ms: float = 0.0,
        jitter_ms: float = 0.0,
        bandwidth_mbit_s: float | None = None,
    ) -> None:
        self._targets = [(_HOST, each) if isinstance(each, int) else each for each in targets]
        self.counts = [Count() for _ in targets]
        self.change(round_trip_ms, jitter_ms, bandwidth_mbit_s)
        self._random = random.Random(0)  # jitter comes in the same sequence each time
        self._idle_from_s = [0.0, 0.0]  # when each direction's line is free again
        self._listeners = [_bound(0) for _ in targets]
        self.ports: list[int] = [listener.getsockname()[1] for listener in self._listeners]
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[Any]] = set()
        # `select` waits for microseconds, the other selectors for whole milliseconds.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self.restore()

    def change(
        self, round_trip_ms: float, jitter_ms: float, bandwidth_mbit_s: float | None
    ) -> None:
        """Delay what comes from now on so; what is under way stays as it was."""
        self._round_trip_s, self._jitter_s = round_trip_ms / 1000, jitter_ms / 1000
        self._byte_s = 0.0 if bandwidth_mbit_s is None else 8e-6 / bandwidth_mbit_s

    def drop(self) -> None:
        """Cut every connection with a reset and refuse new ones until `restore`."""
        self._do(self._cut())

    def restore(self) -> None:
        """Accept connections again. What was cut stays cut."""
        self._do(self._listen())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_STOP_S)

    async def _listen(self) -> None:
        for which, listener in enumerate(self._listeners):
            carry = functools.partial(self._carry, which)
            self._servers.append(await asyncio.start_server(carry, sock=listener, backlog=1024))

    async def _cut(self) -> None:
        for server in self._servers:
            server.close()
        for listener in self._listeners:
            listener.close()
        self._servers = []
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections)
        self._listeners = [_bound(port) for port in self.ports]  # deaf: connections are refused

    async def _carry(self, which: int, client: StreamReader, to_client: StreamWriter) -> None:
        """One connection, until both directions have ended or a reset is passed on."""
        open_s = self._loop.time() + self._round_trip_s  # the handshake that accepting did not pay
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        ends, reset = [to_client], True
        there, back = _Held(_HELD_CHUNKS), _Held(_HELD_CHUNKS)
        try:
            if not self._servers:  # it was accepted just before they were closed
                raise ConnectionResetError
            server, to_server = await asyncio.open_connection(*self._targets[which])
            count = self.counts[which]
            ends.append(to_server)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(_TO_TARGET, open_s, client, there, count))
                group.create_task(self._write(there, to_server))
                group.create_task(self._read(_TO_CLIENT, open_s, server, back, count))
                group.create_task(self._write(back, to_client))
            reset = False
        except* (OSError, asyncio.CancelledError):
            pass  # both ends get a reset
        finally:
            self._connections.remove(task)
            for end in ends:
                _close(end, reset)

    async def _read(
        self, way: int, open_s: float, source: StreamReader, held: _Held, count: Count
    ) -> None:
        """Hold each chunk, the end and a reset until they are due, in their order."""
        due_s = 0.0
        chunk: bytes | None = b"none yet"
        while chunk:
            try:
                chunk = await source.read(_CHUNK_BYTES)
            except OSError:
                chunk = _RESET
            if chunk:
                count.add(way, len(chunk), self._loop.time())
            leaves_s = max(self._loop.time(), open_s, self._idle_from_s[way])
            sent_s = leaves_s + len(chunk or b"") * self._byte_s
            self._idle_from_s[way] = sent_s if self._byte_s else 0.0
            jitter_s = self._jitter_s * (self._random.random() - 0.5)
            due_s = max(due_s, sent_s + max(0.0, self._round_trip_s / 2 + jitter_s))
            await held.put((due_s, chunk))

    async def _write(self, held: _Held, sink: StreamWriter) -> None:
        """Pass on what is due. Raises `OSError` for a reset or a broken sink."""
        while True:
            due_s, chunk = await held.get()
            while (wait_s := due_s - self._loop.time()) > 0:  # noqa: ASYNC110 - the last bit spins
                await asyncio.sleep(max(0.0, wait_s - _EARLY_S))
            if chunk is _RESET:
                raise ConnectionResetError
            if not chunk:
                sink.write_eof()
                return
            sink.write(chunk)
            await sink.drain()


def _close(end: StreamWriter, reset: bool) -> None:
    """With a reset, what is on its way is lost."""
    with contextlib.suppress(OSError):  # already gone, which is what was wanted
        if reset:
            linger = struct.pack("ii", 1, 0)
            end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            end.transport.abort()
        end.close()


def _bound(port: int) -> socket.socket:
    """A socket bound to `port` of this machine (0: any free one), not yet listening."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((_HOST, port))
    return listener
