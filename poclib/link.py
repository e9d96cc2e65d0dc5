"""A network link on one machine: delay, jitter, bandwidth and loss of connection, in user space.

It knows bytes and times only: nothing of providers, engines, HTTP or reports. Imports `errors`.

A TCP proxy on 127.0.0.1 stands in front of a target port. Each direction of each connection has
a reader, which stamps every chunk with the moment it is due, and a writer, which waits for that
moment: threads, because asyncio's timers round to whole milliseconds. Measured against an echo
server, everything on 2 cores with a load of 1.5: the round trip exceeds the one asked for by
0.3 ms at 5, 0.4 at 20 and 0.5 at 100 ms (medians; 95th percentiles 0.7 to 1.8); with no delay
asked for, 0.1 ms. Where engines keep all cores busy the medians hold, but one round trip in
twenty is 3 to 4 ms late: the system's scheduler decides when a waking thread gets a core.

What is not like a real network: a local `connect` returns at once, where a real one costs one
round trip. So the client's bytes leave no earlier than one round trip after the connection
was accepted: the cost is there, but the client sees it as waiting for the answer instead of
connecting. There is no congestion window, and no packet is lost or resent.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

from .errors import EngineError

_HOST = "127.0.0.1"
_CHUNK_BYTES = 16 * 1024
# What one direction may hold back: a 100 ms round trip still carries about 80 MB/s.
_HELD_BYTES = 4 * 1024 * 1024
_TO_TARGET, _TO_CLIENT = 0, 1
_RESET = None  # in a queue of chunks; b"" is the end of the stream
_STOP_S = 5.0
_EARLY_S = 0.0004  # at most this long is spent spinning until a chunk is due


class Link:
    """A link to `target_port` on this machine; connect to `port` instead of it.

    `round_trip_ms` is halved into each direction. `jitter_ms` moves each direction's delay
    evenly by up to half of it, earlier or later (never below 0, never out of order), so that a
    round trip varies by at most `jitter_ms`. `bandwidth_mbit_s` is shared by all connections,
    for each direction separately; None is unlimited. `seed` fixes the sequence of jitter.

    Raises `EngineError` where no port can be opened or a number is out of range.
    """

    def __init__(
        self,
        target_port: int,
        *,
        round_trip_ms: float = 0.0,
        jitter_ms: float = 0.0,
        bandwidth_mbit_s: float | None = None,
        seed: int = 0,
    ) -> None:
        self.target_port = target_port
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        self._idle_from_s = [0.0, 0.0]  # when each direction's line is free again
        self._connections: set[_Connection] = set()
        self._acceptor: threading.Thread | None = None
        self.set(round_trip_ms, jitter_ms, bandwidth_mbit_s)
        self._listener = _bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._wake, self._woken = socket.socketpair()
        self.restore()

    def set(
        self,
        round_trip_ms: float = 0.0,
        jitter_ms: float = 0.0,
        bandwidth_mbit_s: float | None = None,
    ) -> None:
        """Change all three for bytes that enter the link from now on."""
        if not (0 <= round_trip_ms < float("inf") and 0 <= jitter_ms < float("inf")):
            raise EngineError(
                f"a link's round_trip_ms ({round_trip_ms}) and jitter_ms ({jitter_ms}) "
                "must be finite and not negative; correct the link's parameters."
            )
        if bandwidth_mbit_s is not None and not bandwidth_mbit_s > 0:
            raise EngineError(
                f"a link's bandwidth_mbit_s ({bandwidth_mbit_s}) must be above 0; "
                "leave it out for an unlimited link, use drop() for a dead one."
            )
        with self._lock:
            self._round_trip_s = round_trip_ms / 1000
            self._jitter_s = jitter_ms / 1000
            self._byte_s = 0.0 if bandwidth_mbit_s is None else 8e-6 / bandwidth_mbit_s

    def due_s(self, way: int, size_bytes: int, accepted_s: float) -> float:
        """The moment (monotonic seconds) at which a chunk read now arrives at the other end."""
        with self._lock:
            leaves_s = time.monotonic()
            if way == _TO_TARGET:  # the handshake that the local accept did not pay for
                leaves_s = max(leaves_s, accepted_s + self._round_trip_s)
            sent_s = max(leaves_s, self._idle_from_s[way]) + size_bytes * self._byte_s
            self._idle_from_s[way] = sent_s if self._byte_s else 0.0
            jitter_s = self._jitter_s * (self._random.random() - 0.5)
            return sent_s + max(0.0, self._round_trip_s / 2 + jitter_s)

    def drop(self) -> None:
        """Cut every connection with a reset and refuse new ones until `restore`."""
        self._stop_accepting()
        self._listener = _bound(self.port)  # bound but deaf: new connections are refused
        for connection in self._open():
            connection.end()

    def restore(self) -> None:
        """Accept connections again. What was cut stays cut."""
        if self._acceptor is None:
            self._listener.listen(1024)
            self._acceptor = threading.Thread(target=self._accept, daemon=True)
            self._acceptor.start()

    def close(self) -> None:
        """Cut everything and end every thread; harmless when repeated."""
        self._stop_accepting()
        open_now = self._open()
        for connection in open_now:
            connection.end()
        for connection in open_now:
            connection.join(_STOP_S)
        self._wake.close()
        self._woken.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self, connection: _Connection) -> None:
        """Called by a connection whose sockets are closed."""
        with self._lock:
            self._connections.discard(connection)

    def _open(self) -> list[_Connection]:
        with self._lock:
            return list(self._connections)

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            if any(fd == self._woken.fileno() for fd, _ in poll.poll()):
                self._woken.recv(1)
                return
            try:
                client, _ = self._listener.accept()
            except OSError:  # the client was gone before it was accepted
                continue
            connection = _Connection(self, client)
            with self._lock:
                self._connections.add(connection)
            connection.start()

    def _stop_accepting(self) -> None:
        if self._acceptor is not None:
            self._wake.send(b"x")
            self._acceptor.join(_STOP_S)
            self._acceptor = None
        self._listener.close()


class _Connection:
    """Two sockets and the two ways between them. The last of its threads closes both."""

    def __init__(self, link: Link, client: socket.socket) -> None:
        self.link = link
        self.accepted_s = time.monotonic()
        self.lock = threading.Lock()
        self.ended = False
        target = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for each in (client, target):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sockets = (client, target)
        self.ways = (
            _Way(self, _TO_TARGET, client, target),
            _Way(self, _TO_CLIENT, target, client),
        )
        self.threads = [
            threading.Thread(target=self._work, args=(job,), daemon=True)
            for way in self.ways
            for job in (way.read, way.write)
        ]
        self.alive = len(self.threads)

    def start(self) -> None:
        """Connect to the target (local: at once, or refused at once) and begin carrying."""
        target = self.sockets[1]
        try:
            target.settimeout(_STOP_S)
            target.connect((_HOST, self.link.target_port))
            target.settimeout(None)
        except OSError:  # the refusal, too, takes its time to come back
            self.ways[_TO_CLIENT].put(_RESET)
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        """Stop all four threads; the last of them closes both sockets with a reset."""
        self.ended = True
        for way in self.ways:
            with way.changed:
                way.changed.notify_all()
        for each in self.sockets:
            with contextlib.suppress(OSError):  # already gone, which is what was wanted
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                each.shutdown(socket.SHUT_RD)  # wakes its reader, and sends nothing

    def join(self, limit_s: float) -> None:
        """Wait for the threads, at most `limit_s` together."""
        end_s = time.monotonic() + limit_s
        for thread in self.threads:
            if thread.ident is not None:
                thread.join(max(0.0, end_s - time.monotonic()))

    def _work(self, job: Callable[[], None]) -> None:
        job()
        with self.lock:
            self.alive -= 1
            if self.alive:
                return
        for each in self.sockets:
            each.close()
        self.link.forget(self)


class _Way:
    """One direction of one connection."""

    def __init__(
        self, connection: _Connection, way: int, source: socket.socket, sink: socket.socket
    ) -> None:
        self.connection, self.way, self.source, self.sink = connection, way, source, sink
        self.changed = threading.Condition()
        self.chunks: deque[tuple[float, bytes | None]] = deque()
        self.held_bytes = 0
        self.early_s = 0.0  # how late this thread usually wakes: it sets its alarm that much early
        self.last_due_s = 0.0

    def put(self, chunk: bytes | None) -> None:
        """Stamp a chunk, an end or a reset with its due time; never before its forerunner."""
        link, accepted_s = self.connection.link, self.connection.accepted_s
        due_s = link.due_s(self.way, len(chunk or b""), accepted_s)
        with self.changed:
            self.last_due_s = max(self.last_due_s, due_s)
            self.chunks.append((self.last_due_s, chunk))
            self.held_bytes += len(chunk or b"")
            self.changed.notify_all()

    def read(self) -> None:
        """Take what the source sends, until it ends or breaks."""
        connection = self.connection
        while not connection.ended:
            try:
                chunk: bytes | None = self.source.recv(_CHUNK_BYTES)
            except OSError:
                chunk = _RESET
            if connection.ended:
                return
            self.put(chunk)
            if not chunk:
                return
            with self.changed:
                self.changed.wait_for(lambda: self.held_bytes < _HELD_BYTES or connection.ended)

    def write(self) -> None:
        """Pass each chunk on when it is due; an end as an end, a reset as a reset."""
        while (chunk := self._next()) is not _RESET:
            if chunk == b"":
                with contextlib.suppress(OSError):  # gone; its own reader tells the other end
                    self.sink.shutdown(socket.SHUT_WR)
                return
            if not self._send(chunk):
                break
        self.connection.end()

    def _next(self) -> bytes | None:
        """The next chunk, once due; `_RESET` also where the connection was ended meanwhile."""
        with self.changed:
            while not self.connection.ended:
                if not self.chunks:
                    self.changed.wait()
                    continue
                due_s = self.chunks[0][0]
                wake_s = due_s - self.early_s
                if time.monotonic() < wake_s:
                    if not self.changed.wait(wake_s - time.monotonic()):
                        late_s = min(time.monotonic() - wake_s, _EARLY_S)
                        self.early_s += (late_s - self.early_s) / 8
                    continue
                while time.monotonic() < due_s:
                    time.sleep(0)
                chunk = self.chunks.popleft()[1]
                self.held_bytes -= len(chunk or b"")
                self.changed.notify_all()
                return chunk
        return _RESET

    def _send(self, chunk: bytes) -> bool:
        """Send all of it; False where the sink is broken or the connection was ended."""
        rest = memoryview(chunk)
        while rest and not self.connection.ended:
            try:
                rest = rest[self.sink.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:  # the sink reads slowly: wait, but notice an end
                poll = select.poll()
                poll.register(self.sink, select.POLLOUT)
                poll.poll(50)
            except OSError:
                return False
        return not rest


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
