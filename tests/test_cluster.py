"""A sweep on a Dask cluster: every point once and none lost, whatever dies and whoever stops it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("distributed", reason="the extra `cluster` is not installed")

from poclib import cluster, read_many, recording, report, suite
from poclib.errors import FolderHeld, ParameterError, RunFailed
from poclib.measure import sweep

ROOT = Path(__file__).parents[1]
# What stands before the simulator in every process: it notes whom it was asked by, fails where it
# is told to, and once dies in the middle of a point as by kill -9.
SIMULATOR = (
    f"""
PACKAGE = {str(ROOT / "poclib" / "simulate")!r}
"""
    + """
import os, signal, sys, types
from pathlib import Path
here = Path(__file__).parent

def point(scenario):
    seed, named = scenario["seed"], [one["name"] for one in scenario["machines"]]
    with (here / "asked").open("a") as file:
        file.write(f"{seed} {os.getpid()}\\n")
    if f"kills {seed}" in named:
        try:
            (here / "died").touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    if f"fails {seed}" in named:
        raise ValueError("no such pool")
    from poclib.simulate.run import point as simulated
    return simulated(scenario) | {"where": str(os.getpid())}

module = types.ModuleType("poclib.simulate")
module.point, module.__path__ = point, [PACKAGE]
sys.modules["poclib.simulate"] = module
"""
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, and the stand-in in this process and those that it starts."""
    (tmp_path / "data" / "reports").mkdir(parents=True)
    (tmp_path / "standin").mkdir()
    (tmp_path / "standin" / "sitecustomize.py").write_text(SIMULATOR)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'standin'}{os.pathsep}{ROOT}")
    monkeypatch.setattr(suite, "write_site", lambda kernel: Path("site", "index.html"))
    given: dict[str, Any] = {"__file__": str(tmp_path / "standin" / "sitecustomize.py")}
    before = sys.modules.pop("poclib.simulate", None)
    exec(compile(SIMULATOR, "sitecustomize.py", "exec"), given)
    monkeypatch.setitem(sys.modules, "poclib.simulate", given["module"])
    if before:
        monkeypatch.setitem(sys.modules, "poclib.simulate", before)
        monkeypatch.setitem(sys.modules, "poclib.simulate", given["module"])
    return tmp_path


def grid(count: int, told: str = "b") -> dict[str, Any]:
    """So many points; the second machine's name is what the stand-in is told."""
    pool = [{"name": "a", "up_s": 6000}, {"name": told, "speed": 0.6, "noise": 0.2}]
    first = {"strategy": "shared-queue", "seed": 0, "requests": 200, "machines": pool}
    return {"experiment": "grid", "simulate": first, "sweep": {"seed": [*range(count)]}}


def asked(home: Path) -> Counter[int]:
    """How often each point was begun."""
    lines = (home / "standin" / "asked").read_text().splitlines()
    return Counter(int(line.split()[0]) for line in lines)


def held(home: Path) -> list[int]:
    """The points that have a file, each read whole."""
    files = (home / "data" / "runs" / "grid").glob("*/*.json")
    points = [report.simulated(path) for path in files]
    assert all(point["result"]["p95_ms"] is not None for point in points)
    return sorted(point["scenario"]["seed"] for point in points)


# ---- Without a cluster ------------------------------------------------------------------------


def test_a_simulated_sweep_runs_here_too_and_never_a_point_twice(home: Path) -> None:
    suite.sweep(grid(5), "grid.yaml")
    suite.sweep(grid(7), "grid.yaml")
    assert held(home) == [*range(7)] and set(asked(home).values()) == {1}
    frame = read_many("data/runs/grid/*/*.json")
    assert sorted(frame["scenario.seed"]) == [*range(7)] and frame["result.p95_ms"].notna().all()
    assert report.names() == [], "they do not fill the list of reports"


def test_a_scenario_that_is_none_is_told_before_any_work(home: Path) -> None:
    given = grid(3)
    given["simulate"]["machnes"] = given["simulate"].pop("machines")
    with pytest.raises(ParameterError, match=r"grid.yaml: simulate: .*machnes|.*machines"):
        suite.sweep(given, "grid.yaml")
    assert not (home / "standin" / "asked").exists()


def test_a_machine_is_named_and_a_wrong_place_is_told() -> None:
    given = grid(1) | {"sweep": {"machines.a.up_s": [1, 2]}}
    found = sweep.points(given, "grid.yaml")
    assert [point.scenario["machines"][0]["up_s"] for point in found] == [1, 2]  # type: ignore[union-attr]
    assert found[0].label == "machines.a.up_s 1" and len({point.name for point in found}) == 2
    for key in ("machines.c.up_s", "seed.x.y"):
        with pytest.raises(ParameterError, match=f"sweep.{key}: the section simulate has no such"):
            sweep.points(grid(1) | {"sweep": {key: [1]}}, "grid.yaml")


@pytest.mark.parametrize("address", ["local", "local:x", "local:0", "http://x", "4", ""])
def test_a_wrong_address_is_one_sentence(address: str, home: Path) -> None:
    if address:
        with pytest.raises(ParameterError, match=r"write local:4"):
            cluster.Cluster(address, [])


class Noted(cluster.Cluster):
    """Notes what it is given and ends the oldest first; without any worker."""

    def __init__(self, here: bool) -> None:
        self.here, self.results, self.under_way = here, {}, list[Any]()
        self.client = SimpleNamespace(loop=None)

    def _submitted(self, point: Any) -> Any:
        self.under_way.append(point)
        return point.name

    def add(self, future: str) -> None:
        assert future == self.under_way[-1].name

    def __next__(self) -> str:
        return str(self.under_way.pop(0).name)


@pytest.mark.parametrize(("here", "most"), [(False, 3), (True, 1)])
def test_points_that_ask_one_server_are_never_under_way_together(
    here: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.1:2", "10.0.0.3:1"]
    given = {"strategy": "shared-queue", "prompts": 2, "sweep": {"seed": [1]}}
    points = []
    for number, one in enumerate(hosts):
        provider = {"name": "a", "kind": "llama-server", "url": f"http://{one}"}
        points += sweep.points(
            given | {"providers": [provider], "max_tokens": 4 + number}, "g.yaml"
        )
    told = Noted(here)
    monkeypatch.setattr("distributed.as_completed", lambda loop: told)
    ended, together = [], []
    for point in told.ended(points):
        asked = [p.parameters.providers[0].url.split(":")[1] for p in (point, *told.under_way)]
        assert len(set(asked)) == len(asked), "each has a host of its own"
        together.append(len(asked))
        ended.append(point.name)
    assert max(together) == most and sorted(ended) == sorted(point.name for point in points)


# ---- On two workers of this machine -------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_is_killed_and_every_point_is_there_once(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite.sweep(grid(200, "kills 90"), "grid.yaml", address="local:2")
    assert (home / "standin" / "died").exists(), "it was killed"
    assert held(home) == [*range(200)] and len(asked(home)) == 200
    told = capsys.readouterr()
    assert told.out.count("\nseed ") == 200, "a row for each point"
    again = asked(home)
    # Only what the dead worker was at, or had not handed over yet, was begun once more.
    assert again[90] == 2 and sum(again.values()) < 200 + 40, again.most_common(5)
    suite.sweep(grid(200, "kills 90"), "grid.yaml", address="local:2")
    assert asked(home) == again, "a point done is never done again"


@pytest.mark.slow
def test_stopped_it_goes_on_later_and_a_failed_point_stops_no_other(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results, take = [0], cluster.Cluster.result

    def stopped(self: cluster.Cluster, point: Any) -> bytes:
        results[0] += 1
        if results[0] == 11:
            raise KeyboardInterrupt
        return take(self, point)

    monkeypatch.setattr(cluster.Cluster, "result", stopped)
    with pytest.raises(KeyboardInterrupt):
        suite.sweep(grid(40, "fails 39"), "grid.yaml", address="local:2")
    assert len(held(home)) == 10 and "30 points left" in capsys.readouterr().err
    before = set(held(home))
    (home / "standin" / "asked").unlink()
    with pytest.raises(RunFailed, match=r"1 of 40 points failed: .*ValueError .* no such pool"):
        suite.sweep(grid(40, "fails 39"), "grid.yaml", address="local:2")
    assert held(home) == [*range(39)] and not before & set(asked(home))


@pytest.mark.slow
def test_another_poclib_or_no_right_to_measure_is_refused_before_any_work(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    measured = sweep.points(
        {"strategy": "shared-queue", "providers": [{"name": "a"}], "sweep": {"seed": [1]}}, "m.yaml"
    )
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as here:
        with pytest.raises(RunFailed, match="no worker may measure"):
            cluster.Cluster(here.scheduler_address, measured)
        simulated = sweep.points(grid(1), "grid.yaml")
        cluster.Cluster(here.scheduler_address, simulated).close()
        with monkeypatch.context() as patched:
            patched.setattr(cluster, "__version__", "9.9")
            with pytest.raises(RunFailed, match=r"has poclib 0\.1\.0, here 9\.9"):
                cluster.Cluster(here.scheduler_address, simulated)
    with pytest.raises(RunFailed, match="no scheduler can be used there"):
        monkeypatch.setattr(cluster, "CONNECT_S", 1)
        cluster.Cluster("tcp://127.0.0.1:9", simulated)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, resources={"measure": 1}
        ) as twice,
        pytest.raises(RunFailed, match="several workers that measure"),
    ):
        cluster.Cluster(twice.scheduler_address, measured)
    assert not (home / "standin" / "asked").exists()


@pytest.mark.slow
def test_a_point_that_measures_is_measured_by_a_worker(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real engine, and refused where another run measures on that machine."""
    given = {
        "experiment": "grid",
        "strategy": "shared-queue",
        "prompts": ["one", "two"],
        "rounds": 1,
        "max_tokens": 4,
        "providers": [{"name": "local", "core": 0}],
        "sweep": {"max_tokens": [2, 4]},
    }
    pageless = SimpleNamespace(execute=lambda *_, **__: None)
    monkeypatch.setattr(suite, "task", lambda strategy: pageless)
    with recording.only_one(home / "data" / "runs"), pytest.raises(FolderHeld):
        suite.sweep(given, "grid.yaml", address="local:1")
    suite.sweep(given, "grid.yaml", address="local:2")
    saved = [report.load(path) for path in (home / "data" / "runs" / "grid").glob("*/*.jsonl")]
    assert sorted(one.parameters.max_tokens for one in saved if one.parameters) == [2, 4]
    assert all(one.complete for one in saved)


# ---- In three network namespaces, with TLS ------------------------------------------------


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be made here: {done.stderr.strip()}")


@pytest.fixture
def spaces() -> Iterator[list[str]]:
    """Namespaces of a scheduler (10.78.N.1) and of two workers (10.78.N.2), joined by cables."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("openssl"):
        pytest.skip("this needs root, iproute2 and openssl on Linux")
    names = [f"poc{os.getpid()}{letter}" for letter in "sab"]
    with contextlib.ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        for number, name in enumerate(names[1:], start=1):
            near, far = f"{name}n"[-15:], f"{name}f"[-15:]
            ip("link", "add", near, "netns", names[0], "type", "veth", "peer", far, "netns", name)
            for space, end, last in ((names[0], near, 1), (name, far, 2)):
                ip("-n", space, "addr", "add", f"10.78.{number}.{last}/24", "dev", end)
                ip("-n", space, "link", "set", end, "up")
        ip("-n", names[1], "route", "add", "default", "via", "10.78.1.1")
        ip("-n", names[2], "route", "add", "default", "via", "10.78.2.1")
        yield names


@pytest.mark.slow
def test_across_three_namespaces_with_tls(spaces: list[str], home: Path) -> None:
    key, certificate = home / "key.pem", home / "cert.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=poc"
    make += f" -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True, timeout=60)
    tls = {"CA_FILE": certificate}
    for who in ("SCHEDULER", "WORKER", "CLIENT"):
        tls |= {f"{who}__CERT": certificate, f"{who}__KEY": key}
    names = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(path) for name, path in tls.items()}
    environment = {**os.environ, **names, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}
    (home / "grid.yaml").write_text(json.dumps(grid(200, "kills 90")))
    shutil.copytree(ROOT / "notebooks", home / "notebooks")  # for the pages at the end

    def started(space: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", space, sys.executable, "-m", *words]

    scheduler = "tls://10.78.1.1:8786"
    everywhere = ["--host", "tls://0.0.0.0:8786", "--no-dashboard"]
    commands = [
        started(spaces[0], "distributed.cli.dask_scheduler", *everywhere),
        *(
            started(
                space, "distributed.cli.dask_worker", f"tls://10.78.{number}.1:8786",
                "--host", f"tls://10.78.{number}.2", "--nthreads", "1", "--no-dashboard",
                "--local-directory", str(home / space),
            )
            for number, space in enumerate(spaces[1:], start=1)
        ),
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        logs = []
        for number, command in enumerate(commands):
            logs.append(home / f"log{number}")
            file = stack.enter_context(logs[-1].open("wb"))
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, cwd=ROOT)
            stack.callback(process.wait, 30)
            stack.callback(process.terminate)
        ready = (
            "from distributed import Client\n"
            f"Client('{scheduler}', timeout=60).wait_for_workers(2, timeout=60)"
        )
        wait = ["ip", "netns", "exec", spaces[0], sys.executable, "-c", ready]
        subprocess.run(wait, env=environment, check=True, timeout=90, cwd=ROOT)
        poc = started(spaces[0], "poclib", "sweep", str(home / "grid.yaml"), "--cluster", scheduler)
        done = subprocess.run(
            poc, env=environment, capture_output=True, text=True, timeout=200, cwd=ROOT
        )
        told = "\n".join(log.read_text("utf-8", "replace")[-1500:] for log in logs)
        assert done.returncode == 0, done.stderr[-3000:] + told
        plain = subprocess.run(
            [*poc[:-1], "tcp://10.78.1.1:8786"], env=environment, capture_output=True, text=True,
            timeout=90, cwd=ROOT,
        )  # fmt: skip
        assert plain.returncode == 3 and "no scheduler can be used there" in plain.stderr
    assert (home / "standin" / "died").exists() and held(home) == [*range(200)]
    where = read_many("data/runs/grid/*/*.json")["result.where"]
    assert where.nunique() >= 2, "both worked"
