"""The finding that stands over each chart, from the same numbers as the sentences.

Draws nothing; the rules of wording are those of `words`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from ..reading.phases import LABELS
from ..stats import Headline, shares
from .format import many, milliseconds, number, percent
from .words import effect, per_token, slowdown


def timeline(headline: Headline) -> str:
    if headline.efficiency is None:
        return f"{headline.strategy}: what the providers' speeds allow is unknown"
    return f"{headline.strategy} reached {percent(headline.efficiency)} of the providers' speed"


def breakdown(headlines: Sequence[Headline]) -> str:
    """The largest part of a remote request (of a local one where there is none)."""
    if len(headlines) > 1:
        return _breakdowns(headlines)
    for headline in headlines:
        for role, means in headline.segments_ms.items():
            total = sum(means.values())
            if total > 0:
                part = max(means, key=lambda one: means[one])
                share = percent(means[part] / total)
                said = f"{share} of its {milliseconds(total)} is {LABELS[part]}"
                return f"A {role} request: {said}"
    return "No request was answered"


def _breakdowns(headlines: Sequence[Headline]) -> str:
    totals = {
        f"{one.strategy} (a {role} one)": sum(means.values())
        for one in headlines
        for role, means in one.segments_ms.items()
    }
    if not totals:
        return "No request was answered"
    low, high = (pick(totals, key=lambda one: totals[one]) for pick in (min, max))
    return (
        f"A request takes from {milliseconds(totals[low])} with {low} "
        f"to {milliseconds(totals[high])} with {high}"
    )


def ratios(headlines: Sequence[Headline]) -> str:
    counts = Counter(effect(one) for one in headlines)
    said = [f"{counts[word]} {word}" for word in ("faster", "slower") if counts[word]]
    if counts["not distinguishable from 1"]:
        said.append(f"{counts['not distinguishable from 1']} not distinguishable from 1")
    if counts["unknown"]:
        said.append(f"{counts['unknown']} without an interval")
    nouns = "strategy" if len(headlines) == 1 else "strategies"
    found = ", ".join(said) or "nothing"
    return f"{len(headlines)} {nouns} against the baseline: {found}"


def ecdf(headline: Headline) -> str:
    means = [f"{p} {milliseconds(s.mean)}" for p, s in headline.wall_ms.items() if s]
    worst = slowdown(headline)
    cost = f"; up to {number(worst[1], 2)} times one alone" if worst else ""
    return f"{headline.strategy}, mean request: {', '.join(means) or 'none answered'}{cost}"


def rounds(headline: Headline) -> str:
    below = sum(ratio < 1 for ratio in headline.round_ratios)
    total = many(len(headline.round_ratios), "round")
    less = f"took less time{per_token(headline)} than the baseline"
    return f"{headline.strategy} {less} in {below} of {total}"


def overhead(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a request pays outside its server, and the largest known part of it.

    A queue that the server reports lies in the server's own time, so it is no part of this.
    `rows` as `tables.overhead` gives them, of one arm; a remote request where there is one.
    """
    for role in ("remote", "local"):
        mine = [row for row in rows if row["role"] == role and not _absent(row["over_ms"])]
        if not mine:
            continue
        over = sum(row["over_ms"] for row in mine) / len(mine)
        said = f"A {role} request spends {milliseconds(over)} outside its server"
        means = {
            part: sum(known) / len(mine)
            for part in ("network_ms", "ours_ms", "unexplained_ms")
            if (known := [r[part] for r in mine if not _absent(r[part])])
        }
        if not means or over <= 0:
            return f"{said}; no source splits it"
        part = max(means, key=lambda one: means[one])
        return f"{said}; {percent(means[part] / over)} of it is {LABELS[part]}"
    return "No server reported its own time, so what lies outside it is unknown"


def _absent(value: float | None) -> bool:
    return value is None or isnan(value)


def share(headline: Headline) -> str:
    """Which provider everything waited for: the binding leg, the busiest of the pool."""
    found = [one for one in shares(headline) if one.busy is not None]
    if not found:
        return f"{headline.strategy}: how busy each provider was is unknown"
    busiest = max(found, key=lambda one: one.busy or 0.0)
    least = min((one.busy or 0.0) if one.done else 0.0 for one in shares(headline))
    if len(headline.providers) > 1 and least >= 0.9:
        return f"No binding leg: every provider was busy {percent(least)} of the time or more"
    done = f"busy {percent(busiest.busy)} of the time with {percent(busiest.done)} of the prompts"
    speed = "" if busiest.speed is None else f" and {percent(busiest.speed)} of the speed"
    return f"{busiest.provider} was the binding leg: {done}{speed}"


def lengths(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a token costs on each provider; `rows` as `tables.lengths` gives them."""
    if not rows:
        return "No answer's length is known"
    low = min(row["shortest_tokens"] for row in rows)
    high = max(row["longest_tokens"] for row in rows)
    if low == high:
        return f"Every answer has {many(low, 'token')}: length explains no difference in time"
    each = [
        f"{milliseconds(row['each_ms'])} on {row['provider']}"
        for row in rows
        if not _absent(row["each_ms"])
    ]
    if not each:
        return f"Answers have {low} to {high} tokens; too few to tell what a token costs"
    return f"One token more took {', '.join(each)}"


def anatomy(row: Mapping[str, Any]) -> str:
    """What the one request that is drawn spent its time on."""
    said = f"One request to {row['provider']} took {milliseconds(row['wall_ms'])}"
    if _absent(row["over_ms"]):
        return f"{said}; its server reports no time of its own"
    outside = milliseconds(row["over_ms"])
    return f"{said}: {milliseconds(row['server_ms'])} in its server, {outside} outside"
