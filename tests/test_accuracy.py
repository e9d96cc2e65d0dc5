"""What the instrument says of its own error, held against its aims."""

from test_tables import pool_report

from poclib.reading.reading import of
from poclib.records import Ruler, RulerRow
from poclib.showing import accuracy


def test_the_ruler_is_held_against_its_aims() -> None:
    row = {"quantity": "ttft_ms", "delay_ms": 5, "round_trip_ms": 0, "keep_alive": True, "n": 80}
    alone = RulerRow(in_flight=1, bias_ms=0.5, p95_ms=2.0, **row)
    at_once = RulerRow(in_flight=64, bias_ms=-1.0, p95_ms=9.0, **row)
    said = accuracy.ruler_finding(Ruler(created="2026-11-24", rows=[alone, at_once]))
    assert "0.50 ms at the median (the aim of 0.5 ms is met)" in said
    assert "2.00 ms in 95 % of requests (the aim of 2 ms is met)" in said
    assert "the bias is 1.00 ms (the aim of under 1 ms is not met)" in said


def test_the_check_of_the_instrument_in_words() -> None:
    rows = [
        RulerRow(
            quantity=quantity, in_flight=at_once, delay_ms=25, round_trip_ms=0, keep_alive=True,
            n=80, bias_ms=bias, p95_ms=p95,
        )
        for quantity, at_once, bias, p95 in (
            ("ttft_ms", 1, 0.4, 1.5), ("ttft_ms", 64, 0.7, 9.0), ("over_ms", 1, 0.6, 2.0),
        )
    ]  # fmt: skip
    found = Ruler(created="2026-11-24T00:00:00Z", cores=2, rows=rows)
    said = accuracy.ruler_finding(found)
    assert "within 0.40 ms at the median (the aim of 0.5 ms is met) and 1.50 ms in 95 %" in said
    assert "with 64 at once the bias is 0.70 ms (the aim of under 1 ms is met)" in said
    late = found.model_copy(update={"rows": [rows[0].model_copy(update={"bias_ms": 0.6})]})
    assert "the aim of 0.5 ms is not met) and 1.50 ms" in accuracy.ruler_finding(late)
    grid = accuracy.ruler_grid(found).splitlines()
    assert [cell.strip() for cell in grid[2].split("|")[2:4]] == ["0.40 (1.50)", "0.60 (2.00)"]
    assert grid[3].split("|")[3].strip() == "-"
    assert accuracy.title_ruler(found) == "Time to first token: off by 0.40 to 0.70 ms (medians)"
    assert accuracy.ruler_provenance(found).startswith("2026-11-24 · 2 cores · 80 requests")
    report = pool_report(ruler=found.model_dump())
    before = accuracy.checks_before_runs([report], [of(report).headline])
    assert "| 2.0 ms " in before.splitlines()[2]
