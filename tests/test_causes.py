"""Why an arm was slow, from facts made up so that the answer is known."""

from dataclasses import replace
from typing import Any

import pytest

from poclib.reading.causes import Cause
from poclib.reading.reading import Reading, of
from poclib.records import Arm, EngineUse, ProviderFacts, Report, Request, Round
from poclib.stats import Contention

BARE = ProviderFacts(
    name="p", kind="embedded", role="local", engine_kind="bare", slots=4, threads=2, cores=2
)


def arm(kind: Any, spans: list[tuple[float, float]], server_ms: float, **facts: Any) -> Arm:
    """Requests of 10 tokens each."""
    rows = [
        {"prompt": i, "provider": "p", "wall_ms": end - start, "output_tokens": 10,
         "marks": {"start_ms": start, "end_ms": end}, "server": {"total_ms": server_ms}}
        for i, (start, end) in enumerate(spans)
    ]  # fmt: skip
    return Arm(arm=kind, strategy="any", requests=map(Request.of, rows), **facts)


def reading(strategy: list[tuple[float, float]], server_ms: float, **facts: Any) -> Reading:
    calm = [(1000.0 * i, 1000.0 * (i + 1)) for i in range(4)]
    arms = [arm("baseline", calm, 900), arm("strategy", strategy, server_ms, **facts)]
    return of(
        Report(
            experiment="made-up",
            strategy="all-parallel",
            created="2026-11-24T00:00:00+00:00",
            poclib="0",
            providers=[BARE],
            preparation=[arm("calibration", calm, 900)],
            rounds=[Round(index=0, arms=arms)],
        )
    )


def use(cpu_ms: float) -> EngineUse:
    return EngineUse(
        provider="p", wall_ms=20000, cpu_ms=cpu_ms, processes=4, threads=48, cores=2,
        involuntary_switches=4000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("spans", "server_ms", "named", "rate"),  # of tokens, over 10 a second alone
    [
        ([(0, 20000)] * 4, 19000, "thrashes", 0.2),
        ([(0, 1000), (0, 2000), (0, 3000), (0, 4000)], 900, "queues", 1.0),
        ([(0, 4000)] * 4, 3900, "shares", 1.0),
        ([(0, 1600)] * 4, 1500, "batches", 2.5),
    ],
)
def test_the_cause_is_told_from_the_servers_own_time(
    spans: list[tuple[float, float]], server_ms: float, named: str, rate: float
) -> None:
    trial = reading(spans, server_ms)
    baseline, ours = trial.causes
    assert (baseline.behaviour, ours.behaviour) == ("undisturbed", named)
    assert ours.wanting == 8  # four teams of two threads
    seen = Contention(named, 4, pytest.approx(rate), pytest.approx(server_ms / 900))
    assert trial.headline.contention == {"p": seen} and trial.headline.at_once == {"p": 4}


def test_what_the_processes_used_is_divided_by_what_came_of_it() -> None:
    _, ours = reading([(0, 20000)] * 4, 19000, engines=[use(38000)]).causes
    assert ours.cpu_share == pytest.approx(1.9)
    assert ours.cpu_ms_per_token == pytest.approx(950)  # 38 s for 40 tokens
    assert ours.switches_per_token == pytest.approx(100)


@pytest.mark.parametrize(
    ("cpu_ms", "named"), [(600, "batches"), (1000, "shares"), (3000, "thrashes")]
)
def test_engines_that_take_turns_lost_work_only_where_a_token_cost_more(
    cpu_ms: float, named: str
) -> None:
    """A short request alone looks faster than it is where it fits into a turn."""
    _, ours = reading([(0, 20000)] * 4, 19000).causes
    by_turns = BARE.model_copy(update={"turns": 2, "engine_kind": "batched"})
    told: Cause = replace(ours, provider=by_turns, use=(use(40 * cpu_ms),), cpu_alone_ms=1000.0)
    assert told.behaviour == named
    assert replace(told, cpu_alone_ms=None).behaviour == "thrashes"
