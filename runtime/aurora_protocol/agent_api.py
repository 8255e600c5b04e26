"""The agent's HTTP API: bodies exchanged between the operator and the sidecar of an inference pod.

``GET /v1/state`` -> :class:`AgentState`; ``PUT /v1/draft`` :class:`SwapRequest` -> 202 with :class:`AgentState`.
All need ``Authorization: Bearer <agent token>``. A swap request is idempotent: asking for the version in force, or
for the one being swapped, changes nothing; the operator polls the state for the outcome.

A pod can be *withdrawn* to measure drafts on its engine: it is not ready, so that it leaves the Service, and goes back
to the draft that it served when the lease ends, whoever dies. ``PUT /v1/measurement`` :class:`MeasurementRequest` ->
202 withdraws it, renews the lease or gives the pod back; ``PUT /v1/measurement/trial`` :class:`TrialRequest` -> 200
once the engine holds what is asked for and its prefix cache is empty, 202 while it is on the way: ask again. Only a
withdrawn pod loads a draft for trial, and swap requests are refused (503) meanwhile.
"""

from __future__ import annotations

import hmac
from enum import StrEnum
from typing import Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from aurora_api.base import Model, Timestamp
from aurora_protocol.record import Record, Sha256

AGENT_PORT = 8471
ENGINE_PORT = 30000
MEASUREMENT_HEADER = "x-aurora-measurement"
"""In answers of a withdrawn pod's engine: the guard stands, for this measurement."""
PASS_HEADER = "x-aurora-pass"  # noqa: S105 - a header's name
"""In requests to a withdrawn pod's engine: :func:`measurement_pass`, which alone reaches a draft on trial."""
MEASUREMENT_PREFIX = "aurora-measure-"
"""Ids of requests that start so are no traffic, and are not traced."""
MAX_COUNT = 2**48
"""Of any counter: sums over all pods of a speculator still fit the 64 bits that Kubernetes gives an integer."""
T = TypeVar("T", "LiveCounters", "CaptureCounters")


def measurement_pass(token: str, measurement: str) -> str:
    """What lets a request of ``measurement`` through the guard: only who holds the agents' token can make it."""
    return hmac.new(token.encode(), f"aurora-measurement/{measurement}".encode(), "sha256").hexdigest()


class SwapPhase(StrEnum):
    IDLE = "Idle"
    STAGING = "Staging"
    SWAPPING = "Swapping"
    FAILED = "Failed"


class SwapRequest(Record):
    """Ask the pod to serve ``version``. ``epoch`` fences: a request of a lower epoch than one seen is refused (409)."""

    version: int = Field(ge=0)
    digest: Sha256
    epoch: int = Field(ge=1)


class SwapStatus(Model):
    phase: SwapPhase = SwapPhase.IDLE
    version: int | None = Field(default=None, description="The version asked for last.")
    error: str = Field(default="", max_length=1000)
    transient: bool = Field(default=False, description="The failure says nothing about the draft: asking again is due.")
    pause_seconds: float | None = Field(default=None, description="How long generation was paused by the last swap.")
    finished: Timestamp | None = None


class LiveCounters(Model):
    """Counters of the engine since it started; the reader takes differences."""

    requests: int = 0
    aborted: int = Field(default=0, description="Requests that their clients gave up.")
    answer_tokens: int = 0
    verify_rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    gap_milliseconds: int = Field(
        default=0, description="Sum over ended requests of their mean time between answer tokens."
    )
    gaps: int = Field(default=0, description="How many requests were summed.")
    gap_squares: int = Field(
        default=0, description="Upper bound of the sum of their squares, in ms²: it bounds what chance explains."
    )


class CaptureCounters(Model):
    captured_records: int = 0
    dropped_records: int = 0
    shards_uploaded: int = 0
    shards_dropped: int = 0
    answer_tokens: int = 0


class EngineMode(StrEnum):
    """What an engine speculates with."""

    DRAFT = "draft"
    OFF = "off"
    NGRAM = "ngram"


class Machine(Model):
    """Where an engine runs, for the environment of what is measured on it."""

    hardware: str
    device: Literal["cpu", "cuda"]
    engine: str = Field(description="SGLang's version.")
    torch: str


class MeasurementRequest(Record):
    """Ask for the pod, for more time, or give it back. ``epoch`` fences as in :class:`SwapRequest`."""

    measurement: str = Field(min_length=1, max_length=63, description="The validation Job's name.")
    epoch: int = Field(ge=1)
    lease_seconds: int = Field(ge=0, le=3600, description="From now; 0: give it back.")
    begin: bool = Field(default=False, description="Withdraw the pod. Only the operator may: it knows the others.")


class TrialRequest(Record):
    """What the engine of a withdrawn pod is to run next."""

    measurement: str
    mode: EngineMode
    version: int | None = Field(default=None, ge=0)
    digest: Sha256 | None = None

    @model_validator(mode="after")
    def _draft_is_named(self) -> Self:
        named = self.version is not None and self.digest is not None
        if named != (self.mode is EngineMode.DRAFT):
            raise ValueError("version and digest name a draft, and a draft is named by both")
        return self


class MeasurementPhase(StrEnum):
    DRAINING = "Draining"
    MEASURING = "Measuring"
    RETURNING = "Returning"


class MeasurementStatus(Model):
    """A pod that is withdrawn: for which measurement, and whether requests have ended yet."""

    measurement: str
    phase: MeasurementPhase
    machine: Machine | None = None
    boot: str = Field(default="", max_length=128, description="Of the engine; empty while it is down.")


class AgentState(Record):
    """What one inference pod serves. ``version`` and ``checksum`` come from the engine itself, never from memory.

    Everything is bounded, because much of it is copied into the custom resource's status: a pod that answers nonsense
    must not make a status that the API server refuses.
    """

    pod: str = Field(max_length=253)
    boot: str = Field(max_length=128, description="Random id of this engine start; empty while the engine is down.")
    engine_ready: bool
    lineage: int | None = None
    version: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    checksum: str | None = Field(
        default=None, max_length=256, description="SGLang's checksum of the draft weights, all ranks."
    )
    swap: SwapStatus = SwapStatus()
    live: LiveCounters = LiveCounters()
    capture: CaptureCounters = CaptureCounters()
    measurement: MeasurementStatus | None = Field(default=None, description="Set while the pod serves nobody.")

    @field_validator("live", "capture")
    @classmethod
    def _countable(cls, counters: T) -> T:
        if not all(0 <= count <= MAX_COUNT for count in counters.model_dump().values()):
            raise ValueError(f"a counter is below 0 or above {MAX_COUNT}")
        return counters
