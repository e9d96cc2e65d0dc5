"""A server that keeps every text it has seen finds no beginning that it knows. On a real socket."""

import asyncio
import json
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from replay import Answer, Replay, recorded

from poclib.measure import experiment
from poclib.parameters import Parameters
from poclib.records import Report
from poclib.workload import mark

OLLAMA = {
    "/api/version": Answer(b'{"version": "0.33.0"}'),
    "/api/tags": Answer(json.dumps({"models": [{"name": "m:latest", "digest": "abc"}]}).encode()),
    "/api/chat": recorded("ollama/chat_stream"),
}
LONG = "The same long beginning that every prompt of this person has. " * 20
MARK = 12  # characters: six letters, each with a space


def measured(folder: Path, prompts: list[str]) -> tuple[Report, list[str]]:
    """A run of two rounds on one server, and every text that the server was sent."""

    async def story() -> tuple[Report, list[str]]:
        async with Replay(OLLAMA) as server:
            provider = {"name": "own", "kind": "ollama", "url": server.url, "model": "m"}
            asked = {"providers": [provider], "strategy": "sequential", "rounds": 2}
            parameters = Parameters.read({"prompts": prompts, **asked})
            report = await asyncio.to_thread(experiment.measure, parameters, folder=folder)
            sent = [one.body for one in server.asked if one.path == "/api/chat"]
        return report, [body["messages"][0]["content"] for body in sent]

    return asyncio.run(story())


def test_no_two_texts_of_a_run_begin_alike(tmp_path: Path) -> None:
    report, sent = measured(tmp_path, [LONG + "Why?", LONG + "How?"])
    assert report.marked and len(sent) == 1 + 4 + 2 * (2 * 2) + 2
    # Fewer than 26 texts: they do not share a single letter.
    assert all(a[0] != b[0] for a, b in combinations(sent, 2))
    assert {text[MARK:] for text in sent} == {LONG + "Why?", LONG + "How?"}


def test_the_next_run_begins_elsewhere(tmp_path: Path) -> None:
    """A server keeps texts for longer than a run takes."""
    runs = [measured(tmp_path / str(n), ["Why?"])[1] for n in range(3)]
    assert not set(runs[0]) & set(runs[1]) and not set(runs[1]) & set(runs[2])


@pytest.mark.parametrize("length", [1, 26, 27, 700])
def test_what_texts_share_grows_only_with_their_distance(length: int) -> None:
    near = [mark(n) for n in range(length)]
    assert len(set(near)) == length
    assert all(len(one) == MARK - 1 for one in near)
    assert all(a[0] != b[0] for a, b in pairwise(near))
