"""A report as tidy frames, and the one bridge from a report to its headline numbers.

Knows no file, no sentence and no picture. All times are milliseconds; absent is NaN or NA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .. import pacing, stats
from ..records import Arm, Report, Request, Round, Ruler, RulerRow
from ..report import name
from . import belief, ledger, phases

_ROLES = ("remote", "local")
_NO_ROUND = "no round has an answer to every prompt in both arms"
_REASONS = {
    "speedup": _NO_ROUND,
    "makespan_ms": _NO_ROUND,
    "baseline_ms": _NO_ROUND,
    "ideal_ms": "some provider answered nothing, so its speed is unknown",
    "efficiency": "it needs the ideal and a complete round",
    "network_share": "no answered request of a remote provider has a server time",
}
# A calibrated machine is not beaten by more than this with one request in flight.
FASTER = 1.05


def requests(report: Report) -> pd.DataFrame:
    """One row per request of the whole report, in the order the arms ran.

    `round` is NA and `order` the place in the preparation for warm-up and calibration, which goes
    on after every round;
    `order` is 0 for the arm that ran first in its round. `warm_up` rows never count.
    The parts from `connect_ms` to `last_byte_ms` add up to `wall_ms` where all are known:
    `send_ms` holds all before the request's last byte that is no connecting, `last_byte_ms`
    is from the answer's last byte to its end parsed. `ms_per_token` is wall per output token.
    `limit` is how many dispatch lets be in flight there (NA: no limit), `slots` the server's.
    Own times of a server that cannot be are left out (`belief`).
    """
    report, _ = belief.believed(report)
    role = {facts.name: facts.role for facts in report.providers}
    slots = {facts.name: facts.slots for facts in report.providers}
    places: list[tuple[int | None, int, Arm]] = [
        (None, order, arm) for order, arm in enumerate(report.preparation)
    ]
    for one in report.rounds:
        places += [(one.index, order, arm) for order, arm in enumerate(one.arms)]
    rows = [
        {
            "round": index,
            "order": order,
            "arm": arm.arm,
            "strategy": arm.strategy,
            "warm_up": arm.arm == "warm-up",
            "role": role.get(request.provider),
            "limit": (arm.limits or {}).get(request.provider),
            "slots": slots.get(request.provider),
            **_facts(request),
        }
        for index, order, arm in places
        for request in arm.requests
    ]
    first = ["round", "order", "arm", "strategy", "warm_up", "role", "limit", "slots"]
    return _frame(rows, [*first, *_facts(Request(prompt=0, provider="none"))])


def _facts(request: Request) -> dict[str, Any]:
    marks, tokens = request.marks, pacing.length(request)
    return {
        "provider": request.provider,
        "prompt": request.prompt,
        "attempt": request.attempt,
        "outcome": request.outcome,
        "error_kind": request.error_kind,
        "assigned_ms": marks.assigned_ms,
        "start_ms": marks.start_ms,
        "end_ms": marks.end_ms,
        **phases.times(request),
        "prompt_tokens": request.prompt_tokens,
        "cached_tokens": request.cached_tokens,
        "output_tokens": tokens,
        "ms_per_token": request.wall_ms / tokens if request.wall_ms and tokens else None,
        "finish_reason": request.finish_reason,
        "answer_sha256": request.answer_sha256,
    }


def rounds(report: Report) -> pd.DataFrame:
    """One row per round: round, first (arm that ran first), baseline_ms, strategy_ms, ratio.

    A makespan is from the first dispatch to the last answer, NaN where the arm lacks an
    answer to some prompt; `complete` says whether the round counts. The ratio is of times per
    token where `per_token` says so.
    """
    return _rounds(report)[0]


def _rounds(report: Report) -> tuple[pd.DataFrame, bool]:
    """The rounds, and whether their ratios are per token."""
    expected = _prompts(report)
    rows: list[dict[str, Any]] = []
    counts = []
    for one in report.rounds:
        arms = {arm.arm: arm for arm in one.arms}
        baseline, strategy = (
            pacing.makespan_ms(arms[which], expected) if which in arms else None
            for which in ("baseline", "strategy")
        )
        complete = bool(baseline and strategy)
        if complete:
            counts.append([pacing.arm_tokens(arms[which]) for which in ("baseline", "strategy")])
        rows.append(
            {
                "round": one.index,
                "first": one.arms[0].arm if one.arms else None,
                "baseline_ms": baseline,
                "strategy_ms": strategy,
                "ratio": strategy / baseline if baseline and strategy else None,
                "complete": complete,
            }
        )
    if per_token := pacing.unlike_lengths([(a, b) for a, b in counts], report.band):
        for row, (base, ours) in zip([r for r in rows if r["complete"]], counts, strict=True):
            row["ratio"] *= (base or 1) / (ours or 1)
    names = ["round", "first", "baseline_ms", "strategy_ms", "ratio", "complete"]
    return _frame(rows, names), per_token


def _prompts(report: Report) -> set[int]:
    """The indices every arm of a round must answer."""
    if report.prompt_sha256:
        return set(range(len(report.prompt_sha256)))
    return {row.prompt for one in report.rounds for arm in one.arms for row in arm.requests}


def providers(report: Report) -> pd.DataFrame:
    """One row per provider: what it is, its round trip, its time alone, what it answered."""
    found = headline(report)
    measured = _measured(requests(report))
    rows = []
    for facts in report.providers:
        outcomes = measured.loc[measured["provider"] == facts.name, "outcome"]
        rows.append(
            {
                **facts.model_dump(exclude={"link"}),
                "link_round_trip_ms": facts.link.round_trip_ms if facts.link else None,
                "round_trip_ms": found.round_trip_ms[facts.name],
                "alone_ms": found.alone_ms.get(facts.name),
                "answered": int((outcomes == "ok").sum()),
                "failed": int((outcomes == "failed").sum()),
            }
        )
    return _frame(rows, list(rows[0]) if rows else ["name"])


def breakdown(report: Report) -> pd.DataFrame:
    """Mean milliseconds of each part of a request, a row per role: what the chart draws."""
    means = headline(report).segments_ms
    parts = phases.in_use(means.values())
    return _frame([{"role": role} | one for role, one in means.items()], ["role", *parts])


def overhead(report: Report) -> pd.DataFrame:
    """What lies outside the servers' own time, per answered request of the whole report.

    `network_ms` (a round trip as probes found it, a connect where one was opened, the transfer
    of an answer that was not streamed), `ours_ms` and `unexplained_ms` add up to `over_ms`.
    `server_queue_ms` is inside the server's own time, so beside `over_ms`. NaN where there is
    no source: its time is then among the unexplained. `round` is NA in the preparation.
    """
    report, _ = belief.believed(report)
    role = {facts.name: facts.role for facts in report.providers}
    hidden = ledger.hidden_handshakes(report.providers)
    places: list[tuple[int | None, Arm]] = [(None, arm) for arm in report.preparation]
    places += [(one.index, arm) for one in report.rounds for arm in one.arms]
    answered = [
        (index, arm.arm, row)
        for index, arm in places
        for row in arm.requests
        if row.outcome == "ok"
    ]
    trips = ledger.trips(report, [row for _, _, row in answered])
    rows = [
        {
            "provider": row.provider,
            "role": role.get(row.provider),
            "arm": arm,
            "round": index,
            "prompt": row.prompt,
            **ledger.overhead(row, trip, row.provider in hidden),
        }
        for (index, arm, row), trip in zip(answered, trips, strict=True)
    ]
    parts = ["over_ms", "network_ms", "server_queue_ms", "ours_ms", "unexplained_ms"]
    return _frame(rows, ["provider", "role", "arm", "round", "prompt", *parts])


def lengths(report: Report) -> pd.DataFrame:
    """How wall time follows the answer's length in the strategy's arms, a row per provider.

    provider, role, n, shortest_tokens, longest_tokens, and the straight line through them:
    each_ms per token and besides_ms per request, NaN where the lengths cannot carry one.
    """
    frame = _answered(requests(report)).query("arm == 'strategy'")
    frame = frame.dropna(subset=["output_tokens", "wall_ms"])
    rows = []
    for (provider, role), group in frame.groupby(["provider", "role"], dropna=False):
        tokens = group["output_tokens"].astype(int).tolist()
        fitted = stats.line(tokens, group["wall_ms"].tolist())
        rows.append(
            {
                "provider": provider,
                "role": role,
                "n": len(tokens),
                "shortest_tokens": min(tokens),
                "longest_tokens": max(tokens),
                "each_ms": fitted.slope if fitted else None,
                "besides_ms": fitted.at_zero if fitted else None,
            }
        )
    names = ["provider", "role", "n", "shortest_tokens", "longest_tokens", "each_ms", "besides_ms"]
    return _frame(rows, names)


def ruler(found: Ruler, quantity: str = "over_ms") -> pd.DataFrame:
    """The instrument's check on itself, a row per case and quantity; see `records.RulerRow`."""
    rows = [row.model_dump() for row in found.rows if row.quantity == quantity]
    return _frame(rows, list(RulerRow.model_fields))


def distribution(report: Report) -> pd.DataFrame:
    """Mean and quantiles of wall time per arm and provider; NaN where n is too small."""
    rows = []
    levels = (50, 90, 95, 99)
    for (arm, provider), group in _answered(requests(report)).groupby(["arm", "provider"]):
        values = group["wall_ms"].dropna().tolist()
        found = {f"p{level}_ms": stats.quantile(values, level / 100) for level in levels}
        kept = {key: None if isinstance(v, stats.Missing) else v for key, v in found.items()}
        mean = sum(values) / len(values) if values else None
        rows.append({"arm": arm, "provider": provider, "n": len(values), "mean_ms": mean, **kept})
    return _frame(rows, ["arm", "provider", "n", "mean_ms", *(f"p{one}_ms" for one in levels)])


def headline(report: Report) -> stats.Headline:
    """Every number that is said of `report`, each None with its reason in `missing`."""
    report, disbelieved = belief.believed(report)
    frame = requests(report)
    ours = _answered(frame).query("arm == 'strategy'")
    timed, per_token = _rounds(report)
    done = timed[timed["complete"]]
    strategy_ms, baseline_ms = done["strategy_ms"].tolist(), done["baseline_ms"].tolist()
    ratios = tuple(done["ratio"].tolist())
    ratio = stats.overhead_ratio(ratios, [1.0] * len(ratios))
    alone, source = _alone(frame, report.band)
    at_once = _at_once(report)
    names = [facts.name for facts in report.providers]
    prompts = len(_prompts(report))
    everyone = bool(names) and prompts > 0 and set(names) <= set(alone)
    ideal = stats.ideal_makespan(prompts, [alone[p] for p in names]) if everyone else None
    over = {role: ours[(ours["role"] == role) & ours["over_ms"].notna()] for role in _ROLES}
    found: dict[str, Any] = {
        "speedup": 1 / ratio.median if ratio.median else None,
        "efficiency": stats.median([ideal / t for t in strategy_ms]) if ideal else None,
        "ideal_ms": ideal,
        "makespan_ms": stats.median(strategy_ms),
        "baseline_ms": stats.median(baseline_ms),
        "network_share": stats.network_share(
            over["remote"]["over_ms"].tolist(), over["remote"]["wall_ms"].tolist()
        ),
    }
    roles: dict[str, str] = {facts.name: facts.role for facts in report.providers}
    forbidden = belief.cached(report)
    if (found["efficiency"] or 0.0) * (1 - 2 * _scatter(frame)) > FASTER and _one_at_a_time(
        report, at_once
    ):
        forbidden.append(
            f"with one request in flight the machines reached {100 * found['efficiency']:.0f} % of "
            "the speed that calibration found, so a cache answered or calibration was disturbed"
        )
    verdict = stats.gate(ratios, ratio, report.gate_max_ratio)
    if forbidden:
        verdict = stats.Gate(stats.INCONCLUSIVE)
    added = {role: stats.spread(over[role]["over_ms"].tolist()) for role in _ROLES}
    trips = {
        p: stats.median([probe.round_trip_ms for probe in report.probes if probe.provider == p])
        for p in names
    }
    measured = _measured(frame)
    missing = {key: _REASONS[key] for key, value in found.items() if value is None}
    missing |= {
        f"added_latency_ms.{role}": f"no answered request of a {role} provider has a server time"
        if role in roles.values()
        else f"no provider is {role}"
        for role, value in added.items()
        if value is None
    }
    if "remote" not in roles.values():
        missing["network_share"] = "no provider is remote"
    missing |= {f"round_trip_ms.{p}": "it was not probed" for p, t in trips.items() if t is None}
    if ratio.low is None:
        missing["overhead_ratio.low"] = (
            f"complete rounds: {ratio.rounds}; an interval needs 2"
            if ratio.rounds < 2
            else f"its ends would lie further apart than a factor of {stats.WIDEST:g}"
        )
    streamed = streams(report)
    missing |= {
        f"streams.{p}": "its answers were not streamed, so no first token was seen"
        for p in names
        if p not in streamed and found["makespan_ms"] and p in set(ours["provider"])
    }
    return stats.Headline(
        report=name(report),
        strategy=report.strategy,
        created=report.created,
        providers=tuple(names),
        prompts=prompts,
        requests=len(measured),
        failed_requests=int((measured["outcome"] == "failed").sum()),
        incomplete_rounds=len(timed) - len(done),
        overhead_ratio=ratio,
        round_ratios=ratios,
        ideal_from=source if ideal else None,
        alone_ms=alone,
        wall_ms={p: stats.spread(_walls(ours, p)) for p in names},
        added_latency_ms=added,
        round_trip_ms=trips,
        segments_ms=_segments(ours),
        answers_equal=_no_answers() if report.marked else _answers(report.rounds),
        gate_max_ratio=report.gate_max_ratio,
        band=report.band,
        verdict=verdict.verdict,
        rounds_needed=verdict.rounds_needed,
        missing=missing,
        busy=_busy(frame, done),
        streams=streamed,
        work_ms=_work(ours),
        work_alone_ms=_work(frame[frame["arm"].eq("calibration") & frame["outcome"].eq("ok")]),
        per_token=per_token,
        forbidden=tuple(forbidden),
        disbelieved=disbelieved,
        marked=report.marked,
        calibration_equal=_calibrated(report) if report.marked else _no_answers(),
        roles=roles,
        at_once=at_once,
        **found,
    )


def _busy(frame: pd.DataFrame, done: pd.DataFrame) -> dict[str, float]:
    """Mean over complete rounds of each provider's time with a request in flight / makespan.

    Without times of day the sum of the walls stands in, where it fits into the makespan: the
    requests may have run one at a time then, and no other reading is nearer.
    """
    mine = frame[frame["arm"].eq("strategy") & frame["wall_ms"].notna()]
    found: dict[str, list[float]] = {}
    for one in done.to_dict("records"):
        rows = mine[mine["round"].eq(one["round"])]
        for provider, group in rows.groupby("provider"):
            timed = group["start_ms"].notna().all() and group["end_ms"].notna().all()
            spans = list(zip(group["start_ms"], group["end_ms"], strict=True))
            busy_ms = _union_ms(spans) if timed else float(group["wall_ms"].sum())
            if timed or busy_ms <= one["strategy_ms"]:
                found.setdefault(str(provider), []).append(busy_ms / one["strategy_ms"])
    return {p: sum(values) / len(done) for p, values in found.items()}


def _at_once(report: Report) -> dict[str, int]:
    """The most requests in flight at once in the strategy's arms; not told without marks."""
    found: dict[str, int] = {}
    for arm in (arm for one in report.rounds for arm in one.arms if arm.arm == "strategy"):
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
            found[provider] = max(found.get(provider, 0), now[provider])
    return found


def _one_at_a_time(report: Report, at_once: Mapping[str, int]) -> bool:
    """Whether no provider had two requests in flight, by what dispatch allowed or by the marks."""
    arms = [arm for one in report.rounds for arm in one.arms if arm.arm == "strategy"]
    limits = [limit for arm in arms for limit in (arm.limits or {"": 0}).values()]
    return set(limits) == {1} or (bool(at_once) and max(at_once.values()) == 1)


def _scatter(frame: pd.DataFrame) -> float:
    """The relative standard error of calibration's mean wall, of the provider that varies most."""
    rows = frame[frame["arm"].eq("calibration") & frame["outcome"].eq("ok")]
    walls = rows.groupby("provider")["wall_ms"]
    worst = (walls.std() / walls.mean() / walls.count() ** 0.5).max() if len(rows) else 0.0
    return 0.0 if pd.isna(worst) else float(worst)


def _union_ms(spans: Sequence[tuple[float, float]]) -> float:
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def streams(report: Report) -> dict[str, stats.Stream]:
    """How streamed answers came in the strategy's arms, per provider; empty if none was.

    Tokens are counted as the server does where it does, else as the pieces that arrived.
    """
    rows: dict[str, list[Request]] = {}
    busy_ms: dict[str, float] = {}
    for arm in (arm for one in report.rounds for arm in one.arms if arm.arm == "strategy"):
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
    median = stats.quantile(rates, 0.5)
    return stats.Stream(
        n=len(rows),
        ttft_ms=stats.quantiles(firsts),
        between_ms=stats.quantiles(between),
        tokens_per_s=None if isinstance(median, stats.Missing) else median,
        together_per_s=1000 * sum(lengths) / busy_ms if busy_ms else None,
        counted="server" if all(row.output_tokens for row in rows) else "pieces",
        apart=apart,
        why=why,
        thought_ms=stats.quantiles(thoughts) if thoughts else None,
    )


# Of the steps from token to token so many must have been seen: a few tokens make no piece of
# text of their own, and two may come in one read of the socket.
_SEEN = 0.8


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


def _work(frame: pd.DataFrame) -> dict[str, float]:
    """Mean of what servers report for a request less the queue they report, per provider."""
    rows = frame[frame["server_ms"].notna()]
    work = rows["server_ms"] - rows["server_queue_ms"].fillna(0.0)
    return {str(p): float(t) for p, t in work.groupby(rows["provider"]).mean().items()}


def _measured(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["arm"].isin(["baseline", "strategy"])]


def _answered(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows whose times count: answered, and in an arm of a round."""
    measured = _measured(frame)
    return measured[measured["outcome"] == "ok"]


def _walls(frame: pd.DataFrame, provider: str) -> list[float]:
    return frame.loc[frame["provider"] == provider, "wall_ms"].dropna().tolist()


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
    for role in _ROLES:
        rows = frame[(frame["role"] == role) & frame["wall_ms"].notna()]
        parts = [phases.segments(row) for row in rows.to_dict("records")]  # type: ignore[arg-type]
        if parts:
            seen = phases.in_use(parts)
            found[role] = {
                key: sum(part.get(key, 0.0) for part in parts) / len(parts) for key in seen
            }
    return found


def _answers(measured: Sequence[Round]) -> stats.Answers:
    pairs = []
    for one in measured:
        digests: dict[str, dict[int, str]] = {"baseline": {}, "strategy": {}}
        for arm in one.arms:
            for row in arm.requests:
                if arm.arm in digests and row.outcome == "ok" and row.answer_sha256:
                    digests[arm.arm][row.prompt] = row.answer_sha256
        both = digests["baseline"].keys() & digests["strategy"].keys()
        pairs += [digests["baseline"][p] == digests["strategy"][p] for p in both]
    return stats.Answers(sum(pairs), len(pairs) - sum(pairs), len(pairs))


def _no_answers() -> stats.Answers:
    return stats.Answers(0, 0, 0)


def _calibrated(report: Report) -> stats.Answers:
    """The answers to calibration's prompts, each provider's held against the first one's.

    Every provider is sent the same texts: the n-th calibration of one is that of another.
    """
    told: dict[str, dict[tuple[int, int], str]] = {}
    turns: dict[str, int] = {}
    for arm in (arm for arm in report.preparation if arm.arm == "calibration"):
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


def comparison(reports: Sequence[Report]) -> pd.DataFrame:
    """One row a report: strategy, ratio with interval, and what explains it."""
    rows = []
    for one in map(headline, reports):
        remote, local = (one.added_latency_ms[role] for role in _ROLES)
        rows.append(
            {
                "report": one.report,
                "strategy": one.strategy,
                "ratio": one.overhead_ratio.median,
                "low": one.overhead_ratio.low,
                "high": one.overhead_ratio.high,
                "rounds": one.overhead_ratio.rounds,
                "speedup": one.speedup,
                "efficiency": one.efficiency,
                "added_remote_ms": remote.mean if remote else None,
                "added_local_ms": local.mean if local else None,
                "verdict": one.verdict,
            }
        )
    return _frame(rows, list(rows[0]) if rows else ["report"])


def result(report: Report, round: int = 0) -> str | None:
    """The strategy's answers in that round, concatenated in the prompts' order.

    None where the round is not there, texts were not stored, or a prompt has no answer.
    """
    texts: dict[int, str] = {}
    for one in report.rounds:
        for arm in one.arms:
            if one.index == round and arm.arm == "strategy":
                texts |= {
                    row.prompt: row.answer
                    for row in arm.requests
                    if row.outcome == "ok" and row.answer is not None
                }
    if not texts or texts.keys() != _prompts(report):
        return None
    return "".join(texts[prompt] for prompt in sorted(texts))


_FLOATS = {"ratio", "low", "high", "speedup", "efficiency", "speed", "ms_per_token"}
_FLAGS = {"warm_up", "complete", "pinned", "batching", "refuses"}
_FLAGS |= {"keep_alive", "fixed_length", "cache_defeated", "reports_time"}
_COUNTS = {"round", "rounds", "order", "prompt", "attempt", "n", "answered", "failed"}
_COUNTS |= {"in_flight", "slots", "capacity", "core", "cores", "turns", "threads", "limit"}


def _frame(rows: Sequence[dict[str, Any]], columns: list[str]) -> pd.DataFrame:
    """Types by the column's name, whatever the rows hold: an empty report is typed as well."""

    def kind(column: str) -> str:
        if column.endswith("_ms") or column in _FLOATS:
            return "float64"
        if column.endswith("_tokens") or column in _COUNTS:
            return "Int64"
        return "boolean" if column in _FLAGS else "string"

    frame = pd.DataFrame(rows, columns=columns, dtype="object")
    return frame.astype({column: kind(column) for column in columns})
