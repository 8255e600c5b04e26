"""What a plan is: everything to be done for one speculator after one look at it.

Invariant: every part is idempotent, and a process that dies between any two of them is continued by the next plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from aurora_api.v1alpha1.status import SpeculatorStatus
from aurora_operator.kubernetes_api import Object
from aurora_protocol.agent_api import MeasurementRequest, SwapRequest
from aurora_protocol.draft_records import Channel


@dataclass(frozen=True)
class Swap:
    """Ask the agent of a pod for a version."""

    pod: str
    ip: str
    request: SwapRequest


@dataclass(frozen=True)
class Loan:
    """Withdraw a pod to measure on it, or give it back."""

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
    """In the order in which it is done."""

    create_keys: bool = False
    children: tuple[Object, ...] = ()
    advance: Channel | None = None
    status: SpeculatorStatus | None = None
    """None: as it is."""
    job: Object | None = None
    """Create it unless it exists."""
    delete_jobs: tuple[str, ...] = ()
    swaps: tuple[Swap, ...] = ()
    loans: tuple[Loan, ...] = ()
    notes: tuple[Note, ...] = field(default=())
    moving: bool = False
    """Something is under way: look again soon."""
