"""Decides when which of a store's records are read. Pure: time and jitter come from outside.

At rest, two requests are made a minute: the trainer's record, and a listing of the registry or, every third time, of
the channel. Everything is read at once when something is expected: a measurement ended, a person changed the spec or an
annotation, or our last write failed. Every other state may last for days too, so its pace falls to that of rest.

Why a view of a minute ago is safe: records are create-once and a decision is a new record of the channel. An operator
that decides upon an outdated view asks for an epoch that is taken, gets :class:`ObjectExists`, and reads everything
before it decides again. Agents refuse requests with an outdated epoch in the same way.

Invariants: after a fault, reads are repeated with exponential backoff. A person's request never waits for a backoff.
Without a change, no state in which the store answers makes more than two requests a minute for ever. Only a missing
registration of the active or the previous version costs one more with each look at the channel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, Flag, auto

from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator.observe.observed import TRAINER_SILENCE, StoreView
from aurora_protocol.gate import GatePolicy
from aurora_protocol.training_records import TrainerPhase

REST_SECONDS = 61.0
"""Time between two reads at rest, each of two requests."""
TRAINING_SECONDS = 15.0
"""The same while the trainer learns, because a candidate may come at any time.

A trainer whose record stays as it is for ``TRAINER_SILENCE`` does not learn. It may be gone, and nobody corrects its
record.
"""
MIN_EXPECTING_SECONDS, MAX_EXPECTING_SECONDS = 2.0, 30.0
"""Time between two reads while the first records are expected. It doubles while nothing new comes."""
SELDOM_EXPECTING_SECONDS = 120.0
"""The same after :data:`MAX_EXPECTING_READS` reads in vain, about a quarter of an hour. Perhaps no trainer comes."""
MAX_EXPECTING_READS = 40
SELDOM_READS_PER_FULL_READ = 12
"""Every so many of these reads looks for everything, also for registrations that were missing. A person may put back
lost records in any order."""
MIN_ROLLING_SECONDS = 2.0
"""Time between two looks at the channel in a roll. It doubles while the roll makes no step, and beyond
:data:`REST_SECONDS` the channel is read as at rest."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 2.0, 30.0
"""Time until the read after a failed one. It doubles with each failure."""
MAX_RETRY_SECONDS_UNTIL_MENDED = 300.0
"""The longest such time after a fault of :data:`MENDED_BY_A_PERSON`. Such a read takes up to seven requests."""
MENDED_BY_A_PERSON = frozenset({"InvalidRecord", "ConditionalWritesUnsupported"})
"""Reasons of faults that last until a person removes an object or chooses another store."""


class ReadScope(Flag):
    """Kinds of records whose newest is looked for. A record that is needed and not known yet is always read."""

    NONE = 0
    REGISTRY = auto()
    CHANNEL = auto()
    LINEAGE = auto()
    TRAINER = auto()
    ALL = REGISTRY | CHANNEL | LINEAGE | TRAINER


_TURNS = (
    ReadScope.TRAINER | ReadScope.REGISTRY,
    ReadScope.TRAINER | ReadScope.REGISTRY,
    ReadScope.TRAINER | ReadScope.CHANNEL,
)
"""At rest only another operator writes to the channel. Its listing shows a foreign writer within minutes."""
_SELDOM_TURNS = (ReadScope.TRAINER | ReadScope.REGISTRY, ReadScope.CHANNEL | ReadScope.LINEAGE)


class Urgency(Enum):
    """What is under way."""

    REST = auto()
    ROLLING = auto()
    """A roll is under way: the channel is looked at more often."""


@dataclass(frozen=True)
class StoreNeeds:
    """The records that the next decision depends on."""

    versions: frozenset[int] = frozenset()
    """Versions that the status, a pin or an annotation names. Their registrations and evidence are needed, beside those
    of the active version and of newer ones. Of the channel's previous version only the registration is."""
    measurement: tuple[int, int] | None = None
    """Version and attempt of the measurement under way, whose evidence may appear: its Job runs, or ended."""
    measured: bool = False
    """The Job of ``measurement`` ended, so its evidence is there now or never."""
    urgency: Urgency = Urgency.REST
    step: Hashable = None
    """Where the roll is. A change makes the channel's looks frequent again."""
    policy: GatePolicy = field(default_factory=lambda: GatePolicy.of(ValidationSpec()))
    """The bars of the spec, with which evidence is judged again."""
    pin: int | None = None
    """The version that a person pinned."""
    intent: Hashable = None
    """The generation and the annotations by which a person asks for something. A change reads everything."""


class ReadSchedule:
    """When to read the store of one speculator. Times are seconds of a monotonic clock."""

    def __init__(self, jitter: Callable[[float, float], float] = random.uniform) -> None:
        self._jitter = jitter
        self._view: StoreView | None = None
        self._intent: Hashable = None
        self._failures = 0
        self._turn = 0
        self._rest_due = self._expecting_due = self._retry_due = 0.0
        self._reads_in_vain = 0
        self._step: int | None = None
        self._stepped = -math.inf
        self._reported: datetime | None = None
        """The time in the trainer's record."""
        self._reported_seconds = -math.inf
        """When that time was new, by our own clock. The trainer's may be another one."""
        self._ended: tuple[int, int] | None = None
        """The measurement after whose end everything was read."""
        self._rolling: Hashable = None
        self._rolling_due, self._rolling_seconds = 0.0, MIN_ROLLING_SECONDS

    def reset(self) -> None:
        """Read everything next: the settings changed, or a write failed."""
        self._view = None

    def scope(self, now: float, needs: StoreNeeds) -> ReadScope:
        """The kinds of records to look for now."""
        view = self._view
        if view is None or needs.intent != self._intent:
            return ReadScope.ALL
        if self._failures:
            return ReadScope.ALL if now >= self._retry_due else ReadScope.NONE
        if needs.measured and needs.measurement != self._ended and not _has_evidence(view, needs.measurement):
            return ReadScope.ALL
        if not _is_whole(view):
            return self._expected(view) if now >= self._expecting_due else ReadScope.NONE
        scope = ReadScope.CHANNEL if self._rolls(now, needs) else ReadScope.NONE
        return scope | _TURNS[self._turn] if now >= self._rest_due else scope

    def _expected(self, view: StoreView) -> ReadScope:
        """The kinds of records to look for while the first ones are not there."""
        if view.lineage is None:
            return ReadScope.LINEAGE | ReadScope.TRAINER  # the trainer writes the lineage last
        if self._reads_in_vain < MAX_EXPECTING_READS or self._reads_in_vain % SELDOM_READS_PER_FULL_READ == 0:
            return ReadScope.ALL
        return _SELDOM_TURNS[self._reads_in_vain % len(_SELDOM_TURNS)]

    def _rolls(self, now: float, needs: StoreNeeds) -> bool:
        """Whether to look at the channel because a roll is under way."""
        if needs.urgency is not Urgency.ROLLING:
            return False
        stepped = needs.step != self._rolling
        return stepped or (self._rolling_seconds <= REST_SECONDS and now >= self._rolling_due)

    def record(self, now: float, needs: StoreNeeds, scope: ReadScope, view: StoreView) -> None:
        """Remember a read of ``scope`` that ended at ``now``."""
        before, self._view, self._intent = self._view, view, needs.intent
        if not view.ok:
            self._failures += 1
            longest = MAX_RETRY_SECONDS_UNTIL_MENDED if view.reason in MENDED_BY_A_PERSON else MAX_RETRY_SECONDS
            seconds = min(longest, MIN_RETRY_SECONDS * 2 ** min(self._failures - 1, 10))
            self._retry_due = now + self._jitter(seconds / 2, seconds)
            return
        self._failures = 0
        changed = before is None or _records(before) != _records(view)
        self._reads_in_vain = 0 if changed else self._reads_in_vain + 1
        seconds = min(MAX_EXPECTING_SECONDS, MIN_EXPECTING_SECONDS * 2 ** min(self._reads_in_vain, 10))
        if self._reads_in_vain >= MAX_EXPECTING_READS:
            seconds = SELDOM_EXPECTING_SECONDS
        self._expecting_due = now + self._jitter(seconds / 2, seconds)
        if scope is ReadScope.ALL:
            self._ended = needs.measurement if needs.measured else None
        if needs.urgency is Urgency.ROLLING and ReadScope.CHANNEL in scope:
            stepped = needs.step != self._rolling
            self._rolling = needs.step
            self._rolling_seconds = MIN_ROLLING_SECONDS if stepped or changed else 2 * self._rolling_seconds
            self._rolling_due = now + self._rolling_seconds
        if _TURNS[self._turn] in scope:
            self._turn = (self._turn + 1) % len(_TURNS)
            seconds = TRAINING_SECONDS if self._learns(now, view) else REST_SECONDS
            self._rest_due = now + self._jitter(seconds, 1.2 * seconds)

    def _learns(self, now: float, view: StoreView) -> bool:
        """Whether the trainer learns. It may wait for traces at the moment of each read, and step in between."""
        if view.trainer is None:
            return False
        if self._reported != view.trainer.updated:
            self._reported, self._reported_seconds = view.trainer.updated, now
        if self._step not in (None, view.trainer.step):
            self._stepped = now
        self._step = view.trainer.step
        reports = now - self._reported_seconds < TRAINER_SILENCE.total_seconds()
        return (view.trainer.phase is TrainerPhase.TRAINING and reports) or now - self._stepped < REST_SECONDS

    def seconds_until_due(self, now: float) -> float:
        """Seconds until a read is due although nothing else happens."""
        if self._view is None:
            return 0.0
        if self._failures:
            return max(0.0, self._retry_due - now)
        due = self._rest_due if _is_whole(self._view) else self._expecting_due
        return max(0.0, due - now)


def _is_whole(view: StoreView) -> bool:
    """Whether the first records are there. While somebody copies a root, the channel may come before the registry."""
    return view.channel is not None and view.channel.active in view.registrations


def _has_evidence(view: StoreView, measurement: tuple[int, int] | None) -> bool:
    return any((evidence.version, evidence.attempt) == measurement for evidence in view.evidence)


def _records(view: StoreView) -> Hashable:
    """The create-once records of a view. The trainer's status changes all the time."""
    lineage = view.lineage.number if view.lineage else None
    epoch = view.channel.epoch if view.channel else None
    return lineage, epoch, frozenset(view.registrations), len(view.evidence)
