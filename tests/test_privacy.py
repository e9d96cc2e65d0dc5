"""A secret planted everywhere, servers that give away all they can, and a search for it after."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from poclib import report
from poclib.showing import notebooks as publish

pytestmark = pytest.mark.slow

KEY, VARIABLE = "planted-key-7c1f0e", "PLANTED_KEY_VARIABLE"
QUESTION = 'planted question: who\'s "there"?'
ANSWER = "planted answer"
EVIL = "\x1b[2J\x1b]0;planted title\x07<script>planted()</script><img src=x onerror=planted()>"
PATIENCE_S = 120


class Gossip(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that puts all it knows into what it answers."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        model = {"id": "m", "owned_by": EVIL, "note": self.headers.get("authorization")}
        self.tell(200, {"data": [model], "version": EVIL})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        assert self.headers["authorization"] == f"Bearer {KEY}"
        Gossip.asked += 1
        if Gossip.asked % 5 == 0:
            words = f"{EVIL} {self.headers['authorization']} at {self.headers['host']}"
            self.tell(500, {"error": {"message": words}})
            return
        said = {"message": {"content": f"{ANSWER} {EVIL}"}, "finish_reason": "length"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        self.tell(200, {"choices": [said], "usage": usage})

    def tell(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def ports() -> Iterator[list[int]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Gossip) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [server.server_address[1] for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_planted_secret_is_found_nowhere_after_a_whole_run(
    tmp_path: Path, ports: list[int]
) -> None:
    root, home = report.root(), tmp_path / "home"
    (home / "data" / "reports").mkdir(parents=True)
    (home / "notebooks").mkdir()
    shutil.copy(publish.strategy_notebook(), home / "notebooks")
    providers = [
        {"name": n, "kind": "openai", "model": "m", "url": f"http://127.0.0.1:{port}"}
        | {"api_key_env": VARIABLE}
        for n, port in zip(("one", "two"), ports, strict=True)
    ]
    given = {"experiment": "planted", "providers": providers, "prompts": [QUESTION] * 4}
    given |= {"rounds": 3, "stream": False, "store_text": False, "max_tokens": 4, "retries": 4}
    (tmp_path / "planted.yaml").write_text(json.dumps(given))  # which is YAML too
    command = [sys.executable, "-m", "poclib", "run", str(tmp_path / "planted.yaml")]
    listed: set[str] = set()
    with subprocess.Popen(
        [*command, "--only", "shared-queue"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            VARIABLE: KEY,
            "POCLIB_HOME": str(home),
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        },
    ) as run:
        while True:
            with contextlib.suppress(psutil.Error):
                family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(True)]
                listed |= {" ".join(one.cmdline()) for one in family}
            try:
                said, _ = run.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                continue
    assert run.returncode == 0, said[-3000:]
    saved = report.load(home / "data" / "reports" / "planted-shared-queue.jsonl")
    assert any(row.outcome == "failed" for row in saved.requests), "the server did give it away"
    assert all(row.answer_sha256 for row in saved.requests if row.outcome == "ok")
    written = [path for path in home.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" for path in written) and len(listed) >= 2
    secrets = [KEY, VARIABLE, "planted question", "planted answer", *map(str, ports)]
    for where, text in [
        ("what was printed", said),
        ("the process list", "\n".join(listed)),
        *((str(p.relative_to(home)), p.read_bytes().decode(errors="replace")) for p in written),
    ]:
        mine = "planted" in where or where.startswith("what") or "process" in where
        for secret in secrets if mine else [KEY, VARIABLE, "planted question"]:
            assert secret not in text, f"{secret} is in {where}"
        if where.endswith(".html"):
            assert "<script" not in text and "onerror" not in re.sub("&[a-z]+;", "", text)
    # No control sequence reaches the terminal; colours of tools that run there are theirs.
    assert "\x1b[2J" not in said and "\x1b]0" not in said and "\x07" not in said
