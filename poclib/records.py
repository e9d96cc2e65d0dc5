"""The facts: what was asked for, who answered, and every event of every request.

Typed and validated; no arithmetic beyond a difference of two fields of one row.
All times are milliseconds; `*_ms` marks are offsets from the report's one wall-clock
anchor (`Report.created`), taken from a monotonic clock. Absent is None, never 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from .errors import ParameterError

# Format history.
# 1: first version (2026-11).
# 2: a line for each fact, the same file while a run goes on and after; marks per arm (`marked`),
#    lengths of prompts, thoughts apart from answers (2026-11).
REPORT_VERSION = 2

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ArmName = Literal["warm-up", "calibration", "capacity", "baseline", "strategy"]
Outcome = Literal["ok", "failed", "cancelled"]
# Of an attempt: the first of its prompt, one after a failure, or a second copy of one under way.
Role = Literal["first", "retry", "hedge"]
EngineKind = Literal["batched", "queueing", "bare", "unbatched"]


class Record(BaseModel):
    """A validated, immutable record: unknown keys are errors, so a typo cannot pass."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Asked(Record):
    """What a person writes: taken as written (no text for a number, no true for 1), and finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Link(Asked):
    """A network link in user space before an embedded engine."""

    round_trip_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0
    bandwidth_mbit_s: Annotated[float, Field(gt=0)] | None = None


class ProviderSettings(Asked):
    """One provider as a person configures it. Address, key name and file never leave memory."""

    name: Name
    kind: Literal["embedded", "ollama", "llama-server", "openai"] = "embedded"
    url: str | None = Field(default=None, exclude=True)
    model: str | None = None
    role: Literal["local", "remote"] | None = None
    capacity: Annotated[int, Field(ge=1, le=4096)] = 1
    slots: Annotated[int, Field(ge=1, le=4096)] | None = None
    # Whether trouble lowers the number of requests in flight: under strategies that have a limit
    # (on), under all-parallel too (forced, from 1 upwards), or never (off).
    adaptive: Literal["on", "off", "forced"] = "on"
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
    link: Link = Link()

    @model_validator(mode="after")
    def _kind_and_keys_agree(self) -> ProviderSettings:
        if self.kind == "embedded" and self.url is not None:
            raise ValueError("an embedded provider is started here: leave out url")
        if self.kind in ("ollama", "openai") and not self.model:
            raise ValueError(f"kind {self.kind} needs a model, by the name its server lists")
        if self.think is not None and self.api == "completion":
            raise ValueError("think needs the chat template: leave it out, or set api: chat")
        if not self.batching and self.engine not in (None, "unbatched"):
            raise ValueError(f"engine {self.engine} and batching: false exclude each other")
        if self.engine == "queueing" and self.slots not in (None, 1):
            raise ValueError("a queueing engine has one slot: leave out slots")
        return self

    @property
    def engine_kind(self) -> EngineKind:
        """What an embedded engine does with requests that come together."""
        return self.engine or ("batched" if self.batching else "unbatched")


class Strike(Asked):
    """A death on purpose: in every arm of the strategy, one embedded provider's link is cut.

    It comes once the share `after` of the prompts is answered (never at 1), and is mended when
    the arm is over.
    """

    provider: Name
    after: Annotated[float, Field(ge=0, le=1)] = 0.5


class Parameters(Asked):
    """Everything that decides what a run does. A notebook's parameters and a YAML's keys.

    Raises `ParameterError` from `read`, naming the key, never pydantic's own error.
    """

    experiment: Name = "embedded"
    notebooks: str = "[01]*"  # which ones `poc run` runs; from 20 on each asks its own question
    strategy: Name = "serial-per-provider"
    providers: Annotated[list[ProviderSettings], Field(min_length=1, max_length=4096)]
    # The first so many built-in ones, a list of texts, or the name of a file of them: one on each
    # line; .csv, .tsv: in the column headed `prompt`, or the only one; .jsonl, .json: texts, or
    # objects with a `prompt`.
    prompts: Annotated[int, Field(ge=1, le=100_000)] | list[str] | str = 8
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 40
    context_tokens: Annotated[int, Field(ge=64, le=10_000_000)] = 2048
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = 7
    stream: bool = True
    # auto: until the interval is narrow enough for the band, or run_limit_s would be passed.
    rounds: Count | Literal["auto"] = 5
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
    first_token_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    between_tokens_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    request_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 120.0
    run_limit_s: Annotated[float, Field(gt=0, le=30 * 86_400)] = 1800.0
    arm_limit_s: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    strike: Strike | None = None
    # Providers, by name, whose address may lie outside loopback and private ranges; True: all.
    allow_public: bool | list[Name] = False
    allow_unlike_models: bool = False
    store_text: bool = False
    # What to do about an unfinished run, no part of what is measured: it is not saved.
    resume: bool = Field(default=False, exclude=True)

    @field_validator("rounds", mode="wrap")
    @classmethod
    def _rounds_are_a_number_or_auto(cls, given: Any, check: Any) -> Any:
        try:
            return check(given)
        except ValidationError:
            raise ValueError(f"needs a number from 1, or auto (given {given!r:.60})") from None

    @field_validator("prompts", mode="wrap")
    @classmethod
    def _prompts_are_a_number_texts_or_a_file(cls, given: Any, check: Any) -> Any:
        try:
            return check(given)
        except ValidationError:
            raise ValueError(
                "needs a number from 1 to 100,000, a list of texts, or the name of a file "
                f"(given {given!r:.60})"
            ) from None

    @model_validator(mode="after")
    def _names_are_sound(self) -> Parameters:
        names = [p.name for p in self.providers]
        if len(set(names)) < len(names):
            raise ValueError(f"provider names must differ, found {', '.join(names)}")
        if isinstance(self.allow_public, list) and (new := set(self.allow_public) - set(names)):
            raise ValueError(f"allow_public names no provider: {', '.join(sorted(new))}")
        return self

    @model_validator(mode="after")
    def _strike_has_a_link_to_cut(self) -> Parameters:
        if self.strike is not None:
            linked = [p.name for p in self.providers if p.kind == "embedded" and p.link != Link()]
            if self.strike.provider not in linked or len(self.providers) < 2:
                raise ValueError(
                    "strike.provider must be an embedded provider with a link, beside another one "
                    f"that survives; with a link there are: {', '.join(linked) or 'none'}"
                )
        return self

    def may_be_public(self, provider: str) -> bool:
        """Whether that provider's address may lie outside loopback and private ranges."""
        if isinstance(self.allow_public, bool):
            return self.allow_public
        return provider in self.allow_public

    @classmethod
    def read(cls, values: dict[str, Any], where: str = "parameters") -> Parameters:
        """Validate `values`; `where` names the file or notebook in the error's sentence."""
        try:
            parameters = cls.model_validate(values)
        except ValidationError as error:
            raise ParameterError(f"{where}: {explain(error, cls)}") from None
        try:
            saved = cls.model_validate_json(parameters.model_dump_json())
        except ValueError:
            saved = None
        if saved is None or saved.model_dump() != parameters.model_dump():
            raise ParameterError(
                f"{where}: a text or number in it could not be saved and read back, such as half "
                "of a surrogate pair; remove it."
            )
        # Not a validator of the record: a saved report's settings have no address on purpose.
        for p in parameters.providers:
            if p.kind != "embedded" and not p.url:
                raise ParameterError(
                    f"{where}: provider {p.name} (kind {p.kind}) needs a url, "
                    "such as http://192.168.1.20:11434."
                )
        return parameters

    @classmethod
    def pick(cls, namespace: dict[str, Any], **fixed: Any) -> Parameters:
        """The parameters among a notebook's `globals()`, with `fixed` ones on top."""
        found = {key: namespace[key] for key in cls.model_fields if key in namespace}
        return cls.read({**found, **fixed}, "the notebook's parameters")


class ProviderFacts(Record):
    """One provider as it was found before the run: who it is, never where."""

    name: Name
    kind: str
    role: Literal["local", "remote"]
    model: str | None = None
    digest: str | None = None
    server: str | None = None
    slots: int | None = None
    capacity: int = 1
    context_tokens: int | None = None
    reports_time: bool | None = None
    fixed_length: bool = False
    cache_defeated: bool = False
    keeps_streams: bool | None = None  # whether a connection outlives a streamed answer
    # What is known of an embedded engine; None for a person's own server.
    engine: str | None = None
    engine_kind: EngineKind | None = None
    refuses: bool | None = None
    core: int | None = None
    cores: int | None = None
    turns: int | None = None  # how many engines share its cores in time, itself among them
    threads: int | None = None
    pinned: bool | None = None
    batching: bool | None = None
    speed: float | None = None
    link: Link | None = None


class ServerTimings(Record):
    """What the server says of one request; each part None where it does not say."""

    load_ms: float | None = None
    queue_ms: float | None = None
    prompt_ms: float | None = None
    generation_ms: float | None = None
    total_ms: float | None = None


class RequestMarks(Record):
    """Offsets of transport events from the report's anchor; None where none was seen.

    `connected_ms` is None on a warm connection: no connect took place. `ready_ms` is when the
    connection was there, new or warm: what came before was our own work. `end_ms` of an answer is
    its last byte's arrival and our own work on it, without the event loop's wait for its turn.
    """

    assigned_ms: Milliseconds | None = None
    start_ms: Milliseconds | None = None
    connect_start_ms: Milliseconds | None = None
    connected_ms: Milliseconds | None = None
    ready_ms: Milliseconds | None = None
    sent_ms: Milliseconds | None = None
    first_byte_ms: Milliseconds | None = None
    first_thought_ms: Milliseconds | None = None
    first_token_ms: Milliseconds | None = None
    last_byte_ms: Milliseconds | None = None
    end_ms: Milliseconds | None = None


@dataclass(frozen=True)
class Prompt:
    """One prompt as it is sent: `salt` keeps a server from answering it out of its cache."""

    index: int
    text: str
    salt: str = ""


@dataclass
class Exchange:
    """One request while it runs: a provider fills it in, whatever comes of it.

    `clock` gives milliseconds since the report's anchor, from a monotonic clock.
    """

    clock: Callable[[], float]
    marks: dict[str, float] = field(default_factory=dict)
    server: ServerTimings = field(default_factory=ServerTimings)
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    finished: bool = False
    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    thought_ms: list[float] = field(default_factory=list)
    token_ms: list[float] = field(default_factory=list)
    # When bytes last came from the network, by `time.perf_counter`, where that is known.
    arrived_s: Callable[[], float] | None = None

    def mark(self, event: str) -> None:
        """Note the time of `event`, a field of `RequestMarks` without its `_ms`."""
        self.marks[f"{event}_ms"] = self.clock()

    def mark_arrival(self, event: str) -> None:
        """Note as the time of `event` when the bytes that tell it were here."""
        self.marks[f"{event}_ms"] = self.arrival_ms()

    def arrival_ms(self) -> float:
        """When what has just been read arrived: before the event loop came round to it.

        Where more has arrived since, the later moment; never before what was marked last.
        """
        now_ms = self.clock()
        if self.arrived_s is None:
            return now_ms
        waited_ms = max(0.0, (time.perf_counter() - self.arrived_s()) * 1000)
        return max(
            now_ms - waited_ms, *self.marks.values(), *self.thought_ms[-1:], *self.token_ms[-1:]
        )


class Request(Record):
    """One attempt to have one prompt answered by one provider."""

    prompt: Annotated[int, Field(ge=0)]
    provider: Name
    attempt: Annotated[int, Field(ge=1)] = 1
    role: Role = "first"
    outcome: Outcome = "ok"
    error: str | None = None
    error_kind: str | None = None
    status: int | None = None
    wall_ms: Milliseconds | None = None
    queued_ms: Milliseconds | None = None
    marks: RequestMarks = RequestMarks()
    server: ServerTimings = ServerTimings()
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    thought_characters: int | None = None
    finish_reason: str | None = None
    answer_sha256: str | None = None
    answer: str | None = None
    token_ms: list[float] | None = None

    @property
    def over_ms(self) -> float | None:
        """Wall minus the server's own time, which two clocks may make a bit less than nothing.

        None where the server reports none.
        """
        if self.wall_ms is None or self.server.total_ms is None:
            return None
        return max(0.0, self.wall_ms - self.server.total_ms)


class EngineUse(Record):
    """What the processes of one embedded engine used of this machine during one arm.

    `threads` is the most that existed at a time. Switches are summed over all threads:
    voluntary where a thread waited, involuntary where the system took the core from it.
    """

    provider: Name
    wall_ms: Milliseconds
    cpu_ms: Milliseconds
    processes: int
    threads: int
    cores: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None


class LimitChange(Record):
    """A provider's live limit was set to `limit`, after trouble or success with `in_flight`.

    Reason "learned": an arm began with what the one before had found.
    """

    provider: Name
    at_ms: Milliseconds
    limit: Annotated[int, Field(ge=1)]
    reason: Literal["good", "slower", "refused", "learned"]
    in_flight: int


class Arm(Record):
    """One strategy over all prompts, once. `limits` is what dispatch enforced, None = none.

    `cut_ms` is the moment at which the arm reached `arm_limit_s` and was stopped.

    `makespan_ms` is a fact only of runs published without times of day (it cannot be
    derived from their rows); a measured arm leaves it None and is computed on reading.
    """

    arm: ArmName
    turn: str | None = None  # of warm-up, calibration or capacity: whose, and after which round
    strategy: Name
    limits: dict[Name, int] | None = None
    # Providers that were cut off or killed on purpose while it ran, and when.
    struck_ms: dict[Name, Milliseconds] = {}
    makespan_ms: Milliseconds | None = None
    cut_ms: Milliseconds | None = None
    requests: list[Request] = []
    engines: list[EngineUse] = []
    limit_changes: list[LimitChange] = []


class Round(Record):
    """The baseline and the strategy once each, in the order they ran."""

    index: Annotated[int, Field(ge=0)]
    arms: list[Arm]


class Probe(Record):
    """One tiny request on a warm connection: the round trip to a provider at a moment.

    `wire_ms` is its part from the request's last byte sent to the answer's first byte: the
    network and the server, without our own work.
    """

    provider: Name
    at_ms: Milliseconds
    round_trip_ms: Milliseconds
    wire_ms: Milliseconds | None = None


class Lags(Record):
    """How late the coordinator's event loop was when asked, `lag_ms`, at `at_ms` each."""

    at_ms: list[float] = []
    lag_ms: list[float] = []


class Moment(Record):
    """The coordinator's machine at a moment: shares (0 to 1) of all cores since the one before.

    `own` is this process and the engines it started, `others` everybody else, `steal` what the
    host of a virtual machine took. `throttled` counts slowings for heat so far. `wall_ahead_ms`
    is how far the clock on the wall has moved against the monotonic one since the start.
    """

    at_ms: Milliseconds
    own: float | None = None
    others: float | None = None
    steal: float | None = None
    load_1min: float | None = None
    throttled: int | None = None
    wall_ahead_ms: float | None = None


class RulerRow(Record):
    """The instrument's error of one quantity: measured minus true, against a known server.

    `bias_ms` is the median error, `p95_ms` the 95th percentile of its size, None of too few.
    The quantity "stub" is the known server's own: what it did minus what was asked of it.
    """

    quantity: str
    in_flight: int
    delay_ms: float
    round_trip_ms: float
    keep_alive: bool
    n: int
    bias_ms: float
    p95_ms: float | None = None


class Ruler(Record):
    """One check of the instrument on itself."""

    format: Literal["poclib-ruler"] = "poclib-ruler"
    created: str
    cores: int | None = None
    rows: list[RulerRow] = []


class Report(Record):
    """One experiment with one strategy, self-describing: facts only, no address, no key."""

    format: Literal["poclib-report"] = "poclib-report"
    version: int = REPORT_VERSION
    experiment: Name
    strategy: Name
    created: str
    poclib: str
    source: str | None = None
    parameters: Parameters | None = None
    environment: dict[str, Any] = {}
    providers: list[ProviderFacts]
    prompt_sha256: list[str] = []
    prompts: list[str] | None = None
    prompt_characters: list[int] = []
    # Whether each arm's texts began with a mark of their own, so that no cache knew them.
    marked: bool = False
    fastest: Name | None = None
    gate_max_ratio: float = 2.0
    band: float = 0.05
    preparation: list[Arm] = []
    probes: list[Probe] = []
    rounds: list[Round] = []
    # What ended `rounds: auto`: an interval narrow enough, the time, or the most rounds there are.
    ended: Literal["narrow", "time", "most"] | None = None
    # Rounds that a stop cut short, repeated whole in `rounds`: kept, and counted nowhere.
    cut: list[Round] = []
    # When the run went on after a stop.
    resumed_ms: list[Milliseconds] = []
    lags: Lags = Lags()
    moments: list[Moment] = []
    ruler: Ruler | None = None
    notes: list[str] = []
    complete: bool = True

    @property
    def requests(self) -> list[Request]:
        """Every attempt of every round, in order; preparation not among them."""
        return [row for one in self.rounds for arm in one.arms for row in arm.requests]


# What pydantic says of a value of the wrong kind, in words for who wrote it.
PLAIN = {
    "bool_type": "needs true or false",
    "int_type": "needs a whole number, written without quotes or leading zeros",
    "float_type": "needs a number",
    "finite_number": "needs a finite number",
    "string_type": "needs a text; put quotes around it",
}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of a validation error as one sentence naming key, problem and cure."""
    import difflib

    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"]) or "the whole"
    key = "".join(c if c.isprintable() else "?" for c in path[:200])
    if first["type"] == "extra_forbidden":
        known = [*model.model_fields, *ProviderSettings.model_fields, *Link.model_fields]
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return f"{key} is not a parameter" + (f"; did you mean {near[0]}?" if near else ".")
    if first["type"] == "missing":
        return f"{key} is missing; add it (see params/ for commented examples)."
    problem = PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
    given = "" if first["type"] == "value_error" else f" (given {first['input']!r:.60})"
    return f"{key}: {problem}{given}."
