"""What of a report cannot be believed: servers' own times that cannot be, answers out of a cache.

Facts in, facts and reasons out; knows no file, no frame and no picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from ..records import Arm, Report, Request, ServerTimings
from .phases import between

# The same prompt at the same provider in the two arms of a round, as they came.
Pair = tuple[Request, Request]

# Two clocks may differ by this much and a thousandth of the time before one must be wrong.
SLACK_MS = 1.0
# No engine gives one request more; a server that says so counts in another unit.
MOST_TOKENS_PER_MS = 100.0
# A time to read like prompts that falls below this share of itself is a cache's.
COLLAPSED = 0.5
# More of the prompts' tokens out of a cache in one arm than in the other.
MORE_CACHED = 0.25


def believed(report: Report) -> tuple[Report, dict[str, str]]:
    """`report` without the own times of servers that told one that cannot be, and why of each."""
    reasons: dict[str, str] = {}
    rows = [row for arm in report.preparation for row in arm.requests] + report.requests
    for row in rows:
        if row.outcome == "ok" and row.provider not in reasons and (why := _impossible(row)):
            reasons[row.provider] = why
    if not reasons:
        return report, reasons

    def silenced(arm: Arm) -> Arm:
        untold = {"server": ServerTimings()}
        rows = [r.model_copy(untold) if r.provider in reasons else r for r in arm.requests]
        return arm.model_copy(update={"requests": rows})

    rounds = [one.model_copy(update={"arms": [*map(silenced, one.arms)]}) for one in report.rounds]
    changes = {"preparation": [*map(silenced, report.preparation)], "rounds": rounds}
    return report.model_copy(update=changes), reasons


def _impossible(row: Request) -> str | None:
    """Why the server's own times of an answer cannot be; None where they can."""
    told, wall, tokens = row.server, row.wall_ms, row.output_tokens or 0
    parts = (told.load_ms, told.queue_ms, told.prompt_ms, told.generation_ms, told.total_ms)
    known = [part for part in parts if part is not None]
    if any(part < 0 for part in known):
        return "it reports a negative time"
    if not known or not wall:
        return None
    longest = max(known)
    if longest > wall * 1.001 + SLACK_MS:
        return f"it reports {longest:,.1f} ms of a request that took {wall:,.1f} ms"
    made = told.generation_ms
    if made is not None and tokens > 1 and tokens > MOST_TOKENS_PER_MS * made:
        return f"it reports {made:.3g} ms for {tokens:,} tokens"
    seen = row.token_ms[-1] - row.token_ms[0] if row.token_ms else 0.0
    total = told.total_ms
    if total is not None and total < wall / 100 and seen > 10 * total + SLACK_MS:
        return f"it reports {total:.3g} ms for an answer that arrived over {seen:,.1f} ms"
    return None


def cached(report: Report) -> list[str]:
    """Why a server must have answered one arm of the rounds out of its prompt cache.

    Of every round the prompts that one provider had in both arms: by how much they cost less in
    the arm that ran second. The order alternates, so what makes the strategy's requests slower
    or faster (sharing, batching) falls out of the geometric mean of the two orders.
    """
    orders: dict[str, dict[str, list[Pair]]] = {}
    for arms in (one.arms for one in report.rounds if len(one.arms) == 2):
        before, after = ([row for row in arm.requests if row.outcome == "ok"] for arm in arms)
        mates = {(row.provider, row.prompt): row for row in before}
        for row in after:
            if mate := mates.get((row.provider, row.prompt)):
                pairs = orders.setdefault(row.provider, {"baseline": [], "strategy": []})
                pairs[arms[1].arm].append((mate, row))
    return [why for name, pairs in orders.items() if (why := _collapsed(name, [*pairs.values()]))]


def _collapsed(name: str, orders: Sequence[Sequence[Pair]]) -> str | None:
    pairs = [pair for order in orders for pair in order]
    more = [
        again.cached_tokens / again.prompt_tokens - (once.cached_tokens or 0) / once.prompt_tokens
        for once, again in pairs
        if again.cached_tokens and again.prompt_tokens and once.prompt_tokens
    ]
    if len(more) > len(pairs) / 2 and (reused := median(more)) > MORE_CACHED:
        return f"{name} took {100 * reused:.0f} % more of the prompts out of its cache in one arm"
    times = [[both for pair in order if (both := _reading_ms(*pair))] for order in orders]
    if min(map(len, times)) < 2:
        return None
    shares = [median(again / once for once, again in order) for order in times]
    saved_ms = sum(median(once - again for once, again in order) for order in times)
    share = math.sqrt(math.prod(shares))
    # A cache helps in both orders; and less than clocks may differ by is none.
    if share >= COLLAPSED or max(shares) >= 1 or saved_ms <= 2 * SLACK_MS:
        return None
    return (
        f"{name} began to answer in {100 * share:.0f} % of the time when prompts came a second "
        "time, so a cache answered"
    )


def _reading_ms(once: Request, again: Request) -> tuple[float, float] | None:
    """How long a prompt took to read, and when it came again; None where unlike or unknown.

    As the server says, else until its answer began.
    """
    before, after = once.server.prompt_ms, again.server.prompt_ms
    if before is None or after is None:
        before, after = _first_ms(once), _first_ms(again)
    short, long = sorted((once.prompt_tokens or 0, again.prompt_tokens or 0))
    alike = not short or long <= 1.1 * short
    return (before, after) if alike and before and after is not None else None


def _first_ms(row: Request) -> float | None:
    marks = row.marks
    first = marks.first_token_ms if marks.first_thought_ms is None else marks.first_thought_ms
    return between(marks.start_ms, first)
