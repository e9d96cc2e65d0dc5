"""One address before several engines: gives each request an engine with room, lets the rest wait.

It knows HTTP's framing only: nothing of providers, prompts or how engines are started. A `bare`
provider is such a front with one single-slot engine for every request it can hold. Imports
`errors`.

A POST is a prompt: it waits its turn (or is refused), goes to one engine over a connection of
its own, and the answer's bytes come back as they are, until the engine closes. A client that
leaves takes its request with it, waiting or running. A GET is answered by the first engine, with
the slots of all. Keys pass through: the engines check them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import threading
from collections import deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from .errors import EngineError

_HOST = "127.0.0.1"
_CHUNK_BYTES = 64 * 1024
_MOST_BYTES = 64 * 2**20
_LOOK_S = 0.1  # how often a waiting request looks whether its client is still there
_IDLE_S = 600.0  # a client's connection that says nothing
RETRY_AFTER_S = 1


class Front:
    """Listens on `port`; each of `ports` takes `each` requests at a time.

    With `refuses` a request that finds no room is answered 503 with `Retry-After`; else it
    waits in the order of arrival. Raises `EngineError` where no port can be opened.
    """

    def __init__(self, ports: Sequence[int], each: int = 1, refuses: bool = False) -> None:
        self.ports, self.slots, self.refuses = tuple(ports), len(ports) * each, refuses
        self._lock = threading.Lock()
        # Engine after engine, so that the first requests meet on none.
        self._free: deque[int] = deque(port for _ in range(each) for port in ports)
        self._waiting: deque[_Turn] = deque()
        try:
            self._server = _Server(self)
        except OSError as error:
            raise EngineError(
                f"the front of the engines cannot open a port ({error.strerror}); "
                "close what uses so many, then start again."
            ) from None
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Accept nothing more; what still runs ends with its engine or with this process."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, client: socket.socket) -> int | None:
        """The port of an engine with room, waiting for it; None where refused or given up."""
        turn = _Turn()
        with self._lock:
            if self._free and not self._waiting:
                return self._free.popleft()
            if self.refuses:
                return None
            self._waiting.append(turn)
        while not turn.come.wait(_LOOK_S):
            if _is_gone(client):
                with self._lock:
                    if turn.port is None:
                        self._waiting.remove(turn)
                        return None
        return turn.port

    def give_back(self, port: int) -> None:
        """The engine has room again: whoever waits longest gets it."""
        with self._lock:
            if not self._waiting:
                self._free.append(port)
                return
            turn = self._waiting.popleft()
            turn.port = port
            turn.come.set()


class _Turn:
    """One waiting request, told its port when it comes."""

    def __init__(self) -> None:
        self.come = threading.Event()
        self.port: int | None = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, front: Front) -> None:
        self.front = front
        super().__init__((_HOST, 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that breaks off is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_S

    @property
    def front(self) -> Front:
        return cast(_Server, self.server).front

    def log_message(self, format: str, *args: Any) -> None:
        """The engines have logs of their own."""

    def do_GET(self) -> None:
        try:
            connection = http.client.HTTPConnection(_HOST, self.front.ports[0], timeout=_IDLE_S)
            with contextlib.closing(connection):
                connection.request("GET", self.path, headers=self._passed_on())
                answer = connection.getresponse()
                body = answer.read()
        except (OSError, http.client.HTTPException):
            self._tell(502, "the engine does not answer")
            return
        if self.path.partition("?")[0] == "/props":
            with contextlib.suppress(ValueError):
                props = json.loads(body)
                if "total_slots" in props:
                    body = json.dumps({**props, "total_slots": self.front.slots}).encode()
        self._send(answer.status, body, {"Content-Type": answer.getheader("Content-Type") or ""})

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self.close_connection = True
            self._tell(411, "a request needs a Content-Length of at most 64 MiB")
            return
        body = self.rfile.read(int(length))
        port = self.front.take(self.connection)
        if port is None:
            self._tell(503, "no slot is free", {"Retry-After": str(RETRY_AFTER_S)})
            return
        self.close_connection = True  # the engine's answer ends with its connection
        try:
            head = [f"POST {self.path} HTTP/1.1"]
            head += [f"{key}: {value}" for key, value in self._passed_on().items()]
            with socket.create_connection((_HOST, port)) as engine:
                engine.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                engine.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)
                _relay(engine, self.connection)
        except OSError:  # one of the two is gone: the other sees its connection end
            return
        finally:
            self.front.give_back(port)

    def _passed_on(self) -> dict[str, str]:
        kept = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        return {**kept, "Connection": "close"}

    def _tell(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        said = {"error": {"code": status, "message": sentence, "type": "unavailable_error"}}
        headers = {"Content-Type": "application/json", **(headers or {})}
        with contextlib.suppress(OSError):
            self._send(status, json.dumps(said).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _relay(engine: socket.socket, client: socket.socket) -> None:
    """The engine's bytes to the client, until the engine closes or the client leaves."""
    poll = select.poll()
    poll.register(engine, select.POLLIN)
    poll.register(client, select.POLLIN)
    while True:
        ready = {handle for handle, _ in poll.poll()}
        if engine.fileno() in ready:
            chunk = engine.recv(_CHUNK_BYTES)
            if not chunk:
                return
            client.sendall(chunk)
        elif _is_gone(client):
            return
        else:  # a next request, early: it will find the connection closed
            poll.unregister(client)


def _is_gone(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    if not poll.poll(0):  # a socket with a timeout would wait for it, whatever its flags
        return False
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True
