"""The notebooks: what they declare, that they are fed by files, and that they run."""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from poclib import cli, report, suite
from poclib.errors import ParameterError
from poclib.measure.strategies import STRATEGIES
from poclib.parameters import Parameters
from poclib.reading.reading import of
from poclib.showing import notebooks as publish

ROOT = report.root()
NOTEBOOKS = publish.notebooks()
SPECIAL = {"notebooks"}  # for the command


def _cells(path: Path) -> list[Any]:
    return list(nbformat.read(path, as_version=4).cells)


def _defaults(path: Path) -> dict[str, Any]:
    """The values in the parameters cell, by running that cell alone."""
    (cell,) = [c for c in _cells(path) if "parameters" in c.metadata.get("tags", [])]
    namespace: dict[str, Any] = {}
    exec(compile(cell.source, path.name, "exec"), namespace)
    return {key: value for key, value in namespace.items() if not key.startswith("__")}


def test_a_run_executes_one_notebook_for_each_strategy_then_those_that_read() -> None:
    tasks = suite.tasks(publish.notebooks(pattern="[01]*"))
    assert [task.strategy for task in tasks if task.strategy] == list(STRATEGIES)
    assert not any(task.strategy for task in tasks[len(STRATEGIES) :])
    assert {task.notebook for task in tasks} == {n for n in NOTEBOOKS if n.name < "2"}
    first = {task.name: task.title for task in tasks[: len(STRATEGIES)]}
    assert len(first) == len(STRATEGIES) and list(first) == sorted(first)
    assert first["06_shared_queue.ipynb"] == STRATEGIES["shared-queue"].question


def test_only_the_strategies_that_were_asked_for_are_measured() -> None:
    for pattern, names in (("[01]*", ["batched", "", "", "", "", ""]), ("20*", [""])):
        tasks = suite.tasks(publish.notebooks(pattern=pattern), ["batched"])
        assert [task.strategy for task in tasks] == names
    with pytest.raises(ParameterError, match="no 'bached'; there are: sequential, "):
        suite.tasks(NOTEBOOKS, ["bached"])


def test_the_strategies_notebook_declares_every_parameter_with_help() -> None:
    path = publish.strategy_notebook()
    declared = publish.declared(path)
    assert set(declared) == set(Parameters.model_fields) - SPECIAL | {"live"}
    assert all(p["help"] or name == "providers" for name, p in declared.items())
    assert all(p["inferred_type_name"] != "None" for p in declared.values())
    defaults = _defaults(path)
    assert defaults["live"] is False and defaults["experiment"] == "sample"
    example = cli.read_yaml(ROOT / "params" / "embedded.yaml")
    assert {k: defaults[k] for k in example if k != "experiment"} == {
        k: v for k, v in example.items() if k != "experiment"
    }, "a live run from the notebook measures what ./run-poc.sh measures"
    assert publish.title(path) == STRATEGIES[defaults["strategy"]].question


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_a_thin_conversation(path: Path) -> None:
    code = [c for c in _cells(path) if c.cell_type == "code"]
    body = [c for c in code if "parameters" not in c.metadata.get("tags", [])]
    trees = [ast.parse(c.source) for c in body]
    kinds = {type(node) for tree in trees for node in ast.walk(tree)}
    assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda}
    lines = [line for c in body for line in c.source.splitlines() if line.strip()]
    assert len(lines) <= 36
    assert not path.read_text("utf-8").count('"papermill"'), (
        "run times are stripped before committing"
    )
    assert all("execution" not in c.metadata for c in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_asks_answers_and_names_its_limits(path: Path) -> None:
    """The bottom line stands before every picture, and no static sentence holds a result."""
    cells = _cells(path)
    texts = [c.source for c in cells if c.cell_type == "markdown"]
    headings = re.findall(r"^## (.*)$", "\n".join(texts), re.M)
    assert texts[0].startswith("# ") and "?" in texts[0].splitlines()[0]
    assert set(headings) >= {"Bottom line", "Checks", "What this does not show", "Try"}
    first_chart = next(i for i, c in enumerate(cells) if "plt.subplots" in c.source)
    assert first_chart > next(i for i, c in enumerate(cells) if c.source.startswith("## Bottom"))
    prose = re.sub(r"`[^`]*`", "", "\n".join(texts))  # names of parameters and notebooks go
    loose = re.findall(
        r".*\d.*", re.sub(r"Phase [01]|below 1|Left of 1|from 1|to 1\b|1:", "", prose)
    )
    assert loose == [], "a number in prose is computed, or it will be wrong one day"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_papermill_shows_its_parameters_as_help(path: Path) -> None:
    shown = CliRunner().invoke(papermill, ["--help-notebook", str(path)])
    assert shown.exit_code == 0 and "Parameters inferred for notebook" in shown.output
    told = " ".join(shown.output.split())
    declared = publish.declared(path)
    assert declared, "a notebook without a parameter cannot be tried"
    for name, one in declared.items():
        assert f"{name}: {one['inferred_type_name']} (default" in told
        assert len(one["help"]) > 10 and " ".join(one["help"].split()) in told, name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_chart_is_kept_in_two_formats_and_says_its_finding(path: Path) -> None:
    outputs = [o for c in _cells(path) if c.cell_type == "code" for o in c.outputs]
    charts = [o for o in outputs if "image/png" in o.get("data", {})]
    assert charts
    for chart in charts:
        svg = chart.data["image/svg+xml"]
        said = chart.metadata["image/png"]["alt"]
        title = said.partition(". ")[0]
        drawn = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
        assert html.escape(title, quote=False) in " ".join(drawn.split()), "as drawn over it"
        assert "dc:date" not in svg, "the same figure gives the same file"


@pytest.mark.slow
def test_committed_outputs_are_what_the_committed_reports_give() -> None:
    """nbval, strict: claims are text, so they are compared."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "notebooks"),
            *("--nbval", "--nbval-sanitize-with", "tests/nbval.cfg"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert (
        f"{sum(c.cell_type == 'code' for p in NOTEBOOKS for c in _cells(p))} passed" in done.stdout
    )


@pytest.mark.slow
def test_a_notebook_measures_live_on_the_embedded_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "reports").mkdir(parents=True)
    notebook = publish.strategy_notebook()
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    target = tmp_path / "done.ipynb"
    values = {"live": True, "rounds": 2, "prompts": 3, "max_tokens": 8}
    publish.execute(notebook, target, values)
    measured = report.load("live-shared-queue")
    assert measured.complete and len(measured.rounds) == 2
    assert [[a.arm for a in r.arms] for r in measured.rounds] == [
        ["baseline", "strategy"],
        ["strategy", "baseline"],
    ]
    rows = measured.requests
    assert len(rows) == 12 and all(r.outcome == "ok" and r.output_tokens == 8 for r in rows)
    assert of(measured).headline.answers_equal.compared == 6
    text = target.read_text("utf-8")
    assert "req/s" not in text and str(tmp_path) not in text


@pytest.mark.slow
def test_a_live_notebook_runs_under_nbval_lax(tmp_path: Path) -> None:
    """What it measures differs from run to run, so only that each cell runs is asked for."""
    (tmp_path / "data" / "reports").mkdir(parents=True)
    notebook = load_notebook_node(str(publish.strategy_notebook()))
    values = {"live": True, "rounds": 1, "prompts": 2, "max_tokens": 4, "calibration_prompts": 1}
    values["strategy"] = "serial-per-provider"
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    nbformat.write(parameterize_notebook(notebook, values), tmp_path / "live.ipynb")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--nbval-lax"),
            str(tmp_path / "live.ipynb"),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "POCLIB_HOME": str(tmp_path),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{len(cells) + 1} passed" in done.stdout, "the injected parameters are one more"
    assert report.load(tmp_path / "data" / "reports" / "live-serial-per-provider.jsonl").complete
