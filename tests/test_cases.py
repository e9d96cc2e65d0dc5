"""The cases that are shown are chosen by a rule, not by taste."""

import pytest
from test_tables import PUBLISHED, pool_report

from poclib import report as reports
from poclib.errors import ReportError
from poclib.reading import cases
from poclib.records import Report

REPORT = pool_report()


def test_the_typical_request_is_the_median_one() -> None:
    walls = [
        row.wall_ms
        for one in REPORT.rounds
        for arm in one.arms
        for row in arm.requests
        if arm.arm == "strategy" and row.provider == "local" and row.wall_ms
    ]
    row = cases.typical(REPORT, "local")
    assert row["wall_ms"] == sorted(walls)[(len(walls) - 1) // 2] and len(walls) == 20
    assert row["token_ms"] == [] and row["load_ms"] is None
    assert cases.typical(REPORT)["role"] == "remote"  # where nobody asks


def test_tokens_are_told_from_the_requests_own_start() -> None:
    data = REPORT.model_dump()
    for one in data["rounds"]:
        for arm in one["arms"]:
            for row in arm["requests"]:
                row["token_ms"] = [row["marks"]["start_ms"] + t for t in (42.0, 50.0)]
    assert cases.typical(Report.model_validate(data))["token_ms"] == [42.0, 50.0]


def test_without_times_of_day_there_is_no_case() -> None:
    with pytest.raises(ReportError, match="no answered request has times of day"):
        cases.typical(reports.load(PUBLISHED))


def limited(strategy: str, limits: dict[str, int] | None) -> Report:
    data = pool_report(strategy=strategy).model_dump()
    for one in data["rounds"]:
        for arm in one["arms"]:
            arm["limits"] = {"local": 1} if arm["arm"] == "baseline" else limits
    return Report.model_validate(data)


def test_the_clearest_report_sends_least_at_once_to_most_providers() -> None:
    everything = limited("all-parallel", None)
    some = limited("batched", {"local": 4, "remote": 4})
    one_each = limited("serial-per-provider", {"local": 1, "remote": 1})
    assert cases.clearest([everything, some, one_each]) is one_each
    assert cases.clearest([everything, some]) is some
    with pytest.raises(ReportError, match="run the experiment first"):
        cases.clearest([])
