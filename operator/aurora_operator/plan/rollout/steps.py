"""The result of a rollout decision: the channel's next record, the roll to store, and the pods to ask."""

from __future__ import annotations

from dataclasses import dataclass, field

from aurora_operator.plan.rollout.roll import Roll
from aurora_protocol.draft_records import ChannelReason


@dataclass(frozen=True)
class Advance:
    """The channel's next record."""

    active: int
    reason: ChannelReason
    reject: int | None = None
    """Never roll out this version again."""


@dataclass(frozen=True)
class Step:
    """The actions of one reconcile, in this order: ``advance`` the channel, store ``rollout``, then ``swaps``.

    The channel comes first, because a roll whose version is active already is known to be over. Swaps come last,
    because an operator that dies before them must find the decision behind them.
    """

    rollout: Roll
    swaps: dict[str, int] = field(default_factory=dict)
    """Pod -> version."""
    advance: Advance | None = None
    """``rollout.message`` says why."""
    event: str = ""
    """RolloutStarted, CanaryPassed, Promoted, RolledBack, RolloutFailed, RolloutStopped, Pinned, Paused, Resumed or
    Vouched; empty when nothing was decided."""
