"""Deletes what a dead trainer left: objects that no manifest names, and drafts that no registration names.

Invariant: only the trainer writes checkpoints and trainer states, so an object without a manifest, or a draft without a
registration, both at the first listing *and* after a grace period is nobody's unfinished work. Two listings are
compared, so that the store's clock does not matter.

A draft stays as long as anybody could have registered it: a version with a single draft is not looked into, and an
unreadable registration keeps all drafts of its version. A draft also stays where its registration may have been lost:
only drafts above the newest registered number, and those that lost their number to another draft, are deleted. A whole
draft that the channel names as active or previous stays in any case.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Final

from aurora_protocol.errors import InvalidRecord
from aurora_runtime.pod_registry import PodRegistry
from aurora_store import Keys
from aurora_store.errors import ObjectMissing, ObjectTooLarge, StoreError
from aurora_store.keys import checkpoint_version, record_numbers

GRACE_SECONDS: Final = 120.0
log = logging.getLogger(__name__)


def orphans(registry: PodRegistry) -> set[str]:
    """Keys of checkpoint and trainer-state data that no manifest names, and of drafts that no registration names."""
    checkpoints = list(registry.objects.list(Keys.CHECKPOINTS))
    complete = {_folder(key) for key in checkpoints if key.endswith("/manifest.json")}
    kept = complete - _unregistered(registry, complete)
    orphaned = {key for key in checkpoints if _folder(key) not in kept}
    states = list(registry.objects.list(Keys.TRAINER_STATE))
    saved = {key.removesuffix(".json") for key in states if key.endswith(".json")}
    return orphaned | {key for key in states if not key.endswith(".json") and key.rsplit("/", 1)[0] not in saved}


def _folder(key: str) -> str:
    return key.rsplit("/", 1)[0] + "/"


def _unregistered(registry: PodRegistry, folders: Collection[str]) -> set[str]:
    """Those of the ``folders`` of whole drafts that a dead trainer left without a registration.

    Call this after the listing of the folders: a draft is registered after it is whole.
    """
    of_version = defaultdict[int, set[str]](set)
    for folder in folders:
        if (version := checkpoint_version(folder)) is not None:
            of_version[version].add(folder)
    registered = set(record_numbers(registry.objects.list(Keys.REGISTRY), Keys.REGISTRY))
    newest = max(registered, default=-1)
    found = set[str]()
    for version, drafts in of_version.items():
        if version > newest:
            found |= drafts
        elif version in registered and len(drafts) > 1:  # two trainers took the number, and one of them lost it
            found |= drafts - _possibly_registered(registry, version, drafts)
    return found - _named_by_channel(registry, of_version) if found else found


def _possibly_registered(registry: PodRegistry, version: int, drafts: set[str]) -> set[str]:
    """Those of ``drafts`` that the registration of ``version`` may name."""
    try:
        named = registry.registration(version).checkpoint
    except (InvalidRecord, ObjectMissing, ObjectTooLarge):
        return drafts
    return {named} if named in drafts else drafts


def _named_by_channel(registry: PodRegistry, of_version: Mapping[int, set[str]]) -> set[str]:
    """The drafts that the channel may name as active or previous, of the drafts ``of_version``."""
    try:
        channel = registry.channel()
    except (InvalidRecord, ObjectMissing, ObjectTooLarge):
        return set[str]().union(*of_version.values())
    if channel is None:
        return set()
    named = set[str]()
    for version, drafts in of_version.items():
        if version in (channel.active, channel.previous):
            digest = channel.digest_of(version)
            named |= {Keys.checkpoint(version, digest)} if digest else drafts
    return named


class OrphanCleanup:
    """Lists orphans at the start, and deletes them once the grace period is over."""

    def __init__(self, registry: PodRegistry, grace_seconds: float = GRACE_SECONDS) -> None:
        self._registry = registry
        self._suspects = orphans(registry)
        self._due: float | None = time.monotonic() + grace_seconds if self._suspects else None

    def delete_due(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Delete the orphans of the first listing when the grace period is over; returns how many.

        Manifests go first, so that none names missing data.
        Call this between two pieces of work. Nothing more is deleted once ``stopping`` returns true.
        """
        if self._due is None or time.monotonic() < self._due:
            return 0
        deleted = 0
        due = self._suspects & orphans(self._registry)
        self._due = None  # not before the listing: if the store fails, the caller tries again
        for key in sorted(due, key=lambda key: (not key.endswith("/manifest.json"), key)):
            if stopping():
                break
            try:
                self._registry.objects.delete(key)
                deleted += 1
            except StoreError as error:
                log.warning("%s is an orphan and stays until the trainer's next start: %s", key, error)
        if deleted:
            log.info("deleted %d objects that no manifest or no registration names", deleted)
        return deleted
