"""A server of known behaviour on loopback, to check the ruler against; run in its own process.

It knows HTTP and two wire formats only as far as poclib's own providers speak them, and imports
nothing of ours. A prompt tells it what to do: "DELAY TOKENS GAP", so many milliseconds before
the first token and between tokens. It spins towards each deadline, and reports in llama.cpp's
`timings` not what was asked but what it did, by its own monotonic clock. One thread, one loop:
64 answers at once disturb each other by tens of microseconds.

    python -m poclib.measure.stub ROUND_TRIP_MS    prints its port, serves until its input ends
"""

from __future__ import annotations

import heapq
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

# From so long before a deadline on, the loop spins: a selector sleeps in whole milliseconds.
_SPIN_S = 0.002


def _chunk(last: bool, more: dict[str, object]) -> bytes:
    """One token in both formats: llama-server's `content`, the others' `choices`."""
    choice = {"text": "x ", "finish_reason": "length" if last else None}
    event = {"content": "x ", "stop": last, "choices": [choice], **more}
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


# All but the last token are ready beforehand: making them would delay what is said to be sent.
_TOKEN = _chunk(False, {})
_HEADS = {
    keep: b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    + (b"" if keep else b"connection: close\r\n")
    + b"transfer-encoding: chunked\r\n\r\n"
    for keep in (True, False)
}


@dataclass
class _Connection:
    """One connection, and the answer it is giving."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)
    keep: bool = True
    due_s: list[float] = field(default_factory=list)
    arrived_s: float = 0.0
    first_s: float = 0.0
    sent: int = 0


class Stub:
    """Listens on a free port of 127.0.0.1. `round_trip_ms` is added to every exchange."""

    def __init__(self, round_trip_ms: float = 0.0) -> None:
        self._half_s = round_trip_ms / 2000
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._due: list[tuple[float, int, _Connection, bytes]] = []
        self._count = 0
        self.port: int = self._listener.getsockname()[1]

    def serve(self, until: object = None) -> None:
        """Serve until the file `until`, such as standard input, ends; None for ever."""
        if until is not None:
            self._selector.register(until, selectors.EVENT_READ)  # type: ignore[arg-type]
        while True:
            wait_s = self._due[0][0] - time.perf_counter() if self._due else None
            if wait_s is not None:
                wait_s = max(0.0, wait_s - _SPIN_S)
            for key, _ in self._selector.select(wait_s):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is until:
                    return
                else:
                    self._read(key.data)
            while self._due and self._due[0][0] <= time.perf_counter():
                _, _, connection, body = heapq.heappop(self._due)
                self._send(connection, body)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(client, selectors.EVENT_READ, _Connection(client))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except (BlockingIOError, ConnectionError):
            data = b""
        if not data:
            self._close(connection)
            return
        connection.received += data
        head, end, rest = bytes(connection.received).partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.lower().split(b"\r\n")
        length = next((int(one[15:]) for one in lines if one.startswith(b"content-length:")), 0)
        if len(rest) < length:
            return
        connection.received.clear()
        connection.keep = b"connection: close" not in lines
        # The request's way here and the answer's way back cost half a round trip each.
        connection.arrived_s = time.perf_counter() + self._half_s
        if head.startswith(b"GET"):
            body = b'{"object":"list","data":[]}'
            answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            answer += b"content-length: %d\r\n\r\n%b" % (len(body), body)
            self._plan(connection.arrived_s + self._half_s, connection, answer)
            return
        delay_ms, tokens, gap_ms = json.loads(rest)["prompt"].split()[-3:]
        first_s = connection.arrived_s + float(delay_ms) / 1000
        connection.sent = 0
        connection.due_s = [first_s + n * float(gap_ms) / 1000 for n in range(int(tokens))]
        self._plan(connection.due_s[0] + self._half_s, connection, b"")

    def _plan(self, due_s: float, connection: _Connection, body: bytes) -> None:
        self._count += 1
        heapq.heappush(self._due, (due_s, self._count, connection, body))

    def _send(self, connection: _Connection, body: bytes) -> None:
        """Send a whole answer, or the next token of one and plan the token after it."""
        last = bool(body)
        if not body:
            body, last = self._token(connection)
        try:
            connection.socket.sendall(body)
        except OSError:
            self._close(connection)
            return
        if last and not connection.keep:
            self._close(connection)
        elif not last:
            self._plan(connection.due_s[connection.sent] + self._half_s, connection, b"")

    def _token(self, connection: _Connection) -> tuple[bytes, bool]:
        now_s = time.perf_counter() - self._half_s  # when it left the server
        start = b""
        if not connection.sent:
            connection.first_s = now_s
            start = _HEADS[connection.keep]
        connection.sent += 1
        if connection.sent < len(connection.due_s):
            return start + _TOKEN, False
        end: dict[str, object] = {
            "stop_type": "limit",
            "tokens_predicted": connection.sent,
            "tokens_evaluated": 3,
            "usage": {"prompt_tokens": 3, "completion_tokens": connection.sent},
            "timings": {
                "prompt_ms": 1000 * (connection.first_s - connection.arrived_s),
                "predicted_ms": 1000 * (now_s - connection.first_s),
            },
        }
        return start + _chunk(True, end) + b"0\r\n\r\n", True

    def _close(self, connection: _Connection) -> None:
        self._due = [one for one in self._due if one[2] is not connection]
        heapq.heapify(self._due)
        self._selector.unregister(connection.socket)
        connection.socket.close()


if __name__ == "__main__":
    stub = Stub(float(sys.argv[1]) if len(sys.argv) > 1 else 0.0)
    print(stub.port, flush=True)
    stub.serve(sys.stdin)
