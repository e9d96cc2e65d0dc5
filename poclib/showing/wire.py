"""The wire test in words, tables and charts: what distance costs a shared model, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import ReportError
from ..points import Wire
from ..reading.wire import FITTED_TO_MS, Law, cases, fit, lawful
from .format import day, inline, many, milliseconds, number, percent, table
from .style import FAINT, INK, label, titles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASE = "2 stages, 1 sequence"  # what the ways to win back are compared with
# Round trips that such ways usually have, in ms.
WAYS = {"one room": 0.5, "Wi-Fi": 5.0, "one city": 10.0, "one continent": 40.0, "an ocean": 90.0}
HEADINGS = {
    "name": "",
    "split": "layers",
    "round_trip_ms": "round trip (ms)",
    "token_ms": "a token (ms)",
    "law_ms": "by the law (ms)",
    "ttft_ms": "to the first token (ms)",
    "rate": "tokens a second",
    "hops": "hops a token",
    "fitted": "round trips, fitted",
    "to_worker_bytes": "bytes there",
    "to_coordinator_bytes": "bytes back",
    "jitter_ms": "jitter (ms)",
    "bandwidth_mbit_s": "Mbit/s",
    "prompt_tokens": "prompt (tokens)",
    "memory_mib": "MiB each",
    "mean": "off, mean (%)",
    "farthest": "farthest off (%)",
}
# As their authors report them, on other models and machines; nothing here has checked them.
OTHERS = (
    "exo, its issue 1723: 24 tokens a second at under 1 ms, 2.5 to 7.9 at 40 to 70 ms",
    "leyten/shard: 1.87 over 22 to 75 ms, about 30 with guesses and stages that do not wait",
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
    if min(rows[key].nunique() for key in ("round_trip_ms", "workers")) < 2:
        raise ReportError("a law needs two distances and two splits: run ./run-poc.sh wire.")
    return fit(rows), rows


def foretold(wire: Wire) -> pd.DataFrame:
    """The cases, each with what the law makes of it."""
    found = cases(wire)
    return found.assign(law_ms=law_of(found)[0].token_ms(found))


def title(found: pd.DataFrame) -> str:
    """What a token of two equal stages pays, near and at the distance where ways are compared."""
    rows = lawful(found)
    two = rows[rows["split"] == "1:1"].set_index("round_trip_ms")
    far = 50.0 if 50.0 in two.index else two.index.max()
    return (
        f"Two stages: {number(1000 / two['token_ms'].iloc[0], 0)} tokens a second side by side, "
        f"{number(1000 / two['token_ms'][far], 1)} at a round trip of {number(far, 0)} ms, as each "
        f"token waits for {number(two['hops'][far], 1)} of them"
    )


def finding(wire: Wire) -> str:
    """The bottom line; of workers of a person's own, at the one distance that they have."""
    found = cases(wire)
    if len(own := found[found["study"] == "own"].dropna(subset=["rate"])):
        rates = [f"{number(row['rate'], 1)} with {row['name']}" for _, row in own.iterrows()]
        one = own.iloc[0]
        share = one["hops"] * one["round_trip_ms"] / one["token_ms"]
        return (
            f"{many(int(one['workers']), 'worker')}: {', '.join(rates)} (tokens a second). One "
            f"token's {number(one['hops'], 1)} hops, at a round trip of "
            f"{milliseconds(one['round_trip_ms'])}, are {percent(share)} of its time."
        )
    law, won = law_of(found)[0], best(found)
    return (
        f"{title(found)}.{' ' if won else ''}{won} A token's time is its compute, its hops times "
        f"{number(law.slope)} round trips, and its bytes: that law explains {percent(law.r2, 1)} "
        f"of the variance of {many(law.n, 'case')} up to {number(FITTED_TO_MS, 0)} ms."
    )


def best(found: pd.DataFrame) -> str:
    """What won back the most among the ways measured at one distance; "" where none was."""
    rows = found[found["study"] == "wins back"].dropna(subset=["rate"])
    if BASE not in set(rows["name"]):
        return ""
    top = rows.sort_values("rate").iloc[-1]
    base = rows[rows["name"] == BASE].iloc[0]
    return (
        f"Of what wins it back at {number(base['round_trip_ms'], 0)} ms, {inline(top['name'])} did "
        f"most: {number(top['rate'] / base['rate'], 1)} times the rate of {BASE}."
    )


def rows_of(found: pd.DataFrame, columns: str) -> str:
    """A Markdown table of these columns, names with spaces between."""
    names = columns.split()
    rows = [[_cell(value) for value in row] for row in found[names].to_numpy().tolist()]
    return table([HEADINGS.get(name, name) for name in names], rows, markdown=True)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return inline(value, 200)
    if value is None or pd.isna(value):
        return "-"
    return number(value, 0 if float(value).is_integer() or value >= 1000 else 2)


def predictions(found: pd.DataFrame) -> pd.DataFrame:
    """What the law foretells of two equal stages over ways of usual lengths."""
    law, rows = law_of(found)
    base = rows[rows["split"] == "1:1"].iloc[0].to_dict()
    told = pd.DataFrame({"way": WAYS.keys(), **base, "round_trip_ms": WAYS.values()})
    return told.assign(token_ms=law.token_ms(told), rate=1000 / law.token_ms(told))


def law(ax: Axes, wire: Wire) -> None:
    """A token's time against the round trip: signs as measured, lines as the law has it."""
    found = foretold(wire)
    titles(ax, title(found), provenance(wire))
    every = found[(found["study"] == "law") & (found["in_flight"] == 1)].dropna(subset=["hops"])
    groups = every.groupby(["workers", "split"])
    key: Any
    for mark, (key, own) in zip("os^D", groups, strict=False):
        workers, split = key
        ax.plot(own["round_trip_ms"], own["token_ms"], mark, color=INK, mfc="white", markersize=7)
        ax.plot(own["round_trip_ms"], own["law_ms"], color=FAINT, linewidth=1.2, zorder=0)
        at = own["round_trip_ms"].iloc[-1], own["token_ms"].iloc[-1]
        label(ax, f"{many(workers, 'worker')}, {split}", at, (8, -6 if split == "1:2" else 6))
    ax.set(xlabel="round trip to each worker (ms); lines: the law", ylabel="time of a token (ms)")
    ax.set(xlim=(0, every["round_trip_ms"].max() * 1.28), ylim=(0, None))


def won(ax: Axes, wire: Wire) -> None:
    """Tokens a second together, a row for each way to pay less; the line is the range."""
    found = cases(wire)
    rows = found[found["study"] == "wins back"].dropna(subset=["rate"])
    rows = rows.sort_values("rate", ascending=False)
    titles(ax, best(found).removesuffix("."), provenance(wire))
    for y, (_, row) in enumerate(rows.iterrows()):
        ax.plot([row["low"], row["high"]], [y, y], color=FAINT, linewidth=2.5)
        ax.plot([row["rate"]], [y], "D", color=INK, markersize=7)
        label(ax, number(row["rate"], 1), (row["high"], y), (10, 0))
    ax.set_yticks(range(len(rows)), [inline(name) for name in rows["name"]])
    ax.set(xlim=(0, rows["high"].max() * 1.15), xlabel="tokens a second, all sequences together")
    ax.invert_yaxis()
