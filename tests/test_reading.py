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
from poclib.reading import reading, tables


def test_a_file_is_parsed_again_only_where_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "trial-shared-queue.jsonl"
    path.write_bytes(recording.text(pool_report(rounds=2)))
    first = reading.read(path)
    assert reading.read("trial-shared-queue", tmp_path) is first is reading.of(first.report)
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
    assert changed is not again and (tables.result(changed.report) or "").startswith("<9>")


def test_what_follows_from_a_report_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    count = reading.headline.headline

    def counted(*given: object) -> object:
        times.append(1)
        return count(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(reading.headline, "headline", counted)
    report = pool_report()
    tables.providers(report), tables.breakdown(report), tables.comparison([report])
    assert tables.headline(report) is reading.of(report).headline and times == [1]
    assert tables.headline(pool_report()) == tables.headline(report)  # alike, and another's
    assert len(times) == 2
    frame = tables.requests(report)
    frame["wall_ms"] = 0.0  # a caller's own
    assert (tables.requests(report)["wall_ms"] > 0).all()


def test_few_readings_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KEPT", 2)
    reports = [pool_report(rounds=1) for _ in range(4)]
    readings = [reading.of(report) for report in reports]
    assert len(reading._readings) == 2 and reading.of(reports[3]) is readings[3]
    assert reading.of(reports[0]) is not readings[0]


def test_the_public_face_is_a_dozen_names_that_are_there() -> None:
    names = {name for names in poclib._HOMES.values() for name in names}
    assert names == set(poclib.__all__) <= set(dir(poclib)) and len(names) <= 15
    assert all(getattr(poclib, name) is not None for name in names)
    assert poclib.read(PUBLISHED).headline == poclib.headline(poclib.load(PUBLISHED))
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
