"""How often does the 95 % interval of the median ratio hold the true one? Simulated.

    .venv/bin/python benchmarks/interval_coverage.py

For four laws of a round's ratio, and for the same strategy against itself resampled from the
rounds of the sample reports, drift included; then for `rounds: auto`, which looks at the interval
after every round and stops by its width. Beside the interval that poclib uses stand the
range of the ratios and the percentile bootstrap of their median, which it used before. The last
column is what a bootstrap-t on the logarithms would give. Takes about a minute.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from poclib import pacing, report, stats
from poclib.records import Report

Numbers = npt.NDArray[np.float64]
LAWS = ("normal", "skewed", "heavy-tailed", "drifting")
ROUNDS = (2, 3, 5, 6, 7, 8, 12, 20)


def ratios(law: str, n: int, experiments: int, random: np.random.Generator) -> Numbers:
    """An array (experiments, n) of ratios whose true median is 1, spread about 5 %."""
    shape = (experiments, n)
    if law == "normal":
        return np.exp(random.normal(0, 0.05, shape))
    if law == "skewed":
        return np.exp(0.05 * np.expm1(0.8 * random.normal(0, 1, shape)))
    if law == "heavy-tailed":
        return np.exp(0.05 * random.standard_t(3, shape))
    # The machine's speed walks at random and slows by 1 % from arm to arm; A B, B A, ...
    steps = random.normal(0.01, 0.03, (experiments, 2 * n))
    speed = np.cumsum(steps, axis=1) + random.normal(0, 0.03, (experiments, 2 * n))
    turn = np.where(np.arange(n) % 2 == 0, 1, -1)
    return np.exp((speed[:, 1::2] - speed[:, ::2]) * turn)


def real_rounds(reports: Sequence[Report]) -> list[tuple[Numbers, float]]:
    """Of every round: the baseline's walls, and the drift (log) until the next round."""
    found: list[tuple[Numbers, float]] = []
    for one in reports:
        walls = [
            np.array([row.wall_ms for row in arm.requests if row.outcome == "ok" and row.wall_ms])
            for measured in one.rounds
            for arm in measured.arms
            if arm.arm == "baseline"
        ]
        means = [float(np.log(wall.mean())) for wall in walls]
        drifts = [after - before for before, after in itertools.pairwise(means)]
        found += list(zip(walls, [*drifts, 0.0], strict=True))
    return found


def against_itself(
    pool: Sequence[tuple[Numbers, float]], n: int, random: np.random.Generator
) -> list[float]:
    """The ratios of one A/A experiment: consecutive real rounds, walls drawn from each.

    The arm that runs second gets half of the round's real drift.
    """
    start = int(random.integers(len(pool)))
    found = []
    for turn in range(n):
        walls, drift = pool[(start + turn) % len(pool)]
        first, second = (random.choice(walls, len(walls)).sum() for _ in range(2))
        second *= np.exp(drift / 2)
        found.append(second / first if turn % 2 == 0 else first / second)
    return found


def span(values: Numbers) -> tuple[float, float]:
    """From the least to the largest."""
    return float(values.min()), float(values.max())


def percentile(values: Numbers) -> tuple[float, float]:
    """The percentile bootstrap of the median, 1,000 resamples."""
    draws = np.random.default_rng(1).integers(0, len(values), (1000, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975], method="nearest")
    return float(low), float(high)


def studentized(values: Numbers) -> tuple[float, float]:
    """The bootstrap-t of the mean logarithm, 1,000 resamples."""
    logs, n = np.log(values), len(values)
    drawn = logs[np.random.default_rng(2).integers(0, n, (1000, n))]
    spreads = drawn.std(axis=1, ddof=1)
    kept = spreads > 1e-12
    t = (drawn.mean(axis=1)[kept] - logs.mean()) / spreads[kept]
    low, high = np.quantile(t, [0.025, 0.975]) if kept.any() else (0.0, 0.0)
    s = logs.std(ddof=1)
    return float(np.exp(logs.mean() - high * s)), float(np.exp(logs.mean() - low * s))


METHODS: dict[str, Callable[[Numbers], tuple[float, float]]] = {
    "poclib": stats.interval,
    "range": span,
    "percentile": percentile,
    "bootstrap-t": studentized,
}


def line(name: str, n: int, experiments: Sequence[Numbers]) -> str:
    """Coverage of 1 in percent and median width of the logarithm, for each method."""
    cells = []
    for method in METHODS.values():
        ends = np.array([method(np.asarray(one)) for one in experiments])
        held = np.mean((ends[:, 0] <= 1) & (ends[:, 1] >= 1))
        cells.append(f"{100 * held:6.1f} %{np.median(np.log(ends[:, 1] / ends[:, 0])):8.3f}")
    return f"{name:14}{n:4}  " + "  ".join(cells)


def stopped_by_width(spread: float, law: str, random: np.random.Generator) -> str:
    """How often an interval that ended `rounds: auto` holds 1, or claims a difference."""
    held, claims, rounds = [], [], []
    for _ in range(1000):
        some = ratios(law, pacing.MOST, 1, random)[0] ** (spread / 0.05)
        n = next((n for n in range(pacing.LEAST, len(some)) if pacing.narrow(some[:n], 0.05)), 0)
        low, high = stats.interval(some[: n or len(some)])
        held.append(low <= 1 <= high)
        claims.append(high < 0.95 or low > 1.05)
        rounds.append(n or len(some))
    return (
        f"{law:14}{spread:6.2f}{100 * np.mean(held):8.1f} %{100 * np.mean(claims):10.1f} %"
        f"{np.median(rounds):8.0f}"
    )


def main() -> None:
    """Print the tables."""
    random = np.random.default_rng(20_261_124)
    print(f"{'law':14}{'n':>4}  " + "  ".join(f"{name:>16}" for name in METHODS))
    for law in LAWS:
        for n in ROUNDS:
            print(line(law, n, list(ratios(law, n, 2000, random))), flush=True)
    samples = [report.load(name) for name in report.names() if name.startswith("sample-")]
    pool = real_rounds(samples)
    for n in ROUNDS:
        same = [np.asarray(against_itself(pool, n, random)) for _ in range(2000)]
        print(line("A/A, resampled", n, same), flush=True)
    print("\nrounds: auto   spread  holds 1  claims > 5 %  rounds")
    for law in LAWS[:3]:
        for spread in (0.02, 0.05, 0.1, 0.15):
            print(stopped_by_width(spread, law, random), flush=True)


if __name__ == "__main__":
    main()
