"""Why an arm was slow: queueing, sharing or thrashing, from a report's facts, told in a table.

Knows reports and numbers; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from ..reading.causes import Cause, at_least
from ..reading.reading import of
from ..records import Report
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


def causes(report: Report) -> list[Cause]:
    """The baseline and the strategy, a row for each provider that took part."""
    return of(report).causes


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
