"""An open loop on a fake clock: all counts from when it was due, and the knee is found."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_experiment import on_a_fake_clock as on_a_fake_clock

from poclib import arrivals, cli, recording, report, serving
from poclib.errors import Rejected, RunFailed
from poclib.measure import experiment
from poclib.measure.attempt import Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.experiment import measure
from poclib.measure.serve import Coming, Served
from poclib.measure.strategies import STRATEGIES
from poclib.parameters import Parameters, Serve
from poclib.providers import fake
from poclib.records import Arm, Prompt, Request, RequestMarks
from poclib.serving import Step
from poclib.showing import served

pytestmark = pytest.mark.filterwarnings("error")


def offered(
    due_ms: list[float], pool: list[fake.Provider], limit: int = 99, strategy: str = "shared-queue"
) -> tuple[Arm, list[int]]:
    """What came of prompts that were due at these moments."""
    refused: list[int] = []
    prompts = [Prompt(index, f"prompt {index}") for index in range(len(due_ms))]
    limits = {one.name: one.slots for one in pool}
    alone_ms = {one.name: 100.0 for one in pool}
    feed = partial(Coming, due_ms, limit, refused)
    arm = fake.run(
        lambda clock: run_arm(
            "served",
            STRATEGIES[strategy],
            prompts,
            pool,
            limits,
            alone_ms,
            clock,
            Rules(),
            feed=feed,
        )
    )
    return arm.model_copy(update={"due_ms": due_ms, "refused": refused, "rate_per_s": 1.0}), refused


def ends(arm: Arm) -> dict[int, float]:
    return {row.prompt: row.marks.end_ms or 0.0 for row in arm.requests if row.outcome == "ok"}


def test_each_is_sent_when_it_is_due_and_waits_its_turn() -> None:
    """The oracle: one server, first come first served, is Lindley's recursion."""
    due_ms = [at * 100 for at in (0.0, 0.5, 0.6, 4.0, 4.2, 9.0)]
    arm, refused = offered(due_ms, [fake.Provider("one", 100)])
    free_ms, expected = 0.0, {}
    for index, at_ms in enumerate(due_ms):
        expected[index] = free_ms = max(free_ms, at_ms) + 100
    assert ends(arm) == pytest.approx(expected, abs=1.5) and not refused


def test_what_finds_the_queue_full_is_refused_and_never_sent() -> None:
    due_ms = [0.0, 1.0, 2.0, 3.0, 4.0, 150.0]
    arm, refused = offered(due_ms, [fake.Provider("one", 100)], limit=2)
    assert refused == [3, 4], "one is sent, two wait; at 150 one place is free again"
    assert sorted(ends(arm)) == [0, 1, 2, 5]


@pytest.mark.parametrize("strategy", sorted(set(STRATEGIES) - {"through-router"}))
def test_every_strategy_answers_all_that_come_once(strategy: str) -> None:
    due_ms = [one.at_ms for one in arrivals.poisson(8, 60, seed=3)]
    pool = [fake.Provider("one", 100, slots=2), fake.Provider("two", 250)]
    arm, refused = offered(due_ms, pool, strategy=strategy)
    answered = [row.prompt for row in arm.requests if row.outcome == "ok"]
    assert sorted(answered) == list(range(60)) and not refused
    starts = {row.prompt: row.marks.start_ms or 0.0 for row in arm.requests}
    assert all(starts[index] >= at_ms for index, at_ms in enumerate(due_ms)), "none before its time"


def test_a_failure_is_tried_again_and_counts_from_when_it_was_due() -> None:
    one = fake.Provider("one", 100, script=[Rejected("busy", "one", 500)])
    arm, _ = offered([0.0, 300.0], [one, fake.Provider("two", 100)])
    assert len(arm.requests) == 3 and sorted(ends(arm)) == [0, 1]


def row(prompt: int, end_ms: float, outcome: Any = "ok") -> Request:
    marks = RequestMarks(start_ms=end_ms, end_ms=end_ms)
    return Request(prompt=prompt, provider="a", outcome=outcome, wall_ms=0.0, marks=marks)


def test_time_counts_from_when_it_was_due_and_what_was_not_answered_took_for_ever() -> None:
    """A coordinator that sends late, as here, would otherwise show walls of 0 ms."""
    rows = [row(0, 500), row(1, 900), row(2, 2000, "failed"), row(2, 2100), row(3, 900, "failed")]
    due_ms = [0.0, 100.0, 200.0, 300.0, 400.0]
    arm = Arm(arm="served", strategy="s", requests=rows, rate_per_s=10, due_ms=due_ms, refused=[4])
    step = serving.step(arm, target_ms=800)
    assert step == Step(10, 5, 3, 1, 0.4, None, None, 1900) and step.goodput_per_s == 4
    assert serving.step(arm.model_copy(update={"rate_per_s": None}), 800) is None, "cut short"
    many = arm.model_copy(
        update={"due_ms": [0.0] * 100, "requests": [row(i, i) for i in range(96)]}
    )
    found = serving.step(many, 50)
    assert found and found.p50_ms == pytest.approx(49.5) and found.p95_ms == pytest.approx(94.05)
    few = serving.step(many.model_copy(update={"requests": many.requests[:90]}), 50)
    assert few and few.p50_ms and few.p95_ms is None, "a tenth of them never came"


@pytest.mark.parametrize("truth", [0.07, 0.9, 1.0, 3.3, 40.0])
def test_the_knee_is_found_wherever_it_is(truth: float) -> None:
    wanted, steps = Serve(steps=20), list[Step]()
    while (rate := serving.next_rate(steps, wanted, 1.0)) is not None:
        assert rate not in [one.rate_per_s for one in steps]
        good = 1.0 if rate <= truth else 0.5
        steps.append(Step(rate, 72, 72, 0, good, None, None, None))
    knee, above = serving.bounds(steps, 0.95)
    assert knee and above and knee <= truth < above <= serving.CLOSE * knee
    assert len(steps) <= 14
    assert serving.next_rate(steps[:3], Serve(steps=3), 1.0) is None, "never more steps than asked"


# ---- The whole test on a pool whose knee is known -------------------------------------------

GIVEN: dict[str, Any] = {
    "experiment": "served",
    "strategy": "shared-queue",
    "prompts": 4,
    "providers": [{"name": "one"}, {"name": "two"}],
    "serve": {"target_ms": 400, "requests": 100},
}


def pool() -> list[fake.Provider]:
    return [fake.Provider("one", 100), fake.Provider("two", 200)]


def oracle_in_time(rate_per_s: float, count: int, seed: int, target_ms: float) -> float:
    """Two servers, the first free one takes the next, the faster of free ones: by hand."""
    coming = [one.at_ms for one in arrivals.poisson(1, count, seed)]
    free = {100.0: 0.0, 200.0: 0.0}
    good = 0
    for at_ms in (at * 1000 * count / rate_per_s / coming[-1] for at in coming):
        begun, took = min((max(at_ms, ms), took) for took, ms in free.items())
        free[took] = begun + took
        good += free[took] - at_ms <= target_ms
    return good / count


def test_the_knee_of_a_known_pool(tmp_path: Path, on_a_fake_clock: None) -> None:
    saved = measure(Parameters.read(GIVEN), folder=tmp_path, pool=pool(), kind=Served)
    assert saved.complete and saved.question == "served"
    found = served.steps(saved)
    for one in found:
        assert one.in_time == pytest.approx(oracle_in_time(one.rate_per_s, 100, 7, 400), abs=0.03)
    knee, above = serving.bounds(found, 0.95)
    assert knee and above and 8 < knee < 15 and above <= serving.CLOSE * knee
    assert max(one.refused for one in found) == 0 or found[-1].in_time < 0.5
    told = served.text(saved)
    assert (
        f"{knee:.2f} requests a second, not at {above:.2f}" in told and len(told.splitlines()) > 6
    )


def test_a_stopped_test_goes_on_from_its_whole_steps(tmp_path: Path, on_a_fake_clock: None) -> None:
    slow = [fake.Provider("one", 100), fake.Provider("two", 200, script=[None] * 150 + ["hang"])]
    with pytest.raises(RunFailed, match="run_limit_s"):  # in a step that a request holds up
        limit = {"run_limit_s": 60, "first_token_timeout_s": 900, "request_timeout_s": 900}
        given = Parameters.read(GIVEN | limit)
        measure(given, folder=tmp_path, pool=slow, kind=Served)
    left = report.load(tmp_path / "runs" / "served-shared-queue.jsonl")
    before = [arm.due_ms for arm in left.preparation if arm.rate_per_s]
    assert before and not left.complete and not report.names(tmp_path)
    given = Parameters.read(GIVEN | limit | {"run_limit_s": 900})
    whole = measure(given, folder=tmp_path, pool=pool(), resume=True, kind=Served)
    after = [arm.due_ms for arm in whole.preparation if arm.rate_per_s]
    assert whole.complete and after[: len(before)] == before and len(after) > len(before)


def test_where_no_step_fits_any_more_it_ends_with_what_is_known(
    tmp_path: Path, on_a_fake_clock: None
) -> None:
    short = Parameters.read(GIVEN | {"run_limit_s": 40})
    saved = measure(short, folder=tmp_path, pool=pool(), kind=Served)
    assert saved.complete and 1 <= len(served.steps(saved)) < 5
    assert saved.notes == ["the time (run_limit_s) ended it after this many steps."]


def test_a_pool_that_never_is_in_time_is_told(tmp_path: Path, on_a_fake_clock: None) -> None:
    given = GIVEN | {"serve": {"target_ms": 50, "requests": 72, "steps": 3}}
    saved = measure(Parameters.read(given), folder=tmp_path, pool=pool(), kind=Served)
    assert served.finding(saved).startswith("shared-queue answered 95 % within 50.0 ms at no rate")


def test_the_command_never_replaces_a_run_and_show_lists_no_test(
    tmp_path: Path, on_a_fake_clock: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "data" / "reports").mkdir(parents=True)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    params = tmp_path / "mine.yaml"
    providers = [
        {"name": name, "kind": "llama-server", "url": "http://10.0.0.1"} for name in ("one", "two")
    ]
    params.write_text(json.dumps(GIVEN | {"experiment": "mine", "providers": providers}))
    monkeypatch.setattr(
        experiment, "open_pool", lambda *_: contextlib.nullcontext([(one, {}) for one in pool()])
    )
    cli.main(["serve-test", str(params), "--set", "serve.steps=3"])
    told = capsys.readouterr().out
    assert "requests a second" in told and "kept in mine-served-shared-queue.jsonl" in told
    assert len(served.steps(report.load("mine-served-shared-queue"))) == 3
    cli.main(["show"])
    assert "No report is saved yet" in capsys.readouterr().out
    cli.main(["show", "mine-served-shared-queue"])
    assert capsys.readouterr().out.strip() in told
    cli.main(["keep", "mine-served", "sample"])
    kept = report.load("data/reports/served/sample-shared-queue.jsonl")
    assert kept.question == "served" and "10.0.0.1" not in recording.text(kept).decode()


def test_the_chart_says_the_knee(tmp_path: Path, on_a_fake_clock: None) -> None:
    import matplotlib.pyplot as plt

    saved = measure(Parameters.read(GIVEN), folder=tmp_path, pool=pool(), kind=Served)
    figure, both = plt.subplots(2, 1)
    served.draw(*both, saved)
    knee, _ = serving.bounds(served.steps(saved), 0.95)
    texts = [text.get_text() for ax in both for text in ax.texts]
    assert served.finding(saved) in both[0].get_label()
    assert f"knee: {knee:.2f} a second" in texts and "target 400 ms" in texts
    drawn = max(line.get_ydata().max() for line in both[1].lines if len(line.get_ydata()) > 2)
    assert drawn == pytest.approx(max(s.p95_ms or 0 for s in served.steps(saved)) / 1000)
    plt.close(figure)
