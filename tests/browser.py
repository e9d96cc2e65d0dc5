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
from collections.abc import Callable, Iterator
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


NONE_HERE = (
    "no Chromium is here; install it (Debian: sudo apt install chromium), then run this again"
)


class Browser:
    """One browser with one page; `errors` and `asked` fill up as the page lives."""

    def __init__(self, send: Any, receive: int) -> None:
        self._send, self._receive, self._left = send, receive, b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.loaded = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something and give its answer; events are noted meanwhile."""
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": params}
        if self._session:
            asked["sessionId"] = self._session
        self._send.write(json.dumps(asked).encode() + b"\0")
        self._send.flush()
        answer: dict[str, Any] = {}

        def came() -> bool:
            return bool(answer)

        self._listen(came, lambda message: message.get("id") == number and answer.update(message))
        assert "error" not in answer, f"{method}: {answer}"
        return dict(answer["result"])

    def open(self, url: str, width: int, height: int = 844, dark: bool = False) -> None:
        """Show `url` in a window of that size, a phone's where it is narrow, until it is loaded."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        before = self.loaded
        self.call("Page.navigate", url=url)
        self._listen(lambda: self.loaded > before)

    def tell(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until a JavaScript expression is true."""
        ends_s = time.monotonic() + PATIENCE_S
        while not self.tell(script):
            assert time.monotonic() < ends_s, f"never came true: {script}"
            time.sleep(0.1)

    def _listen(
        self, enough: Callable[[], bool], also: Callable[[dict[str, Any]], Any] = lambda _: None
    ) -> None:
        ends_s = time.monotonic() + PATIENCE_S
        while not enough():
            line, mark, rest = self._left.partition(b"\0")
            if mark:
                self._left = rest
                message = json.loads(line)
                self._note(message.get("method", ""), message.get("params", {}))
                also(message)
                continue
            assert select.select([self._receive], [], [], ends_s - time.monotonic())[0], "silence"
            more = os.read(self._receive, 1 << 20)
            assert more, "the browser has ended"
            self._left += more

    def _note(self, event: str, said: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self.loaded += 1
        elif event == "Network.requestWillBeSent":
            self.asked.append(said["request"]["url"])
        elif event == "Network.webSocketCreated":
            self.asked.append(said["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"])[:2000])
        elif event == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.errors.append(json.dumps(said["args"])[:2000])
        elif event == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.errors.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")


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
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", path, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (theirs_in, theirs_out):
            os.close(end)
        stack.callback(os.close, ours_in)
        send = stack.enter_context(os.fdopen(ours_out, "wb"))
        try:
            one = Browser(send, ours_in)
            yield one
            one._session = None
            with contextlib.suppress(AssertionError, OSError):
                one.call("Browser.close")
                process.wait(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
