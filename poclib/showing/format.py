"""How numbers, durations, dates, tables and text from servers are written, everywhere alike.

Longer texts are macros in templates/, which `say` fills in. Knows no report's meaning.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def safe(text: object, limit: int = 500) -> str:
    """`text` on one line fit for a terminal: no control, direction or surrogate character."""
    line = " ".join(str(text).split())
    kept = "".join("?" if unicodedata.category(c)[0] == "C" else c for c in line)
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def inline(text: object, limit: int = 80) -> str:
    """`text` from a server fit for a terminal, Markdown, HTML and a chart alike."""
    kept = "".join(c if c.isalnum() or c in " ._:;/@+,='%()-" else "?" for c in safe(text, limit))
    return kept.replace("//", "/ /")


def number(value: float | None, decimals: int = 2) -> str:
    """Thousands separated, exact halves of the decimal number up; a hyphen for what is absent."""
    if value is None:
        return "-"
    text = f"{round(value, 6) + 1e-9:,.{decimals}f}"
    return text if text.strip("-0.,") else text.lstrip("-")  # no minus before a zero


def milliseconds(value: float | None) -> str:
    """Three digits or more: 22.4 ms, 382 ms, 2,515 ms."""
    if value is None or math.isnan(value):
        return "-"
    if 0 < value < 0.05:
        return "under 0.1 ms"
    return f"{number(value, 1 if abs(value) < 100 else 0)} ms"


def percent(share: float | None, decimals: int = 0) -> str:
    return "-" if share is None else f"{number(100 * share, decimals)} %"


def many(count: int, noun: str) -> str:
    """1 round, 2 rounds."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


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


def aligned(text: str, markdown: bool = True) -> str:
    """`table` of lines of cells with "|" between them, the first of which is the header."""
    lines = [line for line in text.splitlines() if line.strip()]
    header, *rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return table(header, rows, markdown) + "\n"


def sentence(text: str) -> str:
    """A paragraph of a template on one line, with no space before a full stop or a comma."""
    return re.sub(r" ([,.;:])", r"\1", " ".join(text.split()))


def bullets(lines: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def listed(values: Iterable[object]) -> str:
    """The known ones among texts from servers, each once, in order."""
    return ", ".join(sorted({inline(value) for value in values if value}))


def _shown(value: Any) -> Any:
    """What a template shows of a value: the end of a macro's last line is no part of a text."""
    return "-" if value is None else value.strip("\n") if isinstance(value, str) else value


FOLDER = Path(__file__).with_name("templates")
TEXTS = Environment(
    loader=FileSystemLoader(FOLDER),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_shown,
)
TEXTS.filters["ms"] = milliseconds


def known(*functions: Callable[..., Any]) -> None:
    """Let templates use these functions by name, as filters too."""
    TEXTS.globals |= {function.__name__: function for function in functions}
    TEXTS.filters |= {function.__name__: function for function in functions}


known(safe, inline, number, percent, many, day, aligned, listed, sentence)


@cache
def _macros(file: str) -> Any:
    return TEXTS.get_template(f"{file}.j2").module


def say(file: str, name: str, *given: Any, **named: Any) -> str:
    """The text that macro `name` of templates/`file`.j2 makes of the values."""
    return str(getattr(_macros(file), name)(*given, **named)).strip("\n")


def lines(file: str, name: str, *given: Any) -> list[str]:
    """The lines of such a text that are not empty."""
    return [text for text in say(file, name, *given).splitlines() if text]
