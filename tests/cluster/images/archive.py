"""Writes docker archives, the format that every container runtime imports, with the standard library alone.

Invariant: the result depends on the content alone. Entries are sorted, owned by root and readable by everyone. The same
input therefore gives the same digest, and is not imported twice.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Machine name -> the name that images use."""
MAX_LINK_DEPTH = 20


class Layer:
    """The files of an image, by absolute path. A later entry at a path replaces an earlier one."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._contents: dict[str, bytes] = {}
        self._links: dict[str, str] = {}
        self._directories: dict[str, int] = {}

    def add_file(self, path: str, source: Path) -> None:
        self._drop_earlier_entry(path)
        self._files[path] = source

    def add_content(self, path: str, content: str) -> None:
        self._drop_earlier_entry(path)
        self._contents[path] = content.encode()

    def add_link(self, path: str, target: str) -> None:
        self._drop_earlier_entry(path)
        self._links[path] = target

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        self._drop_earlier_entry(path)
        self._directories[path] = mode

    def files(self) -> dict[str, Path]:
        return dict(self._files)

    def _drop_earlier_entry(self, path: str) -> None:
        """Check ``path``, and remove the entry that an earlier call added there."""
        if not path.startswith("/") or os.path.normpath(path) != path:
            raise ValueError(f"the image path {path!r} must be absolute and normal (without . and ..)")
        self._files.pop(path, None)
        self._contents.pop(path, None)
        self._links.pop(path, None)
        self._directories.pop(path, None)

    def write(self, out: IO[bytes]) -> None:
        """Write the layer's tar, parents before children.

        An entry below a link of this layer is written at the path that the link leads to. Otherwise a runtime would
        have to follow the link while unpacking.
        """
        entries: dict[str, tarfile.TarInfo] = {}
        sources: dict[str, Path | bytes] = {}
        for path, mode in self._directories.items():
            entries[self._resolve(path)] = _entry(self._resolve(path), tarfile.DIRTYPE, mode)
        for path, source in self._files.items():
            status = source.stat()
            mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            resolved = self._resolve(path)
            entries[resolved] = _entry(resolved, tarfile.REGTYPE, mode, status.st_size, int(status.st_mtime))
            sources[resolved] = source
        for path, content in self._contents.items():
            resolved = self._resolve(path)
            entries[resolved] = _entry(resolved, tarfile.REGTYPE, 0o644, len(content))
            sources[resolved] = content
        for path, target in self._links.items():
            resolved = self._resolve(path)
            entries[resolved] = _entry(resolved, tarfile.SYMTYPE, 0o777)
            entries[resolved].linkname = target
        for path in list(entries):
            for parent in list(PurePosixPath(path).parents)[:-1]:
                entries.setdefault(str(parent), _entry(str(parent), tarfile.DIRTYPE, 0o755))
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path, entry in sorted(entries.items(), key=lambda item: PurePosixPath(item[0]).parts):
                data = sources.get(path, b"")
                with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
                    tar.addfile(entry, stream)

    def _resolve(self, path: str, depth: int = 0) -> str:
        """`path` after following the links of this layer among its parent directories."""
        for parent in reversed(PurePosixPath(path).parents):
            target = self._links.get(str(parent))
            if target is not None:
                if depth > MAX_LINK_DEPTH:
                    raise ValueError(f"the image path {path} lies behind a loop of links")
                rest = path[len(str(parent)) :]
                return self._resolve(os.path.normpath(os.path.join(parent.parent, target)) + rest, depth + 1)
        return path


def _entry(path: str, kind: bytes, mode: int, size: int = 0, modified: int = 0) -> tarfile.TarInfo:
    """A tar entry that belongs to root.

    Files keep their modification times, because Python uses compiled code only if its source still has the same time.
    """
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, modified
    return entry


def write_image(
    out: Path,
    tag: str,
    layer: Layer,
    *,
    entrypoint: Sequence[str],
    env: Mapping[str, str] | None = None,
    user: str,
) -> Path:
    """Write `layer` as an image with one layer. The file `out` appears only when it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".image-") as scratch:
        layer_tar = Path(scratch, "layer.tar")
        with layer_tar.open("wb") as file:
            layer.write(file)
        with layer_tar.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        process = {
            "Env": [f"{name}={value}" for name, value in (env or {}).items()],
            "Entrypoint": list(entrypoint),
            "Cmd": None,
            "User": user,
            "WorkingDir": "/",
        }
        machine = os.uname().machine
        config = json.dumps(
            {
                "architecture": ARCHITECTURES.get(machine, machine),
                "os": "linux",
                "config": process,
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
            },
            sort_keys=True,
        ).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]).encode()
        unfinished = Path(scratch, "image.tar")
        with tarfile.open(unfinished, "w") as tar:
            for path, content in (("manifest.json", manifest), (name, config)):
                tar.addfile(_entry(path, tarfile.REGTYPE, 0o644, len(content)), io.BytesIO(content))
            with layer_tar.open("rb") as file:
                tar.addfile(_entry("layer.tar", tarfile.REGTYPE, 0o644, layer_tar.stat().st_size), file)
        unfinished.rename(out)
    return out
