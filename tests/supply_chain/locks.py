"""Reads the lock files of ``requirements``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
_LOCKED = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(?:\[\S+\])?==(?P<version>\S+)(?P<hashes>(?: +--hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True)
class LockedPackage:
    """A package of a lock file: its normalized name, its version, and the SHA-256 of each file that may be used."""

    name: str
    version: str
    hashes: frozenset[str]


def locked_packages(path: Path) -> list[LockedPackage]:
    """The packages of a lock file, in its order. Raises ValueError for an entry without a version or without a hash."""
    entries = [entry for entry in path.read_text().replace("\\\n", "").splitlines() if entry.strip()]
    return [_parsed(entry, path) for entry in entries]


def _parsed(entry: str, path: Path) -> LockedPackage:
    match = _LOCKED.fullmatch(entry)
    if match is None:
        raise ValueError(f"{path.name}: {entry[:80]!r} has no version, no hash, or a source of its own; run make lock")
    hashes = frozenset(re.findall(r"sha256:([0-9a-f]{64})", match["hashes"]))
    return LockedPackage(canonicalize_name(match["name"]), match["version"], hashes)
