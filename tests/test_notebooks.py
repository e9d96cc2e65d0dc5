"""The notebooks: what they declare, that they are fed by files, and that they run."""

from __future__ import annotations

import ast
import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill

from poclib import Parameters, cli, read, report, suite
from poclib.measure.strategies import STRATEGIES
from poclib.showing import notebooks as publish

ROOT = report.root()
NOTEBOOKS = publish.notebooks()
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _cells(path: Path, kind: str = "code") -> list[Any]:
    cells = nbformat.read(path, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == kind]


def _is_parameters(cell: Any) -> bool:
    return "parameters" in cell.metadata.get("tags", [])


def test_a_run_executes_one_notebook_for_each_strategy_and_the_others_once() -> None:
    tasks = suite.tasks(publish.notebooks(pattern="[01]*"), list(STRATEGIES))
    assert {task.notebook for task in tasks} == {n for n in NOTEBOOKS if n.name < "2"}
    titles = {task.name: task.title for task in tasks if task.strategy}
    assert len(titles) == len(STRATEGIES) and list(titles) == sorted(titles)
    numbers = [task.name.partition("_")[0] for task in tasks]
    assert len({*numbers}) == len(numbers), "no page takes another's place in the order"
    assert titles["03e_shared_queue.ipynb"] == STRATEGIES["shared-queue"].question
    # Only those that were measured have a page.
    assert [task.strategy for task in suite.tasks(NOTEBOOKS, ["batched"])].count("batched") == 1


def test_the_strategies_notebook_declares_every_parameter_with_help() -> None:
    path = publish.strategy_notebook()
    declared = publish.declared(path)
    assert set(declared) == set(Parameters.model_fields) - {"notebooks", "serve"} | {"live"}
    (cell,) = filter(_is_parameters, _cells(path))
    defaults: dict[str, Any] = {}
    exec(compile(cell.source, path.name, "exec"), defaults)
    assert defaults["live"] is False and defaults["experiment"] == "sample"
    example = cli.read_yaml(ROOT / "params" / "embedded.yaml") | {"experiment": "sample"}
    assert defaults == defaults | example, "a live run measures what ./run-poc.sh measures"
    assert publish.title(path) == STRATEGIES[defaults["strategy"]].question


@each
def test_a_notebook_is_a_thin_conversation(path: Path) -> None:
    body = [cell for cell in _cells(path) if not _is_parameters(cell)]
    kinds = {type(node) for cell in body for node in ast.walk(ast.parse(cell.source))}
    assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}
    lines = [line for cell in body for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 36
    assert '"papermill"' not in path.read_text("utf-8"), "run times are stripped before committing"
    assert not any("execution" in cell.metadata for cell in _cells(path))


@each
def test_a_notebook_asks_answers_and_names_its_limits(path: Path) -> None:
    """Question, answer and one chart; evidence; how far to trust it; the glossary."""
    texts = [cell.source for cell in _cells(path, "markdown")]
    question, *about = texts[0].splitlines()
    assert question.startswith("# ") and "?" in question
    if path.name > "01":  # the first page is a table of contents
        assert len(list(filter(None, about))) <= 1, "at most one line below it"
        shown = [kind for cell in nbformat.read(path, 4).cells for kind in _shown(cell)]
        parts = [kind for kind in shown if kind.startswith("## ")]
        assert parts == ["## Evidence", "## How far to trust it"]
        title = ["# "] if path == publish.strategy_notebook() else []
        assert shown[: len(title) + 4] == ["# ", *title, "text", "chart", "## Evidence"]
        assert shown[-1] == "glossary" and shown.count("glossary") == 1
    headings = re.findall(r"^##+ (.*)$", "\n".join(texts), re.M)
    assert set(headings) >= {"Checks", "What this does not show", "Try"}
    # Names of parameters and notebooks go, and what is no result.
    harmless = r"`[^`]*`|Phase [01]|below 1|Left of 1|from 1|to 1\b|1:"
    loose = re.findall(r".*\d.*", re.sub(harmless, "", "\n".join(texts)))
    assert loose == [], "a number in prose is computed, or it will be wrong one day"


def _shown(cell: Any) -> list[str]:
    """What a reader meets in a cell: headings, an answer, a chart, or the glossary."""
    if cell.cell_type == "markdown":
        heads = re.findall(r"^#{1,2} .*$", cell.source, re.M)
        return [head if head.startswith("## ") else "# " for head in heads]
    kinds = []
    for output in cell.outputs:
        data = output.get("data", {})
        text = data.get("text/markdown", "")
        known = (("glossary", "Glossary:" in text[:40]), ("# ", text.startswith("# ")))
        named = next((kind for kind, holds in known if holds), "text")
        kinds.append("chart" if "image/png" in data else named)
    return kinds


@each
def test_no_output_shows_plumbing(path: Path) -> None:
    """A bare None, the repr of an object, or a text that only a programmer reads."""
    for output in (output for cell in _cells(path) for output in cell.outputs):
        data = output.get("data", {})
        assert set(data) & {"text/markdown", "text/html", "image/png", publish.WIDGET}, data
        text = data.get("text/markdown", "")
        assert not re.search(r"\bNone\b(?! was)|\bnan\b|<[\w.]+ object|[{}]|\w+\(\)", text) or (
            text.startswith("```python")
        )


def test_the_published_figures_are_held_against_the_published_rows() -> None:
    """By hand: 9.6 s are 28 times 340 ms, and the 60.4 ms are of a local row."""
    (path,) = publish.notebooks("11*")
    shown = "\n".join(
        output.data["text/markdown"]
        for cell in _cells(path)
        for output in cell.outputs
        if "text/markdown" in output.get("data", {})
    )
    follows = dict(re.findall(r"^\| ([a-z].*?) +\|.*\| (yes|no) +\|$", shown, re.M))
    assert list(follows.values()) == ["yes"] * 5 + ["no"] * 2
    assert "5 of 7 published figures follow from the rows" in shown
    assert re.search(r"most added latency, remote [(]ms[)] +\| 60 +\| 30\.2 ", shown)
    assert re.search(r"at least[)] +\| 17 +\| 28\.2 ", shown)
    assert "What took 60 ms, by the rows: local request." in shown


@each
def test_papermill_shows_its_parameters_as_help(path: Path) -> None:
    shown = CliRunner().invoke(papermill, ["--help-notebook", str(path)])
    told = " ".join(shown.output.split())
    assert shown.exit_code == 0 and "Parameters inferred for notebook" in told
    declared = publish.declared(path)
    assert declared, "a notebook without a parameter cannot be tried"
    for name, one in declared.items():
        assert one["inferred_type_name"] != "None"
        assert f"{name}: {one['inferred_type_name']} (default" in told
        assert len(one["help"]) > 10 and " ".join(one["help"].split()) in told, name


@each
def test_every_chart_is_kept_in_two_formats_and_says_its_finding(path: Path) -> None:
    outputs = [output for cell in _cells(path) for output in cell.outputs]
    charts = [output for output in outputs if "image/png" in output.get("data", {})]
    assert charts
    for chart in charts:
        svg = chart.data["image/svg+xml"]
        title = chart.metadata["image/png"]["alt"].partition(". ")[0]
        drawn = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
        assert html.escape(title, quote=False) in " ".join(drawn.split()), "as drawn over it"
        assert "dc:date" not in svg, "the same figure gives the same file"


@pytest.mark.slow
def test_committed_outputs_are_what_the_committed_reports_give() -> None:
    """nbval, strict: claims are text, so they are compared."""
    nbval = ["pytest", "-p", "no:cacheprovider", "--nbval", "notebooks"]
    command = [sys.executable, "-m", *nbval, "--nbval-sanitize-with", "tests/nbval.cfg"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400).stdout
    cells = sum(len(_cells(path)) for path in NOTEBOOKS)
    assert f"{cells} passed" in told and "failed" not in told, told[-3000:]


@pytest.mark.slow
def test_a_notebook_measures_live_on_the_embedded_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "reports").mkdir(parents=True)
    notebook, target = publish.strategy_notebook(), tmp_path / "done.ipynb"
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    values = {"live": True, "rounds": 2, "prompts": 3, "max_tokens": 8}
    with publish.Kernel() as kernel:
        kernel.execute(notebook, target, values)
    reading = read("live-shared-queue")
    order = [[arm.arm for arm in round_.arms] for round_ in reading.report.rounds]
    assert order == [["baseline", "strategy"], ["strategy", "baseline"]]
    rows = reading.report.requests
    assert len(rows) == 12 and all(r.outcome == "ok" and r.output_tokens == 8 for r in rows)
    assert reading.report.complete and reading.headline.answers_equal.compared == 6
    text = target.read_text("utf-8")
    assert "req/s" not in text and str(tmp_path) not in text
