"""A run stopped at any moment goes on with exactly what is missing, and nothing is lost."""

import errno
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_experiment import PREPARED_MS, ROUND_MS, cut_at, every_row, measured, two
from test_experiment import on_a_fake_clock as on_a_fake_clock

from poclib import recording, report
from poclib.errors import ParameterError, ReportError, RunFailed, UnlikeProviders
from poclib.providers import fake
from poclib.reading.reading import of
from poclib.recording import ReportFile
from poclib.records import Report, Request
from poclib.showing import warnings as cautions

FILE = Path("runs", "trial-shared-queue.jsonl")
IN_ROUND_TWO_MS = PREPARED_MS + ROUND_MS + 1150  # its strategy is whole, its baseline runs


def key(row: Request) -> str:
    """The row with its times to the microsecond, as a report holds them."""
    return recording.as_bytes({"request": row}).decode()


def once_each(found: Report) -> None:
    """Three whole rounds, in which each arm has one answer to each of six prompts."""
    assert found.complete and [one.index for one in found.rounds] == [0, 1, 2]
    for one in found.rounds:
        assert sorted(arm.arm for arm in one.arms) == ["baseline", "strategy"]
        for arm in one.arms:
            assert sorted(row.prompt for row in arm.requests if row.outcome == "ok") == [*range(6)]


def finished_and_not_removed(folder: Path) -> Report:
    """A finished run that was killed just before it removed its file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        return measured(folder)


# ── going on ────────────────────────────────────────────────────────────────────────────────


def test_a_run_cut_at_any_byte_goes_on_and_keeps_every_row_once(tmp_path: Path) -> None:
    """A kill leaves any beginning of the file: tried at 33 places, and again where it went on."""
    finished_and_not_removed(tmp_path / "whole")
    text = (tmp_path / "whole" / FILE).read_bytes()
    draw = random.Random(6)
    for place in [0, 1, len(text), *(draw.randrange(len(text)) for _ in range(30))]:
        path = tmp_path / str(place) / FILE
        path.parent.mkdir(parents=True)
        path.write_bytes(text[:place])
        lines = [json.loads(line) for line in text[:place].split(b"\n")[:-1]]
        before = [Request.of(x["request"]) for x in lines if "request" in x]
        pool = two()
        found = measured(tmp_path / str(place), pool, resume=True)
        once_each(found)
        rows = Counter(map(key, every_row(found)))
        assert set(rows.values()) == {1}
        assert {key(row) for row in before} <= rows.keys(), "a row that was on disk is lost"
        # Work is done again only where a round was cut, or the engines are to be warmed.
        needed = 2 * (1 + 2) + 3 * (2 * 6 + 2)
        cut = sum(len(arm.requests) for one in found.cut for arm in one.arms)
        warmed = sum(len(a.requests) for a in found.preparation if a.arm == "warm-up") - 2
        assert sum(len(p.seen) for p in pool) == needed - len(before) + cut + warmed
        assert not path.exists()
        assert report.load("trial-shared-queue", tmp_path / str(place)) == found


def test_a_cut_round_is_repeated_whole_and_its_rows_are_marked(tmp_path: Path) -> None:
    first, second = two(), two()
    partial = cut_at(IN_ROUND_TWO_MS, tmp_path, first)
    assert not partial.complete and [one.index for one in partial.rounds] == [0]
    found = measured(tmp_path, second, resume=True)
    once_each(found)
    assert found.rounds[0] == partial.rounds[0]
    assert found.cut == partial.cut and [one.index for one in found.cut] == [1]
    outcomes = Counter(row.outcome for arm in found.cut[0].arms for row in arm.requests)
    assert outcomes["ok"] >= 1 and outcomes["cancelled"] >= 1
    assert found.created == partial.created and len(found.resumed_ms) == 1
    # Its clock went on: nothing of the second session lies before the stop.
    last_ms = max(row.marks.end_ms or 0 for row in every_row(partial))
    later = [row for one in found.rounds[1:] for arm in one.arms for row in arm.requests]
    assert min(row.marks.start_ms or 0 for row in later) >= last_ms
    reading = of(found)
    assert reading.headline.requests == 3 * 2 * 6  # the cut round counts nowhere
    (said,) = [one for one in cautions.warnings(reading) if "repeated whole" in one]
    assert "of round 2, which was cut" in said and f"{outcomes.total()} requests" in said
    # A server's prompt cache may hold what was sent before the stop.
    before = {prompt.text for provider in first for prompt in provider.seen}
    assert not before & {prompt.text for provider in second for prompt in provider.seen}


def test_a_finished_run_is_not_run_again_unless_it_was_another(tmp_path: Path) -> None:
    done = finished_and_not_removed(tmp_path)
    pool, path = two(), tmp_path / FILE
    assert path.exists() and measured(tmp_path, pool, resume=True) == done
    assert not path.exists()
    assert measured(tmp_path, pool, resume=True, run_limit_s=9.0) == done
    assert not any(provider.seen for provider in pool)
    again = measured(tmp_path, pool, resume=True, prompts=3)
    assert any(provider.seen for provider in pool) and len(again.prompt_sha256) == 3
    assert measured(tmp_path, prompts=3).created != again.created  # without resume: anew


def test_a_stopped_run_goes_on_although_an_earlier_one_was_finished(tmp_path: Path) -> None:
    earlier = measured(tmp_path)
    cut_at(600, tmp_path, two())  # before its first round, so that no report replaced it
    assert report.load("trial-shared-queue", tmp_path) == earlier
    found = measured(tmp_path, resume=True)
    once_each(found)
    assert found.created != earlier.created and len(found.resumed_ms) == 1
    assert not (tmp_path / FILE).exists()


def test_what_cannot_be_gone_on_with_is_refused_and_kept_aside_by_a_new_run(
    tmp_path: Path,
) -> None:
    cut_at(2000, tmp_path, two())
    left = (tmp_path / FILE).read_bytes()
    with pytest.raises(ParameterError, match=r"other parameters \(max_tokens, rounds\)"):
        measured(tmp_path, resume=True, rounds=4, max_tokens=5)
    with pytest.raises(ParameterError, match="prompts"):
        measured(tmp_path, resume=True, prompts=[*"abcdef"])
    with pytest.raises(UnlikeProviders, match="fast is not what it was before the stop"):
        measured(tmp_path, [fake.Provider("fast", 100, digest="fake:2")], resume=True)
    (tmp_path / FILE).write_bytes(left)
    once_each(measured(tmp_path))
    (aside,) = (tmp_path / "runs").glob("trial-shared-queue.*.jsonl")
    assert aside.read_bytes() == left
    aside.rename(tmp_path / FILE)
    once_each(measured(tmp_path, resume=True, run_limit_s=60.0))  # a longer limit is no other run


class Restarted(fake.Provider):
    """Somebody loads another model into it after so many requests."""

    after = 6

    async def describe(self) -> Any:
        if len(self.seen) > self.after:
            self.digest = "fake:9"
        return await super().describe()


CHANGED = "provider slow was changed during the run (digest fake:1, now fake:9)"


def test_a_model_that_was_changed_ends_the_run_and_is_noted_after_the_last_round(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunFailed) as caught:
        measured(tmp_path, [fake.Provider("fast", 100), Restarted("slow", 160)])
    assert str(caught.value).startswith(f"round 2 of 3, baseline: {CHANGED}")
    saved = report.load("trial-shared-queue", tmp_path)
    assert not saved.complete and [one.index for one in saved.rounds] == [0]
    (cut,) = saved.cut  # no ratio is made of it, and its rows are there
    assert cut.index == 1 and {row.outcome for arm in cut.arms for row in arm.requests} == {"ok"}
    first, slow = [fake.Provider("slow", 160), fake.Provider("fast", 100)], Restarted("slow", 160)
    measured(tmp_path / "after", first)
    slow.after = len(first[0].seen) - 1  # its last request is the calibration after the last round
    found = measured(tmp_path / "after", [slow, fake.Provider("fast", 100)])
    assert found.complete and len(found.rounds) == 3 and CHANGED in found.notes[0]
    said = cautions.warnings(of(found))
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
    runs, pool = tmp_path / "runs", two()
    env = {**os.environ, "PYTHONPATH": str(Path(recording.__file__).parents[1])}
    command, pipe = [sys.executable, "-c", HOLD, str(runs)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=env) as first:
        assert first.stdout and first.stdout.readline() == b"held\n"
        with pytest.raises(ReportError, match=rf"another run \(process {first.pid}\)"):
            measured(tmp_path, pool)
        assert not any(provider.seen for provider in pool)
        first.kill()  # it cannot clean anything up
    assert measured(tmp_path).complete


# ── the file ────────────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_written_is_told_in_a_sentence_and_other_trouble_is_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("in the way")
    sentence = r"^x\.jsonl could not be written: .*; free"
    log = ReportFile(tmp_path / "file" / "x.jsonl")
    with pytest.raises(ReportError, match=sentence), log.open():
        pytest.fail("it cannot have been opened")
    with pytest.raises(ReportError, match="could not be written"):
        measured(tmp_path / "file")
    with pytest.raises(ConnectionResetError), ReportFile(tmp_path / "x.jsonl").open():
        raise ConnectionResetError("not the file's")


class Full:
    """A file on a disk that has room for so many bytes more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written: int = self.file.write(data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 400, 5000])
def test_a_disk_that_fills_up_in_a_run_loses_nothing_earlier_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    write = ReportFile.write

    def on_a_small_disk(self: ReportFile, row: Any) -> None:
        if self._file is not None and self.bytes > 2000 and not isinstance(self._file, Full):
            self._file = Full(self._file, room)  # type: ignore[assignment]
        write(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(ReportFile, "write", on_a_small_disk)
        with pytest.raises(ReportError, match="No space left on device"):
            measured(tmp_path)
    text = (tmp_path / FILE).read_bytes()
    assert text.endswith(b"\n") and 2000 < len(text) <= 2000 + room + 1500
    once_each(measured(tmp_path, resume=True))


HEAD = (
    b'{"format": "poclib-report", "version": 2, "experiment": "x", "strategy": "batched", '
    b'"created": "2026-11-26T00:00:00Z", "poclib": "0"}\n'
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "is empty"),
        (HEAD + b'{"end": {}}\n{}\n', "line 2 is damaged"),
        (HEAD + b"{}\n" + HEAD, "line 2 is damaged"),
        (HEAD + b'{"probe": {"provider": "../x", "at_ms": 1, "round_trip_ms": 1}}\n', "line 2 is"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, text: bytes, sentence: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(text)
    with pytest.raises(ReportError, match=sentence) as caught:
        report.load(tmp_path / "x.jsonl")
    assert "x.jsonl" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("lost", ["created", "experiment", "parameters"])
def test_a_header_that_lacks_something_is_one_sentence(tmp_path: Path, lost: str) -> None:
    cut_at(2000, tmp_path, two())
    header, rest = (tmp_path / FILE).read_text("utf-8").split("\n", 1)
    kept = {key: value for key, value in json.loads(header).items() if key != lost}
    (tmp_path / FILE).write_text(json.dumps(kept) + "\n" + rest)
    with pytest.raises((ReportError, ParameterError), match=r"trial-shared-queue\.jsonl"):
        measured(tmp_path, resume=True)
