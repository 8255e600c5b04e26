"""The roll in progress as one value: the part that users read, and the part that only the operator needs.

Users read :class:`RolloutStatus` in ``status.rollout``. The rest is :class:`OperatorState` in ``status.operatorState``,
which is opaque. :func:`read_roll` and :meth:`Roll.status_parts` translate between the status and a :class:`Roll`.

Invariant: a roll whose operator state cannot be read is never judged. It is marked ``state_lost``, and stops without
blame for its version.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Field, ValidationError

from aurora_api.base import RewrittenModel, Timestamp
from aurora_api.v1alpha1.status import MAX_PODS_SHOWN, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_protocol.agent_api import LiveCounters

UNDER_WAY = frozenset({RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.PAUSED})
"""Phases in which pods may serve a version that is not active yet."""
JUDGED_PHASES = UNDER_WAY | {RolloutPhase.WATCHING}


class PodWindow(RewrittenModel):
    """One pod's counters when the present window began, and the engine start and version that they belong to."""

    name: str
    boot: str
    version: int
    live: LiveCounters


class AnalysisState(RewrittenModel):
    """Progress of the live analysis. None in a roll that is not judged."""

    serving_digest: str = ""
    """Digest of how pods serve. After a change of the digest the baseline is no longer comparable."""
    window_begins: Timestamp | None = None
    settling: bool = False
    """``window_begins`` lies in the future. Until then, requests that the previous draft began may still be running."""
    canary_missing_since: Timestamp | None = None
    """Since when a pod that served the version does not confirm it any more."""
    windows: list[PodWindow] = Field(default_factory=list, max_length=MAX_PODS_SHOWN)
    baseline: LiveCounters | None = None
    """The traffic of all pods just before the first swap."""
    good_windows: int = Field(default=0, ge=0)
    """Good judgements in a row."""
    bad_windows: int = Field(default=0, ge=0)
    """Bad judgements since the roll started."""
    slow_windows: int = Field(default=0, ge=0)
    """Windows in a row with more time between tokens than is allowed."""
    message: str = ""
    """The last judgement."""


NO_CRASHES: Final[Mapping[str, Any]] = {
    "engine_boots": {},
    "engine_crashes": 0,
    "other_boots": {},
    "other_crashes": 0,
}
"""The fields of a roll that counts engine crashes from zero."""


class OperatorState(RewrittenModel):
    """The state, besides :class:`RolloutStatus`, from which a restarted operator resumes a roll."""

    phase_started: Timestamp | None = None
    """When the present phase began. Only the trace of the roll depends on it (``aurora_operator.roll_traces``)."""
    engine_boots: dict[str, str] = Field(default_factory=dict)
    """Pod -> engine start, for every pod that serves the version or was asked to. Another start means a crash."""
    engine_crashes: int = Field(default=0, ge=0)
    """How many of these engines have crashed."""
    other_boots: dict[str, str] = Field(default_factory=dict)
    """Pod -> engine start, for every other pod that serves."""
    other_crashes: int = Field(default=0, ge=0)
    """How many of these engines have crashed. Whatever ended them may end engines with the version too."""
    analysis: AnalysisState | None = None


class _StoredState(OperatorState):
    """The state as it is stored, with the version of the roll that it belongs to."""

    version: int | None = None


class Roll(RolloutStatus, OperatorState):
    """Everything that the state machine remembers from one reconcile to the next."""

    unknown_state: dict[str, Any] = Field(default_factory=dict)
    """The fields of the stored operator state that this version does not know."""
    state_lost: bool = False
    """The stored operator state was missing, unreadable or of another roll."""

    def status_parts(self) -> tuple[RolloutStatus, dict[str, Any]]:
        """``status.rollout`` and ``status.operatorState``."""
        rollout = RolloutStatus(**{name: getattr(self, name) for name in RolloutStatus.model_fields})
        if self.phase not in JUDGED_PHASES:
            return rollout, {}
        state = _StoredState(
            version=self.version,
            phase_started=self.phase_started,
            engine_boots=self.engine_boots,
            engine_crashes=self.engine_crashes,
            other_boots=self.other_boots,
            other_crashes=self.other_crashes,
            analysis=self.analysis,
            **self.unknown_state,
        )
        return rollout, state.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def read_roll(status: SpeculatorStatus) -> Roll:
    """The roll that ``status`` stores."""
    shown = {name: getattr(status.rollout, name) for name in RolloutStatus.model_fields}
    if status.rollout.phase not in JUDGED_PHASES:
        return Roll(**shown)
    try:
        state = _StoredState.model_validate(status.operator_state)
    except ValidationError:
        state = _StoredState()
    if state.version is None or state.version != status.rollout.version:
        return Roll(**shown, state_lost=True)
    return Roll(
        **shown,
        phase_started=state.phase_started,
        engine_boots=state.engine_boots,
        engine_crashes=state.engine_crashes,
        other_boots=state.other_boots,
        other_crashes=state.other_crashes,
        analysis=state.analysis,
        unknown_state=state.model_extra or {},
    )
