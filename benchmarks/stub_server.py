"""A server that answers at once, to see what a client costs; it knows what truly happened.

    python benchmarks/stub_server.py [CORE]     prints its port, serves until its input ends

Speaks what OpenAI-compatible servers do: /v1/models, /v1/completions, /v1/chat/completions, as
one body or streamed, in chunks, with usage. An answer has `max_tokens` tokens (8), all of them
there at once. Of every request it keeps when its last byte arrived (on Linux by the kernel's own
note, so that a wait in the stub's own socket counts) and when its answer was sent; /seen tells
and forgets them. A selector of its own, since asyncio's loop would cost more than the answer.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import time
from array import array
from functools import cache
from statistics import median
from typing import Any

# SO_TIMESTAMPING: note when data was received, in software, and hand the note over with it.
_NOTES = (getattr(socket, "SO_TIMESTAMPING", 37), 1 << 3 | 1 << 4)
_TIME = struct.Struct("@qq")
# Of all requests, the first and the last are left out: a start and an end are no steady state.
_EDGE = 0.05
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n"
_STREAM = _HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked")


def _whole(data: Any) -> bytes:
    body = json.dumps(data).encode()
    return _HEAD % (b"application/json", b"content-length: %d" % len(body)) + body


@cache
def answer(chat: bool, stream: bool, tokens: int) -> bytes:
    """All that a client reads of one answer."""
    usage = {"prompt_tokens": 32, "completion_tokens": tokens, "total_tokens": 32 + tokens}
    kind = "chat.completion" if chat else "text_completion"
    same = {"id": "x", "object": kind, "created": 1, "model": "stub"}

    def choice(text: str, last: bool, key: str) -> dict[str, Any]:
        said: Any = {"role": "assistant", "content": text} if chat else text
        return {
            "index": 0,
            key if chat else "text": said,
            "finish_reason": "length" if last else None,
        }

    if not stream:
        choices = [choice("x" * tokens, True, "message")]
        return _whole({**same, "choices": choices, "usage": usage})
    if chat:
        same["object"] += ".chunk"
    events: list[Any] = [
        {**same, "choices": [choice("x", number == tokens, "delta")]}
        for number in range(1, tokens + 1)
    ]
    events.append({**same, "choices": [], "usage": usage})
    lines = [b"data: %b\n\n" % json.dumps(event).encode() for event in events]
    chunks = [b"%x\r\n%b\r\n" % (len(line), line) for line in (*lines, b"data: [DONE]\n\n")]
    return b"".join([_STREAM, *chunks, b"0\r\n\r\n"])


def _parsed(body: bytes) -> bytes:
    given = json.loads(body)
    tokens = given.get("max_completion_tokens") or given.get("max_tokens") or 8
    return answer("messages" in given, bool(given.get("stream")), int(tokens))


class Stub:
    """Listens on a free port of 127.0.0.1."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._arrived_s, self._sent_s = array("d"), array("d")
        self.port: int = self._listener.getsockname()[1]

    def serve(self) -> None:
        """Serve until standard input ends."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is self._listener:
                    client, _ = self._listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if sys.platform == "linux":
                        client.setsockopt(socket.SOL_SOCKET, *_NOTES)
                    self._selector.register(client, selectors.EVENT_READ, (client, bytearray()))
                else:
                    self._read(*key.data)

    def _read(self, client: socket.socket, received: bytearray) -> None:
        try:
            data, notes, _, _ = client.recvmsg(65536, 64)
        except ConnectionError:
            data, notes = b"", []
        if not data:
            self._selector.unregister(client)
            client.close()
            return
        arrived_s = time.time()
        for _, _, note in notes:
            seconds, nanoseconds = _TIME.unpack_from(note)
            arrived_s = seconds + nanoseconds / 1e9 if seconds else arrived_s
        received += data
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return
        if received.startswith(b"GET"):
            path = bytes(received[4 : received.index(b" ", 4)])
            received.clear()
            client.sendall(_whole(self._told(path)))
            return
        head = bytes(received[:end]).lower()
        if b"\r\ntransfer-encoding: chunked" in head:
            if not received.endswith(b"0\r\n\r\n"):
                return
            size_end = received.index(b"\r\n", end + 4)
            body = bytes(received[size_end + 2 : -7])
        else:
            at = head.find(b"\r\ncontent-length:")
            length = int(head[at + 17 :].partition(b"\r\n")[0]) if at >= 0 else 0
            if len(received) < end + 4 + length:
                return
            body = bytes(received[end + 4 : end + 4 + length])
        received.clear()
        client.sendall(_parsed(body))
        self._arrived_s.append(arrived_s)
        self._sent_s.append(time.time())

    def _told(self, path: bytes) -> Any:
        if path == b"/seen":
            return self.seen()
        model = {"id": "stub", "object": "model", "created": 1, "owned_by": "nobody"}
        return {"object": "list", "data": [{**model, "max_model_len": 4096}]}

    def seen(self) -> dict[str, float | None]:
        """What it has seen since it was asked last: the middle nine tenths of the requests."""
        arrived_s, sent_s = self._arrived_s, self._sent_s
        self._arrived_s, self._sent_s = array("d"), array("d")
        edge = int(_EDGE * len(sent_s))
        middle = slice(edge, len(sent_s) - edge)
        times_s = zip(arrived_s[middle], sent_s[middle], strict=True)
        took_s = [sent - arrived for arrived, sent in times_s]
        lasted_s = sent_s[middle][-1] - sent_s[middle][0] if len(took_s) > 1 else 0.0
        return {
            "requests": len(sent_s),
            "requests_per_s": (len(took_s) - 1) / lasted_s if lasted_s else None,
            "took_ms": 1000 * median(took_s) if took_s else None,
        }


if __name__ == "__main__":
    if len(sys.argv) > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[1])})
    stub = Stub()
    print(stub.port, flush=True)
    stub.serve()
