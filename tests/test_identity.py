"""Who a server is: which weights it holds, which of its models is meant, where prompts would go."""

from __future__ import annotations

import json
from typing import Any

import pytest
from replay import LLAMA, OLLAMA, Answer, Replay, ask, body, describe, provider, recorded, replay

from poclib.errors import Forbidden, ModelMissing, ParameterError, ProviderError, UnlikeProviders
from poclib.measure.calibration import check_alike
from poclib.records import ProviderFacts

WEIGHTS = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# --- Ollama: which weights -------------------------------------------------------------------


def test_equal_weights_are_equal_whatever_the_parameters() -> None:
    """The recorded tags hold two manifests, for `num_thread` is set in one, and one file."""
    plain = describe("ollama", OLLAMA)
    threads = describe(
        "ollama", OLLAMA | {"/api/show": recorded("ollama/show_t1")}, model="smollm2-t1"
    )
    assert plain.digest == threads.digest == f"gguf:{WEIGHTS}"
    # An embedded engine's is the SHA-256 of the same file.
    check_alike([plain, threads.model_copy(update={"name": "other"})])
    other = plain.model_copy(update={"name": "embedded", "digest": f"gguf:{'0' * 64}"})
    with pytest.raises(UnlikeProviders, match="different models"):
        check_alike([plain, other])
    assert "ollama/models" not in plain.model_dump_json()


FROM = f"FROM /home/anna/my models/blobs/sha256-{WEIGHTS}"


@pytest.mark.parametrize(
    ("modelfile", "same"),
    [
        (FROM, True),
        (f"FROM C:\\Users\\anna\\.ollama\\blobs\\sha256-{WEIGHTS}\r\nPARAMETER stop x", True),
        (f"# FROM smollm2:latest\n\nFROM @sha256:{WEIGHTS}\n", True),
        (f'{FROM}\nSYSTEM """\nFROM the start\n"""', True),
        (f"{FROM}\nFROM /x/sha256-{'1' * 64}", True),  # eyes, which no text passes through
        (f"{FROM}\nADAPTER /x/sha256-{'1' * 64}", False),
    ],
)
def test_weights_are_what_from_and_adapters_name(modelfile: str, same: bool) -> None:
    digest = describe("ollama", OLLAMA | {"/api/show": body({"modelfile": modelfile})}).digest
    assert digest is not None and digest.startswith("gguf:") and len(digest) == 69
    assert (digest == f"gguf:{WEIGHTS}") is same


@pytest.mark.parametrize(
    "shown",
    [
        Answer(b"404 page not found", 404),
        Answer(b'{"error": "internal"}', 500),
        Answer(b"<html>", headers={"content-type": "text/html"}),
        Answer(b"", 302, {"location": "/login"}),
        *map(body, ({}, {"modelfile": None}, {"modelfile": 5}, {"modelfile": "FROM smollm2"})),
        body({"modelfile": f"{FROM}\nADAPTER ./lora"}),
    ],
)
def test_where_no_blob_is_named_the_manifest_counts(shown: Answer) -> None:
    tags = json.loads(OLLAMA["/api/tags"].body)
    manifest = next(m["digest"] for m in tags["models"] if m["name"] == "smollm2:latest")
    assert describe("ollama", OLLAMA | {"/api/show": shown}).digest == f"ollama:{manifest}"
    for model in tags["models"]:
        del model["digest"]
    bare = OLLAMA | {"/api/show": shown, "/api/tags": body(tags)}
    assert describe("ollama", bare).digest is None


# --- Ollama: which model ---------------------------------------------------------------------


def listed(*names: str, **fields: Any) -> dict[str, Answer]:
    models = [{"name": name, "model": name, **fields} for name in names]
    return OLLAMA | {"/api/tags": body({"models": models})}


# (listed, asked for, whether a real Ollama 0.33 takes the one for the other)
SPELLINGS = [
    ("smollm2:latest", "SmolLM2", True),
    ("smollm2:latest", "smollm2:LATEST", True),
    ("SmolLM2:latest", "smollm2", True),
    ("smollm2:latest", "library/smollm2", True),
    ("smollm2:latest", "registry.ollama.ai/library/smollm2:latest", True),
    ("smollm2:latest", "https://registry.ollama.ai/library/smollm2", True),
    ("smollm2:latest", "smollm2:local", True),
    ("localhost:5000/x/y:latest", "localhost:5000/x/y", True),
    ("hf.co/Anna/Tiny-GGUF:Q4_0", "hf.co/anna/tiny-gguf:q4_0", True),
    ("smollm2:latest", "smollm2:135m", False),
    ("smollm2:latest", "anna/smollm2", False),
    ("localhost:5000/x/y:latest", "localhost/x/y", False),
    ("localhost:5000/x/y:latest", "x/y", False),
    ("smollm2:latest", "smollm", False),
]


@pytest.mark.parametrize(("there", "asked", "same"), SPELLINGS)
def test_a_model_goes_by_every_name_that_ollama_takes(there: str, asked: str, same: bool) -> None:
    if same:
        assert describe("ollama", listed(there, "other:7b"), model=asked).model == asked
    else:
        with pytest.raises(ModelMissing, match=f"no model {asked}; it has: .*{there}"):
            describe("ollama", listed(there, "other:7b"), model=asked)


# --- where prompts would go ------------------------------------------------------------------

HOST = "https://ollama.com:443"


@pytest.mark.parametrize(
    ("answers", "model"),
    [
        (listed("gpt-oss:120b", remote_host=HOST, remote_model="gpt-oss:120b"), "gpt-oss:120b"),
        (listed("mine", remote_model="gpt-oss:120b"), "mine"),
        (listed("mine") | {"/api/show": body({"remote_host": HOST})}, "mine"),
        (listed("gpt-oss:120b-cloud"), "gpt-oss:120b-cloud"),
        (listed("qwen3:cloud"), "qwen3:Cloud"),
    ],
)
def test_a_model_in_the_cloud_is_a_public_address(answers: dict[str, Answer], model: str) -> None:
    with pytest.raises(Forbidden, match=r"allow_public: \[there\]") as caught:
        describe("ollama", answers, model=model)
    assert "ollama.com" not in str(caught.value) and not caught.value.temporary
    facts = describe("ollama", answers, model=model, allow_public=["there"])
    assert facts.digest is None or "cloud" in model.lower()


def test_over_the_other_api_the_name_tells_and_one_named_after_clouds_is_no_cloud() -> None:
    def models(name: str) -> dict[str, Answer]:
        return {"/v1/models": body({"data": [{"id": name, "owned_by": "library"}]})}

    with pytest.raises(Forbidden, match="allow_public"):
        describe("openai", models("gpt-oss:120b-cloud"), model="gpt-oss:120b-cloud")
    assert describe("openai", models("anna/cloud"), model="anna/cloud").model == "anna/cloud"
    assert describe("ollama", listed("cloud:7b"), model="cloud:7b").model == "cloud:7b"


# --- llama-server: a router, a bare list, none -----------------------------------------------


def entry(name: str, size: int | None = None, **fields: Any) -> dict[str, Any]:
    meta = {"meta": {"n_params": size, "size": 4, "ftype": "Q4_1"}} if size else {}
    return {"id": name, "aliases": [], "owned_by": "llamacpp", **meta, **fields}


def router(*entries: dict[str, Any]) -> dict[str, Answer]:
    """As llama-server is without a model of its own; asked for a model's properties it loads it."""
    data = [
        {**one, "status": {"value": "loaded" if "meta" in one else "unloaded"}} for one in entries
    ]
    own = {"role": "router", "default_generation_settings": {"n_ctx": 0}, "build_info": "b1-x"}
    ctx = {"default_generation_settings": {"n_ctx": 512}, "total_slots": 4, "build_info": "b1-x"}
    return LLAMA | {
        "/v1/models": body({"data": data}),
        "/props": body(own),
        "/props?model=org%2Fsecond%3AQ4": body(ctx),
        "/v1/chat/completions": recorded("llama-server/chat_stream"),
    }


FIRST, SECOND = entry("first", 10), entry("org/second:Q4", 20, aliases=["two"])


def test_a_router_asks_which_of_its_models() -> None:
    with pytest.raises(ModelMissing, match=r"name one of them as its model: first, org/second:Q4"):
        describe("llama-server", router(FIRST, entry("org/second:Q4")), model=None)
    with pytest.raises(ModelMissing, match="no model third; it has: first"):
        describe("llama-server", router(FIRST), model="third")
    for model in ("org/second:Q4", "two"):  # its own entry counts
        facts = describe("llama-server", router(FIRST, SECOND), model=model)
        assert (facts.digest, facts.context_tokens, facts.slots) == ("llama:20/4/Q4_1", 512, 4)
        assert facts.model == model
    first = describe("llama-server", router(FIRST, SECOND), model="first")
    assert (first.digest, first.context_tokens) == ("llama:10/4/Q4_1", None)


def test_a_router_of_one_model_is_told_its_name_each_time() -> None:
    async def talk(server: Replay) -> tuple[ProviderFacts, Any]:
        sender = provider("llama-server", server.url, model=None)
        facts = await sender.describe()
        await ask(sender)
        return facts, server.asked[-1].body["model"]

    facts, told = replay(router(SECOND), talk)
    assert told == "org/second:Q4" and facts.model == "second:Q4"
    assert facts.digest == "llama:20/4/Q4_1"


@pytest.mark.parametrize("kind", ["llama-server", "openai"])
@pytest.mark.parametrize("status", [404, 405, 501])
def test_without_a_list_of_models_the_one_given_is_taken(kind: str, status: int) -> None:
    for bare in (Answer(b'{"error": {"message": "none"}}', status), body({}), body({"data": None})):
        facts = describe(kind, LLAMA | {"/v1/models": bare}, model="smollm2")
        assert (facts.model, facts.digest) == ("smollm2", None)
    with pytest.raises(ProviderError, match="HTTP 401"):
        describe(kind, LLAMA | {"/v1/models": Answer(b"{}", 401)})
    with pytest.raises(ModelMissing, match="it has: none"):
        describe(kind, LLAMA | {"/v1/models": body({"data": []})})


# --- an address that cannot be right ---------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("ollama", "/api/chat"),
        ("ollama", "/api/"),
        ("openai", "/v1/chat/completions"),
        ("openai", "/v1/models/"),
        ("llama-server", "/completion"),
        ("llama-server", "/health"),
    ],
)
def test_an_endpoints_own_path_is_no_address(kind: str, path: str) -> None:
    with pytest.raises(ParameterError, match=r"its url ends in /.*leave that out"):
        provider(kind, f"http://192.168.1.20:8000{path}")


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/team/llm/v1", "/api/v1"])
def test_a_server_may_lie_under_a_path(path: str) -> None:
    async def talk(server: Replay) -> str:
        sender = provider("openai", server.url + path)
        await ask(sender)
        return server.asked[-1].path

    base = path.rstrip("/").removesuffix("/v1")
    asked = replay(recorded("vllm/chat_stream"), talk)
    assert asked == f"{base}/v1/chat/completions"
