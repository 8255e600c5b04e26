"""Decides what planning may use of the store: nothing while its records are lost, or are another speculator's. Pure.

**Lost records.** An empty channel looks like that of a new speculator. With a first record for version 0, all pods
would leave the draft that they serve for an untrained one, and the status would name versions whose numbers come again.
So nothing is decided until somebody restores the bucket, or creates the speculator again. Pods keep the drafts that
they serve. Known limit: a channel from an older backup is followed, also to a version that was rejected since.

**The root's owner.** ``spec.store.restoreFrom`` names the root of a former speculator, to go on from its channel.
One record of the channel, create-once, names the new owner, and keeps a former owner that still lives from writing
(``aurora_store.root_ownership``). The former owner's record is not signed with this speculator's key. It is believed
once, at this takeover, because the author vouches for the root with ``restoreFrom``.

Invariant: a speculator that lost its root never gets it back: one that followed a channel once, or that the root is
named after, takes no root over. So two speculators with the same ``restoreFrom`` do not take the root from each other
for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aurora_operator.children.pod_template import store_settings
from aurora_operator.observe.observed import RECORDS_LOST, TAKEN_OVER, TAKING_OVER, Observed, StoreView
from aurora_operator.plan.actions import EventNote
from aurora_protocol.draft_records import Channel, ChannelReason, Lineage, RootOwner
from aurora_store.errors import bounded_text
from aurora_store.keys import Keys, first_owner, owner_id
from aurora_store.root_ownership import current_owner, owned_text


@dataclass(frozen=True)
class UsableStore:
    """What planning may use of the store, and the record that takes the root over."""

    view: StoreView
    takeover: Channel | None = None
    notes: tuple[EventNote, ...] = ()


def usable_store(observed: Observed, now: datetime) -> UsableStore:
    """The store for the plan of this reconcile."""
    store, owner = observed.store, owner_id(observed.owner.uid)
    root = store_settings(observed.owner, observed.spec).root
    if not store.ok:
        return UsableStore(store)
    foreign = store.channel if current_owner(store.channel, root) != owner else None
    if foreign is not None and (observed.status.active is not None or owner == first_owner(root)):
        return _unusable(TAKEN_OVER, _taken_over_text(foreign, root))
    if store.channel is None and observed.status.active is not None:
        return _unusable(RECORDS_LOST, _lost_text(observed))
    if store.channel is None and observed.spec.store.restore_from is None:
        return UsableStore(store)
    if store.channel is not None and foreign is None:
        return UsableStore(store)
    if refusal := _refusal(observed, root):
        return _unusable("RestoreRefused", f"store.restoreFrom: {refusal}")
    assert store.channel is not None, "a root without a channel is refused"
    taken = _takeover(observed, store.channel, root, now)
    note = EventNote("Restored", f"{taken.message}. Version {taken.active} is active, as before")
    view = StoreView(reason=TAKING_OVER, error=f"the root {root} is being taken over")
    return UsableStore(view, taken, (note,))


def _unusable(reason: str, error: str) -> UsableStore:
    return UsableStore(StoreView(reason=reason, error=error))


def _lost_text(observed: Observed) -> str:
    settings, active = store_settings(observed.owner, observed.spec), observed.status.active
    assert active is not None, "without an active version, nothing is lost"
    return (
        f"version {active.version} is active, but s3://{settings.bucket}/{settings.root} has no record of the channel."
        " The records were deleted, or store.endpoint leads to another store. Pods that serve keep their drafts, and"
        " training is stopped. Restore the bucket, or delete this speculator and create it again, without"
        " store.restoreFrom, to begin at version 0"
    )


def _taken_over_text(channel: Channel, root: str) -> str:
    """The message for a speculator that lost its root, with the way out."""
    return (
        f"{owned_text(channel, root)}. This speculator writes nothing more, and its pods serve on. Delete this"
        " speculator once its clients use the new one. If nobody restored the root, delete"
        f" {Keys.channel(channel.epoch)}, and find out who wrote it"
    )


def _refusal(observed: Observed, root: str) -> str:
    """Why the root is not taken over. Empty when it may be."""
    channel, lineage = observed.store.channel, observed.store.lineage
    if channel is None or lineage is None:
        return (
            f"there is nothing to restore below {root}. Create the speculator again, and name the former speculator's"
            " status.storeRoot"
        )
    if channel.reason is ChannelReason.DELETING:
        return f"the root {root} is being deleted with its speculator (deletionPolicy: Delete)"
    by_identity = observed.spec.store.credentials.service_account_name is not None
    if by_identity and root.split("/")[-2] != observed.owner.namespace:
        return (
            f"with credentials.serviceAccountName the operator writes with its own identity, so only roots of the"
            f" namespace {observed.owner.namespace} are taken over. Use credentials.secretRef to move {root}"
        )
    return _lineage_refusal(observed, lineage, root)


def _lineage_refusal(observed: Observed, lineage: Lineage, root: str) -> str:
    """Why the drafts do not fit the spec's target; empty when they do. The shape of the draft stays the stored one."""
    stored, wanted = lineage.target, observed.spec.target
    same_revision = not (stored.revision and wanted.revision) or stored.revision == wanted.revision
    if stored.model == wanted.model and same_revision:
        return ""
    kept = bounded_text(f"{stored.model} {stored.revision or ''}".rstrip())
    return f"the drafts below {root} belong to another target: {kept}. Name this target in spec.target"


def _takeover(observed: Observed, former: Channel, root: str, now: datetime) -> Channel:
    """The record that makes this speculator the owner. The versions stay as they are."""
    owner, before = observed.owner, current_owner(former, root)
    return former.model_copy(
        update={
            "epoch": former.epoch + 1,
            "reason": ChannelReason.RESTORED,
            "message": f"{owner.full_name} took the root {root} over from the speculator with uid {before}…",
            "owner": RootOwner(id=owner_id(owner.uid), namespace=owner.namespace, name=owner.name, since=now),
            "created": now,
        }
    )
