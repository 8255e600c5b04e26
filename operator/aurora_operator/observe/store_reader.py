"""Reads the store's small records of one speculator into a :class:`StoreView`.

Invariants: never raises for what the store does (an outage is data); records that are create-once are read once; a
store is trusted only after it has proved, once per process and again after every fault, that it keeps create-once.
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

R = TypeVar("R", bound=Record)
ATTEMPTS = 2


class StoreReader:
    """One speculator's store. Not thread-safe: one look at a time."""

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self._objects = ObjectStore(config, attempts=ATTEMPTS)
        self._registry = Registry(self._objects)
        self._cache: dict[str, Record] = {}
        self._probed = False
        self._newest = ""

    def read(self, interesting: frozenset[int]) -> StoreView:
        """The records about the newest version, the active and previous ones, and those in ``interesting``. Blocks."""
        try:
            self._prove()
            return self._read(interesting)
        except StoreUnsupported as error:
            self._probed = False
            return StoreView(reason="ConditionalWritesUnsupported", error=str(error))
        except StoreError as error:
            self._probed = False
            return StoreView(reason="Unreachable", error=str(error))
        except InvalidRecord as error:
            return StoreView(reason="InvalidRecord", error=f"a record in the store is not valid: {error}")

    def advance(self, channel: Channel) -> None:
        """Write the channel's next record. Raises :class:`StoreError`; ``ObjectExists`` when another was first."""
        self._registry.advance_channel(channel)

    def _prove(self) -> None:
        if self._probed:
            return
        if self.config.endpoint:
            # A store of one's own starts empty; on AWS a missing bucket is a typing error.
            self._objects.ensure_bucket()
        self._objects.probe()
        self._probed = True

    def _once(self, model: type[R], key: str) -> R:
        known = self._cache.get(key)
        if not isinstance(known, model):
            known = self._cache[key] = model.from_json(self._objects.get(key))
        return known

    def _last(self, prefix: str, after: str = "") -> str | None:
        return max((key for key in self._objects.list(prefix, after=after) if key.endswith(".json")), default=None)

    def _read(self, interesting: frozenset[int]) -> StoreView:
        lineage_key, channel_key = self._last(Keys.LINEAGE), self._last(Keys.CHANNEL)
        lineage = self._once(Lineage, lineage_key) if lineage_key else None
        channel = self._once(Channel, channel_key) if channel_key else None
        self._newest = self._last(Keys.REGISTRY, after=self._newest) or self._newest
        wanted = set(interesting) | {INITIAL_VERSION}
        if self._newest:
            wanted.add(number_of(self._newest))
        if channel is not None:
            wanted |= {channel.active} | ({channel.previous} if channel.previous is not None else set())
        registrations = {}
        for version in sorted(wanted):
            try:
                registrations[version] = self._once(Registration, Keys.registration(version))
            except ObjectMissing:
                continue
        evidence = tuple(
            self._once(Evidence, key)
            for version in registrations
            if version != INITIAL_VERSION
            for key in self._objects.list(Keys.evidence_of(version))
            if key.endswith(".json")
        )
        kept = {Keys.registration(v) for v in registrations} | {Keys.evidence(e.version, e.attempt) for e in evidence}
        kept |= {key for key in (lineage_key, channel_key) if key}
        self._cache = {key: value for key, value in self._cache.items() if key in kept}
        return StoreView(
            lineage=lineage,
            channel=channel,
            registrations=registrations,
            evidence=evidence,
            trainer=self._registry.trainer_status(),
        )
