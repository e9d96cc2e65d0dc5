"""Warnings about the machine and the instrument: drift, disturbance, and what cannot be seen.

Each is observation, likely cause, next action, chosen from the facts of a report; `words` adds
them to those about the pool and the answers. Knows no frame and draws nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .records import Report, Request
from .stats import Headline, median, minimum_n

# Shares and factors beyond which a reader should know.
OTHERS_MOST = 0.10
STEAL_MOST = 0.02
LAG_MOST = 0.05
COLD_FACTOR = 1.5
STEP_MS = 50.0


def cautions(report: Report, headline: Headline) -> list[str]:
    """Every warning that this report's facts call for; empty where it holds no such facts."""
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
