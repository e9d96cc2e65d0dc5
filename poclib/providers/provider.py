"""One server that answers prompts: what every kind of provider does alike."""

import asyncio
import html
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import nullcontext, suppress
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec

from ..errors import BadAnswer, Forbidden, ModelMissing, ParameterError, ProviderError, Rejected
from ..parameters import Parameters, ProviderSettings
from ..records import Exchange, Probe, Prompt, ProviderFacts
from .connection import Response, failed
from .transport import TimedClient

Json = dict[str, Any]
# An object, or None for `[DONE]`, and when it came.
Events = AsyncIterator[tuple[Json | None, float]]
# What reading a body of an unforeseen shape raises; pydantic's own error is a ValueError.
SURPRISES = (AttributeError, KeyError, TypeError, ValueError, IndexError)
# How long a body may go on after its answer: that is waited for to keep the connection.
LINGER_S = 0.2
LONGEST_MS = 86_400_000  # no duration of one request is longer than a day
BOM = b"\xef\xbb\xbf"
# Where servers put what they say of an error, the most telling first.
WORDS = ("error", "errors", "detail", "message", "msg", "reason", "type", "code")
ERRORS = frozenset(WORDS[:4])
REDIRECT = ", a redirect, which is not followed; is its url right, and should it be https"
HINTS = dict.fromkeys((301, 302, 303, 307, 308), REDIRECT)
HINTS[401] = ", set api_key_env to the name of the variable that holds its key"
HINTS[503] = ", busy or still loading"
# What a url may not end in: poclib adds it.
ENDPOINTS = "/chat/completions /completions /completion /v1/models /health /props /api/chat "
ENDPOINTS += "/api/generate /api/tags /api/show /api/version"


class Provider:
    """One server. `describe` it before use, then `send` prompts and `probe` round trips.

    A kind is a subclass with `_describe`, `_request_body` and `_take`, which may raise `SURPRISES`.
    """

    paths: ClassVar[Mapping[str, str]]  # by `api`
    whole: ClassVar[frozenset[str]]  # the endings of an answer that is whole
    endpoints = ENDPOINTS
    probe_path = "/health"
    keeps_streams = True
    # Whether its bodies go on after their answers end; None: not known yet.
    _lingers: bool | None = None

    def __init__(
        self, settings: ProviderSettings, parameters: Parameters, url: str, key: str | None = None
    ) -> None:
        self.name, self.settings, self.parameters = settings.name, settings, parameters
        self.api: Literal["chat", "completion"] = settings.api or "chat"
        base = url.rstrip("/").removesuffix("/v1")  # the way clients of OpenAI write it
        if own := next((path for path in self.endpoints.split() if base.endswith(path)), None):
            what = f"its url ends in {own}, which is added to it; leave that out"
            raise ParameterError(f"provider {self.name}: {what}, as in http://192.168.1.20:11434")
        limits_s = parameters.connect_timeout_s, parameters.request_timeout_s
        public = parameters.may_be_public(self.name)
        self.client = TimedClient(self.name, base, key, *limits_s, public, settings.ca_file)
        self.aclose = self.client.aclose
        own_host = re.fullmatch(r"localhost|127(\.\d+){3}|::1", urlsplit(url).hostname or "")
        self.role: Literal["local", "remote"] = settings.role or ("local" if own_host else "remote")

    async def describe(self) -> ProviderFacts:
        """Who the server is. Raises `ModelMissing`, or any other `ProviderError`."""
        try:
            return await self._describe()
        except SURPRISES as error:
            raise self._unexpected(error) from None

    async def probe(self, clock: Callable[[], float]) -> Probe | None:
        """How long a tiny request takes on a warm connection; None where the server keeps none."""
        for _ in range(2):
            trip = Exchange(clock)
            async with self.client.request("GET", self.probe_path, exchange=trip) as response:
                await response.body()
                response.mark_end()
            marks = trip.marks
            if "connected_ms" not in marks:
                if not self.keeps_streams:  # the prompts that follow need more than one
                    self.client.origin(self.client.url).open_ahead(self.settings.capacity - 1)
                return Probe(
                    provider=self.name,
                    at_ms=marks["start_ms"],
                    round_trip_ms=marks["last_byte_ms"] - marks["start_ms"],
                    wire_ms=marks["first_byte_ms"] - marks["sent_ms"],
                )
        return None

    async def send(self, prompt: Prompt, exchange: Exchange, url: str | None = None) -> None:
        """Have `prompt` answered (at `url`), filling `exchange`. Raises a `ProviderError`."""
        asked = "POST", self.paths[self.api], self._request_body(prompt), exchange
        keep = self.keeps_streams or not self.parameters.stream
        try:
            async with self.client.request(*asked, keep, url) as response:
                if response.status != 200:
                    raise self._rejection(response, await response.body())
                events = self._events(response)
                await self._read(events, exchange)
                response.mark_end()
                # The rest is waited for to keep the connection; it cannot spoil the answer.
                limit_s = 0 if self._lingers else LINGER_S
                async with nullcontext() if response.whole else asyncio.timeout(limit_s):
                    async for event, _ in events:
                        if event is None or self._count(event, exchange):
                            response.mark_end()
            self._lingers = False
        except ProviderError:
            if not exchange.finished:
                raise
            self._lingers = self._lingers is not False
        finally:
            if "end_ms" not in exchange.marks:  # it failed
                exchange.mark("end")
            if exchange.thought_ms:
                exchange.marks["first_thought_ms"] = exchange.thought_ms[0]
            if exchange.token_ms:
                exchange.marks["first_token_ms"] = exchange.token_ms[0]

    async def _read(self, events: Events, exchange: Exchange) -> None:
        """Read an answer to its end. Raises `BadAnswer` where it has none, or no text or token."""
        count = 0
        async for event, here_ms in events:
            count += 1
            streamed_ms = here_ms if self.parameters.stream else None
            try:
                if event is None or self._take(self._sound(event), exchange, streamed_ms):
                    break
            except SURPRISES as error:
                raise self._unexpected(error) from None
        else:
            if not exchange.finish_reason:
                raise self._bad("its answer is empty or stops before its end; did it crash?")
        exchange.output_tokens = exchange.output_tokens or None  # 0 for a text is no count
        if not (exchange.pieces or exchange.thoughts or exchange.output_tokens):
            raise self._bad("its answer is empty: no text, and no token counted; look at its log.")
        if count == 1:  # no stream, though it was asked for as one: it has no first token
            exchange.token_ms.clear()
            exchange.thought_ms.clear()
        exchange.finished = True

    async def _events(self, response: Response) -> Events:
        """The JSON objects of an answer: as server-sent events, a line each, or one on many lines.

        An event is read when its data is whole: the blank line that ends it may come later.
        """
        name, data_ms = b"", 0.0
        data, text = list[bytes](), list[bytes]()  # of an event, or one object, on many lines
        sse = response.headers.get("content-type", "").startswith("text/event-stream")
        while lines := await response.lines():
            for raw in lines:
                line = raw.strip().removeprefix(BOM)
                field, _, value = line.partition(b":")
                field, value = field.rstrip(), value.lstrip()
                if text:
                    text.append(line)
                elif field == b"data":
                    sse, data_ms = True, response.here_ms
                    if data or name == b"error":
                        data.append(value)
                    elif value == b"[DONE]":
                        yield None, data_ms
                        while await response.lines():
                            pass
                        return
                    elif isinstance(parsed := _loaded(value), dict):
                        yield parsed, data_ms
                    elif value:
                        data.append(value)
                elif not line:
                    if data and (event := self._parsed(b"\n".join(data), name)) is not None:
                        yield event, data_ms
                    name, data = b"", []
                elif field == b"event":
                    sse, name = True, value
                elif field == b"error":
                    raise self._server_error(_loaded(value))
                elif field in (b"", b"id", b"retry"):  # pings are comments, ": …"
                    sse = True
                elif isinstance(parsed := _loaded(line), dict):
                    yield parsed, response.here_ms
                elif not sse or line.startswith(b"{"):  # a field that is unknown says nothing
                    text.append(line)
        rest, name = b"\n".join(text or data), b"" if text else name
        if rest and (event := self._parsed(rest, name)) is not None:
            yield event, response.here_ms if text else data_ms

    def _parsed(self, text: bytes, name: bytes = b"") -> Json | None:
        """The JSON object that `text` is; None where it is none in an event of another `name`."""
        parsed = _loaded(text)
        if name == b"error":
            raise self._server_error(parsed)
        if isinstance(parsed, dict):
            return parsed
        if name not in (b"", b"message"):
            return None
        # JSON, whole or broken, is no words of the server, and may hold what was asked.
        is_text = isinstance(parsed, str) and text.lstrip()[:1] not in (b"{", b"[", b'"')
        words = f" ({self._words(parsed)})" if is_text else ""
        then = f"is its kind {self.settings.kind}, and its url right?{self.client.hint}"
        raise self._bad(f"its answer is no JSON object{words}; {then}")

    def _sound(self, event: Json) -> Json:
        """`event` unless it tells an error, in any of the ways in which servers do."""
        told, wrong = event.get, False
        if not ERRORS.isdisjoint(event):
            wrong = bool(told("error") or told("errors") or told("detail"))
            wrong |= isinstance(told("message"), str)
        if wrong or "error" in (told("object"), told("type")):
            raise self._server_error(event)
        return event

    def _server_error(self, body: Any) -> Rejected:
        return failed(Rejected, self.name, f"error in its answer: {self._words(body)}")

    def _bad(self, what: str) -> BadAnswer:
        return failed(BadAnswer, self.name, what)

    def _rejection(self, response: Response, body: bytes) -> ProviderError:
        """The error for an HTTP status other than 200, with the server's own words."""
        words, status = self._words(_loaded(body)), response.status
        lacks_it = "not found" in words or "not exist" in words
        if status in (400, 404) and "model" in words and lacks_it:
            what = f"{words}; `poc doctor` lists what it has."
            return failed(ModelMissing, self.name, what, status=status)
        what = f"HTTP {status}{HINTS.get(status, '')}: {words}"
        wait_s = _wait_s(response.headers)
        return failed(Rejected, self.name, what, status=status, retry_after_s=wait_s)

    def _words(self, body: Any) -> str:
        """An error body's own sentence, on one line and without address or key."""
        return short(self.client.redacted(_words_of(body))) or "no reason given"

    def _ending(self, exchange: Exchange, reason: Any, more: Any = None) -> None:
        """Note how an answer ends. Raises `BadAnswer` where that is not as a whole one does."""
        exchange.finish_reason = short(reason or "") or None
        if exchange.finish_reason and exchange.finish_reason.lower() not in self.whole:
            words = self._words(f"{reason}, {more}" if more else reason)
            raise self._bad(f"its answer ended with “{words}”, unlike a whole one; see its log.")

    def _unexpected(self, error: Exception) -> BadAnswer:
        what = f"its answer is not what the kind {self.settings.kind} sends"
        return self._bad(f"{what} ({type(error).__name__}); is its kind right?")

    async def _get(self, path: str, optional: bool = False, asked: Json | None = None) -> Json:
        """A JSON object from the server, `asked` by POST; empty if it has none and `optional`."""
        try:
            async with self.client.request("POST" if asked else "GET", path, asked) as response:
                body = await response.body()
            if response.status != 200:
                raise self._rejection(response, body)
            return self._sound(self._parsed(body) or {})
        except (BadAnswer, ModelMissing, Rejected):  # a page for people, or a redirect to one
            if not optional:
                raise
            return {}

    def _facts(self, **facts: Any) -> ProviderFacts:
        same = {"name", "kind", "model", "slots", "capacity", "router_of"}
        known: Json = self.settings.model_dump(include=same)
        known |= {"role": self.role, "keeps_streams": self.keeps_streams}
        return ProviderFacts(**known | facts)

    def _missing(self, there: list[str]) -> ModelMissing:
        names = ", ".join(short(name) for name in sorted(there)[:8]) or "none"
        what = f"no model {self.settings.model or 'is there'}; it has: {names}."
        if there and not self.settings.model:
            what = f"it has several models; name one of them as its model: {names}."
        return failed(ModelMissing, self.name, what)

    def _check_stays(self, goes_on: bool = False) -> None:
        """Raise `Forbidden` where prompts would go on to another machine and may not."""
        cloud = re.search(r"[:-]cloud$", self.settings.model or "", re.IGNORECASE)
        if (goes_on or cloud) and not self.parameters.may_be_public(self.name):
            what = "its model runs in Ollama's cloud or at another host; choose one of its own, "
            what += f"or set allow_public: [{self.name}] if prompts may leave this server."
            raise failed(Forbidden, self.name, what)

    def _asked(self, prompt: Prompt) -> Json:
        if self.api == "completion":
            return {"prompt": prompt.text}
        return {"messages": prompt.messages or [{"role": "user", "content": prompt.text}]}

    async def _describe(self) -> ProviderFacts:
        raise NotImplementedError

    def _request_body(self, prompt: Prompt) -> Json:
        raise NotImplementedError

    def _take(self, event: Json, exchange: Exchange, here_ms: float | None) -> bool:
        """Read one event, which came at `here_ms` if streamed; whether the answer ends with it."""
        raise NotImplementedError

    def _count(self, event: Json, exchange: Exchange) -> bool:
        """Read the numbers that may come after an answer; whether it ends with these."""
        return False


def add(exchange: Exchange, thought: str | None, piece: str | None, here_ms: float | None) -> None:
    """Append what was thought or answered. Half a surrogate pair, which no file holds, is `?`."""
    for text, texts, times_ms in (
        (thought, exchange.thoughts, exchange.thought_ms),
        (piece, exchange.pieces, exchange.token_ms),
    ):
        if text:
            texts.append(text.encode("utf-8", "replace").decode())
            if here_ms is not None:
                times_ms.append(here_ms)


def part_of(event: Json, key: str) -> Json:
    """The object at `key`; empty where there is none."""
    value = event.get(key)
    return value if isinstance(value, dict) else {}


def ms_of(part: Json, key: str, unit_ms: float = 1.0) -> float | None:
    """A duration in milliseconds; None where it is absent or cannot be one."""
    value: Any = part.get(key)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * unit_ms if number and 0 <= value <= LONGEST_MS / unit_ms else None


def count_of(part: Json, key: str) -> int | None:
    """A number of tokens or the like; None where it is absent or cannot be one."""
    value = part.get(key)
    return value if type(value) is int and 0 <= value <= 1_000_000_000 else None


def total(*parts: float | None) -> float | None:
    return None if None in parts else sum(part or 0 for part in parts)


def short(text: str) -> str:
    """Foreign text on one line, printable, cut at 200 characters. Raises `TypeError` if none."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:2000]).split())[:200]


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for: seconds, or a date by the server's own clock."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
        return float(value)
    try:
        then, now = parsedate_to_datetime(value), parsedate_to_datetime(headers["date"])
        return max(0.0, (then - now).total_seconds())
    except (LookupError, TypeError, ValueError, OverflowError):  # no date, or none with a zone
        return None


def _loaded(text: bytes) -> Any:
    """What JSON says, or else the text as it is."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        with suppress(ValueError, RecursionError):
            return json.loads(text)  # reads more than JSON allows
    return text.decode("utf-8", "replace")


def _words_of(body: Any, depth: int = 6) -> str:
    """What an error's body says, wherever it puts it; a web page's title."""
    if isinstance(body, list) and depth:
        return "; ".join(filter(None, (_words_of(part, depth - 1) for part in body[:5])))
    if isinstance(body, dict) and depth:
        words = next(filter(None, (_words_of(body.get(key), depth - 1) for key in WORDS)), "")
        where = body.get("loc")  # of a validation error
        if words and isinstance(where, list):
            return f"{'.'.join(map(str, where))}: {words}"
        return words
    if isinstance(body, str):
        page = body[:10_000] if body.lstrip().startswith("<") else ""
        title = re.search(r"<title[^>]*>([^<]*)", page, re.IGNORECASE)
        return html.unescape(title[1] if title else re.sub("<[^>]*>", " ", page)) or body
    return str(body) if isinstance(body, int | float) and not isinstance(body, bool) else ""
