"""JupyterLab's start page: the notebooks in reading order, and an explorer of what was measured.

What measures is handed in as a function: this half knows only reports.
"""

from __future__ import annotations

import asyncio
import base64
import html
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import nbformat
import yaml

from .. import parameters, report
from ..errors import PocError
from ..reading.reading import Reading
from . import charts, documents, style
from . import notebooks as publish
from .format import safe, table

EXPERIMENT = "lab"  # the name of what is measured here
EVERY_S = 0.2  # telling how far it is takes time from what is measured
# What is drawn of a reading, one of its rounds (None: of about the median length), and others.
VIEWS: dict[str, Callable[[Any, Reading, int | None, Iterable[Reading]], None]] = {
    "timeline": lambda ax, one, turn, _: charts.timeline(ax, one, turn),
    "breakdown": lambda ax, one, *_: charts.breakdown(ax, one.headline),
    "ratio": lambda ax, one, *_: charts.round_ratios(ax, one),
    "all strategies": lambda ax, _, __, all_: charts.ratios(ax, [one.headline for one in all_]),
}


def contents() -> str:
    """The other notebooks in reading order, as Markdown: the question of each, and how long."""
    rows = []
    for path in publish.notebooks()[1:]:
        notebook = nbformat.read(path, as_version=4)
        title, *rest = notebook.cells[0].source.split("\n\n")
        text = next((" ".join(one.split()) for one in rest if one[0] != "*"), "")  # no terms
        about = f"[{title.lstrip('# ')}]({path.name}) {text.partition('. ')[0].rstrip('.')}."
        rows.append([path.stem[:2], about, notebook.metadata.get("takes", "-")])
    return table(["", "what it asks, and what it holds", "takes"], rows, markdown=True)


class Explorer:
    """Choose experiment, strategy and round and see their picture; or measure a strategy now.

    `measure` is that of `measure.experiment`, `base` the file of parameters it begins with, and
    `experiment` what is shown first. What is displayed is `box`.
    """

    def __init__(
        self, measure: Callable[..., Any], strategies: Iterable[str], base: str, experiment: str
    ) -> None:
        import ipywidgets as w

        self._measure, self._base = measure, report.root() / base
        self._saved: dict[str, dict[str, Reading]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread()
        names = "experiment", "strategy", "round", "strategy"
        choices = [w.Dropdown(description=name) for name in names]
        self.experiment, self.strategy, self.round, self.wanted = choices
        self.view = choices[3] = w.ToggleButtons(options=[*VIEWS])
        self.rounds = w.BoundedIntText(2, min=1, max=1000, description="rounds")
        self.prompts = w.BoundedIntText(4, min=1, max=1000, description="prompts")
        self.now = w.Button(description="Measure now", button_style="primary")
        self.stop = w.Button(description="Stop", disabled=True)
        self.picture, self.bar, self.said = w.HTML(), w.IntProgress(), w.HTML()
        asked = [self.wanted, self.rounds, self.prompts, self.now]
        self._controls, self._choosing = [*choices, *asked], False
        for choice in choices:
            choice.observe(lambda _: self.show(), "value")
        self.now.on_click(self._begin)
        self.stop.on_click(self._end)
        rows = choices, [self.picture], [*asked, self.stop], [self.bar, self.said]
        self.box = w.VBox([w.Box(row, layout={"flex_flow": "row wrap"}) for row in rows])
        self.show(experiment)
        _chosen(self.wanted, strategies, self.strategy.value)

    def show(self, experiment: str = "", strategy: str = "") -> None:
        """Offer what is saved, these chosen if they are given, and draw what is chosen."""
        from matplotlib.figure import Figure

        if self._choosing:  # told of our own changes
            return
        if experiment:
            self._saved = {}
            for _, reading in documents.entries():  # the newest first
                of = self._saved.setdefault(reading.report.experiment, {})
                of.setdefault(reading.report.strategy, reading)
        self._choosing = True
        alike = self._saved.get(_chosen(self.experiment, self._saved, experiment), {})
        one = alike.get(_chosen(self.strategy, alike, strategy))
        rounds = [str(each.index + 1) for each in one.report.rounds] if one else []
        turn = _chosen(self.round, ["typical", *rounds])
        self._choosing = False
        figure = Figure(figsize=(8, 5))
        if one is None:
            style.instead(figure.gca(), documents.listing([]))
        else:
            index = int(turn) - 1 if turn.isdigit() else None
            VIEWS[self.view.value](figure.gca(), one, index, alike.values())
        svg, about = style.picture("svg", figure)
        source = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        words = html.escape(about["alt"])
        self.picture.value = f'<img alt="{words}" src="{source}" style="max-width: 100%">'

    def _begin(self, _: object) -> None:
        """Measure in a thread of its own, so that Stop is heard; all else is held meanwhile."""
        if self.thread.is_alive():
            self.said.value = "A measurement is under way: wait for its end, or press Stop."
            return
        self._hold(True)
        self.thread = threading.Thread(target=self._measured, daemon=True)
        self.thread.start()

    def _hold(self, held: bool) -> None:
        for control in self._controls:
            control.disabled = held
        self.stop.disabled, self._loop = not held, None

    def _end(self, _: object) -> None:
        self.stop.disabled = True
        if self._loop is not None:  # at once; else with the first request that is done
            self._loop.call_soon_threadsafe(signal.default_int_handler, signal.SIGINT, None)

    def _measured(self) -> None:
        told_s, said = 0.0, "It ended for a reason that was not foreseen; Jupyter's log has it."

        def progress(stage: str, done: int, total: int) -> None:
            nonlocal told_s
            first, now_s = self._loop is None, time.monotonic()
            self._loop = asyncio.get_running_loop()
            if first and self.stop.disabled:  # pressed before
                raise KeyboardInterrupt
            if now_s > told_s + EVERY_S:
                told_s, self.bar.max, self.bar.value = now_s, total, done
                self.said.value = html.escape(f"{safe(stage)}: {done} of {total} requests")

        try:
            self.said.value = "The engines are starting."
            wanted, file = self._written()
            saved = report.name(self._measure(wanted, progress))
            self.show(EXPERIMENT, wanted.strategy)
            said = f"Saved as {saved}; the same again: ./run-poc.sh {file}"
        except KeyboardInterrupt:
            said = "Stopped; rounds that were finished are saved."
        except PocError as error:
            said = safe(error)
        finally:
            self.bar.value, self.said.value = 0, html.escape(said)
            self._hold(False)

    def _written(self) -> tuple[parameters.Parameters, str]:
        """The parameters that are asked for, and the file that now holds them."""
        with report.explained(self._base.name, "read"):
            values = parameters.values(self._base.read_text("utf-8"), self._base.name)
        values |= {"experiment": EXPERIMENT, "strategy": self.wanted.value}
        values |= {"rounds": self.rounds.value, "prompts": self.prompts.value}
        wanted = parameters.Parameters.read(values, self._base.name)
        path = report.root() / "data" / "runs" / f"{EXPERIMENT}-{wanted.strategy}.yaml"
        with report.explained(path.name, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(values, sort_keys=False), "utf-8")
        return wanted, report.shown_path(path)


def _chosen(widget: Any, labels: Iterable[str], wanted: str = "") -> Any:
    """Have `wanted` chosen among these, else what was chosen before, else the first."""
    names, before = [*labels], widget.value
    if names != [*widget.options]:
        widget.options = names
    widget.value = next((name for name in (wanted, before, *names) if name in names), None)
    return widget.value
