"""The simulator: the dispatcher is the real one, and simple pools come out as arithmetic says."""

from __future__ import annotations

from math import isclose
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import pytest

from poclib import report
from poclib.errors import ParameterError
from poclib.measure.attempt import Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.strategies import STRATEGIES, THROUGH_ROUTER
from poclib.providers import fake
from poclib.records import Prompt, Request
from poclib.simulate import Result, Scenario, calibrate, knee, simulate
from poclib.simulate.run import Coordinator

FREE: dict[str, Any] = {"coordinator_ms": 0, "output_tokens": 10}  # each takes 100 ms alone


def pool(*machines: dict[str, Any], **given: Any) -> Scenario:
    named = [{"name": f"m{number}", **one} for number, one in enumerate(machines)]
    return Scenario.of({**FREE, "machines": named, **given})


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {THROUGH_ROUTER}))
def test_every_strategy_takes_as_long_as_on_the_fake_clock(name: str) -> None:
    """The oracle is the event loop's own dispatcher over scripted servers with the same times."""
    servers = [fake.Provider("m0", 100, slots=2), fake.Provider("m1", 250, slots=2)]
    most = {"one": 1, "capacity": 1, "slots": 2, "ahead": 2}.get(STRATEGIES[name].limit)
    limits = None if most is None else {"m0": most, "m1": most}
    prompts = [Prompt(i, "") for i in range(11)]
    arm = fake.run(
        lambda clock: run_arm(
            "strategy", STRATEGIES[name], prompts, servers, limits, {"m0": 100, "m1": 250}, clock,
            Rules(),
        )
    )  # fmt: skip
    ends = [row.marks.end_ms or 0.0 for row in arm.requests if row.outcome == "ok"]
    alone: dict[int, float] = {2: 1.0}  # two at once are no slower, as in the scripted servers
    found = simulate(
        pool(
            {"slots": 2, "together": alone},
            {"slots": 2, "together": alone, "speed": 0.4},
            strategy=name,
            requests=11,
        )
    )
    assert found.answered == 11 and isclose(found.makespan_ms, max(ends), abs_tol=0.01)


def test_requests_share_a_server_as_its_curve_says_and_the_rest_wait() -> None:
    """Two together take 1.5 times as long, the third waits: 150, then alone 100."""
    scenario = pool({"slots": 2, "together": {2: 1.5}}, strategy="all-parallel", requests=3)
    assert simulate(scenario).makespan_ms == pytest.approx(250)
    curve = msgspec.structs.replace(scenario.machines[0], together={2: 1.5, 4: 2.5})
    assert [curve.slower(n) for n in (1, 2, 3, 4, 8)] == [1, 1.5, 2, 2.5, 5]


def test_a_way_is_paid_by_each_request_unless_the_next_is_there_already() -> None:
    far = {"way_ms": 100}
    assert simulate(pool(far, requests=5)).makespan_ms == pytest.approx(5 * 200)
    ahead = simulate(pool(far, requests=5, strategy="sent-ahead")).makespan_ms
    assert ahead == pytest.approx(100 + 5 * 100)  # one slot: it goes on at once


def test_engines_of_one_host_slow_each_other_only_while_both_work() -> None:
    """The slower has 5, the faster 5: both at half speed while both work."""
    crowded = {"crowded": 2.0}
    both = simulate(pool(crowded, crowded, strategy="serial-per-provider", requests=10))
    assert both.makespan_ms == pytest.approx(5 * 200)
    assert simulate(pool(crowded, crowded, strategy="sequential")).makespan_ms == pytest.approx(1e5)


def test_requests_at_random_wait_as_the_theory_of_queues_says() -> None:
    """Equal service, Poisson arrivals, one slot: s·load / 2(1 - load) of wait (Pollaczek)."""
    run = Coordinator(pool({}, rate_per_s=7, requests=60_000))
    run.simulated()
    assert fmean(run.answered_ms.values()) == pytest.approx(100 + 100 * 0.7 / (2 * 0.3), rel=0.05)


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    def result(seed: int) -> Result:
        kind = {
            "count": 20,
            "speed_sigma": 0.5,
            "noise": 0.1,
            "up_s": 2,
            "down_s": 1,
            "sleeps": 0.5,
        }
        asked = {"requests": 300, "output_sigma": 0.5, "rate_per_s": 40, "request_timeout_s": 3}
        return simulate(pool(kind, seed=seed, **asked))

    assert result(1) == result(1) != result(2)


def test_what_dies_on_the_way_is_asked_of_another_and_its_work_is_wasted() -> None:
    rows: list[Request] = []
    dies, stays = {"up_s": 0.5, "down_s": 5}, {"speed": 0.5}
    asked = pool(dies, stays, requests=60, retries=5, seed=3)
    found = simulate(asked, rows.append)
    failed = [row for row in rows if row.outcome == "failed"]
    assert found.answered == 60 and failed and {row.provider for row in failed} == {"m0"}
    cut = sum((row.wall_ms or 0) for row in failed)
    worked = sum((row.wall_ms or 0) for row in rows if row.outcome == "ok")
    assert found.attempts == len(rows) == 60 + len(failed)
    assert found.wasted == pytest.approx(cut / (cut + worked))


def test_what_sleeps_tells_nobody_and_a_second_copy_saves_the_wait() -> None:
    sleeps = {"count": 30, "up_s": 20, "down_s": 10, "sleeps": 1.0}
    asked = pool(sleeps, rate_per_s=60, requests=3000, request_timeout_s=20, retries=3)
    plain = simulate(asked)
    twice = simulate(msgspec.structs.replace(asked, hedge_after=1.5))
    assert plain.answered == twice.answered == 3000
    assert plain.p99_ms and twice.p99_ms and plain.p99_ms > 3 * twice.p99_ms
    assert twice.copies > 0 and twice.wasted > plain.wasted


def test_what_finds_the_queue_full_is_refused_and_counted() -> None:
    found = simulate(pool({}, rate_per_s=50, requests=2000, queue_limit=5, target_ms=700))
    assert found.answered + found.refused == 2000 and found.per_s == pytest.approx(10, rel=0.02)
    assert found.within == pytest.approx(found.answered / 2000)  # at most 5 before it, one at work


def test_the_coordinators_own_work_is_the_end_of_it() -> None:
    found = simulate(pool({"count": 500}, coordinator_ms=1.0, requests=20_000))
    assert found.per_s == pytest.approx(1000, rel=0.02) and found.busy == pytest.approx(1, abs=0.02)


def test_the_knee_is_where_the_share_in_time_falls_below_what_is_asked() -> None:
    asked = pool({"count": 4}, requests=4000)
    rate = knee(asked, target_ms=200)
    assert rate is not None and 20 < rate < 40  # four machines of ten a second each
    at = [
        simulate(msgspec.structs.replace(asked, rate_per_s=r, target_ms=200.0)).within or 0.0
        for r in (rate, 1.02 * rate)
    ]
    assert at[0] >= 0.95 > at[1]
    assert knee(asked, target_ms=50) is None, "no answer is ever so fast"


def test_a_trace_tells_when_and_how_long(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("at_ms,prompt_tokens,output_tokens\n0,5,10\n50,5,20\n1000,5,10\n")
    rows: list[Request] = []
    assert simulate(pool({}, trace=str(file)), rows.append).makespan_ms == pytest.approx(1100)
    assert [row.wall_ms for row in rows] == pytest.approx([100, 200, 100])
    found = simulate(pool({"count": 40}, trace="data/traces/synthetic.csv", target_ms=5000))
    assert found.answered == found.requests == 300 and (found.within or 0) > 0.9


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"machines": []}, "machines"),
        ({"machines": [{"speed": 0}]}, "speed"),
        ({"machines": [{}], "retires": 1}, "retires"),
        ({"machines": [{}], "strategy": "best"}, "no 'best'"),
    ],
)
def test_a_wrong_scenario_is_one_sentence_that_names_the_key(given: Any, named: str) -> None:
    with pytest.raises(ParameterError, match=named):
        Scenario.of(given)


def test_a_scenario_travels_as_bytes() -> None:
    scenario = pool({"together": {2: 1.5}}, {}, rate_per_s=3)
    assert msgspec.json.decode(msgspec.json.encode(scenario), type=Scenario) == scenario


def test_a_measured_pool_is_calibrated_from_what_came_before_its_rounds() -> None:
    saved = report.load("sample-shared-queue")
    scenario = calibrate.scenario(saved)
    local, remote = scenario.machines
    assert local.alone_ms(scenario.output_tokens) < remote.alone_ms(scenario.output_tokens)
    assert local.way_ms < 5 and remote.way_ms == pytest.approx(21, abs=3)  # its link has 20 ms
    cases = {case.strategy: case for case in calibrate.foretold([saved])}
    assert set(cases) == {"sequential", "shared-queue"}
    assert abs(cases["sequential"].error) < 0.12
