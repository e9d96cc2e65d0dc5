"""What a run sends: its prompts with their marks, and how large a report of them would be."""

import contextlib
import hashlib
from collections.abc import Sequence
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from string import ascii_lowercase

from . import batchfiles, report
from .errors import ParameterError
from .parameters import Parameters
from .records import Prompt

MAX_BYTES = 64 * 2**20  # of a file of prompts
# Of a request without its tokens in a report's file, and of each token's time and text.
ROW_BYTES, TOKEN_BYTES = 1100, 14
MARK_LETTERS = 6
MARKS = len(ascii_lowercase) ** MARK_LETTERS


def texts(prompts: int | list[str] | str) -> list[str]:
    """The first n built-in prompts, in turn; a list; or a file's. Raises `ParameterError`."""
    if isinstance(prompts, int):
        built_in = resources.files(__package__).joinpath("prompts.txt").read_text("utf-8")
        return [*islice(cycle(built_in.splitlines()), prompts)]
    if isinstance(prompts, str):
        path = Path(prompts)
        with contextlib.suppress(OSError, ValueError):  # what cannot be read is told below
            if path.stat().st_size > MAX_BYTES:
                raise ParameterError(f"prompts: a file may be of at most {MAX_BYTES >> 20} MiB.")
        prompts = [row.text.strip() for row in batchfiles.rows(path) if row.text.strip()]
    if not prompts or not all(text.strip() for text in prompts):
        raise ParameterError(
            "prompts: there is none, or an empty one; give a number, list or file."
        )
    return prompts


def prompts(texts: Sequence[str], count: int, salt: str, first_mark: int | None) -> list[Prompt]:
    """`count` prompts of the texts in turn, all with one salt, marked from `first_mark` on."""
    marks = [f"{mark(first_mark + i)} " if first_mark is not None else "" for i in range(count)]
    return [Prompt(i, marks[i] + texts[i % len(texts)], salt) for i in range(count)]


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
