"""The fake provider and the fake clock: exact times, no waiting, scripted failures."""

import asyncio
from collections.abc import Callable

import pytest

from poclib.errors import Rejected, Unreachable
from poclib.providers import fake
from poclib.records import Exchange, Prompt

Clock = Callable[[], float]


async def sent(provider: fake.Provider, clock: Clock, index: int = 0) -> Exchange:
    exchange = Exchange(clock)
    await provider.send(Prompt(index, "why?"), exchange)
    return exchange


def test_days_pass_exactly_and_sleepers_wake_in_order_and_what_cannot_happen_is_an_error() -> None:
    async def story(clock: Clock) -> list[tuple[str, float]]:
        assert clock() == 0
        woken = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((name, clock()))

        await asyncio.gather(sleeper("c", 86_400 * 3), sleeper("a", 0.001), sleeper("b", 2))
        return woken

    assert fake.run(story) == [("a", 1), ("b", 2000), ("c", 3 * 86_400_000)]
    with pytest.raises(RuntimeError, match="nothing will ever happen"):
        fake.run(lambda clock: asyncio.Event().wait())


def test_an_answer_takes_the_service_time_and_the_overhead() -> None:
    provider = fake.Provider("far", service_ms=lambda p: 100 + 10 * p.index, overhead_ms=20)
    assert fake.run(lambda clock: sent(provider, clock, 7)).marks["end_ms"] == 190
    exchange = fake.run(lambda clock: sent(provider, clock))
    ends = dict.fromkeys(("first_byte_ms", "last_byte_ms", "end_ms"), 120)
    assert exchange.marks == {"start_ms": 0, **ends}
    assert (exchange.server.total_ms, exchange.server.queue_ms) == (100, 0)
    assert "".join(exchange.pieces) == "answer to why?"
    trip = fake.run(provider.probe)
    assert trip is not None and (trip.at_ms, trip.round_trip_ms, trip.wire_ms) == (0, 20, 20)


def test_more_than_its_slots_wait_inside_the_server_which_says_so() -> None:
    provider = fake.Provider("p", service_ms=100, slots=2)

    async def story(clock: Clock) -> list[Exchange]:
        return await asyncio.gather(*(sent(provider, clock) for _ in range(5)))

    for _ in range(2):  # a provider outlives the clock it was used with
        exchanges = fake.run(story)
        ends = [100, 100, 200, 200, 300]
        assert [e.marks["end_ms"] for e in exchanges] == ends
        assert [e.server.total_ms for e in exchanges] == ends
        assert [e.server.queue_ms for e in exchanges] == [end - 100 for end in ends]
    assert provider.most_in_flight == 5


def test_what_the_script_says_happens_in_turn() -> None:
    down, busy = Unreachable("down", "p"), Rejected("busy", "p", status=503)
    provider = fake.Provider("p", service_ms=100, script=[down, None, busy, "hang"])

    async def story(clock: Clock) -> list[tuple[str, float]]:
        seen = []
        for _ in range(5):
            before_ms, outcome = clock(), "answered"
            try:
                async with asyncio.timeout(9):
                    await sent(provider, clock)
            except (Unreachable, Rejected, TimeoutError) as error:
                outcome = str(error) or "hung"
            seen.append((outcome, clock() - before_ms))
        return seen

    first = [("down", 50), ("answered", 100), ("busy", 50)]
    assert fake.run(story) == [*first, ("hung", 9000), ("answered", 100)]
