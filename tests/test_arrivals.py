"""A socket's bytes came when they came, whoever reads them late and whatever sets the clock."""

import hashlib
import socket
import time

import pytest

from poclib.providers import arrivals


@pytest.mark.parametrize("take", ["recv", "recv_into"])
def test_a_socket_knows_when_its_bytes_came_however_late_they_are_taken(take: str) -> None:
    """Sent and then left lying while other work is done: the sender's clock is the oracle."""
    with socket.create_server(("127.0.0.1", 0)) as server, arrivals.Stamped() as client:
        client.stamp()
        if not client.noted:
            pytest.skip("this system does not tell when bytes came")
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            for text in (b"one", b"another"):
                before_s = time.perf_counter()
                peer.sendall(text)
                after_s = time.perf_counter()
                while time.perf_counter() < after_s + 0.05:
                    hashlib.sha256(text).digest()
                buffer = bytearray(100)
                count = client.recv_into(buffer) if take == "recv_into" else 0
                found = bytes(buffer[:count]) if count else client.recv(100)
                assert found == text
                assert before_s - 0.01 < client.arrived_s < after_s + 0.04


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_between_arrival_and_reading_moves_no_arrival(
    set_by_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = time.time()
    value = arrivals._TIMESPEC.pack(int(told), 0)
    monkeypatch.setattr(time, "time", lambda: told + set_by_s)
    with arrivals.Stamped() as client:
        before_s = time.perf_counter()
        client._arrived([(socket.SOL_SOCKET, arrivals._SO_TIMESTAMPNS, value)])
        assert before_s <= client.arrived_s <= time.perf_counter()


def test_where_the_kernel_tells_nothing_bytes_come_when_they_are_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, arrivals.Stamped() as client:
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"one")
            before_s = time.perf_counter()
            assert client.recv(100) == b"one"
            assert before_s <= client.arrived_s <= time.perf_counter()
