"""Sentences say what the numbers say, carry no markup of strangers, and choose by the data."""

import re
from dataclasses import replace
from typing import Any

import pytest
from test_tables import PUBLISHED, changed, pool_report

from poclib import report as reports
from poclib.reading.reading import Reading, of
from poclib.records import Report, Ruler, RulerRow
from poclib.showing import documents, words
from poclib.showing import format as notation
from poclib.showing import warnings as cautions
from poclib.stats import Contention, Headline, Ratio, Spread

POOL = of(pool_report())
PASSED = POOL.headline


def with_ratio(median: float, low: float | None, high: float | None, **changes: Any) -> Headline:
    found = Ratio(median, low, high, 1 if low is None else 5)
    return replace(PASSED, overhead_ratio=found, **changes)


@pytest.mark.parametrize(
    ("ratio", "verdict", "needed", "line"),
    [
        ((0.58, 0.55, 0.61), "PASS", None, "0.58 (0.55 to 0.61, 5 rounds) is below 2.00"),
        ((2.5, 2.1, 2.9), "FAIL", None, "2.50 (2.10 to 2.90, 5 rounds) is above 2.00"),
        ((1.9, 1.7, 2.1), "INCONCLUSIVE", 12, "holds 2.00; about 12 rounds would settle it"),
        ((2.0, 1.7, 2.1), "INCONCLUSIVE", None, "no reachable number of rounds would settle it"),
        ((0.87, None, None), "INCONCLUSIVE", 2, "0.87 (1 round, so no interval) cannot be held "
         "against 2.00; at least 2 rounds would give an interval"),
        # Decimals never hide on which side of the limit it lies.
        ((1.9, 1.8, 1.9996), "PASS", None, "to 1.9996, 5 rounds) is below 2.0000"),
    ],
)  # fmt: skip
def test_the_gate_line_for_every_verdict(
    ratio: Any, verdict: str, needed: int | None, line: str
) -> None:
    told = words.gate_line(with_ratio(*ratio, verdict=verdict, rounds_needed=needed))
    assert told.startswith(f"Gate: {verdict} — ") and told.endswith(line)


@pytest.mark.parametrize(
    ("low", "high", "effect"),
    [
        (0.90, 0.94, "faster"),
        (0.90, 0.96, "not distinguishable from 1"),
        (1.04, 1.20, "not distinguishable from 1"),
        (1.06, 1.20, "slower"),
        (None, None, "unknown"),
    ],
)
def test_the_band_decides_what_is_called_a_difference(
    low: float | None, high: float | None, effect: str
) -> None:
    headline = with_ratio(1.0, low, high)
    assert words.effect(headline) == effect
    assert effect in words.finding(headline) or low is None
    assert "same" not in words.finding(headline)


def crowd(wall: float, behaviour: str, rate: float | None, server: float | None = 1) -> Headline:
    """Four requests at once at local, 200 ms alone."""
    seen = Contention(behaviour, 4, rate, server)
    walls = {"local": Spread(wall, wall, wall, 20), "remote": None}
    return replace(PASSED, wall_ms=walls, contention={"local": seen})


def crowded(wall: float, behaviour: str) -> Reading:
    """The pool's report, read with such a crowd."""
    found = of(pool_report())
    vars(found)["headline"] = crowd(wall, behaviour, 1.0)
    return found


@pytest.mark.parametrize(
    ("seen", "factor", "cause"),
    [
        ((480, "batches", 1.6), "2.4", "and 1.60 times as many tokens .* [(]batching: several"),
        ((500, "batches", None), "2.5", "[(]batching: several"),
        ((500, "queues", 1.0), "2.5", "and 1.00 times .* [(]queueing: the server's own time stays"),
        ((500, "queues", 1.0, None), "2.5", "and .* [(]requests shared the server, or waited in"),
        ((2000, "thrashes", 0.4), "10.0", "and 0.40 times .* [(]thrashing: .* work is lost"),
        ((500, "refuses", None), "2.5", "[(]refusing: the server turned requests away[)]"),
    ],
)
def test_what_requests_did_to_each_other_is_told(seen: Any, factor: str, cause: str) -> None:
    (told,) = words.crowded(crowd(*seen))
    assert re.search(f"On local a request took {factor} times as long as one alone {cause}", told)
    assert told in words.why(crowd(*seen))
    assert words.crowded(PASSED) == [] == words.crowded(crowd(290, "shares", 1.0))


def test_the_cause_of_what_is_lost_is_named() -> None:
    beyond = replace(PASSED, efficiency=1.8)
    assert "batching" not in words.why(beyond) and "a cache answered" in words.why(beyond)
    seen = replace(crowd(210, "batches", 1.6), efficiency=3.06, unbatched=("local",))
    assert "leaves out what batching gives at local." in words.why(seen)
    assert "drift" not in words.why(seen) and words.efficiency(seen) == "306 % (one at a time)"
    assert words.title_timeline(seen).endswith(
        "306 % of the providers' speed, one request at a time"
    )
    measured = replace(seen, unbatched=(), ideal_from="calibration and capacity", efficiency=0.9)
    assert "with as many at once as their levels of capacity gain by" in words.why(measured)
    assert "It reached 83 % of what the best order could have" in words.why(PASSED)
    unknown = replace(PASSED, best_order=None, order_unknown="nobody knows")
    assert "is unknown: nobody knows." in words.why(unknown)
    assert unknown.missing["best_order"] == "nobody knows"
    held = replace(PASSED, overfull=("remote",))
    assert "More were held than the server works on at remote, so" in words.network(held)
    assert "unknown" in words.why(replace(PASSED, efficiency=None))
    assert "Idle, as a share of the makespan: local 33 %" in words.why(PASSED)
    assert "Idle" not in words.why(replace(PASSED, efficiency=0.97))


def test_titles_state_findings_for_any_report() -> None:
    empty = of(pool_report(rounds=0, preparation=[], probes=[]))
    for headline in (PASSED, empty.headline, of(reports.load(PUBLISHED)).headline):
        for title in (words.title_timeline, words.title_ecdf, words.title_rounds,
                      words.finding, words.network, words.why):  # fmt: skip
            assert title(headline) and "None" not in title(headline)
        assert words.title_breakdown([headline])
    assert words.title_rounds(PASSED).endswith("in 5 of 5 rounds")
    assert words.title_breakdown([PASSED]) == "A remote request: 88 % of its 344 ms is generating"
    assert "1 faster, 1 without" in words.title_ratios([PASSED, with_ratio(1.0, None, None)])
    assert empty.headline.strategy in words.report_text(empty)


EVIL = "<script>alert(1)</script> **b** [x](http://evil.example) \x1b[31m\u202e`$|\n# h"


def test_text_of_servers_is_harmless_everywhere() -> None:
    data = pool_report().model_dump()
    for facts in data["providers"]:
        facts.update(model=EVIL, digest=EVIL, server=EVIL, engine=EVIL, kind=EVIL)
    data |= {"created": EVIL, "source": EVIL, "notes": [EVIL]}
    arm = data["rounds"][0]["arms"][0]
    arm["requests"][0].update(outcome="failed", error_kind=EVIL, error=EVIL)
    evil = of(Report.model_validate(data))
    told = [
        words.provenance(evil),
        words.subtitle(evil.headline),
        words.answer(evil),
        words.reasons(evil),
        words.report_text(evil),
        documents.phase_0_result([evil]),
        words.doctor_table(evil, {"local": "x"}),
        documents.differences({"a": [EVIL, "b"]}, ["one", "two"]),
        documents.listing([documents.Entry("evil", evil)]),
        *cautions.warnings(evil),
    ]
    ours = r"</?(details|summary|ul|li)>"
    for text in (re.sub(ours, "", text) for text in [*told, words.trust([evil, POOL])]):
        assert not re.search(r"[<>`$\x1b\u202e\[\]]|//|\*\*b|\n# h", text), text


def test_what_is_told_of_one_strategy() -> None:
    verdict, source = words.answer(POOL).split("\n\n")
    assert verdict == (
        "**serial-per-provider took 0.78 times the baseline's time: faster (interval 0.75 to 0.81, "
        "5 rounds). Gate: PASS**, as it is below 2.00."
    )
    assert source == f"*{words.provenance(POOL)}*"
    text = words.reasons(POOL)
    for part in (
        "8 prompts took 1,373 ms; one at a time on local they took 1,760 ms",
        "allow 960 ms, one request at a time each; this reached 70 % of that",
        "Idle, as a share of the makespan: local 33 %",
        "only the difference, 20.0 ms, can be the network",
    ):
        assert part in text
    # Round 3 is the median: local busy for 4 x 228.8 of 1372.8 ms, remote for all of it.
    cost = words.cost(POOL)
    assert re.search(r"local +\| 4\.0 +\| 67 % ", cost) and re.search(r"remote .*\| 100 %", cost)
    assert "2,288 ms in all, the one of the baseline for 1,760 ms: 1.30 times" in cost
    assert cost.endswith("for a speedup of 1.28.")
    # A round trip of 21 ms and, on the mean of 343.9 ms, 303.4 of transfer; 1.5 of our own.
    over = words.overhead_text(POOL)
    assert re.search(r"remote +\| 22.0 ms +\| 324 ms +\| - +\| 1.5 ms +\| -304 ms", over)
    assert "unknown" in words.overhead_text(of(pool_report(rounds=0)))
    every = words.report_text(POOL) + documents.phase_0_result([POOL]) + over
    assert not re.search(r"±|\bnan\b|\bNone\b(?! was)|[{}]", every)


def test_the_doctor_speaks_of_each_provider() -> None:
    data = pool_report().model_dump()
    found = of(Report.model_validate({**data, "providers": data["providers"][1:], "rounds": []}))
    text = words.doctor_table(found, {"local": "provider local: refused; start it"})
    assert re.search(
        r"remote +remote +llama-server b1 +tiny +300 ms +133 tokens/s +21\.0 ms .* abababab", text
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
    found = of(Report.model_validate(data))
    assert found.headline.failed_requests == 1
    number = notation.number(found.headline.overhead_ratio.median)
    for text in (
        words.comparison_text([found.headline]),
        words.report_text(found),
        documents.phase_0_result([found]),
        words.answer(found),
    ):
        assert 0 <= text.index(" failed ") < text.index(number), text


def test_the_best_is_named_with_those_that_cannot_be_told_from_it() -> None:
    first = with_ratio(0.59, 0.53, 0.75, strategy="a")
    level = with_ratio(0.70, 0.66, 0.74, strategy="b")
    worse = with_ratio(0.90, 0.77, 0.97, strategy="c")
    lowest = "The lowest ratio is a's, 0.59 (0.53 to 0.75, 5 rounds)"
    assert words.best([worse, level, first]) == f"{lowest}; not distinguishable from it: b."
    assert words.best([worse, first]) == f"{lowest}; every other interval lies above it."
    assert words.best([first]) == f"{lowest}."
    assert "without intervals" in words.best([first, with_ratio(0.7, None, None)])
    assert "none is the best" in words.best([])


def test_comparison_puts_the_best_first_in_both_forms() -> None:
    worse = with_ratio(6.47, 6.0, 7.0, strategy="all-parallel", verdict="FAIL", efficiency=None)
    plain = words.comparison_text([worse, PASSED]).splitlines()
    assert plain[2].startswith("serial-per-provider") and plain[3].endswith("FAIL")
    marked = words.comparison_text([worse, PASSED], markdown=True).splitlines()
    assert all(line.startswith("| ") and line.count("|") == 9 for line in marked)
    assert words.suite_gate([worse, PASSED]).startswith("Gate: PASS — 0.78")
    assert words.suite_gate([worse, PASSED]).endswith("(of 2: 1 PASS, 1 FAIL)")
    assert words.suite_gate([worse]).startswith("Gate: FAIL")
    assert words.suite_gate([]).startswith("Gate: INCONCLUSIVE")


SECTIONS = ["Bottom line", "Strategy alternatives", "Latency breakdown", "Failure modes"]
SECTIONS += ["Conditions for advancing to Phase 1", "How far to trust it"]


def test_the_phase_0_result_has_its_sections_and_computed_numbers() -> None:
    text = documents.phase_0_result([POOL], "docs/there.png")
    assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS
    assert text.count("| serial-per-provider | 0.78 (0.75 to 0.81, 5 rounds)") == 1
    order = ["Gate: PASS", "](docs/there.png)", "| strategy", "With 5 rounds the interval"]
    places = [text.index(part) for part in order]
    assert places == sorted(places), "answer, picture, table, and what limits it"
    assert "](" not in documents.phase_0_result([POOL]), "a picture where there is one only"
    state = dict(re.findall(r"^\| (.*?) +\| (met|not met) ", text, re.M))
    assert state["A strategy passes the gate"] == "met"
    assert state["A strategy reaches 90 % of the ideal"] == "not met"
    assert len(state) == 7
    assert "None was seen in these reports" in documents.phase_0_result([crowded(480, "batches")])
    text = documents.phase_0_result([crowded(2000, "thrashes")])
    assert "serial-per-provider: On local a request took 10.0 times" in text
    for few in ([], [of(reports.load(PUBLISHED))]):
        text = documents.phase_0_result(few)
        assert re.findall(r"^## (.*)$", text, re.M) == SECTIONS and "met" in text


def test_warnings_that_differ_in_numbers_only_stand_once() -> None:
    cold = [changed(POOL.report, "baseline", wall_ms=wall) for wall in (9000.0, 9900.0)]
    slow = [of(pool_report(notes=[f"took {n} s", "all alike"])) for n in (5, 6)]
    told = words.beside([*slow, of(pool_report(notes=["all alike"])), *map(of, cold)])
    assert told == [
        "took 5 s (So in 2 of 5 reports; the numbers are serial-per-provider's.)",
        "all alike (So in 3 of 5 reports.)",
    ]
    assert words.beside([of(pool_report(notes=["all alike"]))]) == ["all alike"]
    two = [of(pool_report(notes=["here"])), POOL, POOL]
    assert words.beside(two, ["a, with a comma", "b", "c"]) == ["here (So in a, with a comma.)"]


def test_what_could_change_a_verdict_is_told_beside_it_and_all_else_folded() -> None:
    """A note of the report's own is of the first kind, a drifting machine of the other."""
    calm = pool_report().model_dump()
    loaded = [{"at_ms": at, "others": 0.4} for at in range(5)]
    seen = of(Report.model_validate({**calm, "notes": ["one was changed."], "moments": loaded}))
    assert words.answer(seen).split("\n\n")[0].endswith("1 warning below could change this.")
    assert "warning" not in words.answer(POOL)
    grave, folded = words.trust([seen]).split("\n\n")
    assert grave == "**Warning:** one was changed."
    assert folded.startswith("<details><summary>1 note that") and folded.endswith("</details>")
    assert "<li>Other programs took 40 % of this machine's processor time" in folded
    assert "\n\n" not in folded, "a blank line would end the block"
    assert words.trust([POOL]) == "Nothing that was recorded speaks against these times."
    both = words.answer(seen, POOL)
    assert both.startswith("**The lowest ratio is serial-per-provider's, 0.78")
    assert "Gate: PASS**, as serial-per-provider's is below 2.00 (of 2: 2 PASS)." in both


def test_a_terminal_gets_three_warnings_and_how_many_more_there_are() -> None:
    notes = [f"note {letter}." for letter in "abcde"]
    seen = of(pool_report(notes=notes, rounds=1))
    told = words.verdict_text([seen]).splitlines()
    assert told[:4] == [*(f"warning: {note}" for note in notes[:3]), "and 2 more: --all"]
    every = words.verdict_text([seen], every=True).splitlines()
    assert every[:5] == [f"warning: {note}" for note in notes] and every[5:] == told[4:]
    shown = words.report_text(seen).splitlines()
    assert shown[-2] == "and 3 more: --all", "a note too: one round has no interval"
    assert "note: There is no interval" in words.report_text(seen, every=True)
    assert words.few(["a", "b", "c"]) == ["a", "b", "c"]


def test_the_glossary_is_folded_and_each_term_has_an_anchor() -> None:
    text = words.glossary()
    assert text.startswith("<details>") and text.endswith("</details>") and "\n\n" not in text
    terms = [*words.GLOSSARY]
    assert terms == sorted(terms) and {"makespan", "round trip", "wall time"} <= set(terms)
    for term, meaning in words.GLOSSARY.items():
        assert f'<dt id="term-{term.replace(" ", "-")}">{term}</dt><dd>{meaning}</dd>' in text
        assert re.fullmatch(r"[a-z -]+", term) and meaning[0].islower() and meaning[-1] != "."
        assert not re.search(r"[<>&*_`]", meaning)


def test_runs_are_told_apart_by_their_engines_and_by_what_they_did() -> None:
    data = pool_report().model_dump()
    arm = next(arm for arm in data["rounds"][0]["arms"] if arm["arm"] == "strategy")
    change = {"provider": "local", "at_ms": 250, "limit": 2, "reason": "good", "in_flight": 1}
    arm["limit_changes"] = [change]
    names = [documents.labelled(one).strategy for one in (POOL, of(Report.model_validate(data)))]
    first = "serial-per-provider on embedded"
    assert names == [first, f"{first}, limit found while running"]
    assert "- local with 1 request at once: undisturbed." in documents.causes_text(POOL)


def test_the_ruler_is_held_against_its_aims() -> None:
    row = {"delay_ms": 25, "round_trip_ms": 0, "keep_alive": False, "n": 80}
    rows = [
        RulerRow(quantity="ttft_ms", in_flight=1, bias_ms=0.4, p95_ms=2.0, **row),
        RulerRow(quantity="ttft_ms", in_flight=64, bias_ms=-1.0, p95_ms=9.0, **row),
        RulerRow(quantity="over_ms", in_flight=1, bias_ms=0.6, **row),
    ]
    check = Ruler(created="2026-11-24T00:00:00Z", cores=2, rows=rows)
    told = documents.ruler_finding(check)
    assert "within 0.40 ms at the median (the aim of 0.5 ms is met) and 2.00 ms in 95 %" in told
    assert told.endswith("the bias is 1.00 ms (the aim of under 1 ms is not met).")
    grid = documents.ruler_table(check, markdown=True).splitlines()
    assert [cell.strip() for cell in grid[2].split("|")[2:4]] == ["0.40 (2.00)", "0.60"]
    assert grid[3].split("|")[3].strip() == "-" and "new connections" in grid[3]
    assert documents.title_ruler(check) == "Time to first token: off by -1.00 to 0.40 ms (medians)"
    assert documents.ruler_provenance(check).startswith("2026-11-24 · 2 cores · 80 requests")
    assert documents.ruler_finding(Ruler(created="2026")) == "Nothing was checked."


def test_numbers_and_text_are_written_alike_everywhere() -> None:
    assert notation.milliseconds(27.849999999999994) == "27.9 ms"  # 27.85, less a rounding error
    assert notation.milliseconds(2515.0) == "2,515 ms" and notation.milliseconds(None) == "-"
    assert notation.milliseconds(0.049) == "under 0.1 ms" and notation.milliseconds(0.0) == "0.0 ms"
    assert notation.percent(0.7534) == "75 %" and notation.percent(0.03585, 1) == "3.6 %"
    assert notation.many(1, "round") == "1 round" and notation.many(1200, "round") == "1,200 rounds"
    zeros = [notation.number(value, 2) for value in (-0.001, -0.0, -0.01)]
    assert zeros == ["0.00", "0.00", "-0.01"]  # a zero has no minus
    line = notation.safe("ok\x1b[2J\r\nnext \u202e\ud800")
    assert line == "ok?[2J next ??" and len(notation.safe("x" * 9999)) == 500
