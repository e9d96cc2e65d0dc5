"""Decide which provider gets the next prompt: one short pure function a strategy, no I/O.

A strategy is called at the start, after every answer, and now and then while prompts wait, once
for each prompt: it names the provider of the next one, or None: it goes on waiting. Named though
it has no free slot, a provider queues it: dispatch enforces limits, never a strategy. To add one:
write the function under `@strategy(limit, question)` with a docstring like the others' (its page
shows it), and a test. What may be asked of the pool stands in `slots`.
"""

from __future__ import annotations

import heapq
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from ..errors import ParameterError
from ..parameters import Parameters
from ..records import ProviderFacts
from .slots import Place, Pool

Limit = Literal["one", "capacity", "ahead", "slots", "none"]
Decide = Callable[[Pool], Place | None]


@dataclass(frozen=True)
class Strategy:
    """A named way to spread prompts: who decides, and which limit dispatch enforces.

    `question` is the title of its page; the rest of its words are the docstring of `decide`. One
    that `foresees` has the longest prompts sent first and the late last ones sent again.
    """

    name: str
    decide: Decide
    limit: Limit
    question: str
    foresees: bool = False

    @property
    def sections(self) -> dict[str, str]:
        """Its docstring by heading: "How it works", "What this does not show", "Try"."""
        text = inspect.getdoc(self.decide) or ""
        first, *others = re.split(r"^(What this does not show|Try):$", text, flags=re.M)
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


def _show(function: Any, shown: dict[str, str]) -> None:
    source = inspect.getsource(function)
    source = source[source.index("def ") :]  # without its decorator
    shown[function.__name__] = re.sub(r'    """.*?"""\n', "", source, count=1, flags=re.S).rstrip()
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if getattr(called, "__module__", "") == function.__module__ and name not in shown:
            _show(called, shown)


STRATEGIES: dict[str, Strategy] = {}
THROUGH_ROUTER = "through-router"  # the only one that asks a router, and nobody else


def strategy(limit: Limit, question: str, foresees: bool = False) -> Callable[[Decide], Decide]:
    """Make the function below it a strategy, named as the function with hyphens."""

    def added(decide: Decide) -> Decide:
        name = decide.__name__.replace("_", "-")
        STRATEGIES[name] = Strategy(name, decide, limit, question, foresees)
        return decide

    return added


def by_name(name: str) -> Strategy:
    """The strategy of that name. Raises `ParameterError`, which lists all names."""
    if name not in STRATEGIES:
        raise ParameterError(f"strategy: no {name!r}; there are: {', '.join(STRATEGIES)}.")
    return STRATEGIES[name]


def usual(parameters: Parameters) -> list[str]:
    """The strategies that a run compares if none is named: all that its pool has the parts for."""
    return [name for name in STRATEGIES if name != THROUGH_ROUTER or parameters.router]


def fastest(p: Place) -> float:
    return p.expected_ms


def emptiest(p: Place) -> tuple[float, float]:
    return p.busy, p.expected_ms


def first_to_end(p: Place) -> tuple[float, float]:
    return math.ceil((p.busy + 1) / (p.limit or 1)) * p.expected_ms, p.expected_ms


@strategy("one", "How far apart are two runs of the very same thing?")
def sequential(pool: Pool) -> Place | None:
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
    return pool.least(fastest)


@strategy("none", "What if everything is sent at once?")
def all_parallel(pool: Pool) -> Place | None:
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
    return pool.least(emptiest)


@strategy("one", "What does an even split gain, one request in flight at each provider?")
def serial_per_provider(pool: Pool) -> Place | None:
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
    return pool.least(emptiest)


@strategy("capacity", "What does it gain to give the faster machine more?")
def capability_split(pool: Pool) -> Place | None:
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
    return pool.least(first_to_end)


@strategy("capacity", "What if each machine takes the next prompt when it is free?")
def shared_queue(pool: Pool) -> Place | None:
    """One queue for all; a provider with a free slot pulls the next prompt.

    The queue is in the coordinator: no prompt waits inside a server. Where several providers are
    free, the emptiest takes the next prompt, then the fastest. So a faster provider takes more
    without anyone measuring speeds, and a machine that slows down takes less. The weak spot is the
    end: a slow provider may take the last prompt while a fast one is about to be free.

    What this does not show:
    - With few prompts the last one decides much; with hundreds hardly anything.
    - The order of the prompts is fixed: `earliest-finish` sends long ones first.

    Try:
    - `speed: 0.2` for `remote`: does it take the last prompt?
    - `prompts = 24`: how does the efficiency change?
    - `capacity: 2` for both: two in flight each.
    """
    return pool.least(emptiest, free=True)


@strategy("capacity", "What if each prompt goes where it is expected to finish first?", True)
def earliest_finish(pool: Pool) -> Place | None:
    """Each prompt goes to the provider expected to finish it first, and the late last ones twice.

    What is expected is learned from every answer: how fast each provider works, how much lengths
    differ, whether longer prompts have longer answers (then those go first). A slow provider stays
    idle rather than take a last prompt that the others, though busy, would finish sooner. When
    nothing waits, an idle provider is sent a copy of a prompt under way elsewhere where it would
    clearly end sooner there; the first answer counts, the others are cancelled. The price is trust
    in expectations, and work done twice, which the rows tell (role hedge, outcome cancelled).

    What this does not show:
    - Engines that batch slow each request as they take more, which the estimate only follows.
    - A server that is told to stop may go on computing for nobody.

    Try:
    - `speed: 0.2` for `remote`: does the slow one stay idle at the end?
    - `prompts = 5`: compare with the shared queue on the same prompts.
    """
    place = pool.least(fastest, free=True)
    return place if place and pool.ends_in_time(place) else None


@strategy("slots", "What do engines with continuous batching gain from several requests at once?")
def batched(pool: Pool) -> Place | None:
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


@strategy("ahead", "What if the next prompt is there before the slot is free?")
def sent_ahead(pool: Pool) -> Place | None:
    """One queue for all; a provider is sent one prompt more than it works on.

    The next prompt waits inside the server, so a slot that becomes free goes on at once: the way
    there and back is hidden behind the answer before. Only a server that queues or batches is
    sent more; one that refuses or thrashes is held to its capacity, as under the shared queue.
    At the end a prompt that has most likely not begun is taken back where another provider is
    idle and would end it sooner. A request's time counts from when it is handed to the
    connection, so its wait in the server is in it, though nobody loses it.

    What this does not show:
    - The first and the last request of each provider still pay for their way.
    - A server that is told to stop may go on computing; what was begun unseen is then done twice.

    Try:
    - `link: {round_trip_ms: 200}`: compare with the shared queue at the same distance.
    - `max_tokens = 4`: the shorter the answers, the more the way there counts.
    """
    return pool.least(emptiest, free=True)


@strategy("none", "What does a router make of the same machines?")
def through_router(pool: Pool) -> Place | None:
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
    return pool.least(fastest)


def sends_ahead(facts: ProviderFacts, queues: bool = True) -> bool:
    """Whether a provider may be sent more than it works on: it queues or batches what it is sent.

    A server of one's own is taken to (Ollama, llama-server and vLLM do) unless its settings say
    that it `queues` not; an engine that refuses, or gives each request threads, does neither.
    """
    return queues and not facts.refuses and facts.engine_kind in (None, "queueing", "batched")


def simulated_makespan_ms(
    strategy: Strategy, prompts: int, expected_ms: Mapping[str, float], limits: Mapping[str, int]
) -> float:
    """Makespan if every request took exactly `expected_ms[provider]`, slots independent.

    What `poc doctor` predicts with; it knows neither batching nor contention.
    """
    places = [
        Place(name, None if strategy.limit == "none" else limits[name], time_ms)
        for name, time_ms in expected_ms.items()
    ]
    pool, ends, keys = Pool(places, prompts), list[tuple[float, int, Place]](), count()

    def changed(place: Place) -> None:
        while place.queue and (place.limit is None or len(place.running) < place.limit):
            key = place.queue.popleft()
            place.running[key] = pool.now_ms
            heapq.heappush(ends, (pool.now_ms + place.expected_ms, key, place))
        pool.touch(place)

    while pool.waiting or ends:
        while pool.waiting and (place := strategy.decide(pool)):
            pool.waiting -= 1
            place.queue.append(next(keys))
            changed(place)
        if not ends:
            raise ParameterError(f"strategy {strategy.name}: prompts wait, none is sent.")
        pool.now_ms = ends[0][0]
        while ends and ends[0][0] <= pool.now_ms:
            _, ended, place = heapq.heappop(ends)
            del place.running[ended]
            changed(place)
    return pool.now_ms
