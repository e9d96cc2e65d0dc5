"""What could mislead a reader of a report: its pool and answers, the machine, the instrument.

Each warning is observation, likely cause, next action, chosen from the facts of the report. Knows
no frame and draws nothing.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence

from .notation import inline, many, milliseconds, percent
from .records import Report, Request
from .stats import Headline, median, minimum_n

# Shares and factors beyond which a reader should know.
OTHERS_MOST = 0.10
STEAL_MOST = 0.02
LAG_MOST = 0.05
COLD_FACTOR = 1.5
STEP_MS = 50.0
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def warnings(report: Report, headline: Headline) -> list[str]:
    """Every warning that this report's facts call for."""
    found: list[str] = []
    rows = report.requests
    good = [row for row in rows if row.outcome == "ok"]
    rounds = headline.overhead_ratio.rounds
    if not report.complete:
        found.append("The run did not finish: it was stopped or failed; run it again.")
    found += [inline(note, 300) for note in report.notes]
    found += _stops(report)
    if report.parameters and (strike := report.parameters.strike):
        found.append(
            f"{strike.provider} was cut off on purpose in every arm of the strategy once "
            f"{percent(strike.after)} of the prompts were answered; its requests failed from then."
        )
    found += [ending(report)] if report.ended else []
    if rounds < 2:
        found.append(
            f"There is no interval: the report has {many(rounds, 'complete round')}, and drift "
            "cannot be told from gain; measure 5 rounds or more."
        )
    if headline.incomplete_rounds:
        found.append(
            f"{many(headline.incomplete_rounds, 'round')} left out: some prompt has no answer "
            "there; see the failed requests, then run again."
        )
    if headline.failed_requests:
        kinds = Counter(inline(row.error_kind or "?") for row in rows if row.outcome == "failed")
        causes = ", ".join(f"{kind} {count} times" for kind, count in kinds.most_common())
        found.append(
            f"{many(headline.failed_requests, 'request')} of {headline.requests:,} failed "
            f"({causes}; {_blame(report)}): a server was overloaded or away; read its log, lower "
            "its capacity. Their time is part of the makespan, and none of a request's time."
        )
    empty = sum(row.answer_sha256 == _EMPTY_SHA256 for row in good)
    if empty:
        found.append(
            f"{many(empty, 'answer')} of {len(good):,} empty: the server ended them at once, so "
            "their times are of no work; look at its log and at the prompts."
        )
    if hedges := [row for row in rows if row.role == "hedge"]:
        won = sum(row.outcome == "ok" for row in hedges)
        found.append(
            f"{many(len(hedges), 'late prompt')} went to a second provider too, whose answer came "
            f"first {won} times; the other copy was cancelled there and counts as no answer."
        )
    if headline.answers_equal.different:
        found.append(
            f"{headline.answers_equal.different} of {headline.answers_equal.compared} answers "
            "differ between the arms: batching or another build rounds differently, or the models "
            "differ; compare digests and engine versions before trusting equal work."
        )
    digests = {p.digest for p in report.providers}
    if len(digests - {None}) > 1:
        found.append(
            "The providers hold different models (their digests differ), so their work is not "
            "equal; load the same model everywhere."
        )
    elif None in digests:
        found.append(
            "Some model digests are unknown: the server does not tell; compare the model files "
            "by hand."
        )
    engines = {(p.engine or p.server) for p in report.providers} - {None}
    if len(engines) > 1:
        found.append(
            "The providers run different engines or versions, which changes speed and rounding; "
            "install the same version everywhere."
        )
    embedded = [p for p in report.providers if p.kind == "embedded"]
    if loose := [p.name for p in embedded if not p.pinned]:
        found.append(
            f"{', '.join(loose)} not pinned to a core: this system cannot pin, or no core was "
            "free, so engines may share cores; give each its own core where that is possible."
        )
    if len(embedded) > 1 and len(embedded) == len(report.providers):
        found.append(
            "All engines ran on one machine: they share its memory and caches, and their link is "
            "made in software; measure two machines before deciding on two machines."
        )
    if cached := sum(bool(row.cached_tokens) for row in good):
        found.append(
            f"{many(cached, 'request')} reused cached prompt tokens: the server's prompt cache "
            "made them cheaper; make prompts unique or switch the cache off."
        )
    fresh = [row.provider for row in good if row.marks.connected_ms is not None]
    if len(fresh) > 0.2 * len(good):
        found.append(
            f"{many(len(fresh), 'request')} of {len(good):,} opened a new connection, which costs "
            f"a round trip more ({', '.join(sorted(set(fresh)))}): the server closes it after "
            "each answer, as llama-server does after a streamed one; try stream: false."
        )
    tokens = [row.output_tokens for row in good if row.output_tokens is not None]
    if tokens and min(tokens) != max(tokens):
        found.append(
            f"Answers differ in length ({min(tokens)} to {max(tokens)} tokens): the server does "
            "not fix it; read times per token as well."
        )
    if silent := sorted({row.provider for row in good if row.over_ms is None}):
        found.append(
            f"{', '.join(silent)} did not report server time for every request, so added latency "
            "is partly unknown; use a server or an option that reports it."
        )
    remote, local = headline.added_latency_ms["remote"], headline.added_latency_ms["local"]
    if remote and local and local.mean >= remote.mean:
        found.append(
            f"Local requests paid as much overhead as remote ones or more "
            f"({milliseconds(local.mean)} and {milliseconds(remote.mean)}): HTTP, parsing or "
            "waiting inside the server, not mostly the network; look there first."
        )
    if slow := _outliers(report):
        found.append(
            f"{many(slow, 'request')} took over 3 times the median of their provider and arm "
            "(they are counted like all others): another load on the machine, or a queue in the "
            "server; look at the timeline."
        )
    return found + cautions(report, headline)


def cautions(report: Report, headline: Headline) -> list[str]:
    """Those about the machine and the instrument; empty where the report holds no such facts."""
    checks = (
        _drift(report),
        _others(report),
        _cold(report),
        _shared_cores(report),
        _lag(report, headline),
        _few(headline),
        _clock(report),
        _unseen(report, headline),
    )
    return [sentence for found in checks for sentence in found]


def calibrations(report: Report) -> dict[str, list[Request]]:
    """The answered calibration requests of each provider, in the order they were sent."""
    found: dict[str, list[Request]] = {}
    for arm in report.preparation:
        for row in arm.requests:
            if arm.arm == "calibration" and row.outcome == "ok" and row.wall_ms:
                found.setdefault(row.provider, []).append(row)
    return found


def _walls(rows: Sequence[Request]) -> list[float]:
    return [row.wall_ms for row in rows if row.wall_ms]


def _drift(report: Report) -> list[str]:
    """The last third of the calibration against the first, beyond twice the band."""
    said = []
    for provider, rows in calibrations(report).items():
        walls = _walls(rows)
        third = len(walls) // 3
        begun, ended = median(walls[:third]), median(walls[-third:] if third else [])
        if not begun or not ended or abs(ended / begun - 1) <= 2 * report.band:
            continue
        change = ended / begun - 1
        said.append(
            f"{provider} was {100 * abs(change):.0f} % {'slower' if change > 0 else 'faster'} at "
            "the run's end than at its start, by calibration: heat, another program, or a "
            "machine that was still waking up; the ratios share it, single times do not, so let "
            "the machine rest and measure again."
        )
    return said


def _others(report: Report) -> list[str]:
    """What took the coordinator's machine while it measured."""
    moments = report.moments
    said = []
    others = _mean([m.others for m in moments])
    if others is not None and others > OTHERS_MOST:
        said.append(
            f"Other programs took {100 * others:.0f} % of this machine's processor time during "
            "the run: they slow what is measured here; close them and run again."
        )
    steal = _mean([m.steal for m in moments])
    if steal is not None and steal > STEAL_MOST:
        said.append(
            f"The host took {100 * steal:.0f} % of this virtual machine's processor time (steal): "
            "its neighbours are busy; measure at another hour, or on a machine of your own."
        )
    counts = [m.throttled for m in moments if m.throttled is not None]
    if counts and counts[-1] > counts[0]:
        said.append(
            f"Cores were slowed for heat {counts[-1] - counts[0]:,} times during the run: the "
            "cooling does not keep up; let it cool and measure with pauses."
        )
    # Where others' share could not be read: in a suite the average still holds the run before.
    load, cores = report.environment.get("load_1min"), report.environment.get("cores")
    if others is not None or not isinstance(load, int | float) or not isinstance(cores, int):
        return said
    if load > 0.75 * cores:
        said.append(
            f"The load average was {load:g} on {cores} cores before the run began: something "
            "else was running; wait until it has ended and run again."
        )
    return said


def _cold(report: Report) -> list[str]:
    """A model that was loaded, or caches that were filled, while it was being timed."""
    said = []
    for provider, rows in calibrations(report).items():
        walls = _walls(rows)
        later = median(walls[1:]) if len(walls) >= 4 else None
        if later and walls[0] > COLD_FACTOR * later:
            said.append(
                f"The first calibration request of {provider} took {walls[0] / later:.1f} times "
                "as long as the later ones: its model was still cold; raise warm_up_prompts."
            )
    loaded = [r for r in report.requests if r.wall_ms and (r.server.load_ms or 0) > r.wall_ms / 20]
    if loaded:
        names = ", ".join(sorted({row.provider for row in loaded}))
        said.append(
            f"{len(loaded):,} requests waited for their model to be loaded ({names}): it was "
            "cold, or was thrown out of memory for another; keep it loaded (keep_alive, the same "
            "context length everywhere) and run again."
        )
    return said


def _shared_cores(report: Report) -> list[str]:
    own = report.environment.get("own_cores")
    taken = {p.core for p in report.providers if p.core is not None}
    if not isinstance(own, list) or not own or not set(own) <= taken:
        return []
    return [
        "The coordinator had no core of its own: every core it may use also runs an engine, so "
        "its sending, timing and parsing wait for them; use a machine with more cores than "
        "engines, or run the engines elsewhere."
    ]


def _lag(report: Report, headline: Headline) -> list[str]:
    """How late the loop was, against the smallest quantity that is said."""
    lags = sorted(report.lags.lag_ms)
    if len(lags) < minimum_n(0.95):
        return []
    lag = lags[int(0.95 * len(lags))]
    for role, found in sorted(
        ((role, found) for role, found in headline.added_latency_ms.items() if found),
        key=lambda one: one[1].mean,
    ):
        if found.mean > 0 and lag > LAG_MOST * found.mean:
            return [
                f"The coordinator noticed events up to {lag:.1f} ms late (95 % of the time), "
                f"{100 * lag / found.mean:.0f} % of the added latency of a {role} request "
                f"({found.mean:.1f} ms): its processor was busy; give it a core of its own before "
                "trusting times that small."
            ]
    return []


def _few(headline: Headline) -> list[str]:
    few = {p: s.n for p, s in headline.wall_ms.items() if s and s.n < minimum_n(0.9)}
    if not few:
        return []
    counts = ", ".join(f"{p} {n}" for p, n in few.items())
    return [
        f"Too few requests for a 90th percentile ({counts}; it needs {minimum_n(0.9)}, the 95th "
        f"{minimum_n(0.95)}), so the tails are unknown; raise prompts or rounds."
    ]


def _clock(report: Report) -> list[str]:
    ahead = [m.wall_ahead_ms for m in report.moments if m.wall_ahead_ms is not None]
    steps = [after - before for before, after in itertools.pairwise([0.0, *ahead])]
    worst = max(steps, key=abs, default=0.0)
    if abs(worst) <= STEP_MS:
        return []
    return [
        f"The clock on the wall was set by {worst:,.0f} ms during the run (time "
        "synchronisation): durations come from another clock and hold, but the report's date and "
        "the logs of other machines may not agree; let the clock settle before you compare them."
    ]


def instrument_ms(report: Report) -> float | None:
    """The largest error of a request's overhead when the instrument checked itself, in ms.

    The median error or, where there were enough requests, the size that 95 % stay below.
    """
    rows = report.ruler.rows if report.ruler else []
    seen = [max(abs(r.bias_ms), r.p95_ms or 0.0) for r in rows if r.quantity == "over_ms"]
    return max(seen, default=None)


def _unseen(report: Report, headline: Headline) -> list[str]:
    """Headlines smaller than the instrument's own error."""
    error = instrument_ms(report)
    if error is None:
        return []
    added = headline.added_latency_ms
    said = {f"the added latency of a {role} request": s.mean for role, s in added.items() if s}
    remote, local = added["remote"], added["local"]
    if remote and local:
        said["the added latency that can be the network"] = remote.mean - local.mean
    said |= {f"the round trip to {p}": trip for p, trip in headline.round_trip_ms.items() if trip}
    hidden = [f"{what} ({value:.1f} ms)" for what, value in said.items() if abs(value) < error]
    if not hidden:
        return []
    return [
        f"Below what this instrument can see ({error:.1f} ms, by its check on itself before the "
        f"run): {', '.join(hidden)}; it may be the coordinator's own work, so draw nothing from "
        "it, or measure with a coordinator on a quiet machine."
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def ending(report: Report) -> str:
    """What ended `rounds: auto`; empty where their number was given."""
    count = many(len(report.rounds), "round")
    if report.ended == "narrow":
        return (
            f"The run ended after {count}, when its interval lay within the band to both sides "
            "of its middle (rounds: auto)."
        )
    if report.ended == "time":
        return (
            f"The run ended after {count}, because one more would have passed run_limit_s, and "
            "its interval is wider than the band (rounds: auto); raise run_limit_s for a "
            "narrower one."
        )
    if report.ended == "most":
        return (
            f"The run ended after {count}, the most that rounds: auto takes, and its interval "
            "is wider than the band: the machines vary too much; measure more prompts a round."
        )
    return ""


def _blame(report: Report) -> str:
    """Each provider's share of the failures: slow 3 of 12."""
    failed = Counter(row.provider for row in report.requests if row.outcome == "failed")
    asked = Counter(row.provider for row in report.requests)
    return ", ".join(f"{name} {count} of {asked[name]}" for name, count in failed.most_common())


def _stops(report: Report) -> list[str]:
    """That the run was stopped and went on, and what of it is kept but not counted."""
    rows = sum(len(arm.requests) for one in report.cut for arm in one.arms)
    cut = ", ".join(str(index + 1) for index in sorted({one.index for one in report.cut}))
    kept = f"{many(rows, 'request')} of round {cut}" if rows else ""
    if not report.resumed_ms:
        return [f"{kept}, which was cut, are kept in the report and counted nowhere."] * bool(rows)
    said = f"The run was stopped and went on {many(len(report.resumed_ms), 'time')}"
    if rows:
        said += f"; round {cut} was repeated whole: {kept} are kept and counted nowhere"
    return [f"{said}. Engines were warmed anew: compare the rounds before and after."]


def _outliers(report: Report) -> int:
    walls: dict[tuple[str, str], list[float]] = {}
    for one in report.rounds:
        for arm in one.arms:
            for row in arm.requests:
                if row.outcome == "ok" and row.wall_ms is not None:
                    walls.setdefault((arm.arm, row.provider), []).append(row.wall_ms)
    return sum(wall > 3 * (median(group) or wall) for group in walls.values() for wall in group)
