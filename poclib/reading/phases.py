"""The phases of one request: their order, names, meanings and colours, and how long each took.

Frames, tables, words and charts are made from it; draws nothing. Colours are Okabe and Ito's,
which colour-blind readers can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import asdict

from ..records import ProviderFacts, Report, Request
from ..stats import median

WAITING, SENDING, FIRST, GENERATING, OWN = "#bdbdbd", "#56b4e9", "#0072b2", "#e69f00", "#000000"
UNSPLIT, OUTSIDE = "#009e73", "#cc79a7"


class Phase(NamedTuple):
    """One phase: its column `key` in frames, and what readers see of it.

    It lies between the marks `begin` and `end` (fields of `RequestMarks` without `_ms`), or is
    `told` by the server (a field of `ServerTimings`), or is derived.
    """

    key: str
    label: str
    colour: str = OUTSIDE
    meaning: str = ""
    begin: str = ""
    end: str = ""
    told: str = ""


# In the order in which a request passes them; from `connect_ms` on they add up to the wall time.
CLIENT = (
    Phase("queued_ms", "waiting for a slot", WAITING, "in the coordinator, before the wall time",
          "assigned", "start"),
    Phase("connect_ms", "connecting", SENDING, "opening a connection; 0 where one is open",
          "connect_start", "connected"),
    Phase("send_ms", "sending", SENDING, "writing the request, up to its last byte",
          "start", "sent"),
    Phase("first_byte_wait_ms", "to first byte", FIRST, "to the server, its start, and back",
          "sent", "first_byte"),
    Phase("first_token_wait_ms", "to first token", FIRST, "reading the prompt, to one token",
          "first_byte", "first_token"),
    Phase("generating_ms", "generating", GENERATING, "token by token, to the last byte",
          "first_token", "last_byte"),
    Phase("last_byte_ms", "our own overhead", OWN, "from the last byte to the answer parsed",
          "last_byte", "end"),
)  # fmt: skip
SERVER = (
    Phase("server_queue_ms", "server: queue", WAITING, "waiting inside the server",
          told="queue_ms"),
    Phase("load_ms", "server: load", WAITING, "loading the model", told="load_ms"),
    Phase("prompt_ms", "server: prompt", FIRST, "reading the prompt, by the server's clock",
          told="prompt_ms"),
    Phase("generation_ms", "server: generation", GENERATING, "the answer, by the server's clock",
          told="generation_ms"),
)  # fmt: skip
TOTALS = (
    Phase("server_ms", "server time", meaning="what the server reports for this request in all",
          told="total_ms"),
    Phase("over_ms", "over", meaning="wall time less server time: network, waiting, our work"),
    Phase("ttft_ms", "time to first token", meaning="from the start of the wall time",
          begin="start", end="first_token"),
    Phase("ms_per_token", "wall per token", meaning="wall time over the answer's tokens"),
)  # fmt: skip
AHEAD = Phase("ahead_ms", "connected ahead", SENDING, "opening its connection while the answer "
              "before it came: no part of the wall time")  # fmt: skip
WALL = Phase("wall_ms", "wall time", meaning="from the request sent off to the answer parsed")
PHASES = (*CLIENT, AHEAD, WALL, *SERVER, *TOTALS)

# What a breakdown stacks, in order. The last two stand in where a report holds no marks: what the
# server says of itself, and the rest.
SEGMENTS = (
    Phase("connect_send_ms", "connect and send", SENDING),
    Phase("first_token_ms", "to first token", FIRST),
    Phase("generating_ms", "generating", GENERATING),
    Phase("own_ms", "our own overhead", OWN),
    Phase("answering_ms", "answering, not split", UNSPLIT),
    Phase("outside_ms", "outside the server", OUTSIDE),
)
# What lies outside a server's own time, and the queue that it reports itself.
OVERHEAD = (
    Phase("over_ms", "all outside its server"),
    Phase("network_ms", "the network"),
    Phase("server_queue_ms", "queue, told by the server"),
    Phase("ours_ms", "our own work"),
    Phase("unexplained_ms", "not explained"),
)
LABELS = {phase.key: phase.label for phase in (*OVERHEAD, *SEGMENTS, *PHASES)}
COLOURS = {phase.key: phase.colour for phase in (*CLIENT, *SERVER, *SEGMENTS)}


def times(request: Request) -> dict[str, float | None]:
    """Every phase of one request in ms, by key; None where a mark or the server's word is missing.

    `connect_ms` is 0 on a warm connection; `send_ms` holds all before the request's last byte
    that is no connecting.
    """
    marks = asdict(request.marks)
    lengths: dict[str, float | None] = {}
    for phase in PHASES:
        if phase.told:
            lengths[phase.key] = getattr(request.server, phase.told)
        elif phase.begin:
            lengths[phase.key] = between(marks[f"{phase.begin}_ms"], marks[f"{phase.end}_ms"])
    if lengths["connect_ms"] is None and request.marks.sent_ms is not None:
        lengths["connect_ms"] = 0.0
    lengths["send_ms"] = between(lengths["connect_ms"], lengths["send_ms"])
    if request.queued_ms is not None:
        lengths["queued_ms"] = request.queued_ms
    lengths["ahead_ms"] = request.marks.ahead_ms
    return lengths | {"wall_ms": request.wall_ms, "over_ms": request.over_ms}


def between(begin: float | None, end: float | None) -> float | None:
    """The time from one mark to another; None where one is missing."""
    return None if begin is None or end is None else end - begin


def in_use(rows: Iterable[Mapping[str, float]]) -> list[str]:
    """The keys of `SEGMENTS` that any of the rows has, in order."""
    keys = {key for row in rows for key in row}
    return [phase.key for phase in SEGMENTS if phase.key in keys]


def segments(row: Mapping[str, Any]) -> dict[str, float]:
    """One request's wall time in `SEGMENTS`, which add up to it; `row` has phases by key.

    Not streamed: the middle two are one, `answering_ms`. Without marks: the server's own time and
    what lies outside it.
    """
    keys = ("wall_ms", "server_ms", *(phase.key for phase in CLIENT[1:]))
    wall, server, connect, send, first_byte, first_token, generating, own = (
        math.nan if row[key] is None else row[key] for key in keys
    )
    sent, first = connect + send, first_byte + first_token
    if math.isnan(wall):
        return {}
    if math.isnan(sent + own):
        if math.isnan(server):
            return {"answering_ms": wall}
        answering = min(server, wall)
        return {"answering_ms": answering, "outside_ms": wall - answering}
    if math.isnan(first + generating):
        return {"connect_send_ms": sent, "answering_ms": wall - sent - own, "own_ms": own}
    answered = {"first_token_ms": first, "generating_ms": generating}
    return {"connect_send_ms": sent, **answered, "own_ms": own}


def trip(report: Report, provider: str) -> float | None:
    """The network's round trip to a provider in ms, as probes tell it; None where none was sent.

    Their median, without our own work where their marks tell it.
    """
    probes = [probe for probe in report.probes if probe.provider == provider]
    return median([p.round_trip_ms if p.wire_ms is None else p.wire_ms for p in probes])


def overhead(request: Request, facts: ProviderFacts, trip: float | None) -> dict[str, float]:
    """`over_ms` of one request as network, ours and unexplained, which add up to it; in ms.

    `network_ms`: the round trip, a connect where one was opened, and the transfer of an answer
    that was not streamed. `ours_ms`: our work before the request's last byte and after the
    answer's. `server_queue_ms` is inside the server's own time, so beside `over_ms`. A part
    without a source is left out; the unexplained is negative where sources overlap.
    """
    marks, known = request.marks, times(request)
    over, ours = known["over_ms"], known["last_byte_ms"]
    if over is None:
        return {}
    parts: dict[str, float] = {}
    if trip is not None:
        # On a link made in software a connect returns at once; its round trip shows as waiting.
        hidden = trip if facts.link and facts.link.round_trip_ms else 0.0
        connect = between(marks.connect_start_ms, marks.connected_ms)
        opened = 0.0 if connect is None else connect + hidden
        whole = None if request.token_ms else between(marks.first_byte_ms, marks.last_byte_ms)
        parts["network_ms"] = trip + opened + (whole or 0.0)
    if ours is not None:
        parts["ours_ms"] = (known["send_ms"] or 0.0) + ours
    unexplained = over - sum(parts.values())
    if request.server.queue_ms is not None:
        parts["server_queue_ms"] = request.server.queue_ms
    return {"over_ms": over, **parts, "unexplained_ms": unexplained}
