"""A whole experiment on fakes and a fake clock: its steps, their order, and how it may end."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from poclib import recording, report, workload
from poclib.errors import Rejected, RunFailed, UnlikeProviders, Unreachable
from poclib.measure import experiment
from poclib.parameters import Parameters, ProviderSettings
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.recording import ReportFile
from poclib.records import Exchange, Prompt, Report, Request, Round

Clock = Callable[[], float]
ADDRESS, KEY = "http://10.66.77.88:4321", "MY_SECRET_VARIABLE"


def parameters(**values: Any) -> Parameters:
    named = [
        {"name": n, "kind": "openai", "url": ADDRESS, "model": "m", "api_key_env": KEY}
        for n in ("fast", "slow")
    ]
    few = {"strategy": "shared-queue", "prompts": 6, "rounds": 3, "calibration_prompts": 2}
    return Parameters.read({"experiment": "trial", "providers": named, **few, **values})


# How the runs of `two` below go, in milliseconds: five probes of the slow one take 200 before
# each arm and before each part of the preparation, which ends at 1300; then every round is
# 200 + 600 (baseline) and 200 + 400 (a shared queue), in alternating order, and
# 200 + 200 + 100 to calibrate both once more: 1900 together.
PREPARED_MS, ROUND_MS = 1300, 1900


def two(**more: Any) -> list[fake.Provider]:
    far: dict[str, Any] = {"role": "remote", "overhead_ms": 40} | more
    return [fake.Provider("slow", 160, **far), fake.Provider("fast", 100)]


class Readable(experiment.Run):
    """A run whose rounds can be read from its file at any moment."""

    @property
    def rounds(self) -> list[Round]:
        assert self._file.path is not None
        return report.load(self._file.path).rounds


class Trial:
    """One run on fakes; `story` may do something while it goes on."""

    def __init__(self, folder: Path, pool: Sequence[fake.Provider], **values: Any) -> None:
        self.pool = pool
        self.run = Readable(parameters(**values), [(provider, {}) for provider in pool])
        self.file = ReportFile(folder / "trial.jsonl")

    def whole(self) -> Readable:
        with self.file.open():
            fake.run(lambda clock: self.run.whole(self.file))
            self.file.write({"state": recording.state(self.run.as_report(complete=True))})
        return self.run

    def report(self) -> Report:
        """What is on disk by now."""
        assert self.file.path is not None
        return report.load(self.file.path)

    def cut_at(self, moment_ms: float) -> Readable:
        """Cancel the run at that moment, as Ctrl-C does."""

        async def story(clock: Clock) -> None:
            whole = asyncio.create_task(self.run.whole(self.file))
            await asyncio.sleep(moment_ms / 1000)
            whole.cancel()
            with pytest.raises(asyncio.CancelledError):
                await whole
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert clock() == moment_ms  # at once, not after one more request

        with self.file.open():
            fake.run(story)
        return self.run

    def journalled(self) -> list[dict[str, Any]]:
        """Its lines of requests."""
        assert self.file.path is not None
        lines = [json.loads(line) for line in self.file.path.read_text("utf-8").splitlines()]
        return [line for line in lines if "request" in line]


def walls(rows: Sequence[Request]) -> list[float | None]:
    return [r.wall_ms for r in rows]


# ── the steps ───────────────────────────────────────────────────────────────────────────────


def test_rounds_alternate_which_arm_goes_first(tmp_path: Path) -> None:
    run = Trial(tmp_path, two(), rounds=4).whole()
    assert [r.index for r in run.rounds] == [0, 1, 2, 3]
    assert [[arm.arm for arm in r.arms] for r in run.rounds] == [
        ["baseline", "strategy"],
        ["strategy", "baseline"],
    ] * 2
    # The order of the clock, not only of the list.
    starts = [r.marks.start_ms for rnd in run.rounds for a in rnd.arms for r in a.requests[:1]]
    assert starts == sorted(starts, key=float)  # type: ignore[arg-type]


def test_preparation_is_kept_marked_and_alone(tmp_path: Path) -> None:
    run = Trial(tmp_path, two(), warm_up_prompts=1, calibration_prompts=2).whole()
    assert [(a.arm, a.limits, len(a.requests)) for a in run.preparation] == [
        ("warm-up", {"slow": 1}, 1),
        ("warm-up", {"fast": 1}, 1),
        ("calibration", {"slow": 1}, 2),
        ("calibration", {"fast": 1}, 2),
        # and once more after every round, so that drift shows
        *[("calibration", {"slow": 1}, 1), ("calibration", {"fast": 1}, 1)] * 3,
    ]
    first, later = run.preparation[:4], run.preparation[4:]
    assert [walls(a.requests) for a in first] == [[200], [100], [200, 200], [100, 100]]
    assert [walls(a.requests) for a in later] == [[200], [100]] * 3
    ends = [a.requests[-1].marks.end_ms for r in run.rounds for a in r.arms[1:]]
    starts = [a.requests[0].marks.start_ms for a in later[::2]]
    assert all(end <= start for end, start in zip(ends, starts, strict=True))  # type: ignore[operator]
    assert run.expected_ms == {"slow": 200, "fast": 100}


def test_a_warm_up_can_be_left_out(tmp_path: Path) -> None:
    run = Trial(tmp_path, two(), warm_up_prompts=0).whole()
    assert sum(len(a.requests) for a in run.preparation if a.arm == "warm-up") == 0
    assert len(run.rounds) == 3


def test_the_baseline_runs_on_what_calibration_found_the_fastest(tmp_path: Path) -> None:
    # The slow one is slow only on its first request: the warm-up may not count.
    cold = fake.Provider("cold", lambda prompt: 10 if "warm-up" not in prompt.salt else 9000)
    run = Trial(tmp_path, [fake.Provider("even", 50), cold]).whole()
    assert run.fastest == run.as_report().fastest == "cold"
    for rnd in run.rounds:
        baseline = next(a for a in rnd.arms if a.arm == "baseline")
        assert baseline.strategy == "sequential" and baseline.limits == {"cold": 1}
        assert {r.provider for r in baseline.requests} == {"cold"}


def test_calibration_uses_only_what_was_answered(tmp_path: Path) -> None:
    down = Unreachable("down", "slow")
    run = Trial(tmp_path, two(script=[None, down, None]), calibration_prompts=2).whole()
    assert run.expected_ms["slow"] == 200
    calibration = next(a for a in run.preparation if a.arm == "calibration")
    assert [r.outcome for r in calibration.requests] == ["failed", "ok"]


def texts_of(pool: Sequence[fake.Provider], mark: str) -> list[list[str]]:
    """The texts that were sent in each arm of that name, in prompt order, arm after arm."""
    arms: dict[str, dict[int, str]] = {}
    for provider in pool:
        for prompt in provider.seen:
            if mark in prompt.salt:
                arms.setdefault(prompt.salt, {})[prompt.index] = prompt.text
    return [[arms[salt][i] for i in sorted(arms[salt])] for salt in sorted(arms)]


def unmarked(text: str) -> str:
    return text[2 * workload.MARK_LETTERS :]


def test_both_arms_of_a_round_send_the_same_prompts_under_marks_of_their_own(
    tmp_path: Path,
) -> None:
    trial = Trial(tmp_path, two(), rounds=12, prompts=["why?", "how?", "why?"])
    trial.whole()
    baselines, strategies = texts_of(trial.pool, "baseline"), texts_of(trial.pool, "strategy")
    assert len(baselines) == len(strategies) == 12
    for arm in baselines + strategies:
        assert [unmarked(text) for text in arm] == ["why?", "how?", "why?"]
    preparation = texts_of(trial.pool, "warm-up") + texts_of(trial.pool, "calibration")
    sent = [text for arm in baselines + strategies for text in arm]
    before = {text for arm in preparation for text in arm}
    # What a server could have kept: no two texts of the run begin with the same four words.
    assert len({text[:7] for text in sent} | {text[:7] for text in before}) == 72 + len(before)
    # A mark is as long in every arm: single letters, each of them a token.
    assert {len(text) - len(unmarked(text)) for text in sent} == {12}
    assert all(len(word) == 1 for text in sent for word in text.split()[:6])


def test_every_provider_is_calibrated_with_the_same_texts(tmp_path: Path) -> None:
    urls = {"slow": "http://127.0.0.1:1", "fast": "http://127.0.0.1:2"}
    settings = [
        ProviderSettings(name=name, kind="ollama", url=url, model="m") for name, url in urls.items()
    ]
    trial = Trial(tmp_path, two(), providers=settings, calibration_prompts=3)
    trial.whole()
    seen = [
        [prompt.text for prompt in provider.seen if "calibration" in prompt.salt]
        for provider in trial.pool
    ]
    assert seen[0] == seen[1] and len(seen[0]) == 3 + trial.run.parameters.rounds
    assert len(set(seen[0])) == len(seen[0])  # and none of them twice


def test_a_short_answer_makes_no_machine_the_faster(tmp_path: Path) -> None:
    """17 tokens in 170 ms are slower than 40 in 240: 10 ms a token against 6."""
    brief = fake.Provider("brief", 170, tokens=17)
    swift = fake.Provider("swift", 240, tokens=40)
    run = Trial(tmp_path, [brief, swift]).whole()
    assert run.fastest == "swift"
    assert run.expected_ms == pytest.approx({"brief": 10 * 28.5, "swift": 6 * 28.5})
    even = [fake.Provider("a", 100, tokens=8), fake.Provider("b", 90, tokens=8)]
    assert Trial(tmp_path / "even", even).whole().expected_ms == {"a": 100, "b": 90}


def test_two_names_for_one_server_are_not_calibrated_from_its_cache(tmp_path: Path) -> None:
    settings = [
        ProviderSettings(name=name, kind="ollama", url=f"http://127.0.0.1:{port}", model="m")
        for name, port in (("one", 1), ("other", 2), ("again", 1))
    ]
    pool = [fake.Provider(one.name, 100) for one in settings]
    Trial(tmp_path, pool, providers=settings).whole()
    first = [next(p.text for p in one.seen if "calibration" in p.salt) for one in pool]
    assert first[0] == first[1] != first[2]


def test_texts_are_sent_as_they_are_where_every_cache_is_off(tmp_path: Path) -> None:
    """A mark of the round costs prompt tokens; one server that caches makes it necessary."""
    off = [fake.Provider(name, 100, cache_defeated=True) for name in ("a", "b")]
    trial = Trial(tmp_path, off, prompts=["why?", "how?"])
    trial.whole()
    sent = {p.text for provider in off for p in provider.seen}
    assert sent == {"why?", "how?"}
    # vLLM keeps its prefixes apart by salt: none is used by both arms or in two rounds.
    salts = {(p.salt, i) for i, arm in enumerate(("baseline", "strategy")) for provider in off
             for p in provider.seen if arm in p.salt}  # fmt: skip
    assert len(salts) == 2 * trial.run.parameters.rounds


def test_round_trips_are_probed_before_every_arm(tmp_path: Path) -> None:
    run = Trial(tmp_path, two()).whole()
    trips = {p.name: [x.round_trip_ms for x in run.probes if x.provider == p.name] for p in two()}
    assert set(trips["slow"]) == {40} and set(trips["fast"]) == {0}
    assert len(trips["slow"]) >= len(run.rounds) * 2
    for rnd in run.rounds:
        for arm in rnd.arms:
            first_ms = arm.requests[0].marks.assigned_ms or 0
            assert any(first_ms - 500 <= x.at_ms <= first_ms for x in run.probes)


@pytest.mark.parametrize(
    ("strategy", "slots", "limits"),
    [
        ("serial-per-provider", 4, {"slow": 1, "fast": 1}),
        ("batched", 4, {"slow": 4, "fast": 1}),
        ("shared-queue", 4, {"slow": 1, "fast": 1}),  # capacity is a setting, not the slots
        ("all-parallel", 4, None),
    ],
)
def test_each_strategy_runs_under_its_own_limit(
    tmp_path: Path, strategy: str, slots: int, limits: dict[str, int] | None
) -> None:
    run = Trial(tmp_path, two(slots=slots), strategy=strategy, rounds=1).whole()
    assert run.rounds[0].arms[0].limits == {"fast": 1}
    assert run.rounds[0].arms[1].limits == limits


def test_the_progress_counts_every_request(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    trial = Trial(tmp_path, two())
    trial.run = Readable(
        trial.run.parameters, [(p, {}) for p in trial.pool], lambda *now: told.append(now)
    )
    trial.whole()
    total = 2 * (1 + 2) + 3 * (2 * 6 + 2)
    assert [(done, of) for _, done, of in told] == [(i + 1, total) for i in range(total)]
    assert len(trial.journalled()) == total


# ── the report ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("strategy", "makespan_ms"),
    [
        ("sequential", 600),
        ("serial-per-provider", 600),  # three of 200 ms on the slow one
        ("capability-split", 400),  # four of 100 ms, two of 200 ms
        ("shared-queue", 400),
        ("earliest-finish", 400),
    ],
)
def test_the_saved_report_gives_the_ratio_computed_by_hand(
    tmp_path: Path, strategy: str, makespan_ms: float
) -> None:
    trial = Trial(tmp_path, two(), strategy=strategy, rounds=6)
    trial.whole()
    saved = trial.report()
    ratio = of(saved).headline.overhead_ratio
    assert ratio.median == pytest.approx(makespan_ms / 600)
    assert ratio.rounds == 6
    found = of(saved).rounds
    assert found["baseline_ms"].tolist() == pytest.approx([600] * 6)
    assert found["strategy_ms"].tolist() == pytest.approx([makespan_ms] * 6)


def test_the_report_tells_who_but_never_where_nor_the_key(tmp_path: Path) -> None:
    Trial(tmp_path, two(), prompts=["Wie geht das?"]).whole()
    text = (tmp_path / "trial.jsonl").read_text("utf-8")
    assert '"slow"' in text and "fake:1" in text
    for secret in (ADDRESS, "10.66.77.88", ":4321", KEY, str(tmp_path), "Wie geht das?"):
        assert secret not in text


def test_the_path_of_a_file_of_prompts_stays_out_of_the_report(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("why?\n\n  how?  \n")
    for store_text in (False, True):
        run = Trial(tmp_path, two(), prompts=str(file), store_text=store_text).whole()
        assert run.texts == ["why?", "how?"]
        assert str(tmp_path) not in run.as_report().model_dump_json()


def test_text_is_stored_only_where_that_is_asked_for(tmp_path: Path) -> None:
    trial = Trial(tmp_path, two(), prompts=["why?"], store_text=True)
    trial.whole()
    kept = trial.report()
    assert kept.prompts == ["why?"]
    assert "why?" in (kept.rounds[0].arms[0].requests[0].answer or "")
    trial = Trial(tmp_path, two(), prompts=["why?"])
    trial.whole()
    hashed = trial.report()
    assert hashed.prompts is None and "why?" not in hashed.model_dump_json()
    assert hashed.prompt_sha256 == kept.prompt_sha256


def test_what_is_known_of_an_engine_is_in_its_facts(tmp_path: Path) -> None:
    known = {"engine": "llama-server", "core": 1, "speed": 0.6}
    run = experiment.Run(parameters(), [(p, known if p.name == "slow" else {}) for p in two()])
    fake.run(lambda clock: run.describe())
    slow, fast = run.facts
    assert (slow.engine, slow.core, slow.speed) == ("llama-server", 1, 0.6)
    assert fast.engine is None


# ── ends ────────────────────────────────────────────────────────────────────────────────────


def test_unlike_models_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    pool = two(digest="fake:2")
    with pytest.raises(UnlikeProviders, match="slow and fast hold different models"):
        Trial(tmp_path, pool).whole()
    assert not any(provider.seen for provider in pool)
    allowed = Trial(tmp_path, two(digest="fake:2"), allow_unlike_models=True).whole()
    assert len(allowed.rounds) == 3
    assert len(Trial(tmp_path, two(digest=None)).whole().rounds) == 3  # unknown is not unlike


def incomplete(trial: Trial) -> Report:
    saved = trial.report()
    assert saved.complete is False
    return saved


def test_ctrl_c_in_round_three_leaves_two_whole_rounds_and_every_row_on_disk(
    tmp_path: Path,
) -> None:
    trial = Trial(tmp_path, two(), rounds=5)
    trial.cut_at(PREPARED_MS + 2 * ROUND_MS + 1150)  # the third round's strategy runs
    saved = incomplete(trial)
    assert [r.index for r in saved.rounds] == [0, 1]
    assert [len(a.requests) for r in saved.rounds for a in r.arms] == [6] * 4
    cut = [row for arm in saved.cut[0].arms for row in arm.requests]
    # Its baseline is whole; the fast one answered a prompt, and two were in flight.
    assert [row.outcome for row in cut] == ["ok"] * 7 + ["cancelled"] * 2
    assert len(trial.journalled()) == 2 * 3 + 2 * (2 * 6 + 2) + len(cut)


@pytest.mark.parametrize("moment_ms", [50, 250, 450, 850, 1250])
def test_ctrl_c_while_preparing_ends_the_run_at_once(tmp_path: Path, moment_ms: float) -> None:
    trial = Trial(tmp_path, two())
    trial.cut_at(moment_ms)
    assert trial.report().rounds == []


class Crashing(fake.Provider):
    """Has a bug that shows at its n-th request."""

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        await super().send(prompt, exchange)
        if len(self.seen) == 3 + 2 * 13 + 2:  # preparation, two rounds, two of the third
            raise KeyError("a bug")


def test_a_crash_in_round_three_leaves_two_whole_rounds(tmp_path: Path) -> None:
    trial = Trial(tmp_path, [Crashing("lone", 100)], rounds=5)
    with pytest.raises(KeyError):
        trial.whole()
    assert [r.index for r in incomplete(trial).rounds] == [0, 1]
    assert [row["request"]["outcome"] for row in trial.journalled()[-1:]] == ["ok"]


def test_the_run_limit_ends_the_run_and_keeps_the_rounds_before(tmp_path: Path) -> None:
    limit_ms = PREPARED_MS + 2 * ROUND_MS + 550  # within the third round's baseline
    trial = Trial(tmp_path, two(), rounds=5, run_limit_s=limit_ms / 1000)
    with pytest.raises(RunFailed, match=r"run_limit_s \(5\.65 s\) in round 3 of 5, baseline"):
        trial.whole()
    saved = incomplete(trial)
    assert [r.index for r in saved.rounds] == [0, 1]
    assert of(saved).headline.overhead_ratio.median == pytest.approx(400 / 600)
    assert trial.journalled()[-1]["request"]["marks"]["end_ms"] == pytest.approx(limit_ms)


def test_the_run_limit_holds_while_preparing(tmp_path: Path) -> None:
    trial = Trial(tmp_path, two(script=["hang"]), run_limit_s=3)
    with pytest.raises(RunFailed, match="run_limit_s"):
        trial.whole()
    assert trial.report().rounds == []


def test_a_provider_that_never_answers_is_named_before_any_round(tmp_path: Path) -> None:
    down = Rejected("provider slow: HTTP 503: no room", "slow", status=503)
    trial = Trial(tmp_path, two(script=[down] * 9))
    with pytest.raises(RunFailed, match="provider slow: HTTP 503: no room"):
        trial.whole()
    assert trial.report().rounds == []


def test_a_failure_within_a_round_is_mended_by_another_provider(tmp_path: Path) -> None:
    down = Unreachable("down", "slow")
    run = Trial(tmp_path, two(script=[None] * 3 + [down] * 99), rounds=2).whole()
    for rnd in run.rounds:
        strategy = next(a for a in rnd.arms if a.arm == "strategy")
        failed = [r for r in strategy.requests if r.outcome == "failed"]
        assert {r.provider for r in failed} == {"slow"}
        assert sorted(r.prompt for r in strategy.requests if r.outcome == "ok") == [*range(6)]


class Closing(fake.Provider):
    """Knows whether it was closed."""

    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def test_connections_are_closed_on_every_way_out(tmp_path: Path) -> None:
    whole, refused = [Closing("a", 10), Closing("b", 20)], [Closing("a"), Closing("b", digest="x")]
    Trial(tmp_path, whole).whole()
    with pytest.raises(UnlikeProviders):
        refused[0].digest = "x:1"
        refused[1].digest = "x:2"
        Trial(tmp_path, refused).whole()
    cut = [Closing("a", 10), Closing("b", 20)]
    Trial(tmp_path, cut).cut_at(135)
    assert [p.closed for p in (*whole, *refused, *cut)] == [1] * 6


def test_preparation_alone_needs_no_file(tmp_path: Path) -> None:
    """What `poc doctor` does: its rows and probes are kept in memory."""
    run = experiment.Run(parameters(), [(provider, {}) for provider in two()])

    async def prepared(clock: Clock) -> None:
        await run.describe()
        await run.prepare()

    fake.run(prepared)
    assert run.expected_ms == {"slow": 200, "fast": 100}
    assert {probe.provider for probe in run.probes} == {"slow", "fast"}
    assert run.tokens_per_s() == {"slow": pytest.approx(20), "fast": pytest.approx(40)}
    assert len(run.preparation) == 4


def test_an_arm_that_reaches_its_limit_is_stopped_and_the_run_goes_on(tmp_path: Path) -> None:
    # Everything at once on one slot each: 100 ms each alone: eight prompts take 0.4 s.
    slow = [fake.Provider(name, 100, slots=1) for name in ("a", "b")]
    run = Trial(
        tmp_path, slow, strategy="all-parallel", prompts=8, rounds=2, arm_limit_s=0.25,
        warm_up_prompts=0, calibration_prompts=1,
    ).whole()  # fmt: skip
    arms = [arm for one in run.rounds for arm in one.arms]
    assert [arm.arm for arm in arms] == ["baseline", "strategy", "strategy", "baseline"]
    for arm in arms:
        starts = [row.marks.start_ms for row in arm.requests if row.marks.start_ms is not None]
        assert arm.cut_ms == min(starts) + 250
        assert sum(row.outcome == "ok" for row in arm.requests) == (4 if arm.limits is None else 2)
    assert run.as_report(complete=True).rounds == []  # they are in the file


def test_a_provider_that_asks_for_an_hour_is_told_of_at_once_and_in_the_report(
    tmp_path: Path,
) -> None:
    hour = Rejected("provider a: HTTP 429: later.", "a", 429, 3600)
    provider = fake.Provider("a", 100, script=[None, hour])
    trial = Trial(
        tmp_path, [provider], prompts=2, rounds=1, warm_up_prompts=0, calibration_prompts=1
    )
    stages: list[str] = []
    trial.run._progress = lambda stage, done, total: stages.append(stage)
    (note,) = trial.whole().notes
    assert note == (
        "round 1 of 1, baseline: a asked to be left alone for 3,600 s; no pause here is longer "
        "than 60 s."
    )
    assert note in stages


@pytest.mark.parametrize(("mode", "most"), [("on", 8), ("off", 8), ("forced", 2)])
def test_everything_at_once_heeds_a_limit_only_where_that_is_forced(
    tmp_path: Path, mode: str, most: int
) -> None:
    provider = fake.Provider("a", 100, slots=8)
    settings = [{"name": "a", "adaptive": mode}]
    run = Trial(
        tmp_path, [provider], strategy="all-parallel", prompts=8, rounds=1, providers=settings
    ).whole()
    assert provider.most_in_flight >= most and (provider.most_in_flight == 8) == (mode != "forced")
    changes = [change for one in run.rounds for arm in one.arms for change in arm.limit_changes]
    assert bool(changes) == (mode == "forced")
