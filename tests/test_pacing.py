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
from poclib.progress import Progress, quiet
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


def measured(folder: Path, factors: list[float], tell: Progress = quiet, **values: Any) -> Report:
    """Two machines; in each round's strategy arm all takes the next factor as long."""

    def slowed(prompt: Prompt) -> float:
        _, arm, turn = prompt.salt.split(":")
        return factors[int(turn) % len(factors)] if arm == "strategy" else 1

    fast = fake.Provider("fast", lambda prompt: 100 * slowed(prompt))
    slow = fake.Provider("slow", lambda prompt: 200 * slowed(prompt))
    return experiment.measure(parameters(**values), tell, folder=folder, pool=[fast, slow])


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
        logs = np.random.default_rng(7).normal(math.log(ratio), noise, (400, rounds))
        ends = [stats.interval(np.exp(one)) for one in logs]
        return float(np.mean([high < 0.95 or low > 1.05 for low, high in ends]))

    assert 0.7 < told(need) < 0.9
    assert told(need // 3) < 0.5


def test_what_no_number_of_rounds_tells_is_none_and_doctor_says_so() -> None:
    assert pacing.power(2.0, 0.1, 2.0, 0.05).gate is None
    assert pacing.power(1.999, 0.5, 2.0, 0.05).gate is None  # more than anybody waits for
    assert forecast.powers({"x": 1.0}, [], 9, 2.0, 0.05) == {}
    arm = Arm(arm="calibration", strategy="sequential", requests=calibrated([290, 300, 310, 299]))
    powers = forecast.powers({"shared-queue": 0.97}, [arm], 9, 2.0, 0.05)
    assert (powers["shared-queue"].gate, powers["shared-queue"].one) == (2, None)
    said = words.expected_gain({"shared-queue": 0.97}, {"a": 300}, powers)
    row = next(line for line in said.splitlines() if line.startswith("shared-queue"))
    assert row.split() == ["shared-queue", "0.97", "1.03", "2", "none", "would"]


# ── rounds: auto ────────────────────────────────────────────────────────────────────────────


# Factors of each round's strategy arm, parameters; what ends the run, and its reason as told.
ENDS: dict[str, tuple[list[float], dict[str, float], str, str]] = {
    "steady": ([1.0], {}, "narrow", "when its interval lay within the band"),
    "restless": ([0.86, 1.0, 1.12, 0.95, 1.05], {"band": 0.08}, "narrow", "within the band"),
    "late": ([0.5, 2.0], {"run_limit_s": 9.0}, "time", "because one more would have passed"),
    "hopeless": ([0.5, 2.0], {}, "most", "the machines vary too much"),
}


@pytest.mark.parametrize("case", ENDS)
def test_a_run_ends_when_its_interval_is_narrow_or_nothing_is_left(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pacing, "MOST", 20)
    factors, values, ended, why = ENDS[case]
    found = measured(tmp_path, factors, **values)
    count, last_ms = len(found.rounds), max(row.marks.end_ms or 0 for row in found.requests)
    assert found.ended == ended and found.complete
    assert count == {"steady": pacing.LEAST, "hopeless": 20}.get(case, count)
    assert case != "late" or 5_000 < last_ms < 9_000
    warned = "\n".join(cautions.warnings(of(found)))
    assert f"ended after {count} rounds" in warned and why in warned
    reach = []
    for rounds in (count - 1, count):
        low, high = stats.interval([one.ratio or 0 for one in of(found).timed[0]][:rounds])
        reach.append(math.sqrt(high / low) / (1 + found.band))
    assert (reach[1] <= 1) == (ended == "narrow")
    assert count == pacing.LEAST or reach[0] > 1  # it took no more than it had to


def test_too_little_time_for_two_rounds_is_a_failure_and_none_are_no_rounds(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunFailed, match="run_limit_s"):
        measured(tmp_path, [1.0], run_limit_s=1.5)
    for given in ("many", 0, 1.5, None):
        with pytest.raises(ParameterError, match="rounds: needs a number from 1, or auto"):
            parameters(rounds=given)


def test_an_automatic_run_that_was_stopped_goes_on_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in its fourth round and again in its seventh: it takes as many rounds as in one go."""
    factors, band = [0.8, 1.2, 1.1, 0.9, 1.0], 0.15
    whole = measured(tmp_path / "whole", factors, band=band)
    assert whole.ended == "narrow" and len(whole.rounds) > 7
    cut_s = ((whole.rounds[3].arms[1].requests[0].marks.start_ms or 0) + 20) / 1000

    def cut(work: Callable[[], Any]) -> None:
        fake.run(lambda clock: asyncio.wait_for(work(), cut_s))

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "on_own_loop", cut)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                measured(tmp_path / "cut", factors, band=band, resume=True)
    found = measured(tmp_path / "cut", factors, band=band, resume=True)
    assert len(found.resumed_ms) == 2 and found.ended == "narrow"
    assert of(found).headline.round_ratios == pytest.approx(of(whole).headline.round_ratios)


def test_how_far_a_run_is_and_whether_its_rounds_are_enough_gets_told(tmp_path: Path) -> None:
    """Calibration varies by nothing here, so that two rounds, the fewest, would do."""
    told: list[tuple[str, int, int]] = []
    measured(tmp_path, [1.0], lambda *now: told.append(now))
    rounds = [stage for stage, _, _ in told if stage.startswith("round")]
    assert rounds[0].startswith("round 1 of about 6")
    assert told[-1][1] == told[-1][2]  # it ends where it said
    told.clear()
    measured(tmp_path, [1.0, 1.3, 0.8], lambda *now: told.append(now), rounds=3)
    stages = list(dict.fromkeys(stage for stage, _, _ in told if stage.startswith("round")))
    assert stages[0] == "round 1 of 3 (2 would tell the ratio foretold from 1), baseline"
    assert stages[2:4] == ["round 2 of 3, strategy", "round 2 of 3, baseline"]
