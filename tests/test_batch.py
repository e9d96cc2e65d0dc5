"""A person's own prompts: answered in order, each once, in the format they came in."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import shutil
import sqlite3
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from replay import LLAMA, OLLAMA, VLLM, Answer, Replay, provider, recorded, replay

from poclib import batchfiles, cli, report, suite
from poclib.errors import ParameterError, Rejected, ReportError
from poclib.measure import batch, experiment
from poclib.measure.strategies import STRATEGIES
from poclib.parameters import Parameters
from poclib.providers import fake
from poclib.reading import reading
from poclib.records import Exchange, Prompt

FIVE = ["Name three birds.", 'Say "hi", twice.', "Why is the sky blue?", "Größe?", "Zum Schluß"]
FEW = {"calibration_prompts": 1, "backoff_s": 0, "breaker_failures": 0}


@pytest.fixture(autouse=True)
def on_a_fake_clock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.keywords:
        monkeypatch.setattr(experiment, "on_own_loop", lambda work: fake.run(lambda clock: work()))


def parameters(**values: Any) -> Parameters:
    named = [{"name": name} for name in ("fast", "slow")]
    given = {"strategy": "shared-queue", "providers": named, **FEW, **values}
    return Parameters.read(given)


def two(**more: Any) -> list[fake.Provider]:
    return [fake.Provider("fast", 100, **more), fake.Provider("slow", 250)]


def answered(
    prompts: Path,
    pool: Sequence[Any] | None = None,
    values: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[batch.Outcome, str]:
    """What came of it, and what the file of answers holds."""
    target = prompts.with_name(f"answers{prompts.suffix}")
    given = parameters(**(values or {}))
    out = batch.answer(given, prompts, target, pool=pool or two(), **more)
    return out, target.read_text("utf-8")


def sent(pool: Sequence[fake.Provider], texts: Sequence[str]) -> list[str]:
    """Which of `texts` the providers were sent, warm-up and calibration aside."""
    return sorted(seen.text for each in pool for seen in each.seen if seen.text in texts)


def a_file(folder: Path, texts: Sequence[str] = FIVE, name: str = "mine.txt") -> Path:
    path = folder / name
    path.write_text("\n".join(texts) + "\n", "utf-8")
    return path


def a_line(number: int, content: Any, **own: Any) -> str:
    asked = {"model": "gpt", "messages": [{"role": "user", "content": content}], **own}
    url = "/v1/chat/completions"
    return json.dumps({"custom_id": f"c{number}", "method": "POST", "url": url, "body": asked})


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def from_jsonl(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def said(line: Any) -> str:
    (choice,) = line["response"]["body"]["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def from_table(text: str) -> list[str]:
    return [row["answer"] for row in csv.DictReader(text.splitlines(), delimiter=text[3])]


COMPLETIONS = [
    json.dumps({"custom_id": t, "url": "/v1/completions", "body": {"prompt": t}}) for t in FIVE
]
FORMS: dict[str, tuple[str, str, Callable[[str], list[str]]]] = {
    "text": ("x.txt", "\r\n\r\n".join(FIVE), str.splitlines),
    "csv": ("x.csv", "\n".join(["nr.,Prompt", *(f"1,{quoted(t)}" for t in FIVE)]), from_table),
    "tsv": ("x.tsv", "\n".join(["nr.\tprompt", *(f"1\t{quoted(t)}" for t in FIVE)]), from_table),
    "objects": (
        "x.jsonl",
        "\n".join(json.dumps({"id": 7, "prompt": text}) for text in FIVE),
        lambda text: [row["answer"] for row in from_jsonl(text) if row["id"] == 7],
    ),
    "texts": (
        "x.jsonl",
        "\n".join(map(json.dumps, FIVE)),
        lambda text: [row["answer"] for row in from_jsonl(text)],
    ),
    "json": ("x.json", json.dumps(FIVE), lambda text: [row["answer"] for row in json.loads(text)]),
    "batch": (
        "x.jsonl",
        "\n".join(a_line(n, text) for n, text in enumerate(FIVE)),
        lambda text: [said(line) for line in from_jsonl(text)],
    ),
    "completions": (
        "x.jsonl",
        "\n".join(COMPLETIONS),
        lambda text: [said(line) for line in from_jsonl(text)],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_answers_come_in_the_prompts_order_and_format(form: str, tmp_path: Path) -> None:
    name, text, read = FORMS[form]
    (tmp_path / name).write_text(text, "utf-8")
    out, told = answered(tmp_path / name)
    assert read(told) == [f"answer to {text}" for text in FIVE]
    assert (out.prompts, out.before, out.failed) == (5, 0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, f"answers{name[1:]}"})


def test_a_line_of_openais_batch_becomes_one_of_its_output(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(a_line(1, "Why?"))
    (line,) = from_jsonl(answered(tmp_path / "x.jsonl")[1])
    assert line.keys() == {"id", "custom_id", "response", "error"}
    assert line["custom_id"] == "c1" and line["error"] is None
    assert line["response"].keys() == {"status_code", "request_id", "body"}
    assert line["response"]["status_code"] == 200
    told = line["response"]["body"]
    assert told["object"] == "chat.completion" and told["created"] > 1.7e9
    assert told["choices"][0]["message"]["role"] == "assistant"
    assert told["choices"][0]["finish_reason"] == "length"


def test_columns_are_added_and_none_of_them_replaces_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("answer;prompt\n42;Why?\n")
    _, told = answered(tmp_path / "x.csv")
    (row,) = csv.DictReader(told.splitlines())
    assert row["answer"] == "42" and row["answer_"] == "answer to Why?"
    assert row["provider"] in {"fast", "slow"} and row["output_tokens"] == "4"


def test_a_line_of_text_stays_one(tmp_path: Path) -> None:
    pool = [fake.Provider("fast", 100)]
    (tmp_path / "x.csv").write_text('prompt\n"a\nb"\n')
    (row,) = csv.DictReader(answered(tmp_path / "x.csv", pool)[1].splitlines(True))
    assert row["answer"] == "answer to a\nb"
    (tmp_path / "x.txt").write_text("C:\\new\n")
    assert answered(tmp_path / "x.txt", pool)[1] == "answer to C:\\\\new\n"
    told = [({}, {**dict.fromkeys(batchfiles.TOLD), "answer": "a\r\nb\\\n"})]
    batchfiles.write(file := io.StringIO(), "", told)
    assert file.getvalue() == "a\\r\\nb\\\\\\n\n"


# ---- What is refused, in one sentence, before anything is sent ------------------------------

BODY = '{"custom_id": "a", "url": "/v1/chat/completions", "body": %s}\n'
REFUSED = [
    ("x.txt", None, "cannot read .*x.txt"),
    ("x.txt", "\n \n", "there is none"),
    ("x.csv", "id,text\n1,Hello\n", "a column headed prompt"),
    ("x.csv", "id,prompt\n1,Hello\n2,\n", "line 3: its prompt is empty"),
    ("x.csv", "id,prompt\n1,Hello, you\n", "line 2: .*quotes around"),
    ("x.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "in line 2.*objects like"),
    ("x.jsonl", '{"prompt": "a"}\nb\n', "in line 2.*objects like"),
    ("x.jsonl", f"{a_line(1, 'a')}\n{a_line(1, 'b')}\n", "line 2: its custom_id stands"),
    ("x.jsonl", f'{a_line(1, "a")}\n{{"prompt": "b"}}\n', "line 2: .*use two files"),
    ("x.jsonl", BODY % '{"messages": []}', "line 1: its prompt is empty"),
    ("x.jsonl", BODY % '{"prompt": "a"}', "line 1 needs messages"),
    ("x.jsonl", a_line(1, [{"type": "image_url", "image_url": {}}]), "line 1 needs messages"),
    ("x.jsonl", '{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "/v1/completions"),
    ("x.jsonl", '{"url": "/v1/completions", "body": {"prompt": "a"}}', "needs a custom_id"),
]


@pytest.mark.parametrize(("name", "text", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_file_that_is_none_of_prompts_is_refused_before_anything_is_sent(
    name: str, text: str | None, words: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    pool = two()
    with pytest.raises(ParameterError, match=f"^prompts: .*{words}"):
        answered(tmp_path / name, pool)
    assert not any(each.seen for each in pool)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if text is not None else [])


def test_answers_are_never_written_over(tmp_path: Path) -> None:
    prompts = a_file(tmp_path)
    _, first = answered(prompts)
    with pytest.raises(
        ParameterError, match=r"answers\.txt is there already, and finished.*--again"
    ):
        answered(prompts)
    pool = two()
    assert answered(prompts, pool, again=True)[1] == first and sent(pool, FIVE) == sorted(FIVE)
    for target, words in (("mine.txt", "never into"), ("x.csv", "kept as"), ("no/x.txt", "folder")):
        with pytest.raises(ParameterError, match=words):
            batch.answer(parameters(), prompts, tmp_path / target, again=True, pool=two())
    assert prompts.read_text("utf-8").splitlines() == FIVE


# ---- Stopped in any way, and gone on with ---------------------------------------------------


class Killed(BaseException):
    """Nothing may handle it, as nothing can a kill."""


class Mortal(fake.Provider):
    """It ends the program at its request number `last`, warm-up and calibration among them."""

    last = 10**9

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        if len(self.seen) >= self.last:
            raise Killed
        await super().send(prompt, exchange)


@pytest.mark.parametrize("strategy", ["shared-queue", "capability-split", "all-parallel"])
def test_killed_again_and_again_every_prompt_is_answered_once(
    strategy: str, tmp_path: Path
) -> None:
    texts = [f"Prompt {number}" for number in range(40)]
    prompts, answers = a_file(tmp_path, texts), list[str]()
    for last in (2, 5, 9, 3, 10**9):
        pool = [Mortal("fast", 100), fake.Provider("slow", 250)]
        pool[0].last = last  # type: ignore[attr-defined]
        with contextlib.suppress(Killed):
            answered(prompts, pool, {"strategy": strategy})
        done = [seen.text for each in pool for seen in each.seen if seen.text in texts]
        assert not set(done) & set(answers), "what is answered is not sent again"
        if (part := tmp_path / "answers.txt.part").exists():  # something was answered
            with contextlib.closing(sqlite3.connect(part)) as kept:
                rows = kept.execute("select asked from prompts where done").fetchall()
            answers = [json.loads(row)[1] for (row,) in rows]
    lines = (tmp_path / "answers.txt").read_text().splitlines()
    assert lines == [f"answer to {text}" for text in texts]


def test_a_part_is_of_one_file_of_prompts_and_one_way_to_answer_them(tmp_path: Path) -> None:
    prompts = a_file(tmp_path)
    pool = [Mortal("fast", 100)]
    pool[0].last = 4
    with pytest.raises(Killed):
        answered(prompts, pool)
    for values in ({"max_tokens": 7}, {"seed": 8}):
        with pytest.raises(ParameterError, match=r"ANSWERS.part is of other"):
            answered(prompts, values=values)
    a_file(tmp_path, FIVE[:4])
    with pytest.raises(ParameterError, match="--again"):
        answered(prompts)
    a_file(tmp_path)
    out, told = answered(prompts)
    assert out.before == 2 and sum(out.shares.values()) == 3 and len(told.splitlines()) == 5


def test_failures_are_rows_and_only_they_are_tried_again(tmp_path: Path) -> None:
    long = Rejected("fast: HTTP 400: too long", "fast", status=400)
    prompts = a_file(tmp_path)
    # Warm-up, calibration, the first prompt; then the second one fails.
    pool = [fake.Provider("fast", 100, script=[None, None, None, long])]
    out, told = answered(prompts, pool)
    lines = told.splitlines()
    assert out.failed == 1 and lines[1] == "[failed: fast: HTTP 400: too long]"
    assert [*lines[:1], *lines[2:]] == [f"answer to {t}" for t in FIVE if t != FIVE[1]]
    pool = two()
    out, told = answered(prompts, pool)
    assert (out.before, out.failed) == (4, 0) and sent(pool, FIVE) == [FIVE[1]]
    assert told.splitlines() == [f"answer to {text}" for text in FIVE]
    assert not (tmp_path / "answers.txt.part").exists()


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"{number} {'x' * 3000}" for number in range(30)]
    prompts = a_file(tmp_path, texts)
    with monkeypatch.context() as tight:
        tight.setattr(batch, "TABLES", batch.TABLES + "pragma max_page_count = 40;")
        with pytest.raises(
            ReportError, match=r"answers\.txt\.part: database or disk is full; free"
        ):
            answered(prompts)
    out, told = answered(prompts)
    assert told.splitlines() == [f"answer to {text}" for text in texts] and not out.failed


def test_two_commands_cannot_write_one_file(tmp_path: Path) -> None:
    class Second(fake.Provider):
        async def describe(self) -> Any:
            with pytest.raises(ReportError, match=r"locked.*end the other command"):
                batch.answer(parameters(), prompts, prompts.with_name("answers.txt"), pool=two())
            return await super().describe()

    prompts = a_file(tmp_path)
    assert not answered(prompts, [Second("fast")])[0].failed


def test_thousands_of_prompts_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    class Forgetful(fake.Provider):
        async def send(self, prompt: Prompt, exchange: Exchange) -> None:
            await super().send(prompt, exchange)
            self.seen.clear()

    prompts = a_file(tmp_path, [f"{number} {'x' * 20_000}" for number in range(300)])
    tracemalloc.start()
    pool, target = [Forgetful("fast"), Forgetful("slow")], prompts.with_name("answers.txt")
    out = batch.answer(parameters(), prompts, target, pool=pool)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert out.prompts == 300 and peak < prompts.stat().st_size / 4


# ---- What is sent, by whom, and what is said of it ------------------------------------------

OPTIONS = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": "END", "max_tokens": 9}
KINDS: dict[str, tuple[str, dict[str, Answer], str, str]] = {
    "vllm": ("openai", VLLM, "/v1/chat/completions", "vllm/chat_stream_usage"),
    "llama-server": ("llama-server", LLAMA, "/v1/chat/completions", "llama-server/chat_stream"),
    "ollama": ("ollama", OLLAMA, "/api/chat", "ollama/chat_stream"),
}


@pytest.mark.parametrize("server", KINDS)
def test_a_body_is_carried_to_every_kind_of_server_over_a_real_socket(
    server: str, tmp_path: Path
) -> None:
    kind, facts, path, answer = KINDS[server]
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    text = a_line(1, "", **OPTIONS, messages=turns, tools=[{}], n=1, user="me")
    (tmp_path / "x.jsonl").write_text(text)
    told: list[str] = []

    async def talk(there: Replay) -> Any:
        model = "smollm2-135m" if server == "vllm" else "smollm2"
        one = {"name": "there", "kind": kind, "url": there.url, "model": model}
        given = parameters(providers=[one])
        target = tmp_path / "out.jsonl"
        work = batch.answer, given, tmp_path / "x.jsonl", target
        await asyncio.to_thread(*work, tell=told.append)
        return there.asked[-1].body, there.asked[-5].body

    with pytest.MonkeyPatch.context() as real:
        real.setattr(experiment, "on_own_loop", lambda work: asyncio.run(work()))
        sent, _ = replay(facts | {path: recorded(answer)}, talk)
    options = sent["options"] if server == "ollama" else sent
    wanted = OPTIONS | {"stop": ["END"]}
    if server == "ollama":
        wanted["num_predict"] = wanted.pop("max_tokens")
    assert {key: options[key] for key in wanted} == wanted
    assert sent["messages"] == turns and sent["model"].startswith("smollm2")
    assert not sent.keys() & {"ignore_eos", "cache_prompt", "cache_salt", "tools", "user", "n"}
    assert [line.split(" is not")[0] for line in told] == ["tools", "user"]
    (line,) = from_jsonl((tmp_path / "out.jsonl").read_text("utf-8"))
    assert line["response"]["body"]["model"] == sent["model"] and said(line)


@pytest.mark.parametrize(
    ("kind", "key"), [("openai", ""), ("llama-server", "n_"), ("ollama", "num_")]
)
def test_a_plain_text_is_carried_with_its_own_options_or_those_of_the_parameters(
    kind: str, key: str
) -> None:
    sender = provider(kind, "http://127.0.0.1:9", api="completion", max_tokens=40, seed=5)
    for options in ({}, {"max_tokens": 9, "seed": 3, "top_p": 0.5}):
        sent = sender._request_body(Prompt(0, "Why?", options=options))
        told = sent.get("options", sent)
        assert sent["prompt"] == "Why?" and told[f"{key}predict" if key else "max_tokens"] == (
            options.get("max_tokens", 40)
        )
        assert told["seed"] == options.get("seed", 5) and told.get("top_p") == options.get("top_p")
        assert not {"ignore_eos", "cache_prompt", "cache_salt", "messages"} & {*sent, *told}


@pytest.mark.parametrize(("strategy", "source"), [("shared-queue", "own"), ("batched", "calib")])
def test_what_it_took_is_held_against_the_fastest_alone(
    strategy: str, source: str, tmp_path: Path
) -> None:
    texts = [f"Prompt {number}" for number in range(14)]
    pool = [fake.Provider("fast", 100, slots=2), fake.Provider("slow", 250)]
    out, _ = answered(a_file(tmp_path, texts), pool, {"strategy": strategy})
    # Fast takes 100 ms, slow 250: ten and four of fourteen, in a second; fast alone 1.4 s. With
    # two at a time it has answered eleven or twelve before the third of slow.
    assert sum(out.shares.values()) == 14 and out.tokens == 14 * 4 and out.fastest == "fast"
    assert out.took_s == pytest.approx(1.0 if source == "own" else 0.6, abs=0.16)
    assert out.alone_s == pytest.approx(1.4) and source in out.source


def test_the_strategy_is_the_one_that_last_won_on_this_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded = Parameters.read(cli.read_yaml(report.root() / "params" / "embedded.yaml"))
    saved = tmp_path / "data" / "reports"
    saved.mkdir(parents=True)
    for sample in (report.root() / "data" / "reports").glob("sample-*"):
        shutil.copy(sample, saved)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))  # a person's own runs may be newer
    samples = [one.headline for one in reading.experiment("sample")]
    limited = [one for one in samples if STRATEGIES[one.strategy].limit != "none"]
    best = min(limited, key=lambda one: one.overhead_ratio.median or 9)
    name, why = suite.winner(embedded)
    assert name == best.strategy and "sample-" in why and "on" not in why.split()
    name, why = suite.winner(parameters())
    assert name == "shared-queue" and "no saved experiment" in why


def test_the_command_says_what_it_did_and_exits_with_1_for_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.yaml").write_text("providers: [{name: fast}, {name: slow}]\nbackoff_s: 0\n")
    prompts = a_file(tmp_path)
    broken = Rejected("fast: HTTP 400: too long", "fast", status=400)
    pools = [[fake.Provider("fast", script=[*[None] * 6, broken])], two()]
    plain = experiment.open_pool
    monkeypatch.setattr(experiment, "open_pool", lambda p, _: plain(p, pools.pop(0)))
    words = ["batch", str(prompts), "-o", str(tmp_path / "out.txt"), "--params"]
    for code, sentence in ((1, "1 failed; the same command tries only"), (0, "")):
        with contextlib.suppress(SystemExit):
            cli.main([*words, str(tmp_path / "p.yaml")])
        told = capsys.readouterr()
        assert sentence in told.err and "poc: by shared-queue: no saved experiment" in told.err
        assert ("4 of 5" if code else "5 of 5 prompts answered, 4 of them before") in told.out
        assert "an estimate from its own answers here" in told.out and "Traceback" not in told.err
    assert not [*tmp_path.glob("*.part*")]
    with pytest.raises(SystemExit) as refused:
        cli.main([*words, str(tmp_path / "p.yaml")])
    assert refused.value.code == 3 and "is there already" in capsys.readouterr().err
