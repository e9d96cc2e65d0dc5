"""One function a chart: it draws on `ax` and returns None. Computes nothing.

Numbers come from a reading, titles from `words`, so a picture cannot say another thing than the
text beside it. Charts along a setting are in `curves`, the look in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..reading.phases import CLIENT, COLOURS, LABELS, OUTSIDE, SEGMENTS, SERVER, WAITING, segments
from ..reading.reading import Reading
from ..records import Ruler
from ..stats import Headline
from . import documents, words
from .format import day, many, milliseconds, number, percent
from .style import BAND, FAINT, INK, even_around_one, ink_on, instead, key, label, line_at_one
from .style import titles as put_titles
from .style import use_style as use_style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST_ROWS = 60
_LABELLED = 24  # rows that get a prompt's number each


def timeline(ax: Axes, reading: Reading, round: int | None = None) -> None:
    """Gantt of the strategy in one round: a row per request, grouped by provider.

    Over each group stands how many may be in flight there. A grey bar is the wait for a slot, its
    tick the moment the request was meant to start. Time 0 is the arm's first dispatch; a dashed
    line shows the ideal. Without `round` it is the one of about the median length.
    """
    headline, requests = reading.headline, reading.requests
    arms = requests[requests["arm"].eq("strategy") & requests["round"].notna()]
    timed = arms.dropna(subset=["start_ms", "wall_ms"])
    chosen = _middle_round(timed, headline.makespan_ms) if round is None else round
    arm, timed = (rows[rows["round"].eq(chosen)] for rows in (arms, timed))
    shown = timed.sort_values("start_ms").head(MOST_ROWS)
    which = f"round {chosen + 1}{', of median length' if round is None and len(shown) else ''}"
    drawn = f"{which}: {len(shown)} of {len(arm)} requests drawn"
    put_titles(ax, words.title_timeline(headline), f"{drawn} · {words.where_and_when(headline)}")
    if shown.empty:
        instead(ax, "No times of day were stored for this round,\nso its order cannot be drawn.")
        return
    zero, end, y = float(timed["start_ms"].min()), 0.0, 0
    ticks, seen = dict[int, str](), set[str]()
    heading: dict[str, Any] = {"va": "center", "fontweight": "bold", "fontsize": 12}
    for provider, group in shown.groupby("provider"):
        ax.axhspan(y - 0.5, y + 0.5, color=BAND, zorder=0)
        limit, slots = (next(map(int, group[name].dropna()), None) for name in ("limit", "slots"))
        text = f"{provider}: {words.in_flight(limit, slots)}"
        ax.text(0.008, y, text, transform=ax.get_yaxis_transform(), **heading)
        for row in group.to_dict("records"):
            y += 1
            ticks[y] = f"#{row['prompt']}"
            end = max(end, _request(ax, y, row, zero, seen))
        y += 1
    ideal = headline.ideal_ms
    if ideal is not None and ideal < 3 * end:
        ax.axvline(ideal, color=INK, linewidth=1, linestyle="--")
        side = "right" if ideal > 0.5 * end else "left"
        ax.text(ideal, y, f" ideal {milliseconds(ideal)} ", va="center", ha=side)
        end, y = max(end, ideal), y + 1
    if len(ticks) > _LABELLED:
        ticks = {}
    ax.set_yticks(list(ticks), list(ticks.values()), fontsize=12 if len(ticks) <= 12 else 9)
    ax.set(ylim=(y - 0.5, -0.5), xlim=(0, end * 1.02))
    ax.set(xlabel="time since the first dispatch (ms)", ylabel="prompt")
    key(ax, seen)


def _middle_round(timed: pd.DataFrame, makespan_ms: float | None) -> int:
    """The round whose requests span a time nearest to `makespan_ms`; else the first."""
    spans = timed.groupby("round").agg({"start_ms": "min", "end_ms": "max"})
    if spans.empty or makespan_ms is None:
        return 0
    return int((spans["end_ms"] - spans["start_ms"] - makespan_ms).abs().idxmin())


def _request(ax: Axes, y: int, row: Mapping[Any, Any], zero: float, seen: set[str]) -> float:
    """One row of the timeline; returns where it ends and adds what it shows to `seen`."""
    left = float(row["start_ms"]) - zero
    meant = max(row["assigned_ms"] - zero, 0.0)  # NaN where nobody knows
    if meant < left:
        ax.barh(y, left - meant, left=meant, height=0.3, color=WAITING)
        ax.plot([meant, meant], [y - 0.4, y + 0.4], color=INK, linewidth=1.5)
        seen.add("queued_ms")
    for part, width in segments(row).items():
        ax.barh(y, width, left=left, height=0.8, color=COLOURS[part], edgecolor="white", lw=0.4)
        seen.add(part)
        left += width
    if row["outcome"] != "ok":
        ax.text(left, y, f" {row['outcome']}", va="center")
    return left


def anatomy(ax: Axes, row: Mapping[str, Any], headline: Headline) -> None:
    """Every phase of one request, each on a line of its own with its name and its length.

    `row` is `tables.typical(reading)`. First what the coordinator saw, with a tick for each
    token; then what the server says it worked, which are lengths and no moments: they are
    drawn in the middle of the time that the server can have had.
    """
    under = f"prompt #{row['prompt']} · {words.subtitle(headline)}"
    put_titles(ax, words.title_anatomy(row), under)
    seen = {phase.key: float(row[phase.key]) for phase in CLIENT if row[phase.key] is not None}
    told = {phase.key: float(row[phase.key]) for phase in SERVER if row[phase.key] is not None}
    if not seen:
        instead(ax, "This request has no marks, so its phases cannot be drawn.")
        return
    wall = float(row["wall_ms"])
    waited = min(seen.get("queued_ms", 0.0), 0.25 * wall)  # a long wait is cut, else it fills all
    bars, left = list[tuple[str, float, float, str]](), -waited
    for part, true in seen.items():
        width = waited if part == "queued_ms" else true
        bars.append((part, left, width, ("… " if width < true else "") + milliseconds(true)))
        left += width
    bars.append(("wall_ms", 0.0, wall, milliseconds(wall)))
    if told:
        ax.axhline(len(bars) - 0.5, color=INK, linewidth=0.8)
        begin = left = (wall - sum(told.values())) / 2
        for part, width in told.items():
            bars.append((part, left, width, milliseconds(width)))
            left += width
        if row["over_ms"] is not None:  # half of it before the server's time, half after it
            ax.barh(len(bars), begin, height=0.75, color=OUTSIDE)
            bars.append(("over_ms", left, wall - left, milliseconds(row["over_ms"])))
    for y, (part, left, width, text) in enumerate(bars):
        colour = {**COLOURS, "wall_ms": FAINT, "over_ms": OUTSIDE}[part]
        ax.barh(y, width, left=left, height=0.75, color=colour, edgecolor="white", lw=0.4)
        if width < 0.004 * (wall + waited):  # else it would not be seen at all
            ax.plot([left], [y], "|", color=colour, markersize=12, markeredgewidth=1.5)
        if width > 0.16 * (wall + waited):
            ax.text(left + width / 2, y, text, ha="center", va="center", color=ink_on(colour))
        else:
            ax.text(left + width, y, f" {text}", va="center")
        if part == "generating_ms":
            ax.vlines(row.get("token_ms") or [], y - 0.55, y - 0.4, color=INK, linewidth=1.2)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(bars)), [LABELS[part] for part, *_ in bars])
    ax.set(ylim=(len(bars) - 0.4, -0.7), xlim=(-1.02 * waited, wall * 1.14))
    ax.set_xlabel("time since the request was handed to the transport (ms)")


def several(headlines: Sequence[Headline]) -> str:
    """What stands under the title of a chart of several reports: rounds, providers, days."""
    days = sorted({day(headline.created) for headline in headlines}) or ["no date"]
    providers = sorted({name for headline in headlines for name in headline.providers})
    counts = sorted({headline.overhead_ratio.rounds for headline in headlines}) or [0]
    rounds = many(counts[-1], "round")
    if len(counts) > 1:
        rounds = f"{counts[0]} to {rounds}"
    return f"{rounds} each · {', '.join(providers)} · {' to '.join(days[:: len(days) - 1 or 1])}"


def breakdown(ax: Axes, *headlines: Headline) -> None:
    """Mean parts of one request, stacked, a bar per role and strategy, labelled where it fits."""
    alone = len(headlines) == 1
    under = words.subtitle(headlines[0]) if alone else several(headlines)
    put_titles(ax, words.title_breakdown(headlines), f"means · {under}")
    bars = [
        (f"{role} request" if alone else f"{headline.strategy}, {role}", means)
        for headline in headlines
        for role, means in headline.segments_ms.items()
    ]
    if not bars:
        instead(ax, "No request was answered, so there is nothing to divide.")
        return
    whole = max(sum(means.values()) for _, means in bars)
    for y, (_, means) in enumerate(bars):
        left = 0.0
        for part in (part for part in SEGMENTS if part.key in means):
            width, colour = means[part.key], part.colour
            ax.barh(y, width, left=left, height=0.7, color=colour, edgecolor="white")
            if width > 0.12 * whole:
                text = number(width, 1 if width < 100 else 0)
                ax.text(left + width / 2, y, text, ha="center", va="center", color=ink_on(colour))
            left += width
        ax.text(left, y, f" {milliseconds(left)}", va="center")
    ax.set_yticks(range(len(bars)), [name for name, _ in bars])
    ax.set(ylim=(len(bars) - 0.5, -0.5), xlim=(0, whole * 1.18))
    ax.set_xlabel("mean time of one request (ms)")
    key(ax, {part for _, means in bars for part in means})


def ratios(
    ax: Axes, headlines: Sequence[Headline], predicted: Mapping[str, float] | None = None
) -> None:
    """Forest plot: each strategy's ratio with its interval, on a log axis even around 1x.

    The band of no practical difference is the widest of the reports'. `predicted` ratios, by
    strategy, are drawn as open triangles.
    """
    under = f"median and 95 % interval · {several(headlines)}"
    put_titles(ax, words.title_ratios(headlines), under)
    drawn = sorted((h for h in headlines if h.round_ratios), key=_median)
    if not drawn:
        instead(ax, "No report has a complete round.")
        return
    band = max(headline.band for headline in drawn)
    line_at_one(ax, "x", band)
    reached = list[float]()
    for y, headline in enumerate(drawn):
        middle, interval = _median(headline), _interval(headline)
        ends = [middle, *interval]
        ax.plot(interval, [y] * len(interval), color=INK, linewidth=2.5)
        ax.plot([middle], [y], "o" if interval else "D", color=INK, markersize=8)
        text = number(middle, 2) + words.per_token(headline) if interval else words.ratio(headline)
        if foretold := (predicted or {}).get(headline.strategy):
            ax.plot([foretold], [y + 0.27], "^", color=INK, mfc="white", markersize=9)
            ends.append(foretold)
        label(ax, text, (max(ends), y), (9, 0))
        reached += ends
    even_around_one(ax, "x", reached)
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
    put_titles(ax, words.title_ecdf(reading.headline), words.subtitle(reading.headline))
    rows = reading.requests
    good = rows[rows["round"].notna() & rows["outcome"].eq("ok")].dropna(subset=["wall_ms"])
    if good.empty:
        instead(ax, "No request was answered.")
        return
    longest, means = good["wall_ms"].max(), good.groupby("arm")["wall_ms"].mean()
    for arm in means.sort_values().index:
        times = sorted(good.loc[good["arm"].eq(arm), "wall_ms"])
        strategy = arm == "strategy"
        shares = [count / len(times) for count in range(len(times) + 1)]
        line = {"color": INK, "ls": "-"} if strategy else {"color": FAINT, "ls": "--"}
        ax.step([0.0, *times], shares, where="post", lw=2.5, **line)
        # The slower arm's name stands at its middle, the other's near its top.
        place = len(times) // 2 if arm == means.idxmax() else int(0.9 * (len(times) - 1))
        name = reading.headline.strategy if strategy else arm
        label(ax, f"{name}\n(n = {len(times)})", (times[place], shares[place]), (9, -4))
    ax.set(xlim=(0, longest * 1.3), ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(lambda value, _: percent(value))
    ax.set(xlabel="wall time of one request (ms)", ylabel="share of requests (%)")


def round_ratios(ax: Axes, reading: Reading) -> None:
    """Every round's ratio as a point, the median and its interval beside them."""
    headline = reading.headline
    put_titles(ax, words.title_rounds(headline), words.subtitle(headline))
    done = reading.rounds[reading.rounds["complete"]]
    if done.empty:
        instead(ax, "No round is complete.")
        return
    line_at_one(ax, "y", headline.band)
    ax.plot((done["round"] + 1).tolist(), done["ratio"].tolist(), "o", color=INK, markersize=8)
    last = int(done["round"].max()) + 1
    if interval := _interval(headline):
        beside, middle = last + 0.8, _median(headline)
        ax.plot([beside, beside], interval, color=INK, linewidth=2.5)
        ax.plot([beside], [middle], "D", color=INK, markersize=8)
        label(ax, f"median {number(middle, 2)}\n95 % interval", (beside, middle), (8, 0))
    ax.set(xlim=(0.5, last * 1.25 + 1), ylim=(0, max(1.2, done["ratio"].max() * 1.15)))
    ax.set_xticks(range(1, last + 1, 1 + last // 12))
    ax.set(xlabel="round (in the order measured)", ylabel="total time / baseline's (ratio)")


def ruler(ax: Axes, check: Ruler, quantity: str = "over_ms") -> None:
    """The instrument's bias for each known behaviour, and the range that 95 % stay within."""
    put_titles(ax, documents.title_ruler(check, quantity), documents.ruler_provenance(check))
    rows = [row for row in check.rows if row.quantity == quantity]
    if not rows:
        instead(ax, "Nothing was checked.")
        return
    for y, row in enumerate(rows):
        ax.plot([0, row.p95_ms or 0], [y, y], color=FAINT, linewidth=2.5)
        ax.plot([row.bias_ms], [y], "D", color=INK, markersize=7)
        label(ax, f"{number(row.bias_ms, 2)} ms", (row.bias_ms, y), (1, 9))
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), map(documents.ruler_case, rows), fontsize=10)
    ax.set_ylim(len(rows) - 0.3, -0.8)
    ax.set_xlabel("measured minus true (ms)")
