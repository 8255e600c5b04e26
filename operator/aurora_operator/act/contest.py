"""The rules by which two installations of the operator find out which of them acts on a speculator.

Replicas of one installation compete for one Lease, so they never act together. Two installations (a second Helm
release, or an operator that somebody started on a laptop) have different Leases. Without these rules they would undo
each other's Deployments for ever.

``status.operator`` names the installation that acts. An installation that finds another name there does not act. It
asks, by writing a challenge into ``status.operatorChallenge``. The acting installation answers by removing the
challenge. The other one then yields, and asks again after a growing pause. A challenge that stands unanswered for
:data:`CHALLENGE_SECONDS` shows that nobody acts, so an installation that has seen it stand for so long takes the
speculator over.

Invariants:

- Nobody takes a speculator from an installation that answers, and nobody yields for ever.
- It does not matter who wrote a challenge. Two newcomers wait for the answer to the same one, and the resourceVersion
  lets only one of them take the speculator over.
- Each process counts seconds on its own clock, and only from when it saw the challenge itself.
- Nothing is written unless somebody asks: there is no heartbeat.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from enum import Enum

from aurora_api.v1alpha1.status import OperatorChallenge, OperatorIdentity, SpeculatorStatus

CHALLENGE_SECONDS = 150.0
"""How long a challenge stands before the speculator is taken over.

A live installation answers sooner. A failover takes 14 s and a restart with a thousand speculators 60 s. An informer
whose connection broke silently hears of the challenge after 90 s, and after a pause of up to 30 s.
"""
MIN_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 60.0, 600.0
"""From an answer until the next challenge: twice as long after each answer, up to the second value."""
PAUSE_JITTER = 0.25
"""The share by which a pause is shortened at random, so that a thousand challenges do not come together."""


class Claim(Enum):
    """How an installation treats a speculator."""

    HOLD = "its name is in the status: it acts"
    TAKE = "it writes its name into the status"
    CHALLENGE = "it asks whether the named installation still acts"
    WAIT = "it waits for the answer to a challenge"
    YIELD = "the named installation has answered, so it does nothing for a while"


@dataclass(frozen=True)
class Contest:
    """How far one process has asked about a speculator that names another installation. Lost with the leadership."""

    uid: str
    """The uid of the speculator."""
    holder: str
    """The installation that the status names."""
    nonce: str = ""
    """The challenge whose answer is awaited. Empty: none."""
    since_seconds: float = 0.0
    """When this process first saw that challenge stand, or last failed to take the speculator over."""
    answers: int = 0
    """How often the holder has answered."""
    quiet_until_seconds: float = 0.0
    """The end of the pause after the last answer."""

    def waiting(self, nonce: str, now_seconds: float) -> Contest:
        """The contest after the challenge ``nonce`` was seen for the first time, or was seen while nobody can write."""
        return replace(self, nonce=nonce, since_seconds=now_seconds)

    def answered(self, now_seconds: float) -> Contest:
        """The contest after an answer. The next pause begins."""
        pause_seconds = min(MAX_PAUSE_SECONDS, MIN_PAUSE_SECONDS * 2.0 ** min(self.answers, 10))
        pause_seconds *= random.uniform(1 - PAUSE_JITTER, 1)  # noqa: S311 - jitter
        return replace(self, nonce="", answers=self.answers + 1, quiet_until_seconds=now_seconds + pause_seconds)

    def seconds_left(self, now_seconds: float) -> float:
        """Time until something is to be done, unless the speculator's status changes before."""
        end_seconds = self.since_seconds + CHALLENGE_SECONDS if self.nonce else self.quiet_until_seconds
        return max(0.0, end_seconds - now_seconds)


def names(named: OperatorIdentity | None, own: OperatorIdentity) -> bool:
    """Whether ``named`` is ``own``. Fields that another version added to the status make no difference."""
    return named is not None and (named.installation, named.version) == (own.installation, own.version)


def decide(
    uid: str, own: OperatorIdentity, status: SpeculatorStatus, contest: Contest | None, now_seconds: float
) -> tuple[Claim, Contest | None]:
    """Decide for the installation ``own``.

    Args:
        uid: of the speculator.
        contest: what this function returned for the speculator before.
        now_seconds: of a monotonic clock of this process.

    Returns the claim, and what to remember until the next call. None: nothing.
    """
    named = status.operator
    if named is None or named.installation == own.installation:
        return (Claim.HOLD if names(named, own) else Claim.TAKE), None
    if contest is None or (contest.uid, contest.holder) != (uid, named.installation):
        contest = Contest(uid, named.installation)
    standing = _nonce(status.operator_challenge)
    if contest.nonce and standing != contest.nonce:
        contest = contest.answered(now_seconds)
    if now_seconds < contest.quiet_until_seconds:
        return Claim.YIELD, contest
    if not standing:
        return Claim.CHALLENGE, contest
    if not contest.nonce:
        contest = contest.waiting(standing, now_seconds)
    return (Claim.WAIT if contest.seconds_left(now_seconds) else Claim.TAKE), contest


def _nonce(challenge: OperatorChallenge | None) -> str:
    return "" if challenge is None else challenge.nonce
