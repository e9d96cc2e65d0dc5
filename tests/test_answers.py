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
from msgspec.structs import asdict
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
        assert row.outcome == ("failed" if row.error else "ok")
        assert bool(row.answer_sha256) == (not row.error)
        if row.error:
            assert row.error.startswith("provider there: ") and "\n" not in row.error
            texts.append(f"{row.error_kind}: {row.error.removeprefix('provider there: ')}")
        else:
            came = len(row.token_ms or [])
            texts.append(f"{row.answer} ({row.finish_reason}), {row.output_tokens} in {came}")
    return texts


def yes(way: Way, ending: str | None = "stop", tokens: int | None = 2) -> str:
    return f"Yes. ({ending}), {tokens} in {2 if way[2] else 0}"


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
    for empty in outcomes(way, objects(way, (), tokens=0), objects(way, (), tokens=None), b""):
        assert "BadAnswer: its answer is empty" in empty
    if way in NATIVE:
        return
    whole = objects(way, thoughts=["Hm, ", "well."], tokens=4)
    thought = objects(way, (), thoughts=["Hm, ", "well."], tokens=0)
    both, only, none = rows(way, whole, thought, objects(way))
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
    talk = stepwise(way, pieces, lambda seen: len(seen.pieces) == 2)
    exchange, sent_ms, closed_ms = asyncio.run(talk)
    assert exchange.pieces == ["Yes", "."] and exchange.finished and exchange.output_tokens == 2
    marks = exchange.marks
    assert sent_ms[-1] - 5 <= marks["last_byte_ms"] <= marks["end_ms"]
    # What came after was waited for, and none of the wait is in the marks.
    assert closed_ms - marks["end_ms"] >= 1000 * providers.LINGER_S / 2


@each_stream
def test_a_server_whose_bodies_do_not_end_is_waited_for_once(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(server: Replay) -> int:
        sender = provider(way[0], server.url, api=way[1])
        for wait_s in (0.05, 60.0, 60.0):  # a second wait would outlast this test
            monkeypatch.setattr(providers, "LINGER_S", wait_s)
            await sender.send(Prompt(0, "x"), Exchange(clock))
        await sender.aclose()
        return server.connections

    whole = framed(way, objects(way))
    ahead = way[0] == "llama-server"  # where one more is opened for a request that may follow
    assert replay(Answer(whole, ending="hang"), talk) == 3 + ahead
    assert replay(Answer(whole), talk) == (4 if ahead else 1)


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


WRONG: list[Any] = [-5, -0.1, 1e30, 10**30, "70", True, [1], {"a": 1}, float("nan"), float("inf")]
ENDS = ("load_duration", "prompt_eval_duration", "eval_duration", "total_duration")
NANOSECONDS = dict(zip(ENDS, (1e6, 20e6, 300e6, 330e6), strict=True))
METRICS = {"queue_time_ms": 10, "time_to_first_token_ms": 20, "generation_time_ms": 300}


@each_way
def test_a_count_that_cannot_be_is_unknown_and_the_answer_stays(way: Way) -> None:
    counts = (0, None, -1, "2", 2.5, True, 10**20, [2])
    bodies = [objects(way, tokens=count) for count in counts]
    if way in OPENAI:
        bodies += [objects(way, tokens=None, usage=usage) for usage in ({}, None, 5, "x")]
    assert set(outcomes(way, *bodies)) == {yes(way, "stop", None)}


@each_way
def test_an_absurd_duration_is_unknown_and_no_sum_holds_it(way: Way) -> None:
    cases: list[tuple[dict[str, Any], list[float | None]]] = []  # load, queue, prompt, gen., total
    for wrong in WRONG:
        if way[0] == "ollama":  # what no part holds is its queue
            cases += [(NANOSECONDS, [1, 9, 20, 300, 330])]
            for place, key in zip((0, 2, 3, 4), ENDS, strict=True):
                known: list[float | None] = [1, None, 20, 300, 330]
                known[place] = None
                cases += [(NANOSECONDS | {key: wrong}, known)]
            continue
        timings = {"prompt_ms": 20.0, "predicted_ms": wrong}
        cases += [({"timings": timings}, [None, None, 20, None, None])]
        cases += [({"timings": wrong}, [None] * 5)]
        if way in OPENAI:
            metrics = METRICS | {"queue_time_ms": wrong}
            cases += [({"metrics": metrics}, [None, None, 20, 300, None])]
    made = rows(way, *(objects(way, **given) for given, _ in cases))
    for row, (_, known) in zip(made, cases, strict=True):
        times = asdict(row.server)
        parts = ("load", "queue", "prompt", "generation", "total")
        assert [times[f"{part}_ms"] for part in parts] == pytest.approx(known)


@each_stream
def test_one_body_to_a_stream_is_an_answer_without_a_first_token(way: Way) -> None:
    """However it is indented and its lines end, and whether or not the last one does."""
    kind, api, _ = way
    (whole,) = objects((kind, api, False), thoughts=("Hm",))
    indents, ends, marks = (None, 0, 8, "\t"), (b"\n", b"\r\n", b"\r"), (b"", b"\xef\xbb\xbf")
    bodies = [
        Answer(mark + text.encode().replace(b"\n", end) + tail, pieces=size)
        for text in (json.dumps(whole, indent=indent) for indent in indents)
        for end, tail, mark, size in product(ends, (b"", b"\n"), marks, (None, 3))
    ]
    bodies += [Answer(framed(way, [whole]))] if (way in OPENAI and api == "chat") else []
    for row in rows(way, *bodies):
        assert (row.answer, row.output_tokens, row.token_ms) == ("Yes.", 2, None)
        assert row.thought_characters == (None if way in NATIVE else 2)
        assert row.marks.first_token_ms is row.marks.first_thought_ms is None


@each_stream
def test_tokens_sent_in_one_write_share_one_arrival(way: Way) -> None:
    (many,) = rows(way, objects(way, [f"w{n} " for n in range(10)], tokens=10))
    times_ms = many.token_ms or []
    assert (len(times_ms), len(set(times_ms))) == (10, 1)


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
    "unknown": b"foo: bar\n\ndata: " + ONE + REST,
    "no blank lines": (b"data: " + ONE + REST + b"data: [DONE]").replace(b"\n\n", b"\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", EVENTS)
def test_events_as_the_standard_allows_them(name: str) -> None:
    assert SPLIT != ONE
    # Only its type tells that a stream which begins with a field that nobody knows is one.
    headers = {"content-type": "text/event-stream; charset=utf-8"} if name == "unknown" else {}
    bodies = [
        Answer(EVENTS[name].replace(b"\n", end), headers=headers, pieces=size)
        for end, size in product((b"\n", b"\r\n", b"\r"), (None, 1, 2, 7))
    ]
    # Some tell how many tokens it were, others do not.
    assert set(outcomes(WAY, *bodies)) <= {yes(WAY), yes(WAY, tokens=None)}


@pytest.mark.parametrize("lines", [b"data: " + ONE + b"\n", b"data: " + SPLIT + b"\n"])
def test_a_token_came_when_its_data_did_and_not_the_blank_line_after_it(lines: bytes) -> None:
    seen = (lambda exchange: bool(exchange.pieces)) if lines.count(b"\n") == 1 else (lambda _: True)
    pieces = [lines, REST[1:] + b"data: [DONE]\n\n"]
    exchange, sent_ms, _ = asyncio.run(stepwise(WAY, pieces, seen))
    first, second = exchange.token_ms
    assert first < sent_ms[1] <= second + 5
    assert exchange.marks["first_token_ms"] == first


@each_way
def test_an_encoding_that_was_not_asked_for_is_read(way: Way) -> None:
    """Each event complete by itself, as a compressing proxy sends them."""
    parts, answers = split(framed(way, objects(way))), []
    for name, bits in (("gzip", 31), ("deflate", 15)):
        packer = zlib.compressobj(wbits=bits)
        body = b"".join(packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH) for part in parts)
        body, headers = body + packer.flush(), {"content-encoding": name}
        answers += [Answer(body, headers=headers, pieces=size) for size in (None, 5)]
    assert set(outcomes(way, *answers)) == {yes(way)}


def test_an_encoding_that_cannot_be_read_is_named() -> None:
    for name, status in product(["br", "zstd", "x-snappy", "gzip, br", "gzip"], [200, 500]):
        (error,) = outcomes(WAY, Answer(b"\x1b\x03", status, {"content-encoding": name}))
        words = "content-encoding is none" if name == "gzip" else f"encoded ({name})"
        assert error.startswith("BadAnswer: ") and words in error


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


@each_way
def test_the_servers_words_wherever_it_puts_them(way: Way) -> None:
    for body, words in SAYS:
        given = json.dumps(body).encode()
        answers = [given, json.dumps(body, indent=2).encode()]
        if way[2]:
            first = framed(way, objects(way)[:1], done=False)
            begins = (b"data: ", b"error: ", b"", b"event: error\ndata: ")
            answers += [first + begin + given + b"\n\n" for begin in begins]
        refused, *others = outcomes(way, Answer(given, 500), *answers)
        assert refused == f"Rejected: HTTP 500: {words}"
        assert set(others) == {f"Rejected: error in its answer: {words}"}


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
