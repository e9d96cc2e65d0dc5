"""A server of known behaviour on loopback, to check the ruler against; run in its own process.

It imports nothing of ours. A prompt tells it what to do: "DELAY TOKENS GAP", so many milliseconds
before the first token and between tokens. It spins towards each deadline, and reports in
llama.cpp's `timings` not what was asked but what it did, by its own monotonic clock. A selector of
its own, since asyncio's loop would add 0.1 to 0.2 ms between a byte's arrival and its notice.

    python stub.py ROUND_TRIP_MS    prints its port, serves until its input ends
"""

from __future__ import annotations

import heapq
import itertools
import json
import selectors
import socket
import sys
import time
from dataclasses import dataclass, field

# From so long before a deadline on, the loop spins: a selector sleeps in whole milliseconds.
_SPIN_S = 0.002
_EMPTY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"connection: %b\r\n\r\n"
)


def _chunk(last: bool, more: dict[str, object]) -> bytes:
    """One token in both formats: llama-server's `content`, the others' `choices`."""
    choice = {"text": "x ", "finish_reason": "length" if last else None}
    event = {"content": "x ", "stop": last, "choices": [choice], **more}
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


# All but the last token are ready beforehand: making them would delay what is said to be sent.
_TOKEN = _chunk(False, {})


@dataclass
class _Connection:
    """One connection, and the answer it is giving."""

    socket: socket.socket
    received: bytes = b""
    keep: bool = True
    due_s: list[float] = field(default_factory=list)  # when its tokens leave the server
    sent: int = 0
    arrived_s: float = 0.0
    first_s: float = 0.0


class Stub:
    """Listens on a free port of 127.0.0.1. `round_trip_ms` is added to every exchange."""

    def __init__(self, round_trip_ms: float) -> None:
        self._half_s = round_trip_ms / 2000
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._due: list[tuple[float, int, _Connection]] = []
        self._numbers = itertools.count()
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve until standard input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            wait_s = self._due[0][0] - time.perf_counter() - _SPIN_S if self._due else None
            for key, _ in self._selector.select(None if wait_s is None else max(0.0, wait_s)):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is sys.stdin:
                    return
                else:
                    self._read(key.data)
            while self._due and self._due[0][0] <= time.perf_counter():
                self._send(heapq.heappop(self._due)[2])

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector.register(client, selectors.EVENT_READ, _Connection(client))

    def _read(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._close(connection)
            return
        connection.received += data
        head, end, rest = connection.received.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if not end or len(rest) < length:
            return
        connection.received, connection.sent = b"", 0
        connection.keep = b"connection: close" not in lines
        # The request's way here and the answer's way back cost half a round trip each.
        connection.arrived_s = time.perf_counter() + self._half_s
        connection.due_s = []
        if not head.startswith(b"GET"):
            delay_ms, tokens, gap_ms = map(float, json.loads(rest)["prompt"].split()[-3:])
            first_s = connection.arrived_s + delay_ms / 1000
            connection.due_s = [first_s + n * gap_ms / 1000 for n in range(int(tokens))]
        self._plan(connection, connection.due_s[0] if connection.due_s else connection.arrived_s)

    def _plan(self, connection: _Connection, leaves_s: float) -> None:
        due = leaves_s + self._half_s, next(self._numbers), connection
        heapq.heappush(self._due, due)

    def _send(self, connection: _Connection) -> None:
        """Send the next token and plan the one after it; or the little that a GET asked for."""
        try:
            connection.socket.sendall(self._token(connection) if connection.due_s else _EMPTY)
        except OSError:  # it was closed, which is read, too
            return
        if connection.sent < len(connection.due_s):
            self._plan(connection, connection.due_s[connection.sent])
        elif not connection.keep:
            self._close(connection)

    def _token(self, connection: _Connection) -> bytes:
        """The next token, behind the head where it is the first; the last says what was done."""
        now_s = time.perf_counter() - self._half_s  # when it left the server
        start = b""
        if not connection.sent:
            connection.first_s = now_s
            start = _HEAD % (b"keep-alive" if connection.keep else b"close")
        connection.sent += 1
        if connection.sent < len(connection.due_s):
            return start + _TOKEN
        done = {
            "stop_type": "limit",
            "timings": {
                "prompt_ms": 1000 * (connection.first_s - connection.arrived_s),
                "predicted_ms": 1000 * (now_s - connection.first_s),
            },
            "tokens_predicted": connection.sent,
            "tokens_evaluated": 3,
            "usage": {"prompt_tokens": 3, "completion_tokens": connection.sent},
        }
        return start + _chunk(True, done) + b"0\r\n\r\n"

    def _close(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        connection.socket.close()


if __name__ == "__main__":
    stub = Stub(float(sys.argv[1]))
    print(stub.port, flush=True)
    stub.serve()
