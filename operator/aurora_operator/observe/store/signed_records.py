"""Decides which records of the channel one speculator's operator believes, and what stored evidence shows. Pure.

Invariants:

- A record of the channel is believed when this speculator's operator signed it.
- A record that names another speculator as the root's owner is passed on unsigned. Nothing but the ownership follows
  from it (``plan.channel``), and no version.
- Evidence that no validator signed shows nothing. It counts as a measurement without a result, so its candidate is
  measured again, and a writer of such evidence cannot keep the gate busy for ever.
- No evidence passes unless its own samples clear the bars. Its texts are cut to what a status can hold, and no record
  is refused for their length.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from aurora_operator.children.metadata import Owner
from aurora_operator.kubernetes_api import Object
from aurora_operator.observe.secret_values import secret_value
from aurora_protocol.draft_records import Channel, Registration
from aurora_protocol.errors import InvalidRecord, UnsignedRecord
from aurora_protocol.evidence_records import Evidence, Verdict, VerdictKind
from aurora_protocol.gate import GatePolicy
from aurora_protocol.gate.verdict import least_policy, recomputed
from aurora_protocol.signatures import KeyName, verified
from aurora_store.errors import bounded_text
from aurora_store.keys import Keys, owner_id

MAX_MESSAGE_CHARACTERS: Final = 1000
MAX_REASONS: Final = 32
"""Most reasons of a verdict that are kept. The gate gives one for each bar, and a few more."""


@dataclass(frozen=True, slots=True)
class RecordKeys:
    """The signing keys of one speculator. ``repr`` never shows them."""

    owner: str
    """Owner id of the speculator."""
    channel: bytes = field(repr=False)
    evidence: bytes = field(repr=False)

    @classmethod
    def of(cls, owner: Owner, secret: Object) -> RecordKeys | None:
        """The keys in the Secret of ``owner``. None when one of them is missing."""
        channel, evidence = (secret_value(secret, name.value).encode() for name in KeyName)
        return cls(owner_id(owner.uid), channel, evidence) if channel and evidence else None


def believed_channel(data: bytes, key: str, root: str, keys: RecordKeys) -> Channel:
    """The record ``data`` at ``key`` below ``root``.

    Raises :class:`UnsignedRecord` when the record is not believed, and :class:`InvalidRecord`.
    """
    try:
        return Channel.from_json(verified(data, f"{root}/{key}", keys.channel))
    except UnsignedRecord as error:
        record = Channel.from_json(data)
        if record.owner.id != keys.owner:
            # The digests of its weights are not believed. The registrations name the weights instead.
            return record.model_copy(update={"active_digest": None, "previous_digest": None})
        raise UnsignedRecord(
            f"{error}. Find out who wrote it, and delete it. If the Secret with the keys was lost, see InvalidRecord in"
            " docs/reference/conditions.md"
        ) from None


def believed_evidence(data: bytes, key: str, root: str, keys: RecordKeys) -> Evidence:
    """The evidence ``data`` at ``key`` below ``root``. Without a signature it shows nothing, and says so.

    Raises :class:`InvalidRecord`.
    """
    with contextlib.suppress(UnsignedRecord):
        return Evidence.from_json(verified(data, f"{root}/{key}", keys.evidence))
    unsigned = Evidence.from_json(data)
    reason = f"{key} does not count: no validator of this speculator signed it"
    nothing = Verdict(kind=VerdictKind.INCONCLUSIVE, reasons=(reason,), ratios=())
    shown: dict[str, object] = {"samples": (), "equality": (), "acceptance_length": {}}
    return unsigned.model_copy(update={**shown, "end": None, "verdict": nothing})


def judged(evidence: Evidence, policy: GatePolicy, *, pinned: bool) -> Evidence:
    """``evidence`` with the operator's own verdict, and without the raw samples, which take 50 times as much memory.

    The status shows the ratios at the primary concurrency only.

    Args:
        policy: the bars of the spec.
        pinned: a person pinned the version, which may have passed with other bars. Only those that no setting lowers
            count then.
    """
    evidence = recomputed(evidence, least_policy(evidence) if pinned else policy)
    verdict = evidence.verdict
    shown = {
        "reasons": tuple(bounded_text(reason) for reason in verdict.reasons[:MAX_REASONS]),
        "ratios": tuple(ratio for ratio in verdict.ratios if ratio.concurrency == policy.primary),
    }
    return evidence.model_copy(
        update={
            "samples": (),
            "equality": (),
            "verdict": verdict.model_copy(update=shown),
        }
    )


def require_signed_weights(channel: Channel, registrations: Mapping[int, Registration]) -> None:
    """Raise :class:`InvalidRecord` when the channel names other weights of a version than its registration does."""
    for version, registration in registrations.items():
        if channel.digest_of(version) not in (None, registration.digest):
            key = Keys.registration(version)
            raise InvalidRecord(f"{key} names other weights than the channel; restore it, and find out who wrote it")
