"""Measured again: from the report alone, held against the first, and unlike ones told apart."""

from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from test_cli import poc as poc
from test_tables import pool_report

from poclib import report
from poclib.errors import ParameterError, ReportError
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading import compare as agreement
from poclib.reading.reading import of
from poclib.records import Report
from poclib.showing import documents
from poclib.stats import Ratio

SAMPLES = Path(__file__).parents[1] / "data" / "reports"
EMBEDDED = {"name": "local", "kind": "embedded"}
OWN = {"name": "shelf", "kind": "openai", "url": "http://10.9.8.7:1", "model": "m"}


@pytest.mark.parametrize(
    ("low", "high", "where"),
    [
        (0.97, 1.04, "inside"),
        (1.06, 1.2, "outside"),
        (0.8, 0.94, "outside"),
        (0.93, 1.0, "across"),
        (None, None, "unknown"),
    ],
)
def test_where_a_change_lies_against_the_band(low: Any, high: Any, where: str) -> None:
    assert agreement.place(Ratio(1.0, low, high, 5), 0.05) == where


# ── a report measured again ─────────────────────────────────────────────────────────────────


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measure on a fake pool whose first machine takes `fast_ms`, and save under `tmp_path`."""
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))
    open_pool, times = experiment.open_pool, {"local": 100.0, "shelf": 200.0}

    def faked(parameters: Parameters, *others: Any) -> Any:
        made = [
            fake.Provider(p.name, times[p.name], cache_defeated=True) for p in parameters.providers
        ]
        return open_pool(parameters, made)

    monkeypatch.setattr(experiment, "open_pool", faked)

    def measure(providers: list[dict[str, Any]], **values: Any) -> Report:
        few = {"experiment": "trial", "strategy": "shared-queue", "prompts": 4, "rounds": 2}
        return experiment.measure(Parameters.read({**few, "providers": providers, **values}))

    measure.times = times  # type: ignore[attr-defined]
    return measure


def test_an_embedded_report_is_all_that_a_rerun_needs(measured: Any, poc: Any) -> None:
    first = measured([EMBEDDED], seed=11, max_tokens=9, band=0.1)
    code, out, _ = poc("rerun", "trial-shared-queue")
    again = report.load("rerun-trial-shared-queue")
    assert code == 0 and out.startswith("The two agree.")
    assert "4 of 4 answers are equal" in out and "verdict of the gate: the same" in out
    assert again.parameters == first.parameters.model_copy(update={"experiment": "rerun-trial"})
    assert again.prompt_sha256 == first.prompt_sha256
    order = [[arm.arm for arm in one.arms] for one in again.rounds]
    assert order == [[arm.arm for arm in one.arms] for one in first.rounds]
    poc("rerun", "rerun-trial-shared-queue")  # of a rerun: no second "rerun-"
    assert set(report.names()) == {"trial-shared-queue", "rerun-trial-shared-queue"}


def test_addresses_come_from_a_file_or_from_set(measured: Any, poc: Any, tmp_path: Path) -> None:
    measured([EMBEDDED, OWN])
    code, _, err = poc("rerun", "trial-shared-queue")
    assert (
        code == 3 and "provider shelf (kind openai) needs a url" in err and "--params FILE" in err
    )
    assert err.count("\n") == 1
    code, _, err = poc("rerun", "trial-shared-queue", "--set", "attic.url=http://10.1.2.3:4")
    assert code == 3 and "attic.url is not a parameter; the providers are: local, shelf" in err
    file = tmp_path / "mine.yaml"
    file.write_text("rounds: 9\nproviders: [{name: shelf, url: 'http://10.1.2.3:4'}]\n")
    code, *_ = poc("rerun", "trial-shared-queue", "--params", str(file))
    assert code == 0 and len(report.load("rerun-trial-shared-queue").rounds) == 2
    saved = tmp_path / "data/reports/rerun-trial-shared-queue.jsonl"
    assert "10.1.2.3" not in saved.read_text("utf-8")
    measured.times["shelf"] = 100.0  # as fast as the other by now
    code, out, _ = poc("rerun", "trial-shared-queue", "--set", "shelf.url=http://10.1.2.3:4")
    assert code == 1 and out.startswith("The two do not agree.")
    assert "they differ beyond the band of 5 %" in out


def test_prompts_that_were_not_stored_must_be_given(measured: Any, poc: Any) -> None:
    measured([EMBEDDED], prompts=["why?", "how?"])
    code, _, err = poc("rerun", "trial-shared-queue")
    assert code == 3 and "its prompts were not stored" in err and "--set prompts=FILE" in err
    assert poc("rerun", "trial-shared-queue", "--set", "prompts=['why?', 'how?']")[0] == 0
    measured([EMBEDDED], prompts=["why?", "how?"], store_text=True)
    assert poc("rerun", "trial-shared-queue")[0] == 0


def test_what_cannot_be_measured_again_says_so(measured: Any) -> None:
    with pytest.raises(ReportError, match="holds no parameters of a run"):
        experiment.again(report.load("published-phase-0", SAMPLES), {}, {})
    first = measured([EMBEDDED])
    with pytest.raises(ParameterError, match="rouns is not a parameter"):
        experiment.again(first, {}, {"rouns": 3})


@pytest.mark.slow
def test_real_engines_measured_again_give_the_same_answers_and_verdict(
    poc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are this machine's own business; that nothing else differs is the rerun's."""
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    few = {"strategy": "shared-queue", "prompts": 3, "rounds": 2, "max_tokens": 4}
    common = {"api": "completion", "slots": 2}
    engines = [{**EMBEDDED, **common}, {"name": "other", "speed": 0.7, **common}]
    first = experiment.measure(
        Parameters.read({"experiment": "trial", **few, "providers": engines, "store_text": True})
    )
    _, out, err = poc("rerun", "trial-shared-queue")
    again = report.load("rerun-trial-shared-queue")
    assert "3 of 3 answers are equal" in out, out + err
    assert [r.prompt for r in again.rounds[0].arms[0].requests] == [0, 1, 2]
    assert agreement.unlike([of(first), of(again)]) == {}
    assert again.ruler is not None and again.ruler.rows  # it checked itself beforehand


# ── several reports ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("where", "value", "key"),
    [
        ("providers.0.digest", "sha256:other", "local: digest"),
        ("providers.1.engine", "another 2.0", "remote: engine"),
        ("providers.1.model", "another", "remote: model"),
        ("prompt_sha256.0", "f" * 64, "prompts"),
        ("gate_max_ratio", 1.5, "gate_max_ratio"),
        ("environment", {"cores": 64}, "coordinator: cores"),
        ("created", "2031-01-01T00:00:00+00:00", None),
        ("strategy", "batched", None),
        ("rounds", [], None),
    ],
)
def test_what_makes_two_experiments_unlike(where: str, value: Any, key: str | None) -> None:
    data = pool_report().model_dump()
    *path, last = [int(step) if step.isdigit() else step for step in where.split(".")]
    reduce(getitem, path, data)[last] = value
    found = agreement.unlike([of(pool_report()), of(Report.model_validate(data))])
    assert list(found) == ([key] if key else [])
    if key:
        assert key in documents.refusal(found) and "--anyway" in documents.refusal(found)
        assert key in documents.differences(found, ["one", "two"])


def test_intervals_too_wide_to_tell_are_not_called_agreement() -> None:
    trial = of(pool_report())
    found = agreement.between(trial, trial)
    assert found.place == "across" and found.agrees  # 0.75 to 0.81 over itself can be 5 % off
    assert found.compared == 0  # its caches may be on, so texts were marked
    said = documents.agreement(trial, trial)
    assert said.startswith("The two do not contra") and "answers were not compared" in said


def test_reports_stand_side_by_side_where_they_are_alike(poc: Any) -> None:
    pair = ("sample-shared-queue", "published-phase-0")
    code, out, err = poc("compare", *pair)
    assert code == 3 and out == "" and "local: kind (embedded / ollama)" in err
    code, out, _ = poc("compare", *pair, "--anyway")
    assert code == 0 and "local: kind" in out and "llama3.2:1b" in out
    names = ["sample-shared-queue", "sample-batched", "sample-shared-queue"]
    code, out, _ = poc("compare", *names)
    rows = out.splitlines()
    assert code == 0 and "are alike in all of them" in rows[-1]
    assert [line.split()[0] for line in rows[2:5]] == names
    assert "1.00 (" in rows[4] and "1.00 (" not in rows[3]
