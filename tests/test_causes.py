"""Why an arm was slow, from facts made up so that the answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from poclib.reading.reading import of
from poclib.records import (
    Arm,
    EngineUse,
    LimitChange,
    ProviderFacts,
    Report,
    Request,
    RequestMarks,
    Round,
    ServerTimings,
)
from poclib.showing import causes, words

BARE = ProviderFacts(
    name="p", kind="embedded", role="local", engine_kind="bare", slots=4, threads=2, cores=2
)


def rows(spans: list[tuple[float, float]], server_ms: float) -> list[Request]:
    """Requests of 10 tokens each."""
    return [
        Request(
            prompt=i,
            provider="p",
            wall_ms=end - start,
            marks=RequestMarks(start_ms=start, end_ms=end),
            server=ServerTimings(total_ms=server_ms),
            output_tokens=10,
        )
        for i, (start, end) in enumerate(spans)
    ]


def report(strategy: list[tuple[float, float]], server_ms: float, **arm: Any) -> Report:
    one_by_one = [(1000.0 * i, 1000.0 * (i + 1)) for i in range(4)]
    calm = Arm(arm="calibration", strategy="sequential", requests=rows(one_by_one, 900))
    baseline = Arm(arm="baseline", strategy="sequential", requests=rows(one_by_one, 900))
    ours = Arm(arm="strategy", strategy="all-parallel", requests=rows(strategy, server_ms), **arm)
    return Report(
        experiment="made-up",
        strategy="all-parallel",
        created="2026-11-24T00:00:00+00:00",
        poclib="0",
        providers=[BARE],
        preparation=[calm],
        rounds=[Round(index=0, arms=[baseline, ours])],
    )


@pytest.mark.parametrize(
    ("spans", "server_ms", "named"),
    [
        ([(0, 20000)] * 4, 19000, "thrashes"),  # 40 tokens in 20 s, alone 10 a second
        ([(0, 1000), (0, 2000), (0, 3000), (0, 4000)], 900, "queues"),
        ([(0, 4000)] * 4, 3900, "shares"),
        ([(0, 1600)] * 4, 1500, "batches"),
    ],
)
def test_the_cause_is_told_from_the_servers_own_time(
    spans: list[tuple[float, float]], server_ms: float, named: str
) -> None:
    baseline, ours = causes.causes(report(spans, server_ms))
    assert (baseline.behaviour, ours.behaviour) == ("undisturbed", named)
    assert ours.wanting == 8  # four teams of two threads
    assert causes.MEANING[ours.behaviour] in causes.causes_text(report(spans, server_ms))


def test_what_the_processes_used_is_divided_by_what_came_of_it() -> None:
    use = EngineUse(
        provider="p", wall_ms=20000, cpu_ms=38000, processes=4, threads=48, cores=2,
        voluntary_switches=7, involuntary_switches=4000,
    )  # fmt: skip
    _, ours = causes.causes(report([(0, 20000)] * 4, 19000, engines=[use]))
    assert ours.cpu_share == pytest.approx(1.9)
    assert ours.cpu_ms_per_token == pytest.approx(950)  # 38 s for 40 tokens
    assert ours.switches_per_token == pytest.approx(100)


@pytest.mark.parametrize(
    ("cpu_ms", "named"), [(600, "batches"), (1000, "shares"), (3000, "thrashes")]
)
def test_engines_that_take_turns_lost_work_only_where_a_token_cost_more(
    cpu_ms: float, named: str
) -> None:
    """One alone looks faster than it is where it fits into a turn."""
    by_turns = BARE.model_copy(update={"turns": 2, "engine_kind": "batched"})
    slow = report([(0, 20000)] * 4, 19000).model_copy(update={"providers": [by_turns]})
    _, ours = causes.causes(slow)
    use = EngineUse(provider="p", wall_ms=2e4, cpu_ms=40 * cpu_ms, processes=1, threads=2)
    assert replace(ours, use=(use,), cpu_alone_ms=1000.0).behaviour == named
    assert replace(ours, use=(use,), cpu_alone_ms=None).behaviour == "thrashes"


def test_an_arm_that_was_stopped_gives_a_bound_and_says_so() -> None:
    cut = report([(100, 9000), (100, 12100)], 8000, cut_ms=12100)
    assert causes.at_least(cut) == pytest.approx(3)  # 12 s against 4
    whole = report([(0, 12000)] * 4, 8000)
    assert causes.at_least(whole) is None
    assert "at least 3.0 times" in causes.stopped_text(cut, of(cut).headline)
    assert causes.stopped_text(whole, of(whole).headline) == ""
    assert "at least 3.0" in causes.comparison([cut], [of(cut).headline])


def test_every_change_of_a_limit_is_shown_with_its_reason() -> None:
    changes = [
        LimitChange(provider="p", at_ms=350, limit=2, reason="good", in_flight=1),
        LimitChange(provider="p", at_ms=900, limit=1, reason="slower", in_flight=2),
    ]
    text = causes.changes_text(report([(100, 1100)] * 4, 900, limit_changes=changes))
    assert "250 ms" in text and "800 ms" in text  # since the arm began
    assert "2 in flight gave less than fewer had given" in text
    assert causes.changes_text(report([(0, 1)], 1)) == "No limit was changed."


def test_show_says_how_far_a_limit_fell_and_why() -> None:
    changes = [
        LimitChange(provider="p", at_ms=350, limit=2, reason="slower", in_flight=4),
        LimitChange(provider="p", at_ms=900, limit=1, reason="refused", in_flight=2),
        LimitChange(provider="p", at_ms=950, limit=2, reason="good", in_flight=1),
    ]
    set_to_4 = report([(100, 1100)] * 4, 900, limits={"p": 4}, limit_changes=changes)
    (said,) = causes.fell(set_to_4)
    assert said.startswith("The limit of p fell from 4 to 1: it refused requests, and several")
    assert f"warning: {said}" in words.report_text(set_to_4, of(set_to_4).headline)
    good = report([(100, 1100)] * 4, 900, limits={"p": 4}, limit_changes=changes[2:])
    assert causes.fell(good) == [] == causes.fell(report([(0, 1)], 1))
