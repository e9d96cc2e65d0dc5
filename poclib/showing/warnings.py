"""What could mislead a reader of a report: its pool and answers, the machine, the instrument.

The sentences are in templates/warnings.j2, each with the condition it hangs on; here are the
numbers that take more than a look at the report.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from statistics import fmean
from typing import Any

from ..pacing import EMPTY_SHA256, length
from ..reading.reading import Reading
from ..records import Report, Request
from ..stats import mean, median, minimum_n
from . import format as form
from .format import inline, listed, many, milliseconds, number

# Factors beyond which a reader should know; what is shown is some times larger than a lag.
ABOVE_LAG = 4
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
    return form.lines("warnings", "weighty", reading, good(reading.report))


def others(reading: Reading) -> list[str]:
    """The warnings that leave the verdict as it is."""
    return form.lines("warnings", "others", reading, good(reading.believed))


def good(report: Report) -> list[Request]:
    return [row for row in report.requests if row.outcome == "ok"]


def _grouped(values: Iterable[tuple[str, float | None]]) -> dict[str, list[float]]:
    """Values by the name that comes with each; what is absent is left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        if value is not None:
            found[name].append(value)
    return found


def builds(report: Report) -> set[str]:
    """The engines or servers that are known, with their versions."""
    return {build for p in report.providers if (build := p.engine or p.server)}


def failed(report: Report) -> str:
    """TimedOut 12 times, Rejected (HTTP 429) 2 times; slow 3 of 40."""
    rows = [row for row in report.requests if row.outcome == "failed"]
    kinds = Counter(
        inline(f"{row.error_kind or '?'}{f' (HTTP {row.status})' if row.status else ''}")
        for row in rows
    ).most_common()
    asked = Counter(row.provider for row in report.requests)
    blamed = Counter(row.provider for row in rows).most_common()
    causes = ", ".join(f"{kind} {many(count, 'time')}" for kind, count in kinds)
    return f"{causes}; {', '.join(f'{name} {count} of {asked[name]}' for name, count in blamed)}"


def lengths(reading: Reading) -> dict[str, str]:
    """Answers of unlike length: between machines, and against what was asked."""
    known = _grouped((row.provider, length(row) or None) for row in good(reading.report))
    every = [tokens for counts in known.values() for tokens in counts] or [0.0]
    means = {name: fmean(counts) for name, counts in known.items()}
    unlike = means and max(means.values()) > UNLIKE * min(means.values())
    most = reading.report.parameters.max_tokens if known and reading.report.parameters else None
    far = sum(not most / 2 <= tokens <= 1.1 * most for tokens in every) if most else 0
    return {
        "span": f"{min(every):.0f} to {max(every):.0f} tokens",
        "means": ", ".join(f"{p} {number(mean, 1)}" for p, mean in means.items() if unlike),
        "far": f"{far:,} of {len(every):,}" if far > len(every) / 2 else "",
        "vary": "yes" if min(every) < max(every) else "",
    }


def prompts(report: Report) -> dict[str, str]:
    """Prompts of which the server read only a part, by its count of their tokens."""
    rooms = {facts.name: facts.context_tokens or float("inf") for facts in report.providers}
    answer = report.parameters.max_tokens if report.parameters else 0
    sizes = defaultdict(int, enumerate(report.prompt_characters))
    rows = [(r.provider, r.prompt, r.prompt_tokens) for r in good(report) if r.prompt_tokens]
    counts: dict[int, dict[str, int]] = defaultdict(dict)
    for name, prompt, tokens in rows:
        counts[prompt][name] = tokens
    cut = [row for row in rows if sizes[row[1]] > MOST_CHARACTERS * row[2]]
    apart = [of for of in counts.values() if max(of.values()) > 1.5 * min(of.values()) + 20]
    over = [row for row in rows if row[2] + answer > rooms[row[0]]]
    found = dict.fromkeys(("cut", "apart", "over"), "")
    if cut:
        least, whole = min(tokens for *_, tokens in cut), sizes[cut[0][1]]
        who = listed(name for name, *_ in cut)
        found["cut"] = f"{who} counts only {least} tokens for a prompt of {whole:,} characters"
    elif apart:
        found["apart"] = ", ".join(f"{name} {count}" for name, count in apart[0].items())
    for name, _, tokens in over[:1]:
        needs = f"({tokens} and {answer} tokens, {rooms[name]} fit)"
        found["over"] = f"{listed(name for name, *_ in over)} {needs}"
    return found


def models(report: Report) -> str:
    """Whether providers hold unlike models; digests of two schemes cannot be compared."""
    digests = {facts.digest for facts in report.providers if not facts.router_of}
    schemes = Counter(digest.partition(":")[0] for digest in digests if digest)
    if max(schemes.values(), default=0) > 1:
        return "unlike"
    return "unknown" if None in digests and len(report.providers) > 1 else ""


def reloads(reading: Reading) -> list[Request]:
    """Requests that waited for their model to be loaded, unlike others at their provider."""
    later = [row for rows in reading.calibrations.values() for row in rows[1:]]
    rows = [(row, row.server.load_ms, row.wall_ms) for row in (*reading.believed.requests, *later)]
    loads = _grouped((row.provider, load_ms or None) for row, load_ms, wall_ms in rows if wall_ms)
    usual = {p: 3 * (median(each) or 0.0) if len(each) > 2 else 0.0 for p, each in loads.items()}
    return [
        row
        for row, load_ms, wall_ms in rows
        if load_ms and wall_ms and load_ms > wall_ms / (5 if load_ms > usual[row.provider] else 2)
    ]


def waits(reading: Reading) -> list[str]:
    """Local servers whose requests wait outside their own clock when several are in flight."""
    busy = _grouped((row.provider, row.over_ms) for row in reading.answered("strategy"))
    calm = _grouped((row.provider, row.over_ms) for row in reading.answered("calibration"))
    found = []
    for name in (name for name, role in reading.headline.roles.items() if role == "local"):
        alone, crowd = median(calm[name]), median(busy[name])
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
        (name, min(falls)[1], min(falls)[0], sorted({why for *_, why in falls}))
        for name, falls in steps.items()
    ]


def outliers(report: Report) -> int:
    rows = [(arm.arm, row) for one in report.rounds for arm in one.arms for row in arm.requests]
    walls = _grouped((f"{arm} {r.provider}", r.wall_ms) for arm, r in rows if r.outcome == "ok")
    usual = [(3 * (median(group) or 0.0), group) for group in walls.values()]
    return sum(wall_ms > most for most, group in usual for wall_ms in group)


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


def cold(reading: Reading) -> dict[str, float]:
    """By how much each first calibration request took longer than the later ones."""
    found = {}
    for name, rows in reading.calibrations.items():
        first, *later = [row.wall_ms or 0.0 for row in rows]
        usual = median(later) if len(later) >= 3 else None
        if usual and first > COLD_FACTOR * usual:
            found[name] = first / usual
    return found


def _lag_ms(report: Report) -> float:
    """How late the coordinator's loop was, p95; 0 where too few were noted to say."""
    lags = sorted(report.lags.lag_ms)
    return lags[int(0.95 * len(lags))] if len(lags) >= minimum_n(0.95) else 0.0


def late(reading: Reading) -> tuple[float, float] | None:
    """A lag that is beyond the band even of a whole request, the shortest mean one; and that."""
    walls = [spread.mean for spread in reading.headline.wall_ms.values() if spread]
    lag_ms, least_ms = _lag_ms(reading.report), min(walls, default=0.0)
    return (lag_ms, least_ms) if lag_ms > reading.report.band * least_ms else None


def hidden(reading: Reading) -> dict[str, Any]:
    """Headlines that the instrument cannot see well: by its own error, and by the loop's lag.

    The error is its median or, of enough, its p95. A local round trip is no network, so nothing
    hangs on it.
    """
    headline, ruler = reading.headline, reading.report.ruler
    rows = [row for row in ruler.rows if row.quantity == "over_ms"] if ruler else []
    error_ms = max((max(abs(row.bias_ms), row.p95_ms or 0.0) for row in rows), default=0.0)
    lag_ms, added = _lag_ms(reading.report), headline.added_latency_ms
    shown = {f"the added latency of a {role} request": s.mean for role, s in added.items() if s}
    remote, local = added["remote"], added["local"]
    if remote and local and remote.mean > local.mean:
        shown["the added latency that can be the network"] = remote.mean - local.mean
    trips = headline.round_trip_ms.items()
    far = {p: ms for p, ms in trips if ms and headline.roles[p] == "remote"}
    shown |= {f"the round trip to {p}": ms for p, ms in far.items()}
    least_ms = max(error_ms, ABOVE_LAG * lag_ms)
    below = [f"{what} ({milliseconds(ms)})" for what, ms in shown.items() if 0 < ms < least_ms]
    return {"error": error_ms, "lag": lag_ms, "what": ", ".join(below)} if below else {}


form.TEXTS.globals["EMPTY_SHA256"] = EMPTY_SHA256
form.known(builds, failed, lengths, models, prompts, reloads)
form.known(cold, drifts, fell, hidden, late, mean, outliers, waits)
