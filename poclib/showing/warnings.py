"""What could mislead a reader of a report: its pool and answers, the machine, the instrument.

Each warning is observation, likely cause, next action, chosen from the facts of the report. Knows
no frame and draws nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from ..pacing import EMPTY_SHA256, length
from ..reading.belief import believed
from ..reading.reading import of
from ..records import ProviderFacts, Report, Request
from ..stats import Headline, median, minimum_n
from .causes import fell
from .format import inline, many, milliseconds, number, percent

# Shares and factors beyond which a reader should know.
OTHERS_MOST = 0.10
STEAL_MOST = 0.02
LAG_MOST = 0.05
COLD_FACTOR = 1.5
STEP_MS = 50.0
# Answers of machines whose mean lengths differ by more are no equal work.
UNLIKE = 1.25
# Text has 3 to 5 characters a token; with more than this some of it was never read.
MOST_CHARACTERS = 8
KEEPALIVE_MS = 4000.0  # for so long an idle connection of ours stays open


def warnings(report: Report, headline: Headline) -> list[str]:
    """Every warning that this report's facts call for; first what could change its verdict."""
    return [*weighty(report, headline), *others(report, headline)]


def weighty(report: Report, headline: Headline) -> list[str]:
    """The warnings that could change the verdict: they stand beside it wherever it is printed."""
    report, _ = believed(report)
    rows = report.requests
    good = [row for row in rows if row.outcome == "ok"]
    found: list[str] = [
        f"No verdict stands on these times: {why}; switch the server's prompt cache off, see that "
        "nothing else runs, and measure again."
        for why in headline.forbidden
    ]
    if not report.complete:
        found.append("The run did not finish: it was stopped or failed; run it again.")
    found += [inline(note, 300) for note in report.notes]
    if report.parameters and (strike := report.parameters.strike):
        found.append(
            f"{strike.provider} was cut off on purpose in every arm of the strategy once "
            f"{percent(strike.after)} of the prompts were answered; its requests failed from then."
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
    found += _empty(good)
    found += _lengths(report, headline, good)
    found += _cut_prompts(report, good)
    for answers, where in (
        (headline.answers_equal, "answers differ between the arms"),
        (headline.calibration_equal, "answers to calibration's prompts differ between machines"),
    ):
        if answers.different:
            found.append(
                f"{answers.different} of {answers.compared} {where}: batching or another build "
                "rounds differently, or the models differ; compare digests and engine versions "
                "before trusting equal work."
            )
    digests = {p.digest for p in report.providers}
    if unlike_digests(report):
        found.append(
            "The providers hold different models (their digests differ), so their work is not "
            "equal; load the same model everywhere."
        )
    elif None in digests and len(report.providers) > 1:
        found.append(
            "Some model digests are unknown: the server does not tell; compare the model files "
            "by hand."
        )
    if cached := sum(bool(row.cached_tokens) for row in good):
        found.append(
            f"{many(cached, 'request')} reused cached prompt tokens: the server's prompt cache "
            "made them cheaper; make prompts unique or switch the cache off."
        )
    return found + _reloads(report)


def others(report: Report, headline: Headline) -> list[str]:
    """The warnings that leave the verdict as it is."""
    report, _ = believed(report)
    found: list[str] = []
    rows = report.requests
    good = [row for row in rows if row.outcome == "ok"]
    rounds = headline.overhead_ratio.rounds
    found += _stops(report)
    found += [ending(report)] if report.ended else []
    if rounds < 2:
        found.append(
            f"There is no interval: the report has {many(rounds, 'complete round')}, and drift "
            "cannot be told from gain; measure 5 rounds or more."
        )
    if hedges := [row for row in rows if row.role == "hedge"]:
        won = sum(row.outcome == "ok" for row in hedges)
        found.append(
            f"{many(len(hedges), 'late prompt')} went to a second provider too, whose answer came "
            f"first {won} times; the other copy was cancelled there and counts as no answer."
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
    found += [
        f"The times that {name} tells of itself are not used: {why}, which cannot be; see what "
        "stands between, and in which unit that server counts."
        for name, why in headline.disbelieved.items()
    ]
    found += _connections(report)
    silent = {row.provider for row in good if row.over_ms is None} - headline.disbelieved.keys()
    if silent:
        found.append(
            f"{', '.join(sorted(silent))} did not report server time for every request, so added "
            "latency is partly unknown; use a server or an option that reports it."
        )
    remote, local = headline.added_latency_ms["remote"], headline.added_latency_ms["local"]
    if remote and local and local.mean >= remote.mean:
        found.append(
            f"Local requests paid as much overhead as remote ones or more "
            f"({milliseconds(local.mean)} and {milliseconds(remote.mean)}): HTTP, parsing or "
            "waiting inside the server, not mostly the network; look there first."
        )
    found += _front_end(report, headline)
    found += fell(report)
    if slow := _outliers(report):
        found.append(
            f"{many(slow, 'request')} took over 3 times the median of their provider and arm "
            "(they are counted like all others): another load on the machine, or a queue in the "
            "server; look at the timeline."
        )
    return found + cautions(report, headline)


def _empty(good: Sequence[Request]) -> list[str]:
    said = []
    empty = [row for row in good if row.answer_sha256 == EMPTY_SHA256]
    thought = sum(bool(row.thought_characters) for row in empty)
    if nothing := len(empty) - thought:
        said.append(
            f"{many(nothing, 'answer')} of {len(good):,} empty: the server ended them at once, so "
            "their times are of no work; look at its log and at the prompts."
        )
    if thought:
        said.append(
            f"{many(thought, 'answer')} of {len(good):,} empty but for thoughts: the model was "
            "still thinking when max_tokens ended it; raise max_tokens, or set think: false."
        )
    return said


def _lengths(report: Report, headline: Headline, good: Sequence[Request]) -> list[str]:
    """Answers of unlike length: between the arms, between machines, against what was asked."""
    lengths: dict[str, list[int]] = {}
    for row in good:
        if tokens := length(row):
            lengths.setdefault(row.provider, []).append(tokens)
    every = [tokens for mine in lengths.values() for tokens in mine]
    if not every:
        return []
    said = []
    span = f"{min(every)} to {max(every)} tokens"
    if headline.per_token:
        said.append(
            f"The two arms' answers differ in length ({span}): the server does not fix it, so the "
            "ratio is of times per token; read it with care where reading the prompt takes long."
        )
    means = {name: sum(mine) / len(mine) for name, mine in lengths.items()}
    if max(means.values()) > UNLIKE * min(means.values()):
        told = ", ".join(f"{name} {number(mean, 1)}" for name, mean in means.items())
        said.append(
            f"Answers differ in length between machines (mean tokens: {told}), so their work is "
            "not equal; see that each runs the same model, prompt template and options."
        )
    most = report.parameters.max_tokens if report.parameters else None
    off = [] if most is None else [one for one in every if one < most / 2 or one > 1.1 * most]
    if most and len(off) > len(every) / 2:
        said.append(
            f"{len(off):,} of {len(every):,} answers are far from max_tokens {most:,} ({span}): "
            "the server ends them early or does not keep to it, so it was measured on another "
            "amount of work; lower max_tokens, or use prompts with longer answers."
        )
    if not said and min(every) != max(every):
        said.append(
            f"Answers differ in length ({span}): the server does not fix it; read times per token "
            "as well."
        )
    return said


def _cut_prompts(report: Report, good: Sequence[Request]) -> list[str]:
    """Prompts of which the server read only a part, by its count of their tokens."""
    context = {p.name: p.context_tokens for p in report.providers}
    answer = report.parameters.max_tokens if report.parameters else 0
    sparse, over = [], []
    counts: dict[int, dict[str, int]] = {}
    for row in good:
        if not row.prompt_tokens:
            continue
        known = report.prompt_characters[row.prompt : row.prompt + 1]
        if known and known[0] > MOST_CHARACTERS * row.prompt_tokens:
            sparse.append(row)
        if (room := context.get(row.provider)) and row.prompt_tokens + answer > room:
            over.append(row)
        counts.setdefault(row.prompt, {})[row.provider] = row.prompt_tokens
    apart = [told for told in counts.values() if max(told.values()) > 1.5 * min(told.values()) + 20]
    cure = "raise context_tokens (in the server too), or shorten the prompts."
    said = []
    if sparse:
        least = min(row.prompt_tokens or 0 for row in sparse)
        said.append(
            f"{_whose(sparse)} counts only {least} tokens for a prompt of "
            f"{report.prompt_characters[sparse[0].prompt]:,} characters: it cuts prompts that do "
            f"not fit its context without a word; {cure}"
        )
    elif apart:
        told = ", ".join(f"{name} {count}" for name, count in apart[0].items())
        said.append(
            f"The same prompt has unlike numbers of tokens ({told}): a server cut it to its "
            f"context, or the models or templates differ; {cure}"
        )
    if over:
        said.append(
            f"Prompt and answer do not fit the context of {_whose(over)} "
            f"({over[0].prompt_tokens} and {answer} tokens, {context[over[0].provider]} fit): part "
            f"of the prompt is dropped, or the answer ends early; {cure}"
        )
    return said


def _whose(rows: Sequence[Request]) -> str:
    return ", ".join(sorted({row.provider for row in rows}))


_OPENED = {
    "closes": "the server closes it after each streamed answer, so try stream: false ({})",
    "idle": "the last was idle for longer than the 4 s that we keep one open ({})",
    "more": "more requests were in flight than before, and each needs one of its own ({})",
    "lost": "the server, or something on the way there, had closed the open one ({})",
}


def _connections(report: Report) -> list[str]:
    """New connections in mid-run, and why each was opened."""
    good = [row for row in report.requests if row.outcome == "ok"]
    fresh = [row for row in good if row.marks.connected_ms is not None]
    if len(fresh) <= 0.2 * len(good):
        return []
    facts = {one.name: one for one in report.providers}
    ours = _unavoidable(report)
    causes: dict[str, set[str]] = {}
    for row in fresh:
        server = row.token_ms and _closes(facts[row.provider])
        causes.setdefault("closes" if server else ours[id(row)], set()).add(row.provider)
    told = [
        text.format(", ".join(sorted(causes[why])))
        for why, text in _OPENED.items()
        if why in causes
    ]
    return [
        f"{many(len(fresh), 'request')} of {len(good):,} opened a new connection, which costs a "
        f"round trip more: {'; '.join(told)}."
    ]


def _unavoidable(report: Report) -> dict[int, str]:
    """Why each request found no open connection, had no server closed one: idle, more, or lost."""
    arms = [*report.preparation, *(arm for one in report.rounds for arm in one.arms)]
    found: dict[int, str] = {}
    for facts in report.providers:
        rows = [row for arm in arms for row in arm.requests if row.provider == facts.name]
        # An answer gives its connection back before the next request takes it.
        ends = [(r.marks.end_ms or 0.0, 0, r) for r in rows if r.outcome == "ok"]
        starts = [(row.marks.start_ms or 0.0, 1, row) for row in rows]
        free: list[float] = []
        for at, starting, row in sorted([*ends, *starts], key=lambda one: one[:2]):
            if not starting:
                free.append(at)
                continue
            open_still = [since for since in free if at - since <= KEEPALIVE_MS]
            found[id(row)] = "lost" if open_still else "idle" if free else "more"
            free = open_still[:-1]
    return found


def _closes(facts: ProviderFacts) -> bool:
    """Whether a server closes a connection that carried a stream; llama.cpp's is known to."""
    if facts.keeps_streams is None:
        return facts.kind in ("embedded", "llama-server")
    return not facts.keeps_streams


def _front_end(report: Report, headline: Headline) -> list[str]:
    """A local server whose requests wait outside its own clock when several are in flight."""
    told = []
    calm = of(report).calibrations
    arms = [arm for one in report.rounds for arm in one.arms if arm.arm == "strategy"]
    good = [row for arm in arms for row in arm.requests if row.outcome == "ok"]
    for facts in report.providers:
        name, at_once = facts.name, headline.at_once.get(facts.name, 0)
        if facts.role != "local" or at_once < 2:
            continue
        alone = median([row.over_ms for row in calm.get(name, []) if row.over_ms is not None])
        crowd = median([r.over_ms for r in good if r.provider == name and r.over_ms is not None])
        if alone is not None and crowd is not None and crowd > 2 * alone + 5.0:
            told.append(
                f"{name} {milliseconds(crowd)} with up to {at_once}, {milliseconds(alone)} alone"
            )
    if not told:
        return []
    return [
        f"With several in flight, local requests spent far longer outside their server's own time "
        f"({'; '.join(told)}): they waited in the server before its clock began (its HTTP front "
        "end, or a queue that it does not report), and no network explains it; keep fewer in "
        "flight there if the first token matters."
    ]


def reloaded(report: Report) -> list[Request]:
    """Requests that waited for their model to be loaded, unlike others at their provider."""
    rows = [row for row in report.requests if row.wall_ms and row.server.load_ms]
    rows += [r for mine in of(report).calibrations.values() for r in mine[1:] if r.server.load_ms]
    usual: dict[str, list[float]] = {}
    for row in rows:
        usual.setdefault(row.provider, []).append(row.server.load_ms or 0.0)
    found = []
    for row in rows:
        load_ms, wall_ms = row.server.load_ms or 0.0, row.wall_ms or 0.0
        others_ms = usual[row.provider]
        rare = len(others_ms) < 3 or load_ms > 3 * (median(others_ms) or 0.0)
        if load_ms > wall_ms / 2 or (rare and load_ms > wall_ms / 5):
            found.append(row)
    return found


def _reloads(report: Report) -> list[str]:
    found = reloaded(report)
    if not found:
        return []
    longest = max(row.server.load_ms or 0.0 for row in found)
    return [
        f"{many(len(found), 'request')} waited while a model was loaded in mid-run "
        f"({_whose(found)}, up to {milliseconds(longest)}): it was thrown out of memory for "
        "another, or left it after a pause; keep it loaded (keep_alive, the same context length "
        "everywhere) and run again."
    ]


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


def unlike_digests(report: Report) -> bool:
    """Whether two digests of one scheme differ: those of two schemes cannot be compared."""
    schemes: dict[str, set[str]] = {}
    for facts in report.providers:
        if facts.digest:
            schemes.setdefault(facts.digest.partition(":")[0], set()).add(facts.digest)
    return any(len(digests) > 1 for digests in schemes.values())


def _walls(rows: Sequence[Request]) -> list[float]:
    return [row.wall_ms for row in rows if row.wall_ms]


def _drift(report: Report) -> list[str]:
    """The last third of the calibration against the first, beyond twice the band."""
    said = []
    loads = {id(row) for row in reloaded(report)}
    for provider, rows in of(report).calibrations.items():
        walls = _walls([row for row in rows if id(row) not in loads])  # a load is no drift
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
    here = [p.name for p in report.providers if p.role == "local" and p.kind != "embedded"]
    if others is not None and others > OTHERS_MOST:
        cure = "they slow what is measured here; close them and run again."
        if here:
            cure = (
                f"the work of {', '.join(here)}, a server on this machine that was not started "
                "here, is in it, so how much was others' is unknown; see that nothing else ran."
            )
        said.append(
            f"Other programs took {percent(others)} of this machine's processor time during the "
            f"run: {cure}"
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
    for provider, rows in of(report).calibrations.items():
        walls = _walls(rows)
        later = median(walls[1:]) if len(walls) >= 4 else None
        if later and walls[0] > COLD_FACTOR * later:
            said.append(
                f"The first calibration request of {provider} took {walls[0] / later:.1f} times "
                "as long as the later ones: its model was still cold; raise warm_up_prompts."
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
    if remote and local and remote.mean > local.mean:
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
    usual = {key: median(group) or 0.0 for key, group in walls.items()}
    return sum(wall > 3 * usual[key] for key, group in walls.items() for wall in group)
