"""What each kind sends, against the rules of the real servers, and that these rules refuse."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from pydantic import ValidationError
from replay import LLAMA, OLLAMA, VLLM, Answer, Replay, ask, provider, recorded, replay

from poclib.errors import Rejected
from poclib.parameters import ProviderSettings

CHAT = "/v1/chat/completions"
# By folder of samples: kind, model, what it says of itself, its paths.
SERVERS: dict[str, tuple[str, str, dict[str, Answer], tuple[str, str]]] = {
    "vllm": ("openai", "smollm2-135m", VLLM, (CHAT, "/v1/completions")),
    "llama-server": ("llama-server", "smollm2", LLAMA, (CHAT, "/completion")),
    "ollama": ("ollama", "smollm2", OLLAMA, ("/api/chat", "/api/generate")),
}
CASES = list(product(SERVERS, ("chat", "completion"), (True, False)))
each_case = pytest.mark.parametrize(("server", "api", "stream"), CASES)


def sent(
    server: str,
    api: str = "chat",
    stream: bool = True,
    salt: str = "s/baseline/0",
    text: str = "Why?",
    added: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """What goes out after the server was asked who it is; raises what the strict server refuses."""
    kind, model, facts, (chat, completion) = SERVERS[server]
    name = "generate" if server == "ollama" and api == "completion" else api
    whole = "_nostream" if server == "ollama" else ""
    name += f"_stream{'_usage' if server == 'vllm' else ''}" if stream else whole
    answers = facts | dict.fromkeys((chat, completion), recorded(f"{server}/{name}"))

    async def talk(there: Replay) -> dict[str, Any]:
        asked = {"model": model, "api": api, "stream": stream, **changes}
        sender = provider(kind, there.url, **asked)
        await sender.describe()
        if added:
            plain = sender._request_body
            sender._request_body = lambda prompt: plain(prompt) | added  # type: ignore[method-assign]
        await ask(sender, text, salt)
        assert there.asked[-1].path == (chat if api == "chat" else completion)
        body: dict[str, Any] = there.asked[-1].body
        return body

    return replay(answers, talk, strict=server)


@each_case
def test_the_real_server_would_take_what_is_sent(server: str, api: str, stream: bool) -> None:
    odd = {"max_tokens": 1_000_000, "context_tokens": 10_000_000, "seed": 2**63 - 1}
    if server == "llama-server":
        odd["seed"] = 2**32 - 1
    salt, text = "run/é@\\\0/" * 40, '"\\ \0 \u2028 \U0001f600'
    sent(server, api, stream, salt, text, **odd)


@each_case
def test_equal_work_is_asked_for(server: str, api: str, stream: bool) -> None:
    body = sent(server, api, stream, max_tokens=33, context_tokens=512, seed=11)
    work: dict[str, Any] = {"temperature": 0, "seed": 11}
    expected: dict[str, Any] = {"model": SERVERS[server][1], "stream": stream, "prompt": "Why?"}
    if api == "chat":
        expected["messages"] = [{"role": "user", "content": expected.pop("prompt")}]
    if server == "ollama":
        work |= {"num_predict": 33, "num_ctx": 512}
        expected |= {"keep_alive": "15m", "options": work}
        expected |= {"raw": True} if api == "completion" else {}
    else:
        own = server == "llama-server"
        work |= {"n_predict" if own and api == "completion" else "max_tokens": 33}
        expected |= work | {"ignore_eos": True}
        expected |= {"cache_prompt": False} if own else {"cache_salt": body["cache_salt"]}
        expected |= {"stream_options": {"include_usage": True}} if stream else {}
    assert body == expected


def test_what_is_not_named_is_not_sent_and_unlike_salts_stay_unlike() -> None:
    assert "model" not in sent("llama-server", model=None)
    salts = ["s/baseline/0", "s/strategy/0", "", "@" * 300, "a\\b\0"]
    assert len({sent("vllm", salt=salt)["cache_salt"] for salt in salts}) == len(salts)


@pytest.mark.parametrize("server", SERVERS)
def test_whether_to_think_is_said_the_way_each_server_reads_it(server: str) -> None:
    told = {"think", "chat_template_kwargs", "reasoning_effort"}
    for think in (True, False, "low", "medium", "high", None):  # unset, the server does as it does
        key, value = "reasoning_effort", think
        if server == "ollama":
            key = "think"
        elif isinstance(think, bool):
            key, value = "chat_template_kwargs", {"enable_thinking": think}
        body = sent(server, think=think)
        thinks = {name: body[name] for name in told & body.keys()}
        assert thinks == ({} if think is None else {key: value})


def test_a_completion_has_no_template_to_tell_whether_to_think() -> None:
    with pytest.raises(ValidationError, match="api: chat"):
        ProviderSettings(name="a", api="completion", think=True)


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("vllm", "chat", {"cache_salt": "s/baseline/0"}, "cache_salt"),
    ("vllm", "chat", {"cache_salt": "x" * 129}, "cache_salt"),
    ("vllm", "completion", {"cache_salt": "a\0"}, "cache_salt"),
    ("vllm", "chat", {"stream": False}, "stream"),
    ("vllm", "chat", {"cache_prompt": False}, "cache_prompt"),
    ("vllm", "completion", {"seed": 2**63}, "seed"),
    ("llama-server", "chat", {"max_tokens": 2**31}, "max_tokens"),
    ("llama-server", "completion", {"cache_salt": "x"}, "cache_salt"),
    ("ollama", "chat", {"think": "a lot"}, "think"),
    ("ollama", "chat", {"options": {"num_predict": 4.5}}, "num_predict"),
    ("ollama", "completion", {"options": {"ignore_eos": True}}, "ignore_eos"),
    ("ollama", "completion", {"keep_alive": "a while"}, "keep_alive"),
]


def test_a_strict_server_refuses_what_the_real_one_refuses() -> None:
    """Else the tests above would show nothing: each change alone turns a good request bad."""
    for server, api, added, word in REFUSED:
        with pytest.raises(Rejected, match=f"HTTP 400: .*{word}"):
            sent(server, api, added=added)
