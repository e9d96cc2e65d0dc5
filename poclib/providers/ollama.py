"""Ollama's own API."""

from __future__ import annotations

import hashlib
import re
from typing import ClassVar

from ..records import Exchange, Prompt, ProviderFacts, ServerTimings
from .events import Json, add, count_of, ms_of, short, total
from .provider import ENDPOINTS, Provider


class Ollama(Provider):
    """It always caches prompts and cannot ignore the end token.

    `/api/chat`, or `/api/generate` with `raw`: plain `/api/generate` tokenises its context
    after stamping its own time, which would look like network.
    """

    paths: ClassVar = {"chat": "/api/chat", "completion": "/api/generate"}
    whole = frozenset({"stop", "length"})
    probe_path = "/api/version"
    endpoints = (*ENDPOINTS, "/api")

    async def _describe(self) -> ProviderFacts:
        wanted = self.settings.model or ""
        version = await self._get("/api/version")
        models = (await self._get("/api/tags")).get("models") or []
        there = {m.get("name") or m["model"]: m for m in models}
        mine = {_ollama_name(name): m for name, m in there.items()}.get(_ollama_name(wanted))
        self._check_stays(False)
        if mine is None:
            raise self._missing(list(there))
        shown = await self._get("/api/show", optional=True, asked={"model": wanted})
        cloud = any(m.get(key) for m in (mine, shown) for key in ("remote_host", "remote_model"))
        self._check_stays(cloud)
        # The manifest's digest is another with each parameter, and tells nothing of a cloud.
        manifest = f"ollama:{short(mine['digest'])}" if mine.get("digest") else None
        return self._facts(
            server=f"Ollama {short(version['version'])}",
            digest=None if cloud else _weights(str(shown.get("modelfile"))) or manifest,
            context_tokens=self.parameters.context_tokens,
            reports_time=True,
        )

    def _request_body(self, prompt: Prompt) -> Json:
        p = self.parameters
        options = {"num_predict": p.max_tokens, "num_ctx": p.context_tokens}
        options |= {"temperature": 0, "seed": p.seed}
        body: Json = {"model": self.settings.model, "stream": p.stream, "options": options}
        body["keep_alive"] = "15m"
        if self.settings.think is not None:
            body["think"] = self.settings.think
        return body | self._asked(prompt) | ({} if self.api == "chat" else {"raw": True})

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        if exchange.finished:
            return False
        said = event["message"] if self.api == "chat" else event
        piece = said.get("content" if self.api == "chat" else "response")
        add(exchange, said.get("thinking"), piece, here_ms)
        if not event.get("done"):
            return False
        self._ending(exchange, event.get("done_reason"))
        exchange.prompt_tokens = count_of(event, "prompt_eval_count") or None
        exchange.output_tokens = count_of(event, "eval_count")
        if event.get("total_duration") is None:
            return True
        # Nanoseconds. The server leaves a zero out, so beside a total absent means 0; what
        # no part holds is the wait for a slot (and applying the template).
        whole = ms_of(event, "total_duration", 1e-6)
        keys = [f"{part}_duration" for part in ("load", "prompt_eval", "eval")]
        parts = [ms_of(event, key, 1e-6) if key in event else 0.0 for key in keys]
        known = total(*parts)
        exchange.server = ServerTimings(
            load_ms=parts[0],
            queue_ms=None if whole is None or known is None else max(0.0, whole - known),
            prompt_ms=parts[1],
            generation_ms=parts[2],
            total_ms=whole,
        )
        return True


def _ollama_name(name: str) -> tuple[str, ...]:
    """Registry, namespace, model and tag, the way Ollama reads a name: in any case, with defaults.

    A colon before the last slash is a registry's port; the tag `local` says where, not which.
    """
    name = name.strip().lower().removesuffix(":local")
    path, _, tag = name.rpartition(":")
    if not path or "/" in tag:
        path, tag = name, "latest"
    parts = path.rpartition("://")[2].split("/")
    return (*("registry.ollama.ai", "library")[: max(0, 3 - len(parts))], *parts, tag)


def _weights(modelfile: str) -> str | None:
    """What Ollama's blobs of weights are named by: the SHA-256 of a model file (and its adapters).

    None where the text names no blob. Where it lies is nobody's business.
    """
    (first, *others) = re.findall(r"^(FROM|ADAPTER) (.*)", modelfile, re.MULTILINE) or [("", "")]
    lines = [first[1], *(line for word, line in others if word == "ADAPTER")]
    sums = re.findall(r"sha256[-:]([0-9a-f]{64})", "\n".join(lines))
    if len(sums) != len(lines):
        return None
    whole = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return f"gguf:{whole}"
