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
    assert titles["06_shared_queue.ipynb"] == STRATEGIES["shared-queue"].question
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
    """The bottom line stands before every picture, and no static sentence holds a result."""
    texts = [cell.source for cell in _cells(path, "markdown")]
    headings = re.findall(r"^## (.*)$", "\n".join(texts), re.M)
    assert texts[0].startswith("# ") and "?" in texts[0].splitlines()[0]
    assert set(headings) >= {"Bottom line", "Checks", "What this does not show", "Try"}
    source = path.read_text("utf-8")
    assert source.index("plt.subplots") > source.index("## Bottom line")
    # Names of parameters and notebooks go, and what is no result.
    harmless = r"`[^`]*`|Phase [01]|below 1|Left of 1|from 1|to 1\b|1:"
    loose = re.findall(r".*\d.*", re.sub(harmless, "", "\n".join(texts)))
    assert loose == [], "a number in prose is computed, or it will be wrong one day"


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
