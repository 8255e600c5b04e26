"""Give up the records that a store has lost, and begin again at version 0. Pure.

Decisions about the versions that are given up are removed, because new versions get the same numbers.

Invariants: the confirmation names the version that is lost and the roll's epoch, so it never gives up another loss. It
is written only while the operator's message names the annotation, which it does not while the channel has records.
"""

from __future__ import annotations

from typing import Final

from aurora_api.v1alpha1.annotations import (
    ABORT_ANNOTATION,
    MEASURE_ANNOTATION,
    PROMOTE_ANNOTATION,
    START_OVER_ANNOTATION,
    pair_text,
)
from aurora_api.v1alpha1.conditions import ConditionType
from aurora_cli.decisions.change import Change, FieldChange
from aurora_cli.errors import Refused
from aurora_cli.speculator import Speculator

RECORDS_LOST: Final = "RecordsLost"


def start_over(speculator: Speculator) -> Change:
    """Begin again at version 0. Raises :class:`Refused` unless the operator says that the records are lost."""
    name, active = speculator.name, speculator.active
    storage = speculator.condition(ConditionType.STORAGE_READY)
    if active is None or storage is None or storage.reason != RECORDS_LOST:
        raise Refused(f"{name} has lost no records: its condition StorageReady does not say {RECORDS_LOST}")
    if speculator.section("store").get("restoreFrom"):
        raise Refused(
            f"{name} goes on with the root of another speculator (store.restoreFrom) and cannot begin again there:"
            " delete it, and create it again without store.restoreFrom"
        )
    if START_OVER_ANNOTATION not in storage.message:
        raise Refused(
            f"the store still has records of {name} that would be served instead of version 0: {storage.message}"
        )
    epoch = speculator.status.rollout.epoch
    annotations = speculator.annotations
    before, wanted = annotations.get(START_OVER_ANNOTATION), pair_text(active, epoch)
    about_versions = (PROMOTE_ANNOTATION, ABORT_ANNOTATION, MEASURE_ANNOTATION)
    removed = [FieldChange(key, annotations[key], None) for key in about_versions if key in annotations]
    confirmed = [] if before == wanted else [FieldChange(START_OVER_ANNOTATION, before, wanted)]
    if not (confirmed or removed):
        return Change((), f"version {active} is given up already")
    pin = speculator.pin
    notes = () if pin is None else (f"version {pin} is pinned: nothing is rolled out before `unpin {name}`",)
    effect = f"version {active} and all others are given up, and pods swap to version 0, which is untrained"
    return Change((*confirmed, *removed), effect, notes)
