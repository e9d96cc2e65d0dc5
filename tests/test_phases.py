"""Where each millisecond went: against arithmetic by hand, and on every saved report."""

import math
from pathlib import Path
from typing import Any

import pytest

from poclib import report
from poclib.reading import phases, tables
from poclib.reading.reading import read
from poclib.records import Probe, ProviderFacts, Request

DIRECT = ProviderFacts(name="remote", kind="ollama", role="remote")
LINKED = ProviderFacts.model_validate({**DIRECT.model_dump(), "link": {"round_trip_ms": 20}})
WARM = {"connect_start_ms": None, "connected_ms": None}


def request(marks: dict[str, Any] | None = None, **changes: Any) -> Request:
    """300 ms to a server that says it took 250, over a connection that was opened for it."""
    seen = {
        "start_ms": 1000,
        "connect_start_ms": 1001,
        "connected_ms": 1011,
        "sent_ms": 1013,
        "first_byte_ms": 1100,
        "first_token_ms": 1100,
        "last_byte_ms": 1298,
        "end_ms": 1300,
    }
    facts: dict[str, Any] = {
        "prompt": 0,
        "provider": "remote",
        "wall_ms": 300,
        "marks": seen | (marks or {}),
        "server": {"queue_ms": 30, "prompt_ms": 70, "generation_ms": 150, "total_ms": 250},
        "token_ms": [1100, 1290],
    }
    return Request.of({**facts, **changes})


@pytest.mark.parametrize(
    ("sent", "facts", "trip", "network", "ours"),
    [
        (request(), DIRECT, 20, 20 + 10, 1 + 2 + 2),
        # On a link made in software the handshake shows as waiting: one more round trip.
        (request(), LINKED, 20, 20 + 10 + 20, 1 + 2 + 2),
        (request(WARM), LINKED, 20, 20, 13 + 2),
        (request(WARM | {"ready_ms": 1004}), LINKED, 20, 20, 4 + 9 + 2),
        (request(token_ms=None), DIRECT, 20, 20 + 10 + 198, 5),  # in one piece: its transfer
        (request(), DIRECT, None, None, 5),
        (request({"last_byte_ms": None}), DIRECT, 20, 30, None),
    ],
)
def test_overhead_is_network_ours_and_unexplained(
    sent: Request, facts: ProviderFacts, trip: float | None, network: Any, ours: Any
) -> None:
    found = phases.overhead(sent, facts, trip)
    assert (found.get("network_ms"), found.get("ours_ms")) == (network, ours)
    assert (found["over_ms"], found["server_queue_ms"]) == (50, 30)
    assert found["unexplained_ms"] == 50 - (network or 0) - (ours or 0)


def test_without_the_servers_time_nothing_lies_outside_it() -> None:
    assert phases.overhead(request(server={}), DIRECT, 20) == {}


def test_the_round_trip_is_the_median_of_its_probes_without_our_own_work() -> None:
    probes = [Probe(provider="remote", at_ms=t, round_trip_ms=t + 1) for t in range(5)]
    probes += [Probe(provider="local", at_ms=9, round_trip_ms=0.5, wire_ms=0.3)]
    probed = report.load("published-phase-0").model_copy(update={"probes": probes})
    found = [phases.trip(probed, provider) for provider in ("remote", "local", "stranger")]
    assert found == [3, 0.3, None]


ROW: dict[str, float | None] = {
    "wall_ms": 100,
    "server_ms": 80,
    "connect_ms": 2,
    "send_ms": 3,
    "first_byte_wait_ms": 20,
    "first_token_wait_ms": 5,
    "generating_ms": 66,
    "last_byte_ms": 4,
}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, {"connect_send_ms": 5, "first_token_ms": 25, "generating_ms": 66, "own_ms": 4}),
        (
            {"generating_ms": None, "first_token_wait_ms": math.nan},
            {"connect_send_ms": 5, "answering_ms": 91, "own_ms": 4},
        ),
        ({"send_ms": None}, {"answering_ms": 80, "outside_ms": 20}),
        ({"send_ms": None, "server_ms": 120}, {"answering_ms": 100, "outside_ms": 0}),
        ({"send_ms": None, "server_ms": None}, {"answering_ms": 100}),
        ({"wall_ms": math.nan}, {}),
    ],
)
def test_segments_add_up_to_the_wall(
    changes: dict[str, float | None], parts: dict[str, float]
) -> None:
    found = phases.segments({**ROW, **changes})
    assert found == parts and set(found) <= {phase.key for phase in phases.SEGMENTS}
    assert not found or sum(found.values()) == 100


FOLDER = Path(__file__).parents[1] / "data" / "reports"
COMMITTED = sorted(p for p in FOLDER.rglob("*.json") if p.name.startswith(("sample-", "publ")))
# These have engines that work on several requests at once.
APART = ("all-parallel", "batched")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_what_lies_outside_the_servers_of_every_committed_report_adds_up(path: Path) -> None:
    """What sources explain never exceeds the wall by more than 1 % or 0.5 ms, save for jitter.

    A part counted twice, or clocks that disagree, would show here. Where requests do not share a
    server, sources explain half of the walls as nearly as that.
    """
    reading = read(path)
    walls = [r.wall_ms or 0.0 for arm in ("warm-up", "calibration") for r in reading.answered(arm)]
    frame = tables.overhead(reading).dropna(subset=["over_ms"])
    parts = frame[["network_ms", "ours_ms", "unexplained_ms"]].fillna(0).sum(axis=1)
    assert len(frame) and parts.to_numpy() == pytest.approx(frame["over_ms"].to_numpy())
    slack_ms = max(0.5, 0.01 * min(walls, default=0.0))
    rests = frame["unexplained_ms"] / slack_ms
    assert (rests < -1).sum() <= 0.05 * len(rests)
    if path.parent == FOLDER and path.name.startswith("sample-") and not path.stem.endswith(APART):
        assert (rests.abs() <= 1).sum() > len(rests) / 2
