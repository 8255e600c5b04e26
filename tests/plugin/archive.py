"""The archive that krew unpacks. Equal files give an equal archive, whenever and by whom it is made."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_archive(archive: Path, files: Mapping[str, Path]) -> None:
    """Write a ``.tar.gz`` with the files, by their names in the archive. A file keeps only its executable bit."""
    unpacked = io.BytesIO()
    with tarfile.open(fileobj=unpacked, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, file in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = file.stat().st_size
            entry.mode = 0o755 if file.stat().st_mode & 0o100 else 0o644
            with file.open("rb") as opened:
                tar.addfile(entry, opened)
    archive.write_bytes(gzip.compress(unpacked.getvalue(), mtime=0))
