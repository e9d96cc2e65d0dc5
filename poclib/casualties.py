"""What deaths cost a strategy: the reports of `outage`, divided by how many providers died.

Knows reports and numbers; draws nothing. Reads what `tables` makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from . import tables
from .cautions import calibrations
from .notation import many, milliseconds, number, table
from .records import Arm, Report, Round
from .stats import Headline
from .words import best, ratio, where_and_when

COUNTS = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class Loss:
    """One strategy with so many deaths; the baseline of `headline` is it with all alive.

    `by_speed` is the ratio that the survivors' speeds alone give, median over the rounds: what a
    death costs a strategy that loses no work with it and keeps the survivors busy.
    """

    strategy: str
    died: int
    pool: int
    headline: Headline
    by_speed: float | None
    prompts: int
    answered: int
    retries: int


def losses(reports: Sequence[Report]) -> list[Loss]:
    """Each strategy with each number of deaths, by that number and by what was lost.

    A round in which nobody died, since the arm was over before, is in none.
    """
    found = [
        _loss(report, died)
        for report in reports
        for died in sorted({len(_struck(one)) for one in report.rounds} - {0})
    ]
    return sorted(found, key=lambda one: (one.died, one.headline.overhead_ratio.median or 0.0))


def spared(reports: Sequence[Report]) -> int:
    """Rounds in which the arm was over before anybody died."""
    return sum(not _struck(one) for report in reports for one in report.rounds)


def points(found: Sequence[Loss]) -> list[dict[str, Any]]:
    """What the chart draws: every round's ratio, by strategy and by how many died."""
    return [
        {
            "strategy": one.strategy,
            "died": one.died,
            "ratios": one.headline.round_ratios,
            "by_speed": one.by_speed,
        }
        for one in found
    ]


def under(found: Sequence[Loss]) -> str:
    """What stands under the chart's title."""
    counts = sorted({len(one.headline.round_ratios) for one in found}) or [0]
    spread = (
        many(counts[-1], "round") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} rounds"
    )
    where = f" · {where_and_when(found[0].headline)}" if found else ""
    return f"{spread} for each strategy and number of deaths{where}"


def finding(found: Sequence[Loss]) -> str:
    """One death of three: 1.20 to 1.60 times as long; two: 2.00 to 2.90 times."""
    said: list[str] = []
    for died, mine in _by_deaths(found).items():
        spread = _spread([one.headline.overhead_ratio.median for one in mine])
        of = f" of {_count(mine[0].pool)} dead" if not said else " dead"
        said.append(f"{_count(died)}{of}: {spread} times as long")
    text = "; ".join(said) or "nobody died"
    return text[0].upper() + text[1:]


def told(found: Sequence[Loss], spared_rounds: int = 0) -> str:
    """The bottom line as Markdown: what is lost, what speed alone explains, who loses least."""
    prompts, answered = sum(one.prompts for one in found), sum(one.answered for one in found)
    lost = "none was lost" if answered == prompts else f"{prompts - answered} were lost"
    said = [f"**{finding(found)}. Of {many(prompts, 'answer')} {lost}.**"]
    for died, mine in _by_deaths(found).items():
        speed = _spread([one.by_speed for one in mine])
        said.append(
            f"With {_count(died)} dead: the survivors' speed alone makes it {speed} times as "
            f"long. {best([one.headline for one in mine])} {_soonest(mine)}"
        )
    if spared_rounds:
        count = "counts" if spared_rounds == 1 else "count"
        said.append(f"{many(spared_rounds, 'arm')} ended before anybody died and {count} nowhere.")
    return "\n\n".join([*said, losses_table(found)])


def _count(number_of: int) -> str:
    return COUNTS[number_of] if number_of < len(COUNTS) else f"{number_of:,}"


def _soonest(found: Sequence[Loss]) -> str:
    """A low ratio may only mean that it took long before; so who took the least time, too."""
    timed = {one.strategy: one.headline.makespan_ms for one in found}
    known = {name: taken for name, taken in timed.items() if taken is not None}
    if not known:
        return ""
    first = min(known, key=lambda name: known[name])
    return f"The shortest median time with deaths is {first}'s, {milliseconds(known[first])}."


def losses_table(found: Sequence[Loss]) -> str:
    """A row for each strategy and number of deaths."""
    header = ["died", "strategy", "all alive", "with deaths", "ratio (95 % interval)"]
    header += ["by speed alone", "answered", "tried again"]
    rows = [
        [
            f"{one.died} of {one.pool}",
            one.strategy,
            milliseconds(one.headline.baseline_ms),
            milliseconds(one.headline.makespan_ms),
            ratio(one.headline),
            "-" if one.by_speed is None else number(one.by_speed, 2),
            f"{one.answered} of {one.prompts}",
            str(one.retries),
        ]
        for one in found
    ]
    return table(header, rows, markdown=True)


def _loss(report: Report, died: int) -> Loss:
    mine = [one for one in report.rounds if len(_struck(one)) == died]
    part = report.model_copy(update={"rounds": mine})
    arms = [arm for one in mine for arm in one.arms if arm.struck_ms]
    answered = [{row.prompt for row in arm.requests if row.outcome == "ok"} for arm in arms]
    expected = _expected(part)
    return Loss(
        strategy=report.strategy,
        died=died,
        pool=len(report.providers),
        headline=tables.headline(part),
        by_speed=median(expected) if expected else None,
        prompts=len(report.prompt_sha256) * len(arms),
        answered=sum(map(len, answered)),
        retries=sum(row.role == "retry" for arm in arms for row in arm.requests),
    )


def _expected(report: Report) -> list[float]:
    """Each round's ratio, had it gone on at the survivors' speed from the first death on."""
    walls = {
        name: median([row.wall_ms for row in rows if row.wall_ms])
        for name, rows in calibrations(report).items()
    }
    if set(walls) < {one.name for one in report.providers}:
        return []
    speeds = {name: 1 / wall_ms for name, wall_ms in walls.items()}
    timed = tables.rounds(report).set_index("round")["baseline_ms"].to_dict()
    found = []
    for one in report.rounds:
        struck, starts = _struck(one), _starts(one)
        alive_ms = timed[one.index]
        if alive_ms != alive_ms or not starts:  # NaN: a prompt was not answered
            continue
        share = min(1.0, max(0.0, (min(struck.values()) - min(starts)) / alive_ms))
        left = sum(speed for name, speed in speeds.items() if name not in struck)
        found.append(share + (1 - share) * sum(speeds.values()) / left)
    return found


def _struck(one: Round) -> dict[str, float]:
    return next((arm.struck_ms for arm in one.arms if arm.struck_ms), {})


def _starts(one: Round) -> list[float]:
    arms: list[Arm] = [arm for arm in one.arms if arm.struck_ms]
    marks = [row.marks.start_ms for arm in arms for row in arm.requests]
    return [start for start in marks if start is not None]


def _by_deaths(found: Sequence[Loss]) -> dict[int, list[Loss]]:
    groups: dict[int, list[Loss]] = {}
    for one in found:
        groups.setdefault(one.died, []).append(one)
    return groups


def _spread(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "unknown"
    low, high = number(min(known), 2), number(max(known), 2)
    return low if low == high else f"{low} to {high}"
