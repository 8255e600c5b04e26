"""Builds the channel's next record, which names the active, the previous and the rejected versions. Pure.

Invariants: a promotion names the evidence that allowed it. A record names its versions' weights, and the signature
covers these names. So whoever replaces a registration and its draft cannot have the new weights served. Rejected
versions stay rejected, up to the newest :data:`MAX_REJECTED`.
"""

from __future__ import annotations

from datetime import datetime

from aurora_api.v1alpha1.status import MAX_REJECTED
from aurora_operator.children.metadata import Owner
from aurora_operator.observe.observed import Observed, StoreView
from aurora_operator.plan.candidate import ValidationDecision
from aurora_operator.plan.rollout.transition import Advance, Step
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, ChannelReason, RootOwner
from aurora_store import Keys
from aurora_store.keys import owner_id
from aurora_store.root_ownership import owner_text

MAX_MESSAGE_CHARACTERS = 1000


def first_channel(observed: Observed, now: datetime) -> Channel | None:
    """The record that makes the speculator the root's owner, and the lineage's initial draft active.

    None until the trainer has registered the draft.
    """
    store = observed.store
    if store.lineage is None or INITIAL_VERSION not in store.registrations:
        return None
    return Channel(
        epoch=1,
        lineage=store.lineage.number,
        active=INITIAL_VERSION,
        reason=ChannelReason.INITIAL,
        owner=root_owner(observed.owner, now),
        created=now,
    )


def takeover(observed: Observed, former: Channel, root: str, now: datetime) -> Channel:
    """The record that makes the speculator the owner of ``root``. The versions stay as they are."""
    return former.model_copy(
        update={
            "epoch": former.epoch + 1,
            "reason": ChannelReason.RESTORED,
            "message": f"{observed.owner.full_name} took the root {root} over from {owner_text(former.owner)}",
            "owner": root_owner(observed.owner, now),
            "created": now,
        }
    )


def root_owner(owner: Owner, now: datetime) -> RootOwner:
    """The speculator as the owner of a root since ``now``."""
    return RootOwner(id=owner_id(owner.uid), namespace=owner.namespace, name=owner.name, since=now)


def next_channel(observed: Observed, step: Step, validation: ValidationDecision, now: datetime) -> Channel | None:
    """The record after the rollout's step, or after a person aborted the candidate; None: no change.

    The rollout's decision comes first. A candidate that a person aborts leaves no evidence, so the channel records the
    rejection.
    """
    former, advance, message = observed.store.channel, step.advance, step.rollout.message
    if former is None:
        return None
    if advance is None:
        if validation.reject is None or validation.reject != observed.abort:
            return None
        advance = Advance(former.active, ChannelReason.REFUSED, reject=validation.reject)
        message = "aborted by a person"
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
        message=message[:MAX_MESSAGE_CHARACTERS],
        owner=former.owner,
        created=now,
    )


def with_digests(made: Channel, store: StoreView) -> Channel:
    """``made`` with the digests of its versions' weights."""
    digests = {"active_digest": digest_of(store, made.active), "previous_digest": digest_of(store, made.previous)}
    return made.model_copy(update=digests)


def digest_of(store: StoreView, version: int | None) -> str | None:
    """The digest of the weights of ``version``, as the channel names it, or else its registration.

    A pod on its way back still has the former draft on its disk, so it returns although the registration is gone.
    """
    if version is None:
        return None
    kept = None if store.channel is None else store.channel.digest_of(version)
    registration = store.registrations.get(version)
    return kept or (None if registration is None else registration.digest)


def _evidence_key(store: StoreView, advance: Advance, kept: str | None) -> str | None:
    if advance.reason is not ChannelReason.PROMOTED:
        return kept
    evidence = store.promotion_evidence(advance.active)
    assert evidence is not None, "only a version with evidence is promoted"
    return Keys.evidence(evidence.version, evidence.attempt)
