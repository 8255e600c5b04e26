"""The validator measures no draft that a pod would refuse to load."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from aurora_protocol.draft_records import Registration
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.validation.store_reads import fetch_draft
from tests.unit.fakes import FolderObjects, draft_tensors, lineage, publish_bytes, safetensors


@pytest.fixture
def registry(tmp_path: Path) -> PodRegistry:
    objects = FolderObjects(tmp_path / "store")
    objects.path.mkdir()
    return PodRegistry(objects)


@pytest.mark.parametrize(
    ("data", "of_lineage", "words"),
    [
        (safetensors(draft_tensors()), 2, "of lineage 2, not of 1"),
        (safetensors(draft_tensors(float("nan"))), 1, "not finite"),
        (b"", 1, "not a safetensors file"),
    ],
)
def test_a_draft_that_a_pod_would_refuse_is_not_measured(
    registry: PodRegistry, tmp_path: Path, data: bytes, of_lineage: int, words: str
) -> None:
    """What else a file must be is in ``tests/unit/engine/test_draft_file_check.py``."""
    registered = publish_bytes(registry, tmp_path, 1, data, of_lineage=of_lineage)
    with pytest.raises(DraftRefused, match=words):
        fetch_draft(registry, registered, lineage(), tmp_path / "candidate")


def test_files_that_are_damaged_or_missing_are_refused(registry: PodRegistry, tmp_path: Path) -> None:
    registered = publish_bytes(registry, tmp_path, 1, safetensors(draft_tensors()))
    key = f"{registered.checkpoint}model.safetensors"
    registry.objects.put(key, b"other bytes")
    with pytest.raises(DraftRefused):
        fetch_draft(registry, registered, lineage(), tmp_path / "damaged")
    registry.objects.delete(key)
    with pytest.raises(DraftRefused):
        fetch_draft(registry, registered, lineage(), tmp_path / "missing")


def rewrite(registry: PodRegistry, registered: Registration, name: str, data: bytes) -> None:
    """Replace a file of the draft and name its digest in the manifest, as a bucket writer does."""
    registry.objects.put(registered.checkpoint + name, data)
    key = f"{registered.checkpoint}manifest.json"
    manifest = json.loads(registry.objects.get(key))
    for file in manifest["files"]:
        if file["name"] == name:
            file |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    registry.objects.put(key, json.dumps(manifest).encode())


def test_a_draft_whose_configuration_or_manifest_was_changed_is_not_measured(
    registry: PodRegistry, tmp_path: Path
) -> None:
    registered = publish_bytes(registry, tmp_path, 1, safetensors(draft_tensors()))
    own = json.loads(registry.objects.get(f"{registered.checkpoint}config.json"))
    for config in (b"{", b"{}", json.dumps(own | {"auto_map": {"AutoConfig": "modeling_evil.Config"}}).encode()):
        rewrite(registry, registered, "config.json", config)
        with pytest.raises(DraftRefused, match=r"config\.json"):
            fetch_draft(registry, registered, lineage(), tmp_path / "candidate")
    rewrite(registry, registered, "config.json", json.dumps(own).encode())
    draft = fetch_draft(registry, registered, lineage(), tmp_path / "candidate")
    assert (draft.version, draft.weights.read_bytes()) == (1, safetensors(draft_tensors()))
    rewrite(registry, registered, "model.safetensors", safetensors(draft_tensors(2.0)))
    with pytest.raises(DraftRefused):
        fetch_draft(registry, registered, lineage(), tmp_path / "other")
    registry.objects.put(f"{registered.checkpoint}manifest.json", b"[" * 100_000)
    with pytest.raises(DraftRefused):
        fetch_draft(registry, registered, lineage(), tmp_path / "other")
    assert not (tmp_path / "other").exists()
