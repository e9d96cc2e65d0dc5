"""Every fault of a provider, made to happen, and what a person then sees: writes FAULTS.md.

    python benchmarks/faults.py [--engines]

A pool of two servers on loopback sockets, of which `bad` has the fault from its first prompt on
and `good` is well; six prompts, split evenly, one retry. Time limits are shortened so that the
table takes seconds to make; a limit that ended the wait is named with its default. With --engines
real engines are killed and suspended too. As root on Linux it runs in a network of its own, in
which the system itself knows no way to the host and nobody who knows the name; elsewhere those
two answers of the system are played.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from replay import Answer, Replay, recorded  # noqa: E402

from poclib import report  # noqa: E402
from poclib.engines.pool import engine_pool  # noqa: E402
from poclib.errors import RunFailed  # noqa: E402
from poclib.measure import experiment  # noqa: E402
from poclib.measure.attempt import Policy, Rules  # noqa: E402
from poclib.measure.dispatch import run_arm  # noqa: E402
from poclib.measure.strategies import STRATEGIES  # noqa: E402
from poclib.parameters import Parameters, ProviderSettings  # noqa: E402
from poclib.providers import KINDS, Provider, connection  # noqa: E402
from poclib.recording import ReportFile  # noqa: E402
from poclib.records import Arm, Prompt, Request  # noqa: E402
from poclib.showing.format import many, safe, table  # noqa: E402

TARGET = HERE.parent / "FAULTS.md"
PROMPTS = 6
NOWHERE = "10.66.77.88"
# The limits here; those a person has by default are in `Parameters`.
LIMITS = {
    "connect_timeout_s": 0.4,
    "first_token_timeout_s": 0.5,
    "between_tokens_timeout_s": 0.3,
    "request_timeout_s": 20.0,
}
STREAM = recorded("ollama/chat_stream")
FIRST_LINE = STREAM.body.split(b"\n")[0] + b"\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\n"
STATUSES = {
    400: "bad request, which no other provider is asked again",
    401: "unauthorized",
    404: "no such path",
    408: "request timeout",
    429: "too many requests",
    499: "client closed request",
    500: "internal error",
    502: "bad gateway",
    503: "service unavailable",
    504: "gateway timeout",
}


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


END = {"message": {"content": ""}, "done": True, "done_reason": "length"}
FAULTS: dict[str, Answer] = {
    "reset instead of an answer": Answer(ending="reset"),
    "closed in the middle of the headers": Answer(HEAD, ending="raw"),
    "closed after the headers": Answer(HEAD + b"content-length: 99\r\n\r\n", ending="raw"),
    "reset in the middle of the answer": Answer(FIRST_LINE, ending="cut"),
    "silence before the first byte": Answer(ending="silent"),
    "silence in the middle of the answer": Answer(FIRST_LINE, ending="hang"),
    "a byte at a time, for ever": Answer(b"", ending="drip"),
    "a body longer than is read": Answer(b"x" * 2**20 + b"yy"),
    "invalid JSON": Answer(b'{"message": {"content"\n'),
    "another content type: a web page": Answer(b"<html>Welcome</html>"),
    "JSON of another kind": Answer(b'{"hello": "world"}\n'),
    "an error line inside a 200 stream": Answer(FIRST_LINE + lines({"error": "out of memory"})),
    "a stream without its end": Answer(FIRST_LINE, ending="close"),
    "an empty answer": Answer(lines(END)),
    "the model unloaded in mid-run": Answer(lines({"error": "model 'smollm2' not found"}), 404),
    **{
        f"HTTP {status}": Answer(lines({"error": words}), status)
        for status, words in STATUSES.items()
    },
}


def network_of_its_own() -> list[str]:
    """What to put before a command, so that only this machine is there; empty if it cannot be."""
    script = f'ip link set lo up && ip route add unreachable {NOWHERE} && exec "$@"'
    prefix = ["unshare", "--net", "sh", "-c", script, "sh"]
    if not all(map(shutil.which, ("unshare", "ip"))):
        return []
    tried = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    return [] if tried.returncode else prefix


@contextlib.contextmanager
def no_route() -> Iterator[None]:
    """No address is reachable: the system's own answer, without a packet to anybody."""

    async def refuse(*_: Any) -> None:
        raise OSError(113, os.strerror(113))

    with mock.patch.object(asyncio.SelectorEventLoop, "sock_connect", refuse):
        yield


@contextlib.contextmanager
def unknown_name() -> Iterator[None]:
    """No name is known, as the system's resolver says it."""

    def fail(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with mock.patch.object(socket, "getaddrinfo", fail):
        yield


@dataclass
class Row:
    """One line of the table; `measured_s` is from the request's start to its end."""

    fault: str
    seen: str
    kept: str
    noticed: str
    measured_s: float | None

    def cells(self) -> list[str]:
        """Escaped for a Markdown table, as the words are the servers' own."""
        took = "-" if self.measured_s is None else f"{1000 * self.measured_s:.0f} ms"
        seen = safe(self.seen).replace("|", "/").replace("<", "&lt;")
        return [self.fault, seen, self.kept, self.noticed, took]


def provider(
    name: str, url: str, kind: Any = "ollama", key: str | None = None, model: str | None = "smollm2"
) -> Provider:
    settings = ProviderSettings(name=name, kind=kind, model=model, api="chat")
    asked: dict[str, Any] = {**LIMITS, "max_tokens": 8}
    return KINDS[kind](settings, Parameters(providers=[settings], **asked), url, key)


def rules() -> Rules:
    given = {k: v for k, v in LIMITS.items() if k != "connect_timeout_s"}
    return Rules(retries=1, policy=Policy(backoff_s=0.0), **given)  # type: ignore[arg-type]


async def arm(pool: list[Provider], on_done: Callable[[Request], None] = lambda _: None) -> Arm:
    try:
        return await run_arm(
            "strategy",
            STRATEGIES["serial-per-provider"],
            [Prompt(i, "Say hello.") for i in range(PROMPTS)],
            pool,
            {p.name: 1 for p in pool},
            {p.name: 100.0 for p in pool},
            lambda: time.perf_counter() * 1000,
            rules(),
            on_done,
        )
    finally:
        for one in pool:
            await one.aclose()


def row(fault: str, found: Arm) -> Row:
    """What the rows of the arm tell of the fault."""
    answered = [r for r in found.requests if r.outcome == "ok"]
    failed = [r for r in found.requests if r.outcome == "failed"]
    assert len({r.prompt for r in answered}) == len(answered), "no answer is doubled"
    kept = f"{len(answered)} of {PROMPTS} prompts answered"
    first = failed[0]
    rescued = sum(r.role == "retry" for r in answered)
    kept += f", {rescued} of them by the other provider; {len(failed)} failed rows"
    end_ms, start_ms = first.marks.end_ms, first.marks.start_ms
    took_s = (end_ms - start_ms) / 1000 if end_ms is not None and start_ms is not None else 0.0
    limits = [k for k in LIMITS if k in (first.error or "")]
    if "no connection within" in (first.error or ""):
        limits = ["connect_timeout_s"]
    noticed = "at once"
    if limits:
        default = Parameters.model_fields[limits[0]].default
        noticed = f"after `{limits[0]}` ({default:g} s by default)"
    return Row(fault, first.error or "", kept, noticed, took_s)


def one_fault(fault: str, answer: Answer) -> Row:
    async def story() -> Row:
        async with Replay(STREAM) as well, Replay(answer) as ill:
            return row(fault, await arm([provider("bad", ill.url), provider("good", well.url)]))

    return asyncio.run(story())


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


def no_connection(fault: str, url: str, meanwhile: Any = contextlib.nullcontext) -> Row:
    """`bad` is at `url`; the good one is on a warm connection before the trouble begins."""

    async def story() -> Row:
        async with Replay(STREAM) as well:
            good = provider("good", well.url)
            await good.probe(lambda: time.perf_counter() * 1000)
            with meanwhile():
                return row(fault, await arm([provider("bad", url), good]))

    return asyncio.run(story())


def faults(alone: bool = False) -> list[Row]:
    """The whole table but the real engines, in seconds; `alone`: in a network of its own."""
    no_way, no_name = (contextlib.nullcontext,) * 2 if alone else (no_route, unknown_name)
    port = free_port()
    plain = f"127.0.0.1:{port}"
    rows = [
        no_connection("connection refused", f"http://{plain}"),
        no_connection("host unreachable", f"http://{NOWHERE}:1", no_way),
        no_connection("name does not resolve", "http://box.lan:1", no_name),
    ]

    async def secure() -> Row:
        async with Replay(STREAM) as well, Replay(Answer(b"SSH-2.0\r\n", ending="raw")) as other:
            bad = provider("bad", other.url.replace("http", "https"))
            return row("TLS error", await arm([bad, provider("good", well.url)]))

    rows.append(asyncio.run(secure()))
    # They wait, most of the time.
    with mock.patch.object(connection, "MAX_BODY_BYTES", 2**20), ThreadPoolExecutor() as threads:
        rows += threads.map(one_fault, FAULTS, FAULTS.values())
    return [*rows, another_model()]


class Swapped(dict[str, Answer]):
    """A llama-server that somebody restarts with another model once `restarted` is set."""

    restarted = False

    def get(self, path: str, default: Any = None) -> Any:
        if path == "/v1/models" and self.restarted:
            models = json.loads(self[path].body)
            models["data"][0]["meta"]["n_params"] += 1
            return Answer(json.dumps(models).encode())
        return super().get(path, default)


def another_model() -> Row:
    """A run on two servers, one of which is restarted with another model in the second round."""
    answers = {
        "/health": recorded("llama-server/health"),
        "/v1/models": recorded("llama-server/models"),
        "/props": recorded("llama-server/props"),
        "/v1/chat/completions": recorded("llama-server/chat_stream"),
    }

    async def story() -> tuple[str, report.Report]:
        swapped = Swapped(answers)

        def restart(stage: str, *_: int) -> None:
            swapped.restarted = stage.startswith("round 2")

        async with Replay(swapped) as ill, Replay(answers) as well:
            pool = [provider("bad", ill.url, "llama-server", model=None)]
            pool.append(provider("good", well.url, "llama-server", model=None))
            asked = pool[0].parameters.model_copy(
                update={"providers": [p.settings for p in pool], "prompts": PROMPTS, "rounds": 2}
            )
            run = experiment.Run(asked, [(p, {}) for p in pool], restart)
            with tempfile.TemporaryDirectory() as folder:
                log = ReportFile(Path(folder) / "x.jsonl")
                with log.open():
                    try:
                        await run.whole(log)
                    except RunFailed as error:
                        return str(error), report.load(Path(folder) / "x.jsonl")
            raise AssertionError("the other model was not noticed")

    seen, left = asyncio.run(story())
    rows = sum(len(arm.requests) for one in left.cut for arm in one.arms)
    kept = (
        f"{many(len(left.rounds), 'whole round')}, and {many(rows, 'row')} of the one that is cut"
    )
    return Row("restarted with another model", seen, kept, "at the end of the arm", None)


def real_engines(pause_s: float = 60.0) -> list[Row]:
    """Two real engines, of which one is killed or suspended after its first answer."""
    short = {"first_token_timeout_s": 2.0, "between_tokens_timeout_s": 1.0}
    as_given = {limit: Parameters.model_fields[limit].default for limit in short}
    killed = struck(signal.SIGKILL, short)
    stopped, paused = struck(signal.SIGSTOP, short), struck(signal.SIGSTOP, as_given, pause_s)
    return [
        row("an engine killed (-9)", killed),
        row("an engine suspended", stopped),
        late("an engine suspended for a minute", paused),
    ]


def late(fault: str, found: Arm) -> Row:
    """What is told of one request that took far longer than the others, and did not fail."""
    walls = sorted(r.wall_ms or 0.0 for r in found.requests if r.provider == "bad")
    assert all(r.outcome == "ok" for r in found.requests) and walls[-1] > 3 * median(walls)
    seen = "a warning: a request took over 3 times the median of its provider and arm"
    default = Parameters.model_fields["first_token_timeout_s"].default
    noticed = f"on reading; it fails after `first_token_timeout_s` ({default:g} s by default)"
    kept = f"{len(found.requests)} of {PROMPTS} prompts answered, all rows"
    return Row(fault, seen, kept, noticed, walls[-1] / 1000)


def struck(blow: signal.Signals, limits: dict[str, float], pause_s: float | None = None) -> Arm:
    """The arm in which `bad` gets the blow after its first answer, and goes on after a pause."""
    settings = [ProviderSettings(name=name, slots=1) for name in ("bad", "good")]
    with engine_pool(settings, 256) as running, mock.patch.dict(LIMITS, limits):
        pid, done = running[0].pids[0], []
        LIMITS["request_timeout_s"] = max(LIMITS["request_timeout_s"], *limits.values())

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        def strike(ended: Request) -> None:
            if ended.provider == "bad" and not done:
                done.append(True)
                os.kill(pid, blow)
                if pause_s is not None:
                    threading.Timer(pause_s, go_on).start()

        try:
            pool = [provider(e.name, e.url, "embedded", e.api_key, model=None) for e in running]
            return asyncio.run(arm(pool, strike))
        finally:
            go_on()


HEADER = ["fault", "what is seen of it", "what is kept", "noticed", "here"]
INTRO = """# What happens when a provider fails

Made by `python benchmarks/faults.py --engines`; do not edit. Each fault is made to happen on a
real socket to `bad`, one of two providers that share six prompts evenly with one retry; the time
limits are shortened to make the table, and the last column is what the first failed request took
under those. A failed attempt is a row of its own in the report, with the sentence shown; its time
is part of the makespan and of no request's time. That a host is unreachable and a name unknown are
the system's own answers, in a network that holds nothing but this machine.
"""


def document(rows: list[Row]) -> str:
    return f"{INTRO}\n{table(HEADER, [one.cells() for one in rows], markdown=True)}\n"


if __name__ == "__main__":
    alone = "--alone" in sys.argv
    if not alone and (prefix := network_of_its_own()):
        os.execvp(prefix[0], [*prefix, sys.executable, *sys.argv, "--alone"])
    found = faults(alone) + (real_engines() if "--engines" in sys.argv else [])
    TARGET.write_text(document(found), encoding="utf-8")
    print(table(HEADER, [one.cells() for one in found]))
