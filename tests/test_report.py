"""Reports survive the disk, older ones survive newer ones, and bad files get one sentence."""

import json
from pathlib import Path

import pytest

from poclib import recording
from poclib import report as reports
from poclib.errors import NewerReport, PocError, ReportError
from poclib.parameters import Parameters
from poclib.records import Arm, ProviderFacts, Report, Request, RequestMarks, Round, ServerTimings


def made(created: str = "2026-11-23T12:00:00Z", **changes: object) -> Report:
    row = Request(
        prompt=0,
        provider="local",
        wall_ms=12.3456789,
        marks=RequestMarks(start_ms=1 / 3, end_ms=100.0),
        server=ServerTimings(total_ms=10.0),
        token_ms=[1.23456, 2.0],
        answer="née \ud83d [\n 1\n]",  # a lone surrogate, and text that looks like a list
    )
    facts: dict[str, object] = {
        "experiment": "trial",
        "strategy": "shared-queue",
        "created": created,
        "poclib": "0.1.0",
        "providers": [ProviderFacts(name="local", kind="fake", role="local")],
        "rounds": [
            Round(index=0, arms=[Arm(arm="strategy", strategy="shared-queue", requests=[row])])
        ],
    }
    return Report.model_validate({**facts, **changes})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    (tmp_path / "data" / "reports").mkdir(parents=True)
    return tmp_path / "data" / "reports"


def test_a_report_comes_back_as_it_was_saved(home: Path) -> None:
    path = recording.save(made())
    assert path == home / "trial-shared-queue.jsonl"
    back = reports.load("trial-shared-queue")
    row, was = back.rounds[0].arms[0].requests[0], made().rounds[0].arms[0].requests[0]
    assert row.wall_ms == 12.346 and row.marks.start_ms == 0.333  # to the microsecond
    assert row.answer == was.answer and row.token_ms == [1.235, 2.0]
    recording.save(back)  # a second trip changes nothing at all
    assert reports.load(path) == back
    assert reports.load(str(path)) == reports.load("trial-shared-queue.jsonl") == back


def test_the_file_is_a_line_for_each_fact(home: Path) -> None:
    lines = recording.save(made()).read_text("utf-8").splitlines()
    first, *_, row, _, last = map(json.loads, lines)
    assert first["format"] == "poclib-report" and first["experiment"] == "trial"
    assert row["request"]["token_ms"] == [1.235, 2.0] and "queued_ms" not in row["request"]
    assert last["state"]["complete"] and "née" in "".join(lines)
    assert sorted(p.name for p in home.iterdir()) == ["trial-shared-queue.jsonl"]


def test_an_older_report_is_moved_aside_never_lost(home: Path) -> None:
    for hour, note in ((12, "a"), (13, "b"), (13, "c"), (14, "d"), (14, "d")):
        recording.save(made(f"2026-11-23T{hour}:00:00Z", notes=[note]))
    older = home / "older"
    assert sorted(path.name for path in older.iterdir()) == [
        "trial-shared-queue-2026-11-23T12-00-00Z.jsonl",
        "trial-shared-queue-2026-11-23T13-00-00Z-2.jsonl",
        "trial-shared-queue-2026-11-23T13-00-00Z.jsonl",
    ]
    assert reports.load(older / "trial-shared-queue-2026-11-23T12-00-00Z.jsonl").complete
    (home / "trial-shared-queue.jsonl").write_text("half a rep")
    recording.save(made("2026-11-23T15:00:00Z"))
    assert "half a rep" in [path.read_text("utf-8") for path in older.iterdir()]
    assert reports.names() == ["trial-shared-queue"]


def test_a_growing_run_leaves_no_litter(home: Path) -> None:
    recording.save(made(complete=False))
    recording.save(made(complete=False, notes=["a round more"]))
    recording.save(made())
    assert reports.names() == ["trial-shared-queue"] and not (home / "older").exists()


def test_a_failed_save_leaves_the_old_report(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = recording.save(made()).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ReportError, match="No space left on device"):
        recording.save(made("2027-01-01T00:00:00Z"))
    assert (home / "trial-shared-queue.jsonl").read_bytes() == before
    assert len(list(home.iterdir())) == 1


def test_addresses_keys_and_prompt_files_never_reach_the_disk(home: Path) -> None:
    settings = {
        "name": "local",
        "kind": "ollama",
        "url": "http://10.1.2.3:11434",
        "model": "m",
        "api_key_env": "MY_KEY",
    }
    for prompts in ("/home/me/prompts.txt", ["a secret question", "another"]):
        parameters = Parameters.read({"providers": [settings], "prompts": prompts})
        report = made(parameters=parameters, prompt_sha256=["a", "b"])
        text = recording.save(report).read_text("utf-8")
        assert not any(word in text for word in ("10.1.2.3", "MY_KEY", "/home", "secret"))
        back = reports.load("trial-shared-queue")  # readable although the address is gone
        assert back.parameters is not None and back.parameters.prompts == 2
        assert back.parameters.providers[0].kind == "ollama"


def changed(**keys: object) -> str:
    return json.dumps({**made().model_dump(mode="json"), **keys})


BEYOND = [{"prompt": 1, "provider": "local"}]
BAD = {
    "empty": ("", "not a report"),
    "truncated": (changed()[:200], "truncated"),
    "binary": ("\x00\x01", "not a report"),
    "nested": ("[" * 200_000, "not a report"),
    "infinite": ('{"format": "poclib-report", "version": Infinity}', "not a report"),
    "a list": ("[]", "not a report"),
    "other JSON": ('{"version": 1}', "not a report"),
    "a huge number": (changed(version=10**30), "not a report"),
    "no version": (changed(version=None), "version"),
    "true version": (changed(version=True), "version"),
    "unknown key": (changed(rouns=[]), "rouns"),
    "missing key": (json.dumps({"format": "poclib-report", "version": 1}), "experiment is missing"),
    "wrong type": (changed(rounds="many"), "rounds"),
    "negative": (changed(probes=[{"provider": "local", "at_ms": 0, "round_trip_ms": -1}]), "trip"),
    "stranger": (changed(providers=[]), "does not list local"),
    "twins": (changed(providers=made().model_dump()["providers"] * 2), "one name"),
    "beyond": (
        changed(
            prompt_sha256=["x"],
            rounds=[
                {"index": 0, "arms": [{"arm": "strategy", "strategy": "s", "requests": BEYOND}]}
            ],
        ),
        "beyond the 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_gets_one_sentence_that_names_it(home: Path, case: str) -> None:
    text, words = BAD[case]
    (home / "bad.json").write_text(text)
    with pytest.raises(ReportError, match=words) as caught:
        reports.load("bad")
    message = str(caught.value)
    assert message.startswith("data/reports/bad.json") and "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert isinstance(caught.value, PocError) and caught.value.exit_code != 0


def test_a_newer_report_says_so_whatever_else_it_holds(home: Path) -> None:
    (home / "new.json").write_text(changed(version=99, a_new_key=1))
    with pytest.raises(NewerReport, match=r"version 99.*update poclib"):
        reports.load("new")


def test_a_huge_file_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reports.MAX_BYTES == 256 * 1024 * 1024
    path = recording.save(made())
    monkeypatch.setattr(reports, "MAX_BYTES", path.stat().st_size)
    assert reports.load(path).experiment == "trial"
    monkeypatch.setattr(reports, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(ReportError, match="larger than"):
        reports.load(path)


def test_an_absent_report_lists_what_there_is_and_suggests(home: Path) -> None:
    with pytest.raises(ReportError, match="no report is saved yet"):
        reports.load("anything")
    recording.save(made())
    with pytest.raises(ReportError, match="did you mean trial-shared-queue"):
        reports.load("trial-shraed-queue")
    with pytest.raises(ReportError, match="did you mean trial-shared-queue"):
        reports.load("shared")
    with pytest.raises(ReportError, match="there are: trial-shared-queue"):
        reports.load("xyzzy")


@pytest.mark.parametrize("asked", ["../secret", "../../etc", "", ".", "a\0b", "x" * 5000, "older/"])
def test_a_name_cannot_leave_the_folder(home: Path, asked: str) -> None:
    (home.parent / "secret.json").write_text(changed())
    with pytest.raises(ReportError, match="There is no report"):
        reports.load(asked)


def test_the_project_is_found_from_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POCLIB_HOME", raising=False)
    (tmp_path / "data" / "reports").mkdir(parents=True)
    below = tmp_path / "notebooks" / "deep"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert reports.root() == tmp_path
    recording.save(made())
    assert reports.load("data/reports/trial-shared-queue.jsonl").experiment == "trial"
