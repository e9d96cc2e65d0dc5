"""Two machines for real, on one: coordinator and engines each in a network namespace.

The servers are what a person would start, on private addresses over a virtual link; the
run is `poc run params/two-machines.yaml` with only the addresses and the kind changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poclib import report
from poclib.engines.llama import find_model
from poclib.engines.pool import engine_pool
from poclib.parameters import ProviderSettings
from poclib.reading.reading import of

pytestmark = pytest.mark.slow

MODEL = "llama3.2:1b"  # the name in params/two-machines.yaml; here an alias of the small one
PORT = 18080
XLLAMACPP = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.model_alias = sys.argv[1], {sys.argv[2]}
p.hostnames, p.port, p.n_ctx, p.n_parallel = ["0.0.0.0"], int(sys.argv[3]), 8192, 4
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
sys.stdin.read()
"""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip() or f"ip {' '.join(words)} failed")


@pytest.fixture
def hosts() -> Iterator[dict[str, str]]:
    """Namespaces for a coordinator and two machines; gives each machine's address."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("making network namespaces needs root and iproute2 on Linux")
    mark = f"poc{os.getpid()}"
    made: list[str] = []
    try:
        for place in ("c", "a", "b"):
            try:
                _ip("netns", "add", f"{mark}{place}")
            except OSError as error:
                pytest.skip(f"network namespaces cannot be made here: {error}")
            made.append(f"{mark}{place}")
            _ip("-n", f"{mark}{place}", "link", "set", "lo", "up")
        addresses = {}
        for number, place in enumerate("ab", start=1):
            near, far = f"{mark}{place}0"[-15:], f"{mark}{place}1"[-15:]
            pair = ["type", "veth", "peer", "name", far, "netns", f"{mark}{place}"]
            _ip("link", "add", near, "netns", f"{mark}c", *pair)
            for name, link, last in ((f"{mark}c", near, 1), (f"{mark}{place}", far, 2)):
                _ip("-n", name, "addr", "add", f"10.77.{number}.{last}/24", "dev", link)
                _ip("-n", name, "link", "set", link, "up")
            addresses[place] = f"10.77.{number}.2"
        yield {"coordinator": f"{mark}c", **addresses, "a-name": f"{mark}a", "b-name": f"{mark}b"}
    finally:
        for name in made:
            _ip("netns", "del", name)


@pytest.fixture
def servers(hosts: dict[str, str]) -> Iterator[dict[str, str]]:
    """One real inference server on each machine, pinned to its own core."""
    with engine_pool([ProviderSettings(name="trial", slots=1)], 64) as (trial,):
        build, model = trial.build, str(find_model())
    running = []
    cores = sorted(os.sched_getaffinity(0))
    try:
        for number, place in enumerate("ab"):
            inside = ["ip", "netns", "exec", hosts[f"{place}-name"]]
            if build.binary is None:
                command = [sys.executable, "-c", XLLAMACPP, model, MODEL, str(PORT)]
            else:
                command = [str(build.binary), "-m", model, "--alias", MODEL, "-t", "1"]
                command += ["--host", "0.0.0.0", "--port", str(PORT), "-c", "8192", "-np", "4"]
            os.sched_setaffinity(0, {cores[number % len(cores)]})
            running.append(
                subprocess.Popen(
                    [*inside, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, **dict(build.environment)},
                )
            )
            os.sched_setaffinity(0, cores)
        for place in "ab":
            url = f"http://{hosts[place]}:{PORT}/health"
            wait = ["curl", "-sf", "--retry", "60", "--retry-all-errors", "--retry-delay", "1", url]
            if not shutil.which("curl"):
                pytest.skip("curl is not installed")
            done = subprocess.run(
                ["ip", "netns", "exec", hosts["coordinator"], *wait],
                capture_output=True,
                timeout=90,
                check=False,
            )
            assert done.returncode == 0, "the server did not become ready"
        yield hosts
    finally:
        os.sched_setaffinity(0, cores)
        for process in running:
            process.kill()
            process.wait()


def test_the_experiment_runs_over_a_real_network(servers: dict[str, str], tmp_path: Path) -> None:
    root = report.root()
    for folder in ("notebooks", "params", "data/reports"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.copy(root / "data" / "ruler.json", tmp_path / "data")
    params = tmp_path / "params" / "two-machines.yaml"
    text = params.read_text("utf-8")
    assert text.count("kind: ollama") == 2 and text.count(MODEL) >= 2
    text = text.replace("kind: ollama", "kind: llama-server")
    text = text.replace("http://127.0.0.1:11434", f"http://{servers['a']}:{PORT}")
    text = text.replace("http://192.168.1.20:11434", f"http://{servers['b']}:{PORT}")
    params.write_text(text)
    poc = [sys.executable, "-m", "poclib"]
    for words in (["doctor", str(params)], ["run", str(params), "--only", "serial-per-provider"]):
        done = subprocess.run(
            ["ip", "netns", "exec", servers["coordinator"], *poc, *words],
            capture_output=True,
            text=True,
            timeout=420,
            check=False,
            cwd=root,
            env={**os.environ, "POCLIB_HOME": str(tmp_path)},
        )
        print(done.stdout)
        assert done.returncode == 0, done.stderr[-2000:]
    path = tmp_path / "data" / "reports" / "two-machines-serial-per-provider.jsonl"
    measured = report.load(path)
    headline = of(measured).headline
    assert measured.complete and len(measured.rounds) == 5
    assert {p.name: p.role for p in measured.providers} == {"local": "local", "remote": "remote"}
    assert headline.failed_requests == 0
    assert headline.overhead_ratio.median is not None
    rows = [r for one in measured.rounds for arm in one.arms for r in arm.requests]
    assert {r.provider for r in rows} == {"local", "remote"}
    assert all(r.outcome == "ok" and r.output_tokens == 40 for r in rows)
    # Neither the report nor any page tells where the machines are.
    for made in [
        *tmp_path.rglob("*.json*"),
        *tmp_path.rglob("*.html"),
        *tmp_path.glob("data/runs/**/*"),
    ]:
        if made.is_file():
            assert "10.77." not in made.read_text("utf-8"), made.name
