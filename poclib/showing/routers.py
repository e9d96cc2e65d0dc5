"""Routers beside our strategies on the same machines: what each is called, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..contention import REFUSALS
from ..parameters import ProviderSettings
from ..reading.reading import Reading
from ..stats import Headline
from . import words
from .format import bullets, many, number


def router(reading: Reading) -> ProviderSettings | None:
    """The router that the strategy's prompts went through, if they did."""
    given = reading.report.parameters
    return given.router if given and reading.report.strategy == "through-router" else None


def named(reading: Reading) -> Headline:
    """The headline under the router's name, if it went through one; its pool is the machines."""
    behind = [p for p in reading.report.providers if not p.router_of]
    names = [f"{p.name} (speed {p.speed:g})" if p.speed else p.name for p in behind]
    through = router(reading)
    called = through.name if through else reading.report.strategy
    return replace(reading.headline, strategy=called, roles=dict.fromkeys(names, "local"))


def told(readings: Sequence[Reading]) -> str:
    """How the best router does beside the best strategy, and which routers refused. Markdown."""
    lines = []
    ours, theirs = (
        words.best_first(named(one) for one in readings if bool(router(one)) is through)
        for through in (False, True)
    )
    for each in (ours, theirs):
        lines += [words.finding(one) for one in each[:1]]
    if ours and theirs and ours[0].speedup and theirs[0].speedup:
        times = number(ours[0].speedup / theirs[0].speedup)
        lines.append(f"{theirs[0].strategy} took {times} times as long as {ours[0].strategy}")
    for one in readings:
        turned_away, unanswered, requests, prompts = refused(one)
        if turned_away:
            what = f"{named(one).strategy} refused {turned_away:,} of {many(requests, 'request')}"
            lines.append(
                f"{what}; {unanswered:,} of {many(prompts, 'prompt')} had no answer at last"
            )
    return bullets([f"{line}." for line in lines])


def refused(reading: Reading) -> tuple[int, int, int, int]:
    """Requests refused and prompts never answered under the strategy, and how many each was."""
    arms = reading.arms("strategy")
    rows = [row for arm in arms for row in arm.requests]
    prompts = len(arms) * len(reading.report.prompt_sha256)
    turned_away = sum(row.status in REFUSALS for row in rows)
    return turned_away, prompts - len(reading.answered("strategy")), len(rows), prompts
