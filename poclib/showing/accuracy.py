"""How far the instrument is off, in sentences and tables: what `ruler` found, told.

Reads a check or reports, measures nothing and draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..records import Report, Ruler, RulerRow
from ..stats import Headline
from .format import day, many, milliseconds, number, table
from .warnings import instrument_ms

# The quantities of the instrument's check on itself.
RULER_LABELS = {
    "ttft_ms": "time to first token",
    "over_ms": "outside its server",
    "inter_token_ms": "between tokens",
    "stub": "the known server's own",
    "network_ms": "round trip",
    "makespan_ms": "makespan, per request",
    "connect_ms": "connecting",
}


def ruler_case(row: RulerRow) -> str:
    """1 at a time, 25 ms to the first token, new connections."""
    parts = [f"{row.in_flight} at a time, {row.delay_ms:g} ms to the first token"]
    parts += [f"link {row.round_trip_ms:g} ms"] if row.round_trip_ms else []
    parts += [] if row.keep_alive else ["new connections"]
    return ", ".join(parts)


def ruler_cases(found: Ruler, quantity: str = "over_ms") -> list[str]:
    """The cases of one quantity, in the order of `tables.ruler`."""
    return [ruler_case(row) for row in found.rows if row.quantity == quantity]


def ruler_table(found: Ruler, markdown: bool = False) -> str:
    """Bias and spread of every quantity in every case, in milliseconds."""
    rows = [
        [
            ruler_case(row),
            row.quantity,
            str(row.n),
            number(row.bias_ms, 3),
            "-" if row.p95_ms is None else number(row.p95_ms, 3),
        ]
        for row in found.rows
    ]
    header = ["known behaviour", "quantity", "n", "bias (ms)", "95 % within (ms)"]
    return table(header, rows, markdown)


def ruler_grid(found: Ruler) -> str:
    """A row a case, a column a quantity, as Markdown: the bias, and what 95 % stay within."""
    cells: dict[str, dict[str, str]] = {}
    for row in found.rows:
        spread = "" if row.p95_ms is None else f" ({number(row.p95_ms, 2)})"
        cell = f"{number(row.bias_ms, 2)}{spread}"
        cells.setdefault(ruler_case(row), {})[RULER_LABELS.get(row.quantity, row.quantity)] = cell
    quantities = list(dict.fromkeys(label for one in cells.values() for label in one))
    rows = [[case, *(one.get(q, "-") for q in quantities)] for case, one in cells.items()]
    return table(["known behaviour, errors in ms", *quantities], rows, markdown=True)


def ruler_provenance(found: Ruler) -> str:
    """When the instrument was checked, on how many cores, with how many requests."""
    asked = sum(row.n for row in found.rows if row.quantity == "over_ms")
    cores = "unknown cores" if found.cores is None else many(found.cores, "core")
    return f"{day(found.created)} · {cores} · {many(asked, 'request')} to a server of known times"


def ruler_finding(found: Ruler) -> str:
    """How far the instrument can be trusted here, held against what it aims at."""
    seen = [row for row in found.rows if row.quantity == "ttft_ms"]
    alone = [row for row in seen if row.in_flight == 1]
    many_at_once = [row for row in seen if row.in_flight == 64]
    said = []
    if alone:
        bias = max(abs(row.bias_ms) for row in alone)
        spread = max((row.p95_ms or 0.0 for row in alone), default=0.0)
        said.append(
            f"One at a time a known delay is recovered within {number(bias, 2)} ms at the median "
            f"(the aim of 0.5 ms is {_met(bias <= 0.5)}) and {number(spread, 2)} ms in 95 % of "
            f"requests (the aim of 2 ms is {_met(spread <= 2)})"
        )
    if many_at_once:
        bias = max(abs(row.bias_ms) for row in many_at_once)
        said.append(
            f"with 64 at once the bias is {number(bias, 2)} ms (the aim of under 1 ms is "
            f"{_met(bias < 1)})"
        )
    return "; ".join(said) + "." if said else "Nothing was checked."


def _met(is_met: bool) -> str:
    return "met" if is_met else "not met"


def title_ruler(found: Ruler, quantity: str = "ttft_ms") -> str:
    """By how much one quantity is off, over all cases of the check."""
    rows = [row for row in found.rows if row.quantity == quantity]
    if not rows:
        return f"{RULER_LABELS.get(quantity, quantity)}: not checked"
    low, high = min(row.bias_ms for row in rows), max(row.bias_ms for row in rows)
    label = RULER_LABELS.get(quantity, quantity)
    return f"{label.capitalize()}: off by {number(low, 2)} to {number(high, 2)} ms (medians)"


def checks_before_runs(reports: Sequence[Report], headlines: Sequence[Headline]) -> str:
    """The instrument's error as each run found it beforehand, beside the smallest it reports."""
    rows = []
    for report, headline in zip(reports, headlines, strict=True):
        added = [one.mean for one in headline.added_latency_ms.values() if one]
        rows.append(
            [
                headline.report,
                milliseconds(instrument_ms(report)),
                milliseconds(min(added)) if added else "-",
            ]
        )
    header = ["report", "instrument's error before the run", "least added latency it reports"]
    return table(header, rows, markdown=True)
