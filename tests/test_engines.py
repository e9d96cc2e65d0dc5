"""The embedded pool: who is chosen, what each engine is told, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from replay import clock

from poclib.engines import keeper, llama
from poclib.engines.pool import Ports, RunningEngine, engine_pool
from poclib.errors import EngineError
from poclib.parameters import Link, Parameters, ProviderSettings
from poclib.providers import Embedded
from poclib.records import Exchange, Prompt

ROOT = Path(__file__).parents[1]
LIMIT_S = 30.0
LOCAL = ProviderSettings(name="local", slots=2)
REMOTE = ProviderSettings(name="remote", speed=0.5, slots=3, link=Link(round_trip_ms=20))

# A llama-server without a model: enough of it to see what it was told, and to misbehave.
PRETENDER = """
import http.server, json, os, signal, sys
mood, key = {mood!r}, os.environ.get("LLAMA_API_KEY")
if "--version" in sys.argv: sys.exit("version: 4321 (abc)")
if "--help" in sys.argv: sys.exit("--metrics")
if mood == "lacks an instruction": os.kill(os.getpid(), signal.SIGILL)
if mood == "will not start": sys.exit("cannot load the model")
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        right = self.headers["Authorization"] == "Bearer " + key
        self.send_response(500 if mood == "fails at once" else 200 if right else 401)
        self.end_headers()
        self.wfile.write(json.dumps([sys.argv, list(os.environ)]).encode())
    do_POST = do_GET
http.server.HTTPServer(("127.0.0.1", 0), Handler).serve_forever()
"""


def pretender(folder: Path, mood: str = "") -> str:
    folder.mkdir(exist_ok=True)
    path, script = folder / "llama-server", folder / "pretender.py"
    script.write_text(PRETENDER.format(mood=mood))
    # A "#!" line could not name an interpreter whose path holds a space.
    path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(script)])} "$@"\n')
    path.chmod(0o755)
    return str(path)


def ask(engine: RunningEngine, path: str, tokens: int = 0, key: str = "") -> httpx.Response:
    """What it answers to a GET, or to a prompt where `tokens` are wanted."""
    headers = {"Authorization": f"Bearer {key or engine.api_key}"}
    body = {"prompt": "Rivers", "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
    with httpx.Client(headers=headers, timeout=LIMIT_S, trust_env=False) as client:
        url = engine.url + path
        return client.post(url, json=body) if tokens else client.get(url)


def sender(engine: RunningEngine, settings: ProviderSettings, tokens: int) -> Embedded:
    asked = Parameters(providers=[settings], max_tokens=tokens)
    made = Embedded(settings, asked, engine.url, engine.api_key)
    made.ports = engine.ports
    return made


def processes(running: list[RunningEngine]) -> list[psutil.Process]:
    """The engines and their keepers."""
    engines = [psutil.Process(pid) for engine in running for pid in engine.pids]
    return engines + [psutil.Process(engine.ppid()) for engine in engines]


def all_gone(which: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(which, timeout=LIMIT_S)[1]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file that no real engine needs to read, and a pretender that is named."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setenv("POCLIB_MODEL", str(path))
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", pretender(tmp_path))
    return path


MOODS = {  # of a build, and what is told of it
    "will not start": r"code 1.*cannot load the model",
    "lacks an instruction": "SIGILL.*uses an instruction",
    "fails at once": "HTTP 500",
    "is for another machine": "it cannot be started",
}


@pytest.mark.parametrize("mood", MOODS)
def test_a_build_that_does_not_answer_is_told_with_its_reason_and_the_next_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, mood: str
) -> None:
    path, told = Path(pretender(tmp_path / "broken", mood)), f"broken.*local.*{MOODS[mood]}"
    if mood == "is for another machine":
        path.write_bytes(b"\0another machine's format")
    builds = [llama.Build("broken", path)]
    monkeypatch.setattr(llama, "builds", lambda: builds)
    with pytest.raises(EngineError, match=told) as error, engine_pool([LOCAL], 64):
        pass
    assert "Traceback" not in str(error.value)
    builds.append(llama.Build("whole", tmp_path / "llama-server"))
    with engine_pool([LOCAL, REMOTE], 64) as running:
        assert [engine.engine for engine in running] == ["whole"] * 2


def test_builds_come_in_order_and_a_named_one_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    labels = [build.label for build in llama.builds()]
    assert labels == ["llama-server b4321 ($POCLIB_LLAMA_SERVER)"]
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", str(tmp_path / "nothing"))
    with pytest.raises(EngineError, match=r"\$POCLIB_LLAMA_SERVER names"):
        list(llama.builds())
    monkeypatch.delenv("POCLIB_LLAMA_SERVER")
    monkeypatch.setenv("PATH", str(tmp_path))
    labels = [build.label for build in llama.builds()]
    assert labels[0] == "llama-server b4321 (PATH)" and "/" not in "".join(labels)
    monkeypatch.setattr(llama, "builds", list)
    with pytest.raises(EngineError, match=r"run \./run-poc\.sh"), engine_pool([LOCAL], 64):
        pass
    # sha256 of b"weights", computed by coreutils' sha256sum
    assert llama.model_digest(llama.find_model()).startswith("9a129038d9a00aed")
    monkeypatch.setenv("POCLIB_MODEL", f"{model}-not")
    with pytest.raises(EngineError, match=r"\$POCLIB_MODEL"):
        llama.find_model()


def test_each_engine_is_told_what_its_provider_asks_for_and_no_key_is_on_a_command_line(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CACHE_REUSE", "7")
    unbatched = ProviderSettings(name="unbatched", slots=3, threads=2, batching=False)
    with engine_pool([LOCAL, unbatched], context_tokens=100) as (local, other):
        assert (other.slots, other.model) == (3, "tiny")
        words, variables = ask(other, "/health").json()
        assert "LLAMA_ARG_CACHE_REUSE" not in variables
        assert "--cache-ram" not in words  # this build does not list it
        assert {"--no-cont-batching", "--metrics"} < {*words}
        told = dict(itertools.pairwise(words))
        assert told["--host"] == "127.0.0.1"
        assert (told["--parallel"], told["--ctx-size"]) == ("3", "300")
        assert (told["--threads"], told["--threads-batch"]) == ("2", "2")
        assert ask(local, "/completion", 1).status_code == 200
        assert ask(local, "/completion", 1, key="wrong").status_code == 401
        for process in processes([local, other]):
            assert not {local.api_key, other.api_key} & {*process.cmdline()}
        assert local.api_key not in repr(local)


def test_an_engine_that_dies_by_itself_is_named_and_the_rest_still_ends(model: Path) -> None:
    with engine_pool([LOCAL, REMOTE], context_tokens=64) as running:
        left = processes(running)
        left[1].kill()
        assert all_gone([left[1], left[3]])  # its keeper ends with it
        for doing in (running[1].restore_link, running[1].check):
            with pytest.raises(EngineError, match=r"remote.*SIGKILL"):
                doing()
        running[0].check()
    assert all_gone(left)


def test_what_this_machine_does_not_have_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"core": 100_000}, "cores"),
        ({"cores": 1000}, "cores"),
        ({"model": "llama3"}, "model llama3.*tiny"),
    ]
    for asked, told in refused:
        settings = [ProviderSettings(name="far", **asked)]
        with pytest.raises(EngineError, match=f"far asks for {told}"), engine_pool(settings, 64):
            pass


class LateClock:
    """Time in which every sleep ends up to 4 ms late, and a process that notes when it runs."""

    def __init__(self) -> None:
        self.now_s, self.random = 7.05, random.Random(1)
        self.signals_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, length_s: float) -> None:
        self.now_s += length_s + self.random.uniform(0, 0.004)

    def send_signal(self, which: signal.Signals) -> None:
        assert which == (signal.SIGCONT if len(self.signals_s) % 2 else signal.SIGSTOP)
        self.signals_s.append(self.now_s)
        if len(self.signals_s) > 400:
            raise StopIteration


@pytest.mark.parametrize(
    "speed, turn, share", [(0.2, None, 0.2), (0.9, None, 0.9), (1, (1, 2), 0.5)]
)
def test_a_slowed_process_runs_for_the_share_that_was_asked_and_only_in_its_turn(
    monkeypatch: pytest.MonkeyPatch, speed: float, turn: tuple[int, int] | None, share: float
) -> None:
    late = LateClock()
    monkeypatch.setattr(keeper, "time", late)
    with pytest.raises(StopIteration):
        keeper.slow([late], speed, turn)  # type: ignore[list-item]
    stopped_s, *pairs_s = late.signals_s
    begins_s, ends_s = pairs_s[::2], pairs_s[1::2]
    ran_s = sum(ends_s) - sum(begins_s)
    assert ran_s / (ends_s[-1] - stopped_s) == pytest.approx(share, abs=0.01)
    if turn:  # the second of two: from 0.1 to 0.2 s of each 0.2 s
        assert all(0.0999 <= begin_s % 0.2 <= 0.1041 for begin_s in begins_s)
        assert all((end_s - 0.0041) % 0.2 >= 0.0999 for end_s in ends_s)


def test_each_request_has_a_process_of_its_own_as_long_as_there_are_enough() -> None:
    ports = Ports(["a", "b"])
    for _ in range(2):  # those that ended, however they did, are free again
        with contextlib.suppress(ValueError), ports.take() as first, ports.take() as second:
            assert {first, second} == {"a", "b"}
            with ports.take() as third, ports.take() as fourth:  # they wait, as in any server
                assert {third, fourth} == {"a", "b"}
            raise ValueError


@pytest.fixture(scope="module", params=["llama-server", "xllamacpp"])
def running(request: pytest.FixtureRequest) -> Iterator[list[RunningEngine]]:
    """A pool of two real engines, of each kind that runs here."""
    builds = [build for build in llama.builds() if request.param in build.label]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "builds", lambda: builds)
        try:
            with engine_pool([LOCAL, REMOTE], context_tokens=256) as both:
                yield both
        except EngineError as error:
            pytest.skip(f"no {request.param} runs here: {error}")


@pytest.mark.slow
def test_real_engines_are_as_asked_hear_loopback_only_and_heed_the_key_and_the_core(
    running: list[RunningEngine],
) -> None:
    available = sorted(os.sched_getaffinity(0))
    for index, engine in enumerate(running):
        assert ask(engine, "/completion", 5).json()["timings"]["predicted_n"] == 5
        assert ask(engine, "/completion", 1, key="wrong").status_code == 401
        props = ask(engine, "/props").json()
        assert props["total_slots"] == engine.slots
        assert props["default_generation_settings"]["n_ctx"] == 256  # for each slot
        listed = ask(engine, "/v1/models").text
        assert engine.model in listed and str(llama.find_model().parent) not in listed
        assert engine.pinned and engine.cores[0] == available[index % len(available)]
        threads = [thread.id for thread in psutil.Process(engine.pids[0]).threads()]
        assert {core for each in threads for core in os.sched_getaffinity(each)} == {*engine.cores}
    for process in processes(running):
        heard = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in heard} <= {"127.0.0.1"}


@pytest.mark.slow
def test_the_slowed_engine_works_no_more_than_its_share_behind_a_link_that_is_cut_and_mended(
    running: list[RunningEngine],
) -> None:
    remote = running[1]
    process = psutil.Process(remote.pids[0])
    asking = threading.Thread(target=ask, args=(remote, "/completion", 60))
    asking.start()
    begun_s, used_s = time.monotonic(), sum(process.cpu_times()[:2])
    seen = set()
    while asking.is_alive():
        seen.add(process.status())
        asking.join(0.0013)  # not a divisor of the cycle
    share = (sum(process.cpu_times()[:2]) - used_s) / (time.monotonic() - begun_s)
    assert psutil.STATUS_STOPPED in seen
    assert share < 0.6  # the processor cannot have worked more than it was let

    remote.drop_link()
    with pytest.raises(httpx.ConnectError):
        ask(remote, "/health")
    remote.restore_link()
    begun_s = time.monotonic()
    assert ask(remote, "/health").status_code == 200
    assert time.monotonic() - begun_s >= 0.04  # connect and request: two round trips of 20 ms


@pytest.mark.slow
def test_a_request_that_is_cancelled_is_given_up_by_its_engine_through_its_link_too(
    running: list[RunningEngine],
) -> None:
    engine, wanted = running[1], 200
    sending = sender(engine, REMOTE, wanted)

    def counted(what: str) -> float:
        """A number among the engine's own metrics."""
        text = ask(engine, "/metrics").text
        return float(re.findall(rf"^llamacpp:{what} (\S+)", text, re.MULTILINE)[0])

    async def cancelled() -> None:
        exchange = Exchange(clock)
        task = asyncio.create_task(sending.send(Prompt(0, "Rivers"), exchange))
        async with asyncio.timeout(LIMIT_S):
            while not exchange.token_ms:  # noqa: ASYNC110 - the provider has no event for it
                await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sending.aclose()

    before = counted("tokens_predicted_total")
    asyncio.run(cancelled())
    until_s = time.monotonic() + LIMIT_S
    while counted("requests_processing"):
        assert time.monotonic() < until_s
        time.sleep(0.02)
    assert counted("tokens_predicted_total") - before < wanted


@pytest.mark.slow
def test_a_bare_engine_is_several_that_all_work_and_end_together() -> None:
    bare = ProviderSettings(name="bare", engine="bare", slots=3, threads=2, takes_turns=True)
    queueing = ProviderSettings(name="queueing", engine="queueing", refuses=True, takes_turns=True)

    async def statuses(engine: RunningEngine, settings: ProviderSettings, count: int) -> list[Any]:
        sending = sender(engine, settings, 4)
        tasks = [sending.send(Prompt(0, "Rivers"), Exchange(clock)) for _ in range(count)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await sending.aclose()
        return [getattr(outcome, "status", outcome) for outcome in outcomes]

    def used_s(processes: list[psutil.Process]) -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in processes]

    with engine_pool([bare, queueing], context_tokens=64) as (several, single):
        assert (len(several.pids), len(single.pids), several.turns) == (3, 1, 2)
        left = [psutil.Process(pid) for pid in several.pids + single.pids]
        before_s = used_s(left[:3])
        assert asyncio.run(statuses(several, bare, 4)) == [None] * 4
        assert all(map(float.__gt__, used_s(left[:3]), before_s))
        assert asyncio.run(statuses(single, queueing, 2)) == [None, 503]  # it is full
        left[1].kill()  # one of the three: the provider is no longer what it was
        assert all_gone(left[:3])
        with pytest.raises(EngineError, match=r"bare.*SIGKILL"):
            several.check()
        if sys.platform == "linux":  # which alone ends a child with its parent, the keeper
            psutil.Process(left[3].ppid()).kill()
            assert all_gone(left[3:])
            with pytest.raises(EngineError, match="queueing"):
                single.check()
    assert not any(each.is_running() for each in left)  # at once: they were reaped


PARENT = """
import json, psutil, sys
from poclib.engines.pool import engine_pool
from poclib.parameters import Link, ProviderSettings
remote = ProviderSettings(name="remote", speed=0.5, link=Link(round_trip_ms=20))
with engine_pool([ProviderSettings(name="local"), remote], 64) as both:
    pids = [pid for engine in both for pid in engine.pids]
    print(json.dumps(pids + [psutil.Process(pid).ppid() for pid in pids]), flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_parent_is_struck(blow: signal.Signals) -> None:
    """The signal goes to the parent's whole group, as Ctrl-C in a terminal does."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        start_new_session=True,
        # Whoever started these tests may have had it ignored, as a shell does behind its back.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as parent:
        assert parent.stdout is not None
        left = [psutil.Process(pid) for pid in json.loads(parent.stdout.readline())]
        assert len(left) == 4
        left[0].suspend()  # it cannot hear that it is to end
        os.killpg(parent.pid, blow)
        parent.wait(LIMIT_S)
        assert all_gone(left)
