"""Finding a capacity: servers of every kind, scripted, none of them told to the finder."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine
import matplotlib.pyplot as plt
import pytest
from engine import Engine
from replay import provider as provider_of

from poclib import recording, report
from poclib.contention import Found
from poclib.errors import Rejected
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.records import Exchange, Prompt, Report
from poclib.showing import curves


class Crowded(fake.Provider):
    """Takes ever longer the more requests it holds, or turns away those beyond `most`."""

    def __init__(self, name: str, most: int | None = None) -> None:
        slower = None if most else (lambda _: 100.0 * max(1, self._in_flight) ** 2)
        super().__init__(name, slower or 100.0, slots=64)
        self.most = most

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        if self.most is not None and self._in_flight >= self.most:
            exchange.mark("start")
            exchange.mark("end")
            raise Rejected("no room", self.name, 503)
        await super().send(prompt, exchange)


def found(*pool: fake.Provider) -> tuple[dict[str, Found], Report]:
    asked: dict[str, Any] = {"providers": [{"name": p.name} for p in pool], "prompts": 4}
    run = experiment.Run(Parameters.read(asked), [(p, {}) for p in pool])
    problems, capacities = fake.run(lambda clock: run.examine(capacity=True))
    assert problems == {}
    return capacities, run.report.model_copy(update={"strategy": "capacity"})


def when_sent(*changes: tuple[int, float]) -> Callable[[Prompt], float]:
    """Takes so long from its n-th request on."""
    sent: list[Prompt] = []

    def service_ms(prompt: Prompt) -> float:
        sent.append(prompt)
        return [ms for first, ms in changes if len(sent) >= first][-1]

    return service_ms


@pytest.mark.parametrize(
    ("provider", "behaviour", "capacity"),
    [
        (fake.Provider("p", 100, slots=4), "batches", 4),
        (fake.Provider("p", 100, slots=1), "queues", 1),
        (Crowded("p"), "thrashes", 1),
        (Crowded("p", most=2), "refuses", 2),
        (fake.Provider("p", 100, slots=64), "batches", 64),
        # A loss that does not come again is another program's: a warm-up, four of calibration and
        # four of the first level come before it; then it is two times two.
        (fake.Provider("p", when_sent((1, 100), (10, 900), (14, 100)), slots=4), "batches", 4),
    ],
)
def test_each_server_is_named_and_its_capacity_found(
    provider: fake.Provider, behaviour: str, capacity: int
) -> None:
    seen, _ = found(provider)
    assert (seen["p"].behaviour, seen["p"].capacity) == (behaviour, capacity)
    if behaviour == "thrashes":  # the next level is not tried
        assert provider.most_in_flight == 2


def test_a_machine_that_was_busy_in_the_beginning_does_not_seem_to_batch() -> None:
    """Half as fast at first; one alone is measured again at the end."""
    seen, made = found(fake.Provider("p", when_sent((1, 200), (10, 100)), slots=1))
    assert (seen["p"].behaviour, seen["p"].capacity) == ("queues", 1)
    levels = [arm for arm in made.preparation if arm.arm == "capacity"]
    assert [arm.limits for arm in levels].count({"p": 1}) == 2
    assert curves.capacities(made)["p"].levels == seen["p"].levels


def test_the_levels_are_a_report_that_tells_the_same(tmp_path: Path) -> None:
    seen, made = found(fake.Provider("p", 100, slots=4), fake.Provider("q", 100, slots=1))
    loaded = report.load(str(recording.save(made, tmp_path)))
    again = curves.capacities(loaded)
    assert {n: (f.behaviour, f.capacity) for n, f in again.items()} == {
        n: (f.behaviour, f.capacity) for n, f in seen.items()
    }
    text = curves.capacity_text(loaded, markdown=True)
    assert "recommended capacity: 4" in text and "q queues" in text
    # 4 tokens in 100 ms alone, four times that with four at once
    assert "4.00 times" in text
    figure, ax = plt.subplots()
    curves.throughput(ax, loaded)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["p", "q"]
    assert ax.get_ylim()[0] == 0
    plt.close(figure)


def vllm(base: float, each: float) -> Callable[[int], float]:
    """Steps that take a little longer with each sequence, and vary by a tenth."""
    draw = random.Random()
    return lambda n: (base + each * n) * draw.uniform(0.9, 1.1)


SERVERS: dict[str, tuple[Callable[[], Engine], dict[str, Any], str, set[int]]] = {
    "vLLM, eight at once": (
        lambda: Engine(8, vllm(20, 0.5)),
        {"tells": True, "overhead_ms": 70},
        "batches",
        {8},
    ),
    "eight, no queue told": (lambda: Engine(8, vllm(20, 0.5)), {"overhead_ms": 35}, "batches", {8}),
    "four, not streamed": (lambda: Engine(4, vllm(20, 1)), {"streams": False}, "batches", {4}),
    "one slot": (lambda: Engine(1, vllm(20, 0)), {}, "queues", {1}),
    "one slot, told": (lambda: Engine(1, vllm(20, 0)), {"tells": True}, "queues", {1}),
    "refuses beyond 8": (lambda: Engine(8, vllm(20, 1), 8), {}, "refuses", {4, 8}),
    "thrashes": (lambda: Engine(64, lambda n: 20.0 * n * n), {}, "thrashes", {1}),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_ten_times_asked_it_gives_the_same_answer(kind: str) -> None:
    made, how, behaviour, capacity = SERVERS[kind]
    for _ in range(10):
        seen, report_ = found(engine.Provider(made(), **how))
        assert seen["p"].behaviour == behaviour and seen["p"].capacity in capacity
        assert curves.capacities(report_)["p"] == seen["p"]
        told = "by its own word requests wait" in curves.capacity_text(report_)
        assert told == how.get("tells", False)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_real_socket_with_eight_slots_gives_eight_each_time(times: int) -> None:
    for _ in range(times):
        with engine.serving(Engine(8, vllm(12, 0.1), tokens=8)) as url:
            settings = {
                "name": "p",
                "kind": "openai",
                "model": "m",
                "url": url,
                "api": "completion",
            }
            sender = provider_of("openai", url, name="p", model="m", api="completion")
            asked = Parameters.read({"providers": [settings], "prompts": 4})
            run = experiment.Run(asked, [(sender, {})])
            _, capacities = asyncio.run(run.examine(capacity=True))
        assert (capacities["p"].behaviour, capacities["p"].capacity) == ("batches", 8)
