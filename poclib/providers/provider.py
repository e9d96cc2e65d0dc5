"""One server that answers prompts: what every kind of provider does alike.

Asks it who it is, sends it prompts, probes the way to it. Knows nothing of other providers, of
strategies, or of what a prompt is for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, Protocol
from urllib.parse import urlsplit

from ..errors import BadAnswer, Forbidden, ModelMissing, ParameterError, ProviderError, Rejected
from ..parameters import Parameters, ProviderSettings
from ..records import Exchange, Probe, Prompt, ProviderFacts
from .events import SURPRISES, Json, loaded, short, wait_s, words_of
from .transport import Response, TimedClient

# How long a body may go on after its answer: that is waited for to keep the connection.
LINGER_S = 0.2
BOM = b"\xef\xbb\xbf"
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
        limits_s = parameters.connect_timeout_s, parameters.request_timeout_s
        public = parameters.may_be_public(self.name)
        self.client = TimedClient(self.name, base, key, *limits_s, public, settings.ca_file)
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
        streamed = self.parameters.stream
        keep = self.keeps_streams or not streamed
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
                    over = event is None
                    try:
                        ended = event is None or self._take(
                            self._sound(event), exchange, here_ms if streamed else None
                        )
                    except SURPRISES as error:
                        raise self._surprise(error) from None
                    if ended:
                        self._accept(exchange, count == 1 and not is_event)
                        response.mark_end(patience_s)
                if not exchange.finished:
                    if not exchange.finish_reason:
                        what = "stops before its end" if count else "is empty, no byte of it came"
                        raise self._bad(
                            f"its answer {what}", "did the server stop, or is its kind another?"
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
            if exchange.thought_ms:
                exchange.marks["first_thought_ms"] = exchange.thought_ms[0]
            if exchange.token_ms:
                exchange.marks["first_token_ms"] = exchange.token_ms[0]

    def _accept(self, exchange: Exchange, at_once: bool) -> None:
        """Let an answer that has ended be one. Raises `BadAnswer` where nothing was generated.

        One that came `at_once`, though it was asked for as a stream, has no first token.
        """
        if not (exchange.pieces or exchange.thoughts or exchange.output_tokens):
            what = "its answer is empty: no text, and no token counted"
            raise self._bad(what, "try its model by hand, or look at its log.")
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
                elif isinstance(found := loaded(value), dict):
                    yield found, data_ms, True
                elif value:
                    data.append(value)
            elif not line:
                if data and (event := self._event(name, b"\n".join(data))) is not None:
                    yield event, data_ms, True
                name, data = b"", []
            elif field == b"event":
                sse, name = True, value.strip()
            elif field == b"error":
                raise self._told(loaded(value))
            elif field in (b"", b"id", b"retry"):  # pings are comments, ": …"
                sse = True
            elif isinstance(found := loaded(line), dict):
                yield found, response.here_ms, sse
            elif not sse or line.startswith(b"{"):  # a field that is unknown says nothing
                text.append(line)
        if data and (event := self._event(name, b"\n".join(data))) is not None:
            yield event, data_ms, True
        if text:
            yield self._parsed(b"\n".join(text)), response.here_ms, False

    def _event(self, name: bytes, data: bytes) -> Json | None:
        """What a server-sent event on several lines, or of a name, holds of an answer."""
        if name == b"error":
            raise self._told(loaded(data))
        if name in (b"", b"message"):
            return self._parsed(data)
        found = loaded(data)
        return found if isinstance(found, dict) else None

    def _parsed(self, text: bytes) -> Json:
        """The JSON object that `text` is. Raises `BadAnswer` where it is none."""
        found = loaded(text)
        if isinstance(found, dict):
            return found
        known = not isinstance(found, str) or text.lstrip().startswith(b'"')
        # A broken object is no words of the server, and may hold what was asked.
        said = "" if known or text.lstrip().startswith(b"{") else self._words(found)
        what = f"{'JSON, but no object' if known else 'not JSON'}{f' ({said})' if said else ''}"
        raise self._bad(
            f"its answer is {what}", f"is its kind {self.settings.kind}, and the port right?"
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
        words = self._words(loaded(body))
        status = response.status
        lacks_it = "not found" in words or "not exist" in words
        if status in (400, 404) and "model" in words and lacks_it:
            return ModelMissing(
                f"provider {self.name}: {words}; `poc doctor` lists what it has.", self.name, status
            )
        sentence = f"provider {self.name}: HTTP {status}{HINTS.get(status, '')}: {words}"
        return Rejected(sentence, self.name, status, wait_s(response.headers))

    def _words(self, body: Any) -> str:
        """An error body's own sentence, on one line and without address or key."""
        return short(self.client.redacted(words_of(body))) or "no reason given"

    def _ending(self, exchange: Exchange, reason: Any, more: Any = None) -> None:
        """Note how an answer ends. Raises `BadAnswer` where that is not as a whole one does."""
        exchange.finish_reason = short(reason or "") or None
        if exchange.finish_reason and exchange.finish_reason.lower() not in self.whole:
            told = self._words(f"{reason}, {more}" if more else reason)
            what = f"its answer ended with “{told}”, which no whole one does"
            raise self._bad(what, "its log may say why.")

    def _surprise(self, error: Exception) -> BadAnswer:
        what = f"its answer is not what the kind {self.settings.kind} sends"
        return self._bad(f"{what} ({type(error).__name__})", "is its kind right?")

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
        return self._sound(self._parsed(body))

    def _facts(self, **found: Any) -> ProviderFacts:
        s = self.settings
        common = {"name": s.name, "kind": s.kind, "role": self.role, "capacity": s.capacity}
        common["keeps_streams"] = self.keeps_streams
        return ProviderFacts(**{"model": s.model, "slots": s.slots, **common, **found})

    def _missing(self, there: list[str]) -> ModelMissing:
        names = ", ".join(short(name) for name in sorted(there)[:8]) or "none"
        what = f"no model {self.settings.model or 'is there'}; it has: {names}."
        if there and not self.settings.model:
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


def _role(url: str) -> Literal["local", "remote"]:
    host = urlsplit(url).hostname or ""
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return "local" if loopback else "remote"
