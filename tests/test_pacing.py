"""How many rounds: foretold by hand-worked cases, and `rounds: auto` as a story on a fake clock."""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poclib import pacing, stats
from poclib.errors import ParameterError, RunFailed
from poclib.measure import experiment, forecast
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.records import Arm, Prompt, Report, Request
from poclib.showing import warnings as cautions
from poclib.showing import words


def parameters(**values: Any) -> Parameters:
    common = {"kind": "llama-server", "url": "http://10.6.7.8:1"}
    named = [{"name": name, **common} for name in ("fast", "slow")]
    few = {"strategy": "shared-queue", "prompts": 4, "rounds": "auto", "calibration_prompts": 3}
    return Parameters.read({"experiment": "trial", "providers": named, **few, **values})


@pytest.fixture(autouse=True)
def on_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))


def restless(factors: Sequence[float]) -> list[fake.Provider]:
    """Two machines; in each round's strategy arm all takes the next factor as long."""

    def wall(alone_ms: float) -> Callable[[Prompt], float]:
        def of(prompt: Prompt) -> float:
            _, arm, turn = prompt.salt.split(":")
            return alone_ms * (factors[int(turn) % len(factors)] if arm == "strategy" else 1)

        return of

    return [fake.Provider("fast", wall(100)), fake.Provider("slow", wall(200))]


def measured(folder: Path, factors: Sequence[float], **values: Any) -> Report:
    pool = restless(factors)
    return experiment.measure(parameters(**values), folder=folder, pool=pool)


# ── foretold ────────────────────────────────────────────────────────────────────────────────


def calibrated(walls: Sequence[float]) -> list[Request]:
    return [Request(prompt=i, provider="a", wall_ms=wall) for i, wall in enumerate(walls)]


def test_noise_is_that_of_a_sum_over_a_sum() -> None:
    """Requests that spread by s: ratios of two sums of n spread by the root of 2 / n times s."""
    random = np.random.default_rng(5)
    walls = np.exp(random.normal(math.log(300), 0.1, (4000, 2, 9)))
    simulated = np.log(walls[:, 0].sum(axis=1) / walls[:, 1].sum(axis=1)).std()
    rows = calibrated(np.exp(random.normal(math.log(300), 0.1, 3000)).tolist())
    assert pacing.noise({"a": rows}, 9) == pytest.approx(simulated, rel=0.05)
    assert pacing.noise({"a": rows[:2]}, 9) is None and pacing.noise({}, 9) is None


@pytest.mark.parametrize(("ratio", "noise"), [(0.7, 0.5), (0.8, 0.25), (1.3, 0.4)])
def test_so_many_rounds_do_tell_the_ratio_from_one(ratio: float, noise: float) -> None:
    """With the rounds foretold about four experiments in five do, with a third of them few."""
    need = pacing.power(ratio, noise, 2.0, 0.05).one
    assert need is not None and need > 18

    def told(rounds: int) -> float:
        random = np.random.default_rng(7)
        logs = random.normal(math.log(ratio), noise, (400, rounds))
        ends = [stats.interval(np.exp(one)) for one in logs]
        return float(np.mean([high < 0.95 or low > 1.05 for low, high in ends]))

    assert 0.7 < told(need) < 0.9
    assert told(need // 3) < 0.5


def test_what_no_number_of_rounds_tells_is_none() -> None:
    within = pacing.power(1.02, 0.01, 2.0, 0.05)
    assert within.one is None and within.gate == 2
    assert pacing.power(2.0, 0.1, 2.0, 0.05).gate is None
    assert pacing.power(1.999, 0.5, 2.0, 0.05).gate is None  # more than anybody waits for


def test_doctor_says_the_rounds_beside_each_expected_ratio() -> None:
    arm = Arm(arm="calibration", strategy="sequential", requests=calibrated([290, 300, 310, 299]))
    powers = forecast.powers({"shared-queue": 0.97}, [arm], 9, 2.0, 0.05)
    said = words.expected_gain({"shared-queue": 0.97}, {"a": 300}, powers)
    row = next(line for line in said.splitlines() if line.startswith("shared-queue"))
    assert row.split() == ["shared-queue", "0.97", "1.03", "2", "none", "would"]
    assert "rounds to tell it from 1" in said and "varies by about 1." in said
    assert forecast.powers({"x": 1.0}, [], 9, 2.0, 0.05) == {}


# ── rounds: auto ────────────────────────────────────────────────────────────────────────────


def test_steady_machines_need_the_fewest_rounds(tmp_path: Path) -> None:
    found = measured(tmp_path, [1.0])
    assert (found.ended, len(found.rounds), found.complete) == ("narrow", pacing.LEAST, True)
    said = words.report_text(of(found))
    assert "ended after 6 rounds, when its interval lay within the band" in said


def test_restless_machines_are_measured_until_the_interval_is_narrow(tmp_path: Path) -> None:
    found = measured(tmp_path, [0.86, 1.0, 1.12, 0.95, 1.05], band=0.08)
    ratio = of(found).headline.overhead_ratio
    assert found.ended == "narrow" and len(found.rounds) > pacing.LEAST
    assert ratio.low is not None and ratio.high is not None
    assert math.sqrt(ratio.high / ratio.low) <= 1.08
    one_less = [row.ratio for row in of(found).rounds.itertuples()][:-1]
    low, high = stats.interval(one_less)
    assert math.sqrt(high / low) > 1.08  # it did not go on for longer than it had to


def test_the_time_limit_ends_it_and_is_told(tmp_path: Path) -> None:
    found = measured(tmp_path, [0.5, 2.0], run_limit_s=9.0)
    assert found.ended == "time" and found.complete
    last_ms = max(row.marks.end_ms or 0 for row in found.requests)
    assert 5_000 < last_ms < 9_000
    said = "\n".join(cautions.warnings(of(found)))
    assert f"ended after {len(found.rounds)} rounds, because one more would have passed" in said


def test_a_limit_that_leaves_no_room_for_two_rounds_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="run_limit_s"):
        measured(tmp_path, [1.0], run_limit_s=1.5)


def test_the_most_rounds_end_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "MOST", 8)
    found = measured(tmp_path, [0.5, 2.0])
    assert found.ended == "most" and len(found.rounds) == 8
    assert "the machines vary too much" in "\n".join(cautions.warnings(of(found)))


def test_an_automatic_run_that_was_stopped_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in its fourth round and again in its seventh: it takes as many rounds as in one go."""
    factors, band = [0.8, 1.2, 1.1, 0.9, 1.0], 0.15
    whole = measured(tmp_path / "whole", factors, band=band)
    assert whole.ended == "narrow" and len(whole.rounds) > 7
    starts = [one.arms[1].requests[0].marks.start_ms or 0 for one in whole.rounds]

    def cut(work: Callable[[], Any]) -> None:
        async def story(clock: Callable[[], float]) -> None:
            task = asyncio.create_task(work())
            await asyncio.sleep((starts[3] + 20) / 1000)
            task.cancel()
            await task

        fake.run(story)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "on_own_loop", cut)
        for _ in range(2):
            with pytest.raises(asyncio.CancelledError):
                measured(tmp_path / "cut", factors, band=band, resume=True)
    found = measured(tmp_path / "cut", factors, band=band, resume=True)
    assert len(found.resumed_ms) == 2 and found.ended == "narrow"
    assert of(found).headline.round_ratios == pytest.approx(of(whole).headline.round_ratios)


def test_how_far_an_automatic_run_is_gets_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    pool = restless([1.0])
    experiment.measure(parameters(), lambda *now: told.append(now), folder=tmp_path, pool=pool)
    stages = [stage for stage, _, _ in told if stage.startswith("round")]
    assert stages[0].startswith("round 1 of about 6")
    assert told[-1][1] == told[-1][2]  # it ends where it said


def test_whether_the_rounds_asked_for_are_enough_is_told_as_they_begin(tmp_path: Path) -> None:
    """Calibration varies by nothing here, so that two rounds, the fewest, would do."""
    told: list[str] = []
    pool = restless([1.0, 1.3, 0.8])
    experiment.measure(
        parameters(rounds=3), lambda stage, *_: told.append(stage), folder=tmp_path, pool=pool
    )
    stages = list(dict.fromkeys(stage for stage in told if stage.startswith("round")))
    assert stages[0] == "round 1 of 3 (2 would tell the ratio foretold from 1), baseline"
    assert stages[2:4] == ["round 2 of 3, strategy", "round 2 of 3, baseline"]


@pytest.mark.parametrize("given", ["many", 0, 1.5, None])
def test_rounds_are_a_number_or_auto(given: Any) -> None:
    with pytest.raises(ParameterError, match="rounds: needs a number from 1, or auto"):
        parameters(rounds=given)
