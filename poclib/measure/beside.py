"""Work with many providers side by side, where that disturbs nothing of what is measured.

Knows nothing of what the work is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..recording import ReportFile

# So many machines at once: few enough that the coordinator adds to none of their times (32 streams
# of 50 tokens a second take a tenth of its core), enough that a thousand are done in minutes.
MACHINES, HERE = 32, "localhost"
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")

Answer = TypeVar("Answer")


Work = Callable[[str, ReportFile], Awaitable[Answer]]


class Block(ReportFile):
    """The lines of one of several arms that go on at once: in a report's file an arm is whole.

    Nor does it wait for the disk, which would delay what the others are told.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[Mapping[str, Any]] = []

    def write(self, line: Mapping[str, Any]) -> None:
        self.lines.append(line)


def host(url: str | None) -> str:
    """The machine in a url, one name for all of loopback; "" where there is none."""
    name = urlsplit(url or "").hostname or ""
    return HERE if _LOOPBACK.fullmatch(name) else name


async def side_by_side(
    names: Collection[str], machine: Mapping[str, str], work: Work[Answer], file: ReportFile
) -> dict[str, Answer]:
    """What `work` gives for each provider; those of one machine go one after the other.

    They would measure each other. What is on this machine, as all embedded engines are, goes first
    and alone: it takes cores that the coordinator needs. Other machines go side by side, `MACHINES`
    at once; each arm then writes its block of `file` when it has ended, however that was, and the
    first error ends all.
    """
    machines: dict[str, list[str]] = {}
    for name in names:
        machines.setdefault(machine[name], []).append(name)
    alone = machines.pop(HERE, [])
    if len(machines) == 1:
        alone += machines.popitem()[1]
    found = {name: await work(name, file) for name in alone}
    gate = asyncio.Semaphore(MACHINES)

    async def in_turn(own: Sequence[str]) -> None:
        async with gate:
            for name in own:
                block = Block()
                try:
                    found[name] = await work(name, block)
                finally:
                    for line in block.lines:
                        file.write(line)

    try:
        async with asyncio.TaskGroup() as group:
            for own in machines.values():
                group.create_task(in_turn(own))
    except ExceptionGroup as several:  # of which all but the first are the rarest of chances
        raise several.exceptions[0] from None
    if machines:
        file.sync()
    return {name: found[name] for name in names}
