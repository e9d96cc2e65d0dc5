"""A server of known behaviour on loopback, to check the ruler against; run in its own process.

It imports nothing of ours. A prompt tells it what to do: "DELAY TOKENS GAP", so many milliseconds
before the first token and between tokens. It spins towards each deadline, and tells in llama.cpp's
`timings` what it did, by its own clock, from when the request came (on Linux, as the kernel knows:
of many at once it may be late to read each).

    python stub.py ROUND_TRIP_MS    prints its port, serves until its input ends
"""

from __future__ import annotations

import heapq
import itertools
import json
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

# From so long before a deadline on, the loop spins: a selector sleeps in whole milliseconds.
_SPIN_S = 0.002
_TIMESTAMPNS = 35  # Linux's option, and what it tells: seconds and nanoseconds
_TIMESPEC = struct.Struct("@ll")
_EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
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


class Stub:
    """Listens on a free port of 127.0.0.1. `round_trip_ms` is added to every exchange."""

    def __init__(self, round_trip_ms: float) -> None:
        self._half_s, self._selector = round_trip_ms / 2000, selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._selector.register(self._listener, selectors.EVENT_READ)
        if sys.platform == "linux":  # what it accepts inherits that
            self._listener.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        # Answers under way, by when each goes on; of equal times the older first.
        self._due: list[tuple[float, int, Iterator[float]]] = []
        self._numbers = itertools.count()
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve until standard input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            wait_s = self._due[0][0] - time.perf_counter() - _SPIN_S if self._due else None
            for key, _ in self._selector.select(None if wait_s is None else max(0.0, wait_s)):
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(client, selectors.EVENT_READ, (client, bytearray()))
                else:
                    self._read(*key.data)
            while self._due and self._due[0][0] <= time.perf_counter():
                self._go_on(heapq.heappop(self._due)[2])

    def _read(self, client: socket.socket, received: bytearray) -> None:
        data, notes = b"", list[tuple[int, int, bytes]]()
        with suppress(ConnectionError):
            data, notes, *_ = client.recvmsg(65536, socket.CMSG_SPACE(_TIMESPEC.size))
        arrived_s = time.perf_counter()
        for level, kind, note in notes:
            if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(note)
                arrived_s -= max(0.0, time.time() - seconds - nanoseconds / 1e9)
        if not data:
            return self._close(client)
        received += data
        head, end, body = bytes(received).partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        if end and len(body) >= length:
            received.clear()
            self._go_on(self._answer(client, lines, body, arrived_s + self._half_s))

    def _go_on(self, answer: Iterator[float]) -> None:
        with suppress(OSError):  # its client has gone, which is read, too
            if (due_s := next(answer, None)) is not None:
                heapq.heappush(self._due, (due_s, next(self._numbers), answer))

    def _answer(
        self, client: socket.socket, lines: list[bytes], body: bytes, arrived_s: float
    ) -> Iterator[float]:
        """Send what was asked for, token by token; yields when to go on.

        The request's way here and the answer's way back cost half a round trip each.
        """
        if lines[0].startswith(b"get"):
            yield arrived_s + self._half_s
            return client.sendall(_EMPTY)
        delay_ms, count, gap_ms = map(float, json.loads(body)["prompt"].split()[-3:])
        closes, first_s = b"connection: close" in lines, 0.0
        start = _HEAD % (b"close" if closes else b"keep-alive")
        for sent in range(1, int(count) + 1):
            yield arrived_s + (delay_ms + (sent - 1) * gap_ms) / 1000 + self._half_s
            left_s = time.perf_counter() - self._half_s
            first_s = first_s or left_s
            token = _TOKEN
            if sent == count:
                times = {"prompt_ms": 1000 * (first_s - arrived_s)}
                times |= {"predicted_ms": 1000 * (left_s - first_s)}
                done: dict[str, object] = {"stop_type": "limit", "tokens_predicted": sent}
                done |= {"tokens_evaluated": 3, "timings": times}
                done |= {"usage": {"prompt_tokens": 3, "completion_tokens": sent}}
                token = _chunk(True, done) + b"0\r\n\r\n"
            client.sendall(start + token)
            start = b""
        if closes:
            self._close(client)

    def _close(self, client: socket.socket) -> None:
        self._selector.unregister(client)
        client.close()


if __name__ == "__main__":
    stub = Stub(float(sys.argv[1]))
    print(stub.port, flush=True)
    stub.serve()
