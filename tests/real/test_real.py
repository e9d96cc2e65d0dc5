"""The whole instrument against real servers, named by variables; docs/real-servers.md gets them.

    POC_TEST_OLLAMA="http://127.0.0.1:11434 http://192.168.1.20:11434" \\
        ./run-poc.sh test tests/real -s

One address, or two of equal machines. `-s` shows the figures, which are the point of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import time
from contextlib import aclosing, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from msgspec.structs import asdict
from replay import clock, provider

from poclib.errors import ModelMissing
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import Provider
from poclib.reading.reading import of
from poclib.records import Exchange, Prompt, ProviderFacts
from poclib.showing import words

pytestmark = pytest.mark.real

VARIABLES = {"ollama": "POC_TEST_OLLAMA", "openai": "POC_TEST_VLLM"}
VARIABLES |= {"llama-server": "POC_TEST_LLAMA"}
CALLED = {"ollama": "Ollama", "openai": "vLLM", "llama-server": "llama-server"}
# What a server says of its own time in the bytes of an answer, and how many make a millisecond.
OWN_TIME = {
    "ollama": (rb'"total_duration":(\d+)', 1e6),
    "openai": (rb'"(?:time_to_first_token|generation_time|queue_time)_ms":\s*([\d.e-]+)', 1),
    "llama-server": (rb'"(?:prompt|predicted)_ms":\s*([\d.e-]+)', 1),
}
ENDS = (b'"done":true', b"data: [DONE]", b'"stop":true')  # the last event of a stream
STORY = (
    "Once a sailor came to a small town by the sea and asked the people there about the wind, "
    "the tides, the birds and the long road that leads over the hills to the north. "
)
PROMPTS = {  # with how many tokens are answered
    "built-in": (8, 24),
    "long": ([f"{STORY * 7}What of it would one ask in town {n}?" for n in range(8)], 16),
}
REQUESTS = 15  # of either client


class Server(NamedTuple):
    """Servers of one kind: one, or two equal ones."""

    kind: str
    urls: list[str]
    model: str

    def sender(self, **changes: Any) -> Provider:
        asked = {"model": self.model, "context_tokens": 1024, "request_timeout_s": 300, **changes}
        return provider(self.kind, self.urls[0], **asked)


@pytest.fixture(scope="module", params=VARIABLES)
def server(request: pytest.FixtureRequest) -> Server:
    variable = VARIABLES[request.param]
    urls = os.environ.get(variable, "").split()
    if not urls:
        pytest.skip(f"{variable} names no server; docs/real-servers.md says how to get one")
    return Server(request.param, urls, os.environ.get("POC_TEST_MODEL") or _first_model(urls[0]))


def _first_model(url: str) -> str:
    """Asked without poclib, which is what is tested."""
    for path, key, name in (("/api/tags", "models", "name"), ("/v1/models", "data", "id")):
        with suppress(OSError), urlopen(url + path, timeout=30) as answer:
            return str(json.load(answer)[key][0][name])
    pytest.fail(f"{url} tells of no model; is it running, and does it have one?")


def asked(sender: Provider, *texts: str, described: bool = True) -> list[Exchange]:
    """One after the other, on one client, after it was described as before every run."""

    async def talk() -> list[Exchange]:
        async with aclosing(sender):
            if described:
                await sender.describe()
            done = [Exchange(clock) for _ in texts]
            for text, exchange in zip(texts, done, strict=True):
                await sender.send(Prompt(0, text, f"s{time.time_ns()}"), exchange)
            return done

    return asyncio.run(talk())


def wall_ms(exchange: Exchange) -> float:
    return exchange.marks["end_ms"] - exchange.marks["start_ms"]


def test_it_is_described_as_its_kind_promises(server: Server) -> None:
    async def talk() -> ProviderFacts:
        async with aclosing(server.sender()) as sender:
            return await sender.describe()

    found = asyncio.run(talk())
    print(f"{server.kind:12} {found.server}, {found.model}, {found.digest}")
    assert found.model == server.model and CALLED[server.kind] in (found.server or "")
    assert (found.context_tokens and found.role == "local") or "127." not in server.urls[0]
    always = server.kind != "openai"  # vLLM tells its weights by no request, its times by a flag
    assert bool(found.digest) == always and bool(found.reports_time) == always
    defeats = server.kind != "ollama"
    assert found.cache_defeated == found.fixed_length == defeats


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("api", ["chat", "completion"])
def test_an_answer_is_whole_and_its_times_fit_into_one_another(
    server: Server, api: str, stream: bool
) -> None:
    sender = server.sender(api=api, stream=stream, max_tokens=12)
    text = f"{time.time_ns()}: why is the sea salt, and who says so?"
    _, found = asked(sender, f"A first one. {text}", text)
    assert found.finished and "".join(found.pieces).strip()
    assert found.prompt_tokens and found.prompt_tokens > 10 and not found.cached_tokens
    lengths = range(1, 13) if server.kind == "ollama" else [12]  # of a length that was asked for
    assert found.output_tokens in lengths
    assert found.finish_reason in ("stop", "length", "limit")
    marks = [found.marks[f"{name}_ms"] for name in ("start", "sent", "first_byte", "end")]
    times = [*marks[:3], *found.token_ms, marks[3]]
    assert times == sorted(times) and (len(found.token_ms) >= 4 or not stream)
    own_ms = found.server.total_ms
    if own_ms is None:
        assert server.kind == "openai"
        pytest.skip("it reports no time of its own; vLLM does with --enable-per-request-metrics")
    parts = asdict(found.server) | {"total_ms": None}
    assert sum(filter(None, parts.values())) == pytest.approx(own_ms, abs=1)
    print(f"{server.kind:12} {api}: wall {wall_ms(found):.1f} ms, its own {own_ms:.1f} ms")
    assert 0 < own_ms <= wall_ms(found)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_model_that_is_not_there_is_named(server: Server, stream: bool) -> None:
    # llama-server answers with the one it has, whatever is asked for.
    for described in (True, False) if server.kind != "llama-server" else (True,):
        with pytest.raises(ModelMissing, match="no-such-model" if described else ""):
            asked(server.sender(model="no-such-model", stream=stream), "Hi", described=described)


def outside(url: str, path: str, body: dict[str, Any], kind: str) -> tuple[float, float]:
    """An independent client's wall and the server's own time, in ms: a socket and a clock."""
    data = json.dumps(body).encode()
    at = urlsplit(url)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    got, ended_s = b"", 0.0
    begun_s = time.perf_counter()
    with socket.create_connection((at.hostname, at.port or 80), 120) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.sendall(head.encode() + data)
        while piece := link.recv(2**16):
            if not any(end in got for end in ENDS) or not body["stream"]:
                ended_s = time.perf_counter()
            got += piece
    assert got.startswith(b"HTTP/1.1 200"), got[:300]
    pattern, unit = OWN_TIME[kind]
    return (ended_s - begun_s) * 1000, sum(map(float, re.findall(pattern, got))) / unit


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_added_latency_is_what_an_independent_client_sees(server: Server, stream: bool) -> None:
    """The same bodies, by turns, timed by poclib and by a bare socket."""
    sender = server.sender(stream=stream, max_tokens=4)
    theirs: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []

    async def talk() -> None:
        async with aclosing(sender):
            await sender.describe()
            for number in range(2 * REQUESTS + 2):
                moment = time.time_ns()
                prompt = Prompt(0, f"{moment}: what is the capital of it?", f"s{moment}")
                if number % 2:
                    body = sender._request_body(prompt)
                    theirs.append(outside(server.urls[0], sender.paths["chat"], body, server.kind))
                else:
                    exchange = Exchange(clock)
                    await sender.send(prompt, exchange)
                    ours.append((wall_ms(exchange), exchange.server.total_ms or 0.0))

    asyncio.run(talk())
    walls = [median(wall for wall, _ in rows[1:]) for rows in (ours, theirs)]
    overs = [median(wall - own for wall, own in rows[1:]) for rows in (ours, theirs)]
    print(f"{server.kind:12} wall {walls[0]:.1f} ms, of an independent client {walls[1]:.1f}")
    print(f"{'':12} over the server's own time: {overs[0]:.2f} and {overs[1]:.2f} ms")
    pairs = list(zip(ours, theirs, strict=True))[1:]
    apart_ms = median(our[0] - their[0] for our, their in pairs)
    assert abs(apart_ms) < max(3.0, 0.05 * walls[1])
    if theirs[0][1]:
        assert abs(overs[0] - overs[1]) < 3.0


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize(
    "case",
    [
        ("sequential", 1, 0.95, 1.05),  # against itself: neither faster nor slower
        ("serial-per-provider", 2, 0.45, 0.62),  # two equal ones: about half
        ("shared-queue", 2, 0.45, 0.62),
    ],
)
def test_the_ratio_is_what_equal_machines_give(
    server: Server, case: tuple[str, int, float, float], prompts: str, tmp_path: Path
) -> None:
    strategy, machines, low, high = case
    if len(server.urls) < machines:
        pytest.skip("one server is named, and this takes two equal ones")
    texts, length = PROMPTS[prompts]
    values = {"experiment": "real", "strategy": strategy, "context_tokens": 1024}
    own = {"kind": server.kind, "model": server.model}
    pool = [{"name": f"m{n}", "url": url, **own} for n, url in enumerate(server.urls[:machines])]
    values |= {"providers": pool, "prompts": texts, "max_tokens": length}
    report = experiment.measure(Parameters.read(values), folder=tmp_path)
    headline = of(report).headline
    rounds = ", ".join(f"{ratio:.2f}" for ratio in headline.round_ratios)
    print(
        f"{server.kind:12} {strategy}, {machines} of them, {prompts} prompts: "
        f"{words.ratio(headline)}, each {rounds}; {headline.verdict}"
    )
    assert report.complete and not headline.failed_requests
    ratio = headline.overhead_ratio.median
    assert ratio is not None and low <= ratio <= high
