"""A plan: everything to be done for one speculator after one look at it.

Invariant: every part is idempotent. When the operator dies between any two parts, the next plan goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.kubernetes_api import Object
from aurora_protocol.agent_api import MeasurementRequest, SwapRequest
from aurora_protocol.draft_records import Channel


@dataclass(frozen=True)
class Swap:
    """Ask the agent of a pod to serve a version."""

    pod: str
    ip: str
    request: SwapRequest


@dataclass(frozen=True)
class Loan:
    """Withdraw a pod to measure on it, or take it back."""

    pod: str
    ip: str
    request: MeasurementRequest


@dataclass(frozen=True)
class Note:
    """An Event on the custom resource, in plain words."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class Plan:
    """The parts in the order in which they are done."""

    create_keys: bool = False
    children: tuple[Object, ...] = ()
    advance: Channel | None = None
    status: SpeculatorStatus | None = None
    """None: the stored status needs no change."""
    job: Object | None = None
    """A Job to create unless it exists."""
    delete_jobs: tuple[str, ...] = ()
    swaps: tuple[Swap, ...] = ()
    loans: tuple[Loan, ...] = ()
    notes: tuple[Note, ...] = field(default=())
    moving: bool = False
    """Something is under way, so the next look should come soon."""
