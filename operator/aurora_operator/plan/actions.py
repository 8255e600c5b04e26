"""A plan: everything to be done for one speculator after one observation.

Invariant: every part is idempotent. When the operator dies between any two parts, the next plan goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.kubernetes_api import Object
from aurora_operator.plan.operator_upgrade import UpgradeDecision
from aurora_protocol.agent_api import SwapRequest, TraceBudget
from aurora_protocol.draft_records import Channel


@dataclass(frozen=True)
class Swap:
    """Ask the agent of a pod to serve a version."""

    pod: str
    ip: str
    request: SwapRequest


@dataclass(frozen=True)
class TraceLimit:
    """Ask the agent of a pod to trace no more than a budget."""

    pod: str
    ip: str
    budget: TraceBudget


class MeasurementStage(StrEnum):
    """What a candidate means for those of the other speculators of its namespace."""

    MEASURING = "measuring"
    """It has a Job."""
    WAITING = "waiting"
    """It could be measured, but for the measurement of another one."""


@dataclass(frozen=True)
class EventNote:
    """A Kubernetes Event to post on the custom resource."""

    reason: str
    message: str
    warning: bool = False
    about_condition: bool = False
    """Its message holds figures, so only its reason tells whether it was posted before."""


@dataclass(frozen=True)
class Plan:
    """The parts in the order in which they are done."""

    create_keys: bool = False
    children: tuple[Object, ...] = ()
    scale: int | None = None
    """Inference pods to run while a fault of the spec keeps ``children`` as they are. None: ``children`` tell it."""
    advance: Channel | None = None
    status: SpeculatorStatus | None = None
    """None: the stored status needs no change."""
    delete_jobs: tuple[str, ...] = ()
    job: Object | None = None
    """A Job to create unless it exists."""
    swaps: tuple[Swap, ...] = ()
    trace_limits: tuple[TraceLimit, ...] = ()
    notes: tuple[EventNote, ...] = field(default=())
    decisions: tuple[str, ...] = ()
    """The reasons of those notes that tell a decision about a version, for the metrics."""
    decides_versions: bool = False
    """The rollout's state machine took part, so time that passed counts for its deadlines."""
    moving: bool = False
    """Something is under way, so the next reconcile should come soon."""
    measurement: MeasurementStage | None = None
    """None: no other speculator of the namespace needs to wait for this one's candidate."""
    upgrade: UpgradeDecision | None = None
    """What the other speculators must know about this one after an upgrade of the operator. None: nothing is known."""
