"""Drafts on the pod's disk: fetched, verified, and kept so that the previous one is always at hand.

Invariants: a folder ``drafts/<version>-<digest12>/`` exists only whole and verified (built beside and renamed);
``current`` points at what the engine starts with; at most current, the one asked for and those that the caller may go
back to (a swap's previous, a measurement's other arm) are kept.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aurora_protocol.draft_records import INITIAL_VERSION, CheckpointManifest, Lineage, Registration
from aurora_runtime.engine.draft_check import WEIGHTS, check_draft
from aurora_runtime.errors import DraftRefused
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_store import Registry
from aurora_store.errors import ObjectMissing, StoreError
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
SPARE_BYTES: Final = 64 << 20
"""Disk left free beside a download, for shards and state."""


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
        """What ``current`` points at, if it is whole."""
        try:
            return self._read(self._folder.current.resolve(strict=True))
        except OSError:
            return None

    def find(self, version: int) -> StagedDraft | None:
        """A staged draft of this version."""
        found = (self._read(path) for path in self._folder.drafts.glob(f"{version:08d}-*"))
        return next((draft for draft in found if draft is not None), None)

    def holding(self, version: int) -> StagedDraft:
        """The draft that an engine of this version holds: the way back; fetched again should it be gone."""
        for draft in (self.current(), self.find(version)):
            if draft is not None and draft.version == version:
                return draft
        return self.stage(version, self._registry.registration(version).digest)

    def lineage(self) -> Lineage:
        """The lineage that this pod serves; raises :class:`DraftRefused` when none was staged."""
        try:
            return Lineage.from_json(self._folder.lineage.read_bytes())
        except FileNotFoundError as error:
            raise DraftRefused("no lineage was staged in this pod") from error

    def stage(self, version: int, digest: str, *, keep: tuple[StagedDraft, ...] = ()) -> StagedDraft:
        """Fetch and verify a version, unless it is here; prune all but it, ``keep`` and current.

        Raises:
            DraftRefused: it is not registered with this digest, is of another lineage, or fails a check.
            StoreError: the store is out of reach.
        OSError: the disk is full.
        """
        lineage = self.lineage()
        target = self._folder.drafts / f"{version:08d}-{digest[:12]}"
        staged = self._read(target)
        if staged is None or staged.digest != digest or sha256_file(staged.weights) != digest:
            self._prune((*keep, *self._also_current()))
            staged = self._fetch(version, digest, lineage, target)
        self._prune((*keep, *self._also_current(), staged))
        return staged

    def make_current(self, draft: StagedDraft) -> None:
        """Point ``current`` at ``draft``; atomic."""
        link = self._folder.drafts / f".current.{secrets.token_hex(4)}"
        link.symlink_to(draft.folder.name)
        os.replace(link, self._folder.current)

    def _also_current(self) -> tuple[StagedDraft, ...]:
        current = self.current()
        return () if current is None else (current,)

    def _read(self, folder: Path) -> StagedDraft | None:
        try:
            manifest = CheckpointManifest.from_json((folder / MANIFEST).read_bytes())
        except OSError:
            return None
        whole = (folder / WEIGHTS).exists()
        return StagedDraft(folder, manifest.version, manifest.digest) if whole else None

    def _fetch(self, version: int, digest: str, lineage: Lineage, target: Path) -> StagedDraft:
        registration = self._registered(version, digest, lineage)
        manifest = self._registry.checkpoint(registration)
        self._check_manifest(manifest, registration)
        part = self._folder.drafts / f".{target.name}.{secrets.token_hex(4)}"
        try:
            self._registry.fetch_checkpoint(registration, part)
            check_draft(part / WEIGHTS, lineage)
            (part / MANIFEST).write_bytes(manifest.to_json())
            part.chmod(0o755)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        log.info("staged draft version %d", version)
        return StagedDraft(target, version, digest)

    def _registered(self, version: int, digest: str, lineage: Lineage) -> Registration:
        try:
            registration = self._registry.registration(version)
        except ObjectMissing as error:
            raise DraftRefused(f"version {version} is not registered") from error
        if registration.digest != digest:
            raise DraftRefused(f"version {version} is registered with another digest")
        if registration.lineage != lineage.number:
            raise DraftRefused(
                f"version {version} is of lineage {registration.lineage}, this pod's is {lineage.number}"
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
        need = sum(file.size for file in manifest.files) + SPARE_BYTES
        free = shutil.disk_usage(self._folder.drafts).free
        if need > free:
            raise OSError(errno.ENOSPC, f"not enough disk: {need} bytes needed, {free} free")

    def _prune(self, keep: tuple[StagedDraft, ...]) -> None:
        kept = {draft.folder.name for draft in keep}
        for path in self._folder.drafts.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def wanted(registry: Registry) -> tuple[Lineage, Registration] | str:
    """The lineage and the version to start with, or what is still missing."""
    lineage = registry.lineage()
    if lineage is None:
        return "the trainer to create the lineage"
    channel = registry.channel()
    version = INITIAL_VERSION if channel is None else channel.active
    try:
        return lineage, registry.registration(version)
    except ObjectMissing:
        return f"the trainer to register draft version {version}"


def stage_start(folder: PodFolder, registry: Registry, *, timeout: float, poll: float = 2.0) -> StagedDraft:
    """What the init container does: wait for the active draft, stage it, make it current.

    A pod that has a valid draft starts with that when the store is out of reach: serving does not depend on the store.

    Raises:
        DraftRefused: it may not be loaded.
        StoreError: the time is over; the message says what was waited for.
    """
    folder.drafts.mkdir(parents=True, exist_ok=True)
    for left in (folder.withdrawal, folder.mode):  # no engine runs yet, and the one to come starts with ``current``
        left.unlink(missing_ok=True)
    drafts = DraftCache(folder, registry)
    deadline = time.monotonic() + timeout
    said = ""
    while True:
        try:
            found = wanted(registry)
            if not isinstance(found, str):
                lineage, registration = found
                write_atomically(folder.lineage, lineage.to_json())
                draft = drafts.stage(registration.version, registration.digest)
                drafts.make_current(draft)
                return draft
            missing = found
        except StoreError as error:
            current = drafts.current()
            if current is not None and folder.lineage.exists():
                log.warning("starting with draft version %d from disk: %s", current.version, error)
                return current
            missing = f"the store: {error}"
        if time.monotonic() >= deadline:
            raise StoreError(f"gave up waiting for {missing}")
        if missing != said:
            log.info("waiting for %s", missing)
            said = missing
        time.sleep(poll)
