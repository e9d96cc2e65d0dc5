"""A report's frames and headline, against arithmetic done by hand and by plain loops."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from poclib import report as reports
from poclib import stats
from poclib.errors import ReportError
from poclib.reading import tables
from poclib.reading.reading import of
from poclib.records import Report

PUBLISHED = Path(__file__).parent.parent / "data" / "reports" / "published-phase-0.json"


def row(prompt: int, provider: str, start: float, wall: float, **changes: Any) -> dict[str, Any]:
    """A streamed request on a warm connection: 1 ms to send, 0.5 ms of our own at the end."""
    start = round(start, 3)
    marks = {
        "assigned_ms": max(0.0, start - 20),
        "start_ms": start,
        "sent_ms": start + 1,
        "first_byte_ms": start + 40,
        "first_token_ms": start + 42,
        "last_byte_ms": start + wall - 0.5,
        "end_ms": round(start + wall, 3),
    }
    over = 22.0 if provider == "remote" else 2.0
    return {
        "prompt": prompt,
        "provider": provider,
        "wall_ms": wall,
        "marks": marks,
        "server": {"total_ms": wall - over},
        "prompt_tokens": 12,
        "cached_tokens": 0,
        "output_tokens": 40,
        "answer_sha256": f"answer {prompt}",
        "answer": f"<{prompt}>",
        **changes,
    }


def serial(begin: float, walls: dict[str, float], prompts: list[int]) -> list[dict[str, Any]]:
    """Each provider answers its part of the prompts one after the other."""
    rows, names = [], list(walls)
    for place, prompt in enumerate(prompts):
        name, turn = names[place % len(names)], place // len(names)
        rows.append(row(prompt, name, begin + turn * walls[name], walls[name]))
    return rows


def pool_report(rounds: int = 5, strategy: str = "serial-per-provider", **changes: Any) -> Report:
    """8 prompts, local 200 ms and remote 300 ms alone; drift makes later rounds slower."""
    order, prompts = [], list(range(8))
    for index in range(rounds):
        drift = 1 + 0.05 * index
        slow = 1 + 0.02 * index
        baseline = serial(10_000 * index, {"local": 200 * drift}, prompts)
        shared = {"local": 200 * drift * slow, "remote": 300 * drift * slow}
        arms = [
            {"arm": "baseline", "strategy": "sequential", "requests": baseline},
            {
                "arm": "strategy",
                "strategy": strategy,
                "requests": serial(10_000 * index + 5000, shared, prompts)[::-1],
            },
        ]
        order.append({"index": index, "arms": arms if index % 2 == 0 else arms[::-1]})
    local = {"name": "local", "kind": "embedded", "role": "local", "model": "tiny", "pinned": True}
    same = {"digest": "sha256:" + "ab" * 32, "engine": "llama-server b1", "reports_time": True}
    facts: dict[str, Any] = {
        "experiment": "synthetic",
        "strategy": strategy,
        "created": "2026-11-23T12:00:00Z",
        "poclib": "0.1.0",
        "providers": [{**local, **same}, {**local, **same, "name": "remote", "role": "remote"}],
        "prompt_sha256": [f"prompt {i}" for i in prompts],
        "fastest": "local",
        "preparation": [
            {"arm": "warm-up", "strategy": "sequential", "requests": [row(0, "local", 0, 9000)]},
            {
                "arm": "calibration",
                "strategy": "sequential",
                "requests": [row(0, "local", 1, 200), row(0, "remote", 1, 300)],
            },
        ],
        "probes": [{"provider": "remote", "at_ms": t, "round_trip_ms": 20.0 + t} for t in range(3)],
        "rounds": order,
    }
    return Report.model_validate({**facts, **changes})


def edited(
    report: Report,
    change: Callable[[dict[str, Any], dict[str, Any]], Any] | None = None,
    **arms: Any,
) -> Report:
    """`report` with every request of its rounds changed in place by `change(arm, request)`, after
    an arm of that name got those requests."""
    data = report.model_dump()
    for arm in (arm for one in data["rounds"] for arm in one["arms"]):
        arm["requests"] = arms.get(arm["arm"], arm["requests"])
        for request in arm["requests"]:
            if change:
                change(arm, request)
    return Report.model_validate(data)


def changed(report: Report, arm: str, **changes: Any) -> Report:
    """`report` with the first request of that arm in round 0 changed."""
    data = report.model_dump()
    for one in data["rounds"][0]["arms"]:
        if one["arm"] == arm:
            one["requests"][0].update(changes)
    return Report.model_validate(data)


def with_strategy(rows: list[dict[str, Any]]) -> stats.Headline:
    """The headline of one round whose strategy sent these requests."""
    return of(edited(pool_report(1), strategy=rows)).headline


# ── the headline ────────────────────────────────────────────────────────────────────────────


def test_the_published_run_gives_the_known_numbers() -> None:
    found = of(reports.load(PUBLISHED)).headline.as_dict()
    assert found["overhead_ratio"] == {"median": 0.866, "low": None, "high": None, "rounds": 1}
    assert (found["speedup"], found["efficiency"]) == (1.154, 0.753)
    assert found["added_latency_ms"]["remote"] == {"mean": 22.4, "min": 13.1, "max": 30.2, "n": 4}
    assert found["added_latency_ms"]["local"]["mean"] == pytest.approx(27.9, abs=0.06)
    assert found["network_share"] == 0.036
    assert found["ideal_ms"] == pytest.approx(1895, abs=0.5)
    assert (found["verdict"], found["rounds_needed"]) == ("INCONCLUSIVE", 2)
    assert found["answers_equal"]["compared"] == 0 and found["requests"] == 8
    assert found["round_trip_ms"] == {"local": None, "remote": None}
    assert "overhead_ratio.low" in found["missing"]


def test_the_headline_against_plain_loops() -> None:
    report = pool_report()
    found = of(report).headline
    ratios, makespans = [], []
    for one in report.rounds:
        took = {}
        for arm in one.arms:
            starts = [r.marks.start_ms or 0.0 for r in arm.requests]
            took[arm.arm] = max(r.marks.end_ms or 0.0 for r in arm.requests) - min(starts)
        ratios.append(took["strategy"] / took["baseline"])
        makespans.append(took["strategy"])
    assert found.overhead_ratio.median == pytest.approx(median(ratios))
    assert found.round_ratios == pytest.approx(ratios)
    # By hand: 4 x 300 over 8 x 200 is 0.75, times 1, 1.02 ... 1.08 of the rounds.
    assert ratios == pytest.approx([0.75, 0.765, 0.78, 0.795, 0.81])
    assert (found.overhead_ratio.low, found.overhead_ratio.high) == stats.interval(ratios)
    assert found.speedup == pytest.approx(1 / 0.78)
    # By hand: 1/200 + 1/300 requests a millisecond, 8 requests: 960 ms.
    assert found.ideal_ms == pytest.approx(960) and found.ideal_from == "calibration"
    assert found.efficiency == pytest.approx(median([960 / t for t in makespans]))
    assert found.verdict == "PASS" and found.rounds_needed is None
    assert found.added_latency_ms["remote"] == stats.Spread(*[pytest.approx(22.0)] * 3, n=20)
    assert found.added_latency_ms["local"] == stats.Spread(*[pytest.approx(2.0)] * 3, n=20)
    walls = [r.wall_ms or 0.0 for o in report.rounds for a in o.arms for r in a.requests
             if a.arm == "strategy" and r.provider == "remote"]  # fmt: skip
    assert found.network_share == pytest.approx(22 / fmean(walls))
    assert found.round_trip_ms == {"local": None, "remote": 21.0}
    assert found.answers_equal == stats.Answers(40, 0, 40)
    assert (found.requests, found.failed_requests, found.prompts) == (80, 0, 8)
    # Four of local's requests of 200 ms stand beside four of remote's 300 ms: 800 of 1200.
    assert found.busy == pytest.approx({"local": 2 / 3, "remote": 1.0})
    assert found.at_once == {"local": 1, "remote": 1} and found.contention == {}


def test_a_round_without_every_answer_is_left_out_and_counted() -> None:
    found = of(changed(pool_report(), "strategy", outcome="failed")).headline
    assert (found.incomplete_rounds, found.failed_requests, found.overhead_ratio.rounds) == (
        1,
        1,
        4,
    )
    assert found.round_ratios == pytest.approx([0.765, 0.78, 0.795, 0.81])
    first, *others = of(changed(pool_report(), "baseline", outcome="cancelled")).timed[0]
    assert first.baseline_ms is None and first.ratio is None and all(one.ratio for one in others)
    other = of(changed(pool_report(), "strategy", answer_sha256="other")).headline
    assert other.answers_equal == stats.Answers(39, 1, 40)


def test_a_retried_request_counts_its_failure_and_its_first_dispatch() -> None:
    failed = row(0, "remote", 4900, 50, outcome="failed", error_kind="TimedOut")
    cancelled = row(0, "remote", 5000, 9000, outcome="cancelled")
    found = with_strategy(
        [*serial(5000, {"local": 200, "remote": 300}, [*range(8)]), failed, cancelled]
    )
    # From the failed attempt's start (4900) to the last answer (6200): a cancelled one is none.
    assert found.makespan_ms == pytest.approx(1300)
    assert found.failed_requests == 1 and found.requests == 18
    assert found.wall_ms["remote"] == stats.Spread(300, 300, 300, 4)


def test_without_calibration_the_ideal_comes_from_the_runs_own_rows() -> None:
    report = pool_report(rounds=1, preparation=[])
    found = of(report).headline
    assert found.ideal_from == "strategy" and found.ideal_ms == pytest.approx(960)
    idle = report.providers[0].model_copy(update={"name": "third"})
    found = of(report.model_copy(update={"providers": [*report.providers, idle]})).headline
    assert found.ideal_ms is None and found.efficiency is None and "ideal_ms" in found.missing


def test_calibrations_answers_of_another_length_are_brought_to_the_runs() -> None:
    """80 tokens: 42 ms to the first, and twice the 158 and 258 that come after it."""
    found = of(edited(pool_report(), lambda _, one: one.update(output_tokens=80))).headline
    assert found.alone_ms == pytest.approx({"local": 42 + 2 * 158, "remote": 42 + 2 * 258})


def test_what_is_not_known_is_missing_with_its_reason_and_never_zero() -> None:
    silent = of(edited(pool_report(rounds=1), lambda _, one: one.update(server={}))).headline
    assert silent.added_latency_ms == {"remote": None, "local": None}
    assert silent.network_share is None
    assert {"network_share", "added_latency_ms.remote"} <= set(silent.missing)
    empty = of(pool_report(rounds=0, preparation=[], probes=[], prompt_sha256=[]))
    assert empty.headline.overhead_ratio == stats.Ratio(None, None, None, 0)
    assert empty.headline.verdict == "INCONCLUSIVE" and empty.headline.speedup is None
    for key, value in empty.headline.as_dict().items():
        assert value is not None or key in {*empty.headline.missing, "ideal_from"}, key
    frames = empty.requests, empty.timed[0], tables.overhead(empty)
    assert not any(map(len, frames)) and empty.requests["wall_ms"].dtype == float


def test_without_times_of_day_the_sum_of_walls_stands_in_where_it_fits() -> None:
    published = reports.load(PUBLISHED)
    rows = [(r.provider, r.wall_ms or 0.0) for r in published.requests]
    sums = {name: sum(wall for p, wall in rows if p == name) for name in ("local", "remote")}
    expected = {name: wall / 2515 for name, wall in sums.items()}
    assert of(published).headline.busy == pytest.approx(expected, rel=1e-3)
    # More than fits one after the other.
    longer = edited(published, lambda _, one: one.update(wall_ms=4 * one["wall_ms"]))
    assert of(longer).headline.busy == {}


def test_streams_by_hand() -> None:
    """Seven answers one after the other: 50 ms to the first token, then two more 10 ms apart."""
    rows = []
    for i in range(7):
        start, late = 100.0 * i, 40 if i == 6 else 0
        request = row(i, "local", start, 80 + late, output_tokens=3)
        rows.append({**request, "token_ms": [start + 50, start + 60, start + 70 + late]})
    found = with_strategy(rows).streams["local"]
    assert (found.n, found.counted) == (7, "server")
    assert found.ttft_ms == {"p50": 50, "p90": None, "p95": None}  # p90 needs 36
    assert found.between_ms["p50"] == 10
    assert found.tokens_per_s == pytest.approx(3 / 0.080)
    # 21 tokens while six requests took 80 ms and one 120: pauses between them do not count.
    assert found.together_per_s == pytest.approx(21 / 0.6)
    for request in rows:
        request["output_tokens"] = None  # no count: pieces stand in
        request["token_ms"].append(request["token_ms"][-1])
    found = with_strategy(rows).streams["local"]
    assert found.counted == "pieces" and found.tokens_per_s == pytest.approx(4 / 0.080)


def test_two_streams_at_once_share_their_time() -> None:
    pair = [row(i, "local", 10.0 * i, 100, output_tokens=5) for i in range(2)]
    pair = [{**one, "token_ms": [one["marks"]["start_ms"] + 20]} for one in pair]
    found = with_strategy(pair).streams["local"]
    assert found.together_per_s == pytest.approx(10 / 0.110)
    assert found.ttft_ms["p50"] is None and found.tokens_per_s is None  # two are too few


# ── tables ──────────────────────────────────────────────────────────────────────────────────


def test_requests_are_tidy_and_marked() -> None:
    frame = of(pool_report(rounds=2)).requests
    assert len(frame) == 3 + 2 * 16
    assert frame["warm_up"].sum() == 1 and frame["round"].isna().sum() == 3
    first = frame[frame["order"].eq(0) & frame["round"].notna()].groupby("round")["arm"].first()
    assert first.tolist() == ["baseline", "strategy"]  # in alternating order
    parts = ["connect_ms", "send_ms", "first_byte_wait_ms", "first_token_wait_ms"]
    parts += ["generating_ms", "last_byte_ms"]
    assert frame[parts].sum(axis=1).to_numpy() == pytest.approx(frame["wall_ms"].to_numpy())
    assert (frame["connect_ms"] == 0).all()  # a warm connection, known from the marks
    assert frame["ttft_ms"].to_numpy() == pytest.approx(42)
    assert frame["queued_ms"].max() == pytest.approx(20)
    assert str(frame["prompt"].dtype) == "Int64" and str(frame["role"].dtype) == "string"
    assert frame["ms_per_token"].iloc[0] == 9000 / 40


def test_the_breakdown_adds_up_to_the_mean_wall() -> None:
    means = of(pool_report(rounds=1)).headline.segments_ms
    assert sum(means["remote"].values()) == pytest.approx(300)
    # By hand: 1 to send, 39 + 2 to the first token, 0.5 our own, the rest generating.
    assert list(means["local"].values()) == pytest.approx([1, 41, 157.5, 0.5])
    known = {"answering_ms": 602.25, "outside_ms": 22.4}
    assert of(reports.load(PUBLISHED)).headline.segments_ms["remote"] == pytest.approx(known)


def test_the_result_is_in_the_prompts_order() -> None:
    trial = of(pool_report())
    assert tables.result(trial) == "<0><1><2><3><4><5><6><7>"
    assert tables.result(trial, round=9) is None
    assert tables.result(of(changed(pool_report(), "strategy", answer=None))) is None
    assert tables.result(of(reports.load(PUBLISHED))) is None


def test_the_typical_request_is_the_median_one_with_its_tokens_from_its_own_start() -> None:
    def stream(_: dict[str, Any], one: dict[str, Any]) -> None:
        one["token_ms"] = [one["marks"]["start_ms"] + t for t in (42.0, 50.0)]

    trial = of(edited(pool_report(), stream))
    walls = [r.wall_ms for r in trial.answered("strategy") if r.provider == "local" and r.wall_ms]
    case = tables.typical(trial, "local")
    assert case["wall_ms"] == sorted(walls)[(len(walls) - 1) // 2] and len(walls) == 20
    assert case["token_ms"] == [42.0, 50.0] and case["load_ms"] is None
    assert tables.typical(of(pool_report()))["role"] == "remote"  # where nobody asks
    assert tables.typical(of(pool_report()))["token_ms"] == []
    with pytest.raises(ReportError, match="no answered request has times of day"):
        tables.typical(of(reports.load(PUBLISHED)))


def test_the_clearest_report_sends_least_at_once_to_most_providers() -> None:
    limits: list[dict[str, int] | None] = [None, {"local": 4, "remote": 4}]
    limits.append({"local": 1, "remote": 1})
    everything, some, one_each = (
        of(edited(pool_report(), lambda arm, _, given=given: arm.update(limits=given)))
        for given in limits
    )
    assert tables.clearest([everything, some, one_each]) is one_each
    assert tables.clearest([everything, some]) is some
    with pytest.raises(ReportError, match="run the experiment first"):
        tables.clearest([])
