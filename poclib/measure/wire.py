"""The wire test: one model's layers over links of many lengths, case by case; writes facts.

Every case runs through the real provider, transport and dispatch. What the wire carries is counted
by the link that carries it: see `engines.link`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from .. import __version__, points, recording
from ..engines import llama, sharded
from ..engines.pool import RunningEngine, engine_pool
from ..errors import EngineError, ParameterError
from ..parameters import Link, Parameters, ProviderSettings
from ..points import Case, Passed, Point, Wire
from ..progress import Progress, quiet
from ..records import Prompt, Request
from ..workload import texts
from .attempt import Rules
from .dispatch import run_arm
from .experiment import on_own_loop, open_pool
from .machine import environment, undisturbed
from .strategies import STRATEGIES

SLOTS, CONTEXT_TOKENS = 8, 640
ROUND_TRIPS_MS = (0, 5, 10, 20, 50, 100, 200)
# Round trips of the live test, which has four minutes.
LIVE_MS = (0, 10, 50, 100)
AT_MS = 50.0  # where what wins back is measured
TWO = {"workers": 2, "split": [1.0, 1.0]}


def law(round_trips_ms: Sequence[float], tokens: int) -> list[Case]:
    """One sequence at every round trip: one, two, four stages, and two unequal ones."""
    shards = [{"workers": 1}, TWO, {"workers": 2, "split": [1.0, 2.0]}]
    shards.append({"workers": 4, "split": [1.0] * 4})
    base = Case(study="law", tokens=tokens)
    return [_of(base, shard=s, round_trip_ms=float(ms)) for s in shards for ms in round_trips_ms]


def wins_back(tokens: int) -> list[Case]:
    """Each way to pay less for the wire, at one round trip."""
    base = Case(study="wins back", name="two stages, 1 sequence", shard=TWO, tokens=tokens)
    base = _of(base, round_trip_ms=AT_MS)
    many = [_of(base, in_flight=n, name=f"two stages, {n} sequences") for n in (2, 4, 8)]
    drafts = {
        "ngram-map-k": "draft: n-grams of the text so far",
        "itself": "draft: a whole model at the coordinator",
    }
    guesses = [_of(base, shard=TWO | {"draft": key}, name=name) for key, name in drafts.items()]
    shapes: dict[str, dict[str, Any]] = {
        "one stage": {"workers": 1},
        "four stages": {"workers": 4, "split": [1.0] * 4},
        "first half here, the rest one stage": {"workers": 1, "local_layers": 15},
        "output layer here": TWO | {"local_output": True},
    }
    return [base, *many, *guesses, *(_of(base, shard=s, name=n) for n, s in shapes.items())]


def sides(tokens: int) -> list[Case]:
    """Jitter, bandwidth and the length of the prompt."""
    base = Case(study="jitter", shard=TWO, tokens=tokens, round_trip_ms=AT_MS)
    cases = [_of(base, jitter_ms=ms) for ms in (10.0, 25.0, 50.0)]
    narrow = _of(base, study="bandwidth", round_trip_ms=20.0)
    here = TWO | {"local_output": True}
    for shard, name in ((TWO, "output layer there"), (here, "output layer here")):
        widths = (None, 100.0, 30.0, 10.0)
        cases += [_of(narrow, name=name, shard=shard, bandwidth_mbit_s=width) for width in widths]
    long = _of(base, study="prompt", tokens=4)
    lengths = [(n, ms) for n in (60, 240, 960, 1920) for ms in (0.0, AT_MS)]
    return cases + [_of(long, prompt_characters=n, round_trip_ms=ms) for n, ms in lengths]


def pool_or_shard(round_trips_ms: Sequence[float], tokens: int) -> list[Case]:
    """A pair of machines: whole models on both, on the near one alone, or half a model on each."""
    half = {"workers": 1, "local_layers": 15}
    base = Case(study="pool or shard", tokens=tokens)
    cases = []
    for count in (1, 8):
        cases.append(_of(base, how="alone", in_flight=count))
        for ms in round_trips_ms:
            far = _of(base, in_flight=count, round_trip_ms=float(ms))
            cases += [_of(far, how="pool")] if count > 1 else []
            cases.append(_of(far, shard=half))
    return cases


def memory(limit_mib: int, tokens: int) -> list[Case]:
    """Workers whose memory is limited: one alone, then two that share the layers."""
    base = Case(study="memory", tokens=tokens, name=f"{limit_mib} MiB each")
    shards = [{"workers": 1}, TWO]
    return [_of(base, shard=shard | {"worker_memory_mib": limit_mib}) for shard in shards]


def whole() -> list[Case]:
    """What the committed report holds."""
    cases = law(ROUND_TRIPS_MS, 24) + wins_back(48) + sides(16)
    return cases + pool_or_shard((0, 20, 100), 32) + memory(110, 8)


def live() -> list[Case]:
    """A smaller test of the same questions."""
    return law(LIVE_MS, 12) + wins_back(24) + pool_or_shard((50,), 24) + memory(110, 8)


def of_workers(at: Sequence[str], tokens: int = 24) -> list[Case]:
    """A person's own workers, as far away as they are, with one sequence and with eight."""
    base = Case(study="law", shard={"at": list(at)}, name="as it is", tokens=tokens)
    return [_of(base, in_flight=n) for n in (1, 8)]


def _of(case: Case, **changed: Any) -> Case:
    return case.model_copy(changed)


def measure(
    path: Path, cases: Sequence[Case], repeats: int = 1, progress: Progress = quiet
) -> Wire:
    """Measure every case that the file at `path` does not hold; the whole test as read back.

    Engines start once for all cases that need the same. It may be stopped at any moment: the same
    call goes on. A case whose engine does not start is a point with its problem. Raises
    `EngineError` where no engine can be had at all, `ReportError`, `ParameterError` (a file of
    another engine or model).
    """
    with recording.only_one(path.parent):
        left = points.load(path) if path.exists() else None
        done = {_key(point.case, point.repeat) for point in left.points} if left else set()
        wanted = [(case, n) for n in range(repeats) for case in cases]
        missing = [each for each in wanted if _key(*each) not in done]
        ended = len(wanted) - len(missing)
        about = left.about if left else None
        groups: dict[str, list[tuple[Case, int]]] = {}
        for each in missing:
            groups.setdefault(f"{each[1]} {_engines(each[0])}", []).append(each)
        for group in groups.values():
            for point, build in _points(group):
                if about is None:
                    about = _about(build)
                    points.append(path, about | {"format": points.FORMAT, "version": 1})
                if build and about["engine"] != build:
                    told = f"{path.name} was measured with {about['engine']}, not {build}"
                    raise ParameterError(f"{told}; move it away to begin anew.")
                points.append(path, point.model_copy({"case": _shown(point.case)}))
                ended += 1
                progress(point.case.study, ended, len(wanted))
    return points.load(path)


def _about(build: str) -> dict[str, Any]:
    model = llama.find_model()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "poclib": __version__,
        "engine": build,
        "model": model.stem,
        "digest": llama.model_digest(model),
        "layers": sharded.layers(model),
        "model_mib": model.stat().st_size / 2**20,
        "environment": environment(),
    }


def _shown(case: Case) -> Case:
    """Without anybody's addresses."""
    return case.model_copy({"shard": {k: v for k, v in case.shard.items() if k != "at"}})


def _key(case: Case, repeat: int) -> bytes:
    return msgspec.json.encode([_shown(case), repeat])


def _engines(case: Case) -> list[dict[str, Any]]:
    """The providers that a case needs, at no delay; cases with the same share their engines."""
    slots = 1 if case.study == "memory" else SLOTS  # each has its context in a worker's memory
    common = {"slots": slots, "capacity": SLOTS, "api": "completion"}
    # A link that carries at once, so that it can be made longer while the engine runs.
    near = {"name": "near", "kind": "embedded", "core": 0, **common}
    far = {"name": "far", "kind": "embedded", "core": 1, "link": {"round_trip_ms": 0.01}, **common}
    shard = {"name": "shard", "kind": "sharded", "shard": case.shard, "core": 0, **common}
    return {"shard": [shard], "alone": [near, far], "pool": [near, far]}[case.how]


def _points(group: Sequence[tuple[Case, int]]) -> Iterator[tuple[Point, str]]:
    """The points of cases with the same engines, each with the engine's build."""
    settings = [ProviderSettings.model_validate(each) for each in _engines(group[0][0])]
    try:
        with engine_pool(settings, CONTEXT_TOKENS) as engines:
            for case, repeat in group:
                yield _point(case, repeat, settings, engines), engines[0].build.label
    except EngineError as error:
        if group[0][0].study != "memory":  # there it is what was to be seen
            raise
        build, _, told = str(error).partition(": ")[2].partition(": ")  # of the first that was tried
        for case, repeat in group:
            yield Point(case=case, repeat=repeat, problem=told.partition(". ")[0]), build


def _point(
    case: Case, repeat: int, settings: Sequence[ProviderSettings], engines: Sequence[RunningEngine]
) -> Point:
    link = Link.model_validate({key: getattr(case, key) for key in Link.model_fields})
    linked = [e for e, s in zip(engines, settings, strict=True) if s.shard or s.link != Link()]
    for engine in linked:
        engine.change_link(link)
    probed_ms = sharded.probe_ms(case.shard["at"]) if "at" in case.shard else None
    counted = [_counts(linked)]
    rows: list[Request] = []
    for tokens in (1, case.tokens):  # what the first token takes on the wire is told apart
        with undisturbed():
            rows = on_own_loop(lambda tokens=tokens: _answers(case, tokens, settings, engines))
        counted.append(_counts(linked))  # raises where an engine has ended
    failed = next((row.error for row in rows if row.outcome != "ok"), None)
    of_shard = case.how == "shard"
    return Point(
        case=case,
        repeat=repeat,
        split=engines[0].split,
        probed_ms=probed_ms,
        requests=rows,
        passed_first=_between(*counted[:2]) if of_shard else None,
        passed=_between(*counted[1:]) if of_shard else None,
        problem=failed,
    )


def _counts(engines: Sequence[RunningEngine]) -> list[int]:
    counts = [count for engine in engines for count in engine.counts()]
    return [sum(each[k] for each in counts) for k in ("hops", "to_target_bytes", "to_client_bytes")]


def _between(before: Sequence[int], after: Sequence[int]) -> Passed:
    hops, there, back = (now - was for was, now in zip(before, after, strict=True))
    return Passed(hops=hops, to_worker_bytes=there, to_coordinator_bytes=back)


async def _answers(
    case: Case, tokens: int, settings: Sequence[ProviderSettings], engines: Sequence[RunningEngine]
) -> list[Request]:
    """The rows of the case's requests, all in flight together."""
    wanted = Parameters(
        providers=list(settings), max_tokens=tokens, context_tokens=CONTEXT_TOKENS, prompts=1
    )
    told = texts(case.in_flight)
    if case.prompt_characters:
        told = ["\n".join(texts(100))[: case.prompt_characters]]
    anchor_s = time.perf_counter()
    with open_pool(wanted, running={engine.name: engine for engine in engines}) as pool:
        senders = [sender for sender, _ in pool][: 1 if case.how == "alone" else None]
        try:
            arm = await run_arm(
                "strategy",
                STRATEGIES["shared-queue"],
                [Prompt(index, text) for index, text in enumerate(told)],
                senders,
                {one.name: -(-case.in_flight // len(senders)) for one in senders},
                {one.name: 100.0 for one in senders},
                lambda: (time.perf_counter() - anchor_s) * 1000,
                Rules(retries=0, request_timeout_s=120, first_token_timeout_s=60),
            )
        finally:
            for sender, _ in pool:
                await sender.aclose()
    return arm.requests
