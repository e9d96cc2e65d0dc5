"""How every chart looks: type, title, key, labels that do not collide. Draws no data.

matplotlib is loaded when something is drawn, so that a command that draws nothing starts fast.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from ..reading.phases import CLIENT, FIRST, OWN, SEGMENTS, UNSPLIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, BAND = "#222222", "#8a8a8a", "#e8e8e8"
DARK = {FIRST, OWN, UNSPLIT}  # of the palette: what stands on them is white
STEPS = (1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)  # the ratios that may be ticks, and 1 over them
_INKED = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys(_INKED, INK),
    "figure.figsize": (8, 4.2),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 13,
    "legend.frameon": False,
    "axes.titlesize": 14,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # names come from servers: no text is read as a formula
    "svg.hashsalt": "poclib",
    "svg.fonttype": "none",  # text stays text: to be searched, read aloud, scrubbed
}


def use_style() -> None:
    """Set type, lines and sizes for every chart after this call.

    In a notebook every figure is shown as PNG and as SVG, its finding as alternative text.
    """
    import matplotlib

    matplotlib.rcParams.update(STYLE)
    ipython = sys.modules.get("IPython")
    shell: Any = ipython and ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        return
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    plt.switch_backend(plt.get_backend())  # the notebook's backend sets its own formats first
    for kind, mime in (("png", "image/png"), ("svg", "image/svg+xml")):
        shell.display_formatter.formatters[mime].for_type(Figure, partial(picture, kind))


def picture(kind: str, figure: Figure) -> tuple[Any, dict[str, str]]:
    """A figure's bytes or text, the same for the same figure, and its metadata."""
    from IPython.core.pylabtools import print_figure

    absent = dict.fromkeys(("Date", "Creator", "Format", "Type")) if kind == "svg" else {}
    made = print_figure(figure, kind, metadata=absent)  # type: ignore[no-untyped-call]
    return made, {"alt": finding(figure)}


def finding(figure: Figure) -> str:
    """What the charts in `figure` say, title and subtitle, for those who cannot see them."""
    labels = (str(ax.get_label()) for ax in figure.axes)
    return " ".join(label for label in labels if label.endswith("."))


def titles(ax: Axes, title: str, under: str) -> None:
    """The finding in bold; below it n, providers and date.

    They begin at the figure's edge, not the axis', so that long labels take no room from them.
    """
    inches = ax.figure.bbox.width / ax.figure.dpi
    glued = re.sub(r"(\d) (?=\S)", "\\1\N{NO-BREAK SPACE}", title)  # a number and what it counts
    above = textwrap.fill(glued, round(inches * 8), break_on_hyphens=False)
    below = textwrap.wrap(under, round(inches * 10.5))
    pad = 10 + 15 * len(below)
    ax.set_label(f"{title}. {under}.")
    shown = ax.set_title(above.replace("\N{NO-BREAK SPACE}", " "), loc="left", pad=pad)
    shown.set_transform(_edge(ax, pad / 72))
    shown.set_x(0.01)
    line = ax.text(0.01, 1, "\n".join(below), transform=_edge(ax, 8 / 72), fontsize=11)
    line.set_in_layout(False)  # the title's distance holds its room


def _edge(ax: Axes, up_in: float) -> Any:
    """Across from the left of the figure, up from the bottom of `ax`, as shares; then inches up."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory

    shares = blended_transform_factory(ax.figure.transFigure, ax.transAxes)
    return shares + ScaledTranslation(0, up_in, ax.figure.dpi_scale_trans)


def label(ax: Axes, text: str, at: tuple[float, float], away: tuple[float, float]) -> None:
    """`text` beside the point `at`, `away` in points; it grows to the side it is moved to."""
    across = "left" if away[0] > 0 else "right"
    up = "bottom" if away[1] > 0 else "top" if away[1] < 0 else "center"
    shown = ax.annotate(text, at, away, textcoords="offset points", ha=across, va=up, fontsize=12)
    shown.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1})


def instead(ax: Axes, sentence: str) -> None:
    """What stands where a chart would be empty."""
    ax.text(0.5, 0.5, sentence, ha="center", va="center", transform=ax.transAxes)
    ax.set_axis_off()


def key(ax: Axes, seen: set[str]) -> None:
    """The colours in the order they pass, below the axis, for parts too thin to be labelled."""
    from matplotlib.patches import Patch

    order = (CLIENT[0], *SEGMENTS)
    patches = [Patch(color=phase.colour, label=phase.label) for phase in order if phase.key in seen]
    # A fixed distance below the axis, whatever the figure's height: clear of the axis' label.
    below = {"bbox_to_anchor": (0.5, 0), "bbox_transform": _edge(ax, -0.65)}
    ax.legend(handles=patches, loc="upper center", ncols=3, fontsize=12, **below)


def around_one(ax: Axes, along: Literal["x", "y"], ratios: Iterable[float], band: float) -> float:
    """Make `along` a log axis, even around a line at 1 and the band of no practical difference.

    Every ratio and 1 over it fit; returns the axis' upper end.
    """
    span, line = (ax.axvspan, ax.axvline) if along == "x" else (ax.axhspan, ax.axhline)
    span(1 - band, 1 + band, color=BAND, zorder=0)
    line(1, color=INK, linewidth=1)
    reach = 1.25 * max(1.2, *(max(ratio, 1 / ratio) for ratio in ratios))
    steps = [step for step in STEPS if step <= reach]
    steps = sorted({steps[(len(steps) - 1) // 2], steps[-1]})
    ax.set(**{f"{along}scale": "log", f"{along}lim": (1 / reach, reach)})
    axis = ax.xaxis if along == "x" else ax.yaxis
    axis.set_ticks([*(1 / step for step in reversed(steps)), 1.0, *steps])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(lambda value, _: f"{value:.2g}×")  # noqa: RUF001
    return reach
