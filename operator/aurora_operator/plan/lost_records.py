"""Notices that a store lost the records of a speculator, and starts over if a person gives the records up. Pure.

Why: an empty channel looks like that of a new speculator. With a first record for version 0, all pods would leave the
draft that they serve for an untrained one. The status would still name a candidate and rejected versions with numbers
that the new versions get again, so none of these would be measured. And the records may come back: from a backup, or
because ``store.endpoint`` leads to another store.

Invariants:

- Without a person's confirmation, the channel of a speculator with an active version gets no first record. The pods
  keep the drafts that they serve. Only a pod that starts takes the version of an older record, if there is one.
- Records that somebody puts back count once the channel names the active version, and this version is registered. A
  copy takes a while, and a part of the channel names an older version.
- A channel that comes back with an older record is not followed to another version, which live traffic may have
  rejected since. So the status keeps the epoch of the record that it follows.
- Nothing starts over while the channel has records, because their version would be served instead of version 0.
- The confirmation names the active version and the roll's epoch, which a start-over raises. So an old confirmation does
  not count for the next loss, although the new versions have the numbers of the lost ones.
- The status forgets the former versions before the first record is written.
- Nothing starts over while an annotation names a version to promote, reject or measure. It would decide about a new
  version with the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    PROMOTE_ANNOTATION,
    START_OVER_ANNOTATION,
    pair_text,
)
from aurora_api.v1alpha1.status import HistoryEntry, RolloutStatus, SpeculatorStatus, TrainingStatus
from aurora_operator.children.pod_template import store_settings
from aurora_operator.observe.observed import RECORDS_LOST, Observed, StoreView
from aurora_operator.plan.actions import EventNote
from aurora_operator.plan.rest import stored_stop_reason
from aurora_protocol.draft_records import Channel
from aurora_store import Keys
from aurora_store.keys import owner_id
from aurora_store.root.root_ownership import lost

_CHANNEL_EPOCH: Final = "channelEpoch"
"""Name in ``status.operatorState``."""
_ABOUT_VERSIONS: Final = {"promote": PROMOTE_ANNOTATION, "abort": ABORT_ANNOTATION, "measure": MEASURE_ANNOTATION}
"""Field of the requests -> annotation, for requests that name a version."""


def lost_records(observed: Observed) -> StoreView | None:
    """The view of a store that was read, and lacks records of the active version. None when nothing is lost.

    It lacks the channel or its newest records, or after such a loss the version's registration. A root that another
    speculator took over lacks nothing: its records belong to the new owner.
    """
    active, settings = observed.status.active, store_settings(observed.owner, observed.spec)
    if not observed.store.ok or active is None:
        return None
    if lost(observed.store.channel, settings.root, owner_id(observed.owner.uid)):
        return None
    missing = _missing(observed, active.version)
    if not missing:
        return None
    text = (
        f"version {active.version} is active, but s3://{settings.bucket}/{settings.root} {missing}. The records were"
        " deleted, or store.endpoint leads to another store. Pods that serve keep their drafts."
        f" {_fate_of_new_pods(observed, active.version)}. Training is stopped. Put the records back"
    )
    return StoreView(reason=RECORDS_LOST, error=f"{text}. {_way_to_start_over(observed, active.version)}")


def _missing(observed: Observed, active: int) -> str:
    """The missing record, as the end of a sentence. Empty: no record is missing, or none was missed before."""
    store, missed_before = observed.store, stored_stop_reason(observed.status) == RECORDS_LOST
    if store.channel is None:
        return "has no record of the channel"
    if store.channel.active != active and (missed_before or _is_older(store.channel, observed.status)):
        return f"has only older records of the channel, the newest for version {store.channel.active}"
    return f"lacks {Keys.registration(active)}" if missed_before and active not in store.registrations else ""


def _fate_of_new_pods(observed: Observed, active: int) -> str:
    """Says which version a pod that starts now takes: that of the newest record. Without a record the pod waits."""
    channel = observed.store.channel
    if channel is None or channel.active == active:
        return "New pods do not start"
    return f"A pod that starts takes version {channel.active}, which the old record names"


def _is_older(channel: Channel, status: SpeculatorStatus) -> bool:
    """Whether the record comes before the one that the status follows. An older operator does not store its epoch."""
    followed = status.operator_state.get(_CHANNEL_EPOCH)
    return isinstance(followed, int) and channel.epoch < followed


def with_followed_epoch(operator_state: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """``operator_state`` with the epoch of the record that the status follows."""
    return {**operator_state, _CHANNEL_EPOCH: channel.epoch}


def start_over_is_confirmed(observed: Observed) -> bool:
    """Whether a person gives the lost records up, and the speculator may begin again at version 0.

    A root that was taken over from another speculator belongs to that one again once it is empty. A channel that has
    records would not begin at version 0: the next plan would serve the version of its newest record.
    """
    active = observed.status.active
    epoch = observed.status.rollout.epoch
    named = active is not None and observed.user_requests.start_over == (active.version, epoch)
    if not named or _decisions_left(observed):
        return False
    return observed.spec.store.restore_from is None and observed.store.channel is None


def _decisions_left(observed: Observed) -> list[str]:
    """The annotations that would decide about new versions with the numbers of the lost ones."""
    requests = observed.user_requests
    return [key for name, key in _ABOUT_VERSIONS.items() if getattr(requests, name) is not None]


def without_lost_versions(observed: Observed, now: datetime) -> SpeculatorStatus:
    """The status without everything about the versions whose records are lost.

    A rejected version that is still registered stays rejected. If only the channel was lost, it would be measured and
    rolled out again otherwise.

    The roll's epoch grows: agents refuse requests with a lower one, and the confirmation of this loss counts no more.
    """
    status = observed.status
    assert status.active is not None, "without an active version, nothing is lost"
    entry = HistoryEntry(time=now, event="StartedOver", version=status.active.version, message=_START_OVER_TEXT)
    update: dict[str, object] = {
        "active": None,
        "previous": None,
        "lineage": None,
        "candidate": None,
        "rollout": RolloutStatus(epoch=status.rollout.epoch + 1),
        "operator_state": {},
        "rejected": [version for version in status.rejected if version in observed.store.registrations],
        "training": TrainingStatus(),
        "history": [*status.history, entry],
    }
    return status.model_copy(update=update)


def start_over_note(lost_version: int) -> EventNote:
    """The Event for a speculator that starts over."""
    return EventNote("StartedOver", f"Gave up version {lost_version} and all others: {_START_OVER_TEXT}")


_START_OVER_TEXT = "a person confirmed that their records are lost, and the speculator begins again at version 0"


def _way_to_start_over(observed: Observed, version: int) -> str:
    if observed.spec.store.restore_from is not None:
        return "To give them up, delete the speculator, and create it again without store.restoreFrom"
    if observed.store.channel is not None:
        root = store_settings(observed.owner, observed.spec).root
        return f"To give them up, delete what is left below {root}/{Keys.CHANNEL}; this message then names the command"
    owner, confirmation = observed.owner, pair_text(version, observed.status.rollout.epoch)
    removals = " ".join(f"{key}-" for key in _ABOUT_VERSIONS.values())
    command = f"kubectl annotate auroraspeculator {owner.name} -n {owner.namespace} --overwrite {removals}"
    way = f"To give them up and begin again at version 0: {command} {START_OVER_ANNOTATION}={confirmation}"
    left = ", ".join(_decisions_left(observed))
    return f"Nothing begins again while {left} would decide about new versions with old numbers. {way}" if left else way
