"""One engine process: started, pinned, tied to its keeper's life, waited for, and asked why it ended.

Used by the keeper, in the keeper's own process.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import psutil

from ..errors import EngineError

_POLL_S = 0.010
READY_S, _ANSWER_S = 60.0, 15.0
_PROMPT = json.dumps({"prompt": "One", "n_predict": 1})
# What a coordinator of sharded layers says when it ends, and what that means.
_KNOWN = {
    "version mismatch": "a worker is of another build of llama.cpp; use the same everywhere",
    "RPC server crashed": "a worker was lost, or the connection to it",
    "allocate": "a worker has not enough memory for its layers; use more workers",
}
_DIE_WITH_PARENT = 1  # Linux: PR_SET_PDEATHSIG


class Engine:
    """One engine process on a port that it takes itself, so that no stranger can be there."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._key, self._cores = config["key"], config["cores"]
        self._name, self._memory_bytes = config.get("name", "it"), config.get("memory_bytes")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - nameless, so it cannot be left over
        try:
            self.process = subprocess.Popen(
                config["command"],
                stdin=subprocess.PIPE,  # its end tells an engine of ours that the keeper is gone
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **config["environment"], "LLAMA_API_KEY": self._key},
                start_new_session=True,  # a Ctrl-C in the terminal does not reach it
                preexec_fn=self._pin_and_tie,
            )
        except OSError as error:  # a file for another kind of machine, or no file at all
            raise EngineError(f"it cannot be started ({error.strerror})") from None

    def wait(self, until_s: float) -> int:
        """Wait until it answers one token (some instructions are first needed there): its port.

        `until_s` is a moment of the monotonic clock. Raises `EngineError`.
        """
        while time.monotonic() < until_s and not parent_speaks(_POLL_S):
            self.check()
            if (port := self.port()) is None:
                continue
            if (status := self.answer(port)) == 200:
                return port
            if status not in (None, 503):  # 503: it is still loading the model
                raise self._problem(f"{self._name} gave no answer (HTTP {status})")
        raise self._problem(f"{self._name} was not ready after {READY_S:.0f} s")

    def listening(self, until_s: float) -> None:
        """Wait until it takes connections. Raises `EngineError`."""
        while self.port() is None:
            self.check()
            if time.monotonic() > until_s or parent_speaks(_POLL_S):
                raise self._problem(f"{self._name} does not listen")

    def check(self) -> None:
        """Raises `EngineError` where the process has ended."""
        if (code := self.process.poll()) is None:
            return
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        if code == -signal.SIGILL:
            how += " (it uses an instruction that this processor lacks)"
        raise self._problem(f"{self._name} {how}")

    def _problem(self, sentence: str) -> EngineError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        words = " | ".join(line.strip() for line in lines if line.strip())[-1200:]
        why = next((why for known, why in _KNOWN.items() if known in words), "")
        if why:
            return EngineError(f"{sentence}: {why}")
        return EngineError(f"{sentence}; its last words: {words or 'none'}")

    def _pin_and_tie(self) -> None:
        """Runs in the new process. Linux kills it even if its keeper is killed; others cannot."""
        if self._memory_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (self._memory_bytes, self._memory_bytes))
        if sys.platform == "linux":
            os.sched_setaffinity(0, self._cores)
            ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)

    def port(self) -> int | None:
        """Where it listens; None as long as it does not."""
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(self.process.pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    return int(connection.laddr.port)
        return None

    def answer(self, port: int) -> int | None:
        """The status of its answer to a prompt; None where none comes."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("POST", "/completion", _PROMPT, headers)
            return connection.getresponse().status
        return None


def parent_speaks(wait_s: float) -> bool:
    """Whether the parent sends a command, or ends, within this time."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])
