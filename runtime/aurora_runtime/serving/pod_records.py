"""The records that the containers of an inference pod leave for each other in the pod's shared folder.

This module imports neither torch nor sglang, because the agent imports it. :mod:`aurora_runtime.serving.pod_files`
holds the paths of the records.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from aurora_api.base import Timestamp
from aurora_protocol.agent_api import MAX_COUNT, LiveCounters, Machine, SavedTime, measurement_pass
from aurora_protocol.record import Record, Sha256

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
ArmName = Annotated[str, Field(pattern=r"^(off|(lookup|draft)-[1-9][0-9]{0,2})$")]
"""An arm of the speculation controller: `off`, or who proposes and how many tokens, such as `lookup-5` or `draft-3`."""
CRASH_WINDOW: Final = timedelta(minutes=10)


class EngineState(Record):
    """``engine.json``: the launcher reports the engine start that is running."""

    boot: str = Field(description="Random id of this engine start.")
    ready: bool = Field(description="Whether the engine answers requests and, with a draft, captures traces.")
    started_at: Timestamp
    machine: Machine | None = None
    held_version: int | None = Field(
        default=None, description="The draft version with which this start does not speculate, after EngineCrashes."
    )


class EngineCrashes(Record):
    """``crashes.json``: when the engine ended by itself with one draft version, at most twice.

    Two crashes hold every later start with this version to rounds without speculation. The cause may be our code in
    SGLang, which a restart would meet again. The init container removes the file.
    """

    version: int
    at: tuple[Timestamp, ...] = ()

    @property
    def hold(self) -> bool:
        return len(self.at) > 1

    def plus(self, now: datetime) -> EngineCrashes:
        """With a crash at ``now``, and without those that are too old to count."""
        recent = tuple(at for at in self.at if now - at <= CRASH_WINDOW)
        return self if self.hold else EngineCrashes(version=self.version, at=(*recent, now))


class CaptureState(Record):
    """``capture.json``: counters of the capture plugin since the engine started."""

    boot: str
    ok: bool = Field(description="False: the plugin refused to capture; `error` says why.")
    error: str = ""
    probe_records: int = Field(default=0, description="Captured verify rounds of the launcher's probe request.")
    captured_records: int = 0
    dropped_records: int = 0
    hook_errors: int = Field(default=0, description="Exceptions inside hooks. Each loses the records of one batch.")
    traced_answer_tokens: int = 0
    shards_dropped: int = 0
    losses: dict[str, int] = Field(default_factory=dict, description="What was lost, by reason.")
    live: LiveCounters = Field(default=LiveCounters(), description="The ended requests of clients, traced or not.")


class SourceCounters(Record):
    """What one source of proposals (lookup or draft) did since the engine started.

    Item ``i`` of a tuple stands for the ``i + 1``-th proposed token of a chain. A chain of 3 tokens, of which the
    target accepted 1, adds 1 to the first 3 items of `proposed_at` and to the first item of `accepted_at`.
    """

    requests: Count = Field(default=0, description="Requests for which the source proposed at least once.")
    proposed_at: tuple[Count, ...] = Field(default=(), description="Chains with a proposed token at each position.")
    accepted_at: tuple[Count, ...] = Field(default=(), description="Chains accepted up to each position.")

    @model_validator(mode="after")
    def _accepted_was_proposed(self) -> Self:
        if len(self.accepted_at) > len(self.proposed_at) or any(
            accepted > proposed for accepted, proposed in zip(self.accepted_at, self.proposed_at, strict=False)
        ):
            raise ValueError("more tokens were accepted than proposed")
        return self

    @property
    def rounds(self) -> int:
        """Chains of at least one token: one for each round of a request for which the source proposed."""
        return self.proposed_at[0] if self.proposed_at else 0

    @property
    def proposed(self) -> int:
        """Proposed tokens."""
        return sum(self.proposed_at)

    @property
    def accepted(self) -> int:
        """Accepted tokens, without the target's own."""
        return sum(self.accepted_at)


class RoundCost(Record):
    """The measured time of a decode round."""

    arm: ArmName
    batch_size: int = Field(ge=1, description="Running requests.")
    milliseconds: float = Field(gt=0, allow_inf_nan=False)


class SpeculationState(Record):
    """``speculation.json``: decisions and results of the speculation controller since the engine started.

    A round of ``rounds_by_arm`` is one decode round of the batch. A round of a :class:`SourceCounters` is one request's
    part of a decode round.
    """

    boot: str
    ok: bool = Field(default=True, description="False: the plugin refused to install its hooks; `error` says why.")
    error: str = ""
    errors: Count = Field(default=0, description="Rounds that were decided without the controller after an error.")
    rounds_by_arm: dict[ArmName, Count] = Field(default_factory=dict)
    lookup: SourceCounters = SourceCounters()
    draft: SourceCounters = SourceCounters()
    costs: tuple[RoundCost, ...] = Field(default=(), description="Only arms and batch sizes that were measured.")
    speedup_over_off: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Estimated throughput relative to no speculation. None: nothing to estimate it from.",
    )
    saved_time: SavedTime | None = Field(
        default=None, description="Time that speculation saves. None: nothing to estimate it from."
    )
    exploring_share: float = Field(default=0, ge=0, le=1, description="Share of the decode rounds that explored.")
    written_at: Timestamp


class Withdrawal(Record):
    """``withdrawal.json``: the pod is withdrawn from its Service. The pod is not ready while the file exists.

    The agent writes the file before it loads any trial draft. The agent removes the file once it has confirmed that
    the engine holds the current draft again.
    """

    measurement: str
    drained: bool = Field(default=False, description="Whether the requests of clients have ended.")
    boot: str = Field(description="The engine start that is lent. The next start removes the file.")
    current_digest: Sha256 = Field(description="The draft to restore: the pod's current draft.")
    current_checksum: str
    trial: bool = Field(default=False, description="Whether the engine may hold a trial draft.")
    restart: bool = Field(
        default=False, description="Whether the engine cannot restore the draft. The launcher then starts it again."
    )
    pass_sha256: Sha256 = Field(description="Digest of the pass that the measurement's requests carry. No secret.")


def pass_digest(token: str, measurement: str) -> str:
    """The digest of a measurement's pass, as :class:`Withdrawal` keeps it."""
    return hashlib.sha256(measurement_pass(token, measurement).encode()).hexdigest()
