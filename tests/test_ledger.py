"""Where each millisecond went: parts against arithmetic by hand, and on every saved report."""

from pathlib import Path
from typing import Any

import pytest

from poclib import report
from poclib.reading import ledger, tables
from poclib.records import Probe, Report, Request


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
    assert ledger.parts(request(), 20, handshake_hidden=False) == {
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
    found = ledger.overhead(request(), 20, handshake_hidden=False)
    # 300 - 250; 10 + 20; 1 + 2 + 2; the rest.
    assert found == {
        "over_ms": 50,
        "network_ms": 30,
        "ours_ms": 5,
        "server_queue_ms": 30,
        "unexplained_ms": 15,
    }


def test_a_handshake_that_shows_as_waiting_counts_one_more_round_trip() -> None:
    found = ledger.parts(request(), 20, handshake_hidden=True)
    assert found["connect_ms"] == 30 and found["unexplained_ms"] == -5
    warm = request(marks={"start_ms": 1000, "sent_ms": 1003, "last_byte_ms": 1298, "end_ms": 1300})
    assert ledger.parts(warm, 20, handshake_hidden=True)["connect_ms"] == 0


def test_what_no_source_tells_is_left_out_and_unexplained() -> None:
    silent = request(server={}, marks={"start_ms": 1000, "end_ms": 1300})
    assert ledger.parts(silent, None, handshake_hidden=False) == {"unexplained_ms": 300}
    assert ledger.overhead(silent, None, handshake_hidden=False) == {}
    unprobed = ledger.overhead(request(), None, handshake_hidden=False)
    assert "network_ms" not in unprobed and unprobed["unexplained_ms"] == 45
    one_number = ledger.parts(request(server={"total_ms": 250}), 20, handshake_hidden=False)
    assert one_number["generation_ms"] == 250
    assert ledger.parts(request(wall_ms=None), 20, handshake_hidden=False) == {}


def test_an_answer_in_one_piece_has_its_transfer() -> None:
    found = ledger.parts(request(token_ms=None), 20, handshake_hidden=False)
    assert found["transfer_ms"] == 198


def test_the_round_trip_is_that_of_the_time() -> None:
    saved = report.load("published-phase-0")
    probes = [Probe(provider="remote", at_ms=t, round_trip_ms=t / 100) for t in range(0, 3000, 100)]
    probes += [Probe(provider="local", at_ms=1000, round_trip_ms=0.3)]
    probed = saved.model_copy(update={"probes": probes})
    asked = [request(), request(provider="local"), request(provider="stranger")]
    # Around 1000: those of 800, 900, 1000, 1100, 1200.
    assert ledger.trips(probed, asked) == [10, 0.3, None]
    assert ledger.trips(probed, [request(marks={})]) == [14.5]


FOLDER = Path(__file__).parents[1] / "data" / "reports"
COMMITTED = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.rglob("*.json")
    if path.name.startswith(("sample-", "published-"))
)
# Not those whose engines die in the middle, or work on several requests at once.
ALONE = [
    name
    for name in COMMITTED
    if name.startswith("sample-") and not name.endswith(("all-parallel", "batched"))
]


def saved_report(name: str) -> Report:
    return report.load(FOLDER / f"{name}.json")


@pytest.mark.parametrize("name", COMMITTED)
def test_the_parts_of_every_committed_report_add_up(name: str) -> None:
    """What sources explain never exceeds the wall by more than 1 % or 0.5 ms, save for jitter.

    A part counted twice, or clocks that disagree, would show here.
    """
    saved = saved_report(name)
    answered = [row for row in saved.requests if row.outcome == "ok" and row.wall_ms]
    hidden = ledger.hidden_handshakes(saved.providers)
    exceeding = 0
    for row, trip in zip(answered, ledger.trips(saved, answered), strict=True):
        told = ledger.parts(row, trip, row.provider in hidden)
        assert sum(told.values()) == pytest.approx(row.wall_ms)
        exceeding += -told["unexplained_ms"] > max(0.5, 0.01 * (row.wall_ms or 0))
    assert exceeding <= 0.05 * len(answered)


@pytest.mark.parametrize("name", ALONE)
def test_what_is_unexplained_is_little_where_requests_do_not_share_a_server(name: str) -> None:
    """Sources other than the wall itself account for half of the requests within 1 % or 0.5 ms."""
    saved = saved_report(name)
    hidden = ledger.hidden_handshakes(saved.providers)
    answered = [row for row in saved.requests if row.outcome == "ok" and row.wall_ms]
    rest = [
        abs(ledger.parts(row, trip, row.provider in hidden)["unexplained_ms"])
        - max(0.5, 0.01 * (row.wall_ms or 0))
        for row, trip in zip(answered, ledger.trips(saved, answered), strict=True)
    ]
    assert sum(excess <= 0 for excess in rest) > len(rest) / 2


@pytest.mark.parametrize("name", COMMITTED)
def test_the_overhead_of_every_committed_report_adds_up(name: str) -> None:
    frame = tables.overhead(saved_report(name)).dropna(subset=["over_ms"])
    assert len(frame)
    parts = frame[["network_ms", "ours_ms", "unexplained_ms"]].fillna(0).sum(axis=1)
    assert parts.to_numpy() == pytest.approx(frame["over_ms"].to_numpy())
