"""Every sentence that a person reads, made from a report and its headline. Draws nothing.

Each function is one kind of sentence; text that came from servers passes `inline`. Warnings are
made by `cautions`, how far the instrument is off is told by `accuracy`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from ..contention import SLOWER
from ..pacing import Power
from ..reading.belief import believed
from ..reading.phases import SEGMENTS
from ..reading.reading import of
from ..records import Probe, ProviderFacts, Report
from ..stats import FAIL, INCONCLUSIVE, PASS, Headline, Spread
from .format import bullets, date, day, inline, many, milliseconds, number, percent, safe, table
from .warnings import others, warnings, weighty


def effect(headline: Headline) -> str:
    """faster, slower, not distinguishable from 1, or unknown (no interval, or times of no use)."""
    low, high = headline.overhead_ratio.low, headline.overhead_ratio.high
    if low is None or high is None or headline.forbidden:
        return "unknown"
    if high < 1 - headline.band:
        return "faster"
    return "slower" if low > 1 + headline.band else "not distinguishable from 1"


def ratio(headline: Headline, decimals: int = 2) -> str:
    """0.58 (0.55 to 0.61, 5 rounds); 0.58 per token (…) where the arms' lengths are unlike."""
    found = headline.overhead_ratio
    if found.median is None:
        return "no ratio (no complete round)"
    middle = number(found.median, decimals) + per_token(headline)
    if found.low is None or found.high is None:
        why = "so no interval" if found.rounds < 2 else "too unlike for an interval"
        return f"{middle} ({many(found.rounds, 'round')}, {why})"
    ends = f"{number(found.low, decimals)} to {number(found.high, decimals)}"
    return f"{middle} ({ends}, {many(found.rounds, 'round')})"


def per_token(headline: Headline) -> str:
    """What stands behind every ratio and speedup that is one of times per token."""
    return " per token" if headline.per_token else ""


def finding(headline: Headline) -> str:
    """What the strategy did to the total time, as one sentence without its full stop."""
    found = headline.overhead_ratio
    if found.median is None:
        return f"{headline.strategy} has no complete round, so nothing can be said"
    said = f"{headline.strategy} took {number(found.median, 2)} times the baseline's time"
    said += per_token(headline)
    if headline.forbidden:
        return f"{said}, which says nothing: {headline.forbidden[0]}"
    if found.low is None or found.high is None:
        why = "too few" if found.rounds < 2 else "too unlike"
        return f"{said} in {many(found.rounds, 'round')}, {why} for an interval"
    interval = f"interval {number(found.low, 2)} to {number(found.high, 2)}"
    return f"{said}: {effect(headline)} ({interval}, {many(found.rounds, 'round')})"


def gate_line(headline: Headline) -> str:
    """The gate's verdict with the numbers it rests on; decimals enough to see the order."""
    found, limit = headline.overhead_ratio, headline.gate_max_ratio
    ends = [end for end in (found.low, found.high) if end is not None]
    decimals = 2
    while decimals < 6 and any(
        end != limit and number(end, decimals) == number(limit, decimals) for end in ends
    ):
        decimals += 1
    said = f"Gate: {headline.verdict} — {ratio(headline, decimals)}"
    bar = number(limit, decimals)
    if headline.forbidden:
        return f"{said} says nothing: {headline.forbidden[0]}"
    if headline.verdict == PASS:
        return f"{said} is below {bar}"
    if headline.verdict == FAIL:
        return f"{said} is above {bar}"
    if not ends:
        need = headline.rounds_needed
        rounds = f"at least {need:,} rounds" if need else "no reachable number of rounds"
        return f"{said}; {rounds} would give an interval to hold against {bar}"
    if headline.rounds_needed is None:
        return f"{said} holds {bar}; no reachable number of rounds would settle it"
    return f"{said} holds {bar}; about {many(headline.rounds_needed, 'round')} would settle it"


def pool(report: Report) -> str:
    """local, remote (embedded)."""
    kinds = sorted({p.kind for p in report.providers})
    return f"{', '.join(p.name for p in report.providers)} ({', '.join(map(inline, kinds))})"


def provenance(report: Report, headline: Headline) -> str:
    """One line: when, on what, with what, how often."""
    models = sorted({inline(p.model) for p in report.providers if p.model}) or ["model unknown"]
    digests = sorted({_short(p.digest) for p in report.providers if p.digest})
    engines = sorted({inline(p.engine or p.server or p.kind) for p in report.providers})
    weights = f"digest {', '.join(digests)}" if digests else "digest unknown"
    return " · ".join(
        [
            date(report),
            f"on {', '.join(headline.providers)}",
            f"{', '.join(models)} ({weights})",
            ", ".join(engines),
            many(len(report.rounds), "round"),
            many(headline.prompts, "prompt"),
            many(headline.requests, "request"),
            *([inline(report.source)] if report.source else []),
        ]
    )


def _short(digest: str) -> str:
    return inline(digest.rpartition(":")[2], 200)[:12]


def subtitle(headline: Headline) -> str:
    """n, providers, date: what stands under every chart's title."""
    counts = f"{many(headline.requests, 'request')}, {many(len(headline.round_ratios), 'round')}"
    return f"{counts} · {where_and_when(headline)}"


def where_and_when(headline: Headline) -> str:
    """Providers and date."""
    return f"{', '.join(headline.providers)} · {day(headline.created)}"


def network(headline: Headline) -> str:
    """What requests paid outside their server, and how much of it can be the network."""
    remote, local = headline.added_latency_ms["remote"], headline.added_latency_ms["local"]
    said = "No remote server reported its own time, so what the network cost is unknown."
    if headline.roles and "remote" not in headline.roles.values():
        said = "No provider is remote, so no network is in these times."
        if local:
            said += (
                f" A request spent {milliseconds(local.mean)} outside its server "
                f"({number(local.min, 1)} to {number(local.max, 1)})."
            )
    if remote:
        said = (
            f"A remote request spent {milliseconds(remote.mean)} outside its server "
            f"({number(remote.min, 1)} to {number(remote.max, 1)}), "
            f"{percent(headline.network_share, 1)} of its wall time."
        )
    if remote and local:
        said += f" A local one spent {milliseconds(local.mean)}"
        said += f" ({number(local.min, 1)} to {number(local.max, 1)}): "
        more = remote.mean - local.mean
        said += (
            "the overhead was not mostly the network."
            if more <= 0
            else f"only the difference, {milliseconds(more)}, can be the network."
        )
    trips = [
        f"{milliseconds(t)} to {p}" for p, t in headline.round_trip_ms.items() if t is not None
    ]
    return said + (f" A round trip on a warm connection took {', '.join(trips)}." if trips else "")


def slowdowns(headline: Headline) -> dict[str, float]:
    """Mean request over one alone there, per provider; empty unless calibration timed it."""
    if headline.ideal_from != "calibration":
        return {}
    return {
        p: found.mean / headline.alone_ms[p]
        for p, found in headline.wall_ms.items()
        if found and p in headline.alone_ms
    }


def slowdown(headline: Headline) -> tuple[str, float] | None:
    """The provider whose requests slowed down most against one alone there, and how much."""
    return max(slowdowns(headline).items(), key=lambda one: one[1], default=None)


def in_flight(limit: int | None, slots: int | None) -> str:
    """How many requests a provider may hold at once, and how many its server works on."""
    said = "no limit" if limit is None else "one at a time" if limit == 1 else f"up to {limit:,}"
    return said if slots is None else f"{said} ({many(slots, 'slot')} in its server)"


def why(headline: Headline) -> str:
    """The likeliest cause of the distance between the makespan and the ideal."""
    if headline.efficiency is None or headline.makespan_ms is None:
        return "What the providers' speeds allow is unknown here."
    said = (
        f"The providers' speeds allow {milliseconds(headline.ideal_ms)}, one request at a time "
        f"each; this reached {percent(headline.efficiency)} of that."
    )
    together = "".join(f" {sentence}" for sentence in crowded(headline))
    if headline.efficiency > 1.05 and not together:
        together = _beyond(headline)
    idle = [
        f"{p} {percent(1 - headline.busy.get(p, 0.0))}"
        for p in headline.providers
        if headline.busy and headline.busy.get(p, 0.0) < 0.9
    ]
    if not idle or headline.efficiency >= 0.95:
        return said + together
    return f"{said}{together} Idle, as a share of the makespan: {', '.join(idle)}."


def _beyond(headline: Headline) -> str:
    """Why more was reached than the speeds allow: what was seen, else what it can be."""
    shared = [p for p, seen in headline.contention.items() if seen.behaviour == "batches"]
    if shared:
        return (
            f" Requests shared the steps of {', '.join(shared)} (batching), which the ideal leaves "
            "out."
        )
    return (
        " More than the speeds allow means that the machines were faster than when calibration "
        "timed them (drift), or that a cache answered."
    )


# Without a rate the sentence goes on after it.
_CROWDED = {
    "batches": ", but {rate}: the server worked on them together (batching).",
    "thrashes": " and only {rate}: they slowed each other down in the server.",
    "queues": " and {rate}: most of it was waiting for a turn (queueing).",
    "shares": " and {rate}: they shared the server with little gain or loss.",
    "refuses": " and {rate}: the server turned requests away.",
    "unknown": " and {rate}: requests shared the server, or waited in it.",
}


def crowded(headline: Headline) -> list[str]:
    """What became of requests that took far longer than one alone: a sentence a provider."""
    sentences = []
    for provider, factor in slowdowns(headline).items():
        if named := crowding(headline, provider):
            said = f"On {provider} a request took {number(factor, 1)} times as long as one alone"
            cause, rate = _CROWDED[named], headline.contention[provider].rate
            if rate is None:
                sentences.append(said + cause.partition("{rate}")[2])
            else:
                came = f"{number(rate, 2)} times as many tokens came in the same time"
                sentences.append(said + cause.format(rate=came))
    return sentences


def crowding(headline: Headline, provider: str) -> str | None:
    """Why requests took so long there, as `contention` names it; None where they did not.

    "unknown" where no server's own time tells waiting from sharing.
    """
    seen = headline.contention.get(provider)
    if seen is None or slowdowns(headline).get(provider, 0.0) < SLOWER:
        return None
    untold = seen.behaviour in ("queues", "shares") and seen.server is None
    return "unknown" if untold else seen.behaviour


def bottom_line(report: Report, headline: Headline, verdict: str = "") -> str:
    """What stands first, in Markdown: gain, then cause, price and verdict (the gate's)."""
    total = ""
    if headline.makespan_ms is not None:
        fastest = f" on {report.fastest}" if report.fastest else ""
        total = (
            f" {many(headline.prompts, 'prompt')} took {milliseconds(headline.makespan_ms)}; "
            f"one at a time{fastest} they took {milliseconds(headline.baseline_ms)}."
        )
    rest = [why(headline), network(headline), f"**{verdict or gate_line(headline)}.**"]
    return f"**{finding(headline)}.**{total}\n\n{bullets(rest)}"


_HEADER = ["strategy", "ratio (95 % interval)", "speedup", "efficiency"]
_HEADER += ["added, remote", "added, local", "gate"]


def comparison_text(headlines: Sequence[Headline], markdown: bool = False) -> str:
    """The strategies side by side, best first, as text for a terminal or as Markdown."""
    rows = []
    for one in sorted(headlines, key=lambda h: h.overhead_ratio.median or float("inf")):
        added = [one.added_latency_ms[role] for role in ("remote", "local")]
        rows.append(
            [
                one.strategy,
                ratio(one),
                "-" if one.speedup is None else f"{number(one.speedup, 2)}{per_token(one)}",
                percent(one.efficiency),
                *(milliseconds(spread.mean if spread else None) for spread in added),
                one.verdict,
            ]
        )
    return failures(headlines) + table(_HEADER, rows, markdown)


def failures(headlines: Sequence[Headline]) -> str:
    """What stands before any number where providers failed: one paragraph, else nothing."""
    failed = [one for one in headlines if one.failed_requests]
    if not failed:
        return ""
    told = ", ".join(
        f"{one.strategy} {one.failed_requests:,} of {one.requests:,} requests" for one in failed
    )
    return f"Providers failed in these runs, whose times count what that cost: {told}.\n\n"


def beside(
    reports: Sequence[Report], headlines: Sequence[Headline], names: Sequence[str] = ()
) -> list[str]:
    """What stands beside verdicts: every warning that could change one, and whose it is.

    By strategy, unless `names` are given. Those that differ in their numbers only are told once.
    """
    names = names or [one.strategy for one in headlines]
    found = [
        (name, said)
        for report, headline, name in zip(reports, headlines, names, strict=True)
        for said in weighty(report, headline)
    ]
    return once(found, len(reports))


def once(said: Sequence[tuple[str, str]], reports: int) -> list[str]:
    """Warnings of several reports, by strategy, each kind once and with whose it is."""
    alike: dict[str, list[tuple[str, str]]] = {}  # sentences that differ in numbers only
    for strategy, warning in said:
        kind = re.sub(r"[\d.,]*\d|slower|faster", "#", warning)
        alike.setdefault(kind, []).append((strategy, warning))
    return list(dict.fromkeys(_first(one, reports) for one in alike.values()))


def _first(said: Sequence[tuple[str, str]], reports: int) -> str:
    """The first of some warnings alike, and whose it is where others' numbers differ."""
    strategies = [strategy for strategy, _ in said]
    warning = said[0][1]
    if len({one for _, one in said}) > 1:
        whose = f"the numbers are {strategies[0]}'s"
        return f"{warning} (So in {len(said)} of {many(reports, 'report')}; {whose}.)"
    if len(said) < reports:
        return f"{warning} (So in {', '.join(strategies)}.)"
    return warning


def verdict_text(reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """What a terminal ends with: the gate, of one report or of several, and what could change it.

    The warnings come first, so that nobody reads the verdict without them.
    """
    gate = gate_line(headlines[0]) if len(headlines) == 1 else suite_gate(headlines)
    return "\n".join([*(f"warning: {one}" for one in beside(reports, headlines)), gate])


def opening(report: Report, headline: Headline) -> str:
    """What stands before any result: one line of provenance, then every warning."""
    noted = bullets([f"**Note:** {one}" for one in warnings(report, headline)])
    return f"*{provenance(report, headline)}*\n\n{noted}"


def breakdown_text(headlines: Sequence[Headline]) -> str:
    """Means per part of a request, a row per strategy and role: the chart's own numbers."""
    means = [m for one in headlines for m in one.segments_ms.values()]
    parts = [phase for phase in SEGMENTS if any(phase.key in m for m in means)]
    if not parts:
        return "No request was answered."
    rows = [
        [one.strategy, role, milliseconds(sum(found.values()))]
        + [milliseconds(found.get(part.key)) for part in parts]
        for one in headlines
        for role, found in one.segments_ms.items()
    ]
    header = ["strategy", "role", "whole request", *(part.label for part in parts)]
    costs = bullets([f"{one.strategy}: {network(one)}" for one in headlines])
    return f"Means, since they add up.\n\n{table(header, rows, markdown=True)}\n\n{costs}"


def cost(report: Report, headline: Headline) -> str:
    """What the gain was paid with: machine time, idle time, requests, tokens; a table."""
    arms = [arm for one in report.rounds for arm in one.arms if arm.arm == "strategy"]
    good = [row for arm in arms for row in arm.requests if row.outcome == "ok"]
    rounds = max(1, len(headline.round_ratios))
    rows = []
    for name, alone in headline.wall_ms.items():
        if alone is None or headline.makespan_ms is None:
            rows.append([name, "0", "0 %", "-", "-"])
            continue
        tokens = sum(row.output_tokens or 0 for row in good if row.provider == name)
        wall_ms = sum(row.wall_ms or 0 for row in good if row.provider == name)
        busy = percent(headline.busy.get(name))
        work = milliseconds(alone.n * alone.mean / rounds)
        each = milliseconds(wall_ms / tokens) if tokens else "-"
        rows.append([name, number(alone.n / rounds, 1), busy, work, each])
    header = ["provider", "prompts a round", "busy", "sum of walls a round", "wall per token"]
    note = (
        "Busy: the share of the makespan with a request in flight there. A sum of walls that is "
        "larger than the busy time means several requests at once."
    )
    paid = ""
    if headline.busy and headline.makespan_ms and headline.baseline_ms:
        machine_ms = sum(headline.busy.values()) * headline.makespan_ms
        paid = (
            f" Machines were busy for {milliseconds(machine_ms)} in all, the one of the baseline "
            f"for {milliseconds(headline.baseline_ms)}: "
            f"{number(machine_ms / headline.baseline_ms, 2)} times the machine time"
            + (
                f" for a speedup of {number(headline.speedup, 2)}{per_token(headline)}."
                if headline.speedup
                else "."
            )
        )
    return f"{table(header, rows, markdown=True)}\n\n{note}{paid}"


def checks(report: Report, headline: Headline) -> str:
    """What the assertions have just established, with the counts."""
    per_round = many(headline.prompts, "prompt")
    return bullets(
        [
            f"Every one of {per_round} was answered in both arms of "
            f"{many(len(headline.round_ratios), 'round')}.",
            (
                f"Own times not believed, and not used: {', '.join(headline.disbelieved)}."
                if headline.disbelieved
                else "No server reported more time than its requests took."
            ),
            f"Answers equal in both arms: {_answers(headline)}.",
            f"Failed requests: {headline.failed_requests:,} of {headline.requests:,}.",
        ]
    )


def rows_text(report: Report) -> str:
    """Every request of a small report as a table."""
    report, _ = believed(report)
    roles = {p.name: p.role for p in report.providers}
    rows = [
        [
            inline(row.provider),
            roles.get(row.provider, "-"),
            milliseconds(row.wall_ms),
            milliseconds(row.server.total_ms),
            milliseconds(row.over_ms),
            "-" if row.output_tokens is None else str(row.output_tokens),
        ]
        for row in report.requests
    ]
    header = ["provider", "role", "wall", "server", "over", "tokens"]
    return table(header, rows, markdown=True)


def best(headlines: Sequence[Headline]) -> str:
    """The lowest ratio of several strategies, and which others cannot be told from it.

    Each strategy was held against a baseline of its own, so two of them are told apart only
    where their intervals do not overlap: a careful rule, that may miss a real difference.
    """
    judged = [one for one in headlines if one.overhead_ratio.median is not None]
    if not judged:
        return "No strategy has a complete round, so none is the best."
    first = min(judged, key=_median)
    said = f"The lowest ratio is {first.strategy}'s, {ratio(first)}"
    high = first.overhead_ratio.high
    rest = [one for one in judged if one is not first]
    if high is None or any(one.overhead_ratio.low is None for one in rest):
        return f"{said}; without intervals nothing says which strategy is the best."
    level = [one.strategy for one in rest if (one.overhead_ratio.low or 0.0) <= high]
    if not rest:
        return f"{said}."
    if not level:
        return f"{said}; every other interval lies above it."
    beaten = len(rest) - len(level)
    apart = f"; {beaten} above it" if beaten else ""
    return f"{said}; not distinguishable from it: {', '.join(sorted(level))}{apart}."


def _median(headline: Headline) -> float:
    return headline.overhead_ratio.median or float("inf")


def suite_gate(headlines: Sequence[Headline]) -> str:
    """The gate over several strategies: it is passed where one of them passes."""
    if not headlines:
        return "Gate: INCONCLUSIVE — there is no report to judge."
    best = min(headlines, key=lambda one: one.overhead_ratio.median or float("inf"))
    passed = [one for one in headlines if one.verdict == PASS]
    if passed:
        best = min(passed, key=lambda one: one.overhead_ratio.median or float("inf"))
    counts = Counter(one.verdict for one in headlines)
    tally = ", ".join(f"{counts[word]} {word}" for word in sorted(counts, key=_VERDICTS.index))
    return f"{gate_line(best)}, with {best.strategy} (of {len(headlines)}: {tally})"


_VERDICTS = [PASS, INCONCLUSIVE, FAIL]


def report_text(report: Report, headline: Headline) -> str:
    """What `poc show` prints: provenance, warnings, numbers, gate, for a terminal."""
    added = headline.added_latency_ms
    rows = [
        ["overhead ratio", ratio(headline)],
        ["speedup" + per_token(headline),
         "-" if headline.speedup is None else number(headline.speedup, 2)],
        ["makespan, baseline", f"{milliseconds(headline.makespan_ms)}, "
                               f"{milliseconds(headline.baseline_ms)}"],
        ["ideal, efficiency", f"{milliseconds(headline.ideal_ms)}, {percent(headline.efficiency)}"],
        *([f"added latency, {role}", _spread(added[role])] for role in ("remote", "local")
          if role in headline.roles.values()),
        *([["network share", percent(headline.network_share, 1)]]
          if "remote" in headline.roles.values() else []),
        *([f"round trip, {p}", milliseconds(t)] for p, t in headline.round_trip_ms.items()),
        *_streams(headline),
        ["answers equal", _answers(headline)],
        ["requests, failed", f"{headline.requests:,}, {headline.failed_requests:,}"],
    ]  # fmt: skip
    reasons = [f"missing: {key}: {reason}" for key, reason in headline.missing.items()]
    warned = [f"warning: {one}" for one in others(report, headline)]
    lines = [f"{failures([headline])}{provenance(report, headline)}", *warned, ""]
    lines += [table(["", headline.report], rows), ""]
    return "\n".join([*lines, *reasons, verdict_text([report], [headline])])


def _streams(headline: Headline) -> list[list[str]]:
    """First tokens, the time between tokens and tokens per second, three rows a provider."""
    rows = []
    for provider, found in headline.streams.items():
        each = "-" if found.tokens_per_s is None else number(found.tokens_per_s, 1)
        together = "-" if found.together_per_s is None else number(found.together_per_s, 1)
        by = "" if found.counted == "server" else ", counted as pieces"
        if found.thought_ms is not None:
            rows.append([f"first thought, {provider}", _quantiles(found.thought_ms, found.n)])
        apart = _quantiles(found.between_ms, found.n) if found.apart else "-"
        rows += [
            [f"first token, {provider}", _quantiles(found.ttft_ms, found.n)],
            [
                f"between {found.apart or 'tokens'}, {provider}",
                f"{apart} ({found.why})" if found.why else apart,
            ],
            [f"tokens/s, {provider}", f"{each} a request, {together} together{by}"],
        ]
    return rows


def _quantiles(found: Mapping[str, float | None], n: int) -> str:
    """p50 48.1 ms, p90 60.2 ms (n 55); those that n carries."""
    told = [f"{name} {milliseconds(value)}" for name, value in found.items() if value is not None]
    return f"{', '.join(told) or 'too few to say'} (n {n:,})"


def _spread(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"{milliseconds(found.mean)} ({number(found.min, 1)} to {number(found.max, 1)})"


def _answers(headline: Headline) -> str:
    found = headline.answers_equal
    if not headline.marked:
        return f"{found.equal:,} of {found.compared:,}" if found.compared else "not compared"
    said = "not compared, since each arm's texts begin with a mark of their own"
    if headline.calibration_equal.compared:
        alike = headline.calibration_equal
        said += f"; to calibration's prompts {alike.equal:,} of {alike.compared:,} between machines"
    return said


def doctor_table(
    facts: Sequence[ProviderFacts],
    probes: Sequence[Probe],
    alone_ms: Mapping[str, float],
    tokens_per_s: Mapping[str, float],
    problems: Mapping[str, str],
) -> str:
    """One line a provider: does it answer, what is it, how fast; then what is wrong."""
    rows = []
    for one in facts:
        trips = [probe.round_trip_ms for probe in probes if probe.provider == one.name]
        rows.append(
            [
                one.name,
                "answers",
                inline(one.engine or one.server or one.kind, 40),
                inline(one.model or "-", 40),
                _short(one.digest) if one.digest else "unknown",
                milliseconds(median(trips) if trips else None),
                milliseconds(alone_ms.get(one.name)),
                f"{number(rate, 0)} tokens/s" if (rate := tokens_per_s.get(one.name)) else "-",
                "-" if one.slots is None else str(one.slots),
            ]
        )
    rows += [[name, "FAILS", *["-"] * 7] for name in problems]
    header = ["provider", "", "server", "model", "digest", "round trip", "one request"]
    header += ["speed", "slots"]
    return "\n".join([table(header, rows), *map(safe, problems.values())])


def expected_gain(
    ratios: Mapping[str, float],
    alone_ms: Mapping[str, float],
    powers: Mapping[str, Power] | None = None,
) -> str:
    """What the calibrated speeds promise before anything is run, and the rounds to tell it."""
    if not ratios or not alone_ms:
        return "No gain can be foretold: some provider's speed is unknown."
    best = min(ratios, key=lambda one: ratios[one])
    fastest = min(alone_ms, key=lambda one: alone_ms[one])
    told = powers or {}
    rows = [
        [
            *(name, number(found, 2), number(1 / found, 2) if found else "-"),
            *(_rounds(told.get(name)) if told else []),
        ]
        for name, found in sorted(ratios.items(), key=lambda one: one[1])
    ]
    header = ["strategy", "expected ratio", "expected speedup"]
    more = ["rounds for the gate", "rounds to tell it from 1"] if told else []
    listing = table([*header, *more], rows)
    if told:
        listing += f"\n{_power(next(iter(told.values())))}"
    verdict = (
        f"Expect {best} to take {number(ratios[best], 2)} times as long as {fastest} alone"
        if ratios[best] < 1
        else f"Expect no gain: nothing beats {fastest} alone"
    )
    return (
        f"{listing}\n{verdict}; batching, contention and the network under load are not in this, "
        "so run it to know."
    )


def _rounds(power: Power | None) -> list[str]:
    if power is None:
        return ["-", "-"]
    within = "none would" if power.one is None else str(power.one)
    return ["none would" if power.gate is None else str(power.gate), within]


def _power(power: Power) -> str:
    return (
        f"Rounds as calibration foretells them, by which one round's ratio varies by about "
        f"{percent(power.noise, 1)}; drift and contention come on top. `rounds: auto` goes on "
        "until the interval is within the band to both sides of its middle."
    )


def title_drift(report: Report) -> str:
    """By how much each machine's speed changed over the run."""
    changes = []
    for provider, rows in of(report).calibrations.items():
        walls = [row.wall_ms for row in rows if row.wall_ms]
        if len(walls) > 1:
            span = max(walls) / min(walls)
            changes.append(f"{provider} {number(span, 2)} times")
    if not changes:
        return "The machines were timed only once, so drift is unknown"
    return f"One request alone, slowest over fastest of the run: {', '.join(changes)}"
