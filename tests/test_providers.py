"""Every recorded body, read by the provider it came from, against a reading of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from replay import (
    LLAMA,
    OLLAMA,
    SAMPLES,
    Answer,
    Asked,
    Replay,
    ask,
    clock,
    describe,
    facts_of,
    provider,
    recorded,
    replay,
)

from poclib.errors import BadAnswer, ModelMissing, ProviderError, Rejected, TimedOut
from poclib.providers import KINDS
from poclib.records import Exchange, Probe, Prompt, ProviderFacts, RequestMarks

ORDER = ("start", "connect_start", "connected", "ready", "sent", "first_byte", "first_token")
ORDER += ("last_byte",)
# Recorded bodies that are no answer to a prompt: facts about a server.
FACTS = {"health", "metrics", "models", "props", "slots", "tags", "version", "root", "v1_models"}
FACTS |= {"show", "show_t1", "ps_loaded", "ps_nothing_loaded", "ps_np4", "tags_smol"}
FACTS |= {f"router_{what}" for what in ("models", "models_loaded", "props", "props_model")}
NAMES = sorted(str(file.relative_to(SAMPLES).with_suffix("")) for file in SAMPLES.rglob("*.body"))
# Answers to no prompt, or to a request to load or unload a model: nothing is generated.
EMPTY = [f"ollama/chat_{n}" for n in ("empty_messages", "no_messages", "load_only")]
EMPTY += [f"ollama/{n}" for n in ("unload", "generate_empty_prompt", "generate_load_cold")]
WHOLE = [n for n in NAMES if recorded(n).status == 200 and n.split("/")[-1] not in FACTS]
ANSWERS = [n for n in WHOLE if n not in EMPTY]
ERRORS = [n for n in NAMES if recorded(n).status != 200]
STREAMS = [n for n in ANSWERS if n.replace("nostream", "") == n and "stream" in n]


def settings_for(name: str) -> dict[str, Any]:
    """How a provider must be set to have been given the sample `name`."""
    server, last = name.split("/")[0], name.split("/")[-1]
    kind = "openai" if server == "vllm" or last.startswith("v1_") else server
    return {
        "kind": kind,
        "api": "chat" if "chat" in last else "completion",
        "stream": name in STREAMS,
    }


def send(name: str, answer: Answer | None = None, **changes: Any) -> Exchange:
    """The exchange when the sample `name` (or `answer` in its place) answers a prompt."""
    wanted = settings_for(name) | changes
    return replay(answer or recorded(name), lambda server: ask(provider(url=server.url, **wanted)))


@dataclass
class Reading:
    """What a recorded body says, read here by hand."""

    text: str
    prompt_tokens: int | None
    output_tokens: int | None
    finish: str | None
    load: float | None = None
    queue: float | None = None
    prompt: float | None = None
    generation: float | None = None
    total: float | None = None


def events(name: str, body: bytes) -> list[dict[str, Any]]:
    lines = body.decode().splitlines() if name in STREAMS else [body.decode()]
    texts = [line.removeprefix("data: ") for line in lines if line]
    return [json.loads(text) for text in texts if text != "[DONE]"]


def ollama(name: str, found: list[dict[str, Any]]) -> Reading:
    text = "".join(e["message"]["content"] if "chat" in name else e["response"] for e in found)
    end = found[-1]
    assert end["done"] is True
    reading = Reading(text, end.get("prompt_eval_count"), end.get("eval_count"), end["done_reason"])
    if "total_duration" in end:
        ns = {key: end.get(f"{key}_duration", 0) for key in ("load", "prompt_eval", "eval")}
        reading.load, reading.prompt, reading.generation = (value / 1e6 for value in ns.values())
        reading.total = end["total_duration"] / 1e6
        reading.queue = reading.total - reading.load - reading.prompt - reading.generation
    return reading


def llama_completion(name: str, found: list[dict[str, Any]]) -> Reading:
    end = found[-1]
    assert end["stop_type"] == "limit"
    times = end["timings"]
    return Reading(
        "".join(e["content"] for e in found),
        end["tokens_evaluated"],
        times["predicted_n"],
        "limit",
        prompt=times["prompt_ms"],
        generation=times["predicted_ms"],
        total=times["prompt_ms"] + times["predicted_ms"],
    )


def openai(name: str, found: list[dict[str, Any]]) -> Reading:
    choices = [e["choices"][0] for e in found if e["choices"]]
    part = "delta" if name in STREAMS else "message"
    said = [c[part].get("content") if "chat" in name else c["text"] for c in choices]
    usage = found[-1].get("usage") or {}
    reading = Reading(
        "".join(text or "" for text in said),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        choices[-1]["finish_reason"],
    )
    if metrics := found[-1].get("metrics"):
        reading.queue = metrics["queue_time_ms"]
        reading.prompt = metrics["time_to_first_token_ms"]
        reading.generation = metrics["generation_time_ms"]
        reading.total = reading.queue + reading.prompt + reading.generation
    if times := found[-1].get("timings"):
        reading.prompt, reading.generation = times["prompt_ms"], times["predicted_ms"]
        reading.total = times["prompt_ms"] + times["predicted_ms"]
    return reading


def read_by_hand(name: str, body: bytes) -> Reading:
    wanted = settings_for(name)
    if wanted["kind"] == "ollama":
        return ollama(name, events(name, body))
    if wanted["kind"] == "llama-server" and wanted["api"] == "completion":
        return llama_completion(name, events(name, body))
    return openai(name, events(name, body))


def agrees(exchange: Exchange, hand: Reading) -> None:
    server = exchange.server
    assert "".join(exchange.pieces) == hand.text
    assert exchange.finished
    assert exchange.prompt_tokens == hand.prompt_tokens
    assert exchange.output_tokens == hand.output_tokens
    assert exchange.finish_reason == hand.finish
    found = [server.load_ms, server.queue_ms, server.prompt_ms, server.generation_ms]
    by_hand = [hand.load, hand.queue, hand.prompt, hand.generation]
    for mine, other in zip([*found, server.total_ms], [*by_hand, hand.total], strict=True):
        assert mine == (None if other is None else pytest.approx(other, abs=1e-6))


def in_order(marks: dict[str, float]) -> None:
    times = [marks[f"{event}_ms"] for event in (*ORDER, "end") if f"{event}_ms" in marks]
    assert times == sorted(times)
    assert RequestMarks(**marks).end_ms == marks["end_ms"]


def test_every_sample_is_a_case() -> None:
    fact_names = {n for n in NAMES if n.split("/")[-1] in FACTS}
    assert set(NAMES) == {*ANSWERS, *EMPTY, *ERRORS} | fact_names
    assert (len(ANSWERS), len(EMPTY), len(ERRORS), len(fact_names)) == (42, 6, 43, 22)


# --- answers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ANSWERS)
def test_recorded_answer(name: str) -> None:
    exchange = send(name)
    agrees(exchange, read_by_hand(name, recorded(name).body))
    in_order(exchange.marks)
    if name in STREAMS:
        assert len(exchange.token_ms) == len(exchange.pieces) > 0
        assert exchange.marks["first_token_ms"] == exchange.token_ms[0]
    else:
        assert exchange.token_ms == [] and "first_token_ms" not in exchange.marks


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", STREAMS)
def test_stream_cut_anywhere_reads_the_same(name: str, size: int) -> None:
    agrees(send(name, recorded(name, pieces=size)), read_by_hand(name, recorded(name).body))


@pytest.mark.parametrize("name", ["conc_default_warm", "conc_mq2_cold", "conc_np4_warm"])
def test_eight_at_once_on_ollama(name: str) -> None:
    """Every answer of a loaded server, most of whose time is a wait for a slot or the model."""
    rows = json.loads((SAMPLES / "ollama" / f"{name}.json").read_text("utf-8"))
    waits = []
    for row in rows:
        answer = Answer(row["body"].encode(), row["status"])
        if row["status"] == 503:
            with pytest.raises(Rejected, match="busy") as caught:
                send("ollama/generate_nostream", answer)
            assert caught.value.temporary
            continue
        exchange = send("ollama/generate_nostream", answer)
        agrees(exchange, ollama(name, [json.loads(row["body"])]))
        assert exchange.server.total_ms is not None and exchange.server.queue_ms is not None
        assert exchange.server.total_ms < row["wall_ms"]
        waits.append(exchange.server.queue_ms)
    # One slot: the last of 8 equal requests waits for 7; four slots: for one of two turns.
    longest = max(row["wall_ms"] for row in rows)
    low, high = {
        "conc_default_warm": (0.80, 0.95),
        "conc_np4_warm": (0.40, 0.60),
        "conc_mq2_cold": (0.0, 0.95),
    }[name]
    assert low <= max(waits) / longest <= high


def test_zero_durations_are_left_out_by_ollama() -> None:
    done = {"message": {"content": "x"}, "done": True, "total_duration": 5_000_000}
    server = send("ollama/chat_nostream", Answer(json.dumps(done).encode())).server
    assert (server.load_ms, server.prompt_ms, server.generation_ms) == (0, 0, 0)
    assert (server.queue_ms, server.total_ms) == (5, 5)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_cached_tokens_are_told(kind: str) -> None:
    assert send("llama-server/chat_stream").cached_tokens == 33
    assert send("llama-server/v1_completion").cached_tokens == 4
    assert send(f"vllm/{kind}").cached_tokens == 0
    assert send(f"ollama/v1_{kind}{'s' if kind == 'completion' else ''}").cached_tokens is None


def test_cached_tokens_of_usage_stay_where_timings_have_none() -> None:
    body = json.loads(recorded("llama-server/v1_completion").body)
    del body["timings"]["cache_n"]
    assert send("llama-server/v1_completion", Answer(json.dumps(body).encode())).cached_tokens == 4


@pytest.mark.parametrize("name", EMPTY)
def test_recorded_answers_that_are_none(name: str) -> None:
    with pytest.raises(BadAnswer, match=r"its answer (is empty|ended with “(un)?load”)"):
        send(name)


def test_half_a_surrogate_pair_does_not_spoil_the_report() -> None:
    body = rb'{"message": {"content": "a\ud83d"}, "done": true}'
    assert send("ollama/chat_nostream", Answer(body)).pieces == ["a?"]


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRORS)
def test_recorded_error(name: str) -> None:
    answer = recorded(name)
    with pytest.raises(ProviderError) as caught:
        send(name)
    error = caught.value
    try:
        body = json.loads(answer.body)
        words = body.get("detail") or body["error"]
        words = words["message"] if isinstance(words, dict) else words
    except ValueError:
        words = answer.body.decode()
    lacks_it = "not found" in words or "does not exist" in words
    unknown_model = lacks_it and words.startswith(("model", "The model"))
    assert type(error) is (ModelMissing if unknown_model else Rejected)
    assert error.status == answer.status
    assert error.temporary is (answer.status >= 500)
    assert error.provider == "there" and str(error).startswith("provider there: ")
    assert " ".join(words.split())[:80] in str(error)
    assert "\n" not in str(error) and "127.0.0.1" not in str(error)
    assert ("api_key_env" in str(error)) is (answer.status == 401)


@pytest.mark.parametrize("name", [n for n in NAMES if n.split("/")[-1] in FACTS])
@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai"])
@pytest.mark.parametrize("stream", [True, False])
def test_what_is_no_answer_is_a_bad_answer(name: str, kind: str, stream: bool) -> None:
    with pytest.raises(BadAnswer, match="provider there"):
        send(name, recorded(name), kind=kind, stream=stream)


@pytest.mark.parametrize("name", STREAMS)
def test_stream_without_its_end(name: str) -> None:
    """All but what ends it: the text arrived, but nothing says that it is whole."""
    lines = recorded(name).body.splitlines(keepends=True)
    ends = ('"done":true', '"stop":true', '"finish_reason":"length"', '"finish_reason":"stop"')
    ends += ("[DONE]",)
    kept = [line for line in lines if not any(end in line.decode() for end in ends)]
    assert len(kept) < len(lines)
    with pytest.raises(BadAnswer, match="stops before its end"):
        send(name, recorded(name, body=b"".join(kept)))


def test_key_goes_out_as_bearer_and_comes_back_in_no_message() -> None:
    key = "k-5f3a9c"
    echo = Answer(json.dumps({"error": f"bad key {key} at 127.0.0.1"}).encode(), 401)

    async def talk(server: Replay) -> tuple[Asked, str, str]:
        sender = provider("openai", server.url, key)
        with pytest.raises(Rejected) as caught:
            await ask(sender)
        shown = f"{sender!r} {vars(sender)!r} {sender.client._transport!r}"
        return server.asked[0], f"{caught.value} {caught.value!r}", shown

    asked, message, shown = replay(echo, talk)
    assert asked.headers["authorization"] == f"Bearer {key}"
    assert key not in message + shown
    assert "127.0.0.1" not in message
    assert "bad key …" in message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("7", 7.0), ("1.5", 1.5), ("0", 0.0), (" 3600", 3600.0), ("9" * 400, None)),
        *(("soon", None), ("²", None), ("", None), ("-1", None), ("nan", None), ("1e9", None)),
        ("Thu, 26 Nov 2026 10:00:30 GMT", 30.0),
        ("Thu, 26 Nov 2026 12:00:30 +0200", 30.0),
        ("Thursday, 26-Nov-26 10:01:00 GMT", 60.0),
        ("Thu, 26 Nov 2026 09:00:00 GMT", 0.0),  # past
        ("Thu, 99 Nov 2026 09:00:00 GMT", None),
    ],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    """A date is told by the server's own clock, whatever ours says."""
    headers = {"retry-after": header, "date": "Thu, 26 Nov 2026 10:00:00 GMT"}
    answer = Answer(b'{"error": "busy"}', 503, headers)
    with pytest.raises(Rejected) as caught:
        send("ollama/chat_stream", answer)
    assert caught.value.retry_after_s == seconds


# --- marks -----------------------------------------------------------------------------------


def test_cold_and_warm_connection() -> None:
    async def talk(server: Replay) -> tuple[list[dict[str, float]], int]:
        sender = provider("ollama", server.url)
        marks = []
        for _ in range(3):
            exchange = Exchange(clock)
            await sender.send(Prompt(0, "x"), exchange)
            in_order(exchange.marks)
            marks.append(exchange.marks)
        await sender.aclose()
        return marks, server.connections

    (cold, *warm), connections = replay(recorded("ollama/chat_stream"), talk)
    every = {f"{event}_ms" for event in (*ORDER, "end")}
    assert cold.keys() == every
    for marks in warm:
        assert marks.keys() == every - {"connect_start_ms", "connected_ms"}
    assert connections == 1


@pytest.mark.parametrize("kind", ["llama-server", "openai"])
@pytest.mark.parametrize(("stream", "connections"), [(True, 3), (False, 1)])
def test_no_connection_of_llama_server_is_used_after_a_stream(
    kind: str, stream: bool, connections: int
) -> None:
    """The real server closes it then, unannounced: the next request would be lost."""

    async def talk(server: Replay) -> int:
        sender = provider(kind, server.url, stream=stream)
        await sender.describe()
        for _ in range(3):
            await sender.send(Prompt(0, "x"), Exchange(clock))
        await sender.aclose()
        return server.connections

    chat = recorded("llama-server/chat_stream" if stream else "llama-server/chat")
    assert replay(LLAMA | {"/v1/chat/completions": chat}, talk) == connections


def test_empty_chunks_are_no_tokens() -> None:
    role, empty, word = (
        {"choices": [{"delta": d}]}
        for d in ({"role": "assistant"}, {"content": ""}, {"content": "Hi"})
    )
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    for chunks in ([role, empty, word, end], [role, empty, end]):
        text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
        exchange = send("vllm/chat_stream", Answer(text.encode()))
        words = ["Hi"] if word in chunks else []
        assert (exchange.pieces, len(exchange.token_ms)) == (words, len(words))
        assert exchange.finished and ("first_token_ms" in exchange.marks) == bool(words)
        in_order(exchange.marks)


def test_marks_of_a_failure_stay() -> None:
    exchange = Exchange(clock)

    first = recorded("ollama/chat_stream").body.split(b"\n")[0] + b"\n"
    hang = Answer(first, ending="hang")

    async def talk(server: Replay) -> None:
        sender = provider("ollama", server.url, request_timeout_s=0.3)
        with pytest.raises(TimedOut, match="request_timeout_s"):
            await sender.send(Prompt(0, "x"), exchange)
        await sender.aclose()

    replay(hang, talk)
    assert exchange.pieces == ["I"] and not exchange.finished
    assert exchange.marks.keys() == {f"{event}_ms" for event in (*ORDER[:-1], "end")}
    in_order(exchange.marks)


# --- what is asked ---------------------------------------------------------------------------


VLLM = facts_of("vllm", "version", "health") | {"/v1/models": recorded("vllm/models")}


def test_unknown_servers_get_no_foreign_options() -> None:
    models = recorded("ollama/v1_models")
    answers = {"/v1/models": models, "/v1/completions": recorded("ollama/v1_completions")}

    async def talk(server: Replay) -> Any:
        # The way clients of OpenAI write an address, and a name as Ollama's users write it.
        sender = provider("openai", f"{server.url}/v1/", api="completion", stream=False)
        facts = await sender.describe()
        assert (facts.fixed_length, facts.cache_defeated, facts.server) == (False, False, None)
        await ask(sender)
        return server.asked[-1].body

    body = replay(answers, talk)
    assert body.keys() == {"model", "max_tokens", "temperature", "seed", "stream", "prompt"}


# --- who it is -------------------------------------------------------------------------------


# Without what tells of a model's file: then its manifest is its digest.
BARE = {path: answer for path, answer in OLLAMA.items() if path != "/api/show"}


DIGEST = "ollama:fd5f44c0b5aff6453726119fc560d73a8a995a55b4a49804bc24b1969ecf1794"
LIKE_LLAMA = {"model": "smollm2", "digest": "llama:134515008/96576768/Q4_1", "slots": 2}
LIKE_LLAMA |= {"server": "llama-server b1-7e4c0a9", "context_tokens": 1024, "reports_time": True}
LIKE_LLAMA |= {"fixed_length": True, "cache_defeated": True, "keeps_streams": False}
LIKE_OLLAMA = {"digest": DIGEST, "server": "Ollama 0.33.0-rc2", "context_tokens": 2048}
LIKE_OLLAMA |= {"slots": 4, "capacity": 2, "reports_time": True, "keeps_streams": True}
LIKE_VLLM = {"server": "vLLM 0.32.0", "context_tokens": 1024, "fixed_length": True}
LIKE_VLLM |= {"cache_defeated": True, "keeps_streams": True}


@pytest.mark.parametrize(
    ("kind", "answers", "asked_for", "facts"),
    [
        ("ollama", BARE, {"model": "smollm2", "slots": 4, "capacity": 2}, LIKE_OLLAMA),
        ("ollama", BARE, {"model": "smollm2:latest", "slots": 4, "capacity": 2}, LIKE_OLLAMA),
        ("llama-server", LLAMA, {"model": "smollm2"}, LIKE_LLAMA),
        ("llama-server", LLAMA, {"model": None}, LIKE_LLAMA),
        ("openai", VLLM, {"model": "smollm2-135m"}, LIKE_VLLM),
    ],
)
def test_describe(
    kind: str, answers: dict[str, Answer], asked_for: dict[str, Any], facts: dict[str, Any]
) -> None:
    expected = {"name": "there", "kind": kind, "role": "local", **asked_for, **facts}
    assert describe(kind, answers, **asked_for) == ProviderFacts(**expected)


def test_a_model_named_by_its_file_keeps_its_folder_private() -> None:
    body = recorded("llama-server/models").body.replace(b'"smollm2"', b'"/srv/anna/tiny.gguf"')
    answers = LLAMA | {"/v1/models": Answer(body)}
    assert describe("llama-server", answers, model=None).model == "tiny.gguf"


@pytest.mark.parametrize(
    "hidden", [Answer(b'{"error": {"message": "not supported"}}', 501), Answer(b"<html>")]
)
def test_llama_server_may_hide_its_props(hidden: Answer) -> None:
    facts = describe("llama-server", LLAMA | {"/props": hidden}, slots=3)
    assert (facts.slots, facts.context_tokens, facts.server) == (3, None, "llama-server")


@pytest.mark.parametrize(
    ("kind", "answers", "there"),
    [
        ("ollama", BARE, "smollm2-t1:latest, smollm2:latest"),
        ("llama-server", LLAMA, "smollm2"),
        ("openai", VLLM, "smollm2-135m"),
        ("ollama", BARE | {"/api/tags": Answer(b'{"models": null}')}, "none"),
    ],
)
def test_a_missing_model_is_told_with_what_is_there(
    kind: str, answers: dict[str, Answer], there: str
) -> None:
    with pytest.raises(ModelMissing, match=f"no model nope(:latest)?; it has: .*{there}"):
        describe(kind, answers, model="nope")


def test_a_server_that_is_still_loading() -> None:
    body = b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}'
    with pytest.raises(Rejected, match="still loading: Loading model") as caught:
        describe("llama-server", LLAMA | {"/health": Answer(body, 503)})
    assert caught.value.temporary and caught.value.status == 503


@pytest.mark.parametrize("kind", ["ollama", "llama-server", "openai"])
@pytest.mark.parametrize("body", [b"Ollama is running", b"[]", b'{"data": 5, "models": 5}'])
def test_a_server_of_another_kind(kind: str, body: bytes) -> None:
    paths = ["/api/version", "/api/tags", "/health", "/v1/models", "/props"]
    with pytest.raises((BadAnswer, ModelMissing), match="provider there"):
        describe(kind, dict.fromkeys(paths, Answer(body)))


@pytest.mark.parametrize("name", ["ollama/ps_loaded", "ollama/ps_np4", "ollama/ps_nothing_loaded"])
def test_what_is_loaded_is_read_like_what_is_there(name: str) -> None:
    """`/api/ps` has the shape of `/api/tags`: the same digest proves the same weights."""
    answers = BARE | {"/api/tags": recorded(name)}
    if "nothing" in name:
        with pytest.raises(ModelMissing):
            describe("ollama", answers)
    else:
        assert describe("ollama", answers).digest == describe("ollama", BARE).digest


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_probe_is_a_round_trip_on_a_warm_connection(kind: str) -> None:
    async def talk(server: Replay) -> tuple[Probe | None, Probe | None, int, int]:
        sender = provider(kind, server.url)
        first, second = await sender.probe(clock), await sender.probe(clock)
        await sender.aclose()
        return first, second, len(server.asked), server.connections

    first, second, requests, connections = replay(Answer(b"{}"), talk)
    for trip in (first, second):
        assert trip is not None and trip.wire_ms is not None
        assert 0 < trip.wire_ms < trip.round_trip_ms  # the rest is our own work
    assert (requests, connections) == (3, 1)


def test_probe_of_a_server_that_keeps_no_connection() -> None:
    async def talk(server: Replay) -> Probe | None:
        sender = provider("ollama", server.url)
        trip = await sender.probe(clock)
        await sender.aclose()
        return trip

    assert replay(Answer(b"{}", headers={"connection": "close"}), talk) is None


def test_role_follows_the_address_unless_it_is_given() -> None:
    hosts = {"local": ("localhost", "127.0.0.2", "[::1]"), "remote": ("192.168.1.2", "box.lan")}
    for role, names in hosts.items():
        for url in (f"http://{name}:1" for name in names):
            assert provider("ollama", url).role == role
            assert provider("ollama", url, role="remote").role == "remote"
