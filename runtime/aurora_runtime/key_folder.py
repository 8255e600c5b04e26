"""The signing keys of a pod, as the kubelet mounts them from the speculator's Secret."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from aurora_protocol.signatures import KeyName


class KeyFolder(Mapping[KeyName, bytes]):
    """The keys whose files are in a folder now. The kubelet may add a file later, when the Secret was made late."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, name: KeyName) -> bytes:
        try:
            return (self._path / name.value).read_bytes().strip()
        except OSError as error:
            raise KeyError(name) from error

    def __iter__(self) -> Iterator[KeyName]:
        return (name for name in KeyName if (self._path / name.value).is_file())

    def __len__(self) -> int:
        return sum(1 for _ in self)
