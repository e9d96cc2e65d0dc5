"""Each warning is provoked by facts of a report, and silent without them."""

import hashlib
import re
from typing import Any

import pytest
from test_tables import PUBLISHED, changed, pool_report, row

from poclib import report as reports
from poclib.reading.reading import of
from poclib.records import Report
from poclib.showing import warnings as cautions


def said(report: Report) -> str:
    warnings = cautions.warnings(of(report))
    assert all(warnings)
    return "\n".join(warnings)


def calibrated(walls: list[float]) -> Report:
    requests = [row(0, "local", 1000.0 * i, wall) for i, wall in enumerate(walls)]
    requests.append(row(0, "remote", 1, 300))
    arm = {"arm": "calibration", "strategy": "sequential", "requests": requests}
    return pool_report(preparation=[arm])


def moments(**facts: list[Any]) -> Report:
    count = len(next(iter(facts.values())))
    every = [{"at_ms": i, **{k: v[i] for k, v in facts.items()}} for i in range(count)]
    return pool_report(moments=every)


def lagging(*lag_ms: float) -> Report:
    return pool_report(lags={"at_ms": list(range(len(lag_ms))), "lag_ms": lag_ms})


def checked(error_ms: float) -> Report:
    known = {"in_flight": 1, "delay_ms": 5, "round_trip_ms": 0, "keep_alive": True, "n": 40}
    rows = [{"quantity": "over_ms", "bias_ms": error_ms, **known}]
    return pool_report(ruler={"created": "2026-11-24T00:00:00Z", "rows": rows})


def other(**facts: Any) -> Report:
    """The remote provider is another."""
    first, second = pool_report().model_dump()["providers"]
    return pool_report(providers=[first, {**second, **facts}])


def one(**facts: Any) -> Report:
    """One request of the strategy is another."""
    return changed(pool_report(), "strategy", **facts)


def every(**facts: Any) -> Report:
    """Every request of the rounds is another."""
    data = pool_report().model_dump()
    for request in (r for o in data["rounds"] for arm in o["arms"] for r in arm["requests"]):
        request.update(facts, marks={**request["marks"], **facts.get("marks", {})})
    return Report.model_validate(data)


NOTHING = hashlib.sha256(b"").hexdigest()
ROUND = pool_report().model_dump()["rounds"][1]
CASES = {
    "no interval": pool_report(rounds=1),
    "did not finish": pool_report(complete=False),
    "1 request of 80 failed (TimedOut 1 time; ": one(outcome="failed", error_kind="TimedOut"),
    "1 round left out": one(outcome="failed"),
    "1 of 40 answers differ": one(answer_sha256="x"),
    "their digests differ": other(digest="sha256:other"),
    "digests are unknown": other(digest=None),
    "different engines": other(engine="other"),
    "remote not pinned": other(pinned=False),
    "1 request reused cached": one(cached_tokens=9),
    "(39 to 40 tokens)": one(output_tokens=39),
    "remote did not report server time": one(server={}, provider="remote"),
    "1 answer of 80 empty": one(answer_sha256=NOTHING),
    "1 late prompt went to a second provider too, whose answer came first 1 time;": one(
        role="hedge"
    ),
    "80 requests of 80 opened a new connection (local, remote)": every(marks={"connected_ms": 1}),
    "Too small to be trusted: the added latency of a local request (2.0 ms); by its check before "
    "the run the instrument is off by 2.5 ms, and it": checked(2.5),
    "went on 1 time; engines were warmed anew": pool_report(resumed_ms=[9.0]),
    "16 requests of round 2, which was cut and repeated whole, are": pool_report(cut=[ROUND]),
    "because one more would have passed run_limit_s": pool_report(ended="time"),
    "when its interval lay within the band": pool_report(ended="narrow"),
    "server was changed": pool_report(notes=["server was changed during the run"]),
    "over 3 times the median": changed(pool_report(), "baseline", wall_ms=9000.0),
    "not mostly the network": reports.load(PUBLISHED),
    "local was 20 % slower at the run's end": calibrated([200, 202, 199, 210, 240, 242]),
    "local was 25 % faster at the run's end": calibrated([200, 200, 200, 160, 150, 150]),
    "first calibration request of local took 2.1 times": calibrated([420, 200, 200, 200]),
    "Other programs took 40 % of this machine's processor time": moments(others=[0.3, 0.5]),
    "The host took 5 %": moments(steal=[0.0, 0.1]),
    "slowed for heat 12 times": moments(throttled=[7, 7, 19]),
    "local request (2.0 ms); it noticed events up to 1.0 ms late (95 %": lagging(
        *[0.1] * 80, *[1.0] * 20
    ),
    "up to 23.0 ms late (95 % of the time), 10 % of a whole request (229 ms)": lagging(
        *[23.0] * 90
    ),
}


@pytest.mark.parametrize(("sentence", "report"), CASES.items(), ids=list(CASES))
def test_what_a_report_recorded_is_warned_of(sentence: str, report: Report) -> None:
    (warning,) = [line for line in said(report).splitlines() if sentence in line]
    assert warning.endswith(".") or warning in report.notes  # a whole sentence


def test_small_drift_load_lag_and_errors_are_not_worth_a_word() -> None:
    calm = [calibrated([200, 202, 199, 205, 204, 206]), lagging(*[0.05] * 100), checked(0.5)]
    calm.append(moments(others=[0.05], steal=[0.0], throttled=[3]))
    for report in (pool_report(), *calm):
        assert said(report) == ""


def test_only_what_hangs_on_a_small_time_is_told_to_be_too_small() -> None:
    """The pool's local requests pay 2 ms, its remote ones 22; a round trip there takes 21."""
    assert "Too small" not in said(lagging(*[0.4] * 100)), "a fifth of the smallest"
    assert "Too small" in said(lagging(*[0.6] * 100))
    # The difference is what can be the network, however large both are.
    assert "the added latency that can be the network (20.0 ms)" in said(checked(20.5))
    assert "the round trip to remote (21.0 ms)" in said(checked(21.5))
    assert "the round trip to remote" not in said(checked(20.5))
    # A local round trip is nothing that a verdict or a finding hangs on.
    data = checked(0.5).model_dump()
    data["probes"] = [{"provider": "local", "at_ms": at, "round_trip_ms": 0.04} for at in range(5)]
    assert of(Report.model_validate(data)).headline.round_trip_ms["local"] == 0.04
    assert said(Report.model_validate(data)) == ""


def test_a_late_loop_could_change_a_verdict_only_beyond_the_band_of_a_request() -> None:
    (grave,) = cautions.weighty(of(lagging(*[12.0] * 90)))
    assert "noticed events up to 12.0 ms late" in grave
    assert cautions.weighty(of(lagging(*[11.0] * 90))) == [], "4.8 % of 229 ms"


@pytest.mark.parametrize("name", [n for n in reports.names() if n.startswith("sample-")])
def test_nothing_that_every_run_of_the_default_pool_has_is_told(name: str) -> None:
    """Connections opened ahead, a loop that is 0.1 ms late, a round trip within one machine."""
    told = said(reports.load(name))
    assert not re.search("opened while|Too small|late [(]95", told)
    usual = {"sample-all-parallel", "sample-batched", "sample-sent-ahead"}  # several at once
    assert bool(told) == (name in usual)


def test_a_model_that_was_loaded_while_it_was_timed() -> None:
    loaded = every(server={"load_ms": 12.0})  # as a server tells that has it loaded
    assert "mid-run" not in said(loaded)
    report = changed(loaded, "baseline", server={"load_ms": 90.0})
    (told,) = [text for text in cautions.weighty(of(report)) if "load" in text]
    assert told.startswith("1 request waited while a model was loaded in mid-run (local, up to 90")
