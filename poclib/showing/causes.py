"""Why an arm was slow: queueing, sharing or thrashing, from a report's facts, told in a table.

Knows reports and numbers; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, median_high

from ..contention import GAIN, Behaviour, Level, alone, behaviour, level, tokens
from ..reading.belief import believed
from ..records import Arm, EngineUse, ProviderFacts, Report, Request
from ..stats import Headline
from .format import bullets, many, milliseconds, number, table

MEANING = {
    "batches": "batching: several requests share each step of the engine",
    "queues": "queueing: the server's own time stays, the rest of the wall is waiting",
    "shares": "sharing: each request takes the server longer, nothing is lost or gained",
    "thrashes": "thrashing: the server's own time itself grows, and work is lost",
    "refuses": "refusing: the server turned requests away",
    "undisturbed": "undisturbed",
}


@dataclass(frozen=True)
class Cause:
    """One provider in one kind of arm, medians over all rounds, against one request alone there."""

    arm: str
    provider: ProviderFacts
    found: Level
    alone: Level
    use: tuple[EngineUse, ...]
    tokens: int
    cpu_alone_ms: float | None = None  # of a token of the baseline

    @property
    def behaviour(self) -> Behaviour:
        """What it did; where engines take turns, work counts as lost only if it cost CPU time.

        One short request may fit into a single turn, and then looks faster alone than it is.
        """
        named, cost_ms = behaviour(self.found, self.alone), self.cpu_ms_per_token
        if named == "thrashes" and self.provider.turns and cost_ms and self.cpu_alone_ms:
            if cost_ms <= self.cpu_alone_ms / GAIN:
                return "batches"
            if cost_ms <= self.cpu_alone_ms * GAIN:
                return "shares"
        return named

    @property
    def wanting(self) -> int | None:
        """Threads that want a core at the same time: a bare engine has a team a request."""
        threads = self.provider.threads
        if threads is None or self.provider.engine_kind != "bare":
            return threads
        return threads * min(self.found.in_flight, self.provider.slots or 1)

    @property
    def cpu_share(self) -> float | None:
        """CPU seconds per second of wall time; at most the number of cores."""
        wall_ms = sum(one.wall_ms for one in self.use)
        return sum(one.cpu_ms for one in self.use) / wall_ms if wall_ms else None

    @property
    def cpu_ms_per_token(self) -> float | None:
        return (
            sum(one.cpu_ms for one in self.use) / self.tokens if self.use and self.tokens else None
        )

    @property
    def switches_per_token(self) -> float | None:
        """How often the system took a core from a thread of it, for each token."""
        counts = [one.involuntary_switches for one in self.use]
        if not counts or None in counts or not self.tokens:
            return None
        return sum(count or 0 for count in counts) / self.tokens


def causes(report: Report) -> list[Cause]:
    """The baseline and the strategy, a row for each provider that took part."""
    report, _ = believed(report)
    rows = []
    for arm in ("baseline", "strategy"):
        arms = [one for r in report.rounds for one in r.arms if one.arm == arm]
        for facts in report.providers:
            mine = [[q for q in one.requests if q.provider == facts.name] for one in arms]
            calm = _calm(report, facts.name)
            if any(mine) and calm:
                rows.append(_cause(arm, facts, arms, [m for m in mine if m], alone(calm)))
    costs = [one.cpu_ms_per_token for one in rows if one.arm == "baseline"]
    return [replace(one, cpu_alone_ms=costs[0] if costs else None) for one in rows]


def _cause(
    arm: str, facts: ProviderFacts, arms: Sequence[Arm], mine: list[list[Request]], calm: Level
) -> Cause:
    each = [level(rows) for rows in mine]

    def middle(field: str) -> float | None:
        known = [value for one in each if (value := getattr(one, field)) is not None]
        return median(known) if known else None

    together = replace(
        each[0],
        in_flight=median_high(one.in_flight for one in each),
        answered=sum(one.answered for one in each),
        refused=sum(one.refused for one in each),
        tokens_per_s=middle("tokens_per_s"),
        request_ms=middle("request_ms"),
        server_ms=middle("server_ms"),
        ttft_ms=middle("ttft_ms"),
    )
    use = tuple(u for one in arms for u in one.engines if u.provider == facts.name)
    return Cause(arm, facts, together, calm, use, sum(tokens(rows) for rows in mine))


def _calm(report: Report, provider: str) -> list[Request]:
    """Its requests that ran alone: in calibration, and in the baseline where that was its."""
    arms = [one for one in report.preparation if one.arm == "calibration"]
    arms += [one for r in report.rounds for one in r.arms if one.arm == "baseline"]
    return [row for one in arms for row in one.requests if row.provider == provider]


def labelled(report: Report, headline: Headline) -> Headline:
    """The headline under a name that tells the engines too, where reports are compared."""
    kinds = sorted({p.engine_kind or p.kind for p in report.providers})
    held = ", limit found while running" if _adaptive(report) else ""
    return replace(headline, strategy=f"{headline.strategy} on {' and '.join(kinds)}{held}")


def _adaptive(report: Report) -> bool:
    return any(one.limit_changes for r in report.rounds for one in r.arms)


def causes_text(report: Report) -> str:
    """The causes as a Markdown table, and a sentence for each provider under the strategy."""
    found = causes(report)
    if not found:
        return "No request was timed, so no cause is known."
    header = ["arm", "provider", "at once", "threads on cores", "CPU s per s", "CPU per token"]
    header += ["cores taken away, per token", "wall, times alone", "server, times alone"]
    header += ["tokens per s", "alone", "what it is"]
    rows = [
        [
            one.arm,
            one.provider.name,
            str(one.found.in_flight),
            _threads(one),
            _number(one.cpu_share, 2),
            milliseconds(one.cpu_ms_per_token),
            _number(one.switches_per_token, 1),
            _times(one.found.request_ms, one.alone.request_ms),
            _times(one.found.server_ms, one.alone.server_ms),
            _number(one.found.tokens_per_s, 1),
            _number(one.alone.tokens_per_s, 1),
            one.behaviour,
        ]
        for one in found
    ]
    said = [_sentence(one) for one in found if one.arm == "strategy"]
    return f"{table(header, rows, markdown=True)}\n\n{bullets(said)}"


def _sentence(one: Cause) -> str:
    name, at_once = one.provider.name, many(one.found.in_flight, "request")
    said = f"{name} with {at_once} at once: {MEANING[one.behaviour]}."
    if one.behaviour == "thrashes":
        said += f" {_threads(one)} cores wanted to run;" if one.wanting else ""
        said += (
            f" a token cost {milliseconds(one.cpu_ms_per_token)} of CPU time, and all together "
            f"gave {_number(one.found.tokens_per_s, 1)} tokens per second where one request alone "
            f"gives {_number(one.alone.tokens_per_s, 1)}."
        )
    return said


def _threads(one: Cause) -> str:
    if one.wanting is None:
        return "-"
    return f"{one.wanting} on {one.provider.cores or 1}"


def _times(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{number(value / base, 1)}×"  # noqa: RUF001


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else number(value, decimals)


def at_least(report: Report) -> float | None:
    """A bound from below on the ratio where arms were stopped at their limit; None if none was.

    The median over rounds of (time until the end or the stop) / baseline: every stopped round
    counts by what it had taken by then, so the true median is no smaller.
    """
    ratios: list[float] = []
    stopped = False
    for one in report.rounds:
        arms = {arm.arm: arm for arm in one.arms}
        if not {"baseline", "strategy"} <= arms.keys() or arms["baseline"].cut_ms is not None:
            continue
        base_ms, took_ms = (_lasted(arms[which]) for which in ("baseline", "strategy"))
        if base_ms and took_ms:
            ratios.append(took_ms / base_ms)
            stopped |= arms["strategy"].cut_ms is not None
    if not stopped:
        return None
    ratios.sort()
    middle = len(ratios) // 2
    return ratios[middle] if len(ratios) % 2 else (ratios[middle - 1] + ratios[middle]) / 2


def _lasted(arm: Arm) -> float | None:
    starts = [r.marks.start_ms for r in arm.requests if r.marks.start_ms is not None]
    ends = [r.marks.end_ms for r in arm.requests if r.marks.end_ms is not None]
    if arm.cut_ms is not None:
        ends = [arm.cut_ms]
    return max(ends) - min(starts) if starts and ends else None


def stopped_text(report: Report, headline: Headline) -> str:
    """The bottom line of an arm that was stopped; empty where every round came to its end."""
    bound = at_least(report)
    if bound is None:
        return ""
    cut = sum(arm.cut_ms is not None for r in report.rounds for arm in r.arms)
    return (
        f"**{headline.strategy} took at least {number(bound, 1)} times the baseline's time**: "
        f"{many(cut, 'arm')} of {len(report.rounds)} reached arm_limit_s and was stopped, so "
        "how much longer it would have taken is not known."
    )


def comparison(reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """The runs side by side, in their order, as a Markdown table: ratio, walls, what it is."""
    rows = []
    for report, headline in zip(reports, headlines, strict=True):
        ours = [one for one in causes(report) if one.arm == "strategy"]
        bound, median = at_least(report), headline.overhead_ratio.median
        walls = [one.found.request_ms for one in ours if one.found.request_ms is not None]
        calm = [one.alone.request_ms for one in ours if one.alone.request_ms is not None]
        shown = number(median, 2) if median is not None else "-"
        shown += " per token" if headline.per_token else ""
        rows.append(
            [
                labelled(report, headline).strategy,
                f"at least {number(bound, 1)}" if bound is not None else shown,
                milliseconds(headline.makespan_ms),
                milliseconds(fmean(walls) if walls else None),
                milliseconds(fmean(calm) if calm else None),
                ", ".join(sorted({one.behaviour for one in ours})) or "-",
            ]
        )
    header = ["run", "ratio to one machine", "makespan", "mean request", "alone", "what it is"]
    return table(header, rows, markdown=True)


TROUBLE = {
    "slower": "several at once took its server so much longer that they gave less than fewer",
    "refused": "it refused requests",
}
REASONS = {
    "good": "after good answers with {} in flight, one more is tried",
    "slower": "{} in flight gave less than fewer had given: halved",
    "refused": "refused with {} in flight: halved",
    "learned": "as found in the round before",
}


def changes_text(report: Report) -> str:
    """Every change of a limit that adapts, with its moment and its reason, as a Markdown table."""
    rows = []
    for one in report.rounds:
        for arm in one.arms:
            starts = [r.marks.start_ms for r in arm.requests if r.marks.start_ms is not None]
            rows += [
                [
                    str(one.index + 1),
                    change.provider,
                    milliseconds(change.at_ms - min(starts, default=change.at_ms)),
                    str(change.limit),
                    REASONS[change.reason].format(change.in_flight),
                ]
                for change in arm.limit_changes
            ]
    if not rows:
        return "No limit was changed."
    return table(["round", "provider", "after", "limit", "reason"], rows, markdown=True)


def fell(report: Report) -> list[str]:
    """A sentence for each provider whose limit fell below what was set: how far, and why."""
    lowest: dict[str, tuple[int, int]] = {}
    why: dict[str, set[str]] = {}
    arms = [arm for one in report.rounds for arm in one.arms if arm.limits]
    for arm in arms:
        for name, limit in (arm.limits or {}).items():
            bad = [c for c in arm.limit_changes if c.provider == name and c.reason in TROUBLE]
            if least := min((c.limit for c in bad), default=None):
                lowest[name] = min(lowest.get(name, (least, limit)), (least, limit))
                why.setdefault(name, set()).update(TROUBLE[c.reason] for c in bad)
    return [
        f"The limit of {name} fell from {limit} to {least}: {', and '.join(sorted(why[name]))}. "
        "Set its capacity lower (poc doctor --capacity finds one)."
        for name, (least, limit) in lowest.items()
    ]
