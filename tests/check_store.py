"""Proves promise 4 on a bucket: every object is a record or data that a record names, and every digest matches.

``python -m tests.check_store --endpoint URL --bucket B --root R`` prints counts and every violation; exit status 1 when
there is one. Data that nothing names is in flight while it is young, because data is written before its record, and so
is, as long as its epoch is stored, the data of a trainer that lost the race for that epoch. What a trainer state calls
retired is being deleted: it may be there, whole or in part, or gone.
Credentials come from the environment. Reads only.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import boto3

from aurora_protocol.draft_records import (
    INITIAL_VERSION,
    Channel,
    ChannelReason,
    CheckpointManifest,
    FileRef,
    Lineage,
    Registration,
)
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.evidence_records import Arm, CachedBaseline, Evidence, VerdictKind
from aurora_protocol.record import Record
from aurora_protocol.training_records import ShardManifest, TrainerState, TrainerStatus
from aurora_store import Keys, ObjectStore, StoreConfig
from aurora_store.errors import ObjectMissing
from aurora_store.keys import number_of

R = TypeVar("R", bound=Record)
GRACE = timedelta(minutes=2)
STATE_DATA = re.compile(rf"{Keys.TRAINER_STATE}\d+/state-[0-9a-f]{{12}}\.safetensors")


@dataclass
class Check:
    """One walk over a root. ``violations`` is empty when the promise holds."""

    store: ObjectStore
    ages: dict[str, timedelta]
    grace: timedelta = GRACE
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    in_flight: list[str] = field(default_factory=list)
    _explained: set[str] = field(default_factory=set)
    _retired: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Check everything below the root."""
        lineages = self._records("lineage", Keys.LINEAGE, Lineage, lambda r: Keys.lineage(r.number))
        versions = self._records("registration", Keys.REGISTRY, Registration, lambda r: Keys.registration(r.version))
        channels = self._records("channel", Keys.CHANNEL, Channel, lambda r: Keys.channel(r.epoch))
        evidence = self._records("evidence", Keys.EVIDENCE, Evidence, lambda r: Keys.evidence(r.version, r.attempt))
        baselines = self._records(
            "baseline", Keys.BASELINES, CachedBaseline, lambda r: Keys.baseline(r.lineage, r.version, r.attempt)
        )
        self._contiguous("lineage", sorted(r.number for r in lineages.values()), 1)
        self._contiguous("version", sorted(r.version for r in versions.values()), INITIAL_VERSION)
        self._contiguous("channel epoch", sorted(r.epoch for r in channels.values()), 1)
        numbers = {r.number for r in lineages.values()}
        checkpoints = self._checkpoints(numbers)
        self._trainer()
        self._shards(numbers)
        by_version = {r.version: r for r in versions.values()}
        for key, registration in versions.items():
            manifest = checkpoints.get(f"{registration.checkpoint}manifest.json")
            self._that(manifest is not None, f"{key}: its checkpoint has no manifest")
            if manifest is not None:
                same = (manifest.version, manifest.digest, manifest.lineage)
                self._that(
                    same == (registration.version, registration.digest, registration.lineage),
                    f"{key}: its checkpoint is another",
                )
        for key, item in evidence.items():
            for version, digest in ((item.version, item.candidate_digest), (item.active_version, item.active_digest)):
                known = by_version.get(version)
                self._that(
                    known is not None and known.digest == digest, f"{key}: version {version} is not registered so"
                )
            if item.baseline is not None:
                kept = baselines.get(item.baseline.key)
                same_samples = kept is not None and {
                    s
                    for s in item.baseline.samples
                    if s.arm is not Arm.ACTIVE  # it may have had another name then
                } <= set(kept.samples)
                self._that(same_samples, f"{key}: its baseline {item.baseline.key} is not there, or another")
        self._channels(channels, by_version, evidence)
        for key in sorted(self.ages.keys() - self._explained):
            if self.ages[key] < self.grace or self._lost_the_race(key):
                self.in_flight.append(key)
            else:
                self.violations.append(f"{key}: nothing names this object")

    def _lost_the_race(self, key: str) -> bool:
        """Whether this lies beside the data of a stored trainer state, as the state of another trainer would."""
        folder, _, name = key.rpartition("/")
        return f"{folder}.json" in self.ages and STATE_DATA.fullmatch(f"{folder}/{name}") is not None

    def _that(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.violations.append(otherwise)

    def _records(self, kind: str, prefix: str, model: type[R], key_of: Callable[[R], str]) -> dict[str, R]:
        """All records below ``prefix``, each at the key that its own numbers spell."""
        found: dict[str, R] = {}
        for key in sorted(k for k in self.ages if k.startswith(prefix) and k.endswith(".json")):
            record = self._record(kind, key, model)
            if record is not None:
                found[key] = record
                self._that(key_of(record) == key, f"{key}: the record's numbers do not fit its key")
        return found

    def _record(self, kind: str, key: str, model: type[R]) -> R | None:
        self._explained.add(key)
        try:
            record = model.from_json(self.store.get(key))
        except ObjectMissing:  # deleted since the listing: only trainer states and retired shards are
            retired = self._is_retired(key)
            self._that(key.startswith(Keys.TRAINER_STATE) or retired, f"{key}: vanished")
            self._explained |= {_data_of(key)} if retired else set()
            return None
        except InvalidRecord as error:
            self.violations.append(f"{key}: {error}")
            return None
        self.counts[kind] += 1
        return record

    def _file(self, key: str, file: FileRef, named_by: str) -> None:
        """Data that ``named_by`` names: there, of its size and digest."""
        self._explained.add(key)
        try:
            data = self.store.get(key)
        except ObjectMissing:
            if not (key.startswith((Keys.TRAINER_STATE, Keys.TRACES)) and not self._there(named_by)):
                self.violations.append(f"{named_by}: names {key}, which is missing")
            return
        self._that(len(data) == file.size, f"{key}: {len(data)} bytes, {file.size} promised by {named_by}")
        self._that(hashlib.sha256(data).hexdigest() == file.sha256, f"{key}: digest differs from {named_by}")
        self.counts["data"] += 1
        self.counts["bytes"] += len(data)

    def _there(self, key: str) -> bool:
        try:
            self.store.get(key)
        except ObjectMissing:
            return False
        return True

    def _is_retired(self, manifest: str) -> bool:
        """Whether the trainer deletes this shard: it said so, or has done it since, whole."""
        shard = manifest.startswith(Keys.TRACES)
        return shard and (manifest in self._retired or not self._there(_data_of(manifest)))

    def _contiguous(self, what: str, numbers: list[int], first: int) -> None:
        expected = list(range(first, first + len(numbers)))
        self._that(numbers == expected, f"{what} numbers are {numbers}, not {expected}")

    def _shards(self, lineages: set[int]) -> None:
        shards = self._records(
            "shard",
            Keys.TRACES,
            ShardManifest,
            lambda r: f"{Keys.shard(r.lineage, r.pod, r.boot, r.seq, r.created)}.json",
        )
        for key, shard in shards.items():
            self._that(shard.lineage in lineages, f"{key}: lineage {shard.lineage} does not exist")
            self._file(f"{key.rsplit('/', 1)[0]}/{shard.file.name}", shard.file, key)

    def _checkpoints(self, lineages: set[int]) -> dict[str, CheckpointManifest]:
        found: dict[str, CheckpointManifest] = {}
        for key in sorted(k for k in self.ages if k.startswith(Keys.CHECKPOINTS) and k.endswith("/manifest.json")):
            manifest = self._record("checkpoint", key, CheckpointManifest)
            if manifest is None:
                continue
            found[key] = manifest
            folder = Keys.checkpoint(manifest.version, manifest.digest)
            self._that(key == f"{folder}manifest.json", f"{key}: the manifest does not fit its folder")
            self._that(manifest.lineage in lineages, f"{key}: lineage {manifest.lineage} does not exist")
            for file in manifest.files:
                self._file(folder + file.name, file, key)
        return found

    def _trainer(self) -> None:
        if Keys.TRAINER_STATUS in self.ages:
            self._record("trainer status", Keys.TRAINER_STATUS, TrainerStatus)
        states = self._records("trainer state", Keys.TRAINER_STATE, TrainerState, lambda r: Keys.trainer_state(r.epoch))
        for key, state in states.items():
            self._file(f"{key.removesuffix('.json')}/{state.file.name}", state.file, key)
            for shard in state.consumed:
                self._that(shard in self.ages, f"{key}: consumed {shard}, which is missing")
            self._retired |= set(state.retired)
            self._explained |= {_data_of(shard) for shard in state.retired} & self.ages.keys()
            doubled = sorted(set(state.consumed) & set(state.retired))
            self._that(not doubled, f"{key}: {doubled} are consumed and retired")
        if states:
            newest = max(states, key=number_of)
            self._that(newest in self.ages, f"{newest}: missing")

    def _channels(
        self, channels: dict[str, Channel], versions: dict[int, Registration], evidence: dict[str, Evidence]
    ) -> None:
        before: Channel | None = None
        for key in sorted(channels, key=number_of):
            channel = channels[key]
            for version in (channel.active, channel.previous):
                self._that(version is None or version in versions, f"{key}: version {version} is not registered")
            if before is not None and channel.lineage == before.lineage and channel.reason is ChannelReason.PROMOTED:
                self._that(channel.previous == before.active, f"{key}: previous is not what was active before")
            if channel.reason is ChannelReason.PROMOTED:
                proof = evidence.get(channel.evidence or "")
                self._that(proof is not None, f"{key}: a promotion without evidence in the store")
                if proof is not None:
                    self._that(proof.version == channel.active, f"{key}: its evidence is of version {proof.version}")
                    self._that(proof.verdict.kind is VerdictKind.PASS, f"{key}: its evidence is no pass")
                self._that(channel.active not in channel.rejected, f"{key}: promotes what was refused before")
            before = channel


def _data_of(manifest: str) -> str:
    return f"{manifest.removesuffix('.json')}.safetensors"


def listing(config: StoreConfig) -> dict[str, timedelta]:
    """Age of every object below the root, by key relative to it."""
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=config.endpoint,
        region_name=config.region or "us-east-1",
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
    )
    now, found = datetime.now(UTC), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=config.bucket, Prefix=f"{config.root}/"):
        for item in page.get("Contents", []):
            found[item["Key"].removeprefix(f"{config.root}/")] = now - item["LastModified"]
    return found


def check(config: StoreConfig, grace: timedelta = GRACE) -> Check:
    """Walk the root that ``config`` points at."""
    result = Check(ObjectStore(config), listing(config), grace)
    result.run()
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.check_store", description=__doc__)
    parser.add_argument("--endpoint")
    parser.add_argument("--region")
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--root", required=True, help="the speculator's root, as in its status")
    parser.add_argument("--grace", type=float, default=GRACE.total_seconds(), help="seconds that data may be unnamed")
    options = parser.parse_args()
    config = StoreConfig(options.bucket, options.root, options.endpoint, options.region)
    result = check(config, timedelta(seconds=options.grace))
    for kind, count in sorted(result.counts.items()):
        print(f"{count:>12} {kind}")
    print(f"{len(result.in_flight):>12} in flight")
    for violation in result.violations:
        print(f"VIOLATION {violation}")
    empty = not result.counts
    print("nothing below this root" if empty else "ok" if not result.violations else "NOT ok")
    raise SystemExit(1 if result.violations or empty else 0)


if __name__ == "__main__":
    main()
