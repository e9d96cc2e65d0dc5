"""What calibration promises, against schedules worked out by hand."""

import re
from dataclasses import replace

import pytest
from test_tables import PUBLISHED, pool_report, row

from poclib import report as reports
from poclib.measure import forecast
from poclib.measure.strategies import STRATEGIES
from poclib.reading import phases, tables
from poclib.reading.reading import of
from poclib.showing import documents
from poclib.stats import Ratio


def test_the_promise_is_the_schedule_over_the_baseline() -> None:
    """9 prompts, 100 ms and 200 ms alone: 900 ms on the faster one, alone."""
    found = forecast.ratios(9, {"fast": 100.0, "slow": 200.0}, {"fast": 1, "slow": 1})
    assert found["sequential"] == 1
    assert found["serial-per-provider"] == pytest.approx(800 / 900)  # four on the slow one
    assert found["capability-split"] == pytest.approx(600 / 900)  # six and three
    assert found["shared-queue"] == pytest.approx(600 / 900)
    unknown = set(STRATEGIES) - set(found)
    # What several at once do is for a run to show.
    assert unknown == {"all-parallel", "batched", "sent-ahead", "through-router"}
    assert forecast.ratios(9, {}, {}) == {}


def test_only_what_was_known_before_the_first_round_is_asked() -> None:
    """Local 200 ms, remote 300 ms, then a calibration after a round that was slow."""
    data = pool_report().model_dump()
    later = {"arm": "calibration", "strategy": "sequential", "requests": [row(0, "local", 9, 999)]}
    before = [
        {"arm": "calibration", "strategy": "sequential", "requests": [row(0, name, 1, wall)]}
        for name, wall in (("local", 200), ("remote", 300))
    ]
    data["preparation"] = [*before, later]
    report = reports.Report.model_validate(data)
    known = forecast.calibrated(report.preparation)
    assert forecast.expected_ms(known) == {"local": 200.0, "remote": 300.0}
    # Four each: 4 x 300 of 8 x 200.
    assert forecast.each([report]) == {"serial-per-provider": pytest.approx(0.75)}
    assert forecast.each([reports.load(PUBLISHED)]) == {}  # it has no calibration


def test_the_forecast_is_held_against_the_interval() -> None:
    headline = of(pool_report()).headline  # 0.78, interval 0.75 to 0.81
    other = replace(headline, strategy="batched", overhead_ratio=Ratio(0.5, 0.4, 0.6, 5))
    text = documents.forecast_finding({"serial-per-provider": 0.75}, [headline, other])
    assert "foretold 0.75 times the baseline's time at best (serial-per-provider)" in text
    assert "of 1 predictions 1 lie inside" in text and "For batched nothing is foretold" in text
    for value, cells in ((0.75, "| 0.75 .*| 0.78 .*| inside"), (0.6, "| 0.60 .*| outside")):
        table = documents.forecast({"serial-per-provider": value}, [headline])
        assert re.search(cells.replace("|", "[|]"), table)
    assert "Nothing was foretold" in documents.forecast_finding({}, [headline])


def test_the_pool_is_introduced_with_speed_and_distance() -> None:
    report = pool_report()
    text = documents.pool(of(report))
    assert "| remote   | remote | llama-server b1 | tiny  | 300 ms" in text
    assert "133 tokens/s" in text and "21.0 ms" in text  # 40 tokens in 300 ms
    # 200 (1 / 200 + 1 / 300) = 1.67
    assert text.endswith(
        "local is the fastest; a request takes 1.50 times as long on remote. With one request at "
        "a time on each, all together can be at most 1.67 times as fast as local alone."
    )
    untimed = pool_report(preparation=[], rounds=0)
    assert "cannot be compared" in documents.pool(of(untimed))


def test_the_anatomy_names_every_phase_and_what_the_server_did_not_tell() -> None:
    case = tables.typical(of(pool_report()))
    text = documents.anatomy(case)
    for phase in phases.PHASES:
        known = case[phase.key] is not None
        assert (f"| {phase.label} " in text) == known and (phase.meaning in text or not known)
    assert text.endswith(
        "Not told by this server: server: queue, server: load, server: prompt, server: generation."
    )
    said = documents.anatomy_finding(case)
    assert "22.0 ms outside" in said and "Its longest phase was generating" in said
    assert "waited 20.0 ms in the coordinator" in said and "40 tokens was there after 42.0" in said
    silent = case | {"over_ms": None, "queued_ms": None, "ttft_ms": None}
    assert "reports no time of its own" in documents.anatomy_finding(silent)
