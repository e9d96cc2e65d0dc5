"""The wire test: one model's layers over links of many lengths, case by case; writes facts.

Every case goes through the real provider, transport and dispatch. What the wire carries is counted
by the link that carries it, see `engines.link`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .. import __version__, parameters, points, recording, report
from ..asked import Link, Shard
from ..engines import llama, sharded
from ..engines.pool import RunningEngine, engine_pool
from ..errors import EngineError, ParameterError
from ..parameters import Parameters, ProviderSettings
from ..points import Case, Point, Wire
from ..progress import Progress, bar, quiet
from ..records import Prompt, Request
from ..workload import texts
from .attempt import Rules
from .dispatch import run_arm
from .experiment import on_own_loop, open_pool
from .machine import environment, undisturbed
from .strategies import STRATEGIES

CONTEXT_TOKENS = 640
_NAME = "shard"


def cases(path: Path, at: Sequence[str] = ()) -> list[Case]:
    """The cases of a file such as params/wire/whole.yaml, which explains itself.

    With `at` the workers are those at these addresses. Raises `ParameterError`.
    """
    found = []
    try:
        studies = parameters.values(path.read_text("utf-8"), path.name)
        for study in studies:
            grid, own = study.pop("grid", {}), study.pop("cases", [{}])
            for change, *values in product(own, *grid.values()):
                case = Case.of({**study, **dict(zip(grid, values, strict=True)), **change})
                own = {"shard": {"at": list(at), "workers": len(at)}} if at else {}
                found.append(case.model_copy(own))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ParameterError(f"{path.name}: is no list of studies and cases ({error}).") from None
    return found


def obtain(
    name: str,
    live: bool = False,
    at: Sequence[str] = (),
    whole: bool = False,
) -> tuple[Wire, str]:
    """The wire test in the file `name`, or, if `live`, measured now on workers here or `at`.

    Where no engine can share a model here: that file's, and a sentence that says why.
    """
    note = ""
    if live:
        file = "own" if at else "whole" if whole else "live"
        path = report.root() / "data" / "runs" / "wire" / f"{file}.jsonl"
        try:
            wanted = cases(report.root() / "params" / "wire" / f"{file}.yaml", at)
            return measure(path, wanted, 1 + whole, bar("wire")), note
        except EngineError as error:
            if not name:
                raise
            note = f"Not measured here, so what is saved is shown: {error}"
    return points.load(report.root() / name), note


def measure(
    path: Path, wanted: Sequence[Case], repeats: int = 1, progress: Progress = quiet
) -> Wire:
    """Measure every case that the file at `path` does not hold yet; the whole test as read back.

    Engines start once for all cases that need the same. It may be stopped at any moment: the same
    call goes on, with the same engine. Raises `EngineError` where one does not start or ends, and
    `ReportError`.
    """
    with recording.only_one(path.parent):
        left = points.load(path) if path.exists() else None
        about = left.about if left else None
        done = {_key(point.case, point.repeat) for point in left.points} if left else set()
        groups: dict[str, list[tuple[Case, int]]] = {}
        for repeat, case in product(range(repeats), wanted):
            if _key(case, repeat) not in done:
                groups.setdefault(f"{repeat} {_settings(case)}", []).append((case, repeat))
        missing, ended = sum(map(len, groups.values())), 0
        for group in groups.values():
            if about is None:
                about = _about(sharing_engine())
                points.append(path, points.FORMAT | about)
            for point in _points(group, about["engine"]):
                points.append(path, point.model_copy({"case": _shown(point.case)}))
                ended += 1
                progress(f"the wire, {point.case.study}", ended, missing)
    return points.load(path)


def sharing_engine(at: Sequence[str] = ()) -> str:
    """The label of the first engine here that shares a model. Raises `EngineError`.

    Before it is looked for, `ParameterError` for an address of a worker that may not be asked.
    """
    for word in at:
        sharded.address("--at", word)
    trial = ProviderSettings(name=_NAME, kind="sharded", shard=Shard(workers=1))
    with engine_pool([trial], CONTEXT_TOKENS) as (engine,):
        return engine.engine


def _about(engine: str) -> dict[str, Any]:
    model = llama.find_model()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "poclib": __version__,
        "engine": engine,
        "model": model.stem,
        "digest": llama.model_digest(model),
        "layers": sharded.layers(model),
        "model_mib": round(model.stat().st_size / 2**20, 1),
        "environment": environment(),
    }


def _shown(case: Case) -> Case:
    """Without anybody's addresses."""
    return case.model_copy({"shard": {k: v for k, v in case.shard.items() if k != "at"}})


def _key(case: Case, repeat: int) -> bytes:
    return msgspec.json.encode([_shown(case), repeat])


def _settings(case: Case) -> ProviderSettings:
    """The provider of a case, at no delay: cases with the same share an engine."""
    slots = 8 if case.in_flight == 1 and "worker_memory_mib" not in case.shard else case.in_flight
    values = {"name": _NAME, "kind": "sharded", "shard": case.shard, "slots": slots, "core": 0}
    return ProviderSettings.model_validate(values | {"api": "completion"})


def _points(group: Sequence[tuple[Case, int]], build: str) -> Iterator[Point]:
    """The points of cases with the same engine."""
    settings = _settings(group[0][0])
    try:
        with engine_pool([settings], CONTEXT_TOKENS, build) as (engine,):
            for case, repeat in group:
                yield _point(case, repeat, settings, engine)
    except EngineError as error:
        if not (settings.shard and settings.shard.worker_memory_mib):
            raise
        # That it does not fit is what was to be seen.
        problem = str(error).split(": ", 3)[-1]
        for case, repeat in group:
            yield Point(case=case, repeat=repeat, problem=problem)


def _point(case: Case, repeat: int, settings: ProviderSettings, engine: RunningEngine) -> Point:
    engine.change_link(Link.model_validate({k: getattr(case, k) for k in Link.model_fields}))
    marks, rows = [_passed(engine)], []
    for tokens in (1, 1, case.tokens):  # warmed up; then what the first token takes, told apart
        with undisturbed():
            rows = on_own_loop(partial(_answers, case, tokens, settings, engine))
        marks.append(_passed(engine))  # raises where an engine has ended, and says why
    spent = [_between(was, now) for was, now in pairwise(marks)]
    return Point(
        case=case,
        repeat=repeat,
        split=engine.split,
        probed_ms=engine.probed_ms if "at" in case.shard else None,
        requests=rows,
        passed_first=spent[1],
        passed=spent[2],
        problem=next((row.error for row in rows if row.outcome != "ok"), None),
    )


def _passed(engine: RunningEngine) -> list[tuple[int, int, int]]:
    return [(count["hops"], *count["bytes"]) for count in engine.counts()]


def _between(
    was: Sequence[tuple[int, int, int]], now: Sequence[tuple[int, int, int]]
) -> tuple[int, int, int]:
    """Of all workers together."""
    hops, there, back = np.subtract(now, was).sum(axis=0).tolist()
    return hops, there, back


async def _answers(
    case: Case, tokens: int, settings: ProviderSettings, engine: RunningEngine
) -> list[Request]:
    """The rows of the case's requests, all in flight together."""
    wanted = Parameters(providers=[settings], max_tokens=tokens, context_tokens=CONTEXT_TOKENS)
    told = texts(case.in_flight)
    if case.prompt_characters:
        told = ["\n".join(texts(100))[: case.prompt_characters]]
    begun_s = time.perf_counter()
    limits: Mapping[str, int] = {_NAME: case.in_flight}
    with open_pool(wanted, running={_NAME: engine}) as ((sender, _),):
        try:
            arm = await run_arm(
                "strategy",
                STRATEGIES["shared-queue"],
                [Prompt(index, text) for index, text in enumerate(told)],
                [sender],
                limits,
                {_NAME: 100.0},
                lambda: (time.perf_counter() - begun_s) * 1000,
                Rules(retries=0, request_timeout_s=120, first_token_timeout_s=60),
            )
        finally:
            await sender.aclose()
    return arm.requests
