"""What cannot be is not believed: impossible times, answers out of a cache, unlike work.

Hand-built reports with the numbers done by hand, and whole runs against a server on a socket.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats
from test_tables import edited, pool_report, row

from poclib import cli, report, suite
from poclib.measure import experiment
from poclib.parameters import Parameters, ProviderSettings
from poclib.reading import belief, tables
from poclib.reading.reading import of
from poclib.records import Report
from poclib.showing import notebooks as publish
from poclib.showing import warnings as cautions
from poclib.showing import words

SAMPLES = sorted(Path(report.root(), "data", "reports").rglob("*.json"))
EMPTY = hashlib.sha256(b"").hexdigest()


# ---- Hand-built reports --------------------------------------------------------------------


def alone(
    walls: list[tuple[float, float]], prompts: int = 4, change: Callable[..., Any] | None = None
) -> Report:
    """One machine against itself: of each round the wall of a request in the arm that ran first
    and in the second, of which all but 100 ms is the prompt. `change` may change every row."""
    data = pool_report(strategy="sequential", rounds=0, probes=[]).model_dump()
    for index, both in enumerate(walls):
        arms = []
        for place, wall in enumerate(both):
            kind = ("baseline", "strategy")[(index + place) % 2]
            rows = []
            for prompt in range(prompts):
                start = 100_000.0 * index + 50_000.0 * place + prompt * wall
                server = {"prompt_ms": wall - 102, "generation_ms": 100, "total_ms": wall - 2}
                one = row(prompt, "local", start, wall, server=server, prompt_tokens=282)
                one["marks"] |= dict.fromkeys(
                    ("first_byte_ms", "first_token_ms"), start + wall - 101
                )
                rows.append(one | (change(kind, place, one) if change else {}))
            arm = {"arm": kind, "strategy": "sequential", "limits": {"local": 1}}
            arms.append({**arm, "requests": rows})
        data["rounds"].append({"index": index, "arms": arms})
    data["preparation"] = [calibrated([1000.0] * 4)]
    data["prompt_sha256"] = list(map(str, range(prompts)))
    data["providers"] = data["providers"][:1]
    return Report.model_validate(data)


def calibrated(walls: list[float]) -> dict[str, Any]:
    rows = [row(i, "local", 9000.0 * i, wall) for i, wall in enumerate(walls)]
    return {"arm": "calibration", "strategy": "sequential", "requests": rows}


def streamed(moments: Iterable[float], **changes: Any) -> Callable[..., dict[str, Any]]:
    """A change of each row: its tokens came at these moments after its start."""
    later = list(moments)
    return lambda kind, place, one: {
        "token_ms": [one["marks"]["start_ms"] + moment for moment in later],
        **changes,
    }


def like(report: Report, **changes: Any) -> Report:
    return Report.model_validate(report.model_dump() | changes)


def report_text(found: Report) -> str:
    return words.report_text(of(found))


def warned(found: Report) -> str:
    return "\n".join(cautions.warnings(of(found)))


def weighty(found: Report) -> str:
    """What stands beside the verdict."""
    return "\n".join(cautions.weighty(of(found)))


def test_a_prompt_cache_forbids_the_verdict() -> None:
    """Rounds of 0.12, 8.33, 0.12: prompts of 1,650 ms that took 15 ms when they came again."""
    found = alone([(1752, 210)] * 3)
    headline = of(found).headline
    assert headline.round_ratios == pytest.approx([0.12, 8.34, 0.12], abs=0.01)
    assert headline.verdict == "INCONCLUSIVE" and headline.forbidden
    line = words.gate_line(headline)
    assert line.startswith("Gate: INCONCLUSIVE") and "a cache answered" in line
    assert words.effect(headline) == "unknown" and "says nothing" in words.finding(headline)
    assert weighty(found).startswith("No verdict stands on these times")


def test_a_cache_is_seen_without_any_time_of_the_servers_and_in_cached_tokens() -> None:
    blind = alone([(1752, 210)] * 3, change=lambda *_: {"server": {}, "prompt_tokens": None})
    assert "began to answer in" in belief.cached(blind)[0]
    # The same times in both arms, but half of the prompts' tokens were not read in one.
    told = alone([(1000, 1000)] * 3, change=lambda kind, place, _: {"cached_tokens": 141 * place})
    assert "took 50 % more of the prompts out of its cache" in belief.cached(told)[0]
    both = alone([(1000, 1000)] * 3, change=lambda *_: {"cached_tokens": 141})
    assert belief.cached(both) == []  # a template's beginning, in both arms alike


@pytest.mark.parametrize(
    ("walls", "what"),
    [
        ([(1000, 1000)] * 5, "equal arms"),
        ([(4000, 1000), (1000, 1000), (1000, 1000)], "a slow start: a model that was loading"),
        ([(2000, 1500), (1400, 1300), (1200, 1100)], "a machine that wakes up"),
        ([(1000, 4000), (4000, 1000), (1000, 4000)], "a strategy whose requests share a server"),
        ([(4000, 1000), (1000, 4000), (4000, 1000)], "a strategy on a faster machine"),
        ([(103, 102.5)] * 4, "prompts that take next to nothing"),
    ],
)
def test_what_is_no_cache_is_not_taken_for_one(walls: list[tuple[float, float]], what: str) -> None:
    assert belief.cached(alone(walls)) == [], what


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_committed_reports_are_believed(path: Path) -> None:
    if "poclib-report" not in path.read_text("utf-8")[:100]:
        pytest.skip("another kind of file")
    found = report.load(path)
    headline = of(found).headline
    assert belief.believed(found) == (found, {})
    assert not headline.forbidden and not headline.per_token and not headline.disbelieved
    assert "mid-run" not in weighty(found)


def test_faster_than_calibration_with_one_in_flight_forbids_the_verdict() -> None:
    """4 prompts of 700 ms where calibration took 1,000: 143 % of what one machine can give."""
    headline = of(alone([(700, 700)] * 5)).headline
    assert headline.efficiency == pytest.approx(1000 / 700)
    assert headline.verdict == "INCONCLUSIVE" and "143 %" in headline.forbidden[0]
    assert "batching" not in words.why(headline)
    # Calibration that itself varies by a half shows nothing of the kind.
    data = [calibrated([900, 900, 900, 1700])]
    noisy = of(like(alone([(960, 960)] * 5), preparation=data)).headline
    assert noisy.efficiency == pytest.approx(1100 / 960) and not noisy.forbidden


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ({"total_ms": 1400.0}, "it reports 1,400.0 ms of a request that took 1,000.0 ms"),
        ({"total_ms": 500.0, "prompt_ms": -5.0}, "it reports a negative time"),
        ({"total_ms": 0.00007, "generation_ms": 0.00007}, "it reports 7e-05 ms for 40 tokens"),
        ({"total_ms": 0.9}, "it reports 0.9 ms for an answer that arrived over 390.0 ms"),
    ],
)
def test_a_servers_time_that_cannot_be_is_used_nowhere(server: dict[str, Any], why: str) -> None:
    found = alone([(1000, 1000)] * 3, change=streamed(range(600, 1000, 10), server=server))
    reading = of(found)
    assert reading.disbelieved == {"local": why} == reading.headline.disbelieved
    assert reading.headline.added_latency_ms == {"remote": None, "local": None}
    assert tables.overhead(reading).query("arm == 'strategy'")["over_ms"].isna().all()
    said = report_text(found)
    assert f"The times that local tells of itself are not used: {why}" in said
    assert not [cell for cell in said.split() if cell.startswith(("-0", "-1", "-3", "-4"))]
    assert reading.headline.verdict == "PASS"


def test_what_two_clocks_differ_by_is_believed_and_never_negative() -> None:
    found = alone([(1000, 1000)] * 3, change=lambda *_: {"server": {"total_ms": 1000.8}})
    added = of(found).headline.added_latency_ms["local"]
    assert of(found).disbelieved == {} and added is not None and added.min == 0


# ---- Unlike work -----------------------------------------------------------------------------


def test_times_per_token_decide_where_the_arms_lengths_differ() -> None:
    """The strategy's answers have 8 of 40 tokens and take half: 2.5 times as long per token."""
    tokens = {"baseline": 40, "strategy": 8}
    found = alone(
        [(1000, 500), (500, 1000), (1000, 500)],
        change=lambda kind, *_: {"output_tokens": tokens[kind]},
    )
    headline = of(found).headline
    assert headline.per_token and headline.overhead_ratio.median == pytest.approx(0.5 * 40 / 8)
    assert headline.verdict == "FAIL" and "per token" in words.finding(headline)
    assert "per token" in words.gate_line(headline) and "per token" in report_text(found)
    assert "per token" in words.comparison_text([headline])
    (said,) = [line for line in weighty(found).splitlines() if "8 to 40 tokens" in line]
    assert "the ratio is of times per token" in said
    # Lengths within the band leave the times as they are.
    tokens["strategy"] = 39
    close = alone([(1000, 500)] * 2, change=lambda kind, *_: {"output_tokens": tokens[kind]})
    assert not of(close).headline.per_token


def test_machines_with_answers_or_prompts_of_unlike_length_are_told() -> None:
    def unlike(_: dict[str, Any], one: dict[str, Any]) -> None:
        remote = one["provider"] == "remote"
        one.update(output_tokens=8 if remote else 1, prompt_tokens=66 if remote else 282)

    said = weighty(edited(pool_report(), unlike))
    assert "differ in length between machines (mean tokens: local 1.0, remote 8.0)" in said
    assert "The same prompt has unlike numbers of tokens (" in said
    assert "local 282" in said and "remote 66" in said


def test_answers_far_from_max_tokens_are_told_beside_the_verdict() -> None:
    asked = Parameters(providers=[ProviderSettings(name="local")], max_tokens=200)
    said = weighty(alone([(1000, 1000)] * 2).model_copy(update={"parameters": asked}))
    assert "16 of 16 answers are far from max_tokens 200 (40 to 40 tokens)" in said


def test_an_arm_of_nothing_is_no_measurement_and_thoughts_alone_are_told() -> None:
    hollow = {"answer_sha256": EMPTY, "output_tokens": None}
    found = alone([(1000, 5)] * 2, change=lambda kind, *_: hollow if kind == "strategy" else {})
    headline = of(found).headline
    assert headline.overhead_ratio.rounds == 0 and headline.verdict == "INCONCLUSIVE"
    thoughts = {"answer_sha256": EMPTY, "thought_characters": 90}
    said = weighty(alone([(1000, 1000)] * 2, change=lambda *_: thoughts))
    assert "16 answers of 16 empty but for thoughts" in said and "raise max_tokens" in said


def test_marks_of_an_arm_leave_answers_uncompared_but_those_of_calibration() -> None:
    """Calibration: the same texts to both; of the 3 pairs the one of the later turn differs."""
    preparation = []
    for turn, prompts in enumerate([range(2), range(1)]):
        for name in ("local", "remote"):
            answer = {"answer_sha256": "another"} if (turn, name) == (1, "remote") else {}
            rows = [row(prompt, name, 1, 200, **answer) for prompt in prompts]
            arm = {"arm": "calibration", "strategy": "sequential", "requests": rows}
            preparation.append(arm)
    trial = pool_report(preparation=preparation, marked=True)
    found = edited(trial, lambda arm, one: one.update(answer_sha256=arm["arm"]))
    headline = of(found).headline
    assert headline.answers_equal.compared == 0
    assert (headline.calibration_equal.equal, headline.calibration_equal.compared) == (2, 3)
    said = report_text(found)
    assert "not compared, since each arm's texts begin with a mark of their own" in said
    assert "2 of 3 between machines" in said and "differ between the arms" not in said
    assert "1 of 3 answers to calibration's prompts differ between machines" in said


@pytest.mark.parametrize(
    ("characters", "room", "sentence"),
    [
        ([1128] * 4, 128, "counts only 66 tokens for a prompt of 1,128"),
        ([260] * 4, 128, None),
        ([], 100, "do not fit the context of local (66 and 40 tokens, 100 fit)"),
    ],
)
def test_prompts_cut_to_the_context_are_told_beside_the_verdict(
    characters: list[int], room: int, sentence: str | None
) -> None:
    found = alone([(1000, 1000)] * 2, change=lambda *_: {"prompt_tokens": 66})
    facts = found.providers[0].model_copy(update={"context_tokens": room})
    asked = Parameters(providers=[ProviderSettings(name="local")])
    changes = {"prompt_characters": characters, "providers": [facts], "parameters": asked}
    said = weighty(found.model_copy(update=changes))
    assert sentence in said if sentence else "context" not in said


# ---- Tokens one by one ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrivals", "tokens", "apart", "between", "why"),
    [
        (range(0, 400, 10), 40, "tokens", 10.0, ""),
        (range(0, 400, 100), 40, "chunks", 100.0, "several tokens came in a chunk"),
        ([300] * 10, 40, None, None, "each answer came in one write"),
        (range(0, 400, 10), None, "chunks", 10.0, "its server does not count tokens"),
        (range(0, 400, 10), 0, "chunks", 10.0, "its server does not count tokens"),
    ],
)
def test_a_time_between_tokens_needs_tokens_that_came_one_by_one(
    arrivals: Any, tokens: int | None, apart: str | None, between: float | None, why: str
) -> None:
    change = streamed([500 + at for at in arrivals], output_tokens=tokens)
    found = alone([(1000, 1000)] * 3, change=change)
    stream = of(found).headline.streams["local"]
    assert (stream.apart, stream.why) == (apart, why)
    assert stream.between_ms["p50"] == (None if between is None else pytest.approx(between))
    assert stream.tokens_per_s == pytest.approx(tokens or len(arrivals))
    assert stream.counted == ("server" if tokens else "pieces")
    assert f"between {apart or 'tokens'}, local" in report_text(found)


def test_thoughts_and_tokens_have_first_times_of_their_own() -> None:
    def thinking(kind: str, place: int, one: dict[str, Any]) -> dict[str, Any]:
        one["marks"]["first_thought_ms"] = one["marks"]["start_ms"] + 100
        return streamed(range(600, 900, 10), thought_characters=50)(kind, place, one)

    found = alone([(1000, 1000)] * 3, change=thinking)
    stream = of(found).headline.streams["local"]
    assert stream.thought_ms and stream.thought_ms["p50"] == pytest.approx(100)
    assert stream.ttft_ms["p50"] == pytest.approx(600)
    assert (stream.apart, stream.why) == ("chunks", "its server counts tokens of thoughts too")
    assert "first thought, local" in report_text(found)
    headline = of(alone([(1000, 1000)] * 3)).headline
    assert headline.streams == {} and "not streamed" in headline.missing["streams.local"]


# ---- Causes that were seen -------------------------------------------------------------------


def test_rounds_too_unlike_give_no_interval_but_how_many_would() -> None:
    """Of 0.2 and 0.59 Student's interval spans a factor of a million: nobody could use it."""
    headline = of(alone([(5000, 1000), (1000, 1700)])).headline
    assert headline.overhead_ratio.low is None and headline.verdict == "INCONCLUSIVE"
    error = statistics.stdev(map(math.log, headline.round_ratios))

    def ends(n: int) -> float:
        return math.exp(2 * scipy_stats.t.ppf(0.975, n - 1) * error / math.sqrt(n))

    assert headline.rounds_needed == 5 and ends(5) <= 10 < ends(4)
    assert "at least 5 rounds would give an interval" in words.gate_line(headline)
    assert "too unlike for an interval" in words.ratio(headline)


def test_the_owners_own_server_is_not_another_program() -> None:
    busy = pool_report(moments=[{"at_ms": 1.0, "others": 0.49}])
    assert "close them" in warned(busy)
    local = busy.providers[0].model_copy(update={"kind": "ollama"})
    said = warned(busy.model_copy(update={"providers": [local, busy.providers[1]]}))
    assert "Other programs took 49 %" in said and "close them" not in said
    assert "the work of local, a server on this machine" in said


def test_a_front_end_that_waits_has_its_sentence() -> None:
    """8 at once on one server: 111 ms outside its own time, alone 2."""

    def waiting(arm: dict[str, Any], one: dict[str, Any]) -> None:
        if arm["arm"] == "strategy":
            arm["limits"] = {"local": 4}
            one["marks"]["start_ms"] = arm["requests"][0]["marks"]["start_ms"]
            one["server"] = {"total_ms": 889.0}

    said = warned(edited(alone([(1000, 1000)] * 2), waiting))
    assert "(local 111 ms with up to 4, 2.0 ms alone)" in said and "no network explains it" in said


def test_a_reload_is_told_as_such_and_not_as_drift() -> None:
    """The last calibrations took 900 ms because the model was loaded for 700 of them."""
    rows = [row(0, "remote", 1, 300)]
    for i, load in enumerate([5] * 6 + [700] * 3):
        rows.append(row(0, "local", 5000.0 * i, 200 + load))
        rows[-1]["server"]["load_ms"] = load
    arm = {"arm": "calibration", "strategy": "sequential", "requests": rows}
    said = warned(pool_report(preparation=[arm]))
    assert "3 requests waited while a model was loaded in mid-run (local, up to 700 ms)" in said
    assert "at the run's end" not in said


def test_a_limit_that_fell_is_told_with_why() -> None:
    data = pool_report().model_dump()
    arm = next(one for one in data["rounds"][0]["arms"] if one["arm"] == "strategy")
    arm["limits"] = {"local": 64}
    steps = [(64, 32, "slower"), (32, 16, "slower"), (16, 17, "good"), (17, 8, "refused")]
    arm["limit_changes"] = [
        {"provider": "local", "at_ms": i, "limit": limit, "reason": why, "in_flight": was}
        for i, (was, limit, why) in enumerate(steps)
    ]
    said = warned(Report.model_validate(data))
    assert "The limit of local fell from 64 to 8: it refused requests, and several" in said
    arm["limit_changes"] = arm["limit_changes"][2:3]
    assert "The limit of" not in warned(Report.model_validate(data))


def test_the_suites_end_tells_each_kind_of_warning_once() -> None:
    one = alone([(1000, 1000)] * 2, change=lambda *_: {"cached_tokens": 9})
    two = one.model_copy(update={"strategy": "shared-queue"})
    lines = words.verdict_text([of(one), of(two)]).splitlines()
    assert sum("reused cached prompt tokens" in line for line in lines) == 1
    assert lines[-1].startswith("Gate: ") and "of 2:" in lines[-1]


# ---- Whole runs against a server on a socket -------------------------------------------------


@contextmanager
def ollama(answer: Callable[[str, float], dict[str, Any]]) -> Iterator[str]:
    """A server that speaks Ollama's API; `answer` gives what a text's answer says, given when the
    request came (by `time.perf_counter`)."""
    facts = {
        "/api/tags": {"models": [{"name": "tiny:latest", "digest": "ab" * 32}]},
        "/api/version": {"version": "0.33.0"},
        "/api/show": {"model_info": {}, "details": {}, "modelfile": ""},
    }
    whole = {"message": {"content": "yes"}, "done": True, "done_reason": "length"}
    whole |= {"prompt_eval_count": 282, "eval_count": 40}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            came_s = time.perf_counter()
            asked = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or "{}")
            told = facts.get(self.path, {})
            if "messages" in asked:
                told = whole | answer(asked["messages"][0]["content"], came_s)
            data = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def caching(known: set[str]) -> Callable[[str, float], dict[str, Any]]:
    """Reads a text in 40 ms, one that it has seen at once, whatever mark stands before it."""

    def answer(text: str, came_s: float) -> dict[str, Any]:
        if text[-40:] not in known:
            time.sleep(0.04)
        known.add(text[-40:])
        read_ns = int(1e9 * (time.perf_counter() - came_s))
        told = {"prompt_eval_duration": read_ns, "eval_duration": 500_000}
        return {**told, "total_duration": read_ns + 500_000}

    return answer


def measured(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Report:
    (tmp_path / "data" / "reports").mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    given = {
        "experiment": "mine",
        "strategy": "sequential",
        "providers": [{"name": "shelf", "kind": "ollama", "model": "tiny", "url": url}],
        "prompts": [f"Prompt {i} of those that are told apart by their end, {i}" for i in range(4)],
        "rounds": 3,
        "stream": False,
        "warm_up_prompts": 0,
        "calibration_prompts": 2,
    }
    return experiment.measure(Parameters.read({**given, **changes}))


def gate(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["gate", "mine-sequential"])
    return int(ended.value.code or 0), capsys.readouterr().out


def test_a_server_that_knows_prompts_again_gets_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its cache forgets at every other arm, so the second arm of each round is answered from it."""
    known: set[str] = set()
    arms = [0]
    read = caching(known)

    def forgetful(text: str, came_s: float) -> dict[str, Any]:
        arms[0] += 1
        if (arms[0] - 3) % 9 == 0:  # after the two calibrations, and then one of each round
            known.clear()
        return read(text, came_s)

    with ollama(forgetful) as url:
        found = measured(url, tmp_path, monkeypatch)
    headline = of(found).headline
    assert headline.forbidden and headline.verdict == "INCONCLUSIVE"
    code, out = gate(capsys)
    assert code == 2 and "a cache answered" in out.splitlines()[-1]
    assert "warning: No verdict stands on these times" in out


def test_a_server_with_times_and_lengths_of_its_own_is_measured_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It takes 10 ms and reports 70 ns, and gives 8 tokens where 40 were asked for."""

    def answer(text: str, came_s: float) -> dict[str, Any]:
        time.sleep(0.01)
        times = {"prompt_eval_duration": 10, "eval_duration": 70, "total_duration": 80}
        return times | {"eval_count": 8}

    with ollama(answer) as url:
        found = measured(url, tmp_path, monkeypatch, gate_max_ratio=100)
    headline = of(found).headline
    assert "shelf" in headline.disbelieved and headline.added_latency_ms["local"] is None
    said = report_text(found)
    assert "The times that shelf tells of itself are not used" in said
    assert "cold" not in said and "loaded" not in said
    monkeypatch.setattr(suite, "write_site", lambda kernel: Path("site", "index.html"))
    suite.conclude("mine", publish.Kernels())
    end = capsys.readouterr().out  # the last lines of `poc run`
    assert end.index("sequential ") < end.index("far from max_tokens 40") < end.index("Gate: ")
    _, out = gate(capsys)
    assert "answers are far from max_tokens 40 (8 to 8 tokens)" in out
    assert out.splitlines()[-1].startswith("Gate: ")
