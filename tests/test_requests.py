"""What each kind sends, against the rules of the real servers, and that these rules refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from replay import (
    LLAMA,
    OLLAMA,
    Answer,
    Replay,
    ask,
    clock,
    facts_of,
    provider,
    recorded,
    replay,
    rules,
)

from poclib.errors import Rejected
from poclib.parameters import ProviderSettings
from poclib.records import Exchange, Prompt

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
# Kind, api, and whether streamed: the real server's rules, and its own answer.
PATHS = [  # kind, folder of samples, api, its path
    *(("openai", "vllm", *way) for way in (("chat", CHAT), ("completion", COMPLETION))),
    *(("llama-server",) * 2 + way for way in (("chat", CHAT), ("completion", "/completion"))),
    *(("ollama",) * 2 + way for way in (("chat", "/api/chat"), ("completion", "/api/generate"))),
]
ENDS = {"vllm": ("", "_stream_usage"), "llama-server": ("", "_stream")}
ENDS |= {"ollama": ("_nostream", "_stream")}
CASES: dict[str, tuple[str, str, bool, str, dict[str, Answer]]] = {
    f"{server} {api} {'stream' if stream else 'whole'}": (
        *(kind, api, stream, server),
        {
            path: recorded(
                f"{server}/{'generate' if 'generate' in path else api}{ENDS[server][stream]}"
            )
        },
    )
    for stream in (True, False)
    for kind, server, api, path in PATHS
}
FACTS = {
    "vllm": facts_of("vllm", "v1/models", "version", "health"),
    "llama-server": LLAMA,
    "ollama": OLLAMA,
}
MODELS = {"vllm": "smollm2-135m", "llama-server": "smollm2", "ollama": "smollm2"}


def sent(
    case: str, salt: str = "s/baseline/0", text: str = "Why?", **changes: Any
) -> dict[str, Any]:
    """What goes out after the server was asked who it is; raises what the strict server refuses."""
    kind, api, stream, server, answers = CASES[case]

    async def talk(there: Replay) -> dict[str, Any]:
        wanted = {"model": MODELS[server], "api": api, "stream": stream, **changes}
        sender = provider(kind, there.url, **wanted)
        await sender.describe()
        await ask(sender, text, salt)
        body: dict[str, Any] = there.asked[-1].body
        return body

    return replay(FACTS[server] | answers, talk, strict=server)


@pytest.mark.parametrize("case", CASES)
def test_the_real_server_would_take_what_is_sent(case: str) -> None:
    sent(case)
    odd = {"max_tokens": 1_000_000, "context_tokens": 10_000_000, "seed": 2**63 - 1}
    if "llama" in case:
        odd["seed"] = 2**32 - 1
    sent(case, salt="run/é@\\\0/" * 40, text='"\\ \0 \u2028 \U0001f600', **odd)


@pytest.mark.parametrize("case", CASES)
def test_equal_work_is_asked_for(case: str) -> None:
    _, api, stream, server, _ = CASES[case]
    body = sent(case, max_tokens=33, context_tokens=512, seed=11)
    work: dict[str, Any] = {"temperature": 0, "seed": 11}
    expected = {"model": MODELS[server], "stream": stream, "prompt": "Why?"}
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
    assert "model" not in sent("llama-server chat stream", model=None)
    salts = ["s/baseline/0", "s/strategy/0", "", "@" * 300, "a\\b\0"]
    assert len({sent("vllm chat stream", salt)["cache_salt"] for salt in salts}) == len(salts)


@pytest.mark.parametrize("case", [case for case in CASES if "chat" in case])
@pytest.mark.parametrize("think", [True, False, "low", "medium", "high"])
def test_whether_to_think_is_said_the_way_each_server_reads_it(case: str, think: Any) -> None:
    body = sent(case, think=think)
    if "ollama" in case:
        assert body["think"] == think
    elif isinstance(think, bool):
        assert body["chat_template_kwargs"] == {"enable_thinking": think}
    else:
        assert body["reasoning_effort"] == think
    added = {"think", "chat_template_kwargs", "reasoning_effort"}
    assert not sent(case).keys() & added  # unset, the server does as it does


def test_a_completion_has_no_template_to_tell_whether_to_think() -> None:
    with pytest.raises(ValidationError, match="api: chat"):
        ProviderSettings(name="a", api="completion", think=True)


@pytest.mark.parametrize(
    ("server", "path", "changes", "words"),
    [
        ("vllm", CHAT, {"cache_salt": "s/baseline/0"}, "cache_salt"),
        ("vllm", CHAT, {"cache_salt": "x" * 129}, "cache_salt"),
        ("vllm", COMPLETION, {"cache_salt": "a\0"}, "cache_salt"),
        ("vllm", CHAT, {"stream": False}, "stream"),
        ("vllm", CHAT, {"cache_prompt": False}, "cache_prompt"),
        ("vllm", COMPLETION, {"seed": 2**63}, "seed"),
        ("llama-server", CHAT, {"max_tokens": 2**31}, "max_tokens"),
        ("llama-server", "/completion", {"cache_salt": "x"}, "cache_salt"),
        ("ollama", "/api/chat", {"think": "a lot"}, "think"),
        ("ollama", "/api/chat", {"options": {"num_predict": 4.5}}, "num_predict"),
        ("ollama", "/api/generate", {"options": {"ignore_eos": True}}, "ignore_eos"),
        ("ollama", "/api/generate", {"keep_alive": "a while"}, "keep_alive"),
    ],
)
def test_a_strict_server_refuses_what_the_real_one_refuses(
    server: str, path: str, changes: dict[str, Any], words: str
) -> None:
    """Else the tests above would show nothing: each change alone turns a good request bad."""
    api = "completion" if path in (COMPLETION, "/completion", "/api/generate") else "chat"
    kind = "openai" if server == "vllm" else server
    assert path in rules(server)

    async def talk(there: Replay) -> None:
        sender = provider(kind, there.url, api=api)
        sender.is_vllm = server == "vllm"  # type: ignore[attr-defined]
        plain = sender._request_body(Prompt(0, "Why?"))
        body = {**plain, **changes}
        sender._request_body = lambda prompt: body  # type: ignore[method-assign]
        with pytest.raises(Rejected, match=words) as caught:
            await sender.send(Prompt(0, "Why?"), Exchange(clock))
        assert caught.value.status == 400
        await sender.aclose()

    replay({path: Answer()}, talk, strict=server)
