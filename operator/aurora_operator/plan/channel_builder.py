"""Builds the channel's next record, which names the active, the previous and the rejected versions. Pure.

Invariants: a promotion names the evidence that allowed it. A record names its versions' weights, and the signature
covers these names. So whoever replaces a registration and its draft cannot have the new weights served. Rejected
versions stay rejected, up to the newest :data:`MAX_REJECTED`. Fields that a newer operator added to the channel are
kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aurora_api.v1alpha1.status import MAX_REJECTED
from aurora_operator.observe.observed import Observed, StoreView
from aurora_operator.plan.candidate import ValidationDecision
from aurora_operator.plan.rollout.transition import Advance, Step
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, ChannelReason
from aurora_store import Keys

MAX_MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class _Decision:
    advance: Advance
    message: str


def first_channel(store: StoreView, now: datetime) -> Channel | None:
    """The record that makes the lineage's initial draft active, once the trainer has registered the draft."""
    if store.lineage is None or INITIAL_VERSION not in store.registrations:
        return None
    return Channel(
        epoch=1, lineage=store.lineage.number, active=INITIAL_VERSION, reason=ChannelReason.INITIAL, created=now
    )


def next_channel(observed: Observed, step: Step, validation: ValidationDecision, now: datetime) -> Channel | None:
    """The record after the rollout's step, or after a person aborted the candidate; None: no change."""
    former, decision = observed.store.channel, _decision(observed, step, validation)
    if decision is None or former is None:
        return None
    advance = decision.advance
    moved = advance.active != former.active
    rejected = former.rejected if advance.reject is None else (*former.rejected, advance.reject)
    returned = advance.reason is ChannelReason.ROLLED_BACK
    return Channel(
        epoch=former.epoch + 1,
        lineage=former.lineage,
        active=advance.active,
        previous=former.previous if not moved else None if returned else former.active,
        reason=advance.reason,
        evidence=_evidence_key(observed.store, advance, former.evidence if not moved else None),
        rejected=tuple(sorted(set(rejected)))[-MAX_REJECTED:],
        message=decision.message[:MAX_MESSAGE_CHARACTERS],
        owner=former.owner,
        former_owners=former.former_owners,
        created=now,
    )


def with_digests(made: Channel, store: StoreView) -> Channel:
    """``made`` with the digests of its versions' weights: those of the former record, or of the registrations."""

    def digest(version: int | None) -> str | None:
        if version is None:
            return None
        kept = None if store.channel is None else store.channel.digest_of(version)
        registration = store.registrations.get(version)
        return kept or (None if registration is None else registration.digest)

    return made.model_copy(update={"active_digest": digest(made.active), "previous_digest": digest(made.previous)})


def _decision(observed: Observed, step: Step, validation: ValidationDecision) -> _Decision | None:
    """The rollout's decision comes first.

    A candidate that a person aborts leaves no evidence, so the channel records the rejection.
    """
    if step.advance is not None:
        return _Decision(step.advance, step.rollout.message)
    channel, rejected = observed.store.channel, validation.reject
    if channel is None or rejected is None or rejected != observed.user_requests.abort:
        return None
    return _Decision(Advance(channel.active, ChannelReason.REFUSED, reject=rejected), "aborted by a person")


def _evidence_key(store: StoreView, advance: Advance, kept: str | None) -> str | None:
    if advance.reason is not ChannelReason.PROMOTED:
        return kept
    evidence = store.promotion_evidence(advance.active)
    assert evidence is not None, "only a version with evidence is promoted"
    return Keys.evidence(evidence.version, evidence.attempt)
