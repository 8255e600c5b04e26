"""``aurora-erase``: erases the traces of tagged requests from the store. A Job of ``kubectl aurora erase`` runs it.

It reads the tags of every shard of the speculator's root, and rewrites each shard that has traces of a given tag
without these traces. A trainer may run meanwhile. It never sees a manifest that names other data than its own, but it
skips a shard that it reads at the very moment of the rewrite, and keeps what it has in memory until it restarts.

Invariants:

- A shard keeps its key, because the trainer's state names it, and because an agent that never got the store's answer
  would upload a key that is free once more. A shard of which nothing is left becomes one of no requests.
- A kill at any point loses no trace of others, and the next run converges: data whose manifest is missing get a
  manifest again, which their key and they themselves determine.
- Success means that a complete scan, after the last rewrite, found no trace of the tags.
- The newest shards come first. So the run that ends knows the oldest erased trace, also after interrupted ones, and
  names every draft that may have learned from it.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from pydantic import ValidationError

from aurora_protocol.draft_records import INITIAL_VERSION, FileRef, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.pod_settings import TrainerSettings
from aurora_protocol.tag_hash import number_of_hash
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.errors import ErasureUnfinished, TraceFormatError
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.shard_header import ShardHeader
from aurora_runtime.termination_message import errors_reported
from aurora_runtime.traces import RequestTrace, decode, empty_shard, encode, shard_counts, state_type_of
from aurora_store import FencedObjectStore, Keys, StoreConfig
from aurora_store.errors import DigestMismatch, ObjectMissing
from aurora_store.keys import lineage_of_shard, shard_data_key, shard_hour

MAX_SCANS: Final = 5
"""Scans until a client that goes on sending the tag is no longer waited for."""
CLOCK_SLACK: Final = timedelta(hours=1)
"""How far the clocks of inference pods and of the trainer may be apart. Drafts registered within it are named too."""
_FIRST_OF_TIMES: Final = datetime.min.replace(tzinfo=UTC)
log = logging.getLogger(__name__)


@dataclass
class Erased:
    """What one run did."""

    requests: int = 0
    shards: int = 0
    unreadable: int = 0
    """Shards that were deleted, because nobody can read them and they may hold traces of the tag."""
    scanned: int = 0
    """Shards that the last scan read."""
    since: dict[int, datetime] = field(default_factory=dict)
    """By lineage: the hour of the oldest shard that was rewritten or deleted."""
    versions: tuple[int, ...] = ()
    """Drafts that may have learned from the traces. Every later draft of their lineage may have, too."""

    def __str__(self) -> str:
        text = f"erased {self.requests} requests from {self.shards} shards"
        if self.unreadable:
            text += f"; deleted {self.unreadable} shards that nobody can read"
        if self.versions:
            names = ", ".join(map(str, self.versions))
            text += f"; drafts that may have learned from them: {names} and later"
        return text


class TagErasure:
    """The erasure of the tags with these ``numbers`` from all shards below a root."""

    def __init__(self, registry: PodRegistry, numbers: Collection[int]) -> None:
        self._registry, self._numbers, self._erased = registry, frozenset(numbers), Erased()

    def run(self) -> Erased:
        """Erase all traces. Safe to repeat.

        Raises :class:`StoreError`, and :class:`ErasureUnfinished` when new traces of the tags go on arriving.
        """
        registrations = list(self._registry.registrations())  # first: a run that cannot name drafts erases nothing
        for _ in range(MAX_SCANS):
            if not self._scan():
                return self._erased
            learned = (each.version for each in registrations if self._may_have_learned(each))
            self._erased.versions = tuple(sorted(learned))
            log.info("%s", self._erased)  # the next run would not know it, if this one ended here
        raise ErasureUnfinished(
            f"{self._erased}, but more arrive after {MAX_SCANS} scans: stop the clients that send the tag, and repeat"
        )

    def _may_have_learned(self, draft: Registration) -> bool:
        """Whether the trainer may have seen an erased trace before it registered ``draft``."""
        since = self._erased.since.get(draft.lineage)
        return since is not None and draft.version != INITIAL_VERSION and since - draft.created <= CLOCK_SLACK

    def _scan(self) -> bool:
        """Look at all shards once, and rewrite those that need it. Returns whether anything was erased."""
        found = False
        self._erased.scanned = 0
        for key, has_manifest in self._shards():
            self._erased.scanned += 1
            if not has_manifest or self._may_hold_traces(key):
                found = self._rewrite(key) or found
        return found

    def _shards(self) -> Iterator[tuple[str, bool]]:
        """Keys of all manifests of the root, newest hour first, and whether the manifest is there."""
        folders = {key.split("/")[1] for key in self._registry.objects.list(Keys.TRACES)}
        for lineage in sorted((int(folder) for folder in folders if folder.isdecimal()), reverse=True):
            listing = self._registry.list_shards(lineage)
            for key in sorted({*listing.data_bytes, *listing.orphans}, reverse=True):
                yield key, key in listing.data_bytes

    def _may_hold_traces(self, key: str) -> bool:
        """Whether the shard has traces of the tags, or nobody can tell."""
        try:
            header = ShardHeader(lambda first, size: self._registry.shard_range(key, first, size))
            return not self._numbers.isdisjoint(header.tags())
        except ObjectMissing:
            return False
        except (ValueError, RecursionError):
            return True

    def _rewrite(self, key: str) -> bool:
        """Rewrite one shard without the tags' traces, and with a manifest. Returns whether anything was erased."""
        registry, erased = self._registry, self._erased
        try:
            raw = registry.unverified_shard(key)
        except ObjectMissing:
            return False
        try:
            traces, manifest = list(decode(raw)), self._manifest(key, raw)
        except (TraceFormatError, DigestMismatch, InvalidRecord) as error:
            log.error("shard %s is deleted, because nobody can read it: %s", key, error)  # noqa: TRY400
            registry.delete_shard(key)
            erased.unreadable += 1
        else:
            kept = [trace for trace in traces if trace.tag not in self._numbers]
            removed = len(traces) - len(kept)
            data = _shard_of(kept, raw) if removed else raw
            registry.replace_shard(key, manifest.model_copy(update=_facts(key, kept, data)), data)
            if not removed:
                return False
            erased.requests += removed
            erased.shards += 1
            log.info("erased %d of %d requests of shard %s", removed, len(traces), key)
        lineage, hour = lineage_of_shard(key), shard_hour(key) or _FIRST_OF_TIMES
        erased.since[lineage] = min(erased.since.get(lineage, hour), hour)
        return True

    def _manifest(self, key: str, raw: bytes) -> ShardManifest:
        """The shard's manifest; one made from its key when it is missing, as after a kill or during an upload.

        Raises :class:`DigestMismatch` for data that are not the manifest's, and :class:`InvalidRecord`.
        """
        try:
            manifest = self._registry.shard_manifest(key)
        except ObjectMissing:
            return _manifest_of_key(key)
        if manifest.file.sha256 != hashlib.sha256(raw).hexdigest():
            raise DigestMismatch(f"{key} names other data")
        return manifest


def _shard_of(traces: Sequence[RequestTrace], former: bytes) -> bytes:
    """A shard of ``traces`` in the format of ``former``, from which they come."""
    return encode(traces, state_type_of(former)) if traces else empty_shard()


def _facts(key: str, traces: Sequence[RequestTrace], data: bytes) -> dict[str, object]:
    """What a manifest says about the shard's content."""
    name = shard_data_key(key).rsplit("/", 1)[1]
    file = FileRef(name=name, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    return {"file": file, **shard_counts(traces)}


def _manifest_of_key(key: str) -> ShardManifest:
    """A manifest with what the key tells, without facts about the content. The time is the beginning of the hour.

    Raises :class:`InvalidRecord` for a key that no agent writes.
    """
    hour, name = shard_hour(key), shard_data_key(key).rsplit("/", 1)[1]
    parts = name.removesuffix(".safetensors").rsplit("-", 2)
    if hour is None or len(parts) != 3 or not parts[2].isdecimal():
        raise InvalidRecord("its key is not one of an agent")
    counts = ("requests", "tokens", "answer_tokens", "rounds", "proposed", "accepted", "dropped_records")
    try:
        return ShardManifest.model_validate(
            dict.fromkeys(counts, 0)
            | {
                "lineage": lineage_of_shard(key),
                "pod": parts[0],
                "boot": parts[1],
                "seq": int(parts[2]),
                "file": FileRef(name=name, sha256="0" * 64, size=0),
                "created": hour,
            }
        )
    except ValidationError as error:
        raise InvalidRecord("its key is not one of an agent") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``aurora-erase``. Prints counts only, never a tag or a text."""
    parser = argparse.ArgumentParser(prog="aurora-erase", description="Erase the traces of tagged requests.")
    parser.add_argument("tags", nargs="+", type=number_of_hash, metavar="HASH", help="hash of a tag")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with errors_reported():
        settings = TrainerSettings.from_env()
        registry = PodRegistry(FencedObjectStore(StoreConfig.of(settings.store), expects_channel=True))
        erased = TagErasure(registry, options.tags).run()
    print(f"{erased}; none is left in {erased.scanned} shards")


if __name__ == "__main__":
    main()
