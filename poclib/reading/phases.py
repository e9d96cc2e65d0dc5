"""The phases of one request, in one table: where each begins and ends, its name, meaning, colour.

Frames, tables, words and charts are made from it; draws nothing. Below it: where each millisecond
went, in parts that each have one source (our own marks, the server's word, round-trip probes).
What no source explains stays a part of its own, `unexplained_ms`; it is negative where sources
overlap. Colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..records import Probe, ProviderFacts, Report, Request
from ..stats import median

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


# ---- Where each millisecond of a request went -----------------------------------------------

# `before_ms`: our own work until a connection is there. `network_ms`: one round trip, as probes
# found it. `transfer_ms`: first to last byte of an answer that was not streamed (a streamed one
# travels while it is generated). `parsing_ms`: from there to the answer in hand.
OURS = ("before_ms", "send_ms", "parsing_ms")
NETWORK = ("connect_ms", "network_ms", "transfer_ms")
_OF_THE_SERVER = {phase.key: phase.told for phase in SERVER}
# Round trips that stand for the network at one moment: as many as are taken in one go.
NEAREST = 5


def trips(report: Report, requests: Sequence[Request]) -> list[float | None]:
    """The network's round trip at the time of each request, in ms; None where none was probed.

    The median of the `NEAREST` probes of its provider that are nearest in time, without our own
    work where their marks tell it.
    """
    taken: dict[str, list[Probe]] = {}
    for probe in sorted(report.probes, key=_at_ms):
        taken.setdefault(probe.provider, []).append(probe)
    return [_nearest(taken.get(row.provider, []), row.marks.start_ms) for row in requests]


def _nearest(probes: Sequence[Probe], at_ms: float | None) -> float | None:
    if at_ms is not None:
        place = bisect.bisect(probes, at_ms, key=_at_ms)
        around = probes[max(0, place - NEAREST) : place + NEAREST]
        probes = sorted(around, key=lambda probe: abs(probe.at_ms - at_ms))[:NEAREST]
    return median([p.round_trip_ms if p.wire_ms is None else p.wire_ms for p in probes])


def _at_ms(probe: Probe) -> float:
    return probe.at_ms


def parts(request: Request, trip: float | None, handshake_hidden: bool) -> dict[str, float]:
    """The parts of one request that some source tells, in ms; with the rest they are its wall.

    `trip` is the network's round trip at the time. `handshake_hidden`: on a link made in software
    a connect returns at once and its round trip shows as waiting, so that a connection that was
    opened counts one more. Empty without a wall time.
    """
    marks, server, wall = request.marks, request.server, request.wall_ms
    if wall is None:
        return {}
    opened = between(marks.connect_start_ms, marks.connected_ms)
    # Without a mark of when the connection was there, sending holds all before the wire.
    there = marks.ready_ms if opened is None else marks.connected_ms
    if opened is not None and handshake_hidden:
        opened += trip or 0.0
    if opened is None and marks.sent_ms is not None:
        opened = 0.0
    whole = None if request.token_ms else marks.first_byte_ms
    known = {
        "before_ms": between(marks.start_ms, marks.connect_start_ms or marks.ready_ms),
        "connect_ms": opened,
        "send_ms": between(marks.start_ms if there is None else there, marks.sent_ms),
        "network_ms": trip,
        **{key: getattr(server, told) for key, told in _OF_THE_SERVER.items()},
        "transfer_ms": between(whole, marks.last_byte_ms),
        "parsing_ms": between(marks.last_byte_ms, marks.end_ms),
    }
    told: dict[str, float] = {part: value for part, value in known.items() if value is not None}
    if server.total_ms is not None and not told.keys() & _OF_THE_SERVER:
        told["generation_ms"] = server.total_ms  # a server that tells its time in one number
    return told | {"unexplained_ms": wall - sum(told.values())}


def overhead(request: Request, trip: float | None, handshake_hidden: bool) -> dict[str, float]:
    """`over_ms` of one request as network, ours and unexplained, which add up to it.

    `server_queue_ms`, where the server reports it, is inside its own time and so beside
    `over_ms`. A part without a source is left out. Empty where the server reports no time.
    """
    over, told = request.over_ms, parts(request, trip, handshake_hidden)
    if over is None or not told:
        return {}
    sums = {}
    if "network_ms" in told:
        sums["network_ms"] = sum(told.get(part, 0.0) for part in NETWORK)
    if "parsing_ms" in told:
        sums["ours_ms"] = sum(told.get(part, 0.0) for part in OURS)
    queue = {key: told[key] for key in ("server_queue_ms",) if key in told}
    return {"over_ms": over, **sums, **queue, "unexplained_ms": over - sum(sums.values())}


def hidden_handshakes(providers: Sequence[ProviderFacts]) -> set[str]:
    """The providers behind a link made in software, where connecting shows as waiting."""
    return {facts.name for facts in providers if facts.link and facts.link.round_trip_ms}
