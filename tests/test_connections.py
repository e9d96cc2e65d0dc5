"""What comes over one connection, byte by byte; and which connections are open, and when."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import httptools
import pytest
from replay import Answer, Replay, clock, free_port, replay, resolved

from poclib.errors import BadAnswer, Unreachable
from poclib.providers import origin
from poclib.providers.connection import Response
from poclib.providers.transport import TimedClient
from poclib.records import Exchange

T = TypeVar("T")
OK, TWO = b"HTTP/1.1 200 OK\r\n", b"content-length: 2\r\n\r\n"
PACKED = zlib.compress(b"ok" * 99)


def sized(body: bytes) -> bytes:
    return b"content-length: %d\r\n\r\n%b" % (len(body), body)


# What a server sends, what is read of it, and whether its connection may serve another request.
SENT: dict[str, tuple[bytes, int, bytes, bool]] = {
    "with its length": (OK + TWO + b"ok", 200, b"ok", True),
    "empty": (OK + b"content-length: 0\r\n\r\n", 200, b"", True),
    "without a body": (b"HTTP/1.1 204 No\r\n\r\n", 204, b"", False),
    "in chunks, with an extension and a trailer": (
        OK + b"transfer-encoding: chunked\r\n\r\n1;a=b\r\no\r\n1\r\nk\r\n0\r\nx: content\r\n\r\n",
        *(200, b"ok", True),
    ),
    "after others that are on the way": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK + TWO + b"ok",
        *(200, b"ok", True),
    ),
    "until the end of its connection": (OK + b"\r\nok", 200, b"ok", False),
    "the same of an old server": (b"HTTP/1.0 200 OK\r\n\r\nok", 200, b"ok", False),
    "an old server that keeps it": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n" + TWO + b"ok",
        *(200, b"ok", True),
    ),
    "it says that it closes": (OK + b"Connection: Close\r\n" + TWO + b"ok", 200, b"ok", False),
    "lines end with LF alone": (
        OK.replace(b"\r", b"") + b"content-length: 2\n\nok",
        200,
        b"ok",
        True,
    ),
    "and more than was asked for": (OK + TWO + b"okHTTP/1.1 200 OK", 200, b"ok", False),
    "and what is no HTTP": (OK + TWO + b"okay", 200, b"ok", False),
    "and an empty line": (OK + TWO + b"ok\r\n", 200, b"ok", True),
    "gzip": (OK + b"Content-Encoding: GZIP\r\n" + sized(gzip.compress(b"ok")), 200, b"ok", True),
    "deflate": (OK + b"content-encoding: deflate\r\n" + sized(PACKED), 200, b"ok" * 99, True),
    "deflate, bare": (
        OK + b"content-encoding: deflate\r\n" + sized(PACKED[2:-4]),
        *(200, b"ok" * 99, True),
    ),
}
BROKEN: dict[str, tuple[bytes, type[Exception]]] = {
    "nothing": (b"", ConnectionResetError),
    "cut in its headers": (OK, ConnectionResetError),
    "shorter than announced": (OK + TWO + b"o", ConnectionResetError),
    "a chunk that is cut": (
        OK + b"transfer-encoding: chunked\r\n\r\n5\r\nok",
        ConnectionResetError,
    ),
    "no last chunk": (OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n", ConnectionResetError),
    "no HTTP": (b"SSH-2.0-x\r\n\r\n", httptools.HttpParserError),
    "another protocol": (
        b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nok",
        httptools.HttpParserError,
    ),
    "two lengths": (OK + b"transfer-encoding: chunked\r\n" + TWO, httptools.HttpParserError),
    "no such length": (OK + b"content-length: x\r\n\r\n", httptools.HttpParserError),
    "headers without an end": (OK + b"x: y\r\n" * 30_000, httptools.HttpParserError),
    "gzip that is none": (
        OK + b"content-encoding: gzip\r\n" + TWO + b"ok",
        httptools.HttpParserError,
    ),
    "a coding nobody asked for": (OK + b"content-encoding: br\r\n" + TWO + b"ok", BadAnswer),
}


async def fed(data: bytes, size: int) -> tuple[int, bytes, bool]:
    """What a response becomes that comes in such pieces, after which its connection ends."""
    answer = Response("there", Exchange(clock))
    answer.sent()
    for start in range(0, len(data), size):
        if not answer.whole:
            answer.feed(data[start : start + size], clock() / 1000)
    keep = answer.keep and (answer.whole or not data)
    if not answer.whole:
        answer.feed(b"", clock() / 1000)
        answer.fail(ConnectionResetError())
    await answer.head()
    return answer.status, await answer.body(), keep


@pytest.mark.parametrize("name", SENT)
def test_an_answer_is_read_wherever_it_is_cut_into_pieces(name: str) -> None:
    data, status, body, keep = SENT[name]
    for size in (len(data), 1, 2, 7):
        found = asyncio.run(fed(data, size))
        assert found[:2] == (status, body)
        # What comes after the end in another piece is the connection's to notice.
        assert found[2] == keep or (size < len(data) and name.startswith("and"))


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_answer_is_an_error_wherever_it_is_cut(name: str) -> None:
    data, error = BROKEN[name]
    for size in (len(data) or 1, 7) if len(data) > 1000 else (len(data) or 1, 1, 2, 7):
        with pytest.raises(error):
            asyncio.run(fed(data, size))


def test_a_header_that_comes_twice_is_joined_and_a_trailer_is_none() -> None:
    answer = Response("there", Exchange(clock))
    chunks = b"transfer-encoding: chunked\r\n\r\n0\r\nx-a: 3\r\n\r\n"
    answer.feed(OK + b"X-A: 1\r\nx-a: 2\r\n" + chunks, 0)
    assert answer.headers["x-a"] == "1, 2" and answer.whole


# ---- Connections ---------------------------------------------------------------------------------


class Server:
    """Hands each connection to `serve` with its number, and knows which are open."""

    def __init__(self) -> None:
        self.opened = [asyncio.Event() for _ in range(40)]
        self.closed = [asyncio.Event() for _ in range(40)]
        self.count = 0

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, more: str = ""
    ) -> None:
        await asked(reader)
        writer.write(OK + more.encode() + TWO + b"ok")


async def asked(reader: asyncio.StreamReader) -> None:
    """Read one request; raises where none comes."""
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"POST"):
        await reader.readexactly(2)


Serve = Callable[[Server, int, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def served(serve: Serve, talk: Callable[[Server, TimedClient], Awaitable[T]]) -> T:
    """What `talk` returns with a client of that server; then no connection is left open."""

    async def run() -> T:
        there = Server()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number, there.count = there.count, there.count + 1
            there.opened[number].set()
            with suppress(asyncio.IncompleteReadError, OSError):
                await serve(there, number, reader, writer)
                await reader.read()
            writer.close()
            there.closed[number].set()

        listening = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        client = TimedClient("there", f"http://127.0.0.1:{port}", timeout_s=20)
        async with listening, asyncio.timeout(30):
            try:
                found = await talk(there, client)
            finally:
                await client.aclose()
            for number in range(there.count):
                await there.closed[number].wait()
        return found

    return asyncio.run(run())


async def ask(client: TimedClient, keep: bool = False) -> Exchange:
    exchange = Exchange(clock)
    async with client.request("POST", "/", {}, exchange, keep) as answer:
        assert await answer.body() == b"ok"
    return exchange


def cold(exchange: Exchange) -> bool:
    return "connected_ms" in exchange.marks


async def closes_each(
    there: Server, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answers when the connection for the next request is open, and closes its own."""
    await asked(reader)
    await there.opened[number + 1].wait()
    writer.write(OK + b"connection: close\r\n" + TWO + b"ok")
    writer.close()


def test_the_next_connection_is_open_before_an_answer_ends() -> None:
    async def talk(there: Server, client: TimedClient) -> int:
        first, *others = [await ask(client) for _ in range(4)]
        assert cold(first) and first.ahead_ms is None
        for exchange in others:
            assert not cold(exchange) and "connect_start_ms" not in exchange.marks
            assert exchange.ahead_ms is not None and exchange.ahead_ms > 0
        return there.count

    assert served(closes_each, talk) == 5  # and one for a request that never came


def test_none_is_opened_ahead_where_the_server_keeps_connections() -> None:
    async def keeps(there: Server, _: int, reader: Any, writer: Any) -> None:
        while True:
            await there.answer(reader, writer)

    async def talk(there: Server, client: TimedClient) -> int:
        found = [await ask(client, keep=True) for _ in range(3)]
        assert [cold(exchange) for exchange in found] == [True, False, False]
        assert not any(exchange.ahead_ms for exchange in found)
        return there.count

    assert served(keeps, talk) == 1


def test_one_that_was_closed_meanwhile_is_replaced_and_fails_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second is closed as soon as it is open; the first answer waits for a third."""
    monkeypatch.setattr(origin, "LOOK_S", 0.01)

    async def serve(there: Server, number: int, reader: Any, writer: Any) -> None:
        if number == 1:
            return writer.close()
        await asked(reader)
        await there.opened[number + 2 if number == 0 else number + 1].wait()
        writer.write(OK + TWO + b"ok")
        writer.close()

    async def talk(there: Server, client: TimedClient) -> None:
        assert cold(await ask(client))
        assert not cold(await ask(client))
        assert there.count == 4

    served(serve, talk)


def test_one_that_was_closed_after_the_last_look_is_not_used() -> None:
    async def serve(there: Server, number: int, reader: Any, writer: Any) -> None:
        if number == 1:
            writer.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")  # as some do to idle ones
            return writer.close()
        await asked(reader)
        await there.closed[1].wait()
        writer.write(OK + TWO + b"ok")
        writer.close()

    async def talk(there: Server, client: TimedClient) -> None:
        assert cold(await ask(client))
        second = await ask(client)
        assert cold(second) and second.ahead_ms is None

    served(serve, talk)


def test_one_that_is_being_opened_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request pays for the rest of it, and no second one is opened."""
    let_in, begun = asyncio.Event(), itertools.count()
    plain = asyncio.SelectorEventLoop.sock_connect

    async def slow(self: Any, *arguments: Any) -> None:
        if next(begun) == 1:
            await let_in.wait()
        await plain(self, *arguments)

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", slow)

    async def serve(there: Server, _: int, reader: Any, writer: Any) -> None:
        await there.answer(reader, writer, "connection: close\r\n")
        writer.close()

    async def talk(there: Server, client: TimedClient) -> None:
        await ask(client)
        second = asyncio.create_task(ask(client))
        while client.origin(client.url)._ahead:  # noqa: ASYNC110 - it is taken soon
            await asyncio.sleep(0)
        assert there.count == 1
        let_in.set()
        exchange = await second
        assert cold(exchange) and exchange.ahead_ms is None
        assert exchange.marks["connect_start_ms"] == exchange.marks["start_ms"]

    served(serve, talk)


@pytest.mark.parametrize("several", [2, 8])
def test_never_more_are_opened_ahead_than_answers_are_under_way(several: int) -> None:
    """Nor more than a llama-server has threads to spare."""
    most = several + min(several, origin.MOST_AHEAD)

    async def serve(there: Server, _: int, reader: Any, writer: Any) -> None:
        await asked(reader)
        await there.opened[most - 1].wait()
        writer.write(OK + b"connection: close\r\n" + TWO + b"ok")
        writer.close()

    async def talk(there: Server, client: TimedClient) -> int:
        await asyncio.gather(*(ask(client) for _ in range(several)))
        return there.count

    assert served(serve, talk) == most


def test_when_nobody_asks_any_more_what_was_opened_ahead_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origin, "LOOK_S", 0.01)
    monkeypatch.setattr(origin, "KEEPALIVE_S", 0.05)

    async def talk(there: Server, client: TimedClient) -> None:
        await ask(client)
        for number in range(there.count):  # without a word of the client's owner
            await there.closed[number].wait()

    served(closes_each, talk)


@pytest.mark.parametrize("after", ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"])
def test_a_kept_connection_that_was_closed_is_not_used(after: str) -> None:
    """It says nothing of that beforehand, and the next request comes at once."""

    async def serve(there: Server, _: int, reader: Any, writer: Any) -> None:
        await there.answer(reader, writer)
        writer.write(after.encode())
        writer.close()

    async def talk(there: Server, client: TimedClient) -> int:
        for _ in range(5):
            assert cold(await ask(client, keep=True))
        return there.count

    assert served(serve, talk) == 5


def test_a_server_that_sends_no_more_may_still_be_listening() -> None:
    async def serve(_: Server, __: int, reader: Any, writer: Any) -> None:
        await asked(reader)
        writer.write(OK + b"\r\nok")
        writer.write_eof()

    async def talk(there: Server, client: TimedClient) -> int:
        for _ in range(2):
            assert cold(await ask(client, keep=True))
        return there.count

    assert served(serve, talk) == 2


def test_a_request_that_was_sent_is_never_sent_again() -> None:
    """Nobody knows what the server had made of it."""
    bytes_of: list[bytes] = []

    async def serve(_: Server, number: int, reader: Any, writer: Any) -> None:
        bytes_of.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    async def talk(_: Server, client: TimedClient) -> None:
        with pytest.raises(Unreachable, match="the connection broke off"):
            await ask(client)

    served(serve, talk)
    assert len(bytes_of) == 1


def test_each_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(server: Replay) -> int:
        resolved(monkeypatch, ("127.0.0.1", free_port()), ("127.0.0.1", server.port))
        client = TimedClient("there", f"http://box.lan:{server.port}")
        for _ in range(2):
            async with client.request("GET", "/") as answer:
                assert await answer.body() == b"here"
        await client.aclose()
        return server.connections

    assert replay(Answer(b"here"), talk) == 1
