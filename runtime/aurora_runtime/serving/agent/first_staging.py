"""The init container's work: make the engine's keys, stage the active draft if it can be had, and make it current.

Invariants: serving needs neither the store nor the trainer. A pod starts with the draft on its disk, or else without
one, while the store is out of reach or slow, holds an invalid record, or has no draft yet. No call of the store
outlasts its deadline. A pod starts only with a version that a record of the channel names, with its digest, and that
the operator signed. Each pod has an admin key of its own, so an engine cannot give orders to another one. All pods of a
speculator have the same traffic secret, so they hold out the same prompts.
"""

from __future__ import annotations

import logging
import secrets
import time
from pathlib import Path
from typing import Final

from aurora_protocol.draft_records import Lineage, Registration
from aurora_protocol.errors import InvalidRecord
from aurora_protocol.tag_hash import traffic_secret
from aurora_runtime.errors import DraftRefused
from aurora_runtime.pod_registry import PodRegistry
from aurora_runtime.serving.agent.draft_cache import DraftCache, StagedDraft
from aurora_runtime.serving.pod_files import PodFolder
from aurora_store import Keys
from aurora_store.deadline import total_deadline
from aurora_store.errors import ObjectMissing, StoreError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 2.0
FETCH_SECONDS: Final = 120.0
"""How long a pod downloads the draft that it found. The operator swaps a pod that started without it."""
MIN_STORE_SECONDS: Final = 1.0
"""Even an attempt at the deadline gets this long."""


def make_engine_key(path: Path) -> None:
    """Write a new random key to ``path``, unless a former run of the init container has written one.

    The key is hexadecimal. SGLang reads its configuration file as if it were a command line, and would take a key that
    begins with "-" for an option (sglang/srt/utils/server_args_config_parser.py:205): the engine would never start.
    """
    if not path.exists():
        _write_key(path, secrets.token_hex(32))


def make_traffic_secret(speculator_key: Path, path: Path) -> None:
    """Derive the traffic secret from the speculator's key, and write it to ``path``."""
    _write_key(path, traffic_secret(speculator_key.read_bytes()))


def _write_key(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    part.chmod(0o440)
    part.rename(path)


def find_active_draft(registry: PodRegistry) -> tuple[Lineage, Registration] | str:
    """The lineage and the version to start with. While one of them is missing, a text that names what is missing.

    Raises :class:`InvalidRecord` when the version was registered with other weights than the operator signed for, and
    :class:`UnsignedRecord` when no record of the channel is signed.
    """
    lineage = registry.lineage()
    if lineage is None:
        return "the trainer to create the lineage"
    channel = registry.signed_channel()
    if channel is None:
        return "the operator to write the channel's first record, after the trainer has registered draft version 0"
    try:
        registration = registry.registration(channel.active)
    except ObjectMissing:
        return f"the trainer to register draft version {channel.active}"
    if channel.active_digest not in (None, registration.digest):
        key = Keys.registration(channel.active)
        raise InvalidRecord(f"{key} names other weights than the channel; restore it, and find out who wrote it")
    return lineage, registration


def stage_active_draft(
    folder: PodFolder,
    registry: PodRegistry,
    *,
    find_seconds: float,
    fetch_seconds: float = FETCH_SECONDS,
    poll_seconds: float = POLL_SECONDS,
) -> StagedDraft | None:
    """Stage the active draft and make it current. While it cannot be had, leave the pod with the draft on its disk.

    Args:
        find_seconds: how long to look for the active draft.

    Returns: the draft that the engine starts with. None: there is none, so the engine starts with a placeholder.
    """
    folder.drafts.mkdir(parents=True, exist_ok=True)
    folder.crashes.unlink(missing_ok=True)
    drafts = DraftCache(folder, registry)
    deadline, logged = time.monotonic() + find_seconds, ""
    while True:
        try:
            with total_deadline(max(deadline - time.monotonic(), MIN_STORE_SECONDS)):
                found = find_active_draft(registry)
            if not isinstance(found, str):
                with total_deadline(fetch_seconds):
                    return _stage(drafts, *found)
            missing, can_come = found, True
        except (StoreError, InvalidRecord, DraftRefused) as error:
            missing, can_come = f"the store: {error}", not isinstance(error, DraftRefused)
        if time.monotonic() >= deadline or not can_come:
            on_disk = drafts.current() if drafts.has_draft else None
            start = f"with draft version {on_disk.version} from disk" if on_disk else "without a draft"
            log.warning("starting %s, because this pod has waited for %s", start, missing)
            return on_disk
        if missing != logged:
            log.info("waiting for %s", missing)
            logged = missing
        time.sleep(poll_seconds)


def _stage(drafts: DraftCache, lineage: Lineage, registration: Registration) -> StagedDraft:
    drafts.keep_lineage(lineage)
    draft = drafts.stage(registration.version, registration.digest)
    drafts.make_current(draft)
    return draft
