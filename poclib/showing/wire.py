"""The wire test in words, tables and charts: what a round trip costs a sharded model, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import ReportError
from ..points import Wire
from ..reading.wire import FITTED_TO_MS, Law, by_split, cases, fit, lawful, left_out
from .format import bullets, day, inline, many, milliseconds, number, percent, table
from .style import FAINT, INK, label, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Round trips that such ways usually have.
WAYS = {"one room, cable": 0.5, "Wi-Fi": 5.0, "one city": 10.0, "one continent": 40.0}
WAYS |= {"across an ocean": 90.0}
# As their authors report them, on other models and machines; nothing here has checked them.
OTHERS = (
    "exo, its issue 1723: 24 tokens a second at under 1 ms, 2.5 to 7.9 at 40 to 70 ms",
    "leyten/shard: 1.87 tokens a second over 22 to 75 ms, about 30 by guessing and by stages that "
    "do not wait",
)


def provenance(wire: Wire) -> str:
    """When, on what, and with which engine and model."""
    about = wire.about
    told = [day(about["created"]), many(about["environment"]["cores"] or 0, "core")]
    told += [inline(about["engine"]), f"{inline(about['model'])}, {about['layers']} layers"]
    return " · ".join([*told, many(len(wire.points), "measurement")])


def law_of(found: pd.DataFrame) -> tuple[Law, pd.DataFrame]:
    """The law and the cases that it is fitted to. Raises `ReportError` where they are too few."""
    rows = lawful(found)
    if len(rows) < 4 or rows["round_trip_ms"].nunique() < 2 or rows["workers"].nunique() < 2:
        told = "a law needs two distances and two numbers of workers, measured"
        raise ReportError(f"{told}: run ./run-poc.sh wire.")
    return fit(rows), rows


def title(found: pd.DataFrame) -> str:
    """What a token of two equal stages pays, near and at the distance where ways are compared."""
    rows = lawful(found)
    two = rows[rows["split"] == "1:1"].set_index("round_trip_ms")
    far = 50.0 if 50.0 in two.index else two.index.max()
    near, there = two.iloc[0], two.loc[far]
    return (
        f"Two stages: {number(1000 / near['token_ms'], 0)} tokens a second side by side, "
        f"{number(1000 / there['token_ms'], 1)} at a round trip of {number(far, 0)} ms, as each "
        f"token waits for {number(there['hops'], 1)} of them"
    )


def finding(wire: Wire) -> str:
    """The bottom line."""
    found = cases(wire)
    law, rows = law_of(found)
    won = best(found)
    more = f" {won}." if won else ""
    return (
        f"{title(found)}.{more} A token's time is its compute, its hops times {number(law.slope)} "
        f"round trips, and its bytes: that law explains {percent(law.r2, 1)} of the variance "
        f"of {many(law.n, 'case')} up to {number(FITTED_TO_MS, 0)} ms."
    )


def best(found: pd.DataFrame) -> str:
    """What won back the most among the ways measured at one distance; "" where none was."""
    rows = found[found["study"] == "wins back"].dropna(subset=["rate"])
    if len(rows) < 2:
        return ""
    top, base = rows.loc[rows["rate"].idxmax()], rows.iloc[0]
    return (
        f"Of what wins it back at {number(base['round_trip_ms'], 0)} ms, {inline(top['name'])} did "
        f"most: {number(top['rate'] / base['rate'], 1)} times the rate of {inline(base['name'])}"
    )


def trust(found: pd.DataFrame) -> str:
    """How well the law foretells what it has not seen, as a Markdown list."""
    _, rows = law_of(found)
    lines = []
    for by, what in (("round_trip_ms", "round trip"), ("split", "split")):
        off = left_out(rows, by)
        worst = off.loc[off["farthest"].abs().idxmax()]
        each = ", ".join(
            f"{value if by == 'split' else milliseconds(value)} {_signed(mean)}"
            for value, mean in zip(off[by], off["mean"], strict=True)
        )
        lines.append(
            f"A {what} left out of the fit is foretold, on the mean of its cases, so far off: "
            f"{each}; the single case farthest off by {_signed(worst['farthest'])}."
        )
    return bullets(lines)


def _signed(share: float) -> str:
    return f"{'+' if share > 0 else ''}{percent(share, 1)}"


def hops(found: pd.DataFrame) -> str:
    """Hops and bytes a token of each split, counted and fitted, as a Markdown table."""
    header = ["workers", "layers", "hops, counted", "round trips, fitted", "bytes there", "back"]
    return _table(by_split(lawful(found)), header, [0, None, 2, 2, 0, 0], [0, 1, 2, 5, 3, 4])


def rows_of(found: pd.DataFrame, study: str, columns: dict[str, str]) -> str:
    """The cases of a study as a Markdown table: `columns` by name, with their headings."""
    rows = found[found["study"] == study][list(columns)]
    return _table(rows, list(columns.values()), [2] * len(columns), list(range(len(columns))))


def _table(rows: pd.DataFrame, header: list[str], decimals: list[Any], order: list[int]) -> str:
    cells = []
    for row in rows.itertuples(index=False):
        values = zip((row[i] for i in order), decimals, strict=True)
        cells.append([_cell(value, places) for value, places in values])
    return table(header, cells, markdown=True)


def _cell(value: Any, decimals: int | None) -> str:
    if isinstance(value, str):
        return inline(value, 200) or "-"
    if pd.isna(value):
        return "-"
    return number(float(value), 0 if float(value).is_integer() else decimals or 0)


def predictions(found: pd.DataFrame) -> str:
    """What the law foretells of the tested model over ways of usual length, as a Markdown table."""
    law, rows = law_of(found)
    base = rows[rows["split"] == "1:1"].iloc[0].to_dict()
    cells = []
    for way, trip_ms in WAYS.items():
        token_ms = float(law.token_ms(base | {"round_trip_ms": trip_ms}))
        cells.append([way, milliseconds(trip_ms), milliseconds(token_ms), number(1000 / token_ms, 1)])
    return table(["way (prediction)", "round trip", "a token", "tokens a second"], cells, True)


def law(ax: Axes, wire: Wire) -> None:
    """A token's time against the round trip: signs as measured, lines as the law has it."""
    found = cases(wire)
    fitted, rows = law_of(found)
    titles(ax, title(found), provenance(wire))
    every = found[(found["study"] == "law") & (found["in_flight"] == 1)].dropna(subset=["hops"])
    for mark, ((workers, split), own) in zip("os^D", every.groupby(["workers", "split"])):  # noqa: B905
        ax.plot(own["round_trip_ms"], own["token_ms"], mark, color=INK, mfc="white", markersize=7)
        ax.plot(own["round_trip_ms"], fitted.token_ms(own), color=FAINT, linewidth=1.2, zorder=0)
        last = own.iloc[-1]
        text = f"{many(int(workers), 'worker')}, {split}"
        down = -8 if split == "1:2" else 6
        label(ax, text, (last["round_trip_ms"], last["token_ms"]), (8, down))
    ax.set(xlabel="round trip to each worker (ms); lines: the law", ylabel="time of a token (ms)")
    ax.set(xlim=(0, every["round_trip_ms"].max() * 1.28), ylim=(0, None))


def won(ax: Axes, wire: Wire) -> None:
    """Tokens a second together, a row for each way to pay less; the line is the range."""
    found = cases(wire)
    rows = found[found["study"] == "wins back"].dropna(subset=["rate"])
    titles(ax, best(found) or "Nothing that wins back was measured", provenance(wire))
    for y, row in enumerate(rows.itertuples()):
        ax.plot([row.low, row.high], [y, y], color=FAINT, linewidth=2.5)
        ax.plot([row.rate], [y], "D", color=INK, markersize=7)
        label(ax, f"{number(row.rate, 1)}", (float(row.high), y), (10, 0))
    ax.set_yticks(range(len(rows)), [inline(name) for name in rows["name"]])
    ax.set(xlim=(0, rows["high"].max() * 1.15), xlabel="tokens a second, all sequences together")
    ax.invert_yaxis()


def memory(found: pd.DataFrame) -> str:
    """What workers with too little memory for the model do alone, and together."""
    lines = []
    for row in found[found["study"] == "memory"].itertuples():
        did = f"{number(row.rate, 1)} tokens a second" if pd.isna(row.problem) else row.problem
        lines.append(f"{many(int(row.workers), 'worker')}: {inline(did, 300)}")
    return bullets(lines) or "It was not measured."
