"""What a person writes: the base of every parameter, and the parts of a provider's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Asked(BaseModel):
    """What a person writes: taken as written (no text for a number, no true for 1), and finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Link(Asked):
    """A network link in user space before an embedded engine."""

    round_trip_ms: Milliseconds = 0.0
    jitter_ms: Milliseconds = 0.0
    bandwidth_mbit_s: Annotated[float, Field(gt=0)] | None = None


class Shard(Asked):
    """One model over workers (ggml-rpc-server), started here or a person's own `at` host:port.

    `split` is each one's share of the layers, by its measured speed and memory if None; the first
    `local_layers` and, if `local_output`, the last stay with the coordinator. `draft` guesses
    tokens that are checked together: from the text so far, or by the whole model ("itself").
    """

    workers: Annotated[int, Field(ge=1, le=16)] = 2
    at: Annotated[list[str], Field(min_length=1, max_length=16)] | None = Field(None, exclude=True)
    split: list[Annotated[float, Field(gt=0)]] | None = None
    local_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    local_output: bool = False
    draft: Literal["ngram-simple", "ngram-map-k", "ngram-mod", "itself"] | None = None
    draft_tokens: Annotated[int, Field(ge=1, le=64)] = 8
    worker_memory_mib: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _each_worker_has_its_own(self) -> Shard:
        for key, values in (("split", self.split), ("at", self.at)):
            if values and len(values) != self.workers:
                raise ValueError(f"{key} needs one for each of {self.workers} workers")
        return self
