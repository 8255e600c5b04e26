"""Fetches the drafts under measurement and checks them before an engine may load them.

Invariant: a draft is measured only if an inference pod would load it, because both make the same check.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft, max_weights_bytes
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_store.errors import DigestMismatch, ObjectMissing
from aurora_store.objects import sha256_file


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
