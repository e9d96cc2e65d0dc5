"""Charts are tested by what is drawn on them, not by their pixels."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from test_tables import PUBLISHED, changed, pool_report

from poclib.reading import phases, tables
from poclib.reading.reading import Reading, of, read
from poclib.records import Report, Ruler, RulerRow
from poclib.showing import charts, documents, style, words
from poclib.showing import format as notation
from poclib.stats import Ratio

REPORT = pool_report()
READING = of(REPORT)
HEADLINE = READING.headline


@pytest.fixture
def ax() -> Iterator[Axes]:
    with matplotlib.rc_context():
        charts.use_style()
        yield Figure().subplots()


def bars(ax: Axes, colour: str) -> list[Rectangle]:
    rectangles = [p for p in ax.patches if isinstance(p, Rectangle)]
    return [bar for bar in rectangles if to_hex(bar.get_facecolor()) == colour]


def title(ax: Axes) -> str:
    return ax.get_title(loc="left").replace("\n", " ")


def texts(ax: Axes) -> str:
    return "\n".join([title(ax), *(text.get_text() for text in ax.texts)])


def rows(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_matplotlib_is_loaded_only_when_something_is_drawn() -> None:
    code = "import sys, poclib.showing.curves; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_timeline_draws_every_request_where_it_was(ax: Axes) -> None:
    charts.timeline(ax, READING, round=0)
    generating = bars(ax, "#e69f00")
    assert len(generating) == len(ax.get_yticks()) == 8
    # The ideal is 8 / (1/200 + 1/300) = 960 ms.
    (ideal,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert list(ideal.get_xdata()) == [pytest.approx(960)] * 2 and "ideal 960 ms" in texts(ax)
    # By hand: round 0 starts at 5000; local's second request at +200 generates from +42 on,
    # for 200 - 42 - 0.5 ms.
    second = generating[1]
    assert (second.get_x(), second.get_width()) == pytest.approx((242, 157.5))
    assert rows(ax) == [f"#{i}" for i in (0, 2, 4, 6, 1, 3, 5, 7)]
    assert "local: no limit\n" in texts(ax) and "remote: no limit\n" in texts(ax)
    assert max(b.get_x() + b.get_width() for b in bars(ax, "#000000")) == pytest.approx(1200)
    waits = bars(ax, phases.WAITING)
    assert [bar.get_width() for bar in waits] == pytest.approx([20] * 6)  # the first two had none
    assert "8 of 8 requests drawn" in texts(ax) and ax.get_xlim()[0] == 0
    assert title(ax) == words.title_timeline(HEADLINE)


def test_the_timeline_says_what_it_leaves_out(ax: Axes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones by time are drawn, so that no provider is left out for its name."""
    failed = of(changed(REPORT, "strategy", outcome="failed"))
    charts.timeline(ax, failed, round=0)
    assert " failed" in texts(ax)
    monkeypatch.setattr(charts, "MOST_ROWS", 4)
    few = Figure().subplots()
    charts.timeline(few, failed, round=0)
    assert rows(few) == ["#0", "#2", "#1", "#3"]
    assert "round 1: 4 of 8 requests drawn" in texts(few)


def test_the_timeline_shows_the_round_that_its_title_speaks_of_and_its_capacity(ax: Axes) -> None:
    """Rounds last 1200, 1285.2, 1372.8, … ms; the third is the median, as the efficiency is."""
    data = REPORT.model_dump()
    for one in data["rounds"]:
        for arm in one["arms"]:
            arm["limits"] = {"local": 1, "remote": 3}
    data["providers"][1]["slots"] = 4
    charts.timeline(ax, of(Report.model_validate(data)))
    assert "round 3: 8 of 8" in texts(ax)
    assert max(b.get_x() + b.get_width() for b in bars(ax, "#000000")) == pytest.approx(1372.8)
    assert "local: one at a time\n" in texts(ax)
    assert "remote: up to 3 (4 slots in its server)" in texts(ax)


def test_the_breakdown_draws_the_headlines_own_numbers(ax: Axes) -> None:
    charts.breakdown(ax, HEADLINE)
    means = HEADLINE.segments_ms.values()
    for key, colour in [(p.key, p.colour) for p in phases.SEGMENTS]:
        widths = [bar.get_width() for bar in bars(ax, colour)]
        assert widths == pytest.approx([its[key] for its in means if key in its])
    assert rows(ax) == ["remote request", "local request"]
    assert "344 ms" in texts(ax) and ax.get_xlim()[0] == 0
    other = replace(HEADLINE, strategy="other", segments_ms={"local": {"answering_ms": 99.0}})
    both = Figure().subplots()
    charts.breakdown(both, HEADLINE, other)
    assert rows(both) == [
        *(f"serial-per-provider, {role}" for role in HEADLINE.segments_ms),
        "other, local",
    ]
    assert [bar.get_width() for bar in bars(both, phases.COLOURS["answering_ms"])] == [99.0]


def test_the_anatomy_lays_one_request_out_phase_by_phase(ax: Axes) -> None:
    row = tables.typical(READING)
    charts.anatomy(ax, row | {"token_ms": [42.0, 100.0, 150.0]}, HEADLINE)
    names = ["waiting for a slot", "connecting", "sending", "to first byte", "to first token"]
    assert rows(ax) == [*names, "generating", "our own overhead", "wall time"]
    # Sent after 1 ms, first byte at 40, first token at 42; from there to the last byte.
    (generating,) = bars(ax, phases.COLOURS["generating_ms"])
    assert generating.get_x() == pytest.approx(42)
    assert generating.get_width() == pytest.approx(row["wall_ms"] - 42.5)
    waiting, first_token = bars(ax, phases.COLOURS["first_token_ms"])
    assert (waiting.get_x(), waiting.get_width()) == pytest.approx((1, 39))
    assert (first_token.get_x(), first_token.get_width()) == pytest.approx((40, 2))
    (tokens,) = ax.collections
    assert len(tokens.get_paths()) == 3
    (waited,) = bars(ax, phases.WAITING)
    assert (waited.get_x(), waited.get_width()) == pytest.approx((-20, 20))
    assert row["role"] == "remote" and "22.0 ms outside" in title(ax)

    # What only the server can tell is centred; a wait of 15 times the request is drawn cut.
    told = {"wall_ms": 342.0, "prompt_ms": 20.0, "generation_ms": 300.0, "over_ms": 22.0}
    more = Figure().subplots()
    charts.anatomy(more, row | told | {"queued_ms": 5000.0}, HEADLINE)
    assert rows(more)[-3:] == ["server: prompt", "server: generation", "over"]
    outside = bars(more, phases.COLOURS["outside_ms"])
    assert [bar.get_width() for bar in outside] == pytest.approx([11, 11])
    assert bars(more, phases.COLOURS["first_token_ms"])[-1].get_x() == pytest.approx(11)
    assert "… 5,000 ms" in texts(more) and more.get_xlim()[0] > -100


def test_ratios_are_drawn_evenly_around_one(ax: Axes) -> None:
    bad = replace(HEADLINE, strategy="all-parallel", overhead_ratio=Ratio(6.47, 6.0, 7.2, 5))
    predicted = {"serial-per-provider": 3.1, "no-such": 50.0}
    charts.ratios(ax, [bad, HEADLINE, read(PUBLISHED).headline], predicted)
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    assert low * high == pytest.approx(1) and high > 7.2
    assert rows(ax)[-1] == "all-parallel"
    intervals = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert (6.0, 7.2) in intervals and (1, 1) in intervals
    assert len(intervals) == 3  # two strategies with one, and the line at 1
    (band,) = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert (band.get_x(), band.get_width()) == pytest.approx((0.95, 0.1))
    assert "0.87 (1 round, so no interval)" in texts(ax) and "6.47" in texts(ax)
    assert "no practical difference (0.95 to 1.05); triangle: predicted" in ax.get_xlabel()
    triangles = [x for line in ax.lines if line.get_marker() == "^" for x in line.get_xdata()]
    assert set(triangles) == {3.1}


def test_a_large_report_is_drawn_thinned_and_says_so(
    ax: Axes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 80 answers every fifth is drawn, from the slowest on: n and both ends stay."""
    charts.ecdf(ax, READING)
    whole, thin = ax.get_lines(), Figure().subplots()
    assert "drawn" not in texts(ax)
    monkeypatch.setattr(charts, "MOST_POINTS", 20)
    charts.ecdf(thin, READING)
    assert "16 of 80 drawn" in texts(thin)
    for line, fewer in zip(whole, thin.get_lines(), strict=True):
        assert len(fewer.get_xdata()) == len(line.get_xdata()) // 5 + 1  # type: ignore[arg-type]
        assert max(fewer.get_xdata()) == max(line.get_xdata())  # type: ignore[type-var]
        assert fewer.get_label() == line.get_label()


def test_the_ecdf_rises_to_all_for_both_arms(ax: Axes) -> None:
    charts.ecdf(ax, READING)
    walls = READING.requests.query("round >= 0").groupby("arm")["wall_ms"]
    assert len(ax.lines) == 2
    for line in ax.lines:
        x, y = line.get_xdata(), line.get_ydata()
        assert (y[0], y[-1]) == (0, 1) and len(x) == 41
    assert [max(line.get_xdata()) for line in ax.lines] == pytest.approx(walls.max().tolist())
    legend = ax.get_legend()
    told = [text.get_text() for text in legend.get_texts()] if legend else []
    assert told == ["baseline (n = 40)", "serial-per-provider (n = 40)"]


def test_every_round_is_a_point_beside_the_interval(ax: Axes) -> None:
    charts.round_ratios(ax, READING)
    points = next(line for line in ax.lines if len(line.get_xdata()) == 5)
    assert list(points.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(points.get_ydata()) == pytest.approx([0.75, 0.765, 0.78, 0.795, 0.81])
    ends = [HEADLINE.overhead_ratio.low, HEADLINE.overhead_ratio.high]
    assert any(list(line.get_ydata()) == pytest.approx(ends) for line in ax.lines)
    assert ax.get_ylim()[0] == 0 and "median 0.78" in texts(ax)


@pytest.mark.parametrize("reading", [READING, read(PUBLISHED), of(pool_report(rounds=0))])
def test_every_chart_has_units_a_finding_and_its_provenance(reading: Reading) -> None:
    day = notation.day(reading.report.created)
    of_headlines = {charts.breakdown: reading.headline, charts.ratios: [reading.headline]}
    for draw in (charts.timeline, charts.ecdf, charts.round_ratios, *of_headlines):
        ax = Figure(figsize=(4.5, 3)).subplots()
        assert draw(ax, of_headlines.get(draw, reading)) is None  # type: ignore[operator]
        ax.figure.canvas.draw()
        assert title(ax) and day in texts(ax)
        assert not ax.axison or "(" in ax.get_xlabel()
        told = style.finding(ax.figure)
        assert told.startswith(f"{title(ax)}. ") and day in told


def test_strange_text_cannot_break_a_chart(ax: Axes) -> None:
    charts.breakdown(ax, replace(HEADLINE, created="$\\frac{1}$ _^{", strategy="a_b$c$"))
    ax.figure.canvas.draw()
    assert "?" in texts(ax)


def test_the_rulers_error_is_drawn_or_said_to_be_unknown(ax: Axes) -> None:
    row = {"in_flight": 1, "delay_ms": 5, "round_trip_ms": 0, "keep_alive": False, "n": 80}
    checked = [RulerRow(quantity="over_ms", bias_ms=0.4, p95_ms=p95, **row) for p95 in (1.5, None)]
    ruler = Ruler(created="2026-11-24", rows=checked)
    charts.ruler(ax, ruler)
    assert "0.40 ms" in texts(ax) and "new connections" in rows(ax)[0]
    assert "new connections" in documents.ruler_table(ruler)
    empty = Figure().subplots()
    charts.ruler(empty, Ruler(created="2026-11-24"))
    assert not empty.axison
