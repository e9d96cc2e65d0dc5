"""How near a strategy comes to the best order, on pools whose times cost nothing.

    python benchmarks/schedule.py [STRATEGY] [POOLS]      earliest-finish, 30 pools

A pool: machines of one slot each with speeds log-uniform over 1 : 20, prompts whose answers have
log-normal lengths (sigma 0.8). The strategy knows each machine's mean time and no length. Its
makespan is held against the best list schedule with the lengths known; each figure is the median
of the pools (the same seeds every time), `twice` the share of the work that was done in vain.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poclib.measure.attempt import Rules
from poclib.measure.dispatch import run_arm
from poclib.measure.strategies import STRATEGIES
from poclib.providers import fake
from poclib.records import Arm, Exchange, Prompt, Request
from poclib.stats import best_list_ms, list_ms

SIGMA, MEAN_MS, TOKENS = 0.8, 1000.0, 100


class Machine(fake.Provider):
    """Answers in proportion to the prompt's work, and tells so many tokens."""

    work: Sequence[float] = ()

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        self.tokens = max(1, round(TOKENS * self.work[prompt.index]))
        await super().send(prompt, exchange)
        exchange.output_tokens = max(1, round(TOKENS * self.work[prompt.index]))


def carried_out(
    strategy: str, work: Sequence[float], texts: Sequence[str], speeds: Sequence[float]
) -> tuple[float, float]:
    """The makespan, and the share of the machines' work that was thrown away."""
    pool = []
    for i, speed in enumerate(speeds):
        pool.append(Machine(f"p{i}", lambda p, v=speed: MEAN_MS * work[p.index] / v))
        pool[-1].work = work
    rows: list[Request] = []

    async def story(clock: object) -> float:
        names = [p.name for p in pool]
        prompts = [Prompt(i, text) for i, text in enumerate(texts)]
        expected = {n: MEAN_MS / v for n, v in zip(names, speeds, strict=True)}
        arm: Arm = await run_arm(
            "strategy", STRATEGIES[strategy], prompts, pool, dict.fromkeys(names, 1), expected,
            clock, Rules(request_timeout_s=1e9), rows.append, keep_rows=False,
        )  # fmt: skip
        del arm
        return max(row.marks.end_ms or 0.0 for row in rows if row.outcome == "ok")

    makespan_ms = fake.run(story)
    speed = {f"p{i}": v for i, v in enumerate(speeds)}
    done = {kind: 0.0 for kind in ("ok", "cancelled")}
    for row in rows:
        done[row.outcome] += (row.wall_ms or 0.0) * speed[row.provider]
    return makespan_ms, done["cancelled"] / sum(done.values())


def share_of_best(
    strategy: str,
    prompts: int,
    speeds: Sequence[float] | None,
    sigma: float,
    known: float,
    pools: int,
) -> tuple[float, float]:
    """Medians over the pools; `known` correlates the logs of a prompt's and its answer's length."""
    found, wasted = [], []
    for seed in range(pools):
        draw = random.Random(seed)
        paces = speeds or [20 ** draw.random() for _ in range(16)]
        common = [draw.gauss(0, 1) for _ in range(prompts)]
        other = [draw.gauss(0, 1) for _ in range(prompts)]
        mixed = [
            known * a + math.sqrt(1 - known**2) * b for a, b in zip(common, other, strict=True)
        ]
        work = [math.exp(sigma * z - sigma**2 / 2) for z in mixed]
        texts = ["x" * max(1, round(200 * math.exp(0.8 * z))) for z in common]
        took_ms, waste = carried_out(strategy, work, texts, paces)
        found.append(MEAN_MS * best_list_ms(work, paces) / took_ms)
        wasted.append(waste)
    return median(found), fmean(wasted)


def known_in_order(prompts: int, pools: int) -> float:
    """What one would reach who knew each length when its turn comes, on the same 16 machines."""
    found = []
    for seed in range(pools):
        draw = random.Random(seed)
        paces = [20 ** draw.random() for _ in range(16)]
        draws = [draw.gauss(0, 1) for _ in range(2 * prompts)][prompts:]
        work = [math.exp(SIGMA * z - SIGMA**2 / 2) for z in draws]
        found.append(best_list_ms(work, paces) / list_ms(work, paces))
    return median(found)


def main(words: list[str]) -> None:
    strategy = next((word for word in words if word in STRATEGIES), "earliest-finish")
    pools = next((int(word) for word in words if word.isdecimal()), 30)
    print(f"{strategy}: share of the best list schedule, median of {pools} pools (work in vain)")
    told = [f"{count}: {known_in_order(count, pools):.3f}" for count in (32, 128, 512)]
    print(f"  {'lengths known, in given order':32} {'           '.join(told)}")
    cases: list[tuple[str, list[float] | None, float, float, list[int]]] = [
        ("16 machines, lengths unknown", None, SIGMA, 0.0, [32, 128, 512]),
        ("16 machines, half known", None, SIGMA, 0.7, [32, 128, 512]),
        ("16 machines, equal lengths", None, 0.0, 0.0, [32, 128, 512]),
        ("two machines, 1 : 0.6", [1, 0.6], SIGMA, 0.0, [8, 32]),
        ("two machines, 1 : 0.25", [1, 0.25], SIGMA, 0.0, [8, 32]),
        ("two machines, 1 : 0.6, equal", [1, 0.6], 0.0, 0.0, [8, 32]),
    ]
    for title, speeds, sigma, known, counts in cases:
        told = []
        for count in counts:
            share, waste = share_of_best(strategy, count, speeds, sigma, known, pools)
            told.append(f"{count}: {share:.3f} ({waste:.1%})")
        print(f"  {title:32} {'   '.join(told)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
