"""What do routers make of the same machines? Measures LiteLLM's proxy and SGLang's router.

    python benchmarks/routers.py [CASE ...] [--rounds N]

Installs each router into an environment of its own (build/routers/, once; by pip), starts two
embedded engines, equal and then the second at 0.4 of its speed, and measures each case in rounds
against the fastest machine alone, as `poc run` does: our strategies, then every router with the
settings that its documentation names for such a pool. Reports: data/reports/routers/, which
notebooks/24_routers.ipynb reads. CASE: only those whose name holds such a word. Takes about twenty
minutes on two cores; needs no network once both are installed. All that it started is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from poclib.engines import pool  # noqa: E402
from poclib.errors import PocError  # noqa: E402
from poclib.measure import experiment  # noqa: E402
from poclib.parameters import Parameters  # noqa: E402
from poclib.reading.reading import of  # noqa: E402
from poclib.showing import words  # noqa: E402

REPORTS = ROOT / "data" / "reports" / "routers"
ENVIRONMENTS = ROOT / "build" / "routers"
KEY = "POCLIB_ROUTER_KEY"
POOLS = {"equal": 1.0, "unequal": 0.4}  # the second machine's speed
OURS = ["all-parallel", "capability-split", "shared-queue", "earliest-finish"]
READY_S, END_S = 120, 10
# One request at a time in each engine, as Ollama does by default; short answers, so that a case
# takes half a minute.
COMMON: dict[str, Any] = {
    "prompts": 12,
    "max_tokens": 12,
    "context_tokens": 256,
    "calibration_prompts": 4,
}
Engines = Sequence[pool.RunningEngine]


@dataclass(frozen=True)
class Case:
    """One router with its settings: those of its own, and what stands in the report of them."""

    name: str
    router: str
    note: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    pools: Sequence[str] = tuple(POOLS)
    in_flight: int | None = None


CASES = [
    Case("litellm-shuffle", "litellm", "simple-shuffle, its default and recommended"),
    Case(
        "litellm-weighted",
        "litellm",
        "simple-shuffle with weights 5 and 2, as the machines' speeds",
        {"weights": [5, 2]},
        ["unequal"],
    ),
    Case(
        "litellm-least-busy",
        "litellm",
        "least-busy, recommended where much is in flight",
        {"routing_strategy": "least-busy"},
    ),
    Case(
        "litellm-latency",
        "litellm",
        "latency-based-routing",
        {"routing_strategy": "latency-based-routing"},
    ),
    Case(
        "litellm-one-each",
        "litellm",
        "least-busy, max_parallel_requests: 1 for each machine",
        {"routing_strategy": "least-busy", "max_parallel_requests": 1},
    ),
    Case(
        "litellm-held",
        "litellm",
        "least-busy, given two at a time by the client",
        {"routing_strategy": "least-busy"},
        in_flight=2,
    ),
    Case("sglang-cache-aware", "sglang", "cache_aware, its default", {"policy": "cache_aware"}),
    Case("sglang-round-robin", "sglang", "round_robin", {"policy": "round_robin"}),
    Case("sglang-power-of-two", "sglang", "power_of_two", {"policy": "power_of_two"}),
    Case(
        "sglang-queue",
        "sglang",
        "power_of_two, max-concurrent-requests 2, the rest in its queue",
        # What waits longer than its bucket takes to gain a token it answers 408: half a second,
        # whatever --queue-timeout-secs and --rate-limit-tokens-per-second 0 say.
        {"policy": "power_of_two", "max-concurrent-requests": 2, "queue-size": 100},
    ),
]


# ---- The routers: what is installed, and how one is started ---------------------------------


def litellm(case: Case, engines: Engines, folder: Path, port: int) -> list[str]:
    """Its configuration as a file, and the command that serves it."""
    given = dict(case.settings)
    strategy, weights = given.pop("routing_strategy", "simple-shuffle"), given.pop("weights", None)
    models = []
    for number, engine in enumerate(engines):
        asked = {"model": f"text-completion-openai/{engine.model}", "api_base": f"{engine.url}/v1"}
        asked |= {"api_key": engine.api_key, **given}
        if weights:
            asked["weight"] = weights[number]
        models.append({"model_name": engine.model, "litellm_params": asked})
    config = {
        "model_list": models,
        "router_settings": {"routing_strategy": strategy},
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY"},
    }
    path = folder / "litellm.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    address = ["--host", "127.0.0.1", "--port", str(port)]
    return ["litellm", "--config", str(path), *address, "--telemetry", "False"]


def sglang(case: Case, engines: Engines, folder: Path, port: int) -> list[str]:
    """Its command; one key opens the router and all that stands behind it."""
    options = [word for key, value in case.settings.items() for word in (f"--{key}", str(value))]
    options += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    options += ["--worker-urls", *(engine.url for engine in engines), "--log-level", "warn"]
    return ["sglang-router", "launch", "--api-key", engines[0].api_key, *options]


Command = Callable[[Case, Engines, Path, int], list[str]]
# By router: its package, the name by which it says its version, and its command.
ROUTERS: dict[str, tuple[str, str, Command]] = {
    "litellm": ("litellm[proxy]<1.107", "litellm", litellm),
    "sglang": ("sglang-router<0.4", "sglang-router", sglang),
}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def installed(router: str) -> tuple[Path, str]:
    """The folder of its programs, and its version; installed where it is not yet."""
    package, name, _ = ROUTERS[router]
    home = ENVIRONMENTS / router
    python = home / "bin" / "python"
    if not (home / "done").exists():
        print(f"installing {package} into {home.relative_to(ROOT)}", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        command = ["nice", str(python), "-m", "pip", "install", "-q", package]
        subprocess.run(command, check=True)
        (home / "done").touch()
    ask = f"import importlib.metadata as m; print(m.version({name!r}))"
    told = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True)
    return home / "bin", f"{name} {told.stdout.strip()}"


@contextlib.contextmanager
def running(case: Case, engines: Engines) -> Iterator[tuple[str, str]]:
    """The router in front of the engines: its address and version. It is ended with the block."""
    programs, version = installed(case.router)
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        program, *options = ROUTERS[case.router][2](case, engines, Path(folder), port)
        key = os.environ[KEY]
        environment = os.environ | {"LITELLM_MASTER_KEY": key, "HOME": folder}
        environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1"}
        log = Path(folder) / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(programs / program), *options],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            if not ready(url, key, len(engines), process):
                raise SystemExit(f"{case.name} did not start:\n{log.read_text('utf-8')[-3000:]}")
            yield url, version
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ready(url: str, key: str, machines: int, process: subprocess.Popen[bytes]) -> bool:
    """Wait until it lists a model, and as long again as it may take to find all its machines."""
    asked = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until_s = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < until_s:
        with contextlib.suppress(OSError), direct.open(asked, timeout=5) as answer:
            if b'"id"' in answer.read():
                time.sleep(machines)  # a router may list a model before it knows every machine
                return True
        time.sleep(0.3)
    return False


# ---- Measuring ------------------------------------------------------------------------------


def machines(speed: float) -> list[dict[str, Any]]:
    each = {"kind": "embedded", "slots": 1, "api": "completion"}
    return [
        {"name": "first", "core": 0, **each},
        {"name": "second", "core": 1, **each, "speed": speed},
    ]


def measured(values: dict[str, Any], engines: Engines) -> None:
    """Measure one strategy or router, save its report, and say what came of it."""
    parameters = Parameters.read(values)
    by_name = {engine.name: engine for engine in engines}
    label = parameters.experiment
    with tempfile.TemporaryDirectory() as folder:
        try:
            bar = experiment.bar(label)
            saved = experiment.measure(parameters, bar, Path(folder), running=by_name)
        except PocError as error:
            print(f"{label}: {error}", flush=True)
        else:
            (path,) = Path(folder).glob("*.jsonl")
            REPORTS.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, REPORTS / path.name)
            print(f"{label}: {words.finding(of(saved).headline)}", flush=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case", nargs="*", help="only cases whose name holds such a word")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)

    def wanted(name: str) -> bool:
        return not asked.case or any(word in name for word in asked.case)

    for router in {case.router for case in CASES if wanted(case.name)}:
        installed(router)
    # One key for the engines and the routers: a router may know one only.
    os.environ[KEY] = f"sk-{secrets.token_urlsafe(24)}"
    for kind, speed in POOLS.items():
        given = {**COMMON, "rounds": asked.rounds, "providers": machines(speed)}
        settings = Parameters.read(given).providers
        one_key = mock.patch.object(secrets, "token_urlsafe", return_value=os.environ[KEY])
        with one_key, pool.engine_pool(settings, COMMON["context_tokens"]) as engines:
            for strategy in filter(wanted, OURS):
                own = {"experiment": f"routers-{kind}", "strategy": strategy}
                measured(given | own, engines)
            for case in CASES:
                if wanted(case.name) and kind in case.pools:
                    through(case, kind, given, engines)
    return 0


def through(case: Case, kind: str, given: dict[str, Any], engines: Engines) -> None:
    """Measure one router in front of the engines."""
    with running(case, engines) as (url, version):
        router = {
            "name": case.name,
            "kind": "openai",
            "api": "completion",
            "url": url,
            # SGLang's lists every model of a server that is none of its own as "unknown".
            "model": "unknown" if case.router == "sglang" else engines[0].model,
            "api_key_env": KEY,
            "router_of": [engine.name for engine in engines],
            "in_flight": case.in_flight,
            "note": f"{version}: {case.note}",
        }
        own = {"experiment": f"routers-{kind}-{case.name}", "strategy": "through-router"}
        measured({**given, **own, "providers": [*given["providers"], router]}, engines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
