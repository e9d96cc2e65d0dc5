"""The coordinator killed for real at random moments; benchmarks/kills.py does it 100 times."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["12"], ["2", "--embedded"]], ids=["stubs", "real engines"])
def test_nothing_is_lost_doubled_or_corrupt_however_often_it_is_killed(words: list[str]) -> None:
    command = [sys.executable, SCRIPT, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{words[0]} kills" in done.stdout and "0 lost, 0 doubled, 0 corrupt" in done.stdout
