"""Files of prompts, and of their answers in the same format: text, tables, JSON, OpenAI's batch.

A file holds a prompt on each line that is not blank; a .csv or .tsv in a column headed `prompt`, or
its only one; a .jsonl or .json as texts, or as objects with a `prompt`, or a `body` as in OpenAI's
batch, which `vllm run-batch` takes too.
"""

import codecs
import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from .errors import ParameterError

KINDS = (".csv", ".tsv", ".json", ".jsonl")  # all others are text
# Of a body: what is carried to every kind of server, and what is set here for each.
CARRIED = {"max_tokens", "temperature", "top_p", "seed", "stop"}
CARRIED |= {"presence_penalty", "frequency_penalty"}
OURS = {"model", "messages", "prompt", "stream", "stream_options", "max_completion_tokens"}
WAYS = {"/v1/chat/completions": "chat", "/v1/completions": "completion"}  # by `url`
# What is told of an answer, in columns or keys beside those of its prompt.
TOLD = ("answer", "error", "provider", "finish_reason", "output_tokens", "wall_ms")
USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")
ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r"})  # in a file of lines
Fields = dict[str, Any]


class Row(NamedTuple):
    """A row of a file of prompts as it stands there, and what it asks for."""

    line: int
    fields: Fields
    text: str
    messages: list[dict[str, str]] | None = None
    options: Fields | None = None
    api: str | None = None  # the way in which it wants to be asked
    dropped: tuple[str, ...] = ()  # what of its body nobody carries


def rows(path: Path, column: str = "prompt", bodies: bool = False) -> Iterator[Row]:
    """Every row in turn; OpenAI's batch only with `bodies`. Raises `ParameterError`."""
    kind, line, column = path.suffix.lower(), 0, column.strip()
    try:
        if not path.is_file():  # no device: it may never end
            raise OSError
        with path.open("rb") as start:
            wide = start.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        newline = "" if kind in (".csv", ".tsv") else None
        with path.open(encoding="utf-16" if wide else "utf-8-sig", newline=newline) as file:
            for line, value in _values(file, kind, column.lower()):
                value = json.loads(value) if kind == ".jsonl" else value
                fields = value if isinstance(value, dict) else {column: value}
                if bodies and isinstance(fields.get("body"), dict):
                    yield _of_batch(line, fields)
                else:
                    names = {key.strip().lower(): key for key in fields}
                    yield Row(line, fields, fields[names[column.lower()]] + "")
    except (OSError, UnicodeError):
        raise ParameterError(
            f"prompts: cannot read {str(path)[:200]!r} as a text file; is it there, in UTF-8?"
        ) from None
    except (AttributeError, csv.Error, LookupError, RecursionError, TypeError, ValueError) as error:
        why = f" ({error})" if isinstance(error, csv.Error) else ""
        raise ParameterError(
            f"prompts: the {kind} file has none in line {max(1, line)}{why}: a .csv or .tsv needs "
            f"a column headed {column} or no other, and quotes around a text that holds what parts "
            f'them; a .json or .jsonl needs texts, or objects like {{"{column}": "…"}}.'
        ) from None


def _values(file: IO[str], kind: str, column: str) -> Iterator[tuple[int, Any]]:
    """Each text or object of a file with the line on which it ends; raises where it is none."""
    if kind == ".json":
        found = json.loads("".join(_lines(file)))
        yield from enumerate([*found] if isinstance(found, list) else [None], start=1)
        return
    if kind not in (".csv", ".tsv"):
        lines = enumerate(map(str.strip, _lines(file)), start=1)
        yield from ((number, line) for number, line in lines if line)
        return
    separators = "\t" if kind == ".tsv" else ",;\t"  # whatever parts its columns
    for separator in separators:
        file.seek(0)
        table = csv.DictReader(_lines(file), delimiter=separator, restval="")
        if column in [head.strip().lower() for head in table.fieldnames or []]:
            yield from ((table.line_num, row) for row in table)
            return
    file.seek(0)
    for number, cells in enumerate(csv.reader(_lines(file), delimiter=separators[0]), start=1):
        if cells:
            yield number, cells[0] if len(cells) == 1 and column == "prompt" else None


def _lines(file: Iterable[str]) -> Iterator[str]:
    for line in file:
        if "\0" in line:
            raise UnicodeError("no text")
        yield line


def _of_batch(number: int, fields: Fields) -> Row:
    """What a line of OpenAI's batch asks for. Raises `ParameterError` where it is none."""
    body, messages = fields["body"], None
    try:
        needs = f"a url that is asked here: {' or '.join(WAYS)}"
        api = WAYS[fields["url"]]
        needs = "a custom_id, a text of its own"
        text = fields["custom_id"] + ""
        if api == "completion":
            needs = "a prompt in its body, one text"
            text = body["prompt"] + ""
        else:
            needs = "messages in its body, each with a role and a content that is text"
            messages = [_message(one) for one in body["messages"]]
            text = "\n".join(message["content"] for message in messages)
    except (LookupError, TypeError):
        raise ParameterError(f"prompts: line {number} needs {needs}.") from None
    options = {key: body[key] for key in sorted(CARRIED & body.keys()) if body[key] is not None}
    if most := body.get("max_completion_tokens"):
        options["max_tokens"] = most
    if isinstance(options.get("stop"), str):
        options["stop"] = [options["stop"]]
    left = sorted(body.keys() - CARRIED - OURS)
    dropped = tuple(key for key in left if body[key] and (key, body[key]) != ("n", 1))
    return Row(number, fields, text, messages, options, api, dropped)


def _message(given: Fields) -> dict[str, str]:
    """A message with its text, in one piece or several; raises where it holds anything else."""
    content = given["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = "\n".join({"text": part["text"]}[part["type"]] for part in parts)
    return {"role": given["role"], "content": text}


def write(file: IO[str], kind: str, answered: Iterable[tuple[Fields, Fields]]) -> None:
    """Write rows, each with what is known of its answer, as a file of that kind holds prompts."""
    table: Any = None
    for number, (fields, known) in enumerate(answered):
        # Where a column or key has the name of one that is added, that one's is longer.
        longer = {key: "_" * sum(name.rstrip("_") == key for name in fields) for key in TOLD}
        row = fields | {key + longer[key]: known[key] for key in TOLD}
        if kind in (".csv", ".tsv"):
            if table is None:
                dialect = "excel-tab" if kind == ".tsv" else "excel"
                table = csv.DictWriter(file, list(row), dialect=dialect, lineterminator="\n")
                table.writeheader()
            table.writerow(row)
        elif kind:
            row = _as_batch(number, fields, known) if isinstance(fields.get("body"), dict) else row
            start, end = (",\n" if number else "[\n", "") if kind == ".json" else ("", "\n")
            file.write(f"{start}{json.dumps(row, ensure_ascii=False)}{end}")
        else:
            text = f"[failed: {known['error']}]" if known["error"] else known["answer"]
            file.write(text.translate(ESCAPED) + "\n")
    file.write("\n]\n" if kind == ".json" else "")


def _as_batch(number: int, fields: Fields, known: Fields) -> Fields:
    """One line of OpenAI's batch output."""
    line = {"id": f"batch_req_{number}", "custom_id": fields["custom_id"], "response": None}
    if known["error"]:
        return line | {"error": {"code": known["error_kind"], "message": known["error"]}}
    text, chat = known["answer"], WAYS[fields["url"]] == "chat"
    said: Fields = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": known["finish_reason"]}
    counts = known["prompt_tokens"], known["output_tokens"]
    body: Fields = {"id": f"poc-{number}", "object": f"{'chat.' if chat else 'text_'}completion"}
    body |= {"created": known["created"], "model": known["model"], "choices": [choice]}
    if None not in counts:
        body["usage"] = dict(zip(USAGE, (*counts, sum(counts)), strict=True))
    response = {"status_code": 200, "request_id": f"poc-{number}", "body": body}
    return line | {"response": response, "error": None}
