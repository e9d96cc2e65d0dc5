"""The `poc` command: doctor, run, sweep, show, rerun and more. Thin: it calls and prints.

A command imports what only it needs, so that `poc --help`, `show` and `gate` answer at once.
Errors of ours come out as one line on standard error; exit codes: 0 done or PASS, 1 FAIL,
2 INCONCLUSIVE, 3 an error that a person can mend, 130 interrupted.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__, addresses, parameters, recording, report
from .errors import EngineError, ParameterError, PocError, ReportError, RunFailed
from .measure.strategies import STRATEGIES, usual
from .parameters import Parameters
from .reading import compare, reading
from .showing import documents, served, words
from .showing.format import safe

Words = Sequence[str]
# What a server does that is to be sent nothing ahead.
SUFFERS = ("thrashes", "refuses")
GATE_EXIT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 2}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: our errors become a sentence and an exit code, never a traceback."""
    try:
        poc.main(arguments, prog_name="poc", standalone_mode=False)
    except PocError as error:
        _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted; engines are stopped, finished rounds and answers are kept.", 130)
    except BrokenPipeError:
        sys.stderr.close()


def _fail(sentence: str, code: int) -> None:
    click.echo(f"poc: {safe(sentence)}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="poc")
def poc() -> None:
    """Measure what is gained, and what it costs, when prompts are spread over several servers."""


_pool = click.argument("pool", metavar="PARAMS|ADDRESS...", nargs=-1, required=True)
_once = "Of addresses: once for all, or for each."
_model = click.option("--model", "models", multiple=True, help=_once)
_report = click.argument("name", metavar="REPORT")
_all = click.option("--all", "every", is_flag=True, help="Print every warning, not three.")
_how = "Change one parameter: rounds=3, or a provider's: remote.link.round_trip_ms=40 (repeat)."
_set = click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help=_how)
_path = click.Path(path_type=Path)
_strategies = click.Choice(list(STRATEGIES))


@poc.command()
@_pool
@_set
@_model
@click.option("--capacity", is_flag=True, help="Find how many requests each should hold, too.")
def doctor(pool: Words, changes: Words, models: Words, capacity: bool) -> None:
    """Say of each provider whether it answers, how fast, and what gain to expect.

    PARAMS is a YAML file such as params/two-machines.yaml. Nothing measured is saved, but with
    --capacity as a report.
    """
    file, _ = _file(pool, changes, models)
    _examine(read_yaml(file, changes), file.name, capacity)


@poc.command()
@_pool
@_set
@_model
@click.option("--only", multiple=True, type=_strategies, help="Only this one (repeat).")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@_all
def run(pool: Words, changes: Words, models: Words, only: Words, resume: bool, every: bool) -> None:
    """Measure every strategy on PARAMS, save reports and pages, print the verdict.

    A file with a section `sweep` is measured as by `poc sweep`. At an ADDRESS (http://host:port,
    host:port or a host) it finds out what is there, writes such a file for the next time, and says
    what to expect and how long it takes.
    """
    from . import suite

    file, found = _file(pool, changes, models)
    given = read_yaml(file, changes) | ({"resume": True} if resume else {})
    if found:
        _examine(given, file.name, only=only)
    if "sweep" in given:
        return suite.sweep(given, file.name, only, every)
    given.pop("live", None)  # a notebook's own
    suite.run(given, file.name, only, every)


def _file(pool: Words, changes: Words, models: Words) -> tuple[Path, bool]:
    """The file of parameters that is meant, and whether it is of servers at addresses."""
    if len(pool) == 1 and (Path(pool[0]).exists() or not addresses.is_one(pool[0])):
        return Path(pool[0]), False
    from . import firstuse

    public = parameters.changes(changes).get("allow_public") is True
    return firstuse.file_of(pool, models, public), True


def _examine(given: dict[str, Any], where: str, capacity: bool = False, only: Words = ()) -> None:
    from .measure import experiment

    given = {key: given[key] for key in given if key != "sweep"}  # its points share the pool
    wanted = Parameters.read(given, where)
    with experiment.open_pool(wanted) as providers:
        run = experiment.Run(wanted, providers)
        problems, found = experiment.on_own_loop(lambda: run.examine(capacity))
    click.echo(words.doctor_table(reading.of(run.report), problems))
    if problems:
        raise RunFailed(f"{len(problems)} of {len(run.senders)} providers cannot be used.")
    click.echo(words.expected_gain(run.foretold_ratios(), run.expected_ms, run.foretold_rounds()))
    strategies = len(only or usual(wanted))
    click.echo(words.duration(run.foretold_s(strategies), strategies, wanted.run_limit_s))
    if found:
        from .showing import curves

        saved = recording.save(run.report.model_copy(update={"strategy": "capacity"}))
        settings = ""
        for name, one in found.items():
            settings += f" --set {name}.capacity={one.capacity}"
            settings += f" --set {name}.queues=false" if one.behaviour in SUFFERS else ""
        click.echo(curves.capacity_text(report.load(saved.stem)))
        click.echo(f"To use these capacities:{settings}\nThe levels are kept in {saved.name}.")


@poc.command()
@click.argument("file", metavar="SWEEP.yaml", type=_path)
@_set
@click.option("--cluster", metavar="ADDRESS", help="local:4, tcp://… or tls://… (docs/cluster.md).")
def sweep(file: Path, changes: Words, cluster: str | None) -> None:
    """Run a grid of points, each with a report in data/runs/NAME/POINT/.

    The file is one of parameters with a section `sweep`; params/sweep-links.yaml explains it. Each
    point has its strategy's notebook too, unless the file names `notebooks` that read all points.
    Interrupted or run again, it goes on where it stopped and measures no finished point twice.
    With --cluster the workers of a Dask cluster do it, a point each. A section `simulate` in place
    of providers is a scenario: such points measure nothing.
    """
    from . import suite

    suite.sweep(read_yaml(file, changes), file.name, address=cluster)


@poc.command("serve-test")
@click.argument("params", metavar="PARAMS", type=click.Path(path_type=Path))
@_set
@click.option("--resume", is_flag=True, help="Go on with a test that was stopped.")
def serve_test(params: Path, changes: Sequence[str], resume: bool) -> None:
    """Find how many requests a second the pool of PARAMS serves in time, and save every step.

    Requests come at random moments that no answer delays. The section `serve` says what is in time
    and how it is looked for (params/serve.yaml); --set serve.target_ms=1500 changes it.
    """
    from . import suite

    suite.serve(read_yaml(params, changes) | {"resume": resume}, params.name)


@poc.command()
@click.argument("prompts", type=_path)
@click.option("-o", "answers", metavar="ANSWERS", type=_path, required=True)
@click.option("--params", type=_path, required=True, help="Names the pool.")
@_set
@click.option("--strategy", metavar="NAME", help="Not the one that last won on this pool.")
@click.option("--column", default="prompt", show_default=True, help="The prompts' column or key.")
@click.option("--again", is_flag=True, help="Answer all anew; what ANSWERS holds is replaced.")
def batch(params: Path, changes: Words, **words: Any) -> None:
    """Have the prompts of a file answered by the pool of PARAMS, and keep the answers in order.

    PROMPTS is one of these, and ANSWERS becomes the same:

    \b
    .jsonl  lines of OpenAI's batch (custom_id, url, body), as `vllm run-batch` takes them
    .jsonl  objects with a `prompt`, or texts; .json: a list of such
    .csv    a table with a column `prompt`, or no other column; .tsv: the same with tabs
    others  a prompt on each line; an answer's own line breaks are written as \\n

    Every provider is asked for its own model. max_tokens, seed and the rest come from PARAMS (and
    --set), unless a body asks for others; what of a body cannot be carried is told first.

    Answers are kept in ANSWERS.part as they come. Stopped in any way, the same command goes on,
    and no prompt is answered twice. Failures are rows with their reason: the exit code is 1, and
    the same command tries only those again. No report is written.

    \b
    poc batch mine.csv -o answers.csv --params params/two-machines.yaml
    poc batch mine.jsonl -o out.jsonl --params params/embedded.yaml --set max_tokens=200
    """
    from . import suite

    if failed := suite.batch(read_yaml(params, changes), params.name, **words).failed:
        _fail(f"{failed:,} failed; the same command tries only those again.", 1)


@poc.command()
@click.argument("name", metavar="REPORT", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print every derived number as JSON.")
@_all
def show(name: str | None, as_json: bool, every: bool) -> None:
    """Print the derived numbers of REPORT: a name in data/reports, or a file.

    Without REPORT, list the saved ones by name, date, pool, strategy and verdict.
    """
    if name is None:
        click.echo(documents.listing(documents.saved(_pass_over)))
    elif as_json:
        click.echo(json.dumps(reading.read(name).headline.as_dict(), indent=1))
    elif (one := reading.read(name)).report.question == "served":
        click.echo(served.text(one.report))
    else:
        click.echo(words.report_text(one, every))


@poc.command()
@_report
@_all
def gate(name: str, every: bool) -> None:
    """Print the verdict of REPORT; exit 0 for PASS, 1 for FAIL, 2 for INCONCLUSIVE."""
    one = reading.read(name)
    click.echo(words.failures([one.headline]) + words.verdict_text([one], every))
    sys.exit(GATE_EXIT[one.headline.verdict])


@poc.command()
@_report
@click.option("--params", type=_path, help="A file that has the addresses.")
@_set
@_all
def rerun(name: str, params: Path | None, changes: Words, every: bool) -> None:
    """Measure the experiment of REPORT again, from its report alone: do the two agree?

    The same parameters, prompts, seed and order. A report holds no address, so servers of your
    own need --params or --set. Saved beside REPORT under its name with "rerun-" before it. Exits
    with 0 where verdict and ratio agree, 1 where they do not.
    """
    from .measure import experiment

    first = reading.read(name)
    given = read_yaml(params) if params else {}
    wanted = experiment.again(first.report, given, parameters.changes(changes))
    second = reading.of(experiment.measure(wanted, experiment.bar(report.name(first.report))))
    click.echo(documents.agreement(first, second))
    _warn([first, second], ["the first", "the second"], every)
    sys.exit(0 if compare.between(first, second).agrees else 1)


@poc.command("compare")
@click.argument("names", metavar="REPORT...", nargs=-1, required=True)
@click.option("--anyway", is_flag=True, help="Show unlike experiments side by side, too.")
@_all
def compare_command(names: Words, anyway: bool, every: bool) -> None:
    """Show several reports side by side, the others over the first; unlike ones only --anyway."""
    readings = [reading.read(name) for name in names]
    labels = [one.headline.report for one in readings]
    differing = compare.unlike(readings)
    if differing and not anyway:
        raise ReportError(documents.refusal(differing))
    click.echo(documents.side_by_side(readings))
    _warn(readings, labels, every)
    click.echo(f"\n{documents.differences(differing, labels)}")


@poc.command("ruler")
def ruler_command() -> None:
    """Check the instrument on itself: known delays in, what it measures of them out.

    Takes about a minute on a machine that does nothing else; saved as data/ruler.json.
    """
    from .measure import ruler

    check = ruler.obtain(True, report.root())
    click.echo(f"{documents.ruler_table(check)}\n{documents.ruler_finding(check)}")


@poc.command("wire")
@click.option("--whole", is_flag=True, help="All that the committed test measured, twice.")
@click.option("--at", multiple=True, metavar="HOST:PORT", help="A worker of your own (repeat).")
@click.option("--try", "only_try", is_flag=True, help="Say which engine shares a model here.")
def wire_command(whole: bool, at: Sequence[str], only_try: bool) -> None:
    """Share one model among workers, further and further away: what does a token cost, and why?

    Four minutes on workers of this machine behind emulated links, or your own (ggml-rpc-server) as
    far away as they are. Stopped, the same command goes on. Kept in data/runs/wire.
    """
    from .measure import wire as measuring
    from .showing import wire

    if only_try:
        try:
            return click.echo(measuring.sharing_engine(at))
        except EngineError as error:
            _fail(str(error), 1)  # run-poc.sh then builds one
    found, _ = measuring.obtain("", True, at, whole)
    click.echo(f"{wire.provenance(found)}\n{wire.finding(found)}")


_one = "Also one file to be sent, with its pictures in it: of an experiment, a page, or the newest."


@poc.command("publish")
@click.option("--one-file", "one", metavar="[WHAT]", is_flag=False, flag_value="", help=_one)
@click.option("-o", "file", metavar="FILE", type=click.Path(path_type=Path), help="That file.")
def publish_command(one: str | None, file: Path | None) -> None:
    """Render the executed notebooks and all reports to site/, without measuring anything."""
    from . import suite
    from .showing import notebooks

    with notebooks.Kernels() as kernels:
        click.echo(f"Open {suite.write_site(kernels, '' if file and not one else one, file)}")


@poc.command()
def refresh() -> None:
    """Run the notebooks in notebooks/ again, in place, on the reports that they name.

    With them go the Phase 0 result and the README's result and picture, which hold the same.
    """
    from . import suite
    from .showing import charts
    from .showing import notebooks as publish

    with publish.Kernel() as kernel:
        for notebook in publish.notebooks():
            click.echo(notebook.name)
            suite.Task(notebook, notebook.name).renew(notebook, kernel)
    samples = reading.experiment("sample")
    documents.write(documents.phase_0_result(samples, documents.PICTURE))
    picture, readme = report.root() / documents.PICTURE, report.root() / "README.md"
    charts.save_ratios([one.headline for one in samples], picture)
    readme.write_text(documents.readme(readme.read_text("utf-8"), samples), "utf-8")


@poc.command()
@click.argument("source", metavar="EXPERIMENT")
@click.argument("target", metavar="NEW-NAME")
def keep(source: str, target: str) -> None:
    """Keep every report of EXPERIMENT under NEW-NAME too, such as `sample`.

    Of a sweep, the points' reports are kept in the folder data/reports/NEW-NAME, in place of those
    that were there.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", target, re.A):
        raise ParameterError(f"{target[:70]!r} is no name for reports: use letters and digits.")
    from .measure.sweep import summary

    points, paths = report.root() / "data" / "runs" / source, list[Path]()
    if summary(points):
        kept = [one.report for one in reading.within(points)]
        paths = recording.keep_only(kept, report.root() / report.FOLDER / target)
    else:
        for saved in (one.report for one in reading.experiment(source)):
            folder = report.home(saved.question, target) if saved.question else None
            paths.append(recording.save(saved.model_copy(update={"experiment": target}), folder))
    for path in paths:
        click.echo(path.name)


def _warn(readings: Sequence[reading.Reading], names: Words, every: bool) -> None:
    for line in words.few([f"warning: {it}" for it in words.beside(readings, names)], every):
        click.echo(line)


def _pass_over(problem: str) -> None:
    click.echo(f"poc: passed over: {problem}", err=True)


def read_yaml(path: Path, changes: Words = ()) -> dict[str, Any]:
    """A YAML file of parameters, with `KEY=VALUE` changes on top. Raises `ParameterError`."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        there = ", ".join(sorted(p.name for p in Path("params").glob("*.yaml"))) or "none"
        raise ParameterError(f"{path}: cannot be read; in params/ there is: {there}.") from None
    values = parameters.values(text, path.name)
    if not isinstance(values, dict):
        raise ParameterError(f"{path.name}: must hold `key: value` lines (see params/).")
    for key, value in parameters.changes(changes).items():
        parameters.put(values, key, value)
    return values
