"""What an answer is made of: JSON objects, numbers that can be, a server's words of an error.

Knows no server and no provider: whatever came in is read, and nothing of it believed unchecked.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from ..records import Exchange

Json = dict[str, Any]
# What reading a body of an unforeseen shape raises; pydantic's own error is a ValueError.
SURPRISES = (AttributeError, KeyError, TypeError, ValueError, IndexError)
# No duration of one request is longer, in milliseconds: a day.
LONGEST_MS = 86_400_000
# Where servers put what they say of an error, the most telling first.
WORDS = ("error", "errors", "detail", "message", "msg", "reason", "type", "code")


def add(exchange: Exchange, thought: str | None, piece: str | None, here_ms: float | None) -> None:
    """Append what was thought or said. Half a surrogate pair, which no file holds, becomes `?`."""
    for text, texts, times_ms in (
        (thought, exchange.thoughts, exchange.thought_ms),
        (piece, exchange.pieces, exchange.token_ms),
    ):
        if text:
            texts.append(text.encode("utf-8", "replace").decode())
            if here_ms is not None:
                times_ms.append(here_ms)


def loaded(text: bytes) -> Any:
    """What JSON says, or else the text as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode("utf-8", "replace")


def words_of(body: Any, depth: int = 6) -> str:
    """What an error's body says, wherever it puts it; a web page's title."""
    if isinstance(body, list) and depth:
        return "; ".join(filter(None, (words_of(one, depth - 1) for one in body[:5])))
    if isinstance(body, dict) and depth:
        said = next(filter(None, (words_of(body.get(key), depth - 1) for key in WORDS)), "")
        where = body.get("loc")  # of a validation error
        return f"{'.'.join(map(str, where))}: {said}" if said and isinstance(where, list) else said
    if isinstance(body, str):
        page = body[:10_000] if body.lstrip().startswith("<") else ""
        title = re.search(r"<title[^>]*>([^<]*)", page, re.IGNORECASE)
        return html.unescape(title[1] if title else re.sub("<[^>]*>", " ", page)) or body
    return str(body) if isinstance(body, int | float) and not isinstance(body, bool) else ""


def wait_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for: seconds, or a date by the server's own clock."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    try:
        then, now = parsedate_to_datetime(value), datetime.now(UTC)
        if "date" in headers:
            now = parsedate_to_datetime(headers["date"])
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError, OverflowError):  # no date, or one without a zone
        return None


def part_of(event: Json, key: str) -> Json:
    """The object at `key`; empty where there is none."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def ms_of(part: Json, key: str, unit_ms: float = 1.0) -> float | None:
    """A duration in milliseconds; None where it is absent or cannot be one."""
    value: Any = part.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * unit_ms if number and 0 <= value <= LONGEST_MS / unit_ms else None


def count_of(part: Json, key: str) -> int | None:
    """A number of tokens or the like; None where it is absent or cannot be one."""
    value = part.get(key)
    return value if type(value) is int and 0 <= value <= 1_000_000_000 else None


def total(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def short(text: str) -> str:
    """Foreign text on one line, printable, cut at 200 characters. Raises `TypeError` if none."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())[:200]
