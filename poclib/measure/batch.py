"""A person's own prompts, each answered once by a pool; however often it is stopped, none twice.

Here, and only here, texts are kept on purpose: in ANSWERS.part, a database of prompts and answers,
each answer on its way to disk before the next request is sent. It becomes ANSWERS at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from pathlib import Path
from typing import Any

from .. import batchfiles, pacing
from ..errors import ParameterError, ReportError
from ..parameters import Parameters
from ..progress import Progress, quiet
from ..records import Prompt, Request
from ..report import explained
from . import experiment, forecast
from .calibration import Measurable
from .dispatch import run_arm
from .run import Run
from .strategies import by_name

LONG = {"length", "limit", "max_tokens", "model_length"}  # endings of an answer that was cut
KEPT = ("answer", "error", "error_kind", "provider", "prompt_tokens", "wall_ms")
# A kill loses nothing; a power failure may lose the last answers. Nobody else may open it.
TABLES = """
pragma locking_mode = exclusive; pragma journal_mode = wal; pragma synchronous = normal;
create table if not exists head (digest text);
create table if not exists prompts
    (number integer primary key, custom_id text unique, asked text, known text, done integer);
"""


@dataclass
class Outcome:
    """What a batch came to: `before` were answered by earlier sessions, `shares` by this one.

    `alone_s` is how long these would have taken the `fastest` provider alone, one at a time: an
    estimate from its `source`: own answers, where it had one at a time, else its calibration.
    """

    prompts: int = 0
    before: int = 0
    shares: Counter[str] = field(default_factory=Counter)
    walls_ms: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    took_s: float = 0.0
    failed: int = 0
    fastest: str = ""
    alone_s: float = 0.0
    source: str = "its own answers here"


class Book(Sequence[Prompt]):
    """The prompts of a file that are left to be answered, and all answers; on disk, not in memory.

    A prompt's index is its place among those left. Raises `ParameterError` where one is empty, has
    another's custom_id or is to be asked in another way, and where the answers are to others.
    """

    def __init__(
        self, db: sqlite3.Connection, rows: Iterable[batchfiles.Row], asked: str, again: bool
    ) -> None:
        self.dropped: Counter[str] = Counter()  # how many prompts ask for what nobody carries
        self.api: str | None = None
        self._db = db
        self._db.executescript(TABLES)
        self._db.execute("begin")
        new = again or not self._one("select count(*) from prompts where done")
        for table in ("head", "prompts") if new else ():
            self._db.execute(f"delete from {table}")
        digest = hashlib.sha256(asked.encode())
        for number, row in enumerate(rows):
            problem = "its prompt is empty; fill it in or remove it" if not row.text.strip() else ""
            if number and row.api != self.api:
                problem = "it is to be asked unlike those before it; use two files"
            blob = json.dumps([row.fields, row.text, row.messages, row.options or {}])
            digest.update(blob.encode())
            values = number, row.fields["custom_id"] if row.api else None, blob
            insert = "insert or ignore into prompts values (?, ?, ?, null, 0)"
            if new and not self._db.execute(insert, values).rowcount:
                problem = "its custom_id stands in an earlier line, too"
            if problem:
                raise ParameterError(f"prompts: line {row.line}: {problem}.")
            self.api = row.api
            self.dropped.update(row.dropped)
        if new:
            self._db.execute("insert into head values (?)", [digest.hexdigest()])
        self._db.execute("commit")
        if self._one("select digest from head") != digest.hexdigest():
            raise ParameterError(
                "ANSWERS.part is of other prompts, or of another model, length or seed; name "
                "another file for these answers, or start anew with --again."
            )
        self.size: int = self._one("select count(*) from prompts")
        if not self.size:
            raise ParameterError("prompts: there is none in the file.")
        left = self._db.execute("select number from prompts where not done order by number")
        self.left = [number for (number,) in left]

    def _one(self, query: str, *values: int) -> Any:
        return self._db.execute(query, values).fetchone()[0]

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: Any) -> Any:
        blob = self._one("select asked from prompts where number = ?", self.left[index])
        _, text, messages, options = json.loads(blob)
        return Prompt(index, text, messages=messages, options=options)

    def keep(self, row: Request, model: str | None) -> bool:
        """Keep how an attempt ended; False where there is an answer already."""
        known = {key: getattr(row, key) for key in KEPT}
        known |= {"created": int(time.time()), "model": model, "output_tokens": pacing.length(row)}
        known["wall_ms"] = row.wall_ms and round(row.wall_ms, 3)
        known["finish_reason"] = "length" if row.finish_reason in LONG else "stop"
        values = json.dumps(known), row.outcome == "ok", self.left[row.prompt]
        update = "update prompts set known = ?, done = ? where number = ? and not done"
        return self._db.execute(update, values).rowcount > 0

    def write(self, answers: Path, kind: str) -> int:
        """Put all in order and in its place, whole or not at all; returns how many failed."""
        partial = answers.with_name(f".{answers.name}.partial")
        lost = json.dumps(dict.fromkeys((*KEPT, *batchfiles.TOLD)) | {"error": "not answered"})
        select = "select asked, coalesce(known, ?) from prompts order by number"
        rows = (map(json.loads, row) for row in self._db.execute(select, [lost]))
        with explained(answers.name, "written"):
            try:
                with partial.open("w", encoding="utf-8", errors="replace", newline="") as file:
                    batchfiles.write(file, kind, ((asked[0], known) for asked, known in rows))
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(answers)
            finally:
                partial.unlink(missing_ok=True)
        return int(self._one("select count(*) from prompts where not done"))


class Batch(Run):
    """Prepared as a run is, by prompts of our own; then a person's are sent."""

    async def carry(
        self, book: Book, out: Outcome, show: Progress, tell: Callable[[str], None]
    ) -> None:
        """Answer what is left, and estimate what the fastest provider alone would have taken."""
        try:
            await self.describe()
            await self.prepare()
            begun_ms, models = self.clock(), {one.name: one.model for one in self.report.providers}

            def done(row: Request) -> None:
                if row.outcome == "cancelled" or not book.keep(row, models[row.provider]):
                    return
                if row.outcome == "ok":
                    out.shares[row.provider] += 1
                    out.walls_ms[row.provider] += round(row.wall_ms or 0)
                    out.tokens += pacing.length(row) or 0
                out.took_s, count = max(0.001, (self.clock() - begun_ms) / 1000), out.shares.total()
                pace = f"{count / out.took_s:,.1f} answers, {out.tokens / out.took_s:,.0f} tokens/s"
                show(pace, out.before + count, out.prompts)

            strategy = by_name(self.parameters.strategy)
            names = self.asked_by(strategy.name)
            senders = [self.senders[name] for name in names]
            limits, live = self._limits(strategy.name, names)
            rules = replace(self.rules, deadline_ms=inf, store_text=True)
            given = (strategy, book, senders, limits, self.expected_ms, self.clock, rules, done)
            await run_arm("strategy", *given, keep_rows=False, live=live, tell=tell)
            show("done", out.prompts, out.prompts)
        finally:
            await self.aclose()
        name = out.fastest = self.report.fastest or ""
        count = out.shares.total()
        if out.shares[name] and limits and set(limits.values()) == {1}:
            out.alone_s = count * out.walls_ms[name] / out.shares[name] / 1000
            return
        out.source, rows = "its calibration", forecast.calibrated(self.report.preparation)[name]
        tokens = sum(pacing.length(row) or 0 for row in rows)
        times = out.tokens / tokens if tokens and out.tokens else count / len(rows)
        out.alone_s = times * sum(row.wall_ms or 0.0 for row in rows) / 1000


def answer(
    parameters: Parameters,
    prompts: Path,
    answers: Path,
    column: str = "prompt",
    again: bool = False,
    progress: Progress = quiet,
    tell: Callable[[str], None] = print,
    pool: Sequence[Measurable] | None = None,
) -> Outcome:
    """Have every prompt in the file `prompts` answered into the file `answers`, or go on with it.

    What failed is a row with its reason; the same call tries only those once more. `again` begins
    anew. `tell` gets what a person should know before anything is sent. Raises any `PocError`.
    """
    kinds = [path.suffix.lower() for path in (prompts, answers)]
    kind, other = (kind if kind in batchfiles.KINDS else "" for kind in kinds)
    part = answers.with_name(f"{answers.name}.part")
    if kind != other:
        raise ParameterError(f"{answers.name}: answers are kept as prompts are: *{prompts.suffix}.")
    if not answers.parent.is_dir():
        raise ParameterError(f"{answers.name}: its folder is not there; make it first.")
    same = answers.resolve() == prompts.resolve()
    if answers.exists() and (same or not (again or part.exists())):
        raise ParameterError(
            f"{answers.name} is there already, and finished; name another file, or answer all its "
            "prompts anew with --again (never into the prompts' own file)."
        )
    p, out, finished, begun = parameters, Outcome(), False, part.exists()
    models = sorted({one.model or one.kind for one in p.providers})
    asked = json.dumps([column, p.max_tokens, p.seed, p.context_tokens, models])
    rows = batchfiles.rows(prompts, column, bodies=True)
    try:
        opened = sqlite3.connect(part, timeout=0, isolation_level=None, check_same_thread=False)
        with contextlib.closing(opened) as db:
            book = Book(db, rows, asked, again)
            for key, count in book.dropped.items():
                tell(f"{key} is not carried: {count:,} of {book.size:,} prompts ask for it.")
            out.prompts, out.before = book.size, book.size - len(book)
            if book.left:
                ways = [one.model_copy(update={"api": book.api or one.api}) for one in p.providers]
                few = min(len(book), 1000)  # a run would hold so many texts of its own
                wanted = p.model_copy(update={"providers": ways, "prompts": few})
                with experiment.open_pool(wanted, pool) as providers:
                    batch = Batch(wanted, providers)
                    experiment.on_own_loop(lambda: batch.carry(book, out, progress, tell))
            out.failed = book.write(answers, kind)
        finished = not out.failed
    except sqlite3.Error as error:
        raise ReportError(
            f"{part.name}: {error}; free the disk, or end the other command that writes it: the "
            "same one goes on from here."
        ) from None
    finally:
        if finished or not (begun or out.shares):
            part.unlink(missing_ok=True)
    return out
