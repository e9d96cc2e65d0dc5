"""One provider's part in an arm: what it holds, how it fares, and what its answers teach."""

from __future__ import annotations

from math import inf

from .. import pacing
from ..contention import REFUSALS
from ..records import Request
from .adaptive import AdaptiveLimit
from .attempt import Breaker, Job, Policy, Sender
from .lengths import Lengths
from .slots import Place

# Weight of the newest answer in a provider's expected time.
NEWEST_WEIGHT = 0.3
LEAST_MS = 1e-6


class Lane(Place):
    """One provider's part in an arm: what it was given and has not sent, and what is in flight.

    It `works` on so many requests at once; what is sent `ahead`, one more, has not begun yet.
    """

    def __init__(
        self,
        sender: Sender,
        limit: int | None,
        expected_ms: float,
        policy: Policy,
        live: AdaptiveLimit | None,
        ahead: bool,
    ) -> None:
        super().__init__(sender.name, limit, max(LEAST_MS, expected_ms))
        self.sender, self.live, self._most = sender, live, limit
        self.works = max(1, limit - 1) if ahead and limit else inf
        self.breaker = Breaker(policy.breaker_failures, policy.breaker_pause_s)
        self.refusing_ms: float | None = None  # since when it has only refused
        self.put_off = False  # whether it has asked for longer than any pause is
        self._took_ms, self._work = self.expected_ms, 1.0  # of recent answers

    @property
    def allowed(self) -> int | None:
        """What it may hold now: its limit, or what trouble has left of it."""
        return self.live.limit if self.live else self._most

    def changed(self, now_ms: float) -> None:
        """Note what a strategy may see of it."""
        self.limit = self.allowed if self.breaker.closed else 1
        self.admitted, self.well = self.breaker.admits(now_ms, self.busy), not self.breaker.in_a_row

    def begun(self, task: object, now_ms: float) -> None:
        self.running[task] = now_ms if len(self.running) < self.works else inf
        if self.live:
            self.live.begun(id(task), now_ms)

    def ended(self, task: object, request: Request | None, now_ms: float) -> bool:
        """Note how a request ended (None: beaten); True if refused as one too many."""
        del self.running[task]
        if len(self.running) >= self.works:
            following = next((one for one, ms in self.running.items() if ms == inf), None)
            if following:
                self.running[following] = now_ms
        answered = request is not None and request.outcome == "ok"
        if answered:
            self.refusing_ms = None
        elif request and request.status in REFUSALS:
            self.refusing_ms = now_ms if self.refusing_ms is None else self.refusing_ms
            return self.live is not None and self.live.refused(id(task), now_ms)
        if request and answered and self.live and self.works == inf:
            ended_ms, sent_ms = request.marks.last_byte_ms, request.marks.sent_ms
            server_ms = None if ended_ms is None or sent_ms is None else ended_ms - sent_ms
            self.live.answered(id(task), now_ms, server_ms)
        elif self.live:  # what was sent ahead waited there, too: that tells of no load
            self.live.failed(id(task))
        return False

    def learn(self, lengths: Lengths, job: Job, request: Request, held_ms: float) -> None:
        """Learn from an answer how fast the provider is, and how long answers are."""
        took_ms = min(held_ms, request.wall_ms or 0.0)  # without what it waited, sent ahead
        if took_ms <= 0:
            return
        tokens = pacing.length(request)
        work = lengths.work(tokens, took_ms / self.expected_ms)
        lengths.learn(len(job.prompt.text), work)
        self._took_ms += NEWEST_WEIGHT * (took_ms - self._took_ms)
        self._work += NEWEST_WEIGHT * ((work if tokens else lengths.mean) - self._work)
        self.expected_ms = max(LEAST_MS, self._took_ms / self._work)
