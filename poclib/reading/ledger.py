"""Where each millisecond of a request went: named parts that add up to its wall time.

Plain records in, plain numbers out; knows no file, no frame and no sentence. Each part has one
source: our own marks, what the server says of itself, or round-trip probes. What no source
explains stays a part of its own, `unexplained_ms`, and is never spread over the others. It is
negative where sources overlap: that, too, is shown.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from ..records import Probe, ProviderFacts, Report, Request
from ..stats import median
from .phases import between

# In the order they pass. `before_ms`: our own work until a connection is there; `connect_ms`
# and `send_ms` follow. `network_ms`: one round trip, as probes found it. Four parts of the
# server. `transfer_ms`: from the first byte to the last of an answer that was not streamed (a
# streamed one travels while it is generated). `parsing_ms`: from there to the answer in hand.
PARTS = (
    "before_ms",
    "connect_ms",
    "send_ms",
    "network_ms",
    "load_ms",
    "server_queue_ms",
    "prompt_ms",
    "generation_ms",
    "transfer_ms",
    "parsing_ms",
)
# Each of the parts that are ours, and of those that are the network's.
OURS = ("before_ms", "send_ms", "parsing_ms")
NETWORK = ("connect_ms", "network_ms", "transfer_ms")
# Round trips that stand for the network at one moment: as many as are taken in one go.
NEAREST = 5


def trips(report: Report, requests: Sequence[Request]) -> list[float | None]:
    """The network's round trip at the time of each request, in ms; None where none was probed.

    The median of the probes of its provider that are nearest in time.
    """
    taken: dict[str, list[Probe]] = {}
    for probe in sorted(report.probes, key=_at_ms):
        taken.setdefault(probe.provider, []).append(probe)
    return [_nearest(taken.get(one.provider, []), one.marks.start_ms) for one in requests]


def _nearest(own: Sequence[Probe], at_ms: float | None) -> float | None:
    if at_ms is not None:
        place = bisect.bisect(own, at_ms, key=_at_ms)
        around = own[max(0, place - NEAREST) : place + NEAREST]
        own = sorted(around, key=lambda probe: abs(probe.at_ms - at_ms))[:NEAREST]
    return median([_wire_ms(probe) for probe in own])


def _wire_ms(probe: Probe) -> float:
    """Without our own work in it, where the probe's marks tell."""
    return probe.round_trip_ms if probe.wire_ms is None else probe.wire_ms


def _at_ms(probe: Probe) -> float:
    return probe.at_ms


def parts(request: Request, trip: float | None, handshake_hidden: bool) -> dict[str, float]:
    """The parts of one request that some source tells, in ms, and what is left unexplained.

    `trip` is the network's round trip at the time. `handshake_hidden` is for a link made in
    software, where a connect returns at once and its round trip shows as waiting: a connection
    that was opened then counts that round trip, too. Empty without a wall time.
    """
    marks, server = request.marks, request.server
    wall = request.wall_ms
    if wall is None:
        return {}
    opened = between(marks.connect_start_ms, marks.connected_ms)
    fresh = opened is not None
    if opened is None and marks.sent_ms is not None:
        opened = 0.0
    if fresh and handshake_hidden and opened is not None:
        opened += trip or 0.0
    whole = None if request.token_ms else marks.first_byte_ms
    there = marks.connected_ms if fresh else marks.ready_ms
    # Without a mark of when the connection was there, sending holds all before the wire.
    found = {
        "before_ms": between(marks.start_ms, marks.connect_start_ms or marks.ready_ms),
        "connect_ms": opened,
        "send_ms": between(there if there is not None else marks.start_ms, marks.sent_ms),
        "network_ms": trip,
        "load_ms": server.load_ms,
        "server_queue_ms": server.queue_ms,
        "prompt_ms": server.prompt_ms,
        "generation_ms": server.generation_ms,
        "transfer_ms": between(whole, marks.last_byte_ms),
        "parsing_ms": between(marks.last_byte_ms, marks.end_ms),
    }
    told = {part: value for part in PARTS if (value := found[part]) is not None}
    if server.total_ms is not None and not any(
        part in told for part in ("load_ms", "server_queue_ms", "prompt_ms", "generation_ms")
    ):
        told["generation_ms"] = server.total_ms  # a server that tells its time in one number
    return told | {"unexplained_ms": wall - sum(told.values())}


def overhead(request: Request, trip: float | None, handshake_hidden: bool) -> dict[str, float]:
    """`over_ms` of one request as network, ours and unexplained, which add up to it.

    `server_queue_ms`, where the server reports it, is inside the server's own time and so
    beside `over_ms`, not in it. A part without a source is left out, and its time is then among
    the unexplained. Empty where the server reports no time.
    """
    over = request.over_ms
    told = parts(request, trip, handshake_hidden)
    if over is None or not told:
        return {}
    network = {part: told[part] for part in NETWORK if part in told}
    found = {
        "network_ms": sum(network.values()) if "network_ms" in network else None,
        "ours_ms": sum(told.get(part, 0.0) for part in OURS) if "parsing_ms" in told else None,
    }
    kept = {part: value for part, value in found.items() if value is not None}
    rest = over - sum(kept.values())
    queue = {k: v for k, v in told.items() if k == "server_queue_ms"}
    return {"over_ms": over, **kept, **queue, "unexplained_ms": rest}


def hidden_handshakes(providers: Sequence[ProviderFacts]) -> set[str]:
    """The providers behind a link made in software, where connecting shows as waiting."""
    return {one.name for one in providers if one.link is not None and one.link.round_trip_ms}
