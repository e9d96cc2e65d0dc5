"""Each warning about machine and instrument, provoked by recorded facts; silence without them."""

from typing import Any

import pytest
from test_tables import pool_report, row

from poclib.reading.reading import of
from poclib.records import Report, Request, Ruler, RulerRow
from poclib.showing import warnings as cautions


def said(report: Report) -> str:
    return "\n".join(cautions.cautions(report, of(report).headline))


def changed(**changes: Any) -> Report:
    return Report.model_validate({**pool_report().model_dump(), **changes})


def calibrated(walls: list[float]) -> dict[str, Any]:
    requests = [row(0, "local", 1000.0 * i, wall) for i, wall in enumerate(walls)]
    requests.append(row(0, "remote", 1, 300))
    return {"arm": "calibration", "strategy": "sequential", "requests": requests}


def moments(**facts: list[Any]) -> list[dict[str, Any]]:
    count = len(next(iter(facts.values())))
    return [{"at_ms": i, **{k: v[i] for k, v in facts.items()}} for i in range(count)]


def test_a_report_without_such_facts_is_only_told_what_it_counts() -> None:
    assert said(pool_report()).count("\n") == 0
    assert said(pool_report()).startswith("Too few requests for a 90th percentile (local 20, ")


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        (
            {"preparation": [calibrated([200, 202, 199, 210, 240, 242])]},
            "local was 20 % slower at the run's end",
        ),
        (
            {"preparation": [calibrated([200, 200, 200, 160, 150, 150])]},
            "local was 25 % faster at the run's end",
        ),
        (
            {"preparation": [calibrated([420, 200, 200, 200])]},
            "first calibration request of local took 2.1 times",
        ),
        (
            {"moments": moments(others=[0.3, 0.5])},
            "Other programs took 40 % of this machine's processor time",
        ),
        ({"moments": moments(steal=[0.0, 0.1])}, "The host took 5 %"),
        ({"moments": moments(throttled=[7, 7, 19])}, "slowed for heat 12 times"),
        ({"environment": {"load_1min": 1.8, "cores": 2}}, "load average was 1.8 on 2 cores"),
        ({"moments": moments(wall_ahead_ms=[0.1, 3000.2, 3000.3])}, "set by 3,000 ms"),
        (
            {"lags": {"at_ms": list(range(100)), "lag_ms": [0.1] * 80 + [1.0] * 20}},
            "up to 1.0 ms late (95 % of the time), 50 % of the added latency of a local request",
        ),
    ],
)
def test_what_a_report_recorded_is_warned_of(facts: dict[str, Any], sentence: str) -> None:
    found = said(changed(**facts))
    assert sentence in found
    warning = next(line for line in found.splitlines() if sentence in line)
    assert ": " in warning and warning.endswith(".")  # a cause, and what to do
    assert found in "\n".join(cautions.warnings(changed(**facts), of(changed(**facts)).headline))


def test_a_load_average_counts_only_where_others_share_is_unknown() -> None:
    """In a suite it still holds the strategy before, whose engines were ours."""
    busy = {"load_1min": 1.8, "cores": 2}
    assert "load average" in said(changed(environment=busy))
    assert "load average" not in said(changed(environment=busy, moments=moments(others=[0.0])))


def test_small_drift_load_lag_and_steps_are_not_worth_a_word() -> None:
    calm = changed(
        preparation=[calibrated([200, 202, 199, 205, 204, 206])],
        moments=moments(others=[0.05], steal=[0.0], throttled=[3], wall_ahead_ms=[-2.0]),
        environment={"load_1min": 0.8, "cores": 2, "own_cores": [0, 1, 2]},
        lags={"at_ms": list(range(100)), "lag_ms": [0.05] * 100},
    )
    assert said(calm).count("\n") == 0


def test_a_coordinator_without_a_core_of_its_own() -> None:
    data = pool_report().model_dump()
    for core, one in enumerate(data["providers"]):
        one["core"] = core
    both = {**data, "environment": {"own_cores": [0, 1]}}
    assert "no core of its own" in said(Report.model_validate(both))
    three = {**data, "environment": {"own_cores": [0, 1, 2]}}
    assert "no core of its own" not in said(Report.model_validate(three))


def test_a_model_that_was_loaded_while_it_was_timed() -> None:
    data = pool_report().model_dump()
    rows = data["rounds"][0]["arms"][0]["requests"]
    for one in rows:
        one["server"]["load_ms"] = 12.0  # as a server tells that has it loaded
    assert cautions.reloaded(Report.model_validate(data)) == []
    rows[0]["server"]["load_ms"] = 90.0
    report = Report.model_validate(data)
    (told,) = [one for one in cautions.weighty(report, of(report).headline) if "load" in one]
    assert told.startswith("1 request waited while a model was loaded in mid-run (local, up to 90")


def checked(error_ms: float) -> Ruler:
    known = {"in_flight": 1, "delay_ms": 5, "round_trip_ms": 0, "keep_alive": True, "n": 40}
    rows = [RulerRow(quantity="over_ms", bias_ms=error_ms, **known)]
    return Ruler(created="2026-11-24T00:00:00Z", rows=rows)


def test_a_headline_below_the_rulers_error_is_marked() -> None:
    # By hand: 22 ms remote, 2 ms local, 21 ms a round trip.
    found = said(changed(ruler=checked(2.5).model_dump()))
    assert "Below what this instrument can see (2.5 ms" in found
    assert "a local request (2.0 ms)" in found and "remote request" not in found
    assert "Below what" not in said(changed(ruler=checked(0.5).model_dump()))
    assert cautions.instrument_ms(pool_report()) is None


def test_calibrations_are_in_order_and_only_what_was_answered() -> None:
    rows = of(pool_report()).calibrations
    assert [one.wall_ms for one in rows["local"]] == [200]
    failed = Request.model_validate(row(0, "local", 0, 5, outcome="failed"))
    arm = pool_report().preparation[1].model_copy(update={"requests": [failed]})
    assert of(pool_report(preparation=[arm])).calibrations == {}
