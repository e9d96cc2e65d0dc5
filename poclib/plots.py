"""One function a chart: it draws on `ax` and returns None. Knows no report and computes nothing.

Frames come from `tables`, sentences from `words`, so a picture cannot say another thing than
the text beside it. The only module that imports matplotlib.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from . import words
from .stats import SEGMENTS, Headline, segments

WAITING = "#bdbdbd"
# Okabe-Ito throughout; the last two are for times that no source splits further.
PALETTE = {
    "connect_send_ms": "#56b4e9",
    "first_token_ms": "#0072b2",
    "generating_ms": "#e69f00",
    "own_ms": "#000000",
    "answering_ms": "#009e73",
    "outside_ms": "#cc79a7",
}
INK = "#222222"
STRATEGY, BASELINE = "#222222", "#8a8a8a"
MOST_ROWS = 60
_LIGHT = {"connect_send_ms", "generating_ms", "outside_ms"}  # dark ink is legible on these


def use_style() -> None:
    """Set type, lines and sizes for every chart after this call; half width stays legible."""
    plt.rcParams.update(
        {
            "figure.figsize": (9, 4.5),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.titlesize": 13,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": INK,
            "axes.labelcolor": INK,
            "text.color": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "svg.hashsalt": "poclib",
        }
    )


def timeline(ax: Axes, requests: pd.DataFrame, headline: Headline, round: int = 0) -> None:
    """Gantt of the strategy in one round: a row per request, grouped by provider.

    `requests` is `tables.requests(report)`. A grey bar is the wait for a slot, its tick the
    moment the request was meant to start. Time 0 is the arm's first dispatch.
    """
    mine = requests[requests["round"].eq(round) & requests["arm"].eq("strategy")]
    timed = mine.dropna(subset=["start_ms", "wall_ms"])
    shown = timed.sort_values(["provider", "start_ms"]).head(MOST_ROWS)
    drawn = f"round {round + 1}, {len(shown)} of {len(mine)} requests drawn"
    _titles(ax, words.title_timeline(headline), f"{drawn} · {words.subtitle(headline)}")
    if shown.empty:
        _say(ax, "No times of day were stored for this round,\nso its order cannot be drawn.")
        return
    zero = float(timed["start_ms"].min())
    labels, seen, end = [], set[str](), 0.0
    for y, row in enumerate(shown.to_dict("records")):
        start = float(row["start_ms"]) - zero
        meant = max(row["assigned_ms"] - zero, 0.0)  # NaN where nobody knows
        if meant < start:
            ax.barh(y, start - meant, left=meant, height=0.3, color=WAITING)
            ax.plot([meant, meant], [y - 0.4, y + 0.4], color=INK, linewidth=1.2)
            seen.add("waiting")
        left = start
        for key, width in segments({str(k): v for k, v in row.items()}).items():
            ax.barh(y, width, left=left, height=0.8, color=PALETTE[key], edgecolor="white", lw=0.4)
            seen.add(key)
            left += width
        if row["outcome"] != "ok":
            ax.text(left, y, f" {row['outcome']}", va="center", color=INK)
        labels.append(f"{row['provider']}  #{row['prompt']}")
        end = max(end, left)
    ax.set_yticks(range(len(labels)), labels, fontsize=11 if len(labels) <= 20 else 7)
    ax.invert_yaxis()
    groups = shown["provider"].tolist()
    for y in range(1, len(groups)):
        if groups[y] != groups[y - 1]:
            ax.axhline(y - 0.5, color=INK, linewidth=0.6)
    ax.set_xlim(0, end * 1.02)
    ax.set_xlabel("time since the first dispatch (ms)")
    ax.set_ylabel("provider and prompt")
    _key(ax, seen)


def breakdown(ax: Axes, headline: Headline) -> None:
    """Mean parts of one request, stacked, a bar per role; labels stand in or over the parts."""
    _titles(ax, words.title_breakdown(headline), f"means · {words.subtitle(headline)}")
    means = headline.segments_ms
    if not means:
        _say(ax, "No request was answered, so there is nothing to divide.")
        return
    whole = max(sum(one.values()) for one in means.values())
    for y, found in enumerate(means.values()):
        left = 0.0
        for key in (key for key in SEGMENTS if key in found):
            width = found[key]
            ax.barh(y, width, left=left, height=0.6, color=PALETTE[key], edgecolor="white")
            if width > 0.08 * whole:
                ink = INK if key in _LIGHT else "white"
                middle = left + width / 2
                ax.text(middle, y, words.number(width, 1), ha="center", va="center", color=ink)
            left += width
        ax.text(left, y, f" {words.milliseconds(left)}", va="center")
    ax.set_yticks(range(len(means)), [f"{role} request" for role in means])
    ax.set_ylim(-0.5, len(means) - 0.5)
    ax.invert_yaxis()
    ax.set_xlim(0, whole * 1.15)
    ax.set_xlabel("mean time of one request (ms)")
    _key(ax, {key for found in means.values() for key in found})


def ratios(ax: Axes, headlines: Sequence[Headline]) -> None:
    """Forest plot: each strategy's ratio with its interval, on a log axis even around 1x.

    The band of no practical difference is the widest of the reports'.
    """
    drawn = sorted((one for one in headlines if one.round_ratios), key=_middle)
    under = f"median and 95 % interval · {_dates(headlines)}"
    _titles(ax, words.title_ratios(headlines), under)
    if not drawn:
        _say(ax, "No report has a complete round.")
        return
    band = max(one.band for one in drawn)
    ax.axvspan(1 - band, 1 + band, color="#e8e8e8", zorder=0)
    ax.axvline(1, color=INK, linewidth=1)
    reach = 1.2
    for y, one in enumerate(drawn):
        found = one.overhead_ratio
        ends = [end for end in (found.low, found.median, found.high) if end]
        middle = _middle(one)
        if found.low is not None and found.high is not None:
            ax.plot([found.low, found.high], [y, y], color=INK, linewidth=2.5)
        ax.plot([middle], [y], "o" if len(ends) == 3 else "D", color=INK, markersize=8)
        text = words.ratio(one) if len(ends) < 3 else words.number(middle, 2)
        label = ax.annotate(text, (middle, y), (0, 10), textcoords="offset points", ha="center")
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1})
        reach = max([reach, *(max(end, 1 / end) for end in ends)])
    ax.set_xscale("log")
    reach *= 1.25
    ax.set_xlim(1 / reach, reach)
    steps = [step for step in (1.25, 1.5, 2, 3, 5, 10, 20, 50, 100) if step <= reach]
    steps = steps[-1:] if len(steps) < 2 else [steps[(len(steps) - 1) // 2], steps[-1]]
    ticks = [*(1 / step for step in reversed(steps)), 1.0, *steps]
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}×"))  # noqa: RUF001
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(drawn)), [one.strategy for one in drawn])
    ax.set_ylim(-0.7, len(drawn) - 0.2)
    ax.invert_yaxis()
    ax.set_xlabel("total time / baseline's total time (ratio; left of 1 is faster)")


def save_ratios(headlines: Sequence[Headline], path: Path) -> None:
    """`ratios` as a PNG file that is the same for the same headlines: the README's picture."""
    use_style()
    figure, ax = plt.subplots(figsize=(9, 5))
    ratios(ax, headlines)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def ecdf(ax: Axes, requests: pd.DataFrame, headline: Headline) -> None:
    """Share of answered requests within a wall time, strategy against baseline."""
    _titles(ax, words.title_ecdf(headline), words.subtitle(headline))
    good = requests[requests["round"].notna() & requests["outcome"].eq("ok")]
    styles = {"strategy": (STRATEGY, "-"), "baseline": (BASELINE, "--")}
    found = {
        arm: np.sort(good.loc[good["arm"] == arm, "wall_ms"].dropna().to_numpy()) for arm in styles
    }
    found = {arm: walls for arm, walls in found.items() if len(walls)}
    longest = max((float(walls[-1]) for walls in found.values()), default=0.0)
    # The curve on the right is named on its right, the other one on its left.
    order = sorted(found, key=lambda arm: float(found[arm].mean()), reverse=True)
    for arm, walls in found.items():
        colour, dashes = styles[arm]
        x = np.concatenate([[0.0], walls])
        ax.step(x, np.arange(len(x)) / len(walls), where="post", color=colour, ls=dashes, lw=2)
        right = arm == order[0]
        at = (len(walls) - 1) // 2
        ax.annotate(
            f"{headline.strategy if arm == 'strategy' else arm}\n(n = {len(walls)})",
            (walls[at], (at if right else at + 1) / len(walls)),
            (8 if right else -8, -4 if right else 4),
            textcoords="offset points",
            ha="left" if right else "right",
            va="top" if right else "bottom",
        )
    if not longest:
        _say(ax, "No request was answered.")
        return
    ax.set_xlim(0, longest * 1.25)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.percent(value)))
    ax.set_xlabel("wall time of one request (ms)")
    ax.set_ylabel("share of requests (%)")


def round_ratios(ax: Axes, rounds: pd.DataFrame, headline: Headline) -> None:
    """Every round's ratio as a point, the median and its interval beside them."""
    _titles(ax, words.title_rounds(headline), words.subtitle(headline))
    done = rounds[rounds["complete"]]
    if done.empty:
        _say(ax, "No round is complete.")
        return
    found = headline.overhead_ratio
    ax.axhspan(1 - headline.band, 1 + headline.band, color="#e8e8e8", zorder=0)
    ax.axhline(1, color=INK, linewidth=1)
    x = done["round"].astype(int).to_numpy() + 1
    ax.plot(x, done["ratio"], "o", color=INK, markersize=8)
    last = int(rounds["round"].max()) + 1
    beside = last + 0.8
    if found.low is not None and found.high is not None:
        ax.plot([beside, beside], [found.low, found.high], color=INK, linewidth=2.5)
        middle = _middle(headline)
        ax.plot([beside], [middle], "D", color=INK, markersize=8)
        text = f"median {words.number(middle, 2)}\n95 % interval"
        ax.annotate(text, (beside, middle), (8, 0), textcoords="offset points", va="center")
    ax.set_xlim(0.5, last + 2)
    ax.set_ylim(0, max(1.2, float(done["ratio"].max()) * 1.15))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xticks([tick for tick in ax.get_xticks() if 1 <= tick <= last])
    ax.set_xlabel("round (in the order measured)")
    ax.set_ylabel("total time / baseline's (ratio)")


def _middle(headline: Headline) -> float:
    return headline.overhead_ratio.median or 0.0


def _titles(ax: Axes, title: str, under: str) -> None:
    """The finding in bold, and n, providers and date below it; no text is read as formula."""
    shown = ax.set_title(textwrap.fill(title, 72), pad=26)
    shown.set_parse_math(False)
    line = ax.annotate(under, (0, 1), (0, 8), "axes fraction", "offset points", fontsize=10.5)
    line.set_parse_math(False)


def _say(ax: Axes, sentence: str) -> None:
    """What stands where a chart would be empty."""
    ax.text(0.5, 0.5, sentence, ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def _key(ax: Axes, seen: set[str]) -> None:
    """The colours in the order they pass, below the axis, for parts too thin to be labelled."""
    order = [("waiting", WAITING, "waiting for a slot")]
    order += [(key, PALETTE[key], words.SEGMENT_LABELS[key]) for key in SEGMENTS]
    patches = [Patch(color=c, label=t) for k, c, t in order if k in seen]
    ax.legend(
        handles=patches,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=3,
        frameon=False,
        fontsize=10.5,
    )


def _dates(headlines: Sequence[Headline]) -> str:
    days = sorted({words.day(one.created) for one in headlines}) or ["no date"]
    providers = sorted({name for one in headlines for name in one.providers})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{', '.join(providers)} · {span}"
