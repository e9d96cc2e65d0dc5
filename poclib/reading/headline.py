"""Every number that is said of a report, computed from its rows.

Each that cannot be computed is None, with its reason. Knows no file, no frame and no sentence.
"""

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

    Raises nothing: a report without rounds has reasons in place of numbers.
    """
    report, ours = reading.believed, reading.answered("strategy")
    timed, per_token = rounds(report)
    ratios = tuple(one.ratio for one in timed if one.ratio is not None)
    strategy_ms = [one.strategy_ms for one in timed if one.ratio and one.strategy_ms]
    baseline_ms = [one.baseline_ms for one in timed if one.ratio and one.baseline_ms]
    ratio = stats.overhead_ratio(ratios)
    alone, source = _alone(reading)
    at_once, used = _at_once(reading), _by_provider(ours)
    roles: dict[str, str] = {facts.name: facts.role for facts in report.providers}
    count = len(prompts(report))
    known = bool(roles) and count > 0 and roles.keys() <= alone.keys()
    ideal = count / math.fsum(1 / alone[p] for p in roles) if known else None
    rows = {role: [row for row in ours if roles.get(row.provider) == role] for role in ROLES}
    over = {
        role: [r.over_ms for r in group if r.over_ms is not None] for role, group in rows.items()
    }
    remote_ms = math.fsum(row.wall_ms or 0.0 for row in rows["remote"] if row.over_ms is not None)
    numbers: dict[str, Any] = {
        "speedup": 1 / ratio.median if ratio.median else None,
        "efficiency": stats.median([ideal / t for t in strategy_ms]) if ideal else None,
        "ideal_ms": ideal,
        "makespan_ms": stats.median(strategy_ms),
        "baseline_ms": stats.median(baseline_ms),
        "network_share": math.fsum(over["remote"]) / remote_ms if remote_ms else None,
        "added_latency_ms": {role: stats.spread(told) for role, told in over.items()},
        "round_trip_ms": {
            p: stats.median([probe.round_trip_ms for probe in report.probes if probe.provider == p])
            for p in roles
        },
        "streams": {p: stream for p, own in used.items() if (stream := _stream(own))},
    }
    forbidden = belief.cached(report)
    efficiency = numbers["efficiency"] or 0.0
    if efficiency * (1 - 2 * _scatter(reading)) > FASTER and _one_at_a_time(reading, at_once):
        forbidden.append(
            f"with one request in flight the machines reached {100 * efficiency:.0f} % of "
            "the speed that calibration found, so a cache answered or calibration was disturbed"
        )
    verdict, rounds_needed = stats.gate(ratios, ratio, report.gate_max_ratio)
    if forbidden:
        verdict, rounds_needed = stats.INCONCLUSIVE, None
    walls_ms = {p: [r.wall_ms for r in own if r.wall_ms is not None] for p, own in used.items()}
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
        ideal_from=source if ideal else None,
        alone_ms=alone,
        wall_ms={provider: stats.spread(walls_ms.get(provider, [])) for provider in roles},
        segments_ms=_segments(rows),
        answers_equal=_compared([] if report.marked else _answers(report)),
        gate_max_ratio=report.gate_max_ratio,
        band=report.band,
        verdict=verdict,
        rounds_needed=rounds_needed,
        missing=_missing(numbers, ratio, roles, used),
        busy=_busy(report, timed),
        per_token=per_token,
        forbidden=tuple(forbidden),
        disbelieved=reading.disbelieved,
        marked=report.marked,
        calibration_equal=_compared(_calibrated(reading) if report.marked else []),
        roles=roles,
        at_once=at_once,
        contention={
            cause.provider.name: cause.contention
            for cause in reading.causes
            if cause.arm == "strategy" and cause.behaviour != "undisturbed"
        },
        **numbers,
    )


def prompts(report: Report) -> set[int]:
    """The indices every arm of a round must answer."""
    return set(range(len(report.prompt_sha256))) or {row.prompt for row in report.requests}


class RoundTimes(NamedTuple):
    """The makespans of a round, None where an answer is missing, and their ratio.

    `first` is the arm that ran first; the ratio is of times per token where lengths are unlike.
    """

    round: int
    first: str | None
    baseline_ms: float | None
    strategy_ms: float | None
    ratio: float | None


def rounds(report: Report) -> tuple[list[RoundTimes], bool]:
    """The times of each round, and whether their ratios are per token."""
    expected = prompts(report)
    spans: dict[int, tuple[float | None, float | None]] = {}
    both: dict[int, tuple[pacing.Measured, pacing.Measured]] = {}
    for one in report.rounds:
        arms = {arm.arm: arm for arm in one.arms}
        baseline, strategy = arms.get("baseline"), arms.get("strategy")
        base_ms = pacing.makespan_ms(baseline, expected) if baseline else None
        ours_ms = pacing.makespan_ms(strategy, expected) if strategy else None
        spans[one.index] = base_ms, ours_ms
        if baseline and strategy and base_ms and ours_ms:
            ours = ours_ms, pacing.arm_tokens(strategy)
            both[one.index] = ours, (base_ms, pacing.arm_tokens(baseline))
    ratios = dict(zip(both, pacing.ratios([*both.values()], report.band), strict=True))
    firsts = {one.index: one.arms[0].arm if one.arms else None for one in report.rounds}
    rows = [RoundTimes(at, firsts[at], *spans[at], ratios.get(at)) for at in spans]
    tokens = [(ours[1], base[1]) for ours, base in both.values()]
    return rows, pacing.unlike_lengths(tokens, report.band)


def _by_provider(rows: Iterable[Request]) -> dict[str, list[Request]]:
    groups: dict[str, list[Request]] = {}
    for row in rows:
        groups.setdefault(row.provider, []).append(row)
    return groups


def _missing(
    numbers: Mapping[str, Any], ratio: stats.Ratio, roles: Mapping[str, str], used: Iterable[str]
) -> dict[str, str]:
    """Why each number is missing; `used` are the providers that answered the strategy."""
    missing = {key: why for key, why in _REASONS.items() if numbers[key] is None}
    for role, value in numbers["added_latency_ms"].items():
        if role not in roles.values():
            missing[f"added_latency_ms.{role}"] = f"no provider is {role}"
        elif value is None:
            why = f"no answered request of a {role} provider has a server time"
            missing[f"added_latency_ms.{role}"] = why
    if "remote" not in roles.values():
        missing["network_share"] = "no provider is remote"
    for provider, trip in numbers["round_trip_ms"].items():
        if trip is None:
            missing[f"round_trip_ms.{provider}"] = "it was not probed"
    if ratio.rounds < 2:
        missing["overhead_ratio.low"] = f"complete rounds: {ratio.rounds}; an interval needs 2"
    elif ratio.low is None:
        why = f"its ends would lie further apart than a factor of {stats.WIDEST:g}"
        missing["overhead_ratio.low"] = why
    for provider in used if numbers["makespan_ms"] else ():
        if provider not in numbers["streams"]:
            why = "its answers were not streamed, so no first token was seen"
            missing[f"streams.{provider}"] = why
    return missing


def _busy(report: Report, timed: Sequence[RoundTimes]) -> dict[str, float]:
    """Mean over complete rounds of each provider's time with a request in flight / makespan.

    Without times of day the sum of the walls stands in, where it fits into the makespan: the
    requests may have run one at a time then, and no other reading is nearer.
    """
    shares: dict[str, list[float]] = {}
    complete = [pair for pair in zip(report.rounds, timed, strict=True) if pair[1].ratio]
    for one, times in complete:
        rows = [row for arm in one.arms if arm.arm == "strategy" for row in arm.requests]
        makespan_ms = times.strategy_ms or 0.0
        for provider, own in _by_provider(r for r in rows if r.wall_ms is not None).items():
            spans = _spans(own)
            known = len(spans) == len(own)
            busy_ms = _union_ms(spans) if known else math.fsum(row.wall_ms or 0.0 for row in own)
            if known or busy_ms <= makespan_ms:
                shares.setdefault(provider, []).append(busy_ms / makespan_ms)
    return {provider: math.fsum(each) / len(complete) for provider, each in shares.items()}


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
            starts = [r.marks.start_ms for r in own if r.marks.start_ms is not None]
            ends = [row.marks.end_ms for row in own if row.marks.end_ms is not None]
            # One that begins in the microsecond in which another ends is not beside it.
            steps = sorted([*((at + 0.01, 1) for at in starts), *((at, -1) for at in ends)])
            peak = max(accumulate(change for _, change in steps), default=0)
            if steps:
                most[provider] = max(most.get(provider, 0), peak)
    return most


def _one_at_a_time(reading: Reading, at_once: Mapping[str, int]) -> bool:
    """Whether no provider had two requests in flight, by what dispatch allowed or by the marks."""
    allowed = [arm.limits or {"": 0} for arm in reading.arms("strategy")]
    limits = {limit for each in allowed for limit in each.values()}
    return limits == {1} or max(at_once.values(), default=0) == 1


def _scatter(reading: Reading) -> float:
    """The relative standard error of calibration's mean wall, of the provider that varies most."""
    walls = [[row.wall_ms or 0.0 for row in rows] for rows in reading.calibrations.values()]
    errors = [stdev(w) / fmean(w) / math.sqrt(len(w)) for w in walls if len(w) > 1]
    return max(errors, default=0.0)


def _stream(answered: Sequence[Request]) -> stats.Stream | None:
    """How one provider's streamed answers came; None if none was.

    Tokens are counted as the server does where it does, else as the pieces that arrived.
    """
    rows = [row for row in answered if row.token_ms and row.wall_ms]
    if not rows:
        return None
    firsts = [between(row.marks.start_ms, row.token_ms[0]) for row in rows if row.token_ms]
    thoughts = [between(row.marks.start_ms, row.marks.first_thought_ms) for row in rows]
    thought_ms = [thought for thought in thoughts if thought is not None]
    apart, why = _apart(rows)
    steps_ms = []
    for row in rows:
        seen = sorted(set(row.token_ms or []))
        steps = (pacing.length(row) or 0) - 1 if apart == "tokens" else len(seen) - 1
        if apart and steps > 0 and len(seen) > 1:
            steps_ms.append((seen[-1] - seen[0]) / steps)
    lengths = [pacing.length(row) or 0 for row in rows]
    rates = [1000 * n / row.wall_ms for n, row in zip(lengths, rows, strict=True) if row.wall_ms]
    busy_ms = _union_ms(_spans(rows))
    return stats.Stream(
        n=len(rows),
        ttft_ms=stats.quantiles([first for first in firsts if first is not None]),
        between_ms=stats.quantiles(steps_ms),
        tokens_per_s=stats.quantiles(rates)["p50"],
        together_per_s=1000 * sum(lengths) / busy_ms if busy_ms else None,
        counted="server" if all(row.output_tokens for row in rows) else "pieces",
        apart=apart,
        why=why,
        thought_ms=stats.quantiles(thought_ms) if thought_ms else None,
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


def _alone(reading: Reading) -> tuple[dict[str, float], str]:
    """Mean wall of one request per provider, and where from: calibration before own rows.

    Calibration is spread over the run, so that drift of the machines is in it. Where its answers
    are of another length than the strategy's, beyond the band, they are brought to that length:
    what follows the first token grows with the tokens.
    """
    ours = _by_provider(row for row in reading.answered("strategy") if row.wall_ms)
    if not reading.calibrations:
        return {p: fmean(row.wall_ms or 0.0 for row in own) for p, own in ours.items()}, "strategy"
    target = _mean_length([row for own in ours.values() for row in own])
    alone: dict[str, float] = {}
    for provider, rows in reading.calibrations.items():
        length = _mean_length(rows)
        walls = [row.wall_ms or 0.0 for row in rows]
        if target and length and abs(target / length - 1) > reading.report.band:
            walls = [_of_length(row, target) for row in rows if pacing.length(row)]
        alone[provider] = sum(walls) / len(walls)
    return alone, "calibration"


def _mean_length(rows: Iterable[Request]) -> float | None:
    lengths = [length for row in rows if (length := pacing.length(row))]
    return fmean(lengths) if lengths else None


def _of_length(row: Request, tokens: float) -> float:
    """The wall that a request would have taken for so many tokens, in ms."""
    wall = row.wall_ms or 0.0
    first = between(row.marks.start_ms, row.marks.first_token_ms)
    before = min(wall, (row.server.prompt_ms or 0.0) if first is None else first)
    return before + (wall - before) * tokens / (pacing.length(row) or tokens)


def _segments(rows: Mapping[str, Sequence[Request]]) -> dict[str, dict[str, float]]:
    """Means over all answered requests of a role: a part a request lacks counts 0 there."""
    means: dict[str, dict[str, float]] = {}
    for role, own in rows.items():
        parts = [phases.segments(phases.times(row)) for row in own if row.wall_ms is not None]
        if parts:
            keys = phases.in_use(parts)
            means[role] = {key: fmean(part.get(key, 0.0) for part in parts) for key in keys}
    return means


def _answers(report: Report) -> list[bool]:
    """Whether the answers of each round's two arms are alike, prompt by prompt."""
    alike = []
    for one in report.rounds:
        told = {arm.arm: _digests(arm.requests) for arm in one.arms}
        alike += _alike(told.get("baseline", {}), told.get("strategy", {}))
    return alike


def _calibrated(reading: Reading) -> list[bool]:
    """The answers to calibration's prompts, each provider's held against the first one's.

    Every provider is sent the same texts: the n-th calibration of one is that of another.
    """
    told: dict[str, list[dict[int, str]]] = {}
    for arm in reading.arms("calibration"):
        for provider, own in _by_provider(arm.requests).items():
            told.setdefault(provider, []).append(_digests(own))
    first, *others = told.values() or [[]]
    turns = [turn for other in others for turn in zip(first, other, strict=False)]
    return [alike for turn in turns for alike in _alike(*turn)]


def _digests(rows: Iterable[Request]) -> dict[int, str]:
    answered = [row for row in rows if row.outcome == "ok"]
    return {row.prompt: row.answer_sha256 for row in answered if row.answer_sha256}


def _alike(mine: Mapping[int, str], other: Mapping[int, str]) -> list[bool]:
    return [mine[prompt] == other[prompt] for prompt in mine.keys() & other.keys()]


def _compared(alike: Sequence[bool]) -> stats.Answers:
    return stats.Answers(sum(alike), len(alike) - sum(alike), len(alike))
