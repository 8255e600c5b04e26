"""The owner of the tests' roots, and signing keys: fixed ones, and those that an operator made in a cluster."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aurora_operator.children.metadata import Owner
from aurora_operator.observe.store.signed_records import RecordKeys
from aurora_protocol.draft_records import RootOwner
from aurora_protocol.signatures import KeyName
from aurora_store.keys import owner_id

ROOT_OWNER = RootOwner(id="01234567", namespace="team", name="chat", since=datetime(2026, 1, 1, tzinfo=UTC))
"""The owner that channel records name, and that pods have, where a test has one speculator only."""
KEYS = {name: f"the {name.value} of the tests".encode() for name in KeyName}


def record_keys(owner: Owner, keys: Mapping[KeyName, bytes] = KEYS) -> RecordKeys:
    """``keys`` as the operator of ``owner`` holds them."""
    return RecordKeys(owner_id(owner.uid), keys[KeyName.CHANNEL], keys[KeyName.EVIDENCE])


def secret_data() -> dict[str, str]:
    """The data of the Secret with :data:`KEYS`, as the API server returns them."""
    return {name.value: base64.b64encode(key).decode() for name, key in KEYS.items()}


def write_keys(folder: Path) -> None:
    """Write :data:`KEYS` as the kubelet mounts them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, key in KEYS.items():
        (folder / name.value).write_bytes(key)


class SecretKeys(Mapping[KeyName, bytes]):
    """The keys that an operator made for a speculator, read from their Secret whenever they are used."""

    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        """``read`` returns the Secret, and raises while it does not exist."""
        self._read = read

    def __getitem__(self, name: KeyName) -> bytes:
        return base64.b64decode(self._read()["data"][name.value])

    def __iter__(self) -> Iterator[KeyName]:
        return iter(KeyName)

    def __len__(self) -> int:
        return len(KeyName)
