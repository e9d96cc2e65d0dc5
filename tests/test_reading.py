"""One reading of a report, whoever asks; and the package's public face."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_tables import PUBLISHED, pool_report

import poclib
from poclib import recording
from poclib.errors import ReportError
from poclib.reading import reading, tables
from poclib.reading.reading import of


def test_a_file_is_parsed_again_only_where_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "trial-shared-queue.jsonl"
    path.write_bytes(recording.text(pool_report(rounds=2)))
    first = reading.read(path)
    assert reading.read("trial-shared-queue", tmp_path) is first
    path.write_bytes(recording.text(pool_report(rounds=3)))
    again = reading.read(path)
    assert (len(first.report.rounds), len(again.report.rounds)) == (2, 3)
    content = path.read_bytes()  # as long as before, and written within the same moment
    moment_ns = path.stat().st_mtime_ns
    other = tmp_path / "other"
    other.write_bytes(content.replace(b"<0>", b"<9>"))
    os.utime(other, ns=(moment_ns, moment_ns))
    other.replace(path)
    changed = reading.read(path)
    assert changed is not again and (tables.result(of(changed.report)) or "").startswith("<9>")


def test_what_follows_from_a_report_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    count = reading.headline.headline

    def counted(*given: object) -> object:
        times.append(1)
        return count(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(reading.headline, "headline", counted)
    trial = of(pool_report())
    tables.providers(trial), tables.breakdown(trial), tables.comparison([trial])
    assert trial.headline is trial.headline and times == [1]


def test_the_readings_of_an_experiment_and_of_a_folder(tmp_path: Path) -> None:
    for name, rounds in (("b", 2), ("a", 1)):
        saved = pool_report(rounds=rounds, strategy=name, created=f"2026-11-2{rounds}T12:00:00Z")
        (tmp_path / f"synthetic-{name}.jsonl").write_bytes(recording.text(saved))
    named = [one.report.strategy for one in reading.experiment("synthetic", tmp_path)]
    assert named == ["a", "b"]
    assert [len(one.report.rounds) for one in reading.within(tmp_path)] == [1, 2]
    with pytest.raises(ReportError, match="no report of experiment 'other' is saved"):
        reading.experiment("other", tmp_path)


def test_the_public_face_is_a_dozen_names_that_are_there() -> None:
    names = {name for names in poclib._HOMES.values() for name in names}
    assert names == set(poclib.__all__) <= set(dir(poclib)) and len(names) <= 15
    assert all(getattr(poclib, name) is not None for name in names)
    assert poclib.read(PUBLISHED).headline == of(poclib.load(PUBLISHED)).headline
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        poclib.nothing  # noqa: B018
    declared = ast.walk(ast.parse(Path(poclib.__file__).read_text()))
    typed = {a.name for node in declared if isinstance(node, ast.ImportFrom) for a in node.names}
    assert names <= typed  # for who checks types


def test_importing_the_package_loads_nothing_else() -> None:
    code = (
        "import sys, poclib; print(*(m for m in sys.modules if m.startswith(('poclib.', 'num')))) "
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.replace("numbers", "").split() == []
