"""What answers at an address: which kind of server, with which models, and how far away."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from .. import addresses
from ..errors import BadAnswer, Forbidden, ParameterError, PocError, Unreachable
from ..parameters import Parameters, ProviderSettings
from ..records import Exchange
from .connection import failed
from .provider import SURPRISES, Json, short
from .transport import TimedClient

LIMIT_S, CONNECT_S = 3.0, 2.0
ROUND_TRIPS = 10
SILENT = f"no answer within {LIMIT_S:g} s; is it on, and does its firewall let others in?"
NO_SERVER = "no Ollama, llama-server or other server of OpenAI's API answers there; right port?"
BOUND = " Ollama listens beyond loopback where started with OLLAMA_HOST=<that machine's address>."
PROBED = {"ollama": "/api/version", "llama-server": "/health", "openai": "/v1/models"}
KEY = "it wants a key; use a file of parameters with api_key_env, as params/llama-server.yaml has."
SAID = {401: KEY, 403: KEY, 503: "it is busy or still loading its model; try again in a moment."}


@dataclass(frozen=True)
class Found:
    """A server: `word` is what a person calls it, `models` are those that answer prompts there."""

    word: str
    url: str
    kind: str
    server: str
    models: Sequence[str]
    any_model: bool = False  # it answers with the one that it has, whatever is asked for
    own: bool = False  # whether its address is one of this machine
    round_trip_ms: float = 0.0  # there, the best of a few
    public: bool = False


async def look(words: Sequence[str], allow_public: bool = False) -> list[Found | str]:
    """What is at each address as a person writes it, or a sentence why that is not known."""
    return await asyncio.gather(*(_at_any(word, allow_public) for word in words))


async def known(s: ProviderSettings, p: Parameters, key: str | None) -> ProviderSettings:
    """A provider of kind auto with the kind that its server has. Raises a `PocError`."""
    url = (s.url or "").rstrip("/").removesuffix("/v1")
    found = await _at(s.name, url, p.may_be_public(s.name), key, s.ca_file)
    if isinstance(found, PocError):
        raise found
    only = found.models[0] if len(found.models) == 1 and not found.any_model else None
    return s.model_copy(update={"kind": found.kind, "model": s.model or only})


async def _at_any(word: str, allow_public: bool) -> Found | str:
    try:
        urls = addresses.urls(word)
    except ParameterError as error:
        return str(error)
    answers = await asyncio.gather(*(_at(word, url, allow_public) for url in urls))
    # Of several ports one with a server, or else where something answers, says more.
    answer = min(answers, key=lambda a: (isinstance(a, PocError), isinstance(a, Unreachable)))
    if isinstance(answer, Found):
        return answer
    said = str(answer).removeprefix("provider ")
    if isinstance(answer, Forbidden):
        return f"{said.partition(';')[0]}; add --set allow_public=true if that is meant."
    if isinstance(answer, Unreachable) and "not known" not in said:
        said += f" Tried: {', '.join(urls)}." if len(urls) > 1 else ""
        said += "" if re.match(r"(https?://)?(localhost|127\.|\[?::1)", word) else BOUND
    return said


async def _at(
    name: str, url: str, public: bool, key: str | None = None, ca_file: str | None = None
) -> Found | PocError:
    """The server at `url`, or why none is known there."""
    try:
        client = TimedClient(name, url, key, CONNECT_S, 2 * LIMIT_S, public, ca_file)
        async with contextlib.aclosing(client), asyncio.timeout(LIMIT_S):
            found = await _identified(client, url)
            infos = await asyncio.get_running_loop().getaddrinfo(urlsplit(url).hostname, None)
            ips = [str(info[4][0]) for info in infos]
            own, private = (any(map(of, ips)) for of in (addresses.is_own, addresses.is_private))
            trips = [await _round_trip_ms(client, found.kind) for _ in range(own * ROUND_TRIPS)]
    except PocError as error:
        return error
    except OSError:  # no time left
        return failed(Unreachable, name, SILENT)
    except SURPRISES:
        return failed(BadAnswer, name, NO_SERVER)
    # The best round trip, as a busy machine only adds.
    return replace(found, own=own, public=not private, round_trip_ms=min(trips, default=0.0))


async def _identified(client: TimedClient, url: str) -> Found:
    version = (await _get(client, "/api/version")).get("version")
    tags = (await _get(client, "/api/tags")).get("models") if isinstance(version, str) else None
    if isinstance(tags, list):
        server, here = f"Ollama {short(str(version))}", filter(_answers_here, tags)
        return Found(client.provider, url, "ollama", server, _texts(here, "name"))
    data = (await _get(client, "/v1/models")).get("data")
    if not isinstance(data, list):
        raise failed(BadAnswer, client.provider, NO_SERVER)
    names, owners = _texts(data, "id"), _texts(data, "owned_by")
    if "llamacpp" not in owners:
        server = "vLLM" if "vllm" in owners else "a server of OpenAI's API"
        return Found(client.provider, url, "openai", server, names)
    build = (await _get(client, "/props")).get("build_info")  # may want a key; the list does not
    alone = len(data) == 1 and "status" not in data[0]  # else it is a router's
    shown = [re.split(r"[\\/]", name)[-1] for name in names] if alone else names
    server = f"llama-server {short(str(build or ''))}".rstrip()
    return Found(client.provider, url, "llama-server", server, shown, alone)


def _answers_here(entry: Json) -> bool:
    """Whether an Ollama's model answers prompts, on that machine and not in a cloud."""
    cloud = entry.get("remote_host") or re.search(r"[:-]cloud$", str(entry.get("name")))
    return "completion" in (entry.get("capabilities") or ["completion"]) and not cloud


def _texts(entries: Iterable[Json], key: str) -> list[str]:
    found = [entry.get(key) for entry in entries]
    return [text for text in found if isinstance(text, str) and text and text.isprintable()]


async def _get(client: TimedClient, path: str) -> Json:
    """A JSON object; empty where the server has none at `path`. Raises `ProviderError`."""
    async with client.request("GET", path) as response:
        body = await response.body()
    if response.status in SAID:
        raise failed(BadAnswer, client.provider, SAID[response.status])
    with contextlib.suppress(ValueError, RecursionError):
        parsed = json.loads(body) if response.status == 200 else None
        return parsed if isinstance(parsed, dict) else {}
    return {}


async def _round_trip_ms(client: TimedClient, kind: str) -> float:
    trip = Exchange(lambda: time.perf_counter() * 1000)
    async with client.request("GET", PROBED[kind], exchange=trip) as response:
        await response.body()
    return trip.marks["first_byte_ms"] - trip.marks["sent_ms"]
