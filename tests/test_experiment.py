"""A whole experiment on fakes and a fake clock: its steps, their order, and how it may end."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poclib import report, workload
from poclib.errors import EngineError, PocError, Rejected, RunFailed, UnlikeProviders, Unreachable
from poclib.measure import experiment, forecast
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.records import Arm, Report, Request

ADDRESS, KEY = "http://10.66.77.88:4321", "MY_SECRET_VARIABLE"


def parameters(**values: Any) -> Parameters:
    named = [
        {"name": n, "kind": "openai", "url": f"{ADDRESS}/{n}", "model": "m", "api_key_env": KEY}
        for n in ("fast", "slow")
    ]
    few = {"strategy": "shared-queue", "prompts": 6, "rounds": 3, "calibration_prompts": 2}
    return Parameters.read({"experiment": "trial", "providers": named, **few, **values})


# How the runs of `two` below go, in milliseconds: a probe of the slow one takes 40 before each
# part of the preparation, which ends at 980, and five take 200 before each arm of a round; every
# round is 200 + 600 (baseline) and 200 + 400 (a shared queue), in alternating order, and
# 40 + 200 + 100 to calibrate both once more: 1740 together.
PREPARED_MS, ROUND_MS = 980, 1740


def two(**more: Any) -> list[fake.Provider]:
    far: dict[str, Any] = {"role": "remote", "overhead_ms": 40} | more
    return [fake.Provider("slow", 160, **far), fake.Provider("fast", 100)]


@pytest.fixture(autouse=True)
def on_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))


def measured(folder: Path, pool: Sequence[fake.Provider] | None = None, **values: Any) -> Report:
    return experiment.measure(parameters(**values), folder=folder, pool=pool or two())


def cut_at(moment_ms: float, folder: Path, pool: Sequence[fake.Provider], **values: Any) -> Report:
    """What a run leaves that is cancelled at that moment, as Ctrl-C does."""

    def cancelled(work: Callable[[], Any]) -> None:
        async def story(clock: Callable[[], float]) -> None:
            whole = asyncio.create_task(work())
            await asyncio.sleep(moment_ms / 1000)
            whole.cancel()
            with pytest.raises(asyncio.CancelledError):
                await whole
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert clock() == moment_ms  # at once, not after one more request
            raise asyncio.CancelledError

        fake.run(story)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "on_own_loop", cancelled)
        with pytest.raises(asyncio.CancelledError):
            measured(folder, pool, **values)
    return left_in(folder)


def left_in(folder: Path) -> Report:
    return report.load(folder / "runs" / "trial-shared-queue.jsonl")


def arms(found: Report, name: str = "") -> list[Arm]:
    """Those of that name, or all, the cut ones too."""
    rounds = [arm for one in (*found.rounds, *found.cut) for arm in one.arms]
    return [arm for arm in (*found.preparation, *rounds) if arm.arm == name or not name]


def every_row(found: Report) -> list[Request]:
    return [row for arm in arms(found) for row in arm.requests]


# ── the steps ───────────────────────────────────────────────────────────────────────────────


def test_preparation_then_rounds_that_alternate_which_arm_goes_first(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert [one.index for one in found.rounds] == [0, 1, 2]
    order = [arm.arm for one in found.rounds for arm in one.arms]
    assert order == ["baseline", "strategy", "strategy", "baseline", "baseline", "strategy"]
    starts = [arm.requests[0].marks.start_ms for one in found.rounds for arm in one.arms]
    assert starts == sorted(starts, key=float)  # type: ignore[arg-type]
    told = [(a.arm, a.limits, [r.wall_ms for r in a.requests]) for a in found.preparation]
    slow, fast = {"slow": 1}, {"fast": 1}
    assert told == [
        ("warm-up", slow, [200]),
        ("warm-up", fast, [100]),
        ("calibration", slow, [200, 200]),
        ("calibration", fast, [100, 100]),
        # and once more after every round, so that drift shows
        *[("calibration", slow, [200]), ("calibration", fast, [100])] * 3,
    ]
    ends = [one.arms[1].requests[-1].marks.end_ms for one in found.rounds]
    later = [arm.requests[0].marks.start_ms for arm in found.preparation[4::2]]
    assert all(end <= start for end, start in zip(ends, later, strict=True))  # type: ignore[operator]
    # Round trips were probed before every arm.
    trips = {
        n: {x.round_trip_ms for x in found.probes if x.provider == n} for n in ("slow", "fast")
    }
    assert trips == {"slow": {40}, "fast": {0}}
    for arm in (*arms(found, "baseline"), *arms(found, "strategy")):
        first_ms = arm.requests[0].marks.assigned_ms or 0
        assert any(first_ms - 500 <= x.at_ms <= first_ms for x in found.probes)


def test_the_baseline_runs_on_what_calibration_found_the_fastest(tmp_path: Path) -> None:
    # The slow one is slow only on its first request: the warm-up may not count.
    cold = fake.Provider("cold", lambda prompt: 10 if "warm-up" not in prompt.salt else 9000)
    found = measured(tmp_path, [fake.Provider("even", 50), cold])
    assert found.fastest == "cold"
    for arm in arms(found, "baseline"):
        assert arm.strategy == "sequential" and arm.limits == {"cold": 1}
        assert {row.provider for row in arm.requests} == {"cold"}
    none = measured(tmp_path / "none", warm_up_prompts=0)
    assert arms(none, "warm-up") == [] and len(none.rounds) == 3


def test_calibration_uses_only_what_was_answered_and_heeds_the_answers_length(
    tmp_path: Path,
) -> None:
    def expected_ms(folder: str, *pool: fake.Provider) -> dict[str, float]:
        found = measured(tmp_path / folder, pool)
        return forecast.expected_ms(forecast.calibrated(found.preparation))

    down = Unreachable("down", "slow")
    assert expected_ms("down", *two(script=[None, down, None])) == {"slow": 200, "fast": 100}
    # 17 tokens in 170 ms are slower than 40 in 240: 10 ms a token against 6.
    brief, swift = fake.Provider("brief", 170, tokens=17), fake.Provider("swift", 240, tokens=40)
    per_token = pytest.approx({"brief": 10 * 28.5, "swift": 6 * 28.5})
    assert expected_ms("brief", brief, swift) == per_token
    even = [fake.Provider("a", 100, tokens=8), fake.Provider("b", 90, tokens=8)]
    assert expected_ms("even", *even) == {"a": 100, "b": 90}


def texts_of(pool: Sequence[fake.Provider], mark: str) -> list[list[str]]:
    """The texts that were sent in each arm of that name, in prompt order, arm after arm."""
    sent: dict[str, dict[int, str]] = {}
    for provider in pool:
        for prompt in provider.seen:
            if mark in prompt.salt:
                sent.setdefault(prompt.salt, {})[prompt.index] = prompt.text
    return [[sent[salt][i] for i in sorted(sent[salt])] for salt in sorted(sent)]


def test_both_arms_send_the_same_prompts_under_marks_of_their_own(tmp_path: Path) -> None:
    pool = two()
    assert measured(tmp_path, pool, rounds=12, prompts=["why?", "how?", "why?"]).marked
    rounds = texts_of(pool, "baseline") + texts_of(pool, "strategy")
    assert len(rounds) == 24
    sent = [text for arm in rounds for text in arm]
    before = {text for name in ("warm-up", "calib") for arm in texts_of(pool, name) for text in arm}
    # What a server could have kept: no two texts of the run begin with the same four words.
    assert len({text[:7] for text in sent} | {text[:7] for text in before}) == 72 + len(before)
    # A mark is as long in every arm: single letters, each of them a token.
    assert [text[12:] for text in sent] == ["why?", "how?", "why?"] * 24
    assert all(len(word) == 1 for text in sent for word in text.split()[:6])


def test_texts_are_sent_as_they_are_where_every_cache_is_off(tmp_path: Path) -> None:
    """A mark of the round costs prompt tokens; one server that caches makes it necessary."""
    pool = [fake.Provider(name, 100, cache_defeated=True) for name in ("a", "b")]
    assert not measured(tmp_path, pool, prompts=["why?", "how?"]).marked
    assert {p.text for provider in pool for p in provider.seen} == {"why?", "how?"}
    # vLLM keeps its prefixes apart by salt: none is used by both arms or in two rounds.
    assert len(texts_of(pool, "baseline")) == len(texts_of(pool, "strategy")) == 3


def test_calibration_sends_all_the_same_texts_and_two_names_for_one_server_others(
    tmp_path: Path,
) -> None:
    ports = {"one": 1, "other": 2, "again": 1}
    common = {"kind": "ollama", "model": "m"}
    own = [{"name": n, "url": f"http://127.0.0.1:{port}", **common} for n, port in ports.items()]
    pool = [fake.Provider(name, 100) for name in ports]
    measured(tmp_path, pool, providers=own, calibration_prompts=3)
    one, other, again = ([p.text for p in x.seen if "calibration" in p.salt] for x in pool)
    assert one == other and len(set(one)) == len(one) == 3 + 3
    assert not set(one) & set(again)  # else out of its cache


BOTH = {"slow": 1, "fast": 1}


@pytest.mark.parametrize(
    ("strategy", "limits", "makespan_ms"),
    [
        ("sequential", BOTH, 600),
        ("serial-per-provider", BOTH, 600),  # three of 200 ms on the slow one
        ("capability-split", BOTH, 400),  # four of 100 ms, two of 200 ms
        ("shared-queue", BOTH, 400),  # capacity is a setting, not the slots
        ("earliest-finish", BOTH, 400),
        ("batched", {"slow": 4, "fast": 1}, 200),  # four at once on the slow one
        ("all-parallel", None, 300),  # three at once on each; the fast one has one slot
    ],
)
def test_each_strategy_runs_under_its_limit_and_gives_the_ratio_computed_by_hand(
    tmp_path: Path, strategy: str, limits: dict[str, int] | None, makespan_ms: float
) -> None:
    reading = of(measured(tmp_path, two(slots=4), strategy=strategy, rounds=6))
    assert [arm.limits for arm in reading.report.rounds[0].arms] == [{"fast": 1}, limits]
    ratio = reading.headline.overhead_ratio
    assert ratio.median == pytest.approx(makespan_ms / 600) and ratio.rounds == 6
    assert [one.baseline_ms for one in reading.timed[0]] == pytest.approx([600] * 6)
    assert [one.strategy_ms for one in reading.timed[0]] == pytest.approx([makespan_ms] * 6)


@pytest.mark.parametrize(("mode", "most"), [("on", 8), ("off", 8), ("forced", 2)])
def test_everything_at_once_heeds_a_limit_only_where_that_is_forced(
    tmp_path: Path, mode: str, most: int
) -> None:
    provider = fake.Provider("a", 100, slots=8)
    few = {"strategy": "all-parallel", "prompts": 8, "rounds": 1}
    found = measured(tmp_path, [provider], providers=[{"name": "a", "adaptive": mode}], **few)
    assert provider.most_in_flight >= most and (provider.most_in_flight == 8) == (mode != "forced")
    changes = [change for arm in arms(found, "strategy") for change in arm.limit_changes]
    assert bool(changes) == (mode == "forced")


# ── the report ──────────────────────────────────────────────────────────────────────────────


def test_a_report_tells_who_but_never_where_and_texts_only_where_that_is_asked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "questions.txt").write_text("Wie geht das?\n\n  how?  \n")
    for store in (False, True):
        for prompts in (["Wie geht das?", "how?"], str(tmp_path / "questions.txt")):
            folder = tmp_path / f"{store} {type(prompts)}"
            found = measured(folder, prompts=prompts, store_text=store)
            text = (folder / "trial-shared-queue.jsonl").read_text("utf-8")
            assert '"slow"' in text and "fake:1" in text
            for secret in ("10.66.77.88", ":4321", KEY, str(tmp_path)):
                assert secret not in text
            assert found.prompt_sha256[1] == workload.sha256("how?")
            assert found.prompts == (["Wie geht das?", "how?"] if store else None)
            assert ("Wie geht das?" in text) == store
            assert ("how?" in (found.rounds[0].arms[0].requests[1].answer or "")) == store


def test_the_progress_counts_every_request_and_tells_of_a_provider_that_asks_for_an_hour(
    tmp_path: Path,
) -> None:
    told: list[tuple[str, int, int]] = []
    experiment.measure(parameters(), lambda *now: told.append(now), tmp_path, two())
    total = 2 * (1 + 2) + 3 * (2 * 6 + 2)
    assert [(done, of) for _, done, of in told] == [(i + 1, total) for i in range(total)]
    hour = Rejected("provider a: HTTP 429: later.", "a", 429, 3600)
    few = {"prompts": 2, "rounds": 1, "warm_up_prompts": 0, "calibration_prompts": 1}
    pool = [fake.Provider("a", 100, script=[None, hour])]
    (note,) = experiment.measure(
        parameters(**few), lambda *now: told.append(now), tmp_path / "hour", pool
    ).notes
    assert note == (
        "round 1 of 1, baseline: a asked to be left alone for 3,600 s; no pause here is longer "
        "than 60 s."
    )
    assert note in [stage for stage, _, _ in told]


# ── ends ────────────────────────────────────────────────────────────────────────────────────


class Closing(fake.Provider):
    """Knows whether it was closed."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def test_unlike_models_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    pool = [Closing("slow", digest="fake:2"), Closing("fast")]
    with pytest.raises(UnlikeProviders, match="slow and fast hold different models"):
        measured(tmp_path, pool)
    assert not any(provider.seen for provider in pool) and [p.closed for p in pool] == [1, 1]
    assert len(measured(tmp_path, pool, allow_unlike_models=True).rounds) == 3
    assert [p.closed for p in pool] == [2, 2]
    assert len(measured(tmp_path, two(digest=None)).rounds) == 3  # unknown is not unlike


def test_ctrl_c_in_round_three_leaves_two_whole_rounds_and_every_row_on_disk(
    tmp_path: Path,
) -> None:
    pool = [Closing("slow", 160, role="remote", overhead_ms=40), Closing("fast", 100)]
    moment_ms = PREPARED_MS + 2 * ROUND_MS + 1150  # the third round's strategy runs
    left = cut_at(moment_ms, tmp_path, pool, rounds=5)
    saved = report.load("trial-shared-queue", tmp_path)
    assert left == saved and not saved.complete and [one.index for one in saved.rounds] == [0, 1]
    assert [len(arm.requests) for one in saved.rounds for arm in one.arms] == [6] * 4
    cut = [row.outcome for arm in saved.cut[0].arms for row in arm.requests]
    # Its baseline is whole; the fast one answered a prompt, and two were in flight.
    assert cut == ["ok"] * 7 + ["cancelled"] * 2
    assert len(every_row(saved)) == 2 * 3 + 2 * (2 * 6 + 2) + len(cut)
    assert [provider.closed for provider in pool] == [1, 1]


@pytest.mark.parametrize("moment_ms", [20, 150, 300, 600, 930])
def test_ctrl_c_while_preparing_ends_the_run_at_once(tmp_path: Path, moment_ms: float) -> None:
    assert cut_at(moment_ms, tmp_path, two()).rounds == []


def test_the_run_limit_ends_the_run_and_keeps_the_rounds_before(tmp_path: Path) -> None:
    limit_ms = PREPARED_MS + 2 * ROUND_MS + 550  # within the third round's baseline
    with pytest.raises(RunFailed, match=r"run_limit_s \(5\.01 s\) in round 3 of 5, baseline"):
        measured(tmp_path, rounds=5, run_limit_s=limit_ms / 1000)
    saved = report.load("trial-shared-queue", tmp_path)
    assert not saved.complete and [one.index for one in saved.rounds] == [0, 1]
    assert of(saved).headline.overhead_ratio.median == pytest.approx(400 / 600)
    assert every_row(saved)[-1].marks.end_ms == pytest.approx(limit_ms)


DOWN = Rejected("provider slow: HTTP 503: no room", "slow", status=503)


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (["hang"], r"run_limit_s \(3 s\) in warm-up of slow"),
        ([DOWN] * 9, "slow: HTTP 503: no room"),
    ],
)
def test_a_provider_that_never_answers_is_named_before_any_round(
    tmp_path: Path, script: list[Any], sentence: str
) -> None:
    with pytest.raises(RunFailed, match=sentence):
        measured(tmp_path, two(script=script), run_limit_s=3)
    assert left_in(tmp_path).rounds == [] and every_row(left_in(tmp_path))


# ── what doctor asks for ────────────────────────────────────────────────────────────────────


class Unknown(fake.Provider):
    """Does not say who it is."""

    async def describe(self) -> Any:
        raise Unreachable("provider unknown: no connection.", "unknown")


def test_examining_needs_no_file_and_one_failure_does_not_hide_the_others() -> None:
    def examined(*pool: fake.Provider) -> tuple[experiment.Run, Any]:
        known = [{"core": 1, "speed": 0.6}, {}]
        run = experiment.Run(parameters(), list(zip(pool, known, strict=True)))
        return run, fake.run(lambda clock: run.examine(capacity=False))

    run, found = examined(*two())
    assert found == ({}, {}) and run.expected_ms == {"slow": 200, "fast": 100}
    assert [(facts.core, facts.speed) for facts in run.report.providers] == [(1, 0.6), (None, None)]
    assert {probe.provider for probe in run.report.probes} == {"slow", "fast"}
    assert len(run.report.preparation) == 4
    unknown, fast = Unknown("unknown"), Closing("fast")
    run, found = examined(unknown, fast)
    assert found == ({"unknown": "provider unknown: no connection."}, {})
    assert (
        [facts.name for facts in run.report.providers] == ["fast"]
        and not fast.seen
        and fast.closed == 1
    )
    with pytest.raises(PocError, match="different models"):
        examined(*two(digest="fake:2"))


def test_engines_are_shared_until_others_are_asked_for_or_one_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    living: list[SimpleNamespace] = []

    @contextlib.contextmanager
    def started(settings: Any, context_tokens: int) -> Iterator[list[Any]]:
        living.append(SimpleNamespace(name="a", check=lambda: None))
        yield living[-1:]
        living[-1].check = fail

    def fail() -> None:
        raise EngineError("it has ended")

    monkeypatch.setattr(experiment, "engine_pool", started)
    own, asked = parameters(), parameters(providers=[{"name": "a"}])
    with experiment.SharedEngines() as shared:
        assert shared.of(asked)["a"] is living[0] and len(living) == 1
        shared.of(parameters(providers=[{"name": "a", "capacity": 3}], prompts=9))
        assert len(living) == 1
        shared.of(parameters(providers=[{"name": "a", "speed": 0.5}]))
        assert len(living) == 2
        living[-1].check = fail
        assert shared.of(parameters(providers=[{"name": "a", "speed": 0.5}]))["a"] is living[2]
        assert shared.of(own) == {} and shared.of(asked)["a"] is living[3]
