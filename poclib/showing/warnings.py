"""What could mislead a reader of a report: its pool and answers, the machine, the instrument.

The sentences are in templates/warnings.j2, each with the condition it hangs on; here are the
numbers that take more than a look at the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from ..pacing import EMPTY_SHA256, length
from ..reading.reading import Reading
from ..records import Report, Request
from ..stats import median, minimum_n
from . import format as form
from .format import inline, listed, many, milliseconds, number

# Shares and factors beyond which a reader should know.
OTHERS_MOST = 0.10
STEAL_MOST = 0.02
LAG_MOST = 0.05
COLD_FACTOR = 1.5
# Answers of machines whose mean lengths differ by more are no equal work.
UNLIKE = 1.25
# Text has 3 to 5 characters a token; with more than this some of it was never read.
MOST_CHARACTERS = 8


def warnings(reading: Reading) -> list[str]:
    """Every warning that the report's facts call for; first what could change its verdict."""
    return [*weighty(reading), *others(reading)]


def weighty(reading: Reading) -> list[str]:
    """The warnings that could change the verdict: they stand beside it wherever it is printed."""
    return form.lines("warnings", "weighty", reading, _good(reading.report))


def others(reading: Reading) -> list[str]:
    """The warnings that leave the verdict as it is."""
    return form.lines("warnings", "others", reading, _good(reading.believed))


def _good(report: Report) -> list[Request]:
    return [row for row in report.requests if row.outcome == "ok"]


def _grouped(values: Iterable[tuple[str, float | None]]) -> dict[str, list[float]]:
    """Values by the name that comes with each; what is absent is left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        if value is not None:
            found[name].append(value)
    return found


def nothing(good: Sequence[Request]) -> tuple[int, int]:
    """Answers that are empty, and those that are but for thoughts."""
    thought = [bool(row.thought_characters) for row in good if row.answer_sha256 == EMPTY_SHA256]
    return thought.count(False), thought.count(True)


def stops(report: Report) -> tuple[str, str]:
    """What is kept of rounds that a stop cut short, and which rounds these are."""
    rounds = listed(str(one.index + 1) for one in report.cut)
    rows = sum(len(arm.requests) for one in report.cut for arm in one.arms)
    return f"{many(rows, 'request')} of round {rounds}" if rows else "", rounds


def builds(report: Report) -> set[str]:
    """The engines or servers that are known, with their versions."""
    return {build for p in report.providers if (build := p.engine or p.server)}


def failed(report: Report) -> str:
    """TimedOut 12 times; slow 3 of 40."""
    rows = [row for row in report.requests if row.outcome == "failed"]
    kinds = Counter(inline(row.error_kind or "?") for row in rows).most_common()
    asked = Counter(row.provider for row in report.requests)
    causes = ", ".join(f"{kind} {many(count, 'time')}" for kind, count in kinds)
    blamed = Counter(row.provider for row in rows).most_common()
    shares = ", ".join(f"{name} {count} of {asked[name]}" for name, count in blamed)
    return f"{causes}; {shares}"


def lengths(reading: Reading) -> dict[str, str]:
    """Answers of unlike length: between machines, and against what was asked."""
    known = _grouped((row.provider, length(row) or None) for row in _good(reading.report))
    every = [tokens for its in known.values() for tokens in its]
    found = dict.fromkeys(("span", "means", "far", "only"), "")
    if not every:
        return found
    found["span"] = f"{min(every):.0f} to {max(every):.0f} tokens"
    means = {name: fmean(its) for name, its in known.items()}
    if max(means.values()) > UNLIKE * min(means.values()):
        found["means"] = ", ".join(f"{name} {number(mean, 1)}" for name, mean in means.items())
    most = reading.report.parameters.max_tokens if reading.report.parameters else None
    far = sum(not most / 2 <= tokens <= 1.1 * most for tokens in every) if most else 0
    if far > len(every) / 2:
        found["far"] = f"{far:,} of {len(every):,}"
    elif not found["means"] and not reading.headline.per_token and min(every) != max(every):
        found["only"] = found["span"]
    return found


def prompts(report: Report) -> dict[str, str]:
    """Prompts of which the server read only a part, by its count of their tokens."""
    rooms = {facts.name: facts.context_tokens or float("inf") for facts in report.providers}
    answer = report.parameters.max_tokens if report.parameters else 0
    characters = dict(enumerate(report.prompt_characters))
    rows = [(r.provider, r.prompt, r.prompt_tokens) for r in _good(report) if r.prompt_tokens]
    counts: dict[int, dict[str, int]] = defaultdict(dict)
    for name, prompt, tokens in rows:
        counts[prompt][name] = tokens
    cut = [one for one in rows if characters.get(one[1], 0) > MOST_CHARACTERS * one[2]]
    apart = [of for of in counts.values() if max(of.values()) > 1.5 * min(of.values()) + 20]
    over = [one for one in rows if one[2] + answer > rooms.get(one[0], float("inf"))]
    found = dict.fromkeys(("cut", "apart", "over"), "")
    if cut:
        least, whole = min(one[2] for one in cut), characters[cut[0][1]]
        told = f"counts only {least} tokens for a prompt of {whole:,} characters"
        found["cut"] = f"{listed(one[0] for one in cut)} {told}"
    elif apart:
        found["apart"] = ", ".join(f"{name} {count}" for name, count in apart[0].items())
    if over:
        (name, _, tokens), who = over[0], listed(one[0] for one in over)
        found["over"] = f"{who} ({tokens} and {answer} tokens, {rooms[name]} fit)"
    return found


def models(report: Report) -> str:
    """Whether providers hold unlike models; digests of two schemes cannot be compared."""
    digests = {facts.digest for facts in report.providers}
    schemes = Counter(digest.partition(":")[0] for digest in digests if digest)
    if max(schemes.values(), default=0) > 1:
        return "unlike"
    return "unknown" if None in digests and len(report.providers) > 1 else ""


def reloads(reading: Reading) -> list[Request]:
    """Requests that waited for their model to be loaded, unlike others at their provider."""
    later = [row for its in reading.calibrations.values() for row in its[1:]]
    every = (*reading.believed.requests, *later)
    rows = [(r, r.server.load_ms, r.wall_ms) for r in every if r.wall_ms and r.server.load_ms]
    usual = _grouped((row.provider, load_ms) for row, load_ms, _ in rows)
    found = []
    for row, load_ms, wall_ms in rows:
        its = usual[row.provider]
        rare = len(its) < 3 or load_ms > 3 * (median(its) or 0.0)
        if load_ms > wall_ms / 2 or (rare and load_ms > wall_ms / 5):
            found.append(row)
    return found


def waits(reading: Reading) -> list[str]:
    """Local servers whose requests wait outside their own clock when several are in flight."""
    busy = _grouped((row.provider, row.over_ms) for row in reading.answered("strategy"))
    found = []
    for name in (facts.name for facts in reading.report.providers if facts.role == "local"):
        calm = _grouped((name, row.over_ms) for row in reading.calibrations.get(name, ()))
        alone, crowd = median(calm.get(name, [])), median(busy.get(name, []))
        at_once = reading.headline.at_once.get(name, 0)
        if at_once > 1 and alone is not None and crowd is not None and crowd > 2 * alone + 5.0:
            times = f"{milliseconds(crowd)} with up to {at_once}, {milliseconds(alone)} alone"
            found.append(f"{name} {times}")
    return found


def fell(report: Report) -> list[tuple[str, int, int, list[str]]]:
    """Each provider whose limit fell below what was set: from where, how far, and why."""
    steps: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for arm in (arm for one in report.rounds for arm in one.arms):
        for change in arm.limit_changes:
            limit = (arm.limits or {}).get(change.provider)
            if limit is not None and change.reason in ("slower", "refused"):
                steps[change.provider].append((change.limit, limit, change.reason))
    return [
        (name, min(its)[1], min(its)[0], sorted({why for *_, why in its}))
        for name, its in steps.items()
    ]


def outliers(report: Report) -> int:
    rows = [(arm.arm, row) for one in report.rounds for arm in one.arms for row in arm.requests]
    walls = _grouped((f"{arm} {r.provider}", r.wall_ms) for arm, r in rows if r.outcome == "ok")
    return sum(wall > 3 * (median(its) or 0.0) for its in walls.values() for wall in its)


def drifts(reading: Reading) -> dict[str, float]:
    """The last third of the calibration against the first, beyond twice the band."""
    loads = {id(row) for row in reloads(reading)}  # a load is no drift
    found = {}
    for name, rows in reading.calibrations.items():
        walls = [row.wall_ms for row in rows if row.wall_ms and id(row) not in loads]
        third = len(walls) // 3
        begun, ended = median(walls[:third]), median(walls[-third:] if third else [])
        if begun and ended and abs(ended / begun - 1) > 2 * reading.report.band:
            found[name] = ended / begun - 1
    return found


def took(report: Report) -> dict[str, Any]:
    """What took the coordinator's machine while it measured; only what is worth a word."""
    others = [m.others for m in report.moments if m.others is not None]
    steal = [m.steal for m in report.moments if m.steal is not None]
    slowed = [m.throttled for m in report.moments if m.throttled is not None]
    servers = (p.name for p in report.providers if p.role == "local" and p.kind != "embedded")
    return {
        "others": fmean(others) if others and fmean(others) > OTHERS_MOST else 0,
        "servers": listed(servers),
        "steal": fmean(steal) if steal and fmean(steal) > STEAL_MOST else 0,
        "heat": max(0, slowed[-1] - slowed[0]) if slowed else 0,
    }


def cold(reading: Reading) -> dict[str, float]:
    """By how much each first calibration request took longer than the later ones."""
    found = {}
    for name, rows in reading.calibrations.items():
        first, *later = [row.wall_ms or 0.0 for row in rows]
        usual = median(later) if len(later) >= 3 else None
        if usual and first > COLD_FACTOR * usual:
            found[name] = first / usual
    return found


def late(reading: Reading) -> list[tuple[float, str, float]]:
    """How late the loop was, against the smallest added latency that is shown."""
    lags, added = sorted(reading.report.lags.lag_ms), reading.headline.added_latency_ms
    least = min(((s.mean, role) for role, s in added.items() if s and s.mean > 0), default=None)
    if least is None or len(lags) < minimum_n(0.95):
        return []
    lag = lags[int(0.95 * len(lags))]
    return [(lag, least[1], least[0])] if lag > LAG_MOST * least[0] else []


def hidden(reading: Reading) -> dict[str, Any]:
    """Headlines smaller than the instrument's own error: its median or, of enough, its p95."""
    headline, ruler = reading.headline, reading.report.ruler
    rows = [row for row in ruler.rows if row.quantity == "over_ms"] if ruler else []
    error_ms = max((max(abs(row.bias_ms), row.p95_ms or 0.0) for row in rows), default=0.0)
    added = headline.added_latency_ms
    shown = {f"the added latency of a {role} request": s.mean for role, s in added.items() if s}
    remote, local = added["remote"], added["local"]
    if remote and local and remote.mean > local.mean:
        shown["the added latency that can be the network"] = remote.mean - local.mean
    shown |= {f"the round trip to {p}": trip for p, trip in headline.round_trip_ms.items() if trip}
    below = [f"{what} ({milliseconds(ms)})" for what, ms in shown.items() if ms < error_ms]
    return {"error": error_ms, "what": ", ".join(below)} if below else {}


form.known(builds, failed, lengths, models, nothing, prompts, reloads, stops)
form.known(cold, drifts, fell, hidden, late, outliers, took, waits)
