"""What a run sends: its prompts with their marks, and how large a report of them would be.

Knows texts and numbers; sends nothing. Imports `errors`, `records` and `report`.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from . import report
from .errors import ParameterError
from .parameters import Parameters
from .records import Prompt

# Sizes in a report's file: of a row without its tokens, and of each token's time and text.
ROW_BYTES, TOKEN_BYTES = 1100, 14
MAX_CHARACTERS = 32 * 2**20  # of a file of prompts
MARK_LETTERS = 6
MARKS = len(ascii_lowercase) ** MARK_LETTERS


def texts(prompts: int | list[str] | str) -> list[str]:
    """The prompts: the first n built-in ones (again and again), a list, or those of a file.

    A file holds one on each line that is not blank; a .csv or .tsv in its column headed `prompt`,
    or its only one; a .jsonl or .json as texts, or as objects with a `prompt`. Raises
    `ParameterError` for a file that cannot be read or holds none.
    """
    if isinstance(prompts, str):
        prompts = [text.strip() for text in _in_file(Path(prompts)) if text.strip()]
    if isinstance(prompts, list):
        if not prompts or not all(text.strip() for text in prompts):
            raise ParameterError(
                "prompts: there is none, or an empty one; give a number, a list or a file."
            )
        return prompts
    built_in = resources.files(__package__).joinpath("prompts.txt").read_text("utf-8").splitlines()
    return [built_in[i % len(built_in)] for i in range(prompts)]


def _in_file(path: Path) -> list[str]:
    """The texts of a file in any form that editors and spreadsheets save them in."""
    text, kind = _read(path), path.suffix.lower()
    try:
        if kind in (".csv", ".tsv"):
            return _column(text, "\t" if kind == ".tsv" else ",;\t")
        if kind == ".json":
            if not isinstance(rows := json.loads(text), list):
                raise TypeError
            return [_prompt(row) for row in rows]
        # Not splitlines: to it a form feed, or a Unicode separator within a text, is an end, too.
        lines = re.split(r"\r\n|\n|\r", text)
        if kind == ".jsonl":
            return [_prompt(json.loads(line)) for line in lines if line.strip()]
        return lines
    except (csv.Error, KeyError, RecursionError, TypeError, ValueError):
        raise ParameterError(
            f"prompts: the {kind} file is not one of prompts: a .csv or .tsv needs a column headed "
            'prompt or no other; a .json or .jsonl needs texts, or objects like {"prompt": "…"}.'
        ) from None


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # a device, a pipe: it may never end
            raise OSError
        with path.open("rb") as file:
            data = file.read(4 * MAX_CHARACTERS + 1)  # as many bytes as they can take
        if len(data) > 4 * MAX_CHARACTERS:
            text = " " * len(data)
        elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            text = data.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError
    except (OSError, ValueError):
        raise ParameterError(
            f"prompts: cannot read {str(path)[:200]!r} as a text file; is it there, and UTF-8?"
        ) from None
    if len(text) > MAX_CHARACTERS:
        raise ParameterError(
            f"prompts: the file has more than {MAX_CHARACTERS // 2**20} million characters; "
            "take fewer or shorter ones."
        )
    return text


def _column(text: str, separators: str) -> list[str]:
    """A table's column headed `prompt`, whatever parts its columns, or its only column."""
    tables = [
        [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
        for separator in separators
    ]
    for head, *rows in filter(None, tables):
        if "prompt" in (named := [cell.strip().lower() for cell in head]):
            at = named.index("prompt")
            return [row[at] for row in rows if len(row) > at]
    if any(len(row) > 1 for row in tables[0]):
        raise ValueError
    return [row[0] for row in tables[0]]


def _prompt(row: Any) -> str:
    text = row["prompt"] if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise TypeError
    return text


def prompts(texts: Sequence[str], count: int, salt: str, first_mark: int | None) -> list[Prompt]:
    """`count` prompts of the texts in turn, all with one salt.

    With `first_mark` each text begins with a mark, numbered from there on.
    """
    chosen = [texts[i % len(texts)] for i in range(count)]
    if first_mark is not None:
        chosen = [f"{mark(first_mark + i)} {text}" for i, text in enumerate(chosen)]
    return [Prompt(i, text, salt) for i, text in enumerate(chosen)]


def mark(number: int) -> str:
    """Six letters that make a text's beginning unlike that of any other number up to MARKS.

    Servers keep the work on a text's beginning and reuse it for the next text that begins alike.
    Single letters with spaces are a token each in the usual vocabularies, so every mark is equally
    long; the first letter changes from one number to the next, so that neighbours share nothing.
    """
    letters = []
    for _ in range(MARK_LETTERS):
        number, letter = divmod(number, len(ascii_lowercase))
        letters.append(ascii_lowercase[letter])
    return " ".join(letters)


def sha256(text: str) -> str:
    """What a report holds of a prompt whose text it must not hold."""
    return hashlib.sha256(text.encode()).hexdigest()


def row_bytes(parameters: Parameters) -> int:
    """About what one request takes in a report's file."""
    p = parameters
    return ROW_BYTES + (TOKEN_BYTES * p.max_tokens if p.stream or p.store_text else 0)


def check_size(parameters: Parameters, requests: int) -> None:
    """Raise `ParameterError` where the report would be larger than one that is read."""
    size = requests * row_bytes(parameters)
    if size > report.MAX_BYTES:
        raise ParameterError(
            f"{requests:,} requests make a report of about {size / 2**20:,.0f} MiB, and one of "
            f"over {report.MAX_BYTES // 2**20} MiB is not read; use fewer rounds or prompts, or "
            "stream: false."
        )
