"""The drafts under measurement, fetched and checked against their lineage before an engine may load them.

Invariant: a draft is measured only if an inference pod would load it, by the very check that pods make.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aurora_api.records import CheckpointManifest, Lineage
from aurora_runtime.engine.weights import WEIGHTS, check_draft
from aurora_runtime.errors import DraftRefused, MeasurementError
from aurora_runtime.store import Registry


@dataclass(frozen=True)
class Draft:
    """One version's weights: its folder (SGLang's format) and number."""

    folder: Path
    version: int

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def fetch_draft(registry: Registry, version: int, lineage: Lineage, folder: Path) -> tuple[Draft, CheckpointManifest]:
    """Download ``version`` into ``folder``, digests verified. Raises :class:`MeasurementError` when it does not fit."""
    manifest = registry.fetch_checkpoint(registry.registration(version), folder)
    if manifest.lineage != lineage.number:
        raise MeasurementError(f"version {version} is of lineage {manifest.lineage}, not of {lineage.number}")
    draft = Draft(folder, version)
    try:
        check_draft(draft.weights, lineage)
    except DraftRefused as error:
        raise MeasurementError(f"version {version}: {error}") from error
    return draft, manifest
