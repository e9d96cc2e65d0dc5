"""Sentences and tables about several reports: whether two agree, and what makes them unlike.

Every number comes from `agreement` or a headline; the rules of wording are those of `words`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..reading.compare import Agreement
from ..records import Report
from ..stats import Headline, Ratio
from .format import bullets, date, inline, many, number, table
from .words import effect, ratio

_PLACES = {
    "inside": "any difference is within the band of {band} %",
    "outside": "they differ beyond the band of {band} %",
    "across": "not told apart at the band of {band} %, but a difference as large is not excluded",
    "unknown": "under two complete rounds there is no interval to judge by",
}


def agreement(
    found: Agreement, first: Headline, second: Headline, unlike: Mapping[str, Sequence[str]]
) -> str:
    """Whether a rerun agrees with what it repeats: the sentence, then what it rests on."""
    said = "The two agree" if found.agrees else "The two do not agree"
    if found.agrees and found.place == "across":
        said = "The two do not contradict each other, but could differ beyond the band"
    if found.change.low is None:
        said = "Whether the two agree cannot be said"
    if found.compared:
        answers = f"{found.equal:,} of {found.compared:,} answers are equal"
        if found.equal < found.compared:
            answers += ": another build or batching rounds differently, or the model is another"
    else:
        answers = "answers were not compared: each run marks its prompts to defeat a cache"
    place = _PLACES[found.place].format(band=number(100 * first.band, 0))
    lines = [
        f"{first.report}: {ratio(first)}, {effect(first)}, {first.verdict}",
        f"{second.report}: {ratio(second)}, {effect(second)}, {second.verdict}",
        f"second over first: {change(found.change)}; {place}",
        f"verdict of the gate: {'the same' if found.same_verdict else 'another'}",
        answers,
        *(f"unlike: {key}: {inline(a)}, now {inline(b)}" for key, (a, b) in unlike.items()),
    ]
    return f"{said}.\n{bullets(lines)}"


def change(found: Ratio) -> str:
    """0.99 (0.96 to 1.03)."""
    if found.median is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{number(found.median, 2)} (no interval)"
    return f"{number(found.median, 2)} ({number(found.low, 2)} to {number(found.high, 2)})"


def side_by_side(
    reports: Sequence[Report], headlines: Sequence[Headline], changes: Sequence[Ratio | None]
) -> str:
    """A line a report; `changes` holds its ratio over the first one's, None where none is due."""
    rows = [
        [
            headline.report,
            date(report),
            ", ".join(headline.providers),
            headline.strategy,
            ratio(headline),
            "-" if against is None else change(against),
            headline.verdict,
        ]
        for report, headline, against in zip(reports, headlines, changes, strict=True)
    ]
    header = ["report", "date", "providers", "strategy", "ratio (95 % interval)"]
    return table([*header, "over the first", "gate"], rows)


def differences(unlike: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """What is not the same in the reports, a row each; a sentence where all is alike."""
    if not unlike:
        return "Pool, prompts and parameters are alike in all of them."
    rows = [[inline(key), *(inline(value, 40) for value in row)] for key, row in unlike.items()]
    return table(["unlike", *names], rows)


def refusal(unlike: Mapping[str, Sequence[str]]) -> str:
    """Why these reports are not compared, as one sentence."""
    keys = list(unlike)
    more = f" and {many(len(keys) - 4, 'more thing')}" if len(keys) > 4 else ""
    shown = ", ".join(f"{key} ({' / '.join(dict.fromkeys(unlike[key]))})" for key in keys[:4])
    return (
        f"these reports are of unlike experiments: {shown}{more} differ, so their ratios do "
        "not measure one thing; add --anyway to see them side by side all the same."
    )
