"""Delays the next loan of a replica after one was recalled because other pods were not ready. Pure.

Why: the loan itself may have overloaded the other pods. They would recover once the replica serves again, and the next
loan would overload them again, without end. So the delay doubles with each recall of the candidate's replica.

The candidate's message says that the delay lasts. If the status is lost, a replica is only lent earlier.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from aurora_api.v1alpha1.status import CandidatePhase, CandidateStatus
from aurora_operator.plan.lending import WAITING_FOR_REPLICA

MIN_DELAY, MAX_DELAY = timedelta(seconds=30), timedelta(minutes=30)
_DELAYED: Final = f"{WAITING_FOR_REPLICA}the last one was recalled, because "


def delayed_message(candidate: CandidateStatus, reason: str) -> str:
    """The message of ``candidate``, whose replica was just recalled for ``reason``."""
    delay_seconds = int(_delay(candidate).total_seconds())
    return f"{_DELAYED}{reason}; the next is lent in {delay_seconds} s at the earliest"


def seconds_until_loan(candidate: CandidateStatus | None, now: datetime) -> float:
    """Seconds until a replica may be lent to ``candidate`` again; 0 unless the last one was just recalled."""
    if candidate is None or candidate.phase is not CandidatePhase.VALIDATING or candidate.since is None:
        return 0.0
    if not candidate.message.startswith(_DELAYED):
        return 0.0
    delay, waited = _delay(candidate), now - candidate.since
    # A time in the future was written before the clock was set back: how long was waited is not known.
    return (delay - waited).total_seconds() if timedelta(0) <= waited < delay else 0.0


def _delay(candidate: CandidateStatus) -> timedelta:
    return min(MAX_DELAY, MIN_DELAY * (1 << min(max(candidate.recalled_attempts - 1, 0), 10)))
