"""Uploads shards from the spool to the store.

Invariants: a shard is deleted only after the store has its data and its manifest. A shard that differs from its
manifest is dropped and counted, never uploaded. A store outage delays uploads and nothing else, because the writer
bounds the spool. An upload that is tried again replaces nothing in the store. No shard is held in memory. A pod that
stops waits for the store no longer than its grace period, and counts the shards it loses.
"""

from __future__ import annotations

import asyncio
import logging
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import ShardManifest
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.pod_files import shard_age_key
from aurora_store.errors import StoreError, bounded_text
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
FIRST_BACKOFF_SECONDS: Final = 1.0
MAX_BACKOFF_SECONDS: Final = 60.0


@dataclass
class UploadCounters:
    """Counts since the agent started."""

    uploaded: int = 0
    uploaded_bytes: int = 0
    failures: int = 0
    """Attempts that ended because the store did not take a shard, or the spool could not be read."""
    losses: Counter[str] = field(default_factory=Counter)
    """Dropped shards by reason: ``damaged`` in the spool, or left over at ``shutdown``."""

    @property
    def dropped(self) -> int:
        return self.losses.total()


@dataclass(frozen=True)
class SpoolState:
    """The shards that wait for their upload, at one moment."""

    shard_bytes: tuple[int, ...] = ()
    """Size of each shard."""
    oldest_seconds: float = 0.0
    """Age of the oldest shard. 0 while none waits."""
    free_bytes: int | None = None
    """Free space of the file system of the spool. None while there is no spool."""


class Uploader:
    """Uploads the shards of one spool, oldest first."""

    def __init__(self, spool: Path, registry: PodRegistry, may_upload: Callable[[], bool] = lambda: True) -> None:
        """``may_upload``: whether the shards are known to be of the lineage's layers. They wait in the spool before."""
        self._spool = spool
        self._registry = registry
        self._may_upload = may_upload
        self.counters = UploadCounters()
        self.error = ""
        """Why the last attempts failed, once they have for about a minute. Empty otherwise."""
        self._stopped = threading.Event()

    async def run(self) -> None:
        """Until cancelled, upload all shards and wait for more. Back off with jitter while the store is down."""
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while True:
            try:
                await asyncio.to_thread(self.upload_spool)
                backoff_seconds, self.error = FIRST_BACKOFF_SECONDS, ""
                await asyncio.sleep(POLL_SECONDS)
            except (StoreError, OSError) as error:
                self.counters.failures += 1
                log.warning("uploads fail and will be retried, shards wait in the spool: %s", error)
                if backoff_seconds == MAX_BACKOFF_SECONDS:
                    self.error = bounded_text(str(error))
                await asyncio.sleep(backoff_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                backoff_seconds = min(backoff_seconds * 2, MAX_BACKOFF_SECONDS)

    def stop(self) -> None:
        """Start no further upload. A caller that joins the thread of :meth:`run` then waits for one upload at most."""
        self._stopped.set()

    async def finish(self, timeout_seconds: float, engine_is_up: Callable[[], bool]) -> None:
        """When the pod stops, wait until :meth:`run` has emptied the spool and the engine writes no more shards.

        Args:
            timeout_seconds: longest time until this method returns. The shards that are left then are lost.
            engine_is_up: whether the engine still writes shards.
        """
        deadline = time.monotonic() + timeout_seconds
        # Polling is the only way to see a change of the spool's files.
        while (engine_is_up() or self._has_uploads()) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS / 5)
        self.stop()
        lost = self.spool_state().shard_bytes
        if lost:
            self.counters.losses["shutdown"] += len(lost)
            log.warning("%d shards (%d bytes) are lost with the pod: the store did not take them within %.0f s",
                        len(lost), sum(lost), timeout_seconds)  # fmt: skip

    def _has_uploads(self) -> bool:
        return self._may_upload() and bool(self.spool_state().shard_bytes)

    def spool_state(self) -> SpoolState:
        """What waits in the spool now. A shard counts once it has its manifest."""
        sizes, written = list[int](), list[float]()
        for path in self._spool.glob("*.json"):
            try:
                size, shard_written = path.with_suffix(".safetensors").stat().st_size, path.stat().st_mtime
            except FileNotFoundError:
                continue  # uploaded or dropped meanwhile
            sizes.append(size)
            written.append(shard_written)
        free_bytes = shutil.disk_usage(self._spool).free if self._spool.is_dir() else None
        return SpoolState(tuple(sizes), time.time() - min(written) if written else 0.0, free_bytes)

    def upload_spool(self) -> None:
        """Upload every complete shard. Raises :class:`StoreError` at the first shard that the store does not take."""
        if not self._spool.is_dir() or not self._may_upload():
            return
        for path in sorted(self._spool.glob("*.json"), key=shard_age_key):
            if self._stopped.is_set():
                return
            self._upload(path)

    def _upload(self, path: Path) -> None:
        data_path = path.with_suffix(".safetensors")
        try:
            manifest = ShardManifest.from_json(path.read_bytes())
            whole = data_path.stat().st_size == manifest.file.size and sha256_file(data_path) == manifest.file.sha256
        except FileNotFoundError:
            path.unlink(missing_ok=True)  # the writer dropped this shard and counted it
            return
        except InvalidRecord as error:
            self._drop(path, str(error))
            return
        if not whole:
            self._drop(path, "its data differ from its manifest")
            return
        try:
            self._registry.put_shard(manifest, data_path)
        except FileNotFoundError:
            return  # the writer dropped this shard meanwhile; the next look removes its manifest
        path.unlink(missing_ok=True)
        data_path.unlink(missing_ok=True)
        self.counters.uploaded += 1
        self.counters.uploaded_bytes += manifest.file.size

    def _drop(self, path: Path, reason: str) -> None:
        log.error("shard %s is dropped: %s", path.stem, reason)
        path.unlink(missing_ok=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        self.counters.losses["damaged"] += 1
