"""Every sentence that a person reads of a report, made from its reading. Draws nothing.

Here is what is told and when; longer texts are in templates/words.j2, warnings in `warnings`,
definitions in templates/glossary.txt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any

from ..contention import SLOWER, alone
from ..reading.many import Summary
from ..reading.phases import LABELS, OVERHEAD, SEGMENTS
from ..reading.reading import Reading
from ..records import ProviderFacts, Report
from ..stats import FAIL, INCONCLUSIVE, PASS, Headline
from . import format as form
from .format import day, inline, listed, many, milliseconds, number, percent, table
from .warnings import others, warnings, weighty

MEANING = {
    "batches": "batching: several requests share each step of the engine",
    "queues": "queueing: the server's own time stays, the rest of the wall is waiting",
    "shares": "sharing: each request takes the server longer, nothing is lost or gained",
    "thrashes": "thrashing: the server's own time itself grows, and work is lost",
    "refuses": "refusing: the server turned requests away",
    "undisturbed": "undisturbed",
}
_UNTOLD = "requests shared the server, or waited in it"
FEW = 3  # warnings in a terminal, unless all are asked for
say = partial(form.say, "words")
# What each term means that the pages use; as it is written in prose.
GLOSSARY: Mapping[str, str] = dict(
    line.split(": ", 1) for line in (form.FOLDER / "glossary.txt").read_text("utf-8").splitlines()
)

# Texts that are made in the template alone.
network: Callable[[Headline], str] = partial(say, "network")
why: Callable[[Headline], str] = partial(say, "why")
title_rounds: Callable[[Headline], str] = partial(say, "title_rounds")
failures: Callable[[Sequence[Headline]], str] = partial(say, "failures")
comparison_text: Callable[..., str] = partial(say, "comparison")  # headlines, markdown=False
provenance: Callable[[Reading], str] = partial(say, "provenance")
reasons: Callable[[Reading], str] = partial(say, "reasons")
cost: Callable[[Reading], str] = partial(say, "cost")
checks: Callable[[Reading], str] = partial(say, "checks")
report_text: Callable[..., str] = partial(say, "report")  # reading, every=False
doctor_table: Callable[..., str] = partial(say, "doctor")  # reading, problems, markdown=False
expected_gain: Callable[..., str] = partial(say, "gain")  # ratios, alone_ms, powers={}
duration: Callable[..., str] = partial(say, "duration")  # seconds, strategies, limit_s


def effect(headline: Headline) -> str:
    """faster, slower, not distinguishable from 1, or unknown (no interval, or times of no use)."""
    low, high = headline.overhead_ratio.low, headline.overhead_ratio.high
    if low is None or high is None or headline.forbidden:
        return "unknown"
    if high < 1 - headline.band:
        return "faster"
    return "slower" if low > 1 + headline.band else "not distinguishable from 1"


def per_token(headline: Headline | Summary) -> str:
    """What stands behind every ratio and speedup that is one of times per token."""
    return " per token" if headline.per_token else ""


def ratio(headline: Headline | Summary, decimals: int = 2) -> str:
    """0.58 (0.55 to 0.61, 5 rounds); 0.58 per token (…) where the arms' lengths are unlike."""
    found, rounds = headline.overhead_ratio, many(headline.overhead_ratio.rounds, "round")
    if found.median is None:
        return "no ratio (no complete round)"
    told = f"{number(found.low, decimals)} to {number(found.high, decimals)}, {rounds}"
    if found.low is None:
        told = f"{rounds}, {'so no' if found.rounds < 2 else 'too unlike for an'} interval"
    return f"{number(found.median, decimals)}{per_token(headline)} ({told})"


def finding(headline: Headline) -> str:
    """What the strategy did to the total time, as one sentence without its full stop."""
    found, rounds = headline.overhead_ratio, many(headline.overhead_ratio.rounds, "round")
    if found.median is None:
        return f"{headline.strategy} has no complete round, so nothing can be said"
    middle = number(found.median)
    took = f"{headline.strategy} took {middle} times the baseline's time{per_token(headline)}"
    if headline.forbidden:
        return f"{took}, which says nothing: {headline.forbidden[0]}"
    if found.low is None:
        return f"{took} in {rounds}, too {'few' if found.rounds < 2 else 'unlike'} for an interval"
    interval = f"interval {number(found.low)} to {number(found.high)}, {rounds}"
    return f"{took}: {effect(headline)} ({interval})"


def gate_line(headline: Headline) -> str:
    """The gate's verdict with the numbers it rests on."""
    return f"Gate: {headline.verdict} — {' '.join(_gate(headline))}"


def _gate(headline: Headline) -> tuple[str, str]:
    """The ratio, decimals enough to see the order; and how it stands to the limit."""
    found, limit, need = headline.overhead_ratio, headline.gate_max_ratio, headline.rounds_needed
    ends, decimals = {found.low, found.high} - {limit}, 2
    while decimals < 6 and number(limit, decimals) in {number(end, decimals) for end in ends}:
        decimals += 1
    judged, bar = ratio(headline, decimals), number(limit, decimals)
    if headline.forbidden:
        return judged, f"says nothing: {headline.forbidden[0]}"
    if headline.verdict != INCONCLUSIVE:
        return judged, f"is {'below' if headline.verdict == PASS else 'above'} {bar}"
    least = "at least" if found.low is None else "about"
    rounds = f"{least} {many(need, 'round')}" if need else "no reachable number of rounds"
    if found.low is None:
        return judged, f"cannot be held against {bar}; {rounds} would give an interval"
    return judged, f"holds {bar}; {rounds} would settle it"


def answer(*readings: Reading) -> str:
    """What a page begins with: the verdict in bold, then where it comes from. Markdown.

    Of several reports the best one's verdict. Whether a warning could change it is told.
    """
    headlines = [reading.headline for reading in readings]
    one = leading(readings)
    said, whose = finding(one.headline), "it"
    if len(readings) > 1:
        said, whose = best(headlines)[:-1], f"{one.headline.strategy}'s"
    why = f"as {whose} {_gate(one.headline)[1]}{_tally(headlines)}"
    lines = [failures(headlines), f"**{said}. Gate: {one.headline.verdict}**, {why}."]
    return f"{' '.join(filter(None, lines))} {source(readings, one)}".replace(" \n", "\n")


def source(readings: Sequence[Reading], one: Reading) -> str:
    """What stands behind an answer: whether a warning could change it; then the provenance."""
    count = len(beside(readings))
    caution = f"{many(count, 'warning')} below could change this." if count else ""
    return f"{caution}\n\n*{provenance(one)}*"


def trust(readings: Sequence[Reading], names: Iterable[str] = ()) -> str:
    """The warnings that could change a verdict; those that could not, folded. Markdown."""
    names = [*names]
    lines = [f"**Warning:** {text}" for text in beside(readings, names)]
    if notes := beside(readings, names, others):
        items = "".join(f"<li>{text}</li>\n" for text in notes)
        about = f"{many(len(notes), 'note')} that could not change a verdict"
        lines.append(f"<details><summary>{about}</summary>\n<ul>\n{items}</ul></details>")
    return "\n\n".join(lines) or "Nothing that was recorded speaks against these times."


def glossary() -> str:
    """Every definition, folded: what a page ends with. Each has an anchor, term-NAME."""
    terms = (
        f'<dt id="term-{term.replace(" ", "-")}">{term}</dt><dd>{meaning}</dd>\n'
        for term, meaning in GLOSSARY.items()
    )
    about = f"<summary>Glossary: {len(GLOSSARY)} terms</summary>"
    return f"<details>{about}\n<dl>\n{''.join(terms)}</dl></details>"


def few(warnings: Sequence[str], every: bool = False) -> list[str]:
    """The first of them, and how many more there are; or all of them."""
    shown = warnings if every else warnings[:FEW]
    rest = len(warnings) - len(shown)
    return [*shown, *([f"and {rest} more: --all"] if rest else [])]


def efficiency(headline: Headline) -> str:
    """79 %, or 306 % (one at a time) where the ideal leaves batching out."""
    told = percent(headline.efficiency)
    return f"{told} (one at a time)" if headline.unbatched and told != "-" else told


def pool(report: Report | Summary) -> str:
    """local, remote (embedded)."""
    names = ", ".join(facts.name for facts in report.providers)
    return f"{names} ({listed(facts.kind for facts in report.providers)})"


def software(facts: ProviderFacts) -> str:
    return inline(facts.engine or facts.server or facts.kind, 40)


def digest(facts: ProviderFacts) -> str:
    return inline((facts.digest or "").rpartition(":")[2], 200)[:12]


def subtitle(headline: Headline) -> str:
    """n, providers, date: what stands under every chart's title."""
    counts = f"{many(headline.requests, 'request')}, {many(len(headline.round_ratios), 'round')}"
    return f"{counts} · {where_and_when(headline)}"


def where_and_when(headline: Headline) -> str:
    return f"{', '.join(headline.providers)} · {day(headline.created)}"


def in_flight(limit: int | None, slots: int | None) -> str:
    """How many requests a provider may hold at once, and how many its server works on."""
    held = "no limit" if limit is None else "one at a time" if limit == 1 else f"up to {limit:,}"
    return held if slots is None else f"{held} ({many(slots, 'slot')} in its server)"


def slowdowns(headline: Headline) -> dict[str, float]:
    """Mean request over one alone there, per provider; empty unless calibration timed it."""
    alone_ms = headline.alone_ms if "calibration" in (headline.ideal_from or "") else {}
    walls = headline.wall_ms.items()
    return {p: wall.mean / alone_ms[p] for p, wall in walls if wall and p in alone_ms}


def crowding(headline: Headline, provider: str) -> str | None:
    """Why requests took so long there, as `contention` names it; None where they did not.

    "unknown" where no server's own time tells waiting from sharing.
    """
    seen = headline.contention.get(provider)
    if seen is None or slowdowns(headline).get(provider, 0.0) < SLOWER:
        return None
    untold = seen.behaviour in ("queues", "shares") and seen.server is None
    return "unknown" if untold else seen.behaviour


def crowded(headline: Headline) -> list[str]:
    """What became of requests that took far longer than one alone: a sentence a provider."""
    return [
        say("crowd_line", p, factor, headline.contention[p].rate, MEANING.get(named, _UNTOLD))
        for p, factor in slowdowns(headline).items()
        if (named := crowding(headline, p))
    ]


def overhead_text(reading: Reading) -> str:
    """What requests paid outside their server: means per provider and part, in Markdown."""
    from ..reading import tables

    rows = tables.overhead(reading).query("arm == 'strategy'").dropna(subset="over_ms")
    if rows.empty:
        return "No server reported its own time, so what lies outside it is unknown."
    means = rows.groupby("provider")[[part.key for part in OVERHEAD]].mean()
    cells = [[str(name), *map(milliseconds, parts)] for name, *parts in means.itertuples()]
    return table(["provider", *(part.label for part in OVERHEAD)], cells, markdown=True)


def verdict_text(readings: Sequence[Reading], every: bool = False, notes: bool = False) -> str:
    """What a terminal ends with: the gate, of one report or of several, and what could change it.

    The warnings come first, so that nobody reads the verdict without them; `notes` too.
    """
    headlines = [reading.headline for reading in readings]
    gate = gate_line(headlines[0]) if len(headlines) == 1 else suite_gate(headlines)
    warned = [f"warning: {text}" for text in beside(readings)]
    warned += [f"note: {text}" for text in beside(readings, chosen=others)] if notes else []
    return "\n".join([*few(warned, every), gate])


def beside(
    readings: Sequence[Reading],
    names: Iterable[str] = (),
    chosen: Callable[[Reading], list[str]] = weighty,
) -> list[str]:
    """What stands beside verdicts: the warnings that could change one, and whose each is.

    By strategy, unless `names` are given. Those that differ in numbers only stand once.
    """
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    names = names or [reading.headline.strategy for reading in readings]
    for name, reading in zip(names, readings, strict=True):
        for text in chosen(reading):
            alike[re.sub(r"[\d.,]*\d|slower|faster", "#", text)].append((name, text))
    lines = []
    for told in alike.values():
        name, text = told[0]
        where = ", ".join(name for name, _ in told)
        if len(told) > FEW or len({name for name, _ in told}) < len(told):
            where = f"{len(told)} of {many(len(readings), 'report')}"
        numbers = f"; the numbers are {name}'s" if len({text for _, text in told}) > 1 else ""
        alone = len(told) == len(readings) and not numbers
        lines.append(text if alone else f"{text} (So in {where}{numbers}.)")
    return lines


def best_first(headlines: Iterable[Headline]) -> list[Headline]:
    """By their ratios; last are those without."""
    return sorted(headlines, key=lambda h: h.overhead_ratio.median or inf)


def breakdown_text(headlines: Sequence[Headline]) -> str:
    """Means per part of a request, a row per strategy and role: the chart's own numbers."""
    means = [by_part for headline in headlines for by_part in headline.segments_ms.values()]
    parts = [part for part in SEGMENTS if any(part.key in by_part for by_part in means)]
    return say("breakdown", headlines, parts) if parts else "No request was answered."


def best(headlines: Sequence[Headline]) -> str:
    """The lowest ratio of several strategies, and which others cannot be told from it.

    Each was held against a baseline of its own, so two are told apart only where their intervals
    do not overlap: a careful rule, that may miss a real difference.
    """
    judged = [one for one in best_first(headlines) if one.overhead_ratio.median is not None]
    if not judged:
        return "No strategy has a complete round, so none is the best."
    first, *rest = judged
    high = first.overhead_ratio.high
    lowest = f"The lowest ratio is {first.strategy}'s, {ratio(first)}"
    if high is None or any(one.overhead_ratio.low is None for one in rest):
        return f"{lowest}; without intervals nothing says which strategy is the best."
    level = sorted(one.strategy for one in rest if (one.overhead_ratio.low or 0.0) <= high)
    if level:
        return f"{lowest}; not distinguishable from it: {', '.join(level)}."
    return f"{lowest}; every other interval lies above it." if rest else f"{lowest}."


def suite_gate(headlines: Sequence[Headline]) -> str:
    """The gate over several strategies: it is passed where one of them passes."""
    if not headlines:
        return "Gate: INCONCLUSIVE — there is no report to judge."
    chosen = min(headlines, key=_rank)
    return f"{gate_line(chosen)}, with {chosen.strategy}{_tally(headlines)}"


def _tally(headlines: Sequence[Headline]) -> str:
    """(of 8: 7 PASS, 1 FAIL); empty of one."""
    counts = Counter(headline.verdict for headline in headlines)
    tally = ", ".join(f"{counts[it]} {it}" for it in (PASS, INCONCLUSIVE, FAIL) if counts[it])
    return f" (of {len(headlines)}: {tally})" if len(headlines) > 1 else ""


def _rank(headline: Headline) -> tuple[bool, float]:
    return headline.verdict != PASS, headline.overhead_ratio.median or inf


def leading(readings: Iterable[Reading]) -> Reading:
    """The one whose verdict is that of all: the lowest ratio, of those that pass if any does."""
    return min(readings, key=lambda reading: _rank(reading.headline))


def title_timeline(headline: Headline) -> str:
    if headline.efficiency is None:
        return f"{headline.strategy}: what the providers' speeds allow is unknown"
    speed = "speed, one request at a time" if headline.unbatched else "speed"
    return f"{headline.strategy} reached {percent(headline.efficiency)} of the providers' {speed}"


def title_breakdown(headlines: Sequence[Headline]) -> str:
    """The largest part of the longest mean request."""
    means = [
        (headline.strategy, role, parts)
        for headline in headlines
        for role, parts in headline.segments_ms.items()
        if parts
    ]
    if not means:
        return "No request was answered"
    strategy, role, parts = max(means, key=lambda mean: sum(mean[2].values()))
    total, largest = sum(parts.values()), max(parts, key=lambda part: parts[part])
    share = percent(parts[largest] / total if total else None)
    whose = f" of {strategy}" if len(headlines) > 1 else ""
    return f"A {role} request{whose}: {share} of its {milliseconds(total)} is {LABELS[largest]}"


def title_ratios(headlines: Sequence[Headline]) -> str:
    counts = Counter(effect(headline) for headline in headlines)
    counts["without an interval"] = counts.pop("unknown", 0)
    told = ", ".join(f"{counts[word]} {word}" for word in sorted(counts) if counts[word])
    nouns = "strategy" if len(headlines) == 1 else "strategies"
    return f"{len(headlines)} {nouns} against the baseline: {told or 'nothing'}"


def title_ecdf(headline: Headline) -> str:
    means = [f"{p} {milliseconds(wall.mean)}" for p, wall in headline.wall_ms.items() if wall]
    most = max(slowdowns(headline).values(), default=None)
    times = f"; up to {number(most)} times one alone" if most else ""
    return f"{headline.strategy}, mean request: {', '.join(means) or 'none answered'}{times}"


def title_anatomy(row: Mapping[str, Any]) -> str:
    """What the one request that is drawn (`tables.typical`) spent its time on."""
    took = f"One request to {row['provider']} took {milliseconds(row['wall_ms'])}"
    if row["over_ms"] is None:
        return f"{took}; its server reports no time of its own"
    outside = milliseconds(row["over_ms"])
    return f"{took}: {milliseconds(row['server_ms'])} in its server, {outside} outside"


form.known(alone, best_first, crowded, crowding, digest, effect, efficiency, finding, gate_line)
form.known(others, per_token, ratio, slowdowns, software, verdict_text, warnings)
form.TEXTS.globals["doctor_table"] = doctor_table
