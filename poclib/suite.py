"""Which notebooks are executed, for which strategies, into which files. Measures nothing itself.

A notebook that declares the parameter `strategy` is executed once for each strategy, and a page is
made of each; every other notebook once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report
from .errors import RunFailed
from .measure.strategies import STRATEGIES, by_name
from .showing import notebooks as publish


@dataclass(frozen=True)
class Task:
    """A notebook to execute: the name of the file it becomes, and its strategy, if it has one."""

    notebook: Path
    name: str
    strategy: str = ""

    @property
    def title(self) -> str:
        """The title of its page."""
        if self.strategy:
            return by_name(self.strategy).question
        return publish.title(self.notebook)

    def execute(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Run it into `folder` with those of `values` that it declares."""
        declared = publish.declared(self.notebook)
        given = dict(values) | ({"strategy": self.strategy} if self.strategy else {})
        known = {key: value for key, value in given.items() if key in declared}
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
        elif "live" not in declared:
            reading.append(Task(notebook, notebook.name))
        elif not only:
            measuring.append(Task(notebook, notebook.name))
    return measuring + reading


def sample_pages(tell: Callable[[str], None]) -> list[Path]:
    """The committed notebooks, but one for each strategy with a sample in place of their own.

    Those are executed into data/runs/sample, and again only after the notebook or the sample
    changed.
    """
    folder = report.root() / "data" / "runs" / "sample"
    pages = []
    for one in tasks(publish.notebooks()):
        if not one.strategy:
            pages.append(one.notebook)
            continue
        sample, target = report.path_of(f"sample-{one.strategy}"), folder / one.name
        if sample is None:
            continue
        changed_s = max(path.stat().st_mtime for path in (one.notebook, sample))
        if not target.exists() or target.stat().st_mtime < changed_s:
            tell(f"page of a sample: {one.title}")
            try:
                one.renew(target)
            except RunFailed as error:
                tell(f"    failed: {error}")
                continue
        pages.append(target)
    return sorted(pages, key=lambda path: path.name)
