"""Ollama's own API."""

import hashlib
import re
from typing import ClassVar

from ..records import Exchange, Prompt, ProviderFacts, ServerTimings
from .provider import ENDPOINTS, Json, Provider, add, count_of, ms_of, short, total


class Ollama(Provider):
    """It always caches prompts and cannot ignore the end token."""

    # The latter with `raw`: else it tokenises after stamping its time, which looks like network.
    paths: ClassVar = {"chat": "/api/chat", "completion": "/api/generate"}
    whole = frozenset({"stop", "length"})
    probe_path = "/api/version"
    endpoints = f"{ENDPOINTS} /api"

    async def _describe(self) -> ProviderFacts:
        model = self.settings.model or ""
        version = await self._get("/api/version")
        models = (await self._get("/api/tags")).get("models") or []
        listed = {m.get("name") or m["model"]: m for m in models}
        entry = {_full_name(name): m for name, m in listed.items()}.get(_full_name(model))
        if entry is None:
            raise self._missing(list(listed))
        shown = await self._get("/api/show", optional=True, asked={"model": model})
        cloud = any(m.get(key) for m in (entry, shown) for key in ("remote_host", "remote_model"))
        self._check_stays(cloud)
        # The manifest's digest is another with each parameter, and tells nothing of a cloud.
        manifest = f"ollama:{short(entry['digest'])}" if entry.get("digest") else None
        return self._facts(
            server=f"Ollama {short(version['version'])}",
            digest=None if cloud else _weights(str(shown.get("modelfile"))) or manifest,
            context_tokens=self.parameters.context_tokens,
            reports_time=True,
        )

    def _request_body(self, prompt: Prompt) -> Json:
        p, think = self.parameters, self.settings.think
        options: Json = {"num_ctx": p.context_tokens}
        options |= {"temperature": 0, "seed": p.seed, **(prompt.options or {})}
        options["num_predict"] = options.pop("max_tokens", p.max_tokens)
        body: Json = {"model": self.settings.model, "stream": p.stream, "options": options}
        body |= {"keep_alive": "15m"} | self._asked(prompt)
        body |= {"raw": True} if self.api == "completion" else {}
        return body if think is None else body | {"think": think}

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        part = event["message"] if self.api == "chat" else event
        piece = part.get("content" if self.api == "chat" else "response")
        add(exchange, part.get("thinking"), piece, here_ms)
        if not event.get("done"):
            return False
        self._ending(exchange, event.get("done_reason"))
        exchange.prompt_tokens = count_of(event, "prompt_eval_count") or None
        exchange.output_tokens = count_of(event, "eval_count")
        if event.get("total_duration") is not None:
            exchange.server = _timings(event)
        return True


def _timings(event: Json) -> ServerTimings:
    """In nanoseconds, zeros left out. What no part holds is the wait for a slot."""
    whole = ms_of(event, "total_duration", 1e-6)
    keys = [f"{part}_duration" for part in ("load", "prompt_eval", "eval")]
    load, prompt, generation = (ms_of(event, k, 1e-6) if k in event else 0.0 for k in keys)
    known = total(load, prompt, generation)
    queue = None if whole is None or known is None else max(0.0, whole - known)
    return ServerTimings(
        load_ms=load, queue_ms=queue, prompt_ms=prompt, generation_ms=generation, total_ms=whole
    )


def _full_name(name: str) -> tuple[str, ...]:
    """Registry, namespace, model and tag, as Ollama reads a name: in any case, with defaults."""
    # The tag `local` says where, not which; a colon before the last slash is a registry's port.
    name = name.strip().lower().removesuffix(":local")
    path, _, tag = name.rpartition(":")
    if not path or "/" in tag:
        path, tag = name, "latest"
    parts = path.rpartition("://")[2].split("/")
    return (*("registry.ollama.ai", "library")[: max(0, 3 - len(parts))], *parts, tag)


def _weights(modelfile: str) -> str | None:
    """The SHA-256 of a model file and its adapters, by which blobs are named; None without any."""
    (first, *others) = re.findall(r"^(FROM|ADAPTER) (.*)", modelfile, re.MULTILINE) or [("", "")]
    lines = [first[1], *(line for word, line in others if word == "ADAPTER")]
    sums = re.findall(r"sha256[-:]([0-9a-f]{64})", "\n".join(lines))
    if len(sums) != len(lines):
        return None
    whole = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return f"gguf:{whole}"
