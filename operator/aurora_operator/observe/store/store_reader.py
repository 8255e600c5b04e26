"""Reads the store's small records about one speculator into a :class:`StoreView`.

Invariants:

- A fault of the store never raises; the view carries the error. A record whose name, number or content is wrong is
  named by its key, and nothing is decided until a person removes it.
- Create-once records are read once, and kept only while they are needed. Listings start after the last known key.
- Records of the channel and evidence are verified when they are read (``signed_records``), and not again while kept.
  The owner of a reader keeps examined evidence, so a read that was abandoned costs no examination twice.
- A record that skips more than 1000 numbers is a wrong one, as it is for pods (``in_sequence``).
- A channel that vanishes or comes back makes every other record unknown, because the numbers may name other drafts now.
- Nothing is written before a probe showed that the store keeps create-once. The probe runs once per process, and again
  after every fault. A root with a channel was probed by the process that wrote the channel, so a restarted operator
  probes such a root with its second read. In its first read it takes the trainer's word for the newest lineage and
  registration, as at rest. A thousand roots are then read sooner after a restart.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from aurora_operator import metrics
from aurora_operator.observe.observed import StoreView
from aurora_operator.observe.store.bounded_records import bounded_trainer_status
from aurora_operator.observe.store.evidence_check import ExaminedEvidence
from aurora_operator.observe.store.evidence_reader import EvidenceReader
from aurora_operator.observe.store.record_names import in_sequence_keys, naming, number_or_zero, require_own_key
from aurora_operator.observe.store.signed_records import (
    BelievedChannel,
    RecordKeys,
    believed_channel,
    require_signed_weights,
)
from aurora_operator.observe.store.store_schedule import ReadScope, StoreNeeds
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.record import MAX_NUMBER, Record
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
from aurora_store.keys import in_sequence, number_of
from aurora_store.records.draft_store import DraftStore
from aurora_store.records.record_store import MAX_RECORDS_LISTED
from aurora_store.root.root_ownership import is_void
from aurora_store.s3_calls.call_limits import total_deadline

R = TypeVar("R", bound=Record)
REQUEST_ATTEMPTS = 2
CALL_SECONDS = 10.0
READ_SECONDS = 20.0
"""Total deadline of one read, or of one write to the channel."""
_PREFIXES = {ReadScope.LINEAGE: Keys.LINEAGE, ReadScope.CHANNEL: Keys.CHANNEL, ReadScope.REGISTRY: Keys.REGISTRY}


class StoreReader:
    """One speculator's store. Not thread-safe: only one call at a time."""

    def __init__(
        self,
        config: StoreConfig,
        keys: RecordKeys | None = None,
        examined: ExaminedEvidence | None = None,
        objects: ObjectStore | None = None,
    ) -> None:
        """Raises :class:`StoreError` when the settings cannot be used.

        Args:
            keys: those that sign the records. None: they do not exist yet, so nothing may be decided.
            examined: what earlier readers of this store examined. The reader adds to it.
            objects: the store. Default: that of ``config``.
        """
        self.config = config
        self._objects = objects or ObjectStore(
            config,
            attempts=REQUEST_ATTEMPTS,
            call_seconds=CALL_SECONDS,
            on_request=lambda call: metrics.STORE_REQUESTS.labels(call).inc(),
        )
        self._keys = keys
        self._registry = Registry(self._objects)
        self._channel: BelievedChannel | None = None
        """The newest record of the channel that was read."""
        self._had_channel: bool | None = None
        """Whether the channel had a record when everything was read last. None: nothing was read yet."""
        self._probed = False
        self._may_postpone_probe = True
        self._last_keys: dict[str, str] = {}
        """Prefix -> the last known key below it."""
        self._records: dict[str, Record] = {}
        """Key -> a create-once record that is needed, but for evidence."""
        self._evidence = EvidenceReader(self._objects, keys, examined)
        self._absent: frozenset[int] = frozenset()
        """Versions that are needed and not registered."""
        self._trainer: TrainerStatus | None = None
        self._trainer_error = ""

    def read(self, needs: StoreNeeds, scope: ReadScope) -> StoreView:
        """Look for new records in ``scope``, then return all records that are needed. Blocks."""
        try:
            with total_deadline(READ_SECONDS), metrics.STORE_READ_SECONDS.time():
                found = self._prepare()
                return self._read(needs, scope & ~found, trust_trainer=found is not ReadScope.NONE)
        except StoreUnsupported as error:
            self._forget_state()
            return StoreView(reason="ConditionalWritesUnsupported", error=str(error))
        except (InvalidRecord, ObjectTooLarge) as error:
            self._forget_listings()
            return StoreView(reason="InvalidRecord", error=bounded_text(f"a record in the store is not valid: {error}"))
        except StoreError as error:
            self._forget_state()
            reason = "AddressRefused" if isinstance(error, AddressRefused) else "Unreachable"
            return StoreView(reason=reason, error=str(error))

    def lacks(self, needs: StoreNeeds) -> bool:
        """Whether a needed registration was not looked for yet."""
        return any(
            Keys.registration(version) not in self._records and version not in self._absent
            for version in self._wanted(needs)
        )

    def advance(self, channel: Channel) -> None:
        """Write the channel's next record. Blocks.

        Raises :class:`ObjectExists` when another operator wrote that record first, or another :class:`StoreError`.
        """
        if self._keys is None:
            raise StoreError("the keys that sign the channel do not exist yet")
        with total_deadline(READ_SECONDS):
            self._probe_once()
            DraftStore(self._objects, self._keys.for_channel()).advance_channel(channel)
        self._last_keys[Keys.CHANNEL] = Keys.channel(channel.epoch)
        self._channel, self._had_channel = BelievedChannel(channel, signed=True), True

    def _forget_state(self) -> None:
        """Probe and list everything again: after a fault, the store may be another one, or an earlier copy."""
        self._probed = self._may_postpone_probe = False
        self._forget_listings()

    def _forget_listings(self) -> None:
        """List everything again: a person removes a damaged record, which would otherwise be missed for ever."""
        self._last_keys.clear()
        self._evidence.forget_listings()

    def _forget_records(self) -> None:
        """Read everything again, create-once records included."""
        self._forget_listings()
        self._records.clear()
        self._evidence.forget()
        self._absent = frozenset()

    def _prepare(self) -> ReadScope:
        """Probe, unless that may wait. Returns the kinds of records that were looked for on the way."""
        if not self._probed and self._may_postpone_probe:
            self._may_postpone_probe = False
            # The probe says more about a store that cannot be listed.
            with contextlib.suppress(StoreError):
                self._find_newer(Keys.CHANNEL)
            if Keys.CHANNEL in self._last_keys:
                return ReadScope.CHANNEL
        self._probe_once()
        return ReadScope.NONE

    def _probe_once(self) -> None:
        if self._probed:
            return
        if self.config.endpoint:
            # A self-hosted store starts empty, so the bucket is created. On AWS a missing bucket is a typing error.
            self._objects.ensure_bucket()
        self._objects.probe()
        self._probed = True

    def _read(self, needs: StoreNeeds, scope: ReadScope, *, trust_trainer: bool) -> StoreView:
        if scope is ReadScope.ALL:
            self._absent = frozenset()
            self._forget_foreign_record()
        elif needs.measured:  # evidence is there before its Job ends, and everything was read after the end
            needs = replace(needs, measurement=None)
        if ReadScope.CHANNEL in scope and self._channel is not None:  # a person may have put them back
            self._absent -= {self._channel.record.active, self._channel.record.previous}
        if ReadScope.TRAINER in scope:
            self._read_trainer()
            scope = scope & ~self._named_by_trainer() if trust_trainer else scope | self._scope_of_trainer()
        for kind, prefix in _PREFIXES.items():
            if kind in scope:
                self._find_newer(prefix)
        if self._had_channel not in (None, Keys.CHANNEL in self._last_keys):
            self._forget_records()  # somebody deleted the records or put them back, so all may be others now
            for prefix in _PREFIXES.values():
                self._find_newer(prefix)
        key = self._last_keys.get(Keys.LINEAGE)
        lineage = None if key is None else self._record(Lineage, key, lambda record: Keys.lineage(record.number))
        channel = self._newest_channel()
        found = self._registrations(self._wanted(needs))
        registrations = {v: one for v, one in found.items() if channel is None or not is_void(one, channel)}
        if channel is not None:
            require_signed_weights(channel, registrations)
        evidence = self._evidence.read(registrations, needs, channel)
        self._forget_all_but(found)
        self._had_channel = channel is not None
        return StoreView(
            lineage=lineage,
            channel=channel,
            channel_signed=self._channel is None or self._channel.signed,
            unsigned_record=None if self._keys is not None else "" if self._channel is None else self._channel.digest,
            registrations=registrations,
            evidence=evidence,
            trainer=self._trainer,
            trainer_error=self._trainer_error,
        )

    def _forget_foreign_record(self) -> bool:
        """Forget a newest record of the channel that names another owner, because somebody may have removed it."""
        if self._channel is None or not self._channel.foreign:
            return False
        self._channel = None
        return self._last_keys.pop(Keys.CHANNEL, None) is not None

    def _read_trainer(self) -> None:
        try:
            found = self._registry.trainer_status()
            self._trainer, self._trainer_error = None if found is None else bounded_trainer_status(found), ""
        except (InvalidRecord, ObjectTooLarge) as error:
            self._trainer, self._trainer_error = None, bounded_text(f"{Keys.TRAINER_STATUS}: {error}")

    def _scope_of_trainer(self) -> ReadScope:
        """The kinds of records of which the trainer's status names a newer one. Only a hint to look now."""
        scope = ReadScope.NONE
        if self._trainer is not None:
            if self._is_newer(Keys.REGISTRY, self._trainer.last_registered):
                scope |= ReadScope.REGISTRY
            if self._is_newer(Keys.LINEAGE, self._trainer.lineage):
                scope |= ReadScope.LINEAGE
        return scope

    def _named_by_trainer(self) -> ReadScope:
        """Take the newest lineage and registration from the trainer's status. Returns what needs no listing then."""
        named, status = ReadScope.NONE, self._trainer
        if status is None:
            return named
        if status.lineage is not None and self._continues(Keys.LINEAGE, status.lineage):
            with contextlib.suppress(ObjectMissing):
                self._record(Lineage, Keys.lineage(status.lineage), lambda record: Keys.lineage(record.number))
                self._last_keys[Keys.LINEAGE] = Keys.lineage(status.lineage)
                named |= ReadScope.LINEAGE
        if status.last_registered is not None and self._continues(Keys.REGISTRY, status.last_registered):
            self._last_keys[Keys.REGISTRY] = Keys.registration(status.last_registered)
            named |= ReadScope.REGISTRY
        return named

    def _is_newer(self, prefix: str, number: int | None) -> bool:
        known = self._last_keys.get(prefix)
        return number is not None and (known is None or number > number_of(known))

    def _continues(self, prefix: str, number: int) -> bool:
        """Whether ``number`` is in sequence after the last known one. Else a listing shows what comes in between."""
        return bool(in_sequence([number], number_or_zero(self._last_keys.get(prefix, ""))))

    def _find_newer(self, prefix: str) -> None:
        """Look for a record with a higher number than the last known one.

        Raises :class:`InvalidRecord` with the key of a record that is out of sequence.
        """
        known = self._last_keys.get(prefix, "")
        # The channel's listing begins with the known record, and so shows that it is still there.
        before = Keys.channel(number_of(known) - 1) if known and prefix == Keys.CHANNEL else known
        listed = [*self._objects.list(prefix, after=before, limit=MAX_RECORDS_LISTED)]
        if before != known and known not in listed and self._forget_foreign_record():
            self._find_newer(prefix)  # an earlier record of ours counts again
            return
        if before != known and known not in listed and not any(self._objects.list(prefix, limit=MAX_RECORDS_LISTED)):
            del self._last_keys[prefix]
            return
        keys = in_sequence_keys((key for key in listed if key != known), known)
        if keys:
            self._last_keys[prefix] = keys[-1]

    def _newest_channel(self) -> Channel | None:
        """The channel's newest record. Raises :class:`InvalidRecord` with its key when it is not believed."""
        key = self._last_keys.get(Keys.CHANNEL)
        if key is None:
            self._channel = None
            return None
        if self._channel is None or Keys.channel(self._channel.record.epoch) != key:
            self._channel = None
            data = self._objects.get(key)
            with naming(key):
                believed = believed_channel(data, key, self.config.root, self._keys)
            require_own_key(key, Keys.channel(believed.record.epoch))
            self._channel = believed
        return self._channel.record

    def _wanted(self, needs: StoreNeeds) -> frozenset[int]:
        """The versions that are needed: those of ``needs``, the newest, the active and the previous.

        Before the channel has a record, its first record needs the initial version.
        """
        newest = self._last_keys.get(Keys.REGISTRY)
        versions = {*needs.versions} if self._channel is not None else {INITIAL_VERSION, *needs.versions}
        if newest is not None:
            versions.add(number_of(newest))
        if self._channel is not None:
            channel = self._channel.record
            named = (channel.active, channel.previous, channel.inherited_version)
            versions |= {version for version in named if version is not None}
        return frozenset(version for version in versions if 0 <= version <= MAX_NUMBER)

    def _registrations(self, versions: frozenset[int]) -> dict[int, Registration]:
        found = {}
        for version in sorted(versions - self._absent):
            key = Keys.registration(version)
            try:
                found[version] = self._record(Registration, key, lambda record: Keys.registration(record.version))
            except ObjectMissing:
                continue
        self._absent = versions - found.keys()
        newest = self._last_keys.get(Keys.REGISTRY)
        if newest is not None and number_of(newest) in self._absent:
            del self._last_keys[Keys.REGISTRY]  # somebody deleted it
        return found

    def _record(self, model: type[R], key: str, key_of: Callable[[R], str]) -> R:
        """The create-once record at ``key``. Raises :class:`ObjectMissing`, and :class:`InvalidRecord` with the key."""
        known = self._records.get(key)
        if isinstance(known, model):
            return known
        data = self._objects.get(key)
        with naming(key):
            record = model.from_json(data)
        require_own_key(key, key_of(record))
        self._records[key] = record
        return record

    def _forget_all_but(self, registrations: dict[int, Registration]) -> None:
        used = {Keys.registration(version) for version in registrations}
        used |= {key for prefix, key in self._last_keys.items() if prefix == Keys.LINEAGE}
        self._records = {key: record for key, record in self._records.items() if key in used}
