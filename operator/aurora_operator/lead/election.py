"""The rules by which the replicas of one installation share a Lease. Pure.

Invariant: at most one replica leads at a time. A leader counts its time from the moment *before* its last renewal was
sent, and stops after ``renew_deadline_seconds``. A standby counts the longer lease duration from a moment *after* that
renewal was stored. Both count seconds on their own machine, so no clock is compared with another machine's, and setting
a clock changes nothing.

A replica whose event loop hangs neither takes nor renews the Lease, so that another replica can act.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from aurora_operator.kubernetes_api import LEASE, Object

MAX_HANG_SECONDS = 30.0
"""How long a callback may wait in the event loop before the replica loses the Lease.

A start with many speculators keeps the loop busy for seconds at a time, and must not cost the Lease. The liveness probe
ends a process after 60 s without an answer. With a bound between the two, a standby acts before the process is ended.
"""


@dataclass(frozen=True)
class LeaseTiming:
    """How long a Lease lasts, and what follows from that.

    After a leader was killed, a standby leads within :attr:`failover_seconds` and the time of three calls.
    """

    lease_seconds: int
    max_hang_seconds: float = MAX_HANG_SECONDS
    """How long the event loop of the reconciles may leave the election's question unanswered."""

    @property
    def renew_deadline_seconds(self) -> float:
        """How long a leader acts after its last renewal. The difference to ``lease_seconds`` covers calls under way."""
        return self.lease_seconds * 0.7

    @property
    def retry_seconds(self) -> float:
        """Time between two renewals, and between two looks of a standby."""
        return self.lease_seconds * 0.2

    @property
    def failover_seconds(self) -> float:
        """The longest wait of a standby: until it sees the last renewal, and then until the Lease expires."""
        return self.retry_seconds + self.lease_seconds

    @property
    def hang_failover_seconds(self) -> float:
        """The same after the leader's event loop hangs: the next question, its time, and then the failover."""
        return self.retry_seconds + self.max_hang_seconds + self.failover_seconds


@dataclass(frozen=True)
class Sighting:
    """A stored Lease, and when this process first saw the Lease with this content."""

    lease: Object
    first_seen_seconds: float

    @property
    def holder(self) -> str:
        """The identity that the Lease names; empty when the Lease is free."""
        return str(self.lease["spec"].get("holderIdentity") or "")

    @property
    def duration_seconds(self) -> float:
        """How long the Lease lasts without a renewal."""
        seconds: float = self.lease["spec"].get("leaseDurationSeconds") or 0
        return seconds

    def seconds_until_expiry(self, now_seconds: float) -> float:
        return max(0.0, self.first_seen_seconds + self.duration_seconds - now_seconds)


@dataclass(frozen=True)
class Election:
    """What one replica knows. Times are seconds of this replica's own clock."""

    identity: str
    timing: LeaseTiming
    sighting: Sighting | None = None
    """None: the Lease was not read yet, or does not exist."""
    leads_until_seconds: float = 0.0
    vacant_from_seconds: float = 0.0
    """A Lease that somebody deleted may be made anew from then on. Its holder may not know of the deletion yet."""
    hangs: bool = False
    """The event loop of this replica's reconciles has not come to the election's callback."""

    def leads(self, now_seconds: float) -> bool:
        """Whether this replica may act at this moment."""
        return now_seconds < self.leads_until_seconds

    @property
    def holds_lease(self) -> bool:
        """Whether the Lease named this replica when it was last seen. That alone does not allow it to act."""
        return self.sighting is not None and self.sighting.holder == self.identity

    def may_take(self, now_seconds: float) -> bool:
        """Whether this replica may write itself into the Lease: the Lease is free, its own, or has expired.

        A replica that hangs may not, because it could not act.
        """
        if self.hangs:
            return False
        sighting = self.sighting
        if sighting is None:
            return now_seconds >= self.vacant_from_seconds
        return sighting.holder in ("", self.identity) or sighting.seconds_until_expiry(now_seconds) <= 0

    def pause_seconds(self, now_seconds: float) -> float:
        """Time until the next attempt. A standby looks again exactly when the Lease expires, to lose no time."""
        if self.leads(now_seconds):
            return min(self.timing.retry_seconds, self.leads_until_seconds - now_seconds)
        if self.hangs:
            return self.timing.retry_seconds
        if self.may_take(now_seconds):  # an attempt has just failed
            return self.timing.retry_seconds / 4
        sighting = self.sighting
        if sighting is None:
            return min(self.timing.retry_seconds, self.vacant_from_seconds - now_seconds)
        return min(self.timing.retry_seconds, sighting.seconds_until_expiry(now_seconds))

    def after_question(self, silent_seconds: float) -> Election:
        """The knowledge after the event loop left the election's question unanswered for ``silent_seconds``."""
        return replace(self, hangs=silent_seconds > self.timing.max_hang_seconds)

    def after_look(self, lease: Object | None, now_seconds: float) -> Election:
        """The knowledge after reading the Lease (None: it does not exist) at ``now_seconds``.

        Leadership ends when the Lease was deleted or names somebody else. After a deletion the leader may make the
        Lease anew at once. A standby that knew the Lease waits as long as for an expiry.
        """
        if lease is None:
            vacant_from = self._vacant_from(now_seconds)
            return replace(self, sighting=None, leads_until_seconds=0.0, vacant_from_seconds=vacant_from)
        old = self.sighting
        same = old is not None and _content(old.lease) == _content(lease)
        sighting = Sighting(lease, old.first_seen_seconds if old is not None and same else now_seconds)
        keeps = sighting.holder in ("", self.identity)
        return replace(self, sighting=sighting, leads_until_seconds=self.leads_until_seconds if keeps else 0.0)

    def after_write(self, lease: Object, sent_seconds: float, now_seconds: float) -> Election:
        """The knowledge after a write that the API server answered with ``lease``. It was sent at ``sent_seconds``."""
        until_seconds = sent_seconds + self.timing.renew_deadline_seconds
        return replace(self, sighting=Sighting(lease, now_seconds), leads_until_seconds=until_seconds)

    def _vacant_from(self, now_seconds: float) -> float:
        """From when on a Lease may be made that does not exist at ``now_seconds``."""
        if self.sighting is None:
            return self.vacant_from_seconds
        if self.leads(now_seconds):
            return now_seconds
        return now_seconds + max(self.sighting.duration_seconds, self.timing.lease_seconds)

    def stopped(self) -> Election:
        """The knowledge after this replica gave up its leadership."""
        return replace(self, leads_until_seconds=0.0)

    def taken_lease(self, name: str, namespace: str, now: datetime) -> Object:
        """The Lease with this replica as its holder. Its resourceVersion lets only one replica's write succeed."""
        metadata = {"name": name, "namespace": namespace}
        empty: Object = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": {}}
        lease = empty if self.sighting is None else self.sighting.lease
        spec: Mapping[str, Any] = lease["spec"]
        renewal = spec.get("holderIdentity") == self.identity
        return {
            **lease,
            "spec": {
                **spec,
                "holderIdentity": self.identity,
                "leaseDurationSeconds": self.timing.lease_seconds,
                "acquireTime": spec["acquireTime"] if renewal else _timestamp(now),
                "renewTime": _timestamp(now),
                "leaseTransitions": spec.get("leaseTransitions", 0) + (0 if renewal or not spec else 1),
            },
        }

    def released_lease(self, now: datetime) -> Object | None:
        """The Lease without a holder, for the next replica to take at once. None unless this replica holds it."""
        if self.sighting is None or not self.holds_lease:
            return None
        lease = self.sighting.lease
        return {**lease, "spec": {**lease["spec"], "holderIdentity": "", "renewTime": _timestamp(now)}}


def _content(lease: Object) -> tuple[str, Mapping[str, Any]]:
    return lease["metadata"]["uid"], lease["spec"]


def _timestamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
