"""Who each provider is: whether all hold the same model, and whether one has become another.

Asks servers who they are and compares what they said; sends no prompt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import PocError, UnlikeProviders
from ..records import ProviderFacts
from .pool import Measurable

# What must stay the same of a provider for its times to be of one kind.
SAME = ("model", "digest", "server", "engine", "context_tokens")


def check_alike(facts: Sequence[ProviderFacts]) -> None:
    """Raise `UnlikeProviders` where two digests of the same scheme differ: unequal work."""
    seen: dict[str, tuple[str, str]] = {}
    for fact in facts:
        if fact.digest is None:
            continue
        scheme = fact.digest.partition(":")[0]
        name, digest = seen.setdefault(scheme, (fact.name, fact.digest))
        if digest != fact.digest:
            raise UnlikeProviders(
                f"providers {name} and {fact.name} hold different models ({digest[:19]} and "
                f"{fact.digest[:19]}): their work would not be equal; load the same model on "
                "both, or set allow_unlike_models: true if that is meant."
            )


def differs(was: ProviderFacts, now: ProviderFacts) -> str:
    """What is another, and how: digest x, now y. Empty where its times are of one kind."""
    pairs = [(key, getattr(was, key), getattr(now, key)) for key in SAME]
    return ", ".join(f"{key} {old}, now {new}" for key, old, new in pairs if old != new)


async def changed(
    was: Sequence[ProviderFacts],
    senders: Mapping[str, Measurable],
    known: Mapping[str, Mapping[str, Any]],
    limit_s: float,
) -> tuple[list[str], list[str]]:
    """Ask each again who it is: a sentence for each that is another, and for each that is silent.

    `known` is what is known of each without asking. An answer may take `limit_s`: whether a
    server can answer prompts is for the requests to show.
    """

    async def asked(name: str) -> ProviderFacts:
        async with asyncio.timeout(limit_s):
            return await senders[name].describe()

    answers = await asyncio.gather(*(asked(one.name) for one in was), return_exceptions=True)
    another, silent = [], []
    for before, answer in zip(was, answers, strict=True):
        if isinstance(answer, ProviderFacts):
            if how := differs(before, answer.model_copy(update=dict(known[before.name]))):
                another.append(f"provider {before.name} was changed during the run ({how})")
        elif isinstance(answer, PocError):
            silent.append(str(answer))
        elif isinstance(answer, TimeoutError):
            silent.append(f"provider {before.name} does not say who it is.")
        else:
            raise answer
    return another, silent
