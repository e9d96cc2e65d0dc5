"""Many providers prepared side by side: how long it takes, who must wait for whom, what is kept."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from test_experiment import arms, cut_at, every_row, left_in, measured, parameters
from test_experiment import on_a_fake_clock as on_a_fake_clock

from poclib.errors import RunFailed
from poclib.measure import experiment
from poclib.measure.beside import MACHINES, host
from poclib.providers import fake
from poclib.records import ProviderFacts

MANY = 1000


class Watched(fake.Provider):
    """Knows how many of its kind are at work, or asked, at once."""

    working = most = asked = most_asked = 0

    async def send(self, *given: Any) -> None:
        Watched.working += 1
        Watched.most = max(Watched.most, Watched.working)
        try:
            await super().send(*given)
        finally:
            Watched.working -= 1

    async def describe(self) -> ProviderFacts:
        Watched.asked += 1
        Watched.most_asked = max(Watched.most_asked, Watched.asked)
        try:
            return await super().describe()
        finally:
            Watched.asked -= 1


@pytest.fixture(autouse=True)
def afresh() -> None:
    Watched.working = Watched.most = Watched.asked = Watched.most_asked = 0


def machines(count: int) -> list[dict[str, str]]:
    """Settings of so many, each with an address of its own."""
    urls = [f"http://10.0.{n // 250}.{n % 250 + 1}:80" for n in range(count)]
    known = {"kind": "openai", "model": "m"}
    return [{"name": f"m{n}", "url": url, **known} for n, url in enumerate(urls)]


def test_a_thousand_machines_take_the_time_of_their_thirty_second_part() -> None:
    providers = [Watched(each["name"], 100) for each in machines(MANY)]
    wanted = parameters(providers=machines(MANY))
    run = experiment.Run(wanted, [(provider, {}) for provider in providers])
    took_ms: list[float] = []

    async def examined(clock: Any) -> None:
        await run.examine(capacity=False)
        took_ms.append(clock())

    fake.run(examined)
    waves = math.ceil(MANY / MACHINES)
    assert took_ms == [waves * 100 + waves * 200]  # a warm-up, then two requests that are timed
    assert Watched.most == MACHINES and Watched.most_asked <= 64
    assert run.expected_ms == {provider.name: 100 for provider in providers}
    assert len(run.report.preparation) == 2 * MANY


def test_what_shares_a_machine_goes_one_after_the_other(tmp_path: Path) -> None:
    hosts = {
        "far": "http://10.0.0.9:1",
        "twin": "http://10.0.0.9:2",
        "farther": "http://10.0.0.8:1",
    }
    hosts |= {"a": "http://localhost:1", "b": "http://127.0.0.1:2"}
    named = [{"name": n, "kind": "openai", "url": u, "model": "m"} for n, u in hosts.items()]
    found = measured(tmp_path, [fake.Provider(n, 100) for n in hosts], providers=named)
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in hosts}
    for arm in arms(found, "calibration"):
        for row in arm.requests:
            spans[row.provider].append((row.marks.start_ms or 0, row.marks.end_ms or 0))

    def overlap(one: str, other: str) -> bool:
        return any(a < d and c < b for a, b in spans[one] for c, d in spans[other])

    assert overlap("far", "farther") and not overlap("far", "twin")
    # This machine's are alone: they take the coordinator's cores.
    assert not any(overlap(own, name) for own in "ab" for name in hosts if name != own)
    assert host(None) == "" and host("http://[::1]:80") == "localhost"


def test_a_stop_in_the_middle_keeps_what_was_answered_of_every_machine(tmp_path: Path) -> None:
    given = {"providers": machines(5), "rounds": 1}
    slow = [fake.Provider(f"m{n}", 100 * (1 + n)) for n in range(5)]
    # All have one answer of the warm-up by 500 ms; by 1150 the first three have both others.
    left = cut_at(1150, tmp_path, slow, **given)
    answered = [row for row in every_row(left) if row.outcome == "ok"]
    assert Counter(row.provider for row in answered) == {
        "m0": 3,
        "m1": 3,
        "m2": 3,
        "m3": 2,
        "m4": 2,
    }
    assert all(len({row.provider for row in arm.requests}) == 1 for arm in left.preparation)
    again = [fake.Provider(f"m{n}", 100) for n in range(5)]
    found = measured(tmp_path, again, resume=True, **given)
    assert found.complete and len(found.rounds) == 1
    timed = [arm for arm in arms(found, "calibration") if not (arm.turn or "").endswith(" 0")]
    rows = [row for arm in timed for row in arm.requests if row.outcome == "ok"]
    assert Counter(row.provider for row in rows) == {f"m{n}": 2 for n in range(5)}


def test_the_first_that_fails_ends_the_others_at_once(tmp_path: Path) -> None:
    hanging = fake.Provider("m0", 100, script=["hang"])
    others = [fake.Provider(f"m{n}", 100) for n in (1, 2)]
    with pytest.raises(RunFailed, match=r"run_limit_s \(2 s\) in warm-up of m0"):
        measured(tmp_path, [hanging, *others], providers=machines(3), run_limit_s=2)
    kept = left_in(tmp_path)
    assert {row.provider for row in every_row(kept)} == {"m0", "m1", "m2"}
