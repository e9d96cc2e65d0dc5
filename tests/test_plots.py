"""Charts are tested by what is drawn on them, not by their pixels."""

from collections.abc import Iterator
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from test_tables import PUBLISHED, changed, pool_report

from poclib import plots, tables, words
from poclib import report as reports
from poclib.stats import Ratio

REPORT = pool_report()
HEADLINE = tables.headline(REPORT)
REQUESTS = tables.requests(REPORT)


@pytest.fixture
def ax() -> Iterator[Axes]:
    with matplotlib.rc_context():
        plots.use_style()
        yield Figure().subplots()


def bars(ax: Axes, colour: str) -> list[Rectangle]:
    found = [p for p in ax.patches if isinstance(p, Rectangle)]
    return [bar for bar in found if to_hex(bar.get_facecolor()) == colour]


def texts(ax: Axes) -> str:
    return "\n".join([ax.get_title(loc="left"), *(text.get_text() for text in ax.texts)])


def test_the_palette_is_the_fixed_one() -> None:
    assert plots.WAITING == "#bdbdbd"
    assert [plots.PALETTE[key] for key in list(plots.PALETTE)[:4]] == [
        "#56b4e9",
        "#0072b2",
        "#e69f00",
        "#000000",
    ]
    assert set(plots.PALETTE) == set(words.SEGMENT_LABELS) == set(plots.SEGMENTS)
    assert len(set(plots.PALETTE.values())) == len(plots.PALETTE)


def test_the_timeline_draws_every_request_where_it_was(ax: Axes) -> None:
    plots.timeline(ax, REQUESTS, HEADLINE)
    generating = bars(ax, "#e69f00")
    assert len(generating) == len(ax.get_yticks()) == 8
    # By hand: round 0 starts at 5000; local's second request at +200 generates from +42 on,
    # for 200 - 42 - 0.5 ms.
    second = generating[1]
    assert (second.get_x(), second.get_width()) == pytest.approx((242, 157.5))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"local  #{i}" for i in (0, 2, 4, 6)] + [
        f"remote  #{i}" for i in (1, 3, 5, 7)
    ]
    assert max(b.get_x() + b.get_width() for b in bars(ax, "#000000")) == pytest.approx(1200)
    waits = bars(ax, plots.WAITING)
    assert [bar.get_width() for bar in waits] == pytest.approx([20] * 6)  # the first two had none
    assert "8 of 8 requests drawn" in texts(ax) and ax.get_xlim()[0] == 0
    assert ax.get_title(loc="left").replace("\n", " ") == words.title_timeline(HEADLINE)


def test_the_timeline_says_how_many_it_leaves_out_and_what_failed(
    ax: Axes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plots, "MOST_ROWS", 5)
    plots.timeline(ax, REQUESTS, HEADLINE, round=1)
    assert "round 2, 5 of 8 requests drawn" in texts(ax) and len(bars(ax, "#e69f00")) == 5
    other = Figure().subplots()
    monkeypatch.undo()
    report = changed(REPORT, "strategy", outcome="failed")
    plots.timeline(other, tables.requests(report), tables.headline(report))
    assert " failed" in texts(other)


def test_the_breakdown_draws_the_tables_own_numbers(ax: Axes) -> None:
    plots.breakdown(ax, HEADLINE)
    frame = tables.breakdown(REPORT).set_index("role")
    for column, colour in plots.PALETTE.items():
        widths = [bar.get_width() for bar in bars(ax, colour)]
        assert widths == pytest.approx(frame[column].tolist() if column in frame else [])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["remote request", "local request"]
    assert "344 ms" in texts(ax) and ax.get_xlim()[0] == 0


def test_ratios_are_drawn_evenly_around_one(ax: Axes) -> None:
    bad = replace(HEADLINE, strategy="all-parallel", overhead_ratio=Ratio(6.47, 6.0, 7.2, 5))
    one = tables.headline(reports.load(PUBLISHED))
    plots.ratios(ax, [bad, HEADLINE, one])
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    assert low * high == pytest.approx(1) and high > 7.2
    assert [t.get_text() for t in ax.get_yticklabels()][-1] == "all-parallel"
    intervals = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert (6.0, 7.2) in intervals and (1, 1) in intervals
    assert len(intervals) == 3  # two strategies with one, and the line at 1
    band = ax.patches[0]
    assert isinstance(band, Rectangle)
    assert (band.get_x(), band.get_width()) == pytest.approx((0.95, 0.1))
    assert "0.87 (1 round, so no interval)" in texts(ax) and "6.47" in texts(ax)


def test_the_ecdf_rises_to_all_for_both_arms(ax: Axes) -> None:
    plots.ecdf(ax, REQUESTS, HEADLINE)
    assert len(ax.lines) == 2
    for line in ax.lines:
        x, y = line.get_xdata(), line.get_ydata()
        assert (x[0], y[0], y[-1]) == (0, 0, 1) and len(x) == 41
    walls = REQUESTS.query("arm == 'strategy'")["wall_ms"]
    assert max(ax.lines[0].get_xdata()) == pytest.approx(walls.max())
    assert "serial-per-provider\n(n = 40)" in texts(ax) and "baseline\n(n = 40)" in texts(ax)


def test_every_round_is_a_point_beside_the_interval(ax: Axes) -> None:
    plots.round_ratios(ax, tables.rounds(REPORT), HEADLINE)
    points = next(line for line in ax.lines if len(line.get_xdata()) == 5)
    assert list(points.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(points.get_ydata()) == pytest.approx([0.75, 0.765, 0.78, 0.795, 0.81])
    assert any(list(line.get_ydata()) == pytest.approx([0.75, 0.81]) for line in ax.lines)
    assert ax.get_ylim()[0] == 0 and "median 0.78" in texts(ax)


def test_every_chart_has_units_a_finding_and_its_provenance_and_returns_none() -> None:
    for report in (REPORT, reports.load(PUBLISHED), pool_report(rounds=0)):
        headline, rows = tables.headline(report), tables.requests(report)
        figure = Figure(figsize=(4.5, 3))
        with matplotlib.rc_context():
            plots.use_style()
            charts = figure.subplots(5)
            drawn: list[object] = [
                plots.timeline(charts[0], rows, headline),  # type: ignore[func-returns-value]
                plots.breakdown(charts[1], headline),  # type: ignore[func-returns-value]
                plots.ratios(charts[2], [headline]),  # type: ignore[func-returns-value]
                plots.ecdf(charts[3], rows, headline),  # type: ignore[func-returns-value]
                plots.round_ratios(charts[4], tables.rounds(report), headline),  # type: ignore[func-returns-value]
            ]
            figure.canvas.draw()
        assert drawn == [None] * 5
        for chart in charts:
            assert chart.get_title(loc="left")
            assert words.day(report.created) in texts(chart)
            assert not chart.axison or "(" in chart.get_xlabel()


def test_no_reports_at_all_is_said_not_drawn(ax: Axes) -> None:
    plots.ratios(ax, [])
    assert "No report has a complete round" in texts(ax) and not ax.axison


def test_strange_text_cannot_break_a_chart(ax: Axes) -> None:
    plots.breakdown(ax, replace(HEADLINE, created="$\\frac{1}$ _^{", strategy="a_b$c$"))
    ax.figure.canvas.draw()
    assert "?" in texts(ax)
