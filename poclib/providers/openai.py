"""Servers that speak OpenAI's API, such as vLLM, and llama.cpp's own, run by somebody or by us."""

import hashlib
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

from ..errors import ProviderError, Rejected
from ..records import Exchange, Prompt, ProviderFacts, ServerTimings
from .connection import failed
from .provider import HINTS, Json, Provider, add, count_of, ms_of, part_of, short, total

# Where a server's own times stand, and which: of vLLM, and of llama.cpp, which tells of no queue.
TIMED = {
    "metrics": {
        "queue_ms": "queue_time_ms",
        "prompt_ms": "time_to_first_token_ms",
        "generation_ms": "generation_time_ms",
    },
    "timings": {"prompt_ms": "prompt_ms", "generation_ms": "predicted_ms"},
}
COUNTED = frozenset(("usage", *TIMED))


class OpenAI(Provider):
    """Any OpenAI-compatible server. vLLM's `metrics` and llama.cpp's `timings` are read."""

    paths: ClassVar = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
    # As the many servers of this kind say it. Not `content_filter`: its text was cut.
    whole = frozenset(["stop", "length", "eos", "eos_token", "stop_sequence", "end_turn"])
    whole |= frozenset(["max_tokens", "model_length", "tool_calls", "function_call"])
    probe_path = "/v1/models"
    is_vllm = False

    async def _describe(self) -> ProviderFacts:
        self._check_stays()
        models, model = await self._models(), self.settings.model or ""
        if models is None:
            return self._facts()
        named = {name: m for m in models for name in (m["id"], m["id"].removesuffix(":latest"))}
        if model not in named:
            raise self._missing(list(named))
        owner = named[model].get("owned_by")
        self.is_vllm, self.keeps_streams = owner == "vllm", owner != "llamacpp"
        if not self.is_vllm:
            return self._facts()
        self.probe_path = "/health"
        version = await self._get("/version", optional=True)
        return self._facts(
            server=f"vLLM {short(version.get('version') or '')}".rstrip(),
            context_tokens=count_of(named[model], "max_model_len"),
            fixed_length=True,
            cache_defeated=True,
        )

    async def _models(self) -> list[Json] | None:
        """What the server lists; None where it keeps no list."""
        try:
            return (await self._get("/v1/models")).get("data")
        except ProviderError as error:
            if error.status not in (404, 405, 501):
                raise
            return None

    def _request_body(self, prompt: Prompt) -> Json:
        p, think = self.parameters, self.settings.think
        body: Json = {"model": self.settings.model, "max_tokens": p.max_tokens, "temperature": 0}
        body |= {"seed": p.seed, "stream": p.stream}
        if p.stream:
            body["stream_options"] = {"include_usage": True}
        if isinstance(think, bool):
            body["chat_template_kwargs"] = {"enable_thinking": think}
        elif think:
            body["reasoning_effort"] = think
        if prompt.options is not None:
            return body | self._asked(prompt) | prompt.options
        if self.settings.router_of or self.is_vllm:
            body["ignore_eos"] = True  # a router hands it on to its machines, which are told so
        if self.is_vllm:
            # It shares prefixes by content; a salt keeps each arm to its own. It allows 128
            # characters and not all of them: a digest fits, whatever the salt.
            body["cache_salt"] = hashlib.sha256(prompt.salt.encode()).hexdigest()
        return body | self._asked(prompt)

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        """Whole with its usage, which comes with or after `finish_reason`."""
        for choice in (event.get("choices") or [])[:1]:
            if choice.get("error"):
                raise self._server_error(choice)
            part = choice.get("delta") or choice.get("message") or choice
            thought = part.get("reasoning_content") or part.get("reasoning")
            piece = part.get("content") or part.get("text")
            add(exchange, thought, piece, None if choice.get("message") else here_ms)
            if choice.get("finish_reason"):
                self._ending(exchange, choice["finish_reason"], choice.get("native_finish_reason"))
        return self._count(event, exchange)

    def _count(self, event: Json, exchange: Exchange) -> bool:
        if COUNTED.isdisjoint(event):
            return False
        if usage := part_of(event, "usage"):
            exchange.prompt_tokens = count_of(usage, "prompt_tokens") or exchange.prompt_tokens
            exchange.output_tokens = count_of(usage, "completion_tokens") or exchange.output_tokens
            details = part_of(usage, "prompt_tokens_details")
            exchange.cached_tokens = count_of(details, "cached_tokens")
        for key, told in TIMED.items():
            if part := part_of(event, key):
                parts = {name: ms_of(part, its) for name, its in told.items()}
                exchange.server = ServerTimings(**parts, total_ms=total(*parts.values()))
        if "cache_n" in (timings := part_of(event, "timings")):
            exchange.cached_tokens = count_of(timings, "cache_n")
        return bool(usage and exchange.finish_reason and exchange.output_tokens)


class LlamaServer(OpenAI):
    """llama.cpp's server: cache off, end token ignored; it reports no time in its queue."""

    paths: ClassVar = {"chat": "/v1/chat/completions", "completion": "/completion"}
    whole = OpenAI.whole | {"eos", "word", "limit"}
    probe_path = "/health"
    served: str | None = None  # by a router, the name it knows the model by
    # It closes each connection that carried a stream, without saying so beforehand: a next
    # request on it would race that, and be lost.
    keeps_streams = False

    async def _describe(self) -> ProviderFacts:
        await self._get("/health")
        models, model = await self._models(), self.settings.model
        named, query = _named(models), ""
        if models is not None and model not in named and (model or len(models) != 1):
            raise self._missing([*named])
        entry = named.get(model or next(iter(named), ""), {})
        if "status" in entry:  # a router of several models, which must be told each time
            self.served = entry["id"]
            query = f"?model={quote(entry['id'], safe='')}"
        props = await self._get(f"/props{query}", optional=True)
        if query:  # asking for its properties has loaded it: only now the list tells of it
            entry = _named(await self._models()).get(entry["id"], {})
        meta = entry.get("meta") or {}
        parts = [meta.get(key) for key in ("n_params", "size", "ftype")]
        # Without an alias a model's name is its file's path, which is nobody's business.
        name = short(entry.get("id", "").replace("\\", "/").rpartition("/")[2]) or None
        generation = props.get("default_generation_settings") or {}
        return self._facts(
            model=model or name,
            server=f"llama-server {short(props.get('build_info') or '')}".rstrip(),
            digest="llama:" + short("/".join(map(str, parts))) if None not in parts else None,
            slots=count_of(props, "total_slots") or self.settings.slots,
            context_tokens=count_of(generation, "n_ctx") or None,
            reports_time=True,
            fixed_length=True,
            cache_defeated=True,
        )

    def _request_body(self, prompt: Prompt) -> Json:
        body = super()._request_body(prompt)
        if prompt.options is None:
            body |= {"ignore_eos": True, "cache_prompt": False}
        if self.api == "completion":
            body["n_predict"] = body.pop("max_tokens")
        body["model"] = self.served or body["model"]
        return body if body["model"] else {key: body[key] for key in body if key != "model"}

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        if self.api == "chat":
            return super()._take(event, exchange, here_ms)
        add(exchange, None, event["content"], here_ms)
        if not event.get("stop"):
            return False
        self._ending(exchange, event.get("stop_type"))
        exchange.prompt_tokens = count_of(event, "tokens_evaluated") or None
        exchange.output_tokens = count_of(event, "tokens_predicted")
        self._count(event, exchange)
        return True


def _named(models: list[Json] | None) -> dict[str, Json]:
    """What is listed, by name and by alias; the first of those with one name."""
    listed = reversed(models or [])
    return {name: m for m in listed for name in (m["id"], *(m.get("aliases") or []))}


class Ports(Protocol):
    def take(self) -> AbstractContextManager[str | None]:
        """The address of a process for a prompt, until the block ends; None where it refuses."""


class Embedded(LlamaServer):
    """A llama-server of the pool on this machine, or several: `ports` says which takes a prompt."""

    ports: Ports | None = None

    async def send(self, prompt: Prompt, exchange: Exchange, *_: Any) -> None:
        """A refusal is a busy server's; it comes at once, also where there is a link."""
        if self.ports is None:
            return await super().send(prompt, exchange)
        with self.ports.take() as url:
            if url is None:
                exchange.mark("start")
                exchange.mark("end")
                what = f"HTTP 503{HINTS[503]}: no slot is free"
                raise failed(Rejected, self.name, what, status=503, retry_after_s=1.0)
            return await super().send(prompt, exchange, url)
