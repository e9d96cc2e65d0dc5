"""Memory stays flat while requests pass by; benchmarks/memory.py does it with a million."""

import sys
import tracemalloc
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import memory


def test_a_coordinator_keeps_no_row() -> None:
    """A list of the rows alone would hold over 2 KiB for each request: 6 MiB here."""
    tracemalloc.start()
    try:
        measured = memory.measured(3000)
    finally:
        tracemalloc.stop()
    assert memory.growth(measured)[1] < 0.5
    assert measured[-1][0] > 3000  # the failed attempts passed by too
