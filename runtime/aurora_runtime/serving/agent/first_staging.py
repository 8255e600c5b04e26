"""The init container's work: make the engine's keys, wait for the active draft, stage it, and make it current.

Invariants: serving does not depend on the store. A pod that has a valid draft on its disk starts with this draft when
the store is out of reach or slow, or holds an invalid record. No call of the store outlasts the deadline. A pod starts
only with a version that a record of the channel names, with its digest, and that the operator signed. Each pod has an
admin key of its own, so an engine cannot give orders to another one. All pods of a speculator have the same traffic
secret, so they hold out the same prompts.
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
from aurora_runtime.serving.pod_files import PodFolder, write_atomically
from aurora_store import Keys
from aurora_store.deadline import total_deadline
from aurora_store.errors import ObjectMissing, StoreError

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 2.0
STORE_SECONDS_WITH_DRAFT: Final = 120.0
"""How long a pod that has a draft on its disk waits for the store. The operator swaps the pod later."""
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
    folder: PodFolder, registry: PodRegistry, *, timeout_seconds: float, poll_seconds: float = POLL_SECONDS
) -> StagedDraft:
    """Wait for the active draft, stage it, make it current.

    Raises:
        DraftRefused: no engine may load the draft, and the disk has none of its lineage.
        StoreError: the time is over. The message names what is still missing.
    """
    folder.drafts.mkdir(parents=True, exist_ok=True)
    for leftover in (folder.withdrawal, folder.mode):  # no engine runs yet, and the next one starts with ``current``
        leftover.unlink(missing_ok=True)
    drafts = DraftCache(folder, registry)
    lineage_on_disk = _lineage_on_disk(drafts)
    on_disk = drafts.current() if lineage_on_disk is not None else None
    deadline = time.monotonic() + timeout_seconds
    logged = ""
    while True:
        left_seconds = deadline - time.monotonic()
        store_seconds = min(left_seconds, STORE_SECONDS_WITH_DRAFT) if on_disk else left_seconds
        try:
            with total_deadline(max(store_seconds, MIN_STORE_SECONDS)):
                draft = _stage_if_there(folder, registry, drafts)
            if not isinstance(draft, str):
                return draft
            missing = draft
        except (StoreError, InvalidRecord, DraftRefused) as error:
            if on_disk is not None and _lineage_on_disk(drafts) == lineage_on_disk:
                log.warning("starting with draft version %d from disk: %s", on_disk.version, error)
                return on_disk
            if isinstance(error, DraftRefused):
                raise
            missing = f"the store: {error}"
        if time.monotonic() >= deadline:
            raise StoreError(f"gave up waiting for {missing}")
        if missing != logged:
            log.info("waiting for %s", missing)
            logged = missing
        time.sleep(poll_seconds)


def _lineage_on_disk(drafts: DraftCache) -> int | None:
    """The number of the lineage on the disk. None when there is none, or when its record is damaged."""
    try:
        return drafts.lineage().number
    except (DraftRefused, InvalidRecord):
        return None


def _stage_if_there(folder: PodFolder, registry: PodRegistry, drafts: DraftCache) -> StagedDraft | str:
    """Stage the active draft and make it current. While a record is missing, a text that names what is missing."""
    found = find_active_draft(registry)
    if isinstance(found, str):
        return found
    lineage, registration = found
    write_atomically(folder.lineage, lineage.to_json(), durable=True)
    draft = drafts.stage(registration.version, registration.digest)
    drafts.make_current(draft)
    return draft
