"""Drafts on the pod's disk: fetched, verified, and kept as long as the pod may need them.

Invariants: a folder ``drafts/<version>-<digest12>/`` exists only complete and verified, because it is built under
another name and renamed. ``current`` points at the draft that the engine starts with. The cache keeps at most the
current draft, the requested draft and the drafts that the caller names: the previous draft of a swap, or the other
draft of a measurement.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_protocol.draft_records import CheckpointManifest, Lineage, Registration
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft_file
from aurora_runtime.errors import DraftRefused
from aurora_runtime.serving.pod_files import PodFolder
from aurora_store import Registry
from aurora_store.errors import ObjectMissing
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
RESERVED_DISK_BYTES: Final = 64 << 20
"""Disk space that a download leaves free, for shards and state."""


@dataclass(frozen=True)
class StagedDraft:
    """A verified draft on disk."""

    folder: Path
    version: int
    digest: str

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


class DraftCache:
    """The drafts of one pod."""

    def __init__(self, folder: PodFolder, registry: Registry) -> None:
        self._folder = folder
        self._registry = registry

    def current(self) -> StagedDraft | None:
        """The draft that ``current`` points at. None when there is none, or when it is incomplete."""
        try:
            return self._read(self._folder.current.resolve(strict=True))
        except OSError:
            return None

    def find_staged(self, version: int) -> StagedDraft | None:
        """A staged draft of this version. None when none is staged."""
        drafts = (self._read(path) for path in self._folder.drafts.glob(f"{version:08d}-*"))
        return next((draft for draft in drafts if draft is not None), None)

    def find_or_stage(self, version: int) -> StagedDraft:
        """The draft of this version, from the disk, or from the store when the disk has lost it.

        For the draft that the engine holds: the pod once staged it. Raises as :meth:`stage` does.
        """
        for draft in (self.current(), self.find_staged(version)):
            if draft is not None and draft.version == version:
                return draft
        return self.stage(version, self._registry.registration(version).digest)

    def lineage(self) -> Lineage:
        """The lineage that this pod serves. Raises :class:`DraftRefused` when none was staged."""
        try:
            return Lineage.from_json(self._folder.lineage.read_bytes())
        except FileNotFoundError as error:
            raise DraftRefused("this pod has no lineage.json: the init container has not staged a draft") from error

    def stage(self, version: int, digest: str, *, keep: tuple[StagedDraft, ...] = ()) -> StagedDraft:
        """Fetch and verify a version unless it is staged. Delete all drafts but this one, ``keep`` and the current one.

        Raises:
            DraftRefused: the version is not registered with this digest, is of another lineage, or fails a check.
            StoreError: the store is out of reach.
            OSError: the disk is full.
        """
        lineage = self.lineage()
        target = self._folder.drafts / f"{version:08d}-{digest[:12]}"
        staged = self._read(target)
        if staged is None or staged.digest != digest or sha256_file(staged.weights) != digest:
            self._delete_all_but((*keep, self.current()))
            staged = self._fetch(version, digest, lineage, target)
        self._delete_all_but((*keep, self.current(), staged))
        return staged

    def make_current(self, draft: StagedDraft) -> None:
        """Point ``current`` at ``draft`` atomically."""
        link = self._folder.drafts / f".current.{secrets.token_hex(4)}"
        link.symlink_to(draft.folder.name)
        os.replace(link, self._folder.current)

    def _read(self, folder: Path) -> StagedDraft | None:
        try:
            manifest = CheckpointManifest.from_json((folder / MANIFEST).read_bytes())
        except OSError:
            return None
        complete = (folder / WEIGHTS).exists()
        return StagedDraft(folder, manifest.version, manifest.digest) if complete else None

    def _fetch(self, version: int, digest: str, lineage: Lineage, target: Path) -> StagedDraft:
        registration = self._check_registration(version, digest, lineage)
        manifest = self._registry.checkpoint(registration)
        self._check_manifest(manifest, registration)
        part = self._folder.drafts / f".{target.name}.{secrets.token_hex(4)}"
        try:
            self._registry.fetch_checkpoint(registration, part)
            check_draft_file(part / WEIGHTS, lineage)
            (part / MANIFEST).write_bytes(manifest.to_json())
            part.chmod(0o755)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        log.info("staged draft version %d", version)
        return StagedDraft(target, version, digest)

    def _check_registration(self, version: int, digest: str, lineage: Lineage) -> Registration:
        try:
            registration = self._registry.registration(version)
        except ObjectMissing as error:
            raise DraftRefused(f"version {version} is not registered") from error
        if registration.digest != digest:
            raise DraftRefused(f"version {version} is registered with another digest")
        if registration.lineage != lineage.number:
            raise DraftRefused(
                f"version {version} is of lineage {registration.lineage}, but this pod serves lineage {lineage.number}"
            )
        return registration

    def _check_manifest(self, manifest: CheckpointManifest, registration: Registration) -> None:
        files = {file.name: file for file in manifest.files}
        if any(Path(name).name != name or name in (MANIFEST, "") for name in files):
            raise DraftRefused("the checkpoint names files outside its folder")
        if manifest.version != registration.version or manifest.digest != registration.digest:
            raise DraftRefused("the checkpoint's manifest contradicts its registration")
        if WEIGHTS not in files or files[WEIGHTS].sha256 != manifest.digest:
            raise DraftRefused(f"the checkpoint's digest is not that of its {WEIGHTS}")
        needed_bytes = sum(file.size for file in manifest.files) + RESERVED_DISK_BYTES
        free_bytes = shutil.disk_usage(self._folder.drafts).free
        if needed_bytes > free_bytes:
            raise OSError(errno.ENOSPC, f"not enough disk: {needed_bytes} bytes needed, {free_bytes} free")

    def _delete_all_but(self, keep: tuple[StagedDraft | None, ...]) -> None:
        kept = {draft.folder.name for draft in keep if draft is not None}
        for path in self._folder.drafts.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)
