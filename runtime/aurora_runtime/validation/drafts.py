"""The drafts under measurement, fetched and checked against their lineage before an engine may load them.

Invariant: a draft that is measured has the lineage's tensors and vocabulary map. With another map SGLang reports
success and accepts next to nothing, which would look like a bad draft and not like the wrong one.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from aurora_api.records import CheckpointManifest, Lineage, TensorSpec
from aurora_runtime.errors import MeasurementError
from aurora_runtime.store import Registry

WEIGHTS = "model.safetensors"


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
    if tensor_specs(draft.weights) != lineage.tensors:
        raise MeasurementError(f"version {version}: its tensors are not the lineage's")
    with safe_open(draft.weights, framework="numpy") as file:
        offsets = file.get_tensor("d2t").astype("<i8").tobytes()
    if hashlib.sha256(offsets).hexdigest() != lineage.d2t_sha256:
        raise MeasurementError(f"version {version}: its vocabulary map is not the lineage's")
    return draft, manifest


def tensor_specs(path: Path) -> dict[str, TensorSpec]:
    """The header of a safetensors file: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return {name: TensorSpec(shape=tuple(entry["shape"]), dtype=entry["dtype"]) for name, entry in header.items()}
