"""The agent's HTTP API: bodies exchanged between the agent of an inference pod and its callers.

The operator orders swaps. A validator that measures on a replica asks for the pod, renews the lease and orders trials.
Every call needs ``Authorization: Bearer <agent token>``.

======  =========================  ==========================  ==================================================
method  path                       body                        answer
======  =========================  ==========================  ==================================================
GET     ``/v1/state``                                          200 with :class:`AgentState`
PUT     ``/v1/draft``              :class:`SwapRequest`        202 with :class:`AgentState`
PUT     ``/v1/trace-budget``       :class:`TraceBudget`        202 with :class:`AgentState`
PUT     ``/v1/measurement``        :class:`MeasurementRequest` 202 with :class:`AgentState`
PUT     ``/v1/measurement/trial``  :class:`TrialRequest`       200 with :class:`AgentState` once the engine is
                                                               ready for the trial, 202 before: ask again
======  =========================  ==========================  ==================================================

Invariants:

- A refusal because of a conflict (409) has a :class:`Refusal` as its body, so a caller that is behind learns the epoch.
- A swap request is idempotent. Asking for the version that is served, or is being swapped in, changes nothing. The
  caller polls the state for the outcome.
- A pod is *withdrawn* while a validator measures on its engine: its engine fails the readiness probe, so the pod leaves
  the Service. When the lease ends, the pod returns to the draft that it served before, even if the validator died.
- Only a withdrawn pod loads a draft on trial. A withdrawn pod refuses swap requests (503).
"""

from __future__ import annotations

import hmac
import operator
from collections.abc import Callable
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from aurora_api.base import Model
from aurora_protocol.record import Record, Sha256

AGENT_PORT = 8471
ENGINE_PORT = 30000
MEASUREMENT_HEADER = "x-aurora-measurement"
"""Header in answers of a withdrawn pod's engine: names the measurement for which the pod refuses clients."""
PASS_HEADER = "x-aurora-pass"  # noqa: S105 - a header's name
"""Header in requests to a withdrawn pod's engine. Carries the :func:`measurement_pass`; others are refused."""
PROBE_HEADER = "x-aurora-probe"
"""Header in the pod's readiness probe of the engine, which fails while the pod may not serve clients."""
MAX_COUNT = 2**48
"""Limit of any counter. The sum over all pods of a speculator still fits Kubernetes' 64-bit integers."""
MAX_SPEEDUP = 1000
"""Limit of an estimated speedup."""
MAX_SQUARE = 2**56
"""Limit of a sum of squares. The sum over the pods of a judgement still fits 64 bits."""


def measurement_pass(token: str, measurement: str) -> str:
    """The value of :data:`PASS_HEADER` for ``measurement``. Only a holder of the agent token can compute it."""
    return hmac.new(token.encode(), f"aurora-measurement/{measurement}".encode(), "sha256").hexdigest()


class SwapPhase(StrEnum):
    """Progress of the last swap."""

    IDLE = "Idle"
    STAGING = "Staging"
    """The draft is downloaded and checked."""
    SWAPPING = "Swapping"
    """The engine loads the draft."""
    FAILED = "Failed"


class SwapRequest(Record):
    """Order the pod to serve ``version``."""

    version: int = Field(ge=0, description="The version to serve.")
    digest: Sha256 = Field(description="Digest of the version's weights.")
    epoch: int = Field(ge=1, description="Fence: the agent refuses an epoch lower than one that it has seen (409).")


class Refusal(Record):
    """Why the agent refused a call that conflicts with an earlier one (409), and the epoch of the last accepted one."""

    reason: str = Field(max_length=1000, description="Why the agent refused the call.")
    epoch: int | None = Field(
        default=None, ge=0, le=MAX_COUNT, description="Epoch of the last accepted order. None: there was none."
    )


class SwapStatus(Model):
    """The last swap of a pod."""

    phase: SwapPhase = Field(default=SwapPhase.IDLE, description="Progress of the swap.")
    version: int | None = Field(default=None, description="The version that was ordered last.")
    epoch: int | None = Field(
        default=None,
        ge=0,
        lt=1 << 63,
        description="Epoch of the last order for this version that the pod accepted. None: the agent reports none.",
    )
    error: str = Field(default="", max_length=1000, description="Why the swap failed.")
    transient: bool = Field(
        default=False, description="Whether the failure has nothing to do with the draft, so that a retry may succeed."
    )
    needs_restart: bool = Field(
        default=False,
        description="Whether the pod has to start again to serve the version: its engine started without a draft, with"
        " room for drafts of other sizes.",
    )
    pause_seconds: float | None = Field(
        default=None, description="How long the last swap paused generation, in seconds."
    )

    @property
    def under_way(self) -> bool:
        """Whether the pod downloads or loads a draft."""
        return self.phase in (SwapPhase.STAGING, SwapPhase.SWAPPING)


class LiveCounters(Model):
    """Sums over the ended requests of clients since the engine started. A reader takes differences of two readings.

    A verify round is one request's part of one decode step. A round in which nothing was proposed counts too, and makes
    one token. So a draft that is used more widely makes more tokens a round.

    The squares tell how much requests differ, and so how sure tokens per round are. Left out are requests that ended in
    their prefill, that asked for no speculation, and that ended while the pod was withdrawn.
    """

    requests: int = Field(default=0, description="Requests that ended after at least one verify round.")
    tokens: int = Field(
        default=0, description="Answer tokens that verify rounds made: all but the first token of each answer."
    )
    rounds: int = Field(default=0, description="Verify rounds.")
    tokens_squared: int = Field(default=0, description="Sum of the squares of each request's tokens.")
    tokens_by_rounds: int = Field(default=0, description="Sum of each request's tokens times its rounds.")
    rounds_squared: int = Field(default=0, description="Sum of the squares of each request's rounds.")

    def since(self, earlier: LiveCounters) -> LiveCounters:
        """The traffic since an ``earlier`` reading. A counter that fell counts as 0."""
        return self._combined(earlier, lambda now, before: max(0, now - before))

    def plus(self, other: LiveCounters) -> LiveCounters:
        """The traffic of both."""
        return self._combined(other, operator.add)

    def _combined(self, other: LiveCounters, combine: Callable[[int, int], int]) -> LiveCounters:
        names = type(self).model_fields
        return LiveCounters(**{name: combine(getattr(self, name), getattr(other, name)) for name in names})


class CaptureCounters(Model):
    """Counters of trace capture since the engine started."""

    captured_records: int = Field(default=0, description="Rounds and prompts captured.")
    dropped_records: int = Field(default=0, description="Rounds and prompts dropped under load.")
    shards_uploaded: int = Field(default=0, description="Shards uploaded to the store.")
    shards_dropped: int = Field(default=0, description="Shards deleted before they were uploaded.")
    answer_tokens: int = Field(default=0, description="Answer tokens in captured traces.")


class TraceBudget(Record):
    """How much of its traffic a pod traces. Until an order, it traces what its settings say."""

    tokens_per_minute: int = Field(ge=0, le=MAX_COUNT, description="Tokens to trace in a minute, prompts included.")


class SavedTime(Model):
    """How much time speculation saves an engine, by the costs of the engine's own verify rounds. An estimate."""

    share: float = Field(
        ge=-1,
        le=MAX_SPEEDUP,
        description="Seconds of decoding that speculation saves, in a second of the engine's time. An average over"
        " about the last day, idle time included.",
    )
    observed_seconds: float = Field(ge=0, allow_inf_nan=False, description="Seconds since the engine started to count.")


class Machine(Model):
    """The machine and the software that an engine runs on, for the environment of a measurement."""

    hardware: str = Field(description="Number and name of the GPUs, or of the CPU cores.")
    device: Literal["cpu", "cuda"] = Field(description="Where the engine computes.")
    engine: str = Field(description="Version of SGLang.")
    torch: str = Field(description="Version of torch.")


class MeasurementRequest(Record):
    """Withdraw the pod for a measurement, renew the lease, or give the pod back."""

    measurement: str = Field(min_length=1, max_length=63, description="Name of the validation Job.")
    epoch: int = Field(ge=1, description="Fence, as in :class:`SwapRequest`.")
    lease_seconds: int = Field(ge=0, le=3600, description="Length of the lease from now on. 0 gives the pod back.")
    begin: bool = Field(
        default=False, description="Withdraw the pod, if it serves. Without it, a lease that is over stays over."
    )


class TrialRequest(Record):
    """Order the engine of a withdrawn pod to hold a draft, with an empty prefix cache."""

    measurement: str = Field(description="Name of the validation Job.")
    version: int = Field(ge=0, description="The draft to load.")
    digest: Sha256 = Field(description="Digest of the draft's weights.")


class MeasurementPhase(StrEnum):
    """Progress of a withdrawn pod."""

    DRAINING = "Draining"
    """Requests of clients are still running."""
    MEASURING = "Measuring"
    """The engine is free for trials."""
    RETURNING = "Returning"
    """The pod reloads the draft that it served before."""


class MeasurementStatus(Model):
    """A withdrawn pod: its measurement and its progress."""

    measurement: str = Field(description="Name of the validation Job.")
    phase: MeasurementPhase = Field(description="Progress of the withdrawn pod.")
    machine: Machine | None = Field(default=None, description="Where the engine runs.")
    boot: str = Field(
        default="", max_length=128, description="Random id of the engine's start. Empty while it is down."
    )


class AgentState(Record):
    """The state of one inference pod. ``version`` and ``checksum`` come from the engine itself, never from memory.

    Every field is bounded. The operator copies many of them into the custom resource's status, and a faulty pod must
    not cause a status that the API server refuses.
    """

    pod: str = Field(max_length=253, description="Name of the pod.")
    boot: str = Field(max_length=128, description="Random id of the engine's start. Empty while the engine is down.")
    engine_ready: bool = Field(description="Whether the engine answers requests.")
    version: int | None = Field(
        default=None,
        ge=0,
        le=MAX_COUNT,
        description="The served version. None: the engine is down, or it is ready and serves without a draft yet.",
    )
    checksum: str | None = Field(
        default=None, max_length=256, description="SGLang's checksum of the draft's weights over all ranks."
    )
    swap: SwapStatus = Field(default=SwapStatus(), description="The last swap.")
    live: LiveCounters = Field(default=LiveCounters(), description="Counters of live traffic.")
    requests_now: int | None = Field(
        default=None, ge=0, le=MAX_COUNT, description="Requests that run or wait in the engine. None: not known."
    )
    capture: CaptureCounters = Field(default=CaptureCounters(), description="Counters of trace capture.")
    speedup_estimate: float | None = Field(
        default=None,
        ge=0,
        le=MAX_SPEEDUP,
        description="Throughput relative to no speculation, as the pod's speculation controller estimates it now."
        " None: not known.",
    )
    saved_time: SavedTime | None = Field(
        default=None,
        description="How much time speculation saves, as the pod's speculation controller estimates it. None: not"
        " known.",
    )
    measurement: MeasurementStatus | None = Field(default=None, description="Set while the pod is withdrawn.")
    trace_budget: TraceBudget | None = Field(
        default=None, description="How much the pod traces now. None: its agent is older than budgets."
    )
    speculation_off: str = Field(
        default="",
        max_length=300,
        description="Why the engine does not speculate with the draft that it holds. Empty when it does.",
    )
    upload_error: str = Field(
        default="",
        max_length=300,
        description="Why the store has taken no shard for a minute. Empty while uploads succeed.",
    )

    @property
    def serves_without_draft(self) -> bool:
        """Whether the engine is ready and holds no version yet."""
        return self.engine_ready and self.version is None

    @model_validator(mode="after")
    def _counters_within_limits(self) -> Self:
        for counters, limit in ((self.live, MAX_SQUARE), (self.capture, MAX_COUNT)):
            if not all(0 <= count <= limit for count in counters.model_dump().values()):
                raise ValueError(f"a counter is below 0 or above {limit}")
        return self
