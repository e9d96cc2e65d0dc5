"""One function a chart: it draws on `ax` and returns None. Knows no report and computes nothing.

Frames come from `tables`, sentences from `words`, so a picture cannot say another
thing than the text beside it. Charts along time lie in `timeline`, those along a setting in
`curves`, the look in `style`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..reading.phases import SEGMENTS
from ..stats import Headline
from . import words
from .format import day, many, milliseconds, number, percent
from .style import FAINT, INK, even_around_one, ink_on, instead, key, label, line_at_one
from .style import titles as put_titles
from .style import use_style as use_style
from .timeline import anatomy as anatomy
from .timeline import timeline as timeline

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MARKS = "osD^vP*X"


def several(headlines: Sequence[Headline]) -> str:
    """What stands under the title of a chart of several reports: rounds, providers, days."""
    days = sorted({day(headline.created) for headline in headlines}) or ["no date"]
    providers = sorted({name for headline in headlines for name in headline.providers})
    counts = [headline.overhead_ratio.rounds for headline in headlines] or [0]
    low, high = min(counts), max(counts)
    rounds = many(low, "round") if low == high else f"{low} to {high} rounds"
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{rounds} each · {', '.join(providers)} · {span}"


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
            if width > (0.08 if alone else 0.12) * whole:
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
    drawn = sorted((h for h in headlines if h.round_ratios), key=_median)
    under = f"median and 95 % interval · {several(headlines)}"
    put_titles(ax, words.title_ratios(headlines), under)
    if not drawn:
        instead(ax, "No report has a complete round.")
        return
    band = max(headline.band for headline in drawn)
    line_at_one(ax, "x", band)
    reached = list[float]()
    for y, headline in enumerate(drawn):
        middle, interval = _median(headline), _interval(headline)
        ends = [middle, *interval]
        if interval:
            ax.plot(interval, [y, y], color=INK, linewidth=2.5)
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
    ends = [headline.overhead_ratio.low, headline.overhead_ratio.high]
    known = [end for end in ends if end is not None]
    return known if len(known) == 2 else []


def ecdf(ax: Axes, requests: pd.DataFrame, headline: Headline) -> None:
    """Share of answered requests within a wall time, strategy against baseline."""
    put_titles(ax, words.title_ecdf(headline), words.subtitle(headline))
    good = requests[requests["round"].notna() & requests["outcome"].eq("ok")]
    walls = {
        arm: sorted(values)
        for arm in ("strategy", "baseline")
        if (values := good.loc[good["arm"].eq(arm), "wall_ms"].dropna().tolist())
    }
    if not walls:
        instead(ax, "No request was answered.")
        return
    longest = max(times[-1] for times in walls.values())
    slower = max(walls, key=lambda arm: sum(walls[arm]) / len(walls[arm]))
    for arm, times in walls.items():
        colour, dashes = (INK, "-") if arm == "strategy" else (FAINT, "--")
        shares = [count / len(times) for count in range(len(times) + 1)]
        ax.step([0.0, *times], shares, where="post", color=colour, ls=dashes, lw=2.5)
        # The slower arm's name stands right of its curve, the other's left where there is room.
        middle = len(times) // 2
        right = arm == slower or times[middle] < 0.3 * longest
        place = min(int(0.9 * len(times)), len(times) - 1) if arm != slower and right else middle
        name = headline.strategy if arm == "strategy" else arm
        text, away = f"{name}\n(n = {len(times)})", (9, -4) if right else (-9, 4)
        label(ax, text, (times[place], shares[place]), away)
    ax.set(xlim=(0, longest * 1.3), ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(lambda value, _: percent(value))
    ax.set(xlabel="wall time of one request (ms)", ylabel="share of requests (%)")


def round_ratios(ax: Axes, rounds: pd.DataFrame, headline: Headline) -> None:
    """Every round's ratio as a point, the median and its interval beside them."""
    put_titles(ax, words.title_rounds(headline), words.subtitle(headline))
    done = rounds[rounds["complete"]]
    if done.empty:
        instead(ax, "No round is complete.")
        return
    line_at_one(ax, "y", headline.band)
    ax.plot((done["round"] + 1).tolist(), done["ratio"].tolist(), "o", color=INK, markersize=8)
    last = int(rounds["round"].max()) + 1
    if interval := _interval(headline):
        beside, middle = last + 0.8, _median(headline)
        ax.plot([beside, beside], interval, color=INK, linewidth=2.5)
        ax.plot([beside], [middle], "D", color=INK, markersize=8)
        label(ax, f"median {number(middle, 2)}\n95 % interval", (beside, middle), (8, 0))
    ax.set_xlim(0.5, last * 1.25 + 1)
    ax.set_ylim(0, max(1.2, float(done["ratio"].max()) * 1.15))
    ax.locator_params("x", integer=True)
    ax.set_xticks([tick for tick in ax.get_xticks() if 1 <= tick <= last])
    ax.set(xlabel="round (in the order measured)", ylabel="total time / baseline's (ratio)")


def ruler(ax: Axes, rows: pd.DataFrame, cases: Sequence[str], title: str, under: str) -> None:
    """The instrument's bias for each known behaviour, and the range that 95 % stay within.

    `rows` is `tables.ruler(ruler)`, `cases` its `documents.ruler_cases`, `title` its finding.
    """
    put_titles(ax, title, under)
    if rows.empty:
        instead(ax, "Nothing was checked.")
        return
    for y, row in enumerate(rows.to_dict("records")):
        ax.plot([0, row["p95_ms"]], [y, y], color=FAINT, linewidth=2.5)  # NaN draws nothing
        ax.plot([row["bias_ms"]], [y], "D", color=INK, markersize=7)
        text = f"{number(row['bias_ms'], 2)} ms"
        ax.annotate(text, (row["bias_ms"], y), (0, 9), textcoords="offset points", ha="left")
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), list(cases), fontsize=10)
    ax.set_ylim(len(rows) - 0.3, -0.8)
    ax.set_xlabel("measured minus true (ms)")
