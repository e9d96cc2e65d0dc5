"""The phases of one request, in one table: where each begins and ends, its name, meaning, colour.

Frames, tables, words and charts are made from it. Knows no report and draws nothing. Colours are
Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..records import Request

WAITING, SENDING, FIRST, GENERATING, OWN = "#bdbdbd", "#56b4e9", "#0072b2", "#e69f00", "#000000"
UNSPLIT, OUTSIDE = "#009e73", "#cc79a7"


@dataclass(frozen=True)
class Phase:
    """One phase: its column `key` in frames, and what readers see of it.

    It lies between the marks `begin` and `end` (fields of `RequestMarks` without `_ms`), or is
    told by the server (`told`, a field of `ServerTimings`), or is derived (neither).
    """

    key: str
    label: str
    meaning: str = ""
    colour: str = OUTSIDE
    begin: str = ""
    end: str = ""
    told: str = ""


# In the order in which a request passes them; from `connect_ms` on they add up to the wall time.
CLIENT = (
    Phase("queued_ms", "waiting for a slot", "in the coordinator, for the provider to have room; "
          "no part of the wall time", WAITING, "assigned", "start"),
    Phase("connect_ms", "connecting", "opening a connection; 0 on one that is already open",
          SENDING, "connect_start", "connected"),
    Phase("send_ms", "sending", "writing the request, up to its last byte", SENDING, "start",
          "sent"),
    Phase("first_byte_wait_ms", "to first byte", "the request travels, the server takes it up, "
          "and the beginning of an answer travels back", FIRST, "sent", "first_byte"),
    Phase("first_token_wait_ms", "to first token", "the server reads the prompt and computes the "
          "answer's first token (a piece of a word)", FIRST, "first_byte", "first_token"),
    Phase("generating_ms", "generating", "token by token, to the answer's last byte", GENERATING,
          "first_token", "last_byte"),
    Phase("last_byte_ms", "our own overhead", "from the last byte to the answer parsed", OWN,
          "last_byte", "end"),
)  # fmt: skip
SERVER = (
    Phase("server_queue_ms", "server: queue", "waiting inside the server, where it says so",
          WAITING, told="queue_ms"),
    Phase("load_ms", "server: load", "loading the model, where it says so", WAITING,
          told="load_ms"),
    Phase("prompt_ms", "server: prompt", "reading the prompt, by the server's own clock", FIRST,
          told="prompt_ms"),
    Phase("generation_ms", "server: generation", "the answer, by the server's own clock",
          GENERATING, told="generation_ms"),
)  # fmt: skip
WALL = Phase("wall_ms", "wall time", "all of it, from the request handed to the transport to the "
             "answer parsed")  # fmt: skip
TOTALS = (
    Phase("server_ms", "server time", "what the server reports for this request in all",
          told="total_ms"),
    Phase("over_ms", "over", "wall time less server time: network, HTTP, waiting, parsing"),
    Phase("ttft_ms", "time to first token", "from the start of the wall time to the first token",
          begin="start", end="first_token"),
    Phase("ms_per_token", "wall per token", "wall time over the answer's tokens"),
)  # fmt: skip
PHASES = (*CLIENT, WALL, *SERVER, *TOTALS)

# What a breakdown stacks, in order. The last two stand in where a report holds no marks: what the
# server says of itself, and the rest.
SEGMENTS = (
    Phase("connect_send_ms", "connect and send", colour=SENDING),
    Phase("first_token_ms", "to first token", colour=FIRST),
    Phase("generating_ms", "generating", colour=GENERATING),
    Phase("own_ms", "our own overhead", colour=OWN),
    Phase("answering_ms", "answering, not split", colour=UNSPLIT),
    Phase("outside_ms", "outside the server", colour=OUTSIDE),
)
# What lies outside a server's own time, and the queue that it reports itself.
OVERHEAD = (
    Phase("over_ms", "all outside its server", colour="white"),
    Phase("network_ms", "the network", colour=SENDING),
    Phase("server_queue_ms", "queue, told by the server", colour=WAITING),
    Phase("ours_ms", "our own work", colour=OWN),
    Phase("unexplained_ms", "not explained", colour=OUTSIDE),
)


LABELS = {phase.key: phase.label for phase in (*OVERHEAD, *SEGMENTS, *PHASES)}
COLOURS = {phase.key: phase.colour for phase in (*CLIENT, *SERVER, *SEGMENTS)}


def times(request: Request) -> dict[str, float | None]:
    """Every phase of one request in ms, by key; None where a mark or the server's word is missing.

    `connect_ms` is 0 on a warm connection; `send_ms` holds all before the request's last byte
    that is no connecting.
    """
    marks = request.marks.model_dump()
    found: dict[str, float | None] = {}
    for phase in (*CLIENT, *SERVER, *TOTALS):
        if phase.told:
            found[phase.key] = getattr(request.server, phase.told)
        elif phase.begin:
            found[phase.key] = between(marks[f"{phase.begin}_ms"], marks[f"{phase.end}_ms"])
    if found["connect_ms"] is None and request.marks.sent_ms is not None:
        found["connect_ms"] = 0.0
    sent, connect = found["send_ms"], found["connect_ms"]
    found["send_ms"] = None if sent is None or connect is None else sent - connect
    if request.queued_ms is not None:
        found["queued_ms"] = request.queued_ms
    return found | {"wall_ms": request.wall_ms, "over_ms": request.over_ms}


def between(begin: float | None, end: float | None) -> float | None:
    """The time from one mark to another; None where one is missing."""
    return None if begin is None or end is None else end - begin


def in_use(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """The keys of `SEGMENTS` that any of the rows has, in order."""
    rows = list(rows)
    return [phase.key for phase in SEGMENTS if any(phase.key in row for row in rows)]


def segments(row: Mapping[str, Any]) -> dict[str, float]:
    """One request's wall time in `SEGMENTS`, which add up to it; `row` has phases by key.

    Not streamed: the middle two are one, `answering_ms`. Without marks: the server's own time and
    what lies outside it.
    """

    def known(key: str) -> float | None:
        value = row[key]
        return None if value is None or value != value else float(value)

    wall, server = known("wall_ms"), known("server_ms")
    if wall is None:
        return {}
    send, own = known("send_ms"), known("last_byte_ms")
    if send is None or own is None:
        if server is None:
            return {"answering_ms": wall}
        return {"answering_ms": min(server, wall), "outside_ms": wall - min(server, wall)}
    sent = send + (known("connect_ms") or 0.0)
    first, second = known("first_byte_wait_ms"), known("first_token_wait_ms")
    generating = known("generating_ms")
    if first is None or second is None or generating is None:
        return {"connect_send_ms": sent, "answering_ms": wall - sent - own, "own_ms": own}
    return {
        "connect_send_ms": sent,
        "first_token_ms": first + second,
        "generating_ms": generating,
        "own_ms": own,
    }
