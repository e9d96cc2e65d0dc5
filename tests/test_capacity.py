"""How a provider takes several requests at once: named from rows whose times are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poclib import contention as capacity
from poclib.contention import Level, alone, behaviour, conclude, level, next_in_flight
from poclib.records import Request, RequestMarks, ServerTimings


def at(in_flight: int, rate: float, request_ms: float, server_ms: float, refused: int = 0) -> Level:
    return Level(in_flight, 8, refused, rate, request_ms, server_ms, None)


# What 1, 2, 4, … at once give on servers of each kind: tokens per second, a request's time, the
# server's own time of it. Most as measured on real engines (one core, 40 tokens).
SERVERS = {
    "batches": ({1: (50, 800, 800), 2: (80, 1000, 1000), 4: (120, 1300, 1300), 8: (122, 2600, 1310),
                 16: (120, 5000, 1310)}, 4),
    # Two cores, 16 tokens: this one gains from eight at once on, not before.
    "batches late": ({1: (140, 115, 113), 2: (140, 230, 225), 4: (146, 440, 430),
                      8: (212, 600, 590), 16: (214, 1060, 600), 32: (210, 2020, 600)}, 8),
    "queues": ({1: (50, 750, 750), 2: (50, 1500, 750), 4: (50, 2600, 760), 8: (50, 5000, 760)}, 1),
    "thrashes": ({1: (80, 400, 400), 2: (40, 1900, 1900)}, 1),
    "shares": ({1: (50, 800, 800), 2: (49, 1600, 1600), 4: (51, 3200, 3200),
                8: (50, 6400, 6400)}, 1),
}  # fmt: skip


@pytest.mark.parametrize("kind", SERVERS)
def test_each_kind_of_server_is_named_and_its_capacity_found(kind: str) -> None:
    server, expected = SERVERS[kind]
    found: list[Level] = []
    while (n := next_in_flight(found, 64)) is not None:
        found.append(at(n, *server[n]))
    assert [one.in_flight for one in found] == list(server)  # it stopped where nothing was left
    assert (conclude(found).behaviour, conclude(found).capacity) == (kind.split()[0], expected)


def test_a_refusal_or_a_queue_of_the_server_s_own_ends_the_rise_and_is_not_held() -> None:
    two = [at(1, 50, 800, 800), at(2, 80, 1000, 1000)]
    refusing = at(4, 82, 1000, 1000, refused=5)
    queueing = replace(at(4, 200, 800, 400), queue_ms=400)
    for last in (refusing, queueing):
        assert next_in_flight([*two, last], 64) is None and conclude([*two, last]).capacity == 2
    assert conclude([*two, refusing]).behaviour == "refuses"
    assert next_in_flight([*two, replace(queueing, queue_ms=40)], 64) == 8
    assert next_in_flight(two, 3) == 3 and next_in_flight([*two, at(3, 100, 1, 1)], 3) is None


@pytest.mark.parametrize(
    ("rate", "spread", "held"), [(113, 0, 4), (130, 0, 8), (130, 0.15, 4), (190, 0.15, 8)]
)
def test_of_two_with_like_throughput_the_lower(rate: float, spread: float, held: int) -> None:
    eight = replace(at(8, rate, 1, 1), spread=spread)
    assert conclude([at(1, 30, 300, 300), at(4, 100, 400, 400), eight]).capacity == held


def row(start_ms: float, end_ms: float, **fields: object) -> Request:
    marks = RequestMarks(start_ms=start_ms, first_token_ms=start_ms + 10, end_ms=end_ms)
    return Request.of(
        {"prompt": 0, "provider": "p", "wall_ms": end_ms - start_ms, "marks": marks} | fields
    )


def test_a_level_is_counted_from_rows() -> None:
    rows = [
        row(0, 1000, output_tokens=8, server=ServerTimings(total_ms=950, queue_ms=50)),
        row(500, 1500, output_tokens=8),
        row(600, 2000, outcome="cancelled", token_ms=[1900, 1950]),  # two tokens came
        row(700, 710, outcome="failed", status=503),
    ]
    found = level(rows)
    assert (found.in_flight, found.answered, found.refused) == (4, 2, 1)
    assert found.tokens_per_s == pytest.approx(18 / 2)  # 8 + 8 + 2 tokens in 2 s
    assert (found.request_ms, found.server_ms, found.ttft_ms) == (1000, 900, 10)
    assert level([]).tokens_per_s is None


@pytest.mark.parametrize("streamed", [True, False])
def test_throughput_is_that_of_the_time_while_so_many_are_in_flight(streamed: bool) -> None:
    # Two at once, 10 tokens each: a slow filling, four answers in 2 s, and a slow drain.
    spans = [(0, 1000), (500, 1500), (1000, 2000), (1500, 2500), (2000, 9000), (2500, 9000)]
    rows = []
    for start, end in spans:
        came = [start + k * (end - start) / 10 for k in range(1, 11)] if streamed else None
        rows.append(row(start, end, output_tokens=10, token_ms=came))
    # From 500 to 2500 ms: half the tokens of the first and three whole answers, of which 20 tokens
    # by 1500; where only ends are known, four answers, two by then.
    found = level(rows, 2)
    assert found.tokens_per_s == pytest.approx(35 / 2 if streamed else 40 / 2)
    assert found.spread == pytest.approx(5 / 35 if streamed else 0)
    assert level(rows).tokens_per_s == pytest.approx(60 / 9)
    assert level(rows[:3], 2).tokens_per_s == pytest.approx(30 / 2)  # too short to be steady


def test_one_at_a_time_pauses_do_not_count_nor_does_one_slow_answer() -> None:
    spans = [(0, 100), (9000, 9100), (20000, 25000)]
    rows = [row(start, end, output_tokens=8) for start, end in spans]
    assert alone(rows).tokens_per_s == pytest.approx(80)
    assert behaviour(at(1, 1, 9000, 9000), alone(rows)) == "undisturbed"


def test_every_behaviour_has_a_meaning() -> None:
    from poclib.showing.words import MEANING

    assert set(MEANING) == set(capacity.Behaviour.__args__)  # type: ignore[attr-defined]
