"""The rules of a roll: what ``spec.rollout`` says, and the constants that nobody has had a reason to change."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from aurora_api.v1alpha1.rollout import AnalysisSpec, RolloutSpec

INTERVAL_SECONDS = 10.0
INTERVALS_IN_A_WATCH = 6
"""A watch shorter than a minute has shorter intervals, so that it still holds as many."""


class AnalysisPolicy(AnalysisSpec):
    """How live traffic judges a draft. A loss counts only beyond chance."""

    settle_seconds: float = 2 * INTERVAL_SECONDS
    """Time after the first swap and after the promotion in which nothing is judged, so that requests which the former
    draft began can end."""
    interval_seconds: float = INTERVAL_SECONDS
    """Least time between two judgements."""
    max_accept_loss: float = 0.1
    """Share of the acceptance length that pods on the new draft may lose. Only tokens that the draft proposed count."""
    consecutive_success_limit: int = 2
    """Good judgements in a row that the canary needs before the other pods follow. 0 waits for none."""


class RolloutPolicy(RolloutSpec):
    """How a validated draft reaches the pods."""

    analysis: AnalysisPolicy = Field(default_factory=AnalysisPolicy)
    max_swapping: int = 1
    """Pods that swap at the same time after the canary."""
    max_not_ready: int = 1
    """A roll is held while more pods than this are not ready. A lent replica and a pod without a node do not count."""
    progress_deadline_seconds: int = 600
    """A roll ends without blame when no pod changed its version for this long."""

    @classmethod
    def of(cls, spec: RolloutSpec) -> Self:
        """The rules that a resource asks for."""
        given = spec.analysis
        if given.min_requests == 0:
            analysis = AnalysisPolicy(failure_limit=given.failure_limit, watch_seconds=0, consecutive_success_limit=0)
        else:
            interval = INTERVAL_SECONDS
            if given.watch_seconds:
                interval = min(interval, max(1.0, given.watch_seconds / INTERVALS_IN_A_WATCH))
            analysis = AnalysisPolicy(**dict(given), interval_seconds=interval, settle_seconds=2 * interval)
        return cls(paused=spec.paused, pin=spec.pin, canary=spec.canary, analysis=analysis)
