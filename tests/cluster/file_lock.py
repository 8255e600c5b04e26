"""A lock between processes, for work that only one process may do at a time: a build, an `up`, a cache entry."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the file `path` as a lock, and create the file first if it is missing.

    The kernel releases the lock when the process ends, so a killed process never blocks the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
