"""How every chart looks: palette, type, title, key, labels that do not collide. Draws no data.

With `timelines` and `plots` the only modules that import matplotlib.
"""

from __future__ import annotations

import itertools
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.transforms import ScaledTranslation, Transform, blended_transform_factory

from ..reading.phases import CLIENT, FIRST, OWN, SEGMENTS, UNSPLIT

INK = "#222222"
FAINT, BAND = "#8a8a8a", "#e8e8e8"
DARK = {FIRST, OWN, UNSPLIT}


def use_style() -> None:
    """Set type, lines and sizes for every chart after this call; half width stays legible."""
    _keep_both_formats()
    plt.rcParams.update(
        {
            "figure.figsize": (8, 4.2),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 13,
            "axes.titlesize": 14,
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
            "svg.fonttype": "none",  # text stays text: to be searched, read aloud, scrubbed
        }
    )


def _keep_both_formats() -> None:
    """In a notebook: every figure as PNG and as SVG, its finding as alternative text."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not getattr(shell, "kernel", None):
        return
    plt.switch_backend(plt.get_backend())  # the notebook's backend sets its own formats first
    for kind, mime in (("png", "image/png"), ("svg", "image/svg+xml")):
        shell.display_formatter.formatters[mime].for_type(Figure, partial(_picture, kind))


def _picture(kind: str, figure: Figure) -> tuple[Any, dict[str, str]]:
    """A figure's bytes or text, the same for the same figure, and its metadata."""
    from IPython.core.pylabtools import print_figure

    unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {}
    made = print_figure(figure, kind, metadata=unsaid)  # type: ignore[no-untyped-call]
    return made, {"alt": finding(figure)}


def finding(figure: Figure) -> str:
    """What the charts in `figure` say, title and subtitle, for those who cannot see them."""
    return " ".join(said for ax in figure.axes if (said := str(ax.get_label())).endswith("."))


def ink_on(colour: str) -> str:
    """White on the dark colours of the palette, dark ink on the light ones."""
    return "white" if colour in DARK else INK


def titles(ax: Axes, title: str, under: str) -> None:
    """The finding in bold, and n, providers and date below it; no text is read as formula.

    They begin at the figure's edge, not the axis', so that long labels take no room from them.
    """
    grid = ax.get_subplotspec()
    columns = grid.get_gridspec().ncols if grid else 1
    inches = ax.figure.bbox.width / ax.figure.dpi / columns
    lines = textwrap.wrap(under, max(20, round(inches * 10.5))) or [""]
    pad = 10 + 15 * len(lines)
    shown = ax.set_title(balanced(title, max(20, round(inches * 8))), pad=pad)
    ax.set_label(f"{title}. {under}.")
    place = _edge(ax)
    shown.set_transform(place + ScaledTranslation(0, pad / 72, ax.figure.dpi_scale_trans))
    shown.set_x(0.01)
    shown.set_parse_math(False)
    below = "\n".join(lines)
    line = ax.annotate(below, (0.01, 1), (0, 8), place, "offset points", fontsize=11)
    line.set_in_layout(False)  # the title's distance holds its room
    line.set_parse_math(False)


def balanced(text: str, width: int) -> str:
    """`text` in as few lines of at most `width` characters as it needs, none much shorter.

    A number stays with the word that it counts.
    """
    glued = re.sub(r"(\d) (?=\S)", "\\1\N{NO-BREAK SPACE}", text)
    fewest = len(textwrap.wrap(glued, width))
    narrow = range(max(1, len(text) // max(1, fewest)), width)
    least = next((w for w in narrow if len(textwrap.wrap(glued, w)) <= fewest), width)
    return textwrap.fill(glued, least).replace("\N{NO-BREAK SPACE}", " ")


def _edge(ax: Axes) -> Transform:
    """From the left of the figure (of the axes where several stand side by side) and of `ax`."""
    grid = ax.get_subplotspec()
    wide = grid is None or grid.get_gridspec().ncols == 1
    return blended_transform_factory(ax.figure.transFigure if wide else ax.transAxes, ax.transAxes)


def label(ax: Axes, text: str, at: tuple[float, float], away: tuple[float, float]) -> None:
    """`text` beside the point `at`, `away` in points; it grows to the side it is moved to."""
    across = "left" if away[0] > 0 else "right" if away[0] < 0 else "center"
    up = "bottom" if away[1] > 0 else "top" if away[1] < 0 else "center"
    shown = ax.annotate(text, at, away, textcoords="offset points", ha=across, va=up, fontsize=12)
    shown.set_parse_math(False)
    shown.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})


def instead(ax: Axes, sentence: str) -> None:
    """What stands where a chart would be empty."""
    ax.text(0.5, 0.5, sentence, ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def key(ax: Axes, seen: set[str]) -> None:
    """The colours in the order they pass, below the axis, for parts too thin to be labelled."""
    order = (CLIENT[0], *SEGMENTS)
    patches = [Patch(color=phase.colour, label=phase.label) for phase in order if phase.key in seen]
    # A fixed distance below the axis, whatever the figure's height: clear of the axis' label.
    below = _edge(ax) + ScaledTranslation(0, -0.65, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=patches,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below,
        ncols=3,
        frameon=False,
        fontsize=12,
    )


def names(ax: Axes, ends: Mapping[str, tuple[float, float]]) -> None:
    """Each line's name beside its right end; those that end at the same x do not collide."""
    gap = ax.figure.bbox.height * 0.055
    for x in {at[0] for at in ends.values()}:
        mine = {name: at for name, at in ends.items() if at[0] == x}
        shown = [ax.transData.transform(at)[1] for at in mine.values()]
        for (name, at), old, new in zip(mine.items(), shown, clear(shown, gap), strict=True):
            label(ax, name, at, (9, (new - old) * 72 / ax.figure.dpi))


def clear(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart; those that must move do so evenly about their middle."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[int]] = []

    def first(group: Sequence[int]) -> float:
        return sum(wanted[i] for i in group) / len(group) - gap * (len(group) - 1) / 2

    for one in order:
        groups.append([one])
        while len(groups) > 1 and first(groups[-2]) + gap * len(groups[-2]) > first(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    places = {i: first(group) + gap * n for group in groups for n, i in enumerate(group)}
    return [places[i] for i in range(len(wanted))]


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the same order, as near to `wanted` as one pass gives.

    For labels at the end of lines; the whole moves down by half of what it had to grow.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found = list(wanted)
    for before, after in itertools.pairwise(order):
        found[after] = max(found[after], found[before] + gap)
    moved = (sum(found) - sum(wanted)) / len(wanted) if wanted else 0.0
    return [one - moved for one in found]
