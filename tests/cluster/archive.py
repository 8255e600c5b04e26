"""Writing a docker-archive tar, the format that every container runtime imports, with nothing but tarfile.

The result depends on the content alone: entries are sorted, owned by root and readable by everyone, so the same input
gives the same digest and is not imported twice.
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


class Layer:
    """The files of an image, by absolute path. A later entry at a path replaces an earlier one."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._bytes: dict[str, tuple[bytes, int]] = {}
        self._links: dict[str, str] = {}
        self._directories: dict[str, int] = {}

    def file(self, path: str, source: Path) -> None:
        self._put(path)
        self._files[path] = source

    def content(self, path: str, content: str | bytes, mode: int = 0o644) -> None:
        self._put(path)
        self._bytes[path] = (content.encode() if isinstance(content, str) else content, mode)

    def link(self, path: str, target: str) -> None:
        self._put(path)
        self._links[path] = target

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._put(path)
        self._directories[path] = mode

    def files(self) -> dict[str, Path]:
        return dict(self._files)

    def __contains__(self, path: str) -> bool:
        return any(path in kind for kind in (self._files, self._bytes, self._links, self._directories))

    def _put(self, path: str) -> None:
        if not path.startswith("/") or os.path.normpath(path) != path:
            raise ValueError(f"a path in an image is absolute and normal, not {path!r}")
        self._files.pop(path, None)
        self._bytes.pop(path, None)
        self._links.pop(path, None)
        self._directories.pop(path, None)

    def write(self, out: IO[bytes]) -> None:
        """The layer's tar, parents before children. No entry may lie behind a link of this layer: a runtime would have
        to follow it while unpacking, so such a path is moved to where the link leads."""
        entries: dict[str, tarfile.TarInfo] = {}
        sources: dict[str, Path | bytes] = {}
        for path, mode in self._directories.items():
            entries[self._real(path)] = _entry(self._real(path), tarfile.DIRTYPE, mode)
        for path, source in self._files.items():
            status = source.stat()
            mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            real = self._real(path)
            entries[real] = _entry(real, tarfile.REGTYPE, mode, status.st_size, int(status.st_mtime))
            sources[real] = source
        for path, (content, mode) in self._bytes.items():
            real = self._real(path)
            entries[real] = _entry(real, tarfile.REGTYPE, mode, len(content))
            sources[real] = content
        for path, target in self._links.items():
            real = self._real(path)
            entries[real] = _entry(real, tarfile.SYMTYPE, 0o777)
            entries[real].linkname = target
        for path in list(entries):
            for parent in list(PurePosixPath(path).parents)[:-1]:
                entries.setdefault(str(parent), _entry(str(parent), tarfile.DIRTYPE, 0o755))
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path, entry in sorted(entries.items(), key=lambda item: PurePosixPath(item[0]).parts):
                data = sources.get(path, b"")
                with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as stream:
                    tar.addfile(entry, stream)

    def _real(self, path: str, depth: int = 0) -> str:
        """`path` with the links among its parent directories followed."""
        for parent in reversed(PurePosixPath(path).parents):
            target = self._links.get(str(parent))
            if target is not None:
                if depth > 20:
                    raise ValueError(f"{path} lies behind a loop of links")
                rest = path[len(str(parent)) :]
                return self._real(os.path.normpath(os.path.join(parent.parent, target)) + rest, depth + 1)
        return path


def _entry(path: str, kind: bytes, mode: int, size: int = 0, modified: int = 0) -> tarfile.TarInfo:
    """Modification times of files are kept, because Python trusts compiled code only beside a source of that time."""
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, modified
    return entry


def write_image(
    out: Path,
    tag: str,
    layer: Layer,
    *,
    entrypoint: Sequence[str] = (),
    command: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    user: str = "",
    workdir: str = "/",
) -> Path:
    """Write `layer` as a one-layer image. `out` appears whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".image-") as scratch:
        packed = Path(scratch, "layer.tar")
        with packed.open("wb") as file:
            layer.write(file)
        with packed.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        process = {
            "Env": [f"{name}={value}" for name, value in (env or {}).items()],
            "Entrypoint": list(entrypoint) or None,
            "Cmd": list(command) or None,
            "User": user,
            "WorkingDir": workdir,
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
        whole = Path(scratch, "image.tar")
        with tarfile.open(whole, "w") as tar:
            for path, content in (("manifest.json", manifest), (name, config)):
                tar.addfile(_entry(path, tarfile.REGTYPE, 0o644, len(content)), io.BytesIO(content))
            with packed.open("rb") as file:
                tar.addfile(_entry("layer.tar", tarfile.REGTYPE, 0o644, packed.stat().st_size), file)
        whole.rename(out)
    return out
