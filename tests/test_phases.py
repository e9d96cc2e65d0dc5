"""Where each millisecond went: parts against arithmetic by hand, and on every saved report."""

import math
from pathlib import Path
from typing import Any

import pytest

from poclib import report
from poclib.reading import phases, tables
from poclib.reading.reading import of
from poclib.records import Probe, Request


def request(**changes: Any) -> Request:
    """300 ms to a server that says it took 250, over a connection that was opened for it."""
    facts: dict[str, Any] = {
        "prompt": 0,
        "provider": "remote",
        "wall_ms": 300,
        "marks": {
            "start_ms": 1000,
            "connect_start_ms": 1001,
            "connected_ms": 1011,
            "sent_ms": 1013,
            "first_byte_ms": 1100,
            "first_token_ms": 1100,
            "last_byte_ms": 1298,
            "end_ms": 1300,
        },
        "server": {"queue_ms": 30, "prompt_ms": 70, "generation_ms": 150, "total_ms": 250},
        "token_ms": [1100, 1290],
    }
    return Request.model_validate({**facts, **changes})


def test_the_parts_of_a_request_by_hand() -> None:
    assert phases.parts(request(), 20, handshake_hidden=False) == {
        "before_ms": 1,
        "connect_ms": 10,
        "send_ms": 2,
        "network_ms": 20,
        "server_queue_ms": 30,
        "prompt_ms": 70,
        "generation_ms": 150,
        "parsing_ms": 2,
        "unexplained_ms": 300 - 1 - 10 - 2 - 20 - 30 - 70 - 150 - 2,
    }


def test_overhead_is_network_ours_and_unexplained() -> None:
    found = phases.overhead(request(), 20, handshake_hidden=False)
    # 300 - 250; 10 + 20; 1 + 2 + 2; the rest.
    assert found == {
        "over_ms": 50,
        "network_ms": 30,
        "ours_ms": 5,
        "server_queue_ms": 30,
        "unexplained_ms": 15,
    }


def test_a_handshake_that_shows_as_waiting_counts_one_more_round_trip() -> None:
    found = phases.parts(request(), 20, handshake_hidden=True)
    assert found["connect_ms"] == 30 and found["unexplained_ms"] == -5
    warm = request(marks={"start_ms": 1000, "sent_ms": 1003, "last_byte_ms": 1298, "end_ms": 1300})
    assert phases.parts(warm, 20, handshake_hidden=True)["connect_ms"] == 0


def test_what_no_source_tells_is_left_out_and_unexplained() -> None:
    silent = request(server={}, marks={"start_ms": 1000, "end_ms": 1300})
    assert phases.parts(silent, None, handshake_hidden=False) == {"unexplained_ms": 300}
    assert phases.overhead(silent, None, handshake_hidden=False) == {}
    unprobed = phases.overhead(request(), None, handshake_hidden=False)
    assert "network_ms" not in unprobed and unprobed["unexplained_ms"] == 45
    one_number = phases.parts(request(server={"total_ms": 250}), 20, handshake_hidden=False)
    assert one_number["generation_ms"] == 250
    assert phases.parts(request(wall_ms=None), 20, handshake_hidden=False) == {}


def test_an_answer_in_one_piece_has_its_transfer() -> None:
    found = phases.parts(request(token_ms=None), 20, handshake_hidden=False)
    assert found["transfer_ms"] == 198


def test_the_round_trip_is_that_of_the_time() -> None:
    saved = report.load("published-phase-0")
    probes = [Probe(provider="remote", at_ms=t, round_trip_ms=t / 100) for t in range(0, 3000, 100)]
    probes += [Probe(provider="local", at_ms=1000, round_trip_ms=0.3)]
    probed = saved.model_copy(update={"probes": probes})
    asked = [request(), request(provider="local"), request(provider="stranger")]
    # Around 1000: those of 800, 900, 1000, 1100, 1200.
    assert phases.trips(probed, asked) == [10, 0.3, None]
    assert phases.trips(probed, [request(marks={})]) == [14.5]


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
            {"generating_ms": None, "first_token_wait_ms": math.nan, "connect_ms": None},
            {"connect_send_ms": 3, "answering_ms": 93, "own_ms": 4},
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
COMMITTED = sorted(
    path for path in FOLDER.rglob("*.json") if path.name.startswith(("sample-", "publ"))
)
# These have engines that die in the middle, or that work on several requests at once.
APART = ("all-parallel", "batched")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_parts_of_every_committed_report_add_up(path: Path) -> None:
    """What sources explain never exceeds the wall by more than 1 % or 0.5 ms, save for jitter.

    A part counted twice, or clocks that disagree, would show here. Where requests do not share a
    server, sources explain half of the walls as nearly as that.
    """
    saved = report.load(path)
    answered = [row for row in saved.requests if row.outcome == "ok" and row.wall_ms]
    hidden = phases.hidden_handshakes(saved.providers)
    rests = []
    for row, trip in zip(answered, phases.trips(saved, answered), strict=True):
        told = phases.parts(row, trip, row.provider in hidden)
        assert sum(told.values()) == pytest.approx(row.wall_ms)
        rests.append(told["unexplained_ms"] / max(0.5, 0.01 * (row.wall_ms or 0)))
    assert sum(rest < -1 for rest in rests) <= 0.05 * len(rests)
    if path.parent == FOLDER and path.name.startswith("sample-") and not path.stem.endswith(APART):
        assert sum(abs(rest) <= 1 for rest in rests) > len(rests) / 2
    frame = tables.overhead(of(saved)).dropna(subset=["over_ms"])
    parts = frame[["network_ms", "ours_ms", "unexplained_ms"]].fillna(0).sum(axis=1)
    assert len(frame) and parts.to_numpy() == pytest.approx(frame["over_ms"].to_numpy())
