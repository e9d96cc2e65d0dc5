"""Whole pages, and what stands beside several reports: results, lists, comparisons, findings.

Single sentences come from `words`, longer texts are in templates/documents.j2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .. import report as files
from ..errors import PocError, ReportError
from ..parameters import ProviderSettings
from ..reading import compare
from ..reading.many import Summary, summaries, summary
from ..reading.phases import CLIENT, PHASES
from ..reading.reading import Reading, read
from ..records import Ruler, RulerRow
from ..stats import Headline, Ratio
from . import format as form
from . import words
from .format import bullets, day, inline, many, number, safe, table
from .warnings import failed
from .words import best_first, effect, ratio

PICTURE = "docs/phase-0.png"  # of the samples' ratios
say = partial(form.say, "documents")

# Texts that are made in the template alone.
anatomy: Callable[[Mapping[str, Any]], str] = partial(say, "anatomy")
pool: Callable[[Reading], str] = partial(say, "pool")
causes_text: Callable[[Reading], str] = partial(say, "causes")
forecast: Callable[..., str] = partial(say, "forecast")  # predicted, headlines
forecast_finding: Callable[..., str] = partial(say, "forecast_finding")  # predicted, headlines
ruler_finding: Callable[[Ruler], str] = partial(say, "ruler_finding")


def sections(readings: Sequence[Reading]) -> dict[str, str]:
    """The Phase 0 result by heading."""
    own = [reading.headline for reading in readings]
    pools = [reading.report.providers for reading in readings]
    alike = [pool for pool in pools if len({p.digest for p in pool}) == 1 and pool[0].digest]
    apart = [pool for pool in pools if any(p.kind != "embedded" for p in pool)]
    faster = [headline for headline in own if effect(headline) == "faster"]
    modes = form.lines("documents", "failure_modes", own)
    rounds = min((headline.overhead_ratio.rounds for headline in own), default=0)
    limits = bullets(form.lines("documents", "limits", rounds))
    nothing = "No report of a run was given, so nothing was measured."
    return {
        "Bottom line": words.answer(*readings) if own else nothing,
        "Strategy alternatives": words.comparison_text(own, markdown=True) if own else nothing,
        "Latency breakdown": words.breakdown_text(own),
        "Failure modes": bullets(modes or ["None was seen in these reports."]),
        "Conditions for advancing to Phase 1": say("conditions", own, faster, alike, apart),
        "How far to trust it": f"{words.trust(readings)}\n\n{limits}",
    }


def phase_0_result(readings: Sequence[Reading], picture: str = "") -> str:
    """The whole of PHASE-0-RESULT.md; `picture` is where the chart of the ratios lies."""
    body = sections(readings)
    if picture:
        body["Bottom line"] += f"\n\n{_pictured(readings, picture)}"
    told = "\n\n".join(f"## {title}\n\n{text}" for title, text in body.items())
    return f"# Phase 0 result\n\n{told}\n"


def _pictured(readings: Sequence[Reading], place: str) -> str:
    return f"![{words.title_ratios([reading.headline for reading in readings])}]({place})"


def write(text: str, experiment: str | None = None) -> Path:
    """Save the result of `experiment` beside its run; without one, that of the samples."""
    folder = files.root() / "data" / "runs" / experiment if experiment else files.root()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (files.RESULT if experiment else "PHASE-0-RESULT.md")
    path.write_text(text, encoding="utf-8")
    return path


def readme(text: str, readings: Sequence[Reading]) -> str:
    """The README with its result computed anew; the rest of `text` as it is.

    Raises `ReportError` where the two marks that enclose the result are not there.
    """
    begin = "<!-- result: written by `./run-poc.sh refresh`, not by hand -->"
    before, _, rest = text.partition(begin)
    _, end, after = rest.partition("<!-- end of result -->")
    if not end:
        raise ReportError(f"README.md: {begin} and, after it, <!-- end of result --> are missing.")
    compared = words.comparison_text([reading.headline for reading in readings], markdown=True)
    parts = [words.answer(*readings), _pictured(readings, PICTURE), compared, words.trust(readings)]
    told = "\n\n".join(parts)
    return f"{before}{begin}\n{told}\n{end}{after}"


class Entry(NamedTuple):
    """A saved report under its file's name."""

    name: str
    reading: Reading

    @property
    def cells(self) -> list[str]:
        """One line of the list."""
        return cells(summary(self.name, self.reading))


def cells(row: Summary) -> list[str]:
    """Name, date, pool, strategy, ratio, verdict."""
    first = [row.name, day(row.created), words.pool(row)]
    return [*first, row.strategy, ratio(row), row.verdict]


_HEADER = ["report", "date", "pool", "strategy", "ratio (95 % interval)", "gate"]


def entries(
    names: Iterable[str | Path] | None = None, passed_over: Callable[[str], Any] = lambda _: None
) -> list[Entry]:
    """Every readable report, newest first; an unreadable one is told to `passed_over`.

    `names` are those in data/reports unless others, or files, are given.
    """
    found = []
    for name in files.names() if names is None else names:
        try:
            found.append(Entry(Path(name).stem, read(name)))
        except PocError as error:
            passed_over(safe(str(error)))
    # A report of capacity, or of a rate that is served, has no rounds to judge.
    judged = [entry for entry in found if not entry.reading.report.question]
    return sorted(judged, key=lambda entry: entry.reading.report.created, reverse=True)


def listing(found: Sequence[Entry | Summary], markdown: bool = False) -> str:
    """The list for a terminal or as Markdown; a sentence where nothing is saved."""
    if not found:
        return "No report is saved yet: run the experiment first (./run-poc.sh)."
    rows = [cells(one) if isinstance(one, Summary) else one.cells for one in found]
    return table(_HEADER, rows, markdown)


def saved(passed_over: Callable[[str], Any]) -> list[Summary]:
    """As `entries`, of all in data/reports, but read again only where it has changed."""
    paths = filter(None, map(files.path_of, files.names()))
    found = summaries(paths, files.root() / files.FOLDER, lambda told: passed_over(safe(told)))
    judged = [row for row in found.values() if not row.question]
    return sorted(judged, key=lambda row: row.created, reverse=True)


def side_by_side(readings: Sequence[Reading]) -> str:
    """A line a report, with its ratio over the first one's where both are of one strategy."""
    changes = compare.over_the_first([reading.headline for reading in readings])
    rows = [
        [*Entry(reading.headline.report, reading).cells, change(against) if against else "-"]
        for reading, against in zip(readings, changes, strict=True)
    ]
    return table([*_HEADER, "over the first"], rows)


def change(found: Ratio) -> str:
    """0.99 (0.96 to 1.03)."""
    known = f"{number(found.low)} to {number(found.high)}"
    return f"{number(found.median)} ({'no interval' if found.low is None else known})"


def differences(unlike: Mapping[str, Sequence[str]], names: Sequence[str]) -> str:
    """What is not the same in the reports, a row each; a sentence where all is alike."""
    if not unlike:
        return "Pool, prompts and parameters are alike in all of them."
    rows = [[inline(key), *(inline(value, 40) for value in row)] for key, row in unlike.items()]
    return table(["unlike", *names], rows)


def refusal(unlike: Mapping[str, Sequence[str]]) -> str:
    """Why these reports are not compared, as one sentence."""
    shown = [f"{key} ({' / '.join(dict.fromkeys(unlike[key]))})" for key in [*unlike][:4]]
    return say("refusal", shown, len(unlike) - 4)


def agreement(first: Reading, second: Reading) -> str:
    """Whether a rerun agrees with what it repeats: the sentence, then what it rests on."""
    found, unlike = compare.between(first, second), compare.unlike([first, second])
    return say("agreement", found, first.headline, second.headline, unlike)


RULER_LABELS = {
    "ttft_ms": "time to first token",
    "over_ms": "outside its server",
    "inter_token_ms": "between tokens",
    "stub": "the known server's own",
    "network_ms": "round trip",
    "makespan_ms": "makespan, per request",
    "connect_ms": "connecting",
    "ahead_ms": "connecting ahead",
}


def ruler_case(row: RulerRow) -> str:
    """1 at a time, 25 ms to the first token, new connections."""
    link = f", link {row.round_trip_ms:g} ms" if row.round_trip_ms else ""
    opened = "" if row.keep_alive else ", new connections"
    return f"{row.in_flight} at a time, {row.delay_ms:g} ms to the first token{link}{opened}"


def ruler_table(check: Ruler, markdown: bool = False) -> str:
    """A row a case, a column a quantity: the bias, and what 95 % stay within, in ms."""
    cells: dict[str, dict[str, str]] = {}
    for row in check.rows:
        within = "" if row.p95_ms is None else f" ({number(row.p95_ms)})"
        cells.setdefault(ruler_case(row), {})[row.quantity] = f"{number(row.bias_ms)}{within}"
    shown = [key for key in RULER_LABELS if any(key in row for row in cells.values())]
    rows = [[case, *(row.get(key, "-") for key in shown)] for case, row in cells.items()]
    header = ["known behaviour, errors in ms", *(RULER_LABELS[key] for key in shown)]
    return table(header, rows, markdown)


def ruler_provenance(check: Ruler) -> str:
    """When the instrument was checked, on how many cores, with how many requests."""
    asked = sum(row.n for row in check.rows if row.quantity == "over_ms")
    cores = "unknown cores" if check.cores is None else many(check.cores, "core")
    return f"{day(check.created)} · {cores} · {many(asked, 'request')} to a server of known times"


def title_ruler(check: Ruler, quantity: str = "ttft_ms") -> str:
    """By how much one quantity is off, over all cases of the check."""
    label = RULER_LABELS[quantity].capitalize()
    errors = [row.bias_ms for row in check.rows if row.quantity == quantity]
    if not errors:
        return f"{label}: not checked"
    return f"{label}: off by {number(min(errors))} to {number(max(errors))} ms (medians)"


def anatomy_finding(row: Mapping[str, Any]) -> str:
    """The bottom line of one request: where most of it went, and what the distance can cost."""
    longest = max(CLIENT[1:], key=lambda phase: row[phase.key] or 0.0)
    return say("anatomy_finding", words.title_anatomy(row), row, longest)


def inside(headline: Headline, predicted: Mapping[str, float]) -> str:
    """Whether what was foretold lies inside the measured interval or outside; "" if unknown."""
    found, value = headline.overhead_ratio, predicted.get(headline.strategy)
    if value is None or found.low is None or found.high is None:
        return ""
    return "inside" if found.low <= value <= found.high else "outside"


def labelled(reading: Reading) -> Headline:
    """The headline under a name that tells the engines too, where reports are compared."""
    report = reading.report
    kinds = sorted({p.engine_kind or p.kind for p in report.providers})
    adapts = any(arm.limit_changes for one in report.rounds for arm in one.arms)
    held = ", limit found while running" if adapts else ""
    name = f"{report.strategy} on {' and '.join(kinds)}{held}"
    return replace(reading.headline, strategy=name)


# ---- Routers beside our strategies on the same machines ----------------------------------------


def router(reading: Reading) -> ProviderSettings | None:
    """The router that the strategy's prompts went through, if they did."""
    given = reading.report.parameters
    return given.router if given and reading.report.strategy == "through-router" else None


def routed(reading: Reading) -> Headline:
    """The headline under the router's name, if it went through one; its pool is the machines."""
    through, behind = router(reading), (p for p in reading.report.providers if not p.router_of)
    names = [f"{p.name} at {p.speed:g}" if (p.speed or 1) < 1 else p.name for p in behind]
    called = through.name if through else reading.report.strategy
    return replace(reading.headline, strategy=called, roles=dict.fromkeys(names, "local"))


def routers_finding(readings: Sequence[Reading]) -> str:
    """How the best router does beside the best strategy; "" where one of them has no ratio."""
    for theirs in best_first(routed(one) for one in readings if router(one))[:1]:
        for ours in best_first(routed(one) for one in readings if not router(one))[:1]:
            if ours.speedup and theirs.speedup:
                times = number(ours.speedup / theirs.speedup)
                return f"{theirs.strategy} took {times} times as long as {ours.strategy}"
    return ""


def unanswered(readings: Sequence[Reading]) -> list[str]:
    """What failed in each run, and how many prompts had no answer for it."""
    lines = []
    for one in (one for one in readings if one.headline.failed_requests):
        asked = len(one.arms("strategy")) * len(one.report.prompt_sha256)
        left = f"{asked - len(one.answered('strategy')):,} of {many(asked, 'prompt')}"
        lines.append(f"{routed(one).strategy}: {failed(one.report)}; {left} had no answer at last.")
    return lines


form.known(change, inside)
form.TEXTS.globals |= {"MEANING": words.MEANING, "PHASES": PHASES}
