"""Connections that fail, addresses that are not allowed, bodies without an end."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from replay import Answer, Replay, clock, free_port, provider, recorded, replay, resolved

from poclib.addresses import is_private
from poclib.errors import (
    BadAnswer,
    Forbidden,
    ParameterError,
    ProviderError,
    TimedOut,
    Unreachable,
)
from poclib.providers import connection, origin
from poclib.providers.connection import Response, Stamped
from poclib.providers.transport import TimedClient
from poclib.records import Exchange


async def fetch(url: str, **given: Any) -> bytes:
    """The body of one GET."""
    client = TimedClient("there", url, **given)
    async with aclosing(client), client.request("GET", "/") as answer:
        return await answer.body()


async def failing(url: str, **given: Any) -> ProviderError:
    """What one GET raises; its words never hold the address."""
    with pytest.raises(ProviderError) as caught:
        async with asyncio.timeout(30):
            await fetch(url, **given)
    at, words = urlsplit(url), str(caught.value)
    assert caught.value.provider == "there" and words.startswith("provider there: ")
    assert str(at.hostname) not in words and (not at.port or f":{at.port}" not in words)
    return caught.value


ADDRESSES = {
    True: "127.0.0.1 127.255.255.254 10.0.0.1 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.1 "
    "169.254.1.1 ::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 ::ffff:127.0.0.1 ::ffff:192.168.1.1",
    False: "11.0.0.1 172.15.255.255 172.32.0.1 192.167.1.1 0.0.0.0 8.8.8.8 100.64.0.1 203.0.113.5 "
    "224.0.0.1 255.255.255.255 :: 2001:db8::1 2606:4700::1111 ::ffff:8.8.8.8 ::ffff:203.0.113.5 "
    "64:ff9b::808:808 2002:c0a8:101::1",
}


def test_is_private() -> None:
    for private, addresses in ADDRESSES.items():
        assert {address for address in addresses.split() if is_private(address) != private} == set()


@pytest.mark.parametrize("slow", ["name", "host"])
def test_a_wait_for_a_connection_has_its_own_limit(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, begun_s = threading.Event(), time.monotonic()

    async def connect(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", connect)
    resolved(monkeypatch, ("10.66.77.88", 11434))
    if slow == "name":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    caught = asyncio.run(failing("http://box.lan:11434", connect_timeout_s=0.05))
    assert time.monotonic() - begun_s < 30  # no thread is waited for when the loop ends
    over.set()
    assert type(caught) is Unreachable and "10.66" not in str(caught)
    assert "no connection within 0.05 s; is it on?" in str(caught)


LATE = "provider there: not finished within 0.2 s; raise request_timeout_s?"
LONG = Answer(b"x" * (2**20 + 1), ending="hang")


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer(ending="silent"), TimedOut, LATE),
        (Answer(ending="drip"), TimedOut, LATE),  # no pause is ever too long
        (LONG, BadAnswer, "over 1 MiB"),
        (Answer(b"SSH-2.0-x\r\n\r\n", ending="raw"), BadAnswer, "does not speak HTTP"),
    ],
)
def test_what_fails_is_told_in_one_sentence(
    answer: Answer, kind: type[ProviderError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside what FAULTS.md holds, whose table is a test too."""
    monkeypatch.setattr(connection, "MAX_BODY_BYTES", 2**20)
    limit = {"timeout_s": 0.2} if kind is TimedOut else {}
    error = replay(answer, lambda server: failing(server.url, **limit))
    assert type(error) is kind and words in str(error)
    longest = Answer(LONG.body[1:])  # as long as is allowed
    assert len(replay(longest, lambda server: fetch(server.url))) == 2**20


@pytest.mark.parametrize("ending", ["silent", "hang"])
def test_a_callers_own_limit_is_left_to_the_caller(ending: Any) -> None:
    async def talk(server: Replay) -> None:
        with pytest.raises(TimeoutError):  # a `TimedOut` of ours is none
            async with asyncio.timeout(0.1):
                await fetch(server.url)

    replay(Answer(b"x", ending=ending), talk)


PUBLIC = [
    *("http://203.0.113.5:11434", "http://[2001:db8::5]:11434", "https://203.0.113.5"),
    *("http://[::ffff:203.0.113.5]:11434", "http://box.example:11434"),
]


@pytest.mark.parametrize("allowed", [[], ["there"]])
@pytest.mark.parametrize("url", PUBLIC)
def test_a_public_address_gets_no_socket_unless_its_provider_is_allowed_one(
    url: str, allowed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets: list[Any] = []
    resolved(monkeypatch, ("203.0.113.5", 80))

    def refuse(*arguments: Any) -> Any:
        sockets.append(arguments)
        raise ConnectionRefusedError(111, "no socket in this test")

    async def describe() -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            async with aclosing(provider("llama-server", url, allow_public=allowed)) as sender:
                await sender.describe()
        return caught.value

    monkeypatch.setattr(origin, "Stamped", refuse)
    error = asyncio.run(describe())
    assert type(error) is (Unreachable if allowed else Forbidden) and "203.0" not in str(error)
    assert len(sockets) == len(allowed)
    assert allowed or ("allow_public: [there]" in str(error) and not error.temporary)


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_with_a_public_and_a_private_address_uses_the_private_one(
    order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(server: Replay) -> bytes:
        resolved(monkeypatch, *[("203.0.113.5", 80), ("127.0.0.1", server.port)][::order])
        return await fetch(f"http://box.lan:{server.port}")

    assert replay(Answer(b"here"), talk) == b"here"


def test_a_url_without_a_port_is_told_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, ("127.0.0.1", free_port()))
    for url in ("http://localhost", "http://localhost/v1"):
        error = asyncio.run(failing(url))
        assert type(error) is Unreachable and "Its url names no port" in str(error)


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert replay(Answer(b"x"), lambda server: fetch(server.url)) == b"x"


GOOD = "http://127.0.0.1:1"
IMPOSSIBLE: list[tuple[str, str | None, str]] = [
    *((url, None, "its url is not an http address") for url in ("", "box", "192.168.1.2:11434")),
    *((f"ftp{GOOD[4:]}", None, "not an http"), ("file:" + "///etc/hosts", None, "not an http")),
    *((f"http://{bad}", None, "not an http") for bad in ("", "/x", "[::1", "box:port", "box\x00")),
    ("http://box:99999", None, "not an http"),
    *(
        (f"http://{host}:1", None, "127.0.0.1, or its machine's own")
        for host in ("0.0.0.0", "[::]")
    ),
    *((f"{GOOD}/{mark}secret", None, "after ? or #") for mark in ("?key=", "#")),
    *((f"http://{user}@box:1", None, "api_key_env") for user in ("a:secret", "secret", ":secret")),
    *((GOOD, key, "its key") for key in ("secret\nx", "secret\r\nX-H: 1", "secretü", "secret\x00")),
]


@pytest.mark.parametrize(("url", "key", "words"), IMPOSSIBLE)
def test_an_address_or_key_that_cannot_be(url: str, key: str | None, words: str) -> None:
    with pytest.raises(ParameterError, match=f"provider there: .*{re.escape(words)}") as caught:
        TimedClient("there", url, key)
    assert "secret" not in str(caught.value)


def test_redacted() -> None:
    own = TimedClient("there", "http://10.0.0.7:8080/x", "k-77")
    words = "k-77 at http://10.0.0.7:8080/x, 10.0.0.7:8080, 10.0.0.7"
    assert own.redacted(words) == "… at http://…/x, …, …"
    assert (
        TimedClient("there", "http://model:80").redacted("no model at model:80") == "no model at …"
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 and box.lan that vouches for itself, and another such one."""
    if not shutil.which("openssl"):
        pytest.skip("certificates are made with openssl, which is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    new = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
    for name in ("own", "other"):
        files = f"-keyout {name}_key.pem -out {name}.pem"
        names = "-addext subjectAltName=IP:127.0.0.1,DNS:box.lan"
        command = ["openssl", *f"{new} {files} {names}".split()]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


NAMES = [("127.0.0.1", "own"), ("box.lan", "own"), ("elsewhere.lan", "own")]


@pytest.mark.parametrize(("host", "authority"), [*NAMES, ("box.lan", None), ("box.lan", "other")])
def test_only_a_certificate_for_that_name_by_a_trusted_authority_is_taken(
    host: str, authority: str | None, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "own.pem", certificates / "own_key.pem")
    ca_file = str(certificates / f"{authority}.pem") if authority else None

    async def run() -> None:
        async with Replay(Answer(b"secret"), context) as server:
            resolved(monkeypatch, ("127.0.0.1", server.port))
            url = f"https://{host}:{server.port}"
            if authority == "own" and host != "elsewhere.lan":
                assert await fetch(url, ca_file=ca_file) == b"secret"
                return
            error = await failing(url, ca_file=ca_file)
            assert type(error) is Unreachable and "is its certificate trusted" in str(error)

    asyncio.run(run())


def test_a_ca_file_that_is_none_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "broken.pem").write_text("no certificate")
    for name in ("absent.pem", "broken.pem"):
        with pytest.raises(ParameterError, match="provider there: its ca_file") as caught:
            TimedClient("there", "https://127.0.0.1:1", ca_file=str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value)


BODIES = [b"", b"\n", b"a", b"a\nb", b"\n\na\r\nb\n", "ä\n€\n😀".encode(), b"x" * 200 + b"\n\n"]
BODIES += [b"\r", b"a\rb", b"a\r\n\r\nb\r\r\nc\n\rd\n\n\r\n", b"\xe2\x80\xa8\x0b\x0c\x1c\x85\n"]
BODIES += [recorded(name).body for name in ("ollama/chat_stream", "vllm/chat_stream_usage")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("body", [*BODIES, b"x" * 10**5], ids=lambda body: repr(body[:8]))
def test_lines_wherever_the_pieces_end(body: bytes, size: int) -> None:
    """By the standard's own words: CRLF, or a lone LF, or a lone CR."""

    async def run() -> list[bytes]:
        answer = Response("there", Exchange(clock))
        answer.feed(b"HTTP/1.1 200 OK\r\n\r\n", clock() / 1000)
        for start in range(0, len(body), size):
            answer.feed(body[start : start + size], clock() / 1000)
        answer.feed(b"", clock() / 1000)  # the end
        found: list[bytes] = []
        while lines := await answer.lines():
            found += lines
        return found

    expected = re.split(rb"\r\n|\n|\r", body)
    assert asyncio.run(run()) == (expected if expected[-1] else expected[:-1])


def test_of_many_at_once_each_is_timed_by_itself() -> None:
    """Of 20, and again of 20, each starts when the one before it has been sent."""

    async def talk(server: Replay) -> list[list[dict[str, float]]]:
        client = TimedClient("there", server.url)

        async def marks() -> dict[str, float]:
            exchange = Exchange(clock)
            async with client.request("POST", "/", {"a": 1}, exchange) as response:
                await response.body()
            return exchange.marks

        waves = [await asyncio.gather(*(marks() for _ in range(20))) for _ in range(2)]
        await client.aclose()
        assert server.connections <= 20
        return waves

    order = ["start_ms", "connect_start_ms", "connected_ms", "ready_ms", "sent_ms", "first_byte_ms"]
    cold, warm = replay(Answer(b"x" * 10_000), talk)
    # What is answered meanwhile leaves its connection to those that have yet to start.
    opened = [sum("connected_ms" in marks for marks in wave) for wave in (cold, warm)]
    assert opened[0] >= 1 and sum(opened) <= 20
    for marks in cold + warm:
        events = order if "connected_ms" in marks else [order[0], *order[3:]]
        assert [marks[event] for event in events] == sorted(marks.values())
    for wave in (cold, warm):
        ordered = sorted(wave, key=lambda marks: marks["start_ms"])
        overlapping = [b["start_ms"] < a["sent_ms"] for a, b in itertools.pairwise(ordered)]
        held_ms = [marks["sent_ms"] - marks["start_ms"] for marks in wave]
        # Only one that took longer than a turn may be overtaken, on however slow a machine.
        assert sum(overlapping) <= sum(ms > 1000 * origin.TURN_S for ms in held_ms)


def test_a_turn_that_is_cancelled_is_given_on() -> None:
    async def talk(server: Replay) -> bytes:
        client = TimedClient("there", server.url)

        async def ask() -> bytes:
            async with client.request("POST", "/", {}, Exchange(clock)) as response:
                return await response.body()

        first, second, third = (asyncio.create_task(ask()) for _ in range(3))
        await asyncio.sleep(0)
        second.cancel()
        answers = await asyncio.gather(first, third)
        await client.aclose()
        return answers[1]

    assert replay(Answer(b"here"), talk) == b"here"


def test_a_failure_leaves_no_connection_behind() -> None:
    async def talk(server: Replay) -> int:
        client = TimedClient("there", server.url)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                async with client.request("GET", "/") as response:
                    while await response.lines():
                        raise RuntimeError("the reader stops in the middle")
        await client.aclose()
        return server.connections

    assert replay(Answer(b"x\n" * 500_000, pieces=50_000), talk) == 3


def test_a_server_may_answer_before_all_is_sent() -> None:
    """Then the rest of the request is sent into an answer that is already there."""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")  # of 64 MiB that follow, it takes what it must
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await reader.readexactly(2**26)
        writer.close()

    async def run() -> tuple[int, bytes, dict[str, float]]:
        server = await asyncio.start_server(early, "127.0.0.1", 0, limit=2**16)
        client = TimedClient("there", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        exchange = Exchange(clock)
        sent = client.request("POST", "/", "x" * 2**26, exchange)
        async with server, aclosing(client), sent as answer:
            return answer.status, await answer.body(), exchange.marks

    status, body, marks = asyncio.run(run())
    assert (status, body) == (413, b"no")
    assert marks["ready_ms"] < marks["sent_ms"] <= marks["first_byte_ms"]


def test_sent_is_when_the_last_byte_left() -> None:
    """Of a request that is larger than all buffers: not before its reader took most of it."""
    begun_ms = 0.0

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal begun_ms
        await reader.readuntil(b"\r\n\r\n")
        begun_ms = clock()
        await reader.readexactly(2**26 + 2)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async def run() -> dict[str, float]:
        server = await asyncio.start_server(slow, "127.0.0.1", 0, limit=2**16)
        client = TimedClient("there", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        exchange = Exchange(clock)
        sent = client.request("POST", "/", "x" * 2**26, exchange)
        async with server, aclosing(client), sent as answer:
            assert await answer.body() == b"ok"
        return exchange.marks

    marks = asyncio.run(run())
    assert marks["ready_ms"] < begun_ms < marks["sent_ms"] <= marks["first_byte_ms"]


def test_an_arrival_is_when_the_bytes_were_here_and_not_when_they_were_read() -> None:
    """Each part's own, however many have come since; never before what was marked last."""

    async def run() -> None:
        exchange = Exchange(clock)
        exchange.clock = lambda: now_ms - 50
        answer, now_ms = Response("there", exchange), clock()
        answer.sent()
        exchange.clock = clock
        parts = ((b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\na", 70), (b"b", 20), (b"c", 10))
        for data, ago_ms in parts:
            answer.feed(data, (now_ms - ago_ms) / 1000)
        assert exchange.marks["first_byte_ms"] == exchange.marks["sent_ms"] == now_ms - 50
        for data, ago_ms in ((b"a", 50), (b"b", 20), (b"c", 10), (b"", 10)):
            assert await answer.chunk() == data
            assert answer.here_ms == pytest.approx(now_ms - ago_ms, abs=2)

    asyncio.run(run())


@pytest.mark.parametrize("noted", [True, False], ids=["by the kernel", "by nobody"])
@pytest.mark.parametrize("take", ["recv", "recv_into"])
def test_a_socket_knows_when_its_bytes_came_however_late_they_are_taken(
    take: str, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent and then left lying while other work is done: the sender's clock is the oracle."""
    if not noted:
        monkeypatch.setattr(connection, "_SO_TIMESTAMPNS", -1)
    with socket.create_server(("127.0.0.1", 0)) as server, Stamped() as client:
        if noted and not (sys.platform == "linux" and client.getsockopt(socket.SOL_SOCKET, 35)):
            pytest.skip("this system does not tell when bytes came")
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            time.sleep(0.2)  # a busy kernel begins to note a moment after it is asked
            for text in (b"first", b"another"):
                before_s = time.perf_counter()
                peer.sendall(text)
                after_s = time.perf_counter()
                while time.perf_counter() < after_s + 0.05:
                    hashlib.sha256(text).digest()
                buffer = bytearray(100)
                count = client.recv_into(buffer) if take == "recv_into" else 0
                assert (bytes(buffer[:count]) if count else client.recv(100)) == text
                assert (before_s - 0.01 < client.arrived_s < after_s + 0.04) is noted
                assert noted or after_s + 0.05 <= client.arrived_s <= time.perf_counter()


@pytest.mark.parametrize("set_by_s", [-3600.0, 3600.0])
def test_a_clock_that_is_set_between_arrival_and_reading_moves_no_arrival(
    set_by_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = time.time()
    value = connection._TIMESPEC.pack(int(told), 0)
    monkeypatch.setattr(time, "time", lambda: told + set_by_s)
    with Stamped() as client:
        before_s = time.perf_counter()
        client._arrived([(socket.SOL_SOCKET, connection._SO_TIMESTAMPNS, value)])
        assert before_s <= client.arrived_s <= time.perf_counter()
