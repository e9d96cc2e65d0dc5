"""Bad input ends in a result or one of our errors; benchmarks/fuzz.py tries it by the thousand."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poclib import parameters, report
from poclib.errors import ParameterError, ReportError
from poclib.measure.attempt import Rules, attempt
from poclib.parameters import Parameters
from poclib.records import Prompt, Report, Request

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import fuzz

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
LINE_KEYS = ["arm", "round", "turn", "begin", "request", "end", "facts", "probe", "resumed_ms"]
HEAD = {"format": report.FORMAT, "version": 2, "experiment": "x", "strategy": "batched"}
HEAD |= {"created": "2026-11-26T00:00:00Z", "poclib": "0"}
FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("parser", fuzz.PARSERS)
def test_mutated_inputs_end_in_a_result_or_in_one_of_our_errors(parser: str) -> None:
    ended, broken = fuzz.fuzz(parser, 150)
    assert not broken, broken[0][1]
    assert sum(ended.values()) == 150 and len(ended) >= (1 if parser in fuzz.SERVERS else 2)
    if parser in ("parameters", "reports"):  # not every input is refused at its first byte
        assert ended["a result"] >= 5


@FEW
@given(
    st.dictionaries(st.sampled_from([*Parameters.model_fields, "roundz"]), JSON, max_size=6),
    st.lists(st.dictionaries(st.sampled_from(["name", "kind", "url", "link"]), JSON), max_size=3),
)
def test_parameters_of_any_shape(values: dict[str, Any], providers: list[dict[str, Any]]) -> None:
    for asked in (values, {**values, "providers": providers}):
        try:
            assert Parameters.read(asked, "it").model_dump_json()
        except ParameterError as error:
            assert str(error).startswith("it: ") and "\n" not in str(error)[:20]


WRONG_YAML = [
    *("a: [&b x, *b]", "a: &b {<<: *b}", "a: 1\nb: 2\na: 3", "a: &a [*a]", f"a: {'[' * 10**5}"),
    *("a: !!float x", "a: !!timestamp x", "a: !!int ''", "a: !!bool x", 'a: {"\\e[2J": 1}'),
    "a: &a !!python/object/apply:os.getpid []",
]


@pytest.mark.parametrize("text", WRONG_YAML, ids=range(len(WRONG_YAML)))
def test_a_file_of_parameters_holds_data_only_and_each_of_it_once(text: str) -> None:
    with pytest.raises(ParameterError, match=r"^it[:,] ") as caught:
        parameters.values(text, "it")
    assert len(str(caught.value)) < 200


@FEW
@given(
    st.dictionaries(st.sampled_from(list(Report.model_fields)), JSON, max_size=8),
    st.lists(st.dictionaries(st.sampled_from(LINE_KEYS), JSON, max_size=5), max_size=6),
)
def test_reports_of_any_shape(values: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    whole = {"format": report.FORMAT, "version": 1, **values}
    with tempfile.TemporaryDirectory() as folder:
        for name, lines in (("x.json", [whole]), ("x.jsonl", [HEAD, *rows])):
            path = Path(folder) / name
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            try:
                assert report.load(path).experiment == "x" and name == "x.jsonl"
            except ReportError as error:
                assert name in str(error)


@FEW
@given(st.sampled_from(fuzz.SERVERS), st.booleans(), st.lists(JSON, max_size=5), st.binary())
def test_answers_of_any_shape(kind: str, stream: bool, events: list[Any], rest: bytes) -> None:
    body = "".join(json.dumps(event) + "\n" for event in events).encode() + rest
    sender = fuzz.provider(kind, "http://127.0.0.1:9", stream=stream)
    sender.client = fuzz.Answering(200, body, 7)  # type: ignore[assignment]
    row = asyncio.run(attempt(sender, Prompt(0, "x"), time.perf_counter, Rules()))
    assert msgspec.json.decode(msgspec.json.encode(row), type=Request) == row
    assert row.outcome in ("ok", "failed") and (row.error is None) == (row.outcome == "ok")


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/x", "a\0b", "", ".x", "x" * 99, "a\n", "ä"])
@pytest.mark.parametrize("key", ["experiment", "strategy", "providers"])
def test_no_name_leads_out_of_its_folder(key: str, name: str) -> None:
    value = [{"name": name}] if key == "providers" else name
    with pytest.raises(ParameterError):
        Parameters.read({"providers": [{"name": "a"}], key: value})
