"""Checks promise 4 ("Durable") on a store.

Every object must be a valid record, or data that a record names with its size and digest.

``python -m tests.check_store --endpoint URL --bucket B --root R`` prints counts and every violation. The exit status is
1 when there is a violation or no object at all. Credentials come from the environment. The check only reads.

The weights of a version that expired may be gone, in whole or in part, unless the newest channel record names the
version.

Three kinds of objects are not violations:

- Young data that no record names yet: data is written before its record.
- The data of a trainer that lost the race for an epoch, as long as the store holds that epoch.
- Shards that a trainer state lists as retired. They are being deleted, so all, some or none of their objects exist.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import boto3

from aurora_protocol.draft_records import (
    INITIAL_VERSION,
    Channel,
    ChannelReason,
    CheckpointManifest,
    ExpiredDraft,
    FileRef,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Evidence, VerdictKind
from aurora_protocol.record import Record
from aurora_protocol.training_records import ShardManifest, TrainerState, TrainerStatus
from aurora_store import Keys, ObjectStore, StoreConfig
from aurora_store.errors import ObjectMissing, ObjectTooLarge
from aurora_store.keys import checkpoint_version, number_of
from aurora_store.registry import MAX_STATE_RECORD_BYTES

R = TypeVar("R", bound=Record)
GRACE = timedelta(minutes=2)
"""How long data may exist without a record."""
STATE_DATA = re.compile(rf"{Keys.TRAINER_STATE}\d+/state-[0-9a-f]{{12}}\.safetensors")


@dataclass
class StoreCheck:
    """One walk over all objects below a root. ``violations`` is empty when promise 4 holds."""

    store: ObjectStore
    ages: dict[str, timedelta]
    """The age of every object, by key relative to the root."""
    grace: timedelta = GRACE
    counts: Counter[str] = field(default_factory=Counter, init=False)
    """Valid objects by kind, and the bytes of all data."""
    violations: list[str] = field(default_factory=list, init=False)
    in_flight: list[str] = field(default_factory=list, init=False)
    """Keys of data that no record names, and that are no violations (see the module's docstring)."""
    _accounted: set[str] = field(default_factory=set, init=False)
    """Keys of records, and of data that records name."""
    _retired: set[str] = field(default_factory=set, init=False)
    """Manifests of shards that trainer states list as retired."""
    _expired: set[int] = field(default_factory=set, init=False)
    """Versions whose weights may be gone."""

    def run(self) -> None:
        """Check every object below the root."""
        lineages = self._records("lineage", Keys.LINEAGE, Lineage, lambda r: Keys.lineage(r.number))
        versions = self._records("registration", Keys.REGISTRY, Registration, lambda r: Keys.registration(r.version))
        channels = self._records("channel", Keys.CHANNEL, Channel, lambda r: Keys.channel(r.epoch))
        evidence = self._records("evidence", Keys.EVIDENCE, Evidence, lambda r: Keys.evidence(r.version, r.attempt))
        expired = self._records("expired version", Keys.EXPIRED, ExpiredDraft, lambda r: Keys.expired(r.version))
        newest = channels[max(channels, key=number_of)] if channels else None
        self._expired = {r.version for r in expired.values()} - ({newest.active, newest.previous} if newest else set())
        self._check_numbering("lineage", sorted(r.number for r in lineages.values()), 1)
        self._check_numbering("version", sorted(r.version for r in versions.values()), INITIAL_VERSION)
        self._check_numbering("channel epoch", sorted(r.epoch for r in channels.values()), 1)
        lineage_numbers = {r.number for r in lineages.values()}
        by_version = {r.version: r for r in versions.values()}
        checkpoints = self._check_checkpoints(lineage_numbers)
        self._check_trainer()
        self._check_shards(lineage_numbers)
        self._check_registrations(versions, checkpoints)
        self._check_evidence(evidence, by_version)
        self._check_channels(channels, by_version, evidence)
        self._check_unnamed_objects()

    # kinds of objects ------------------------------------------------------------------------------------------------

    def _check_checkpoints(self, lineages: set[int]) -> dict[str, CheckpointManifest]:
        manifests: dict[str, CheckpointManifest] = {}
        keys = {key for key in self.ages if key.startswith(Keys.CHECKPOINTS)}
        gone = {key for key in keys if checkpoint_version(key.rpartition("/")[0] + "/") in self._expired}
        self._accounted |= gone
        for key in sorted(key for key in keys - gone if key.endswith("/manifest.json")):
            manifest = self._record("checkpoint", key, CheckpointManifest)
            if manifest is None:
                continue
            manifests[key] = manifest
            folder = Keys.checkpoint(manifest.version, manifest.digest)
            self._require(
                key == f"{folder}manifest.json",
                f"{key}: the manifest's version and digest differ from its folder's name",
            )
            self._require(manifest.lineage in lineages, f"{key}: lineage {manifest.lineage} does not exist")
            for file in manifest.files:
                self._check_data(folder + file.name, file, key)
        return manifests

    def _check_trainer(self) -> None:
        if Keys.TRAINER_STATUS in self.ages:
            self._record("trainer status", Keys.TRAINER_STATUS, TrainerStatus)
        states = self._records("trainer state", Keys.TRAINER_STATE, TrainerState, lambda r: Keys.trainer_state(r.epoch))
        for key, state in states.items():
            self._check_data(f"{key.removesuffix('.json')}/{state.file.name}", state.file, key)
            for shard in state.consumed:
                self._require(shard in self.ages, f"{key}: consumed {shard}, which is missing")
            self._retired |= set(state.retired)
            self._accounted |= {_data_of(shard) for shard in state.retired} & self.ages.keys()
            in_both = sorted(set(state.consumed) & set(state.retired))
            self._require(not in_both, f"{key}: {in_both} are both consumed and retired")
        if states:
            newest = max(states, key=number_of)
            self._require(newest in self.ages, f"{newest}: missing")

    def _check_shards(self, lineages: set[int]) -> None:
        shards = self._records(
            "shard",
            Keys.TRACES,
            ShardManifest,
            lambda r: f"{Keys.shard(r.lineage, r.pod, r.boot, r.seq, r.created)}.json",
        )
        for key, shard in shards.items():
            self._require(shard.lineage in lineages, f"{key}: lineage {shard.lineage} does not exist")
            self._check_data(f"{key.rsplit('/', 1)[0]}/{shard.file.name}", shard.file, key)

    def _check_registrations(
        self, versions: Mapping[str, Registration], checkpoints: Mapping[str, CheckpointManifest]
    ) -> None:
        for key, registration in versions.items():
            if registration.version in self._expired:
                continue
            manifest = checkpoints.get(f"{registration.checkpoint}manifest.json")
            if manifest is None:
                self.violations.append(f"{key}: its checkpoint {registration.checkpoint} has no manifest")
                continue
            self._require(
                (manifest.version, manifest.digest, manifest.lineage)
                == (registration.version, registration.digest, registration.lineage),
                f"{key}: version, digest or lineage differ from its checkpoint's manifest",
            )

    def _check_evidence(self, evidence: Mapping[str, Evidence], versions: Mapping[int, Registration]) -> None:
        for key, item in evidence.items():
            for version, digest in ((item.version, item.candidate_digest), (item.active_version, item.active_digest)):
                registration = versions.get(version)
                self._require(
                    registration is not None and registration.digest == digest,
                    f"{key}: version {version} is not registered with the digest of the evidence",
                )

    def _check_channels(
        self, channels: Mapping[str, Channel], versions: Mapping[int, Registration], evidence: Mapping[str, Evidence]
    ) -> None:
        before: Channel | None = None
        for key in sorted(channels, key=number_of):
            channel = channels[key]
            for version in (channel.active, channel.previous):
                self._require(version is None or version in versions, f"{key}: version {version} is not registered")
            if before is not None and channel.lineage == before.lineage and channel.reason is ChannelReason.PROMOTED:
                self._require(
                    channel.previous == before.active,
                    f"{key}: its previous version is not the version that was active before",
                )
            if channel.reason is ChannelReason.PROMOTED:
                self._check_promotion(key, channel, evidence.get(channel.evidence or ""))
            before = channel

    def _check_promotion(self, key: str, channel: Channel, proof: Evidence | None) -> None:
        self._require(proof is not None, f"{key}: the store has no evidence for this promotion")
        if proof is not None:
            self._require(proof.version == channel.active, f"{key}: its evidence measures version {proof.version}")
            self._require(proof.verdict.kind is VerdictKind.PASS, f"{key}: the verdict of its evidence is not a pass")
        self._require(channel.active not in channel.rejected, f"{key}: promotes a version that was rejected before")

    def _check_unnamed_objects(self) -> None:
        for key in sorted(self.ages.keys() - self._accounted):
            if self.ages[key] < self.grace or self._is_data_of_losing_trainer(key):
                self.in_flight.append(key)
            else:
                self.violations.append(f"{key}: no record names this object")

    # parts of the checks ---------------------------------------------------------------------------------------------

    def _require(self, condition: bool, violation: str) -> None:
        if not condition:
            self.violations.append(violation)

    def _records(self, kind: str, prefix: str, model: type[R], key_of: Callable[[R], str]) -> dict[str, R]:
        """All valid records below ``prefix``. Each record's key must be the one that the record's own numbers give."""
        records: dict[str, R] = {}
        for key in sorted(k for k in self.ages if k.startswith(prefix) and k.endswith(".json")):
            record = self._record(kind, key, model)
            if record is not None:
                records[key] = record
                self._require(key_of(record) == key, f"{key}: the record's numbers differ from its key")
        return records

    def _record(self, kind: str, key: str, model: type[R]) -> R | None:
        self._accounted.add(key)
        try:
            record = model.from_json(self.store.get(key, max_bytes=MAX_STATE_RECORD_BYTES))
        except ObjectMissing:
            # The object was deleted after the listing. That is allowed for trainer states and retired shards only.
            retired = self._is_retired(key)
            self._require(key.startswith(Keys.TRAINER_STATE) or retired, f"{key}: deleted during the check")
            self._accounted |= {_data_of(key)} if retired else set()
            return None
        except InvalidRecord as error:
            self.violations.append(f"{key}: {error}")
            return None
        self.counts[kind] += 1
        return record

    def _check_data(self, key: str, file: FileRef, named_by: str) -> None:
        """Check the size and digest of data that the record ``named_by`` names."""
        self._accounted.add(key)
        try:
            data = self.store.get(key, max_bytes=file.size)
        except ObjectTooLarge:
            self.violations.append(f"{key}: more bytes than {named_by} says")
            return
        except ObjectMissing:
            deletable = key.startswith((Keys.TRAINER_STATE, Keys.TRACES))
            if not (deletable and not self._exists(named_by)):
                self.violations.append(f"{named_by}: names {key}, which is missing")
            return
        self._require(len(data) == file.size, f"{key}: {len(data)} bytes, but {named_by} says {file.size}")
        self._require(hashlib.sha256(data).hexdigest() == file.sha256, f"{key}: digest differs from {named_by}")
        self.counts["data"] += 1
        self.counts["bytes"] += len(data)

    def _check_numbering(self, kind: str, numbers: list[int], first: int) -> None:
        """Numbers must begin at ``first`` and have no gap."""
        expected = list(range(first, first + len(numbers)))
        self._require(numbers == expected, f"{kind} numbers are {numbers}, not {expected}")

    def _exists(self, key: str) -> bool:
        try:
            self.store.get(key, max_bytes=MAX_STATE_RECORD_BYTES)
        except ObjectMissing:
            return False
        return True

    def _is_retired(self, manifest: str) -> bool:
        """Whether the trainer deletes this shard: a state lists the shard as retired, or its data are gone."""
        is_shard = manifest.startswith(Keys.TRACES)
        return is_shard and (manifest in self._retired or not self._exists(_data_of(manifest)))

    def _is_data_of_losing_trainer(self, key: str) -> bool:
        """Whether a trainer that lost the race for a stored epoch wrote these state data."""
        folder, _, name = key.rpartition("/")
        return f"{folder}.json" in self.ages and STATE_DATA.fullmatch(f"{folder}/{name}") is not None


def _data_of(manifest: str) -> str:
    return f"{manifest.removesuffix('.json')}.safetensors"


def object_ages(config: StoreConfig) -> dict[str, timedelta]:
    """The age of every object below the root, by key relative to the root."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=config.endpoint,
        region_name=config.region or "us-east-1",
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
    )
    now, ages = datetime.now(UTC), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=config.bucket, Prefix=f"{config.root}/"):
        for item in page.get("Contents", []):
            ages[item["Key"].removeprefix(f"{config.root}/")] = now - item["LastModified"]
    return ages


def check_store(config: StoreConfig, grace: timedelta = GRACE) -> StoreCheck:
    """Check all objects below the root that ``config`` names."""
    result = StoreCheck(ObjectStore(config), object_ages(config), grace)
    result.run()
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.check_store", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--endpoint", help="URL of the S3 store (default: AWS)")
    parser.add_argument("--region", help="the store's region (default: us-east-1)")
    parser.add_argument("--bucket", required=True, help="the bucket, as in spec.store")
    parser.add_argument("--root", required=True, help="the speculator's root in the bucket: PREFIX/NAMESPACE/NAME-UID8")
    parser.add_argument(
        "--grace-seconds",
        type=float,
        default=GRACE.total_seconds(),
        help="how long data may exist without a record (default: %(default)s)",
    )
    options = parser.parse_args()
    config = StoreConfig(options.bucket, options.root, options.endpoint, options.region)
    result = check_store(config, timedelta(seconds=options.grace_seconds))
    for kind, count in sorted(result.counts.items()):
        print(f"{count:>12} {kind}")
    print(f"{len(result.in_flight):>12} in flight")
    for violation in result.violations:
        print(f"VIOLATION {violation}")
    empty = not result.counts
    if empty:
        print(f"no objects below {options.root} in bucket {options.bucket}")
    else:
        print("not ok" if result.violations else "ok")
    raise SystemExit(1 if result.violations or empty else 0)


if __name__ == "__main__":
    main()
