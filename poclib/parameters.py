"""What a person asks for: the parameters of a run, a YAML text of them, and their dotted keys.

A dotted key means the same everywhere (`--set`, sweeps, charts):

    rounds, strike.after                    a parameter of the run
    remote.speed, remote.link.jitter_ms     a setting of the provider with that name
    speed, link.round_trip_ms               a setting of every provider
"""

import contextlib
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from .asked import Asked, Link, Shard
from .errors import ParameterError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Amount = Annotated[int, Field(ge=1, le=4096)]
EngineKind = Literal["batched", "queueing", "bare", "unbatched"]


class ProviderSettings(Asked):
    """One provider as a person configures it. Address, key name and file never leave memory."""

    name: Name
    # auto, and what a url without a kind has: asked of the server when the pool is opened.
    kind: Literal["embedded", "sharded", "auto", "ollama", "llama-server", "openai"] = "embedded"
    url: str | None = Field(default=None, exclude=True)
    model: str | None = None
    role: Literal["local", "remote"] | None = None
    capacity: Amount = 1
    slots: Amount | None = None
    # A router is no machine of its own: it sends what it is given on to these providers. Only
    # the strategy through-router asks it, for `in_flight` prompts at once (None: for all).
    router_of: Annotated[list[Name], Field(min_length=1)] | None = None
    in_flight: Amount | None = None
    note: Annotated[str, Field(max_length=200)] | None = None  # its settings, told on the page
    # Whether trouble lowers the number of requests in flight: under strategies that have a limit
    # (on), under all-parallel too (forced, from 1 upwards), or never (off).
    adaptive: Literal["on", "off", "forced"] = "on"
    # Whether it queues or batches what it is sent beyond its capacity, as `doctor --capacity` says;
    # false where it thrashes or refuses: sent-ahead then keeps it to its capacity.
    queues: bool = True
    api: Literal["chat", "completion"] | None = None
    # Whether a model that can think does, or how much; None: as its server does. Chat only.
    think: bool | Literal["low", "medium", "high"] | None = None
    api_key_env: str | None = Field(default=None, exclude=True)
    ca_file: str | None = Field(default=None, exclude=True)
    # Embedded engines only. batched: one server that joins its slots' work in each step;
    # queueing: one slot, the rest wait; bare: each slot a context with threads of its own;
    # unbatched: slots that take turns. Absent, `batching` decides.
    engine: EngineKind | None = None
    refuses: bool = False  # beyond its slots it answers 503 instead of letting requests wait
    core: Annotated[int, Field(ge=0)] | None = None
    cores: Annotated[int, Field(ge=1, le=1024)] = 1  # so many, from `core` on
    takes_turns: bool = False  # never runs while another that takes turns does
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    batching: bool = True
    speed: Annotated[float, Field(gt=0, le=1)] = 1.0
    link: Link = Link()  # of kind sharded: before each worker
    shard: Shard | None = None

    @model_validator(mode="before")
    @classmethod
    def _kind_may_be_left_out(cls, given: Any) -> Any:
        known = not isinstance(given, dict) or "kind" in given or given.get("url") is None
        return given if known else {**given, "kind": "auto"}

    @model_validator(mode="after")
    def _kind_and_keys_agree(self) -> Self:
        if self.ours and self.url is not None:
            raise ValueError(f"kind {self.kind} is started here: leave out url")
        if (self.kind == "sharded") != (self.shard is not None):
            raise ValueError("kind sharded and shard go together, such as shard: {workers: 2}")
        if self.shard and (self.engine_kind != "batched" or self.speed < 1):
            raise ValueError("a shard has one engine at full speed: leave out engine and speed")
        if self.kind in ("ollama", "openai") and not self.model:
            raise ValueError(f"kind {self.kind} needs a model, by the name its server lists")
        if self.in_flight and not self.router_of:
            raise ValueError("in_flight is of a router (router_of); others have a capacity")
        if self.router_of and self.kind == "embedded":
            raise ValueError("a router has a url and a kind, such as openai; embedded is an engine")
        if self.think is not None and self.api == "completion":
            raise ValueError("think needs the chat template: leave it out, or set api: chat")
        if not self.batching and self.engine not in (None, "unbatched"):
            raise ValueError(f"engine {self.engine} and batching: false exclude each other")
        if self.engine == "queueing" and self.slots not in (None, 1):
            raise ValueError("a queueing engine has one slot: leave out slots")
        return self

    @property
    def ours(self) -> bool:
        """Whether its engine is started here."""
        return self.kind in ("embedded", "sharded")

    @property
    def engine_kind(self) -> EngineKind:
        """What an embedded engine does with requests that come together."""
        return self.engine or ("batched" if self.batching else "unbatched")


class Strike(Asked):
    """A death on purpose: an embedded provider's link is cut until an arm of the strategy ends."""

    provider: Name
    after: Annotated[float, Field(ge=0, le=1)] = 0.5  # this share of the answers; never at 1


class Serve(Asked):
    """How the rate is looked for that a pool can serve, by `poc serve-test`.

    In each of at most `steps` steps so many `requests` come at one rate. The rate is served where
    the `share` of them is answered within `target_ms`, the wait for a provider included. Of those
    that wait in the coordinator at most `queue_limit` are kept; the others are refused.
    """

    target_ms: Annotated[float, Field(gt=0)] = 2000.0
    share: Annotated[float, Field(gt=0, le=1)] = 0.95
    requests: Annotated[int, Field(ge=1, le=100_000)] = 72
    steps: Annotated[int, Field(ge=1, le=100)] = 10
    queue_limit: Annotated[int, Field(ge=1)] = 64


class Parameters(Asked):
    """Everything that decides what a run does. A notebook's parameters and a YAML's keys."""

    experiment: Name = "embedded"
    notebooks: str = "[01]*"  # which ones `poc run` runs; from 20 on each asks its own question
    strategy: Name = "serial-per-provider"
    providers: Annotated[list[ProviderSettings], Field(min_length=1, max_length=20_000)]
    prompts: Annotated[int, Field(ge=1, le=100_000)] | list[str] | str = Field(
        8, description="a number from 1 to 100,000, a list of texts, or the name of a file"
    )
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 40
    context_tokens: Annotated[int, Field(ge=64, le=10_000_000)] = 2048
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 7
    stream: bool = True
    # auto: until the interval is narrow enough for the band, or run_limit_s would be passed.
    rounds: Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"] = Field(
        5, description="a number from 1, or auto"
    )
    warm_up_prompts: Annotated[int, Field(ge=0, le=100)] = 1
    calibration_prompts: Annotated[int, Field(ge=1, le=100)] = 4
    gate_max_ratio: Annotated[float, Field(gt=0)] = 2.0
    band: Annotated[float, Field(ge=0, lt=1)] = 0.05
    retries: Annotated[int, Field(ge=0, le=10)] = 1
    backoff_s: Annotated[float, Field(ge=0, le=60)] = 0.5
    breaker_failures: Annotated[int, Field(ge=0, le=1000)] = 3
    breaker_pause_s: Annotated[float, Field(gt=0, le=60)] = 5.0
    hedge: bool = False
    hedge_after: Annotated[float, Field(ge=1, le=100)] = 1.5
    connect_timeout_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    first_token_timeout_s: Seconds = 120.0
    between_tokens_timeout_s: Seconds = 30.0
    request_timeout_s: Seconds = 120.0
    run_limit_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 1800.0
    strike: Strike | None = None
    serve: Serve | None = None
    # Providers, by name, whose address may lie outside loopback and private ranges; True: all.
    allow_public: bool | list[Name] = False
    allow_unlike_models: bool = False
    store_text: bool = False
    # What to do about an unfinished run, no part of what is measured: it is not saved.
    resume: bool = Field(default=False, exclude=True)

    @model_validator(mode="after")
    def _names_are_sound(self) -> Self:
        names = [p.name for p in self.providers]
        if len(set(names)) < len(names):
            raise ValueError(f"provider names must differ, found {', '.join(names)}")
        if isinstance(self.allow_public, list) and (new := set(self.allow_public) - set(names)):
            raise ValueError(f"allow_public names no provider: {', '.join(sorted(new))}")
        routers = [p.name for p in self.providers if p.router_of]
        if len(routers) > 1:
            raise ValueError(f"a run measures one router, found {', '.join(routers)}")
        behind = {name for p in self.providers for name in p.router_of or ()}
        if strange := ", ".join(sorted(behind - (set(names) - set(routers)))):
            raise ValueError(f"router_of names what is no machine of the file: {strange}")
        linked = [p.name for p in self.providers if p.ours and p.link != Link()]
        if self.strike and (self.strike.provider not in linked or len(names) < 2):
            raise ValueError(
                "strike.provider must be an embedded provider with a link, beside another one "
                f"that survives; with a link there are: {', '.join(linked) or 'none'}"
            )
        return self

    @property
    def router(self) -> ProviderSettings | None:
        """The provider that stands in front of others, if one does."""
        return next((p for p in self.providers if p.router_of), None)

    def may_be_public(self, provider: str) -> bool:
        """Whether that provider's address may lie outside loopback and private ranges."""
        allowed = self.allow_public
        return allowed if isinstance(allowed, bool) else provider in allowed

    @classmethod
    def read(cls, values: dict[str, Any], where: str = "parameters") -> Self:
        """Validate `values`. Raises `ParameterError` that names `where` and the key."""
        try:
            parameters = cls.model_validate(values)
            parameters.model_dump_json()
        except ValidationError as error:
            raise ParameterError(f"{where}: {explain(error, cls)}") from None
        except ValueError:
            what = "a text could not be saved and read back, such as half of a surrogate pair"
            raise ParameterError(f"{where}: {what}; remove it.") from None
        # Not a validator of the record: a saved report's settings have no address on purpose.
        for p in parameters.providers:
            if not p.ours and not p.url:
                what = f"provider {p.name} (kind {p.kind}) needs a url"
                raise ParameterError(f"{where}: {what}, such as http://192.168.1.20:11434.")
        return parameters

    @classmethod
    def pick(cls, namespace: dict[str, Any], **fixed: Any) -> Self:
        """The parameters among a notebook's `globals()`, with `fixed` ones on top."""
        found = {key: namespace[key] for key in cls.model_fields if key in namespace}
        return cls.read({**found, **fixed}, "the notebook's parameters")


# What pydantic says of a value of the wrong kind, in words for who wrote it.
_PLAIN = {
    "bool_type": "needs true or false",
    "int_type": "needs a whole number, written without quotes or leading zeros",
    "float_type": "needs a number",
    "finite_number": "needs a finite number",
    "string_type": "needs a text; put quotes around it",
}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation error as one sentence naming key, problem and cure."""
    first = error.errors()[0]
    kind, steps = first["type"], [str(step) for step in first["loc"]]
    path = ".".join(steps)[:200] or "the whole"
    key = "".join(c if c.isprintable() else "?" for c in path)
    if kind == "extra_forbidden":
        parts = (model, ProviderSettings, Link, Shard)
        known = [name for part in parts for name in part.model_fields]
        near = difflib.get_close_matches(steps[-1], known, n=1)
        return f"{key} is not a parameter" + (f"; did you mean {near[0]}?" if near else ".")
    if kind == "missing":
        return f"{key} is missing; add it (see params/ for commented examples)."
    problem = _PLAIN.get(kind, first["msg"].removeprefix("Value error, "))
    if kind == "value_error":
        return f"{key}: {problem}."
    field = model.model_fields.get(steps[0]) if steps else None
    if field and field.description:  # of a value that may be of several kinds
        key, problem = steps[0], f"needs {field.description}"
    return f"{key}: {problem} (given {first['input']!r:.60})."


_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}


def values(text: str, where: str) -> Any:
    """What a YAML text holds: data, never code. Raises `ParameterError` with `where` and line."""
    try:
        root = yaml.compose(text, Loader=_Loader)
        return None if root is None else _value(root)
    except (yaml.YAMLError, ArithmeticError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ParameterError(f"{where}{line}: not valid YAML: {problem}.") from None


class _Loader(yaml.BaseLoader):
    """Reads no alias: a few lines of them can stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()  # type: ignore[no-untyped-call]
            raise _wrong(alias, "an alias (*) is not read; write out what it stands for")
        return super().compose_node(parent, index)


def _value(node: Any) -> Any:
    if node.tag not in _TAGS:
        raise _wrong(node, "a tag (!) is not read; remove it")
    if isinstance(node, yaml.ScalarNode):
        if node.style:
            return node.value
        # As JSON takes it; so `010`, `1:30`, `no` and 2026-01-02 are texts, as in YAML 1.2.
        with contextlib.suppress(ValueError):
            return json.loads(node.value.lower())
        return None if node.value in ("", "~") else node.value
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    pairs: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or not key.value.isprintable():
            raise _wrong(key, "a key must be a word that can be printed")
        if key.value in pairs:
            raise _wrong(key, f"{key.value:.60} stands there twice; remove one of the two")
        pairs[key.value] = _value(value)
    return pairs


def _wrong(place: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def changes(given: Sequence[str]) -> dict[str, Any]:
    """Each `KEY=VALUE` of `--set` as its key and its value. Raises `ParameterError`."""
    found = {}
    for change in given:
        key, equals, value = change.partition("=")
        if not equals:
            raise ParameterError(f"--set {change}: write it as KEY=VALUE.")
        found[key.strip()] = values(value, f"--set {key}")
    return found


def put(parameters: dict[str, Any], key: str, value: Any, before: str = "--set ") -> None:
    """Set the value of a dotted `key`. Raises `ParameterError`, with `before` before the key."""
    names = [*_named(parameters)]
    places, path = _places(parameters, key)
    if not places:
        known = [*ProviderSettings.model_fields, *Parameters.model_fields, *names, "engines"]
        near = difflib.get_close_matches(path[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the providers are: {', '.join(names)}."
        raise ParameterError(f"{before}{key} is not a parameter; {hint}")
    for place in places:
        for step in path[:-1]:
            inner = place.get(step)
            place[step] = dict(inner) if isinstance(inner, dict) else {}
            place = place[step]
        place[path[-1]] = value


def get(parameters: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted `key`; None where there is none, or providers have different ones."""
    places, path = _places(parameters, key)
    for step in path:
        places = [place.get(step) if isinstance(place, Mapping) else None for place in places]
    return places[0] if places and all(place == places[0] for place in places) else None


def _places(parameters: Mapping[str, Any], key: str) -> tuple[list[Any], list[str]]:
    """The run or the providers that a dotted key is of, and its steps there."""
    providers = _named(parameters)
    # A name may hold a dot: the longest one that fits.
    owner = max((name for name in providers if key.startswith(f"{name}.")), key=len, default=None)
    if owner is not None:
        return [providers[owner]], key.removeprefix(f"{owner}.").split(".")
    path = key.split(".")
    if path[0] in Parameters.model_fields or path[0] in parameters:
        return [parameters], path
    return [*providers.values()] if path[0] in ProviderSettings.model_fields else [], path


def _named(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The providers by name, as far as they were written as they should be."""
    given = parameters.get("providers")
    listed = given if isinstance(given, list) else []
    return {p["name"]: p for p in listed if isinstance(p, dict) and isinstance(p.get("name"), str)}
