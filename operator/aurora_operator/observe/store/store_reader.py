"""Reads the store's small records about one speculator into a :class:`StoreView`.

Each read lists the channel, the registry, the expired versions and the evidence, and reads the trainer's record: five
requests at rest.

Invariants:

- A fault of the store never raises; the view carries the error. A record whose name, number or content is wrong is
  named by its key, and nothing is decided until a person removes it.
- Create-once records are read once, and kept as long as each read needs them. When the channel's epoch falls, somebody
  deleted records or put back others, so all are read again.
- A record that skips more than 1000 numbers is a wrong one, as it is for pods (``in_sequence``).
- Nothing is written before a probe showed that the store keeps create-once. Before a read, only a root without a
  channel is probed: a probe is a third of the requests of a new leader's first look.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from aurora_api.v1alpha1.spec import SpeculatorSpec
from aurora_api.v1alpha1.status import CandidatePhase, SpeculatorStatus
from aurora_api.v1alpha1.validation import ValidationSpec
from aurora_operator import metrics
from aurora_operator.children.metadata import Owner
from aurora_operator.observe.observed import JobView, StoreView
from aurora_operator.observe.store.signed_records import (
    MAX_MESSAGE_CHARACTERS,
    RecordKeys,
    believed_channel,
    believed_evidence,
    judged,
    require_signed_weights,
)
from aurora_protocol.draft_records import INITIAL_VERSION, LINEAGE_NUMBER, Channel, Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.gate import GatePolicy
from aurora_protocol.record import StoredRecord
from aurora_protocol.signatures import KeyName
from aurora_protocol.training_records import TrainerStatus
from aurora_store import Keys, ObjectStore, Registry, StoreConfig
from aurora_store.errors import (
    AddressRefused,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreUnsupported,
    bounded_text,
)
from aurora_store.keys import MAX_ATTEMPT_GAP, MAX_NUMBER_GAP, in_sequence, number_of
from aurora_store.registry import MAX_RECORDS_LISTED, key_of

log = logging.getLogger(__name__)
R = TypeVar("R", bound=StoredRecord)
_Judgement = tuple[str, GatePolicy, bool]
"""Key of evidence, the bars, and whether its version is pinned."""
REQUEST_ATTEMPTS: Final = 2
REQUEST_SECONDS: Final = 8.0
"""Longest wait for a connection's next bytes."""


@dataclass(frozen=True)
class StoreNeeds:
    """The records that the next decision depends on."""

    versions: frozenset[int] = frozenset()
    """Versions that the status, a pin or an annotation names. Their registrations and evidence are needed, beside those
    of the active version and of newer ones."""
    policy: GatePolicy = field(default_factory=lambda: GatePolicy.of(ValidationSpec()))
    """The bars of the spec, with which evidence is judged again."""
    pin: int | None = None
    """The version that a person pinned."""
    has_channel: bool = False
    """The status has an active version, so records were written here before."""
    moment: tuple[object, ...] = ()
    """What the resource, its Jobs and its rollout say. A change is a reason to read the store now."""


def store_needs(
    owner: Owner, spec: SpeculatorSpec, status: SpeculatorStatus, jobs: Iterable[JobView], abort: int | None
) -> StoreNeeds:
    """The records that the next decision depends on.

    A Job's end changes the moment: its evidence is there before the Job ends.
    """
    asked = {version for version in (spec.rollout.pin, abort) if version is not None}
    candidate, measured = status.candidate, None
    if candidate is not None and candidate.phase is CandidatePhase.VALIDATING:
        attempt = (candidate.version, candidate.attempt)
        measured = any(job.finished for job in jobs if (job.version, job.attempt) == attempt)
    rollout = status.rollout
    return StoreNeeds(
        versions=status.versions() | asked,
        policy=GatePolicy.of(spec.validation),
        pin=spec.rollout.pin,
        has_channel=status.active is not None,
        moment=(owner.uid, owner.generation, abort, measured, rollout.phase, rollout.version, rollout.updated),
    )


class StoreReader:
    """One speculator's store. Not thread-safe: only one call at a time."""

    def __init__(self, config: StoreConfig, keys: RecordKeys, objects: ObjectStore | None = None) -> None:
        """Raises :class:`StoreError` when the settings cannot be used.

        Args:
            keys: those that sign the records.
            objects: the store. Default: that of ``config``.
        """
        self.config = config
        self._objects = objects or ObjectStore(
            config,
            attempts=REQUEST_ATTEMPTS,
            timeout_seconds=REQUEST_SECONDS,
            on_request=lambda call: metrics.STORE_REQUESTS.labels(call).inc(),
        )
        self._keys = keys
        self._registry = Registry(self._objects, {KeyName.CHANNEL: keys.channel})
        self._probed = False
        self._epoch = 0
        """Epoch of the channel at the last read; 0 without a channel."""
        self._records: dict[str, StoredRecord] = {}
        """Key -> a create-once record that the last read needed, but for evidence."""
        self._judged: dict[_Judgement, Evidence] = {}
        """The evidence that the last read needed."""

    def read(self, needs: StoreNeeds) -> StoreView:
        """The records that are needed now. Blocks."""
        try:
            with metrics.STORE_READ_SECONDS.time():
                if not needs.has_channel:
                    self._probe_once()
                return self._read(needs)
        except StoreUnsupported as error:
            return StoreView(reason="ConditionalWritesUnsupported", error=str(error))
        except (InvalidRecord, ObjectTooLarge) as error:
            return StoreView(reason="InvalidRecord", error=bounded_text(f"a record in the store is not valid: {error}"))
        except StoreError as error:
            self._probed = False  # the store may be another one when it answers again
            return unreachable(error)

    def advance(self, channel: Channel) -> None:
        """Write the channel's next record. Blocks.

        Raises :class:`ObjectExists` when another operator wrote that record first, or another :class:`StoreError`.
        """
        self._probe_once()
        self._registry.advance_channel(channel)

    def _probe_once(self) -> None:
        if self._probed:
            return
        if self.config.endpoint:
            # A self-hosted store starts empty, so the bucket is created. On AWS a missing bucket is a typing error.
            self._objects.ensure_bucket()
        self._objects.probe()
        self._probed = True

    def _read(self, needs: StoreNeeds) -> StoreView:
        epochs, versions = self._numbers(Keys.CHANNEL), self._numbers(Keys.REGISTRY)
        epoch = max(epochs, default=0)
        if epoch < self._epoch:
            self._records, self._judged = {}, {}
        self._epoch = epoch
        known, self._records = self._records, {}
        channel = self._channel(epoch, known) if epoch else None
        lineage, expired = self._lineage(known), self._registry.expired_versions()
        registrations = {
            version: record
            for version in sorted(_wanted(needs, channel, versions).intersection(versions))
            if (record := self._registration(version, known))
        }
        if channel is not None:
            require_signed_weights(channel, registrations)
        return StoreView(
            lineage=lineage,
            channel=channel,
            registrations=registrations,
            kept=tuple(version for version in versions if version not in expired),
            expired=expired,
            trainer=self._trainer_status(),
            evidence=self._evidence(registrations, needs, channel),
        )

    def _numbers(self, prefix: str) -> list[int]:
        """The numbers of the records directly below ``prefix``, ascending. Raises :class:`InvalidRecord`."""
        listed = self._objects.list(prefix, limit=MAX_RECORDS_LISTED)
        return [number_of(key) for key in _in_sequence(_directly_below(prefix, listed))]

    def _channel(self, epoch: int, known: dict[str, StoredRecord]) -> Channel:
        """Raises :class:`InvalidRecord` with the record's key when it is not believed."""
        key = Keys.channel(epoch)
        root, keys = self.config.root, self._keys
        return self._record(Channel, key, known, lambda data: believed_channel(data, key, root, keys))

    def _lineage(self, known: dict[str, StoredRecord]) -> Lineage | None:
        """None until the trainer has created it."""
        with contextlib.suppress(ObjectMissing):
            return self._record(Lineage, Keys.lineage(LINEAGE_NUMBER), known, Lineage.from_json)
        return None

    def _registration(self, version: int, known: dict[str, StoredRecord]) -> Registration | None:
        """None when it was deleted since the listing."""
        with contextlib.suppress(ObjectMissing):
            return self._record(Registration, Keys.registration(version), known, Registration.from_json)
        return None

    def _record(self, model: type[R], key: str, known: dict[str, StoredRecord], parse: Callable[[bytes], R]) -> R:
        """The create-once record at ``key``. Raises :class:`ObjectMissing`, and :class:`InvalidRecord` with the key."""
        found = known.get(key)
        record = found if isinstance(found, model) else self._fetch(key, parse)
        self._records[key] = record
        return record

    def _fetch(self, key: str, parse: Callable[[bytes], R]) -> R:
        data = self._objects.get(key)
        try:
            record = parse(data)
        except InvalidRecord as error:
            raise InvalidRecord(bounded_text(f"{key}: {error}")) from error
        if key_of(record) != key:
            raise InvalidRecord(f"{key}: the record's own numbers belong to {key_of(record)}")
        return record

    def _trainer_status(self) -> TrainerStatus | None:
        """The trainer's record, cut to what a status can hold. One that cannot be parsed counts as missing."""
        try:
            found = self._registry.trainer_status()
        except (InvalidRecord, ObjectTooLarge) as error:
            log.warning("%s/%s: %s", self.config.root, Keys.TRAINER_STATUS, bounded_text(str(error)))
            return None
        message = "" if found is None else bounded_text(found.message, MAX_MESSAGE_CHARACTERS)
        return None if found is None else found.model_copy(update={"message": message})

    def _evidence(self, registered: Iterable[int], needs: StoreNeeds, channel: Channel | None) -> tuple[Evidence, ...]:
        """The evidence of the versions among ``registered`` that may matter.

        Evidence of a version older than the active one promotes nothing. It is read for a version that the status, a
        pin or an annotation names.
        """
        active = None if channel is None else channel.active
        versions = sorted(
            version
            for version in registered
            if version != INITIAL_VERSION and (active is None or version >= active or version in needs.versions)
        )
        known, self._judged = self._judged, {}
        if not versions:
            return ()
        listed = [*self._objects.list(Keys.EVIDENCE, after=Keys.evidence_of(versions[0]), limit=MAX_RECORDS_LISTED)]
        for version in versions:
            own = _directly_below(Keys.evidence_of(version), listed)
            for key in _in_sequence(own, max_gap=MAX_ATTEMPT_GAP):
                judgement = (key, needs.policy, version == needs.pin)
                self._judged[judgement] = known.get(judgement) or self._judge(*judgement)
        return tuple(self._judged.values())

    def _judge(self, key: str, policy: GatePolicy, pinned: bool) -> Evidence:
        parse = partial(believed_evidence, key=key, root=self.config.root, keys=self._keys)
        return judged(self._fetch(key, parse), policy, pinned=pinned)


def unreachable(error: StoreError) -> StoreView:
    """The view of a store that gives no answer."""
    reason = "AddressRefused" if isinstance(error, AddressRefused) else "Unreachable"
    return StoreView(reason=reason, error=str(error))


def _wanted(needs: StoreNeeds, channel: Channel | None, versions: list[int]) -> set[int]:
    """The versions that are needed: those of ``needs``, the newest, the active and the previous.

    Before the channel has a record, its first record needs the initial version.
    """
    named = (INITIAL_VERSION,) if channel is None else (channel.active, channel.previous)
    return {*needs.versions, *versions[-1:], *(version for version in named if version is not None)}


def _directly_below(folder: str, listed: Iterable[str]) -> Iterator[str]:
    """The keys directly below ``folder``. Deeper ones are another root's, which somebody placed inside this one."""
    return (key for key in listed if key.startswith(folder) and "/" not in key.removeprefix(folder))


def _in_sequence(listed: Iterable[str], *, max_gap: int = MAX_NUMBER_GAP) -> list[str]:
    """The keys of records among ``listed``, in order of their numbers.

    Raises :class:`InvalidRecord` for a record that has no number, or a number that is out of sequence.
    """
    keys = sorted((key for key in listed if key.endswith(".json")), key=number_of)
    sequence = in_sequence(map(number_of, keys), max_gap=max_gap)
    if len(sequence) < len(keys):
        raise InvalidRecord(f"{keys[len(sequence)]} is out of sequence; find out who wrote it, and delete it")
    return keys
