"""One attempt to have one prompt answered, as a row: whatever came of it, and in bounded time.

It is handed a provider and knows neither its wire format nor what else goes on: `dispatch`
decides what is attempted where.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from ..errors import ProviderError, TimedOut
from ..records import Exchange, Outcome, Prompt, Request, RequestMarks, Role
from .policy import Policy


class Sender(Protocol):
    """What dispatch needs of a provider."""

    @property
    def name(self) -> str: ...

    async def send(self, prompt: Prompt, exchange: Exchange) -> None: ...


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
    first_token_timeout_s: float = float("inf")
    between_tokens_timeout_s: float = float("inf")
    deadline_ms: float = float("inf")
    store_text: bool = False
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class Job:
    """A prompt given to a provider; `pause_s` is how long to hold off before it is sent.

    `home` is the provider that the strategy named; `retries` counts what failed before.
    """

    prompt: Prompt
    assigned_ms: float | None = None
    attempt: int = 1
    pause_s: float = 0.0
    role: Role = "first"
    home: str = ""
    retries: int = 0


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
    exchange = Exchange(clock)
    outcome: Outcome = "ok"
    error: ProviderError | None = None
    problem: str | None = None
    left_s = (rules.deadline_ms - clock()) / 1000
    allowed_s = job.pause_s + rules.request_timeout_s
    limit = asyncio.timeout(min(left_s, allowed_s))
    silent: list[str] = []
    try:
        async with limit:
            if job.pause_s:
                await asyncio.sleep(job.pause_s)
            with _watched(exchange, rules, limit, silent):
                await sender.send(job.prompt, exchange)
    except TimeoutError:
        if not limit.expired():
            raise
        if exchange.finished:
            pass  # it is whole: what was cut is the wait for what a body holds beyond it
        elif silent:
            error = TimedOut(f"provider {sender.name}: {silent[0]}", sender.name)
        elif left_s <= allowed_s:
            outcome, problem = "cancelled", "cut by a time limit (run_limit_s or arm_limit_s)"
        else:
            error = TimedOut(
                f"provider {sender.name}: not finished within {rules.request_timeout_s:g} s; "
                "raise request_timeout_s if it is only slow.",
                sender.name,
            )
    except ProviderError as raised:
        error = raised
    except asyncio.CancelledError:
        outcome = "cancelled"
    if error:
        outcome, problem = "failed", str(error)
    return _row(sender.name, job, exchange, rules, outcome, error, problem), error


def _row(
    provider: str,
    job: Job,
    exchange: Exchange,
    rules: Rules,
    outcome: Outcome,
    error: ProviderError | None,
    problem: str | None,
) -> Request:
    """What is known of an attempt that has ended."""
    text = "".join(exchange.pieces)
    start_ms, end_ms = exchange.marks.get("start_ms"), exchange.marks.get("end_ms")
    queued_ms = None
    if start_ms is not None and job.assigned_ms is not None:
        queued_ms = max(0.0, start_ms - job.assigned_ms)
    return Request(
        prompt=job.prompt.index,
        provider=provider,
        attempt=job.attempt,
        role=job.role,
        outcome=outcome,
        error=problem,
        error_kind=type(error).__name__ if error else None,
        status=error.status if error else None,
        wall_ms=None if start_ms is None or end_ms is None else end_ms - start_ms,
        queued_ms=queued_ms,
        marks=RequestMarks(assigned_ms=job.assigned_ms, **exchange.marks),
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


@contextlib.contextmanager
def _watched(
    exchange: Exchange, rules: Rules, limit: asyncio.Timeout, silent: list[str]
) -> Iterator[None]:
    """Cut the request where tokens are too long in coming, and put why into `silent`.

    A thought is a token too.

    Looks only when that could be: it costs nothing for each token.
    """
    first_s, between_s = rules.first_token_timeout_s, rules.between_tokens_timeout_s
    if min(first_s, between_s) >= rules.request_timeout_s:
        yield
        return
    loop = asyncio.get_running_loop()
    begun_ms = exchange.clock()
    timer: list[asyncio.TimerHandle] = []

    def look() -> None:
        told = [*exchange.thought_ms[-1:], *exchange.token_ms[-1:]]
        allowed_s, name = (
            (between_s, "between_tokens_timeout_s") if told else (first_s, "first_token_timeout_s")
        )
        left_s = allowed_s - (exchange.clock() - max(told, default=begun_ms)) / 1000
        if left_s <= 0:
            silent.append(f"no token within {allowed_s:g} s; raise {name} if it is only slow.")
            limit.reschedule(loop.time())
            return
        # Before the first token, one may come and start the shorter wait.
        timer[:] = [loop.call_later(max(0.001, min(left_s, between_s)), look)]

    timer.append(loop.call_later(min(first_s, between_s), look))
    try:
        yield
    finally:
        timer[0].cancel()
