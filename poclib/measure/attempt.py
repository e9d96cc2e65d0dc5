"""One attempt to have one prompt answered, as a row, in bounded time; and what failures lead to.

Knows no wire format and nothing of other attempts: `dispatch` decides what is attempted where.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from ..errors import ProviderError, TimedOut
from ..records import Exchange, Outcome, Prompt, Request, RequestMarks, Role

# No wait between attempts, and no pause of a breaker, grows beyond this.
LONGEST_S = 60.0


class Sender(Protocol):
    """What dispatch needs of a provider."""

    @property
    def name(self) -> str: ...

    async def send(self, prompt: Prompt, exchange: Exchange) -> None: ...


@dataclass(frozen=True)
class Policy:
    """What is done about failures; the defaults leave a run without any as it is.

    Before a further attempt at the same provider it waits `backoff_s`, doubled each time, with
    jitter. After `breaker_failures` in a row (0: never) a provider is left alone for
    `breaker_pause_s`, doubled each time its trial fails. `hedge_after`, times the expected time,
    is when a last prompt is sent to an idle provider too; None: never.
    """

    backoff_s: float = 0.5
    breaker_failures: int = 3
    breaker_pause_s: float = 5.0
    hedge_after: float | None = None
    jitter: Callable[[], float] = random.random

    def backoff(self, attempt: int) -> float:
        """Seconds to hold off after failed attempt `attempt` (from 1): half fixed, half drawn.

        The jitter keeps many clients from coming back at the same moment.
        """
        whole_s = min(LONGEST_S, self.backoff_s * 2.0 ** min(attempt - 1, 30))
        return whole_s * (0.5 + 0.5 * self.jitter())


class Breaker:
    """Whether a provider may be given work.

    Closed until `failures` attempts in a row failed; then open: nothing is sent for a pause.
    After it one request tries; where that fails, it is open again, twice as long.
    """

    def __init__(self, failures: int, pause_s: float) -> None:
        self._failures = failures
        self._first_pause_ms = self._pause_ms = pause_s * 1000
        self.in_a_row = 0  # failures since something last worked
        self.trial_ms: float | None = None  # from when one request may try; None while closed

    @property
    def closed(self) -> bool:
        return self.trial_ms is None

    def admits(self, now_ms: float, in_flight: int) -> bool:
        """Whether one more request may be sent, with `in_flight` under way."""
        return self.trial_ms is None or (now_ms >= self.trial_ms and in_flight == 0)

    def record(self, worked: bool, now_ms: float) -> None:
        """Note how an attempt ended at `now_ms`."""
        if worked:
            self.in_a_row, self.trial_ms, self._pause_ms = 0, None, self._first_pause_ms
            return
        self.in_a_row += 1
        if self._failures and self.in_a_row >= self._failures:
            if self.trial_ms is not None and now_ms >= self.trial_ms:  # its trial failed
                self._pause_ms = min(2 * self._pause_ms, LONGEST_S * 1000)
            self.trial_ms = now_ms + self._pause_ms


@dataclass(frozen=True)
class Rules:
    """What holds for every request: time limits, and what is done about failures.

    A request may take `request_timeout_s` in all, `first_token_timeout_s` to its first token
    and `between_tokens_timeout_s` from one to the next (both only where answers are streamed).
    `deadline_ms` is the moment on the report's clock at which everything is cancelled.
    `store_text` keeps the answers in the rows, which otherwise hold only their hash.
    """

    retries: int = 1
    request_timeout_s: float = 120.0
    first_token_timeout_s: float = inf
    between_tokens_timeout_s: float = inf
    deadline_ms: float = inf
    store_text: bool = False
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class Job:
    """A prompt to be sent; `retries` counts its failures.

    `avoid` is the provider that failed or refused it last, where it holds off until
    `not_before_ms`.
    """

    prompt: Prompt
    assigned_ms: float | None = None
    attempt: int = 1
    role: Role = "first"
    retries: int = 0
    avoid: str = ""
    not_before_ms: float = 0.0


# A row, and the error where there was one.
Ended = tuple[Request, ProviderError | None]


async def attempt(
    sender: Sender, prompt: Prompt, clock: Callable[[], float], rules: Rules
) -> Request:
    """One attempt outside any arm, as a row: a failure is a row too, and so is the deadline.

    A cancellation from outside is passed on.
    """
    request, _ = await attempted(sender, Job(prompt), clock, rules)
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return request


async def attempted(sender: Sender, job: Job, clock: Callable[[], float], rules: Rules) -> Ended:
    """One attempt as a row, whatever came of it: cancellations end as rows too."""
    exchange, now_ms, silent = Exchange(clock), clock(), list[str]()
    outcome: Outcome = "ok"
    error: ProviderError | None = None
    problem: str | None = None
    left_s = (rules.deadline_ms - now_ms) / 1000
    until_ms = job.not_before_ms if job.avoid == sender.name else now_ms
    pause_s = max(0.0, (until_ms - now_ms) / 1000)
    allowed_s = pause_s + rules.request_timeout_s
    limit = asyncio.timeout(min(left_s, allowed_s))
    try:
        async with limit:
            if pause_s:
                await asyncio.sleep(pause_s)
            with _watched(exchange, rules, limit, silent):
                await sender.send(job.prompt, exchange)
    except TimeoutError:
        if not limit.expired():
            raise
        if exchange.finished:
            pass  # it is whole: what was cut is the wait for what a body holds beyond it
        elif not silent and left_s <= allowed_s:
            outcome, problem = "cancelled", "cut by a time limit (run_limit_s)"
        else:
            whole = f"not finished within {rules.request_timeout_s:g} s; raise request_timeout_s"
            told = silent[0] if silent else whole
            error = TimedOut(f"provider {sender.name}: {told} if it is only slow.", sender.name)
    except ProviderError as raised:
        error = raised
    except asyncio.CancelledError:
        outcome = "cancelled"
    if error:
        outcome, problem = "failed", str(error)
    text = "".join(exchange.pieces)
    start_ms, end_ms = exchange.marks.get("start_ms"), exchange.marks.get("end_ms")
    queued_ms = wall_ms = None
    if start_ms is not None:
        queued_ms = None if job.assigned_ms is None else max(0.0, start_ms - job.assigned_ms)
        wall_ms = None if end_ms is None else end_ms - start_ms
    marks = RequestMarks(assigned_ms=job.assigned_ms, ahead_ms=exchange.ahead_ms, **exchange.marks)
    request = Request(
        prompt=job.prompt.index,
        provider=sender.name,
        attempt=job.attempt,
        role=job.role,
        outcome=outcome,
        error=problem,
        error_kind=type(error).__name__ if error else None,
        status=error.status if error else None,
        wall_ms=wall_ms,
        queued_ms=queued_ms,
        marks=marks,
        server=exchange.server,
        prompt_tokens=exchange.prompt_tokens,
        cached_tokens=exchange.cached_tokens,
        output_tokens=exchange.output_tokens,
        thought_characters=sum(map(len, exchange.thoughts)) or None,
        finish_reason=exchange.finish_reason,
        answer_sha256=hashlib.sha256(text.encode()).hexdigest() if outcome == "ok" else None,
        answer=text if rules.store_text and outcome == "ok" else None,
        token_ms=exchange.token_ms or None,
    )
    return request, error


@contextlib.contextmanager
def _watched(
    exchange: Exchange, rules: Rules, limit: asyncio.Timeout, silent: list[str]
) -> Iterator[None]:
    """Cut the request where tokens, or thoughts, are too long in coming; `silent` then says why.

    Looks only when that could be: it costs nothing for each token.
    """
    first_s, between_s = rules.first_token_timeout_s, rules.between_tokens_timeout_s
    if min(first_s, between_s) >= rules.request_timeout_s:
        yield
        return
    loop, begun_ms = asyncio.get_running_loop(), exchange.clock()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        told_ms = [*exchange.thought_ms[-1:], *exchange.token_ms[-1:]]
        which, allowed_s = ("between_tokens", between_s) if told_ms else ("first_token", first_s)
        left_s = allowed_s - (exchange.clock() - max(told_ms, default=begun_ms)) / 1000
        if left_s > 0:  # before the first token, one may come and start the shorter wait
            timer = loop.call_later(max(0.001, min(left_s, between_s)), look)
        else:
            silent.append(f"no token within {allowed_s:g} s; raise {which}_timeout_s")
            limit.reschedule(loop.time())

    timer = loop.call_later(min(first_s, between_s), look)
    try:
        yield
    finally:
        timer.cancel()
