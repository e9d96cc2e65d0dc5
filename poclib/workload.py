"""What a run sends: its prompts with their marks, and how large a report of them would be."""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import ascii_lowercase

from . import report
from .errors import ParameterError
from .parameters import Parameters
from .records import Prompt

MAX_BYTES = 64 * 2**20  # of a file of prompts
# Of a request without its tokens in a report's file, and of each token's time and text.
ROW_BYTES, TOKEN_BYTES = 1100, 14
MARK_LETTERS = 6
MARKS = len(ascii_lowercase) ** MARK_LETTERS


def texts(prompts: int | list[str] | str) -> list[str]:
    """The prompts: the first n built-in ones (again and again), a list, or those of a file.

    A file holds one on each line that is not blank; a .csv or .tsv in its column headed `prompt`,
    or its only one; a .jsonl or .json as texts, or as objects with a `prompt`. Raises
    `ParameterError` for a file that cannot be read or holds none.
    """
    if isinstance(prompts, int):
        built_in = resources.files(__package__).joinpath("prompts.txt").read_text("utf-8")
        lines = built_in.splitlines()
        return [lines[i % len(lines)] for i in range(prompts)]
    if isinstance(prompts, str):
        prompts = [text.strip() for text in _in_file(Path(prompts)) if text.strip()]
    if not prompts or not all(text.strip() for text in prompts):
        raise ParameterError(
            "prompts: there is none, or an empty one; give a number, a list or a file."
        )
    return prompts


def _in_file(path: Path) -> list[str]:
    text, kind = _read(path), path.suffix.lower()
    # Not splitlines: to it a form feed, or a Unicode separator within a text, is an end, too.
    lines = re.split(r"\r\n|\n|\r", text)
    try:
        if kind in (".csv", ".tsv"):
            return _column(text, "\t" if kind == ".tsv" else ",;\t")
        if kind not in (".json", ".jsonl"):
            return lines
        whole = kind == ".json"
        rows = json.loads(text) if whole else [json.loads(line) for line in lines if line.strip()]
        found = [row["prompt"] if isinstance(row, dict) else row for row in rows]
        if not isinstance(rows, list) or not all(isinstance(text, str) for text in found):
            raise TypeError
        return found
    except (csv.Error, LookupError, RecursionError, TypeError, ValueError):
        raise ParameterError(
            f"prompts: the {kind} file is not one of prompts: a .csv or .tsv needs a column headed "
            'prompt or no other; a .json or .jsonl needs texts, or objects like {"prompt": "…"}.'
        ) from None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= MAX_BYTES:  # no device: it may never end
            data = path.read_bytes()
            wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            text = data.decode("utf-16" if wide else "utf-8-sig")
            if "\0" not in text:
                return text
    raise ParameterError(
        f"prompts: cannot read {str(path)[:200]!r} as a text file; is it there, in UTF-8, and of "
        f"at most {MAX_BYTES // 2**20} MiB?"
    )


def _column(text: str, separators: str) -> list[str]:
    """A table's column headed `prompt`, whatever parts its columns, or its only column."""
    for separator in separators:
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        for head in table.fieldnames or []:
            if head.strip().lower() == "prompt":
                return [row[head] or "" for row in table]
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separators[0]))
    if any(len(row) > 1 for row in rows):
        raise ValueError
    return [row[0] for row in rows if row]


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

    Servers reuse their work on a text for the next one that begins alike. Single letters with
    spaces are a token each in the usual vocabularies, so every mark is equally long; the first
    letter changes from one number to the next, so that neighbours share nothing.
    """
    letters = []
    for _ in range(MARK_LETTERS):
        number, letter = divmod(number, len(ascii_lowercase))
        letters.append(ascii_lowercase[letter])
    return " ".join(letters)


def sha256(text: str) -> str:
    """What a report holds of a prompt whose text it must not hold."""
    return hashlib.sha256(text.encode()).hexdigest()


def check_size(parameters: Parameters, requests: int) -> None:
    """Raise `ParameterError` where the report would be larger than one that is read."""
    tokens = parameters.max_tokens if parameters.stream or parameters.store_text else 0
    size = requests * (ROW_BYTES + TOKEN_BYTES * tokens)
    if size > report.MAX_BYTES:
        raise ParameterError(
            f"{requests:,} requests make a report of about {size / 2**20:,.0f} MiB, and one of "
            f"over {report.MAX_BYTES // 2**20} MiB is not read; use fewer rounds or prompts, or "
            "stream: false."
        )
