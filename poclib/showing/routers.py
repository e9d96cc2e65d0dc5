"""Routers beside our strategies on the same machines: what each is called, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..parameters import ProviderSettings
from ..reading.reading import Reading
from ..stats import Headline
from . import words
from .format import bullets, listed, many, number


def router(reading: Reading) -> ProviderSettings | None:
    """The router that the strategy's prompts went through, if they did."""
    given = reading.report.parameters
    return given.router if given and reading.report.strategy == "through-router" else None


def named(reading: Reading) -> Headline:
    """The headline under the router's name, if it went through one; its pool is the machines."""
    through, behind = router(reading), (p for p in reading.report.providers if not p.router_of)
    names = [f"{p.name} at {p.speed:g}" if (p.speed or 1) < 1 else p.name for p in behind]
    called = through.name if through else reading.report.strategy
    return replace(reading.headline, strategy=called, roles=dict.fromkeys(names, "local"))


def pools(readings: Sequence[Reading]) -> dict[str, list[Reading]]:
    """The reports by the machines that they were measured on."""
    found: dict[str, list[Reading]] = {}
    for one in readings:
        found.setdefault(", ".join(named(one).providers), []).append(one)
    return found


def told(readings: Sequence[Reading]) -> str:
    """How the best router does beside the best strategy, and what failed. Markdown."""
    ours = words.best_first(named(one) for one in readings if not router(one))[:1]
    theirs = words.best_first(named(one) for one in readings if router(one))[:1]
    lines = [words.finding(one) for one in (*ours, *theirs)]
    for our, their in zip(ours, theirs, strict=False):
        if our.speedup and their.speedup:
            times = number(our.speedup / their.speedup)
            lines.append(f"{their.strategy} took {times} times as long as {our.strategy}")
    return bullets([f"{line}." for line in [*lines, *filter(None, map(failed, readings))]])


def failed(reading: Reading) -> str:
    """What was refused or failed, and what that left unanswered; empty where nothing was."""
    arms = reading.arms("strategy")
    rows = [row for arm in arms for row in arm.requests]
    faults = [row for row in rows if row.outcome == "failed"]
    if not faults:
        return ""
    why = listed(f"HTTP {row.status}" if row.status else str(row.error_kind) for row in faults)
    asked = len(arms) * len(reading.report.prompt_sha256)
    unanswered = asked - len(reading.answered("strategy"))
    what = (
        f"{named(reading).strategy} failed {len(faults):,} of {many(len(rows), 'request')} ({why})"
    )
    return f"{what}; {unanswered:,} of {many(asked, 'prompt')} had no answer at last"
