"""A headless Chromium, spoken to over a pipe: no port, no driver, no library of its own.

It notes what a person would not see: errors in the console, and every address that was asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-default-apps", "--disable-extensions", "--disable-dev-shm-usage"),
    "--remote-debugging-pipe",
]
# What a slow machine may take.
PATIENCE_S = 120.0


def found() -> str | None:
    """The browser's path; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


NONE_HERE = "no Chromium is here; install it (Debian: sudo apt install chromium)"


class Browser:
    """One browser with one page; `errors` and `asked` fill up as the page lives."""

    def __init__(self, send: Any, receive: int) -> None:
        self._send, self._receive, self._left = send, receive, b""
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.loaded = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something and give its answer; events are noted meanwhile."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": params, **self._session}
        self._send.write(json.dumps(asked).encode() + b"\0")
        self._send.flush()
        while (answer := self._next()).get("id") != number:
            pass
        assert "error" not in answer, f"{method}: {answer}"
        return dict(answer["result"])

    def open(self, url: str, width: int, dark: bool = False) -> None:
        """Show `url` in a window of that width until it is loaded; a phone's where it is narrow."""
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        before = self.loaded
        self.call("Page.navigate", url=url)
        while self.loaded == before:
            self._next()

    def tell(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **wanted)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        ends_s = time.monotonic() + PATIENCE_S
        while not self.tell(script):
            assert time.monotonic() < ends_s, f"never came true: {script}"
            time.sleep(0.1)

    def _next(self) -> dict[str, Any]:
        """The next message, noted if it is an event."""
        while b"\0" not in self._left:
            assert select.select([self._receive], [], [], PATIENCE_S)[0], "silence"
            more = os.read(self._receive, 1 << 20)
            assert more, "the browser has ended"
            self._left += more
        line, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        event, told = message.get("method"), message.get("params", {})
        self.loaded += event == "Page.loadEventFired"
        if event in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            self.asked.append(told.get("request", told)["url"])
        level = told.get("type") or told.get("entry", {}).get("level")
        if event == "Runtime.exceptionThrown" or level in ("error", "assert"):
            self.errors.append(line.decode()[:2000])
        return message


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, ended on every way out, with all that it started."""
    path = found()
    assert path, NONE_HERE
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        )
        # It reads from descriptor 3 and writes to 4; a plain sh knows no number over 9.
        shell = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        command = ["bash", "-c", shell, "bash", path, *FLAGS, f"--user-data-dir={profile}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        ends = theirs_in, theirs_out
        process = subprocess.Popen(command, pass_fds=ends, start_new_session=True, **quiet)
        for end in ends:
            os.close(end)
        stack.callback(os.close, ours_in)
        send = stack.enter_context(os.fdopen(ours_out, "wb"))
        try:
            yield Browser(send, ours_in)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
