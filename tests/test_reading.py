"""One reading of a report, whoever asks; and the package's public face."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from test_tables import PUBLISHED, pool_report

import poclib
from poclib import recording, report
from poclib.errors import ReportError
from poclib.reading import reading
from poclib.reading.reading import of


def test_what_follows_from_a_report_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[int] = []
    count = reading.headline.headline

    def counted(given: reading.Reading) -> object:
        times.append(1)
        return count(given)

    monkeypatch.setattr(reading.headline, "headline", counted)
    trial = of(pool_report())
    assert trial.headline is trial.headline and trial.requests is trial.requests and times == [1]


def test_the_readings_of_an_experiment_and_of_a_folder(tmp_path: Path) -> None:
    for name, rounds in (("b", 2), ("a", 1)):
        saved = pool_report(rounds=rounds, strategy=name, created=f"2026-11-2{rounds}T12:00:00Z")
        (tmp_path / f"synthetic-{name}.jsonl").write_bytes(recording.text(saved))
    named = reading.experiment("synthetic", tmp_path)
    assert [one.report.strategy for one in named] == ["a", "b"]
    assert reading.within(tmp_path) == named, "each file is read once"
    (tmp_path / "synthetic-b.jsonl").write_bytes(recording.text(pool_report(3, "b")))
    kept, changed = reading.experiment("synthetic", tmp_path)
    assert kept is named[0] and len(changed.report.rounds) == 3
    with pytest.raises(ReportError, match="no report of experiment 'other' is saved; there are: s"):
        reading.experiment("other", tmp_path)
    with pytest.raises(ReportError, match="holds no report"):
        reading.within(tmp_path / "empty")


def test_the_public_face_is_a_dozen_names_that_are_there() -> None:
    names = {name for names in poclib._HOMES.values() for name in names}
    assert names == set(poclib.__all__) <= set(dir(poclib)) and len(names) <= 15
    assert all(getattr(poclib, name) is not None for name in names)
    assert poclib.read(PUBLISHED).headline == of(report.load(PUBLISHED)).headline
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        poclib.nothing  # noqa: B018
    declared = ast.walk(ast.parse(Path(poclib.__file__).read_text()))
    typed = {a.name for node in declared if isinstance(node, ast.ImportFrom) for a in node.names}
    assert names <= typed  # for who checks types


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import poclib", ("poclib.", "numpy", "pandas")),
        ("import poclib; poclib.read('sample-shared-queue').headline", ("numpy", "pandas")),
    ],
)
def test_nothing_is_loaded_that_is_not_needed(code: str, unwanted: tuple[str, ...]) -> None:
    """So that `poc gate` answers at once."""
    code = f"import sys; {code}; print(*(m for m in sys.modules if m.startswith({unwanted})))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []
