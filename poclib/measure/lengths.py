"""How long answers are, learned from those so far: as multiples of a usual one.

The work of an answer is its tokens where they are known, else its time over what is usual at its
provider. What is half known beforehand is a line through the logarithms of a prompt's and its
answer's length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import exp, inf, log, sqrt

from ..records import Prompt

# So many answers of the usual length are taken for granted, and so much of no use for foreknowing.
PRIOR, PRIOR_SPAN = 4.0, 2.0
# A length so many spreads beyond what is expected is no length: then it is the machine.
PLAUSIBLE = 3.0
LEAST = 1e-6


class Lengths:
    """`mean` of the work of an answer, and `spread` of its logarithm around what is foretold."""

    def __init__(self) -> None:
        self.mean, self.spread, self.slope = 1.0, 0.0, 0.0
        self._count, self._work = 0, 0.0
        self._x = self._y = self._xx = self._xy = self._yy = 0.0  # means, then sums around them
        self._tokens = self._usual = 0.0

    def work(self, tokens: int | None, usual: float) -> float:
        """The work of an answer that took `usual` times what a usual one takes at its provider."""
        if not tokens:
            return usual
        self._tokens += tokens
        self._usual += usual
        return tokens * self._usual / self._tokens

    def learn(self, characters: int, work: float) -> None:
        """Take in one answer, to a prompt of so many characters."""
        x, y = log(1 + characters), log(max(LEAST, work))
        self._count += 1
        self._work += work
        dx, dy = x - self._x, y - self._y
        self._x += dx / self._count
        self._y += dy / self._count
        self._xx += dx * (x - self._x)
        self._xy += dx * (y - self._y)
        self._yy += dy * (y - self._y)
        self.mean = (PRIOR + self._work) / (PRIOR + self._count)
        self.slope = self._xy / (self._xx + PRIOR_SPAN)
        unexplained = max(0.0, self._yy - self.slope * self._xy)
        self.spread = sqrt(unexplained / (PRIOR + self._count))

    def expected(self, characters: int) -> float:
        """The work that the answer to a prompt of so many characters is expected to be."""
        return self.mean * exp(self.slope * (log(1 + characters) - self._x))

    def rest(self, done: float, expected: float) -> float:
        """How much work is left of one that is under way: what took long takes longer yet.

        One that is overdue is expected to take as long again as it is overdue: a provider that
        hangs becomes less attractive the longer it does.
        """
        return max(abs(expected - done), self.spread * done)

    def whole(self, done: float, expected: float) -> float:
        """How much work one under way will have been, as far as it is the prompt's doing."""
        most = expected * exp(PLAUSIBLE * self.spread)
        return min(done + self.rest(done, expected), most)


class Fresh:
    """The prompts that were never given: in their order, or, `longest_first`, in that of length.

    Their texts are asked for one by one, when they are taken: there may be more than memory holds.
    The next one comes at `due_ms`.
    """

    due_ms = inf

    def __init__(self, prompts: Sequence[Prompt], lengths: Lengths, longest_first: bool) -> None:
        self._prompts, self._lengths, self._sorted = prompts, lengths, longest_first
        self._left = deque(range(len(prompts)))
        if longest_first:
            characters = [len(prompt.text) for prompt in prompts]
            self._left = deque(sorted(self._left, key=lambda index: -characters[index]))

    def __len__(self) -> int:
        return len(self._left)

    def come(self, held: int) -> None:
        """Take in the one that is due, where `held` others wait to be sent."""

    def taken(self) -> Prompt:
        """The next; of those in the order of length the one expected to be the longest."""
        last = self._sorted and self._lengths.slope < 0
        return self._prompts[self._left.pop() if last else self._left.popleft()]
