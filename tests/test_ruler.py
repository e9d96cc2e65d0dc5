"""The instrument against a server of known behaviour, and the arithmetic of its errors by hand."""

import asyncio
from pathlib import Path

import pytest

from poclib.errors import EngineError, ReportError
from poclib.measure import ruler
from poclib.measure.ruler import Case
from poclib.records import Arm, Probe, Request, RequestMarks, Ruler, ServerTimings


def answered(start: float, error: float, **marks: float) -> Request:
    """The server took 25 + 35 ms by its own clock; we saw its first token `error` later."""
    first, end = start + 25 + error, start + 60 + error
    return Request(
        prompt=0,
        provider="known",
        wall_ms=60 + error,
        marks=RequestMarks(start_ms=start, first_token_ms=first, end_ms=end, **marks),
        server=ServerTimings(prompt_ms=25, generation_ms=35, total_ms=60),
        token_ms=[first, first + 35.7],
    )


def biases(*rows: Request) -> dict[str, float]:
    arm = Arm(arm="strategy", strategy="shared-queue", requests=list(rows))
    probe = Probe(provider="known", at_ms=0, round_trip_ms=1, wire_ms=0.25)
    found = ruler.compared(Case(len(rows)), arm, [probe])
    assert all(row.p95_ms is None for row in found)  # of so few
    return {row.quantity: pytest.approx(row.bias_ms) for row in found}


def test_an_error_is_what_was_measured_minus_what_is_true() -> None:
    of_one = {"over_ms": 2, "inter_token_ms": 0.7, "network_ms": 0.25, "stub": 0}
    # From 0 to 206, of which 3 x 60 are true.
    three = biases(answered(0, 1), answered(70, 2), answered(140, 6))
    assert three == {"ttft_ms": 2, "makespan_ms": 26 / 3} | of_one
    # A connect is told apart and not counted twice.
    late = biases(answered(0, 5, connect_start_ms=0.5, connected_ms=3.5))
    assert late == {"connect_ms": 3, "ttft_ms": 2, "makespan_ms": 5} | of_one
    with pytest.raises(EngineError, match="gone"):
        biases(Request(prompt=0, provider="known", outcome="failed", error="gone"))
    with pytest.raises(EngineError, match="no times"):
        biases(answered(0, 1).model_copy(update={"marks": RequestMarks(start_ms=0, end_ms=61)}))


ANEW = Case(6, in_flight=3, delay_ms=2, tokens=2, gap_ms=1, keep_alive=False)
FAR = Case(2, delay_ms=2, tokens=2, round_trip_ms=10)


@pytest.mark.parametrize("case", [Case(3, delay_ms=2, tokens=3, gap_ms=1), ANEW, FAR])
def test_the_whole_instrument_sees_the_known_server(case: Case) -> None:
    """Whatever the machine's speed, nothing is seen before it happened."""
    rows = {row.quantity: row for row in ruler.run([case]).rows}
    assert rows["ttft_ms"].n == rows["over_ms"].n == rows["inter_token_ms"].n == case.count
    for quantity in ("ttft_ms", "over_ms", "network_ms", "stub"):
        assert rows[quantity].bias_ms >= -0.001, quantity
    assert ("makespan_ms" in rows) == (case.in_flight == 1)


def test_a_notebook_has_it_checked_anew_or_reads_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a running loop too, as a notebook's kernel has one."""
    monkeypatch.setattr(ruler.run, "__defaults__", ((Case(2, delay_ms=1, tokens=2),),))

    async def notebook(measure: bool) -> Ruler:
        return ruler.obtain(measure, tmp_path)

    with pytest.raises(ReportError, match="poc ruler"):
        asyncio.run(notebook(False))
    found = asyncio.run(notebook(True))
    assert asyncio.run(notebook(False)) == found and {row.n for row in found.rows} >= {2}
