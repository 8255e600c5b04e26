"""The store's records of a speculator that was trained for some time: versions, evidence and a history of promotions.

Versions 1 and 2 were measured and promoted, and version 3 was measured and refused. Pods serve version 2. Each record
of the channel and each evidence is signed, as the operator and its validators sign them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.unit.operator.worlds import channel, evidence, lineage, registration, samples

from aurora_protocol.draft_records import RootOwner
from aurora_protocol.evidence_records import Arm, MeasurementEnd, VerdictKind
from aurora_protocol.signatures import KeyName, SigningKeys, signed
from aurora_store import Keys

PREVIOUS, ACTIVE, REFUSED = 1, 2, 3
EPOCH: Final = 3
"""The epoch in which version :data:`ACTIVE` was promoted."""
ROUNDS: Final = 10
"""Rounds of each measurement. Each has batches of three arms at two concurrencies."""
_REFUSED_SPEEDS: Final = {Arm.OFF: 100, Arm.ACTIVE: 135, Arm.CANDIDATE: 120}


def trained_records(root: str, owner: RootOwner, keys: SigningKeys) -> dict[str, bytes]:
    """Key below ``root``, which ``owner`` owns -> record, the trainer's status left out."""
    plain = {Keys.lineage(1): lineage().to_json()}
    plain |= {Keys.registration(version): registration(version).to_json() for version in range(REFUSED + 1)}
    channels = {
        Keys.channel(1): channel(0, owner=owner),
        Keys.channel(2): channel(PREVIOUS, epoch=2, previous=0, owner=owner),
        Keys.channel(EPOCH): channel(ACTIVE, epoch=EPOCH, previous=PREVIOUS, owner=owner),
    }
    measured = (
        evidence(PREVIOUS, samples=samples(ROUNDS), end=MeasurementEnd.DECIDED),
        evidence(ACTIVE, active=PREVIOUS, samples=samples(ROUNDS), end=MeasurementEnd.DECIDED),
        evidence(
            REFUSED,
            VerdictKind.REJECT,
            active=ACTIVE,
            samples=samples(ROUNDS, _REFUSED_SPEEDS),
            end=MeasurementEnd.DECIDED,
        ),
    )
    return {
        **plain,
        **_signed(root, {key: record.to_json() for key, record in channels.items()}, keys[KeyName.CHANNEL]),
        **_signed(
            root,
            {Keys.evidence(each.version, each.attempt): each.to_json() for each in measured},
            keys[KeyName.EVIDENCE],
        ),
    }


def _signed(root: str, records: Mapping[str, bytes], secret: bytes) -> dict[str, bytes]:
    return {key: signed(data, f"{root}/{key}", secret) for key, data in records.items()}
