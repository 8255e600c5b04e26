"""Staged drafts are complete and verified; a bad draft is refused before the engine sees it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_store.errors import DigestMismatch
from tests.unit.fakes import FolderObjects, draft_tensors, lineage, publish_bytes, safetensors


@pytest.fixture
def folder(tmp_path: Path) -> PodFolder:
    folder = PodFolder(tmp_path / "state")
    folder.drafts.mkdir(parents=True)
    write_atomically(folder.lineage, lineage().to_json())
    return folder


def add_draft(registry: PodRegistry, tmp_path: Path, version: int, **options: int) -> str:
    data = safetensors(draft_tensors(float(version + 1)))
    return publish_bytes(registry, tmp_path / "sources", version, data, **options).digest


def staged(folder: PodFolder) -> list[str]:
    return sorted(path.name[:8] for path in folder.drafts.iterdir() if not path.is_symlink())


def test_the_current_the_previous_and_the_requested_draft_are_kept(
    registry: PodRegistry, folder: PodFolder, tmp_path: Path
) -> None:
    drafts = DraftCache(folder, registry)
    one = drafts.stage(1, add_draft(registry, tmp_path, 1))
    drafts.make_current(one)
    two = drafts.stage(2, add_draft(registry, tmp_path, 2), keep=(one,))
    drafts.make_current(two)
    drafts.stage(3, add_draft(registry, tmp_path, 3), keep=(one,))
    assert staged(folder) == ["00000001", "00000002", "00000003"]
    drafts.stage(4, add_draft(registry, tmp_path, 4), keep=())
    assert staged(folder) == ["00000002", "00000004"]
    current = drafts.current()
    assert current is not None
    assert current.version == 2


def test_a_staged_draft_is_not_fetched_again(registry: PodRegistry, folder: PodFolder, tmp_path: Path) -> None:
    drafts = DraftCache(folder, registry)
    digest = add_draft(registry, tmp_path, 1)
    first = drafts.stage(1, digest)
    objects = registry.objects
    assert isinstance(objects, FolderObjects)
    objects.down = True
    assert drafts.stage(1, digest) == first


@pytest.mark.parametrize(("name", "damaged"), [("model.safetensors", "short"), ("config.json", "{}")])
def test_a_file_damaged_on_disk_is_fetched_again(
    registry: PodRegistry, folder: PodFolder, tmp_path: Path, name: str, damaged: str
) -> None:
    drafts = DraftCache(folder, registry)
    digest = add_draft(registry, tmp_path, 1)
    file = drafts.stage(1, digest).folder / name
    whole = file.read_bytes()
    file.write_text(damaged)
    drafts.stage(1, digest)
    assert file.read_bytes() == whole


def test_a_refused_draft_leaves_nothing_on_disk(registry: PodRegistry, folder: PodFolder, tmp_path: Path) -> None:
    drafts = DraftCache(folder, registry)
    with pytest.raises(DraftRefused):
        drafts.stage(1, "0" * 64)
    add_draft(registry, tmp_path, 1)
    with pytest.raises(DraftRefused):
        drafts.stage(1, "0" * 64)
    with pytest.raises(DraftRefused, match="lineage 2"):
        drafts.stage(2, add_draft(registry, tmp_path, 2, of_lineage=2))
    bad = publish_bytes(registry, tmp_path / "sources", 3, safetensors(draft_tensors(float("nan"))))
    with pytest.raises(DraftRefused):
        drafts.stage(3, bad.digest)
    assert staged(folder) == []


def test_an_object_that_differs_from_its_manifest_is_refused(
    registry: PodRegistry, objects: FolderObjects, folder: PodFolder, tmp_path: Path
) -> None:
    digest = add_draft(registry, tmp_path, 1)
    (stored,) = objects.path.rglob("model.safetensors")
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(DigestMismatch):
        DraftCache(folder, registry).stage(1, digest)
    assert staged(folder) == []


def test_a_manifest_that_names_files_elsewhere_is_refused(
    registry: PodRegistry, objects: FolderObjects, folder: PodFolder, tmp_path: Path
) -> None:
    digest = add_draft(registry, tmp_path, 1)
    (manifest,) = objects.path.rglob("manifest.json")
    manifest.write_text(manifest.read_text().replace('"config.json"', '"../../config.json"'))
    with pytest.raises(DraftRefused):
        DraftCache(folder, registry).stage(1, digest)


def test_a_draft_with_another_configuration_is_refused(
    registry: PodRegistry, objects: FolderObjects, folder: PodFolder, tmp_path: Path
) -> None:
    digest = add_draft(registry, tmp_path, 1)
    (config,), (manifest,) = objects.path.rglob("config.json"), objects.path.rglob("manifest.json")
    before = config.read_bytes()
    evil = json.dumps(json.loads(before) | {"auto_map": {"AutoConfig": "modeling_evil.Config"}}).encode()
    config.write_bytes(evil)
    named = json.loads(manifest.read_text())
    for file in named["files"]:
        if file["name"] == "config.json":
            file |= {"sha256": hashlib.sha256(evil).hexdigest(), "size": len(evil)}
    manifest.write_text(json.dumps(named))
    with pytest.raises(DraftRefused, match="not that of lineage 1: auto_map"):
        DraftCache(folder, registry).stage(1, digest)
    assert staged(folder) == []
