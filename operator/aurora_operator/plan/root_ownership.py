"""Decides whether this speculator owns its root in the store, and takes the root over where the spec asks for it. Pure.

Why in place, not a copy: traces may take terabytes, a copy is not atomic, and a copy would leave two speculators that
both go on. A takeover is one record of the channel, and fences the former owner (``aurora_store.root.root_ownership``).

Invariants:

- While the root belongs to another speculator, planning sees a store that cannot be used. So nothing is decided about
  versions, and pods keep the version that they serve.
- The record that another owner wrote is not signed with this speculator's key. It is believed once, at the takeover,
  because the author vouches for the root with ``restoreFrom``. A later one decides nothing.
- A root is taken over only when its lineage has the target and the architecture of this speculator, and only if this
  speculator never lost it before.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from aurora_api.v1alpha1.draft import ARCHITECTURE
from aurora_operator.children.pod_template import store_settings
from aurora_operator.observe.observed import TAKEN_OVER, Observed, StoreView
from aurora_operator.plan.actions import EventNote
from aurora_protocol.draft_records import Channel, ChannelReason, Lineage, RootOwner
from aurora_store.errors import bounded_text
from aurora_store.keys import Keys, owner_id
from aurora_store.root.root_ownership import current_owner, lost, lost_text, owned_text

MAX_FORMER_OWNERS = 64
TAKING_OVER = "TakingOver"
"""Reason of the view while a root is taken over. The next reconcile goes on soon."""


@dataclass(frozen=True)
class OwnershipDecision:
    """What planning may use of the store, and the record that takes the root over."""

    store: StoreView
    takeover: Channel | None = None
    notes: tuple[EventNote, ...] = ()


def decide_ownership(observed: Observed, now: datetime) -> OwnershipDecision:
    """Whether the root is ours, lost, to be taken over now, or not to be taken over."""
    store, owner = observed.store, owner_id(observed.owner.uid)
    root = store_settings(observed.owner, observed.spec).root
    restores = observed.spec.store.restore_from is not None
    if not store.ok or (store.channel is None and not restores):
        return OwnershipDecision(store)
    if lost(store.channel, root, owner):
        assert store.channel is not None, "a root without a channel was never taken over"
        text = f"{lost_text(store.channel, root)}. {_foreign_text(store.channel)}"
        return OwnershipDecision(StoreView(reason=TAKEN_OVER, error=text))
    if store.channel is not None and current_owner(store.channel, root) == owner:
        return OwnershipDecision(store)
    if store.channel is not None and observed.status.active is not None:
        # Taken over once, and never lost: the record is nobody's takeover. Following it would follow its versions.
        text = f"{owned_text(store.channel, root)}, which was this speculator's. {_foreign_text(store.channel)}"
        return OwnershipDecision(StoreView(reason="InvalidRecord", error=text))
    if refusal := _refusal(observed, root):
        return OwnershipDecision(StoreView(reason="RestoreRefused", error=f"store.restoreFrom: {refusal}"))
    assert store.channel is not None, "a root without a channel is refused"
    taken = _takeover(observed, store.channel, root, now)
    return OwnershipDecision(
        StoreView(reason=TAKING_OVER, error=f"the root {root} is being taken over"),
        taken,
        (EventNote("Restored", f"{taken.message}. Version {taken.active} is active, as before"),),
    )


def holds_workloads(observed: Observed) -> bool:
    """Whether pods must not start yet, because the root that they would read and write is not this speculator's.

    Pods that run already stay, whatever happens to the root.
    """
    return observed.spec.store.restore_from is not None and not observed.store.ok and observed.deployment is None


def _foreign_text(channel: Channel) -> str:
    return f"If nobody restored the root, delete {Keys.channel(channel.epoch)}, and find out who wrote it"


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
    """Which part of the lineage differs from the spec. The trainer compares the target's files later."""
    target, draft = observed.spec.target, observed.spec.draft
    head, named = lineage.initial, draft.initial
    # A head brings its own vocabulary map, so draft.vocabSize has no effect.
    vocab_size = lineage.draft_vocab_size if head else min(draft.vocab_size, lineage.target.vocab_size)
    parts: tuple[tuple[str, object, object], ...] = (
        ("target.model", lineage.target.model, target.model),
        ("target.revision", lineage.target.revision or target.revision, target.revision or lineage.target.revision),
        ("draft.architecture", lineage.architecture, ARCHITECTURE),
        ("draft.vocabSize", lineage.draft_vocab_size, vocab_size),
        ("draft.initial.model", head.model if head else "unset", named.model if named else "unset"),
    )
    wrong = [
        f"{field} is {bounded_text(str(stored))} in the store and {wanted} in the spec"
        for field, stored, wanted in parts
        if stored != wanted
    ]
    if not wrong:
        return ""
    differences = ", ".join(wrong)
    return f"the drafts below {root} belong to another lineage: {differences}. Use the values of the store"


def _takeover(observed: Observed, former: Channel, root: str, now: datetime) -> Channel:
    """The record that makes this speculator the owner. The versions stay as they are."""
    owner = observed.owner
    before = current_owner(former, root)
    return former.model_copy(
        update={
            "epoch": former.epoch + 1,
            "reason": ChannelReason.RESTORED,
            "message": f"{owner.full_name} took the root {root} over from the speculator with uid {before}…",
            "owner": RootOwner(id=owner_id(owner.uid), namespace=owner.namespace, name=owner.name, since=now),
            "former_owners": (*former.former_owners, before)[-MAX_FORMER_OWNERS:],
            "inherited_version": observed.store.newest,
            "created": now,
        }
    )
