"""The facts: who answered, and every event of every request.

Times are milliseconds; `*_ms` marks are offsets from the report's one wall-clock anchor
(`Report.created`), taken from a monotonic clock. Absent is None, never 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from .asked import Link, Milliseconds, Shard
from .parameters import NAME, EngineKind, Name, Parameters

# Format history.
# 1: one JSON object (2026-11).
# 2: a line for each fact; `marked`, lengths of prompts, thoughts apart from answers (2026-11).
# 3: `ahead_ms`, of a connection that was opened before its request began (2026-11).
# 4: arms whose requests come one by one, "served" (2026-11).
REPORT_VERSION = 4

ArmName = Literal["warm-up", "calibration", "capacity", "served", "baseline", "strategy"]
Outcome = Literal["ok", "failed", "cancelled"]
# Of an attempt: the first of its prompt, one after a failure, or a second copy of one under way.
Role = Literal["first", "retry", "hedge"]


class Record(BaseModel):
    """A validated, immutable record; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ProviderFacts(Record):
    """One provider as it was before the run: who it is, never where."""

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
    router_of: list[Name] | None = None  # no machine, but in front of these
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
    shard: Shard | None = None


# In rows: finite, and of no more digits than a float holds.
_MOST = 10**16
_Time = Annotated[float, Meta(ge=0, lt=_MOST)]
_Count = Annotated[int, Meta(gt=-_MOST, lt=_MOST)]


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A record of which a run makes many: cheap to make, checked where it is read."""

    @classmethod
    def of(cls, fields: Any) -> Self:
        """The row with these fields. Raises `ValueError` for a wrong or an unknown one."""
        return fields if isinstance(fields, cls) else msgspec.convert(fields, cls)

    def model_copy(self, update: Mapping[str, Any]) -> Self:
        """The same row with other values, in the words of the other records."""
        return msgspec.structs.replace(self, **update)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: Any, handler: Any) -> Any:
        ways = PlainValidator(cls.of), PlainSerializer(msgspec.to_builtins)
        return handler.generate_schema(Annotated[Any, *ways])


class ServerTimings(Row, frozen=True, kw_only=True):
    """What the server says of one request; each part None where it does not say."""

    load_ms: float | None = None
    queue_ms: float | None = None
    prompt_ms: float | None = None
    generation_ms: float | None = None
    total_ms: float | None = None


class RequestMarks(Row, frozen=True, kw_only=True):
    """Offsets of transport events from the report's anchor; None where none was seen."""

    assigned_ms: _Time | None = None
    start_ms: _Time | None = None
    ahead_ms: _Time | None = None  # no moment: how long its connection took, opened before
    connect_start_ms: _Time | None = None
    connected_ms: _Time | None = None  # None on a warm connection
    ready_ms: _Time | None = None  # what comes before is our own work
    sent_ms: _Time | None = None
    first_byte_ms: _Time | None = None
    first_thought_ms: _Time | None = None
    first_token_ms: _Time | None = None
    last_byte_ms: _Time | None = None
    end_ms: _Time | None = None  # the last byte's arrival and our work on it, without any delay


@dataclass(frozen=True)
class Prompt:
    """One prompt as it is sent."""

    index: int
    text: str
    salt: str = ""  # keeps a server from answering it out of its cache
    messages: list[dict[str, str]] | None = None  # in place of `text`, where it is a conversation
    # By OpenAI's names, of a person's own prompt, whose answer is for use: its length is its own,
    # and a cache may help. None: it is sent to be measured.
    options: dict[str, Any] | None = None


@dataclass
class Exchange:
    """One request while it runs: a provider fills it in, whatever comes of it."""

    clock: Callable[[], float]  # milliseconds since the report's anchor
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
    ahead_ms: float | None = None

    def mark(self, event: str) -> None:
        """Note the time of `event`, a field of `RequestMarks` without its `_ms`."""
        self.marks[f"{event}_ms"] = self.clock()


class Request(Row, frozen=True, kw_only=True):
    """One attempt to have one prompt answered by one provider."""

    prompt: Annotated[int, Meta(ge=0, lt=_MOST)]
    provider: Annotated[str, Meta(pattern=NAME)]
    attempt: Annotated[int, Meta(ge=1, lt=_MOST)] = 1
    role: Role = "first"
    outcome: Outcome = "ok"
    error: str | None = None
    error_kind: str | None = None
    status: _Count | None = None
    wall_ms: _Time | None = None
    queued_ms: _Time | None = None
    marks: RequestMarks = RequestMarks()
    server: ServerTimings = ServerTimings()
    prompt_tokens: _Count | None = None
    cached_tokens: _Count | None = None
    output_tokens: _Count | None = None
    thought_characters: _Count | None = None
    finish_reason: str | None = None
    answer_sha256: str | None = None
    answer: str | None = None
    token_ms: list[float] | None = None

    @property
    def over_ms(self) -> float | None:
        """Wall minus the server's own time, at least 0; None where the server reports none."""
        wall_ms, server_ms = self.wall_ms, self.server.total_ms
        return None if wall_ms is None or server_ms is None else max(0.0, wall_ms - server_ms)


class EngineUse(Record):
    """What one embedded engine used during one arm."""

    provider: Name
    wall_ms: Milliseconds
    cpu_ms: Milliseconds
    processes: int
    threads: int  # the most at a time
    cores: int | None = None
    involuntary_switches: int | None = None  # how often a thread of it lost its core


class LimitChange(Record):
    """A provider's live limit was set to `limit`, with `in_flight` requests under way."""

    provider: Name
    at_ms: Milliseconds
    limit: Annotated[int, Field(ge=1)]
    reason: Literal["good", "slower", "refused", "learned"]  # learned: by the arm before
    in_flight: int


class Arm(Record):
    """One strategy over all prompts, once."""

    arm: ArmName
    turn: str | None = None  # of warm-up, calibration or capacity: whose, and after which round
    strategy: Name
    limits: dict[Name, int] | None = None  # that dispatch enforced
    struck_ms: dict[Name, Milliseconds] = {}  # when providers were cut off on purpose
    makespan_ms: Milliseconds | None = None  # only of runs published without times, else computed
    # Where requests came at a rate: when each prompt was due, and which found the queue full.
    rate_per_s: float | None = None
    due_ms: list[float] = []
    refused: list[int] = []
    requests: list[Request] = []
    engines: list[EngineUse] = []
    limit_changes: list[LimitChange] = []


class Round(Record):
    """The baseline and the strategy once each, in the order they ran."""

    index: Annotated[int, Field(ge=0)]
    arms: list[Arm]


class Probe(Record):
    """One tiny request on a warm connection: the round trip to a provider at a moment."""

    provider: Name
    at_ms: Milliseconds
    round_trip_ms: Milliseconds
    wire_ms: Milliseconds | None = None  # from the last byte sent to the first byte received


class Lags(Record):
    """How late the coordinator's event loop was: `lag_ms` at the moments `at_ms`."""

    at_ms: list[float] = []
    lag_ms: list[float] = []


class Moment(Record):
    """The coordinator's machine at a moment: shares (0 to 1) of all cores since the one before."""

    at_ms: Milliseconds
    own: float | None = None  # this process and its engines
    others: float | None = None
    steal: float | None = None  # what the host of a virtual machine took
    throttled: int | None = None  # how often it was slowed for heat


class RulerRow(Record):
    """The instrument's error of one quantity: measured minus true, against a known server."""

    quantity: str  # "stub" is that server's own: what it did minus what was asked of it
    in_flight: int
    delay_ms: float
    round_trip_ms: float
    keep_alive: bool
    n: int
    bias_ms: float  # the median
    p95_ms: float | None = None  # the 95th percentile of its size, None of too few


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
    marked: bool = False  # whether each arm's texts began with a mark that no cache knew
    fastest: Name | None = None
    gate_max_ratio: float = 2.0
    band: float = 0.05
    preparation: list[Arm] = []
    probes: list[Probe] = []
    rounds: list[Round] = []
    # What ended `rounds: auto`: an interval narrow enough, the time, or the most rounds there are.
    ended: Literal["narrow", "time", "most"] | None = None
    cut: list[Round] = []  # cut short by a stop and repeated whole in `rounds`: counted nowhere
    resumed_ms: list[Milliseconds] = []  # when the run went on after a stop
    lags: Lags = Lags()
    moments: list[Moment] = []
    ruler: Ruler | None = None
    notes: list[str] = []
    complete: bool = True

    @property
    def question(self) -> str:
        """What it is of, if not of rounds: levels of capacity, or rates that are served."""
        served = self.parameters and self.parameters.serve and not self.rounds
        return "capacity" if self.strategy == "capacity" else "served" if served else ""

    @property
    def requests(self) -> list[Request]:
        """Every attempt of every round, in order; preparation not among them."""
        return [row for round_ in self.rounds for arm in round_.arms for row in arm.requests]
