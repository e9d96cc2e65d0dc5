"""Two machines for real, on one: coordinator and servers each in a network namespace."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import of_others

from poclib import read
from poclib.engines import llama
from poclib.engines.pool import engine_pool
from poclib.parameters import ProviderSettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODEL = "llama3.2:1b"  # the name in params/two-machines.yaml; here an alias of the small one
PORT = 18080


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")


@pytest.fixture(params=["10.77"])
def coordinator(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a network namespace, joined to two machines that each run a real server.

    Their addresses begin with the fixture's parameter.
    """
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("making network namespaces needs root and iproute2 on Linux")
    trial = ProviderSettings(name="trial")
    with engine_pool([trial], 64) as (engine,):  # the first build that works here
        command = llama.command(engine.build, llama.find_model(), trial, 4, 2048)
    command += ["--host", "0.0.0.0", "--port", str(PORT), "--alias", MODEL]  # the last ones hold
    home = f"poc{os.getpid()}c"
    with contextlib.ExitStack() as stack:

        def space(name: str) -> None:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")

        space(home)
        for number in (1, 2):
            machine = f"poc{os.getpid()}m{number}"
            near, far = f"{machine}c"[-15:], f"{machine}f"[-15:]
            space(machine)
            ip("link", "add", near, "netns", home, "type", "veth", "peer", far, "netns", machine)
            for name, end, last in ((home, near, 1), (machine, far, 2)):
                ip("-n", name, "addr", "add", f"{request.param}.{number}.{last}/24", "dev", end)
                ip("-n", name, "link", "set", end, "up")
            server = subprocess.Popen(
                ["ip", "netns", "exec", machine, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "LLAMA_API_KEY": "", **engine.build.environment},
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
        yield home


def poc(space: str, home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["ip", "netns", "exec", space, sys.executable, "-m", "poclib", *words]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=420,
        cwd=ROOT,
        env={**os.environ, "POCLIB_HOME": str(home)},
    )


def examined(space: str, home: Path, *words: str | Path) -> str:
    """What doctor says, once the servers have started."""
    until_s = time.monotonic() + 60
    while (doctor := poc(space, home, "doctor", *words)).returncode and time.monotonic() < until_s:
        time.sleep(1)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    return doctor.stdout


def no_file_has(address: bytes, home: Path) -> None:
    """Neither the report nor any page tells where the machines are."""
    for made in home.rglob("*"):
        if made.is_file() and made.parent != home / "params":
            assert address not in made.read_bytes(), made.name


@pytest.mark.parametrize("coordinator", ["100.64"], indirect=True)
def test_from_two_addresses_of_a_mesh_to_the_verdict(coordinator: str, tmp_path: Path) -> None:
    """No file, no kind, no model is given; the range is that of Tailscale and its like."""
    for folder in ("notebooks", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=of_others)
    words = [f"100.64.1.2:{PORT}", f"http://100.64.2.2:{PORT}"]
    assert "Expect " in examined(coordinator, tmp_path, *words)
    done = poc(coordinator, tmp_path, "run", *words, "--only", "shared-queue", "--set", "rounds=2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Measuring 1 strategy takes about" in done.stdout and "Gate: " in done.stdout
    assert (tmp_path / "params" / "my-pool.yaml").exists()
    measured = read(str(tmp_path / "data" / "reports" / "my-pool-shared-queue.jsonl")).report
    facts = [(p.name, p.kind, p.role) for p in measured.providers]
    assert facts == [(f"remote-{number}", "llama-server", "remote") for number in (1, 2)]
    no_file_has(b"100.64.", tmp_path)


def test_the_experiment_runs_over_a_real_network(coordinator: str, tmp_path: Path) -> None:
    """`poc run params/two-machines.yaml` with only the addresses and the kind changed."""
    for folder in ("notebooks", "params", "data"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    params = tmp_path / "params" / "two-machines.yaml"
    text = params.read_text("utf-8")
    for old, new in (
        ("kind: ollama", "kind: llama-server"),
        ("http://127.0.0.1:11434", f"http://10.77.1.2:{PORT}"),
        ("http://192.168.1.20:11434", f"http://10.77.2.2:{PORT}"),
    ):
        assert old in text and MODEL in text
        text = text.replace(old, new)
    params.write_text(text)

    examined(coordinator, tmp_path, params)
    done = poc(coordinator, tmp_path, "run", params, "--only", "serial-per-provider")
    assert done.returncode == 0, done.stderr[-2000:]

    reading = read(str(tmp_path / "data" / "reports" / "two-machines-serial-per-provider.jsonl"))
    measured, headline = reading.report, reading.headline
    assert measured.complete and len(measured.rounds) == 5 and headline.failed_requests == 0
    assert {p.name: p.role for p in measured.providers} == {"local": "local", "remote": "remote"}
    assert headline.overhead_ratio.median is not None
    rows = [r for each in measured.rounds for arm in each.arms for r in arm.requests]
    assert {r.provider for r in rows} == {"local", "remote"}
    assert all(r.outcome == "ok" and r.output_tokens == 40 for r in rows)
    no_file_has(b"10.77.", tmp_path)
