"""The roll in progress as one value: the part that users read, and the part that only the operator needs.

Users read :class:`RolloutStatus` in ``status.rollout``. The rest is :class:`OperatorState` in ``status.operatorState``,
which is opaque. :func:`read_roll` and :meth:`Roll.status_parts` translate between the status and a :class:`Roll`.

Invariant: a roll whose operator state cannot be read is never judged. It is marked ``state_lost``, and stops without
blame for its version.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from aurora_api.base import Model, Timestamp
from aurora_api.v1alpha1.status import MAX_PODS_SHOWN, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_protocol.agent_api import LiveCounters


class PodWindow(Model):
    """One pod's counters when the present window began, and the engine start and version that they belong to."""

    name: str
    boot: str
    version: int
    live: LiveCounters


class AnalysisState(Model):
    """Progress of the live analysis. None in a roll that is not judged."""

    serving_digest: str = ""
    """Digest of how pods serve. After a change of the digest the baseline is no longer comparable."""
    window_begins: Timestamp | None = None
    """In the future while requests that the previous draft began may still be running."""
    windows: list[PodWindow] = Field(default_factory=list, max_length=MAX_PODS_SHOWN)
    baseline: LiveCounters | None = None
    """The traffic of all pods just before the first swap."""
    good_windows: int = Field(default=0, ge=0)
    """Good judgements in a row."""
    bad_windows: int = Field(default=0, ge=0)
    """Bad judgements since the roll started."""
    message: str = ""
    """The last judgement."""


class OperatorState(Model):
    """The state, besides :class:`RolloutStatus`, from which a restarted operator resumes a roll."""

    promoted: bool = False
    """The roll's version became the active one, and is still watched."""
    lone_restarts: dict[str, int] = Field(default_factory=dict)
    """Pod -> :attr:`Pod.lone_restarts`, for every pod that has the version or was asked to take it, until it is back
    with another one. A higher count means a crash."""
    engine_crashes: int = Field(default=0, ge=0)
    """How many of these engines have crashed."""
    analysis: AnalysisState | None = None


class _StoredState(OperatorState):
    """The state as it is stored, with the version of the roll that it belongs to."""

    version: int | None = None


class Roll(RolloutStatus, OperatorState):
    """Everything that the state machine remembers from one reconcile to the next."""

    state_lost: bool = False
    """The stored operator state was missing, unreadable or of another roll."""

    @property
    def under_way(self) -> bool:
        """Whether pods may serve a version that is not active yet."""
        return self.phase is not RolloutPhase.IDLE and not self.promoted

    def status_parts(self) -> tuple[RolloutStatus, dict[str, Any]]:
        """``status.rollout`` and ``status.operatorState``."""
        rollout = RolloutStatus(**{name: getattr(self, name) for name in RolloutStatus.model_fields})
        state = _StoredState(**{name: getattr(self, name) for name in _StoredState.model_fields})
        return rollout, state.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def read_roll(status: SpeculatorStatus) -> Roll:
    """The roll that ``status`` stores."""
    shown = {name: getattr(status.rollout, name) for name in RolloutStatus.model_fields}
    try:
        state = _StoredState.model_validate(status.operator_state)
    except ValidationError:
        state = _StoredState()
    if status.rollout.phase is RolloutPhase.IDLE:
        return Roll(**shown)
    if state.version is None or state.version != status.rollout.version:
        return Roll(**shown, state_lost=True)
    return Roll(**shown, **{name: getattr(state, name) for name in OperatorState.model_fields})
