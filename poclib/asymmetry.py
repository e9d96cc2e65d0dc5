"""Two machines made unlike on purpose: every strategy at each speed and round trip, for real.

Measures and saves facts; computes no statistic. Two embedded engines run throughout; for each
point the second one's speed and link are set anew, both are calibrated, and every round sends the
same prompts once to the first alone and once by each strategy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from . import report
from .dispatch import run_arm
from .engines.pool import engine_pool
from .errors import ParameterError, ReportError
from .experiment import Run, on_own_loop
from .pool import Measurable, open_pool
from .progress import Progress, quiet
from .records import Link, Parameters, Request, Unlike, UnlikeArm, UnlikePoint
from .strategies import STRATEGIES

# By the first, equal shares; by the others, shares that follow speed in three ways.
COMPARED = ("serial-per-provider", "capability-split", "shared-queue", "earliest-finish")

# Rounds of a point where their number is left to the run.
FEW = 3

# Makes the second machine so fast and so far away.
Turn = Callable[[float, float], None]


def path(experiment: str) -> Path:
    """Where the points of that experiment are."""
    return report.root() / "data" / "reports" / "asymmetry" / f"{experiment}.json"


def obtain(
    parameters: Parameters,
    speeds: Sequence[float],
    round_trips_ms: Sequence[float],
    live: bool,
    progress: Progress = quiet,
) -> Unlike:
    """A notebook's points: measured now if `live`, else the saved ones of that experiment.

    A live run left at the name "sample" is saved as "live".
    """
    if live:
        if parameters.experiment == "sample":
            parameters = parameters.model_copy(update={"experiment": "live"})
        save(measure(parameters, speeds, round_trips_ms, progress), parameters.experiment)
    return load(parameters.experiment)


def measure(
    parameters: Parameters,
    speeds: Sequence[float],
    round_trips_ms: Sequence[float],
    progress: Progress = quiet,
) -> Unlike:
    """Every one of `speeds` without a round trip, then every round trip at full speed.

    `parameters` have two embedded providers. Raises `ParameterError` where they have not.
    """
    if [one.kind for one in parameters.providers] != ["embedded"] * 2:
        raise ParameterError("providers: this needs two embedded ones, whose speed can be set.")
    points = [(speed, 0.0) for speed in speeds] + [(1.0, ms) for ms in round_trips_ms]
    # A link cannot be added later, so the second one begins with one; each point sets it anew.
    first, second = parameters.providers
    linked = second.model_copy(update={"link": Link(round_trip_ms=1.0), "role": "remote"})
    wanted = parameters.model_copy(update={"providers": [first, linked]})
    with engine_pool(wanted.providers, wanted.context_tokens) as running:
        by_name = {engine.name: engine for engine in running}

        def turn(speed: float, round_trip_ms: float) -> None:
            by_name[second.name].set_speed(speed)
            by_name[second.name].set_link(Link(round_trip_ms=round_trip_ms))

        with open_pool(wanted, running=by_name) as opened:
            run = Run(wanted, opened)
            return on_own_loop(partial(sweep, run, points, turn, progress))  # type: ignore[no-any-return]


async def sweep(
    run: Run, points: Sequence[tuple[float, float]], turn: Turn, progress: Progress = quiet
) -> Unlike:
    """Measure each of `points` (speed, round trip) after `turn` has set it."""
    found: list[UnlikePoint] = []
    senders, wanted = list(run.senders.values()), run.parameters.rounds
    rounds = FEW if wanted == "auto" else wanted
    try:
        await run.describe()
        for number, (speed, round_trip_ms) in enumerate(points):
            progress(f"speed {speed:g}, round trip {round_trip_ms:g} ms", number, len(points))
            turn(speed, round_trip_ms)
            run.expected_ms.clear()
            await run.prepare()
            alone_ms = dict(run.expected_ms)
            arms = [arm for index in range(rounds) for arm in await _round(run, index)]
            found.append(
                UnlikePoint(speed=speed, round_trip_ms=round_trip_ms, alone_ms=alone_ms, arms=arms)
            )
        progress("done", len(points), len(points))
    finally:
        for sender in senders:
            await sender.aclose()
    return Unlike(
        created=run.created,
        environment=run.environment,
        providers=run.facts,
        prompts=len(run.texts),
        max_tokens=run.parameters.max_tokens,
        band=run.parameters.band,
        points=found,
    )


async def _round(run: Run, index: int) -> list[UnlikeArm]:
    """The first machine alone and each strategy once, the order turned by one each round."""
    names = ["sequential", *COMPARED]
    shift = index % len(names)
    return [await _arm(run, name, index) for name in names[shift:] + names[:shift]]


async def _arm(run: Run, name: str, index: int) -> UnlikeArm:
    senders: list[Measurable] = list(run.senders.values())
    if name == "sequential":
        senders = senders[:1]
    names = [sender.name for sender in senders]
    arm = await run_arm(
        "baseline" if name == "sequential" else "strategy",
        STRATEGIES[name],
        run._prompts(name, str(index), len(run.texts)),
        senders,
        run._limits(STRATEGIES[name].limit, names),
        run.expected_ms,
        run.clock,
        run.rules,
    )
    return UnlikeArm(strategy=name, round=index, spans=_spans(arm.requests))


def _spans(rows: Iterable[Request]) -> dict[str, list[tuple[float, float]]]:
    """When each answered request of each provider began and ended."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row.outcome == "ok" and row.marks.start_ms is not None and row.marks.end_ms is not None:
            span = round(row.marks.start_ms, 1), round(row.marks.end_ms, 1)
            found.setdefault(row.provider, []).append(span)
    return found


def save(found: Unlike, experiment: str) -> Path:
    """Write the points, an arm a line, and return the file's path."""
    target = path(experiment)
    target.parent.mkdir(parents=True, exist_ok=True)
    data = found.model_dump(mode="json")
    points = data.pop("points")
    lines = [
        json.dumps(point | {"arms": "ARMS"}).replace(
            '"ARMS"', "[\n  " + ",\n  ".join(map(json.dumps, point["arms"])) + "]"
        )
        for point in points
    ]
    head = json.dumps(data, indent=1)[:-2]
    target.write_text(f'{head},\n "points": [\n ' + ",\n ".join(lines) + "]\n}\n", "utf-8")
    return target


def load(experiment: str) -> Unlike:
    """The saved points of `experiment`. Raises `ReportError`."""
    target = path(experiment)
    try:
        return Unlike.model_validate_json(target.read_bytes())
    except OSError:
        there = ", ".join(sorted(p.stem for p in target.parent.glob("*.json"))) or "none"
        raise ReportError(f"no points of experiment {experiment!r}; there are: {there}.") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ReportError(
            f"{target.name} holds no points of unlike machines ({where}): measure them again."
        ) from None
