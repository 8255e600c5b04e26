"""Reads the store's small records about one speculator into a :class:`StoreView`.

Invariants:

- A fault of the store never raises; the view carries the error.
- Create-once records are read once.
- The store is used only after a probe showed that it keeps create-once. The probe runs once per process, and again
  after every fault.
"""

from __future__ import annotations

from typing import TypeVar

from aurora_operator.observe.observed import StoreView
from aurora_protocol.draft_records import INITIAL_VERSION, Channel, Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence
from aurora_protocol.record import Record
from aurora_store import Keys, ObjectStore, Registry, StoreConfig
from aurora_store.errors import ObjectMissing, StoreError, StoreUnsupported
from aurora_store.keys import number_of
from aurora_store.root_ownership import is_void

R = TypeVar("R", bound=Record)
REQUEST_ATTEMPTS = 2


class StoreReader:
    """One speculator's store. Not thread-safe: only one call at a time."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self._objects = ObjectStore(config, attempts=REQUEST_ATTEMPTS)
        self._registry = Registry(self._objects)
        self._cache: dict[str, Record] = {}
        self._probed = False
        self._newest_key = ""

    def read(self, versions: frozenset[int]) -> StoreView:
        """The records about the newest, the active and the previous version, and about ``versions``. Blocks."""
        try:
            self._probe_once()
            return self._read(versions)
        except StoreUnsupported as error:
            self._probed = False
            return StoreView(reason="ConditionalWritesUnsupported", error=str(error))
        except StoreError as error:
            self._probed = False
            return StoreView(reason="Unreachable", error=str(error))
        except InvalidRecord as error:
            return StoreView(reason="InvalidRecord", error=f"a record in the store is not valid: {error}")

    def advance(self, channel: Channel) -> None:
        """Write the channel's next record. Blocks.

        Raises :class:`ObjectExists` when another operator wrote that record first, or another :class:`StoreError`.
        """
        self._registry.advance_channel(channel)

    def _probe_once(self) -> None:
        if self._probed:
            return
        if self.config.endpoint:
            # A self-hosted store starts empty, so the bucket is created. On AWS a missing bucket is a typing error.
            self._objects.ensure_bucket()
        self._objects.probe()
        self._probed = True

    def _read(self, versions: frozenset[int]) -> StoreView:
        lineage_key, channel_key = self._last_key(Keys.LINEAGE), self._last_key(Keys.CHANNEL)
        lineage = self._cached(Lineage, lineage_key) if lineage_key else None
        channel = self._cached(Channel, channel_key) if channel_key else None
        self._newest_key = self._last_key(Keys.REGISTRY, after=self._newest_key) or self._newest_key
        wanted = set(versions) | {INITIAL_VERSION}
        if self._newest_key:
            wanted.add(number_of(self._newest_key))
        if channel is not None:
            wanted |= {v for v in (channel.active, channel.previous, channel.inherited_version) if v is not None}
        registrations = {
            version: registration
            for version, registration in self._registrations(wanted).items()
            if channel is None or not is_void(registration, channel)
        }
        evidence = self._evidence(registrations)
        used = {Keys.registration(v) for v in registrations} | {Keys.evidence(e.version, e.attempt) for e in evidence}
        used |= {key for key in (lineage_key, channel_key) if key}
        self._cache = {key: value for key, value in self._cache.items() if key in used}
        return StoreView(
            lineage=lineage,
            channel=channel,
            registrations=registrations,
            evidence=evidence,
            trainer=self._registry.trainer_status(),
        )

    def _registrations(self, versions: set[int]) -> dict[int, Registration]:
        found = {}
        for version in sorted(versions):
            try:
                found[version] = self._cached(Registration, Keys.registration(version))
            except ObjectMissing:
                continue
        return found

    def _evidence(self, registrations: dict[int, Registration]) -> tuple[Evidence, ...]:
        return tuple(
            self._cached(Evidence, key)
            for version in registrations
            if version != INITIAL_VERSION
            for key in self._objects.list(Keys.evidence_of(version))
            if key.endswith(".json")
        )

    def _cached(self, model: type[R], key: str) -> R:
        """The create-once record at ``key``. Raises :class:`ObjectMissing`."""
        known = self._cache.get(key)
        if not isinstance(known, model):
            known = self._cache[key] = model.from_json(self._objects.get(key))
        return known

    def _last_key(self, prefix: str, after: str = "") -> str | None:
        return max((key for key in self._objects.list(prefix, after=after) if key.endswith(".json")), default=None)
