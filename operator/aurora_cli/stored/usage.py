"""What a store holds, by kind of object. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aurora_store import Keys
from aurora_store.objects import ObjectInfo

KINDS: Final = {
    Keys.TRACES: "traces",
    Keys.CHECKPOINTS: "drafts",
    Keys.TRAINER_STATE: "trainer states",
    Keys.TRAINER_STATUS: "trainer status",
    Keys.EVIDENCE: "evidence",
    Keys.BASELINES: "baselines",
    Keys.REGISTRY: "registrations",
    Keys.CHANNEL: "channel",
    Keys.LINEAGE: "lineage",
    Keys.ERASURES: "erasure reports",
    Keys.ERASING: "erasures under way",
    Keys.PROBE: "probes",
}
"""Kind of object by the beginning of its key."""
FOREIGN: Final = "not Aurora's"


@dataclass(frozen=True)
class KindUsage:
    """All objects of one kind."""

    kind: str
    objects: int
    size_bytes: int
    newest: datetime


def kind_of(key: str) -> str:
    """The kind of the object at ``key``."""
    return next((kind for beginning, kind in KINDS.items() if key.startswith(beginning)), FOREIGN)


def usage(objects: Iterable[ObjectInfo]) -> Sequence[KindUsage]:
    """The objects by kind, the largest kind first."""
    found: dict[str, KindUsage] = {}
    for one in objects:
        kind = kind_of(one.key)
        before = found.get(kind, KindUsage(kind, 0, 0, one.modified))
        newest = max(before.newest, one.modified)
        found[kind] = KindUsage(kind, before.objects + 1, before.size_bytes + one.size_bytes, newest)
    return sorted(found.values(), key=lambda one: (-one.size_bytes, one.kind))
