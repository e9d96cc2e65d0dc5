"""Parameters and files of prompts as people write them: read as meant, or refused in words."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import pytest

from poclib import workload
from poclib.cli import read_yaml
from poclib.errors import ParameterError
from poclib.parameters import Parameters

PROVIDER = {"name": "a"}


def read(yaml: str, folder: Path) -> Parameters:
    path = folder / "x.yaml"
    path.write_text(f"providers: [{{name: a}}]\n{yaml}\n", "utf-8")
    return Parameters.read(read_yaml(path), "x.yaml")


# --- what YAML makes of a word ---------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        *(
            "prompts: true",
            "prompts: 1.5",
            "prompts: 2026-01-02",
            "prompts: [8]",
            "prompts: [yes, true]",
        ),
        *("max_tokens: 010", "max_tokens: 0o10", "max_tokens: 0x10", "max_tokens: 1:30"),
        *(
            "max_tokens: true",
            "max_tokens: '40'",
            "max_tokens: 40.0",
            "rounds: yes",
            "rounds: true",
        ),
        *("stream: yes", "stream: 1", "stream: 'true'", "hedge: on", "allow_public: yes"),
        *("run_limit_s: 1:30", "run_limit_s: 00:30:00", "run_limit_s: true", "run_limit_s: '60'"),
        *("experiment: 8", "notebooks: 10", "seed: 2026-01-02", "seed: 9223372036854775808"),
        *("gate_max_ratio: .inf", "gate_max_ratio: .nan", "gate_max_ratio: 1e999", "band: .nan"),
        *("max_tokens: 40\nmax_tokens: 8", "seed: 1\nSeed: 2"),
    ],
)
def test_a_value_that_is_not_what_it_is_written_as_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"^(x\.yaml|prompts: cannot read)") as caught:
        workload.texts(read(line, tmp_path).prompts)
    key = line.partition(":")[0]
    assert key in str(caught.value).lower() and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        *(
            ("max_tokens: 40", 40),
            ("max_tokens: 1_000", 1000),
            ("max_tokens: +8", 8),
            ("seed: -3", -3),
        ),
        *(("run_limit_s: 60", 60), ("run_limit_s: 1e3", 1000), ("run_limit_s: .5", 0.5)),
        *(("stream: true", True), ("stream: False", False), ("arm_limit_s: ~", None)),
        *(("arm_limit_s:", None), ("arm_limit_s: null", None), ("rounds: auto", "auto")),
        *(("prompts: yes.txt", "yes.txt"), ("prompts: [no, 'on']", ["no", "on"])),
        ("experiment: 2026-01-02", "2026-01-02"),
    ],
)
def test_a_value_that_is_what_it_is_written_as_is_taken(
    line: str, value: Any, tmp_path: Path
) -> None:
    found = getattr(read(line, tmp_path), line.partition(":")[0])
    assert found == value and isinstance(found, bool) is isinstance(value, bool)


def test_a_switch_named_off_is_off(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("providers: [{name: a, adaptive: off}, {name: b, adaptive: on}]")
    parameters = Parameters.read(read_yaml(path, ["max_tokens=8"]))
    assert [p.adaptive for p in parameters.providers] == ["off", "on"]
    with pytest.raises(ParameterError, match=r"max_tokens: needs a whole number.*'010'"):
        Parameters.read(read_yaml(path, ["max_tokens=010"]))
    with pytest.raises(ParameterError, match="gate_max_ratio: needs a number"):
        Parameters.read(read_yaml(path, ["gate_max_ratio=.inf"]))


NUMBERS = [
    key
    for key, field in Parameters.model_fields.items()
    if "int" in str(field.annotation) or "float" in str(field.annotation)
]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), True, "8"])
def test_no_number_takes_what_is_none(key: str, value: Any) -> None:
    if (key, value) == ("prompts", "8"):
        return  # the name of a file
    with pytest.raises(ParameterError, match=key):
        Parameters.read({"providers": [PROVIDER], key: value})


def test_what_is_read_can_be_saved_and_read_back() -> None:
    link = {"round_trip_ms": float("inf")}
    for wrong in (
        {"link": link},
        {"link": {"bandwidth_mbit_s": float("inf")}},
        {"model": "\ud83d"},
    ):
        with pytest.raises(ParameterError):
            Parameters.read({"providers": [PROVIDER | wrong]})
    with pytest.raises(ParameterError, match="saved and read back"):
        Parameters.read({"providers": [PROVIDER], "prompts": ["\ud83d"]})


# --- files of prompts ------------------------------------------------------------------------

FIVE = [
    "Why is the sky blue?",
    'Say "hi", twice.',
    "Größe; Maß\u2028und Ziel",
    "a\x0cb\x85c",
    "ä\x1cö",
]
LINES = "\n".join(FIVE)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", " \t\r\n\r\n"])
@pytest.mark.parametrize(
    ("mark", "code"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_five_prompts_are_five_however_an_editor_saves_them(
    end: str, mark: bytes, code: str, last: bool, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(mark + (end.join(FIVE) + end * last).encode(code))
    assert workload.texts(str(path)) == FIVE


TABLES = {
    "one.csv": '"Two\nlines"\r\n"Say ""hi"", twice."\r\nPlain\r\n',
    "headed.csv": '\ufeffid,Prompt,note\r\n1,"Two\r\nlines",x\r\n2,"Say ""hi"", twice.",\r\n'
    "3,Plain,\r\n,,\r\n",
    "german.csv": 'id;prompt\r\n1;"Two\nlines"\r\n2;"Say ""hi"", twice."\r\n3;Plain\r\n',
    "x.tsv": 'prompt\tid\r\n"Two\nlines"\t1\r\n"Say ""hi"", twice."\t2\r\nPlain\t3\r\n',
    "x.jsonl": '{"prompt": "Two\\nlines"}\n\n"Say \\"hi\\", twice."\r\n{"prompt": "Plain"}',
    "x.json": json.dumps([{"prompt": "Two\nlines"}, 'Say "hi", twice.', "Plain"], indent=1),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_holds_one_prompt_in_a_row(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(TABLES[name].encode())
    found = [text.replace("\r", "") for text in workload.texts(str(path))]
    assert found == ["Two\nlines", 'Say "hi", twice.', "Plain"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.csv", b"id,text\n1,Hello\n", "a column headed prompt"),
        ("x.csv", b"Name three birds, please\n", "a column headed prompt"),
        ("x.csv", b'"' + b"x" * 200_000 + b'"', "a column headed prompt"),
        ("x.jsonl", b'{"text": "Hello"}\n', "objects like"),
        ("x.jsonl", b"Hello\n", "objects like"),
        ("x.jsonl", b"5\n", "objects like"),
        ("x.json", b'{"prompt": "Hello"}', "objects like"),
        ("x.json", b"[" * 100_000, "objects like"),
        ("x.csv", b"prompt\n", "there is none"),
        ("x.txt", b"\xef\xbb\xbf\r\n \x0c\n", "there is none"),
        ("x.txt", "Größe".encode("latin-1"), "is it there, and UTF-8"),
        ("x.txt", "Hello".encode("utf-16-le"), "is it there, and UTF-8"),
        ("x.txt", codecs.BOM_UTF16_LE + b"H", "is it there, and UTF-8"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(
    name: str, data: bytes, words: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ParameterError, match=f"^prompts: .*{words}"):
        workload.texts(str(path))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(ParameterError, match="empty"):
        workload.texts(["Hello", " "])
