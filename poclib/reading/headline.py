"""Every number that is said of a report, computed from its rows; knows no frame and no sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import pacing, stats
from ..records import Report, Request
from ..report import name
from . import belief, phases
from .phases import between

if TYPE_CHECKING:
    from .reading import Reading

ROLES = ("remote", "local")
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


def headline(reading: Reading) -> stats.Headline:
    """The headline of a report without what cannot be believed.

    Each number that cannot be computed is None, with its reason in `missing`. The ideal makespan
    is n / Σ 1/t_p: all providers busy to the end, each with t_p ms a request.
    """
    report, rows = reading.believed, reading.answered("strategy")
    by_provider = _by_provider(rows)
    roles: dict[str, str] = {facts.name: facts.role for facts in report.providers}
    timed, per_token = rounds(report)
    ratios = tuple(one.ratio for one in timed if one.ratio)
    ratio = stats.overhead_ratio(ratios)
    makespans_ms = [one.strategy_ms for one in timed if one.ratio and one.strategy_ms]
    baselines_ms = [one.baseline_ms for one in timed if one.ratio and one.baseline_ms]
    alone, ideal_from = _alone(reading)
    count = len(prompts(report))
    known = bool(roles) and count > 0 and roles.keys() <= alone.keys()
    ideal = count / math.fsum(1 / alone[p] for p in roles) if known else None
    told = [row for row in rows if row.over_ms is not None]
    by_role = {role: [row for row in told if roles[row.provider] == role] for role in ROLES}
    over = {role: _known(row.over_ms for row in own) for role, own in by_role.items()}
    remote_ms = math.fsum(_walls(by_role["remote"]))
    efficiency = stats.median([ideal / t for t in makespans_ms]) if ideal else None
    at_once = _at_once(reading)
    numbers: dict[str, Any] = {
        "speedup": 1 / ratio.median if ratio.median else None,
        "efficiency": efficiency,
        "ideal_ms": ideal,
        "makespan_ms": stats.median(makespans_ms),
        "baseline_ms": stats.median(baselines_ms),
        "network_share": math.fsum(over["remote"]) / remote_ms if remote_ms else None,
        "added_latency_ms": {role: stats.spread(added) for role, added in over.items()},
        "round_trip_ms": {
            p: stats.median([probe.round_trip_ms for probe in report.probes if probe.provider == p])
            for p in roles
        },
        "streams": {p: stream for p, own in by_provider.items() if (stream := _stream(own))},
    }
    forbidden = [*belief.cached(report), *_too_fast(reading, efficiency or 0.0, at_once)]
    verdict, rounds_needed = stats.gate(ratios, ratio, report.gate_max_ratio)
    return stats.Headline(
        report=name(report),
        strategy=report.strategy,
        created=report.created,
        providers=tuple(roles),
        prompts=count,
        requests=len(report.requests),
        failed_requests=sum(row.outcome == "failed" for row in report.requests),
        incomplete_rounds=len(timed) - len(ratios),
        overhead_ratio=ratio,
        round_ratios=ratios,
        ideal_from=ideal_from if ideal else None,
        alone_ms=alone,
        wall_ms={p: stats.spread(_walls(by_provider.get(p, []))) for p in roles},
        segments_ms=_segments(rows, roles),
        answers_equal=_answers([] if report.marked else _between_arms(report)),
        gate_max_ratio=report.gate_max_ratio,
        band=report.band,
        verdict=stats.INCONCLUSIVE if forbidden else verdict,
        rounds_needed=None if forbidden else rounds_needed,
        missing=_missing(numbers, ratio, roles, by_provider),
        busy=_busy(report, timed),
        per_token=per_token,
        forbidden=tuple(forbidden),
        disbelieved=reading.disbelieved,
        marked=report.marked,
        calibration_equal=_answers(_between_machines(reading) if report.marked else []),
        roles=roles,
        at_once=at_once,
        contention={
            cause.provider.name: cause.contention
            for cause in reading.causes
            if cause.arm == "strategy" and cause.behaviour != "undisturbed"
        },
        **numbers,
    )


def _missing(
    numbers: Mapping[str, Any], ratio: stats.Ratio, roles: Mapping[str, str], used: Iterable[str]
) -> dict[str, str]:
    """Why each number is missing; `used` are the providers that answered the strategy."""
    missing = {key: why for key, why in _REASONS.items() if numbers[key] is None}
    for role, added in numbers["added_latency_ms"].items():
        if added is None:
            why = f"no answered request of a {role} provider has a server time"
            why = why if role in roles.values() else f"no provider is {role}"
            missing[f"added_latency_ms.{role}"] = why
    if "remote" not in roles.values():
        missing["network_share"] = "no provider is remote"
    trips = numbers["round_trip_ms"]
    missing |= {f"round_trip_ms.{p}": "it was not probed" for p in trips if trips[p] is None}
    if ratio.low is None:
        why = f"its ends would lie further apart than a factor of {stats.WIDEST:g}"
        few = f"complete rounds: {ratio.rounds}; an interval needs 2"
        missing["overhead_ratio.low"] = few if ratio.rounds < 2 else why
    if numbers["makespan_ms"]:
        why = "its answers were not streamed, so no first token was seen"
        missing |= {f"streams.{p}": why for p in used if p not in numbers["streams"]}
    return missing


class RoundTimes(NamedTuple):
    """The makespans of a round, None where an answer is missing, and their ratio.

    A makespan is from an arm's first dispatch to its last answer. `first` is the arm that ran
    first; the ratio is of times per token where the headline's `per_token` says so.
    """

    round: int
    first: str | None
    baseline_ms: float | None
    strategy_ms: float | None
    ratio: float | None = None


def rounds(report: Report) -> tuple[list[RoundTimes], bool]:
    """The times of each round, and whether their ratios are per token."""
    expected = prompts(report)
    rows: list[RoundTimes] = []
    both: dict[int, tuple[pacing.Measured, pacing.Measured]] = {}
    for one in report.rounds:
        makespans = {arm.arm: pacing.makespan_ms(arm, expected) for arm in one.arms}
        tokens = {arm.arm: pacing.arm_tokens(arm) for arm in one.arms}
        base_ms, ours_ms = makespans.get("baseline"), makespans.get("strategy")
        if base_ms and ours_ms:
            both[one.index] = (ours_ms, tokens["strategy"]), (base_ms, tokens["baseline"])
        rows.append(RoundTimes(one.index, next(iter(makespans), None), base_ms, ours_ms))
    ratios = dict(zip(both, pacing.ratios([*both.values()], report.band), strict=True))
    counts = [(ours, base) for (_, ours), (_, base) in both.values()]
    per_token = pacing.unlike_lengths(counts, report.band)
    return [row._replace(ratio=ratios.get(row.round)) for row in rows], per_token


def prompts(report: Report) -> set[int]:
    """The indices every arm of a round must answer."""
    return set(range(len(report.prompt_sha256))) or {row.prompt for row in report.requests}


def _by_provider(rows: Iterable[Request]) -> dict[str, list[Request]]:
    groups: dict[str, list[Request]] = {}
    for row in rows:
        groups.setdefault(row.provider, []).append(row)
    return groups


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _walls(rows: Iterable[Request]) -> list[float]:
    return _known(row.wall_ms for row in rows)


def _busy(report: Report, timed: Sequence[RoundTimes]) -> dict[str, float]:
    """Mean over complete rounds of each provider's time with a request in flight / makespan.

    Without times of day the sum of the walls stands in, where it fits into the makespan.
    """
    shares: dict[str, float] = {}
    makespans = {one.round: one.strategy_ms for one in timed if one.ratio and one.strategy_ms}
    for one in report.rounds:
        arms = [arm for arm in one.arms if arm.arm == "strategy" and one.index in makespans]
        rows = [row for arm in arms for row in arm.requests if row.wall_ms is not None]
        for provider, own in _by_provider(rows).items():
            spans, makespan_ms = _spans(own), makespans[one.index]
            known = len(spans) == len(own)
            busy_ms = _union_ms(spans) if known else math.fsum(_walls(own))
            if known or busy_ms <= makespan_ms:
                share = busy_ms / makespan_ms / len(makespans)
                shares[provider] = shares.get(provider, 0.0) + share
    return shares


def _spans(rows: Iterable[Request]) -> list[tuple[float, float]]:
    marks = [(row.marks.start_ms, row.marks.end_ms) for row in rows]
    return [(start, end) for start, end in marks if start is not None and end is not None]


def _union_ms(spans: Iterable[tuple[float, float]]) -> float:
    total, end = 0.0, -math.inf
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def _at_once(reading: Reading) -> dict[str, int]:
    """The most requests in flight at once in the strategy's arms; not told without marks."""
    most: dict[str, int] = {}
    for arm in reading.arms("strategy"):
        for provider, own in _by_provider(arm.requests).items():
            starts = _known(row.marks.start_ms for row in own)
            ends = _known(row.marks.end_ms for row in own)
            # One that begins in the microsecond in which another ends is not beside it.
            steps = sorted([*((at + 0.01, 1) for at in starts), *((at, -1) for at in ends)])
            peak = max(accumulate(change for _, change in steps), default=0)
            if peak:
                most[provider] = max(most.get(provider, 0), peak)
    return most


def _too_fast(reading: Reading, efficiency: float, at_once: Mapping[str, int]) -> list[str]:
    """Why calibrated machines cannot have been so fast with one request in flight on each."""
    allowed = [arm.limits or {"": 0} for arm in reading.arms("strategy")]
    limits = {limit for each in allowed for limit in each.values()}
    walls = [_walls(rows) for rows in reading.calibrations.values() if len(rows) > 1]
    errors = [stdev(each) / fmean(each) / math.sqrt(len(each)) for each in walls]
    sure = efficiency * (1 - 2 * max(errors, default=0.0))
    if sure <= FASTER or not (limits == {1} or max(at_once.values(), default=0) == 1):
        return []
    return [
        f"with one request in flight the machines reached {100 * efficiency:.0f} % of the speed "
        "that calibration found, so a cache answered or calibration was disturbed"
    ]


def _stream(answered: Sequence[Request]) -> stats.Stream | None:
    """How one provider's streamed answers came; None if none was."""
    rows = [row for row in answered if row.token_ms and row.wall_ms]
    if not rows:
        return None
    apart, why = _apart(rows)
    firsts, steps_ms = [], []
    for row in rows:
        seen = sorted(set(row.token_ms or []))
        firsts.append(between(row.marks.start_ms, seen[0]))
        steps = (pacing.length(row) or 0) - 1 if apart == "tokens" else len(seen) - 1
        if apart and steps > 0 and len(seen) > 1:
            steps_ms.append((seen[-1] - seen[0]) / steps)
    thoughts = _known(between(row.marks.start_ms, row.marks.first_thought_ms) for row in rows)
    lengths = [pacing.length(row) or 0 for row in rows]
    rates = [1000 * n / row.wall_ms for n, row in zip(lengths, rows, strict=True) if row.wall_ms]
    busy_ms = _union_ms(_spans(rows))
    return stats.Stream(
        n=len(rows),
        ttft_ms=stats.quantiles(_known(firsts)),
        between_ms=stats.quantiles(steps_ms),
        tokens_per_s=stats.quantiles(rates)["p50"],
        together_per_s=1000 * sum(lengths) / busy_ms if busy_ms else None,
        counted="server" if all(row.output_tokens for row in rows) else "pieces",
        apart=apart,
        why=why,
        thought_ms=stats.quantiles(thoughts) if thoughts else None,
    )


def _apart(rows: Sequence[Request]) -> tuple[str | None, str]:
    """What arrived one by one: tokens, chunks, or None; and why it is not tokens."""
    seen = sum(len(set(row.token_ms or [])) - 1 for row in rows)
    steps = sum(max(0, (pacing.length(row) or 0) - 1) for row in rows)
    if steps and not seen:
        return None, "each answer came in one write"
    if steps and not all(row.output_tokens for row in rows):
        return "chunks", "its server does not count tokens"
    if steps and any(row.thought_characters for row in rows):
        return "chunks", "its server counts tokens of thoughts too"
    if seen < _SEEN * steps:
        return "chunks", "several tokens came in a chunk"
    return "tokens", ""


def _alone(reading: Reading) -> tuple[dict[str, float], str]:
    """Mean wall of one request per provider, and where from: calibration before own rows.

    Calibration is spread over the run, so that drift of the machines is in it. Where its answers
    are of another length than the strategy's, beyond the band, they are brought to that length:
    what follows the first token grows with the tokens.
    """
    ours = [row for row in reading.answered("strategy") if row.wall_ms]
    source = "calibration" if reading.calibrations else "strategy"
    target = _length(ours)
    alone: dict[str, float] = {}
    for provider, rows in (reading.calibrations or _by_provider(ours)).items():
        walls, length = _walls(rows), _length(rows)
        if source == "calibration" and abs(target / length - 1) > reading.report.band:
            walls = [_of_length(row, target) for row in rows if pacing.length(row)]
        alone[provider] = sum(walls) / len(walls)
    return alone, source


def _length(rows: Iterable[Request]) -> float:
    """The mean length of answers in tokens; NaN where none is known."""
    lengths = [length for row in rows if (length := pacing.length(row))]
    return fmean(lengths) if lengths else math.nan


def _of_length(row: Request, tokens: float) -> float:
    """The wall that a request would have taken for so many tokens, in ms."""
    wall = row.wall_ms or 0.0
    first = between(row.marks.start_ms, row.marks.first_token_ms)
    before = min(wall, (row.server.prompt_ms or 0.0) if first is None else first)
    return before + (wall - before) * tokens / (pacing.length(row) or tokens)


def _segments(rows: Sequence[Request], roles: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Means over all answered requests of a role: a part a request lacks counts 0 there."""
    means: dict[str, dict[str, float]] = {}
    for role in ROLES:
        own = [row for row in rows if row.wall_ms is not None and roles[row.provider] == role]
        parts = [phases.segments(phases.times(row)) for row in own]
        keys = phases.in_use(parts)
        if keys:
            means[role] = {key: fmean(part.get(key, 0.0) for part in parts) for key in keys}
    return means


def _between_arms(report: Report) -> list[tuple[dict[int, str], dict[int, str]]]:
    """The answers of each round's two arms, by prompt, as digests."""
    told = [{arm.arm: _digests(arm.requests) for arm in one.arms} for one in report.rounds]
    return [(arms.get("baseline", {}), arms.get("strategy", {})) for arms in told]


def _between_machines(reading: Reading) -> list[tuple[dict[int, str], dict[int, str]]]:
    """Answers to calibration's prompts, the same for all: the first provider's and each other's."""
    told: dict[str, list[dict[int, str]]] = {}
    for arm in reading.arms("calibration"):
        for provider, own in _by_provider(arm.requests).items():
            told.setdefault(provider, []).append(_digests(own))
    first, *others = told.values() or [[]]
    return [pair for other in others for pair in zip(first, other, strict=False)]


def _digests(rows: Iterable[Request]) -> dict[int, str]:
    answered = [row for row in rows if row.outcome == "ok"]
    return {row.prompt: row.answer_sha256 for row in answered if row.answer_sha256}


def _answers(pairs: Iterable[tuple[dict[int, str], dict[int, str]]]) -> stats.Answers:
    equal = [one[key] == other[key] for one, other in pairs for key in one.keys() & other.keys()]
    return stats.Answers(sum(equal), len(equal) - sum(equal), len(equal))
