"""The `poc` command: doctor, run, sweep, show, rerun and more. Thin: it calls and prints.

Errors of ours come out as one line on standard error; exit codes: 0 done or PASS, 1 FAIL,
2 INCONCLUSIVE, 3 an error that a person can mend, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import (
    __version__,
    accuracy,
    agreement,
    catalogue,
    causes,
    comparisons,
    concurrency,
    documents,
    experiment,
    finder,
    identity,
    journal,
    notation,
    pages,
    parameterfile,
    plots,
    pool,
    publish,
    repeat,
    report,
    ruler,
    suite,
    sweeps,
    tables,
    words,
)
from .capacity import Found
from .errors import ParameterError, PocError, ReportError, RunFailed
from .records import Parameters, Report
from .stats import Headline
from .strategies import STRATEGIES

MAX_PARAMETER_BYTES = 1 << 20
VARIANTS = "(bare|adaptive|queueing|batched)"  # what such a notebook adds to its experiment's name
GATE_EXIT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: our errors become a sentence and an exit code, never a traceback."""
    try:
        poc.main(arguments, prog_name="poc", standalone_mode=False)
    except PocError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; engines are stopped, finished rounds are saved.", 130)
    except BrokenPipeError:
        sys.stderr.close()


def _fail(sentence: str, code: int) -> None:
    click.echo(f"poc: {notation.safe(sentence)}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="poc")
def poc() -> None:
    """Measure what is gained, and what it costs, when prompts are spread over several servers."""


_params = click.argument("params", type=click.Path(path_type=Path))
_set = click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change one parameter (repeat)."
)


@poc.command()
@_params
@_set
@click.option(
    "--capacity", is_flag=True, help="Find how many requests each should hold at once, too."
)
def doctor(params: Path, changes: tuple[str, ...], capacity: bool) -> None:
    """Say of each provider whether it answers, how fast, and what gain to expect.

    PARAMS is a YAML file such as params/two-machines.yaml. Nothing is saved, but with --capacity
    its measurements as a report, and a copy of PARAMS with what was found.
    """
    given = read_yaml(params, changes)
    given.pop("sweep", None)  # its points share the pool
    parameters = Parameters.read(given, params.name)
    with pool.open_pool(parameters) as providers:
        run = experiment.Run(parameters, providers)
        found: dict[str, Found] | None = {} if capacity else None
        problems = experiment.on_own_loop(lambda: _examine(run, found))
    click.echo(
        words.doctor_table(run.facts, run.probes, run.expected_ms, run.tokens_per_s(), problems)
    )
    if problems:
        raise RunFailed(f"{len(problems)} of {len(run.senders)} providers cannot be used.")
    expected = words.expected_gain(run.foretold_ratios(), run.expected_ms, run.foretold_rounds())
    click.echo(expected)
    if found:
        saved = report.save(run.as_report().model_copy(update={"strategy": "capacity"}))
        click.echo(concurrency.capacity_text(report.load(saved.stem)))
        copy = params.with_suffix(f".capacity{params.suffix}")
        wanted = {name: one.capacity for name, one in found.items()}
        copy.write_text(parameterfile.with_capacities(params.read_text("utf-8"), wanted), "utf-8")
        click.echo(f"Written: {copy.name}, with these capacities; the levels: {saved.name}.")


async def _examine(
    run: experiment.Run, capacities: dict[str, Found] | None = None
) -> dict[str, str]:
    """Describe every provider alone, so that one failure does not hide the others."""
    names = list(run.senders)
    try:
        asked = await asyncio.gather(
            *(run.senders[name].describe() for name in names), return_exceptions=True
        )
        problems = {}
        for name, answer in zip(names, asked, strict=True):
            if isinstance(answer, PocError):
                problems[name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                run.facts.append(answer.model_copy(update=run.known[name]))
        if not problems:
            if not run.parameters.allow_unlike_models:
                identity.check_alike(run.facts)
            await run.prepare()
            if capacities is not None:
                capacities.update(await finder.find(run))
        return problems
    finally:
        for sender in run.senders.values():
            await sender.aclose()


@poc.command()
@_params
@_set
@click.option(
    "--only", multiple=True, type=click.Choice(list(STRATEGIES)), help="Only this one (repeat)."
)
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
def run(params: Path, changes: tuple[str, ...], only: tuple[str, ...], resume: bool) -> None:
    """Measure every strategy on PARAMS, each in a notebook; save reports, print the verdict."""
    given = read_yaml(params, changes) | ({"resume": True} if resume else {})
    if "sweep" in given:
        raise ParameterError(f"{params.name} is a sweep: run it with `poc sweep {params.name}`.")
    pattern = str(given.pop("notebooks", Parameters.model_fields["notebooks"].default))
    notebooks = publish.notebooks(pattern=pattern)
    known = {key for notebook in notebooks for key in publish.declared(notebook)}
    publish.check_keys(given, known, params.name)
    parameters = Parameters.read({k: v for k, v in given.items() if k != "live"}, params.name)
    tasks = suite.tasks(notebooks, only or ([parameters.strategy] if "strategy" in given else []))
    _answering(parameters)
    # A run never replaces what the samples' pages are made of.
    name = "live" if parameters.experiment == "sample" else parameters.experiment
    values = {**given, "experiment": name, "live": True, "write": True}
    folder = report.root() / "data" / "runs" / name
    with journal.only_one(folder):
        _run(tasks, values, folder, name)


def _run(tasks: Sequence[suite.Task], values: dict[str, Any], folder: Path, name: str) -> None:
    failures: list[str] = []
    for number, task in enumerate(tasks, start=1):
        click.echo(f"[{number}/{len(tasks)}] {task.title}", err=True)
        try:
            task.execute(folder, values)
        except RunFailed as error:
            failures.append(str(error))
            click.echo(f"    failed: {notation.safe(str(error))}", err=True)
    headlines = _headlines(name)
    page = _publish()
    click.echo(words.comparison_text(headlines))
    click.echo(words.suite_gate(headlines))
    click.echo(f"Open {page.relative_to(report.root())}")
    if failures:
        raise RunFailed(f"{len(failures)} of {len(tasks)} notebooks failed: {failures[0]}")


@poc.command()
@click.argument("file", metavar="SWEEP.yaml", type=click.Path(path_type=Path))
@_set
def sweep(file: Path, changes: tuple[str, ...]) -> None:
    """Run a grid of points, each with a notebook and a report in data/runs/NAME/POINT/.

    The file is one of parameters with a section `sweep`; params/sweep-links.yaml explains it.
    Interrupted or run again, it goes on where it stopped and measures no finished point twice.
    """
    found = sweeps.points(read_yaml(file, changes), file.name)
    tasks = {strategy: suite.task(strategy) for strategy in {one.strategy for one in found}}
    keys = {key for one in found for key in one.values}
    publish.check_keys(sorted(keys), publish.declared(publish.strategy_notebook()), file.name)
    folder = report.root() / "data" / "runs" / found[0].sweep
    numbers = {one.name: f"[{n}/{len(found)}]" for n, one in enumerate(found, start=1)}

    def execute(one: sweeps.Point, target: Path) -> None:
        click.echo(f"{numbers[one.name]} {one.label}", err=True)
        # A point that was stopped in the middle goes on from its own journal.
        tasks[one.strategy].execute(target, {**one.values, "live": True, "resume": True})

    done: list[sweeps.Outcome] = []
    with journal.only_one(folder):
        sweeps.write_summary(found, folder)
        try:
            for outcome in sweeps.run(found, folder, execute):
                done.append(outcome)
                _tell(outcome, numbers[outcome.point.name])
        except KeyboardInterrupt:
            left = notation.many(len(found) - len(done), "point")
            click.echo(f"poc: {left} left; the same command goes on from here.", err=True)
            raise
    page = _publish()
    click.echo(sweeps.table(done))
    click.echo(f"Open {page.relative_to(report.root())}")
    if failed := [one for one in done if one.problem]:
        raise RunFailed(
            f"{len(failed)} of {len(found)} points failed; the same command tries only those again."
        )


def _tell(outcome: sweeps.Outcome, number: str) -> None:
    if outcome.before:
        click.echo(f"{number} {outcome.point.label}: done before", err=True)
    elif outcome.problem:
        click.echo(f"    failed: {outcome.problem}", err=True)


def _answering(parameters: Parameters) -> None:
    """Before minutes are spent: does every provider answer, with the same model?"""
    own = [p for p in parameters.providers if p.kind != "embedded"]
    if not own:
        return
    checked = parameters.model_copy(update={"providers": own})
    with pool.open_pool(checked) as providers:
        trial = experiment.Run(checked, providers)

        async def describe() -> None:
            try:
                await trial.describe()
            finally:
                for sender in trial.senders.values():
                    await sender.aclose()

        experiment.on_own_loop(describe)


@poc.command()
@click.argument("name", metavar="REPORT", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print every derived number as JSON.")
def show(name: str | None, as_json: bool) -> None:
    """Print the derived numbers of REPORT: a name in data/reports, or a file.

    Without REPORT, list the saved ones by name, date, pool, strategy and verdict.
    """
    if name is None:
        click.echo(catalogue.text(catalogue.entries(passed_over=_pass_over)))
        return
    loaded = report.load(name)
    headline = tables.headline(loaded)
    if as_json:
        click.echo(json.dumps(headline.as_dict(), indent=1))
    else:
        click.echo(words.report_text(loaded, headline))


@poc.command()
@click.argument("name", metavar="REPORT")
def gate(name: str) -> None:
    """Print the verdict of REPORT; exit 0 for PASS, 1 for FAIL, 2 for INCONCLUSIVE."""
    headline = tables.headline(report.load(name))
    click.echo(words.failures([headline]) + words.gate_line(headline))
    sys.exit(GATE_EXIT[headline.verdict])


@poc.command()
@click.argument("name", metavar="REPORT")
@click.option("--params", type=click.Path(path_type=Path), help="A file that has the addresses.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one parameter, or one of a provider: remote.url=http://… (repeat).",
)
def rerun(name: str, params: Path | None, changes: tuple[str, ...]) -> None:
    """Measure the experiment of REPORT again, from its report alone: do the two agree?

    The same parameters, prompts, seed and order. A report holds no address, so servers of your
    own need --params or --set. Saved beside REPORT under its name with "rerun-" before it. Exits
    with 0 where verdict and ratio agree, 1 where they do not.
    """
    first = report.load(name)
    given = read_yaml(params) if params else {}
    parameters = repeat.parameters(first, given, _changed({}, changes))
    second = experiment.measure(parameters, experiment.bar(report.name(first)))
    headlines = tables.headline(first), tables.headline(second)
    found = agreement.between((first, headlines[0]), (second, headlines[1]))
    click.echo(comparisons.agreement(found, *headlines, agreement.unlike([first, second])))
    sys.exit(0 if found.agrees else 1)


@poc.command()
@click.argument("names", metavar="REPORT...", nargs=-1, required=True)
@click.option("--anyway", is_flag=True, help="Show unlike experiments side by side, too.")
def compare(names: tuple[str, ...], anyway: bool) -> None:
    """Show several reports side by side, the others over the first; unlike ones only --anyway."""
    reports = [report.load(name) for name in names]
    unlike = agreement.unlike(reports)
    if unlike and not anyway:
        raise ReportError(comparisons.refusal(unlike))
    headlines = [tables.headline(one) for one in reports]
    changes = agreement.over_the_first(headlines)
    click.echo(comparisons.side_by_side(reports, headlines, changes))
    click.echo(f"\n{comparisons.differences(unlike, [one.report for one in headlines])}")


@poc.command("ruler")
def ruler_command() -> None:
    """Check the instrument on itself: known delays in, what it measures of them out.

    Takes about a minute on a machine that does nothing else; saved as data/ruler.json.
    """
    found = ruler.run()
    ruler.save(found, report.root())
    click.echo(accuracy.ruler_table(found))
    click.echo(accuracy.ruler_finding(found))


@poc.command("publish")
def publish_command() -> None:
    """Render the executed notebooks and all reports to site/, without measuring anything."""
    click.echo(f"Open {_publish().relative_to(report.root())}")


@poc.command()
def refresh() -> None:
    """Run the notebooks in notebooks/ again, in place, on the reports that they name.

    With them go the Phase 0 result and the README's result and picture, which hold the same.
    """
    for notebook in publish.notebooks():
        click.echo(notebook.name)
        suite.Task(notebook, notebook.name).renew(notebook)
    samples = report.experiments("sample")
    headlines = [tables.headline(one) for one in samples]
    documents.write(documents.phase_0_result(samples, headlines))
    plots.save_ratios(headlines, report.root() / "docs" / "phase-0.png")
    readme = report.root() / "README.md"
    readme.write_text(documents.readme(readme.read_text("utf-8"), samples, headlines), "utf-8")


@poc.command()
@click.argument("source", metavar="EXPERIMENT")
@click.argument("target", metavar="NEW-NAME")
def keep(source: str, target: str) -> None:
    """Keep every report of EXPERIMENT under NEW-NAME too, such as `sample`."""
    kept = [
        (found, case[1] or "")
        for found in map(report.load, report.names())
        if (case := re.fullmatch(f"{re.escape(source)}(-{VARIANTS})?", found.experiment))
    ]
    if not kept:
        raise ReportError(f"no report of experiment {source!r}; `poc show` lists what there is.")
    for found, suffix in kept:
        renamed = {**found.model_dump(), "experiment": f"{target}{suffix}"}
        question = "capacity" if found.strategy == "capacity" else None
        question = "failure-mode" if suffix else question
        folder = report.home(question, target) if question else None
        path = report.save(Report.model_validate(renamed), folder)
        click.echo(path.name)


def _publish() -> Path:
    root = report.root()
    runs = root / "data" / "runs"
    folders = [*sorted(runs.glob("*/")), *sorted(runs.glob("*/*/"))]
    groups = {
        folder.relative_to(runs).as_posix(): found
        for folder in folders
        if (found := sorted(folder.glob("[0-9]*.ipynb")))
    }
    groups["sample"] = suite.sample_pages(lambda said: click.echo(notation.safe(said), err=True))
    rows = [_row(one, groups) for one in catalogue.entries(passed_over=_pass_over)]
    swept = {}
    for folder in (one for one in folders if sweeps.summary(one)):
        labels = sweeps.summary(folder)
        swept[folder.name] = [
            _row(one, groups, f"{folder.name}/{name}", label, path)
            for name, label in labels.items()
            for path in sorted((folder / name).glob("*.json"))
            for one in catalogue.entries([path], _pass_over)
        ]
    return pages.site(root / "site", groups, rows, swept)


def _row(
    one: catalogue.Entry,
    groups: dict[str, list[Path]],
    group: str = "",
    what: str = "",
    source: str | Path = "",
) -> pages.Row:
    name, date, pool, strategy, ratio, verdict = one.cells
    page = pages.page_of(groups, group or one.report.experiment, strategy)
    page = page or next((f"sample/{n.stem}.html" for n in groups["sample"] if _shows(n, name)), "")
    return pages.Row(name, date, pool, verdict, ratio, what, page, source)


def _shows(notebook: Path, name: str) -> bool:
    """Whether `notebook` is about the one report of that name."""
    return str(publish.declared(notebook).get("name", {}).get("default", "")).strip("'\"") == name


def _all_headlines() -> dict[str, Headline]:
    """Every readable report's headline; an unreadable one is named and passed over."""
    found = {}
    for name in report.names():
        try:
            loaded = report.load(name)
            if loaded.strategy != "capacity":  # that one has levels, no rounds to judge
                found[name] = tables.headline(loaded)
        except PocError as error:
            _pass_over(notation.safe(str(error)))
    return found


def _pass_over(problem: str) -> None:
    click.echo(f"poc: passed over: {problem}", err=True)


def _headlines(experiment_name: str) -> list[Headline]:
    """The headlines of one experiment, in the strategies' order."""
    order = list(STRATEGIES)
    mine = [
        causes.labelled(report.load(n), h) if n != f"{experiment_name}-{h.strategy}" else h
        for n, h in _all_headlines().items()
        if n == f"{experiment_name}-{h.strategy}" or re.match(f"{experiment_name}-{VARIANTS}-", n)
    ]
    return sorted(mine, key=lambda h: order.index(h.strategy) if h.strategy in order else 99)


def read_yaml(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML file of parameters, with `KEY=VALUE` changes on top.

    Raises `ParameterError` naming the file, and the line where the YAML is wrong.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_PARAMETER_BYTES + 1)
    except (OSError, UnicodeDecodeError):
        there = ", ".join(sorted(p.name for p in Path("params").glob("*.yaml"))) or "none"
        raise ParameterError(f"{path}: cannot be read; in params/ there is: {there}.") from None
    if len(text) > MAX_PARAMETER_BYTES:
        raise ParameterError(f"{path.name}: larger than 1 MiB; this is not a parameter file.")
    values = parameterfile.values(text, path.name)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ParameterError(f"{path.name}: must hold `key: value` lines (see params/).")
    return _changed(values, changes)


def _changed(values: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ParameterError(f"--set {change}: write it as KEY=VALUE.")
        values[key.strip()] = parameterfile.values(value, f"--set {key}")
    return values
