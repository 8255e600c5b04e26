"""Drafts on the pod's disk: fetched, verified, and kept as long as the pod may need them.

Invariants: a folder ``drafts/<version>-<digest12>/`` exists only complete and verified, because it is built under
another name and renamed. ``current`` points at the draft that the engine starts with. The cache keeps at most the
current draft, the requested draft and the drafts that the caller names: the previous draft of a swap, or the other
draft of a measurement.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path

from aurora_protocol.draft_records import CONFIG_FILE, DRAFT_FILES, CheckpointManifest, Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_runtime.engine.draft_config import check_draft_config
from aurora_runtime.engine.draft_file_check import WEIGHTS, check_draft, max_weights_bytes
from aurora_runtime.engine.speculation_settings import PLACEHOLDER_VERSION
from aurora_runtime.errors import DraftRefused, SizesDiffer
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.pod_files import MANIFEST, PodFolder, write_atomically
from aurora_store.deadline import is_interrupted
from aurora_store.errors import DraftExpired, ObjectMissing, StoreInterrupted
from aurora_store.objects import sha256_file

log = logging.getLogger(__name__)


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

    def __init__(self, folder: PodFolder, registry: PodRegistry) -> None:
        self._folder = folder
        self._registry = registry
        self._lock = threading.Lock()

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
        """The lineage that this pod serves, from the disk or else from the store.

        Raises :class:`DraftRefused` when the trainer has created none yet, and what the store raises.
        """
        try:
            return Lineage.from_json(self._folder.lineage.read_bytes())
        except (FileNotFoundError, InvalidRecord):
            lineage = self._registry.lineage()
            if lineage is None:
                raise DraftRefused("the trainer has not created the lineage yet") from None
            self.keep_lineage(lineage)
            return lineage

    def keep_lineage(self, lineage: Lineage) -> None:
        """Write the lineage's record to the disk."""
        write_atomically(self._folder.lineage, lineage.to_json(), durable=True)

    @property
    def has_draft(self) -> bool:
        """Whether the pod serves a draft of the lineage. A placeholder is none."""
        current = self.current()
        return current is not None and current.version != PLACEHOLDER_VERSION

    def require_lineage_sizes(self, placeholder: StagedDraft) -> None:
        """Raise :class:`SizesDiffer` unless an engine that started with ``placeholder`` can load the lineage's drafts.

        Raises what :meth:`lineage` raises too.
        """
        lineage = self.lineage()
        try:
            check_draft_config(placeholder.folder / CONFIG_FILE, lineage)
        except DraftRefused as error:
            raise SizesDiffer(f"the engine started with a placeholder of other sizes: {error}") from error

    def stage(self, version: int, digest: str, *, keep: tuple[StagedDraft, ...] = ()) -> StagedDraft:
        """Fetch and verify a version unless it is staged. Delete all drafts but this one, ``keep`` and the current one.

        Raises:
            DraftRefused: the version is not registered with this digest, is of another lineage, or fails a check.
            StoreError: the store is out of reach, or the work was interrupted.
            OSError: the disk is full.
        """
        with self._lock:
            lineage = self.lineage()
            target = self._folder.draft(version, digest)
            staged = self._read(target)
            if staged is None or not _is_whole(staged, digest, lineage):
                self._delete_all_but((*keep, self.current()))
                staged = self._fetch(version, digest, lineage, target)
            self._delete_all_but((*keep, self.current(), staged))
            return staged

    def make_current(self, draft: StagedDraft) -> None:
        """Point ``current`` at ``draft`` atomically."""
        self._folder.make_current(draft.folder)

    def _read(self, folder: Path) -> StagedDraft | None:
        try:
            manifest = CheckpointManifest.from_json((folder / MANIFEST).read_bytes())
        except (OSError, InvalidRecord):
            return None
        complete = all((folder / name).exists() for name in DRAFT_FILES)
        return StagedDraft(folder, manifest.version, manifest.digest) if complete else None

    def _fetch(self, version: int, digest: str, lineage: Lineage, target: Path) -> StagedDraft:
        part = self._folder.drafts / f".{target.name}.{secrets.token_hex(4)}"
        try:
            registration = self._check_registration(version, digest, lineage)
            limit = max_weights_bytes(lineage)
            manifest = self._registry.fetch_checkpoint(registration, part, max_weights_bytes=limit)
            check_draft(part, lineage)
            (part / MANIFEST).write_bytes(manifest.to_json())
            part.chmod(0o755)
            if is_interrupted():
                raise StoreInterrupted(f"the download of version {version} was given up")
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
        except (InvalidRecord, DraftExpired) as error:
            raise DraftRefused(f"version {version}: {error}") from error
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

    def _delete_all_but(self, keep: tuple[StagedDraft | None, ...]) -> None:
        kept = {draft.folder.name for draft in keep if draft is not None}
        for path in self._folder.drafts.iterdir():
            if path.is_dir() and not path.is_symlink() and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _is_whole(staged: StagedDraft, digest: str, lineage: Lineage) -> bool:
    """Whether the staged files are still those that were checked."""
    try:
        check_draft_config(staged.folder / CONFIG_FILE, lineage)
    except (DraftRefused, OSError):
        return False
    return staged.digest == digest and sha256_file(staged.weights) == digest
