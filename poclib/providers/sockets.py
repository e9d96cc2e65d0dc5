"""Sockets: made only for addresses that are allowed, and knowing when their bytes came.

Knows the system only: nothing of HTTP, providers or requests.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ipaddress
import platform
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

PRIVATE_V4 = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16"
PRIVATE = [ipaddress.ip_network(n) for n in f"{PRIVATE_V4} ::1/128 fc00::/7 fe80::/10".split()]
# Linux's number, on 64-bit x86 and Arm, for the moment at which a packet was received.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_TIMESPEC_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
# Nobody reads bytes that late: then a clock was set in between, or the kernel's is another.
_LATEST_S = 5.0


def is_private(address: str) -> bool:
    """Whether an IP address (no name) is loopback, link-local or private (RFC 1918, 4193)."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return any((mapped or ip) in net for net in PRIVATE)


class NotAllowed(OSError):
    """A socket was asked for, to a public address."""


class Stamped(socket.socket):
    """A socket that knows when its last bytes came, however late they are read.

    `arrived_s` is by `time.perf_counter`: on Linux as the kernel noted it, before anybody was
    woken; elsewhere when they were taken.
    """

    arrived_s = 0.0
    noted = False  # whether the kernel notes it

    def stamp(self) -> None:
        """Have the kernel note it, where it can."""
        if sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64"):
            with contextlib.suppress(OSError):
                self.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                self.noted = True

    def recv(self, size: int, flags: int = 0) -> bytes:
        data, notes, _, _ = self.recvmsg(size, _TIMESPEC_SPACE * self.noted, flags)
        self._arrived(notes)
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer)[: size or None]
        count, notes, _, _ = self.recvmsg_into([view], _TIMESPEC_SPACE * self.noted, flags)
        self._arrived(notes)
        return count

    def _arrived(self, notes: Sequence[tuple[int, int, bytes]]) -> None:
        self.arrived_s = time.perf_counter()
        for level, kind, value in notes:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                # By the system's clock, as is what it is compared with at once.
                late_s = time.time() - seconds - nanoseconds / 1e9
                if 0 < late_s < _LATEST_S:
                    self.arrived_s -= late_s


class Lookups:
    """The system's resolver, in threads that nobody waits for.

    The loop's own threads are waited for when it closes, so that a lookup which hangs would hold
    up the end of a run by as long.
    """

    async def getaddrinfo(self, *what: Any, **how: Any) -> Any:
        return await self._looked_up(lambda: socket.getaddrinfo(*what, **how))

    async def getnameinfo(self, *what: Any) -> Any:
        return await self._looked_up(lambda: socket.getnameinfo(*what))

    async def _looked_up(self, look: Callable[[], Any]) -> Any:
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        answer.set_running_or_notify_cancel()  # who waits may go, the thread goes on

        def work() -> None:
            try:
                answer.set_result(look())
            except Exception as error:
                answer.set_exception(error)

        threading.Thread(target=work, daemon=True, name="poclib-lookup").start()
        return await asyncio.wrap_future(answer)
