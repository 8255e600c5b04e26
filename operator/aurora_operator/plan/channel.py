"""The channel: what planning may use of the stored one, and the next record. Pure.

Nothing may be used while the records are lost, or are another speculator's.

**Lost records.** An empty channel looks like that of a new speculator. With a first record for version 0, all pods
would leave the draft that they serve for an untrained one, and the status would name versions whose numbers come again.
So nothing is decided until somebody restores the bucket, or creates the speculator again. Pods keep the drafts that
they serve. Known limit: a channel from an older backup is followed, also to a version that was rejected since.

**The root's owner.** A speculator that is created again, perhaps in a cluster that was built anew, finds the root of
the former one. In one cluster a name is given once, so the former speculator with this namespace and name is gone, and
the root is taken over. The owner with another name may live, so its root is taken over only if a person says so with
the annotation ``aurora.dev/adopt``. The takeover is one create-once record of the channel, which keeps a former owner
that still lives from writing (``aurora_store.root_ownership``). The former owner's record is not signed with this
speculator's key. It is believed once, at this takeover.

Invariants:

- A speculator that lost its root never gets it back: one that followed a channel once takes no root over. So two
  speculators with the same path, in two clusters perhaps, do not take the root from each other for ever.
- A promotion names the evidence that allowed it. A record names its versions' weights, and the signature covers these
  names. So whoever replaces a registration and its draft cannot have the new weights served.
- Rejected versions stay rejected, up to the newest :data:`MAX_REJECTED`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aurora_api.v1alpha1.annotations import ADOPT_ANNOTATION
from aurora_api.v1alpha1.status import MAX_REJECTED
from aurora_operator.children.common_pod import store_settings
from aurora_operator.children.metadata import Owner
from aurora_operator.observe.observed import PATH_REFUSED, RECORDS_LOST, TAKEN_OVER, Observed, StoreView
from aurora_operator.plan.actions import EventNote
from aurora_operator.plan.candidate import ValidationDecision
from aurora_operator.plan.rollout.machine import Advance, Step
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, ChannelReason, Lineage, RootOwner
from aurora_store.errors import bounded_text
from aurora_store.keys import Keys, owner_id
from aurora_store.root_ownership import owned_text, owner_text


@dataclass(frozen=True)
class UsableStore:
    """The part of the store that planning may use. A root that has to be taken over comes first: ``takeover`` is the
    whole plan then."""

    view: StoreView
    takeover: Channel | None = None
    notes: tuple[EventNote, ...] = ()


def usable_store(observed: Observed, now: datetime) -> UsableStore:
    """The store for the plan of this reconcile."""
    store, channel, followed = observed.store, observed.store.channel, observed.status.active is not None
    root = store_settings(observed.owner, observed.spec).root
    if not store.ok:
        return UsableStore(store)
    if channel is None:
        return _unusable(RECORDS_LOST, _lost_text(observed)) if followed else UsableStore(store)
    if channel.owner.id == owner_id(observed.owner.uid):
        return UsableStore(store)
    if followed:
        return _unusable(TAKEN_OVER, _taken_over_text(channel, root))
    if refusal := _refusal(observed, channel, root):
        return _unusable(PATH_REFUSED, f"store.path: {refusal}")
    taken = takeover(observed, channel, root, now)
    note = EventNote("Restored", f"{taken.message}. Version {taken.active} is active, as before")
    return UsableStore(store, taken, (note,))


def _unusable(reason: str, error: str) -> UsableStore:
    return UsableStore(StoreView(reason=reason, error=error))


def _lost_text(observed: Observed) -> str:
    settings, active = store_settings(observed.owner, observed.spec), observed.status.active
    assert active is not None, "without an active version, nothing is lost"
    return (
        f"version {active.version} is active, but s3://{settings.bucket}/{settings.root} has no record of the channel."
        " The records were deleted, or store.endpoint leads to another store. Pods that serve keep their drafts, and"
        " training is stopped. Restore the bucket, or delete this speculator and create it again to begin at version 0"
    )


def _taken_over_text(channel: Channel, root: str) -> str:
    """The message for a speculator that lost its root, with the way out."""
    return (
        f"{owned_text(channel, root)}. This speculator writes nothing more, and its pods serve on. Delete this"
        " speculator once its clients use the new one, or create it again with a store.path of its own. If nobody"
        f" took the root over, delete {Keys.channel(channel.epoch)}, and find out who wrote it"
    )


def _refusal(observed: Observed, channel: Channel, root: str) -> str:
    """Why the root is not taken over, and the way out. Empty when it may be."""
    owner, former, lineage = observed.owner, channel.owner, observed.store.lineage
    if channel.reason is ChannelReason.DELETING:
        return (
            f"the root {root} was being deleted with its speculator (deletionPolicy: Delete). Delete what is left of"
            " it, or create this speculator again with another store.path"
        )
    if (former.namespace, former.name) != (owner.namespace, owner.name) and not owner.adopts:
        return (
            f"{owned_text(channel, root)}. Create this speculator again with another store.path. Or, to go on with the"
            f" other one's drafts and to end its training, run kubectl annotate auroraspeculator {owner.name} -n"
            f" {owner.namespace} {ADOPT_ANNOTATION}=true"
        )
    if lineage is None:
        return f"the root {root} has a channel, and no record of the lineage. Restore the bucket"
    return _lineage_refusal(observed, lineage, root)


def _lineage_refusal(observed: Observed, lineage: Lineage, root: str) -> str:
    """Why the drafts do not fit the spec's target; empty when they do. The shape of the draft stays the stored one."""
    stored, wanted = lineage.target, observed.spec.target
    same_revision = not (stored.revision and wanted.revision) or stored.revision == wanted.revision
    if stored.model == wanted.model and same_revision:
        return ""
    kept = bounded_text(f"{stored.model} {stored.revision or ''}".rstrip())
    return (
        f"the drafts below {root} belong to another target: {kept}. Create this speculator again with this target, or"
        " with another store.path to begin at version 0"
    )


# the next record ------------------------------------------------------------------------------------------------------


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
