"""The failure and its cures, on real engines: the same prompts with everything at once, and not.

Measures and saves facts by way of `experiment`; computes no statistic. Cases whose engines are
alike share them: starting a context for every request is most of the time that such a run takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

from . import experiment, report
from .engines.pool import RunningEngine, engine_pool
from .progress import Progress
from .records import Parameters, Report

# What each case sets of every provider, and the strategy of its run.
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bare", "all-parallel", {"engine": "bare", "adaptive": "off"}),
    ("bare", "serial-per-provider", {"engine": "bare", "adaptive": "off"}),
    ("adaptive", "all-parallel", {"engine": "bare", "adaptive": "forced"}),
    ("queueing", "all-parallel", {"engine": "queueing", "slots": None, "adaptive": "off"}),
    ("batched", "all-parallel", {"engine": "batched", "adaptive": "off"}),
)


def cases(parameters: Parameters, live: bool = False) -> list[Parameters]:
    """The failure, then its cures: the same prompts under other strategies, rules and engines.

    Everything at once on `bare` engines; one at a time on each; everything at once again, through
    a limit that adapts; then on engines that let the rest wait, and on engines that batch. Each is
    an experiment of its own, by its case's name. A `live` one never takes the samples' name.
    """
    name = "live" if live and parameters.experiment == "sample" else parameters.experiment
    return [
        parameters.model_copy(
            update={
                "experiment": f"{name}-{case}",
                "strategy": strategy,
                "providers": [p.model_copy(update=changes) for p in parameters.providers],
            }
        )
        for case, strategy, changes in CASES
    ]


def obtain(parameters: Parameters, live: bool, bar: Callable[[str], Progress]) -> list[Report]:
    """A notebook's reports, one a case: measured now if `live`, else the saved ones.

    `bar` makes a progress bar of a title.
    """
    wanted = cases(parameters, live)
    if live:
        return measure(wanted, bar)
    folder = report.home("failure-mode", parameters.experiment)
    return [report.load(f"{one.experiment}-{one.strategy}", folder) for one in wanted]


def measure(wanted: Sequence[Parameters], bar: Callable[[str], Progress]) -> list[Report]:
    """Measure each of `wanted`, save and return its report; an engine serves all that suit it."""
    found: list[Report] = []
    for _, alike in groupby(wanted, key=_engines):
        same = list(alike)
        with _started(same[0]) as running:
            for one in same:
                title = f"{one.strategy}, {one.experiment}"
                found.append(experiment.measure(one, bar(title), running=running))
    return found


def _engines(parameters: Parameters) -> tuple[str, ...]:
    """What decides which engines are started; how they are driven is no part of it."""
    providers = (one.model_copy(update={"adaptive": "off"}) for one in parameters.providers)
    return tuple(one.model_dump_json() for one in providers)


@contextlib.contextmanager
def _started(parameters: Parameters) -> Iterator[dict[str, RunningEngine]]:
    """The embedded engines of `parameters` by name; none for a person's own servers."""
    embedded = [one for one in parameters.providers if one.kind == "embedded"]
    with engine_pool(embedded, parameters.context_tokens) as started:
        yield {engine.name: engine for engine in started}
