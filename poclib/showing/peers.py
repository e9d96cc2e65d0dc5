"""What clients cost beside each other, from data/peers.json of `benchmarks/peers.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import ReportError
from .format import day, many, number
from .style import FAINT, INK, label, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = Path("data", "peers.json")
OURS, LIMIT = "poclib", "raw socket"


@dataclass(frozen=True)
class Peers:
    """What is known of a comparison, and its medians over the repeats by (in_flight, tool)."""

    about: dict[str, Any]
    medians: pd.DataFrame

    def at(self, in_flight: int) -> Any:
        """A frame of the tools that measure, the one with the most requests a second first."""
        rows: Any = self.medians.loc[in_flight]
        return rows.drop(index=LIMIT, errors="ignore").sort_values(
            "requests_per_s", ascending=False
        )


def read(root: Path) -> Peers:
    """The comparison that is saved. Raises `ReportError`."""
    try:
        about = json.loads((root / FILE).read_text("utf-8"))
        rows = pd.DataFrame(about.pop("rows"))
        medians = rows.drop(columns="repeat").groupby(["in_flight", "tool"]).median()
    except (OSError, ValueError, KeyError):
        told = f"{FILE} is absent or damaged; make it with `python benchmarks/peers.py --save`."
        raise ReportError(told) from None
    return Peers({**about, "repeats": int(rows["repeat"].max()) + 1}, medians)


def provenance(found: Peers) -> str:
    """When, on what, and which versions."""
    about = found.about
    tools = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    machine = f"{many(about['cores'], 'core')} of {about['processor']}"
    return f"{day(about['created'])} · {machine} · median of {about['repeats']} · {tools}"


def title_rates(found: Peers, in_flight: int) -> str:
    """How many requests a second ours carries, and the best of the others."""
    rates = found.at(in_flight)["requests_per_s"]
    others = rates.drop(OURS)
    return (
        f"{in_flight} in flight: {number(rates[OURS], 0)} requests a second, "
        f"{number(rates[OURS] / others.max())} times {others.idxmax()}"
    )


def title_said(found: Peers, in_flight: int) -> str:
    """What ours says of an answer that is there at once, and the one farthest from the truth."""
    rows = found.at(in_flight)[["said_ttft_ms", "true_ttft_ms"]]
    says, truly = rows.to_dict().values()
    worst = max(says, key=lambda tool: abs(says[tool] - truly[tool]))
    return (
        f"{in_flight} in flight: of a first token that took {number(truly[OURS])} ms {OURS} says "
        f"{number(says[OURS])}, {worst} {number(says[worst])} of one of {number(truly[worst])}"
    )


def rates(ax: Axes, found: Peers, in_flight: int) -> None:
    """Requests a second of each tool; the bare socket, which measures nothing, is named below."""
    rows = found.at(in_flight)["requests_per_s"]
    limit = found.medians["requests_per_s"].get((in_flight, LIMIT))
    bare = "" if limit is None else f"; a bare socket carries {number(limit, 0)}"
    titles(ax, title_rates(found, in_flight), f"{provenance(found)}{bare}")
    ax.barh(rows.index, rows, color=[INK if name == OURS else FAINT for name in rows.index])
    for y, rate in enumerate(rows):
        label(ax, number(rate, 0), (rate, y), (4, 0))
    ax.set(xlim=(0, rows.max() * 1.15), xlabel="requests a second")
    ax.invert_yaxis()


def said(ax: Axes, found: Peers, in_flight: int) -> None:
    """A diamond where each tool says the first token came, a line to where it truly did."""
    rows = found.at(in_flight).sort_values("said_ttft_ms")
    titles(ax, title_said(found, in_flight), provenance(found))
    for y, (_, row) in enumerate(rows.iterrows()):
        ax.plot([row["true_ttft_ms"], row["said_ttft_ms"]], [y, y], color=FAINT, linewidth=2.5)
        ax.plot([row["said_ttft_ms"]], [y], "D", color=INK, markersize=7)
        label(ax, f"{number(row['said_ttft_ms'])} ms", (row["said_ttft_ms"], y), (8, 0))
    ax.set_yticks(range(len(rows)), rows.index)
    ax.set(xlim=(0, rows["said_ttft_ms"].max() * 1.25), xlabel="said to take (ms); truly: left end")
    ax.set_ylim(len(rows) - 0.5, -0.5)
