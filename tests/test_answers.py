"""What an answer is, when it ends, and what of it is believed: every way of answering, on a socket.

The bodies are written here as each server would write them, so that what they say is known.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
from replay import Answer, Replay, clock, provider, replay

from poclib.measure.attempt import Rules, attempt
from poclib.providers import provider as providers
from poclib.records import Exchange, Prompt, Request

Way = tuple[str, str, bool]  # kind, api, whether it is streamed
KINDS, APIS = ("ollama", "openai", "llama-server"), ("chat", "completion")
WAYS: list[Way] = list(product(KINDS, APIS, (True, False)))
NATIVE = [way for way in WAYS if way[:2] == ("llama-server", "completion")]
OPENAI = [way for way in WAYS if way[0] != "ollama" and way not in NATIVE]
WAY: Way = ("openai", "chat", True)

each_way = pytest.mark.parametrize("way", WAYS, ids=str)
each_stream = pytest.mark.parametrize("way", [way for way in WAYS if way[2]], ids=str)
each_openai = pytest.mark.parametrize("way", OPENAI, ids=str)


def objects(
    way: Way,
    words: Sequence[str] = ("Yes", "."),
    reason: str | None = "stop",
    tokens: Any = 2,
    thoughts: Sequence[str] = (),
    **end: Any,
) -> list[Any]:
    """The JSON objects of one answer, `end` in the last of them."""
    kind, api, stream = way
    said = [(thought, "") for thought in thoughts] + [("", word) for word in words]
    if not stream:
        said = [("".join(thoughts), "".join(words))]

    def part(thought: str, word: str, ending: str | None = None) -> dict[str, Any]:
        if way in NATIVE:
            return {"content": word, "stop": False}
        if kind == "ollama" and api == "completion":
            return {"response": word, "thinking": thought, "done": False}
        if kind == "ollama":
            return {"message": {"content": word, "thinking": thought}, "done": False}
        if api == "completion":
            return {"choices": [{"text": word, "reasoning": thought, "finish_reason": ending}]}
        held = {"role": "assistant", "content": word, "reasoning_content": thought}
        return {"choices": [{"delta" if stream else "message": held, "finish_reason": ending}]}

    usage = {"prompt_tokens": 5, "completion_tokens": tokens}
    last: dict[str, Any] = {} if tokens is None else {"usage": usage}
    if kind == "ollama":
        last = {"done": True, "done_reason": reason, "eval_count": tokens}
    elif way in NATIVE:
        last = {"stop": True, "stop_type": reason, "tokens_predicted": tokens}
    if not stream:
        return [part(*said[0], reason) | last | end]
    parts = [part(*pair) for pair in said]
    if way in OPENAI:
        return [*parts, part("", "", reason), {"choices": []} | last | end]
    return [*parts, part("", "") | last | end]


def framed(way: Way, parts: Sequence[Any], done: bool = True) -> bytes:
    """As its server sends them."""
    texts = [json.dumps(part).encode() for part in parts]
    if not way[2]:
        return texts[0]
    if way[0] == "ollama":
        return b"".join(text + b"\n" for text in texts)
    events = b"".join(b"data: " + text + b"\n\n" for text in texts)
    return events + (b"data: [DONE]\n\n" if done and way not in NATIVE else b"")


def rows(way: Way, *given: Answer | bytes | list[Any], **rules: Any) -> list[Request]:
    """The rows of one attempt for each answer, from one server."""
    kind, api, stream = way

    async def talk(server: Replay) -> list[Request]:
        made = []
        for answer in given:
            whole = framed(way, answer) if isinstance(answer, list) else answer
            server.answers = Answer(whole) if isinstance(whole, bytes) else whole
            sender = provider(kind, server.url, api=api, stream=stream)
            kept = Rules(store_text=True, **rules)
            made.append(await attempt(sender, Prompt(0, "x"), clock, kept))
            await sender.aclose()
        return made

    return replay(Answer(), talk)


def outcomes(way: Way, *given: Answer | bytes | list[Any], **rules: Any) -> list[str]:
    """What came of each, in words: the answer, or the error."""
    texts = []
    for row in rows(way, *given, **rules):
        if row.error:
            assert row.error.startswith("provider there: ") and "\n" not in row.error
            assert row.outcome == "failed" and row.answer_sha256 is None
            texts.append(f"{row.error_kind}: {row.error.removeprefix('provider there: ')}")
        else:
            assert row.outcome == "ok" and row.answer_sha256
            came = len(row.token_ms or [])
            texts.append(f"{row.answer} ({row.finish_reason}), {row.output_tokens} in {came}")
    return texts


def yes(way: Way, ending: str | None = "stop", tokens: int | None = 2) -> str:
    return f"Yes. ({ending}), {tokens} in {2 if way[2] else 0}"


# --- how an answer ends ----------------------------------------------------------------------


@each_way
def test_an_answer_ends_as_whole_ones_do_or_fails_with_the_servers_word(way: Way) -> None:
    whole: list[str | None] = ["stop", "length", "LENGTH", None]
    if way in OPENAI:  # unstreamed, nothing else says that it is whole
        whole = [*whole[: None if way[2] else -1], "eos", "tool_calls"]
    if way in NATIVE:
        whole = ["eos", "limit", "word", "LIMIT", None]
    bodies = [objects(way, reason=reason) for reason in whole]
    assert outcomes(way, *bodies) == [yes(way, reason) for reason in whole]
    bad = ["abort", "error", "content_filter", "load", "unload", "cancelled", "none"]
    for reason, row in zip(bad, rows(way, *(objects(way, reason=r) for r in bad)), strict=True):
        assert (row.outcome, row.error_kind, row.finish_reason) == ("failed", "BadAnswer", reason)
        assert f"“{reason}”" in (row.error or "")


@each_openai
def test_an_error_in_a_choice_is_told_in_the_servers_words(way: Way) -> None:
    parts = objects(way)
    choice = next(part["choices"][0] for part in reversed(parts) if part["choices"])
    choice |= {"finish_reason": "error", "native_finish_reason": "MALFORMED_CALL"}
    (bad,) = outcomes(way, parts)
    assert bad.startswith("BadAnswer") and "“error, MALFORMED_CALL”" in bad
    choice["error"] = {"code": 502, "message": "upstream died"}
    for reason in ("error", None):
        choice["finish_reason"] = reason
        assert outcomes(way, parts) == ["Rejected: error in its answer: upstream died"]


@each_way
def test_an_answer_holds_text_or_a_thought_or_a_token(way: Way) -> None:
    """A model may say nothing: then the server counts the token that ended it."""
    assert outcomes(way, objects(way, (), tokens=1)) == [" (stop), 1 in 0"]
    for empty in outcomes(way, objects(way, (), tokens=0), objects(way, (), tokens=None)):
        assert "BadAnswer: its answer is empty" in empty
    if way in NATIVE:
        return
    thoughts = ["Hm, ", "well."]
    both, only, none = rows(
        way,
        objects(way, thoughts=thoughts, tokens=4),
        objects(way, (), thoughts=thoughts, tokens=0),
        objects(way),
    )
    lengths = [row.thought_characters for row in (both, only, none)]
    assert lengths == [9, 9, None] and both.answer_sha256 == none.answer_sha256
    assert (only.outcome, only.output_tokens, only.marks.first_token_ms) == ("ok", None, None)
    for row in (both, only):
        assert (row.marks.first_thought_ms is not None) == way[2]
    if way[2]:
        assert len(both.token_ms or []) == 2 and only.token_ms is None
        assert both.marks.first_thought_ms <= both.marks.first_token_ms  # type: ignore[operator]


@each_stream
def test_limits_between_tokens_count_thoughts_and_cut_nothing_that_is_whole(way: Way) -> None:
    """The wait for what comes after an answer is longer than the one allowed between tokens."""
    limits = {"between_tokens_timeout_s": 0.05, "first_token_timeout_s": 20.0}
    hanging = Answer(framed(way, objects(way)), ending="hang")
    assert outcomes(way, hanging, **limits) == [yes(way)]
    if way not in NATIVE:
        thought = framed(way, objects(way, (), thoughts=["Hm"])[:1], done=False)
        (cut,) = outcomes(way, Answer(thought, ending="hang"), **limits)
        assert "no token within 0.05 s; raise between_tokens_timeout_s" in cut


# --- when it ends ----------------------------------------------------------------------------


async def stepwise(
    way: Way, pieces: Sequence[bytes], until: Callable[[Exchange], bool]
) -> tuple[Exchange, list[float], float]:
    """Send each piece once the client has read those before it, then leave the body open.

    `until` tells, for the exchange so far, that all but the last piece have been read. Gives
    the exchange, when each piece was sent, and when the client closed the connection.
    """
    exchange, sent_ms, closed = Exchange(clock), [0.0] * len(pieces), asyncio.Event()
    closed_ms = 0.0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal closed_ms
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, piece in enumerate(pieces):
            while number == len(pieces) - 1 and not until(exchange):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)  # which tells one from the next by the clock
            sent_ms[number] = clock()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        await reader.read()
        closed_ms = clock()
        writer.close()
        closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sender = provider(way[0], f"http://127.0.0.1:{port}", api=way[1])
    async with server, asyncio.timeout(30):
        await sender.send(Prompt(0, "x"), exchange)
        await closed.wait()
        await sender.aclose()
    return exchange, sent_ms, closed_ms


def split(body: bytes) -> list[bytes]:
    """A stream's events."""
    return [part for part in re.split(rb"(?<=\n)(?=data|\{)", body) if part]


@pytest.mark.parametrize("done", [True, False], ids=["terminal event", "finish_reason and usage"])
@each_stream
def test_a_body_that_never_ends_costs_its_answer_nothing(way: Way, done: bool) -> None:
    """The server's clock: the end is when the terminal event was sent, not when it was left."""
    pieces = split(framed(way, objects(way), done))
    exchange, sent_ms, closed_ms = asyncio.run(
        stepwise(way, pieces, lambda seen: len(seen.pieces) == 2)
    )
    assert exchange.pieces == ["Yes", "."] and exchange.finished and exchange.output_tokens == 2
    marks = exchange.marks
    assert sent_ms[-1] - 5 <= marks["last_byte_ms"] <= marks["end_ms"]
    # What came after was waited for, and none of the wait is in the marks.
    assert closed_ms - marks["end_ms"] >= 1000 * providers.LINGER_S / 2


@each_stream
def test_a_server_whose_bodies_do_not_end_is_waited_for_once(way: Way) -> None:
    async def talk(server: Replay) -> tuple[list[bool | None], int]:
        sender, known = provider(way[0], server.url, api=way[1]), []
        for _ in range(3):
            await sender.send(Prompt(0, "x"), Exchange(clock))
            known.append(sender._lingers)
        await sender.aclose()
        return known, server.connections

    whole = framed(way, objects(way))
    assert replay(Answer(whole, ending="hang"), talk) == ([True] * 3, 3)
    kept = 3 if way[0] == "llama-server" else 1
    assert replay(Answer(whole), talk) == ([False] * 3, kept)


AFTER = [b"junk\n\n", b"data: junk\n\n", b'data: {"error": "late"}\n\n', b"error: late\n\n"]
AFTER += [b'{"error": "late"}\n', b"event: error\ndata: late\n\n", b"\xff\xfe\n\n"]
AFTER += [b"data: [DONE]\n\n"]


@pytest.mark.parametrize("ending", ["whole", "cut", "hang"])
@each_stream
def test_what_comes_after_an_answer_cannot_spoil_it(
    way: Way, ending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "LINGER_S", 0.02)
    another = framed(way, objects(way, ("No", "!"), tokens=7))
    bodies = [framed(way, objects(way)) + after for after in (*AFTER, another)]
    assert set(outcomes(way, *(Answer(body, ending=ending) for body in bodies))) == {yes(way)}


@pytest.mark.parametrize("way", [way for way in OPENAI if way[2]], ids=str)
def test_a_stream_ends_with_done_or_with_a_reason_and_its_body(way: Way) -> None:
    unnamed, uncounted = objects(way, reason=None, tokens=None), objects(way, tokens=None)
    assert outcomes(way, unnamed) == [yes(way, None, None)]
    assert outcomes(way, framed(way, uncounted, done=False)) == [yes(way, "stop", None)]
    for body in (framed(way, objects(way, reason=None), done=False), b"data: [DONE]\n\n"):
        assert "its answer is empty" in outcomes(way, body)[0]


# --- numbers that can be ---------------------------------------------------------------------

WRONG: list[Any] = [-5, -0.1, 1e30, 10**30, "70", True, [1], {"a": 1}, float("nan"), float("inf")]
PARTS = {"load_duration": "load_ms", "prompt_eval_duration": "prompt_ms"}
PARTS |= {"eval_duration": "generation_ms", "total_duration": "total_ms"}
NANOSECONDS = dict(zip(PARTS, (1e6, 20e6, 300e6, 330e6), strict=True))
METRICS = {"queue_time_ms": 10, "time_to_first_token_ms": 20, "generation_time_ms": 300}


@each_way
def test_a_count_that_cannot_be_is_unknown_and_the_answer_stays(way: Way) -> None:
    counts = (0, None, -1, "2", 2.5, True, 10**20, [2])
    bodies = [objects(way, tokens=count) for count in counts]
    if way in OPENAI:
        bodies += [objects(way, tokens=None, usage=usage) for usage in ({}, None, 5, "x")]
    assert set(outcomes(way, *bodies)) == {yes(way, "stop", None)}


@pytest.mark.parametrize("key", [None, *PARTS])
@pytest.mark.parametrize("way", [way for way in WAYS if way[0] == "ollama"], ids=str)
def test_an_absurd_duration_of_ollama_is_unknown(way: Way, key: str | None) -> None:
    right: dict[str, Any] = {"load_ms": 1, "prompt_ms": 20, "generation_ms": 300, "total_ms": 330}
    right |= {"queue_ms": 9}  # what no part holds
    if key:
        right |= {PARTS[key]: None, "queue_ms": None}
    times = [NANOSECONDS | {key: wrong} for wrong in WRONG] if key else [NANOSECONDS]
    for row in rows(way, *(objects(way, **given) for given in times)):
        assert row.server.model_dump() == pytest.approx(right)


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "ollama"], ids=str)
def test_an_absurd_duration_elsewhere_is_unknown_and_no_sum_holds_it(way: Way) -> None:
    cases: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
    for wrong in WRONG:
        timings = {"prompt_ms": 20.0, "predicted_ms": wrong}
        cases += [({"timings": timings}, (None, 20, None)), ({"timings": wrong}, (None,) * 3)]
        if way in OPENAI:
            cases += [({"metrics": METRICS | {"queue_time_ms": wrong}}, (None, 20, 300))]
    made = rows(way, *(objects(way, **given) for given, _ in cases))
    for server, (_, known) in zip((row.server for row in made), cases, strict=True):
        assert (server.queue_ms, server.prompt_ms, server.generation_ms) == known
        assert server.total_ms is None


# --- a stream in any form --------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 0, 1, 8, "\t"])
@each_stream
def test_one_body_to_a_stream_is_an_answer_without_a_first_token(way: Way, indent: Any) -> None:
    """However it is indented and its lines end, and whether or not the last one does."""
    kind, api, _ = way
    (whole,) = objects((kind, api, False), thoughts=("Hm",))
    body = json.dumps(whole, indent=indent).encode()
    ends, last, marks = (b"\n", b"\r\n", b"\r"), (b"", b"\n"), (b"", b"\xef\xbb\xbf")
    bodies = [
        Answer(mark + body.replace(b"\n", end) + tail, pieces=size)
        for end, tail, mark, size in product(ends, last, marks, (None, 3))
    ]
    bodies += [Answer(framed(way, [whole]))] if (way in OPENAI and api == "chat") else []
    for row in rows(way, *bodies):
        assert (row.answer, row.output_tokens, row.token_ms) == ("Yes.", 2, None)
        assert row.thought_characters == (None if way in NATIVE else 2)
        assert row.marks.first_token_ms is row.marks.first_thought_ms is None


@each_stream
def test_tokens_sent_in_one_write_share_one_arrival(way: Way) -> None:
    many, single = rows(
        way,
        objects(way, [f"w{n} " for n in range(10)], tokens=10),
        objects(way, ["w"], "length", 1),
    )
    assert many.token_ms is not None and single.token_ms is not None
    assert (len(many.token_ms), len(set(many.token_ms)), len(single.token_ms)) == (10, 1, 1)


ONE, TWO, END = (json.dumps(part).encode() for part in objects(WAY)[:3])
SPLIT = ONE.replace(b", ", b",\ndata: ", 1)
REST = b"\n\ndata: " + TWO + b"\n\ndata: " + END + b"\n\n"
EVENTS = {  # whatever the standard allows
    "no space": (b"data: " + ONE + REST + b"data: [DONE]\n\n").replace(b"data: ", b"data:"),
    "byte order mark": b"\xef\xbb\xbfdata: " + ONE + REST,
    "empty data": b"data\n\ndata:\n\ndata: " + ONE + b"\ndata:\n\ndata:\ndata: " + TWO
    + b"\ndata\n\ndata: " + END + b"\n\ndata:\n\ndata: [DONE]\n\n",
    "several lines": b"data: " + SPLIT + REST,
    "comments": b": hello\n:\ndata: " + ONE + b"\n: ping\n\n: ping" + REST,
    "named": b"event: message\nid: 1\ndata: " + ONE + b"\n\nretry: 5\n\nevent: chunk\ndata: " + TWO
    + b"\nid\n\nevent: ping\ndata: 2026-11-26\n\ndata: " + END + b"\n\n",
    "unknown fields": b"id: 1\nfoo: bar\nbaz\ndata: " + ONE + b"\nx: {}" + REST,
    "no blank lines": (b"data: " + ONE + REST + b"data: [DONE]").replace(b"\n\n", b"\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_events_as_the_standard_allows_them(name: str) -> None:
    assert SPLIT != ONE
    ends, sizes = (b"\n", b"\r\n", b"\r"), (None, 1, 2, 7)
    bodies = [
        Answer(EVENTS[name].replace(b"\n", end), pieces=size) for end, size in product(ends, sizes)
    ]
    assert {text.split(",")[0] + text[-5:] for text in outcomes(WAY, *bodies)} == {
        "Yes. (stop) in 2"
    }


def test_a_stream_may_begin_with_a_field_that_nobody_knows() -> None:
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    stream = Answer(b"foo: bar\n\n" + framed(WAY, objects(WAY)), headers=headers)
    assert outcomes(WAY, stream) == [yes(WAY)]


@pytest.mark.parametrize("lines", [b"data: " + ONE + b"\n", b"data: " + SPLIT + b"\n"])
def test_a_token_came_when_its_data_did_and_not_the_blank_line_after_it(lines: bytes) -> None:
    seen = (lambda exchange: bool(exchange.pieces)) if lines.count(b"\n") == 1 else (lambda _: True)
    pieces = [lines, REST[1:] + b"data: [DONE]\n\n"]
    exchange, sent_ms, _ = asyncio.run(stepwise(WAY, pieces, seen))
    first, second = exchange.token_ms
    assert first < sent_ms[1] <= second + 5
    assert exchange.marks["first_token_ms"] == first


@pytest.mark.parametrize(("name", "bits"), [("gzip", 31), ("deflate", 15)])
@each_way
def test_an_encoding_that_was_not_asked_for_is_read(way: Way, name: str, bits: int) -> None:
    """Each event complete by itself, as a compressing proxy sends them."""
    packer = zlib.compressobj(wbits=bits)
    parts = split(framed(way, objects(way)))
    body = b"".join(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts)
    body, headers = body + packer.flush(), {"content-encoding": name}
    answers = [Answer(body, headers=headers, pieces=size) for size in (None, 5)]
    assert outcomes(way, *answers) == [yes(way)] * 2


@pytest.mark.parametrize("name", ["br", "zstd", "x-snappy", "gzip, br", "gzip"])
@pytest.mark.parametrize("status", [200, 500])
def test_an_encoding_that_cannot_be_read_is_named(name: str, status: int) -> None:
    (error,) = outcomes(WAY, Answer(b"\x1b\x03", status, {"content-encoding": name}))
    words = "content-encoding is none" if name == "gzip" else f"encoded ({name})"
    assert error.startswith("BadAnswer: ") and words in error


# --- the server's words ----------------------------------------------------------------------

FASTAPI = {"detail": [{"loc": ["body", "max_tokens"], "msg": "too many"}, {"msg": "no"}]}
SAYS: list[tuple[Any, str]] = [
    ({"error": "boom"}, "boom"),
    ({"error": {"message": "boom", "type": "x", "code": 5}}, "boom"),
    ({"error": {"code": 529, "type": "overloaded_error"}}, "overloaded_error"),
    ({"error": True, "message": "boom"}, "boom"),
    ({"error": [{"message": "boom"}, {"message": "bang"}]}, "boom; bang"),
    ({"error": {"error": {"message": "boom"}}}, "boom"),
    ({"errors": ["boom", "bang"]}, "boom; bang"),
    ({"detail": "boom"}, "boom"),
    (FASTAPI, "body.max_tokens: too many; no"),
    ({"message": "boom"}, "boom"),
    ({"object": "error", "message": "boom", "code": 400}, "boom"),
    ({"type": "error", "error": {"type": "x", "message": "boom"}}, "boom"),
    ({"error": {}, "detail": {"msg": "boom"}}, "boom"),
]
ERROR_EVENTS = [
    (b"event: error\ndata: out of memory\n\n", "out of memory"),
    (b"event: error\ndata: out of\ndata: memory\n\n", "out of memory"),
    (b"event:error\r\ndata:\r\n\r\n", "no reason given"),
    (b"error: out of memory\n\n", "out of memory"),
    (b'event: error\ndata: {"a": 1}\n\n', "no reason given"),
    (b"event: error\ndata: gone", "gone"),
]
PAGES = [
    (b"<html><head><TITLE lang=en>502 Bad\n &amp; Gateway</title><body>x", "502 Bad & Gateway"),
    (b"\n<html><p>Bad <b>Gateway</b></p>", "Bad Gateway"),
    (b"upstream\nis gone", "upstream is gone"),
    (b'"upstream is gone"', "upstream is gone"),
    (b"[" * 50 + b"1" + b"]" * 50, "no reason given"),
    *((empty, "no reason given") for empty in (b"", b"null")),
]
NO_OBJECTS = [
    (b"<html><title>Sign in</title>", " (Sign in)"),
    (b"Ollama is running", " (Ollama is running)"),
    *((text, ";") for text in (b'{"message": "x', b"[" * 10**5, b"[\n1\n]", b"5", b'"x"', b"null")),
]


@pytest.mark.parametrize(("body", "words"), SAYS, ids=[json.dumps(body) for body, _ in SAYS])
@each_way
def test_the_servers_words_wherever_it_puts_them(way: Way, body: Any, words: str) -> None:
    given = json.dumps(body).encode()
    assert outcomes(way, Answer(given, 500)) == [f"Rejected: HTTP 500: {words}"]
    answers = [given, json.dumps(body, indent=2).encode()]
    if way[2]:
        first = framed(way, objects(way)[:1], done=False)
        answers += [first + b"data: " + given + b"\n\n", first + b"error: " + given + b"\n\n"]
        answers += [first + given + b"\n", first + b"event: error\ndata: " + given + b"\n\n"]
    assert set(outcomes(way, *answers)) == {f"Rejected: error in its answer: {words}"}


@each_stream
def test_an_error_event_or_a_page_is_told_in_its_words(way: Way) -> None:
    expected = [f"Rejected: error in its answer: {words}" for _, words in ERROR_EVENTS]
    assert outcomes(way, *(event for event, _ in ERROR_EVENTS)) == expected
    pages = [Answer(page, 502) for page, _ in PAGES]
    assert outcomes(way, *pages) == [f"Rejected: HTTP 502: {words}" for _, words in PAGES]


@each_way
def test_what_is_no_object_is_told_but_not_what_may_have_been_asked(way: Way) -> None:
    errors = outcomes(way, *(given for given, _ in NO_OBJECTS))
    for error, (_, words) in zip(errors, NO_OBJECTS, strict=True):
        assert error.startswith(f"BadAnswer: its answer is no JSON object{words}")
    assert "its answer is empty" in outcomes(way, b"")[0]
