"""What the best order could have reached, the ideal of a batching machine, work done twice."""

from typing import Any

import pytest
from test_tables import edited, pool_report, row, serial, with_strategy

from poclib.reading.reading import of
from poclib.records import Report
from poclib.showing import warnings as cautions
from poclib.showing import words

LOCAL, REMOTE = {"local": 200.0}, {"local": 200.0, "remote": 300.0}


def test_by_hand_what_the_best_order_reaches() -> None:
    """Eight equal prompts, 200 and 300 ms: five and three end at 1000; four each at 1200."""
    assert of(pool_report()).headline.best_order == pytest.approx(1000 / 1200)
    assert with_strategy(serial(0, LOCAL, [*range(8)])).best_order == pytest.approx(
        1000 / 1600  # the idle machine counts, by its calibration
    )


def test_lengths_are_what_the_best_order_knows() -> None:
    """Unlike lengths: 10, 10, 10 and 30 tokens at 0.1 a ms each: 300 is the best, 400 was done."""
    walls = [("local", 0, 100, 10), ("remote", 0, 100, 10), ("local", 100, 100, 10)]
    walls += [("remote", 100, 300, 30)]
    rows = [row(i, who, at, ms, output_tokens=n) for i, (who, at, ms, n) in enumerate(walls)]
    report = edited(pool_report(1, prompt_sha256=[*"abcd"]), strategy=rows)
    kept = [r for r in report.model_dump()["rounds"][0]["arms"][0]["requests"] if r["prompt"] < 4]
    found = of(edited(report, baseline=kept)).headline
    assert found.best_order == pytest.approx(300 / 400)


def at_once(ends_ms: float, **facts: Any) -> Report:
    """Eight prompts at once at local, all of which end at `ends_ms`."""
    rows = [row(i, "local", 0, ends_ms, **facts) for i in range(8)]
    data = pool_report(1).model_dump()
    data["providers"], data["preparation"] = (
        data["providers"][:1],
        [{"arm": "calibration", "strategy": "sequential", "requests": [row(0, "local", 1, 200)]}],
    )
    return edited(Report.model_validate({**data, "probes": []}), strategy=rows)


def test_times_that_depend_on_the_company_know_no_best_order() -> None:
    batching = of(at_once(400)).headline
    assert batching.best_order is None and "several at once at local" in batching.order_unknown
    assert batching.missing["best_order"] == batching.order_unknown
    alone = of(at_once(205)).headline  # nothing was in the way of another: eight slots
    assert alone.best_order == pytest.approx(1.0, abs=0.03)


def test_what_waits_in_a_queueing_server_is_known_by_its_own_time() -> None:
    """Two at once at a server that works on one: the second waits its 200 ms, then takes 200."""
    rows = []
    for i in range(8):
        begin = max(0, 200 * (i - 1))
        wall = 200 * (i + 1) - begin
        rows.append(row(i, "local", begin, wall, server={"total_ms": 198}, output_tokens=40))
    report = at_once(400)
    found = of(edited(report, strategy=rows)).headline
    assert found.contention["local"].behaviour == "queues"
    assert found.best_order == pytest.approx(8 * 198 / 1600) and found.overfull == ("local",)
    assert "More were held than the server works on at local" in words.network(found)


def test_a_batching_machines_ideal_is_of_its_levels_or_says_what_it_leaves_out() -> None:
    """Eight at once end at 400: four times one alone, as the levels of capacity say too."""
    bare = of(at_once(400)).headline
    assert bare.ideal_ms == 1600 and bare.efficiency == 4 and bare.unbatched == ("local",)
    assert "400 % (one at a time)" in words.report_text(of(at_once(400)))
    report = at_once(400)
    single = {"arm": "capacity", "strategy": "shared-queue", "limits": {"local": 1}}
    eight = {**single, "limits": {"local": 8}}
    single["requests"] = serial(0, LOCAL, [0, 1, 2, 3])
    eight["requests"] = [row(i, "local", 0, 400) for i in range(8)]
    data = report.model_dump()
    data["preparation"] += [single, eight]
    found = of(Report.model_validate(data)).headline
    assert found.ideal_from == "calibration and capacity" and found.unbatched == ()
    assert found.efficiency == pytest.approx(1.0) and found.ideal_ms == pytest.approx(400)


def test_copies_are_counted_and_told_with_their_time() -> None:
    """Prompt 7 was late at remote; a copy at local came first, 150 ms after the first began."""
    rows = serial(0, REMOTE, [*range(8)])
    last = rows.pop()
    late = {**last, "outcome": "cancelled", "wall_ms": None, "answer": None, "answer_sha256": None}
    late["marks"] = {"start_ms": 900}
    rows += [late, row(7, "local", 950, 100, role="hedge", attempt=2)]
    report = edited(pool_report(1), strategy=rows)
    found = of(report).headline
    assert (found.copies, found.copies_ms) == (1, 150) and found.best_order
    assert "(work done twice: 1 request, 0.2 s)" in " ".join(cautions.warnings(of(report)))
