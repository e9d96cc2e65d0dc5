"""A network link on one machine: delay, jitter, bandwidth and loss of connection, in user space.

Knows bytes and times only: nothing of providers, engines, HTTP or reports. Imports `errors`.

A TCP proxy on 127.0.0.1 stands in front of each target port. One thread carries everything: it
notes for each chunk of bytes the moment it is due at the other end, and sends it then. Measured
against an echo server, everything on 2 cores that others used too: a round trip exceeds the one
asked for by 0.2 ms at 5, 0.4 at 20 and 0.3 at 100 ms (medians; with no delay asked for 0.1 ms).
Where engines keep all cores busy one round trip in twenty is 2 to 9 ms late: the system's
scheduler decides when a waking thread gets a core.

What is not like a real network: a local `connect` returns at once, where a real one costs one
round trip. So the client's bytes leave no earlier than one round trip after the connection
was accepted: the cost is there, but the client sees it as waiting for the answer instead of
connecting. There is no congestion window, and no packet is lost or sent again. Connections that
`select` cannot hold any more, beyond about 500, are reset.
"""

from __future__ import annotations

import contextlib
import queue
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ..errors import EngineError

_HOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
# What one direction may hold back: a 100 ms round trip still carries about 80 MB/s.
_HELD_BYTES = 4 * 1024 * 1024
_TO_TARGET, _TO_CLIENT = 0, 1
_RESET = None  # among chunks; b"" is the end of the stream
_EARLY_S = 0.0001  # the system wakes a thread late: it asks to be woken this much early
_STOP_S = 5.0
_MOST_FILES = 1024  # what `select` can watch


class EmulatedLink:
    """A link to each of the `targets`, ports of this machine; connect to `ports` instead.

    `round_trip_ms` is halved into each direction. `jitter_ms` moves each direction's delay
    evenly by up to half of it, earlier or later (never below 0, never out of order), so that a
    round trip varies by at most `jitter_ms`. `bandwidth_mbit_s` is shared by all connections,
    for each direction separately; None is unlimited. Numbers are those of `records.Link`.

    Raises `EngineError` where no port can be opened.
    """

    def __init__(
        self,
        targets: Sequence[int],
        *,
        round_trip_ms: float = 0.0,
        jitter_ms: float = 0.0,
        bandwidth_mbit_s: float | None = None,
    ) -> None:
        self._random = random.Random(0)  # jitter comes in the same sequence each time
        self._idle_from_s = [0.0, 0.0]  # when each direction's line is free again
        self._connections: list[_Connection] = []
        self._round_trip_s, self._jitter_s = round_trip_ms / 1000, jitter_ms / 1000
        self._byte_s = 0.0 if bandwidth_mbit_s is None else 8e-6 / bandwidth_mbit_s
        self._targets = {_bound(0): target for target in targets}
        self.ports = [listener.getsockname()[1] for listener in self._targets]
        self._closed = False
        self._listen()
        self._orders: queue.SimpleQueue[tuple[Callable[[], None], Future[None]]]
        self._orders = queue.SimpleQueue()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def drop(self) -> None:
        """Cut every connection with a reset and refuse new ones until `restore`."""
        self._do(self._cut)

    def restore(self) -> None:
        """Accept connections again. What was cut stays cut."""
        self._do(self._listen)

    def close(self) -> None:
        """Cut everything and end the thread; harmless when repeated."""
        if not self._closed:
            self._do(self._end)
            self._thread.join()
            for each in (self._wake, self._woken, *self._targets):
                each.close()

    def _do(self, work: Callable[[], None]) -> None:
        """Have the thread do it, which alone touches sockets; raises what that raises."""
        done: Future[None] = Future()
        self._orders.put((work, done))
        self._wake.send(b"x")
        done.result(_STOP_S)

    def _listen(self) -> None:
        self._listens = True
        for listener in self._targets:
            listener.listen(1024)

    def _cut(self) -> None:
        self._listens = False
        for connection in self._connections:
            connection.close(reset=True)
        self._connections = []
        for listener in self._targets:
            listener.close()
        # Bound but deaf: new connections are refused.
        targets = zip(self.ports, self._targets.values(), strict=True)
        self._targets = {_bound(port): target for port, target in targets}

    def _end(self) -> None:
        self._cut()
        self._closed = True

    def _carry(self) -> None:
        """Accept, read, wait until a chunk is due, pass it on; until the link is closed."""
        while not self._closed:
            ways = [way for connection in self._connections for way in connection.ways]
            reads = [self._woken, *(self._targets if self._listens else ())]
            reads += [way.source for way in ways if way.open and way.held < _HELD_BYTES]
            writes = [way.sink for way in ways if way.full]
            due_s = [way.chunks[0][0] for way in ways if way.chunks and not way.full]
            wait_s = max(0.0, min(due_s) - time.monotonic() - _EARLY_S) if due_s else None
            readable, writable, _ = map(set, select.select(reads, writes, [], wait_s))
            for listener in readable & self._targets.keys():
                self._accept(listener)
            for connection in self._connections:
                connection.carry(self, readable, writable)
            self._connections = [each for each in self._connections if not each.closed]
            if self._woken in readable:
                self._woken.recv(1)
                work, done = self._orders.get()
                try:
                    done.set_result(work())
                except EngineError as error:
                    done.set_exception(error)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client was gone before it was accepted
            client, _ = listener.accept()
            connection = _Connection(client, self._targets[listener])
            if max(connection.files) < _MOST_FILES:
                self._connections.append(connection)
            else:
                connection.close(reset=True)

    def due_s(self, direction: int, size_bytes: int, accepted_s: float) -> float:
        """The moment (monotonic seconds) at which a chunk read now arrives at the other end."""
        leaves_s = time.monotonic()
        if direction == _TO_TARGET:  # the handshake that the local accept did not pay for
            leaves_s = max(leaves_s, accepted_s + self._round_trip_s)
        sent_s = max(leaves_s, self._idle_from_s[direction]) + size_bytes * self._byte_s
        self._idle_from_s[direction] = sent_s if self._byte_s else 0.0
        jitter_s = self._jitter_s * (self._random.random() - 0.5)
        return sent_s + max(0.0, self._round_trip_s / 2 + jitter_s)


class _Connection:
    """A client's socket, one to the target, and the two ways between them."""

    def __init__(self, client: socket.socket, target_port: int) -> None:
        self.accepted_s = time.monotonic()
        self.closed = False
        target = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sockets = client, target
        for each in self.sockets:
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.files = [each.fileno() for each in self.sockets]
        target.connect_ex((_HOST, target_port))  # a refusal is read like a reset
        self.ways = _Way(client, target, full=True), _Way(target, client)

    def carry(
        self, link: EmulatedLink, readable: set[socket.socket], writable: set[socket.socket]
    ) -> None:
        """Read what is there, pass on what is due; close where both ways have ended."""
        try:
            for direction, way in enumerate(self.ways):
                if way.source in readable:
                    chunk = way.read()
                    due_s = link.due_s(direction, len(chunk or b""), self.accepted_s)
                    way.put(chunk, due_s)
                if not way.full or way.sink in writable:
                    way.write()
        except OSError:
            self.close(reset=True)
        else:
            if all(way.ended for way in self.ways):
                self.close()

    def close(self, reset: bool = False) -> None:
        """Close both sockets; with a reset, what is on its way is lost."""
        self.closed = True
        for each in self.sockets:
            with contextlib.suppress(OSError):  # already gone, which is what was wanted
                if reset:
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.close()


class _Way:
    """One direction of one connection: chunks with the moments at which they are due.

    `full` is a sink that takes nothing more (or is not connected yet), `open` a source that has
    not ended, `ended` that its end was passed on.
    """

    def __init__(self, source: socket.socket, sink: socket.socket, full: bool = False) -> None:
        self.source, self.sink, self.full = source, sink, full
        self.open, self.ended = True, False
        self.chunks: deque[tuple[float, bytes | None]] = deque()
        self.held = 0
        self.last_due_s = 0.0

    def read(self) -> bytes | None:
        """What the source has sent: bytes, its end, or a reset."""
        try:
            chunk: bytes | None = self.source.recv(_CHUNK_BYTES)
        except OSError:
            chunk = _RESET
        self.open = bool(chunk)
        return chunk

    def put(self, chunk: bytes | None, due_s: float) -> None:
        """Hold a chunk until it is due; never before the one that came before it."""
        self.last_due_s = max(self.last_due_s, due_s)
        self.chunks.append((self.last_due_s, chunk))
        self.held += len(chunk or b"")

    def write(self) -> None:
        """Pass on what is due; an end as an end. Raises `OSError` for a reset or a broken sink."""
        self.full = False
        while self.chunks and self.chunks[0][0] <= time.monotonic():
            due_s, chunk = self.chunks.popleft()
            if chunk is _RESET:
                raise ConnectionResetError
            if not chunk:
                self.ended = True
                self.sink.shutdown(socket.SHUT_WR)
                return
            try:
                sent = self.sink.send(chunk)
            except BlockingIOError:
                sent = 0
            self.held -= sent
            if sent < len(chunk):
                self.chunks.appendleft((due_s, chunk[sent:]))
                self.full = True
                return


def _bound(port: int) -> socket.socket:
    """A socket bound to `port` of this machine (0: any free one), not yet listening."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise EngineError(
            f"the link cannot open port {port or 'of any number'} on {_HOST} "
            f"({error.strerror}); close what uses it, then start again."
        ) from None
    return listener
