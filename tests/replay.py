"""A real server on a loopback socket that answers each path with given bytes, or misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import jsonschema
import pytest

from poclib.parameters import Parameters, ProviderSettings
from poclib.providers import KINDS, Provider
from poclib.records import Exchange, Prompt, ProviderFacts

T = TypeVar("T")
SAMPLES = Path(__file__).parent / "samples"


@dataclass
class Answer:
    """What one path answers: `pieces` is the size of the parts its body is sent in.

    `ending`: "whole" as HTTP wants it; "close" ends a body of no known length by closing;
    "cut" closes before the announced end; "reset" breaks the connection instead of answering;
    "hang" sends the body and then nothing more, "drip" one byte after the other for ever;
    "silent" sends nothing at all; "raw" sends the body only, whatever is asked, then closes.
    """

    body: bytes = b"{}"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: int | None = None
    ending: Literal["whole", "close", "cut", "reset", "hang", "drip", "silent", "raw"] = "whole"


@dataclass
class Asked:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: Any


def fields_of(lines: list[str]) -> dict[str, str]:
    return {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}


def recorded(name: str, **changes: Any) -> Answer:
    """The sample `name`, such as "ollama/chat_stream", as an answer."""
    body = (SAMPLES / f"{name}.body").read_bytes()
    status, headers = 200, {"content-type": "application/json"}
    file = SAMPLES / f"{name}.headers"
    if file.exists():
        first, *lines = file.read_text("utf-8").split("\n\n")[0].splitlines()
        status, headers = int(first.split()[1]), fields_of(lines)
        for key in ("content-length", "transfer-encoding"):
            headers.pop(key, None)
    return Answer(**{"body": body, "status": status, "headers": headers, **changes})


class Replay:
    """Use as `async with Replay(answers) as server`, then `server.url` and `server.asked`.

    `answers` is one answer for every path, or a dict of paths (others get 404). A request that
    breaks the rules of the real server that `strict` names gets 400, as it would there.
    """

    def __init__(
        self,
        answers: Answer | dict[str, Answer],
        tls: ssl.SSLContext | None = None,
        strict: str | None = None,
    ) -> None:
        self.answers = answers
        file = SAMPLES / f"{strict}" / "rules.json"  # JSON schemas, by path
        self._rules = json.loads(file.read_text("utf-8")) if strict else {}
        self._tls = tls
        self.asked: list[Asked] = []
        self.connections = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Replay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        # The client may be gone, or this be cancelled, which nobody need hear of.
        with contextlib.suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            if isinstance(self.answers, Answer) and self.answers.ending == "raw":
                await reader.read(2**16)
                writer.write(self.answers.body)
            else:
                while await self._answer(reader, writer):
                    pass
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection is kept."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split()
        headers = fields_of(lines)
        sent = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append(Asked(path, headers, json.loads(sent) if sent else None))
        answer = self.answers
        if isinstance(answer, dict):
            answer = answer.get(path, Answer(b"404 page not found", 404))
        if method == "POST" and (broken := self._broken(path, self.asked[-1].body)):
            answer = body({"error": {"message": broken}}, 400)
        if headers.get("connection", "").lower() == "close":
            answer = replace(answer, headers=answer.headers | {"connection": "close"})
        if answer.ending == "reset":
            # Closing with a linger of 0 makes the system send a reset.
            link: socket.socket = writer.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if answer.ending == "silent":
            await reader.read()
            return False
        await self._write(writer, answer)
        while answer.ending == "drip":
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.005)
        if answer.ending == "hang":
            await reader.read()
        return answer.ending == "whole" and answer.headers.get("connection", "").lower() != "close"

    def _broken(self, path: str, asked: Any) -> str:
        """Which rule of the real server a request breaks, in words."""
        if self._rules and path not in self._rules:
            return f"no such path: {path}"
        errors = jsonschema.Draft202012Validator(self._rules.get(path, {})).iter_errors(asked)
        return "; ".join(f"{error.json_path}: {error.message}" for error in errors)

    async def _write(self, writer: asyncio.StreamWriter, answer: Answer) -> None:
        chunked = answer.ending != "close"
        headers = answer.headers | ({"transfer-encoding": "chunked"} if chunked else {})
        head = [f"HTTP/1.1 {answer.status} Status", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join([*head, "", ""]).encode())
        size = answer.pieces or len(answer.body) or 1
        for start in range(0, len(answer.body), size):
            piece = answer.body[start : start + size]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            await writer.drain()
            if answer.pieces:
                await asyncio.sleep(0)  # let the other end read it before the next
        if answer.ending == "whole":
            writer.write(b"0\r\n\r\n")
        await writer.drain()


def provider(kind: str, url: str, key: str | None = None, **changes: Any) -> Provider:
    """A provider named `there`; `changes` go to its settings or to the parameters."""
    own = {k: v for k, v in changes.items() if k in ProviderSettings.model_fields}
    rest = {k: v for k, v in changes.items() if k in Parameters.model_fields}
    assert not changes.keys() - own.keys() - rest.keys()
    settings = ProviderSettings(**{"name": "there", "kind": kind, "model": "smollm2", **own})
    parameters = Parameters(providers=[settings], **{"request_timeout_s": 20, **rest})
    return KINDS[kind](settings, parameters, url, key)


def clock() -> float:
    return time.perf_counter() * 1000


async def ask(sender: Provider, text: str = "Say hello.", salt: str = "s/baseline/0") -> Exchange:
    """The exchange of one prompt, then close. Raises what `send` raises."""
    exchange = Exchange(clock)
    async with contextlib.aclosing(sender):
        await sender.send(Prompt(0, text, salt), exchange)
    return exchange


def replay(
    answers: Answer | dict[str, Answer],
    talk: Callable[[Replay], Awaitable[T]],
    strict: str | None = None,
) -> T:
    """What `talk` returns with a server that gives `answers`."""

    async def run() -> T:
        async with asyncio.timeout(30), Replay(answers, strict=strict) as server:
            return await talk(server)

    return asyncio.run(run())


def body(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(json.dumps(value).encode(), status, headers or {})


def facts_of(server: str, *names: str) -> dict[str, Answer]:
    """What the recorded `server` says of itself, by path; `names` are the ends of its paths."""
    return {f"/{name}": recorded(f"{server}/{name.rpartition('/')[2]}") for name in names}


OLLAMA = facts_of("ollama", "api/version", "api/tags", "api/show")
LLAMA = facts_of("llama-server", "health", "props", "v1/models")
VLLM = facts_of("vllm", "v1/models", "version", "health")


def describe(kind: str, answers: dict[str, Answer], **changes: Any) -> ProviderFacts:
    async def talk(server: Replay) -> ProviderFacts:
        async with contextlib.aclosing(provider(kind, server.url, **changes)) as sender:
            return await sender.describe()

    return replay(answers, talk)


def resolved(monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
    """A resolver of the test's own: every name leads to these addresses."""
    known = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: known)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
