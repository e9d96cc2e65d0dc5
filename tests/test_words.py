"""Sentences say what the numbers say, carry no markup of strangers, and choose by the data."""

import hashlib
import re
from dataclasses import replace
from typing import Any

import pytest
from test_cautions import checked
from test_tables import PUBLISHED, changed, pool_report

from poclib import report as reports
from poclib.reading.reading import of
from poclib.records import Report
from poclib.showing import documents, titles, words
from poclib.showing import format as notation
from poclib.showing import warnings as cautions
from poclib.stats import Contention, Headline, Ratio, Spread

PASSED = of(pool_report()).headline


def with_ratio(median: float, low: float | None, high: float | None, **changes: Any) -> Headline:
    found = Ratio(median, low, high, 1 if low is None else 5)
    return replace(PASSED, overhead_ratio=found, **changes)


def test_the_gate_line_for_every_verdict() -> None:
    line = words.gate_line(with_ratio(0.58, 0.55, 0.61))
    assert line == "Gate: PASS — 0.58 (0.55 to 0.61, 5 rounds) is below 2.00"
    line = words.gate_line(with_ratio(2.5, 2.1, 2.9, verdict="FAIL"))
    assert line == "Gate: FAIL — 2.50 (2.10 to 2.90, 5 rounds) is above 2.00"
    open_ = {"verdict": "INCONCLUSIVE", "rounds_needed": 12}
    line = words.gate_line(with_ratio(1.9, 1.7, 2.1, **open_))
    assert line.endswith("(1.70 to 2.10, 5 rounds) holds 2.00; about 12 rounds would settle it")
    line = words.gate_line(with_ratio(2.0, 1.7, 2.1, verdict="INCONCLUSIVE"))
    assert line.endswith("no reachable number of rounds would settle it")
    line = words.gate_line(with_ratio(0.87, None, None, verdict="INCONCLUSIVE", rounds_needed=2))
    assert "0.87 (1 round, so no interval)" in line and "at least 2 rounds" in line


def test_decimals_never_hide_on_which_side_of_the_limit_it_lies() -> None:
    line = words.gate_line(with_ratio(1.9, 1.8, 1.9996))
    assert "to 1.9996, 5 rounds) is below 2.0000" in line


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.90, 0.94, "faster"),
        (0.90, 0.96, "not distinguishable from 1"),
        (0.96, 1.04, "not distinguishable from 1"),
        (1.04, 1.20, "not distinguishable from 1"),
        (1.06, 1.20, "slower"),
        (None, None, "unknown"),
    ],
)
def test_the_band_decides_what_is_called_a_difference(
    low: float | None, high: float | None, said: str
) -> None:
    headline = with_ratio(1.0, low, high)
    assert words.effect(headline) == said
    assert said in words.finding(headline) or low is None
    assert "same" not in words.finding(headline)


EVIL = "<script>alert(1)</script> **b** [x](http://evil.example) \x1b[31m\u202e`$|\n# h"


def test_text_of_servers_is_harmless_everywhere() -> None:
    data = pool_report().model_dump()
    for facts in data["providers"]:
        facts.update(model=EVIL, digest=EVIL, server=EVIL, engine=EVIL, kind=EVIL)
    data |= {"created": EVIL, "source": EVIL}
    arm = data["rounds"][0]["arms"][0]
    arm["requests"][0].update(outcome="failed", error_kind=EVIL, error=EVIL)
    report = Report.model_validate(data)
    headline = of(report).headline
    said = [
        words.provenance(report, headline),
        words.subtitle(headline),
        words.bottom_line(report, headline),
        words.report_text(report, headline),
        documents.phase_0_result([report], [headline]),
        words.doctor_table(report.providers, report.probes, {}, {}, {"local": "x"}),
        *cautions.warnings(report, headline),
    ]
    for text in said:
        assert not re.search(r"[<>`$\x1b\u202e\[\]]|//|\*\*b|\n# h", text), text


def test_no_sentence_uses_plus_minus() -> None:
    report = pool_report()
    text = words.report_text(report, PASSED) + documents.phase_0_result([report], [PASSED])
    assert "±" not in text and not re.search(r"\bnan\b|\bNone\b(?! was)", text)


def test_the_bottom_line_says_gain_price_and_cause() -> None:
    text = words.bottom_line(pool_report(), PASSED)
    assert "0.78 times the baseline's time: faster (interval 0.75 to 0.81, 5 rounds)" in text
    assert "one at a time on local" in text and "960 ms" in text and "70 %" in text
    assert "local 33 %" in text
    assert "only the difference, 20.0 ms, can be the network" in text
    assert text.endswith("**Gate: PASS — 0.78 (0.75 to 0.81, 5 rounds) is below 2.00.**")


def crowd(wall: float, behaviour: str, rate: float | None, server: float | None = 1) -> Headline:
    """Four requests at once at local, 200 ms alone."""
    seen = Contention(behaviour, 4, rate, server)
    walls = {"local": Spread(wall, wall, wall, 20), "remote": None}
    return replace(PASSED, wall_ms=walls, contention={"local": seen})


@pytest.mark.parametrize(
    ("seen", "factor", "cause"),
    [
        ((480, "batches", 1.6), "2.4", "alone, but 1.60 times as many tokens .* [(]batching[)]"),
        ((500, "batches", None), "2.5", "alone: the server worked on them together [(]batching"),
        ((500, "queues", 1.0), "2.5", "alone and 1.00 times .* [(]queueing[)]"),
        ((500, "queues", 1.0, None), "2.5", "alone and .* shared the server, or waited in it"),
        ((500, "shares", 1.0), "2.5", "alone and .* shared the server with little gain or loss"),
        ((2000, "thrashes", 0.4), "10.0", "alone and only 0.40 times .* slowed each other down"),
        ((500, "refuses", None), "2.5", "alone: the server turned requests away"),
    ],
)
def test_what_requests_did_to_each_other_is_said(seen: Any, factor: str, cause: str) -> None:
    (said,) = words.crowded(crowd(*seen))
    assert re.search(f"On local a request took {factor} times as long as one {cause}", said)
    assert said in words.why(crowd(*seen))


def test_what_took_no_longer_is_not_said_to_be_crowded() -> None:
    assert words.crowded(PASSED) == [] == words.crowded(crowd(290, "shares", 1.0))


def test_only_crowding_that_costs_is_a_failure_mode() -> None:
    gains, loses = crowd(480, "batches", 1.6), crowd(2000, "thrashes", 0.4)
    text = documents.phase_0_result([pool_report()], [gains])
    assert "None was seen in these reports" in text
    text = documents.phase_0_result([pool_report()], [loses])
    assert "serial-per-provider: On local a request took 10.0 times" in text


def test_the_best_is_named_with_those_that_cannot_be_told_from_it() -> None:
    first = with_ratio(0.59, 0.53, 0.75, strategy="a")
    level = with_ratio(0.70, 0.66, 0.74, strategy="b")
    worse = with_ratio(0.90, 0.77, 0.97, strategy="c")
    assert words.best([worse, level, first]) == (
        "The lowest ratio is a's, 0.59 (0.53 to 0.75, 5 rounds); "
        "not distinguishable from it: b; 1 above it."
    )
    assert words.best([worse, first]).endswith("every other interval lies above it.")
    assert words.best([first]) == "The lowest ratio is a's, 0.59 (0.53 to 0.75, 5 rounds)."
    assert "without intervals" in words.best([first, with_ratio(0.7, None, None)])
    assert "none is the best" in words.best([])


def test_the_cost_says_what_machine_time_was_paid() -> None:
    """Round 3 is the median: local busy for 4 x 228.8 of 1372.8 ms, remote for all of it."""
    text = words.cost(pool_report(), PASSED)
    assert re.search(r"local +\| 4\.0 +\| 67 % ", text) and re.search(r"remote .*\| 100 %", text)
    assert "2,288 ms in all, the one of the baseline for 1,760 ms: 1.30 times" in text
    assert text.endswith("for a speedup of 1.28.")


def test_the_cause_of_what_is_lost_is_named() -> None:
    beyond = replace(PASSED, efficiency=1.8)
    assert "batching" not in words.why(beyond) and "a cache answered" in words.why(beyond)
    seen = replace(crowd(210, "batches", 1.6), efficiency=1.8)
    assert "steps of local (batching)" in words.why(seen)
    assert "batching" not in words.why(replace(seen, contention={}))
    assert "unknown" in words.why(replace(PASSED, efficiency=None))
    assert "Idle, as a share of the makespan: local 33 %" in words.why(PASSED)
    assert "Idle" not in words.why(replace(PASSED, efficiency=0.97))


def warned(report: Report) -> str:
    return "\n".join(cautions.warnings(report, of(report).headline))


def providers(**changes: Any) -> list[dict[str, Any]]:
    first, second = pool_report().model_dump()["providers"]
    return [first, {**second, **changes}]


def reconnected(report: Report) -> Report:
    """Every request opened its connection."""
    data = report.model_dump()
    for one in data["rounds"]:
        for arm in one["arms"]:
            for row in arm["requests"]:
                row["marks"]["connected_ms"] = row["marks"]["start_ms"]
    return Report.model_validate(data)


def test_warnings_are_chosen_from_the_data() -> None:
    # All that is left: one machine is not two, and 20 requests have no tail.
    assert warned(pool_report()).count("\n") == 1
    assert "All engines ran on one machine" in warned(pool_report())
    apart = [{**one, "kind": "ollama"} for one in pool_report().model_dump()["providers"]]
    assert warned(pool_report(providers=apart)).startswith("Too few requests for a 90th")
    cases = {
        "no interval": pool_report(rounds=1),
        "did not finish": pool_report(complete=False),
        "1 request of 80 failed (TimedOut 1 times; ": changed(
            pool_report(), "strategy", outcome="failed", error_kind="TimedOut"
        ),
        "1 round left out": changed(pool_report(), "strategy", outcome="failed"),
        "1 of 40 answers differ": changed(pool_report(), "strategy", answer_sha256="x"),
        "their digests differ": pool_report(providers=providers(digest="sha256:other")),
        "digests are unknown": pool_report(providers=providers(digest=None)),
        "different engines": pool_report(providers=providers(engine="other")),
        "remote not pinned": pool_report(providers=providers(pinned=False)),
        "1 request reused cached": changed(pool_report(), "strategy", cached_tokens=9),
        "(39 to 40 tokens)": changed(pool_report(), "strategy", output_tokens=39),
        "remote did not report server time": changed(
            pool_report(), "strategy", server={}, provider="remote"
        ),
        "1 answer of 80 empty": changed(
            pool_report(), "strategy", answer_sha256=hashlib.sha256(b"").hexdigest()
        ),
        "1 late prompt went to a second provider too, whose answer came first 1 times": changed(
            pool_report(), "strategy", role="hedge"
        ),
        "80 requests of 80 opened a new connection": reconnected(pool_report()),
        "Below what this instrument can see (2.5 ms": pool_report(ruler=checked(2.5).model_dump()),
        "went on 1 time; round 2 was repeated whole: 16 requests of round 2 are kept": pool_report(
            resumed_ms=[9.0], cut=[pool_report().model_dump()["rounds"][1]]
        ),
        "because one more would have passed run_limit_s": pool_report(ended="time"),
        "server was changed": pool_report(notes=["server was changed during the run"]),
        "over 3 times the median": changed(pool_report(), "baseline", wall_ms=9000.0),
        "not mostly the network": reports.load(PUBLISHED),
    }
    for sentence, report in cases.items():
        assert sentence in warned(report), sentence


def test_the_published_claims_are_held_against_the_rows() -> None:
    report = reports.load(PUBLISHED)
    said = documents.published_claims(report, of(report).headline)
    wrong = [one for one in said if "does **not** follow" in one]
    assert len(wrong) == 2
    assert "60.4 from a local row" in wrong[0] and "13.1 to 30.2 ms" in wrong[0]
    assert "28 to 38 times" in wrong[1] and "340 ms" in wrong[1] and "570 ms gives 17" in wrong[1]
    text = "\n".join(said)
    assert "Speedup, published as 1.15, follows: the rows give 1.154" in text
    assert "published as 0.87, follows" in text and "published as 0.04, follows" in text
    assert "27.9 ms and 22.4 ms" in text and "75 % of what the rates allow" in text


def test_other_claims_get_other_words() -> None:
    data = reports.load(PUBLISHED).model_dump()
    data["environment"]["published"]["headlines"]["speedup"] = 1.3
    data["environment"]["published"]["headlines"]["added_latency_ms_range"] = [13, 30]
    report = Report.model_validate(data)
    said = documents.published_claims(report, of(report).headline)
    assert said[0].startswith("Speedup, published as 1.3, does **not** follow")
    assert any("The range of 13 to 30 ms per remote request follows" in one for one in said)


@pytest.mark.parametrize(
    "broken", [None, [], {"headlines": {}}, {"headlines": 1, "failing_run": 2}]
)
def test_claims_in_another_form_are_no_claims(broken: object) -> None:
    report = reports.load(PUBLISHED).model_copy(update={"environment": {"published": broken}})
    headline = of(report).headline
    assert documents.published_claims(report, headline) == []
    assert documents.phase_0_result([report], [headline])
    assert documents.published_claims(pool_report(), PASSED) == []


SECTIONS = [
    "Bottom line",
    "Strategy alternatives",
    "Latency breakdown",
    "Failure modes",
    "Conditions for advancing to Phase 1",
    "What this does not show",
]


def test_the_phase_0_result_has_its_sections_and_computed_numbers() -> None:
    report, published = pool_report(), reports.load(PUBLISHED)
    text = documents.phase_0_result([published, report], [of(published).headline, PASSED])
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    assert text.count("| serial-per-provider | 0.78 (0.75 to 0.81, 5 rounds)") == 1
    assert "all-parallel took 6.47 times" in text and "With 5 rounds the interval" in text
    state = dict(re.findall(r"^\| (.*?) +\| (met|not met) ", text, re.M))
    assert state["A strategy passes the gate"] == "met"
    assert state["A strategy reaches 90 % of the ideal"] == "not met"
    assert len(state) == 7
    for few in ([], [published]):
        text = documents.phase_0_result(few, [of(one).headline for one in few])
        assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS and "met" in text


def test_warnings_that_differ_in_numbers_only_stand_once_in_the_phase_0_result() -> None:
    cold = [pool_report(environment={"load_1min": load, "cores": 2}) for load in (1.7, 1.9)]
    calm = pool_report()
    every = [*cold, calm]
    text = documents.phase_0_result(every, [of(one).headline for one in every])
    said = [line for line in text.splitlines() if "load average" in line]
    assert len(said) == 1 and "load average was 1.7" in said[0]
    everywhere = next(line for line in text.splitlines() if "All engines ran" in line)
    assert everywhere.endswith("on two machines.")  # in all of them and word for word: no more


def test_comparison_puts_the_best_first_in_both_forms() -> None:
    worse = with_ratio(6.47, 6.0, 7.0, strategy="all-parallel", verdict="FAIL", efficiency=None)
    plain = words.comparison_text([worse, PASSED]).splitlines()
    assert plain[2].startswith("serial-per-provider") and plain[3].endswith("FAIL")
    assert len({line.index("0.78") if "0.78" in line else 21 for line in plain}) == 1
    marked = words.comparison_text([worse, PASSED], markdown=True).splitlines()
    assert all(line.startswith("| ") and line.count("|") == 8 for line in marked)
    assert words.suite_gate([worse, PASSED]).startswith("Gate: PASS — 0.78")
    assert words.suite_gate([worse, PASSED]).endswith("(of 2: 1 PASS, 1 FAIL)")
    assert words.suite_gate([worse]).startswith("Gate: FAIL")
    assert words.suite_gate([]).startswith("Gate: INCONCLUSIVE")


def test_titles_state_findings_for_any_report() -> None:
    empty = of(pool_report(rounds=0, preparation=[], probes=[])).headline
    for headline in (PASSED, empty, of(reports.load(PUBLISHED)).headline):
        for title in (titles.timeline, titles.ecdf, titles.rounds, titles.share,
                      words.finding, words.network, words.why):  # fmt: skip
            assert title(headline) and "None" not in title(headline)
        assert titles.breakdown([headline])
    assert titles.rounds(PASSED).endswith("in 5 of 5 rounds")
    assert titles.breakdown([PASSED]) == "A remote request: 88 % of its 344 ms is generating"
    assert "1 faster, 1 without" in titles.ratios([PASSED, with_ratio(1.0, None, None)])
    assert empty.strategy in words.report_text(pool_report(rounds=0), empty)


def test_the_doctor_speaks_of_each_provider() -> None:
    report = pool_report()
    text = words.doctor_table(
        report.providers[1:],
        report.probes,
        {"remote": 300.0},
        {"remote": 79.6},
        {"local": "provider local: refused; start it"},
    )
    assert re.search(
        r"remote +answers +llama-server b1 +tiny +abababababab +21\.0 ms +300 ms +80 tokens/s", text
    )
    assert re.search(r"local +FAILS", text) and text.endswith("\nprovider local: refused; start it")
    gain = words.expected_gain({"shared-queue": 0.6, "sequential": 1.0}, {"a": 200, "b": 300})
    assert "Expect shared-queue to take 0.60 times as long as a alone" in gain
    assert "Expect no gain" in words.expected_gain({"x": 1.0}, {"a": 1})
    assert "unknown" in words.expected_gain({}, {})


def test_a_run_in_which_providers_failed_says_so_before_any_number() -> None:
    data = pool_report().model_dump()
    arm = next(arm for arm in data["rounds"][0]["arms"] if arm["arm"] == "strategy")
    failed = {"outcome": "failed", "error": "gone", "error_kind": "Unreachable"}
    arm["requests"].insert(0, {**arm["requests"][0], **failed, "answer_sha256": None})
    report = Report.model_validate(data)
    headline = of(report).headline
    assert headline.failed_requests == 1
    number = notation.number(headline.overhead_ratio.median or 0.0, 2)
    for text in (
        words.comparison_text([headline]),
        words.report_text(report, headline),
        documents.phase_0_result([report], [headline]),
        words.opening(report, headline) + words.bottom_line(report, headline),
    ):
        assert 0 <= text.index(" failed ") < text.index(number), text
