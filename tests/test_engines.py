"""The embedded pool: who is chosen, what each engine is told, and that nothing outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

import poclib
from poclib.engines import keeper, llama, pool
from poclib.engines.pool import Ports, RunningEngine, engine_pool
from poclib.errors import EngineError, Rejected
from poclib.measure.pool import open_pool
from poclib.parameters import Link, Parameters, ProviderSettings
from poclib.providers import Embedded
from poclib.records import Exchange, Prompt

LIMIT_S = 30.0
LOCAL = ProviderSettings(name="local", slots=2)
REMOTE = ProviderSettings(name="remote", speed=0.5, slots=3, link=Link(round_trip_ms=20))

# A llama-server without a model: enough of it to see what it was told, and to misbehave.
PRETENDER = """
import http.server, json, os, signal, sys
if "--version" in sys.argv: print("version: 4321 (abc)"); sys.exit()
if "--help" in sys.argv: print("--metrics"); sys.exit()
if {mood!r} == "lacks an instruction": os.kill(os.getpid(), signal.SIGILL)
if {mood!r} == "will not start": sys.exit("cannot load the model")
fails = {mood!r} == "fails at the first token"
key = os.environ["LLAMA_API_KEY"]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.tell(200, {{"argv": sys.argv, "variables": list(os.environ)}})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        right = self.headers["Authorization"] == "Bearer " + key
        self.tell(500 if fails else 200 if right else 401, {{"content": "1"}})
    def tell(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status); self.send_header("Content-Length", str(len(text)))
        self.end_headers(); self.wfile.write(text)
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def pretender(folder: Path, mood: str = "") -> str:
    path, script = folder / "llama-server", folder / "pretender.py"
    script.write_text(PRETENDER.format(mood=mood))
    # A "#!" line could not name an interpreter whose path holds a space.
    path.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(script))} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def ask(engine: RunningEngine, path: str, body: object = None, key: str = "") -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(engine.url).netloc, timeout=LIMIT_S)
    try:
        headers = {"Authorization": f"Bearer {key or engine.api_key}"}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, text, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def complete(engine: RunningEngine, tokens: int, key: str = "") -> tuple[int, Any]:
    body = {"prompt": "Rivers", "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
    return ask(engine, "/completion", body, key)


def processes(running: list[RunningEngine]) -> list[psutil.Process]:
    """The engines and their keepers."""
    engines = [psutil.Process(pid) for engine in running for pid in engine.pids]
    return engines + [parent for one in engines if (parent := one.parent()) is not None]


def all_gone(which: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(which, timeout=LIMIT_S)[1]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file that no real engine needs to read."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setenv("POCLIB_MODEL", str(path))
    return path


# ---- without a real engine -------------------------------------------------------------------


@pytest.mark.parametrize(
    "mood, told",
    [
        ("will not start", r"\$POCLIB_LLAMA_SERVER.*code 1.*cannot load the model"),
        ("lacks an instruction", r"\$POCLIB_LLAMA_SERVER.*SIGILL"),
        ("fails at the first token", r"\$POCLIB_LLAMA_SERVER.*HTTP 500"),
        ("is not there", r"\$POCLIB_LLAMA_SERVER names"),
        ("is for another machine", r"\$POCLIB_LLAMA_SERVER.*it cannot be started"),
    ],
)
def test_an_engine_named_by_the_variable_is_the_only_one_that_is_tried(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, mood: str, told: str
) -> None:
    named = Path(pretender(tmp_path, mood))
    if mood == "is not there":
        named.unlink()
    if mood == "is for another machine":
        named.write_bytes(b"\0another machine's format")
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", str(named))
    with pytest.raises(EngineError, match=told) as error, engine_pool([LOCAL], 64):
        pass
    assert "xllamacpp" not in str(error.value) and "Traceback" not in str(error.value)


def test_an_engine_that_needs_another_processor_is_passed_over_and_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    named = Path(pretender(tmp_path))
    (tmp_path / "broken").mkdir()
    broken = Path(pretender(tmp_path / "broken", "lacks an instruction"))
    builds = [llama.Build("broken b1", broken), llama.Build("whole b2", named)]
    monkeypatch.setattr(llama, "builds", lambda: iter(builds))
    with engine_pool([LOCAL, REMOTE], 64) as running:
        assert [one.engine for one in running] == ["whole b2"] * 2
    monkeypatch.setattr(llama, "builds", lambda: iter(builds[:1]))
    with pytest.raises(EngineError, match=r"broken b1.*local.*SIGILL"), engine_pool([LOCAL], 64):
        pass
    monkeypatch.setattr(llama, "builds", lambda: iter(()))
    with pytest.raises(EngineError, match=r"run \./run-poc\.sh"), engine_pool([LOCAL], 64):
        pass


def test_engines_are_offered_in_order_and_named_without_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.delenv("POCLIB_LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    pretender(tmp_path)
    labels = [build.label for build in llama.builds()]
    assert labels[0] == "llama-server b4321 (PATH)" and labels[-1].startswith("xllamacpp ")
    assert not any("/" in label for label in labels)


def test_each_engine_is_told_what_its_provider_asks_for_and_no_key_is_on_a_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", pretender(tmp_path))
    monkeypatch.setenv("LLAMA_ARG_CACHE_REUSE", "7")
    unbatched = ProviderSettings(name="unbatched", slots=3, threads=2, batching=False)
    with engine_pool([LOCAL, unbatched], context_tokens=100) as (local, other):
        assert local.engine == "llama-server b4321 ($POCLIB_LLAMA_SERVER)"
        assert (other.slots, other.model) == (3, "tiny")
        seen = ask(other, "/health")[1]
        argv = seen["argv"]
        assert "LLAMA_ARG_CACHE_REUSE" not in seen["variables"]
        told = dict(itertools.pairwise(argv))
        assert told["--host"] == "127.0.0.1"
        assert (told["--parallel"], told["--ctx-size"]) == ("3", "300")
        assert (told["--threads"], told["--threads-batch"]) == ("2", "2")
        assert "--no-cont-batching" in argv and "--metrics" in argv
        assert "--cache-ram" not in argv  # this build does not list it
        assert complete(local, 1)[0] == 200 and complete(local, 1, key="wrong")[0] == 401
        for process in processes([local, other]):
            assert not {local.api_key, other.api_key} & set(process.cmdline())
        assert local.api_key not in repr(local)


def test_an_engine_that_dies_by_itself_is_named_and_the_rest_still_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", pretender(tmp_path))
    with engine_pool([LOCAL, REMOTE], context_tokens=64) as running:
        left = processes(running)
        left[1].kill()
        assert all_gone([left[1], left[3]])  # its keeper ends with it
        with pytest.raises(EngineError, match=r"remote.*SIGKILL"):
            running[1].restore_link()
        running[0].check()
        with pytest.raises(EngineError, match=r"local.*no link"):
            running[0].drop_link()
    assert all_gone(left)


def test_a_port_that_was_taken_meanwhile_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken, free_port = stranger.getsockname()[1], keeper._free_port
        ports = iter([taken])
        monkeypatch.setattr(keeper, "_free_port", lambda: next(ports, None) or free_port())
        config = {
            "command": [pretender(tmp_path), "--port", "{port}"],
            "environment": {"LLAMA_API_KEY": "key"},
            **{"engines": 1, "key": "key", "speed": 1.0, "ready_s": LIMIT_S},
            **dict.fromkeys(("first_line", "cores", "turn", "link")),
        }
        kept = keeper.Keeper(config)
        try:
            assert kept.start(lambda: False)["ports"] != [taken]
        finally:
            kept.end()


@pytest.mark.parametrize(
    "asked, told",
    [
        ({"core": 100_000}, "far asks for core 100000"),
        ({"cores": 1000}, "far asks for more cores"),
        ({"model": "llama3"}, "far asks for model llama3.*tiny"),
    ],
)
def test_what_this_machine_does_not_have_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, model: Path, asked: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    settings = ProviderSettings(name="far", **asked)
    with pytest.raises(EngineError, match=told), engine_pool([settings], 64):
        pass


def test_the_model_is_found_or_its_absence_told(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    assert llama.find_model() == model.resolve()
    # sha256 of b"weights", computed by coreutils' sha256sum
    assert llama.model_digest(model).startswith("9a129038d9a00aed")
    monkeypatch.setenv("POCLIB_MODEL", str(model) + "-not")
    with pytest.raises(EngineError, match=r"\$POCLIB_MODEL"):
        llama.find_model()


@pytest.mark.parametrize(
    "speed, turn, share", [(0.2, None, 0.2), (0.9, None, 0.9), (1, (1, 2), 0.5)]
)
def test_a_slowed_process_runs_for_the_share_that_was_asked(
    speed: float, turn: tuple[int, int] | None, share: float
) -> None:
    told: list[tuple[float, bool]] = []

    class Process:
        def send_signal(self, which: signal.Signals) -> None:
            told.append((time.monotonic(), which == signal.SIGCONT))

    slower = keeper.Slower([Process()], speed, turn)  # type: ignore[list-item]
    slower.start()
    time.sleep(1.5)
    slower.end()
    assert told[-1][1], "it is left running"
    ran_s = sum(end - begin for (begin, runs), (end, _) in itertools.pairwise(told) if runs)
    assert ran_s / (told[-1][0] - told[0][0]) == pytest.approx(share, abs=0.1)


def test_each_request_has_a_process_of_its_own_as_long_as_there_are_enough() -> None:
    ports = Ports(["a", "b"], slots=2)
    with contextlib.ExitStack() as held:
        assert {held.enter_context(ports.take()) for _ in range(2)} == {"a", "b"}
        with ports.take() as third:  # waits in an engine, as in any server
            assert third in ("a", "b")
            with ports.take() as fourth:
                assert {third, fourth} == {"a", "b"}
    with pytest.raises(asyncio.CancelledError), ports.take():
        raise asyncio.CancelledError
    with ports.take() as one, ports.take() as other:  # those that ended are free again
        assert {one, other} == {"a", "b"}


def test_where_it_refuses_a_request_beyond_the_slots_is_a_busy_server_s_answer() -> None:
    settings = ProviderSettings(name="full", refuses=True, slots=1)
    sender = Embedded(settings, Parameters(providers=[settings]), "http://127.0.0.1:9")
    sender.ports = Ports(["http://127.0.0.1:9"], slots=1, refuses=True)
    exchange = Exchange(time.monotonic)
    with sender.ports.take(), pytest.raises(Rejected, match="full: HTTP 503") as error:
        asyncio.run(sender.send(Prompt(0, "Rivers"), exchange))
    assert (error.value.status, error.value.retry_after_s) == (503, 1.0)
    assert error.value.temporary and exchange.marks.keys() == {"start_ms", "end_ms"}


# ---- with real engines -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama-server", "xllamacpp"])
def running(request: pytest.FixtureRequest) -> Iterator[list[RunningEngine]]:
    """A pool of two real engines, of each kind that runs here."""
    builds = [build for build in llama.builds() if request.param in build.label]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "builds", lambda: iter(builds))
        try:
            with engine_pool([LOCAL, REMOTE], context_tokens=256) as both:
                yield both
        except EngineError as error:
            pytest.skip(f"no {request.param} runs here: {error}")


@pytest.mark.slow
def test_real_engines_answer_with_the_key_and_only_with_it(running: list[RunningEngine]) -> None:
    for engine in running:
        status, answer = complete(engine, 5)
        assert status == 200 and answer["timings"]["predicted_n"] == 5
        assert complete(engine, 1, key="wrong")[0] == 401
        status, props = ask(engine, "/props")
        assert props["total_slots"] == engine.slots
        assert props["default_generation_settings"]["n_ctx"] == 256  # for each slot
        listed = json.dumps(ask(engine, "/v1/models")[1])
        assert engine.model in listed and str(llama.find_model().parent) not in listed


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="cannot pin here")
def test_each_engine_keeps_to_its_own_core(running: list[RunningEngine]) -> None:
    available = psutil.Process().cpu_affinity()
    for index, engine in enumerate(running):
        assert engine.pinned and engine.cores[0] == available[index % len(available)]
        threads = [thread.id for thread in psutil.Process(engine.pids[0]).threads()]
        assert threads and all(os.sched_getaffinity(each) == set(engine.cores) for each in threads)


@pytest.mark.slow
def test_real_engines_listen_on_loopback_only(running: list[RunningEngine]) -> None:
    for process in processes(running):
        heard = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in heard} <= {"127.0.0.1"}


@pytest.mark.slow
def test_the_slowed_engine_is_stopped_and_works_no_more_than_its_share(
    running: list[RunningEngine],
) -> None:
    process = psutil.Process(running[1].pids[0])
    asking = threading.Thread(target=complete, args=(running[1], 60))
    asking.start()
    begun_s, used_s = time.monotonic(), sum(process.cpu_times()[:2])
    seen = []
    while asking.is_alive():
        seen.append(process.status() == psutil.STATUS_STOPPED)
        asking.join(0.0013)  # not a divisor of the cycle
    share = (sum(process.cpu_times()[:2]) - used_s) / (time.monotonic() - begun_s)
    assert any(seen)
    assert share < 0.6  # the processor cannot have worked more than it was let


@pytest.mark.slow
def test_the_link_of_a_real_engine_delays_is_cut_and_mended(
    running: list[RunningEngine],
) -> None:
    remote = running[1]

    def health_ms() -> float:
        begun_s = time.monotonic()
        assert ask(remote, "/health")[0] == 200
        return (time.monotonic() - begun_s) * 1000

    assert health_ms() >= 40  # connect and request: two round trips of 20 ms
    remote.drop_link()
    with pytest.raises(ConnectionRefusedError):
        ask(remote, "/health")
    remote.restore_link()
    assert health_ms() >= 40


def counted(engine: RunningEngine, what: str) -> float:
    """A number among the engine's own metrics."""
    connection = http.client.HTTPConnection(urlsplit(engine.url).netloc, timeout=LIMIT_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {engine.api_key}"})
        lines = connection.getresponse().read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"llamacpp:{what} "))


@pytest.mark.slow
def test_a_request_that_is_cancelled_is_given_up_by_its_engine(
    running: list[RunningEngine],
) -> None:
    """Its connection is closed, and the engine, through its link too, stops computing for it."""
    wanted = 200

    async def cancelled(engine: RunningEngine, settings: ProviderSettings) -> None:
        asked = Parameters(providers=[settings], max_tokens=wanted)
        sender = Embedded(settings, asked, engine.url, engine.api_key)
        exchange = Exchange(lambda: time.monotonic() * 1000)
        sending = asyncio.create_task(sender.send(Prompt(0, "Rivers"), exchange))
        async with asyncio.timeout(LIMIT_S):
            while not exchange.token_ms:  # noqa: ASYNC110 - the provider has no event for it
                await asyncio.sleep(0.01)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await sender.aclose()

    for engine, settings in zip(running, (LOCAL, REMOTE), strict=True):
        before = counted(engine, "tokens_predicted_total")
        asyncio.run(cancelled(engine, settings))
        until_s = time.monotonic() + LIMIT_S
        while counted(engine, "requests_processing") and time.monotonic() < until_s:
            time.sleep(0.02)
        assert counted(engine, "requests_processing") == 0
        assert counted(engine, "tokens_predicted_total") - before < wanted


BARE = ProviderSettings(name="bare", engine="bare", slots=3, threads=2, takes_turns=True)
QUEUEING = ProviderSettings(name="queueing", engine="queueing", refuses=True, takes_turns=True)


@pytest.mark.slow
def test_a_bare_engine_is_several_and_all_are_reaped() -> None:
    asked = Parameters(providers=[BARE, QUEUEING], max_tokens=4, context_tokens=64)
    with engine_pool(asked.providers, context_tokens=64) as both:
        bare, queueing = both
        assert (len(bare.pids), len(queueing.pids), bare.turns) == (3, 1, 2)
        left = [psutil.Process(pid) for pid in bare.pids + queueing.pids]
        assert complete(bare, 1, key="wrong")[0] == 401

        async def answered(sender: Any, count: int) -> list[str]:
            exchanges = [Exchange(lambda: time.monotonic() * 1000) for _ in range(count)]
            sending = [sender.send(Prompt(0, "Rivers"), exchange) for exchange in exchanges]
            outcomes = await asyncio.gather(*sending, return_exceptions=True)
            await sender.aclose()
            return [type(outcome).__name__ for outcome in outcomes]

        with open_pool(asked, running={one.name: one for one in both}) as opened:
            (first, facts), (second, _) = opened
            assert facts["slots"] == 3
            busy_s = [sum(process.cpu_times()[:2]) for process in left[:3]]
            assert asyncio.run(answered(first, 4)) == ["NoneType"] * 4
            used_s = [sum(process.cpu_times()[:2]) for process in left[:3]]
            assert all(used > busy for used, busy in zip(used_s, busy_s, strict=True))
            assert asyncio.run(answered(second, 2)) == ["NoneType", "Rejected"]
        left[1].kill()  # one of the three: the provider is no longer what it was
        assert all_gone(left[:3])
        with pytest.raises(EngineError, match=r"bare.*SIGKILL"):
            bare.check()
    assert not any(each.is_running() for each in left)


@pytest.mark.slow
@pytest.mark.parametrize("way_out", ["normal", "exception", "interrupt", "suspended"])
def test_no_process_is_left_on_any_way_out(way_out: str) -> None:
    raised = {"exception": ValueError, "interrupt": KeyboardInterrupt}.get(way_out)
    left: list[psutil.Process] = []
    try:
        with engine_pool([LOCAL, REMOTE], context_tokens=64) as both:
            left += processes(both)
            assert len(left) == 4 and all(each.is_running() for each in left)
            if way_out == "suspended":  # it cannot hear that it is to end
                os.kill(both[0].pids[0], signal.SIGSTOP)
            if raised:
                raise raised
            begun_s = time.monotonic()
        assert time.monotonic() - begun_s < pool._END_S, "no keeper had to be killed"
    except (ValueError, KeyboardInterrupt) as error:
        assert raised and isinstance(error, raised)
    assert not any(each.is_running() for each in left)  # at once: they were reaped


PARENT = """
import psutil, signal, sys
# Whoever started these tests may have had it ignored, as a shell does for what runs behind it.
signal.signal(signal.SIGINT, signal.default_int_handler)
from poclib.engines.pool import engine_pool
from poclib.parameters import Link, ProviderSettings
remote = ProviderSettings(name="remote", speed=0.5, link=Link(round_trip_ms=20))
with engine_pool([ProviderSettings(name="local"), remote], 64) as both:
    pids = [pid for engine in both for pid in engine.pids]
    print(*[p for pid in pids for p in (pid, psutil.Process(pid).ppid())], flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_parent_is_struck(blow: signal.Signals) -> None:
    """The signal goes to the parent's whole group, as Ctrl-C in a terminal does."""
    root = Path(poclib.__file__).resolve().parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        left = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(left) == 4
        os.killpg(parent.pid, blow)
        parent.wait(LIMIT_S)
        assert all_gone(left)


@pytest.mark.slow
def test_an_engine_dies_even_if_its_keeper_is_killed() -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux ends a child with its parent")
    with engine_pool([REMOTE], context_tokens=64) as running:
        left = processes(running)
        left[1].kill()
        assert all_gone(left)
        with pytest.raises(EngineError, match="remote"):
            running[0].drop_link()
