"""Decide which provider gets the next prompts: one short pure function a strategy, no I/O.

A strategy is called at the start, after every answer, and now and then while prompts wait. It
names the provider for each of the next prompts: `["fast", "fast", "slow"]`; the others go on
waiting. Named more often than it has free slots, a provider queues the rest: dispatch enforces
limits, never a strategy. Prompts count as equal work. To add one: write the function under
`@strategy(limit, question)` with a docstring like the others' (its page shows it), and a test.
"""

from __future__ import annotations

import ast
import heapq
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import ParameterError


@dataclass(frozen=True)
class ProviderView:
    """What a strategy may know of one provider at a moment.

    `limit` is the number of requests dispatch lets it hold in flight (None: no limit),
    `expected_ms` the mean wall time of one request alone there, updated by every answer,
    `started_ms` the start of each request in flight, `queued` how many more it was given.
    """

    name: str
    limit: int | None
    expected_ms: float
    started_ms: tuple[float, ...] = ()
    queued: int = 0

    @property
    def busy(self) -> int:
        """Requests it was given and has not answered."""
        return len(self.started_ms) + self.queued

    @property
    def free(self) -> int | float:
        """Slots that would start a request at once."""
        return math.inf if self.limit is None else max(0, self.limit - self.busy)


@dataclass(frozen=True)
class PoolView:
    """The pool at `now_ms`, with `waiting` prompts that no provider has been given."""

    now_ms: float
    waiting: int
    providers: tuple[ProviderView, ...]

    @property
    def fastest_first(self) -> list[ProviderView]:
        return sorted(self.providers, key=lambda p: p.expected_ms)


Limit = Literal["one", "capacity", "slots", "none"]
Decide = Callable[[PoolView], list[str]]


@dataclass(frozen=True)
class Strategy:
    """A named way to spread prompts: who decides, and which limit dispatch enforces.

    `question` is the title of its page; the rest of its words are the docstring of `decide`.
    """

    name: str
    decide: Decide
    limit: Limit
    question: str

    @property
    def sections(self) -> dict[str, str]:
        """Its docstring by heading: "How it works", "What this does not show", "Try"."""
        text = inspect.getdoc(self.decide) or ""
        first, *others = re.split(r"^(What this does not show|Try):\n", text, flags=re.M)
        return {"How it works": first} | dict(zip(others[::2], others[1::2], strict=True))

    @property
    def idea(self) -> str:
        """What it does, in one sentence: the first paragraph of its docstring."""
        return " ".join(self.sections["How it works"].partition("\n\n")[0].split())

    @property
    def code(self) -> str:
        """The function that decides and those of its module that it needs, without docstrings."""
        shown: dict[str, str] = {}
        _show(self.decide, shown)
        return "\n\n\n".join(shown.values())


def _show(function: Callable[..., object], shown: dict[str, str]) -> None:
    source = inspect.getsource(function)
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.FunctionDef)
    docstring, body = tree.body[0].lineno - 1, tree.body[bool(ast.get_docstring(tree))].lineno - 1
    lines = source.splitlines()
    shown[function.__name__] = "\n".join(lines[tree.lineno - 1 : docstring] + lines[body:])
    for node in (node for part in tree.body for node in ast.walk(part)):
        called = vars(inspect.getmodule(function)).get(getattr(node, "id", ""))
        if not inspect.isfunction(called) or called.__name__ in shown:
            continue
        if called.__module__ == function.__module__:
            _show(called, shown)


STRATEGIES: dict[str, Strategy] = {}
THROUGH_ROUTER = "through-router"  # the only one that asks a router, and nobody else


def strategy(limit: Limit, question: str) -> Callable[[Decide], Decide]:
    """Make the function below it a strategy, named as the function with hyphens."""

    def added(decide: Decide) -> Decide:
        name = decide.__name__.replace("_", "-")
        STRATEGIES[name] = Strategy(name, decide, limit, question)
        return decide

    return added


def by_name(name: str) -> Strategy:
    """The strategy of that name. Raises `ParameterError`, which lists all names."""
    if name not in STRATEGIES:
        raise ParameterError(f"strategy: no {name!r}; there are: {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]


@strategy("one", "How far apart are two runs of the very same thing?")
def sequential(pool: PoolView) -> list[str]:
    """Every prompt goes to the fastest provider, one at a time: the baseline itself.

    So the baseline is compared with the baseline. A ratio away from 1 is noise, or drift of the
    machine. Read every other ratio against this one. What is smaller than the spread seen here
    cannot be told from chance.

    What this does not show:

    - A quiet spell proves little about a busy one: load from elsewhere comes and goes.
    - Both arms use one provider, so noise of the others and of the network is not in it.

    Try:

    - `rounds = 20`: does the interval close around one?
    - `prompts = 2`: with less work in an arm, how far do two equal runs differ?
    """
    return [pool.fastest_first[0].name] * pool.waiting


def in_blocks(pool: PoolView, cost: Callable[[ProviderView, int], float]) -> list[str]:
    """Each prompt to the provider it costs the least, the faster where equal; in blocks.

    `cost` is what a provider's share would come to with so many prompts in it.
    """
    ranked = pool.fastest_first
    share = [p.busy for p in ranked]
    costs = [(cost(p, p.busy + 1), rank) for rank, p in enumerate(ranked)]
    heapq.heapify(costs)
    for _ in range(pool.waiting):
        rank = costs[0][1]
        share[rank] += 1
        heapq.heapreplace(costs, (cost(ranked[rank], share[rank] + 1), rank))
    return [p.name for p, count in zip(ranked, share, strict=True) for _ in range(count - p.busy)]


def even_split(pool: PoolView) -> list[str]:
    """The same number to everyone, what does not divide to the faster ones."""
    return in_blocks(pool, lambda provider, prompts: prompts)


@strategy("none", "What if everything is sent at once?")
def all_parallel(pool: PoolView) -> list[str]:
    """The prompts are split evenly and all sent at once; no limit is enforced.

    What happens then is up to the server. An engine with *continuous batching* computes a step
    for all its requests together and gains. One with a single slot makes the others wait. One
    that gives each its own threads can *thrash*: all become slower (see `11_the_published_run`).

    What this does not show:

    - The engines of the embedded pool batch. Whether yours does is what decides, so measure yours.
    - So few prompts do not fill a server's queue; hundreds would.

    Try:

    - `batching: false` in both `providers`: the same slots, without shared steps.
    - `slots: 1` in both: everything but the first waits inside the server.
    """
    return even_split(pool)


@strategy("one", "What does an even split gain, one request in flight at each provider?")
def serial_per_provider(pool: PoolView) -> list[str]:
    """The prompts are split evenly; each provider works through its share one at a time.

    This is the good run of those published. Nobody waits inside a server, so no engine can be
    overwhelmed. The price: the faster provider is finished early. Then it stands idle.

    What this does not show:

    - With one request in flight an engine that could batch is never asked to.
    - Two machines; with more, an even split is bound by the slowest of them.

    Try:

    - `speed: 0.3` for `remote`: at which speed does the second machine stop helping?
    - `link: {round_trip_ms: 200}`: what does distance cost?
    """
    return even_split(pool)


@strategy("capacity", "What does it gain to give the faster machine more?")
def capability_split(pool: PoolView) -> list[str]:
    """Before the start each provider is given a share that matches its calibrated speed.

    Calibration measures how long one request takes on each provider alone. Each prompt is given
    to the provider whose share would end first, so that all should finish together. Where a
    machine slows down, its share stays. Each works through its share up to its capacity.

    What this does not show:

    - Calibration is a few requests before the run; a machine that changes later is not seen.
    - Prompts count as equal work; a long one among short ones would upset the shares.

    Try:

    - `calibration_prompts = 1`: how good must the calibration be?
    - `speed: 0.3` for `remote`: compare with the even split at the same speed.
    """

    def end_ms(provider: ProviderView, prompts: int) -> float:
        return math.ceil(prompts / (provider.limit or 1)) * provider.expected_ms

    return in_blocks(pool, end_ms)


@strategy("capacity", "What if each machine takes the next prompt when it is free?")
def shared_queue(pool: PoolView) -> list[str]:
    """One queue for all; a provider with a free slot pulls the next prompt.

    The queue is in the coordinator: no prompt waits inside a server. Where several providers are
    free, the emptiest takes the next prompt, then the fastest. So a faster provider takes more
    without anyone measuring speeds, and a machine that slows down takes less. The weak spot is the
    end: a slow provider may take the last prompt while a fast one is about to be free.

    What this does not show:

    - With few prompts the last one decides much; with hundreds hardly anything.
    - The order of the prompts is fixed: sending long ones first is not tried.

    Try:

    - `speed: 0.2` for `remote`: does it take the last prompt?
    - `prompts = 24`: how does the efficiency change?
    - `capacity: 2` for both: two in flight each.
    """
    turns = [
        (p.busy + taken, rank, p.name)
        for rank, p in enumerate(pool.fastest_first)
        for taken in range(int(min(p.free, pool.waiting)))
    ]
    return [name for _, _, name in sorted(turns)][: pool.waiting]


@strategy("capacity", "What if each prompt goes where it is expected to finish first?")
def earliest_finish(pool: PoolView) -> list[str]:
    """Each prompt goes to the provider expected to finish it first, from speeds that
    calibration measured and every answer updates.

    That provider may be busy: the prompt is sent only when it has a free slot. So a slow provider
    stays idle rather than take a last prompt that a fast one, though busy, would finish sooner.
    The price is trust in the expected times. They assume prompts of equal work.

    What this does not show:

    - Expected times are averages; answers of very different lengths would mislead them.
    - Engines that batch slow each request as they take more, which the estimate only follows.

    Try:

    - `speed: 0.2` for `remote`: does the slow one stay idle at the end?
    - `prompts = 5`: compare with the shared queue on the same prompts.
    """
    ranked = pool.fastest_first
    slots = [
        (free_ms + p.expected_ms, free_ms, rank)
        for rank, p in enumerate(ranked)
        for free_ms in _slots_free_ms(p, pool.now_ms, pool.waiting)
    ]
    heapq.heapify(slots)
    idle = sum(free_ms <= pool.now_ms for _, free_ms, _ in slots)
    free = {p.name: p.free for p in pool.providers}
    chosen: list[str] = []
    for _ in range(pool.waiting):
        if not idle:
            break
        finish_ms, free_ms, rank = slots[0]
        p = ranked[rank]
        heapq.heapreplace(slots, (finish_ms + p.expected_ms, finish_ms, rank))
        if free_ms <= pool.now_ms:
            idle -= 1
            if free[p.name]:  # else a request there is just about to end
                free[p.name] -= 1
                chosen.append(p.name)
    return chosen


def _slots_free_ms(p: ProviderView, now_ms: float, waiting: int) -> list[float]:
    """When each slot of `p` is expected to be free.

    An overdue request is expected to take as long again as it is overdue: a provider that
    hangs becomes less attractive the longer it does.
    """
    slots = p.limit or p.busy + waiting
    free_ms = [now_ms + abs(start + p.expected_ms - now_ms) for start in p.started_ms]
    free_ms += [now_ms] * (slots - len(free_ms))
    heapq.heapify(free_ms)
    for _ in range(p.queued):
        heapq.heapreplace(free_ms, free_ms[0] + p.expected_ms)
    return free_ms


@strategy("slots", "What do engines with continuous batching gain from several requests at once?")
def batched(pool: PoolView) -> list[str]:
    """One queue for all; each provider takes as many prompts at once as it has slots.

    The rule is that of the shared queue; only the limit is higher. An engine with continuous
    batching computes a step for all its requests together, which costs little more than a step for
    one. So each request takes longer and all are done sooner. The ideal assumes one request at a
    time, so a batching engine can do better than it.

    What this does not show:

    - It holds for engines that batch; see what `all-parallel` does with your server first.
    - On one core the gain is bounded by its arithmetic; a graphics card gains far more.

    Try:

    - `slots: 2` and `slots: 8`: where does more in flight stop helping?
    - `max_tokens = 64`: longer answers, where shared steps count for more.
    """
    return shared_queue(pool)


@strategy("none", "What does a router make of the same machines?")
def through_router(pool: PoolView) -> list[str]:
    """Every prompt goes at once to a router that stands in front of the machines.

    Where each goes on to, and whether it waits, is up to the router: this side only holds back what
    is beyond its `in_flight`, where that is set. The baseline goes past the router, straight to the
    fastest machine, so that what the router itself costs is in the ratio. A router that refuses is
    asked again as often as `retries` says; what then has no answer is counted as failed.

    What this does not show:

    - A router does more than spread: keys, budgets, logs, a fallback to other models.
    - Where it runs on one of the machines it takes a part of its time.

    Try:

    - `in_flight: 2` for the router: does it do better when it is given less at once?
    - Another of its own routing strategies; name it in `note`, so that the page tells it.
    """
    return [pool.fastest_first[0].name] * pool.waiting


def simulated_makespan_ms(
    strategy: Strategy, prompts: int, expected_ms: Mapping[str, float], limits: Mapping[str, int]
) -> float:
    """Makespan if every request took exactly `expected_ms[provider]`, slots independent.

    What `poc doctor` predicts with; it knows neither batching nor contention.
    """
    starts_ms: dict[str, list[float]] = {name: [] for name in expected_ms}  # of what has not ended
    ends_ms: list[float] = []
    now_ms, waiting = 0.0, prompts
    while waiting:
        views = []
        for name, time_ms in expected_ms.items():
            left = [start for start in starts_ms[name] if start + time_ms > now_ms]
            begun = tuple(start for start in left if start <= now_ms)
            limit = None if strategy.limit == "none" else limits[name]
            views.append(ProviderView(name, limit, time_ms, begun, len(left) - len(begun)))
            starts_ms[name] = left
        for name in strategy.decide(PoolView(now_ms, waiting, tuple(views))):
            started, waiting = starts_ms[name], waiting - 1
            full = strategy.limit != "none" and len(started) >= limits[name]
            started.append(started[-limits[name]] + expected_ms[name] if full else now_ms)
        ends_ms = [start + expected_ms[n] for n, starts in starts_ms.items() for start in starts]
        now_ms = min(ends_ms)
    return max(ends_ms, default=0.0)
