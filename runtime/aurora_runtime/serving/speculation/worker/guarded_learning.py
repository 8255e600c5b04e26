"""Lets the policy and the report learn from rounds without ending the scheduler.

Invariant: no method raises. Nothing here changes SGLang's state. After an error the engine goes on, and the policy
skips this round.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from aurora_runtime.serving.speculation.outlook import Decision, RequestOutlook
from aurora_runtime.serving.speculation.worker.policy import Policy
from aurora_runtime.serving.speculation.worker.round_report import RoundReport
from aurora_runtime.serving.speculation.worker.rounds import Round

log = logging.getLogger(__name__)


class GuardedLearning:
    """The policy that learns from rounds, and the report that counts them."""

    def __init__(self, policy: Policy, report: RoundReport) -> None:
        self._policy = policy
        self._report = report

    def observe(
        self,
        decision: Decision,
        outlooks: Sequence[RequestOutlook],
        accepted: Sequence[int],
        milliseconds: float | None,
        unplayed_lookup: Sequence[int] = (),
        tokens_made: Sequence[int] = (),
    ) -> None:
        self._guarded(self._policy.observe, decision, outlooks, accepted, milliseconds, unplayed_lookup, tokens_made)

    def request_ended(self, rid: str) -> None:
        self._guarded(self._policy.request_ended, rid)

    def count(self, current: Round, accepted: Sequence[int]) -> None:
        """A round ended. ``accepted`` holds each request's accepted proposed tokens."""
        self._guarded(self._report.add, current, accepted)

    def _guarded(self, learn: Callable[..., None], *args: Any) -> None:
        try:
            learn(*args)
        except Exception:  # what is not learned costs time; an exception here would end the scheduler
            self._report.count_error()
            log.exception("aurora speculation: a round was not learned from")
