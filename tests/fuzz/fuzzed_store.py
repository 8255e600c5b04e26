"""A good store, one mutation of it, and all readers of the runtime.

Invariants that :meth:`FuzzedStore.attack` checks: a reader returns, or raises one of the project's own errors. The
trainer's reader raises nothing. No file appears outside the readers' folders, and a draft's folder holds a draft's
files only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from aurora_protocol.draft_records import DRAFT_FILES, Channel, ChannelReason
from aurora_protocol.errors import ProtocolError
from aurora_protocol.training_records import TrainerPhase, TrainerStatus
from aurora_runtime.errors import RuntimeFault
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.agent.main import stage_active_draft
from aurora_runtime.serving.pod_files import MANIFEST, PodFolder, write_atomically
from aurora_runtime.training.data.shards import ShardReader
from aurora_runtime.training.retry import Retrier
from aurora_runtime.training.state import trainer_state
from aurora_runtime.validation.store_reads import fetch_draft, read_traffic
from aurora_store import Keys
from aurora_store.errors import StoreError
from tests.assets.signing import KEYS, ROOT_OWNER
from tests.assets.trainer_output import put_trainer_state
from tests.fuzz.mutations import mutated_bytes, mutated_json, mutated_safetensors
from tests.unit.fakes import draft_tensors, lineage, publish_bytes, safetensors
from tests.unit.operator.worlds import evidence
from tests.unit.training import tiny

OWN_ERRORS = (StoreError, ProtocolError, RuntimeFault)
FOREIGN_NAMES = (
    "zzz.json",
    "99999999.json",
    "00000002.json",
    "1.json",
    "../x.json",
    "a/b.json",
    "\u0661" * 8 + ".json",
)
READERS_FOLDERS = ("pod", "fresh", "validator")


class FuzzedStore:
    """The store. ``folder`` is empty at first."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.objects = folder, tiny.MemoryObjects()
        self.registry = PodRegistry(self.objects, KEYS)
        now = datetime.now(UTC)
        self.registry.create_lineage(lineage())
        sources = folder / "sources"
        self.registered = [
            publish_bytes(self.registry, sources, version, safetensors(draft_tensors(version + 1.0)))
            for version in range(2)
        ]
        shutil.rmtree(sources)
        self.registry.advance_channel(
            Channel(owner=ROOT_OWNER, epoch=1, lineage=1, active=1, reason=ChannelReason.PROMOTED, created=now)
        )
        self.shard = tiny.put_shard(self.registry, 0, [tiny.trace(seed) for seed in range(12)])
        put_trainer_state(self.registry, consumed=(self.shard,))
        self.registry.put_evidence(evidence(1))
        self.registry.put_trainer_status(
            TrainerStatus(
                phase=TrainerPhase.STARTING,
                step=1,
                shards=1,
                trained_tokens=1,
                message="the trainer starts",
                updated=now,
            )
        )
        self.good = dict(self.objects.data)

    def mutate(self, random_: random.Random) -> str:
        """Put the good objects back, then change one or add one. Returns what was changed."""
        self.objects.data = dict(self.good)
        key = random_.choice(list(self.good))
        if random_.random() < 0.15:
            name = random_.choice(FOREIGN_NAMES)
            added = f"{key.rsplit('/', 1)[0]}/{name}"
            self._put(added, random_.choice((self.good[key], b"{}", mutated_json(random_, b'{"version": 1}'))))
            return f"added {added}"
        data = self.good[key]
        if random_.random() < 0.2:
            data = mutated_bytes(random_, data)
        elif key.endswith(".json"):
            data = mutated_json(random_, data)
        elif key.endswith(".safetensors") and data[8:9] == b"{":
            data = mutated_safetensors(random_, data)
        else:
            data = mutated_bytes(random_, data)
        self._put(key, data)
        if random_.random() < 0.8:
            self._name_in_manifest(key, data)
        return f"changed {key}"

    def _put(self, key: str, data: bytes) -> None:
        self.objects.put(key, data)

    def _name_in_manifest(self, key: str, data: bytes) -> None:
        """Give a mutated file its own digest, as an attacker does, so that it is read at all."""
        digest = hashlib.sha256(data).hexdigest()
        if key.startswith(Keys.TRACES) and key.endswith(".safetensors"):
            manifest = json.loads(self.good[self.shard])
            manifest["file"] |= {"sha256": digest, "size": len(data)}
            self._put(self.shard, json.dumps(manifest).encode())
        for registration in self.registered:
            name = key.removeprefix(registration.checkpoint)
            if name not in DRAFT_FILES or not key.startswith(registration.checkpoint):
                continue
            manifest = json.loads(self.good[f"{registration.checkpoint}{MANIFEST}"])
            for file in manifest["files"]:
                if file["name"] == name:
                    file |= {"sha256": digest, "size": len(data)}
            self._put(f"{registration.checkpoint}{MANIFEST}", json.dumps(manifest).encode())

    def attack(self, random_: random.Random) -> None:
        """One mutation and all readers. Raises AssertionError with the mutation when an invariant does not hold."""
        what = self.mutate(random_)
        for name, read in self._readers().items():
            try:
                with contextlib.suppress(*OWN_ERRORS):
                    read()
            except Exception as error:
                raise AssertionError(f"{what}: {name} raised {type(error).__name__}: {error}") from error
        reader = ShardReader(self.registry, tiny.VOCAB, 3 * tiny.HIDDEN, Retrier())
        try:
            reader.read(self.shard)
        except Exception as error:
            raise AssertionError(f"{what}: the trainer's reader raised {type(error).__name__}: {error}") from error
        self._check_files(what)

    def _readers(self) -> dict[str, Callable[[], object]]:
        registry, version = self.registry, self.registered[1]
        pod = PodFolder(self.folder / "pod")
        pod.drafts.mkdir(parents=True, exist_ok=True)
        write_atomically(pod.lineage, lineage().to_json())
        return {
            "lineage": registry.lineage,
            "channel": registry.channel,
            "signed channel": registry.signed_channel,
            "newest version": registry.last_version,
            "registration": lambda: registry.registration(1),
            "evidence": lambda: registry.evidence(1),
            "trainer's status": registry.trainer_status,
            "trainer's state": lambda: trainer_state.read(registry, lineage()),
            "listing of shards": lambda: (registry.list_shards(1), registry.newest_shards(1, 10)),
            "agent's staging": lambda: DraftCache(pod, registry).stage(1, version.digest),
            "first staging": lambda: stage_active_draft(
                PodFolder(self.folder / "fresh"), registry, find_seconds=0, poll_seconds=0
            ),
            "validator": lambda: fetch_draft(
                registry, registry.registration(1), registry.lineage() or lineage(), self.folder / "validator"
            ),
            "prompts": lambda: read_traffic(registry, 1, vocab_size=tiny.VOCAB, wanted=100, needed=0),
        }

    def _check_files(self, what: str) -> None:
        outside = {path.name for path in self.folder.iterdir()} - set(READERS_FOLDERS)
        assert not outside, f"{what}: files outside the readers' folders: {outside}"
        drafts = (self.folder / "pod" / "drafts", self.folder / "fresh" / "drafts", self.folder)
        for path in self._files_of_drafts(drafts):
            assert path.name in (*DRAFT_FILES, MANIFEST), f"{what}: a draft got the file {path.name}"
        for name in READERS_FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _files_of_drafts(self, folders: tuple[Path, ...]) -> Iterator[Path]:
        for folder in folders[:2]:
            yield from (path for path in folder.rglob("*") if path.is_file())
        yield from (path for path in (folders[2] / "validator").rglob("*") if path.is_file())
