"""Speak to one server: Ollama, llama-server, or any that is OpenAI-compatible (vLLM).

The only place that knows a wire format. Each provider maps what its server reports of its
own time to the same fields and leaves None what is not reported. It knows nothing of other
providers, of strategies, or of what a prompt is for.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import urlsplit

from .errors import BadAnswer, ModelMissing, ProviderError, Rejected
from .records import (
    Exchange,
    Parameters,
    Probe,
    Prompt,
    ProviderFacts,
    ProviderSettings,
    ServerTimings,
)
from .transport import Response, TimedClient

Json = dict[str, Any]
# What reading a body of an unforeseen shape raises; pydantic's own error is a ValueError.
SURPRISES = (AttributeError, KeyError, TypeError, ValueError, IndexError)
HINTS = {
    401: ", set api_key_env to the name of the variable that holds its key",
    503: ", busy or still loading",
}


class Ports(Protocol):
    """The addresses of one provider's processes."""

    def take(self) -> AbstractContextManager[str | None]:
        """One to send a prompt to, until the block ends; None where the provider refuses."""


class Provider:
    """One server. `describe` it before use, then `send` prompts and `probe` round trips."""

    paths: ClassVar[Mapping[str, str]]  # by `api`
    probe_path = "/health"
    keeps_streams = True

    def __init__(
        self, settings: ProviderSettings, parameters: Parameters, url: str, key: str | None = None
    ) -> None:
        self.name = settings.name
        self.settings = settings
        self.parameters = parameters
        self.api: Literal["chat", "completion"] = settings.api or "chat"
        self.client = TimedClient(
            settings.name,
            url.rstrip("/").removesuffix("/v1"),  # the way clients of OpenAI write it
            key,
            parameters.connect_timeout_s,
            parameters.request_timeout_s,
            parameters.may_be_public(settings.name),
            settings.ca_file,
        )
        self.role: Literal["local", "remote"] = settings.role or _role(url)

    async def describe(self) -> ProviderFacts:
        """Ask the server who it is. Raises `ModelMissing`, or any other `ProviderError`."""
        try:
            return await self._describe()
        except SURPRISES as error:
            raise self._surprise(error) from None

    async def probe(self, clock: Callable[[], float]) -> Probe | None:
        """How long a tiny request takes on a warm connection.

        A first request warms the connection where none is open, and is not counted; None
        where the server keeps no connection.
        """
        for _ in range(2):
            trip = Exchange(clock)
            async with self.client.request("GET", self.probe_path, exchange=trip) as response:
                await response.body()
            if "connected_ms" not in trip.marks:
                marks = trip.marks
                return Probe(
                    provider=self.name,
                    at_ms=marks["start_ms"],
                    round_trip_ms=marks["last_byte_ms"] - marks["start_ms"],
                    wire_ms=marks["first_byte_ms"] - marks["sent_ms"],
                )
        return None

    async def send(self, prompt: Prompt, exchange: Exchange) -> None:
        """Have `prompt` answered, filling `exchange` as it happens.

        Raises a `ProviderError`; what was marked until then stays in `exchange`.
        """
        path, body = self.paths[self.api], self._request_body(prompt)
        keep = self.keeps_streams or not self.parameters.stream
        try:
            async with (
                self._address(exchange) as url,
                self.client.request("POST", path, body, exchange, keep, url) as response,
            ):
                if response.status != 200:
                    raise self._rejection(response, await response.body())
                async for event in self._events(response):
                    before = len(exchange.pieces)
                    try:
                        self._take(event, exchange)
                    except SURPRISES as error:
                        raise self._surprise(error) from None
                    if self.parameters.stream and len(exchange.pieces) > before:
                        exchange.token_ms.append(exchange.arrival_ms())
                response.mark_end()
            if not exchange.finished:
                raise BadAnswer(
                    f"provider {self.name}: its answer stops before its end; "
                    "did the server stop, or is its kind another?",
                    self.name,
                )
        finally:
            if "end_ms" not in exchange.marks:  # it failed
                exchange.mark("end")
            if exchange.token_ms:
                exchange.marks["first_token_ms"] = exchange.token_ms[0]

    def _address(self, exchange: Exchange) -> AbstractAsyncContextManager[str | None]:
        """Where a prompt is sent, if not to the provider's only address."""
        return nullcontext()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def _events(self, response: Response) -> AsyncIterator[Json]:
        """The JSON objects of an answer: of a whole body, of lines, or of server-sent events."""
        if not self.parameters.stream:
            yield self._parsed(await response.body())
            return
        async for line in response.lines():
            text = line.strip()
            if not text or text.startswith((b":", b"event:", b"id:", b"retry:")):
                continue  # pings are comments, ": …"
            text = text.removeprefix(b"data:").lstrip()
            if text != b"[DONE]":
                yield self._parsed(text)

    def _parsed(self, text: bytes) -> Json:
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise BadAnswer(
                f"provider {self.name}: its answer is not JSON; is its kind "
                f"{self.settings.kind}, and the port right?",
                self.name,
            )
        if event.get("error"):
            words = self._words(event)
            raise Rejected(f"provider {self.name}: error in its answer: {words}", self.name)
        return event

    def _rejection(self, response: Response, body: bytes) -> ProviderError:
        """The error for an HTTP status other than 200, with the server's own words."""
        try:
            words = self._words(json.loads(body))
        except (ValueError, RecursionError):
            words = self._words(body.decode("utf-8", "replace"))
        status = response.status
        if status == 404 and "model" in words and ("not found" in words or "not exist" in words):
            return ModelMissing(
                f"provider {self.name}: {words}; `poc doctor` lists what it has.", self.name, status
            )
        sentence = f"provider {self.name}: HTTP {status}{HINTS.get(status, '')}: {words}"
        wait = response.retry_after or ""
        wait_s = float(wait) if wait.isascii() and wait.isdecimal() else None
        return Rejected(sentence, self.name, status, wait_s)

    def _words(self, body: Any) -> str:
        """An error body's own sentence, on one line and without address or key."""
        error = body.get("error") or body.get("detail") if isinstance(body, dict) else body
        message = error.get("message") if isinstance(error, dict) else error
        return _short(self.client.redacted(str(message or ""))) or "no reason given"

    def _surprise(self, error: Exception) -> BadAnswer:
        return BadAnswer(
            f"provider {self.name}: its answer is not what the kind {self.settings.kind} "
            f"sends ({type(error).__name__}); is its kind right?",
            self.name,
        )

    async def _get(self, path: str, optional: bool = False) -> Json:
        """A JSON object from the server; empty where it has none and `optional`."""
        async with self.client.request("GET", path) as response:
            body = await response.body()
        if optional and (response.status != 200 or not body.startswith(b"{")):
            return {}
        if response.status != 200:
            raise self._rejection(response, body)
        return self._parsed(body)

    def _facts(self, **found: Any) -> ProviderFacts:
        s = self.settings
        common = {"name": s.name, "kind": s.kind, "role": self.role, "capacity": s.capacity}
        return ProviderFacts(**{"model": s.model, "slots": s.slots, **common, **found})

    def _require(self, model: str, there: list[str]) -> None:
        if model not in there:
            names = ", ".join(_short(name) for name in sorted(there)[:8]) or "none"
            sentence = f"provider {self.name}: no model {model}; it has: {names}."
            raise ModelMissing(sentence, self.name)

    def _asked(self, prompt: Prompt) -> Json:
        if self.api == "completion":
            return {"prompt": prompt.text}
        return {"messages": [{"role": "user", "content": prompt.text}]}

    async def _describe(self) -> ProviderFacts:
        raise NotImplementedError

    def _request_body(self, prompt: Prompt) -> Json:
        raise NotImplementedError

    def _take(self, event: Json, exchange: Exchange) -> None:
        """Read one event of an answer into `exchange`; may raise any of `SURPRISES`."""
        raise NotImplementedError


class Ollama(Provider):
    """Ollama's own API. It always caches prompts and cannot ignore the end token.

    `/api/chat`, or `/api/generate` with `raw`: plain `/api/generate` tokenises its context
    after stamping its own time, which would look like network.
    """

    paths: ClassVar = {"chat": "/api/chat", "completion": "/api/generate"}
    probe_path = "/api/version"

    async def _describe(self) -> ProviderFacts:
        version = await self._get("/api/version")
        models = (await self._get("/api/tags")).get("models") or []
        digests = {m["name"]: m["digest"] for m in models}
        wanted = self.settings.model or ""
        name = wanted if ":" in wanted else f"{wanted}:latest"
        self._require(name, list(digests))
        return self._facts(
            server=f"Ollama {_short(version['version'])}",
            digest=f"ollama:{_short(digests[name])}",
            context_tokens=self.parameters.context_tokens,
            reports_time=True,
        )

    def _request_body(self, prompt: Prompt) -> Json:
        p = self.parameters
        body: Json = {
            "model": self.settings.model,
            "stream": p.stream,
            "keep_alive": "15m",
            "options": {
                "num_predict": p.max_tokens,
                "num_ctx": p.context_tokens,
                "temperature": 0,
                "seed": p.seed,
            },
        }
        return body | self._asked(prompt) | ({} if self.api == "chat" else {"raw": True})

    def _take(self, event: Json, exchange: Exchange) -> None:
        said = event["message"] if self.api == "chat" else event
        _add(exchange, said.get("thinking"))
        _add(exchange, said.get("content" if self.api == "chat" else "response"))
        if not event.get("done"):
            return
        exchange.finished = True
        exchange.finish_reason = _short(event.get("done_reason") or "") or None
        exchange.prompt_tokens = _count(event, "prompt_eval_count")
        exchange.output_tokens = _count(event, "eval_count")
        total = _number(event, "total_duration")
        if total is None:
            return
        # Nanoseconds. The server leaves a zero out, so beside a total absent means 0; what
        # no part holds is the wait for a slot (and applying the template).
        parts = [
            _number(event, f"{part}_duration") or 0 for part in ("load", "prompt_eval", "eval")
        ]
        exchange.server = ServerTimings(
            load_ms=parts[0] / 1e6,
            queue_ms=max(0, total - sum(parts)) / 1e6,
            prompt_ms=parts[1] / 1e6,
            generation_ms=parts[2] / 1e6,
            total_ms=total / 1e6,
        )


class OpenAI(Provider):
    """Any OpenAI-compatible server. vLLM's `metrics` and llama.cpp's `timings` are read."""

    paths: ClassVar = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
    probe_path = "/v1/models"
    is_vllm = False

    async def _describe(self) -> ProviderFacts:
        models = (await self._get("/v1/models")).get("data") or []
        mine = {name: m for m in models for name in (m["id"], m["id"].removesuffix(":latest"))}
        model = self.settings.model or ""
        self._require(model, list(mine))
        self.is_vllm = mine[model].get("owned_by") == "vllm"
        self.keeps_streams = mine[model].get("owned_by") != "llamacpp"
        if not self.is_vllm:
            return self._facts()
        self.probe_path = "/health"
        version = await self._get("/version", optional=True)
        return self._facts(
            server=f"vLLM {_short(version.get('version') or '')}".rstrip(),
            context_tokens=_count(mine[model], "max_model_len"),
            fixed_length=True,
            cache_defeated=True,
        )

    def _request_body(self, prompt: Prompt) -> Json:
        p = self.parameters
        body: Json = {
            "model": self.settings.model,
            "max_tokens": p.max_tokens,
            "temperature": 0,
            "seed": p.seed,
            "stream": p.stream,
        }
        if p.stream:
            body["stream_options"] = {"include_usage": True}
        if self.is_vllm:
            # vLLM shares prefixes by content; a salt keeps each arm to its own.
            body |= {"ignore_eos": True, "cache_salt": prompt.salt or "poclib"}
        return body | self._asked(prompt)

    def _take(self, event: Json, exchange: Exchange) -> None:
        for choice in (event.get("choices") or [])[:1]:
            said = choice.get("delta") or choice.get("message") or choice
            _add(exchange, said.get("reasoning_content") or said.get("reasoning"))
            _add(exchange, said.get("content") or said.get("text"))
            if choice.get("finish_reason"):
                exchange.finish_reason = _short(choice["finish_reason"])
                exchange.finished = True
        if usage := event.get("usage"):
            exchange.prompt_tokens = _count(usage, "prompt_tokens")
            exchange.output_tokens = _count(usage, "completion_tokens")
            exchange.cached_tokens = _count(
                usage.get("prompt_tokens_details") or {}, "cached_tokens"
            )
        if metrics := event.get("metrics"):
            queue = _number(metrics, "queue_time_ms")
            first = _number(metrics, "time_to_first_token_ms")
            generation = _number(metrics, "generation_time_ms")
            exchange.server = ServerTimings(
                queue_ms=queue,
                prompt_ms=first,
                generation_ms=generation,
                total_ms=_sum(queue, first, generation),
            )
        _take_timings(event, exchange)


class LlamaServer(OpenAI):
    """llama.cpp's server: cache off, end token ignored; it reports no time in its queue."""

    paths: ClassVar = {"chat": "/v1/chat/completions", "completion": "/completion"}
    probe_path = "/health"
    # It closes each connection that carried a stream, without saying so beforehand: a next
    # request on it would race that, and be lost.
    keeps_streams = False

    async def _describe(self) -> ProviderFacts:
        await self._get("/health")
        models = (await self._get("/v1/models"))["data"]
        names = [name for m in models for name in (m["id"], *(m.get("aliases") or []))]
        if self.settings.model:
            self._require(self.settings.model, names)
        props = await self._get("/props", optional=True)
        meta = models[0].get("meta") or {}
        parts = [meta.get(key) for key in ("n_params", "size", "ftype")]
        return self._facts(
            # Without an alias a model's name is its file's path, which is nobody's business.
            model=self.settings.model or _short(names[0].replace("\\", "/").rpartition("/")[2]),
            server=f"llama-server {_short(props.get('build_info') or '')}".rstrip(),
            digest="llama:" + _short("/".join(map(str, parts))) if None not in parts else None,
            slots=_count(props, "total_slots") or self.settings.slots,
            context_tokens=_count(props.get("default_generation_settings") or {}, "n_ctx"),
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
        return body

    def _take(self, event: Json, exchange: Exchange) -> None:
        if self.api == "chat":
            super()._take(event, exchange)
            return
        _add(exchange, event["content"])
        if event.get("stop"):
            exchange.finished = True
            exchange.finish_reason = _short(event.get("stop_type") or "") or None
            exchange.prompt_tokens = _count(event, "tokens_evaluated")
            exchange.output_tokens = _count(event, "tokens_predicted")
            _take_timings(event, exchange)


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


KINDS: dict[str, type[Provider]] = {
    "embedded": Embedded,
    "llama-server": LlamaServer,
    "ollama": Ollama,
    "openai": OpenAI,
}


def _take_timings(event: Json, exchange: Exchange) -> None:
    """llama.cpp's `timings`, in milliseconds: no queue, so the total is prompt + generation."""
    if timings := event.get("timings"):
        prompt, generation = _number(timings, "prompt_ms"), _number(timings, "predicted_ms")
        if "cache_n" in timings:
            exchange.cached_tokens = _count(timings, "cache_n")
        exchange.server = ServerTimings(
            prompt_ms=prompt, generation_ms=generation, total_ms=_sum(prompt, generation)
        )


def _add(exchange: Exchange, piece: str | None) -> None:
    """Append a piece of text. Half a surrogate pair, which no file could hold, becomes `?`."""
    if piece:
        exchange.pieces.append(piece.encode("utf-8", "replace").decode())


def _number(part: Json, key: str) -> float | None:
    """A duration or count, None where absent. Raises `ValueError` if it cannot be one."""
    value = part.get(key)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < 1e18:
        raise ValueError(key)
    return value  # type: ignore[no-any-return]


def _count(part: Json, key: str) -> int | None:
    value = _number(part, key)
    if isinstance(value, float):
        raise ValueError(key)
    return value


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _short(text: str) -> str:
    """Foreign text on one line, printable, cut at 200 characters. Raises `TypeError` if none."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())[:200]


def _role(url: str) -> Literal["local", "remote"]:
    host = urlsplit(url).hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return "local" if loopback else "remote"
