"""The link: bytes arrive whole, in order, never too early; ends and resets are passed on."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from poclib.engines.link import EmulatedLink

LIMIT_S = 10.0  # no wait in these tests is longer than this


class Server:
    """Takes connections one by one and keeps them, so that a test can play the other end."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(LIMIT_S)
        self.port: int = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []

    def accept(self) -> socket.socket:
        connection, _ = self.listener.accept()
        connection.settimeout(LIMIT_S)
        self.accepted.append(connection)
        return connection


@pytest.fixture
def server() -> Iterator[Server]:
    opened = Server()
    yield opened
    for each in (opened.listener, *opened.accepted):
        each.close()


def connect(link: EmulatedLink) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", link.ports[0]), timeout=LIMIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def linked(port: int, **numbers: float) -> closing[EmulatedLink]:
    return contextlib.nullcontext(EmulatedLink([port], **numbers))


def receive(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (more := connection.recv(size - len(got))):
        got += more
    return got


def echo_ms(client: socket.socket, far: socket.socket) -> float:
    """One round trip, played by both ends in turn."""
    begun_s = time.monotonic()
    client.sendall(b"ping")
    assert receive(far, 4) == b"ping"
    far.sendall(b"pong")
    assert receive(client, 4) == b"pong"
    return (time.monotonic() - begun_s) * 1000


@pytest.mark.parametrize("round_trip_ms", [5.0, 25.0])
def test_no_round_trip_is_shorter_than_the_one_asked_for(
    server: Server, round_trip_ms: float
) -> None:
    with linked(server.port, round_trip_ms=round_trip_ms) as link:
        begun_s = time.monotonic()
        with connect(link) as client:
            far = server.accept()
            echo_ms(client, far)
            first_ms = (time.monotonic() - begun_s) * 1000
            later_ms = [echo_ms(client, far) for _ in range(5)]
    assert first_ms >= 2 * round_trip_ms  # the connect's own round trip, and the message's
    assert min(later_ms) >= round_trip_ms


def test_bytes_arrive_whole_and_in_order_under_jitter(server: Server) -> None:
    sent = b"".join(number.to_bytes(4, "big") for number in range(200_000))
    with linked(server.port, round_trip_ms=4, jitter_ms=8) as link, connect(link) as client:
        far = server.accept()

        def send() -> None:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = receive(far, len(sent) + 1)
        sender.join(LIMIT_S)
    assert got == sent


def test_bandwidth_bounds_the_rate_over_all_connections(server: Server) -> None:
    size, rate_mbit_s = 25_000, 8.0  # 25 ms each on a line of 8 Mbit/s; two share it
    with (
        linked(server.port, bandwidth_mbit_s=rate_mbit_s) as link,
        connect(link) as one,
        connect(link) as two,
    ):
        ends = [server.accept(), server.accept()]
        begun_s = time.monotonic()
        one.sendall(b"1" * size)
        two.sendall(b"2" * size)
        assert {receive(end, size)[:1] for end in ends} == {b"1", b"2"}
        took_s = time.monotonic() - begun_s
    assert took_s >= 2 * size * 8 / (rate_mbit_s * 1e6)


def test_a_half_closed_connection_still_answers(server: Server) -> None:
    with linked(server.port, round_trip_ms=2) as link, connect(link) as client:
        far = server.accept()
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert receive(far, 100) == b"question"  # returns at the end of the stream
        far.sendall(b"answer")
        far.close()
        assert receive(client, 100) == b"answer"


@pytest.mark.parametrize("who", ["client", "target"])
def test_a_reset_is_passed_on_as_a_reset(server: Server, who: str) -> None:
    with linked(server.port, round_trip_ms=2) as link, connect(link) as client:
        far = server.accept()
        echo_ms(client, far)
        breaking, feeling = (client, far) if who == "client" else (far, client)
        breaking.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        breaking.close()
        with pytest.raises(ConnectionResetError):
            feeling.recv(1)


def test_a_target_that_is_not_there_resets_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ConnectionResetError), linked(port) as link, connect(link) as client:
        client.recv(1)


def test_a_dropped_link_cuts_refuses_and_comes_back(server: Server) -> None:
    with linked(server.port, round_trip_ms=2) as link, connect(link) as client:
        far = server.accept()
        echo_ms(client, far)
        link.drop()
        for end in (client, far):
            with pytest.raises(ConnectionResetError):
                end.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(link)
        link.drop()  # harmless when repeated
        link.restore()
        with connect(link) as again:
            assert echo_ms(again, server.accept()) >= 2


def test_each_target_has_a_port_of_its_own_and_all_share_the_link() -> None:
    servers = [Server(), Server()]
    with contextlib.nullcontext(EmulatedLink([each.port for each in servers], round_trip_ms=5)) as link:
        for port, server in zip(link.ports, servers, strict=True):
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
                assert echo_ms(client, server.accept()) >= 5
        link.drop()
        for port in link.ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    for server in servers:
        for each in (server.listener, *server.accepted):
            each.close()


def test_a_slow_reader_holds_the_sender_back(server: Server) -> None:
    with linked(server.port) as link, connect(link) as client:
        far = server.accept()
        client.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 256 * 1024 * 1024:
                sent += client.send(b"x" * 65536)
        assert sent < 256 * 1024 * 1024  # what is held back is bounded
        far.recv(1)


def test_closing_ends_every_thread(server: Server) -> None:
    before = set(threading.enumerate())
    link = EmulatedLink([server.port], round_trip_ms=1000)
    clients = [connect(link) for _ in range(3)]
    assert len([server.accept() for _ in clients]) == 3
    for client in clients:
        client.sendall(b"still under way when the link closes")
    link.close()
    link.close()  # harmless when repeated
    assert set(threading.enumerate()) <= before
    for client in clients:
        client.close()
