"""Speak to one server: Ollama, llama-server, or any that is OpenAI-compatible (vLLM).

The only place that knows a wire format. Each provider maps what its server reports of its
own time to the same fields and leaves None what is not reported. It knows nothing of other
providers, of strategies, or of what a prompt is for.
"""

from __future__ import annotations

import hashlib
import html
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import quote, urlsplit

from ..errors import BadAnswer, Forbidden, ModelMissing, ParameterError, ProviderError, Rejected
from ..records import (
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
# How long a body may go on after its answer: that is waited for to keep the connection.
LINGER_S = 0.2
# No duration of one request is longer, in milliseconds: a day.
LONGEST_MS = 86_400_000
BOM = b"\xef\xbb\xbf"
# Where servers put what they say of an error, the most telling first.
WORDS = ("error", "errors", "detail", "message", "msg", "reason", "type", "code")
HINTS = {
    401: ", set api_key_env to the name of the variable that holds its key",
    503: ", busy or still loading",
}
# What a url may not end in: poclib adds it.
ENDPOINTS = (
    *("/chat/completions", "/completions", "/completion", "/v1/models", "/health", "/props"),
    *("/api/chat", "/api/generate", "/api/tags", "/api/show", "/api/version"),
)


class Ports(Protocol):
    """The addresses of one provider's processes."""

    def take(self) -> AbstractContextManager[str | None]:
        """One to send a prompt to, until the block ends; None where the provider refuses."""


class Provider:
    """One server. `describe` it before use, then `send` prompts and `probe` round trips."""

    paths: ClassVar[Mapping[str, str]]  # by `api`
    whole: ClassVar[frozenset[str]]  # the endings of an answer that is whole
    probe_path = "/health"
    endpoints: tuple[str, ...] = ENDPOINTS
    keeps_streams = True
    # Whether its bodies go on after their answers end; None: not known yet.
    _lingers: bool | None = None

    def __init__(
        self, settings: ProviderSettings, parameters: Parameters, url: str, key: str | None = None
    ) -> None:
        self.name = settings.name
        self.settings = settings
        self.parameters = parameters
        self.api: Literal["chat", "completion"] = settings.api or "chat"
        base = url.rstrip("/").removesuffix("/v1")  # the way clients of OpenAI write it
        if own := next((path for path in self.endpoints if base.endswith(path)), None):
            raise ParameterError(
                f"provider {self.name}: its url ends in {own}, which is added to it; leave that "
                "out, as in http://192.168.1.20:11434"
            )
        self.client = TimedClient(
            settings.name,
            base,
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
        patience_s = 0.0 if self._lingers else LINGER_S
        try:
            async with (
                self._address(exchange) as url,
                self.client.request("POST", path, body, exchange, keep, url) as response,
            ):
                if response.status != 200:
                    raise self._rejection(response, await response.body())
                over, count = False, 0
                async for event, here_ms, is_event in self._events(response):
                    if over:
                        continue
                    count += 1
                    try:
                        over = event is None
                        ended = event is None or self._take(
                            event, exchange, here_ms if self.parameters.stream else None
                        )
                    except SURPRISES as error:
                        raise self._surprise(error) from None
                    if ended:
                        self._accept(exchange, count == 1 and not is_event)
                        response.mark_end(patience_s)
                if not exchange.finished:
                    if not exchange.finish_reason:
                        raise self._bad(
                            "its answer stops before its end"
                            if count
                            else "its answer is empty, no byte of it came",
                            "did the server stop, or is its kind another?",
                        )
                    self._accept(exchange, count == 1 and not is_event)
                    response.mark_end()
            self._lingers = False
        except ProviderError:
            if not exchange.finished:
                raise
            # What comes after an answer cannot spoil it.
            self._lingers = self._lingers is not False
        finally:
            if "end_ms" not in exchange.marks:  # it failed
                exchange.mark("end")
            for mark, times_ms in (
                ("first_thought_ms", exchange.thought_ms),
                ("first_token_ms", exchange.token_ms),
            ):
                if times_ms:
                    exchange.marks[mark] = times_ms[0]

    def _accept(self, exchange: Exchange, at_once: bool) -> None:
        """Let an answer that has ended be one. Raises `BadAnswer` where nothing was generated.

        One that came `at_once`, though it was asked for as a stream, has no first token.
        """
        if not (exchange.pieces or exchange.thoughts or exchange.output_tokens):
            raise self._bad(
                "its answer is empty: no text, and no token counted",
                "try its model by hand, or look at its log.",
            )
        if not exchange.output_tokens:  # 0 for a text that came is no count
            exchange.output_tokens = None
        if at_once:
            exchange.token_ms.clear()
            exchange.thought_ms.clear()
        exchange.finished = True

    def _address(self, exchange: Exchange) -> AbstractAsyncContextManager[str | None]:
        """Where a prompt is sent, if not to the provider's only address."""
        return nullcontext()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def _events(self, response: Response) -> AsyncIterator[tuple[Json | None, float, bool]]:
        """The JSON objects of an answer, None for `[DONE]`; when each came, whether as an event.

        However they come: as server-sent events, a line each, or one on any number of lines. The
        data of an event is read when it is whole: the blank line that ends it may come later.
        """
        name, data_ms = b"", 0.0
        data: list[bytes] = []  # of an event on many lines
        text: list[bytes] = []  # of one object on many lines
        sse = response.headers.get("content-type", "").startswith("text/event-stream")
        async for raw in response.lines():
            line = raw.strip().removeprefix(BOM)
            field, _, value = line.partition(b":")
            if text:
                text.append(line)
            elif field == b"data":
                sse, value = True, value.strip()
                if value:
                    data_ms = response.here_ms
                if data or name == b"error":
                    data.append(value)
                elif value == b"[DONE]":
                    yield None, data_ms, True
                elif isinstance(found := _loaded(value), dict):
                    yield self._sound(found), data_ms, True
                elif value:
                    data.append(value)
            elif not line:
                if data and (event := self._event(name, b"\n".join(data))) is not None:
                    yield event, data_ms, True
                name, data = b"", []
            elif field == b"event":
                sse, name = True, value.strip()
            elif field == b"error":
                raise self._told(_loaded(value))
            elif field in (b"", b"id", b"retry"):  # pings are comments, ": …"
                sse = True
            elif isinstance(found := _loaded(line), dict):
                yield self._sound(found), response.here_ms, sse
            elif not sse or line.startswith(b"{"):  # a field that is unknown says nothing
                text.append(line)
        if data and (event := self._event(name, b"\n".join(data))) is not None:
            yield event, data_ms, True
        if text:
            yield self._parsed(b"\n".join(text)), response.here_ms, False

    def _event(self, name: bytes, data: bytes) -> Json | None:
        """What a server-sent event on several lines, or of a name, holds of an answer."""
        if name == b"error":
            raise self._told(_loaded(data))
        if name in (b"", b"message"):
            return self._parsed(data)
        found = _loaded(data)
        return self._sound(found) if isinstance(found, dict) else None

    def _parsed(self, text: bytes) -> Json:
        """The JSON object that `text` is, and no error."""
        found = _loaded(text)
        if isinstance(found, dict):
            return self._sound(found)
        known = not isinstance(found, str) or text.lstrip().startswith(b'"')
        # A broken object is no words of the server, and may hold what was asked.
        said = "" if known or text.lstrip().startswith(b"{") else self._words(found)
        raise self._bad(
            f"its answer is {'JSON, but no object' if known else 'not JSON'}"
            + (f" ({said})" if said else ""),
            f"is its kind {self.settings.kind}, and the port right?",
        )

    def _sound(self, event: Json) -> Json:
        """`event` unless it tells an error, in any of the ways in which servers do."""
        if (
            any(event.get(key) for key in ("error", "errors", "detail"))
            or "error" in (event.get("object"), event.get("type"))
            or isinstance(event.get("message"), str)
        ):
            raise self._told(event)
        return event

    def _told(self, body: Any) -> Rejected:
        words = self._words(body)
        return Rejected(f"provider {self.name}: error in its answer: {words}", self.name)

    def _bad(self, what: str, then: str) -> BadAnswer:
        return BadAnswer(f"provider {self.name}: {what}; {then}", self.name)

    def _rejection(self, response: Response, body: bytes) -> ProviderError:
        """The error for an HTTP status other than 200, with the server's own words."""
        words = self._words(_loaded(body))
        status = response.status
        if status == 404 and "model" in words and ("not found" in words or "not exist" in words):
            return ModelMissing(
                f"provider {self.name}: {words}; `poc doctor` lists what it has.", self.name, status
            )
        sentence = f"provider {self.name}: HTTP {status}{HINTS.get(status, '')}: {words}"
        return Rejected(sentence, self.name, status, _wait_s(response.headers))

    def _words(self, body: Any) -> str:
        """An error body's own sentence, on one line and without address or key."""
        return _short(self.client.redacted(_said(body))) or "no reason given"

    def _ending(self, exchange: Exchange, reason: Any, more: Any = None) -> None:
        """Note how an answer ends. Raises `BadAnswer` where that is not as a whole one does."""
        exchange.finish_reason = _short(reason or "") or None
        if exchange.finish_reason and exchange.finish_reason.lower() not in self.whole:
            told = self._words(f"{reason}, {more}" if more else reason)
            raise self._bad(
                f"its answer ended with “{told}”, which no whole one does",
                "its log may say why.",
            )

    def _surprise(self, error: Exception) -> BadAnswer:
        return BadAnswer(
            f"provider {self.name}: its answer is not what the kind {self.settings.kind} "
            f"sends ({type(error).__name__}); is its kind right?",
            self.name,
        )

    async def _get(self, path: str, optional: bool = False, asked: Json | None = None) -> Json:
        """A JSON object from the server; empty where it has none and `optional`.

        What needs to be `asked` goes out as a POST.
        """
        try:
            async with self.client.request("POST" if asked else "GET", path, asked) as response:
                body = await response.body()
        except (BadAnswer, Rejected):  # a page for people, or a redirect to one
            if not optional:
                raise
            return {}
        if optional and (response.status != 200 or not body.startswith(b"{")):
            return {}
        if response.status != 200:
            raise self._rejection(response, body)
        return self._parsed(body)

    def _facts(self, **found: Any) -> ProviderFacts:
        s = self.settings
        common = {"name": s.name, "kind": s.kind, "role": self.role, "capacity": s.capacity}
        common["keeps_streams"] = self.keeps_streams
        return ProviderFacts(**{"model": s.model, "slots": s.slots, **common, **found})

    def _missing(self, there: list[str]) -> ModelMissing:
        names = ", ".join(_short(name) for name in sorted(there)[:8]) or "none"
        if self.settings.model or not there:
            what = f"no model {self.settings.model or 'is there'}; it has: {names}."
        else:
            what = f"it has several models; name one of them as its model: {names}."
        return ModelMissing(f"provider {self.name}: {what}", self.name)

    def _check_stays(self, goes_on: bool) -> None:
        """Raise `Forbidden` where prompts would go on to another machine and may not."""
        cloud = re.search(r"[:-]cloud$", self.settings.model or "", re.IGNORECASE)
        if (goes_on or cloud) and not self.parameters.may_be_public(self.name):
            raise Forbidden(
                f"provider {self.name}: its model runs in Ollama's cloud or at another host, so "
                "prompts would leave this server; choose a model of its own, or set "
                f"allow_public: [{self.name}] in the parameters if that is meant.",
                self.name,
            )

    def _asked(self, prompt: Prompt) -> Json:
        if self.api == "completion":
            return {"prompt": prompt.text}
        return {"messages": [{"role": "user", "content": prompt.text}]}

    async def _describe(self) -> ProviderFacts:
        raise NotImplementedError

    def _request_body(self, prompt: Prompt) -> Json:
        raise NotImplementedError

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        """Read one event into `exchange`; whether the answer is whole with it.

        `here_ms` is when it arrived, where it was streamed. May raise any of `SURPRISES`.
        """
        raise NotImplementedError


class Ollama(Provider):
    """Ollama's own API. It always caches prompts and cannot ignore the end token.

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
        manifest = f"ollama:{_short(mine['digest'])}" if mine.get("digest") else None
        return self._facts(
            server=f"Ollama {_short(version['version'])}",
            digest=None if cloud else _weights(str(shown.get("modelfile"))) or manifest,
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
        if self.settings.think is not None:
            body["think"] = self.settings.think
        return body | self._asked(prompt) | ({} if self.api == "chat" else {"raw": True})

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        if exchange.finished:
            return False
        said = event["message"] if self.api == "chat" else event
        piece = said.get("content" if self.api == "chat" else "response")
        _add(exchange, said.get("thinking"), piece, here_ms)
        if not event.get("done"):
            return False
        self._ending(exchange, event.get("done_reason"))
        exchange.prompt_tokens = _count(event, "prompt_eval_count") or None
        exchange.output_tokens = _count(event, "eval_count")
        if event.get("total_duration") is None:
            return True
        # Nanoseconds. The server leaves a zero out, so beside a total absent means 0; what
        # no part holds is the wait for a slot (and applying the template).
        total = _ms(event, "total_duration", 1e-6)
        keys = [f"{part}_duration" for part in ("load", "prompt_eval", "eval")]
        parts = [_ms(event, key, 1e-6) if key in event else 0.0 for key in keys]
        known = _sum(*parts)
        exchange.server = ServerTimings(
            load_ms=parts[0],
            queue_ms=None if total is None or known is None else max(0.0, total - known),
            prompt_ms=parts[1],
            generation_ms=parts[2],
            total_ms=total,
        )
        return True


class OpenAI(Provider):
    """Any OpenAI-compatible server. vLLM's `metrics` and llama.cpp's `timings` are read."""

    paths: ClassVar = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
    # As the many servers of this kind say it. Not `content_filter`: its text was cut.
    whole = frozenset(
        {
            *("stop", "length", "eos", "eos_token", "stop_sequence", "end_turn", "max_tokens"),
            *("model_length", "tool_calls", "function_call"),
        }
    )
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
            server=f"vLLM {_short(version.get('version') or '')}".rstrip(),
            context_tokens=_count(mine[model], "max_model_len"),
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
            _add(exchange, thought, piece, None if choice.get("message") else here_ms)
            if choice.get("finish_reason"):
                self._ending(exchange, choice["finish_reason"], choice.get("native_finish_reason"))
        usage = _part(event, "usage")
        if usage:
            exchange.prompt_tokens = _count(usage, "prompt_tokens") or exchange.prompt_tokens
            exchange.output_tokens = _count(usage, "completion_tokens") or exchange.output_tokens
            exchange.cached_tokens = _count(_part(usage, "prompt_tokens_details"), "cached_tokens")
        if metrics := _part(event, "metrics"):
            queue = _ms(metrics, "queue_time_ms")
            first = _ms(metrics, "time_to_first_token_ms")
            generation = _ms(metrics, "generation_time_ms")
            exchange.server = ServerTimings(
                queue_ms=queue,
                prompt_ms=first,
                generation_ms=generation,
                total_ms=_sum(queue, first, generation),
            )
        _take_timings(event, exchange)
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
        name = _short(entry.get("id", "").replace("\\", "/").rpartition("/")[2]) or None
        return self._facts(
            model=wanted or name,
            server=f"llama-server {_short(props.get('build_info') or '')}".rstrip(),
            digest="llama:" + _short("/".join(map(str, parts))) if None not in parts else None,
            slots=_count(props, "total_slots") or self.settings.slots,
            context_tokens=_count(props.get("default_generation_settings") or {}, "n_ctx") or None,
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
        _add(exchange, None, event["content"], here_ms)
        if not event.get("stop"):
            return False
        self._ending(exchange, event.get("stop_type"))
        exchange.prompt_tokens = _count(event, "tokens_evaluated") or None
        exchange.output_tokens = _count(event, "tokens_predicted")
        _take_timings(event, exchange)
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


KINDS: dict[str, type[Provider]] = {
    "embedded": Embedded,
    "llama-server": LlamaServer,
    "ollama": Ollama,
    "openai": OpenAI,
}


def _take_timings(event: Json, exchange: Exchange) -> None:
    """llama.cpp's `timings`, in milliseconds: no queue, so the total is prompt + generation."""
    if timings := _part(event, "timings"):
        prompt, generation = _ms(timings, "prompt_ms"), _ms(timings, "predicted_ms")
        if "cache_n" in timings:
            exchange.cached_tokens = _count(timings, "cache_n")
        exchange.server = ServerTimings(
            prompt_ms=prompt, generation_ms=generation, total_ms=_sum(prompt, generation)
        )


def _add(exchange: Exchange, thought: str | None, piece: str | None, here_ms: float | None) -> None:
    """Append what was thought or said. Half a surrogate pair, which no file holds, becomes `?`."""
    for text, texts, times_ms in (
        (thought, exchange.thoughts, exchange.thought_ms),
        (piece, exchange.pieces, exchange.token_ms),
    ):
        if text:
            texts.append(text.encode("utf-8", "replace").decode())
            if here_ms is not None:
                times_ms.append(here_ms)


def _loaded(text: bytes) -> Any:
    """What JSON says, or else the text as it is."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode("utf-8", "replace")


def _said(body: Any, depth: int = 6) -> str:
    """What an error's body says, wherever it puts it; a web page's title."""
    if isinstance(body, list) and depth:
        return "; ".join(filter(None, (_said(one, depth - 1) for one in body[:5])))
    if isinstance(body, dict) and depth:
        said = next(filter(None, (_said(body.get(key), depth - 1) for key in WORDS)), "")
        where = body.get("loc")  # of a validation error
        return f"{'.'.join(map(str, where))}: {said}" if said and isinstance(where, list) else said
    if isinstance(body, str):
        page = body[:10_000] if body.lstrip().startswith("<") else ""
        title = re.search(r"<title[^>]*>([^<]*)", page, re.IGNORECASE)
        return html.unescape(title[1] if title else re.sub("<[^>]*>", " ", page)) or body
    return str(body) if isinstance(body, int | float) and not isinstance(body, bool) else ""


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for: seconds, or a date by the server's own clock."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    try:
        then, now = parsedate_to_datetime(value), datetime.now(UTC)
        if "date" in headers:
            now = parsedate_to_datetime(headers["date"])
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError, OverflowError):  # no date, or one without a zone
        return None


def _part(event: Json, key: str) -> Json:
    """The object at `key`; empty where there is none."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def _ms(part: Json, key: str, unit_ms: float = 1.0) -> float | None:
    """A duration in milliseconds; None where it is absent or cannot be one."""
    value: Any = part.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * unit_ms if number and 0 <= value <= LONGEST_MS / unit_ms else None


def _count(part: Json, key: str) -> int | None:
    """A number of tokens or the like; None where it is absent or cannot be one."""
    value = part.get(key)
    return value if type(value) is int and 0 <= value <= 1_000_000_000 else None


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


def _entry(models: list[Json], wanted: str | None) -> Json:
    """What is listed of the model `wanted`, or of the first."""
    mine = (m for m in models if wanted in (None, m["id"], *(m.get("aliases") or [])))
    return next(mine, {})


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
