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

from poclib import engines, keeper, llama
from poclib.engines import (
    EngineChoice,
    RunningEngine,
    choose_engine,
    find_model,
    model_digest,
    pool,
)
from poclib.errors import EngineError
from poclib.providers import KINDS
from poclib.records import Exchange, Link, Parameters, Prompt, ProviderSettings

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
key = os.environ["LLAMA_API_KEY"]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.tell(200, {{"argv": sys.argv, "variables": list(os.environ)}})
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        right = self.headers["Authorization"] == "Bearer " + key
        self.tell(200 if right else 401, {{"content": "1"}})
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
    found = [psutil.Process(engine.pid) for engine in running]
    return found + [parent for one in found if (parent := one.parent()) is not None]


def all_gone(which: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(which, timeout=LIMIT_S)[1]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file that no real engine needs to read."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setenv("POCLIB_MODEL", str(path))
    return path


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A virtual environment's folder that remembers nothing yet."""
    path = tmp_path / "environment"
    path.mkdir()
    monkeypatch.setattr(sys, "prefix", str(path))
    return path


# ---- without a real engine -------------------------------------------------------------------


def test_an_engine_named_by_the_variable_that_is_not_there_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", str(tmp_path / "nowhere"))
    with pytest.raises(EngineError, match=r"\$POCLIB_LLAMA_SERVER"):
        choose_engine()


def test_an_engine_named_by_the_variable_that_does_not_start_is_no_reason_to_take_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", pretender(tmp_path, "will not start"))
    with pytest.raises(EngineError, match=r"\$POCLIB_LLAMA_SERVER.*code 1"):
        choose_engine()


def test_a_file_that_this_kind_of_machine_cannot_run_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    foreign = Path(pretender(tmp_path))
    foreign.write_bytes(b"\0another machine's format")
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", str(foreign))
    with pytest.raises(EngineError, match=r"\$POCLIB_LLAMA_SERVER.*it cannot be started"):
        choose_engine()


def test_an_engine_on_the_path_that_needs_another_processor_is_passed_over_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path, environment: Path
) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.delenv("POCLIB_LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    pretender(tmp_path, "lacks an instruction")
    choice = choose_engine()
    assert "b4321" not in choice.label
    assert "SIGILL" in choice.why
    assert str(tmp_path) not in choice.why and "\n" not in choice.why and "|" not in choice.why


def tried(outcome: str = "") -> list[str]:
    """The engines that a process tries which knows no more than the disk does."""
    labels = []

    def trial(choice: EngineChoice, model: Path) -> str:
        labels.append(choice.label)
        return outcome

    with contextlib.suppress(EngineError):  # where none is left
        llama.choose(trial)
    return labels


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """The only llama-server of this machine."""
    monkeypatch.delenv("POCLIB_LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(llama, "_WHEEL_MODULE", "no_such_module")
    return Path(pretender(tmp_path))


@pytest.mark.parametrize("outcome", ["", "it was ended by SIGILL"])
def test_what_one_process_found_out_about_an_engine_the_next_one_knows(
    environment: Path, on_path: Path, outcome: str
) -> None:
    assert tried(outcome) == ["llama-server b4321 (PATH)"]
    assert tried(outcome) == []
    assert str(on_path.parent) not in "".join(f.read_text() for f in environment.iterdir())


def test_an_outcome_that_may_change_is_not_kept(environment: Path, on_path: Path) -> None:
    assert tried("it ended by itself with code 127") != []
    assert tried() != []


@pytest.mark.parametrize("changed", ["engine", "model", "processor"])
def test_another_build_model_or_processor_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, environment: Path, on_path: Path, model: Path, changed: str
) -> None:
    assert tried() != []
    if changed == "processor":
        monkeypatch.setattr("platform.processor", lambda: "another")
    else:
        os.utime(on_path if changed == "engine" else model, (1, 1))
    assert tried() != []
    assert tried() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": 1}', "\xff"])
def test_a_damaged_memory_costs_one_more_trial(environment: Path, on_path: Path, text: str) -> None:
    (environment / llama._TRIALS_FILE).write_text(text, encoding="latin-1")
    assert tried() != []
    assert tried() == []


@pytest.mark.parametrize("place", ["a file", "no virtual environment"])
def test_where_nothing_can_be_kept_an_engine_is_tried_each_time(
    monkeypatch: pytest.MonkeyPatch, environment: Path, on_path: Path, place: str
) -> None:
    prefix = str(on_path) if place == "a file" else sys.base_prefix
    monkeypatch.setattr(sys, "prefix", prefix)
    assert tried() == tried() != []


def test_an_engine_named_by_the_variable_is_tried_each_time(
    monkeypatch: pytest.MonkeyPatch, environment: Path, on_path: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", str(on_path))
    assert tried() == tried() == ["llama-server b4321 ($POCLIB_LLAMA_SERVER)"]
    assert list(environment.iterdir()) == []


def test_each_engine_is_told_what_its_provider_asks_for_and_no_key_is_on_a_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", pretender(tmp_path))
    monkeypatch.setenv("LLAMA_ARG_CACHE_REUSE", "7")
    unbatched = ProviderSettings(name="unbatched", slots=3, threads=2, batching=False)
    with pool([LOCAL, unbatched], context_tokens=100) as (local, other):
        assert local.engine == "llama-server b4321 ($POCLIB_LLAMA_SERVER)"
        assert (other.slots, other.threads, other.model) == (3, 2, "tiny")
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
    with pool([LOCAL, REMOTE], context_tokens=64) as running:
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
        one = keeper.Keeper(
            {
                "command": [pretender(tmp_path), "--port", "{port}"],
                "environment": {"LLAMA_API_KEY": "key"},
                "first_line": None,
                "cores": None,
                "speed": 1.0,
                "link": None,
                "ready_s": LIMIT_S,
            }
        )
        try:
            assert one.start(lambda: False)["port"] != taken
        finally:
            one.end()


def test_a_core_that_is_not_there_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path
) -> None:
    monkeypatch.setenv("POCLIB_LLAMA_SERVER", pretender(tmp_path))
    far = ProviderSettings(name="far", core=100_000)
    with pytest.raises(EngineError, match="far asks for core 100000"), pool([far], 64):
        pass


def test_a_model_that_the_engines_do_not_have_is_refused_before_anything_starts(
    model: Path,
) -> None:
    other = ProviderSettings(name="other", model="llama3")
    with pytest.raises(EngineError, match=r"other asks for model llama3.*tiny"), pool([other], 64):
        pass


def test_the_model_is_found_or_its_absence_told(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    assert find_model() == model.resolve()
    # sha256 of b"weights", computed by coreutils' sha256sum
    assert model_digest(model).startswith("9a129038d9a00aed")
    monkeypatch.setenv("POCLIB_MODEL", str(model) + "-not")
    with pytest.raises(EngineError, match=r"\$POCLIB_MODEL"):
        find_model()


# ---- with real engines -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["llama-server", "xllamacpp"])
def running(request: pytest.FixtureRequest) -> Iterator[list[RunningEngine]]:
    """A pool of two real engines, of each kind that runs here."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "xllamacpp":
            patch.delenv("POCLIB_LLAMA_SERVER", raising=False)
            patch.setattr(llama, "_found", lambda on_path: iter(()))
            llama._choose.cache_clear()
        elif (choice := choose_engine()).binary is None:
            pytest.skip(f"no llama-server runs here: {choice.why}")
        with pool([LOCAL, REMOTE], context_tokens=256) as both:
            assert request.param in both[0].engine
            yield both
    llama._choose.cache_clear()


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
        assert engine.model in listed and str(find_model().parent) not in listed


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(psutil.Process, "cpu_affinity"), reason="cannot pin here")
def test_each_engine_keeps_to_its_own_core(running: list[RunningEngine]) -> None:
    available = psutil.Process().cpu_affinity()
    for index, engine in enumerate(running):
        assert engine.pinned and engine.core == available[index % len(available)]
        threads = [thread.id for thread in psutil.Process(engine.pid).threads()]
        assert threads and all(os.sched_getaffinity(each) == {engine.core} for each in threads)


@pytest.mark.slow
def test_real_engines_listen_on_loopback_only(running: list[RunningEngine]) -> None:
    for process in processes(running):
        heard = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in heard} <= {"127.0.0.1"}


@pytest.mark.slow
def test_the_slowed_engine_is_stopped_for_the_share_that_was_asked(
    running: list[RunningEngine],
) -> None:
    process = psutil.Process(running[1].pid)
    asking = threading.Thread(target=complete, args=(running[1], 60))
    asking.start()
    begun_s, used_s = time.monotonic(), sum(process.cpu_times()[:2])
    seen = []
    while asking.is_alive():
        seen.append(process.status() == psutil.STATUS_STOPPED)
        asking.join(0.0013)  # not a divisor of the cycle
    share = (sum(process.cpu_times()[:2]) - used_s) / (time.monotonic() - begun_s)
    assert 0.4 < sum(seen) / len(seen) < 0.6
    assert share < 0.6  # the processor cannot have worked more than it was let


@pytest.mark.slow
def test_the_link_of_a_real_engine_changes_while_it_runs(running: list[RunningEngine]) -> None:
    remote = running[1]

    def health_ms() -> float:
        begun_s = time.monotonic()
        assert ask(remote, "/health")[0] == 200
        return (time.monotonic() - begun_s) * 1000

    assert health_ms() >= 40  # connect and request: two round trips of 20 ms
    remote.set_link(Link(round_trip_ms=60))
    assert health_ms() >= 120
    remote.set_link(Link())
    assert min(health_ms() for _ in range(10)) < 120
    remote.drop_link()
    with pytest.raises(ConnectionRefusedError):
        ask(remote, "/health")
    remote.restore_link()
    remote.set_link(REMOTE.link)
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
        sender = KINDS["embedded"](settings, asked, engine.url, engine.api_key)
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
def test_a_bare_engine_is_several_behind_one_address_and_all_are_reaped() -> None:
    left: list[psutil.Process] = []
    with pool([BARE, QUEUEING], context_tokens=64) as (bare, queueing):
        assert (len(bare.pids), len(queueing.pids), bare.turns) == (3, 1, 2)
        left = [psutil.Process(pid) for pid in bare.pids + queueing.pids]
        assert [ask(one, "/props")[1]["total_slots"] for one in (bare, queueing)] == [3, 1]
        assert complete(bare, 1, key="wrong")[0] == 401
        answers: list[tuple[int, Any]] = []
        asking = [
            threading.Thread(target=lambda: answers.append(complete(bare, 4))) for _ in range(4)
        ]
        for each in asking:
            each.start()
        for each in asking:
            each.join(LIMIT_S)
        assert [status for status, _ in answers] == [200] * 4
        bare.set_speed(0.5)
        assert complete(bare, 1)[0] == 200
        left[1].kill()  # one of the three: the provider is no longer what it was
        assert all_gone(left[:3])
        with pytest.raises(EngineError, match=r"bare.*SIGKILL"):
            bare.set_speed(1.0)
    assert not any(each.is_running() for each in left)


@pytest.mark.slow
@pytest.mark.parametrize("way_out", ["normal", "exception", "interrupt", "suspended"])
def test_no_process_is_left_on_any_way_out(way_out: str) -> None:
    raised = {"exception": ValueError, "interrupt": KeyboardInterrupt}.get(way_out)
    left: list[psutil.Process] = []
    try:
        with pool([LOCAL, REMOTE], context_tokens=64) as both:
            left += processes(both)
            assert len(left) == 4 and all(each.is_running() for each in left)
            if way_out == "suspended":  # it cannot hear that it is to end
                os.kill(both[0].pid, signal.SIGSTOP)
            if raised:
                raise raised
            begun_s = time.monotonic()
        assert time.monotonic() - begun_s < engines._END_S, "no keeper had to be killed"
    except (ValueError, KeyboardInterrupt) as error:
        assert raised and isinstance(error, raised)
    assert not any(each.is_running() for each in left)  # at once: they were reaped


PARENT = """
import psutil, select, sys
from poclib.engines import pool
from poclib.providers import KINDS
from poclib.records import Exchange, Link, Parameters, Prompt, ProviderSettings
remote = ProviderSettings(name="remote", speed=0.5, link=Link(round_trip_ms=20))
with pool([ProviderSettings(name="local"), remote], 64) as both:
    print(*[p for e in both for p in (e.pid, psutil.Process(e.pid).ppid())], flush=True)
    # A signal that comes just before a read without a limit begins is not heard in it.
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_when_the_parent_is_struck(blow: signal.Signals) -> None:
    """The signal goes to the parent's whole group, as Ctrl-C in a terminal does."""
    root = Path(engines.__file__).resolve().parent.parent
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
    with pool([REMOTE], context_tokens=64) as running:
        engine, keeper = processes(running)
        keeper.kill()
        assert all_gone([engine, keeper])
        with pytest.raises(EngineError, match="remote"):
            running[0].set_link(Link())
