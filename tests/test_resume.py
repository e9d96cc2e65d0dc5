"""A run stopped at any moment goes on with exactly what is missing, and nothing is lost."""

import asyncio
import errno
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poclib import recording, report
from poclib.errors import ParameterError, ReportError, RunFailed, UnlikeProviders, Unreachable
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.recording import ReportFile
from poclib.records import Report, Request
from poclib.showing import warnings as cautions

Clock = Callable[[], float]


def parameters(**values: Any) -> Parameters:
    common = {"kind": "llama-server", "url": "http://10.6.7.8:1"}
    named = [{"name": name, **common} for name in ("fast", "slow")]
    few = {"strategy": "shared-queue", "prompts": 4, "rounds": 3, "calibration_prompts": 2}
    return Parameters.read({"experiment": "trial", "providers": named, **few, **values})


def two(digest: str = "fake:1", **more: Any) -> list[fake.Provider]:
    return [fake.Provider("fast", 100, digest=digest), fake.Provider("slow", 160, **more)]


@pytest.fixture(autouse=True)
def on_a_fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))


def measured(folder: Path, pool: list[fake.Provider] | None = None, **values: Any) -> Report:
    return experiment.measure(parameters(**values), folder=folder, pool=pool or two())


def stopped(
    folder: Path,
    moment_ms: float,
    monkeypatch: pytest.MonkeyPatch,
    pool: list[fake.Provider] | None = None,
) -> None:
    """A run that is interrupted at that moment, as Ctrl-C does."""

    def work(whole: Callable[[], Any]) -> None:
        async def story(clock: Clock) -> None:
            task = asyncio.create_task(whole())
            await asyncio.sleep(moment_ms / 1000)
            task.cancel()
            await task

        fake.run(story)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "on_own_loop", work)
        with pytest.raises(asyncio.CancelledError):
            measured(folder, pool)


def every_row(found: Report) -> list[Request]:
    arms = [arm for one in (*found.rounds, *found.cut) for arm in one.arms]
    return [row for arm in (*found.preparation, *arms) for row in arm.requests]


def key(row: Request) -> str:
    """The row with its times to the microsecond, as a report holds them."""
    return json.dumps(recording._rounded(row.model_dump(mode="json")), sort_keys=True)


def once_each(found: Report, prompts: int) -> None:
    assert found.complete and [one.index for one in found.rounds] == [*range(len(found.rounds))]
    for one in found.rounds:
        assert sorted(arm.arm for arm in one.arms) == ["baseline", "strategy"]
        for arm in one.arms:
            answered = [row.prompt for row in arm.requests if row.outcome == "ok"]
            assert sorted(answered) == [*range(prompts)]


# ── going on ────────────────────────────────────────────────────────────────────────────────


def test_a_run_cut_at_any_byte_goes_on_and_keeps_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill leaves any beginning of the file: tried at 33 places, and again where it went on."""
    whole = tmp_path / "whole"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # let a finished run leave its file
        measured(whole)
    text = (whole / "runs" / "trial-shared-queue.jsonl").read_bytes()
    draw = random.Random(6)
    for place in [0, 1, len(text), *(draw.randrange(len(text)) for _ in range(30))]:
        folder = tmp_path / str(place)
        path = folder / "runs" / "trial-shared-queue.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(text[:place])
        lines = [json.loads(line) for line in text[:place].split(b"\n")[:-1]]
        before = [Request.model_validate(x["request"]) for x in lines if "request" in x]
        pool = two()
        found = measured(folder, pool, resume=True)
        once_each(found, 4)
        rows = Counter(map(key, every_row(found)))
        assert set(rows.values()) == {1}
        assert {key(row) for row in before} <= rows.keys(), "a row that was on disk is lost"
        # Work is done again only where a round was cut, or the engines are to be warmed.
        sent = sum(len(provider.seen) for provider in pool)
        needed = 2 * (1 + 2) + 3 * (2 * 4 + 2)
        cut = sum(len(arm.requests) for one in found.cut for arm in one.arms)
        warmed = sum(len(a.requests) for a in found.preparation if a.arm == "warm-up") - 2
        assert sent == needed - len(before) + cut + warmed
        assert not path.exists() and report.load("trial-shared-queue", folder) == found


def test_a_cut_round_is_repeated_whole_and_its_rows_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prepared after 260 + 520 ms; a round is 400 + 260 and 260 for calibration.
    stopped(tmp_path, 780 + 920 + 500, monkeypatch)
    partial = report.load("trial-shared-queue", tmp_path)
    assert not partial.complete and [one.index for one in partial.rounds] == [0]
    found = measured(tmp_path, resume=True)
    once_each(found, 4)
    assert found.rounds[0] == partial.rounds[0]
    assert found.cut == partial.cut and [one.index for one in found.cut] == [1]
    outcomes = [row.outcome for arm in found.cut[0].arms for row in arm.requests]
    assert Counter(outcomes)["ok"] >= 1 and Counter(outcomes)["cancelled"] >= 1
    assert found.created == partial.created and len(found.resumed_ms) == 1
    # Its clock went on: nothing of the second session lies before the stop.
    last_ms = max(row.marks.end_ms or 0 for row in every_row(partial))
    later = [row for one in found.rounds[1:] for arm in one.arms for row in arm.requests]
    assert min(row.marks.start_ms or 0 for row in later) >= last_ms
    headline = of(found).headline
    assert headline.requests == 3 * 2 * 4  # the cut round counts nowhere
    (said,) = [one for one in cautions.warnings(found, headline) if "stopped" in one]
    assert "round 2 was repeated whole" in said and f"{len(outcomes)} requests" in said


def test_what_was_sent_before_a_stop_is_not_sent_with_the_same_mark_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's prompt cache may hold it."""
    first, second = two(), two()
    stopped(tmp_path, 2000, monkeypatch, first)
    measured(tmp_path, second, resume=True)
    before = {p.text for provider in first for p in provider.seen}
    assert not before & {p.text for provider in second for p in provider.seen}


def test_a_finished_run_is_not_run_again_unless_it_was_another(tmp_path: Path) -> None:
    done = measured(tmp_path)
    pool = two()
    assert measured(tmp_path, pool, resume=True) == done
    assert measured(tmp_path, pool, resume=True, run_limit_s=9.0) == done
    assert not any(provider.seen for provider in pool)
    again = measured(tmp_path, pool, resume=True, prompts=3)
    assert any(provider.seen for provider in pool) and len(again.prompt_sha256) == 3
    assert measured(tmp_path, prompts=3).created != again.created  # without resume: anew


def test_a_stopped_run_goes_on_although_an_earlier_one_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = measured(tmp_path)
    stopped(tmp_path, 600, monkeypatch)  # before its first round, so that no report replaced it
    assert report.load("trial-shared-queue", tmp_path) == earlier
    found = measured(tmp_path, resume=True)
    once_each(found, 4)
    assert found.created != earlier.created and len(found.resumed_ms) == 1
    assert not (tmp_path / "runs" / "trial-shared-queue.jsonl").exists()


def test_a_journal_left_by_a_kill_after_saving_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        done = measured(tmp_path)
    path = tmp_path / "runs" / "trial-shared-queue.jsonl"
    assert path.exists() and measured(tmp_path, resume=True) == done
    assert not path.exists()
    path.write_text("something else\n")  # whatever it is, the run is finished
    assert measured(tmp_path, resume=True) == done and path.exists()


def test_other_parameters_are_refused_in_a_sentence_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, 2000, monkeypatch)
    with pytest.raises(ParameterError, match=r"other parameters \(max_tokens, rounds\)"):
        measured(tmp_path, resume=True, rounds=4, max_tokens=5)
    with pytest.raises(ParameterError, match="prompts"):
        measured(tmp_path, resume=True, prompts=["one", "two", "three", "four"])
    once_each(measured(tmp_path, resume=True, run_limit_s=60.0), 4)


def test_a_provider_that_changed_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, 2000, monkeypatch)
    with pytest.raises(UnlikeProviders, match="fast is not what it was before the stop"):
        measured(tmp_path, [fake.Provider("fast", 100, digest="fake:2")], resume=True)


def test_without_resume_what_a_stopped_run_left_is_kept_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(tmp_path, 1500, monkeypatch)
    left = (tmp_path / "runs" / "trial-shared-queue.jsonl").read_bytes()
    once_each(measured(tmp_path), 4)
    (aside,) = (tmp_path / "runs").glob("trial-shared-queue.*.jsonl")
    assert aside.read_bytes() == left


class Restarted(fake.Provider):
    """Somebody loads another model into it after so many requests."""

    after = 6

    async def describe(self) -> Any:
        if len(self.seen) > self.after:
            self.digest = "fake:9"
        return await super().describe()


def test_a_model_that_was_changed_during_an_arm_ends_the_run(tmp_path: Path) -> None:
    changed = r"provider slow was changed during the run \(digest fake:1, now fake:9\)"
    with pytest.raises(RunFailed, match=f"round 2 of 3, strategy: {changed}"):
        measured(tmp_path, [fake.Provider("fast", 100), Restarted("slow", 160)])
    saved = report.load("trial-shared-queue", tmp_path)
    assert not saved.complete and [one.index for one in saved.rounds] == [0]
    (cut,) = saved.cut  # no ratio is made of it, and its rows are there
    assert cut.index == 1 and {row.outcome for arm in cut.arms for row in arm.requests} == {"ok"}


def test_a_model_that_was_changed_after_the_last_round_is_noted(tmp_path: Path) -> None:
    first = two()
    measured(tmp_path, first)
    slow = Restarted("slow", 160)
    slow.after = len(first[1].seen) - 1  # its last request is the calibration after the last round
    found = measured(tmp_path, [fake.Provider("fast", 100), slow])
    assert found.complete and len(found.rounds) == 3
    assert "provider slow was changed during the run (digest fake:1, now fake:9)" in found.notes[0]
    said = cautions.warnings(found, of(found).headline)
    assert any("was changed during the run" in one for one in said)


def test_a_run_that_no_report_could_hold_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    pool = two()
    with pytest.raises(ParameterError, match="MiB is not read; use fewer rounds or prompts"):
        measured(tmp_path, pool, prompts=50_000, rounds=10)
    assert not any(provider.seen for provider in pool)


# ── the lock ────────────────────────────────────────────────────────────────────────────────

HOLD = """
import sys
from pathlib import Path
from poclib import recording
with recording.only_one(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_on_a_folder_refuses_until_the_first_is_gone_however(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "runs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(recording.__file__).parents[1])},
    ) as first:
        assert first.stdout and first.stdout.readline() == b"held\n"
        pool = two()
        with pytest.raises(ReportError, match=rf"another run \(process {first.pid}\)"):
            measured(tmp_path, pool)
        assert not any(provider.seen for provider in pool)
        first.kill()  # it cannot clean anything up
    assert measured(tmp_path).complete


# ── the file ────────────────────────────────────────────────────────────────────────────────


def test_whether_a_folder_is_held_can_be_asked(tmp_path: Path) -> None:
    assert not recording.held(tmp_path / "nowhere") and not recording.held(tmp_path)
    with recording.only_one(tmp_path):
        assert recording.held(tmp_path)
    assert not recording.held(tmp_path)


def test_each_line_can_be_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "x.jsonl"
    log = ReportFile(path)

    def lines() -> list[Any]:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    with log.open():
        log.write({"prompt": 1, "text": "ünïcode\nline"})
        assert lines() == [{"prompt": 1, "text": "ünïcode\nline"}]
        log.write({"prompt": 2})
        assert len(lines()) == 2 and log.bytes == path.stat().st_size


def test_what_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = ReportFile(tmp_path / "file" / "x.jsonl")
    sentence = r"^x\.jsonl could not be written: .*; free"
    with pytest.raises(ReportError, match=sentence), log.open():
        pytest.fail("it cannot have been opened")
    with pytest.raises(ReportError, match="could not be written"):
        measured(tmp_path / "file")


def test_a_disk_that_fills_up_is_told_from_other_trouble(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), ReportFile(tmp_path / "x.jsonl").open():
        raise ConnectionResetError("not the journal's")
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(ReportError, match="No space left"),
        ReportFile(Path("/dev/full")).open() as file,
    ):
        file.write({})


class Full:
    """A file on a disk that has room for so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self._file.write(data[: self._room])
        self._room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 400, 5000])
def test_a_disk_that_fills_up_in_a_run_loses_nothing_earlier_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write, path = ReportFile.write, tmp_path / "runs" / "trial-shared-queue.jsonl"

    def on_a_small_disk(self: ReportFile, row: Any) -> None:
        if self._file is not None and self.bytes > 2000 and not isinstance(self._file, Full):
            self._file = Full(self._file, room)  # type: ignore[assignment]
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(ReportFile, "write", on_a_small_disk)
        with pytest.raises(ReportError, match="No space left on device"):
            measured(tmp_path)
    text = path.read_bytes()
    assert text.endswith(b"\n") and 2000 < len(text) <= 2000 + room + 1500
    once_each(measured(tmp_path, resume=True), 4)


HEAD = (
    b'{"format": "poclib-report", "version": 2, "experiment": "x", "strategy": "batched", '
    b'"created": "2026-11-26T00:00:00Z", "poclib": "0"}\n'
)
DAMAGED = [
    (b"", "is empty"),
    (b"{}\n", "is not a report"),
    (b"[]\n", "is not a report"),
    (b'{"format": "poclib-report", "version": 0}\n', "not a positive whole number"),
    (b'{"format": "poclib-report", "version": true}\n', "not a positive whole number"),
    (b'{"format": "poclib-report", "version": 99}\n', "version 99.*update poclib"),
    (b"\x00\xff\n", "is not a report"),
    (b"[" * 100_000 + b"\n", "is not a report"),
    (HEAD + b'{"end": {}}\n{}\n', "line 2 is damaged"),
    (HEAD + b"{}\n" + HEAD, "line 2 is damaged"),
    (HEAD + b'{"probe": {"provider": "../x", "at_ms": 1, "round_trip_ms": 1}}\n', "line 2 is dam"),
]


@pytest.mark.parametrize(("text", "sentence"), DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: bytes, sentence: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(text)
    with pytest.raises(ReportError, match=sentence) as caught:
        report.load(path)
    assert "x.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_a_torn_last_line_is_survived_and_the_run_is_not_complete(tmp_path: Path) -> None:
    whole = measured(tmp_path)
    path = tmp_path / "trial-shared-queue.jsonl"
    assert whole.complete
    path.write_bytes(path.read_bytes()[:-5])
    torn = report.load(path)
    assert torn.rounds == whole.rounds and not torn.complete


def test_a_run_that_fails_leaves_every_row_in_its_file(tmp_path: Path) -> None:
    down = Unreachable("provider slow: no connection", "slow")
    with pytest.raises(RunFailed):
        measured(tmp_path, two(script=[None, down, down, down]))
    kept = report.load(tmp_path / "runs" / "trial-shared-queue.jsonl")
    rows = [row for arm in kept.preparation if arm.turn == "slow" for row in arm.requests]
    assert [row.outcome for row in rows] == ["ok", "failed", "failed"]
    assert kept.providers[0].name == "fast" and kept.rounds == []


@pytest.mark.parametrize("lost", ["created", "experiment", "parameters"])
def test_a_header_that_lacks_something_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    stopped(tmp_path, 2000, monkeypatch)
    path = tmp_path / "runs" / "trial-shared-queue.jsonl"
    header, rest = path.read_text("utf-8").split("\n", 1)
    kept = {key: value for key, value in json.loads(header).items() if key != lost}
    path.write_text(json.dumps(kept) + "\n" + rest)
    with pytest.raises((ReportError, ParameterError), match=r"trial-shared-queue\.jsonl"):
        measured(tmp_path, resume=True)
