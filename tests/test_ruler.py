"""The instrument against a server of known behaviour, and the arithmetic of its errors by hand."""

import asyncio
from pathlib import Path

import pytest

from poclib.errors import EngineError, ReportError
from poclib.measure import ruler
from poclib.measure.ruler import Case
from poclib.records import Arm, Probe, Request, Ruler


def answered(start: float, error: float) -> Request:
    """The server took 25 + 35 ms by its own clock; we saw its first token `error` later."""
    first = start + 25 + error
    return Request.model_validate(
        {
            "prompt": 0,
            "provider": "known",
            "wall_ms": 60 + error,
            "marks": {"start_ms": start, "first_token_ms": first, "end_ms": start + 60 + error},
            "server": {"prompt_ms": 25, "generation_ms": 35, "total_ms": 60},
            "token_ms": [first, first + 35.7],
        }
    )


def test_an_error_is_what_was_measured_minus_what_is_true() -> None:
    rows = [answered(0, 1), answered(70, 2), answered(140, 6)]
    arm = Arm(arm="strategy", strategy="shared-queue", requests=rows)
    probe = Probe(provider="known", at_ms=0, round_trip_ms=1, wire_ms=0.25)
    found = {row.quantity: row for row in ruler.compared(Case(3), arm, [probe])}
    assert found["ttft_ms"].bias_ms == pytest.approx(2) and found["ttft_ms"].p95_ms is None
    assert found["over_ms"].bias_ms == pytest.approx(2)
    assert found["inter_token_ms"].bias_ms == pytest.approx(0.7)
    assert found["network_ms"].bias_ms == 0.25
    # From 0 to 206, of which 3 x 60 are true.
    assert found["makespan_ms"].bias_ms == pytest.approx(26 / 3)
    assert found["stub"].bias_ms == 0


def test_a_failed_request_of_its_own_ends_the_check() -> None:
    failed = Request(prompt=0, provider="known", outcome="failed", error="gone")
    arm = Arm(arm="strategy", strategy="shared-queue", requests=[failed])
    with pytest.raises(EngineError, match="gone"):
        ruler.compared(Case(1), arm, [])


@pytest.mark.parametrize(
    "case",
    [
        Case(3, delay_ms=2, tokens=3, gap_ms=1),
        Case(6, in_flight=3, delay_ms=2, tokens=2, gap_ms=1, keep_alive=False),
        Case(2, delay_ms=2, tokens=2, round_trip_ms=10),
    ],
)
def test_the_whole_instrument_sees_the_known_server(case: Case) -> None:
    """Whatever the machine's speed, nothing is seen before it happened."""
    rows = {row.quantity: row for row in ruler.run([case]).rows}
    assert rows["ttft_ms"].n == rows["over_ms"].n == case.count
    assert rows["inter_token_ms"].n == case.count
    for quantity in ("ttft_ms", "over_ms", "network_ms", "stub"):
        assert rows[quantity].bias_ms >= -0.001, quantity
    assert ("makespan_ms" in rows) == (case.in_flight == 1)


def test_a_check_is_kept_and_read_back(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="poc ruler"):
        ruler.load(tmp_path)
    found = ruler.run([Case(2, delay_ms=1, tokens=1)])
    ruler.save(found, tmp_path)
    assert ruler.load(tmp_path) == found == ruler.obtain(False, tmp_path)


def test_a_notebook_may_have_it_checked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a running loop too, as a notebook's kernel has one."""
    monkeypatch.setattr(ruler.run, "__defaults__", ((Case(2, delay_ms=1, tokens=1),),))

    async def notebook() -> Ruler:
        return ruler.obtain(True, tmp_path)

    found = asyncio.run(notebook())
    assert ruler.load(tmp_path) == found and {row.n for row in found.rows} >= {2}


def test_a_connect_is_told_apart_and_not_counted_twice() -> None:
    late = answered(0, 5)
    marks = late.marks.model_copy(update={"connect_start_ms": 0.5, "connected_ms": 3.5})
    arm = Arm(arm="strategy", strategy="x", requests=[late.model_copy(update={"marks": marks})])
    found = {row.quantity: row.bias_ms for row in ruler.compared(Case(1), arm, [])}
    assert (found["connect_ms"], found["ttft_ms"], found["over_ms"]) == pytest.approx((3, 2, 2))
