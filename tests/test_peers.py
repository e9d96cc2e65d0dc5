"""The comparison with other clients: a known server that tells the truth, and the finding."""

from __future__ import annotations

import http.client
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from poclib import report
from poclib.showing import notebooks as publish

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


ABOUT = json.loads(Path(report.root(), "data", "peers.json").read_text("utf-8"))


def middle(tool: str, in_flight: int, key: str) -> float:
    """The median over the repeats, from the rows as they were saved."""
    rows = (row for row in ABOUT["rows"] if (row["tool"], row["in_flight"]) == (tool, in_flight))
    return statistics.median(row[key] for row in rows)


def test_the_page_says_what_the_saved_rows_give() -> None:
    """The most requests a second among the others, and whose word is farthest from the truth."""
    (path,) = publish.notebooks("13*")
    cells = nbformat.read(path, as_version=4).cells
    shown = [o.data for c in cells for o in c.get("outputs", ()) if "data" in o]
    (said, *_) = (data["text/markdown"] for data in shown if "text/markdown" in data)
    others = {*ABOUT["versions"]} - {"poclib", "raw socket"}
    rates = {tool: middle(tool, 64, "requests_per_s") for tool in (*others, "poclib")}
    best = max(others, key=lambda tool: rates[tool])
    assert f"{rates['poclib']:,.0f} requests a second" in said
    assert f"{rates['poclib'] / rates[best]:.2f} times {best}" in said

    def off(tool: str) -> float:
        return abs(middle(tool, 64, "said_ttft_ms") - middle(tool, 64, "true_ttft_ms"))

    worst = max((*others, "poclib"), key=off)
    assert f"poclib says {middle('poclib', 64, 'said_ttft_ms'):.2f}, {worst} " in said
    assert f"{middle(worst, 64, 'said_ttft_ms'):.2f} of one of" in said
    assert sum("image/png" in data for data in shown) == 2


def test_the_committed_comparison_is_of_every_tool_at_both_loads() -> None:
    tools = {*ABOUT["versions"]}
    assert {"poclib", "raw socket", "vllm bench serve", "AIPerf", "GuideLLM"} == tools
    loads = {(row["in_flight"], row["tool"]) for row in ABOUT["rows"]}
    assert loads == {(load, tool) for load in (1, 64) for tool in tools}
