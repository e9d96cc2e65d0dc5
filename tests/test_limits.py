"""A run ends within its time limit and a second, whatever the providers do, with what it has."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from replay import Answer, Replay, recorded

from poclib import report
from poclib.errors import PocError
from poclib.measure import experiment, ruler
from poclib.measure.experiment import open_pool
from poclib.parameters import Parameters

pytestmark = pytest.mark.slow

LIMIT_S = 1.0
WELL: dict[str, Answer] = {
    "/v1/models": recorded("vllm/models"),
    "/version": recorded("vllm/version"),
    "/health": recorded("vllm/health"),
    "/v1/chat/completions": recorded("vllm/chat_stream_usage"),
}
FIRST = WELL["/v1/chat/completions"].body.partition(b"\n\n")[0] + b"\n\n"
ANSWERS = {
    "silent from the start": Answer(ending="silent"),
    "silent to prompts": WELL | {"/v1/chat/completions": Answer(ending="silent")},
    "hangs in mid-answer": WELL | {"/v1/chat/completions": Answer(FIRST, ending="hang")},
    "a byte at a time": WELL | {"/v1/chat/completions": Answer(ending="drip")},
    "always busy": WELL
    | {"/v1/chat/completions": Answer(b"{}", 503, headers={"retry-after": "3600"})},
    "silent to probes": WELL | {"/health": Answer(ending="silent")},
    "only slow": WELL,
}
# One that refuses its warm-up already ends the run before its limit.
TOLD = {"always busy": "HTTP 503", "only slow": r"run_limit_s \(1 s\) in round 1"}


@contextlib.contextmanager
def served(answers: Answer | dict[str, Answer]) -> Iterator[str]:
    """A server in a thread of its own; gives its address."""
    loop = asyncio.new_event_loop()
    server = Replay(answers)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(20)
    try:
        yield server.url
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)


@pytest.fixture(autouse=True)
def without_the_check_of_the_instrument(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it alone would take most of the limit."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(ruler, "check", nothing)


def ends_in_time(folder: Path, words: str, **urls: str) -> None:
    """Measures at these urls, which has to end with an error of such words."""
    common: dict[str, Any] = {"kind": "openai", "model": "smollm2-135m"}
    given = {"experiment": "limited", "strategy": "shared-queue", "prompts": 5000, "rounds": 1}
    given |= {"run_limit_s": LIMIT_S, "connect_timeout_s": 60.0, "retries": 10}
    given |= {"providers": [{"name": name, "url": url, **common} for name, url in urls.items()]}
    wanted = Parameters.read(given)
    begun_s = time.monotonic()
    with pytest.raises(PocError, match=words):
        experiment.measure(wanted, folder=folder)
    assert time.monotonic() - begun_s < LIMIT_S + 1


@pytest.mark.parametrize("trouble", ANSWERS)
def test_the_limit_holds_whatever_a_provider_does(tmp_path: Path, trouble: str) -> None:
    with served(ANSWERS[trouble]) as bad, served(WELL) as well:
        ends_in_time(tmp_path, TOLD.get(trouble, "run_limit_s"), bad=bad, good=well)
    kept = report.load(tmp_path / "runs" / "limited-shared-queue.jsonl")
    assert not kept.complete and kept.rounds == []
    if trouble == "only slow":
        assert sum(len(arm.requests) for arm in kept.cut[0].arms) > 20


def test_the_limit_holds_while_a_name_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    ends_in_time(tmp_path, "run_limit_s", bad="http://slow-box.lan:1")
    over.set()


def test_the_time_that_engines_take_to_start_is_part_of_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def slow_to_start(parameters: Parameters, *others: Any) -> Iterator[Any]:
        time.sleep(0.7)  # of the 1 s that it has
        with open_pool(parameters, *others) as providers:
            yield providers

    monkeypatch.setattr(experiment, "open_pool", slow_to_start)
    with served(WELL) as one, served(WELL) as other:
        ends_in_time(tmp_path, "run_limit_s", one=one, other=other)
