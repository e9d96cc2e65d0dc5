"""What an answer is, when it ends, and what of it is believed: every way of answering, on a socket.

The bodies are written here as each server would write them, so that what they say is known.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from itertools import product
from typing import Any

import pytest
from replay import Answer, Replay, ask, clock, provider, replay

from poclib.errors import BadAnswer, ProviderError, Rejected
from poclib.measure.attempt import Rules, attempt
from poclib.providers import provider as providers
from poclib.records import Exchange, Prompt, Request

Way = tuple[str, str, bool]  # kind, api, whether it is streamed
WAYS: list[Way] = list(
    product(("ollama", "openai", "llama-server"), ("chat", "completion"), (1, 0))
)  # type: ignore[list-item]
STREAMED = [way for way in WAYS if way[2]]
OPENAI = [way for way in WAYS if way[0] == "openai" or way[:2] == ("llama-server", "chat")]
CONTENT: dict[str, Any] = {"content": ""}


def native(way: Way) -> bool:
    """Whether it is llama-server's own format."""
    return way[:2] == ("llama-server", "completion")


def objects(
    way: Way,
    words: Sequence[str] = ("Yes", "."),
    reason: str | None = "stop",
    tokens: int | None = 2,
    thoughts: Sequence[str] = (),
    **end: Any,
) -> list[Any]:
    """The JSON objects of one answer, `end` in the last of them."""
    kind, api, stream = way
    said = [("", word) for word in words]
    said = [(thought, "") for thought in thoughts] + said
    if not stream:
        said = [("".join(thoughts), "".join(words))]
    if kind == "ollama":

        def line(thought: str, word: str) -> dict[str, Any]:
            if api == "completion":
                return {"response": word, "thinking": thought, "done": False}
            return {"message": {"content": word, "thinking": thought}, "done": False}

        done = {"done": True, "done_reason": reason, "eval_count": tokens} | end
        return (
            [*map(line, *zip(*said, strict=True)), line("", "") | done]
            if stream and said
            else [line(*(said or [("", "")])[0]) | done]
        )
    if native(way):
        last: dict[str, Any] = {
            "stop": True,
            "stop_type": {"stop": "eos"}.get(reason or "", reason),
        }
        last |= {"tokens_predicted": tokens} | end
        if not stream:
            return [{"content": "".join(words)} | last]
        return [*({"content": word, "stop": False} for word in words), {"content": ""} | last]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": 5, "completion_tokens": tokens}}

    def choice(thought: str, word: str, ending: str | None = None) -> dict[str, Any]:
        if api == "completion":
            return {"choices": [{"text": word, "reasoning": thought, "finish_reason": ending}]}
        part = "delta" if stream else "message"
        held = {"role": "assistant", "content": word, "reasoning_content": thought}
        return {"choices": [{part: held, "finish_reason": ending}]}

    if not stream:
        return [choice(*said[0], reason) | usage | end]
    return [*(choice(*one) for one in said), choice("", "", reason), {"choices": []} | usage | end]


def framed(way: Way, found: Sequence[Any], done: bool = True) -> bytes:
    """As its server sends them."""
    texts = [json.dumps(one).encode() for one in found]
    if not way[2]:
        return texts[0]
    if way[0] == "ollama":
        return b"".join(text + b"\n" for text in texts)
    events = b"".join(b"data: " + text + b"\n\n" for text in texts)
    return events + (b"data: [DONE]\n\n" if done and not native(way) else b"")


def sent(way: Way, answer: Answer | bytes, **changes: Any) -> Exchange:
    kind, api, stream = way
    given = answer if isinstance(answer, Answer) else Answer(answer)
    wanted = {"api": api, "stream": bool(stream), **changes}
    return replay(given, lambda server: ask(provider(kind, server.url, **wanted)))


def refused(way: Way, answer: Answer | bytes, **changes: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        sent(way, answer, **changes)
    assert str(caught.value).startswith("provider there: ") and "\n" not in str(caught.value)
    return caught.value


def each(way: Way, bodies: Sequence[bytes], **given: Any) -> list[Exchange | ProviderError]:
    """What comes of each of many bodies, from one server."""
    kind, api, stream = way
    answer = Answer(**given)

    async def talk(server: Replay) -> list[Exchange | ProviderError]:
        sender = provider(kind, server.url, api=api, stream=bool(stream))
        found: list[Exchange | ProviderError] = []
        for answer.body in bodies:
            exchange = Exchange(clock)
            try:
                await sender.send(Prompt(0, "x"), exchange)
                found.append(exchange)
            except ProviderError as error:
                found.append(error)
        await sender.aclose()
        return found

    return replay(answer, talk)


def row(way: Way, answer: Answer, **rules: Any) -> Request:
    """The row of one attempt."""
    kind, api, stream = way

    async def talk(server: Replay) -> Request:
        sender = provider(kind, server.url, api=api, stream=bool(stream))
        try:
            return await attempt(sender, Prompt(0, "x"), clock, Rules(**rules))
        finally:
            await sender.aclose()

    return replay(answer, talk)


def text(exchange: Exchange) -> str:
    return "".join(exchange.pieces)


# --- how an answer ends ----------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["stop", "length", "eos", "tool_calls", "LENGTH", None])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_answer_with_a_whole_ending(way: Way, reason: str | None) -> None:
    kind, _, stream = way
    if (kind == "ollama" or native(way)) and reason in ("eos", "tool_calls"):
        return  # this kind never says so
    if way in OPENAI and not stream and reason is None:
        return  # then nothing says that it is whole
    if native(way) and reason in ("length", "LENGTH"):
        reason = "limit"
    found = sent(way, framed(way, objects(way, reason=reason)))
    assert text(found) == "Yes." and found.output_tokens == 2 and found.finished
    assert found.finish_reason == (
        {"stop": "eos"}.get(reason or "", reason) if native(way) else reason
    )
    assert len(found.token_ms) == (2 if stream else 0)


@pytest.mark.parametrize(
    "reason", ["abort", "error", "content_filter", "load", "unload", "cancelled", "none"]
)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_any_other_ending_fails_with_the_servers_word(way: Way, reason: str) -> None:
    answer = Answer(framed(way, objects(way, reason=reason)))
    assert f"“{reason}”" in str(refused(way, answer))
    found = row(way, answer)
    assert (found.outcome, found.error_kind, found.finish_reason) == ("failed", "BadAnswer", reason)
    assert found.answer_sha256 is None


@pytest.mark.parametrize("way", OPENAI, ids=str)
def test_an_error_in_a_choice_is_told_in_the_servers_words(way: Way) -> None:
    found = objects(way)
    choice = next(one["choices"][0] for one in reversed(found) if one["choices"])
    choice["finish_reason"] = "error"
    choice["native_finish_reason"] = "MALFORMED_CALL"
    error = refused(way, framed(way, found))
    assert type(error) is BadAnswer and "“error, MALFORMED_CALL”" in str(error)
    choice["error"] = {"code": 502, "message": "upstream died"}
    error = refused(way, framed(way, found))
    assert type(error) is Rejected and "error in its answer: upstream died" in str(error)
    choice["finish_reason"] = None
    assert "upstream died" in str(refused(way, framed(way, found)))


@pytest.mark.parametrize("tokens", [0, None])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_nothing_generated_is_no_answer(way: Way, tokens: int | None) -> None:
    """Whatever it says of its end: no text, no thought, no token counted."""
    answer = Answer(framed(way, objects(way, (), "stop", tokens)))
    assert "its answer is empty" in str(refused(way, answer))
    found = row(way, answer)
    assert (found.outcome, found.error_kind) == ("failed", "BadAnswer")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_end_token_alone_is_an_answer(way: Way) -> None:
    """A model may say nothing: the server counts the token that ended it."""
    found = sent(way, framed(way, objects(way, (), "stop", 1)))
    assert (found.pieces, found.output_tokens, found.token_ms) == ([], 1, [])


@pytest.mark.parametrize("way", [way for way in WAYS if not native(way)], ids=str)
def test_thoughts_are_kept_apart(way: Way) -> None:
    thoughts = ["Hm, ", "well."]
    found = row(way, Answer(framed(way, objects(way, thoughts=thoughts, tokens=4))))
    assert found.thought_characters == 9 and found.outcome == "ok"
    assert found.answer_sha256 == row(way, Answer(framed(way, objects(way)))).answer_sha256
    first, token = found.marks.first_thought_ms, found.marks.first_token_ms
    if way[2]:
        assert first is not None and token is not None and first <= token
        assert found.token_ms is not None and len(found.token_ms) == 2
    else:
        assert first is token is None
    only = row(way, Answer(framed(way, objects(way, (), thoughts=thoughts, tokens=0))))
    assert (only.outcome, only.thought_characters, only.output_tokens) == ("ok", 9, None)
    assert only.marks.first_token_ms is None and only.token_ms is None
    assert (only.marks.first_thought_ms is not None) == way[2]
    assert row(way, Answer(framed(way, objects(way)))).thought_characters is None


def test_a_thought_is_a_sign_of_life() -> None:
    """After one, the wait is that between tokens, not that for the first."""
    way = STREAMED[0]
    first = framed(way, objects(way, (), thoughts=["Hm"])[:1])
    limits = {"first_token_timeout_s": 20.0, "between_tokens_timeout_s": 0.05}
    found = row(way, Answer(first, ending="hang"), **limits)
    assert "no token within 0.05 s; raise between_tokens_timeout_s" in (found.error or "")
    assert found.thought_characters == 2


# --- when it ends ----------------------------------------------------------------------------


async def stepwise(
    way: Way, pieces: Sequence[bytes], until: Callable[[Exchange], bool], **changes: Any
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
            for _ in range(20):  # the client, in this loop too, reads what was sent
                await asyncio.sleep(0)
            sent_ms[number] = clock()
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        await reader.read()
        closed_ms = clock()
        writer.close()
        closed.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    kind, api, stream = way
    sender = provider(kind, f"http://127.0.0.1:{port}", api=api, stream=bool(stream), **changes)
    async with server, asyncio.timeout(30):
        await sender.send(Prompt(0, "x"), exchange)
        await closed.wait()
        await sender.aclose()
    return exchange, sent_ms, closed_ms


@pytest.mark.parametrize("last", ["its terminal event", "finish_reason and usage"])
@pytest.mark.parametrize("way", STREAMED, ids=str)
def test_a_body_that_never_ends_costs_its_answer_nothing(way: Way, last: str) -> None:
    """The server's clock: the end is when the terminal event was sent, not when it was left."""
    done = last == "its terminal event"
    body = framed(way, objects(way), done)
    *before, end = [part for part in re.split(rb"(?<=\n)(?=data|\{)", body) if part]
    exchange, sent_ms, closed_ms = asyncio.run(
        stepwise(way, [*before, end], lambda seen: len(seen.pieces) == 2)
    )
    assert text(exchange) == "Yes." and exchange.finished and exchange.output_tokens == 2
    marks = exchange.marks
    assert sent_ms[-1] - 5 <= marks["last_byte_ms"] <= marks["end_ms"]
    # What came after was waited for, and none of the wait is in the marks.
    assert closed_ms - marks["end_ms"] >= 1000 * providers.LINGER_S - 5


@pytest.mark.parametrize("way", STREAMED, ids=str)
def test_a_server_whose_bodies_do_not_end_is_waited_for_once(way: Way) -> None:
    kind, api, _ = way

    async def talk(server: Replay) -> tuple[list[bool | None], int]:
        sender, known = provider(kind, server.url, api=api), []
        for _ in range(3):
            await sender.send(Prompt(0, "x"), Exchange(clock))
            known.append(sender._lingers)
        await sender.aclose()
        return known, server.connections

    hanging = Answer(framed(way, objects(way)), ending="hang")
    assert replay(hanging, talk) == ([True] * 3, 3)
    known, connections = replay(Answer(framed(way, objects(way))), talk)
    assert known == [False] * 3
    assert connections == (3 if kind == "llama-server" else 1)


@pytest.mark.parametrize("way", STREAMED, ids=str)
def test_no_limit_cuts_what_is_whole(way: Way) -> None:
    """The wait for what comes after an answer is longer than the one allowed between tokens."""
    answer = Answer(framed(way, objects(way)), ending="hang")
    limits = {"between_tokens_timeout_s": 0.05, "first_token_timeout_s": 20.0}
    found = row(way, answer, **limits)
    assert (found.outcome, found.error, found.output_tokens) == ("ok", None, 2)


AFTER = [
    *(b"junk\n\n", b"data: junk\n\n", b'data: {"error": "late"}\n\n', b"error: late\n\n"),
    *(
        b'{"error": "late"}\n',
        b"event: error\ndata: late\n\n",
        b"\xff\xfe\n\n",
        b"data: [DONE]\n\n",
    ),
]


@pytest.mark.parametrize("ending", ["whole", "cut", "hang"])
@pytest.mark.parametrize("after", [*AFTER, None], ids=repr)
@pytest.mark.parametrize("way", STREAMED, ids=str)
def test_what_comes_after_an_answer_cannot_spoil_it(
    way: Way, after: bytes | None, ending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "LINGER_S", 0.02)
    body = framed(way, objects(way))
    more = framed(way, objects(way, ("No", "!"), tokens=7)) if after is None else after
    found = sent(way, Answer(body + more, ending=ending))
    assert (text(found), found.output_tokens, len(found.token_ms)) == ("Yes.", 2, 2)


@pytest.mark.parametrize("way", [w for w in OPENAI if w[2]], ids=str)
def test_done_ends_an_answer_that_names_no_reason(way: Way) -> None:
    found = sent(way, framed(way, objects(way, reason=None, tokens=None)))
    assert (text(found), found.finish_reason, found.output_tokens) == ("Yes.", None, None)
    error = refused(way, framed(way, objects(way, reason=None), done=False))
    assert "stops before its end" in str(error)
    assert "its answer is empty" in str(refused(way, b"data: [DONE]\n\n"))


@pytest.mark.parametrize("way", [w for w in OPENAI if w[2]], ids=str)
def test_a_reason_and_the_end_of_the_body_are_an_end(way: Way) -> None:
    found = sent(way, framed(way, objects(way, tokens=None), done=False))
    assert text(found) == "Yes." and found.finished


# --- numbers that can be ---------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, None, -1, "2", 2.5, True, 10**20, [2]], ids=repr)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_count_that_cannot_be_is_unknown_and_the_answer_stays(way: Way, tokens: Any) -> None:
    found = sent(way, framed(way, objects(way, tokens=tokens)))
    assert (text(found), found.output_tokens) == ("Yes.", None)


@pytest.mark.parametrize("usage", [{"prompt_tokens": 0, "completion_tokens": 0}, {}, None, 5, "x"])
@pytest.mark.parametrize("way", OPENAI, ids=str)
def test_a_usage_of_nothing_counts_nothing(way: Way, usage: Any) -> None:
    found = sent(way, framed(way, objects(way, tokens=None, usage=usage)))
    assert (text(found), found.prompt_tokens, found.output_tokens) == ("Yes.", None, None)


WRONG: list[Any] = [-5, -0.1, 1e30, 10**30, "70", True, [1], {"a": 1}, float("nan"), float("inf")]
PARTS = {"load_duration": "load_ms", "prompt_eval_duration": "prompt_ms"}
PARTS |= {"eval_duration": "generation_ms", "total_duration": "total_ms"}


@pytest.mark.parametrize("key", [None, *PARTS])
@pytest.mark.parametrize("way", [w for w in WAYS if w[0] == "ollama"], ids=str)
def test_one_absurd_duration_of_ollama_is_unknown(way: Way, key: str | None) -> None:
    times: dict[str, Any] = dict(zip(PARTS, (1e6, 20e6, 300e6, 330e6), strict=True))
    right = {"load_ms": 1.0, "prompt_ms": 20.0, "generation_ms": 300.0, "total_ms": 330.0}
    # The queue is what no part holds.
    right |= {PARTS[key]: None, "queue_ms": None} if key else {"queue_ms": 9.0}  # type: ignore[dict-item]
    changes = [{key: wrong} for wrong in WRONG] if key else [{}]
    for given in each(way, [framed(way, objects(way, **(times | one))) for one in changes]):
        assert isinstance(given, Exchange)
        assert given.server.model_dump() == pytest.approx(right)


@pytest.mark.parametrize("way", [w for w in WAYS if w[0] != "ollama"], ids=str)
def test_one_absurd_duration_elsewhere_is_unknown_and_no_sum_holds_it(way: Way) -> None:
    timings = [{"prompt_ms": 20.0, "predicted_ms": wrong} for wrong in WRONG] + WRONG
    metrics = [
        {"queue_time_ms": wrong, "time_to_first_token_ms": 20, "generation_time_ms": 300}
        for wrong in (() if native(way) else WRONG)
    ]
    bodies = [framed(way, objects(way, timings=one)) for one in timings]
    bodies += [framed(way, objects(way, metrics=one)) for one in metrics]
    known = [(None, 20.0, None)] * len(WRONG) + [(None, None, None)] * len(WRONG)
    known += [(None, 20, 300)] * len(metrics)
    for given, expected in zip(each(way, bodies), known, strict=True):
        assert isinstance(given, Exchange) and given.server.total_ms is None
        server = given.server
        assert (server.queue_ms, server.prompt_ms, server.generation_ms) == expected


@pytest.mark.parametrize("indent", [None, 0, 1, 8, "\t"])
@pytest.mark.parametrize("way", STREAMED, ids=str)
def test_one_body_to_a_stream_is_an_answer_without_a_first_token(way: Way, indent: Any) -> None:
    """However it is indented and its lines end, and whether or not the last one does."""
    kind, api, _ = way
    thoughts = () if native(way) else ("Hm",)
    (whole,) = objects((kind, api, False), thoughts=thoughts)
    body = json.dumps(whole, indent=indent).encode()
    ways = product((b"\n", b"\r\n", b"\r"), (b"", b"\n"), (b"", b"\xef\xbb\xbf"))
    bodies = [head + body.replace(b"\n", sep) + tail for sep, tail, head in ways]
    for found in [*each(way, bodies), *each(way, bodies[-1:], pieces=3)]:
        assert isinstance(found, Exchange)
        assert text(found) == "Yes." and found.thoughts == list(thoughts)
        assert found.output_tokens == 2 and found.token_ms == []
        assert not {"first_token_ms", "first_thought_ms"} & found.marks.keys()


@pytest.mark.parametrize("kind", ["openai", "llama-server"])
def test_a_whole_message_in_one_event_was_not_streamed_either(kind: str) -> None:
    (whole,) = objects((kind, "chat", False), thoughts=["Hm"])
    found = sent(
        (kind, "chat", True), b"data: " + json.dumps(whole).encode() + b"\n\ndata: [DONE]\n\n"
    )
    assert text(found) == "Yes." and found.token_ms == found.thought_ms == []


@pytest.mark.parametrize("way", STREAMED, ids=str)
def test_tokens_sent_in_one_write_share_one_arrival(way: Way) -> None:
    words = [f"w{n} " for n in range(10)]
    found = sent(way, framed(way, objects(way, words, tokens=10)))
    assert len(found.token_ms) == 10 and len(set(found.token_ms)) == 1
    single = sent(way, framed(way, objects(way, words[:1], "length", 1)))
    assert len(single.token_ms) == 1


# --- whatever the event-stream standard allows -----------------------------------------------

WAY: Way = ("openai", "chat", True)
ONE, TWO, END = (json.dumps(one).encode() for one in objects(WAY)[:3])
SPLIT = ONE.replace(b", ", b",\ndata: ", 1)
assert SPLIT != ONE
EVENTS = {
    "no space": b"data:" + ONE + b"\n\ndata:" + TWO + b"\n\ndata:" + END + b"\n\ndata:[DONE]\n\n",
    "byte order mark": b"\xef\xbb\xbfdata: " + ONE + b"\n\ndata: " + TWO + b"\n\ndata: " + END
    + b"\n\n",
    "empty data": b"data\n\ndata:\n\ndata: " + ONE + b"\ndata:\n\ndata:\ndata: " + TWO
    + b"\ndata\n\ndata: " + END + b"\n\ndata:\n\ndata: [DONE]\n\n",
    "several lines": b"data: " + SPLIT + b"\n\ndata: " + TWO + b"\n\ndata: " + END + b"\n\n",
    "comments": b": hello\n:\ndata: " + ONE + b"\n: ping\n\n: ping\n\ndata: " + TWO
    + b"\n\n:\n\ndata: " + END + b"\n\n",
    "named": b"event: message\nid: 1\ndata: " + ONE + b"\n\nretry: 5\n\nevent: chunk\ndata: " + TWO
    + b"\nid\n\nevent: ping\ndata: 2026-11-26\n\ndata: " + END + b"\n\n",
    "unknown fields": b"id: 1\nfoo: bar\nbaz\ndata: " + ONE + b"\nx: {}\n\ndata: " + TWO
    + b"\n\ndata: " + END + b"\n\n",
    "no blank lines": b"data: " + ONE + b"\ndata: " + TWO + b"\ndata: " + END + b"\ndata: [DONE]",
}  # fmt: skip


@pytest.mark.parametrize("size", [None, 1, 2, 7])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", EVENTS)
def test_events_as_the_standard_allows_them(name: str, end: bytes, size: int | None) -> None:
    found = sent(WAY, Answer(EVENTS[name].replace(b"\n", end), pieces=size))
    assert found.pieces == ["Yes", "."] and found.finish_reason == "stop"
    assert len(found.token_ms) == 2


def test_a_stream_may_begin_with_a_field_that_nobody_knows() -> None:
    body = b"foo: bar\n\n" + framed(WAY, objects(WAY))
    found = sent(WAY, Answer(body, headers={"content-type": "text/event-stream; charset=utf-8"}))
    assert text(found) == "Yes."


@pytest.mark.parametrize("lines", [b"data: " + ONE + b"\n", b"data: " + SPLIT + b"\n"])
def test_a_token_came_when_its_data_did_and_not_the_blank_line_after_it(lines: bytes) -> None:
    rest = b"\ndata: " + TWO + b"\n\ndata: " + END + b"\n\ndata: [DONE]\n\n"
    seen = (lambda exchange: bool(exchange.pieces)) if lines.count(b"\n") == 1 else (lambda _: True)
    exchange, sent_ms, _ = asyncio.run(stepwise(WAY, [lines, rest], seen))
    assert exchange.pieces == ["Yes", "."]
    first, second = exchange.token_ms
    assert first < sent_ms[1] <= second + 5
    assert exchange.marks["first_token_ms"] == first


# --- encodings -------------------------------------------------------------------------------


def encoded(body: bytes, name: str, flush: int = zlib.Z_SYNC_FLUSH) -> list[bytes]:
    """The body's events, each of them complete by itself, as a compressing proxy sends them."""
    packer = zlib.compressobj(wbits={"gzip": 31, "deflate": 15}[name])
    parts = [p for p in re.split(rb"(?<=\n)(?=data|\{)", body) if p]
    return [*(packer.compress(part) + packer.flush(flush) for part in parts), packer.flush()]


@pytest.mark.parametrize("name", ["gzip", "deflate"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_an_encoding_that_was_not_asked_for_is_read(way: Way, name: str) -> None:
    body = b"".join(encoded(framed(way, objects(way)), name))
    for size in (None, 5):
        found = sent(way, Answer(body, headers={"content-encoding": name}, pieces=size))
        assert text(found) == "Yes." and len(found.token_ms) == (2 if way[2] else 0)


@pytest.mark.parametrize("name", ["br", "zstd", "x-snappy", "gzip, br"])
@pytest.mark.parametrize("status", [200, 500])
def test_an_encoding_that_cannot_be_read_is_named(name: str, status: int) -> None:
    error = refused(WAY, Answer(b"\x1b\x03", status, {"content-encoding": name}))
    assert type(error) is BadAnswer and f"encoded ({name})" in str(error)


def test_what_is_not_encoded_as_it_says_is_told() -> None:
    error = refused(WAY, Answer(framed(WAY, objects(WAY)), headers={"content-encoding": "gzip"}))
    assert type(error) is BadAnswer and "content-encoding" in str(error)


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


@pytest.mark.parametrize(("body", "words"), SAYS, ids=[json.dumps(body) for body, _ in SAYS])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_servers_words_wherever_it_puts_them(way: Way, body: Any, words: str) -> None:
    given = json.dumps(body).encode()
    status = refused(way, Answer(given, 500))
    assert str(status) == f"provider there: HTTP 500: {words}"
    told = f"provider there: error in its answer: {words}"
    answers = [given, json.dumps(body, indent=2).encode()]
    if way[2]:
        first = framed(way, objects(way)[:1], done=False)
        answers += [first + b"data: " + given + b"\n\n", first + b"error: " + given + b"\n\n"]
        answers += [first + given + b"\n", first + b"event: error\ndata: " + given + b"\n\n"]
    for error in each(way, answers):
        assert (type(error), str(error)) == (Rejected, told)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"event: error\ndata: out of memory\n\n", "out of memory"),
        (b"event: error\ndata: out of\ndata: memory\n\n", "out of memory"),
        (b"event:error\r\ndata:\r\n\r\n", "no reason given"),
        (b"error: out of memory\n\n", "out of memory"),
        (b'event: error\ndata: {"a": 1}\n\n', "no reason given"),
        (b"event: error\ndata: gone", "gone"),
    ],
)
def test_an_error_event_is_no_json(body: bytes, words: str) -> None:
    for way in STREAMED:
        error = refused(way, body)
        assert (type(error), error.args[0].split(": ")[-1]) == (Rejected, words)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html><head><TITLE lang=en>502 Bad\n &amp; Gateway</title><body>x", "502 Bad & Gateway"),
        (b"\n<html><p>Bad <b>Gateway</b></p>", "Bad Gateway"),
        (b"upstream\nis gone", "upstream is gone"),
        (b'"upstream is gone"', "upstream is gone"),
        (b"[" * 50 + b"1" + b"]" * 50, "no reason given"),
        (b"", "no reason given"),
        (b"null", "no reason given"),
    ],
)
def test_an_error_page_is_told_by_its_title(body: bytes, words: str) -> None:
    assert str(refused(WAY, Answer(body, 502))) == f"provider there: HTTP 502: {words}"


def test_only_what_is_not_json_is_said_not_to_be() -> None:
    for way in WAYS:
        page = str(refused(way, b"<html><title>Sign in</title>"))
        assert "a web page answers there" in page
        assert "is not JSON; is its kind" in str(refused(way, b'{"message": "secret'))
        assert "is not JSON" in str(refused(way, b"[" * 100_000))
        for body in (b"[1]", b"5", b'"x"', b"null", b"[\n1\n]"):
            assert "is JSON, but no object" in str(refused(way, body)), body
        assert "its answer is empty" in str(refused(way, b""))


def test_no_key_or_address_is_in_the_servers_words() -> None:
    key, way = "k-5f3a9c", STREAMED[0]

    async def talk(server: Replay) -> str:
        with pytest.raises(ProviderError) as caught:
            await ask(provider(way[0], server.url, key))
        return str(caught.value)

    talk_: Callable[[Replay], Awaitable[str]] = talk
    for body in (
        f'{{"detail": [{{"loc": ["{key}"], "msg": "127.0.0.1"}}]}}',
        f"error: {key}\n\n",
        json.dumps({"message": {"content": "x"}, "done": True, "done_reason": key}),
    ):
        words = replay(Answer(body.encode()), talk_)
        assert key not in words and "127.0.0.1" not in words and "…" in words
