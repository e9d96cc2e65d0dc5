"""Any OpenAI-compatible server, such as vLLM."""

from __future__ import annotations

import hashlib
from typing import ClassVar

from ..errors import ProviderError
from ..records import Exchange, Prompt, ProviderFacts, ServerTimings
from .events import Json, add, count_of, ms_of, part_of, short, total
from .provider import Provider


class OpenAI(Provider):
    """Any OpenAI-compatible server. vLLM's `metrics` and llama.cpp's `timings` are read."""

    paths: ClassVar = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
    # As the many servers of this kind say it. Not `content_filter`: its text was cut.
    whole = frozenset(["stop", "length", "eos", "eos_token", "stop_sequence", "end_turn"])
    whole |= frozenset(["max_tokens", "model_length", "tool_calls", "function_call"])
    probe_path = "/v1/models"
    is_vllm = False

    async def _describe(self) -> ProviderFacts:
        self._check_stays(False)
        models, model = await self._models(), self.settings.model or ""
        if models is None:
            return self._facts()
        mine = {name: m for m in models for name in (m["id"], m["id"].removesuffix(":latest"))}
        if model not in mine:
            raise self._missing(list(mine))
        self.is_vllm = mine[model].get("owned_by") == "vllm"
        self.keeps_streams = mine[model].get("owned_by") != "llamacpp"
        if not self.is_vllm:
            return self._facts()
        self.probe_path = "/health"
        version = await self._get("/version", optional=True)
        return self._facts(
            server=f"vLLM {short(version.get('version') or '')}".rstrip(),
            context_tokens=count_of(mine[model], "max_model_len"),
            fixed_length=True,
            cache_defeated=True,
        )

    async def _models(self) -> list[Json] | None:
        """The models that the server lists; None where it keeps no list."""
        try:
            return (await self._get("/v1/models")).get("data")
        except ProviderError as error:
            if error.status not in (404, 405, 501):
                raise
            return None

    def _request_body(self, prompt: Prompt) -> Json:
        p, think = self.parameters, self.settings.think
        body: Json = {
            "model": self.settings.model,
            "max_tokens": p.max_tokens,
            "temperature": 0,
            "seed": p.seed,
            "stream": p.stream,
        }
        if p.stream:
            body["stream_options"] = {"include_usage": True}
        if isinstance(think, bool):
            body["chat_template_kwargs"] = {"enable_thinking": think}
        elif think:
            body["reasoning_effort"] = think
        if self.is_vllm:
            # vLLM shares prefixes by content; a salt keeps each arm to its own. It allows 128
            # characters and not all of them: a digest fits, whatever the salt.
            salt = hashlib.sha256(prompt.salt.encode()).hexdigest()
            body |= {"ignore_eos": True, "cache_salt": salt}
        return body | self._asked(prompt)

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        """Whole with its usage, which comes with or after `finish_reason`, or with `[DONE]`.

        `finish_reason` alone is followed by counts and times, which are waited for.
        """
        for choice in () if exchange.finished else (event.get("choices") or [])[:1]:
            if choice.get("error"):
                raise self._told(choice)
            said = choice.get("delta") or choice.get("message") or choice
            thought = said.get("reasoning_content") or said.get("reasoning")
            piece = said.get("content") or said.get("text")
            add(exchange, thought, piece, None if choice.get("message") else here_ms)
            if choice.get("finish_reason"):
                self._ending(exchange, choice["finish_reason"], choice.get("native_finish_reason"))
        usage = part_of(event, "usage")
        if usage:
            exchange.prompt_tokens = count_of(usage, "prompt_tokens") or exchange.prompt_tokens
            exchange.output_tokens = count_of(usage, "completion_tokens") or exchange.output_tokens
            exchange.cached_tokens = count_of(
                part_of(usage, "prompt_tokens_details"), "cached_tokens"
            )
        if metrics := part_of(event, "metrics"):
            queue = ms_of(metrics, "queue_time_ms")
            first = ms_of(metrics, "time_to_first_token_ms")
            generation = ms_of(metrics, "generation_time_ms")
            exchange.server = ServerTimings(
                queue_ms=queue,
                prompt_ms=first,
                generation_ms=generation,
                total_ms=total(queue, first, generation),
            )
        take_timings(event, exchange)
        return bool(usage and exchange.finish_reason and exchange.output_tokens)


def take_timings(event: Json, exchange: Exchange) -> None:
    """llama.cpp's `timings`, in milliseconds: no queue, so the total is prompt + generation."""
    if timings := part_of(event, "timings"):
        prompt, generation = ms_of(timings, "prompt_ms"), ms_of(timings, "predicted_ms")
        if "cache_n" in timings:
            exchange.cached_tokens = count_of(timings, "cache_n")
        exchange.server = ServerTimings(
            prompt_ms=prompt, generation_ms=generation, total_ms=total(prompt, generation)
        )
