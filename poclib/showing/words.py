"""Every sentence that a person reads of a report, made from its reading. Draws nothing.

Here is what is told and when; longer texts are in templates/words.j2, warnings in `warnings`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ..contention import SLOWER, alone
from ..pacing import Power
from ..reading.phases import LABELS, OVERHEAD, SEGMENTS
from ..reading.reading import Reading
from ..records import ProviderFacts, Report
from ..stats import FAIL, INCONCLUSIVE, PASS, Headline
from . import format as form
from .format import bullets, day, inline, listed, many, milliseconds, number, percent, table
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
say = partial(form.say, "words")


def effect(headline: Headline) -> str:
    """faster, slower, not distinguishable from 1, or unknown (no interval, or times of no use)."""
    low, high = headline.overhead_ratio.low, headline.overhead_ratio.high
    if low is None or high is None or headline.forbidden:
        return "unknown"
    if high < 1 - headline.band:
        return "faster"
    return "slower" if low > 1 + headline.band else "not distinguishable from 1"


def per_token(headline: Headline) -> str:
    """What stands behind every ratio and speedup that is one of times per token."""
    return " per token" if headline.per_token else ""


def ratio(headline: Headline, decimals: int = 2) -> str:
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
    """The gate's verdict with the numbers it rests on; decimals enough to see the order."""
    found, limit, need = headline.overhead_ratio, headline.gate_max_ratio, headline.rounds_needed
    ends, decimals = {found.low, found.high} - {limit}, 2
    while decimals < 6 and number(limit, decimals) in {number(end, decimals) for end in ends}:
        decimals += 1
    gate, bar = f"Gate: {headline.verdict} — {ratio(headline, decimals)}", number(limit, decimals)
    if headline.forbidden:
        return f"{gate} says nothing: {headline.forbidden[0]}"
    if headline.verdict != INCONCLUSIVE:
        return f"{gate} is {'below' if headline.verdict == PASS else 'above'} {bar}"
    least = "at least" if found.low is None else "about"
    rounds = f"{least} {many(need, 'round')}" if need else "no reachable number of rounds"
    if found.low is None:
        return f"{gate}; {rounds} would give an interval to hold against {bar}"
    return f"{gate} holds {bar}; {rounds} would settle it"


def pool(report: Report) -> str:
    """local, remote (embedded)."""
    names = ", ".join(facts.name for facts in report.providers)
    return f"{names} ({listed(facts.kind for facts in report.providers)})"


def software(facts: ProviderFacts) -> str:
    return inline(facts.engine or facts.server or facts.kind, 40)


def digest(facts: ProviderFacts) -> str:
    return inline((facts.digest or "").rpartition(":")[2], 200)[:12]


def provenance(reading: Reading) -> str:
    """One line: when, on what, with what, how often."""
    return say("provenance", reading.report, reading.headline)


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


def network(headline: Headline) -> str:
    """What requests paid outside their server, and how much of it can be the network."""
    return " ".join(say("network_line", headline).split())


def slowdowns(headline: Headline) -> dict[str, float]:
    """Mean request over one alone there, per provider; empty unless calibration timed it."""
    alone_ms = headline.alone_ms if headline.ideal_from == "calibration" else {}
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


def why(headline: Headline) -> str:
    """The likeliest cause of the distance between the makespan and the ideal."""
    return " ".join(say("why_line", headline).split())


def opening(reading: Reading) -> str:
    """What stands before any result: one line of provenance, then every warning."""
    noted = bullets([f"**Note:** {text}" for text in warnings(reading)])
    return f"*{provenance(reading)}*\n\n{noted}"


def bottom_line(reading: Reading, verdict: str = "") -> str:
    """What stands first, in Markdown: gain, then cause, price and verdict (the gate's)."""
    headline = reading.headline
    return say("bottom_line", headline, reading.report.fastest, verdict or gate_line(headline))


def overhead_text(reading: Reading) -> str:
    """What requests paid outside their server: means per provider and part, in Markdown."""
    from ..reading import tables

    rows = tables.overhead(reading).query("arm == 'strategy'").dropna(subset="over_ms")
    if rows.empty:
        return "No server reported its own time, so what lies outside it is unknown."
    means = rows.groupby("provider")[[part.key for part in OVERHEAD]].mean().astype("object")
    cells = [
        [str(name), *map(milliseconds, its)]
        for name, *its in means.where(means.notna(), None).itertuples()
    ]
    return table(["provider", *(part.label for part in OVERHEAD)], cells, markdown=True)


def cost(reading: Reading) -> str:
    """What the gain was paid with: machine time, idle time, requests, tokens; a table."""
    headline, each_ms = reading.headline, dict[str, float | None]()
    good = reading.answered("strategy")
    for name in headline.providers:
        tokens = sum(row.output_tokens or 0 for row in good if row.provider == name)
        wall_ms = sum(row.wall_ms or 0.0 for row in good if row.provider == name)
        each_ms[name] = wall_ms / tokens if tokens else None
    machine_ms = sum(headline.busy.values()) * (headline.makespan_ms or 0.0)
    return say("cost", headline, max(1, len(headline.round_ratios)), each_ms, machine_ms)


def checks(reading: Reading) -> str:
    """What the assertions have just established, with the counts."""
    return say("checks", reading.headline)


def rows_text(reading: Reading) -> str:
    """Every request of a small report as a table."""
    return say("rows", reading.believed, reading.headline.roles)


def report_text(reading: Reading) -> str:
    """What `poc show` prints: provenance, warnings, numbers, gate, for a terminal."""
    top = failures([reading.headline]) + provenance(reading)
    return say("report", reading.headline, top, others(reading), verdict_text([reading]))


def verdict_text(readings: Sequence[Reading]) -> str:
    """What a terminal ends with: the gate, of one report or of several, and what could change it.

    The warnings come first, so that nobody reads the verdict without them.
    """
    headlines = [reading.headline for reading in readings]
    gate = gate_line(headlines[0]) if len(headlines) == 1 else suite_gate(headlines)
    return "\n".join([*(f"warning: {text}" for text in beside(readings)), gate])


def beside(readings: Sequence[Reading], names: Sequence[str] = ()) -> list[str]:
    """What stands beside verdicts: every warning that could change one, and whose it is.

    By strategy, unless `names` are given.
    """
    names = names or [reading.headline.strategy for reading in readings]
    pairs = zip(names, readings, strict=True)
    return once([(name, text) for name, its in pairs for text in weighty(its)], len(readings))


def once(told: Sequence[tuple[str, str]], reports: int) -> list[str]:
    """Warnings of several reports, each with whose it is; what differs in numbers only, once."""
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, text in told:
        alike[re.sub(r"[\d.,]*\d|slower|faster", "#", text)].append((name, text))
    lines = []
    for (name, text), *rest in alike.values():
        if any(other != text for _, other in rest):
            count = f"{1 + len(rest)} of {many(reports, 'report')}"
            text += f" (So in {count}; the numbers are {name}'s.)"
        elif len(rest) + 1 < reports:
            text += f" (So in {', '.join([name, *(other for other, _ in rest)])}.)"
        lines.append(text)
    return lines


def failures(headlines: Sequence[Headline]) -> str:
    """What stands before any number where providers failed: one paragraph, else nothing."""
    text = say("failures", headlines)
    return f"{text}\n\n" if text else ""


def by_ratio(headline: Headline) -> float:
    """The order from best to worst; last are those without a ratio."""
    middle = headline.overhead_ratio.median
    return float("inf") if middle is None else middle


def comparison_text(headlines: Sequence[Headline], markdown: bool = False) -> str:
    """The strategies side by side, best first, as text for a terminal or as Markdown."""
    ordered = sorted(headlines, key=by_ratio)
    return failures(headlines) + say("comparison", ordered, markdown)


def breakdown_text(headlines: Sequence[Headline]) -> str:
    """Means per part of a request, a row per strategy and role: the chart's own numbers."""
    means = [its for headline in headlines for its in headline.segments_ms.values()]
    parts = [part for part in SEGMENTS if any(part.key in its for its in means)]
    return say("breakdown", headlines, parts) if parts else "No request was answered."


def best(headlines: Sequence[Headline]) -> str:
    """The lowest ratio of several strategies, and which others cannot be told from it.

    Each strategy was held against a baseline of its own, so two of them are told apart only
    where their intervals do not overlap: a careful rule, that may miss a real difference.
    """
    judged = [one for one in headlines if one.overhead_ratio.median is not None]
    if not judged:
        return "No strategy has a complete round, so none is the best."
    first, *rest = sorted(judged, key=by_ratio)
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
    passed = [one for one in headlines if one.verdict == PASS]
    chosen, counts = min(passed or headlines, key=by_ratio), Counter(h.verdict for h in headlines)
    tally = ", ".join(f"{counts[it]} {it}" for it in (PASS, INCONCLUSIVE, FAIL) if counts[it])
    return f"{gate_line(chosen)}, with {chosen.strategy} (of {len(headlines)}: {tally})"


def doctor_table(reading: Reading, problems: Mapping[str, str], markdown: bool = False) -> str:
    """One line a provider: what it is, how fast, how far; then what is wrong with which."""
    rates = {name: alone(rows).tokens_per_s for name, rows in reading.calibrations.items()}
    return say("doctor", reading.report, reading.headline, rates, problems, markdown)


def expected_gain(
    ratios: Mapping[str, float],
    alone_ms: Mapping[str, float],
    powers: Mapping[str, Power] | None = None,
) -> str:
    """What the calibrated speeds promise before anything is run, and the rounds to tell it."""
    if not ratios or not alone_ms:
        return "No gain can be foretold: some provider's speed is unknown."
    ordered = sorted(ratios.items(), key=lambda item: item[1])
    return say("gain", ordered, min(alone_ms, key=lambda p: alone_ms[p]), powers or {})


def title_timeline(headline: Headline) -> str:
    if headline.efficiency is None:
        return f"{headline.strategy}: what the providers' speeds allow is unknown"
    return f"{headline.strategy} reached {percent(headline.efficiency)} of the providers' speed"


def title_breakdown(headlines: Sequence[Headline]) -> str:
    """The largest part of the longest mean request."""
    means = [(h.strategy, *its) for h in headlines for its in h.segments_ms.items() if its[1]]
    if not means:
        return "No request was answered"
    strategy, role, parts = max(means, key=lambda its: sum(its[2].values()))
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


def title_rounds(headline: Headline) -> str:
    below = sum(ratio < 1 for ratio in headline.round_ratios)
    where = f"in {below} of {many(len(headline.round_ratios), 'round')}"
    return f"{headline.strategy} took less time{per_token(headline)} than the baseline {where}"


def title_anatomy(row: Mapping[str, Any]) -> str:
    """What the one request that is drawn (`tables.typical`) spent its time on."""
    took = f"One request to {row['provider']} took {milliseconds(row['wall_ms'])}"
    if row["over_ms"] is None:
        return f"{took}; its server reports no time of its own"
    outside = milliseconds(row["over_ms"])
    return f"{took}: {milliseconds(row['server_ms'])} in its server, {outside} outside"


form.known(crowded, crowding, digest, effect, finding, network, per_token, ratio, slowdowns)
form.known(software, why)
