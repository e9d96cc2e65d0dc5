"""When requests come: all at once, at random, or as a trace has them.

Times are milliseconds after the first moment, rising. Knows no provider and no clock.
"""

from __future__ import annotations

import csv
import random
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from .errors import ParameterError

# Columns of the Azure LLM inference trace, of which a file needs the first; and their plain names.
COLUMNS = {
    "at": ("TIMESTAMP", "at_ms"),
    "prompt": ("ContextTokens", "prompt_tokens"),
    "output": ("GeneratedTokens", "output_tokens"),
}


class Arrival(NamedTuple):
    """One request that comes: None where a trace does not say how long it is."""

    at_ms: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None


def batch(n: int) -> list[Arrival]:
    """All `n` at once."""
    return [Arrival(0.0)] * n


def poisson(rate_per_s: float, n: int, seed: int) -> list[Arrival]:
    """`n` arrivals with independent, exponential gaps of mean `1 / rate_per_s`."""
    if not rate_per_s > 0:
        raise ParameterError(f"rate_per_s: {rate_per_s:g} is no rate; give one above 0.")
    gaps, now_ms, found = random.Random(seed), 0.0, []
    for _ in range(n):
        now_ms += 1000 * gaps.expovariate(rate_per_s)
        found.append(Arrival(now_ms))
    return found


def filling(rate_per_s: float, n: int, seed: int) -> list[Arrival]:
    """A Poisson pattern of `n` arrivals, stretched so that all come in exactly `n / rate_per_s`.

    Two rates of one seed then differ in nothing else.
    """
    came = poisson(rate_per_s, n, seed)
    stretch = 1000 * n / rate_per_s / came[-1].at_ms
    return [one._replace(at_ms=one.at_ms * stretch) for one in came]


def trace(path: Path) -> list[Arrival]:
    """The rows of a CSV file, by their times: TIMESTAMP (a date and time) or at_ms, and lengths.

    Raises `ParameterError` for a file without such a column, a row that cannot be read, or no row.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ParameterError(f"{path.name}: cannot be read as CSV ({error}).") from None
    held = rows[0].keys() if rows else ()
    names = {key: next((n for n in known if n in held), None) for key, known in COLUMNS.items()}
    if not names["at"]:
        raise ParameterError(f"{path.name}: needs rows and a column TIMESTAMP or at_ms.")
    found = []
    for number, row in enumerate(rows, 2):
        try:
            lengths = (int(row[n]) if (n := names[key]) else None for key in ("prompt", "output"))
            found.append(Arrival(_ms(row[names["at"]]), *lengths))
        except (TypeError, ValueError):
            raise ParameterError(f"{path.name}, line {number}: not a time and lengths.") from None
    first = min(arrival.at_ms for arrival in found)
    return sorted(arrival._replace(at_ms=arrival.at_ms - first) for arrival in found)


def _ms(text: str) -> float:
    """Of a number of milliseconds, or of a date and time whose last digits may be sub-micro."""
    try:
        return float(text)
    except ValueError:
        whole, _, part = text.strip().partition(".")
        seconds = datetime.fromisoformat(whole).timestamp() + float(f"0.{part or 0}")
        return 1000 * seconds
