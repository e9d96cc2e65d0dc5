"""The front of several engines: who gets which, who waits, who is refused, and what passes."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from poclib.front import Front

LIMIT_S = 30.0


class Engine:
    """An engine's socket: gives the requests that reached it, answers when it is told to."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.came: queue.Queue[tuple[socket.socket, str]] = queue.Queue()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            peer.settimeout(LIMIT_S)
            said = b""
            while not said.endswith((b"\r\n\r\n", b"}")):
                said += peer.recv(65536)
            self.came.put((peer, said.decode()))

    def next(self) -> tuple[socket.socket, str]:
        return self.came.get(timeout=LIMIT_S)


def answered(peer: socket.socket, body: str, status: str = "200 OK") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
    peer.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    peer.close()


@pytest.fixture
def two() -> Iterator[list[Engine]]:
    engines = [Engine(), Engine()]
    yield engines
    for engine in engines:
        engine.listener.close()


def ask(front: Front, body: str = '{"n":1}', key: str = "k") -> http.client.HTTPConnection:
    """Send a prompt; the answer is still to be read."""
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=LIMIT_S)
    connection.request("POST", "/completion", body, {"Authorization": f"Bearer {key}"})
    return connection


def test_each_request_has_an_engine_of_its_own_and_the_rest_wait_their_turn(
    two: list[Engine],
) -> None:
    with closing(Front([engine.port for engine in two])) as front:
        asked = [ask(front, '{"n":0}')]
        first, said = two[0].next()
        assert said.startswith("POST /completion HTTP/1.1\r\n") and said.endswith('{"n":0}')
        assert "Authorization: Bearer k\r\n" in said
        asked.append(ask(front, '{"n":1}'))
        second, said = two[1].next()
        assert said.endswith('{"n":1}')
        asked.append(ask(front, '{"n":2}'))
        answered(second, "[1]")
        third, said = two[1].next()  # only now, and where there was room
        assert said.endswith('{"n":2}') and two[0].came.empty()
        answered(third, "[2]")
        answered(first, "[0]")
        assert [c.getresponse().read() for c in asked] == [b"[0]", b"[1]", b"[2]"]


def test_a_stream_passes_piece_by_piece(two: list[Engine]) -> None:
    with closing(Front([two[0].port])) as front:
        connection = ask(front)
        peer, _ = two[0].next()
        peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        answer = connection.getresponse()
        assert answer.read(5) == b"first"  # before the second is even sent
        peer.sendall(b"6\r\nsecond\r\n0\r\n\r\n")
        peer.close()
        assert answer.read() == b"second"


def test_where_it_refuses_a_request_beyond_the_slots_is_told_when_to_come_again(
    two: list[Engine],
) -> None:
    with closing(Front([two[0].port], each=2, refuses=True)) as front:
        held = [ask(front), ask(front)]
        peers = [two[0].next()[0] for _ in held]
        refused = ask(front).getresponse()
        assert (refused.status, refused.getheader("Retry-After")) == (503, "1")
        assert "error" in json.loads(refused.read())
        answered(peers[0], "[]", "401 Unauthorized")  # what the engine says, it says
        statuses = sorted(_status_of(peers[1:], held))
        assert statuses == [200, 401]


def _status_of(rest: list[socket.socket], held: list[http.client.HTTPConnection]) -> list[int]:
    for peer in rest:
        answered(peer, "[]")
    return [connection.getresponse().status for connection in held]


def test_a_client_that_leaves_takes_its_request_with_it(two: list[Engine]) -> None:
    with closing(Front([two[0].port])) as front:
        running, waiting, next_one = ask(front, '{"n":0}'), ask(front, '{"n":1}'), None
        peer, _ = two[0].next()
        waiting.close()
        running.close()
        assert peer.recv(1) == b""  # so that the engine stops working for nobody
        next_one = ask(front, '{"n":2}')
        while not (got := two[0].next())[1].endswith('{"n":2}'):
            got[0].close()  # the one that left while it waited came first, for a moment
        answered(got[0], "[2]")
        assert next_one.getresponse().read() == b"[2]"


def test_questions_are_answered_by_the_first_engine_with_the_slots_of_all(
    two: list[Engine],
) -> None:
    with closing(Front([engine.port for engine in two], each=3)) as front:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=LIMIT_S)
        for path, body, seen in (
            ("/props", '{"total_slots": 3, "build": "b1"}', {"total_slots": 6, "build": "b1"}),
            ("/health", '{"status": "ok"}', {"status": "ok"}),
        ):
            connection.request("GET", path)  # both on one connection, which is kept
            peer, said = two[0].next()
            assert said.startswith(f"GET {path} ")
            answered(peer, body)
            assert json.loads(connection.getresponse().read()) == seen


def test_an_engine_that_is_gone_is_told_as_that() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with closing(Front([port])) as front:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=LIMIT_S)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 502
