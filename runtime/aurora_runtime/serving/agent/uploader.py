"""Carries shards from the spool to the store.

Invariants: a shard is deleted only after the store has its data and its manifest; a shard that differs from its
manifest is dropped and counted, never uploaded; a store that is down costs waiting here and nothing elsewhere (the
writer bounds the spool).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_api.errors import InvalidRecord
from aurora_api.records import ShardManifest
from aurora_runtime.errors import ObjectExists, StoreError
from aurora_runtime.store import Registry

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
FIRST_BACKOFF_S: Final = 1.0
LAST_BACKOFF_S: Final = 60.0


@dataclass
class UploadCounters:
    """Since the agent started."""

    uploaded: int = 0
    dropped: int = 0


class Uploader:
    """Uploads the shards of one spool, oldest first."""

    def __init__(self, spool: Path, registry: Registry) -> None:
        self._spool = spool
        self._registry = registry
        self.counters = UploadCounters()

    async def run(self) -> None:
        """Until cancelled: upload what there is, wait for more; back off with jitter while the store is down."""
        backoff = FIRST_BACKOFF_S
        while True:
            try:
                await asyncio.to_thread(self.drain)
                backoff = FIRST_BACKOFF_S
                await asyncio.sleep(POLL_S)
            except (StoreError, OSError) as error:
                log.warning("traces wait in the spool: %s", error)
                await asyncio.sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                backoff = min(backoff * 2, LAST_BACKOFF_S)

    def drain(self) -> None:
        """Upload every complete shard; raises :class:`StoreError` at the first that the store does not take."""
        if not self._spool.is_dir():
            return
        for path in sorted(self._spool.glob("*.json"), key=lambda path: path.name.rsplit("-", 2)[1:]):
            self._upload(path)

    def _upload(self, path: Path) -> None:
        data_path = path.with_suffix(".safetensors")
        try:
            manifest = ShardManifest.from_json(path.read_bytes())
            data = data_path.read_bytes()
        except FileNotFoundError:
            path.unlink(missing_ok=True)  # the writer dropped it, and counted it
            return
        except InvalidRecord as error:
            self._drop(path, str(error))
            return
        if len(data) != manifest.file.size or hashlib.sha256(data).hexdigest() != manifest.file.sha256:
            self._drop(path, "its data differ from its manifest")
            return
        try:
            self._registry.put_shard(manifest, data)
        except ObjectExists as error:
            self._drop(path, str(error))
            return
        path.unlink(missing_ok=True)
        data_path.unlink(missing_ok=True)
        self.counters.uploaded += 1

    def _drop(self, path: Path, why: str) -> None:
        log.error("shard %s is dropped: %s", path.stem, why)
        path.unlink(missing_ok=True)
        path.with_suffix(".safetensors").unlink(missing_ok=True)
        self.counters.dropped += 1
