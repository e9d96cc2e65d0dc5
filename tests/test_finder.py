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
from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.records import Prompt, Report
from poclib.showing import curves


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


def test_a_loss_that_does_not_come_again_is_another_programs() -> None:
    """A warm-up, four of calibration and four of the first level come before; then two by two."""
    disturbed = when_sent((1, 100), (10, 900), (14, 100))
    seen, _ = found(fake.Provider("p", disturbed, slots=4))
    assert (seen["p"].behaviour, seen["p"].capacity) == ("batches", 4)


def test_a_machine_that_was_busy_in_the_beginning_does_not_seem_to_batch() -> None:
    """Half as fast at first; one alone is measured again at the end."""
    seen, made = found(fake.Provider("p", when_sent((1, 200), (10, 100)), slots=1))
    assert (seen["p"].behaviour, seen["p"].capacity) == ("queues", 1)
    levels = [arm for arm in made.preparation if arm.arm == "capacity"]
    assert [arm.limits for arm in levels].count({"p": 1}) == 2


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
        if behaviour == "thrashes":  # the level after a loss is not tried
            assert max(level.in_flight for level in seen["p"].levels) == 2
        assert curves.capacities(report_)["p"] == seen["p"]
        told = "by its own word requests wait" in curves.capacity_text(report_)
        assert told == how.get("tells", False)


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_real_socket_with_eight_slots_gives_eight_each_time(times: int) -> None:
    for _ in range(times):
        with engine.serving(Engine(8, vllm(12, 0.1), tokens=8)) as url:
            sender = provider_of("openai", url, name="p", model="m", api="completion")
            asked = Parameters(providers=[sender.settings], prompts=4)
            run = experiment.Run(asked, [(sender, {})])
            _, capacities = asyncio.run(run.examine(capacity=True))
        assert (capacities["p"].behaviour, capacities["p"].capacity) == ("batches", 8)
