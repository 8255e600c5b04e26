"""Decides which records of the channel and which evidence one speculator's operator believes. Pure.

Invariants:

- A record of the channel is believed when this speculator's operator signed it. One more record is believed: the newest
  of the moment in which the keys were made (trust on first use). It was signed with keys that are lost.
- A record that names another speculator as the root's owner is passed on unsigned. Nothing but the ownership follows
  from it (``plan.root_ownership``), and no version.
- Evidence that no validator signed shows nothing. It counts as a measurement without a result, so its candidate is
  measured again, and a writer of such evidence cannot keep the gate busy for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from aurora_operator.children.access import TRUSTED_RECORD
from aurora_operator.children.owner import Owner
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.secret_values import secret_value
from aurora_protocol.draft_records import Channel, Registration
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.evidence_records import Evidence, Verdict, VerdictKind
from aurora_protocol.signatures import CHANNEL_KEYS, KeyName, SigningKeys, all_keys, unsigned_parts, verified
from aurora_store.keys import Keys, owner_id
from aurora_store.root.root_ownership import current_owner


@dataclass(frozen=True, slots=True)
class RecordKeys:
    """The signing keys of one speculator. ``repr`` never shows them."""

    owner: str
    """Owner id of the speculator."""
    operator: bytes = field(repr=False)
    """The key from which the others are derived."""
    trusted_record: str
    """Digest of the channel's newest record when the keys were made. Empty: the channel was empty."""

    @classmethod
    def of(cls, owner: Owner, secret: Object) -> RecordKeys | None:
        """The keys in the Secret of ``owner``. None when it does not hold what the operator wrote."""
        held = {name: secret_value(secret, name.value).encode() for name in KeyName}
        trusted = secret_value(secret, TRUSTED_RECORD)
        operator = held[KeyName.OPERATOR]
        if not operator or held != all_keys(operator) or TRUSTED_RECORD not in secret["data"]:
            return None
        return cls(owner_id(owner.uid), operator, trusted)

    def of_name(self, name: KeyName) -> bytes:
        """The key called ``name``."""
        return all_keys(self.operator)[name]

    def for_channel(self) -> SigningKeys:
        """The keys that a record of the channel is signed with."""
        return {name: key for name, key in all_keys(self.operator).items() if name in CHANNEL_KEYS}


@dataclass(frozen=True, slots=True)
class BelievedChannel:
    """A record of the channel."""

    record: Channel
    signed: bool
    """Signed by this speculator's operator."""
    foreign: bool = False
    """The record names another speculator as the root's owner, and is not signed by ours."""
    digest: str = ""
    """Digest of the record, while the keys do not exist."""


def record_digest(content: bytes) -> str:
    """The digest by which the record ``content`` (without signatures) is trusted."""
    return hashlib.sha256(content).hexdigest()


def believed_channel(data: bytes, key: str, root: str, keys: RecordKeys | None) -> BelievedChannel:
    """The record ``data`` at ``key`` below ``root``.

    Args:
        keys: None: they were not made yet, so the record is the one that will be trusted.

    Raises :class:`UnsignedRecord` when the record is not believed, and :class:`InvalidRecord`.
    """
    if keys is None:
        content = unsigned_parts(data)[0]
        return BelievedChannel(_without_digests(content), signed=False, digest=record_digest(content))
    try:
        covered = verified(data, f"{root}/{key}", KeyName.OPERATOR, keys.operator)
    except UnsignedRecord as error:
        content = unsigned_parts(data)[0]
        record = _without_digests(content)
        if current_owner(record, root) != keys.owner:
            return BelievedChannel(record, signed=False, foreign=True)
        if record_digest(content) == keys.trusted_record:
            return BelievedChannel(record, signed=False)
        raise UnsignedRecord(
            f"{error}. Find out who wrote it. If it was an operator whose signing keys are lost, see InvalidRecord in"
            " docs/reference/conditions.md; else delete it"
        ) from None
    return BelievedChannel(Channel.from_json(covered), signed=True)


def _without_digests(content: bytes) -> Channel:
    """An unsigned record of the channel, without the digests of weights, which are not believed.

    The operator signs the registrations' digests instead.
    """
    return Channel.from_json(content).model_copy(update={"active_digest": None, "previous_digest": None})


def believed_evidence(data: bytes, key: str, root: str, keys: RecordKeys | None) -> Evidence:
    """The evidence ``data`` at ``key`` below ``root``. Without a signature it shows nothing, and says so.

    Raises :class:`InvalidRecord`.
    """
    if keys is not None:
        with contextlib.suppress(UnsignedRecord):
            covered = verified(data, f"{root}/{key}", KeyName.EVIDENCE, keys.of_name(KeyName.EVIDENCE))
            return Evidence.from_json(covered)
    unsigned = Evidence.from_json(unsigned_parts(data)[0])
    reason = f"{key} does not count: no validator of this speculator signed it"
    nothing = Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=(reason,), ratios=())
    shown: dict[str, object] = {"samples": (), "equality": (), "baseline": None, "acceptance_length": {}}
    return unsigned.model_copy(update={**shown, "end": None, "end_message": "", "verdict": nothing})


def require_signed_weights(channel: Channel, registrations: Mapping[int, Registration]) -> None:
    """Raise :class:`InvalidRecord` when the channel names other weights of a version than its registration does."""
    for version, registration in registrations.items():
        if channel.digest_of(version) not in (None, registration.digest):
            key = Keys.registration(version)
            raise InvalidRecord(f"{key} names other weights than the channel; restore it, and find out who wrote it")
