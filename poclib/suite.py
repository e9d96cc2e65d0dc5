"""What `poc run`, `sweep` and `batch` do: measure, execute notebooks, make the site; or answer.

A notebook that declares the parameter `strategy` is executed once for each, every other one once.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import click

from . import cluster, recording, report
from .errors import ParameterError, PocError, RunFailed
from .measure import batch as batches
from .measure import experiment
from .measure import sweep as sweeps
from .measure.serve import Served
from .measure.strategies import STRATEGIES, by_name, usual
from .parameters import Parameters
from .reading.reading import of
from .records import Report
from .showing import curves, documents, served, simulated, site, words
from .showing import notebooks as publish
from .showing.format import many, number, safe


@dataclass(frozen=True)
class Task:
    """A notebook to execute: the name of the file it becomes, and its strategy, if it has one."""

    notebook: Path
    name: str
    strategy: str = ""

    @property
    def title(self) -> str:
        """The title of its page."""
        return by_name(self.strategy).question if self.strategy else publish.title(self.notebook)

    def execute(self, target: Path, kernel: publish.Kernel, /, **values: str) -> None:
        """Run it on saved reports into the folder `target`, with the `values` that it declares."""
        given = values | ({"strategy": self.strategy} if self.strategy else {})
        known = {key: given[key] for key in publish.declared(self.notebook) if key in given}
        kernel.execute(self.notebook, target / self.name, known)

    def renew(self, target: Path, kernel: publish.Kernel) -> None:
        """Run it as committed; what `target` holds is replaced only by a whole notebook."""
        with tempfile.TemporaryDirectory() as folder:
            self.execute(Path(folder), kernel)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / self.name, target)


def task(strategy: str) -> Task:
    """The notebook of one strategy; lettered, so that pages stand in the strategies' order."""
    notebook = publish.strategy_notebook()
    letter = ascii_lowercase[list(STRATEGIES).index(by_name(strategy).name)]
    name = f"{notebook.stem[:2]}{letter}_{strategy.replace('-', '_')}.ipynb"
    return Task(notebook, name, strategy)


def tasks(notebooks: Sequence[Path], strategies: Sequence[str]) -> list[Task]:
    """What is executed of `notebooks`: the one of a strategy for each strategy, the others once."""
    found = list[Task]()
    for notebook in notebooks:
        each = "strategy" in publish.declared(notebook)
        found += map(task, strategies) if each else [Task(notebook, notebook.name)]
    return found


def run(
    given: Mapping[str, Any], where: str, only: Sequence[str] = (), every: bool = False
) -> None:
    """Measure every strategy (or `only` those), execute the notebooks, print the verdict.

    With it three warnings, or `every` one. `where` names the file in messages. Raises `RunFailed`
    at the end where a strategy or notebook failed.
    """
    wanted = Parameters.read(dict(given), where)
    notebooks = publish.notebooks(pattern=wanted.notebooks)
    strategies = only or ([wanted.strategy] if "strategy" in given else usual(wanted))
    # A run never replaces what the samples' pages are made of.
    name = "live" if wanted.experiment == "sample" else wanted.experiment
    folder = report.root() / "data" / "runs" / name
    problems, measured = list[str](), list[str]()
    with (
        recording.only_one(folder.parent, recording.COMMAND),
        experiment.SharedEngines() as shared,
    ):
        for number, strategy in enumerate(strategies, start=1):
            click.echo(f"[{number}/{len(strategies)}] {by_name(strategy).question}", err=True)
            one = wanted.model_copy(update={"experiment": name, "strategy": strategy})
            try:
                bar = experiment.bar(strategy)
                experiment.measure(one, bar, resume=wanted.resume, running=shared.of(one))
                measured.append(strategy)
                (folder / report.RESULT).unlink(missing_ok=True)  # an older run's
            except PocError as error:
                if not measured and not isinstance(error, RunFailed):
                    raise  # and so it would be with the others
                problems.append(_told(error))
        shared.close()
        # Within the lock, too: no page is made while anything is measured, here or by others.
        with publish.Kernels() as kernels:
            pages = _each(tasks(notebooks, measured), "page", kernels, folder, experiment=name)
            problems += pages.values()
            conclude(name, kernels, every)
    if problems:
        raise RunFailed(f"{len(problems)} strategies or notebooks failed: {problems[0]}")


def conclude(experiment: str, kernels: publish.Kernels, every: bool = False) -> None:
    """Write what an experiment found, in words, and the site; print the table and the verdict."""
    saved = filter(report.path_of, (f"{experiment}-{strategy}" for strategy in STRATEGIES))
    readings = [entry.reading for entry in documents.entries(saved, pass_over)]
    if readings:
        documents.write(documents.phase_0_result(readings), experiment)
    page = write_site(kernels)
    click.echo(words.comparison_text([one.headline for one in readings]))
    click.echo(f"{words.verdict_text(readings, every)}\nOpen {page}")


def sweep(
    given: Mapping[str, Any],
    where: str,
    only: Sequence[str] = (),
    every: bool = False,
    address: str | None = None,
) -> None:
    """Measure every point of the grid `given`, then run the notebooks that read all of them.

    `where` names the file in messages, `address` a cluster that does the work. Raises
    `ParameterError`, or `RunFailed` at the end.
    """
    points = [point for point in sweeps.points(given, where) if not only or point.strategy in only]
    if not points:
        raise ParameterError(f"{where}: no point has the strategy {' or '.join(only)}.")
    if isinstance(points[0], sweeps.Simulated):
        from .simulate.scenario import Scenario  # and SimPy, which only these need

        for one in points:
            if isinstance(one, sweeps.Simulated):
                Scenario.of(one.scenario, f"{where}: simulate")
    readers = publish.notebooks(pattern=str(given["notebooks"])) if "notebooks" in given else []
    folder = report.root() / "data" / "runs" / points[0].sweep
    counted = enumerate(points, start=1)
    shown = {p.name: f"[{n}/{len(points)}] {safe(p.label, 200)}" for n, p in counted}

    def execute(point: sweeps.AnyPoint, target: Path) -> None:
        click.echo(shown[point.name], err=True)
        if far or isinstance(point, sweeps.Simulated):
            if not sweeps.complete(point, reports):
                made = far.result(point) if far else cluster.work(point)
                recording.put(made, reports / point.file)
        else:
            # A point that was stopped in the middle goes on from its own file.
            progress, running = experiment.bar(point.strategy), shared.of(point.parameters)
            experiment.measure(point.parameters, progress, resume=True, running=running)
        if not readers and isinstance(point, sweeps.Point):
            own = {"experiment": point.parameters.experiment}
            task(point.strategy).execute(target, kernels.one, **own)

    def ended(far: cluster.Cluster) -> Iterator[sweeps.AnyPoint]:
        """What is there first, then the others as they end."""
        there = [any(sweeps.complete(p, at) for at in (folder / p.name, reports)) for p in points]
        yield from (point for point, known in zip(points, there, strict=True) if known)
        left = (point for point, known in zip(points, there, strict=True) if not known)
        yield from far.ended([*left])

    done, failed = list[sweeps.Outcome](), list[str]()
    reports, far = report.root() / report.FOLDER, None
    with (
        contextlib.ExitStack() as stack,
        recording.only_one(folder.parent, recording.COMMAND),
        experiment.SharedEngines() as shared,
        publish.Kernels() as kernels,  # which rest while a point is measured
    ):
        sweeps.write_summary(points, folder)
        if address:
            far = stack.enter_context(cluster.Cluster(address, points))
            click.echo(f"poc: Dask's own view of it: {far.dashboard}", err=True)
        try:
            for outcome in sweeps.run(ended(far) if far else points, folder, execute):
                done.append(outcome)
                if outcome.before:
                    click.echo(f"{shown[outcome.point.name]}: done before", err=True)
                elif outcome.problem:
                    failed.append(_told(outcome.problem))
        except KeyboardInterrupt:
            left = many(len(points) - len(done), "point")
            click.echo(f"poc: {left} left; the same command goes on from here.", err=True)
            raise
        shared.close()
        saved = f"data/runs/{folder.name}"
        unread = _each(tasks(readers, []), "page", kernels, folder, folder=saved)
        page = write_site(kernels)
    if isinstance(points[0], sweeps.Simulated):
        made = {one.label: report.simulated(folder / one.name / one.file) for one in points}
        click.echo(f"{simulated.points_table(made)}\nOpen {page}")
    else:
        known = {one.point.label: one.report for one in done}
        read = {name: of(one) if isinstance(one, Report) else None for name, one in known.items()}
        click.echo(f"{curves.points_table(read, every)}\nOpen {page}")
    if failed:
        told = f"{len(failed)} of {len(points)} points failed: {failed[0]}"
        raise RunFailed(f"{told} The same command tries only those again.")
    if unread:
        raise RunFailed(next(iter(unread.values())))


def serve(given: Mapping[str, Any], where: str) -> None:
    """Find the rate that the pool of `given` serves in time, say so and save every step."""
    # A name of its own: it never replaces what the same file's runs are saved as.
    name = f"{str(given.get('experiment', 'pool')).removesuffix('served').rstrip('-')}-served"
    values = {"strategy": "shared-queue", "serve": {}, **given, "experiment": name.lstrip("-")}
    wanted = Parameters.read(values, where)
    with recording.only_one(report.root() / "data" / "runs", recording.COMMAND):
        bar = experiment.bar(wanted.strategy)
        saved = experiment.measure(wanted, bar, resume=wanted.resume, kind=Served)
    click.echo(f"{served.text(saved)}\nThe steps are kept in {report.name(saved)}.jsonl.")


def _each(
    tasks: Sequence[Task], kind: str, kernels: publish.Kernels, target: Path, /, **values: str
) -> dict[str, str]:
    """Execute each into `target`, without `values` as committed. By name, why any failed."""
    problems = dict[str, str]()

    def page(one: Task, kernel: publish.Kernel) -> None:
        click.echo(f"{kind}: {one.title}", err=True)
        try:
            if values:
                one.execute(target, kernel, **values)
            else:
                one.renew(target / one.name, kernel)
        except RunFailed as error:
            problems[one.name] = _told(error)

    kernels.each(partial(page, one) for one in tasks)
    return problems


def _told(problem: object) -> str:
    click.echo(f"    failed: {safe(problem)}", err=True)
    return safe(problem)


def pass_over(problem: str) -> None:
    """Tell of a report that cannot be read and is left out."""
    click.echo(f"poc: passed over: {problem}", err=True)


def write_site(kernels: publish.Kernels, one: str | None = None, file: Path | None = None) -> Path:
    """Render the pages of every run and of the samples, and all reports; return the front page.

    Or the file that holds the page or experiment `one` whole: `file`, else one in the site.
    """
    folder, (groups, rows) = report.root() / "site", _gathered(kernels)
    page = site.site(folder, groups, rows)
    if one is not None:
        name, text = site.one_file(folder, rows, one)
        page = file or folder / f"{name}.html"
        with report.explained(page.name, "written"):
            page.write_text(text, "utf-8")
    return page.relative_to(report.root()) if page.is_relative_to(report.root()) else page


def _gathered(kernels: publish.Kernels) -> tuple[dict[str, list[Path]], list[site.Row]]:
    """The notebooks of each folder of the site, and a row a report."""
    runs = report.root() / "data" / "runs"
    folders = [*sorted(runs.glob("*/")), *sorted(runs.glob("*/*/"))]
    groups = {
        folder.relative_to(runs).as_posix(): executed
        for folder in folders
        if (executed := sorted(folder.glob("[0-9]*.ipynb")))
    }
    groups["sample"] = _sample_pages(kernels)

    def row(entry: documents.Entry, group: str, *point: str) -> site.Row:
        page = site.page_of(groups, group, entry.reading.report.strategy)
        return site.Row(entry, page, *point)

    saved = documents.entries(passed_over=pass_over)
    rows = [row(entry, entry.reading.report.experiment) for entry in saved]
    for folder in folders:
        for point, label in sweeps.summary(folder).items():
            paths = sorted((folder / point).glob("*.json*"))
            paths = [path for path in paths if not report.simulated(path)]
            for entry in documents.entries(paths, pass_over):
                rows.append(row(entry, f"{folder.name}/{point}", folder.name, label))
    return groups, rows


def _sample_pages(kernels: publish.Kernels) -> list[Path]:
    """The committed notebooks, and one for each strategy with a sample, executed where outdated."""
    pages, old, folder = list[Path](), list[Task](), report.root() / "data" / "runs" / "sample"
    for one in tasks(publish.notebooks(), list(STRATEGIES)):
        if not one.strategy:
            pages.append(one.notebook)
        elif sample := report.path_of(f"sample-{one.strategy}"):
            pages.append(folder / one.name)
            changed_s = max(path.stat().st_mtime for path in (one.notebook, sample))
            if not pages[-1].exists() or pages[-1].stat().st_mtime < changed_s:
                old.append(one)
    failed = _each(old, "page of a sample", kernels, folder)
    whole = [page for page in pages if page.name not in failed]
    return sorted(whole, key=lambda path: path.name)


def batch(
    given: dict[str, Any],
    where: str,
    prompts: Path,
    answers: Path,
    strategy: str | None = None,
    **more: Any,
) -> batches.Outcome:
    """Have a file's prompts answered by a pool; say by which strategy and why, and what it took."""
    given = {key: value for key, value in given.items() if key not in ("sweep", "live")}
    wanted, why = Parameters.read(given, where), "as asked for"
    if not (chosen := strategy or given.get("strategy")):
        chosen, why = winner(wanted)
    wanted = wanted.model_copy(update={"strategy": by_name(chosen).name})

    def tell(what: str) -> None:
        click.echo(f"poc: {safe(what)}", err=True)

    more |= {"progress": experiment.bar(prompts.name), "tell": tell}
    tell(f"by {chosen}: {why}.")
    out = batches.answer(wanted, prompts, answers, **more)
    if count := out.shares.total():
        shares = ", ".join(f"{name} {share:,}" for name, share in out.shares.items())
        click.echo(
            f"{many(count, 'answer')} in {number(out.took_s, 1)} s ({shares}). {out.fastest} alone "
            f"would have taken about {number(out.alone_s, 1)} s, an estimate from {out.source}: "
            f"spread, it took {number(out.took_s / out.alone_s)} times as long."
        )
    earlier = f", {out.before:,} of them before" if out.before else ""
    click.echo(f"{out.prompts - out.failed:,} of {out.prompts:,} prompts answered{earlier}.")
    return out


def winner(wanted: Parameters) -> tuple[str, str]:
    """The lowest ratio in the newest experiment with the same providers, and where it was so.

    Of strategies that limit what is in flight: a batch may be far longer than what was measured.
    """
    mine = [one.model_dump() for one in wanted.providers]
    limited = {name for name, strategy in STRATEGIES.items() if strategy.limit != "none"}
    found = [
        entry
        for entry in documents.entries(passed_over=pass_over)
        if (report := entry.reading.report).parameters and report.strategy in limited
        if mine == [one.model_dump() for one in report.parameters.providers]
    ]
    last = [e for e in found if e.reading.report.experiment == found[0].reading.report.experiment]
    if not last:
        return "shared-queue", "no saved experiment has these providers, and it suits most"
    best = min(last, key=lambda e: e.reading.headline.overhead_ratio.median or inf)
    name, day, _, strategy, ratio, _ = best.cells
    known = "the best of the last experiment with these providers"
    return strategy, f"{known}, {ratio} in {name}, {day}"
