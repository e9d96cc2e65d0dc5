"""Mutate what comes from outside, thousands of times a parser: a result or one of our errors.

    python benchmarks/fuzz.py [COUNT] [PARSER]       COUNT (10000) mutated inputs for each parser
    python benchmarks/fuzz.py --atheris PARSER …     guided by coverage, where atheris is installed

The parsers: parameters, sweeps, reports (and all that is said of them), and every
provider's answers and descriptions. The seeds are the committed parameters and reports and the
recorded bodies of real servers. Prints one line a parser; an input that broke it is saved beside
this script's working folder and its traceback shown; exit code 1 then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
import traceback
import types
import unicodedata
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

import msgspec  # noqa: E402
import yaml  # noqa: E402
from replay import SAMPLES, provider, recorded  # noqa: E402

from poclib import cli, recording, report, workload  # noqa: E402
from poclib.errors import PocError  # noqa: E402
from poclib.measure import sweep  # noqa: E402
from poclib.measure.attempt import Rules, attempt  # noqa: E402
from poclib.parameters import Parameters  # noqa: E402
from poclib.providers.connection import Response  # noqa: E402
from poclib.reading import tables  # noqa: E402
from poclib.reading.reading import of  # noqa: E402
from poclib.records import Exchange, Prompt, Request  # noqa: E402
from poclib.showing import documents, words  # noqa: E402
from poclib.showing import format as notation  # noqa: E402

WRONG: list[Any] = [
    *(None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, 10**18, 10**40, "", "x", "\x00", "\x1b[2J"),
    *("../../x", "<script>", "é" * 300, "\ud800", "9" * 5000, [], [[]], [1], {}, {"a": 1}, "NaN"),
    *("2026-11-24T00:00:00Z", "9999-99-99", -0.0, float("nan"), float("inf")),
]
TOKENS = [
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"null", b"{}", b"[]", b'""', b"\\ud800", b"\x00"),
    *(b"\xff\xfe", b"[" * 3000, b'{"a":' * 3000, b"9" * 400, b"data: ", b"\n", b"\r\n", b": ping"),
    *(b'"error":', b'"done":true', b"!!python/object/apply:os.getpid []", b"&a [*a, *a]", b"- "),
    *(b"2026-13-45", b"!!float x", b"!!timestamp x", b"!!int ''", b"!!bool x", b"<<: "),
]

Target = Callable[[bytes], None]


# ── mutation ────────────────────────────────────────────────────────────────────────────────


def mutated(seed: bytes, draw: random.Random) -> bytes:
    """`seed` with one to four changes, of its structure where it has one, else of its bytes."""
    data = seed
    for _ in range(draw.randint(1, 4)):
        data = (_structure if draw.random() < 0.6 else _bytes)(data, draw)
    return data


def _bytes(data: bytes, draw: random.Random) -> bytes:
    at, length = draw.randint(0, len(data)), draw.choice([1, 2, 8, 64])
    match draw.randrange(6):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[at + length :]
        case 2:
            return data[:at] + draw.choice(TOKENS) + data[at:]
        case 3:
            return data[:at] + draw.choice(TOKENS) + data[at + length :]
        case 4:
            return data[:at] + data[at : at + length] * draw.choice([2, 50]) + data[at:]
        case _:
            return data[:at] + draw.randbytes(length) + data[at + length :]


def _structure(data: bytes, draw: random.Random) -> bytes:
    """Another value, a key less or a copy more somewhere in one JSON line, or in the whole."""
    lines = data.split(b"\n")
    whole = _parsed(data)
    place = None if whole is not None else draw.randrange(len(lines))
    text = data if place is None else lines[place]
    mark = b"data: " if text.startswith(b"data: ") else b""
    value = whole if place is None else _parsed(text.removeprefix(mark))
    if not isinstance(value, dict | list) or not value:
        return _bytes(data, draw)
    inner = value
    while True:
        keys: list[Any] = list(inner) if isinstance(inner, dict) else [*range(len(inner))]
        key = draw.choice(keys)
        child = inner[key]
        if not isinstance(child, dict | list) or not child or draw.random() < 0.25:
            break
        inner = child
    match draw.randrange(8):
        case 0:
            del inner[key]
        case 5 | 6 | 7 if isinstance(child, int | float):  # one that may well be valid
            inner[key] = draw.choice([0, 1, 2, -child, child * 1000, child + 1, child // 3])
        case 5 | 6 | 7 if isinstance(child, str):
            others = [value for value in WRONG if isinstance(value, str)]
            inner[key] = child[: draw.randint(0, len(child))] + draw.choice(["", *others])
        case 1 if isinstance(inner, dict):
            inner[draw.choice(["x", "error", "../x", "\x1b"])] = inner[key]
        case 1 if isinstance(inner, list):
            inner.append(child)
        case _:
            inner[key] = draw.choice(WRONG)
    fresh = mark + json.dumps(value).encode("utf-8", "replace")
    if place is None:
        return fresh
    return b"\n".join([*lines[:place], fresh, *lines[place + 1 :]])


def _parsed(text: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


# ── parsers ─────────────────────────────────────────────────────────────────────────────────


def parameters(folder: Path) -> tuple[list[bytes], Target]:
    seeds = [path.read_bytes() for path in sorted((HERE.parent / "params").glob("*.yaml"))]
    seeds += [json.dumps(yaml.safe_load(seed)).encode() for seed in seeds]
    path = folder / "fuzzed.yaml"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        found = Parameters.read(cli.read_yaml(path), path.name)
        Parameters.model_validate_json(found.model_dump_json())
        assert workload.texts(found.prompts)

    return seeds, target


def sweeps_(folder: Path) -> tuple[list[bytes], Target]:
    seeds = [path.read_bytes() for path in sorted((HERE.parent / "params").glob("*.yaml"))]
    seeds = [seed for seed in seeds if b"\nsweep:" in seed]
    seeds += [json.dumps(yaml.safe_load(seed)).encode() for seed in seeds]
    path = folder / "fuzzed.yaml"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        for point in sweep.points(cli.read_yaml(path), path.name):
            assert not {"/", "\\", "\0"} & set(point.name), "a point's folder would lie elsewhere"
            printable(notation.safe(point.label))

    return seeds, target


def printable(text: str, page: bool = True) -> None:
    """Fails where `text` could command a terminal, or, on a page, a browser."""
    strange = {c for c in text if unicodedata.category(c)[0] == "C" and c != "\n"}
    assert not strange, f"control characters would reach a terminal: {strange}"
    assert not page or "<script" not in text, "a page would hold foreign markup"


def reports(folder: Path) -> tuple[list[bytes], Target]:
    """Loading; and of each fifth report that loads, every table and sentence."""
    small = report.load("sample-shared-queue", report.root() / "data" / "reports")
    data = small.model_dump(mode="json")
    data["rounds"] = data["rounds"][:2]
    data["cut"] = data["rounds"][:1]
    for one in data["rounds"]:
        for arm in one["arms"]:
            arm["requests"] = arm["requests"][:3]
    data["prompt_sha256"] = data["prompt_sha256"][:3]
    data["probes"] = data["probes"][:4]
    published = (HERE.parent / "data" / "reports" / "published-phase-0.json").read_bytes()
    seeds = [json.dumps(data).encode(), published]
    loaded = Counter[str]()
    lines = recording.text(report.load(_written(folder / "seed.json", json.dumps(data).encode())))

    def target(data: bytes) -> None:
        # Format 2 is a JSON object a line, format 1 one object for the whole.
        path = folder / ("fuzzed.jsonl" if b'"version":2' in data[:60] else "fuzzed.json")
        path.write_bytes(data)
        found = report.load(path)
        recording.text(found)
        loaded["reports"] += 1
        if loaded["reports"] % 5:
            return
        reading = of(found)
        headline = reading.headline
        tables.overhead(reading)
        said = [words.report_text(reading), words.answer(reading), words.reasons(reading)]
        said += [words.trust([reading]), words.cost(reading), words.checks(reading)]
        said += [words.breakdown_text([headline]), words.comparison_text([headline])]
        said.append(documents.phase_0_result([reading]))
        printable("\n".join(said))

    return [*seeds, lines], target


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class Answering:
    """In a client's place: gives one body, whatever is asked, without a socket."""

    hint = ""

    def __init__(self, status: int, body: bytes, size: int) -> None:
        self.given = (status, body, size)

    @contextlib.asynccontextmanager
    async def request(
        self, _method: str, _path: str, json: Any = None, exchange: Any = None, *_: Any
    ) -> AsyncIterator[Response]:
        status, body, size = self.given
        answer = Response("there", exchange or Exchange(time.perf_counter))
        answer.feed(b"HTTP/1.1 %d x\r\nretry-after: 2\r\n\r\n" % status, 0.0)
        for start in range(0, len(body), size):
            answer.feed(body[start : start + size], 0.0)
        answer.feed(b"", 0.0)  # the end
        yield answer

    def redacted(self, text: str) -> str:
        return text


def answers(kind: str) -> Callable[[Path], tuple[list[bytes], Target]]:
    """Bodies and streams of one kind of server, as an answer to a prompt and as a description."""
    server = {"openai": "vllm"}.get(kind, kind)

    def prepare(_folder: Path) -> tuple[list[bytes], Target]:
        names = sorted((SAMPLES / server).glob("*.body"))
        seeds = [recorded(f"{server}/{name.stem}").body for name in names]
        senders = [
            provider(kind, "http://127.0.0.1:9", api=api, stream=stream)
            for api in ("chat", "completion")
            for stream in (True, False)
        ]
        loop = asyncio.new_event_loop()

        async def ask(data: bytes) -> None:
            draw = random.Random(len(data))
            for sender in senders:
                status = draw.choice([200, 200, 200, 404, 500])
                sender.client = Answering(status, data, draw.choice([7, 10**6]))  # type: ignore[assignment]
                row = await attempt(sender, Prompt(0, "x"), time.perf_counter, Rules())
                msgspec.json.decode(msgspec.json.encode(row), type=Request)
                printable(f"{row.error or ''}{row.finish_reason or ''}", page=False)
                with contextlib.suppress(PocError):
                    facts = await sender.describe()
                    told = f"{facts.model or ''}{facts.server or ''}{facts.digest or ''}"
                    printable(told, page=False)

        def target(data: bytes) -> None:
            loop.run_until_complete(ask(data))
            loop.run_until_complete(asyncio.sleep(0))  # readers that were left are closed

        return seeds, target

    return prepare


SERVERS = ("ollama", "llama-server", "openai")
PARSERS: dict[str, Callable[[Path], tuple[list[bytes], Target]]] = {
    "parameters": parameters,
    "sweeps": sweeps_,
    "reports": reports,
    **{kind: answers(kind) for kind in SERVERS},
}


@contextlib.contextmanager
def opened(parser: str) -> Iterator[tuple[list[bytes], Target]]:
    with tempfile.TemporaryDirectory() as folder:
        yield PARSERS[parser](Path(folder))


def fuzz(parser: str, count: int, begin: int = 0) -> tuple[Counter[str], list[tuple[bytes, str]]]:
    """How `count` mutated inputs ended (a result, or the class of our error), and what broke it."""
    ended: Counter[str] = Counter()
    broken: list[tuple[bytes, str]] = []
    with opened(parser) as (seeds, target):
        for number in range(begin, begin + count):
            draw = random.Random(f"{parser} {number}")
            data = mutated(draw.choice(seeds), draw)
            try:
                target(data)
                ended["a result"] += 1
            except PocError as error:
                printable(str(error), page=False)
                ended[type(error).__name__] += 1
            except Exception:
                broken.append((data, traceback.format_exc()))
    return ended, broken


def _functions(*packages: str) -> Iterator[types.FunctionType]:
    """Every function of these packages: instrumenting all that is loaded takes minutes."""
    modules = [m for name, m in sys.modules.items() if name.partition(".")[0] in packages]
    for module in modules:
        for one in list(vars(module).values()):
            inner = vars(one).values() if isinstance(one, type) else [one]
            yield from (each for each in inner if isinstance(each, types.FunctionType))


def guided(parser: str, arguments: list[str]) -> None:
    """The same parser under atheris, guided by coverage, until it is stopped or breaks."""
    import atheris

    with opened(parser) as (seeds, target):
        corpus = Path(tempfile.mkdtemp())
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)

        def one(data: bytes) -> None:
            with contextlib.suppress(PocError):
                target(data)

        for function in _functions("poclib", "yaml"):
            with contextlib.suppress(RuntimeError):  # what it cannot read it cannot guide
                atheris.instrument_func(function)
        atheris.Setup([sys.argv[0], str(corpus), *arguments], one)
        atheris.Fuzz()


def main(words_given: list[str]) -> int:
    if words_given[:1] == ["--atheris"]:
        guided(words_given[1], words_given[2:])
        return 0
    count = next((int(word) for word in words_given if word.isdecimal()), 10_000)
    chosen = [word for word in words_given if word in PARSERS] or list(PARSERS)
    failed = 0
    for parser in chosen:
        begun_s = time.perf_counter()
        ended, broken = fuzz(parser, count)
        told = ", ".join(f"{name} {number:,}" for name, number in ended.most_common())
        took_s = time.perf_counter() - begun_s
        print(f"{parser}: {count:,} inputs in {took_s:.0f} s: {told}; {len(broken)} broke it")
        for number, (data, trace) in enumerate(broken[:3]):
            Path(f"fuzz-{parser}-{number}.bin").write_bytes(data)
            print(trace)
        failed += len(broken)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
