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


# By key, what YAML 1.1 or a lax reader would take for something else than what is written.
REFUSED = {
    "prompts": ["true", "1.5", "2026-01-02", "[8]", "[yes, true]"],
    "max_tokens": ["010", "0o10", "0x10", "1:30", "true", "'40'", "40.0", "40\nmax_tokens: 8"],
    "rounds": ["yes", "true"],
    "stream": ["yes", "1", "'true'"],
    "run_limit_s": ["1:30", "00:30:00", "true", "'60'"],
    "experiment": ["8"],
    "seed": ["2026-01-02", "9223372036854775808", "1\nSeed: 2"],
    "gate_max_ratio": [".inf", ".nan", "1e999"],
}


@pytest.mark.parametrize(("key", "word"), [(k, word) for k in REFUSED for word in REFUSED[k]])
def test_a_value_that_is_not_what_it_is_written_as_is_refused(
    key: str, word: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r"^(x\.yaml|prompts: cannot read)") as caught:
        workload.texts(read(f"{key}: {word}", tmp_path).prompts)
    assert key in str(caught.value).lower() and "\n" not in str(caught.value)


TAKEN = [
    *(("max_tokens: 40", 40), ("max_tokens: 1", 1), ("seed: -3", -3)),
    *(("run_limit_s: 60", 60), ("run_limit_s: 1e3", 1000), ("run_limit_s: 0.5", 0.5)),
    *(("stream: true", True), ("stream: False", False), ("strike: ~", None), ("strike:", None)),
    *(("strike: null", None), ("rounds: auto", "auto"), ("prompts: yes.txt", "yes.txt")),
    *(("prompts: [no, 'on']", ["no", "on"]), ("experiment: 2026-01-02", "2026-01-02")),
]


@pytest.mark.parametrize(("line", "value"), TAKEN)
def test_a_value_that_is_what_it_is_written_as_is_taken(
    line: str, value: Any, tmp_path: Path
) -> None:
    taken = getattr(read(line, tmp_path), line.partition(":")[0])
    assert taken == value and isinstance(taken, bool) is isinstance(value, bool)


def test_a_switch_named_off_is_off_and_set_reads_a_word_as_a_file_does(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("providers: [{name: a, adaptive: off}, {name: b, adaptive: on}]")
    parameters = Parameters.read(read_yaml(path, ["max_tokens=8"]))
    assert [p.adaptive for p in parameters.providers] == ["off", "on"]
    with pytest.raises(ParameterError, match=r"max_tokens: needs a whole number.*'010'"):
        Parameters.read(read_yaml(path, ["max_tokens=010"]))


KINDS = {key: str(field.annotation) for key, field in Parameters.model_fields.items()}
NUMBERS = [key for key, kind in KINDS.items() if "int" in kind or "float" in kind]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), True, b"8"])
def test_no_number_takes_what_is_none(key: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=key):
        Parameters.read({"providers": [PROVIDER], key: value})


def test_what_could_not_be_saved_and_read_back_is_refused() -> None:
    for unfit in ({"link": {"round_trip_ms": float("inf")}}, {"model": "\ud83d"}):
        with pytest.raises(ParameterError):
            Parameters.read({"providers": [PROVIDER | unfit]})
    with pytest.raises(ParameterError, match="saved and read back"):
        Parameters.read({"providers": [PROVIDER], "prompts": ["\ud83d"]})


FIVE = ["Why?", 'Say "hi", twice.', "Größe; Maß\u2028und Ziel", "a\x0cb\x85c", "ä\x1cö"]
CODES = [("", "utf-8"), ("\ufeff", "utf-8"), ("\ufeff", "utf-16-le"), ("\ufeff", "utf-16-be")]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", " \t\r\n\r\n"])
@pytest.mark.parametrize(("mark", "code"), CODES)
@pytest.mark.parametrize("last", [True, False])
def test_five_prompts_are_five_however_an_editor_saves_them(
    end: str, mark: str, code: str, last: bool, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes((mark + end.join(FIVE) + end * last).encode(code))
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
    texts = [text.replace("\r", "") for text in workload.texts(str(path))]
    assert texts == ["Two\nlines", 'Say "hi", twice.', "Plain"]


NO_PROMPTS = [
    ("x.csv", b"id,text\n1,Hello\n", "a column headed prompt"),
    ("x.csv", b"Name three birds, please\n", "a column headed prompt"),
    ("x.csv", b'"' + b"x" * 200_000 + b'"', "a column headed prompt"),
    ("x.csv", b"prompt\n", "there is none"),
    *(("x.jsonl", line, "objects like") for line in (b'{"text": "Hello"}\n', b"Hello\n", b"5\n")),
    *(("x.json", text, "objects like") for text in (b'{"prompt": "Hi"}', b'"Hi"', b"[" * 10**5)),
    ("x.txt", b"\xef\xbb\xbf\r\n \x0c\n", "there is none"),
    ("x.txt", b"Hello" * 20, "at most 0 MiB"),
    ("x.txt", "Größe".encode("latin-1"), "is it there, in UTF-8"),
    ("x.txt", "Hello".encode("utf-16-le"), "is it there, in UTF-8"),
    ("x.txt", codecs.BOM_UTF16_LE + b"H", "is it there, in UTF-8"),
    *((name, None, "cannot read") for name in ("/dev/zero", "a\0b", ".", "x" * 5000, "/dev/stdin")),
]


@pytest.mark.parametrize(("name", "data", "words"), NO_PROMPTS, ids=range(len(NO_PROMPTS)))
def test_a_file_that_holds_no_prompts_is_refused(
    name: str, data: bytes | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == "at most 0 MiB":
        monkeypatch.setattr(workload, "MAX_BYTES", 99)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ParameterError, match=f"^prompts: .*{words}"):
        workload.texts(str(tmp_path / name))
    with pytest.raises(ParameterError, match="empty"):
        workload.texts(["Hello", " "])
