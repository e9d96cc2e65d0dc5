"""Many reports as one table: each is read once, until the file or poclib is another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_tables import pool_report

import poclib
from poclib import recording, report
from poclib.reading import many, reading
from poclib.showing import documents

SAMPLES = report.root() / "data" / "reports"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own with five of the samples."""
    folder = tmp_path / "data" / "reports"
    folder.mkdir(parents=True)
    for path in sorted(SAMPLES.glob("sample-*.jsonl"))[:5]:
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    return folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read whole, from now on."""
    names: list[str] = []
    load = report.load_file

    def seen(path: Path) -> poclib.Report:
        names.append(path.stem)
        return load(path)

    monkeypatch.setattr(report, "load_file", seen)
    return names


def test_the_table_says_what_each_report_says(home: Path) -> None:
    frame = poclib.read_many()
    assert list(frame["name"]) == report.names(home)
    for row in frame.itertuples():
        one = reading.read(str(row.name)).headline
        assert (row.ratio, row.ratio_low, row.ratio_high, row.rounds) == (
            one.overhead_ratio.median,
            one.overhead_ratio.low,
            one.overhead_ratio.high,
            one.overhead_ratio.rounds,
        )
        assert (row.verdict, row.makespan_ms, row.requests) == (
            one.verdict,
            one.makespan_ms,
            one.requests,
        )
        assert row.file == f"data/reports/{row.name}.jsonl" and row.providers == "local, remote"


def test_a_list_made_of_rows_is_the_one_made_of_reports(home: Path) -> None:
    rows = documents.saved(pytest.fail)
    assert documents.listing(rows) == documents.listing(documents.entries())
    assert documents.listing(documents.saved(pytest.fail)) == documents.listing(rows)


def test_each_is_read_once_until_it_changes_or_goes(home: Path, read: list[str]) -> None:
    first = poclib.read_many()
    assert len(read) == 5
    assert poclib.read_many().equals(first) and len(read) == 5, "the second time from what is kept"
    few = poclib.read_many("data/reports/*-shared-queue.jsonl")
    assert len(few) <= 1 and len(read) == 5, "whatever the pattern"
    read.clear()
    changed, gone = [home / f"{name}.jsonl" for name in report.names(home)[:2]]
    changed.write_bytes(recording.text(pool_report(rounds=3)))
    gone.unlink()
    now = poclib.read_many()
    assert read == [changed.stem] and len(now) == 4
    assert now[now["name"] == changed.stem]["experiment"].tolist() == ["synthetic"]
    kept = json.loads((home / many.KEPT).read_bytes())
    assert sorted(kept[1]) == sorted(path.name for path in home.glob("*.jsonl"))


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '["x", {"a": [1]}]', "[" * 100_000, '["", 7]', "\0\udcff"]
)
def test_what_is_kept_may_be_damaged_or_of_another_poclib(
    home: Path, read: list[str], damage: str
) -> None:
    first = poclib.read_many()
    kept, whole = home / many.KEPT, (home / many.KEPT).read_bytes()
    kept.write_bytes(damage.encode("utf-8", "surrogateescape"))
    read.clear()
    assert poclib.read_many().equals(first) and len(read) == 5
    assert kept.read_bytes() == whole, "and it is whole again"
    other = json.loads(whole)
    kept.write_text(json.dumps(["of another poclib", other[1]]))
    assert poclib.read_many().equals(first) and len(read) == 10
    assert [path.name for path in home.glob(".*")] == [many.KEPT], "nothing else is left there"


def test_an_unreadable_report_is_told_and_the_others_are_listed(home: Path) -> None:
    (home / "bad.jsonl").write_text("no report\n")
    told: list[str] = []
    assert len(poclib.read_many(passed_over=told.append)) == 5
    assert len(told) == 1 and "bad.jsonl is not a report" in told[0]


def test_where_nothing_can_be_written_nothing_is_kept(home: Path, read: list[str]) -> None:
    (home / many.KEPT).mkdir()  # a folder in its place, which no file can replace
    assert len(poclib.read_many()) == len(poclib.read_many()) == 5 and len(read) == 10


def test_what_was_read_is_kept_when_a_person_stops_it(
    home: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = report.load_file

    def stopped(path: Path) -> poclib.Report:
        if len(read) == 3:
            raise KeyboardInterrupt
        return load(path)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(report, "load_file", stopped)
        poclib.read_many()
    read.clear()
    assert len(poclib.read_many()) == 5 and len(read) == 2


def test_simulated_points_are_rows_with_their_values_as_columns(home: Path) -> None:
    for seed in (1, 2):
        point = {
            "scenario": {"seed": seed, "churn": {"up_s": 60}},
            "result": {"p95_ms": 10.5 * seed},
        }
        path = home.parent / "runs" / "grid" / f"p{seed}" / f"p{seed}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"format": report.SIMULATED, **point}))
    (home.parent / "runs" / "grid" / "sweep.json").write_text("{}")
    frame = poclib.read_many("data/runs/grid/**/*.json*")
    assert list(frame["scenario.seed"]) == [1, 2] and list(frame["result.p95_ms"]) == [10.5, 21]
    assert list(frame["scenario.churn.up_s"]) == [60, 60] and frame["ratio"].isna().all()
    assert (home.parent / "runs" / "grid" / many.KEPT).exists(), "beside them"


def test_git_never_sees_what_is_kept() -> None:
    ignored = (report.root() / ".gitignore").read_text("utf-8").splitlines()
    assert many.KEPT in ignored
