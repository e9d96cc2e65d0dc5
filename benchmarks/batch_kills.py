"""Have prompts answered by the embedded pool, kill that again and again, and count each prompt.

    python benchmarks/batch_kills.py [PROMPTS] [KILLS] [MAX_TOKENS]

PROMPTS (2000) prompts, each with a number of its own, go through `poc batch`, which is ended by
SIGKILL, with its engines, KILLS (5) times at a random moment of its answering, and run again. At
the end every prompt must have one answer, in order, and none that was answered before a kill may
have another one after it. Prints how long all took, the memory that the command used at its most,
and what the last session said; exit code 1 where anything is lost or doubled.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


def kept(part: Path) -> dict[int, str]:
    """What was answered, by number; read from a copy, since the part heals itself when opened."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        for tail in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{copy}{tail}").write_bytes(Path(f"{part}{tail}").read_bytes())
        with contextlib.closing(sqlite3.connect(copy)) as db:
            rows = db.execute("select number, known from prompts where done").fetchall()
    return {number: json.loads(known)["answer"] for number, known in rows}


def main(prompts: int = 2000, kills: int = 5, max_tokens: int = 4) -> int:
    with tempfile.TemporaryDirectory() as folder:
        asked, target = Path(folder) / "prompts.csv", Path(folder) / "answers.csv"
        part = target.with_name("answers.csv.part")
        lines = [
            f"{number},Continue the series: {number} {number + 1}" for number in range(prompts)
        ]
        asked.write_text("\n".join(["id,prompt", *lines]) + "\n")
        command = [sys.executable, "-m", "poclib", "batch", str(asked), "-o", str(target)]
        command += ["--params", str(ROOT / "params" / "embedded.yaml")]
        command += ["--set", f"max_tokens={max_tokens}"]
        answers, wrong, most_bytes, begun_s = dict[int, str](), 0, 0, time.monotonic()
        for left in range(kills, -1, -1):
            running = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
            ends_s = random.uniform(0.1, 0.9) * (prompts - len(answers)) / 16 / (left + 1)
            first_s = None
            while running.poll() is None:
                with contextlib.suppress(psutil.Error):
                    most_bytes = max(most_bytes, psutil.Process(running.pid).memory_info().rss)
                with contextlib.suppress(sqlite3.Error):  # it was just being written
                    if first_s is None and part.exists() and len(kept(part)) > len(answers):
                        first_s = time.monotonic()
                if left and first_s and time.monotonic() - first_s > ends_s:
                    os.killpg(running.pid, signal.SIGKILL)
                    break
                time.sleep(0.2)
            told, _ = running.communicate()
            if left and running.returncode == 0:
                print("it was done before it could be killed")
                return 1
            if left:
                now = kept(part)
                wrong += sum(now.get(number) != answer for number, answer in answers.items())
                print(f"killed after {len(now) - len(answers)} more answers: {len(now)} are kept")
                answers = now
        rows = list(csv.DictReader(target.open(newline="")))
        wrong += [row["id"] for row in rows] != [str(number) for number in range(prompts)]
        wrong += sum(bool(row["error"]) for row in rows)
        wrong += sum(rows[number]["answer"] != answer for number, answer in answers.items())
        print("\n".join(told.splitlines()[-2:]))
        took_s = time.monotonic() - begun_s
        print(f"{len(rows)} rows, {wrong} wrong, {kills} kills, {took_s:.0f} s in all", end="; ")
        print(
            f"the command used {most_bytes / 2**20:.0f} MiB at its most; part left: {part.exists()}"
        )
        return int(bool(wrong) or len(rows) != prompts or part.exists())


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
