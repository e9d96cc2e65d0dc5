"""How numbers, durations, dates, tables and text from servers are written, everywhere alike.

Knows no report's meaning: `words` makes sentences, `cautions` warnings, of these.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import datetime

from ..records import Report


def safe(text: object, limit: int = 500) -> str:
    """`text` on one line fit for a terminal: no control, direction or surrogate character."""
    line = " ".join(str(text).split())
    kept = "".join("?" if unicodedata.category(c)[0] == "C" else c for c in line)
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def inline(text: object, limit: int = 80) -> str:
    """`text` from a server fit for a terminal, Markdown, HTML and a chart alike."""
    kept = "".join(c if c.isalnum() or c in " ._:;/@+,='%()-" else "?" for c in safe(text, limit))
    return kept.replace("//", "/ /")


def number(value: float, decimals: int) -> str:
    """`value` with thousands separated; exact halves of the decimal number round up."""
    text = f"{round(value, 6) + 1e-9:,.{decimals}f}"
    return text if text.strip("-0.,") else text.lstrip("-")  # no minus before a zero


def milliseconds(value: float | None) -> str:
    """Three digits or more: 22.4 ms, 382 ms, 2,515 ms; a hyphen for what is absent."""
    return "-" if value is None else f"{number(value, 1 if abs(value) < 100 else 0)} ms"


def percent(share: float | None, decimals: int = 0) -> str:
    return "-" if share is None else f"{number(100 * share, decimals)} %"


def many(count: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def date(report: Report) -> str:
    return day(report.created)


def day(created: str) -> str:
    """The date of a time of day as reports hold it."""
    try:
        return datetime.fromisoformat(created).date().isoformat()
    except ValueError:
        return inline(created, 20)


def table(header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """Aligned columns; with `markdown` a pipe table that reads well unrendered too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    edge, between = ("| ", " | ") if markdown else ("", "  ")
    padded = (
        between.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(f"{edge}{line}{edge[::-1]}".rstrip() for line in padded)


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)
