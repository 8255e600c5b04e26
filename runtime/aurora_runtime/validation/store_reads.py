"""Reads the store: repeats a call while the store is away for a moment, and fetches the drafts under measurement.

A measurement costs far more than the wait for a store. Invariants: an error that a working store answers with is raised
at once, and so is a missing right. The repeats end with the total deadline around them, and soon after the validator is
told to end. A draft is measured only if an inference pod would load it, because both make the same check.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeVar

from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft, max_weights_bytes
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_store.deadline import is_interrupted, total_seconds_left
from aurora_store.errors import (
    DigestMismatch,
    NotRootOwner,
    ObjectExists,
    ObjectMissing,
    ObjectRefused,
    StoreError,
    StoreInterrupted,
    StoreUnsupported,
)
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)
T = TypeVar("T")

INITIAL_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 15.0
PAUSE_POLL_SECONDS: Final = 0.05
"""How often a pause looks whether the call was interrupted."""
READ_SECONDS: Final = 30.0
"""How long a read is repeated after its first failure."""
_DEFINITE_ERRORS: Final = (
    *(DigestMismatch, NotRootOwner, ObjectExists, ObjectMissing, ObjectRefused, StoreInterrupted, StoreUnsupported),
)


def repeat_while_away(action: str, call: Callable[[], T], seconds: float = READ_SECONDS) -> T:
    """Call ``call`` until it succeeds, with jittered exponential backoff, for ``seconds`` after its first failure.

    ``action`` names the call in logs. Raises the last :class:`StoreError`.
    """
    backoff, give_up_at = INITIAL_BACKOFF_SECONDS, 0.0
    while True:
        try:
            return call()
        except _DEFINITE_ERRORS:
            raise
        except StoreError as error:
            now, pause = time.monotonic(), backoff * random.uniform(0.7, 1.3)  # noqa: S311 - jitter
            give_up_at = give_up_at or now + seconds
            if is_interrupted() or now + pause >= give_up_at or pause >= total_seconds_left():
                raise
            log.warning("%s failed, retrying in about %.0f s: %s", action, backoff, error)
        _sleep(pause)
        backoff = min(2 * backoff, MAX_BACKOFF_SECONDS)


def _sleep(seconds: float) -> None:
    """Wait ``seconds``, or until nobody waits for the call any more."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not is_interrupted():
        time.sleep(min(left, PAUSE_POLL_SECONDS))


@dataclass(frozen=True)
class FetchedDraft:
    """A downloaded version: its folder, in SGLang's format, and its number."""

    folder: Path
    version: int

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return self.folder / WEIGHTS

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        return sha256_file(self.weights)


def fetch_draft(registry: PodRegistry, registration: Registration, lineage: Lineage, folder: Path) -> FetchedDraft:
    """Download a version into ``folder`` and verify its digests.

    Raises :class:`DraftRefused` when a pod would not load the draft: missing or damaged files, another lineage, other
    tensors, another vocabulary map, another configuration, or values that are not finite.
    """
    try:
        manifest = registry.fetch_checkpoint(registration, folder, max_weights_bytes=max_weights_bytes(lineage))
    except (ObjectMissing, DigestMismatch, InvalidRecord) as error:
        raise DraftRefused(f"the draft's files are not what its manifest says: {error}") from error
    if manifest.lineage != lineage.number:
        raise DraftRefused(f"the draft is of lineage {manifest.lineage}, not of {lineage.number}")
    check_draft(folder, lineage)
    return FetchedDraft(folder, registration.version)
