"""llama.cpp's server: one that somebody runs, or those of the pool on this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar
from urllib.parse import quote

from ..errors import Rejected
from ..records import Exchange, Prompt, ProviderFacts
from .events import Json, add, count_of, short
from .openai import OpenAI, take_timings
from .provider import HINTS, Ports


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
        models, wanted = await self._models(), self.settings.model
        entry: Json = {}
        if models is not None:
            names = [name for m in models for name in (m["id"], *(m.get("aliases") or []))]
            if wanted not in names and (wanted or len(models) != 1):
                raise self._missing(names)
            entry = _entry(models, wanted)
        query = ""
        if "status" in entry:  # a router of several models, which must be told each time
            self.served = entry["id"]
            query = f"?model={quote(entry['id'], safe='')}"
        props = await self._get(f"/props{query}", optional=True)
        if query:  # asking for its properties has loaded it: only now the list tells of it
            entry = _entry(await self._models() or [], self.served)
        meta = entry.get("meta") or {}
        parts = [meta.get(key) for key in ("n_params", "size", "ftype")]
        # Without an alias a model's name is its file's path, which is nobody's business.
        name = short(entry.get("id", "").replace("\\", "/").rpartition("/")[2]) or None
        return self._facts(
            model=wanted or name,
            server=f"llama-server {short(props.get('build_info') or '')}".rstrip(),
            digest="llama:" + short("/".join(map(str, parts))) if None not in parts else None,
            slots=count_of(props, "total_slots") or self.settings.slots,
            context_tokens=count_of(props.get("default_generation_settings") or {}, "n_ctx")
            or None,
            reports_time=True,
            fixed_length=True,
            cache_defeated=True,
        )

    def _request_body(self, prompt: Prompt) -> Json:
        body = super()._request_body(prompt) | {"ignore_eos": True, "cache_prompt": False}
        if self.api == "completion":
            body["n_predict"] = body.pop("max_tokens")
        if not body["model"]:
            del body["model"]
        return body | ({"model": self.served} if self.served else {})

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        if self.api == "chat":
            return super()._take(event, exchange, here_ms)
        if exchange.finished:
            return False
        add(exchange, None, event["content"], here_ms)
        if not event.get("stop"):
            return False
        self._ending(exchange, event.get("stop_type"))
        exchange.prompt_tokens = count_of(event, "tokens_evaluated") or None
        exchange.output_tokens = count_of(event, "tokens_predicted")
        take_timings(event, exchange)
        return True


class Embedded(LlamaServer):
    """A llama-server of the pool on this machine, or several: `ports` says which takes a prompt."""

    ports: Ports | None = None

    @asynccontextmanager
    async def _address(self, exchange: Exchange) -> AsyncIterator[str | None]:
        """A refusal is a busy server's; it comes at once, also where there is a link."""
        if self.ports is None:
            yield None
            return
        with self.ports.take() as url:
            if url is None:
                exchange.mark("start")
                sentence = f"provider {self.name}: HTTP 503{HINTS[503]}: no slot is free"
                raise Rejected(sentence, self.name, 503, retry_after_s=1.0)
            yield url


def _entry(models: list[Json], wanted: str | None) -> Json:
    """What is listed of the model `wanted`, or of the first."""
    mine = (m for m in models if wanted in (None, m["id"], *(m.get("aliases") or [])))
    return next(mine, {})
