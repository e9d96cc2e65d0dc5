"""Connections that fail, addresses that are not allowed, bodies without an end."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from replay import Answer, Replay, clock, recorded, replay

from poclib.errors import (
    BadAnswer,
    Forbidden,
    ParameterError,
    ProviderError,
    Rejected,
    TimedOut,
    Unreachable,
)
from poclib.parameters import Parameters, ProviderSettings
from poclib.providers import KINDS, sockets, transport
from poclib.providers.transport import Response, TimedClient, is_private
from poclib.records import Exchange


async def fetch(client: TimedClient, exchange: Exchange | None = None) -> bytes:
    """The body of one GET; the client is closed whatever comes of it."""
    try:
        async with client.request("GET", "/", exchange=exchange) as response:
            return await response.body()
    finally:
        await client.aclose()


def fetched(answer: Answer) -> bytes:
    """The body of one GET that gets `answer`."""
    return replay(answer, lambda server: fetch(TimedClient("there", server.url)))


def failure(url: str, **limits: Any) -> ProviderError:
    """What one GET from `url`, which must fail, raises."""

    async def run() -> bytes:
        async with asyncio.timeout(30):
            return await fetch(TimedClient("there", url, **limits))

    with pytest.raises(ProviderError) as caught:
        asyncio.run(run())
    assert caught.value.provider == "there"
    return caught.value


def failure_of(answer: Answer, **limits: Any) -> ProviderError:
    """What one GET that gets `answer` raises; its words never hold the address or port."""

    async def talk(server: Replay) -> ProviderError:
        with pytest.raises(ProviderError) as caught:
            await fetch(TimedClient("there", server.url, **limits))
        assert "127.0.0.1" not in str(caught.value) and str(server.port) not in str(caught.value)
        return caught.value

    return replay(answer, talk)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


ADDRESSES = {
    True: "127.0.0.1 127.255.255.254 10.0.0.1 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.1 "
    "169.254.1.1 ::1 fc00::1 fd12:3456::1 fe80::1 fe80::1%eth0 ::ffff:127.0.0.1 ::ffff:192.168.1.1",
    False: "11.0.0.1 172.15.255.255 172.32.0.1 192.167.1.1 0.0.0.0 8.8.8.8 100.64.0.1 203.0.113.5 "
    "224.0.0.1 255.255.255.255 :: 2001:db8::1 2606:4700::1111 ::ffff:8.8.8.8 ::ffff:203.0.113.5 "
    "64:ff9b::808:808 2002:c0a8:101::1",
}


def test_is_private() -> None:
    for private, addresses in ADDRESSES.items():
        assert {a: is_private(a) for a in addresses.split()} == dict.fromkeys(
            addresses.split(), private
        )
    with pytest.raises(ValueError):
        is_private("localhost")  # an address is wanted, not a name


# --- no connection ---------------------------------------------------------------------------


def test_refused() -> None:
    port = free_port()
    error = failure(f"http://127.0.0.1:{port}")
    assert type(error) is Unreachable and error.temporary
    assert str(error) == "provider there: no connection (connection refused); is it running?"


ROUTES = {
    "unreachable 10.66.77.88": "no connection (no route to host); is it running?",
    "": "no connection (network is unreachable); is it running?",
}


@pytest.mark.slow
@pytest.mark.parametrize("route", ROUTES)
def test_a_host_to_which_no_way_leads(route: str) -> None:
    """In a network of its own, in which the system itself refuses: no packet leaves."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("making a network namespace needs root, unshare and iproute2 on Linux")
    asked = "print(test_transport.failure('http://10.66.77.88:1'))"
    added = f"ip route add {route} && " if route else ""
    python = f'{sys.executable} -c "import test_transport; {asked}"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"ip link set lo up && {added}{python}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path(__file__).parent,
    )
    if "unshare" in done.stderr or "RTNETLINK" in done.stderr:
        pytest.skip("network namespaces cannot be made here")
    assert done.stdout.strip() == f"provider there: {ROUTES[route]}", done.stderr


def test_unknown_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = failure("http://no-such-box.lan:11434")
    assert type(error) is Unreachable
    assert "host name" in str(error) and "there" in str(error)
    assert "no-such-box" not in str(error) and "11434" not in str(error)


@pytest.mark.parametrize("what", ["name", "connect"])
def test_what_takes_too_long_before_there_is_a_connection(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, begun_s = threading.Event(), time.monotonic()

    async def never(*_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()

    if what == "name":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    else:
        monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", never)
    host = {"name": "slow-box.lan", "connect": "10.255.255.1"}[what]
    error = failure(f"http://{host}:11434", connect_timeout_s=0.05)
    assert time.monotonic() - begun_s < 30  # no thread is waited for when the loop ends
    over.set()
    assert type(error) is Unreachable and "no connection within 0.05 s" in str(error)
    assert host not in str(error)


@pytest.mark.parametrize("ending", ["reset", "cut"])
def test_broken_off(ending: Any) -> None:
    error = failure_of(Answer(b"x" * 100, ending=ending))
    assert type(error) is Unreachable and "broke off" in str(error)


@pytest.mark.parametrize("ending", ["silent", "hang"])
def test_hang_ends_at_the_limit(ending: Any) -> None:
    error = failure_of(Answer(b"x", ending=ending), timeout_s=0.1)
    assert type(error) is TimedOut
    assert str(error) == "provider there: not finished within 0.1 s; raise request_timeout_s?"


@pytest.mark.parametrize("ending", ["silent", "hang"])
def test_a_callers_own_limit_is_left_to_the_caller(ending: Any) -> None:
    async def talk(server: Replay) -> None:
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.1):
                await fetch(TimedClient("there", server.url))
        assert not isinstance(caught.value, ProviderError)

    replay(Answer(b"x", ending=ending), talk)


def test_dripping_for_ever_ends_at_the_limit() -> None:
    """Data keeps coming, so no pause is ever too long: the whole request is bound."""
    assert type(failure_of(Answer(ending="drip"), timeout_s=0.2)) is TimedOut


@pytest.mark.parametrize(
    ("scheme", "kind", "words"),
    [("http", BadAnswer, "does not speak HTTP"), ("https", Unreachable, "no secure connection")],
)
def test_something_else_is_there(scheme: str, kind: type[Exception], words: str) -> None:
    async def talk(server: Replay) -> None:
        with pytest.raises(kind, match=words) as caught:
            await fetch(TimedClient("there", server.url.replace("http", scheme)))
        assert str(server.port) not in str(caught.value)

    replay(Answer(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ending="raw"), talk)


# --- addresses -------------------------------------------------------------------------------


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a name is looked up to is public; the list holds the sockets made."""
    made: list[Any] = []
    resolved = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.5", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: resolved)

    def refuse(*arguments: Any, **_: Any) -> Any:
        made.append(arguments)
        raise ConnectionRefusedError(111, "no socket in this test")

    monkeypatch.setattr(transport, "Stamped", refuse)
    return made


PUBLIC = [
    "http://203.0.113.5:11434",
    "http://[2001:db8::5]:11434",
    "http://[::ffff:203.0.113.5]:11434",
    "https://203.0.113.5",
    "http://box.example:11434",
]


@pytest.mark.parametrize("url", PUBLIC)
def test_public_address_is_refused_before_there_is_a_socket(
    url: str, no_sockets: list[Any]
) -> None:
    error = failure(url)
    assert type(error) is Forbidden and not error.temporary
    assert "allow_public" in str(error)
    assert "203.0" not in str(error) and "box" not in str(error) and "11434" not in str(error)
    assert no_sockets == []


@pytest.mark.parametrize("url", PUBLIC)
def test_public_address_is_tried_where_allowed(url: str, no_sockets: list[Any]) -> None:
    error = failure(url, allow_public=True)
    assert type(error) is Unreachable
    assert len(no_sockets) == 1


def test_an_address_is_allowed_by_its_providers_name(no_sockets: list[Any]) -> None:
    settings = [
        ProviderSettings(name=name, kind="llama-server", url=PUBLIC[0]) for name in ("a", "b")
    ]
    asked = Parameters(providers=settings, allow_public=["b"])

    async def outcome(one: ProviderSettings) -> str:
        sender = KINDS["llama-server"](one, asked, PUBLIC[0])
        try:
            await sender.describe()
        except ProviderError as error:
            return type(error).__name__
        finally:
            await sender.aclose()
        return "answered"

    assert [asyncio.run(outcome(one)) for one in settings] == ["Forbidden", "Unreachable"]
    assert len(no_sockets) == 1
    with pytest.raises(ParameterError, match="allow_public names no provider: c"):
        Parameters.read({"providers": [{"name": "a"}], "allow_public": ["c"]})


@pytest.mark.parametrize("order", [1, -1])
def test_a_name_with_a_public_and_a_private_address_uses_the_private_one(
    order: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(server: Replay) -> tuple[bytes, int]:
        addresses = [("203.0.113.5", server.port), ("127.0.0.1", server.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", a) for a in addresses[::order]]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        return await fetch(TimedClient("there", f"http://box.lan:{server.port}")), 1

    assert replay(Answer(b"here"), talk) == (b"here", 1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://203.0.113.5/api", "to another host"),
        ("//box.example/", "to another host"),
        ("http://[::1", "to another host"),
        ("", "to another page"),
        ("https://127.0.0.1/v1", "begin its url with https://"),
        ("/login?to=/v1/models", "to another page, such as one to log in"),
    ],
)
def test_a_redirect_is_named_and_not_followed(status: int, location: str, words: str) -> None:
    async def talk(server: Replay) -> tuple[str, int]:
        with pytest.raises(Rejected) as caught:
            await fetch(TimedClient("there", server.url))
        assert caught.value.status == status and not caught.value.temporary
        return str(caught.value), len(server.asked)

    message, asked = replay(Answer(b"", status, {"location": location}), talk)
    assert message.startswith(f"provider there: HTTP {status}, a redirect ") and words in message
    assert asked == 1
    assert not any(part in message for part in ("203.0", "box.example", "127.0.0.1", "?to="))


PAGES = [b"<!DOCTYPE html><html>", b"\n <html><title>Log in</title>", b"<?xml version='1.0'?>"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("pieces", [None, 3])
def test_a_page_for_people_is_named(page: bytes, pieces: int | None) -> None:
    error = failure_of(Answer(page, headers={"content-type": "text/html"}, pieces=pieces))
    assert type(error) is BadAnswer and "a web page answers there" in str(error)


def test_what_is_only_called_a_page_is_read() -> None:
    """Small servers send JSON under the type that their framework sets."""
    answer = Answer(b'{"a": "<b>"}', headers={"content-type": "text/html"})
    assert fetched(answer) == answer.body


def test_a_url_without_a_port_is_told_where_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port of http that the url means stands for one where nobody listens, then for a page."""
    port, lookup = free_port(), socket.getaddrinfo

    def instead(host: str, asked: int, **how: Any) -> Any:
        assert asked == 80
        return lookup(host, port, **how)

    monkeypatch.setattr(socket, "getaddrinfo", instead)
    for url in ("http://localhost", "http://localhost/v1"):
        error = failure(url)
        assert type(error) is Unreachable and "Its url names no port" in str(error)

    async def talk(server: Replay) -> str:
        nonlocal port
        port = server.port
        with pytest.raises(BadAnswer) as caught:
            await fetch(TimedClient("there", "http://localhost"))
        return str(caught.value)

    assert "Its url names no port" in replay(Answer(PAGES[0]), talk)
    monkeypatch.undo()
    assert "names no port" not in str(failure(f"http://127.0.0.1:{free_port()}"))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://0.0.0.0:11434", "127.0.0.1, or that machine's own"),
        ("http://[::]:11434", "127.0.0.1, or that machine's own"),
        ("http://192.168.1.2:8000/?key=k-5f3a9c", "after ? or #"),
        ("http://192.168.1.2:8000/#k-5f3a9c", "after ? or #"),
    ],
)
def test_an_address_that_cannot_be_right(url: str, words: str) -> None:
    with pytest.raises(ParameterError, match="provider there: its url cannot be right: ") as caught:
        TimedClient("there", url)
    assert words in str(caught.value) and "5f3a9c" not in str(caught.value)


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert fetched(Answer(b"x")) == b"x"


@pytest.mark.parametrize(
    "url",
    [
        *("", "box", "192.168.1.2:11434", "ftp://192.168.1.2", "file:" + "///etc/hosts"),
        *("http://", "http:///x", "http://[::1", "http://box:port", "http://box:99999"),
        "http://box\x00",
    ],
)
def test_malformed_url(url: str) -> None:
    with pytest.raises(ParameterError, match="provider there: its url is not an http address"):
        TimedClient("there", url)


@pytest.mark.parametrize(
    ("user", "key", "words"),
    [
        *((user, None, "api_key_env") for user in ("anna:pw@", "anna@", ":pw@")),
        *(("", key, "its key") for key in ("two\nlines", "a\r\nX-Header: 1", "schlüssel", "\x00")),
    ],
)
def test_what_must_not_be_in_a_url_or_a_key(user: str, key: str | None, words: str) -> None:
    with pytest.raises(ParameterError, match=f"provider there: .*{words}") as caught:
        TimedClient("there", f"http://{user}127.0.0.1:1", key)
    assert "pw" not in str(caught.value).replace("password", "")
    assert key is None or key not in str(caught.value)


def test_redacted() -> None:
    client = TimedClient("there", "http://10.0.0.7:8080/x", "k-77")
    words = "k-77 at http://10.0.0.7:8080/x, 10.0.0.7:8080, 10.0.0.7"
    assert client.redacted(words) == "… at http://…/x, …, …"
    plain = TimedClient("there", "http://model:8080")
    assert plain.redacted("no model at model:8080") == "no model at …"


# --- certificates ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A private authority, and a certificate that it signed for 127.0.0.1 and box.lan."""
    if not shutil.which("openssl"):
        pytest.skip("certificates are made with openssl, which is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    made = {n: folder / f"{n}.pem" for n in ("ca", "ca_key", "server", "server_key", "other")}
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:box.lan")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for authority in ("ca", "other"):
        openssl(*new, "-x509", "-days", "2", "-subj", f"/CN={authority}", "-keyout",
                f"{authority}_key.pem", "-out", f"{authority}.pem")  # fmt: skip
    openssl(*new, "-subj", "/CN=server", "-keyout", "server_key.pem", "-out", "asked.pem")
    openssl("x509", "-req", "-days", "2", "-in", "asked.pem", "-CA", "ca.pem", "-CAkey",
            "ca_key.pem", "-CAcreateserial", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return made


def over_tls(certificates: dict[str, Path], host: str, **given: Any) -> bytes | ProviderError:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates["server"], certificates["server_key"])

    async def run() -> bytes | ProviderError:
        async with Replay(Answer(b"secret"), context) as server:
            try:
                return await fetch(TimedClient("there", f"https://{host}:{server.port}", **given))
            except ProviderError as error:
                return error

    return asyncio.run(run())


@pytest.mark.parametrize("named", ["ca", None, "other"])
def test_only_a_certificate_that_a_trusted_authority_signed_is_taken(
    certificates: dict[str, Path], named: str | None
) -> None:
    ca_file = str(certificates[named]) if named else None
    outcome = over_tls(certificates, "127.0.0.1", ca_file=ca_file)
    if named == "ca":
        assert outcome == b"secret"
    else:
        assert type(outcome) is Unreachable and "is its certificate trusted" in str(outcome)


def test_a_certificate_for_another_name_is_refused(
    certificates: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver of the test's own: both names lead to the one server."""
    looked_up = socket.getaddrinfo

    def here(_host: str, port: int, *what: Any, **how: Any) -> Any:
        return looked_up("127.0.0.1", port, *what, **how)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    given = {"ca_file": str(certificates["ca"])}
    assert over_tls(certificates, "box.lan", **given) == b"secret"
    error = over_tls(certificates, "other.lan", **given)
    assert type(error) is Unreachable and "other.lan" not in str(error)


@pytest.mark.parametrize("text", [None, "", "no certificate"])
def test_a_ca_file_that_is_none_is_told_before_anything_is_sent(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParameterError, match="provider there: its ca_file") as caught:
        TimedClient("there", "https://127.0.0.1:1", ca_file=str(path))
    assert str(tmp_path) not in str(caught.value)


# --- bodies ----------------------------------------------------------------------------------


class Pieces(httpx.AsyncByteStream):
    def __init__(self, body: bytes, size: int) -> None:
        self._pieces = [body[i : i + size] for i in range(0, len(body), size)]

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


def lines_of(body: bytes, size: int) -> list[bytes]:
    async def run() -> list[bytes]:
        response = httpx.Response(200, stream=Pieces(body, size))
        return [line async for line in Response(response, "there", None).lines()]

    return asyncio.run(run())


BODIES = [b"", b"\n", b"a", b"a\nb", b"\n\na\r\nb\n", "ä\n€\n😀".encode(), b"x" * 200 + b"\n\n"]
BODIES += [b"\r", b"a\rb", b"a\r\n\r\nb\r\r\nc\n\rd\n\n\r\n", b"\xe2\x80\xa8\x0b\x0c\x1c\x85\n"]
BODIES += [recorded(name).body for name in ("ollama/chat_stream", "vllm/chat_stream_usage")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
@pytest.mark.parametrize("body", [*BODIES, b"x" * 10**5], ids=lambda body: repr(body[:8]))
def test_lines_wherever_the_pieces_end(body: bytes, size: int) -> None:
    """By the standard's own words: CRLF, or a lone LF, or a lone CR."""
    expected = re.split(rb"\r\n|\n|\r", body)
    assert lines_of(body, size) == (expected if expected[-1] else expected[:-1])


@pytest.mark.parametrize("ending", ["whole", "close", "hang"])
def test_oversized_body(ending: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "MAX_BODY_BYTES", 2**20)
    error = failure_of(Answer(b"x" * (2**20 + 1), ending=ending))
    assert type(error) is BadAnswer and "longer than 1 MiB" in str(error)
    if ending == "whole":
        assert fetched(Answer(b"x" * 2**20)) == b"x" * 2**20


def test_of_many_at_once_each_is_timed_by_itself() -> None:
    """Of 20 cold, then 20 warm, each starts when the one before it has been sent."""

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

    order = ["start_ms", "connect_start_ms", "connected_ms", "ready_ms", "sent_ms"]
    order += ["first_byte_ms", "last_byte_ms"]
    connecting = {"connect_start_ms", "connected_ms"}
    cold, warm = replay(Answer(b"x" * 10_000), talk)
    # What is answered meanwhile leaves its connection to those that have yet to start.
    assert any("connected_ms" in marks for marks in cold)
    for marks in cold + warm:
        events = order if "connected_ms" in marks else [o for o in order if o not in connecting]
        assert [marks[event] for event in events] == sorted(marks.values())
    assert not any("connected_ms" in marks for marks in warm)
    for wave in (cold, warm):
        ordered = sorted(wave, key=lambda marks: marks["start_ms"])
        overlapping = [b["start_ms"] < a["sent_ms"] for a, b in itertools.pairwise(ordered)]
        held_ms = [marks["sent_ms"] - marks["start_ms"] for marks in wave]
        # Only one that took longer than a turn may be overtaken, on however slow a machine.
        assert sum(overlapping) <= sum(ms > 1000 * transport.TURN_S for ms in held_ms)


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


def test_an_arrival_is_when_the_bytes_were_here_and_not_when_they_were_read() -> None:
    now_ms = time.perf_counter() * 1000
    exchange = Exchange(lambda: time.perf_counter() * 1000)
    exchange.marks["sent_ms"] = now_ms - 50
    assert exchange.arrival_ms() >= now_ms  # unknown: when it is read
    exchange.arrived_s = lambda: (now_ms - 20) / 1000
    assert exchange.arrival_ms() == pytest.approx(now_ms - 20)
    exchange.arrived_s = lambda: (now_ms - 70) / 1000
    assert exchange.arrival_ms() == now_ms - 50  # never before what was marked last


def test_a_server_may_answer_before_all_is_sent() -> None:
    """Then the rest of the request is sent into an answer that is already there."""
    times = iter([1.0, 2.0, 3.0])
    exchange = Exchange(lambda: next(times))
    token = transport._exchange.set(exchange)
    sent = transport._marker("sent")
    asyncio.run(sent(None, None, None))
    exchange.mark("first_byte")
    asyncio.run(sent(None, None, None))
    transport._exchange.reset(token)
    assert exchange.marks == {"sent_ms": 1.0, "first_byte_ms": 2.0}


def test_a_failure_leaves_no_connection_behind() -> None:
    async def talk(server: Replay) -> int:
        client = TimedClient("there", server.url)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                async with client.request("GET", "/") as response:
                    async for _line in response.lines():
                        raise RuntimeError("the reader stops in the middle")
        await client.aclose()
        return server.connections

    assert replay(Answer(b"x\n" * 500_000, pieces=50_000), talk) == 3


# --- when bytes came ---------------------------------------------------------------------------


@pytest.mark.parametrize("take", ["recv", "recv_into"])
def test_a_socket_knows_when_its_bytes_came_however_late_they_are_taken(take: str) -> None:
    """Sent and then left lying while other work is done: the sender's clock is the oracle."""
    with socket.create_server(("127.0.0.1", 0)) as server, sockets.Stamped() as client:
        client.stamp()
        if not client.noted:
            pytest.skip("this system does not tell when bytes came")
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            time.sleep(0.2)  # a busy kernel begins to note a moment after it is asked
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
    value = sockets._TIMESPEC.pack(int(told), 0)
    monkeypatch.setattr(time, "time", lambda: told + set_by_s)
    with sockets.Stamped() as client:
        before_s = time.perf_counter()
        client._arrived([(socket.SOL_SOCKET, sockets._SO_TIMESTAMPNS, value)])
        assert before_s <= client.arrived_s <= time.perf_counter()


def test_where_the_kernel_tells_nothing_bytes_come_when_they_are_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, sockets.Stamped() as client:
        client.connect(server.getsockname())
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"one")
            before_s = time.perf_counter()
            assert client.recv(100) == b"one"
            assert before_s <= client.arrived_s <= time.perf_counter()
