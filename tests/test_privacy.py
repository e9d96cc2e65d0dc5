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
EVIL = "\x1b[2J\x1b]0;planted title\x07<script>planted()</script><img src=x onerror=planted()>"


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
        choice = {"message": {"content": f"planted answer {EVIL}"}, "finish_reason": "length"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4}
        self.tell(200, {"choices": [choice], "usage": usage})

    def tell(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Gossip) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def printed_and_listed(command: list[str], environment: dict[str, str]) -> tuple[str, str]:
    """What a command prints until it ends well, and every command line of its processes."""
    listed: set[str] = set()
    pipe = subprocess.PIPE
    with psutil.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, env=environment) as run:
        while True:
            with contextlib.suppress(psutil.Error):
                listed |= {" ".join(process.cmdline()) for process in (run, *run.children(True))}
            with contextlib.suppress(subprocess.TimeoutExpired):
                printed = run.communicate(timeout=0.2)[0].decode()
                break
    assert run.returncode == 0, printed[-3000:]
    assert len(listed) >= 2
    return printed, "\n".join(listed)


def test_a_planted_secret_is_nowhere_after_a_whole_run(tmp_path: Path, port: int) -> None:
    root, home = report.root(), tmp_path / "home"
    (home / "data" / "reports").mkdir(parents=True)
    (home / "notebooks").mkdir()
    shutil.copy(publish.strategy_notebook(), home / "notebooks")
    common = {"kind": "openai", "model": "m", "api_key_env": VARIABLE}
    common |= {"url": f"http://127.0.0.1:{port}"}
    providers = [{"name": name} | common for name in ("first", "second")]
    given = {"experiment": "planted", "providers": providers, "prompts": [QUESTION] * 4}
    given |= {"rounds": 3, "stream": False, "store_text": False, "max_tokens": 4, "retries": 4}
    (tmp_path / "planted.yaml").write_text(json.dumps(given))  # which is YAML too
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "poclib", "run", str(tmp_path / "planted.yaml")]
    printed, listed = printed_and_listed(
        [*command, "--only", "shared-queue"],
        {**os.environ, VARIABLE: KEY, "POCLIB_HOME": str(home), "PYTHONPATH": path},
    )
    saved = report.load(home / "data" / "reports" / "planted-shared-queue.jsonl")
    assert any(row.outcome == "failed" for row in saved.requests), "the server did give it away"
    assert all(row.answer_sha256 for row in saved.requests if row.outcome == "ok")
    files = {str(p.relative_to(home)): p for p in home.rglob("*") if p.is_file()}
    texts = {name: p.read_bytes().decode(errors="replace") for name, p in files.items()}
    assert any(name.endswith(".html") for name in texts)
    for where, text in {"print": printed, "process list": listed, **texts}.items():
        secrets = [KEY, VARIABLE, "planted question"]
        if "planted" in where or where.startswith("pr"):  # not in samples and tools' own files
            secrets += ["planted answer", str(port)]
        assert [secret for secret in secrets if secret in text] == [], where
        if where.endswith(".html"):
            assert "<script" not in text and "onerror" not in re.sub("&[a-z]+;", "", text)
    # No control sequence reaches the terminal; colours of tools that run there are theirs.
    assert not any(control in printed for control in ("\x1b[2J", "\x1b]0", "\x07"))
