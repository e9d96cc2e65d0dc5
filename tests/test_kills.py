"""The coordinator killed for real at random moments; benchmarks/kills.py does it 100 times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("words", [["12"], ["2", "--embedded"]], ids=["stubs", "real engines"])
def test_nothing_is_lost_doubled_or_corrupt_however_often_it_is_killed(words: list[str]) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "kills.py"
    done = subprocess.run(
        [sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{words[0]} kills" in done.stdout and "0 lost, 0 doubled, 0 corrupt" in done.stdout
