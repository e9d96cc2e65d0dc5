"""Every recorded body, read by the provider it came from, against a reading of our own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import asdict
from replay import (
    LLAMA,
    OLLAMA,
    SAMPLES,
    VLLM,
    Answer,
    Replay,
    ask,
    body,
    clock,
    describe,
    provider,
    recorded,
    replay,
)

from poclib.errors import BadAnswer, ModelMissing, ProviderError, Rejected, TimedOut
from poclib.providers import KINDS, Provider
from poclib.records import Exchange, Prompt, ProviderFacts, RequestMarks

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
    server, *_, last = name.split("/")
    kind = "openai" if server == "vllm" or last.startswith("v1_") else server
    api = "chat" if "chat" in last else "completion"
    return {"kind": kind, "api": api, "stream": name in STREAMS}


def send(name: str, answer: Answer | None = None, **changes: Any) -> Exchange:
    """The exchange when the sample `name` (or `answer` in its place) answers a prompt."""
    wanted = settings_for(name) | changes
    return replay(answer or recorded(name), lambda server: ask(provider(url=server.url, **wanted)))


def by_hand(name: str, body: bytes) -> dict[str, Any]:
    """What a recorded body says, read here on our own: text, counts, ending, and times in ms."""
    lines = body.decode().splitlines() if name in STREAMS else [body.decode()]
    texts = [line.removeprefix("data: ") for line in lines if line]
    events = [json.loads(text) for text in texts if text != "[DONE]"]
    kind, api, _ = settings_for(name).values()
    end, times = events[-1], {}
    if kind == "ollama":
        parts = [e["message"]["content"] if api == "chat" else e["response"] for e in events]
        counts = [end.get("prompt_eval_count"), end.get("eval_count"), end["done_reason"]]
        assert end["done"] is True
        if "total_duration" in end:
            for part, key in (("load", "load"), ("prompt", "prompt_eval"), ("generation", "eval")):
                times[part] = end.get(f"{key}_duration", 0) / 1e6
            times["queue"] = end["total_duration"] / 1e6 - sum(times.values())
    elif (kind, api) == ("llama-server", "completion"):
        parts = [e["content"] for e in events]
        counts = [end["tokens_evaluated"], end["timings"]["predicted_n"], "limit"]
    else:
        choices = [e["choices"][0] for e in events if e["choices"]]
        part = "delta" if name in STREAMS else "message"
        parts = [c[part].get("content") if api == "chat" else c["text"] for c in choices]
        usage = end.get("usage") or {}
        counts = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
        counts += [choices[-1]["finish_reason"]]
    if metrics := end.get("metrics"):
        times = {"queue": metrics["queue_time_ms"], "prompt": metrics["time_to_first_token_ms"]}
        times["generation"] = metrics["generation_time_ms"]
    if own := end.get("timings"):
        times = {"prompt": own["prompt_ms"], "generation": own["predicted_ms"]}
    if times:
        times["total"] = sum(times.values())
    return {"text": "".join(part or "" for part in parts), "counts": counts, "times": times}


def agrees(exchange: Exchange, expected: dict[str, Any]) -> None:
    assert "".join(exchange.pieces) == expected["text"] and exchange.finished
    counts = [exchange.prompt_tokens, exchange.output_tokens, exchange.finish_reason]
    assert counts == expected["counts"]
    times = {key: ms for key, ms in asdict(exchange.server).items() if ms is not None}
    named = {f"{part}_ms": value for part, value in expected["times"].items()}
    assert times == pytest.approx(named, abs=1e-6)


def in_order(marks: dict[str, float]) -> None:
    times = [marks[f"{event}_ms"] for event in (*ORDER, "end") if f"{event}_ms" in marks]
    assert times == sorted(times)
    assert RequestMarks(**marks).end_ms == marks["end_ms"]


def test_every_sample_is_a_case() -> None:
    assert (len(NAMES), len(ANSWERS), len(STREAMS), len(ERRORS)) == (113, 42, 17, 43)


@pytest.mark.parametrize("name", ANSWERS)
def test_recorded_answer_wherever_it_is_cut_into_pieces(name: str) -> None:
    for size in (None, 1, 7, 64) if name in STREAMS else (None,):
        exchange = send(name, recorded(name, pieces=size))
        agrees(exchange, by_hand(name, recorded(name).body))
        in_order(exchange.marks)
        assert len(exchange.token_ms) == (len(exchange.pieces) if name in STREAMS else 0)
        first_ms = exchange.token_ms[0] if name in STREAMS else None
        assert exchange.marks.get("first_token_ms") == first_ms


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
        agrees(exchange, by_hand("ollama/generate_nostream", answer.body))
        assert (exchange.server.total_ms or 0) < row["wall_ms"]
        waits.append(exchange.server.queue_ms or 0)
    # One slot: the last of 8 equal requests waits for 7; four slots: for one of two turns.
    between = {"conc_default_warm": (0.80, 0.95), "conc_np4_warm": (0.40, 0.60)}
    low, high = between.get(name, (0.0, 0.95))
    assert low <= max(waits) / max(row["wall_ms"] for row in rows) <= high


def test_zero_durations_are_left_out_by_ollama() -> None:
    done = {"message": {"content": "x"}, "done": True, "total_duration": 5_000_000}
    server = send("ollama/chat_nostream", Answer(json.dumps(done).encode())).server
    assert (server.load_ms, server.prompt_ms, server.generation_ms) == (0, 0, 0)
    assert (server.queue_ms, server.total_ms) == (5, 5)


CACHED = {f"vllm/{api}": 0 for api in ("chat", "completion")}
CACHED |= {"llama-server/chat_stream": 33, "llama-server/v1_completion": 4}


def test_cached_tokens_are_told_and_stay_where_timings_have_none() -> None:
    for name in (*CACHED, "ollama/v1_chat", "ollama/v1_completions"):
        assert send(name).cached_tokens == CACHED.get(name)
    told = json.loads(recorded("llama-server/v1_completion").body)
    del told["timings"]["cache_n"]
    assert send("llama-server/v1_completion", body(told)).cached_tokens == 4


@pytest.mark.parametrize("name", EMPTY)
def test_recorded_answers_that_are_none(name: str) -> None:
    with pytest.raises(BadAnswer, match=r"its answer (is empty|ended with “(un)?load”)"):
        send(name)


def test_half_a_surrogate_pair_does_not_spoil_the_report() -> None:
    half = Answer(rb'{"message": {"content": "a\ud83d"}, "done": true}')
    assert send("ollama/chat_nostream", half).pieces == ["a?"]


@pytest.mark.parametrize("name", ERRORS)
def test_recorded_error(name: str) -> None:
    answer = recorded(name)
    with pytest.raises(ProviderError) as caught:
        send(name)
    error, words = caught.value, answer.body.decode()
    if words.startswith("{"):
        told = json.loads(words)
        told = told.get("detail") or told["error"]
        words = told["message"] if isinstance(told, dict) else told
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
    ends = (b'"done":true', b'"stop":true', b'"finish_reason":"', b"[DONE]")
    kept = [line for line in lines if not any(end in line for end in ends)]
    assert len(kept) < len(lines)
    with pytest.raises(BadAnswer, match="stops before its end"):
        send(name, recorded(name, body=b"".join(kept)))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed(status: int) -> None:
    async def talk(server: Replay) -> None:
        words = f"HTTP {status}, a redirect, which is not followed; .*: no reason given$"
        for location in ("http://203.0.113.5/", "//box.example/", "http://[::1", "", "/x"):
            server.answers = Answer(b"", status, {"location": location})
            with pytest.raises(Rejected, match=words) as caught:
                await ask(provider("openai", server.url))
            assert caught.value.status == status and not caught.value.temporary
        assert len(server.asked) == 5

    replay(Answer(), talk)


KEY = "k-5f3a9c"


@pytest.mark.parametrize(
    "echo",
    [
        body({"error": f"bad key {KEY} at 127.0.0.1"}, 401),
        body({"detail": [{"loc": [KEY], "msg": "127.0.0.1"}]}),
        Answer(f"error: {KEY}\n\n".encode()),
        body({"message": {"content": "x"}, "done": True, "done_reason": KEY}),
    ],
)
def test_key_goes_out_as_bearer_and_comes_back_in_no_message(echo: Answer) -> None:
    async def talk(server: Replay) -> str:
        sender = provider("ollama", server.url, KEY)
        with pytest.raises(ProviderError, match="…") as caught:
            await ask(sender)
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"
        return f"{caught.value!r} {sender!r} {vars(sender)!r} {sender.client!r}"

    shown = replay(echo, talk)
    assert KEY not in shown and "127.0.0.1" not in shown


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("7", 7.0), ("1.5", 1.5), ("0", 0.0), (" 3600", 3600.0), ("9" * 400, None)),
        *(("soon", None), ("²", None), ("", None), ("-1", None), ("nan", None), ("1e9", None)),
        *((f"Thu, 26 Nov 2026 {time}", 30.0) for time in ("10:00:30 GMT", "12:00:30 +0200")),
        ("Thursday, 26-Nov-26 10:01:00 GMT", 60.0),
        ("Thu, 26 Nov 2026 09:00:00 GMT", 0.0),  # past
        ("Thu, 99 Nov 2026 09:00:00 GMT", None),
    ],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    """A date is told by the server's own clock, whatever ours says."""
    headers = {"retry-after": header, "date": "Thu, 26 Nov 2026 10:00:00 GMT"}
    with pytest.raises(Rejected) as caught:
        send("ollama/chat_stream", body({"error": "busy"}, 503, headers))
    assert caught.value.retry_after_s == seconds


async def several(sender: Provider) -> list[dict[str, float]]:
    """The marks of three requests, one after the other; then close."""
    exchanges = [Exchange(clock) for _ in range(3)]
    for exchange in exchanges:
        await sender.send(Prompt(0, "x"), exchange)
        in_order(exchange.marks)
    await sender.aclose()
    return [exchange.marks for exchange in exchanges]


def test_cold_and_warm_connection() -> None:
    async def talk(server: Replay) -> tuple[list[dict[str, float]], int]:
        return await several(provider("ollama", server.url)), server.connections

    (cold, *warm), connections = replay(recorded("ollama/chat_stream"), talk)
    every = {f"{event}_ms" for event in (*ORDER, "end")}
    assert cold.keys() == every and connections == 1
    assert all(marks.keys() == every - {"connect_start_ms", "connected_ms"} for marks in warm)


@pytest.mark.parametrize("kind", ["llama-server", "openai"])
@pytest.mark.parametrize("stream", [True, False])
def test_no_connection_of_llama_server_is_used_after_a_stream(kind: str, stream: bool) -> None:
    """The real server closes it then, unannounced: the next request would be lost.

    The first goes out on the one that was left warm, and one is opened ahead for each to follow.
    """

    async def talk(server: Replay) -> int:
        sender = provider(kind, server.url, stream=stream)
        await sender.describe()
        await several(sender)
        return server.connections

    chat = recorded("llama-server/chat_stream" if stream else "llama-server/chat")
    assert replay(LLAMA | {"/v1/chat/completions": chat}, talk) == (4 if stream else 1)


def test_marks_of_a_failure_stay() -> None:
    exchange = Exchange(clock)
    first = recorded("ollama/chat_stream").body.split(b"\n")[0] + b"\n"

    async def talk(server: Replay) -> None:
        sender = provider("ollama", server.url, request_timeout_s=0.3)
        with pytest.raises(TimedOut, match="request_timeout_s"):
            await sender.send(Prompt(0, "x"), exchange)
        await sender.aclose()

    replay(Answer(first, ending="hang"), talk)
    assert exchange.pieces == ["I"] and not exchange.finished
    assert exchange.marks.keys() == {f"{event}_ms" for event in (*ORDER[:-1], "end")}
    in_order(exchange.marks)


# Without what tells of a model's file: then its manifest is its digest.
BARE = {path: answer for path, answer in OLLAMA.items() if path != "/api/show"}
OWN = {"model": "smollm2", "slots": 4, "capacity": 2}
ALIKE = {"context_tokens": 1024, "fixed_length": True, "cache_defeated": True}
LIKE_OLLAMA = {"server": "Ollama 0.33.0-rc2", "context_tokens": 2048, "reports_time": True}
LIKE_OLLAMA |= {"digest": "ollama:fd5f44c0b5aff6453726119fc560d73a8a995a55b4a49804bc24b1969ecf1794"}
LIKE_LLAMA = ALIKE | {"model": "smollm2", "digest": "llama:134515008/96576768/Q4_1", "slots": 2}
LIKE_LLAMA |= {"server": "llama-server b1-7e4c0a9", "reports_time": True, "keeps_streams": False}
LIKE_VLLM = ALIKE | {"server": "vLLM 0.32.0"}
NAMED_BY_FILE = recorded("llama-server/models").body.replace(b'"smollm2"', b'"/srv/anna/s.gguf"')
BY_FILE = LLAMA | {"/v1/models": Answer(NAMED_BY_FILE)}  # its folder is nobody's business
HIDDEN = {"slots": None, "context_tokens": None, "server": "llama-server"}
NO_PROPS = [body({"error": {"message": "not supported"}}, 501), Answer(b"<html>")]
# What is loaded has the shape of what is there: the same digest proves the same weights.
LOADED = [{"/api/tags": recorded(f"ollama/ps_{what}")} for what in ("loaded", "np4")]


@pytest.mark.parametrize(
    ("kind", "answers", "asked_for", "facts"),
    [
        ("ollama", BARE, OWN, LIKE_OLLAMA),
        ("ollama", BARE, OWN | {"model": "smollm2:latest"}, LIKE_OLLAMA),
        *(("ollama", BARE | loaded, OWN, LIKE_OLLAMA) for loaded in LOADED),
        *(("llama-server", LLAMA, {"model": model}, LIKE_LLAMA) for model in ("smollm2", None)),
        ("llama-server", BY_FILE, {"model": None}, LIKE_LLAMA | {"model": "s.gguf"}),
        *(("llama-server", LLAMA | {"/props": no}, {}, LIKE_LLAMA | HIDDEN) for no in NO_PROPS),
        ("openai", VLLM, {"model": "smollm2-135m"}, LIKE_VLLM),
    ],
)
def test_describe(
    kind: str, answers: dict[str, Answer], asked_for: dict[str, Any], facts: dict[str, Any]
) -> None:
    expected = {"name": "there", "kind": kind, "role": "local", "keeps_streams": True}
    assert describe(kind, answers, **asked_for) == ProviderFacts(**expected | asked_for | facts)


LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
ELSEWHERE = ["/api/version", "/api/tags", "/health", "/v1/models", "/props"]
NOTHING = [body({"models": None}), recorded("ollama/ps_nothing_loaded")]


@pytest.mark.parametrize(
    ("kind", "answers", "error", "words"),
    [
        ("ollama", BARE, ModelMissing, "it has: smollm2-t1:latest, smollm2:latest"),
        *(("ollama", BARE | {"/api/tags": tags}, ModelMissing, "has: none") for tags in NOTHING),
        ("llama-server", LLAMA, ModelMissing, "it has: smollm2"),
        ("llama-server", LLAMA | {"/health": body(LOADING, 503)}, Rejected, "ing: Loading model"),
        ("openai", VLLM, ModelMissing, "it has: smollm2-135m"),
        *(
            (kind, dict.fromkeys(ELSEWHERE, Answer(text)), (BadAnswer, ModelMissing), "")
            for kind in sorted(KINDS.keys() - {"embedded", "sharded"})
            for text in (b"Ollama is running", b"[]", b'{"data": 5, "models": 5}', b"<html>")
        ),
    ],
)
def test_a_server_that_cannot_be_used_says_why(
    kind: str, answers: dict[str, Answer], error: Any, words: str
) -> None:
    with pytest.raises(error, match=f"provider there: .*{words}") as caught:
        describe(kind, answers, model="nope")
    assert caught.value.temporary is (caught.type is not ModelMissing)


def test_unknown_servers_get_no_foreign_options() -> None:
    answers = {f"/v1/{path}": recorded(f"ollama/v1_{path}") for path in ("models", "completions")}

    async def talk(server: Replay) -> Any:
        sender = provider("openai", server.url, api="completion", stream=False)
        facts = await sender.describe()
        assert (facts.fixed_length, facts.cache_defeated, facts.server) == (False, False, None)
        await ask(sender)
        return server.asked[-1].body

    sent = replay(answers, talk)
    assert sent.keys() == {"model", "max_tokens", "temperature", "seed", "stream", "prompt"}


# A sharded one is spoken to as an embedded one is.
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"sharded"}))
def test_probe_is_a_round_trip_on_a_warm_connection(kind: str) -> None:
    async def talk(server: Replay) -> None:
        sender = provider(kind, server.url)
        for _ in range(2):
            trip = await sender.probe(clock)
            assert trip is not None and trip.wire_ms is not None
            assert 0 < trip.wire_ms < trip.round_trip_ms  # the rest is our own work
        assert (len(server.asked), server.connections) == (3, 1)
        server.answers = Answer(b"{}", headers={"connection": "close"})
        await sender.probe(clock)
        assert await sender.probe(clock) is None
        await sender.aclose()

    replay(Answer(b"{}"), talk)


def test_role_follows_the_address_unless_it_is_given() -> None:
    hosts = {"local": ("localhost", "127.0.0.2", "[::1]"), "remote": ("192.168.1.2", "box.lan")}
    for role, names in hosts.items():
        for url in (f"http://{name}:1" for name in names):
            assert provider("ollama", url).role == role
            assert provider("ollama", url, role="remote").role == "remote"
