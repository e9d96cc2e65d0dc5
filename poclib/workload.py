"""What a run sends: its prompts with their marks, and how large a report of them would be.

Knows texts and numbers; sends nothing. Imports `errors`, `records` and `report`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import ascii_lowercase

from . import report
from .errors import ParameterError
from .records import Parameters, Prompt

# Sizes in a report's file: of a row without its tokens, and of each token's time and text.
ROW_BYTES, TOKEN_BYTES = 1100, 14
MAX_CHARACTERS = 32 * 2**20  # of a file of prompts
MARK_LETTERS = 6
MARKS = len(ascii_lowercase) ** MARK_LETTERS


def texts(prompts: int | list[str] | str) -> list[str]:
    """The prompts: the first n built-in ones (again and again), a list, or a file's lines.

    Raises `ParameterError` for a file that cannot be read or holds none.
    """
    if isinstance(prompts, str):
        try:
            if not Path(prompts).is_file():  # a device, a pipe: it may never end
                raise OSError
            with Path(prompts).open(encoding="utf-8") as file:
                found = file.read(MAX_CHARACTERS + 1)
        except (OSError, ValueError):
            shown = repr(prompts[:200])
            raise ParameterError(f"prompts: cannot read {shown} as a text file.") from None
        if len(found) > MAX_CHARACTERS:
            raise ParameterError(
                f"prompts: the file has more than {MAX_CHARACTERS // 2**20} million characters; "
                "take fewer or shorter ones."
            )
        prompts = [line.strip() for line in found.splitlines() if line.strip()]
    if isinstance(prompts, list):
        if not prompts:
            raise ParameterError("prompts: there is none; give a number, a list or a file.")
        return prompts
    built_in = resources.files(__package__).joinpath("prompts.txt").read_text("utf-8").splitlines()
    return [built_in[i % len(built_in)] for i in range(prompts)]


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
