"""A socket that knows when its bytes came, however late it is read.

Knows the system only: nothing of HTTP, providers or requests.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

# Linux's number, on 64-bit x86 and Arm, for the moment at which a packet was received.
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_TOLD_BYTES = socket.CMSG_SPACE(_TIMESPEC.size)
# Nobody reads bytes that late: then a clock was set in between, or the kernel's is another.
_LATEST_S = 5.0


class Stamped(socket.socket):
    """A socket that knows when its last bytes came: what a task is told of only later.

    On Linux as the kernel noted it, before anybody was woken; elsewhere when they were taken.
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
        if self.noted:
            data, told, _, _ = self.recvmsg(size, _TOLD_BYTES, flags)
        else:
            data, told = super().recv(size, flags), []
        self._arrived(told)
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        if self.noted and not size:
            count, told, _, _ = self.recvmsg_into([buffer], _TOLD_BYTES, flags)
        else:
            count, told = super().recv_into(buffer, size, flags), []
        self._arrived(told)
        return count

    def _arrived(self, told: Sequence[tuple[int, int, bytes]]) -> None:
        self.arrived_s = time.perf_counter()
        for level, kind, value in told:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(value)
                # By the system's clock, as is what it is compared with at once.
                late_s = time.time() - seconds - nanoseconds / 1e9
                if 0 < late_s < _LATEST_S:
                    self.arrived_s -= late_s
