"""Repeats a write that conflicts with another write of the same object.

Why: S3 answers a conditional write with a conflict while another one of the same key is under way. The other write is
often this process's own, whose answer was lost. Invariant: after :data:`TRIES` tries the conflict is raised.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from aurora_store.errors import WriteConflict

TRIES: Final = 3
PAUSE_SECONDS: Final = 0.5
"""Longest pause between two tries."""


def repeat_after_conflict(write: Callable[[], None]) -> None:
    """Call ``write`` until it raises no :class:`WriteConflict`."""
    for _ in range(TRIES - 1):
        try:
            return write()
        except WriteConflict:
            time.sleep(random.uniform(0.5, 1.0) * PAUSE_SECONDS)  # noqa: S311 - jitter
    return write()
