"""FAULTS.md says what happens, since each of its faults is made to happen again here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import faults


def committed() -> dict[str, list[str]]:
    """The rows of FAULTS.md by their fault, without what the moment's clock said."""
    lines = [
        line.strip("| ") for line in faults.TARGET.read_text("utf-8").splitlines() if "|" in line
    ]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: row[1:4] for row in cells}


def compared(found: list[faults.Row], first: int = 1) -> None:
    """Each row from its cell `first` on is as committed, but for the time it took."""
    known = committed()
    for row in found:
        wanted = known[row.fault][first - 1 :]
        assert row.cells()[first:4] == wanted, f"{row.fault}: run benchmarks/faults.py"


def test_every_fault_ends_as_the_table_says() -> None:
    found = faults.faults()
    compared(found)
    assert len(found) >= 30
    for row in found:
        assert "127.0.0.1" not in row.seen and "10.66.77.88" not in row.seen
        if row.measured_s is not None:
            allowed_s = max(faults.LIMITS.values()) if "after" in row.noticed else 0.0
            assert row.measured_s < allowed_s + 5, row.fault
    lost = [row.fault for row in found if f"{faults.PROMPTS} of {faults.PROMPTS}" not in row.kept]
    assert lost == ["HTTP 400", "restarted with another model"]


@pytest.mark.slow
def test_real_engines_that_are_struck_end_as_the_table_says() -> None:
    *found, paused = faults.real_engines(pause_s=2.0)
    # Whether a killed engine's connection breaks or is refused is a matter of the moment.
    compared(found, first=2)
    # One that goes on in time, here sooner than after a minute, costs its time and nothing else.
    assert paused.measured_s is not None and paused.measured_s >= 1.9
    assert paused.kept == f"{faults.PROMPTS} of {faults.PROMPTS} prompts answered, all rows"
