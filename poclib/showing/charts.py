"""One function a chart: it draws on `ax` and returns None. Knows no report and computes nothing.

Frames come from `tables`, sentences from `words` and `titles`, so a picture cannot say another
thing than the text beside it. Charts along time lie in `timelines`, the look in `canvas`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from ..reading.phases import OVERHEAD, SEGMENTS
from ..stats import Headline
from ..stats import shares as provider_shares
from . import titles, words
from .format import day, many, milliseconds, number, percent
from .style import BAND, FAINT, INK, apart, ink_on, instead, key, label
from .style import titles as put_titles
from .style import use_style as use_style
from .timeline import anatomy as anatomy
from .timeline import timeline as timeline

STRATEGY, BASELINE = INK, FAINT


def breakdown(ax: Axes, *headlines: Headline) -> None:
    """Mean parts of one request, stacked, a bar per role and strategy, labelled where it fits."""
    under = words.subtitle(headlines[0]) if len(headlines) == 1 else _dates(headlines)
    put_titles(ax, titles.breakdown(headlines), f"means · {under}")
    alone = len(headlines) == 1
    bars = [
        (f"{role} request" if alone else f"{one.strategy}, {role}", found)
        for one in headlines
        for role, found in one.segments_ms.items()
    ]
    if not bars:
        instead(ax, "No request was answered, so there is nothing to divide.")
        return
    whole = max(sum(found.values()) for _, found in bars)
    for y, (_, found) in enumerate(bars):
        left = 0.0
        for part in (part for part in SEGMENTS if part.key in found):
            width, colour = found[part.key], part.colour
            ax.barh(y, width, left=left, height=0.7, color=colour, edgecolor="white")
            if width > (0.08 if alone else 0.12) * whole:
                text = number(width, 1 if width < 100 else 0)
                ax.text(left + width / 2, y, text, ha="center", va="center", color=ink_on(colour))
            left += width
        ax.text(left, y, f" {milliseconds(left)}", va="center")
    ax.set_yticks(range(len(bars)), [name for name, _ in bars])
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.set_xlim(0, whole * 1.18)
    ax.set_xlabel("mean time of one request (ms)")
    key(ax, {part for _, found in bars for part in found})


def overhead(ax: Axes, overheads: pd.DataFrame, headline: Headline) -> None:
    """Every request's time outside its server as a point, and each part of it; a tick at means.

    `overheads` is `tables.overhead(report)`: a row per request with provider, role, arm,
    over_ms, network_ms, server_queue_ms, ours_ms, unexplained_ms. The strategy's arms are drawn.
    """
    mine = overheads[overheads["arm"].eq("strategy")]
    put_titles(ax, titles.overhead(mine.to_dict("records")), words.subtitle(headline))  # type: ignore[arg-type]
    ticks, y, low, high = dict[float, str](), 0.0, 0.0, 0.0
    for provider, group in mine.groupby("provider"):
        for part in OVERHEAD:
            values = group[part.key].dropna().astype(float).to_numpy()
            if not len(values):
                continue
            ticks[y] = f"{provider}: {part.label}"
            # Points of one row are spread over its height in the order they came.
            beside = y + 0.5 * (np.arange(len(values)) % 7 / 6 - 0.5)
            ax.scatter(values, beside, s=34, color=part.colour, edgecolors=INK, linewidths=0.5)
            mean = float(values.mean())
            ax.plot([mean, mean], [y - 0.42, y + 0.42], color=INK, linewidth=2.5)
            ax.annotate(
                milliseconds(mean),
                (1.01, y),
                xycoords=ax.get_yaxis_transform(),
                va="center",
                annotation_clip=False,
            )
            low, high, y = min(low, values.min()), max(high, values.max()), y + 1
        y += 0.5
    if not ticks:
        instead(ax, "No server reported its own time,\nso what lies outside it is unknown.")
        return
    ax.annotate("mean", (1.01, -0.8), xycoords=ax.get_yaxis_transform(), annotation_clip=False)
    if low < 0:
        ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(list(ticks), list(ticks.values()))
    ax.set_ylim(y - 0.8, -0.7)
    ax.set_xlim(low * 1.05, high * 1.05 or 1.0)
    ax.set_xlabel("time outside the server, per request (ms)")


def ratios(
    ax: Axes, headlines: Sequence[Headline], predicted: Mapping[str, float] | None = None
) -> None:
    """Forest plot: each strategy's ratio with its interval, on a log axis even around 1x.

    The band of no practical difference is the widest of the reports'. `predicted` ratios, by
    strategy, are drawn as open triangles.
    """
    drawn = sorted((one for one in headlines if one.round_ratios), key=_middle)
    under = f"median and 95 % interval · {_dates(headlines)}"
    put_titles(ax, titles.ratios(headlines), under)
    if not drawn:
        instead(ax, "No report has a complete round.")
        return
    band = max(one.band for one in drawn)
    ax.axvspan(1 - band, 1 + band, color=BAND, zorder=0)
    ax.axvline(1, color=INK, linewidth=1)
    reach = 1.2
    for y, one in enumerate(drawn):
        found = one.overhead_ratio
        ends = [end for end in (found.low, found.median, found.high) if end]
        middle = _middle(one)
        if found.low is not None and found.high is not None:
            ax.plot([found.low, found.high], [y, y], color=INK, linewidth=2.5)
        ax.plot([middle], [y], "o" if len(ends) == 3 else "D", color=INK, markersize=8)
        text = words.ratio(one) if len(ends) < 3 else number(middle, 2) + words.per_token(one)
        foretold = (predicted or {}).get(one.strategy)
        if foretold:
            ax.plot([foretold], [y + 0.27], "^", color=INK, mfc="white", markersize=9)
            ends.append(foretold)
        label(ax, text, (max(ends), y), (9, 0))
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
    ax.set_ylim(len(drawn) - 0.4, -0.8)
    ax.set_xlabel(
        "total time / baseline's total time (ratio; left of 1 is faster)\n"
        f"shaded: no practical difference ({1 - band:.2f} to {1 + band:.2f})"
        + ("; triangle: predicted" if predicted else "")
    )


def save_ratios(headlines: Sequence[Headline], path: Path) -> None:
    """`ratios` as a PNG file that is the same for the same headlines: the README's picture."""
    use_style()
    figure, ax = plt.subplots(figsize=(8, 4.6))
    ratios(ax, headlines)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def ecdf(ax: Axes, requests: pd.DataFrame, headline: Headline) -> None:
    """Share of answered requests within a wall time, strategy against baseline."""
    put_titles(ax, titles.ecdf(headline), words.subtitle(headline))
    good = requests[requests["round"].notna() & requests["outcome"].eq("ok")]
    styles = {"strategy": (STRATEGY, "-"), "baseline": (BASELINE, "--")}
    found = {
        arm: np.sort(good.loc[good["arm"] == arm, "wall_ms"].dropna().to_numpy()) for arm in styles
    }
    found = {arm: walls for arm, walls in found.items() if len(walls)}
    longest = max((float(walls[-1]) for walls in found.values()), default=0.0)
    if not longest:
        instead(ax, "No request was answered.")
        return
    # The curve on the right is named on its right, the other one on its left where there is room.
    order = sorted(found, key=lambda arm: float(found[arm].mean()), reverse=True)
    for arm, walls in found.items():
        colour, dashes = styles[arm]
        x = np.concatenate([[0.0], walls])
        ax.step(x, np.arange(len(x)) / len(walls), where="post", color=colour, ls=dashes, lw=2.5)
        at = (len(walls) - 1) // 2
        right = arm == order[0] or float(walls[at]) < 0.3 * longest
        high = 0.5 if arm == order[0] else 0.9
        at = min(int(high * len(walls)), len(walls) - 1) if right else at + 1
        name = headline.strategy if arm == "strategy" else arm
        point = (float(walls[min(at, len(walls) - 1)]), at / len(walls))
        label(ax, f"{name}\n(n = {len(walls)})", point, (9, -4) if right else (-9, 4))
    ax.set_xlim(0, longest * 1.3)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    ax.set_xlabel("wall time of one request (ms)")
    ax.set_ylabel("share of requests (%)")


def round_ratios(ax: Axes, rounds: pd.DataFrame, headline: Headline) -> None:
    """Every round's ratio as a point, the median and its interval beside them."""
    put_titles(ax, titles.rounds(headline), words.subtitle(headline))
    done = rounds[rounds["complete"]]
    if done.empty:
        instead(ax, "No round is complete.")
        return
    found = headline.overhead_ratio
    ax.axhspan(1 - headline.band, 1 + headline.band, color=BAND, zorder=0)
    ax.axhline(1, color=INK, linewidth=1)
    x = done["round"].astype(int).to_numpy() + 1
    ax.plot(x, done["ratio"], "o", color=INK, markersize=8)
    last = int(rounds["round"].max()) + 1
    beside = last + 0.8
    if found.low is not None and found.high is not None:
        ax.plot([beside, beside], [found.low, found.high], color=INK, linewidth=2.5)
        middle = _middle(headline)
        ax.plot([beside], [middle], "D", color=INK, markersize=8)
        text = f"median {number(middle, 2)}\n95 % interval"
        label(ax, text, (beside, middle), (8, 0))
    ax.set_xlim(0.5, last * 1.25 + 1)
    ax.set_ylim(0, max(1.2, float(done["ratio"].max()) * 1.15))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xticks([tick for tick in ax.get_xticks() if 1 <= tick <= last])
    ax.set_xlabel("round (in the order measured)")
    ax.set_ylabel("total time / baseline's (ratio)")


def shares(ax: Axes, headline: Headline) -> None:
    """Each provider's share of the prompts done against its share of the pool's speed.

    On the diagonal a provider did what its speed allows; above it everybody waited for it,
    below it stood idle. The busiest one, the binding leg, is filled.
    """
    put_titles(ax, titles.share(headline), words.subtitle(headline))
    found = [one for one in provider_shares(headline) if one.speed is not None]
    if not found:
        instead(ax, "Some provider's speed is unknown, so shares of it cannot be drawn.")
        return
    most = max(max(one.speed or 0.0, one.done) for one in found)
    reach = 1.0 if most > 0.5 else min(1.0, 1.5 * most)
    ax.plot([0, reach], [0, reach], color=FAINT, linewidth=1, linestyle="--")
    ax.text(0.95 * reach, reach, "share = speed", ha="right", va="center")
    busiest = max(one.busy or 0.0 for one in found)
    column = apart([one.done for one in found], 0.07 * reach)
    for one, height in zip(found, column, strict=True):
        face = INK if one.busy == busiest else "white"
        x, y = one.speed or 0.0, one.done
        busy = "never busy" if not y else f"busy {percent(one.busy)} of the time"
        text = f"{one.provider}: {percent(y)} of the prompts,"
        if len(found) <= 2:  # beside its point, on the side away from the diagonal
            label(
                ax, text.replace(": ", ":\n") + f"\n{busy}", (x, y), _beside(x / reach, y / reach)
            )
        else:  # in a column beside the chart, so that many do not collide
            ax.plot([x, 1.02 * reach], [y, height], color=FAINT, lw=0.6, clip_on=False)
            ax.text(1.03 * reach, height, f"{text} {busy}", va="center", fontsize=11)
        ax.plot([x], [y], "o", color=INK, mfc=face, markersize=11, clip_on=False, zorder=5)
    ax.set_xlim(0, reach)
    ax.set_ylim(0, reach * 1.04)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    ax.set_xlabel("share of the pool's speed (%)")
    ax.set_ylabel("share of the prompts (%)")


def _beside(x: float, y: float) -> tuple[float, float]:
    """Where a label of a third of the chart's width clears its point, the diagonal, the edges."""
    up = 9.0 if y < 0.12 else -9.0 if y > 0.88 else 0.0
    if y >= x:
        return (-12, up) if x >= 0.33 else (12, up or (0 if y - x > 0.36 else 9))
    return (12, up) if x <= 0.66 else (-12, up or (9 if y < 0.25 else -9))


_MARKS = "osD^vP*X"


def lengths(ax: Axes, requests: pd.DataFrame, lines: pd.DataFrame, headline: Headline) -> None:
    """Wall time against the answer's length, a point a request, and the line through them.

    `requests` is `tables.requests(report)`, `lines` is `tables.lengths(report)`; the strategy's
    answered requests are drawn, a mark per provider.
    """
    put_titles(ax, titles.lengths(lines.to_dict("records")), words.subtitle(headline))  # type: ignore[arg-type]
    good = requests[requests["arm"].eq("strategy") & requests["outcome"].eq("ok")]
    good = good.dropna(subset=["output_tokens", "wall_ms"])
    if good.empty:
        instead(ax, "No server counted its answers' tokens.")
        return
    longest, slowest = float(good["output_tokens"].max()), float(good["wall_ms"].max())
    rows = lines.to_dict("records")
    tips = []
    for place, row in enumerate(rows):
        mine = good[good["provider"].eq(row["provider"])]
        x, y = mine["output_tokens"].astype(float), mine["wall_ms"].astype(float)
        face = "white" if place % 2 else INK
        ax.plot(x, y, _MARKS[place % len(_MARKS)], color=INK, mfc=face, markersize=8, ls="none")
        tip = (float(x.max()), float(y.mean()))
        if not np.isnan(row["each_ms"]):
            reach = np.array([x.min(), x.max()])
            heights = row["besides_ms"] + row["each_ms"] * reach
            ax.plot(reach, heights, color=FAINT, linewidth=1.5, ls="--" if place % 2 else "-")
            tip = (tip[0], float(heights[-1]))
        tips.append(tip)
    beside = apart([height for _, height in tips], 0.14 * slowest)
    for row, (x_end, _), height in zip(rows, tips, beside, strict=True):
        text = f"{row['provider']}\n(n = {row['n']})"
        ax.text(x_end + 0.03 * longest, height, text, va="center")
    ax.set_xlim(0, longest * 1.25)
    ax.set_ylim(0, max(slowest, *(height for _, height in tips)) * 1.1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("length of the answer (tokens)")
    ax.set_ylabel("wall time of one request (ms)")


def _middle(headline: Headline) -> float:
    return headline.overhead_ratio.median or 0.0


def _dates(headlines: Sequence[Headline]) -> str:
    days = sorted({day(one.created) for one in headlines}) or ["no date"]
    providers = sorted({name for one in headlines for name in one.providers})
    span = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    counts = [one.overhead_ratio.rounds for one in headlines] or [0]
    n = (
        many(counts[0], "round")
        if min(counts) == max(counts)
        else f"{min(counts)} to {max(counts)} rounds"
    )
    return f"{n} each · {', '.join(providers)} · {span}"


def drift(ax: Axes, requests: pd.DataFrame, title: str, headline: Headline) -> None:
    """One request alone on each machine over the run: calibration, from start to end.

    `requests` is `tables.requests(report)`, `title` is `words.title_drift(report)`.
    """
    put_titles(ax, title, words.subtitle(headline))
    timed = requests[requests["arm"].eq("calibration") & requests["outcome"].eq("ok")]
    timed = timed.dropna(subset=["start_ms", "wall_ms"])
    if timed.empty:
        instead(ax, "No calibration has times, so drift is unknown.")
        return
    dashes = ["-", "--", ":", "-."]
    for place, (provider, rows) in enumerate(timed.groupby("provider", sort=False)):
        rows = rows.sort_values("start_ms")
        x, y = rows["start_ms"].to_numpy() / 1000, rows["wall_ms"].to_numpy()
        ax.plot(x, y, "o", ls=dashes[place % 4], color=INK, markersize=6, lw=1.2)
        ax.annotate(str(provider), (x[-1], y[-1]), (8, 0), textcoords="offset points", va="center")
    ax.set_xlim(0, float(timed["start_ms"].max()) / 1000 * 1.15)
    ax.set_ylim(0, float(timed["wall_ms"].max()) * 1.15)
    ax.set_xlabel("time since the run began (s)")
    ax.set_ylabel("one request alone (ms)")


def ruler(ax: Axes, rows: pd.DataFrame, cases: Sequence[str], title: str, under: str) -> None:
    """The instrument's bias for each known behaviour, and the range that 95 % stay within.

    `rows` is `tables.ruler(found)`, `cases` its `accuracy.ruler_cases`, `title` its finding.
    """
    put_titles(ax, title, under)
    if rows.empty:
        instead(ax, "Nothing was checked.")
        return
    for y, row in enumerate(rows.to_dict("records")):
        if row["p95_ms"] == row["p95_ms"]:  # not NaN
            ax.plot([0, row["p95_ms"]], [y, y], color=FAINT, linewidth=2.5)
        ax.plot([row["bias_ms"]], [y], "D", color=INK, markersize=7)
        text = f"{number(row['bias_ms'], 2)} ms"
        ax.annotate(text, (row["bias_ms"], y), (0, 9), textcoords="offset points", ha="left")
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(rows)), list(cases), fontsize=10)
    ax.set_ylim(-0.8, len(rows) - 0.3)
    ax.invert_yaxis()
    ax.set_xlabel("measured minus true (ms)")
