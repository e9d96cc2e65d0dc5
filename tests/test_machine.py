"""The machine's watchers against a loop that is blocked, counters set by hand, and real work."""

import asyncio
import gc
import subprocess
import sys
import time

import pytest

from poclib.measure import machine
from poclib.measure.machine import EngineSampler, Monitor


def clock() -> float:
    return time.perf_counter() * 1000


def test_a_blocked_loop_is_late() -> None:
    watch = Monitor(clock)

    def block() -> None:
        while watch._answered.is_set():
            time.sleep(0.001)
        time.sleep(0.1)

    async def work() -> None:
        with watch.watching(asyncio.get_running_loop()):
            await asyncio.to_thread(watch._answered.wait)  # a loop that is free answers
            block()
            await asyncio.sleep(0)

    asyncio.run(work())
    assert max(watch.lags.lag_ms) >= 50
    assert len(watch.lags.at_ms) == len(watch.lags.lag_ms)
    assert watch.moments, "the machine is looked at, at the latest at the end"


def test_shares_come_from_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = [
        {"all": 110.0, "busy": 57.0, "steal": 3.0, "own": 14.0},
        {"all": 100.0, "busy": 50.0, "steal": 1.0, "own": 10.0},
    ]
    monkeypatch.setattr(Monitor, "_counters", lambda self: counted.pop())
    watch = Monitor(clock)
    watch.look()
    (seen,) = watch.moments
    # By hand: of 10 s of all cores 7 were busy, 4 of them ours, and 2 were stolen.
    assert (seen.own, seen.others, seen.steal) == (0.4, 0.3, 0.2)


def test_what_is_kept_is_bounded_and_keeps_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MOST_LAGS", 10)
    now = iter(float(t) for t in range(1000))
    watch = Monitor(lambda: next(now))
    for turn in range(40):
        watch._note(-500.0 if turn == 7 else next(now))
    assert len(watch.lags.lag_ms) <= 10
    assert max(watch.lags.lag_ms) > 500


def test_what_is_there_is_kept_from_the_garbage_collector_and_let_go_again() -> None:
    assert gc.get_freeze_count() == 0
    with machine.undisturbed():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


WORKER = """
import sys, threading, time
threading.Thread(target=sys.stdin.read).start()
while time.process_time() < 0.3: pass
print(time.process_time(), flush=True)
"""


def test_an_engine_s_processor_time_is_what_it_says_itself_and_ours_too() -> None:
    watch = Monitor(clock)
    start = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", WORKER], **start) as worker:  # type: ignore[call-overload]
        with EngineSampler({"engine": [worker.pid], "a person's server": []}) as sampler:
            spent_s = float(worker.stdout.readline())
            own_s = watch._counters()["own"] - watch._before["own"]
        worker.stdin.close()
    (used,) = sampler.used
    # What it spent before the first look is not counted: at most its start.
    assert 0 < used.cpu_ms <= 1000 * spent_s + 20 and used.wall_ms >= used.cpu_ms - 20
    assert (used.provider, used.processes, used.threads) == ("engine", 1, 2)
    assert own_s >= spent_s - 0.02  # the system counts in hundredths
