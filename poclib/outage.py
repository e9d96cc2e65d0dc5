"""What a strategy loses when providers die: engines killed in the middle of an arm, for real.

Measures and saves facts; computes no statistic. A round starts every engine anew, runs the
strategy with all alive, then once more with some killed at a moment drawn at random.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import report
from .dispatch import run_arm
from .engines.pool import engine_pool
from .errors import ParameterError
from .experiment import Run, on_own_loop
from .pool import Measurable, engine_facts
from .progress import Progress, quiet
from .providers import KINDS
from .records import Arm, ArmName, Parameters, Report, Round
from .strategies import STRATEGIES

# The death's moment, as shares of the time that the arm took with all alive.
EARLIEST, LATEST = 0.1, 0.9

# The providers with what is known of their engines, and what kills the one of that name.
Mortals = tuple[list[tuple[Measurable, dict[str, Any]]], Callable[[str], None]]
Opened = Callable[[], contextlib.AbstractContextManager[Mortals]]


def home() -> Path:
    """Where these reports lie: apart from those whose baseline is one machine alone."""
    return report.root() / "data" / "reports" / "outage"


def obtain(parameters: Parameters, deaths: Sequence[int], live: bool) -> list[Report]:
    """A notebook's reports: measured now if `live`, else the saved ones of that experiment.

    As with `experiment.obtain`, a live run left at the name "sample" is saved as "live".
    """
    if not live:
        return report.experiments(parameters.experiment, home())
    if parameters.experiment == "sample":
        parameters = parameters.model_copy(update={"experiment": "live"})
    return measure(parameters, deaths)


def measure(
    parameters: Parameters,
    deaths: Sequence[int] = (1,),
    strategies: Sequence[str] = tuple(STRATEGIES),
    folder: Path | None = None,
    opened: Opened | None = None,
    progress: Progress = quiet,
) -> list[Report]:
    """Save and return one report a strategy: `parameters.rounds` rounds for each of `deaths`.

    Rounds with so many deaths and with so many take turns, and every strategy meets the same
    deaths: the same providers, at the same share of its time. In these reports the arm
    `baseline` is the same strategy with every provider alive, and `struck_ms` of the other arm
    says who was killed when. `opened` replaces the embedded engines (for fakes). Raises
    `ParameterError` where more are to die than leave a survivor.
    """
    if parameters.rounds == "auto":
        raise ParameterError("rounds: auto is not for deaths; give a number of rounds.")
    for count in deaths:
        if not 0 < count < len(parameters.providers):
            raise ParameterError(
                f"deaths: {count} of {len(parameters.providers)} providers: at least one must "
                "die and one survive."
            )
    rounds_each = parameters.rounds * len(deaths)
    total = len(strategies) * rounds_each
    saved = []
    for number, name in enumerate(strategies):
        wanted = parameters.model_copy(update={"strategy": name})
        run: Run | None = None
        rounds: list[Round] = []
        for index in range(rounds_each):
            progress(f"{name}, round {index + 1}", number * rounds_each + index, total)
            count = deaths[index % len(deaths)]
            with (opened or (lambda: _engines(parameters)))() as (senders, kill):
                if run is None:
                    run = Run(wanted, senders)
                run.senders = {sender.name: sender for sender, _ in senders}
                rounds.append(on_own_loop(partial(_round, run, index, count, kill)))
        assert run is not None
        changes = {
            "rounds": rounds,
            "source": f"the baseline is {name} with all alive, deaths a round: "
            + " or ".join(map(str, deaths)),
        }
        found = run.as_report().model_copy(update=changes)
        saved.append(report.load(report.save(found, folder or home())))
    progress("done", total, total)
    return saved


@contextlib.contextmanager
def _engines(parameters: Parameters) -> Iterator[Mortals]:
    """The embedded engines of `parameters`, mortal by SIGKILL, which nothing can catch."""
    with engine_pool(parameters.providers, parameters.context_tokens) as running:
        senders: list[tuple[Measurable, dict[str, Any]]] = [
            (
                KINDS["embedded"](settings, parameters, engine.url, engine.api_key),
                engine_facts(settings, engine),
            )
            for settings, engine in zip(parameters.providers, running, strict=True)
        ]
        pids = {engine.name: engine.pids for engine in running}

        def kill(name: str) -> None:
            for pid in pids[name]:
                os.kill(pid, signal.SIGKILL)

        yield senders, kill


async def _round(run: Run, index: int, deaths: int, kill: Callable[[str], None]) -> Round:
    """The strategy with all alive, then with `deaths` of them killed while it runs."""
    draw = random.Random(f"{run.parameters.seed} {index}")
    victims = draw.sample(sorted(run.senders), deaths)
    share = draw.uniform(EARLIEST, LATEST)
    try:
        run.facts.clear()
        await run.describe()
        await run.prepare()
        alive = await _arm(run, "baseline", index)
        ends = [row.marks.end_ms or 0.0 for row in alive.requests]
        starts = [row.marks.start_ms or 0.0 for row in alive.requests]
        struck: dict[str, float] = {}

        async def strike() -> None:
            await asyncio.sleep(share * (max(ends) - min(starts)) / 1000)
            for name in victims:
                kill(name)
                struck[name] = run.clock()

        killer = asyncio.create_task(strike())
        try:
            cut = await _arm(run, "strategy", index)
        finally:
            killer.cancel()
        return Round(index=index, arms=[alive, cut.model_copy(update={"struck_ms": struck})])
    finally:
        for sender in run.senders.values():
            await sender.aclose()


async def _arm(run: Run, arm: ArmName, index: int) -> Arm:
    return await run_arm(
        arm,
        run.strategy,
        run._prompts(arm, str(index), len(run.texts)),
        list(run.senders.values()),
        run._limits(run.strategy.limit, list(run.senders)),
        run.expected_ms,
        run.clock,
        run.rules,
    )
