"""The link: bytes arrive whole, in order, never too early; ends and resets are passed on."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from poclib.engines.link import EmulatedLink

LIMIT_S = 10.0  # no wait in these tests is longer than this
Ends = tuple[socket.socket, socket.socket]


class Server:
    """Takes connections one by one, so that a test can play the other end."""

    def __init__(self, opened: contextlib.ExitStack) -> None:
        self.opened = opened
        self.listener = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(LIMIT_S)
        self.port: int = self.listener.getsockname()[1]

    def connected(self, link: EmulatedLink, which: int = 0) -> Ends:
        """Both ends of a new connection through the link."""
        address = ("127.0.0.1", link.ports[which])
        near = self.opened.enter_context(socket.create_connection(address, LIMIT_S))
        far = self.opened.enter_context(self.listener.accept()[0])
        far.settimeout(LIMIT_S)
        return near, far


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.ExitStack() as opened:
        yield Server(opened)


def receive(connection: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size and (more := connection.recv(size - len(got))):
        got += more
    return got


def echo_ms(near: socket.socket, far: socket.socket) -> float:
    """One round trip, played by both ends in turn."""
    begun_s = time.monotonic()
    near.sendall(b"ping")
    assert receive(far, 4) == b"ping"
    far.sendall(b"pong")
    assert receive(near, 4) == b"pong"
    return (time.monotonic() - begun_s) * 1000


@pytest.mark.parametrize("round_trip_ms", [5.0, 25.0])
def test_no_round_trip_is_shorter_than_the_one_asked_for(
    server: Server, round_trip_ms: float
) -> None:
    begun_s = time.monotonic()
    ends = server.connected(EmulatedLink([server.port], round_trip_ms=round_trip_ms))
    echo_ms(*ends)
    # The connect's own round trip, and the message's.
    assert (time.monotonic() - begun_s) * 1000 >= 2 * round_trip_ms
    assert min(echo_ms(*ends) for _ in range(5)) >= round_trip_ms


def test_bytes_arrive_whole_and_in_order_under_jitter_and_a_half_closed_end_still_hears(
    server: Server,
) -> None:
    sent = b"".join(number.to_bytes(4, "big") for number in range(200_000))
    near, far = server.connected(EmulatedLink([server.port], round_trip_ms=4, jitter_ms=8))

    def send() -> None:
        near.sendall(sent)
        near.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert receive(far, len(sent) + 1) == sent  # returns at the end of the stream
    sender.join(LIMIT_S)
    far.sendall(b"answer")
    far.close()
    assert receive(near, 100) == b"answer"


def test_bandwidth_bounds_the_rate_over_all_connections(server: Server) -> None:
    size = 25_000  # 25 ms each on a line of 8 Mbit/s; two share it
    link = EmulatedLink([server.port], bandwidth_mbit_s=8.0)
    both = [server.connected(link), server.connected(link)]
    begun_s = time.monotonic()
    for near, _ in both:
        near.sendall(b"x" * size)
    assert [len(receive(far, size)) for _, far in both] == [size, size]
    assert time.monotonic() - begun_s >= 0.05


@pytest.mark.parametrize("who", [0, 1], ids=["client", "target"])
def test_a_reset_is_passed_on_as_a_reset(server: Server, who: int) -> None:
    ends = server.connected(EmulatedLink([server.port], round_trip_ms=2))
    echo_ms(*ends)
    ends[who].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends[who].close()
    with pytest.raises(ConnectionResetError):
        ends[1 - who].recv(1)


def test_a_target_that_is_not_there_resets_the_client(server: Server) -> None:
    link = EmulatedLink([server.port])
    server.listener.close()
    address = ("127.0.0.1", link.ports[0])
    # The reset may come before the connection is told.
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection(address, LIMIT_S) as client,
    ):
        client.recv(1)


def test_a_dropped_link_cuts_and_refuses_on_all_its_ports_and_comes_back(server: Server) -> None:
    other = Server(server.opened)
    link = EmulatedLink([server.port, other.port], round_trip_ms=5)
    ends = [*server.connected(link), *other.connected(link, 1)]
    assert echo_ms(*ends[:2]) >= 5 and echo_ms(*ends[2:]) >= 5
    for _ in range(2):  # harmless when repeated
        link.drop()
        for port in link.ports:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), LIMIT_S)
    for end in ends:
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    link.restore()
    assert echo_ms(*server.connected(link)) >= 5


def test_a_slow_reader_holds_the_sender_back(server: Server) -> None:
    near, _ = server.connected(EmulatedLink([server.port]))
    near.settimeout(0.3)
    sent = 0
    with pytest.raises(TimeoutError):  # what is held back is bounded
        while sent < 256 * 1024 * 1024:
            sent += near.send(b"x" * 65536)
