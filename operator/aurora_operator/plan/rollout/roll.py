"""The roll in progress as one value: the part that users read, and the part that only the operator needs.

Users read :class:`RolloutStatus` in ``status.rollout``. The rest is :class:`OperatorState` in ``status.operatorState``,
which is opaque. :func:`read_roll` and :meth:`Roll.status_parts` translate between the status and a :class:`Roll`.

Invariant: a roll whose operator state cannot be read is never judged. It is marked ``state_lost``, and stops without
blame for its version. The same holds for windows that lack a counter of this version (:data:`COUNTERS`). Every field is
optional, so an operator of another version reads the state too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from aurora_api.base import RewrittenModel, Timestamp
from aurora_api.v1alpha1.status import MAX_PODS_SHOWN, RolloutPhase, RolloutStatus, SpeculatorStatus
from aurora_protocol.agent_api import LiveCounters, SwapStatus

UNDER_WAY = frozenset({RolloutPhase.CANARY, RolloutPhase.ROLLING, RolloutPhase.PAUSED})
"""Phases in which pods may serve a version that is not active yet."""
JUDGED_PHASES = UNDER_WAY | {RolloutPhase.WATCHING}
COUNTERS: Final = 1
"""Number of the set of counters in :class:`LiveCounters`. Each new counter raises it.

An older operator does not store a counter that it does not know. A window that it wrote would show a new counter as
zero, and so all traffic since the engine started as that of the window.
"""


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


NO_ENGINES: Final[Mapping[str, Any]] = {
    "engine_boots": {},
    "container_starts": {},
    "missing_since": {},
    "loading_since": {},
    "engine_crashes": 0,
    "other_boots": {},
    "other_crashes": 0,
}
"""The fields of a roll whose version no engine has, and that counts engine crashes from zero."""


class OperatorState(RewrittenModel):
    """The state, besides :class:`RolloutStatus`, from which a restarted operator resumes a roll."""

    first_epoch: int | None = None
    """The epoch with which the roll started. An order of a lower epoch belongs to an earlier roll."""
    engine_boots: dict[str, str] = Field(default_factory=dict)
    """Pod -> engine start, for every pod that serves the version or was asked to. Another start means a crash."""
    container_starts: dict[str, Timestamp] = Field(default_factory=dict)
    """Pod -> when the container of that engine started, by the clock of its node. It is only compared for equality."""
    missing_since: dict[str, Timestamp] = Field(default_factory=dict)
    """Pod -> since when its clock runs because the pod had the version and is away (``rollout.absences``)."""
    loading_since: dict[str, Timestamp] = Field(default_factory=dict)
    """Pod -> since when its engine has been seen loading the version."""
    engine_crashes: int = Field(default=0, ge=0)
    """How many of these engines have crashed."""
    other_boots: dict[str, str] = Field(default_factory=dict)
    """Pod -> engine start, for every other pod that serves."""
    other_crashes: int = Field(default=0, ge=0)
    """How many of these engines have crashed. Whatever ended them may end engines with the version too."""
    analysis: AnalysisState | None = None
    retried: dict[str, Timestamp] = Field(default_factory=dict)
    """Pod -> when the pod was last asked again after a failed swap. By the operator's clock, unlike the agent's times.
    It is stored in every phase."""
    retries: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Pod -> how often in a row the pod was asked again after a failed swap. It is stored in every phase."""


class _StoredState(OperatorState):
    """The state as it is stored, with the version of the roll that it belongs to."""

    version: int | None = None
    counters: int = 1
    """Value of :data:`COUNTERS` in the operator that stored the windows."""
    channel_epoch: int | None = None
    """Epoch of the channel's record that the status follows. It is no part of the roll (``plan.usable_store``)."""


class Roll(RolloutStatus, OperatorState):
    """Everything that the state machine remembers from one reconcile to the next."""

    unknown_state: dict[str, Any] = Field(default_factory=dict)
    """The fields of the stored operator state that this version does not know."""
    state_lost: bool = False
    """The stored operator state was missing, unreadable or of another roll, or lacks counters of this version."""

    def status_parts(self) -> tuple[RolloutStatus, dict[str, Any]]:
        """``status.rollout`` and ``status.operatorState``."""
        rollout = RolloutStatus(**{name: getattr(self, name) for name in RolloutStatus.model_fields})
        if self.phase in JUDGED_PHASES:
            fields = {name: getattr(self, name) for name in OperatorState.model_fields}
            state = _StoredState(version=self.version, counters=COUNTERS, **fields, **self.unknown_state)
        else:
            state = _StoredState(retried=self.retried, retries=self.retries)
        return rollout, state.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    def ordered(self, swap: SwapStatus) -> bool:
        """Whether the pod accepted the order for its last ``swap`` in this roll.

        The epochs say so. Only for an agent or a roll of a version that does not name its epoch, the clocks of pod and
        operator are compared, which may differ.
        """
        if self.first_epoch is not None and swap.epoch is not None:
            return self.first_epoch <= swap.epoch <= self.epoch
        return self.started is None or swap.finished is None or swap.finished >= self.started


def read_roll(status: SpeculatorStatus) -> Roll:
    """The roll that ``status`` stores."""
    shown = {name: getattr(status.rollout, name) for name in RolloutStatus.model_fields}
    try:
        state = _StoredState.model_validate(status.operator_state)
    except ValidationError:
        state = _StoredState()
    if status.rollout.phase not in JUDGED_PHASES:
        return Roll(**shown, retried=state.retried, retries=state.retries)
    lacks_counters = state.analysis is not None and state.counters < COUNTERS
    if state.version is None or state.version != status.rollout.version or lacks_counters:
        return Roll(**shown, state_lost=True)
    fields = {name: getattr(state, name) for name in OperatorState.model_fields}
    return Roll(**shown, **fields, unknown_state=state.model_extra or {})
