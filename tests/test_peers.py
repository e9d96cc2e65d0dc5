"""The comparison with other clients: a known server that tells the truth, and the finding."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from poclib import report
from poclib.errors import ReportError
from poclib.showing import peers

STUB = Path(report.root(), "benchmarks", "stub_server.py")


@pytest.fixture
def server() -> Iterator[http.client.HTTPConnection]:
    command, pipe = [sys.executable, "-I", str(STUB)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        yield http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=60)
        process.kill()


def asked(server: http.client.HTTPConnection, path: str, given: Any = None) -> str:
    body = None if given is None else json.dumps(given)
    server.request("POST" if body else "GET", path, body, {"content-type": "application/json"})
    return server.getresponse().read().decode()


def test_the_known_server_speaks_both_ways_and_tells_what_it_saw(
    server: http.client.HTTPConnection,
) -> None:
    assert json.loads(asked(server, "/v1/models"))["data"][0]["id"] == "stub"
    for number in range(20):
        given = {"prompt": f"{number}", "max_tokens": 3, "stream": True}
        lines = asked(server, "/v1/completions", given).split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert [e["choices"][0]["text"] for e in events[:3]] == ["x"] * 3
        assert events[3]["usage"]["completion_tokens"] == 3
    whole = json.loads(asked(server, "/v1/chat/completions", {"messages": [], "max_tokens": 2}))
    assert whole["choices"][0]["message"]["content"] == "xx"
    seen = json.loads(asked(server, "/seen"))
    assert seen["requests"] == 21 and seen["requests_per_s"] > 0 and seen["took_ms"] > 0
    assert json.loads(asked(server, "/seen"))["requests"] == 0, "what was told is forgotten"


def row(tool: str, repeat: int, rate: float, says_ms: float) -> dict[str, Any]:
    true = dict.fromkeys(("true_ttft_ms", "true_latency_ms"), 0.1)
    said = dict.fromkeys(("said_ttft_ms", "said_latency_ms"), says_ms)
    place = {"tool": tool, "in_flight": 64, "repeat": repeat, "client_cores": 1, "requests": 9}
    return {
        **place,
        "requests_per_s": rate,
        "said_requests_per_s": rate,
        **said,
        **true,
        "failed": 0,
    }


def test_the_finding_is_of_medians_and_names_the_farthest_from_the_truth(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"peers\.py --save"):
        peers.read(tmp_path)
    rates = {"poclib": (4000, 6000, 9000), "other": (3000, 2000, 100), "raw socket": (50_000,) * 3}
    says_ms = {"poclib": 0.9, "other": 20.0, "raw socket": 1.0}
    rows = [row(t, n, rate, says_ms[t]) for t, all_ in rates.items() for n, rate in enumerate(all_)]
    about = {"created": "2026-11-26T00:00:00+00:00", "cores": 2, "processor": "a processor"}
    (tmp_path / "data").mkdir()
    told = {**about, "versions": {"poclib": "1", "other": "2"}, "rows": rows}
    (tmp_path / peers.FILE).write_text(json.dumps(told))
    found = peers.read(tmp_path)
    assert peers.title_rates(found, 64) == (
        "64 in flight: 6,000 requests a second, 3.00 times other"
    )
    assert peers.title_said(found, 64) == (
        "64 in flight: of a first token that took 0.10 ms poclib says 0.90, "
        "other 20.00 of one of 0.10"
    )
    assert peers.provenance(found) == (
        "2026-11-26 · 2 cores of a processor · median of 3 · poclib 1, other 2"
    )
    assert found.medians.loc[(64, "raw socket"), "requests_per_s"] == 50_000
    for chart in (peers.rates, peers.said):
        figure, ax = plt.subplots()
        chart(ax, found, 64)
        assert [text.get_text() for text in ax.get_yticklabels()] == ["poclib", "other"]
        plt.close(figure)


def test_the_committed_comparison_is_of_every_tool_at_both_loads() -> None:
    found = peers.read(report.root())
    tools = set(found.about["versions"])
    assert {"poclib", "raw socket", "vllm bench serve", "AIPerf", "GuideLLM"} == tools
    assert set(found.medians.index) == {(load, tool) for load in (1, 64) for tool in tools}
