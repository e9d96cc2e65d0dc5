"""Every number that is said of a report, computed from its rows.

Each that cannot be computed is None, with its reason. Knows no file and no sentence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .. import pacing, stats
from ..records import Report, Request
from ..report import name
from . import belief, phases
from .causes import Cause
from .frames import ROLES, answered, arms, measured, prompts, rounds

_NO_ROUND = "no round has an answer to every prompt in both arms"
_REASONS = {
    "speedup": _NO_ROUND,
    "makespan_ms": _NO_ROUND,
    "baseline_ms": _NO_ROUND,
    "ideal_ms": "some provider answered nothing, so its speed is unknown",
    "efficiency": "it needs the ideal and a complete round",
    "network_share": "no answered request of a remote provider has a server time",
}
# Of the steps from token to token so many must have been seen: a few tokens make no piece of
# text of their own, and two may come in one read of the socket.
_SEEN = 0.8
# A calibrated machine is not beaten by more than this with one request in flight.
FASTER = 1.05


def headline(
    report: Report, disbelieved: dict[str, str], rows: pd.DataFrame, causes: Sequence[Cause]
) -> stats.Headline:
    """The headline of a report without what cannot be believed, of which `rows` are the requests.

    Raises nothing: a report without rounds has reasons in place of numbers.
    """
    ours = answered(rows, "strategy")
    timed, per_token = rounds(report)
    done = timed[timed["complete"]]
    strategy_ms, baseline_ms = done["strategy_ms"].tolist(), done["baseline_ms"].tolist()
    ratios = tuple(done["ratio"].tolist())
    ratio = stats.overhead_ratio(ratios, [1.0] * len(ratios))
    alone, source = _alone(rows, report.band)
    at_once = _at_once(report)
    names = [facts.name for facts in report.providers]
    count = len(prompts(report))
    known = bool(names) and count > 0 and set(names) <= set(alone)
    ideal = stats.ideal_makespan(count, [alone[p] for p in names]) if known else None
    over = {role: ours[(ours["role"] == role) & ours["over_ms"].notna()] for role in ROLES}
    remote = over["remote"]
    numbers: dict[str, Any] = {
        "speedup": 1 / ratio.median if ratio.median else None,
        "efficiency": stats.median([ideal / t for t in strategy_ms]) if ideal else None,
        "ideal_ms": ideal,
        "makespan_ms": stats.median(strategy_ms),
        "baseline_ms": stats.median(baseline_ms),
        "network_share": stats.network_share(
            remote["over_ms"].tolist(), remote["wall_ms"].tolist()
        ),
        "added_latency_ms": {
            role: stats.spread(mine["over_ms"].tolist()) for role, mine in over.items()
        },
        "round_trip_ms": {
            p: stats.median([probe.round_trip_ms for probe in report.probes if probe.provider == p])
            for p in names
        },
        "streams": _streams(report),
    }
    forbidden = belief.cached(report)
    efficiency = numbers["efficiency"] or 0.0
    if efficiency * (1 - 2 * _scatter(rows)) > FASTER and _one_at_a_time(report, at_once):
        forbidden.append(
            f"with one request in flight the machines reached {100 * efficiency:.0f} % of "
            "the speed that calibration found, so a cache answered or calibration was disturbed"
        )
    verdict = stats.gate(ratios, ratio, report.gate_max_ratio)
    if forbidden:
        verdict = stats.Gate(stats.INCONCLUSIVE)
    sent = measured(rows)
    none = stats.Answers(0, 0, 0)
    return stats.Headline(
        report=name(report),
        strategy=report.strategy,
        created=report.created,
        providers=tuple(names),
        prompts=count,
        requests=len(sent),
        failed_requests=int((sent["outcome"] == "failed").sum()),
        incomplete_rounds=len(timed) - len(done),
        overhead_ratio=ratio,
        round_ratios=ratios,
        ideal_from=source if ideal else None,
        alone_ms=alone,
        wall_ms={
            p: stats.spread(ours.loc[ours["provider"] == p, "wall_ms"].dropna().tolist())
            for p in names
        },
        segments_ms=_segments(ours),
        answers_equal=none if report.marked else _answers(report),
        gate_max_ratio=report.gate_max_ratio,
        band=report.band,
        verdict=verdict.verdict,
        rounds_needed=verdict.rounds_needed,
        missing=_missing(report, numbers, ratio, {*ours["provider"]}),
        busy=_busy(rows, done),
        per_token=per_token,
        forbidden=tuple(forbidden),
        disbelieved=disbelieved,
        marked=report.marked,
        calibration_equal=_calibrated(report) if report.marked else none,
        roles={facts.name: facts.role for facts in report.providers},
        at_once=at_once,
        contention={
            cause.provider.name: cause.contention
            for cause in causes
            if cause.arm == "strategy" and cause.behaviour != "undisturbed"
        },
        **numbers,
    )


def _missing(
    report: Report, numbers: Mapping[str, Any], ratio: stats.Ratio, used: set[str]
) -> dict[str, str]:
    """Why each number is missing; `used` are the providers that answered the strategy."""
    roles = {facts.role for facts in report.providers}
    missing = {key: why for key, why in _REASONS.items() if numbers[key] is None}
    missing |= {
        f"added_latency_ms.{role}": f"no answered request of a {role} provider has a server time"
        if role in roles
        else f"no provider is {role}"
        for role, value in numbers["added_latency_ms"].items()
        if value is None
    }
    if "remote" not in roles:
        missing["network_share"] = "no provider is remote"
    trips = numbers["round_trip_ms"]
    missing |= {f"round_trip_ms.{p}": "it was not probed" for p, t in trips.items() if t is None}
    if ratio.low is None:
        missing["overhead_ratio.low"] = (
            f"complete rounds: {ratio.rounds}; an interval needs 2"
            if ratio.rounds < 2
            else f"its ends would lie further apart than a factor of {stats.WIDEST:g}"
        )
    return missing | {
        f"streams.{p}": "its answers were not streamed, so no first token was seen"
        for p in trips
        if p not in numbers["streams"] and numbers["makespan_ms"] and p in used
    }


def _busy(rows: pd.DataFrame, done: pd.DataFrame) -> dict[str, float]:
    """Mean over complete rounds of each provider's time with a request in flight / makespan.

    Without times of day the sum of the walls stands in, where it fits into the makespan: the
    requests may have run one at a time then, and no other reading is nearer.
    """
    timed_rows = rows[rows["arm"].eq("strategy") & rows["wall_ms"].notna()]
    shares: dict[str, list[float]] = {}
    for one in done.to_dict("records"):
        mine = timed_rows[timed_rows["round"].eq(one["round"])]
        for provider, group in mine.groupby("provider"):
            timed = group["start_ms"].notna().all() and group["end_ms"].notna().all()
            spans = list(zip(group["start_ms"], group["end_ms"], strict=True))
            busy_ms = _union_ms(spans) if timed else float(group["wall_ms"].sum())
            if timed or busy_ms <= one["strategy_ms"]:
                shares.setdefault(str(provider), []).append(busy_ms / one["strategy_ms"])
    return {p: sum(values) / len(done) for p, values in shares.items()}


def _at_once(report: Report) -> dict[str, int]:
    """The most requests in flight at once in the strategy's arms; not told without marks."""
    most: dict[str, int] = {}
    for arm in arms(report, "strategy"):
        # One that begins in the microsecond in which another ends is not beside it.
        steps = sorted(
            (at + (change > 0) / 100, change, row.provider)
            for row in arm.requests
            for at, change in ((row.marks.start_ms, 1), (row.marks.end_ms, -1))
            if at is not None
        )
        now: dict[str, int] = {}
        for _, change, provider in steps:
            now[provider] = now.get(provider, 0) + change
            most[provider] = max(most.get(provider, 0), now[provider])
    return most


def _one_at_a_time(report: Report, at_once: Mapping[str, int]) -> bool:
    """Whether no provider had two requests in flight, by what dispatch allowed or by the marks."""
    allowed = [arm.limits or {"": 0} for arm in arms(report, "strategy")]
    limits = [limit for each in allowed for limit in each.values()]
    return set(limits) == {1} or (bool(at_once) and max(at_once.values()) == 1)


def _scatter(rows: pd.DataFrame) -> float:
    """The relative standard error of calibration's mean wall, of the provider that varies most."""
    walls = answered(rows, "calibration").groupby("provider")["wall_ms"]
    worst = (walls.std() / walls.mean() / walls.count() ** 0.5).max() if len(walls) else 0.0
    return 0.0 if pd.isna(worst) else float(worst)


def _union_ms(spans: Sequence[tuple[float, float]]) -> float:
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _streams(report: Report) -> dict[str, stats.Stream]:
    """How streamed answers came in the strategy's arms, per provider; empty if none was.

    Tokens are counted as the server does where it does, else as the pieces that arrived.
    """
    rows: dict[str, list[Request]] = {}
    busy_ms: dict[str, float] = {}
    for arm in arms(report, "strategy"):
        for provider in dict.fromkeys(row.provider for row in arm.requests):
            own = [r for r in arm.requests if r.provider == provider and r.token_ms and r.wall_ms]
            own = [row for row in own if row.outcome == "ok"]
            spans = [(r.marks.start_ms, r.marks.end_ms) for r in own]
            known = [(start, end) for start, end in spans if start is not None and end is not None]
            rows.setdefault(provider, []).extend(own)
            busy_ms[provider] = busy_ms.get(provider, 0.0) + _union_ms(known)
    return {p: _stream(own, busy_ms[p]) for p, own in rows.items() if own}


def _stream(rows: Sequence[Request], busy_ms: float) -> stats.Stream:
    firsts, thoughts = [], []
    for row in rows:
        if (start := row.marks.start_ms) is not None and row.token_ms:
            firsts.append(row.token_ms[0] - start)
            if row.marks.first_thought_ms is not None:
                thoughts.append(row.marks.first_thought_ms - start)
    apart, why = _apart(rows)
    between = []
    for row in rows:
        seen = sorted(set(row.token_ms or []))
        steps = (pacing.length(row) or 0) - 1 if apart == "tokens" else len(seen) - 1
        if apart and steps > 0 and len(seen) > 1:
            between.append((seen[-1] - seen[0]) / steps)
    lengths = [pacing.length(row) or 0 for row in rows]
    rates = [1000 * n / row.wall_ms for n, row in zip(lengths, rows, strict=True) if row.wall_ms]
    return stats.Stream(
        n=len(rows),
        ttft_ms=stats.quantiles(firsts),
        between_ms=stats.quantiles(between),
        tokens_per_s=stats.quantiles(rates)["p50"],
        together_per_s=1000 * sum(lengths) / busy_ms if busy_ms else None,
        counted="server" if all(row.output_tokens for row in rows) else "pieces",
        apart=apart,
        why=why,
        thought_ms=stats.quantiles(thoughts) if thoughts else None,
    )


def _apart(rows: Sequence[Request]) -> tuple[str | None, str]:
    """What arrived one by one: tokens, chunks, or None; and why it is not tokens."""
    seen = sum(max(0, len(set(row.token_ms or [])) - 1) for row in rows)
    steps = sum(max(0, (pacing.length(row) or 0) - 1) for row in rows)
    if not steps:
        return "tokens", ""
    if not seen:
        return None, "each answer came in one write"
    if not all(row.output_tokens for row in rows):
        return "chunks", "its server does not count tokens"
    if any(row.thought_characters for row in rows):
        return "chunks", "its server counts tokens of thoughts too"
    if seen < _SEEN * steps:
        return "chunks", "several tokens came in a chunk"
    return "tokens", ""


def _alone(frame: pd.DataFrame, band: float) -> tuple[dict[str, float], str]:
    """Mean wall of one request per provider, and where from: calibration before own rows.

    Calibration is spread over the run, so that drift of the machines is in it. Where its answers
    are of another length than the strategy's, beyond the band, they are brought to that length:
    what follows the first token grows with the tokens.
    """
    good = frame[(frame["outcome"] == "ok") & (frame["wall_ms"] > 0)]
    length = good.loc[good["arm"] == "strategy", "output_tokens"].astype("float64").mean()
    for source in ("calibration", "strategy"):
        rows = good[good["arm"] == source]
        if not len(rows):
            continue
        found = {}
        for provider, mine in rows.groupby("provider"):
            walls, tokens = mine["wall_ms"], mine["output_tokens"].astype("float64")
            if source == "calibration" and abs(length / tokens.mean() - 1) > band:
                before = mine["ttft_ms"].fillna(mine["prompt_ms"]).fillna(0.0).clip(upper=walls)
                walls = before + (walls - before) * length / tokens
            found[str(provider)] = float(walls.mean())
        return found, source
    return {}, "strategy"


def _segments(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Means over all answered requests of a role: a part a request lacks counts 0 there."""
    found: dict[str, dict[str, float]] = {}
    for role in ROLES:
        rows = frame[(frame["role"] == role) & frame["wall_ms"].notna()]
        parts = [phases.segments(row) for row in rows.to_dict("records")]  # type: ignore[arg-type]
        if parts:
            seen = phases.in_use(parts)
            found[role] = {
                key: sum(part.get(key, 0.0) for part in parts) / len(parts) for key in seen
            }
    return found


def _answers(report: Report) -> stats.Answers:
    """The answers of each round's two arms, prompt by prompt."""
    pairs = []
    for one in report.rounds:
        digests: dict[str, dict[int, str]] = {"baseline": {}, "strategy": {}}
        for arm in one.arms:
            for row in arm.requests:
                if arm.arm in digests and row.outcome == "ok" and row.answer_sha256:
                    digests[arm.arm][row.prompt] = row.answer_sha256
        mine, other = digests.values()
        pairs += [mine[prompt] == other[prompt] for prompt in mine.keys() & other.keys()]
    return stats.Answers(sum(pairs), len(pairs) - sum(pairs), len(pairs))


def _calibrated(report: Report) -> stats.Answers:
    """The answers to calibration's prompts, each provider's held against the first one's.

    Every provider is sent the same texts: the n-th calibration of one is that of another.
    """
    told: dict[str, dict[tuple[int, int], str]] = {}
    turns: dict[str, int] = {}
    for arm in arms(report, "calibration"):
        for provider in dict.fromkeys(row.provider for row in arm.requests):
            turn = turns[provider] = turns.get(provider, -1) + 1
            told.setdefault(provider, {}).update(
                ((turn, row.prompt), row.answer_sha256)
                for row in arm.requests
                if row.provider == provider and row.outcome == "ok" and row.answer_sha256
            )
    first, *others = told.values() or [{}]
    pairs = [first[key] == other[key] for other in others for key in first.keys() & other.keys()]
    return stats.Answers(sum(pairs), len(pairs) - sum(pairs), len(pairs))
