"""One function a chart: it draws on `ax` and returns None. Computes nothing.

Numbers come from a reading, titles from `words`, so a picture cannot say another thing than the
text beside it. Charts along a setting are in `curves`, the look in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reading.phases import CLIENT, COLOURS, LABELS, OUTSIDE, SEGMENTS, SERVER, WAITING, segments
from ..reading.reading import Reading
from ..records import ArmName, Ruler
from ..stats import Headline
from . import documents, words
from .format import day, many, milliseconds, number, percent
from .style import BAND, DARK, FAINT, INK, around_one, instead, key, label, titles
from .style import use_style as use_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS, MOST_POINTS = 60, 4000
_LABELLED = 24  # rows that get a prompt's number each
_WHOLE = {"wall_ms": FAINT, "over_ms": OUTSIDE}


def timeline(ax: Axes, reading: Reading, round: int | None = None) -> None:
    """Gantt of the strategy in one round: a row per request, grouped by provider.

    Over each group stands how many may be in flight there. A grey bar is the wait for a slot, its
    tick the moment the request was meant to start. Time 0 is the arm's first dispatch; a dashed
    line shows the ideal. Without `round` it is the one of about the median length.
    """
    from ..reading import tables

    headline, chosen = reading.headline, round or 0
    if round is None and (usual_ms := headline.makespan_ms):
        took = {one.round: one.strategy_ms for one in reading.timed[0] if one.strategy_ms}
        chosen = min(took, key=lambda index: abs(took[index] - usual_ms))
    places = [p for p in reading.places if p[0] == chosen and p[2].arm == "strategy"]
    every = [row for *_, arm in places for row in arm.requests]
    timed = [row for row in every if None not in (row.marks.start_ms, row.wall_ms)]
    first = sorted(timed, key=lambda row: row.marks.start_ms or 0.0)[:MOST_ROWS]
    few = [(of, at, a.model_copy(update={"requests": first})) for of, at, a in places]
    shown = tables.frame_of_requests(reading, few)
    drawn = f"round {chosen + 1}: {len(shown):,} of {len(every):,} requests drawn"
    titles(ax, words.title_timeline(headline), f"{drawn} · {words.where_and_when(headline)}")
    if shown.empty:
        instead(ax, "No times of day were stored for this round,\nso its order cannot be drawn.")
        return
    zero, end, y = float(shown["start_ms"].min()), headline.ideal_ms or 0.0, 0
    ticks, seen = dict[int, str](), set[str]()
    for provider, group in shown.groupby("provider"):
        ax.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0)
        limit, slots = (next(map(int, group[name].dropna()), None) for name in ("limit", "slots"))
        text = f" {provider}: {words.in_flight(limit, slots)}"
        ax.text(0, y, text, va="center", fontweight="bold", fontsize=12)
        for row in group.to_dict("records"):
            y += 1
            ticks[y] = f"#{row['prompt']}"
            end = max(end, _request(ax, y, row, zero, seen))
        y += 1
    if headline.ideal_ms is not None:
        ax.axvline(headline.ideal_ms, color=INK, linewidth=1, linestyle="--")
        side = "right" if headline.ideal_ms > 0.5 * end else "left"
        what = "one at a time" if headline.unbatched else "ideal"
        text = f" {what} {milliseconds(headline.ideal_ms)} "
        ax.text(headline.ideal_ms, y, text, va="center", ha=side)
    if len(ticks) > _LABELLED:
        ticks = {}
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=12 if len(ticks) <= 12 else 9)
    ax.set(ylim=(y + 0.5, -0.5), xlim=(0, end * 1.02))
    ax.set(xlabel="time since the first dispatch (ms)", ylabel="prompt")
    key(ax, seen)


def _request(ax: Axes, y: int, row: Mapping[Any, Any], zero: float, seen: set[str]) -> float:
    """One row of the timeline; returns where it ends and adds what it shows to `seen`."""
    left = float(row["start_ms"]) - zero
    meant = max(row["assigned_ms"] - zero, 0.0)  # NaN where nobody knows
    if meant < left:
        ax.barh(y, left - meant, left=meant, height=0.3, color=WAITING)
        ax.plot([meant, meant], [y - 0.4, y + 0.4], color=INK, linewidth=1.5)
        seen.add("queued_ms")
    for part, begin, width in _in_a_row(segments(row), left):
        ax.barh(y, width, left=begin, height=0.8, color=COLOURS[part], edgecolor="white", lw=0.4)
        seen.add(part)
    if row["outcome"] != "ok":
        ax.text(left + row["wall_ms"], y, f" {row['outcome']}", va="center")
    return float(left + row["wall_ms"])


def _bar(ax: Axes, y: int, left: float, width: float, colour: str, text: str) -> bool:
    """One part of a request, and whether there was room in it for its length."""
    ax.barh(y, width, left=left, height=0.75, color=colour, edgecolor="white", lw=0.4)
    low, high = ax.get_xlim()
    if width < 0.004 * (high - low):  # else it would not be seen at all
        ax.plot([left], [y], "|", color=colour, markersize=12, markeredgewidth=1.5)
    if fits := width > 0.12 * (high - low):
        ink = "white" if colour in DARK else INK
        ax.text(left + width / 2, y, text, ha="center", va="center", color=ink)
    return fits


def anatomy(ax: Axes, row: Mapping[str, Any], headline: Headline) -> None:
    """Every phase of one request, each on a line of its own with its name and its length.

    `row` is `tables.typical(reading)`. First what the coordinator saw, with a tick for each
    token; then what the server says it worked, which are lengths and no moments: they are
    drawn in the middle of the time that the server can have had.
    """
    under = f"prompt #{row['prompt']} · {words.subtitle(headline)}"
    titles(ax, words.title_anatomy(row), under)
    wall = float(row["wall_ms"])
    seen = {phase.key: float(row[phase.key]) for phase in CLIENT if row[phase.key] is not None}
    told = {phase.key: float(row[phase.key]) for phase in SERVER if row[phase.key] is not None}
    waited = min(seen.get("queued_ms", 0.0), 0.25 * wall)  # a long wait is cut, else it fills all
    if "queued_ms" in seen:
        seen["queued_ms"] = waited
    before = (wall - sum(told.values())) / 2
    bars = [*_in_a_row(seen, -waited), ("wall_ms", 0.0, wall)]
    if told:
        ax.axhline(len(bars) - 0.5, color=INK, linewidth=0.8)
        bars += _in_a_row(told, before)
        if row["over_ms"] is not None:  # half of it before the server's time, half after it
            ax.barh(len(bars), before, height=0.75, color=OUTSIDE)
            bars.append(("over_ms", wall - before, before))
    ax.set(xlim=(-1.02 * waited, wall * 1.14), ylim=(len(bars) - 0.4, -0.7))
    for y, (part, left, width) in enumerate(bars):
        cut = "… " if part == "queued_ms" and width < row[part] else ""
        text = cut + milliseconds(row[part])
        if not _bar(ax, y, left, width, (COLOURS | _WHOLE)[part], text):
            ax.text(left + width, y, f" {text}", va="center")
        if part == "generating_ms":
            ax.vlines(row["token_ms"], y - 0.55, y - 0.4, color=INK, linewidth=1.2)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(bars)), [LABELS[part] for part, *_ in bars])
    ax.set_xlabel("time since the request was handed to the transport (ms)")


def _in_a_row(lengths: Mapping[str, float], left: float) -> list[tuple[str, float, float]]:
    """Each part where the one before it ends: its key, its begin and its length."""
    begins = accumulate(lengths.values(), initial=left)
    return [(part, begin, lengths[part]) for part, begin in zip(lengths, begins, strict=False)]


def several(headlines: Sequence[Headline]) -> str:
    """What stands under the title of a chart of several reports: rounds, providers, days."""
    days = sorted({day(headline.created) for headline in headlines})
    providers = sorted({name for headline in headlines for name in headline.providers})
    rounds = sum(headline.overhead_ratio.rounds for headline in headlines)
    span = " to ".join(dict.fromkeys([*days[:1], *days[-1:]]))
    return f"{many(rounds, 'round')} in all · {', '.join(providers)} · {span}"


def breakdown(ax: Axes, *headlines: Headline) -> None:
    """Mean parts of one request, stacked, a bar per role and strategy, labelled where it fits."""
    alone = len(headlines) == 1
    under = words.subtitle(headlines[0]) if alone else several(headlines)
    titles(ax, words.title_breakdown(headlines), f"means · {under}")
    bars = {
        f"{role} request" if alone else f"{headline.strategy}, {role}": means
        for headline in headlines
        for role, means in headline.segments_ms.items()
    }
    if not bars:
        instead(ax, "No request was answered, so there is nothing to divide.")
        return
    whole = max(sum(means.values()) for means in bars.values())
    ax.set(ylim=(len(bars) - 0.5, -0.5), xlim=(0, whole * 1.18))
    for y, means in enumerate(bars.values()):
        order = {part.key: means[part.key] for part in SEGMENTS if part.key in means}
        for part, left, width in _in_a_row(order, 0.0):
            _bar(ax, y, left, width, COLOURS[part], number(width, 1 if width < 100 else 0))
        total = sum(means.values())
        ax.text(total, y, f" {milliseconds(total)}", va="center")
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set_xlabel("mean time of one request (ms)")
    key(ax, {part for means in bars.values() for part in means})


def ratios(
    ax: Axes, headlines: Sequence[Headline], predicted: Mapping[str, float] | None = None
) -> None:
    """Forest plot: each strategy's ratio with its interval, on a log axis even around 1x.

    The band of no practical difference is the widest of the reports'. `predicted` ratios, by
    strategy, are drawn as open triangles.
    """
    titles(ax, words.title_ratios(headlines), f"median and 95 % interval · {several(headlines)}")
    drawn = sorted((h for h in headlines if h.round_ratios), key=_median)
    if not drawn:
        instead(ax, "No report has a complete round.")
        return
    reached = list[float]()
    for y, headline in enumerate(drawn):
        middle, interval = _median(headline), _interval(headline)
        ax.plot(interval, [y] * len(interval), color=INK, linewidth=2.5)
        ax.plot([middle], [y], "o" if interval else "D", color=INK, markersize=8)
        foretold = [ratio for name, ratio in (predicted or {}).items() if name == headline.strategy]
        ax.plot(foretold, [y + 0.27] * len(foretold), "^", color=INK, mfc="white", markersize=9)
        ends = [middle, *interval, *foretold]
        text = number(middle, 2) + words.per_token(headline) if interval else words.ratio(headline)
        label(ax, text, (max(ends), y), (9, 0))
        reached += ends
    band = max(headline.band for headline in drawn)
    around_one(ax, "x", reached, band)
    ax.set_yticks(range(len(drawn)), [headline.strategy for headline in drawn])
    ax.set_ylim(len(drawn) - 0.4, -0.8)
    ax.set_xlabel(
        "total time / baseline's total time (ratio; left of 1 is faster)\n"
        f"shaded: no practical difference ({1 - band:.2f} to {1 + band:.2f})"
        + ("; triangle: predicted" if predicted else "")
    )


def save_ratios(headlines: Sequence[Headline], path: Path) -> None:
    """`ratios` as a PNG file that is the same for the same headlines: the README's picture."""
    import matplotlib.pyplot as plt

    use_style()
    figure, ax = plt.subplots(figsize=(8, 4.6))
    ratios(ax, headlines)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _median(headline: Headline) -> float:
    return headline.overhead_ratio.median or 0.0


def _interval(headline: Headline) -> list[float]:
    """Both ends of the ratio's interval; empty where there is none."""
    low, high = headline.overhead_ratio.low, headline.overhead_ratio.high
    return [] if low is None or high is None else [low, high]


def ecdf(ax: Axes, reading: Reading) -> None:
    """Share of answered requests within a wall time, strategy against baseline."""
    headline = reading.headline
    kinds: tuple[ArmName, ...] = ("baseline", "strategy")
    walls = {kind: sorted(r.wall_ms for r in reading.answered(kind) if r.wall_ms) for kind in kinds}
    count = sum(map(len, walls.values()))
    every = 1 + count // MOST_POINTS  # the largest and each so many-th below it
    drawn = {kind: each[::-1][::every] for kind, each in walls.items() if each}
    left = f"{sum(map(len, drawn.values())):,} of {count:,} drawn · " if every > 1 else ""
    titles(ax, words.title_ecdf(headline), left + words.subtitle(headline))
    if not drawn:
        instead(ax, "No request was answered.")
        return
    for kind, colour, dashes in zip(kinds, (FAINT, INK), ("--", "-"), strict=True):
        if kind in drawn:
            name = headline.strategy if kind == "strategy" else kind
            shown = f"{name} (n = {len(walls[kind]):,})"
            ax.ecdf(drawn[kind], lw=2.5, label=shown, color=colour, linestyle=dashes)
    ax.legend(loc="lower right")
    ax.set(xlim=(0, max(map(max, drawn.values())) * 1.05), ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(lambda value, _: percent(value))
    ax.set(xlabel="wall time of one request (ms)", ylabel="share of requests (%)")


def round_ratios(ax: Axes, reading: Reading) -> None:
    """Every round's ratio as a point, the median and its interval beside them."""
    headline = reading.headline
    titles(ax, words.title_rounds(headline), words.subtitle(headline))
    done = {one.round + 1: one.ratio for one in reading.timed[0] if one.ratio}
    if not done:
        instead(ax, "No round is complete.")
        return
    ax.axhspan(1 - headline.band, 1 + headline.band, color=BAND, zorder=0)
    ax.axhline(1, color=INK, linewidth=1)
    ax.plot([*done], [*done.values()], "o", color=INK, markersize=8)
    last = max(done)
    if interval := _interval(headline):
        beside, middle = last + 0.8, _median(headline)
        ax.plot([beside, beside], interval, color=INK, linewidth=2.5)
        ax.plot([beside], [middle], "D", color=INK, markersize=8)
        label(ax, f"median {number(middle, 2)}\n95 % interval", (beside, middle), (8, 0))
    ax.set(xlim=(0.5, last * 1.25 + 1), ylim=(0, max(1.2, 1.15 * max(done.values()))))
    ax.set_xticks(range(1, last + 1, 1 + last // 12))
    ax.set(xlabel="round (in the order measured)", ylabel="total time / baseline's (ratio)")


def ruler(ax: Axes, check: Ruler, quantity: str = "over_ms") -> None:
    """The instrument's bias for each known behaviour, and the range that 95 % stay within."""
    rows = [row for row in check.rows if row.quantity == quantity]
    shown = {documents.ruler_case(row): (0.0, row.p95_ms or 0.0, row.bias_ms) for row in rows}
    under = documents.ruler_provenance(check)
    spans(ax, shown, documents.title_ruler(check, quantity), under, "measured minus true (ms)")


def spans(
    ax: Axes,
    rows: Mapping[str, tuple[float, float, float]],
    title: str,
    under: str,
    along: str,
    decimals: int = 2,
) -> None:
    """A row each: a grey line from the first number to the second, a diamond at the third."""
    titles(ax, title, under)
    if not rows:
        instead(ax, "Nothing was checked.")
        return
    for y, (begin, end, at) in enumerate(rows.values()):
        ax.plot([begin, end], [y, y], color=FAINT, linewidth=2.5)
        ax.plot([at], [y], "D", color=INK, markersize=7)
        label(ax, number(at, decimals), (at, y), (1, 9))
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=10)
    ax.set_ylim(len(rows) - 0.3, -0.8)
    ax.set_xlabel(along)
