"""Reports survive the disk, older ones survive newer ones, and bad files get one sentence."""

import json
from math import inf
from pathlib import Path

import pytest

from poclib import recording
from poclib import report as reports
from poclib.errors import NewerReport, ReportError
from poclib.records import Report, Request, ServerTimings

ROW = {
    "prompt": 0,
    "provider": "local",
    "wall_ms": 12.3456789,
    "marks": {"start_ms": 1 / 3, "end_ms": 100.0},
    "token_ms": [1.23456, 2.0],
    "answer": "née \ud83d [\n 1\n]",  # a lone surrogate, and text that looks like a list
}
LOCAL = {"name": "local", "kind": "fake", "role": "local"}


def rounds(row: dict[str, object]) -> list[dict[str, object]]:
    return [{"index": 0, "arms": [{"arm": "strategy", "strategy": "s", "requests": [row]}]}]


def made(created: str = "2026-11-23T12:00:00Z", **changes: object) -> Report:
    facts: dict[str, object] = {"experiment": "trial", "strategy": "shared-queue", "poclib": "0"}
    facts |= {"created": created, "providers": [LOCAL], "rounds": rounds(ROW)}
    return Report.model_validate({**facts, **changes})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    (tmp_path / "data" / "reports").mkdir(parents=True)
    return tmp_path / "data" / "reports"


def test_a_report_comes_back_as_it_was_saved_a_line_for_each_fact(home: Path) -> None:
    path = recording.save(made())
    assert path == home / "trial-shared-queue.jsonl" and [*home.iterdir()] == [path]
    back = reports.load("trial-shared-queue")
    row = back.rounds[0].arms[0].requests[0]
    assert row.wall_ms == 12.346 and row.marks.start_ms == 0.333  # to the microsecond
    assert row.answer == ROW["answer"] and row.token_ms == [1.235, 2.0]
    first, *_, request, _, last = map(json.loads, path.read_text("utf-8").splitlines())
    assert first["format"] == "poclib-report" and first["experiment"] == "trial"
    assert request["request"]["token_ms"] == [1.235, 2.0] and "queued_ms" not in request["request"]
    assert last["state"]["complete"] and "née" in path.read_text("utf-8")
    recording.save(back)  # a second trip changes nothing at all
    assert reports.load(path) == back
    assert reports.load(str(path)) == reports.load("trial-shared-queue.jsonl") == back


def test_an_older_report_is_moved_aside_never_lost(home: Path) -> None:
    for hour, note in ((12, "a"), (13, "b"), (14, "c"), (14, "d")):
        recording.save(made(f"2026-11-23T{hour}:00:00Z", notes=[note]))
    older = home / "older"
    assert sorted(path.stem for path in older.iterdir()) == [
        "trial-shared-queue-2026-11-23T12-00-00Z",
        "trial-shared-queue-2026-11-23T13-00-00Z",
    ]
    assert reports.load(older / "trial-shared-queue-2026-11-23T12-00-00Z.jsonl").complete
    (home / "trial-shared-queue.jsonl").write_text("half a rep")
    recording.save(made("2026-11-23T15:00:00Z"))
    assert "half a rep" in [path.read_text("utf-8") for path in older.iterdir()]
    assert reports.names() == ["trial-shared-queue"]


def test_a_save_that_fails_leaves_the_old_report(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recording.save(made())
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ReportError, match="No space left on device"):
        recording.save(made("2027-01-01T00:00:00Z"))
    assert path.read_bytes() == before and [*home.iterdir()] == [path]


def test_keys_of_older_reports_that_nothing_reads_any_more_are_dropped(home: Path) -> None:
    given = {"providers": [{"name": "local"}], "arm_limit_s": 60.0}
    use = {"provider": "local", "wall_ms": 1, "cpu_ms": 1, "processes": 1, "threads": 1}
    arm = {"arm": "strategy", "strategy": "s", "cut_ms": 12.0}
    arm["engines"] = [use | {"voluntary_switches": 7}]
    moment = {"at_ms": 1, "load_1min": 0.5, "wall_ahead_ms": 0.1}
    old = {"parameters": given, "moments": [moment], "rounds": [{"index": 0, "arms": [arm]}]}
    (home / "old.json").write_text(changed(**old))
    assert reports.load("old").rounds[0].arms[0].engines[0].threads == 1


def changed(**keys: object) -> str:
    return json.dumps({**made().model_dump(mode="json"), **keys})


BEYOND = rounds({"prompt": 1, "provider": "local"})
PROBE = {"provider": "local", "at_ms": 0, "round_trip_ms": -1}
BAD = [
    ("", "not a report"),
    (changed()[:200], "truncated"),
    ("\x00\x01", "not a report"),
    ("[" * 200_000, "not a report"),
    ('{"format": "poclib-report", "version": Infinity}', "not a report"),
    ("[]", "not a report"),
    ('{"version": 1}', "not a report"),
    (changed(version=10**30), "not a report"),
    (changed(version=None), "version"),
    (changed(version=True), "version"),
    (changed(version=99, a_new_key=1), r"version 99.*update poclib"),
    (changed(rouns=[]), "rouns"),
    ('{"format": "poclib-report", "version": 1}', "experiment is missing"),
    (changed(rounds="many"), "rounds"),
    (changed(probes=[PROBE]), "trip"),
    (changed(providers=[]), "does not list local"),
    (changed(providers=[LOCAL, LOCAL]), "one name"),
    (changed(prompt_sha256=["x"], rounds=BEYOND), "beyond the 1"),
    (changed(rounds=rounds(ROW) * 2), "two rounds have one index"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_file_gets_one_sentence_that_names_it(home: Path, text: str, words: str) -> None:
    (home / "bad.json").write_text(text)
    with pytest.raises(ReportError, match=words) as caught:
        reports.load("bad")
    message = str(caught.value)
    assert message.startswith("data/reports/bad.json") and "\n" not in message
    assert isinstance(caught.value, NewerReport) is ("version 99" in words)


def test_a_huge_file_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recording.save(made())
    monkeypatch.setattr(reports, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(ReportError, match="larger than"):
        reports.load(path)


NOWHERE = ["../secret", "../../etc", "", ".", "a\0b", "x" * 5000, "older/", "xyzzy"]
ABSENT = dict.fromkeys(("trial-shraed-queue", "shared"), "did you mean trial-shared-queue")
ABSENT |= dict.fromkeys(NOWHERE, "there are: trial-shared-queue")


@pytest.mark.parametrize("asked", ABSENT)
def test_an_absent_report_lists_what_there_is_and_no_name_leaves_the_folder(
    home: Path, asked: str
) -> None:
    (home.parent / "secret.json").write_text(changed())
    with pytest.raises(ReportError, match=r"There is no report .*no report is saved yet"):
        reports.load(asked)
    recording.save(made())
    with pytest.raises(ReportError, match=f"There is no report .*{ABSENT[asked]}"):
        reports.load(asked)


def test_the_project_is_found_from_below(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCLIB_HOME")
    monkeypatch.chdir(home)
    assert reports.root() == home.parents[1]
    recording.save(made())
    assert reports.load("data/reports/trial-shared-queue.jsonl").experiment == "trial"


SERVER = {"total_ms": 5.0}
WRONG: list[dict[str, object]] = [
    {"prompt": -1},
    {"prompt": True},
    {"prompt": 10**17},
    {"provider": "../x"},
    {"attempt": 0},
    {"role": "third"},
    {"outcome": "fine"},
    {"wall_ms": -0.001},
    {"wall_ms": 1e300},
    {"wall_ms": "12"},
    {"wal_ms": 1.0},
    {"marks": {"start_ms": -1}},
    {"marks": {"begin_ms": 1}},
    {"server": {"total": 1}},
    {"output_tokens": 1.5},
    {"token_ms": [1.0, None]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_row_that_cannot_be_is_refused_in_either_format(
    home: Path, wrong: dict[str, object], suffix: str
) -> None:
    row = {"prompt": 0, "provider": "local", "wall_ms": 12.0, "server": SERVER}
    path = recording.save(made(rounds=rounds(row)))
    assert reports.load(path).requests[0].over_ms == 7
    whole = {**json.loads(changed()), "version": 2, "rounds": rounds(row | wrong)}
    line = json.dumps({"request": row | wrong}).encode()
    lines = [line if b'"request"' in old else old for old in path.read_bytes().splitlines()]
    path.unlink()
    bad = home / f"bad{suffix}"
    bad.write_bytes(json.dumps(whole).encode() if suffix == ".json" else b"\n".join([*lines, b""]))
    with pytest.raises(ReportError, match=r"rounds|damaged|truncated"):
        reports.load(bad)


def test_a_row_holds_what_is_known_and_no_number_that_is_none(home: Path) -> None:
    """A connection that was opened ahead is told; numbers that no JSON has become null."""
    marks = {"start_ms": 1.0, "ahead_ms": 20.00049}
    row = Request.of({"prompt": 0, "provider": "local", "marks": marks})
    told = json.loads(
        recording.as_bytes({"request": row.model_copy({"server": ServerTimings(load_ms=inf)})})
    )
    assert told["request"] == {
        "prompt": 0,
        "provider": "local",
        "attempt": 1,
        "role": "first",
        "outcome": "ok",
        "marks": {"start_ms": 1.0, "ahead_ms": 20.0},
        "server": {"load_ms": None},
    }
    back = reports.load(recording.save(made(rounds=rounds({**ROW, "marks": marks}))))
    assert back.version == 4 and back.requests[0].marks.ahead_ms == 20.0


@pytest.mark.parametrize("version", [1, 2])
def test_older_formats_are_read_as_they_were(home: Path, version: int) -> None:
    (home / "old.json").write_text(changed(version=version))
    path = recording.save(made())
    first, rest = path.read_bytes().split(b"\n", 1)
    (home / "lines.jsonl").write_bytes(first.replace(b'"version":3', b'"version":2') + b"\n" + rest)
    for name in ("old", "lines"):
        assert reports.load(name).requests[0].marks.start_ms in (1 / 3, 0.333)
