"""Carries shards from the spool to the store.

Invariants: a shard is deleted only after the store has its data and its manifest; a shard that differs from its
manifest is dropped and counted, never uploaded; a store that is down costs waiting here and nothing elsewhere (the
writer bounds the spool). A pod that ends waits for the store no longer than it may, and what is left is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_protocol.errors import InvalidRecord
from aurora_protocol.training_records import ShardManifest
from aurora_store import Registry
from aurora_store.errors import ObjectExists, StoreError

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
        self._hurry = asyncio.Event()
        self._enough = threading.Event()

    async def run(self) -> None:
        """Until cancelled: upload what there is, wait for more; back off with jitter while the store is down."""
        backoff = FIRST_BACKOFF_S
        while True:
            try:
                await asyncio.to_thread(self.drain)
                backoff = FIRST_BACKOFF_S
                await self._rest(POLL_S)
            except (StoreError, OSError) as error:
                log.warning("traces wait in the spool: %s", error)
                await self._rest(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                backoff = min(backoff * 2, LAST_BACKOFF_S)

    async def _rest(self, seconds: float) -> None:
        """Sleep; not for long once the pod ends."""
        if self._hurry.is_set():
            await asyncio.sleep(min(seconds, POLL_S))
            return
        # Not asyncio.wait_for: before Python 3.12 it swallows a cancellation that comes together with the end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurry.wait()

    def enough(self) -> None:
        """Begin no other upload: whoever joins the thread of :meth:`run` waits for one at most."""
        self._enough.set()

    async def finish(
        self, seconds: float, *, settle: float, serving: Callable[[], bool], ending: Callable[[], bool]
    ) -> None:
        """What the agent does last, beside :meth:`run`: see the spool emptied, while the engine drains and behind it.

        An agent that ends alone leaves the spool to its successor. Returns within ``seconds``.

        Args:
            settle: seconds within which the launcher of a pod that ends is told, too.
            serving: whether the engine is up.
            ending: whether the launcher, too, was told to end.
        """
        began = served = time.monotonic()
        deadline = began + seconds
        while not ending() and (now := time.monotonic()) < deadline:
            if serving():
                served = now
                if now > began + settle:
                    log.info("%d shards wait in the spool for the next agent", len(self._left()))
                    return
            elif now > served + 2 * settle:  # a launcher that died says nothing; one that still loads may yet serve
                break
            await asyncio.sleep(POLL_S / 10)
        self._hurry.set()
        while (serving() or self._left()) and time.monotonic() < deadline:  # noqa: ASYNC110 - files are all there is
            await asyncio.sleep(POLL_S / 5)
        self.enough()
        left = self._left()
        if left:
            self.counters.dropped += len(left)
            log.warning("%d shards (%d bytes) are lost with the pod: the store did not take them within %.0f s",
                        len(left), sum(left), seconds)  # fmt: skip

    def _left(self) -> list[int]:
        """Bytes of each shard that waits."""
        return [_size(path.with_suffix(".safetensors")) for path in self._spool.glob("*.json")]

    def drain(self) -> None:
        """Upload every complete shard; raises :class:`StoreError` at the first that the store does not take."""
        if not self._spool.is_dir():
            return
        for path in sorted(self._spool.glob("*.json"), key=lambda path: path.name.rsplit("-", 2)[1:]):
            if self._enough.is_set():
                return
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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
