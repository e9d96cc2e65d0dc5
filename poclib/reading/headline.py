"""Every number that is said of a report, computed from its rows; knows no frame and no sentence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, NamedTuple

from .. import pacing, stats
from ..contention import level, levels
from ..records import Report, Request
from ..report import name
from ..stats import known
from . import belief, order, phases
from .phases import between

if TYPE_CHECKING:
    from .reading import Reading

ROLES = ("remote", "local")
# Of the steps from token to token so many must have been seen: a few tokens make no piece of
# text of their own, and two may come in one read of the socket.
_SEEN = 0.8
# A calibrated machine is not beaten by more than this with one request in flight.
FASTER = 1.05
# The requests of two arms, or of two machines, with the same prompts.
_Pair = tuple[Sequence[Request], Sequence[Request]]


def headline(reading: Reading) -> stats.Headline:
    """The headline of a report without what cannot be believed.

    The ideal makespan is n / Σ 1/t_p: all providers busy to the end, each with t_p ms a request.
    """
    report, roles, rows = reading.believed, reading.roles, reading.answered("strategy")
    by_provider = _by_provider(rows)
    by_role = {role: [row for row in rows if roles[row.provider] == role] for role in ROLES}
    timed, per_token = reading.timed
    whole = [one for one in timed if one.ratio]
    makespans_ms = known(one.strategy_ms for one in whole)
    ratios = known(one.ratio for one in whole)
    ratio = stats.overhead_ratio(ratios)
    alone, ideal_from = _alone(reading)
    count = len(prompts(report))
    machines = [facts.name for facts in report.providers if not facts.router_of]
    sure = bool(machines) and count > 0 and alone.keys() >= {*machines}
    at_once = _at_once(reading)
    gains = {p: _gain(reading, p, at_once.get(p, 1)) for p in machines}
    ideal = count / math.fsum((gains.get(p) or 1) / alone[p] for p in machines) if sure else None
    efficiency = stats.median([ideal / t for t in makespans_ms]) if ideal else None
    over = {role: known(row.over_ms for row in own) for role, own in by_role.items()}
    remote_ms = math.fsum(_walls(row for row in by_role["remote"] if row.over_ms is not None))
    best, order_unknown = order.best_order(reading, by_provider, at_once)
    copies_ms = [*_copies(reading)]
    crowds = {
        cause.provider.name: cause.contention
        for cause in reading.causes
        if cause.arm == "strategy" and cause.behaviour != "undisturbed"
    }
    streams = {p: _stream(own) for p, own in by_provider.items()}
    arms = [(one.arms[0].requests, one.arms[1].requests) for one in report.rounds if one.arms[1:]]
    forbidden = [*belief.cached(report), *_too_fast(reading, efficiency or 0.0, at_once)]
    verdict, rounds_needed = stats.gate(ratios, ratio, report.gate_max_ratio)
    return stats.Headline(
        report=name(report),
        strategy=report.strategy,
        created=report.created,
        roles=roles,
        prompts=count,
        requests=len(report.requests),
        failed_requests=sum(row.outcome == "failed" for row in report.requests),
        incomplete_rounds=len(timed) - len(whole),
        overhead_ratio=ratio,
        round_ratios=tuple(ratios),
        efficiency=efficiency,
        ideal_ms=ideal,
        ideal_from=ideal_from + " and capacity" * any(g != 1 for g in gains.values() if g)
        if ideal
        else None,
        unbatched=tuple(p for p, gain in gains.items() if gain is None),
        best_order=best,
        order_unknown=order_unknown,
        overfull=tuple(
            facts.name
            for facts in report.providers
            if at_once.get(facts.name, 0) > (facts.slots or math.inf)
            or (facts.name in crowds and crowds[facts.name].behaviour == "queues")
        ),
        copies=len(copies_ms),
        copies_ms=math.fsum(copies_ms),
        makespan_ms=stats.median(makespans_ms),
        baseline_ms=stats.median(one.baseline_ms for one in whole),
        alone_ms=alone,
        wall_ms={p: stats.spread(_walls(by_provider.get(p, []))) for p in roles},
        added_latency_ms={role: stats.spread(added) for role, added in over.items()},
        network_share=math.fsum(over["remote"]) / remote_ms if remote_ms else None,
        round_trip_ms={
            p: stats.median(probe.round_trip_ms for probe in report.probes if probe.provider == p)
            for p in roles
        },
        segments_ms={role: means for role, own in by_role.items() if (means := _segments(own))},
        answers_equal=_answers([] if report.marked else arms),
        gate_max_ratio=report.gate_max_ratio,
        band=report.band,
        verdict=stats.INCONCLUSIVE if forbidden else verdict,
        rounds_needed=None if forbidden else rounds_needed,
        busy=_busy(report, whole),
        streams={p: stream for p, stream in streams.items() if stream},
        per_token=per_token,
        forbidden=tuple(forbidden),
        disbelieved=reading.disbelieved,
        marked=report.marked,
        calibration_equal=_answers(_between_machines(reading) if report.marked else []),
        at_once=at_once,
        contention=crowds,
    )


class RoundTimes(NamedTuple):
    """The makespans of a round, None where an answer is missing, and their ratio.

    A makespan is from an arm's first dispatch to its last answer; the ratio is of times per token
    where the headline's `per_token` says so.
    """

    round: int
    baseline_ms: float | None
    strategy_ms: float | None
    ratio: float | None = None


def rounds(report: Report) -> tuple[list[RoundTimes], bool]:
    """The times of each round, and whether their ratios are per token."""
    expected = prompts(report)
    rows: list[RoundTimes] = []
    both: dict[int, tuple[pacing.Measured, pacing.Measured]] = {}
    for one in report.rounds:
        arms = {arm.arm: arm for arm in one.arms}
        makespans = {kind: pacing.makespan_ms(arm, expected) for kind, arm in arms.items()}
        base_ms, ours_ms = makespans.get("baseline"), makespans.get("strategy")
        if base_ms and ours_ms:
            base, ours = pacing.arm_tokens(arms["baseline"]), pacing.arm_tokens(arms["strategy"])
            both[one.index] = (ours_ms, ours), (base_ms, base)
        rows.append(RoundTimes(one.index, base_ms, ours_ms))
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


def _walls(rows: Iterable[Request]) -> list[float]:
    return known(row.wall_ms for row in rows)


def _busy(report: Report, whole: Sequence[RoundTimes]) -> dict[str, float]:
    """Mean over complete rounds of each provider's time with a request in flight / makespan.

    Without times of day the sum of the walls stands in, where it fits into the makespan.
    """
    shares: dict[str, float] = {}
    makespans = {one.round: one.strategy_ms or math.inf for one in whole}
    for one in (one for one in report.rounds if one.index in makespans):
        rows = [row for arm in one.arms if arm.arm == "strategy" for row in arm.requests]
        for provider, own in _by_provider(rows).items():
            busy_ms, walls_ms = _in_flight_ms(own), math.fsum(_walls(own))
            if busy_ms is None and walls_ms <= makespans[one.index]:
                busy_ms = walls_ms
            if busy_ms is not None:
                share = busy_ms / makespans[one.index] / len(makespans)
                shares[provider] = shares.get(provider, 0.0) + share
    return shares


def _in_flight_ms(rows: Iterable[Request]) -> float | None:
    """For how long any of these requests was in flight; None where times of day are missing."""
    marks = [(row.marks.start_ms, row.marks.end_ms) for row in rows if row.wall_ms is not None]
    spans = [(start, end) for start, end in marks if start is not None and end is not None]
    if len(spans) < len(marks):
        return None
    total_ms, until_ms = 0.0, -math.inf
    for start, end in sorted(spans):
        total_ms += max(0.0, end - max(start, until_ms))
        until_ms = max(end, until_ms)
    return total_ms


def _at_once(reading: Reading) -> dict[str, int]:
    """The most requests in flight at once in the strategy's arms; not told without marks."""
    most: dict[str, int] = {}
    for arm in reading.arms("strategy"):
        for provider, own in _by_provider(arm.requests).items():
            most[provider] = max(most.get(provider, 0), level(own).in_flight)
    return {provider: peak for provider, peak in most.items() if peak}


def _gain(reading: Reading, provider: str, held: int) -> float | None:
    """What several at once gain there at best over one alone, by the levels it was driven at.

    Without levels none; but None where it batched those that were `held`.
    """
    driven = levels(reading.report.preparation, provider)
    rates = [one.tokens_per_s for one in driven if one.tokens_per_s]
    if len(rates) > 1 and driven[0].in_flight == 1:
        return max(rates) / rates[0]
    own = [c for c in reading.causes if c.arm == "strategy" and c.provider.name == provider]
    batched = any(c.provider.batching or c.behaviour == "batches" for c in own)
    return None if batched and held > 1 else 1.0


def _copies(reading: Reading) -> Iterator[float]:
    """How long each copy of a prompt was under way that another copy's answer ended."""
    for arm in reading.arms("strategy"):
        first = {row.prompt: row for row in arm.requests if row.outcome == "ok"}
        for row in arm.requests:
            won = first.get(row.prompt)
            if row.outcome == "cancelled" and won and "hedge" in (row.role, won.role):
                until = won.marks.end_ms if row.marks.end_ms is None else row.marks.end_ms
                yield max(0.0, between(row.marks.start_ms, until) or 0.0)


def _too_fast(reading: Reading, efficiency: float, at_once: Mapping[str, int]) -> list[str]:
    """Why calibrated machines cannot have been so fast with one request in flight on each."""
    limits = [set((arm.limits or {}).values()) for arm in reading.arms("strategy")]
    walls = [_walls(rows) for rows in reading.calibrations.values() if len(rows) > 1]
    errors = [stdev(each) / fmean(each) / math.sqrt(len(each)) for each in walls]
    sure = efficiency * (1 - 2 * max(errors, default=0.0))
    alone = all(each == {1} for each in limits) or set(at_once.values()) == {1}
    if sure <= FASTER or not alone:
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
    firsts, thoughts, steps_ms = [], [], []
    for row in rows:
        seen = sorted(set(row.token_ms or []))
        firsts.append(between(row.marks.start_ms, seen[0]))
        thoughts.append(between(row.marks.start_ms, row.marks.first_thought_ms))
        steps = (pacing.length(row) or 0) - 1 if apart == "tokens" else len(seen) - 1
        if apart and steps > 0 and len(seen) > 1:
            steps_ms.append((seen[-1] - seen[0]) / steps)
    lengths = [pacing.length(row) or 0 for row in rows]
    rates = [1000 * n / wall for n, wall in zip(lengths, _walls(rows), strict=True)]
    busy_ms = _in_flight_ms(rows)
    return stats.Stream(
        n=len(rows),
        ttft_ms=stats.quantiles(known(firsts)),
        between_ms=stats.quantiles(steps_ms),
        tokens_per_s=stats.quantiles(rates)["p50"],
        together_per_s=1000 * sum(lengths) / busy_ms if busy_ms else None,
        counted="server" if all(row.output_tokens for row in rows) else "pieces",
        apart=apart,
        why=why,
        thought_ms=stats.quantiles(known(thoughts)) if any(thoughts) else None,
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
    if not reading.calibrations:
        return {p: fmean(_walls(own)) for p, own in _by_provider(ours).items()}, "strategy"
    target = _length(ours)
    alone: dict[str, float] = {}
    for provider, rows in reading.calibrations.items():
        walls = _walls(rows)
        if abs(target / _length(rows) - 1) > reading.report.band:
            walls = [_of_length(row, target) for row in rows if pacing.length(row)]
        alone[provider] = sum(walls) / len(walls)
    return alone, "calibration"


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


def _segments(rows: Iterable[Request]) -> dict[str, float]:
    """Means over answered requests: a part that a request lacks counts 0 there."""
    parts = [phases.segments(phases.times(row)) for row in rows if row.wall_ms is not None]
    return {key: fmean(part.get(key, 0.0) for part in parts) for key in phases.in_use(parts)}


def _between_machines(reading: Reading) -> list[_Pair]:
    """Calibration's prompts are the same for all: the first provider's rows, and each other's."""
    turns: dict[str, list[list[Request]]] = {}
    for arm in reading.arms("calibration"):
        for provider, own in _by_provider(arm.requests).items():
            turns.setdefault(provider, []).append(own)
    first, *others = turns.values() or [[]]
    return [pair for other in others for pair in zip(first, other, strict=False)]


def _answers(pairs: Iterable[_Pair]) -> stats.Answers:
    """How the answers to the same prompts compare, as digests."""
    equal: list[bool] = []
    for pair in pairs:
        answered = ([row for row in rows if row.outcome == "ok"] for rows in pair)
        one, other = ({row.prompt: row.answer_sha256 for row in rows} for rows in answered)
        both = [prompt for prompt in one if one[prompt] and other.get(prompt)]
        equal += [one[prompt] == other[prompt] for prompt in both]
    return stats.Answers(sum(equal), len(equal) - sum(equal), len(equal))
