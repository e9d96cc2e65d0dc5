"""Which notebooks are executed, for which strategies, into which files; and the site of it all.

Between the `poc` command and the two halves. A notebook that declares the parameter `strategy` is
executed once for each strategy, and a page is made of each; every other notebook once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from . import recording, report
from .errors import ParameterError, RunFailed
from .measure import experiment
from .measure import sweep as sweeps
from .measure.strategies import STRATEGIES, by_name
from .parameters import Parameters
from .reading.reading import of
from .showing import curves, documents, site
from .showing import notebooks as publish
from .showing.format import many, safe


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

    def execute(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Run it into `folder` with those of `values` that it declares."""
        given = {**values, "strategy": self.strategy} if self.strategy else values
        known = {key: given[key] for key in publish.declared(self.notebook) if key in given}
        publish.execute(self.notebook, folder / self.name, known)

    def renew(self, target: Path) -> None:
        """Run it on saved reports; what `target` holds is replaced only by a whole notebook."""
        with tempfile.TemporaryDirectory() as folder:
            self.execute(Path(folder), {})
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder) / self.name, target)


def task(strategy: str) -> Task:
    """The notebook of one strategy; numbered, so that pages stand in the strategies' order."""
    number = 2 + list(STRATEGIES).index(by_name(strategy).name)
    name = f"{number:02}_{strategy.replace('-', '_')}.ipynb"
    return Task(publish.strategy_notebook(), name, strategy)


def tasks(notebooks: Sequence[Path], only: Sequence[str] = ()) -> list[Task]:
    """What a run of `notebooks` executes; of those that measure, only for the strategies `only`.

    Those that only read reports come last: on the first run there is nothing to read yet.
    """
    chosen = {by_name(name).name for name in only or STRATEGIES}
    measuring, reading = [], []
    for notebook in notebooks:
        declared = publish.declared(notebook)
        if "strategy" in declared:
            measuring += [task(name) for name in STRATEGIES if name in chosen]
        else:
            reading.append(Task(notebook, notebook.name))
    return measuring + reading


def run_all(tasks: Sequence[Task], folder: Path, values: Mapping[str, Any]) -> list[str]:
    """Execute each in turn; a failed one does not stop the others. Returns what failed, and why."""
    failures: list[str] = []
    for number, one in enumerate(tasks, start=1):
        click.echo(f"[{number}/{len(tasks)}] {one.title}", err=True)
        try:
            one.execute(folder, values)
        except RunFailed as error:
            failures.append(_told(error))
    return failures


def _told(problem: object) -> str:
    click.echo(f"    failed: {safe(problem)}", err=True)
    return safe(problem)


def check_answering(parameters: Parameters) -> None:
    """Before minutes are spent: does every provider answer, with the same model?"""
    own = [p for p in parameters.providers if p.kind != "embedded"]
    if not own:
        return
    checked = parameters.model_copy(update={"providers": own})
    with experiment.open_pool(checked) as providers:
        trial = experiment.Run(checked, providers)

        async def describe() -> None:
            try:
                await trial.describe()
            finally:
                await trial.aclose()

        experiment.on_own_loop(describe)


def sweep(given: Mapping[str, Any], where: str, only: Sequence[str] = ()) -> None:
    """Measure every point of the grid `given`, then run the notebooks that read all of them.

    `where` names the file in messages. Raises `ParameterError` before anything is measured, and
    `RunFailed` at the end where a point or a notebook failed.
    """
    points = [point for point in sweeps.points(given, where) if not only or point.strategy in only]
    if not points:
        raise ParameterError(f"{where}: no point has the strategy {' or '.join(only)}.")
    readers = publish.notebooks(pattern=str(given["notebooks"])) if "notebooks" in given else []
    folder = report.root() / "data" / "runs" / points[0].sweep
    shown = {
        point.name: f"[{number}/{len(points)}] {safe(point.label, 200)}"
        for number, point in enumerate(points, start=1)
    }

    def execute(point: sweeps.Point, target: Path) -> None:
        click.echo(shown[point.name], err=True)
        # A point that was stopped in the middle goes on from its own file.
        if readers:
            progress, running = experiment.bar(point.strategy), shared.of(point.parameters)
            experiment.measure(point.parameters, progress, resume=True, running=running)
        else:
            task(point.strategy).execute(target, {**point.values, "live": True, "resume": True})

    done: list[sweeps.Outcome] = []
    failed: list[str] = []
    with (
        recording.only_one(folder.parent, recording.COMMAND),
        experiment.SharedEngines() as shared,
    ):
        sweeps.write_summary(points, folder)
        try:
            for outcome in sweeps.run(points, folder, execute):
                done.append(outcome)
                if outcome.before:
                    click.echo(f"{shown[outcome.point.name]}: done before", err=True)
                elif outcome.problem:
                    failed.append(_told(outcome.problem))
        except KeyboardInterrupt:
            left = many(len(points) - len(done), "point")
            click.echo(f"poc: {left} left; the same command goes on from here.", err=True)
            raise
    reading = [Task(notebook, notebook.name) for notebook in readers]
    unread = run_all(reading, folder, {"folder": f"data/runs/{folder.name}"})
    page = write_site()
    read = {one.point.label: of(one.report) if one.report else None for one in done}
    click.echo(f"{curves.points_table(read)}\nOpen {page}")
    if failed:
        raise RunFailed(
            f"{len(failed)} of {len(points)} points failed: {failed[0]} "
            "The same command tries only those again."
        )
    if unread:
        raise RunFailed(unread[0])


def write_site() -> Path:
    """Render the pages of every run and of the samples, and all reports.

    Returns the index, relative to the project.
    """
    runs = report.root() / "data" / "runs"
    folders = [*sorted(runs.glob("*/")), *sorted(runs.glob("*/*/"))]
    groups = {
        folder.relative_to(runs).as_posix(): executed
        for folder in folders
        if (executed := sorted(folder.glob("[0-9]*.ipynb")))
    }
    groups["sample"] = _sample_pages()
    rows = [_row(entry, groups) for entry in documents.entries(passed_over=_pass_over)]
    for folder in folders:
        for point, label in sweeps.summary(folder).items():
            paths = sorted((folder / point).glob("*.json*"))
            entries = documents.entries(paths, _pass_over)
            rows += [_row(entry, groups, folder.name, point, label) for entry in entries]
    return site.site(report.root() / "site", groups, rows).relative_to(report.root())


def _pass_over(problem: str) -> None:
    click.echo(f"poc: passed over: {problem}", err=True)


def _row(
    entry: documents.Entry,
    groups: Mapping[str, Sequence[Path]],
    sweep: str = "",
    point: str = "",
    what: str = "",
) -> site.Row:
    name, date, pool, strategy, ratio, verdict = entry.cells
    group = f"{sweep}/{point}" if sweep else entry.reading.report.experiment
    page = site.page_of(groups, group, strategy)
    return site.Row(entry.reading.report, name, date, pool, ratio, verdict, page, sweep, what)


def _sample_pages() -> list[Path]:
    """The committed notebooks, but one for each strategy with a sample in place of their own.

    Those are executed into data/runs/sample, and again only after the notebook or the sample
    changed.
    """
    pages = []
    for one in tasks(publish.notebooks()):
        page = one.notebook
        if one.strategy:
            page = report.root() / "data" / "runs" / "sample" / one.name
            sample = report.path_of(f"sample-{one.strategy}")
            if sample is None:
                continue
            changed_s = max(path.stat().st_mtime for path in (one.notebook, sample))
            if not page.exists() or page.stat().st_mtime < changed_s:
                click.echo(f"page of a sample: {one.title}", err=True)
                try:
                    one.renew(page)
                except RunFailed as error:
                    _told(error)
                    continue
        pages.append(page)
    return sorted(pages, key=lambda path: path.name)
