"""Repeats a conditional write that conflicts with another write of the same object.

Why: S3 refuses a conditional write while another write of the same key is under way. Often the other write is this
process's own, and its answer was lost.

Invariants: the repeats and the pauses between them belong to one call and share its limits. After :data:`TRIES` tries
the conflict is raised.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from botocore.exceptions import ClientError

from aurora_store.s3_calls.call_errors import is_write_conflict
from aurora_store.s3_calls.call_limits import CallLimits

TRIES: Final = 3
PAUSE_SECONDS: Final = 0.5
"""Longest pause between two tries."""


def repeat_after_conflict(write: Callable[[], object], limits: CallLimits) -> None:
    """Call ``write`` until it meets no conflict.

    Raises botocore's :class:`ClientError` for the last conflict and for any other error of the store, and
    :class:`CallLimitReached` when the call reaches a limit during a pause.
    """
    for _ in range(TRIES - 1):
        try:
            write()
        except ClientError as error:
            if not is_write_conflict(error):
                raise
        else:
            return
        limits.pause(random.uniform(0.5, 1.0) * PAUSE_SECONDS)  # noqa: S311 - jitter
    write()
