"""The documents: the Phase 0 result, and what became of the published headlines.

Whole pages of Markdown, every number from headlines; single sentences come from `words`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ..errors import ReportError
from ..records import Report
from ..report import RESULT, root
from ..stats import PASS, Headline
from . import titles
from .format import bullets, inline, many, milliseconds, number, percent, table
from .warnings import warnings
from .words import (
    beside,
    best,
    bottom_line,
    breakdown_text,
    comparison_text,
    crowded,
    crowding,
    effect,
    failures,
    finding,
    once,
    provenance,
    ratio,
    slowdowns,
    suite_gate,
)


def sections(reports: Sequence[Report], headlines: Sequence[Headline]) -> dict[str, str]:
    """The Phase 0 result by heading, every number from `headlines` (in `reports`' order)."""
    pairs = list(zip(reports, headlines, strict=True))
    measured = [one for one in pairs if "published" not in one[0].environment]
    own = [headline for _, headline in measured]
    if own:
        lowest = min(own, key=lambda one: one.overhead_ratio.median or float("inf"))
        report = next(report for report, headline in measured if headline is lowest)
        top = f"{failures(own)}{best(own)}\n\n{bottom_line(report, lowest, suite_gate(own))}\n\n"
        top += f"*{provenance(report, lowest)}*"
    else:
        top = "No report of a run was given, so nothing was measured."
    return {
        "Bottom line": top,
        "Strategy alternatives": _alternatives(measured) if own else "None measured.",
        "Latency breakdown": breakdown_text(own),
        "Failure modes": bullets(_failure_modes(pairs)),
        "Conditions for advancing to Phase 1": _conditions(measured),
        "What this does not show": bullets(_limits(measured)),
    }


def phase_0_result(reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """The whole of PHASE-0-RESULT.md."""
    found = sections(reports, headlines)
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in found.items())
    return f"# Phase 0 result\n\n{body}\n"


def write(text: str, experiment: str | None = None) -> Path:
    """Save the result of `experiment` beside its run; without one, the project's own.

    The project's is of the committed samples, which its README cites.
    """
    path = root() / "PHASE-0-RESULT.md"
    if experiment is not None:
        path = root() / "data" / "runs" / experiment / RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


_RESULT = "<!-- result: written by `./run-poc.sh refresh`, not by hand -->"
_RESULT_END = "<!-- end of result -->"


def readme(text: str, reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """The README with its result computed anew; the rest of `text` as it is.

    Raises `ReportError` where the two marks that enclose the result are not there.
    """
    before, mark, rest = text.partition(_RESULT)
    _, end, after = rest.partition(_RESULT_END)
    if not mark or not end:
        raise ReportError(f"README.md: the marks {_RESULT} and {_RESULT_END} are missing.")
    pairs = list(zip(reports, headlines, strict=True))
    best = min(headlines, key=lambda one: one.overhead_ratio.median or float("inf"))
    report = next(r for r, one in pairs if one is best)
    result = (
        f"![{titles.ratios(headlines)}](docs/phase-0.png)\n\n"
        f"{_alternatives(pairs)}\n\n"
        f"{suite_gate(headlines)}.\n\n*{provenance(report, best)}*"
    )
    return f"{before}{mark}\n{result}\n{end}{after}"


def _alternatives(pairs: Sequence[tuple[Report, Headline]]) -> str:
    """The comparison, and below it what could change its verdicts."""
    reports, own = [report for report, _ in pairs], [headline for _, headline in pairs]
    warned = bullets([f"**Note:** {one}" for one in beside(reports, own)])
    return f"{comparison_text(own, markdown=True)}\n\n{warned}".rstrip()


def _failure_modes(pairs: Sequence[tuple[Report, Headline]]) -> list[str]:
    said = []
    for report, headline in pairs:
        if effect(headline) == "slower":
            said.append(f"{finding(headline)}.")
        causes = [crowding(headline, p) for p in slowdowns(headline)]
        if {"thrashes", "queues", "refuses", "unknown"} & {*causes}:
            said.append(f"{headline.strategy}: {' '.join(crowded(headline))}")
        if headline.failed_requests:
            lost = many(headline.failed_requests, "request")
            said.append(f"{headline.strategy}: {lost} of {headline.requests:,} failed.")
        if different := headline.answers_equal.different:
            compared = headline.answers_equal.compared
            said.append(
                f"{headline.strategy}: {different} of {compared} answers differ between the arms."
            )
        if claims := _published(report):
            low, high = claims.failing_ms
            said.append(
                f"Published, with no rows to check it: {claims.failing} took "
                f"{number(claims.failing_ratio, 2)} times the baseline's time, its requests "
                f"{milliseconds(low)} to {milliseconds(high)} each."
            )
    return said or ["None was seen in these reports."]


def _conditions(pairs: Sequence[tuple[Report, Headline]]) -> str:
    own = [headline for _, headline in pairs]

    def which(kept: Sequence[Headline]) -> str:
        return ", ".join(one.strategy for one in kept) or "none"

    passing = [one for one in own if one.verdict == PASS]
    faster = [one for one in own if effect(one) == "faster"]
    efficient = [one for one in own if one.efficiency is not None and one.efficiency >= 0.9]
    clean = [one for one in faster if not one.failed_requests and not one.incomplete_rounds]
    compared = [one for one in own if one.answers_equal.compared]
    equal = [one for one in compared if not one.answers_equal.different]
    reported = [report for report, _ in pairs]
    alike = all(len({p.digest for p in report.providers} - {None}) == 1 for report in reported)
    known = all(p.digest for report in reported for p in report.providers)
    apart = [r for r in reported if any(p.kind != "embedded" for p in r.providers)]
    conditions = [
        ("A strategy passes the gate", bool(passing), which(passing)),
        ("A strategy is faster than the baseline beyond the band", bool(faster), which(faster)),
        ("A strategy reaches 90 % of the ideal", bool(efficient), which(efficient)),
        ("A faster strategy lost no request and no round", bool(clean), which(clean)),
        (
            "Some strategy's answers all equal the baseline's",
            bool(equal),
            f"{which(equal)} (of {len(compared)} compared)",
        ),
        (
            "Every provider held the same model",
            bool(own) and alike and known,
            "digests equal" if alike and known else "digests differ or are unknown",
        ),
        (
            "Measured on servers of one's own, not on one machine's embedded pool",
            bool(apart),
            f"{len(apart)} of {many(len(own), 'report')}",
        ),
    ]
    rows = [[text, "met" if met else "not met", shown] for text, met, shown in conditions]
    return table(["condition", "state", "shown by"], rows, markdown=True)


def _limits(pairs: Sequence[tuple[Report, Headline]]) -> list[str]:
    said = [
        (headline.strategy, warning)
        for report, headline in pairs
        for warning in warnings(report, headline)
    ]
    found = dict.fromkeys(once(said, len(pairs)))
    rounds = [headline.overhead_ratio.rounds for _, headline in pairs]
    if rounds and 2 <= min(rounds) < 6:
        found[
            f"With {min(rounds)} rounds the interval supposes that their ratios' logarithms are "
            "near normal; from 6 rounds on it supposes nothing of their law."
        ] = None
    found["Other models, prompt lengths, loads and networks than those of the provenance."] = None
    return list(found)


@dataclass(frozen=True)
class _Claims:
    """The published numbers that a report may carry in its environment."""

    headlines: dict[str, float]
    passed: bool
    range_ms: tuple[float, float]
    failing: str
    failing_ratio: float
    failing_ms: tuple[float, float]
    normal_ms: float
    slowdown: float


def _published(report: Report) -> _Claims | None:
    """None where there are none, or not in the form they were published in."""
    try:
        found = report.environment["published"]
        headlines, failing = found["headlines"], found["failing_run"]
        low, high = map(float, headlines["added_latency_ms_range"])
        fastest, slowest = map(float, failing["request_wall_ms_range"])
        keys = ("speedup", "overhead_ratio", "added_latency_ms_mean", "network_share")
        normal = float(failing["normal_request_wall_ms"])
        if normal <= 0:
            return None
        return _Claims(
            headlines={key: float(headlines[key]) for key in keys},
            passed=bool(headlines["gate_passed"]),
            range_ms=(low, high),
            failing=inline(failing["strategy"]),
            failing_ratio=float(failing["overhead_ratio"]),
            failing_ms=(fastest, slowest),
            normal_ms=normal,
            slowdown=float(failing["per_request_slowdown"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def published_claims(report: Report, headline: Headline) -> list[str]:
    """Each published headline held against the published rows, as Markdown sentences.

    Empty unless `report.environment["published"]` has the headlines and the failing run.
    """
    claims = _published(report)
    remote, local = headline.added_latency_ms["remote"], headline.added_latency_ms["local"]
    if claims is None or remote is None or local is None:
        return []
    found = headline.overhead_ratio.median
    checks = [
        ("Speedup", "speedup", headline.speedup, 3),
        ("Overhead ratio", "overhead_ratio", found, 3),
        ("Mean added latency of a remote request in ms", "added_latency_ms_mean", remote.mean, 1),
        ("Network share", "network_share", headline.network_share, 3),
    ]
    said = []
    for text, key, value, decimals in checks:
        claimed = f"{claims.headlines[key]:g}"
        places = len(claimed.partition(".")[2])
        agrees = value is not None and number(value, places) == claimed
        given = "nothing" if value is None else number(value, decimals)
        said.append(f"{text}, published as {claimed}, {_follows(agrees)}: the rows give {given}.")
    gate = "passed" if found is not None and found < headline.gate_max_ratio else "not passed"
    said.append(
        f"The gate, published as {'passed' if claims.passed else 'not passed'}, is {gate} "
        f"by the one ratio there is, but with {ratio(headline)} an interval cannot confirm it."
    )
    low, high = claims.range_ms
    roles = {p.name: p.role for p in report.providers}
    source = [r for r in report.requests if r.over_ms is not None and round(r.over_ms) == high]
    taken = [f"{number(r.over_ms or 0, 1)} from a {roles[r.provider]} row" for r in source]
    span = f"{number(remote.min, 1)} to {number(remote.max, 1)}"
    agrees = (round(remote.min), round(remote.max)) == (low, high)
    said.append(
        f"The range of {low:g} to {high:g} ms per remote request {_follows(agrees)}: it takes "
        f"{', '.join(taken) or 'its end from no row'}; remote requests span {span} ms."
    )
    said.append(_published_slowdown(report, claims, roles))
    more = "more" if local.mean > remote.mean else "no more"
    said.append(
        f"Local requests paid {more} overhead than remote ones ({milliseconds(local.mean)} and "
        f"{milliseconds(remote.mean)} on average), so it was "
        f"{'not ' if local.mean >= remote.mean else ''}mostly the network."
    )
    counts = Counter(r.provider for r in report.requests if r.outcome == "ok")
    split = ", ".join(f"{count} on {p}" for p, count in counts.items())
    said.append(
        f"The split ({split}) reached {percent(headline.efficiency)} of what the rates allow: "
        f"{milliseconds(headline.ideal_ms)} against {milliseconds(headline.makespan_ms)}."
    )
    return said


def _follows(agrees: bool) -> str:
    return "follows" if agrees else "does **not** follow"


def _published_slowdown(report: Report, claims: _Claims, roles: Mapping[str, str]) -> str:
    low, high = claims.failing_ms
    normal, claimed = claims.normal_ms, claims.slowdown
    walls = [r.wall_ms for r in report.requests if roles[r.provider] == "remote" and r.wall_ms]
    typical = median(walls) if walls else None
    spans = f"{number(low / normal, 0)} to {number(high / normal, 0)} times"
    agrees = low / normal <= claimed <= high / normal
    said = (
        f"“{claimed:g} times slower per request” {_follows(agrees)} from the quoted "
        f"{milliseconds(normal)}: {milliseconds(low)} to {milliseconds(high)} are {spans} that"
    )
    if typical is None:
        return f"{said}."
    return (
        f"{said}; {milliseconds(low)} over the remote machine's {milliseconds(typical)} gives "
        f"{number(low / typical, 0)}."
    )
