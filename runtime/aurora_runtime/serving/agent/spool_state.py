"""What waits in the spool: how much, since when, and how much disk is left. For the uploader and the metrics."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SpoolState:
    """The shards that wait for their upload, at one moment."""

    shard_bytes: tuple[int, ...] = ()
    """Size of each shard."""
    oldest_seconds: float = 0.0
    """Age of the oldest shard. 0 while none waits."""
    free_bytes: int | None = None
    """Free space of the file system of the spool. None while there is no spool."""


def read_spool_state(spool: Path, now: float) -> SpoolState:
    """The state of ``spool`` at ``now``, in seconds since the epoch. A shard counts once it has its manifest."""
    sizes: list[int] = []
    written = now
    for path in spool.glob("*.json"):
        try:
            size, shard_written = path.with_suffix(".safetensors").stat().st_size, path.stat().st_mtime
        except FileNotFoundError:
            continue  # uploaded or dropped meanwhile
        sizes.append(size)
        written = min(written, shard_written)
    free_bytes = shutil.disk_usage(spool).free if spool.is_dir() else None
    return SpoolState(tuple(sizes), now - written if sizes else 0.0, free_bytes)
